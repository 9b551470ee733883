"""Improved MeanFlow (iMF): ImageNet images in one or two network evaluations.

Geng et al. 2025, "Improved Mean Flows" (arXiv 2512.02012). On the linear path z_t = (1 - t) x + t e
the network gives the average velocity u between two times, so one step goes from t to r:
z_r = z_t - (t - r) u(z_t, t - r, ...). Guidance is an input of the network, not DM-KD's s: compare
the two at equal recall or teacher agreement.

Network and keys follow the official `torch` branch (github.com/Lyy-iiis/imeanflow, MIT). No
published weights have been run; that latents are sd-vae-ft-mse's, as DiT's, is an assumption.
"""

import argparse
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dm_kd.generators import dit, latent, weights
from dm_kd.run import positive_float
from dm_kd.tasks import Task

INTERVAL = (0.4, 0.65)  # the network's input for the times at which guidance acts; 0 is the image
HEAD_WIDTH, HEAD_DEPTH = 64, 8  # of all published sizes: channels per head, blocks of the u head
TOKENS = {"class": 8, "omega": 4, "t_min": 2, "t_max": 2, "time": 4}  # in their order


class Attention(nn.Module):
    def __init__(self, width: int):
        super().__init__()
        self.q_proj, self.k_proj, self.v_proj, self.out_proj = (
            nn.Linear(width, width, bias=False) for _ in range(4))
        self.q_norm, self.k_norm = (nn.RMSNorm(HEAD_WIDTH, eps=1e-6) for _ in range(2))

    def forward(self, x: Tensor, turns: tuple[Tensor, Tensor]) -> Tensor:
        q, k, v = (layer(x).unflatten(2, (-1, HEAD_WIDTH)).transpose(1, 2)  # [B, heads, N, 64]
                   for layer in (self.q_proj, self.k_proj, self.v_proj))
        q, k = rotate(self.q_norm(q), turns), rotate(self.k_norm(k), turns)
        out = F.scaled_dot_product_attention(q.to(v.dtype), k.to(v.dtype), v)
        return self.out_proj(out.transpose(1, 2).flatten(2))


def rotary_turns(tokens: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """cos and sin [N, 32] of position x rate (Su et al. 2021, arXiv 2104.09864)."""
    rates = 10000.0 ** (-torch.arange(0, HEAD_WIDTH, 2, device=device) / HEAD_WIDTH)
    angles = torch.arange(tokens, device=device)[:, None] * rates
    return angles.cos(), angles.sin()


def rotate(x: Tensor, turns: tuple[Tensor, Tensor]) -> Tensor:
    """Turn each pair of neighbouring channels [B, heads, N, 64] by its position's angle."""
    cos, sin = turns
    even, odd = x[..., ::2], x[..., 1::2]
    return torch.stack([even * cos - odd * sin, even * sin + odd * cos], -1).flatten(3)


class Mlp(nn.Module):
    """SwiGLU."""

    def __init__(self, width: int):
        super().__init__()
        hidden = int(width * 8 / 3)
        self.w1, self.w3 = (nn.Linear(width, hidden, bias=False) for _ in range(2))
        self.w2 = nn.Linear(hidden, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.w2(F.silu(self.w1(x)) * self.w3(x))


class Block(nn.Module):
    def __init__(self, width: int):
        super().__init__()
        self.norm1, self.norm2 = (nn.RMSNorm(width, eps=1e-6) for _ in range(2))
        self.attn, self.mlp = Attention(width), Mlp(width)
        self.attn_scale, self.mlp_scale = (nn.Parameter(torch.zeros(width)) for _ in range(2))

    def forward(self, x: Tensor, turns: tuple[Tensor, Tensor]) -> Tensor:
        x = x + self.attn(self.norm1(x), turns) * self.attn_scale
        return x + self.mlp(self.norm2(x)) * self.mlp_scale


class FinalLayer(nn.Module):
    def __init__(self, width: int, outputs: int):
        super().__init__()
        self.norm, self.linear = nn.RMSNorm(width, eps=1e-6), nn.Linear(width, outputs)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(self.norm(x.to(self.linear.weight.dtype)))


class IMF(nn.Module):
    """The network without the second head, for training only. XL/2 has width 1024, depth 48."""

    def __init__(self, patch_size: int, channels: int, width: int, depth: int, num_classes: int):
        super().__init__()
        self.config = {"input_size": 32, "width": width}  # the files hold no picture size
        self.channels, self.patch_size, self.num_classes = channels, patch_size, num_classes
        self.x_embedder = dit.PatchEmbedder(patch_size, channels, width)
        self.h_embedder, self.omega_embedder, self.cfg_t_start_embedder, self.cfg_t_end_embedder = (
            dit.TimestepEmbedder(width) for _ in range(4))
        self.y_embedder = dit.LabelEmbedder(num_classes, width)
        for name, count in TOKENS.items():
            setattr(self, f"{name}_tokens", nn.Parameter(torch.zeros(count, width)))
        self.shared_blocks = nn.ModuleList(Block(width) for _ in range(depth - HEAD_DEPTH))
        self.u_heads = nn.ModuleList(Block(width) for _ in range(HEAD_DEPTH))
        self.u_final_layer = FinalLayer(width, patch_size ** 2 * channels)

    @property
    def blocks(self) -> list[Block]:
        return [*self.shared_blocks, *self.u_heads]

    def forward(self, z: Tensor, span: Tensor, omega: Tensor, labels: Tensor) -> Tensor:
        """z [B, C, H, W]; span = t - r [B]; omega >= 1 [B]; labels [B] -> u like z."""
        ones = torch.ones_like(span)
        conditions = {"class": self.y_embedder(labels),
                      "omega": self.omega_embedder(1 - 1 / omega),
                      "t_min": self.cfg_t_start_embedder(INTERVAL[0] * ones),
                      "t_max": self.cfg_t_end_embedder(INTERVAL[1] * ones),
                      "time": self.h_embedder(span)}
        x = torch.cat([getattr(self, f"{name}_tokens") + conditions[name][:, None]
                       for name in TOKENS] + [self.x_embedder(z)], 1)  # [B, 20 + N, width]
        turns = rotary_turns(x.shape[1], x.device)
        for block in self.blocks:
            x = block(x, turns)
        x = self.u_final_layer(x[:, sum(TOKENS.values()):])
        return dit.unpatchify(x, self.patch_size)


def sample_mean_flow(average_velocity: Callable, z: Tensor, steps: int) -> Tensor:
    """From noise z at t = 1 to t = 0 in even steps (the paper's Alg. 2). average_velocity:
    (z, t, r) -> the mean of dz/dt between r and t."""
    for i in range(steps):
        t, r = 1 - i / steps, 1 - (i + 1) / steps
        z = z - (t - r) * average_velocity(z, t, r)
    return z


class IMFGenerator(latent.LatentGenerator):
    def denoise(self, labels: Tensor, seeds: list[int], draw: Callable) -> Tensor:
        labels = latent.as_generator_classes(labels, self)
        omega = torch.full((len(labels),), self.settings["network_guidance"], device=self.device)

        def average_velocity(z: Tensor, t: float, r: float) -> Tensor:
            return self.network(z, torch.full_like(omega, t - r), omega, labels).to(z.dtype)

        return sample_mean_flow(average_velocity, draw(), self.settings["steps"])


def add_arguments(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("imf")
    latent.add_arguments(group, "FILE.pth", "a checkpoint of the official PyTorch branch", 1)
    group.add_argument("--network-guidance", type=positive_float, default=8.0, metavar="OMEGA",
                       help="the network's guidance input, 1 (none) to 8; not DM-KD's s "
                            "(default: %(default)s; it and the interval are its authors' for B/2)")


def build(args: argparse.Namespace, task: Task, device: torch.device) -> IMFGenerator:
    model = load(args.weights)
    card = weights.card_of(Path(args.weights), weights.LICENCE)
    settings, vae = latent.prepare(args, task, model, card, device)
    settings["network_guidance"] = args.network_guidance
    return IMFGenerator(model, settings, device, vae)


def load(path: str) -> IMF:
    """Network in eval mode, float32, on the CPU, from the official keys: without the names of
    wrappers and without the second head."""
    state = {}
    for key, value in weights.read_state(Path(path)).items():
        key = key.removeprefix("net.").replace("._flax_linear.", ".")
        if not key.startswith(("v_heads.", "v_final_layer.")):
            state[key.replace("._flax_embedding.", ".")] = value
    width, channels, patch_size, _ = state["x_embedder.proj.weight"].shape
    depth = weights.depth(state, "shared_blocks")
    classes = len(state["y_embedder.embedding_table.weight"]) - 1
    return weights.fill(lambda: IMF(patch_size, channels, width, depth + HEAD_DEPTH, classes),
                        state, path)
