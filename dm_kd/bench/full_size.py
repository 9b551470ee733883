"""Sampling at the paper's size on a GPU: DiT-XL/2 at 256 x 256 with random weights, s = 2, whole
runs from noise to PNG bytes. A part of the synthesis benchmark.

    python -m dm_kd.bench.synthesis --device cuda

Random weights cost what trained ones do. Ours are driven as image_set.make drives them: a second
thread decodes and encodes a batch while the next one is sampled. The ceiling is the rate of large
bfloat16 matrix products in the same rounds. A as in synthesis.py, the only one in TF32. B as there,
in bfloat16, its blocks compiled, at whichever batch is fastest for it. `--full-size small` runs all
of it at a size for any processor.
"""

import argparse
import contextlib
import copy
import importlib.util
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import torch
from torch import Tensor

from dm_kd import image_set
from dm_kd.bench import measure, synthesis
from dm_kd.generators import diffusion, dit, dit_weights

XL = argparse.Namespace(
    size=32, channels=4, width=1152, depth=28, heads=16, classes=1000, steps=(100, 250), batch=64,
    sweep=(64, 128, 256), batches=2, repeats=2, vae_blocks=(128, 256, 512, 512), groups=32,
    backend="inductor")
SMALL = argparse.Namespace(**vars(XL) | {
    "size": 4, "width": 32, "depth": 3, "heads": 2, "classes": 10, "steps": (4, 6), "batch": 3,
    "sweep": (2, 3), "repeats": 1, "vae_blocks": (8, 8), "groups": 4})
SIZES = {"xl": XL, "small": SMALL}
# images/s on one NVIDIA H200: goal, aim, and the wall, which is every bf16 product at the ceiling
GOALS = {"exact, T = 100": (10.0, 12.0, 16.4), "exact, T = 250": (4.0, 4.8, 6.6),
         "fp8, T = 100": (14.0, 18.0, None), "approximations together": (80.0, None, None)}
ERROR_IMAGES = 4  # that bf16 is compared with fp32 on
ORIGINAL = "A original-style: fp32/TF32, 10 + 10, PNG in line"
RIVAL = "B diffusers: bf16, compiled, DDIM"


def make_vae(sizes: argparse.Namespace, device: torch.device) -> dit_weights.Vae | None:
    """sd-vae's decoder with random weights; None without diffusers."""
    if not importlib.util.find_spec("diffusers"):
        return None
    import diffusers

    levels = len(sizes.vae_blocks)
    vae = diffusers.AutoencoderKL(
        in_channels=3, out_channels=3, latent_channels=sizes.channels, norm_num_groups=sizes.groups,
        down_block_types=("DownEncoderBlock2D",) * levels, layers_per_block=2,
        up_block_types=("UpDecoderBlock2D",) * levels, block_out_channels=sizes.vae_blocks)
    vae = vae.eval().requires_grad_(False).to(device, memory_format=torch.channels_last)
    return dit_weights.Vae(vae, {"vae_scaling_factor": dit_weights.SD_VAE_SCALE})


def rows_of(model: dit.DiT, vae: dit_weights.Vae | None, sizes: argparse.Namespace,
            device: torch.device) -> dict[str, tuple[dit.DiTGenerator, int]]:
    """name -> (generator, batch) of each way of ours."""
    exact = copy.deepcopy(model).lower_precision(torch.bfloat16)
    plain, eight = copy.deepcopy(exact), None
    if device.type == "cpu" or dit.multiplies_fp8(device):
        eight = dit.compile_blocks(dit.to_fp8(copy.deepcopy(exact)), sizes.backend)
    else:
        print("this GPU has no 8-bit products: their rows are left out")
    dit.compile_blocks(exact, sizes.backend)
    short, long = sizes.steps

    def made(network: dit.DiT, **changes) -> dit.DiTGenerator:
        settings = {"guidance_scale": 2.0, "steps": short, "sampler": "ddpm",
                    "guided_channels": "3", "compiled": network is not plain} | changes
        return dit.DiTGenerator(network, settings, device, False, vae)

    interval = {"guidance_interval": [0.2, 0.8]}
    rows = {f"exact, T = {short}": made(exact), f"exact, not compiled, T = {short}": made(plain),
            f"exact, T = {long}": made(exact, steps=long),
            f"guidance in 0.2-0.8 only, T = {short}": made(exact, **interval)}
    if eight is not None:
        rows[f"fp8, T = {short}"] = made(eight)
    if vae is not None:  # diffusers is there
        fast = {"sampler": "dpm++", "steps": max(2, short // 4)}
        rows["DPM-Solver++, a quarter of the steps"] = made(exact, **fast)
        if eight is not None:
            rows["approximations together"] = made(eight, **fast, **interval)
    return {name: (generator, sizes.batch) for name, generator in rows.items()}


def run_batches(generator: dit.DiTGenerator, batch: int, batches: int) -> int:
    """Noise to PNG bytes, as image_set.make overlaps them; the number of bytes."""
    classes, total, pending = generator.model.num_classes, 0, None

    def encode(latents: tuple) -> int:
        return sum(map(len, image_set.encode_all(list(generator.finish(latents)))))

    with ThreadPoolExecutor(1) as writer:
        for b in range(batches):
            labels = torch.arange(b * batch, (b + 1) * batch) % classes
            latents = generator.latents(labels, (labels + 1000 * b + 1).tolist())
            total += pending.result() if pending else 0
            pending = writer.submit(encode, latents)
        return total + pending.result()


def rivals(model: dit.DiT, vae: dit_weights.Vae | None, sizes: argparse.Namespace,
           device: torch.device) -> dict[str, tuple[Callable, int]]:
    """name -> (a run from noise to images, how many images that is)."""
    short, ten = sizes.steps[0], synthesis.ORIGINAL_BATCH
    flags = argparse.Namespace(steps=short, size=sizes.size)
    decode = vae.decode if vae else lambda x: x[:, :3]

    def original() -> list[bytes]:
        with tf32():
            return synthesis.original_style(model, torch.arange(ten) % sizes.classes, flags, 2.0,
                                            device, decode)

    if vae is None:
        return {ORIGINAL: (original, ten)}
    rival = synthesis.make_rival(model).to(device, torch.bfloat16)
    for block in rival.transformer_blocks:
        block.compile(backend=sizes.backend, dynamic=False)
    scheduler = synthesis.make_scheduler(short)
    scheduler.register_to_config(clip_sample=False)
    batch = fastest_batch(rival, sizes, device)
    labels = torch.arange(batch, device=device) % sizes.classes

    def theirs() -> list[bytes]:
        noise = torch.randn(batch, sizes.channels, sizes.size, sizes.size, device=device)
        x = synthesis.pipeline_latents(rival, scheduler, labels, sizes.classes, 2.0, short,
                                       noise.to(torch.bfloat16))
        images = diffusion.to_uint8(decode(x.float())).cpu()
        return [image_set.encode_png(image) for image in images]

    return {ORIGINAL: (original, ten), RIVAL: (theirs, batch)}


@contextlib.contextmanager
def tf32() -> Iterator[None]:
    """float32 products in TF32, as the original's program sets it."""
    before = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = True
    try:
        yield
    finally:
        torch.backends.cuda.matmul.allow_tf32 = before


def fastest_batch(rival: torch.nn.Module, sizes: argparse.Namespace, device: torch.device) -> int:
    """Of the swept ones, by a guided call of diffusers' network per image."""
    variants = {}
    for n in sizes.sweep:
        x = torch.randn(2 * n, sizes.channels, sizes.size, sizes.size, device=device,
                        dtype=torch.bfloat16)
        t = torch.full((2 * n,), 500, device=device)
        y = torch.arange(2 * n, device=device) % sizes.classes

        def call(x: Tensor = x, t: Tensor = t, y: Tensor = y) -> None:
            with torch.no_grad():
                for _ in range(3):
                    rival(x, timestep=t, class_labels=y)

        variants[n] = call
    times = measure.interleave(variants, sizes.repeats, device)
    each = {n: measure.spread(times[n]["wall"])["median"] / (3 * n) for n in variants}
    best = min(each, key=each.get)
    print("  B's network, ms per image: " + ", ".join(
        f"{1e3 * seconds:.3f} at {n}" for n, seconds in each.items()) + f"; it runs at {best}")
    return best


def bf16_error(model: dit.DiT, low: dit.DiTGenerator, device: torch.device) -> float:
    """Norm of the difference that the bf16 network makes to x_0 over fp32's norm, from the same
    noise."""
    full = dit.DiTGenerator(model, low.settings, device, low.clip)
    labels = torch.arange(ERROR_IMAGES) % model.num_classes
    found, expected = (g.latents(labels, labels.tolist())[0] for g in (low, full))
    error = float((found - expected).norm() / expected.norm())
    print(f"  bf16 network, fp32 state: x_0 differs from fp32's by {error:.1e}, relative")
    return error


def forward_sweep(generator: dit.DiTGenerator, sizes: argparse.Namespace, device: torch.device
                  ) -> list[dict]:
    """Milliseconds per image of one guided network call at each batch, and its share of the
    ceiling."""
    rows, variants, flops = [], {}, {}
    for n in sizes.sweep:
        x = torch.randn(n, sizes.channels, sizes.size, sizes.size, device=device)
        t = torch.full((n,), 500, device=device)
        y = torch.arange(n, device=device) % sizes.classes

        def call(x: Tensor = x, t: Tensor = t, y: Tensor = y) -> None:
            with torch.inference_mode():
                for _ in range(5):
                    diffusion.guided(generator.model, x, t, y, sizes.classes, 2.0, 3)

        variants[str(n)] = call
    variants["ceiling"], flops["ceiling"] = measure.ceiling(device, torch.bfloat16)
    times = measure.interleave(variants, sizes.repeats + 1, device)
    peak = flops["ceiling"] / measure.spread(times["ceiling"]["wall"])["median"]
    needed = image_flops(generator.model.config, 1)
    for n in sizes.sweep:
        seconds = measure.spread(times[str(n)]["wall"])["median"] / (5 * n)
        rows.append({"batch": n, "ms_per_image_and_step": 1e3 * seconds,
                     "ceiling_percent": 100 * needed / seconds / peak})
        print(f"  guided network call, batch {n:4d} + {n}: {1e3 * seconds:.3f} ms per image, "
              f"{rows[-1]['ceiling_percent']:.0f} % of the ceiling")
    return rows


def image_flops(config: dict, steps: int) -> float:
    """Of the linear layers and the attention of one guided image, one FMA = 2."""
    tokens, width = (config["input_size"] // config["patch_size"]) ** 2, config["width"]
    block = 24 * tokens * width ** 2 + 4 * tokens ** 2 * width + 12 * width ** 2
    return 2.0 * steps * config["depth"] * block


def bench(sizes: argparse.Namespace, device: torch.device) -> dict:
    """All rows, printed and for the record."""
    print(f"\nfull size: DiT of width {sizes.width}, depth {sizes.depth}, random weights, s = 2")
    with torch.device(device):
        model = synthesis.make_model(argparse.Namespace(**vars(sizes)))
    vae = make_vae(sizes, device)
    if vae is None:
        print("diffusers is not installed: latents are not decoded, B and DPM-Solver++ left out")
    ours = rows_of(model, vae, sizes, device)
    error = bf16_error(model, ours[f"exact, not compiled, T = {sizes.steps[0]}"][0], device)
    sweep = forward_sweep(ours[f"exact, T = {sizes.steps[0]}"][0], sizes, device)
    runs = rivals(model, vae, sizes, device)
    for name, (generator, batch) in ours.items():
        if vae is None:
            generator.finish = lambda latents: diffusion.to_uint8(latents[0][:, :3]).cpu()
        runs[name] = (lambda g=generator, b=batch: run_batches(g, b, sizes.batches),
                      batch * sizes.batches)
    variants = {name: run for name, (run, _) in runs.items()}
    variants["ceiling"], ceiling_flops = measure.ceiling(device, torch.bfloat16)
    times = measure.interleave(variants, sizes.repeats, device)
    peak = ceiling_flops / measure.spread(times["ceiling"]["wall"])["median"]
    counts = {name: count for name, (_, count) in runs.items()}
    return {"sizes": vars(sizes), "vae": vae is not None, "sweep": sweep, "bf16_error": error,
            "ceiling_gflops": peak / 1e9,
            "rows": [row_of(name, times, counts, model.config, sizes, peak) for name in runs]}


def row_of(name: str, times: dict, counts: dict[str, int], config: dict,
           sizes: argparse.Namespace, peak: float) -> dict:
    """A line of the table: images/s with its quartiles, ratios to A and B round by round, share of
    the ceiling where every forward is made in bf16; goal, aim and wall."""
    rates = [counts[name] / seconds for seconds in times[name]["wall"]]
    found, against = measure.spread(rates), {}
    for key, base in (("original", ORIGINAL), ("diffusers", RIVAL)):
        if base in times:
            against[key] = measure.spread([
                rate * seconds / counts[base]
                for rate, seconds in zip(rates, times[base]["wall"], strict=True)])
    steps = next((t for t in sizes.steps if name == f"exact, T = {t}"), None)
    share = (100 * found["median"] * image_flops(config, steps) / peak) if steps else None
    goal, aim, wall = GOALS.get(name, (None,) * 3) if sizes is XL else (None,) * 3
    print(f"  {name:<52} {found['median']:8.2f} images/s [{found['q25']:.2f}, {found['q75']:.2f}]"
          + "".join(f" {ratio['median']:6.2f}x {letter}" for letter, ratio in
                    zip("AB", against.values(), strict=False))
          + (f" {share:4.0f} % of the ceiling" if share else "")
          + (f"   goal {goal:g} {'reached' if found['median'] >= goal else 'MISSED'}"
             if goal else "") + (f" (aim {aim:g})" if aim else "")
          + (f", {100 * found['median'] / wall:.0f} % of the wall, {wall:g}" if wall else "")
          + f"   warm-up {times[name]['warm_up']:.1f} s")
    return {"variant": name, "images": counts[name], "images_per_second": found,
            "ratio_to_original": against["original"],
            "ratio_to_diffusers": against.get("diffusers"), "ceiling_percent": share, "goal": goal,
            "aim": aim, "wall": wall, "warm_up_seconds": times[name]["warm_up"]}
