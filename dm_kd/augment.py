"""Augmentation as a pure function of (seed, epoch, image id): the same view after any restart, on
any number of processes. Mixing is keyed by (seed, epoch, step)."""

import numpy as np
import torch
from torch import Tensor


def uniform(seed: int, epoch: int, ids: Tensor, draws: int) -> Tensor:
    """Independent uniform numbers in [0, 1), float64 [len(ids), draws], from a counter-based hash
    (the splitmix64 finaliser; Steele, Lea & Flood 2014). ids: int64 [B]."""
    key = _mix(_mix(torch.tensor(seed) + 0x5851F42D4C957F2D) + epoch)
    state = _mix(_mix(ids.cpu() + key)[:, None] + torch.arange(1, draws + 1))
    return ((state >> 11) & ((1 << 53) - 1)).double() / (1 << 53)


def _mix(z: Tensor) -> Tensor:
    """splitmix64's finaliser on int64 (whose products wrap, as they should)."""
    z = z + (0x9E3779B97F4A7C15 - (1 << 64))
    z = (z ^ ((z >> 30) & ((1 << 34) - 1))) * (0xBF58476D1CE4E5B9 - (1 << 64))
    z = (z ^ ((z >> 27) & ((1 << 37) - 1))) * (0x94D049BB133111EB - (1 << 64))
    return z ^ ((z >> 31) & ((1 << 33) - 1))


def crop_offsets(seed: int, epoch: int, ids: Tensor, pad: int) -> Tensor:
    """Top-left corners (row, column) in the padded image, 0 .. 2 pad, int64 [B, 2]."""
    return (uniform(seed, epoch, ids, 2) * (2 * pad + 1)).long()


def flips(seed: int, epoch: int, ids: Tensor) -> Tensor:
    """Which images are mirrored: bool [B], half of them on average."""
    return uniform(seed, epoch, ids, 3)[:, 2] < 0.5


def pad_crop_flip(images: Tensor, offsets: Tensor, mirrored: Tensor, pad: int) -> Tensor:
    """Pad with zeros, cut [H, W] out at `offsets`, mirror. uint8 [B, C, H, W] -> the same, in
    channels_last memory."""
    b, _, h, w = images.shape
    device = images.device
    rows = torch.arange(h, device=device) + offsets[:, :1].to(device)  # [B, H]
    columns = torch.arange(w, device=device) + offsets[:, 1:].to(device)
    columns = torch.where(mirrored.to(device)[:, None], columns.flip(1), columns)
    padded = torch.nn.functional.pad(images, (pad,) * 4).permute(0, 2, 3, 1)  # [B, H, W, C]
    picked = padded[torch.arange(b, device=device)[:, None, None], rows[:, :, None],
                    columns[:, None, :]]
    return picked.permute(0, 3, 1, 2)


def standardize(images: Tensor, mean: tuple[float, ...], std: tuple[float, ...]) -> Tensor:
    """uint8 [B, C, H, W] -> float32, (image / 255 - mean) / std per channel, channels_last."""
    scale = torch.tensor([1 / (255 * s) for s in std], device=images.device).view(1, -1, 1, 1)
    shift = torch.tensor([-m / s for m, s in zip(mean, std, strict=True)],
                         device=images.device).view(1, -1, 1, 1)
    images = images.contiguous(memory_format=torch.channels_last)
    return images.float().mul_(scale).add_(shift)


def mix(x: Tensor, seed: int, epoch: int, step: int, mixup: float, cutmix: float,
        share: float) -> tuple[Tensor, float, Tensor | None]:
    """Mixup (Zhang et al. 2018) or cutmix (Yun et al. 2019) of a batch with its own permutation,
    one lambda ~ Beta(a, a) per batch; with both given, each takes half of the batches.

    Args:
        x: float [B, C, H, W], given to teacher and student alike.
        mixup, cutmix: a; 0 = off.
        share: fraction of the batches that are mixed.

    Returns:
        The mixed batch, each image's own share in it (1 = not mixed), and its partner's row [B]
        (None = not mixed).
    """
    if not (mixup or cutmix):
        return x, 1.0, None
    random = np.random.Generator(np.random.PCG64([seed, epoch, step]))
    coin, which = random.random(2)
    partner = torch.from_numpy(random.permutation(len(x))).to(x.device)
    if coin >= share:
        return x, 1.0, None
    if mixup and (not cutmix or which < 0.5):
        lam = float(random.beta(mixup, mixup))
        return lam * x + (1 - lam) * x[partner], lam, partner
    lam = float(random.beta(cutmix, cutmix))
    h, w = x.shape[2:]
    side = np.sqrt(1 - lam)
    row, column = random.integers(h), random.integers(w)
    top, bottom = (int(np.clip(row + d * h * side / 2, 0, h)) for d in (-1, 1))
    left, right = (int(np.clip(column + d * w * side / 2, 0, w)) for d in (-1, 1))
    x = x.clone()
    x[:, :, top:bottom, left:right] = x[partner][:, :, top:bottom, left:right]
    return x, 1 - (bottom - top) * (right - left) / (h * w), partner


def mix_labels(labels: Tensor, num_classes: int, lam: float, partner: Tensor) -> Tensor:
    """Class probabilities float32 [B, num_classes] of a mixed batch, for cross-entropy."""
    own = torch.nn.functional.one_hot(labels, num_classes).float()
    return lam * own + (1 - lam) * own[partner]
