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
gpu: engine.train_one_epoch of three ImageNet pairs at batch 256 from images on the device, judging,
and our crops alone, where there is a GPU; there it comes first.
Baselines are re-statements. Equivalence is asserted before any speed: a part that fails is recorded
as refused, with its figures, and the others go on; the exit code is then 2. The record is written
after each part.
"""

import argparse
import contextlib
import copy
import functools
import itertools
import sys
import tempfile
import time
import types
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from dm_kd import augment, engine, frozen, image_files, image_set, models, objectives, run
from dm_kd.bench import measure
from dm_kd.errors import UserError
from dm_kd.sources.stored import StoredSource
from dm_kd.tasks import IMAGENET_MEAN, IMAGENET_STD
from dm_kd.teacher_cache import TeacherCache

TEMPERATURE = 10.0
ORIGINAL, OURS = "A original: teacher's graph, fp32, NCHW", "ours"
CACHED = "ours with cached teacher logits"
SIMPLE = "simple: no_grad, channels_last, "
CALIBRATION_PIXELS = 64 * 32 ** 2  # that give the random teacher batch norm statistics
PARTS = ("small", "large", "loader", "gpu")
GPU_PARTS = ("gpu", *PARTS[:-1])  # in this order
STORED, LARGE, GPU_CLASSES = 256, 224, 1000  # pixels stored and seen, of ImageNet's recipe
LARGE_REPEATS = 3  # a round of the large part takes 10 seconds
GPU_PAIRS = tuple((("torchvision:" + t, "torchvision:" + s), *numbers) for t, s, *numbers in (
    ("resnet18", "resnet18", 9_000.0, 14_000.0, 45_000.0, 40.0),
    ("resnet18", "resnet50", 4_200.0, 6_000.0, 12_000.0, None),
    ("resnet50", "resnet50", 3_700.0, 5_500.0, 10_900.0, None)))
# goal, aim and wall (its arithmetic) in images/s on an H200; goal in minutes for the paper's run
GPU_CROPS = 200_000  # images/s
RUN_EPOCHS, RUN_IMAGES, RUN_JUDGED = 100, 200_000, 50_000  # the paper's run; judged in each epoch
GPU_RATE = 1e-3  # learns so little from random images that no loss runs away
SIMPLE_GPU = SIMPLE + "bf16 autocast, cudnn.benchmark"
JUDGING = "ours, judging"
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
        with torch_settings(deterministic=True, tf32=False):
            checks = equivalence(steps, students, amp, deep)
        measure.require(checks)
        steps["ceiling"], roof = measure.ceiling(
            device, torch.bfloat16 if amp == "bf16" else torch.float32)
        with torch_settings(deterministic=False):
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

@contextlib.contextmanager
def torch_settings(deterministic: bool, tf32: bool = True, benchmark: bool = False
                   ) -> Iterator[None]:
    """How kernels are chosen inside the block; torch's own defaults are False, True, False."""
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(deterministic, warn_only=True)
    try:
        with torch.backends.cudnn.flags(enabled=True, benchmark=benchmark,
                                        deterministic=deterministic, allow_tf32=tf32):
            yield
    finally:
        torch.use_deterministic_algorithms(before, warn_only=True)


def our_epochs(args: argparse.Namespace, device: torch.device, view: engine.View,
               student: nn.Module, teacher: nn.Module, images: Tensor) -> Callable:
    """f(steps): an epoch as engine.fit runs it: gathered from images on the device, our crops,
    bfloat16, compiled networks, fused SGD. images: uint8 [N, 3, H, W] there."""
    settings = types.SimpleNamespace(
        compile="on", optimizer="sgd", learning_rate=GPU_RATE, weight_decay=1e-4, epochs=1,
        lr_schedule="step", lr_decay_epochs=(), warmup_epochs=0, seed=args.seed,
        temperature=TEMPERATURE, amp="bf16", batch_size=args.gpu_batch_size)
    student = student.to(device, memory_format=torch.channels_last)
    teacher = teacher.to(device, memory_format=torch.channels_last)
    optimizer = engine.make_optimizer(student, settings)
    network, teach = (engine.compiled(m, settings, device) for m in (student, teacher))
    folder = types.SimpleNamespace(due=lambda: False, log=print, folder=args.out)

    def epoch(steps: int) -> None:
        engine.train_one_epoch(folder, settings, view, network, student, teach, None, optimizer,
                               gpu_source(args, images, steps), objectives.kd, device, 0,
                               {"step": 0, "losses": None}, 0.0, lambda: 0)

    return epoch


def gpu_source(args: argparse.Namespace, images: Tensor, steps: int) -> StoredSource:
    labels = torch.zeros(len(images), dtype=torch.int64, device=images.device)
    return StoredSource(images, labels, args.gpu_batch_size, args.seed, steps_per_epoch=steps)


def gpu_variants(args: argparse.Namespace, device: torch.device, names: tuple[str, str],
                 view: engine.View) -> tuple[dict[str, Callable], dict[str, nn.Module]]:
    """({name: f(steps)}, {name: its student}) of a pair; all begin with the same batch."""
    torch.manual_seed(args.seed)
    side, stored = args.gpu_pixels, args.gpu_pixels * 8 // 7
    teacher, student = make_networks(*names, GPU_CLASSES, side, 4)
    images = torch.randint(0, 256, (args.gpu_images, 3, stored, stored), dtype=torch.uint8
                           ).to(device)
    first, labels, ids = next(iter(gpu_source(args, images, 1).batches(0)))
    x, _ = view.train(first, labels, ids, args.seed, 0, 0)
    plain = copy.deepcopy(teacher).requires_grad_(False).to(device,
                                                            memory_format=torch.channels_last)
    students = {name: copy.deepcopy(student).to(device, memory_format=layout) for name, layout in (
        (ORIGINAL, torch.contiguous_format), (SIMPLE_GPU, torch.channels_last))}
    sgd = {name: torch.optim.SGD(net.parameters(), lr=GPU_RATE, momentum=0.9, weight_decay=1e-4)
           for name, net in students.items()}
    with_graph, x_nchw, students[OURS] = teacher.to(device), x.contiguous(), student

    def original(steps: int) -> None:
        for _ in range(steps):
            original_step(students[ORIGINAL], with_graph, sgd[ORIGINAL], x_nchw, labels)

    def simple(steps: int) -> None:
        for _ in range(steps):
            simple_step(students[SIMPLE_GPU], plain, sgd[SIMPLE_GPU], x, labels, True)

    return {ORIGINAL: original, SIMPLE_GPU: simple, OURS: our_epochs(
        args, device, view, student, copy.deepcopy(plain), images)}, students


def gpu_pair(args: argparse.Namespace, device: torch.device, names: tuple[str, str], goal: float,
             aim: float, wall: float, minutes_goal: float | None) -> dict:
    """Time a pair's epochs against the original's loop and the best simple one, which get finished
    inputs for nothing, and judging: the record's part."""
    view = engine.View(IMAGENET_MEAN, IMAGENET_STD, args.gpu_pixels, crop=True, flip=True)
    print(f"\n  {names[0]} -> {names[1]}")
    variants, students = gpu_variants(args, device, names, view)
    started = time.perf_counter()
    with torch_settings(deterministic=True, tf32=False):
        checks = equivalence({name: functools.partial(f, 1) for name, f in variants.items()},
                             students, "bf16", deep=True)
    compiling = time.perf_counter() - started  # and a step of each
    measure.require(checks)
    judged = torch.randint(0, 256, (args.gpu_images, 3, args.gpu_pixels, args.gpu_pixels),
                           dtype=torch.uint8).to(device)

    def rival(name: str, benchmark: bool) -> None:
        with torch_settings(deterministic=False, benchmark=benchmark):
            variants[name](args.gpu_steps)

    times = measure.interleave({
        ORIGINAL: lambda: rival(ORIGINAL, False), SIMPLE_GPU: lambda: rival(SIMPLE_GPU, True),
        OURS: lambda: variants[OURS](args.gpu_steps),
        JUDGING: lambda: engine.predict(students[OURS], judged, view, device, "bf16")},
        args.repeats, device)
    counts = dict.fromkeys(variants, args.gpu_batch_size * args.gpu_steps) | {JUDGING: len(judged)}
    speed = {name: count / measure.spread(times[name]["wall"])["median"]
             for name, count in counts.items()}
    ratios = {name: measure.ratio(times, name, OURS, "wall") for name in (ORIGINAL, SIMPLE_GPU)}
    minutes = RUN_EPOCHS / 60 * (RUN_IMAGES / speed[OURS] + RUN_JUDGED / speed[JUDGING])
    show_pair(speed, ratios, goal, aim, wall, minutes, minutes_goal)
    print(f"  compiled in {compiling:.0f} s")
    return {"pair": list(names), "batch_size": args.gpu_batch_size, "equivalence": checks,
            "images_per_second": speed, "goal": goal, "aim": aim, "wall": wall,
            "share_of_wall_percent": 100 * speed[OURS] / wall, "reached": speed[OURS] >= goal,
            "aim_reached": speed[OURS] >= aim, "minutes_of_a_run": minutes,
            "minutes_goal": minutes_goal, "compile_seconds": compiling,
            "warm_up_seconds": times[OURS]["warm_up"], "ratios": ratios}


def show_pair(speed: dict[str, float], ratios: dict[str, dict], goal: float, aim: float,
              wall: float, minutes: float, minutes_goal: float | None) -> None:
    def judge(reached: bool) -> str:
        return "reached" if reached else "MISSED"

    for name, value in speed.items():
        ratio = ratios.get(name)
        print(f"  {name:<66} {value:9,.0f} images/s" + (
            f"   ours is {ratio['median']:.2f}x [{ratio['q25']:.2f}, {ratio['q75']:.2f}] as fast"
            if ratio else ""))
    ours = speed[OURS]
    print(f"  goal {goal:,.0f} images/s {judge(ours >= goal)}, aim {aim:,.0f} "
          f"{judge(ours >= aim)}; {100 * ours / wall:.0f} % of the wall of {wall:,.0f}")
    print(f"  {RUN_EPOCHS} epochs of {RUN_IMAGES:,} images, {RUN_JUDGED:,} judged in each: "
          f"{minutes:.1f} minutes" + (f"   goal {minutes_goal:g} {judge(minutes <= minutes_goal)}"
                                      if minutes_goal else ""))


def gpu_part(args: argparse.Namespace, device: torch.device, refused: list[str],
             keep: Callable[[dict], None]) -> dict:
    """The three pairs of the paper's ImageNet rows, and our crops alone. keep: takes what there is
    after each."""
    batch, side = args.gpu_batch_size, args.gpu_pixels
    print(f"gpu: {side} px, batch {batch}, {args.gpu_images} images on {device}")
    part = {"crops_goal": GPU_CROPS, "pairs": []}
    view = engine.View(IMAGENET_MEAN, IMAGENET_STD, side, crop=True, flip=True)
    images = torch.randint(0, 256, (batch, 3, side * 8 // 7, side * 8 // 7), dtype=torch.uint8
                           ).to(device)
    labels, ids = torch.zeros(batch, dtype=torch.int64, device=device), torch.arange(batch)
    times = measure.interleave({"crops": lambda: [
        view.train(images, labels, ids, 0, 0, step) for step in range(args.gpu_steps)]},
        args.repeats, device)
    speed = batch * args.gpu_steps / measure.spread(times["crops"]["wall"])["median"]
    print(f"  crops, mirrored and standardised: {speed:,.0f} images/s, goal {GPU_CROPS:,} "
          f"{'reached' if speed >= GPU_CROPS else 'MISSED'}")
    part["crops_per_second"] = speed
    for names, *numbers in GPU_PAIRS:
        keep(part)
        part["pairs"].append({"pair": list(names), **unless_refused(
            functools.partial(gpu_pair, args, device, names, *numbers), refused)})
        torch.compiler.reset()  # and its recorded graphs' memory
    return part


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
            ("--gpu-images", 2048, "on the device, to learn from and to judge"),
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
              f"about 4 minutes; on a GPU first of {len(GPU_PAIRS)} ImageNet pairs; into "
              f"{args.out}")
        return
    device = run.use_device(args)
    chosen = args.parts or (GPU_PARTS if device.type == "cuda" else PARTS[:-1])
    args.parts, amp = ",".join(chosen), engine.resolve_amp("auto", device)
    contents, refused = {}, []

    def keep(part: str, found: dict) -> None:
        contents.update({part: found} if part != "small" or "refused" in found else found)
        measure.record(args, "distillation", device, contents)

    measured = {
        "small": lambda: small_part(args, device, amp), "large": lambda: large_part(args, device,
                                                                                    amp),
        "loader": lambda: loader_part(args, device),
        "gpu": lambda: gpu_part(args, device, refused, functools.partial(keep, "gpu"))}
    for part in chosen:
        keep(part, unless_refused(measured[part], refused))
    if refused:
        raise UserError(f"not equivalent: {'; '.join(refused)}"[:300],
                        hint="no speed is measured of something else; the record has the figures")


def small_part(args: argparse.Namespace, device: torch.device, amp: str) -> dict:
    view = engine.View((0.5071, 0.4867, 0.4408), (0.2675, 0.2565, 0.2761), pad=4, flip=True)
    return step_part(args, device, amp, (args.teacher, args.student), args.batch_size,
                     args.classes, view, (32, 32), args.repeats, {OURS: 5.0, CACHED: 12.0})


def large_part(args: argparse.Namespace, device: torch.device, amp: str) -> dict:
    view = engine.View(IMAGENET_MEAN, IMAGENET_STD, LARGE, crop=True, flip=True)
    return step_part(args, device, amp, (args.large_network,) * 2, args.large_batch_size,
                     GPU_CLASSES, view, (STORED, LARGE), min(args.repeats, LARGE_REPEATS),
                     {OURS: 2.5}, deep=True)


def unless_refused(measured: Callable[[], dict], refused: list[str]) -> dict:
    """A part of the record, or why there is no speed in it, with the figures."""
    try:
        return measured()
    except measure.NotEquivalent as error:
        print(error, file=sys.stderr)
        refused.append(str(error).splitlines()[0].removeprefix("error: not equivalent: "))
        return {"refused": str(error).splitlines()[0], "equivalence": error.checks}


def main(argv: list[str] | None = None) -> int:
    return run.main(body, argv)


if __name__ == "__main__":
    sys.exit(main())
