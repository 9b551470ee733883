"""SiT: DiT's network trained to predict a velocity, and its SDE sampler.

Ma et al. 2024, "SiT" (arXiv 2401.08740), linear path. Here x_t = (1 - t) x_0 + t eps: t = 0 is the
image, t = 1 the noise, and the velocity is v = dx_t/dt = eps - x_0 in expectation. The network is
given 1 - t, 0 to 1, not a step number, and predicts -v.
"""

import argparse
import itertools
from collections.abc import Callable

import torch
from torch import Tensor

from dm_kd.generators import diffusion, dit, latent
from dm_kd.run import nonnegative_float
from dm_kd.tasks import Task

LAST_STEP = 0.04  # time of the SDE's last step, taken without noise


def sample_sde(velocity: Callable, x: Tensor, steps: int, draw: Callable[[], Tensor]) -> Tensor:
    """Euler-Maruyama on the reverse SDE dx = (v - w/2 score) dt + sqrt(w) dW with w = 2 t (SiT eq.
    6): even steps from 1 to LAST_STEP, and one from there to 0 without noise (what the public
    program calls "Mean"). velocity: (x, t) -> v = E[eps - x_0 | x_t]."""
    times = [1 - (1 - LAST_STEP) * i / max(steps - 1, 1) for i in range(steps)] + [0.0]
    for now, after in itertools.pairwise(times):
        v, step = velocity(x, now), after - now
        eps = x + (1 - now) * v  # E[eps | x]; the score is -eps / t (SiT eq. 9)
        x = x + step * (v + eps)
        if after > 0:
            x = x + (2 * now * -step) ** 0.5 * draw()
    return x


class SiTGenerator(latent.LatentGenerator):
    def denoise(self, labels: Tensor, seeds: list[int], draw: Callable[[], Tensor]) -> Tensor:
        labels = latent.as_generator_classes(labels, self)

        def velocity(x: Tensor, t: float) -> Tensor:
            time = torch.full((len(x),), 1 - t, device=x.device)
            out = diffusion.guided(self.network, x, time, labels, self.model.num_classes,
                                   self.settings["guidance_scale"], self.guided_channels())
            return -out[:, :x.shape[1]].to(x.dtype)  # the other half is not used

        return sample_sde(velocity, draw(), self.settings["steps"], draw)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("sit")
    latent.add_arguments(group, "FILE.pt", "a checkpoint of SiT", 100)
    group.add_argument("--guidance-scale", type=nonnegative_float, default=2.0, metavar="S",
                       help="classifier-free guidance of the velocity; 1 = one conditional "
                            "forward, 0 = unconditional (default: %(default)s)")


def build(args: argparse.Namespace, task: Task, device: torch.device) -> SiTGenerator:
    model, card = dit.load(args.weights)
    settings, vae = latent.prepare(args, task, model, card, device)
    settings |= {"guidance_scale": args.guidance_scale, "guided_channels": "3"}
    return SiTGenerator(model, settings, device, vae)
