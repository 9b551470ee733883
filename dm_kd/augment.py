"""Augmentation as a pure function of (seed, epoch, image id): the same view after any restart, on
any number of processes. Mixing is keyed by (seed, epoch, step).

A new augmentation, such as ColorJitter, goes into `View.draw` and `View.cut`.
"""

import argparse
import functools
import math
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.transforms.v2 import functional


@dataclass(frozen=True)
class View:
    """How uint8 images become a network's input: the task's augmentation and statistics."""

    mean: tuple[float, ...]
    std: tuple[float, ...]
    size: int = 0  # of centre crops, which larger tasks are evaluated on; 0 = images as they are
    crop: bool = False  # random-resized crops of `size` in training
    pad: int = 0
    flip: bool = False
    mixup: float = 0.0
    cutmix: float = 0.0
    mix_share: float = 1.0
    num_classes: int = 0  # mixed labels become probabilities over so many; 0 = labels are not used

    def draw(self, images: Tensor, ids: Tensor, seed: int, epoch: int, step: int
             ) -> dict[str, Tensor]:
        """The random numbers of a batch's view, on the CPU."""
        draws, (b, _, h, w) = {}, images.shape
        if self.size and self.crop:
            sizes = torch.tensor([h, w]).expand(b, 2)
            draws["boxes"], mirrored = boxes_and_flips(seed, epoch, ids, sizes)
            draws["mirrored"] = mirrored & self.flip
        elif not self.size and (self.pad or self.flip):
            draws["offsets"] = crop_offsets(seed, epoch, ids, self.pad)
            draws["mirrored"] = flips(seed, epoch, ids) & self.flip
        if self.mixup or self.cutmix:
            side = self.size or h, self.size or w
            draws |= draw_mixing(b, *side, seed, epoch, step, self.mixup, self.cutmix,
                                 self.mix_share)
        return draws

    def apply(self, images: Tensor, labels: Tensor, draws: dict[str, Tensor]
              ) -> tuple[Tensor, Tensor]:
        """uint8 [B, C, H, W] and int64 [B] -> augmented, standardised, mixed float32, and labels:
        as they were, or float32 [B, num_classes] where images are mixed. Without draws: what
        networks are evaluated on. No choice depends on the values of the draws, so torch.compile
        makes one graph of it. All on one device."""
        x = standardize(self.cut(images, draws), self.mean, self.std)
        if "partner" in draws:
            x = mix(x, draws)
            if self.num_classes:
                labels = mix_labels(labels, self.num_classes, draws)
        return x, labels

    def cut(self, images: Tensor, draws: dict[str, Tensor]) -> Tensor:
        """The training crops that the draws say, still uint8; without draws centre crops."""
        if "boxes" in draws:
            return resized_crops(images, draws["boxes"], draws["mirrored"], self.size)
        if "offsets" in draws:
            return pad_crop_flip(images, draws["offsets"], draws["mirrored"], self.pad)
        return centre_crops(images, self.size) if self.size else images


def make_view(task, args: argparse.Namespace, uses_labels: bool) -> View:
    """The training view of --augment, --mixup, --cutmix and --mix-share."""
    on = args.augment == "default"
    return View(task.mean, task.std, task.resolution if task.large else 0, task.large and on,
                task.pad if on else 0, task.flip and on, args.mixup, args.cutmix, args.mix_share,
                task.num_classes if uses_labels else 0)


def plain_view(task) -> View:
    """The view that networks are evaluated on."""
    return View(task.mean, task.std, task.resolution if task.large else 0)


# --- keyed draws ----------------------------------------------------------------------------------

def send(values: Tensor, device: torch.device | str) -> Tensor:
    """Copy to the device without waiting for it."""
    if torch.device(device).type == "cuda" and values.device.type == "cpu":
        values = values.pin_memory()
    return values.to(device, non_blocking=True)


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
    """Which images are mirrored, each with probability 1/2: bool [B]."""
    return uniform(seed, epoch, ids, 3)[:, 2] < 0.5


def pad_crop_flip(images: Tensor, offsets: Tensor, mirrored: Tensor, pad: int) -> Tensor:
    """Pad with zeros, crop [H, W] at `offsets`, mirror. [B, C, H, W], any type -> the same, in
    channels_last memory."""
    b, _, h, w = images.shape
    device = images.device
    offsets, mirrored = send(offsets, device), send(mirrored, device)
    rows = torch.arange(h, device=device) + offsets[:, :1]  # [B, H]
    columns = torch.arange(w, device=device) + offsets[:, 1:]
    columns = torch.where(mirrored[:, None], columns.flip(1), columns)
    padded = F.pad(images, (pad,) * 4).permute(0, 2, 3, 1)  # [B, H, W, C]
    picked = padded[torch.arange(b, device=device)[:, None, None], rows[:, :, None],
                    columns[:, None, :]]
    return picked.permute(0, 3, 1, 2)


def boxes_and_flips(seed: int, epoch: int, ids: Tensor, sizes: Tensor) -> tuple[Tensor, Tensor]:
    """Boxes int64 [B, 4] (top, left, height, width) as torchvision's RandomResizedCrop draws them
    (Szegedy et al. 2015): 8 to 100 % of the area, sides 3/4 to 4/3, ten tries, then the largest
    centred box of that shape; and `flips` bool [B]. sizes: int64 [B, 2], height and width."""
    drawn = uniform(seed, epoch, ids, 25)
    area, ratio, place = drawn[:, 3:13], drawn[:, 13:23], drawn[:, 23:]  # after those of `flips`
    height, width = sizes.double().unbind(1)
    area = (height * width)[:, None] * (0.08 + 0.92 * area)
    low, high = math.log(3 / 4), math.log(4 / 3)
    ratio = torch.exp(low + (high - low) * ratio)
    w, h = (area * ratio).sqrt().round(), (area / ratio).sqrt().round()
    fits = (w > 0) & (w <= width[:, None]) & (h > 0) & (h <= height[:, None])
    first = fits.int().argmax(1, keepdim=True)
    some = fits.any(1)
    w = torch.where(some, w.gather(1, first)[:, 0], torch.minimum(width, (height * 4 / 3).round()))
    h = torch.where(some, h.gather(1, first)[:, 0], torch.minimum(height, (width * 4 / 3).round()))
    free = torch.stack([height - h, width - w], 1)
    corner = torch.where(some[:, None], (place * (free + 1)).floor(), (free / 2).floor())
    return torch.cat([corner, torch.stack([h, w], 1)], 1).long(), drawn[:, 2] < 0.5


def resized_crops(images: Tensor, boxes: Tensor, mirrored: Tensor, size: int) -> Tensor:
    """The boxes, resized to size x size (bilinear with antialiasing, as Pillow's) and mirrored:
    uint8 [B, C, H, W] -> uint8 [B, C, size, size]."""
    if images.device.type != "cpu":
        return _crops_by_products(images, send(boxes, images.device),
                                  send(mirrored, images.device), size)
    out = torch.empty(len(images), images.shape[1], size, size, dtype=torch.uint8,
                      memory_format=torch.channels_last)
    for image, (top, left, h, w), mirror, place in zip(images, boxes.tolist(), mirrored.tolist(),
                                                       out, strict=True):
        cut = image[None, :, top:top + h, left:left + w].contiguous(
            memory_format=torch.channels_last)
        cut = F.interpolate(cut, (size, size), mode="bilinear", antialias=True)[0]
        place.copy_(cut.flip(2) if mirror else cut)
    return out


def _crops_by_products(images: Tensor, boxes: Tensor, mirrored: Tensor, size: int) -> Tensor:
    """`resized_crops` for GPUs, as two batched products: rows [B, size, H] @ image [B, C, H, W] @
    columns [B, W, size]. The weights are Pillow's antialiased bilinear filter, a triangle as wide
    as the scale when it shrinks; float16 holds grey levels exactly."""
    weights, steps = [], torch.arange(size, device=images.device)[:, None]
    for axis in (0, 1):
        start, length = boxes[:, axis, None, None], boxes[:, axis + 2, None, None]
        place = torch.arange(images.shape[axis + 2], device=images.device)
        scale = length.float() / size
        distance = (place + 0.5 - start - scale * (steps + 0.5)).abs()  # [B, size, H or W]
        weight = (1 - distance / scale.clamp_min(1)).clamp_min(0)
        weight = weight * ((place >= start) & (place < start + length))
        weights.append(weight / weight.sum(2, keepdim=True))
    rows, columns = weights[0].half(), weights[1].half()
    columns = torch.where(mirrored[:, None, None], columns.flip(1), columns)
    x = torch.matmul(torch.matmul(rows[:, None], images.half()), columns.mT[:, None]).float()
    return x.add_(0.5).clamp_(0, 255).to(torch.uint8)


def usual_resize(size: int) -> tuple[int, str, bool]:
    """A task's `resize`, if it has none of its own: 256 for 224 (He et al. 2016)."""
    return round(size * 8 / 7), "bilinear", False


def centre_crops(images: Tensor, size: int, resize: tuple[int, str, bool] | None = None
                 ) -> Tensor:
    """Resize the shorter side to 8/7 of `size` (256 for 224), or as a task's `resize` says, and
    crop the centre: uint8 [B, C, H, W] -> uint8 [B, C, size, size]. Without `resize`, images of
    `size` x `size` are returned as they are."""
    if resize is None and images.shape[2:] == (size, size):
        return images
    short, mode, squeeze = resize or usual_resize(size)
    images = functional.resize(images, [short, short] if squeeze else [short],
                               functional.InterpolationMode(mode))
    return functional.center_crop(images, [size])


def resized_view(x: Tensor, least: float, flip: bool, draw: torch.Generator) -> Tensor:
    """Random-resized crops with gradients, for the rivals: `least` to 100 % of the area, sides 3/4
    to 4/3, bilinear. float [B, C, H, W] -> the same. As in kornia's RandomResizedCrop, which the
    public programs use, a box is drawn up to ten times until it fits, and corners are aligned."""
    tries = torch.rand(10, 2, len(x), generator=draw)
    row, column, coin = torch.rand(3, len(x), generator=draw)
    area = least + (1 - least) * tries[:, 0]
    ratio = torch.exp(math.log(4 / 3) * (2 * tries[:, 1] - 1))
    w, h = (area * ratio).sqrt(), (area / ratio).sqrt()  # of an image of 1 x 1
    first = ((w <= 1) & (h <= 1)).int().argmax(0, keepdim=True)
    w, h = (side.gather(0, first)[0].clamp_max(1) for side in (w, h))
    theta = torch.zeros(len(x), 2, 3)
    theta[:, 0, 0] = torch.where(coin < 0.5, -w, w) if flip else w
    theta[:, 1, 1] = h
    theta[:, 0, 2], theta[:, 1, 2] = (1 - w) * (2 * column - 1), (1 - h) * (2 * row - 1)
    grid = F.affine_grid(send(theta, x.device), list(x.shape), align_corners=True)
    return F.grid_sample(x, grid, mode="bilinear", padding_mode="border", align_corners=True)


# --- network input --------------------------------------------------------------------------------

def standardize(images: Tensor, mean: tuple[float, ...], std: tuple[float, ...]) -> Tensor:
    """uint8 [B, C, H, W] -> float32, (image / 255 - mean) / std per channel, channels_last."""
    if torch.compiler.is_compiling():  # constants in the kernel
        return torch.stack([images[:, i].float() * (1 / (255 * s)) - m / s for i, (m, s) in
                            enumerate(zip(mean, std, strict=True))], 1).contiguous(
                                memory_format=torch.channels_last)
    x = images.contiguous(memory_format=torch.channels_last).float()
    b, c, h, w = x.shape
    scale, shift = _scale_and_shift(tuple(mean), tuple(std), w, x.device)
    rows = x.permute(0, 2, 3, 1).view(b, h, w * c)  # by rows of pixels: on CPUs 2.5 times faster
    rows.mul_(scale).add_(shift)  # than by [C, 1, 1], whose innermost loop has C numbers
    return x


@functools.lru_cache(32)
@torch.inference_mode(False)
def _scale_and_shift(mean: tuple[float, ...], std: tuple[float, ...], width: int,
                     device: torch.device) -> tuple[Tensor, Tensor]:
    """1 / (255 std) and -mean / std of a row of pixels, [width * C], once on each device."""
    scale = torch.tensor([1 / (255 * s) for s in std], device=device)
    shift = torch.tensor([-m / s for m, s in zip(mean, std, strict=True)], device=device)
    return scale.repeat(width), shift.repeat(width)


def draw_mixing(batch: int, height: int, width: int, seed: int, epoch: int, step: int,
                mixup: float, cutmix: float, share: float) -> dict[str, Tensor]:
    """Mixup (Zhang et al. 2018) or cutmix (Yun et al. 2019) of a `share` of the batches, each with
    its own permutation and one lambda ~ Beta(a, a); a is `mixup` or `cutmix`, 0 = off. With both
    given, each takes half.

    Returns "partner" int64 [B], "pixels": the shares of the image itself and of its partner at each
    pixel, float32 [2, H, W], "lam": the image's own share of all of them, float64 []."""
    random = np.random.Generator(np.random.PCG64([seed, epoch, step]))
    coin, which = random.random(2)
    partner, pixels, lam = random.permutation(batch), np.ones((height, width)), 1.0
    if coin < share and mixup and (not cutmix or which < 0.5):
        lam = random.beta(mixup, mixup)
        pixels[:] = lam
    elif coin < share:
        side = np.sqrt(1 - random.beta(cutmix, cutmix))
        row, column = random.integers(height), random.integers(width)
        top, bottom = (int(np.clip(row + d * height * side / 2, 0, height)) for d in (-1, 1))
        left, right = (int(np.clip(column + d * width * side / 2, 0, width)) for d in (-1, 1))
        pixels[top:bottom, left:right] = 0
        lam = pixels.mean()
    return {"partner": torch.from_numpy(partner), "lam": torch.tensor(lam, dtype=torch.float64),
            "pixels": torch.from_numpy(np.stack([pixels, 1 - pixels])).float()}


def mix(x: Tensor, draws: dict[str, Tensor]) -> Tensor:
    """Each image mixed with its partner's. x: float [B, C, H, W]; draws: see draw_mixing."""
    own, other = draws["pixels"].to(x.dtype)
    return own * x + other * x[draws["partner"]]


def mix_labels(labels: Tensor, num_classes: int, draws: dict[str, Tensor]) -> Tensor:
    """Class probabilities float32 [B, num_classes] of a mixed batch; an unknown label (-1) adds
    nothing, so such a row sums to less than 1."""
    own = (labels[:, None] == torch.arange(num_classes, device=labels.device)).float()
    return draws["lam"] * own + (1 - draws["lam"]) * own[draws["partner"]]
