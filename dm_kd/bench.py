"""Speed of distillation and sampling against other loops, measured in one run.

    python -m dm_kd.bench distillation --threads 1
    python -m dm_kd.bench synthesis

distillation: a KD step (CPU: WRN-40-2 to WRN-16-1 at 32 pixels; GPU: ResNet-18 to ResNet-18 at 224)
in the original DM-KD's way, in a good simple loop, in ours, and in ours with kept logits; then
training crops from an array against PNG files and Pillow. synthesis: a DiT's DDIM loop (CPU: 2.4 M
parameters; GPU: DiT-XL/2) against diffusers' module; on a GPU before it what the device can do at
all, batch sizes, and 256 finished images: ancestral sampling in 100 steps, decoder and PNG files.

Results are compared before they are timed, in turns; a ratio is of one round (median, quartiles).
"""

import argparse
import copy
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from dm_kd import augment, engine, image_set, models, objectives, run
from dm_kd.generators import dit, latent, weights
from dm_kd.run import UserError
from dm_kd.tasks import TASKS

OUT = Path("save/bench")
ROUNDS = 10  # timed, after one that is not; on a GPU fewer
RECIPE = {"temperature": 10.0, "seed": 0, "epochs": 1, "warmup_epochs": 0, "lr_schedule": "cosine",
          "learning_rate": 0.01, "weight_decay": 1e-4, "optimizer": "sgd", "augment": "default",
          "mixup": 0.0, "cutmix": 0.0, "mix_share": 1.0}
STEPS = 20  # of sampling
SMALL_DIT, DIT_XL = (28, 4, 1, 144, 6, 6, 10), (32, 2, 4, 1152, 28, 16, 1000)  # arguments of DiT


def parse(argv: list[str]) -> argparse.Namespace:
    parser = run.Parser("bench", __doc__)
    parser.add_argument("name", choices=("distillation", "synthesis"))
    run.add_common_arguments(parser)
    return run.parse(parser, argv)


# --- timing ---------------------------------------------------------------------------------------

class Record:
    """Tables of rates and ratios, printed and written to save/bench/NAME.json."""

    def __init__(self, args: argparse.Namespace, device: torch.device):
        self.args = args
        self.synchronize = torch.cuda.synchronize if device.type == "cuda" else lambda: None
        self.contents = {"command": args.command, "hardware": run.hardware(device),
                         "versions": run.versions(), "commit": run.commit(),
                         "date": time.strftime("%Y-%m-%d")}

    def check(self, name: str, value: Tensor, expected: Tensor, limit: float) -> None:
        """Raise UserError where two loops disagree: their speeds could not be compared."""
        error = ((value - expected).abs().max() / expected.abs().max()).item()
        self.contents[name] = error
        if not error <= limit:
            raise UserError(f"{name}: relative error {error:.2e} is more than {limit:g}")

    def time(self, title: str, variants: dict[str, Callable], images: int,
             pairs: list[tuple[str, str]] = (), rounds: int = ROUNDS) -> None:
        """Time the variants, which process so many `images` in a call, in turns; add the table,
        with the ratio of each pair (slower, faster)."""
        seconds = {name: [] for name in variants}
        for turn in range(rounds + 1):
            for name, variant in variants.items():
                self.synchronize()
                start = time.perf_counter()
                variant()
                self.synchronize()
                if turn:
                    seconds[name].append(time.perf_counter() - start)
        rates = {name: images / float(np.median(values)) for name, values in seconds.items()}
        table = self.contents[title] = {"images_per_second": rates}
        print(title, *(f"  {name:<36} {rate:10.1f} images/s" for name, rate in rates.items()),
              sep="\n")
        for slower, faster in pairs:
            ratios = np.array(seconds[slower]) / np.array(seconds[faster])
            low, median, high = np.percentile(ratios, (25, 50, 75)).tolist()
            table[f"{faster} / {slower}"] = {"median": median, "q25": low, "q75": high}
            print(f"  {faster} / {slower}: {median:.2f} x [{low:.2f}, {high:.2f}]")
        run.write_json(OUT / f"{self.args.name}.json", self.contents)


# --- distillation ---------------------------------------------------------------------------------

def other_step(student: nn.Module, teacher: nn.Module, optimizer: torch.optim.Optimizer, x: Tensor,
               labels: Tensor, amp: str, original: bool) -> None:
    """A step of a simple loop; or of the original, where the teacher's weights get gradients, and
    the loss and two accuracies are read back."""
    with engine.autocast(amp, x.device):
        with torch.set_grad_enabled(original):
            teacher_logits = teacher(x)
        student_logits = student(x)
    loss = objectives.kd(student_logits, teacher_logits, labels, RECIPE["temperature"])
    if original:
        loss.item()
        hits = student_logits.topk(5).indices == labels[:, None]
        hits[:, 0].sum().item(), hits.sum().item()
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()


def distillation(args: argparse.Namespace, device: torch.device, record: Record) -> None:
    large = device.type == "cuda"
    task = TASKS["imagenet" if large else "cifar100"]
    names = ("torchvision:resnet18",) * 2 if large else ("wrn_40_2", "wrn_16_1")
    batch, side = (256, 256) if large else (64, task.resolution)
    recipe = argparse.Namespace(**RECIPE, amp=engine.resolve_amp("auto", device),
                                compile=run.resolve_compile("auto", device))
    teacher, student = (models.build(name, task) for name in names)
    with torch.no_grad():
        for _ in range(3):  # so that the teacher's batch norms know its activations
            teacher(torch.randn(64, 3, task.resolution, task.resolution))
    teacher.eval().requires_grad_(False)
    images = torch.randint(0, 256, (batch, 3, side, side), dtype=torch.uint8, device=device)
    labels = torch.randint(0, task.num_classes, (batch,), device=device)
    view, ids = augment.make_view(task, recipe, False), torch.arange(batch)
    x, _ = view.apply(images, labels, view.draw(images, ids, 0, 0, 0))
    kept = teacher.to(device)(x).float()

    def networks(layout: torch.memory_format) -> list[nn.Module]:
        return [copy.deepcopy(network).to(device, memory_format=layout)
                for network in (student, teacher)]

    def ours(cache: object = None, **changes) -> tuple[Callable, nn.Module]:
        """A step of distill, with its augmentation, and the network that it trains."""
        own, (learner, fixed) = copy.copy(recipe), networks(torch.channels_last)
        vars(own).update(changes)
        source = argparse.Namespace(steps_per_epoch=1)
        update = engine.make_update(own, view, learner, fixed, engine.make_optimizer(learner, own),
                                    source, objectives.kd, device, cache)
        return lambda: update(0, 0, images, labels, ids), learner

    def other(original: bool) -> tuple[Callable, nn.Module]:
        layout = torch.contiguous_format if original else torch.channels_last
        learner, fixed = networks(layout)
        fixed.requires_grad_(original)
        sgd = torch.optim.SGD(learner.parameters(), lr=RECIPE["learning_rate"], momentum=0.9,
                              weight_decay=RECIPE["weight_decay"], fused=not original)
        batch = (x.contiguous(memory_format=layout), labels, "none" if original else recipe.amp)
        return lambda: other_step(learner, fixed, sgd, *batch, original), learner

    gradients = []
    for step, learner in (ours(amp="none"), other(True)):
        step()
        gradients.append(torch.cat([p.grad.flatten().double() for p in learner.parameters()]))
    record.check("student's gradients in float32 against the original's", *gradients, 1e-2)
    steps = {"original": other(True), "simple": other(False), "ours": ours(),
             "ours, kept logits": ours(argparse.Namespace(read=lambda *_: kept))}
    record.time(f"KD step, {' to '.join(names)}, {task.resolution} px, batch {batch}, "
                f"amp {recipe.amp}", {name: step for name, (step, _) in steps.items()}, batch,
                [("simple", "ours"), ("original", "ours"), ("original", "ours, kept logits")])
    loader(record, augment.make_view(TASKS["imagenet"], recipe, False))


def loader(record: Record, view: augment.View) -> None:
    """Training crops of 224 pixels on the CPU: an array and our crops, or PNG and Pillow."""
    from PIL import Image
    from torchvision.transforms import v2

    count = 64
    waves = nn.functional.interpolate(torch.randn(count, 3, 9, 9), (256, 256), mode="bicubic")
    noise = 4 * torch.randn(count, 3, 256, 256)
    images = (127 + 50 * waves + noise).clamp(0, 255).to(torch.uint8)
    ids = labels = torch.randperm(count)
    transform = v2.Compose([v2.RandomResizedCrop(224), v2.RandomHorizontalFlip(), v2.PILToTensor(),
                            v2.ToDtype(torch.float32, scale=True),
                            v2.Normalize(view.mean, view.std)])
    with tempfile.TemporaryDirectory() as folder:
        paths = [Path(folder) / f"{i}.png" for i in range(count)]
        for path, image in zip(paths, images, strict=True):
            path.write_bytes(image_set.encode_png(image))
        record.time("loader, 224-pixel crops of 256-pixel images", {
            "PNG and Pillow": lambda: torch.stack(
                [transform(Image.open(path).convert("RGB")) for path in paths]),
            "ours": lambda: view.apply(images.index_select(0, ids), labels,
                                       view.draw(images, ids, 0, 0, 0)),
        }, count, [("PNG and Pillow", "ours")])


# --- synthesis ------------------------------------------------------------------------------------

class DiffusersDiT(nn.Module):
    """diffusers' module with the weights of `model`, and patched where it differs: the timestep's
    frequencies and one LayerNorm's eps."""

    def __init__(self, model: dit.DiT):
        from diffusers import DiTTransformer2DModel

        super().__init__()
        self.config, self.channels, self.num_classes = (
            model.config, model.channels, model.num_classes)
        heads = model.config["heads"]
        self.module = DiTTransformer2DModel(
            num_attention_heads=heads, attention_head_dim=model.config["width"] // heads,
            in_channels=model.channels, out_channels=model.out_channels,
            num_layers=model.config["depth"], sample_size=model.config["input_size"],
            patch_size=model.config["patch_size"], num_embeds_ada_norm=model.num_classes)
        self.module.load_state_dict(weights.to_diffusers(model.state_dict()))
        for block in self.module.transformer_blocks:
            block.norm1.emb.time_proj.downscale_freq_shift, block.norm3.eps = 0, 1e-6
        self.eval().requires_grad_(False)

    def forward(self, x: Tensor, t: Tensor, labels: Tensor) -> Tensor:
        return self.module(x.to(self.module.dtype), timestep=t, class_labels=labels).sample.float()


def synthesis(args: argparse.Namespace, device: torch.device, record: Record) -> None:
    large = device.type == "cuda"
    model = dit.DiT(*(DIT_XL if large else SMALL_DIT)).to(device).eval()
    for parameter in model.parameters():  # a new DiT is the zero function
        if parameter.requires_grad and parameter.ndim > 1:
            nn.init.normal_(parameter, std=0.05)
    model.requires_grad_(False)
    other = DiffusersDiT(model).to(device)
    batch, side = 256 if large else 32, model.config["input_size"]
    labels, seeds = torch.arange(batch) % model.num_classes, list(range(1, batch + 1))
    with torch.inference_mode():
        inputs = (torch.randn(batch, model.channels, side, side).to(device),
                  torch.full((batch,), 500, device=device), labels.to(device))
        record.check("one forward in float32 against diffusers' module", model(*inputs),
                     other(*inputs), 1e-4)
    if large:
        latent.lower_precision(model)
        latent.compile_blocks(model)
        other.to(torch.bfloat16)
        limits(record, device)
        whole_images(record, model, device)
    settings = {"guidance_scale": 2.0, "steps": STEPS, "sampler": "ddim", "guided_channels": "all"}
    ours, theirs = (dit.DiTGenerator(network, settings, device)
                    for network in (model, other))
    record.time(f"sampling, width {model.config['width']}, T={STEPS}, s=2, batch {batch}", {
        "diffusers' module": lambda: theirs.sample(labels, seeds),
        "ours": lambda: ours.sample(labels, seeds),
    }, batch, [("diffusers' module", "ours")], 3 if large else ROUNDS)


def limits(record: Record, device: torch.device) -> None:
    """What a GPU can do at all."""
    side, times = 8192, 4000
    a, big = torch.randn(side, side, device=device).bfloat16(), torch.empty(1 << 30, device=device)
    product, copied = a.clone(), big.clone()
    record.time("limits: TFLOP/s of bfloat16 products, in place of images/s", {
        "8192": lambda: [torch.matmul(a, a, out=product) for _ in range(times)]},
        times * 2 * side ** 3 / 1e12, rounds=1)
    record.time("limits: GB/s of copies, read and written", {"4 GB": lambda: [
        copied.copy_(big) for _ in range(times)]}, times * 2 * big.nbytes / 1e9, rounds=1)


def whole_images(record: Record, model: dit.DiT, device: torch.device) -> None:
    """Forwards by batch size, and images from noise to PNG, the decoder with random weights."""
    import diffusers

    for n in (32, 128, 512):
        x, t = torch.randn(n, 4, 32, 32, device=device), torch.full((n,), 500, device=device)
        with torch.inference_mode():
            record.time(f"one forward, batch {n}", {"ours": lambda x=x, t=t: model(x, t, t)}, n)
    with tempfile.TemporaryDirectory() as folder:
        diffusers.AutoencoderKL(
            block_out_channels=(128, 256, 512, 512), layers_per_block=2, latent_channels=4,
            down_block_types=("DownEncoderBlock2D",) * 4,
            up_block_types=("UpDecoderBlock2D",) * 4).save_pretrained(folder)
        vae = latent.Vae(Path(folder), device, torch.float16)
    vae.model.decoder.compile(dynamic=False)
    settings = {"guidance_scale": 2.0, "steps": 100, "sampler": "ddpm", "guided_channels": "3"}
    generator, labels = dit.DiTGenerator(model, settings, device, vae), torch.arange(256)
    with ThreadPoolExecutor() as pool:
        record.time("images, width 1152, T=100, s=2, with decoder and PNG", {
            "ours": lambda: [*pool.map(image_set.encode_png,
                                       generator.sample(labels, labels.tolist()))]}, 256, rounds=1)


@run.command
def main(argv: list[str]) -> None:
    args = parse(argv)
    if args.dry_run:
        print(f"would time {args.name}, {ROUNDS} rounds, into {OUT}")
        return
    args.deterministic = args.name == "synthesis"  # as the commands themselves on a GPU
    device = run.use_device(args)
    torch.manual_seed(args.seed)
    record = Record(args, device)
    {"distillation": distillation, "synthesis": synthesis}[args.name](args, device, record)
    print(f"record: {OUT / args.name}.json")


if __name__ == "__main__":
    sys.exit(main())
