"""How fast distilling and sampling are, against other loops, interleaved in one run.

    python -m dm_kd.bench distillation --threads 1
    python -m dm_kd.bench synthesis

distillation: a KD step (CPU: WRN-40-2 to WRN-16-1 at 32 pixels; GPU: ResNet-18 to ResNet-18 at 224)
as the original DM-KD does it (the teacher keeps its graph, float32, NCHW, numbers read back in each
step), as a good simple loop, ours, and ours with kept logits; and training crops from a packed map
against PNG files and Pillow. synthesis: a DiT's DDIM loop (CPU: 2.4 M parameters; GPU: DiT-XL/2)
against diffusers' module, and our exact ancestral sampler with PNG encoding.

Results are compared before anything is timed. Variants take turns (A B C A B C ...), so that a busy
machine slows all of them; ratios are of one round, as median and quartiles. save/bench/NAME.json is
written after each row.
"""

import argparse
import copy
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from dm_kd import augment, data, engine, image_set, models, objectives, run
from dm_kd.generators import diffusion, dit, latent, weights
from dm_kd.run import UserError
from dm_kd.tasks import TASKS

TEMPERATURE = 10.0
SMALL_DIT = {"input_size": 28, "patch_size": 4, "channels": 1, "width": 144, "depth": 6, "heads": 6,
             "num_classes": 10}
DIT_XL = {"input_size": 32, "patch_size": 2, "channels": 4, "width": 1152, "depth": 28, "heads": 16,
          "num_classes": 1000}


def parse(argv: list[str]) -> argparse.Namespace:
    parser = run.Parser("bench", __doc__)
    add = parser.add_argument
    add("name", choices=("distillation", "synthesis"))
    add("--repeats", type=run.positive_int, default=10, metavar="N",
        help="timed rounds, after one that is not timed (default: %(default)s)")
    add("--batch-size", type=run.positive_int, default=None, metavar="N",
        help="images of a step or batch (default: 64, on a GPU 256)")
    add("--steps", type=run.positive_int, default=20, metavar="T",
        help="sampling steps of synthesis (default: %(default)s)")
    add("--out", type=Path, default=Path("save/bench"), metavar="DIR",
        help="where NAME.json is written (default: %(default)s)")
    run.add_common_arguments(parser)
    return run.parse(parser, argv)


# --- timing ---------------------------------------------------------------------------------------

class Record:
    """Rows of ratios, printed and written to the record as they come."""

    def __init__(self, args: argparse.Namespace, device: torch.device):
        self.args, self.device, self.contents = args, device, {}

    def check(self, name: str, error: float, limit: float) -> None:
        """Raise UserError where two loops disagree: no speed is measured of something else."""
        print(f"  {name}: {error:.1e} (limit {limit:g})")
        self.contents.setdefault("equivalence", {})[name] = {"error": error, "limit": limit}
        if not error <= limit:
            raise UserError(f"not equivalent: {name}: {error:.2e} is more than {limit:g}")

    def time(self, title: str, variants: dict[str, Callable], images: int,
             goals: dict[tuple[str, str], float]) -> None:
        """Time the variants in turns; add their rates and the ratios asked for.

        Args:
            images: that one call handles.
            goals: (slower, faster) -> how many times as fast it should be.
        """
        seconds = {name: [] for name in variants}
        for turn in range(self.args.repeats + 1):
            for name, variant in variants.items():
                self.synchronize()
                start = time.perf_counter()
                variant()
                self.synchronize()
                if turn:
                    seconds[name].append(time.perf_counter() - start)
        part = {"images_per_second": {}, "ratios": []}
        print(title)
        for name, values in seconds.items():
            part["images_per_second"][name] = images / float(np.median(values))
            print(f"  {name:<36} {part['images_per_second'][name]:10.1f} images/s")
        for (slower, faster), goal in goals.items():
            ratios = np.array(seconds[slower]) / np.array(seconds[faster])
            low, median, high = np.percentile(ratios, (25, 50, 75)).tolist()
            part["ratios"].append({"slower": slower, "faster": faster, "median": median,
                                   "q25": low, "q75": high, "goal": goal})
            print(f"  {faster} / {slower}: {median:.2f} x [{low:.2f}, {high:.2f}], goal {goal:g}")
        self.contents[title] = part
        run.write_json(self.args.out / f"{self.args.name}.json", {
            "bench": self.args.name, "settings": {
                k: v for k, v in vars(self.args).items() if k not in ("out", "config", "debug")},
            **self.contents, "hardware": run.hardware(self.device), "versions": run.versions(),
            "date": time.strftime("%Y-%m-%d"), "commit": run.commit()})

    def synchronize(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)


def relative_error(value: Tensor, expected: Tensor) -> float:
    return ((value - expected).abs().max() / expected.abs().max()).item()


# --- distillation ---------------------------------------------------------------------------------

def original_step(student: nn.Module, teacher: nn.Module, optimizer: torch.optim.Optimizer,
                  x: Tensor, labels: Tensor) -> None:
    """The original's semantics: the teacher's weights get gradients, the loss and two accuracies
    are read back in each step."""
    loss = objectives.kd(student_logits := student(x), teacher(x), labels, TEMPERATURE)
    loss.item()
    hits = student_logits.topk(5).indices == labels[:, None]
    hits[:, 0].sum().item(), hits.sum().item()
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()


def simple_step(student: nn.Module, teacher: nn.Module, optimizer: torch.optim.Optimizer,
                x: Tensor, labels: Tensor, amp: str) -> None:
    """A well-written simple loop: no_grad, channels_last, autocast."""
    with engine.autocast(amp, x.device):
        with torch.no_grad():
            teacher_logits = teacher(x)
        student_logits = student(x)
    loss = objectives.kd(student_logits, teacher_logits, labels, TEMPERATURE)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()


def gradients(step: Callable, student: nn.Module) -> Tensor:
    """The student's gradients of one step, float64 [parameters]; its weights are restored."""
    state = copy.deepcopy(student.state_dict())
    step()
    vector = torch.cat([p.grad.flatten().double().cpu() for p in student.parameters()])
    student.load_state_dict(state)
    return vector


def distillation(args: argparse.Namespace, device: torch.device, record: Record) -> None:
    large = device.type == "cuda"
    task = TASKS["imagenet" if large else "cifar100"]
    names = ("torchvision:resnet18",) * 2 if large else ("wrn_40_2", "wrn_16_1")
    batch, side = args.batch_size or (256 if large else 64), 256 if large else task.resolution
    amp = engine.resolve_amp("auto", device)
    compile_flag = argparse.Namespace(compile=engine.resolve_compile("auto", device))
    teacher, student = (models.build(name, task) for name in names)
    with torch.no_grad():
        for _ in range(3):  # so that the teacher's batch norms know its activations
            teacher(torch.randn(64, 3, task.resolution, task.resolution))
    teacher.eval().to(device)
    images = torch.randint(0, 256, (batch, 3, side, side), dtype=torch.uint8, device=device)
    labels = torch.randint(0, task.num_classes, (batch,), device=device)
    flags = argparse.Namespace(augment="default", mixup=0.0, cutmix=0.0, mix_share=1.0)
    view, ids = augment.make_view(task, flags, False), torch.arange(batch)
    x, _ = view.train(images, labels, ids, 0, 0, 0)
    steps, students = {}, {}

    def add(name: str, step: Callable, fused: bool, layout: torch.memory_format,
            precision: str) -> None:
        mine = copy.deepcopy(student).to(device, memory_format=layout)
        fixed = copy.deepcopy(teacher).requires_grad_(name == "original").to(memory_format=layout)
        sgd = torch.optim.SGD(mine.parameters(), lr=0.01, momentum=0.9, weight_decay=1e-4,
                              fused=fused)
        if name.startswith("ours"):
            fixed = engine.compiled(fixed, compile_flag, device)
        network = engine.compiled(mine, compile_flag, device) if name.startswith("ours") else mine
        students[name], steps[name] = mine, lambda: step(network, fixed, sgd, precision)

    def ours(s: nn.Module, t: Callable, o: torch.optim.Optimizer, precision: str) -> None:
        batch, _ = view.train(images, labels, ids, 0, 0, 0)
        engine.train_step(s, t, o, objectives.kd, batch, labels, TEMPERATURE, precision)

    kept = teacher(x).detach().float()
    nchw, nhwc = torch.contiguous_format, torch.channels_last
    add("original", lambda s, t, o, _: original_step(s, t, o, x.contiguous(), labels), False, nchw,
        "none")
    add("simple", lambda s, t, o, a: simple_step(s, t, o, x, labels, a), True, nhwc, amp)
    add("ours", ours, True, nhwc, amp)
    add("ours, kept logits", lambda s, t, o, a: ours(s, lambda _: kept, o, a), True, nhwc, amp)
    add("ours in float32", ours, True, nhwc, "none")
    expected = gradients(steps["original"], students["original"])
    error = relative_error(gradients(steps.pop("ours in float32"), students["ours in float32"]),
                           expected)
    record.check("student's gradients in float32 against the original's", error, 1e-2)
    record.time(f"KD step, {' to '.join(names)}, {task.resolution} px, batch {batch}, amp {amp}",
                steps, batch, {("simple", "ours"): 0.9, ("original", "ours"): 4.0,
                               ("original", "ours, kept logits"): 15.0 if amp == "bf16" else 10.0})
    loader(record, torch.device("cpu"))


def loader(record: Record, device: torch.device) -> None:
    """Training crops of 224 pixels: a packed map and our crops against PNG files and Pillow."""
    from PIL import Image
    from torchvision.transforms import v2

    count, task = 64, TASKS["imagenet"]
    low = torch.randn(count, 3, 9, 9)
    waves = nn.functional.interpolate(low, (256, 256), mode="bicubic")
    noise = 4 * torch.randn(count, 3, 256, 256)
    images = (127 + 50 * waves + noise).clamp(0, 255).to(torch.uint8)
    flags = argparse.Namespace(augment="default", mixup=0.0, cutmix=0.0, mix_share=1.0)
    packed = data.Images(images, torch.zeros(count, dtype=torch.int64))
    source = data.Source(packed, augment.make_view(task, flags, False), count, 0)
    transform = v2.Compose([v2.RandomResizedCrop(224), v2.RandomHorizontalFlip(), v2.PILToTensor(),
                            v2.ToDtype(torch.float32, scale=True),
                            v2.Normalize(task.mean, task.std)])
    with tempfile.TemporaryDirectory() as folder:
        paths = [Path(folder) / f"{i}.png" for i in range(count)]
        for path, image in zip(paths, images, strict=True):
            path.write_bytes(image_set.encode_png(image))

        def pillow() -> Tensor:
            return torch.stack([transform(Image.open(path).convert("RGB")) for path in paths])

        def ours() -> Tensor:
            batch, labels, ids = next(iter(source.batches(0)))
            return source.view.train(batch, labels.to(device), ids, 0, 0, 0)[0]

        record.time("loader, 224-pixel crops of 256-pixel images", {"PNG and Pillow": pillow,
                    "ours": ours}, count, {("PNG and Pillow", "ours"): 5.0})


# --- synthesis ------------------------------------------------------------------------------------

def random_dit(config: dict) -> dit.DiT:
    """A DiT with random weights (adaLN-Zero starts as the zero function, so all are drawn)."""
    model = dit.DiT(**config)
    for parameter in model.parameters():
        if parameter.requires_grad and parameter.ndim > 1:
            nn.init.normal_(parameter, std=0.05)
    return model.eval().requires_grad_(False)


def diffusers_dit(model: dit.DiT) -> nn.Module:
    """diffusers' module with the weights of `model`, its two known differences patched: the rates
    of the timestep's sinusoid and one LayerNorm's eps."""
    from diffusers import DiTTransformer2DModel

    config = model.config
    other = DiTTransformer2DModel(
        num_attention_heads=config["heads"], attention_head_dim=config["width"] // config["heads"],
        in_channels=config["channels"], out_channels=model.out_channels,
        num_layers=config["depth"], sample_size=config["input_size"],
        patch_size=config["patch_size"], num_embeds_ada_norm=config["num_classes"])
    other.load_state_dict(weights.to_diffusers(model.state_dict()))
    for block in other.transformer_blocks:
        block.norm1.emb.time_proj.downscale_freq_shift, block.norm3.eps = 0, 1e-6
    return other.eval().requires_grad_(False)


def synthesis(args: argparse.Namespace, device: torch.device, record: Record) -> None:
    large = device.type == "cuda"
    model = random_dit(DIT_XL if large else SMALL_DIT).to(device)
    batch, side = args.batch_size or (256 if large else 64), model.config["input_size"]
    labels = torch.arange(batch) % model.num_classes
    seeds = list(range(1, batch + 1))
    settings = {"guidance_scale": 2.0, "steps": args.steps, "guided_channels": "all"}
    other = diffusers_dit(model).to(device)
    x = torch.randn(batch, model.channels, side, side).to(device)
    t = torch.full((batch,), 500, device=device)
    y = labels.to(device)
    with torch.inference_mode():
        error = relative_error(model(x, t, y), other(x, timestep=t, class_labels=y).sample)
    record.check("one forward in float32 against diffusers' module", error, 1e-4)
    if large:
        latent.lower_precision(model)
        other = other.to(torch.bfloat16)

    def wrapped(x: Tensor, t: Tensor, labels: Tensor) -> Tensor:
        dtype = torch.bfloat16 if large else torch.float32
        return other(x.to(dtype), timestep=t, class_labels=labels).sample.float()

    process = diffusion.Diffusion(args.steps, device)

    def theirs() -> Tensor:
        with torch.inference_mode():
            noise = torch.randn(batch, model.channels, side, side).to(device)
            return diffusion.to_uint8(diffusion.sample_ddim(
                lambda x, t: diffusion.guided(wrapped, x, t, y, model.num_classes, 2.0,
                                              model.channels), process, noise, True)).cpu()

    if large:
        latent.compile_blocks(model)
    ddim = dit.DiTGenerator(model, settings | {"sampler": "ddim"}, device, clip=True)
    ddpm = dit.DiTGenerator(model, settings | {"sampler": "ddpm"}, device, clip=True)
    record.time(f"sampling, width {model.config['width']}, T={args.steps}, s=2, batch {batch}", {
        "diffusers' module, DDIM": theirs,
        "ours, DDIM": lambda: ddim.sample(labels, seeds),
        "ours, ancestral, PNG": lambda: [image_set.encode_png(image[:3])
                                         for image in ddpm.sample(labels, seeds)],
    }, batch, {("diffusers' module, DDIM", "ours, DDIM"): 1.1})


def body(argv: list[str]) -> None:
    args = parse(argv)
    if args.dry_run:
        print(f"would time {args.name}, {args.repeats} rounds, into {args.out}")
        return
    device = run.use_device(args)
    torch.manual_seed(args.seed)
    record = Record(args, device)
    {"distillation": distillation, "synthesis": synthesis}[args.name](args, device, record)
    print(f"record: {args.out / args.name}.json")


def main(argv: list[str] | None = None) -> int:
    return run.main(body, argv)


if __name__ == "__main__":
    sys.exit(main())
