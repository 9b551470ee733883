"""How fast sampling is, and what the approximations cost: against a loop in the original's style,
and diffusers' module in a DiTPipeline-like loop.

    python -m dm_kd.bench.synthesis --guidance-scale 2 1 --steps 20 --batch-size 100

Same random weights, steps and batch. A re-states the original's loop: float32, ten images and their
ten unguided twins at a time, coefficients copied from the host at each step, PNG in line. B
re-states DiTPipeline.__call__ (DDIM, guidance on all channels), which hard-codes the null class
1000 and ends in a VAE, for pixels and any class count. Exactness is asserted first: against A with
the same noise, against B after patching diffusers' two known differences (its timestep sinusoid
divides by 127 instead of 128, and one of its LayerNorms has another eps). Without diffusers B is
left out. Then the error ladder (ladder.py); on a GPU also DiT-XL/2's size (full_size.py).
"""

import copy
import importlib.util
import sys
import time
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from dm_kd import image_set, run
from dm_kd.bench import full_size, ladder, measure
from dm_kd.generators import diffusion, dit, dit_weights

ORIGINAL = "A original-style: fp32, 10 + 10, PNG in line"
RIVAL, OURS = "B diffusers: DiTTransformer2DModel + DDIM", "ours: DDIM"
EXACT = "ours: ancestral DDPM, noise keyed per image"
ORIGINAL_BATCH = 10


def make_model(args) -> dit.DiT:
    """A DiT with random weights. adaLN-Zero starts as the zero function, so all are drawn."""
    model = dit.DiT(args.size, 2, args.channels, args.width, args.depth, args.heads, args.classes)
    for parameter in model.parameters():
        if parameter.requires_grad and parameter.ndim > 1:
            nn.init.normal_(parameter, std=0.05)
    return model.eval().requires_grad_(False)


def make_rival(model: dit.DiT) -> nn.Module:
    """diffusers' DiTTransformer2DModel with the weights of `model`."""
    from diffusers import DiTTransformer2DModel

    config = model.config
    rival = DiTTransformer2DModel(
        num_attention_heads=config["heads"], attention_head_dim=config["width"] // config["heads"],
        in_channels=config["channels"], out_channels=model.out_channels,
        num_layers=config["depth"], sample_size=config["input_size"],
        patch_size=config["patch_size"], num_embeds_ada_norm=config["num_classes"])
    rival.load_state_dict(dit_weights.to_diffusers(model.state_dict()))
    return rival.eval().requires_grad_(False)


def patch(rival: nn.Module) -> nn.Module:
    """A copy that computes what the original DiT does."""
    rival = copy.deepcopy(rival)
    for block in rival.transformer_blocks:
        block.norm1.emb.time_proj.downscale_freq_shift = 0
        block.norm3.eps = 1e-6
    return rival


def make_scheduler(steps: int):
    """DiTPipeline's: DDIM on the timesteps 0, 1000 / steps, 2000 / steps ..."""
    from diffusers import DDIMScheduler

    scheduler = DDIMScheduler(beta_start=1e-4, beta_end=0.02, beta_schedule="linear",
                              timestep_spacing="leading", clip_sample=True)
    scheduler.set_timesteps(steps)
    return scheduler


@torch.no_grad()
def pipeline_latents(rival: nn.Module, scheduler, labels: Tensor, null: int, scale: float,
                     steps: int, latents: Tensor) -> Tensor:
    """DiTPipeline.__call__'s loop, re-stated: x_T [B, C, H, W] -> x_0 [B, C, H, W]."""
    channels = latents.shape[1]
    x = torch.cat([latents] * 2) if scale > 1 else latents
    if scale > 1:
        labels = torch.cat([labels, torch.full_like(labels, null)])
    scheduler.set_timesteps(steps)
    for t in scheduler.timesteps:
        if scale > 1:
            half = x[:len(x) // 2]
            x = torch.cat([half, half])
        x = scheduler.scale_model_input(x, t)
        out = rival(x, timestep=t[None].to(x.device).expand(len(x)), class_labels=labels).sample
        if scale > 1:
            eps, rest = out[:, :channels], out[:, channels:]
            conditional, unconditional = eps.chunk(2)
            half_eps = unconditional + scale * (conditional - unconditional)
            out = torch.cat([torch.cat([half_eps, half_eps]), rest], 1)
        eps, _ = out.split(channels, 1)  # the learned variance is thrown away
        x = scheduler.step(eps, t, x, use_clipped_model_output=True).prev_sample
    return x.chunk(2)[0] if scale > 1 else x


def pipeline(rival: nn.Module, scheduler, labels: Tensor, null: int, scale: float, steps: int,
             latents: Tensor) -> Tensor:
    """The same with its tail, for pixels: -> uint8 [B, C, H, W]."""
    x = pipeline_latents(rival, scheduler, labels, null, scale, steps, latents)
    images = (x / 2 + 0.5).clamp(0, 1).cpu().permute(0, 2, 3, 1).float().numpy()
    return torch.from_numpy((images * 255).round().astype("uint8")).permute(0, 3, 1, 2)


@torch.no_grad()
def original_loop(model: nn.Module, labels: Tensor, steps: int, scale: float, null: int,
                  draw: Callable[[int], Tensor]) -> Tensor:
    """The original sampler's loop and its habits: both halves of the batch carry a state, of which
    one is thrown away; each coefficient goes from a float64 array of the host to the device at each
    step. -> x_0 [B, C, H, W]. draw(n): noise [n, C, H, W] on the device."""
    tables = {k: v.double().numpy() for k, v in diffusion.Diffusion(steps).tables.items()}
    times, channels = diffusion.Diffusion(steps).timesteps, model.channels
    x = draw(len(labels))
    x, device = torch.cat([x, x]), x.device
    labels = torch.cat([labels, torch.full_like(labels, null)])

    def coefficient(name: str, t: Tensor) -> Tensor:
        values = torch.from_numpy(tables[name]).to(device=device)[t].float()
        return values.view(-1, 1, 1, 1).expand(x.shape)

    for i in reversed(range(steps)):
        t = torch.tensor([i] * len(x), device=device)
        mapped = torch.tensor(times, device=device)[t]
        half = x[:len(x) // 2]
        out = model(torch.cat([half, half]), mapped, labels).float()
        eps, rest = out[:, :channels], out[:, channels:]
        conditional, unconditional = eps.chunk(2)
        eps = unconditional + scale * (conditional - unconditional)
        eps = torch.cat([eps, eps])
        share = (rest + 1) / 2
        log_variance = (share * coefficient("log_beta", t)
                        + (1 - share) * coefficient("log_variance", t))
        x0 = coefficient("recip", t) * x - coefficient("recip_noise", t) * eps
        mean = coefficient("mean_x0", t) * x0 + coefficient("mean_xt", t) * x
        nonzero = (t != 0).float().view(-1, 1, 1, 1)
        x = mean + nonzero * torch.exp(0.5 * log_variance) * draw(len(x))
    return x.chunk(2)[0]


def original_style(model: nn.Module, labels: Tensor, args, scale: float, device: torch.device,
                   decode: Callable[[Tensor], Tensor] = lambda x: x) -> list[bytes]:
    """PNG files of all labels, ten at a time."""
    size, made = model.config["input_size"], []
    for part in labels.split(ORIGINAL_BATCH):
        x = original_loop(model, part.to(device), args.steps, scale, model.num_classes,
                          lambda n: torch.randn(n, model.channels, size, size, device=device))
        made += [image_set.encode_png(image) for image in diffusion.to_uint8(decode(x)).cpu()]
    return made


def original_equivalence(model: dit.DiT, args, scale: float, device: torch.device) -> dict:
    """Our loop against the original-style one, from the same noise."""
    size, count = model.config["input_size"], min(4, args.batch_size)
    noise = torch.randn(args.steps + 1, count, model.channels, size, size).to(device)
    labels = (torch.arange(count) % args.classes).to(device)
    ours_from, theirs_from = iter(noise), iter(noise)

    def both_halves(n: int) -> Tensor:
        return torch.cat([next(theirs_from)] * (n // count))

    theirs = original_loop(model, labels, args.steps, scale, args.classes, both_halves)
    with torch.inference_mode():
        ours = diffusion.sample_ddpm(
            lambda x, t: diffusion.guided(model, x, t, labels, args.classes, scale, model.channels),
            diffusion.Diffusion(args.steps, device), next(ours_from), lambda: next(ours_from))
    return {f"s={scale:g}: x_0 against the original-style loop, relative": {
        "value": measure.relative_error(ours, theirs), "limit": 1e-5}}


def make_generator(model: dit.DiT, args, sampler: str, scale: float,
                   device: torch.device) -> dit.DiTGenerator:
    settings = {"guidance_scale": scale, "steps": args.steps, "sampler": sampler,
                "guided_channels": "all"}
    generator = dit.DiTGenerator(model, settings, device, clip=True)
    if sampler == "ddim":  # on the timesteps of the rival's scheduler
        times = np.arange(args.steps) * (diffusion.TRAIN_STEPS // args.steps)
        generator.diffusion = diffusion.Diffusion(args.steps, device, times)
    return generator


def start_noise(model: dit.DiT, seeds: list[int]) -> Tensor:
    """The x_T that DiTGenerator.sample draws for these seeds."""
    size = model.config["input_size"]
    return torch.stack([torch.randn(model.channels, size, size,
                                    generator=torch.Generator().manual_seed(s)) for s in seeds])


def equivalence(model: dit.DiT, rival: nn.Module, args, scale: float, labels: Tensor,
                seeds: list[int], device: torch.device) -> dict:
    """Our images against the rival's, as it is and patched, in float32 and grey levels."""
    noise = start_noise(model, seeds).to(device)
    ours = make_generator(model, args, "ddim", scale, device).sample(labels.cpu(), seeds).float()
    checks = {}
    for name, module in (("as it is", rival), ("patched", patch(rival))):
        theirs = pipeline(module, make_scheduler(args.steps), labels,
                          args.classes, scale, args.steps, noise).float()
        checks[f"s={scale:g}: mean difference to diffusers {name}, grey levels"] = {
            "value": (ours - theirs).abs().mean().item(),
            "limit": None if name == "as it is" else 0.02}
        checks[f"s={scale:g}: largest difference to diffusers {name}, grey levels"] = {
            "value": (ours - theirs).abs().max().item(),
            "limit": None if name == "as it is" else 1.0}
    t = torch.full((len(labels),), 990, device=device)
    out = model(noise, t, labels)
    for name, module in (("as it is", rival), ("patched", patch(rival))):
        theirs = module(noise, timestep=t, class_labels=labels).sample
        checks[f"s={scale:g}: one forward at t=990, diffusers {name}, relative"] = {
            "value": measure.relative_error(theirs, out),
            "limit": None if name == "as it is" else 1e-5}
    return checks


def bf16_difference(model: dit.DiT, args, scale: float, labels: Tensor, seeds: list[int],
                    device: torch.device) -> dict:
    """What a bf16 network changes of x_0, from the same noise with fp32 state."""
    low = copy.deepcopy(model).lower_precision(torch.bfloat16)
    low, full = (make_generator(m, args, "ddpm", scale, device).latents(
        labels[:ORIGINAL_BATCH].cpu(), seeds[:ORIGINAL_BATCH])[0] for m in (low, model))
    return {f"s={scale:g}: x_0 of the bf16 network with fp32 state, relative norm": {
        "value": float((low - full).norm() / full.norm()), "limit": None}}


def needed_flops(model: dit.DiT, args, scale: float) -> float:
    """Of one batch of images. One FMA = 2."""
    model = copy.deepcopy(model).cpu().float()
    size = model.config["input_size"]
    with FlopCounterMode(display=False) as counter:
        model(torch.randn(1, model.channels, size, size), torch.zeros(1).long(),
              torch.zeros(1).long())
    forwards = 1 if scale in (0, 1) else 2
    return float(counter.get_total_flops()) * forwards * args.steps * args.batch_size


def make_variants(model: dit.DiT, rival: nn.Module | None, args, scale: float, labels: Tensor,
                  seeds: list[int], device: torch.device) -> dict[str, Callable]:
    full = model if args.dtype == "fp32" else copy.deepcopy(model).to(torch.float32)
    variants = {ORIGINAL: lambda: original_style(full, labels, args, scale, device)}
    if rival is not None:
        scheduler = make_scheduler(args.steps)
        size, dtype = model.config["input_size"], next(rival.parameters()).dtype

        def theirs() -> Tensor:
            noise = torch.randn(len(labels), model.channels, size, size)
            return pipeline(rival, scheduler, labels, args.classes, scale, args.steps,
                            noise.to(device, dtype))

        variants[RIVAL] = theirs
        ddim = make_generator(model, args, "ddim", scale, device)
        variants[OURS] = lambda: ddim.sample(labels, seeds)
    ddpm = make_generator(model, args, "ddpm", scale, device)
    variants[EXACT] = lambda: list(image_set.encode_all(list(ddpm.sample(labels, seeds))))
    if args.dtype == "fp32":
        low = copy.deepcopy(model).lower_precision(torch.bfloat16)
        low = make_generator(low, args, "ddpm", scale, device)
        variants["the same, bf16 network"] = lambda: low.sample(labels, seeds)
    return variants


def add_arguments(parser) -> None:
    parser.add_argument("--guidance-scale", type=run.nonnegative_float, nargs="+",
                        default=[2.0, 1.0], metavar="S", help="default: 2 1")
    ladder.add_arguments(parser)
    parser.add_argument("--full-size", choices=("auto", *full_size.SIZES, "none"), default="auto",
                        help="the part of DiT-XL/2's size: xl, small (the same at a size for any "
                             "processor), none (default: auto = xl on a GPU)")
    parser.add_argument("--dtype", choices=("fp32", "bf16"), default=None,
                        help="of our and diffusers' networks while timed (default: bf16 on GPUs, "
                             "else fp32)")
    for flag, default in (("steps", 20), ("batch-size", 100), ("size", 8), ("channels", 1),
                          ("width", 96), ("depth", 4), ("heads", 4), ("classes", 10)):
        parser.add_argument(f"--{flag}", type=run.positive_int, default=default, metavar="N",
                            help="default: %(default)s")


def bench_scale(model: dit.DiT, rival: nn.Module | None, args, scale: float,
                device: torch.device) -> dict:
    """Equivalence, times and verdict at one guidance scale."""
    print(f"\nguidance scale {scale:g}")
    labels = torch.arange(args.batch_size, device=device) % args.classes
    seeds = list(range(1, args.batch_size + 1))
    checks = original_equivalence(model, args, scale, device)
    checks |= bf16_difference(model, args, scale, labels, seeds, device)
    if rival is not None:
        checks |= equivalence(model, rival, args, scale, labels, seeds, device)
    measure.require(checks)
    timed, timed_rival = model, rival
    if args.dtype == "bf16":
        timed = copy.deepcopy(model).lower_precision(torch.bfloat16)
        timed_rival = None if rival is None else copy.deepcopy(rival).to(torch.bfloat16)
    variants = make_variants(timed, timed_rival, args, scale, labels, seeds, device)
    base = next(iter(variants))
    needed = needed_flops(model, args, scale)
    flops = dict.fromkeys(variants, needed)
    variants["ceiling"], flops["ceiling"] = measure.ceiling(
        device, torch.bfloat16 if args.dtype == "bf16" else torch.float32)
    times = measure.interleave(variants, args.repeats, device)
    clock = measure.choose_clock(device, args.threads)
    rows = measure.table(times, base, clock, args.batch_size, flops, "ceiling")
    pairs = [("the original's style", ORIGINAL, EXACT, 1.1)]
    pairs += [] if rival is None else [("diffusers", RIVAL, OURS, 1.0)]
    verdicts = [measure.verdict(f"ours against {name}, s={scale:g} ({c} time)",
                                measure.ratio(times, theirs, ours, c), goal)
                for name, theirs, ours, goal in pairs for c in ("cpu", "wall")]
    return {"guidance_scale": scale, "clock": clock, "equivalence": checks, "rows": rows,
            "flops_per_batch": needed, "ratios": verdicts, "ceiling_gflops":
            flops["ceiling"] / measure.spread(times["ceiling"][clock])["median"] / 1e9}


def body(argv: list[str]) -> None:
    args = measure.parse("synthesis", __doc__, 2, 7, argv, add_arguments)
    if args.dry_run:
        print(f"would time {args.repeats} rounds of {args.batch_size} images at s = "
              f"{args.guidance_scale}, and an error ladder of {args.ladder_images} images, about 4 "
              f"minutes, into {args.out}")
        return
    began, device = time.perf_counter(), run.use_device(args)
    args.dtype = args.dtype or ("bf16" if device.type == "cuda" else "fp32")
    torch.manual_seed(args.seed)
    model = make_model(args).to(device)
    rival = None
    if importlib.util.find_spec("diffusers"):
        rival = make_rival(model).to(device)
    print(f"sampling a DiT of width {args.width}, depth {args.depth}, {args.size} x {args.size} x "
          f"{args.channels}, {args.steps} steps, batch {args.batch_size}, {device}, "
          f"{args.threads} threads, {args.dtype}")
    if rival is None:
        print("diffusers is not installed: B is left out (pip install diffusers)")
    contents = {"dtype": args.dtype, "diffusers": rival is not None}
    contents["results"] = [bench_scale(model, rival, args, scale, device)
                           for scale in args.guidance_scale]
    contents["ladder"] = ladder.climb(args, device) if args.ladder_images else None
    contents["full_size"] = None
    contents["seconds"] = time.perf_counter() - began
    measure.record(args, "synthesis", device, contents)  # before what takes longest
    size = ("xl" if device.type == "cuda" else "none") if args.full_size == "auto" else (
        args.full_size)
    if size != "none":
        contents["full_size"] = full_size.bench(full_size.SIZES[size], device)
        contents["seconds"] = time.perf_counter() - began
        measure.record(args, "synthesis", device, contents)
    print(f"  {contents['seconds']:.0f} s in all")


def main(argv: list[str] | None = None) -> int:
    return run.main(body, argv)


if __name__ == "__main__":
    sys.exit(main())
