"""How fast sampling is: the digits' small DiT against diffusers' module in a DiTPipeline-like loop.

    python -m dm_kd.bench.synthesis --guidance-scale 2 1 --steps 20 --batch-size 100

Same random weights, steps, batch and law (DDIM, guidance on all channels). DiTPipeline hard-codes
the null class 1000 and ends in a VAE, so its loop is re-stated here for pixels and any class count.
Exactness is asserted after patching diffusers' two known differences: its timestep sinusoid divides
by 127 instead of 128, and one of its LayerNorms has another eps. Needs diffusers; without it only
our own rates are printed.
"""

import copy
import importlib.util
import sys
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from dm_kd import run
from dm_kd.bench import measure
from dm_kd.generators import dit, dit_weights

RIVAL, OURS = "A diffusers: DiTTransformer2DModel + DDIM", "ours: DDIM"


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
def pipeline(rival: nn.Module, scheduler, labels: Tensor, null: int, scale: float, steps: int,
             latents: Tensor) -> Tensor:
    """DiTPipeline.__call__'s loop, re-stated: x_T [B, C, H, W] -> uint8 [B, C, H, W]."""
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
        x = scheduler.step(eps, t, x).prev_sample
    x = x.chunk(2)[0] if scale > 1 else x
    images = (x / 2 + 0.5).clamp(0, 1).cpu().permute(0, 2, 3, 1).float().numpy()
    return torch.from_numpy((images * 255).round().astype("uint8")).permute(0, 3, 1, 2)


def make_generator(model: dit.DiT, args, sampler: str, scale: float,
                   device: torch.device) -> dit.DiTGenerator:
    settings = {"guidance_scale": scale, "steps": args.steps, "sampler": sampler,
                "guided_channels": "all"}
    generator = dit.DiTGenerator(model, settings, device, clip=True)
    if sampler == "ddim":  # on the timesteps of the rival's scheduler
        times = np.arange(args.steps) * (dit.TRAIN_STEPS // args.steps)
        generator.diffusion = dit.Diffusion(args.steps, device, times)
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
    variants = {}
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
    variants["ours: ancestral DDPM, noise keyed per image"] = lambda: ddpm.sample(labels, seeds)
    return variants


def add_arguments(parser) -> None:
    parser.add_argument("--guidance-scale", type=run.nonnegative_float, nargs="+",
                        default=[2.0, 1.0], metavar="S", help="default: 2 1")
    parser.add_argument("--dtype", choices=("fp32", "bf16"), default=None,
                        help="of both networks while timed (default: bf16 on GPUs, else fp32)")
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
    checks = {}
    if rival is not None:
        checks = equivalence(model, rival, args, scale, labels, seeds, device)
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
    verdicts = [] if rival is None else [
        measure.verdict(f"ours against diffusers, s={scale:g} ({c} time)",
                        measure.ratio(times, RIVAL, OURS, c), 1.0) for c in ("cpu", "wall")]
    return {"guidance_scale": scale, "clock": clock, "equivalence": checks, "rows": rows,
            "flops_per_batch": needed, "ratios": verdicts, "ceiling_gflops":
            flops["ceiling"] / measure.spread(times["ceiling"][clock])["median"] / 1e9}


def body(argv: list[str]) -> None:
    args = measure.parse("synthesis", __doc__, 2, 7, argv, add_arguments)
    if args.dry_run:
        print(f"would time {args.repeats} rounds of {args.batch_size} images at s = "
              f"{args.guidance_scale}, about 60 s, into {args.out}")
        return
    device = run.use_device(args)
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
        print("diffusers is not installed: no rival, only our own rates (pip install diffusers)")
    results = [bench_scale(model, rival, args, scale, device) for scale in args.guidance_scale]
    measure.record(args, "synthesis", device, {
        "dtype": args.dtype, "diffusers": rival is not None, "results": results})


def main(argv: list[str] | None = None) -> int:
    return run.main(body, argv)


if __name__ == "__main__":
    sys.exit(main())
