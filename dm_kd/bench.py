"""Speed of distillation and sampling against other loops, measured in one run.

    python -m dm_kd.bench distillation --threads 1
    python -m dm_kd.bench synthesis

distillation: a KD step (CPU: WRN-40-2 to WRN-16-1 at 32 pixels; GPU: ResNet-18 to ResNet-18 at 224)
in the original DM-KD's way, in a good simple loop, in ours, and in ours with kept logits; then
training crops from a packed map against PNG files and Pillow. synthesis: a DiT's DDIM loop (CPU:
2.4 M parameters; GPU: DiT-XL/2) against diffusers' module, and our sampler with PNG encoding.

Results are compared before anything is timed. Variants take turns (A B C A B C ...), so that a busy
machine slows them all down; a ratio is of one round, given as median and quartiles over the rounds.
save/bench/NAME.json is written after each table.
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
from dm_kd.tasks import TASKS, Task

TEMPERATURE = 10.0
STEPS = 20  # of sampling
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
    add("--out", type=Path, default=Path("save/bench"), metavar="DIR",
        help="where NAME.json is written (default: %(default)s)")
    run.add_common_arguments(parser)
    return run.parse(parser, argv)


# --- timing ---------------------------------------------------------------------------------------

class Record:
    """Tables of rates and ratios, printed and written to save/bench/NAME.json."""

    def __init__(self, args: argparse.Namespace, device: torch.device):
        self.args, self.device = args, device
        settings = {k: v for k, v in vars(args).items() if k not in ("out", "config")}
        self.contents = {"bench": args.name, "settings": settings, "equivalence": {},
                         "hardware": run.hardware(device), "versions": run.versions(),
                         "date": time.strftime("%Y-%m-%d"), "commit": run.commit()}

    def check(self, name: str, value: Tensor, expected: Tensor, limit: float) -> None:
        """Raise UserError where two loops disagree: their speeds could not be compared."""
        error = ((value - expected).abs().max() / expected.abs().max()).item()
        print(f"  {name}: relative error {error:.1e} (limit {limit:g})")
        self.contents["equivalence"][name] = {"error": error, "limit": limit}
        if not error <= limit:
            raise UserError(f"not equivalent: {name}: {error:.2e} is more than {limit:g}")

    def time(self, title: str, variants: dict[str, Callable], images: int,
             pairs: list[tuple[str, str]]) -> None:
        """Time the variants, which process so many `images` in a call, in turns; add the table,
        with the ratio of each pair (slower, faster)."""
        seconds = {name: [] for name in variants}
        for turn in range(self.args.repeats + 1):
            for name, variant in variants.items():
                self.synchronize()
                start = time.perf_counter()
                variant()
                self.synchronize()
                if turn:
                    seconds[name].append(time.perf_counter() - start)
        rates = {name: images / float(np.median(values)) for name, values in seconds.items()}
        table = self.contents[title] = {"images_per_second": rates, "ratios": []}
        print(title, *(f"  {name:<36} {rate:10.1f} images/s" for name, rate in rates.items()),
              sep="\n")
        for slower, faster in pairs:
            ratios = np.array(seconds[slower]) / np.array(seconds[faster])
            low, median, high = np.percentile(ratios, (25, 50, 75)).tolist()
            table["ratios"].append({"slower": slower, "faster": faster, "median": median,
                                    "q25": low, "q75": high})
            print(f"  {faster} / {slower}: {median:.2f} x [{low:.2f}, {high:.2f}]")
        run.write_json(self.args.out / f"{self.args.name}.json", self.contents)

    def synchronize(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)


# --- distillation ---------------------------------------------------------------------------------

def other_step(student: nn.Module, teacher: nn.Module, optimizer: torch.optim.Optimizer, x: Tensor,
               labels: Tensor, amp: str, original: bool) -> None:
    """A step of a simple loop; or of the original, where the teacher's weights get gradients, and
    the loss and two accuracies are read back."""
    with engine.autocast(amp, x.device):
        with torch.set_grad_enabled(original):
            teacher_logits = teacher(x)
        student_logits = student(x)
    loss = objectives.kd(student_logits, teacher_logits, labels, TEMPERATURE)
    if original:
        loss.item()
        hits = student_logits.topk(5).indices == labels[:, None]
        hits[:, 0].sum().item(), hits.sum().item()
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


def training_view(task: Task) -> augment.View:
    """The view of the default recipe."""
    flags = argparse.Namespace(augment="default", mixup=0.0, cutmix=0.0, mix_share=1.0)
    return augment.make_view(task, flags, False)


def distillation(args: argparse.Namespace, device: torch.device, record: Record) -> None:
    large = device.type == "cuda"
    task = TASKS["imagenet" if large else "cifar100"]
    names = ("torchvision:resnet18",) * 2 if large else ("wrn_40_2", "wrn_16_1")
    batch, side = args.batch_size or (256 if large else 64), 256 if large else task.resolution
    amp = engine.resolve_amp("auto", device)
    flags = argparse.Namespace(compile=engine.resolve_compile("auto", device))
    teacher, student = (models.build(name, task) for name in names)
    with torch.no_grad():
        for _ in range(3):  # so that the teacher's batch norms know its activations
            teacher(torch.randn(64, 3, task.resolution, task.resolution))
    teacher.eval().to(device)
    images = torch.randint(0, 256, (batch, 3, side, side), dtype=torch.uint8, device=device)
    labels = torch.randint(0, task.num_classes, (batch,), device=device)
    view, ids = training_view(task), torch.arange(batch)
    x, _ = view.train(images, labels, ids, 0, 0, 0)
    kept = teacher(x).detach().float()

    def networks(original: bool = False, compiled: bool = True) -> tuple:
        """What a step takes: copies of student and teacher, and an optimizer."""
        layout = torch.contiguous_format if original else torch.channels_last
        copies = [copy.deepcopy(network).to(device, memory_format=layout)
                  for network in (student, teacher)]
        copies[1].requires_grad_(original)
        sgd = torch.optim.SGD(copies[0].parameters(), lr=0.01, momentum=0.9, weight_decay=1e-4,
                              fused=not original)
        return *([engine.compiled(c, flags, device) for c in copies] if compiled else copies), sgd

    def ours(networks: tuple, precision: str = amp, teach: Callable | None = None) -> None:
        crops, _ = view.train(images, labels, ids, 0, 0, 0)
        network, fixed, sgd = networks
        engine.train_step(network, teach or fixed, sgd, objectives.kd, crops, labels, TEMPERATURE,
                          precision)

    original, simple = networks(True, False), networks(compiled=False)
    fast, cached, float32 = networks(), networks(), networks()
    steps = {"original": lambda: other_step(*original, x.contiguous(), labels, "none", True),
             "simple": lambda: other_step(*simple, x, labels, amp, False),
             "ours": lambda: ours(fast),
             "ours, kept logits": lambda: ours(cached, teach=lambda _: kept)}
    record.check("student's gradients in float32 against the original's",
                 gradients(lambda: ours(float32, "none"), float32[0]),
                 gradients(steps["original"], original[0]), 1e-2)
    record.time(f"KD step, {' to '.join(names)}, {task.resolution} px, batch {batch}, amp {amp}",
                steps, batch, [("simple", "ours"), ("original", "ours"),
                               ("original", "ours, kept logits")])
    loader(record)


def loader(record: Record) -> None:
    """Training crops of 224 pixels on the CPU: a packed map and our crops, or PNG and Pillow."""
    from PIL import Image
    from torchvision.transforms import v2

    count, task = 64, TASKS["imagenet"]
    waves = nn.functional.interpolate(torch.randn(count, 3, 9, 9), (256, 256), mode="bicubic")
    noise = 4 * torch.randn(count, 3, 256, 256)
    images = (127 + 50 * waves + noise).clamp(0, 255).to(torch.uint8)
    packed = data.Images(images, torch.zeros(count, dtype=torch.int64))
    source = data.Source(packed, training_view(task), count, 0)
    transform = v2.Compose([v2.RandomResizedCrop(224), v2.RandomHorizontalFlip(), v2.PILToTensor(),
                            v2.ToDtype(torch.float32, scale=True),
                            v2.Normalize(task.mean, task.std)])
    with tempfile.TemporaryDirectory() as folder:
        paths = [Path(folder) / f"{i}.png" for i in range(count)]
        for path, image in zip(paths, images, strict=True):
            path.write_bytes(image_set.encode_png(image))
        record.time("loader, 224-pixel crops of 256-pixel images", {
            "PNG and Pillow": lambda: torch.stack(
                [transform(Image.open(path).convert("RGB")) for path in paths]),
            "ours": lambda: source.view.train(*next(iter(source.batches(0))), 0, 0, 0),
        }, count, [("PNG and Pillow", "ours")])


# --- synthesis ------------------------------------------------------------------------------------

def random_dit(config: dict) -> dit.DiT:
    """A DiT with random weights (adaLN-Zero starts as the zero function, so all are drawn)."""
    model = dit.DiT(**config)
    for parameter in model.parameters():
        if parameter.requires_grad and parameter.ndim > 1:
            nn.init.normal_(parameter, std=0.05)
    return model.eval().requires_grad_(False)


def diffusers_dit(model: dit.DiT) -> nn.Module:
    """diffusers' module with the weights of `model`, and patched where it differs: the timestep's
    frequencies and one LayerNorm's eps."""
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
    settings = {"guidance_scale": 2.0, "steps": STEPS, "guided_channels": "all"}
    other = diffusers_dit(model).to(device)
    x = torch.randn(batch, model.channels, side, side).to(device)
    t = torch.full((batch,), 500, device=device)
    y = labels.to(device)
    with torch.inference_mode():
        record.check("one forward in float32 against diffusers' module", model(x, t, y),
                     other(x, timestep=t, class_labels=y).sample, 1e-4)
    if large:
        latent.lower_precision(model)
        other = other.to(torch.bfloat16)

    def wrapped(x: Tensor, t: Tensor, labels: Tensor) -> Tensor:
        dtype = torch.bfloat16 if large else torch.float32
        return other(x.to(dtype), timestep=t, class_labels=labels).sample.float()

    process = diffusion.Diffusion(STEPS, device)

    def theirs() -> Tensor:
        with torch.inference_mode():
            noise = torch.randn(batch, model.channels, side, side).to(device)
            return diffusion.to_uint8(diffusion.sample(
                lambda x, t: diffusion.guided(wrapped, x, t, y, model.num_classes, 2.0,
                                              model.channels), process, noise, None, True)).cpu()

    if large:
        latent.compile_blocks(model)
    ddim = dit.DiTGenerator(model, settings | {"sampler": "ddim"}, device)
    ddpm = dit.DiTGenerator(model, settings | {"sampler": "ddpm"}, device)
    record.time(f"sampling, width {model.config['width']}, T={STEPS}, s=2, batch {batch}", {
        "diffusers' module, DDIM": theirs,
        "ours, DDIM": lambda: ddim.sample(labels, seeds),
        "ours, ancestral, PNG": lambda: [image_set.encode_png(image[:3])
                                         for image in ddpm.sample(labels, seeds)],
    }, batch, [("diffusers' module, DDIM", "ours, DDIM")])


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
