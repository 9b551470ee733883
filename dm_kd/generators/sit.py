"""SiT and REPA's SiT: DiT's network trained to predict a velocity, and its SDE sampler.

Ma et al. 2024, "SiT" (arXiv 2401.08740), linear path; Yu et al. 2024, "REPA" (arXiv 2410.06940).
Here, as in REPA, x_t = (1 - t) x_0 + t eps: t = 0 is the image, t = 1 the noise, and the velocity
is v = dx_t/dt = eps - x_0 in expectation. SiT's own networks are given 1 - t and predict -v. Both
are given the time itself, 0 to 1, not a step number.

The shapes tell which of the two a file is: SiT has twice as many output channels as input ones,
REPA's has as many.
"""

import argparse
import itertools
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from dm_kd import run
from dm_kd.generators import diffusion, dit, latent, weights
from dm_kd.run import nonnegative_float
from dm_kd.tasks import Task

LAST_STEP = 0.04  # time of the SDE's last step, taken without noise (both papers)
GUIDED_CHANNELS = {"sit": "3", "repa": "all"}  # as their authors
LICENCES = {"sit": "MIT (willisma/SiT)", "repa": "MIT (sihyun-yu/REPA)"}


def sde_times(steps: int) -> list[float]:
    """steps - 1 even steps from 1 to LAST_STEP, and one from there to 0."""
    return [1 - (1 - LAST_STEP) * i / max(steps - 1, 1) for i in range(steps)] + [0.0]


def sample_sde(velocity: Callable, x: Tensor, times: list[float], draw: Callable[[], Tensor]
               ) -> Tensor:
    """Euler-Maruyama on the reverse SDE dx = (v - w/2 score) dt + sqrt(w) dW with w = 2 t (SiT eq.
    6, REPA's w). The last step has no noise (what both public programs call "Mean")."""
    for now, after in itertools.pairwise(times):
        v, step = velocity(x, now), after - now
        eps = x + (1 - now) * v  # E[eps | x]; the score is -eps / t (SiT eq. 9)
        x = x + step * (v + eps)
        if after > 0:
            x = x + (2 * now * -step) ** 0.5 * draw()
    return x


def predicted_velocity(model: Callable, convention: str, labels: Tensor, null: int, scale: float,
                       guided_channels: int) -> Callable:
    """(x, t) -> v = E[eps - x_0 | x_t] with guidance v_u + s (v_c - v_u). convention: "repa": the
    network is given t and predicts v; "sit": 1 - t and -v."""
    sign = 1 if convention == "repa" else -1

    def velocity(x: Tensor, t: float) -> Tensor:
        time = torch.full((len(x),), t if convention == "repa" else 1 - t, device=x.device)
        out = diffusion.guided(model, x, time, labels, null, scale, guided_channels)
        return sign * out[:, :x.shape[1]].to(x.dtype)

    return velocity


class SiTGenerator(latent.LatentGenerator):
    def denoise(self, labels: Tensor, seeds: list[int], draw: Callable[[], Tensor]) -> Tensor:
        settings = self.settings
        velocity = predicted_velocity(
            self.network, settings["velocity"], self.network_labels(labels),
            self.model.num_classes, settings["guidance_scale"], self.guided_channels())
        return sample_sde(velocity, draw(), sde_times(settings["steps"]), draw)


# --- flags and files ------------------------------------------------------------------------------

def add_arguments(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("sit")
    latent.add_arguments(group, "FILE.pt", "a checkpoint of SiT or of REPA's SiT", 100)
    group.add_argument("--guidance-scale", type=nonnegative_float, default=2.0, metavar="S",
                       help="classifier-free guidance of the velocity; 1 = one conditional "
                            "forward, 0 = unconditional (default: %(default)s)")


def build(args: argparse.Namespace, task: Task, device: torch.device) -> SiTGenerator:
    model, card = load(args.weights)
    settings, vae = latent.prepare(args, task, model, card, device)
    settings |= {"velocity": card["velocity"], "guidance_scale": args.guidance_scale,
                 "guided_channels": GUIDED_CHANNELS[card["velocity"]]}
    generator = SiTGenerator(model, settings, device, vae)
    generator.labels_known = args.guidance_scale > 0
    return generator


def load(path: str) -> tuple[dit.DiT, dict]:
    """Network in eval mode, float32, on the CPU, and card: sha256, licence, velocity. REPA's
    projectors are for training only."""
    state = {key: value for key, value in weights.read_state(Path(path)).items()
             if not key.startswith("projectors.")}
    config = weights.sizes(state, path)
    velocity = "sit" if config["learn_sigma"] else "repa"
    return dit.assemble(config, state, path), {
        "sha256": run.sha256_file(Path(path)), "velocity": velocity,
        "licence": weights.licence(config, LICENCES[velocity])}
