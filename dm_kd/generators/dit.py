"""The class-conditional diffusion transformer (DiT): the paper's generator.

Peebles & Xie 2023, "Scalable Diffusion Models with Transformers" (arXiv 2212.09748), with the key
names of the original checkpoints.

    python -m dm_kd.synthesize --task imagenet --weights facebook/DiT-XL-2-256 \\
        --out syn_dataset/NAME
"""

import argparse
import functools
import math
import sys
from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dm_kd import models
from dm_kd.generators import diffusion, guidance, latent, weights
from dm_kd.rivals import terms
from dm_kd.run import UserError, multiplies_bf16, nonnegative_float
from dm_kd.tasks import Task

# --- network --------------------------------------------------------------------------------------

def modulate(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    return x * (1 + scale[:, None]) + shift[:, None]


class Linear(nn.Linear):
    """nn.Linear. Sampling in float32 on a CPU it is a convolution of one pixel, which oneDNN
    computes at 1 to 2 times the speed of MKL's matrix product (2 on an AMD EPYC)."""

    def forward(self, x: Tensor) -> Tensor:
        if x.device.type != "cpu" or x.dtype != torch.float32 or torch.is_grad_enabled():
            return super().forward(x)
        pixels = x.unsqueeze(2).permute(0, 3, 1, 2)  # [B, inputs, N, 1], channels last
        out = F.conv2d(pixels, self.weight[:, :, None, None], self.bias)
        return out.permute(0, 2, 3, 1).flatten(1, 2)


class TimestepEmbedder(nn.Module):
    """Sinusoid of t, cosines first, through two layers."""

    def __init__(self, width: int):
        super().__init__()
        self.mlp = nn.Sequential(nn.Linear(256, width), nn.SiLU(), nn.Linear(width, width))

    def forward(self, t: Tensor) -> Tensor:
        rates = torch.exp(-math.log(10000) / 128 * torch.arange(128, device=t.device).float())
        angles = t.float()[:, None] * rates  # float32, the original's rounding
        sinusoid = torch.cat([angles.cos(), angles.sin()], -1)  # [B, 256]
        return self.mlp(sinusoid.to(self.mlp[0].weight.dtype))


class LabelEmbedder(nn.Module):
    """Class embedding; the last row (index num_classes) is the null class."""

    def __init__(self, num_classes: int, width: int):
        super().__init__()
        self.embedding_table = nn.Embedding(num_classes + 1, width)

    def forward(self, labels: Tensor) -> Tensor:
        return self.embedding_table(labels)


class PatchEmbedder(nn.Module):
    def __init__(self, patch_size: int, channels: int, width: int):
        super().__init__()
        self.proj = nn.Conv2d(channels, width, patch_size, patch_size)

    def forward(self, x: Tensor) -> Tensor:
        x = self.proj(x.to(self.proj.weight.dtype)).flatten(2).transpose(1, 2)  # [B, N, width]
        return x.contiguous()  # else every block reads and writes it transposed


class Attention(nn.Module):
    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads = heads
        self.qkv = Linear(width, 3 * width)
        self.proj = Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        b, n, c = x.shape
        q, k, v = self.qkv(x).view(b, n, 3, self.heads, c // self.heads).permute(2, 0, 3, 1, 4)
        out = F.scaled_dot_product_attention(q, k, v)  # [B, heads, N, c / heads]
        return self.proj(out.transpose(1, 2).reshape(b, n, c))


class Mlp(nn.Module):
    def __init__(self, width: int):
        super().__init__()
        self.fc1 = Linear(width, 4 * width)
        self.fc2 = Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(x), approximate="tanh"))


class Block(nn.Module):
    """adaLN-Zero block: shift, scale and gate of both branches come from the condition."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.norm1 = nn.LayerNorm(width, eps=1e-6, elementwise_affine=False)
        self.attn = Attention(width, heads)
        self.norm2 = nn.LayerNorm(width, eps=1e-6, elementwise_affine=False)
        self.mlp = Mlp(width)
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(width, 6 * width))

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        shift1, scale1, gate1, shift2, scale2, gate2 = self.adaLN_modulation(condition).chunk(6, 1)
        x = x + gate1[:, None] * self.attn(modulate(self.norm1(x), shift1, scale1))
        return x + gate2[:, None] * self.mlp(modulate(self.norm2(x), shift2, scale2))


class FinalLayer(nn.Module):
    def __init__(self, width: int, patch_size: int, out_channels: int):
        super().__init__()
        self.norm_final = nn.LayerNorm(width, eps=1e-6, elementwise_affine=False)
        self.linear = Linear(width, patch_size ** 2 * out_channels)
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(width, 2 * width))

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        dtype = self.linear.weight.dtype  # stays float32 when the blocks are bfloat16
        shift, scale = self.adaLN_modulation(condition.to(dtype)).chunk(2, 1)
        return self.linear(modulate(self.norm_final(x.to(dtype)), shift, scale))


class DiT(nn.Module):
    """Predicts the noise in x_t and, with learn_sigma, in the second half of its output channels,
    where the variance is in its range. DiT-XL/2 has width 1152, depth 28, heads 16. num_classes:
    without the null class."""

    def __init__(self, input_size: int, patch_size: int, channels: int, width: int, depth: int,
                 heads: int, num_classes: int, learn_sigma: bool = True):
        super().__init__()
        self.config = {"input_size": input_size, "patch_size": patch_size, "channels": channels,
                       "width": width, "depth": depth, "heads": heads, "num_classes": num_classes,
                       "learn_sigma": learn_sigma}
        self.channels, self.patch_size, self.num_classes = channels, patch_size, num_classes
        self.out_channels = channels * (2 if learn_sigma else 1)
        self.x_embedder = PatchEmbedder(patch_size, channels, width)
        self.t_embedder = TimestepEmbedder(width)
        self.y_embedder = LabelEmbedder(num_classes, width)
        self.pos_embed = nn.Parameter(position_embedding(input_size // patch_size, width)[None],
                                      requires_grad=False)
        self.blocks = nn.ModuleList([Block(width, heads) for _ in range(depth)])
        self.final_layer = FinalLayer(width, patch_size, self.out_channels)
        self._initialize()

    def _initialize(self) -> None:
        """Xavier linears, N(0, 0.02) embeddings, zero modulation and output (adaLN-Zero)."""
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)
        nn.init.xavier_uniform_(self.x_embedder.proj.weight.flatten(1))
        nn.init.zeros_(self.x_embedder.proj.bias)
        nn.init.normal_(self.y_embedder.embedding_table.weight, std=0.02)
        nn.init.normal_(self.t_embedder.mlp[0].weight, std=0.02)
        nn.init.normal_(self.t_embedder.mlp[2].weight, std=0.02)
        for block in [*self.blocks, self.final_layer]:
            nn.init.zeros_(block.adaLN_modulation[1].weight)
        nn.init.zeros_(self.final_layer.linear.weight)

    def forward(self, x: Tensor, t: Tensor, labels: Tensor) -> Tensor:
        """x [B, C, H, W]; t [B], 0 .. 999; labels [B], num_classes = null -> [B, C or 2C, H, W]."""
        x = self.x_embedder(x)
        x = x + self.pos_embed.to(x.dtype)  # [B, N, width]
        condition = self.t_embedder(t) + self.y_embedder(labels)  # [B, width]
        for block in self.blocks:
            x = block(x, condition)
        return unpatchify(self.final_layer(x, condition), self.patch_size)


def unpatchify(x: Tensor, patch_size: int) -> Tensor:
    """Tokens [B, N, p * p * C] -> images [B, C, H, H]."""
    b, p, side = len(x), patch_size, math.isqrt(x.shape[1])
    x = x.view(b, side, side, p, p, -1)
    return x.permute(0, 5, 1, 3, 2, 4).reshape(b, -1, side * p, side * p)


def position_embedding(side: int, width: int) -> Tensor:
    """Fixed 2-D sine-cosine table [side * side, width]: half for the column, half for the row."""
    rates = 1 / 10000 ** (np.arange(width // 4, dtype=np.float64) / (width / 4))
    rows, columns = np.divmod(np.arange(side * side), side)
    halves = []
    for position in (columns, rows):
        angles = position[:, None] * rates
        halves += [np.sin(angles), np.cos(angles)]
    return torch.tensor(np.concatenate(halves, 1), dtype=torch.float32)


# --- sampling -------------------------------------------------------------------------------------

class DiTGenerator(latent.LatentGenerator):
    def __init__(self, model: DiT, settings: dict, device: torch.device,
                 vae: latent.Vae | None = None, teacher: guidance.TeacherGuidance | None = None):
        super().__init__(model, settings, device, vae)
        self.teacher, self.diffusion = teacher, diffusion.Diffusion(settings["steps"], device)
        self.labels_known &= "latent_cutmix" not in settings  # mixed images have two classes
        self.mixes_classes = teacher is not None  # it looks at the statistics of a batch

    def denoise(self, labels: Tensor, seeds: list[int], draw: Callable[[], Tensor]) -> Tensor:
        settings = self.settings
        predict = functools.partial(
            diffusion.guided, self.network, labels=latent.as_generator_classes(labels, self),
            null=self.model.num_classes, scale=settings["guidance_scale"],
            guided_channels=self.guided_channels())
        noise = draw if settings["sampler"] == "ddpm" else None
        steer = guidance.steering(self, predict, labels.to(self.device), seeds)
        clip = self.vae is None  # pixels only
        return diffusion.sample(predict, self.diffusion, draw(), noise, clip, steer)


# --- flags and files ------------------------------------------------------------------------------

def add_arguments(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("dit")
    latent.add_arguments(group, "FOLDER|FILE.pt|HUB_ID",
                         "a folder of train_generator or of diffusers, an original DiT checkpoint, "
                         "or a hub id such as facebook/DiT-XL-2-256", 100)
    add = group.add_argument
    add("--guidance-scale", type=nonnegative_float, default=2.0, metavar="S",
        help="classifier-free guidance; 1 = one conditional forward, 0 = unconditional "
             "(default: %(default)s)")
    add("--sampler", choices=("ddpm", "ddim"), default="ddpm",
        help="ancestral DDPM or DDIM (default: %(default)s)")
    add("--guided-channels", choices=("3", "all"), default="3",
        help="channels that guidance acts on; the original DiT guides 3 of 4 latent ones "
             "(default: %(default)s)")
    guidance.add_arguments(group)


def build(args: argparse.Namespace, task: Task, device: torch.device) -> DiTGenerator:
    if not 2 <= args.steps <= diffusion.TRAIN_STEPS:
        raise UserError(f"--steps {args.steps} must be 2 to {diffusion.TRAIN_STEPS}")
    if bool(args.teacher_guidance) != bool(args.teacher) or args.student and not args.teacher:
        raise UserError("--teacher-guidance W and --teacher SPEC need each other; --student needs "
                        "both")
    model, card = load(args.weights)
    settings, vae = latent.prepare(args, task, model, card, device)
    settings |= {**{key: card[key] for key in ("trained_on", "epochs") if key in card},
                 "guidance_scale": args.guidance_scale, "sampler": args.sampler,
                 "guided_channels": args.guided_channels}
    if args.latent_cutmix:
        settings["latent_cutmix"] = True
    teacher, more = load_guide(args, task, device) if args.teacher else (None, {})
    settings |= more
    return DiTGenerator(model, settings, device, vae, teacher)


def load_guide(args: argparse.Namespace, task: Task, device: torch.device
               ) -> tuple[guidance.TeacherGuidance, dict]:
    """The guidance of the flags, and the settings that say so."""
    networks, bf16, settings = [], multiplies_bf16(device), {}
    for role, spec in (("teacher", args.teacher), ("student", args.student)):
        if spec:
            network, card = models.load_frozen(spec, task)
            print(card["assumed"], file=sys.stderr)
            networks.append(network.to(device, memory_format=torch.channels_last))
            settings |= {role: card["name"], f"{role}_sha256": card["sha256"]}
    terms.batch_norms(networks[0])
    settings |= {"teacher_guidance": args.teacher_guidance,
                 "teacher_terms": guidance.WEIGHTS | (guidance.ADVERSARY if args.student else {}),
                 "teacher_dtype": "bf16" if bf16 else "fp32"}
    return guidance.TeacherGuidance(networks[0], task, args.teacher_guidance, device,
                                    *networks[1:], bf16=bf16), settings


def load(spec: str) -> tuple[DiT, dict]:
    """Network in eval mode, float32, on the CPU, and its card; see `weights.read`."""
    config, state, card = weights.read(str(spec))
    table = position_embedding(config["input_size"] // config["patch_size"], config["width"])
    state = {"pos_embed": table[None], **state}  # diffusers stores none
    return weights.fill(lambda: DiT(**config), state, spec), card
