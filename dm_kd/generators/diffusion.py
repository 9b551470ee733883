"""DiT's diffusion process, its loss and its sampler: ancestral DDPM (Ho et al. 2020, arXiv
2006.11239) on respaced steps with learned-range variance (Nichol & Dhariwal 2021, arXiv
2102.09672) or DDIM (Song et al. 2021, arXiv 2010.02502), with classifier-free guidance (Ho &
Salimans 2022, arXiv 2207.12598).
"""

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor, nn

from dm_kd.augment import send

TRAIN_STEPS = 1000  # diffusion steps in training; beta runs linearly from 1e-4 to 0.02


class Diffusion:
    """Coefficient tables of a process of `steps` steps spread evenly over the 1000 of training;
    from float64, as in the original. Index i = 0 is the least noisy step."""

    def __init__(self, steps: int = TRAIN_STEPS, device: torch.device | str = "cpu"):
        betas = np.linspace(1e-4, 0.02, TRAIN_STEPS, dtype=np.float64)
        strides = np.full(steps - 1, (TRAIN_STEPS - 1) / max(steps - 1, 1))  # added up as in DiT
        self.timesteps = np.rint(np.append(0, strides.cumsum())).astype(np.int64)
        kept = np.cumprod(1 - betas)[self.timesteps]  # "alpha bar" of the kept steps
        before = np.append(1.0, kept[:-1])
        betas = 1 - kept / before
        variance = betas * (1 - before) / (1 - kept)  # of the posterior, Ho et al. eq. 7
        clipped = np.append(variance[1:2], variance[1:])  # the first is 0, which has no log
        tables = {
            "signal": np.sqrt(kept), "noise": np.sqrt(1 - kept),
            "recip": np.sqrt(1 / kept), "recip_noise": np.sqrt(1 / kept - 1),
            "mean_x0": betas * np.sqrt(before) / (1 - kept),
            "mean_xt": (1 - before) * np.sqrt(1 - betas) / (1 - kept),
            "log_beta": np.log(betas), "log_variance": np.log(clipped),
        }
        self.steps = steps
        self.tables = {k: torch.from_numpy(v).float().to(device) for k, v in tables.items()}
        self.network_times = torch.from_numpy(self.timesteps).to(device)

    def at(self, name: str, i: Tensor | int) -> Tensor:
        """A coefficient for each of the steps i [B], shaped [B, 1, 1, 1]; or for one step."""
        return self.tables[name][i].view(-1, 1, 1, 1)

    def add_noise(self, x0: Tensor, i: Tensor, noise: Tensor) -> Tensor:
        """x_t of step i (Ho et al. eq. 4)."""
        return self.at("signal", i) * x0 + self.at("noise", i) * noise

    def predict_x0(self, x: Tensor, i: Tensor | int, eps: Tensor) -> Tensor:
        return self.at("recip", i) * x - self.at("recip_noise", i) * eps


def diffusion_loss(model: nn.Module, diffusion: Diffusion, x0: Tensor, labels: Tensor, i: Tensor,
                   noise: Tensor) -> Tensor:
    """Mean squared error of the predicted noise (Ho et al. eq. 14) per sample [B]. x0 [B, C, H, W]
    in [-1, 1], steps i [B], noise like x0."""
    x = diffusion.add_noise(x0, i, noise)
    out = model(x, diffusion.network_times[i], labels).float()
    return (out - noise).square().mean((1, 2, 3))


def guided(model: Callable, x: Tensor, t: Tensor, labels: Tensor, null: int, scale: float,
           guided_channels: int) -> Tensor:
    """Network output with classifier-free guidance eps_u + s (eps_c - eps_u) on the first
    `guided_channels` channels; the others, and the variance, are the conditional ones."""
    if scale == 1:
        return model(x, t, labels)
    nulls = torch.full_like(labels, null)
    if scale == 0:
        return model(x, t, nulls)
    out = model(torch.cat([x, x]), torch.cat([t, t]), torch.cat([labels, nulls]))
    conditional, unconditional = out.chunk(2)
    first = unconditional[:, :guided_channels] + scale * (
        conditional[:, :guided_channels] - unconditional[:, :guided_channels])
    return torch.cat([first, conditional[:, guided_channels:]], 1)


def sample(predict: Callable, diffusion: Diffusion, x: Tensor, draw: Callable[[], Tensor] | None,
           clip: bool = False, steer: Callable[[Tensor, int], Tensor] | None = None) -> Tensor:
    """From x = x_T down to x_0, in x's own precision. predict: (x, network time [B]) -> output [B,
    C or 2C, H, W]; draw: one step's noise, None for DDIM (eq. 12 with eta 0); clip: clamp the
    predicted x_0, for pixels only; steer: (x, i) -> x, before each step (`guidance.steering`)."""
    channels = x.shape[1]
    for i in reversed(range(diffusion.steps)):
        x = steer(x, i) if steer else x
        out = predict(x, diffusion.network_times[i].expand(len(x))).to(x.dtype)
        eps, raw = out[:, :channels], out[:, channels:]
        x0 = diffusion.predict_x0(x, i, eps)
        x0 = x0.clamp(-1, 1) if clip else x0
        if draw is None:
            if clip:  # the noise that belongs to the clamped image, else many steps diverge
                eps = (x - diffusion.at("signal", i) * x0) / diffusion.at("noise", i)
            x = diffusion.add_noise(x0, i - 1, eps) if i > 0 else x0
            continue
        x = diffusion.at("mean_x0", i) * x0 + diffusion.at("mean_xt", i) * x  # Ho et al. eq. 7
        if i > 0:
            # without a sigma half the posterior's (the original's default there is beta)
            log_variance = diffusion.at("log_variance", i)
            if raw.shape[1]:  # in [-1, 1]: Nichol & Dhariwal eq. 15
                share = (raw + 1) / 2
                log_variance = share * diffusion.at("log_beta", i) + (1 - share) * log_variance
            x = x + torch.exp(0.5 * log_variance) * draw()
    return x


def to_uint8(x: Tensor) -> Tensor:
    """[-1, 1] -> 0 .. 255, rounded to the nearest, as torchvision's save_image does it."""
    return ((x + 1) / 2 * 255 + 0.5).clamp(0, 255).to(torch.uint8)


def noise_source(seeds: list[int], shape: tuple[int, ...], device: torch.device
                 ) -> Callable[[], Tensor]:
    """draw() -> fresh unit noise [B, *shape]; each image's comes from its own seed alone."""
    streams = [torch.Generator().manual_seed(seed) for seed in seeds]

    def draw() -> Tensor:
        return send(torch.stack([torch.randn(shape, generator=stream) for stream in streams]),
                    device)

    return draw
