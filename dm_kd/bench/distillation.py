"""How fast distilling is, on random images: a step, and the loader.

    sh scripts/bench.sh distillation --threads 1
    python -m dm_kd.bench.distillation --threads 1 [--parts small,loader]

small: a step of WRN-40-2 -> WRN-16-1, 3x32x32, 100 classes. large: of ResNet-18 -> ResNet-18 at
224 px. A is the original's step: the teacher keeps its graph, float32, NCHW, three numbers read
back each step. B, C: the best simple loop (no_grad, channels_last; with and without bfloat16
autocast, which large leaves out where the hardware lacks it). Ours: engine.train_step with the view
pipeline, from uint8 images; the others get finished inputs for nothing. With cached logits the
teacher's come from the disk.
loader: a packed map and our crops against a folder of PNGs, Pillow and torchvision.
gpu: steps of three ImageNet pairs at batch 256 and our crops, where there is a GPU.
Baselines are re-statements. Equivalence is asserted before any speed.
"""

import argparse
import copy
import functools
import itertools
import sys
import tempfile
import time
import types
from collections.abc import Callable
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from dm_kd import augment, engine, frozen, image_files, image_set, models, objectives, run
from dm_kd.bench import measure
from dm_kd.sources.stored import StoredSource
from dm_kd.tasks import IMAGENET_MEAN, IMAGENET_STD
from dm_kd.teacher_cache import TeacherCache

TEMPERATURE = 10.0
ORIGINAL, OURS = "A original: teacher's graph, fp32, NCHW", "ours"
CACHED = "ours with cached teacher logits"
SIMPLE = "simple: no_grad, channels_last, "
CALIBRATION_PIXELS = 64 * 32 ** 2  # that give the random teacher batch norm statistics
PARTS = ("small", "large", "loader", "gpu")
STORED, LARGE, GPU_CLASSES = 256, 224, 1000  # pixels stored and seen, of ImageNet's recipe
LARGE_REPEATS = 3  # a round of the large part takes 10 seconds
GPU_PAIRS = tuple((("torchvision:" + t, "torchvision:" + s), goal, wall) for t, s, goal, wall in (
    ("resnet18", "resnet18", 9_000.0, 45_000.0), ("resnet18", "resnet50", 4_200.0, 12_000.0),
    ("resnet50", "resnet50", 3_700.0, 10_900.0)))  # images/s on an H200; wall = its arithmetic
GPU_CROPS = 200_000  # images/s
# of the largest gradient's error, and of 1 - cosine in float32 and with bfloat16's rounding
LIMITS, DEEP_LIMITS = (1e-2, 1e-5, 2e-3), (5e-2, 1e-3, 5e-2)
BRANCH_SCALE = 0.1  # of the deep networks' residual branches, see damp_branches


def make_networks(teacher: str, student: str, classes: int, side: int, images: int
                  ) -> tuple[nn.Module, nn.Module]:
    """Random networks for [N, 3, side, side]; the teacher's batch norms know its activations."""
    task = types.SimpleNamespace(name="random", num_classes=classes, channels=3, resolution=side)
    teacher, student = models.build(teacher, task), models.build(student, task)
    damp_branches(teacher)
    damp_branches(student)
    with torch.no_grad():
        for _ in range(3):
            teacher(torch.randn(images, 3, side, side))
    return teacher.eval(), student.train()


def damp_branches(network: nn.Module) -> None:
    """Scale the last batch norm of each block of torchvision's ResNets, in place; the speed stays.
    At plain random weights ResNet-50 amplifies bfloat16's rounding until no gradient is like
    another (1 - cosine 0.8; damped 0.01, but 0.08 for a wrong teacher view or a wrong weight)."""
    from torchvision.models import resnet

    for block in network.modules():
        if isinstance(block, (resnet.BasicBlock, resnet.Bottleneck)):
            last = block.bn3 if isinstance(block, resnet.Bottleneck) else block.bn2
            nn.init.constant_(last.weight, BRANCH_SCALE)


def original_step(student: nn.Module, teacher: nn.Module, optimizer: torch.optim.Optimizer,
                  x: Tensor, labels: Tensor, teacher_grad: bool = True) -> None:
    """DM-KD's step. teacher_grad: its logits stay in the graph and its weights get gradients."""
    with torch.set_grad_enabled(teacher_grad):
        teacher_logits = teacher(x)
    student_logits = student(x)
    loss = objectives.kd(student_logits, teacher_logits, labels, TEMPERATURE)
    loss.item()
    hits = student_logits.topk(5).indices == labels[:, None]
    hits[:, 0].sum().item(), hits.sum().item()
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()


def simple_step(student: nn.Module, teacher: nn.Module, optimizer: torch.optim.Optimizer,
                x: Tensor, labels: Tensor, bf16: bool) -> None:
    """What a good programmer writes in five minutes."""
    with torch.autocast(x.device.type, dtype=torch.bfloat16, enabled=bf16):
        with torch.no_grad():
            teacher_logits = teacher(x)
        student_logits = student(x)
    loss = objectives.kd(student_logits, teacher_logits, labels, TEMPERATURE)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()


def make_variants(teacher: nn.Module, student: nn.Module, images: Tensor, classes: int,
                  view: engine.View, amp: str, device: torch.device, cache: Path, bf16: bool
                  ) -> tuple[dict[str, Callable], dict[str, nn.Module]]:
    """{name: step} on the same batch, and each step's own student (all begin alike).

    Args:
        images: uint8 [B, 3, H, W].
        cache: a folder for kept logits.
        bf16: with the simple loop in bfloat16 too."""
    images, ids = images.to(device), torch.arange(len(images))
    labels = torch.randint(0, classes, (len(images),)).to(device)
    x_nhwc, _ = view.train(images, labels, ids, 0, 0, 0)
    x_nchw = x_nhwc.contiguous()
    steps, students = {}, {}

    def add(name: str, step: Callable, teacher: nn.Module, nhwc: bool, fused: bool = False):
        mine = copy.deepcopy(student).to(device, memory_format=torch.channels_last if nhwc else
                                         torch.contiguous_format)
        sgd = torch.optim.SGD(mine.parameters(), lr=0.1, momentum=0.9, weight_decay=1e-4,
                              fused=fused)
        students[name], steps[name] = mine, lambda: step(mine, teacher, sgd)

    with_graph = copy.deepcopy(teacher).to(device)
    plain = copy.deepcopy(teacher).requires_grad_(False).to(device)
    nhwc = copy.deepcopy(plain).to(memory_format=torch.channels_last)
    fast = frozen.prepare(nhwc, view.plain(images[:4]), amp)
    kept = TeacherCache(cache, {}, "fp16", (len(images), classes), 1, 1, 0, 1, lambda text: None)

    def ours(s: nn.Module, t: Callable, o: torch.optim.Optimizer) -> None:
        x, _ = view.train(images, labels, ids, 0, 0, 0)
        engine.train_step(s, t, o, objectives.kd, x, labels, TEMPERATURE, amp)

    add(ORIGINAL, lambda s, t, o: original_step(s, t, o, x_nchw, labels), with_graph, False)
    add("A with only no_grad changed",
        lambda s, t, o: original_step(s, t, o, x_nchw, labels, False), plain, False)
    for name, low in (("fp32", False), ("bf16 autocast", True))[:1 + bf16]:
        add(SIMPLE + name, lambda s, t, o, low=low: simple_step(s, t, o, x_nhwc, labels, low),
            nhwc, True)
    add("ours without the fused teacher", ours, nhwc, True, fused=True)
    add(OURS, ours, fast, True, fused=True)
    add(CACHED, ours, functools.partial(kept.logits, fast, 0, 0), True, fused=True)
    return steps, students


def gradients(step: Callable, student: nn.Module) -> Tensor:
    """The student's gradients of one step, in one vector; the student is left as it was."""
    state = copy.deepcopy(student.state_dict())
    step()
    vector = torch.cat([p.grad.flatten().double() for p in student.parameters()])
    student.load_state_dict(state)
    return vector


def equivalence(steps: dict[str, Callable], students: dict[str, nn.Module], amp: str,
                deep: bool = False) -> dict:
    """Each variant's student gradients against the original's. deep: 18 or more layers, which
    amplify rounding more."""
    error, exact, rounding = DEEP_LIMITS if deep else LIMITS
    expected = gradients(steps[ORIGINAL], students[ORIGINAL])
    checks = {}
    for name in (n for n in steps if n != ORIGINAL):
        got = gradients(steps[name], students[name])
        rounded = "bf16" in name or (name.startswith("ours") and amp == "bf16")
        limit = None if rounded else 1e-6 if "only no_grad" in name else error
        checks[f"{name}: gradient error"] = {
            "value": measure.relative_error(got, expected), "limit": limit}
        cosine = torch.nn.functional.cosine_similarity(got, expected, 0).item()
        checks[f"{name}: 1 - cosine"] = {"value": 1 - cosine,
                                         "limit": rounding if rounded else exact}
    return checks


def needed_flops(teacher: nn.Module, student: nn.Module, batch: int, side: int
                 ) -> tuple[float, float]:
    """Of one step, with the teacher's forward and without: the student forward and backward. One
    FMA = 2."""
    x = torch.randn(batch, 3, side, side)
    with FlopCounterMode(display=False) as counter:
        copy.deepcopy(student)(x).sum().backward()
    alone = float(counter.get_total_flops())
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        teacher(x)
    return alone + float(counter.get_total_flops()), alone


def step_part(args: argparse.Namespace, device: torch.device, amp: str, names: tuple[str, str],
              batch: int, classes: int, view: engine.View, sides: tuple[int, int], repeats: int,
              goals: dict[str, float], deep: bool = False) -> dict:
    """Time the variants of a pair's step; the record's part.

    Args:
        sides: pixels of the stored images, and of the networks' input.
        goals: variant -> how many times faster than the original's step it should be."""
    torch.manual_seed(args.seed)
    teacher, student = make_networks(*names, classes, sides[1], max(4, min(
        batch, CALIBRATION_PIXELS // sides[1] ** 2)))
    images = torch.randint(0, 256, (batch, 3, sides[0], sides[0]), dtype=torch.uint8)
    print(f"distillation step, {names[0]} -> {names[1]}, {sides[1]} px, batch {batch}, "
          f"{device}, {args.threads} threads, our amp {amp}")
    with tempfile.TemporaryDirectory() as cache:
        steps, students = make_variants(teacher, student, images, classes, view, amp, device,
                                        Path(cache), amp == "bf16" or sides[1] < LARGE)
        checks = equivalence(steps, students, amp, deep)
        measure.require(checks)
        steps["ceiling"], roof = measure.ceiling(
            device, torch.bfloat16 if amp == "bf16" else torch.float32)
        times = measure.interleave(steps, repeats, device)
    clock = measure.choose_clock(device, args.threads)
    needed, alone = needed_flops(teacher, student, batch, sides[1])
    flops = dict.fromkeys(steps, needed) | {CACHED: alone, "ceiling": roof}
    rows = measure.table(times, ORIGINAL, clock, batch, flops, "ceiling")
    roofline = measure.spread(original_over_ceiling(times, needed / roof, clock))
    print(f"  all needed FLOPs at the ceiling's speed would be {roofline['median']:.2f}x")
    rival = min((n for n in steps if n.startswith(SIMPLE)),
                key=lambda n: measure.spread(times[n][clock])["median"])
    verdicts = [measure.verdict(f"{name} against the original's step ({c} time)",
                                measure.ratio(times, ORIGINAL, name, c), goal)
                for name, goal in goals.items() for c in ("cpu", "wall")]
    verdicts.append(measure.verdict(f"ours against {rival} ({clock} time)",
                                    measure.ratio(times, rival, OURS, clock), 0.95))
    return {"pair": list(names), "batch_size": batch, "pixels": sides[1],
            "amp": amp, "dtype": "bfloat16" if amp == "bf16" else "float32", "clock": clock,
            "equivalence": checks, "flops_per_step": needed, "best_simple": rival, "rows": rows,
            "ceiling_gflops": roof / measure.spread(times["ceiling"][clock])["median"] / 1e9,
            "ratio_at_ceiling": roofline, "ratios": verdicts}


def original_over_ceiling(times: dict, share: float, clock: str) -> list[float]:
    """A's time over that of the needed FLOPs at the ceiling's speed, in each round."""
    return [a / (c * share) for a, c in zip(times[ORIGINAL][clock], times["ceiling"][clock],
                                            strict=True)]


# --- the loader -----------------------------------------------------------------------------------

def picture(side: int) -> Tensor:
    """A random image that a PNG compresses about as well as a photograph: waves and some noise."""
    low = torch.randn(1, 3, 9, 9)
    waves = nn.functional.interpolate(low, (side, side), mode="bicubic")[0]
    return (127 + 50 * waves + 4 * torch.randn(3, side, side)).clamp(0, 255).to(torch.uint8)


def pillow_batch(paths: list[Path], boxes: Tensor | None = None) -> Tensor:
    """The original's loader: decode, random-resized crop, mirror, standardise; float32 [N, 3,
    LARGE, LARGE]. boxes: int64 [N, 4], cut instead of random ones and not mirrored."""
    from torchvision.transforms import v2

    crop, flip = v2.RandomResizedCrop(LARGE), v2.RandomHorizontalFlip()
    rest = v2.Compose([v2.PILToTensor(), v2.ToDtype(torch.float32, scale=True),
                       v2.Normalize(IMAGENET_MEAN, IMAGENET_STD)])
    batch = []
    for i, path in enumerate(paths):
        with Image.open(path) as file:
            image = file.convert("RGB")
        if boxes is None:
            image = flip(crop(image))
        else:
            image = v2.functional.resized_crop(image, *boxes[i].tolist(), [LARGE, LARGE])
        batch.append(rest(image))
    return torch.stack(batch)


def loader_part(args: argparse.Namespace, device: torch.device) -> dict:
    """Time a batch of training views of 256 x 256 images: the record's part."""
    torch.manual_seed(args.seed)
    count = args.loader_images
    pictures = [picture(STORED) for _ in range(count)]
    view = engine.View(IMAGENET_MEAN, IMAGENET_STD, LARGE, crop=True, flip=True)
    print(f"loader, {count} images of {STORED} px, crops of {LARGE}, {args.threads} threads")
    with tempfile.TemporaryDirectory() as folder:
        paths = [Path(folder) / f"{i}.png" for i in range(count)]
        for path, image in zip(paths, pictures, strict=True):
            path.write_bytes(image_set.encode_png(image))
        images, _ = image_files.packed(Path(folder), "loader", (count, 3, STORED, STORED),
                                       lambda: pictures, "random")
        labels, epochs = torch.zeros(count, dtype=torch.int64), itertools.count()
        source = StoredSource(images, labels, count, args.seed)

        def ours() -> Tensor:
            batch, marks, ids = next(source.batches(epoch := next(epochs)))
            return view.train(batch, marks.to(device), ids, args.seed, epoch, 0)[0]

        boxes = augment.crop_boxes(args.seed, 0, torch.arange(count),
                                   torch.tensor([STORED, STORED]).expand(count, 2))
        cut = augment.resized_crops(images, boxes, torch.zeros(count, dtype=torch.bool), LARGE)
        expected = pillow_batch(paths, boxes)
        grey = expected * torch.tensor(IMAGENET_STD).view(3, 1, 1) + torch.tensor(
            IMAGENET_MEAN).view(3, 1, 1)
        worst = (grey.mul(255).round() - cut.float()).abs().max().item()
        checks = {"same boxes: largest difference in grey levels": {"value": worst, "limit": 2.0}}
        measure.require(checks)
        variants = {"A PNG folder, Pillow, torchvision": lambda: pillow_batch(paths),
                    "ours: packed map, our crops": ours}
        times = measure.interleave(variants, args.repeats, device)
    base, own = variants
    clock = measure.choose_clock(device, args.threads)
    rows = [{"variant": name, "images_per_second": count / measure.spread(times[name][clock])[
        "median"]} for name in variants]
    for row in rows:
        print(f"  {row['variant']:<44} {row['images_per_second']:9.1f} images/s")
    verdicts = [measure.verdict(f"our loader against PNG and Pillow ({c} time)",
                                measure.ratio(times, base, own, c), 5.0) for c in ("cpu", "wall")]
    return {"images": count, "pixels": STORED, "equivalence": checks, "rows": rows,
            "ratios": verdicts}


# --- a GPU ----------------------------------------------------------------------------------------

def gpu_step(student: nn.Module, teacher: nn.Module, view: engine.View, images: Tensor,
             device: torch.device) -> Callable:
    """f(steps): ours as in engine.fit: stored uint8 images, our crops, bfloat16, compiled networks,
    fused SGD. images: uint8 [B, 3, H, W] on the device."""
    args = types.SimpleNamespace(compile="on", optimizer="sgd", learning_rate=0.1,
                                 weight_decay=1e-4)
    student = student.to(device, memory_format=torch.channels_last)
    teacher = teacher.to(device, memory_format=torch.channels_last)
    optimizer = engine.make_optimizer(student, args)
    network, teach = (engine.compiled(m, args, device) for m in (student, teacher))
    labels, ids = torch.zeros(len(images), dtype=torch.int64, device=device), torch.arange(
        len(images))

    def run_steps(steps: int) -> None:
        for step in range(steps):
            x, _ = view.train(images, labels, ids, 0, 0, step)
            torch.compiler.cudagraph_mark_step_begin()
            engine.train_step(network, teach, optimizer, objectives.kd, x, labels, TEMPERATURE,
                              "bf16")

    return run_steps


def gpu_pair(args: argparse.Namespace, device: torch.device, names: tuple[str, str], batch: int,
             steps: int, goal: float, wall: float) -> dict:
    """Time a pair's steps against the original's and the best simple loop's: the record's part."""
    torch.manual_seed(args.seed)
    side, stored = args.gpu_pixels, args.gpu_pixels * 8 // 7
    teacher, student = make_networks(*names, GPU_CLASSES, side, 4)
    images = torch.randint(0, 256, (batch, 3, stored, stored), dtype=torch.uint8).to(device)
    labels = torch.zeros(batch, dtype=torch.int64, device=device)
    view = engine.View(IMAGENET_MEAN, IMAGENET_STD, side, crop=True, flip=True)
    x, _ = view.train(images, labels, torch.arange(batch), 0, 0, 0)
    plain = copy.deepcopy(teacher).requires_grad_(False).to(device,
                                                            memory_format=torch.channels_last)
    nets = {name: copy.deepcopy(student).to(device, memory_format=layout) for name, layout in (
        (ORIGINAL, torch.contiguous_format), (SIMPLE, torch.channels_last))}
    sgd = {name: torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9, weight_decay=1e-4)
           for name, net in nets.items()}
    with_graph, x_nchw = teacher.to(device), x.contiguous()
    mine = copy.deepcopy(student)
    ours = gpu_step(mine, copy.deepcopy(plain), view, images, device)
    variants = {
        ORIGINAL: lambda: [original_step(nets[ORIGINAL], with_graph, sgd[ORIGINAL], x_nchw, labels)
                           for _ in range(steps)],
        SIMPLE + "bf16": lambda: [simple_step(nets[SIMPLE], plain, sgd[SIMPLE], x, labels, True)
                                  for _ in range(steps)],
        OURS: lambda: ours(steps)}
    one = {ORIGINAL: lambda: original_step(nets[ORIGINAL], with_graph, sgd[ORIGINAL], x_nchw,
                                           labels),
           OURS: lambda: ours(1)}
    started = time.perf_counter()
    checks = equivalence(one, {ORIGINAL: nets[ORIGINAL], OURS: mine}, "bf16", deep=True)
    compiling = time.perf_counter() - started  # and two steps
    measure.require(checks)
    times = measure.interleave(variants, args.repeats, device)
    speed = {name: batch * steps / measure.spread(times[name]["wall"])["median"]
             for name in variants}
    for name, value in speed.items():
        print(f"  {names[0]} -> {names[1]}, {name:<44} {value:9.0f} images/s")
    share = 100 * speed[OURS] / wall
    print(f"  goal {goal:,.0f} images/s; {share:.0f} % of the wall of {wall:,.0f}; compiled in "
          f"{compiling:.0f} s")
    return {"pair": list(names), "batch_size": batch, "equivalence": checks,
            "images_per_second": speed, "goal": goal, "wall": wall,
            "share_of_wall_percent": share,
            "reached": speed[OURS] >= goal, "compile_seconds": compiling,
            "warm_up_seconds": times[OURS]["warm_up"],
            "ratios": {name: measure.ratio(times, name, OURS, "wall")
                       for name in variants if name != OURS}}


def gpu_part(args: argparse.Namespace, device: torch.device) -> dict:
    """The three pairs of the paper's ImageNet rows, and our crops alone."""
    batch, side = args.gpu_batch_size, args.gpu_pixels
    print(f"gpu: {side} px, batch {batch}, {device}")
    pairs = [gpu_pair(args, device, names, batch, args.gpu_steps, goal, wall)
             for names, goal, wall in GPU_PAIRS]
    view = engine.View(IMAGENET_MEAN, IMAGENET_STD, side, crop=True, flip=True)
    images = torch.randint(0, 256, (batch, 3, side * 8 // 7, side * 8 // 7), dtype=torch.uint8
                           ).to(device)
    labels, ids = torch.zeros(batch, dtype=torch.int64, device=device), torch.arange(batch)
    times = measure.interleave({"crops": lambda: [
        view.train(images, labels, ids, 0, 0, step) for step in range(args.gpu_steps)]},
        args.repeats, device)
    speed = batch * args.gpu_steps / measure.spread(times["crops"]["wall"])["median"]
    print(f"  crops, mirrored and standardised: {speed:,.0f} images/s, goal {GPU_CROPS:,}")
    return {"pairs": pairs, "crops_per_second": speed, "crops_goal": GPU_CROPS}


# --- the command ----------------------------------------------------------------------------------

def add_arguments(parser) -> None:
    for flag, default, what in (
            ("--teacher", "wrn_40_2", "of the part small"), ("--student", "wrn_16_1", "the same"),
            ("--large-network", "torchvision:resnet18", "teacher and student of the part large")):
        parser.add_argument(flag, default=default, metavar="NAME",
                            help=f"{what} (default: %(default)s)")
    for flag, default, what in (
            ("--batch-size", 128, "of the part small"), ("--classes", 100, "of the part small"),
            ("--large-batch-size", 8, "of the part large"),
            ("--loader-images", 64, "a batch of the part loader"),
            ("--gpu-batch-size", 256, "of the part gpu"), ("--gpu-pixels", LARGE, "a side's"),
            ("--gpu-steps", 20, "in each timed round")):
        parser.add_argument(flag, type=run.positive_int, default=default, metavar="N",
                            help=f"{what} (default: %(default)s)")
    parser.add_argument("--parts", type=parts, default=None, metavar="LIST",
                        help=f"of {','.join(PARTS)} (default: small,large,loader; on a GPU all)")


def parts(text: str) -> tuple[str, ...]:
    chosen = tuple(part.strip() for part in text.split(",") if part.strip())
    if not chosen or not set(chosen) <= set(PARTS):
        raise argparse.ArgumentTypeError(f"of {','.join(PARTS)}, got {text}")
    return chosen


def body(argv: list[str]) -> None:
    args = measure.parse("distillation", __doc__, 1, 7, argv, add_arguments)
    if args.dry_run:
        print(f"would time {args.repeats} rounds of a {args.teacher} -> {args.student} step, "
              f"batch {args.batch_size}, of a ResNet-18 step at {LARGE} px, and of the loader, "
              f"about 4 minutes, into {args.out}")
        return
    device = run.use_device(args)
    chosen = args.parts or (PARTS if device.type == "cuda" else PARTS[:-1])
    args.parts, amp = ",".join(chosen), engine.resolve_amp("auto", device)
    contents = {}
    if "small" in chosen:
        view = engine.View((0.5071, 0.4867, 0.4408), (0.2675, 0.2565, 0.2761), pad=4, flip=True)
        contents = step_part(args, device, amp, (args.teacher, args.student), args.batch_size,
                             args.classes, view, (32, 32), args.repeats, {OURS: 5.0, CACHED: 12.0})
    if "large" in chosen:
        view = engine.View(IMAGENET_MEAN, IMAGENET_STD, LARGE, crop=True, flip=True)
        contents["large"] = step_part(
            args, device, amp, (args.large_network,) * 2, args.large_batch_size, GPU_CLASSES, view,
            (STORED, LARGE), min(args.repeats, LARGE_REPEATS), {OURS: 2.5}, deep=True)
    if "loader" in chosen:
        contents["loader"] = loader_part(args, device)
    if "gpu" in chosen:
        contents["gpu"] = gpu_part(args, device)
    measure.record(args, "distillation", device, contents)


def main(argv: list[str] | None = None) -> int:
    return run.main(body, argv)


if __name__ == "__main__":
    sys.exit(main())
