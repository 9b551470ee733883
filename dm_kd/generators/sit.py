"""SiT and REPA's SiT: DiT's network trained to predict a velocity, and its ODE and SDE samplers.

Ma et al. 2024, "SiT" (arXiv 2401.08740), linear path; Yu et al. 2024, "REPA" (arXiv 2410.06940).
Here x_t = (1 - t) x_0 + t eps: t = 0 is the image, t = 1 the noise, and the velocity is
v = dx_t/dt = eps - x_0 in expectation (REPA's way round). SiT's own networks run the other way:
they are given 1 - t and predict -v. Both are given the time itself, 0 to 1, not a step number.

A checkpoint of SiT has the keys and shapes of DiT's, so it must be asked for by name:

    python -m dm_kd.synthesize --task imagenet --generator sit --weights SiT-XL-2-256.pt \\
        --guidance-scale 2 --steps 100 --images-per-class 200 --out syn_dataset/NAME

Which of the two a file is shows in its keys: REPA's holds `projectors.` (used in training only,
left out here), the published SiT has twice as many output channels as input ones. Where neither
holds, --velocity must say it. The state stays in float32; the network may be bfloat16.
"""

import argparse
import itertools
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from dm_kd import files
from dm_kd.errors import UserError
from dm_kd.generators import diffusion, dit, dit_weights
from dm_kd.tasks import Task

LAST_STEP = 0.04  # time of the SDE's last step, taken without noise (both papers)
VELOCITIES = ("sit", "repa")
LICENCES = {"sit": "MIT (willisma/SiT)", "repa": "MIT (sihyun-yu/REPA)"}
SAMPLERS = ("sde", "ode", "heun")
WHOLE = (0.0, 1.0)  # the guidance interval that changes nothing


# --- sampling -------------------------------------------------------------------------------------

def ode_times(steps: int) -> list[float]:
    """steps + 1 times from 1 (noise) to 0 (image), evenly spread."""
    return [1 - i / steps for i in range(steps + 1)]


def sde_times(steps: int) -> list[float]:
    """steps - 1 even steps from 1 to LAST_STEP, and one from there to 0."""
    return [1 - (1 - LAST_STEP) * i / max(steps - 1, 1) for i in range(steps)] + [0.0]


def sample_ode(velocity: Callable, x: Tensor, times: list[float], heun: bool = False) -> Tensor:
    """Integrate dx/dt = v(x, t) along falling times; Euler, or Heun's second-order step.

    The step to t = 0 is Euler's in both, as in REPA: networks never saw t = 0 in training.

    Args:
        velocity: (x, t) -> like x.
    """
    for now, after in itertools.pairwise(times):
        v = velocity(x, now)
        if heun and after > 0:
            v = (v + velocity(x + (after - now) * v, after)) / 2
        x = x + (after - now) * v
    return x


def score(v: Tensor, x: Tensor, t: float) -> Tensor:
    """grad log p_t(x) = -E[eps | x] / t, where E[eps | x] = x + (1 - t) v on the linear path (SiT
    eq. 9)."""
    return -(x + (1 - t) * v) / t


def sample_sde(velocity: Callable, x: Tensor, times: list[float], draw: Callable[[], Tensor]
               ) -> Tensor:
    """Euler-Maruyama on the reverse SDE dx = (v - w/2 score) dt + sqrt(w) dW with w = 2 t (SiT eq.
    6, REPA's w), whose marginals are those of the ODE.

    The last step follows the ODE and takes no noise: from t to 0 it gives x - t v = E[x_0 | x_t].

    Args:
        draw: one step's noise, shaped like x; called at each step but the last.
    """
    for now, after in itertools.pairwise(times):
        v, step = velocity(x, now), after - now
        if after == 0:
            return x + step * v
        x = x + step * (v - now * score(v, x, now)) + (2 * now * -step) ** 0.5 * draw()
    return x


def predicted_velocity(model: Callable, convention: str, labels: Tensor, null: int, scale: float,
                       guided_channels: int, interval: tuple[float, float] = WHOLE
                       ) -> Callable:
    """(x, t) -> v = E[eps - x_0 | x_t] with guidance v_u + s (v_c - v_u); outside of the interval
    of t (Kynkäänniemi et al. 2024, arXiv 2404.07724) one conditional forward.

    Args:
        convention: "repa": the network is given t and predicts v; "sit": 1 - t and -v.
    """
    sign = 1 if convention == "repa" else -1

    def velocity(x: Tensor, t: float) -> Tensor:
        time = torch.full((len(x),), t if convention == "repa" else 1 - t, device=x.device)
        inside = interval[0] <= t <= interval[1] or scale == 0
        out = diffusion.guided(model, x, time, labels, null, scale if inside else 1,
                               guided_channels)
        return sign * out[:, :x.shape[1]].to(x.dtype)

    return velocity


class SiTGenerator:
    """A trained SiT with its sampler settings: `sample(labels, seeds) -> uint8 images`."""

    def __init__(self, model: dit.DiT, settings: dict, device: torch.device,
                 vae: dit_weights.Vae | None = None):
        self.model, self.settings, self.device, self.vae = model, settings, device, vae
        self.resolution = model.config["input_size"] * (vae.factor if vae else 1)
        self.channels = vae.channels if vae else model.channels
        self.guided_channels = (model.channels if settings["guided_channels"] == "all"
                                else min(3, model.channels))
        self.labels_known = settings["guidance_scale"] > 0
        self.finish = dit.Finish(vae)

    def sample(self, labels: Tensor, seeds: list[int]) -> Tensor:
        """As `dit.DiTGenerator.sample`."""
        return self.finish(self.latents(labels, seeds))

    def latents(self, labels: Tensor, seeds: list[int]) -> tuple[Tensor, object]:
        """As `dit.DiTGenerator.latents`."""
        with dit.computing(self.settings):
            return dit.queued(self._sampled(labels, seeds))

    def _sampled(self, labels: Tensor, seeds: list[int]) -> Tensor:
        size, settings = self.model.config["input_size"], self.settings
        draw = diffusion.noise_source(seeds, (self.model.channels, size, size), self.device)
        labels = dit.as_generator_classes(labels, settings).to(self.device)
        velocity = predicted_velocity(
            self.model, settings["velocity"], labels, self.model.num_classes,
            settings["guidance_scale"], self.guided_channels,
            tuple(settings["guidance_interval"]))
        x = draw()
        if settings["sampler"] == "sde":
            return sample_sde(velocity, x, sde_times(settings["steps"]), draw)
        return sample_ode(velocity, x, ode_times(settings["steps"]),
                          heun=settings["sampler"] == "heun")


# --- command line and files -----------------------------------------------------------------------

def add_network_arguments(group: argparse._ArgumentGroup, weights_help: str) -> None:
    """--weights, --vae, --compile, --dtype of a generator of latents that is read from one file."""
    group.add_argument("--weights", required=True, metavar="FILE.pt", help=weights_help)
    group.add_argument("--vae", default=None, metavar="FOLDER|HUB_ID",
                       help="diffusers' AutoencoderKL that decodes 4-channel latents (default: "
                            f"{dit_weights.DEFAULT_VAE})")
    dit.add_speed_arguments(group)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    from dm_kd.run import nonnegative_float, positive_int

    group = parser.add_argument_group("sit")
    add_network_arguments(group, "a checkpoint of SiT or of REPA's SiT")
    group.add_argument("--velocity", choices=VELOCITIES, default=None,
                       help="which way round the network runs (default: seen in the file's keys)")
    group.add_argument("--guidance-scale", type=nonnegative_float, default=2.0, metavar="S",
                       help="classifier-free guidance of the velocity; 1 = one conditional "
                            "forward, 0 = unconditional (default: %(default)s)")
    group.add_argument("--guidance-interval", type=dit.interval, default=WHOLE, metavar="A-B",
                       help="times at which guidance acts, 0 the image, 1 the noise; REPA's best "
                            "is 0-0.7 (default: 0-1)")
    group.add_argument("--steps", type=positive_int, default=100, metavar="T",
                       help="sampling steps; the papers take 250 (default: %(default)s)")
    group.add_argument("--sampler", choices=SAMPLERS, default="sde",
                       help="Euler-Maruyama, or the ODE by Euler's or Heun's steps (these take two "
                            "forwards each) (default: %(default)s)")
    group.add_argument("--guided-channels", choices=("3", "all"), default=None,
                       help="channels that guidance acts on (default: as their authors, 3 for "
                            "SiT, all for REPA)")


def build(args: argparse.Namespace, task: Task, device: torch.device) -> SiTGenerator:
    """The generator that the flags describe.

    Raises:
        UserError: no such weights or VAE, not of this task, or which velocity is not known.
        DamagedError: bad weights.
    """
    dit.refuse_idle_interval(args, WHOLE)
    model, card = load(args.weights, args.velocity)
    classes = dit.generator_classes(model.num_classes, task, args.weights)
    vae = dit.load_vae(args, model, card)
    dtype = args.dtype or dit.fastest_dtype(model.config["width"], device)
    if dtype == "bf16":
        model.lower_precision(torch.bfloat16)
    convention = card["velocity"]
    settings = {"name": "sit", "weights_sha256": card["sha256"], "licence": card["licence"],
                "velocity": convention, "guidance_scale": args.guidance_scale,
                "guidance_interval": list(args.guidance_interval), "steps": args.steps,
                "sampler": args.sampler, "dtype": dtype,
                "guided_channels": args.guided_channels or (
                    "3" if convention == "sit" else "all")}
    settings |= {"generator_classes": classes} if classes else {}
    settings |= dit.compile_as_asked(args, model.to(device), device)
    settings |= dit.place(vae, device)
    return SiTGenerator(model, settings, device, vae)


def read_file(weights: str, name: str) -> dict[str, Tensor]:
    """The (averaged) state dict of a checkpoint file.

    Raises:
        UserError: no file of weights, or it would run code.  DamagedError: truncated.
    """
    path = files.must_exist(Path(weights), "--weights", f"{name}'s checkpoint")
    dit_weights.refuse_pickle(path)
    if path.is_dir() or path.suffix not in dit_weights.FILE_KINDS:
        raise UserError(f"{name}'s weights are one file", given=path,
                        hint="--weights FILE" + ", ".join(dit_weights.FILE_KINDS))
    return dit_weights.unwrap(dit_weights.read_tensors(path), path)


def load(weights: str, convention: str | None = None) -> tuple[dit.DiT, dict]:
    """Network in eval mode, float32, on the CPU, and card: sha256, licence, velocity.

    Raises:
        UserError: nothing there, no SiT, or which way round it runs is not known.
        DamagedError: truncated.
    """
    whole = read_file(weights, "SiT")
    state = _renumbered({k: v for k, v in whole.items() if not k.startswith("projectors.")})
    config = dit_weights.sizes(state, Path(weights))
    convention = convention or ("repa" if len(state) < len(whole) else
                                "sit" if config["learn_sigma"] else None)
    if convention is None:
        raise UserError("the file does not show which way round its velocity runs", file=weights,
                        hint="--velocity repa (time 1 is noise) or sit (time 0 is noise)")
    dit.set_position_table(state, config, weights)
    try:
        model = dit.assemble(config, state, weights)
    except ValueError as error:
        raise dit_weights.not_a_dit(weights, str(error)) from error
    published = {k: v for k, v in dit_weights.PUBLISHED.items() if k != "learn_sigma"}
    licence = LICENCES[convention] if published.items() <= config.items() else "unknown"
    return model, {"sha256": files.sha256_file(Path(weights)), "licence": licence,
                   "velocity": convention}


def _renumbered(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """REPA's first checkpoints count the blocks past its encoder anew, as decoder_blocks."""
    first = len({k.split(".")[1] for k in state if k.startswith("blocks.")})
    renamed = {}
    for key, value in state.items():
        if key.startswith("decoder_blocks."):
            _, number, rest = key.split(".", 2)
            key = f"blocks.{int(number) + first}.{rest}" if number.isdigit() else key
        renamed[key] = value
    return renamed
