"""The class-conditional diffusion transformer (DiT): the paper's generator.

Network: Peebles & Xie 2023, "Scalable Diffusion Models with Transformers" (arXiv 2212.09748),
adaLN-Zero blocks, with the key names of the original checkpoints. Process and samplers:
diffusion.py.

    python -m dm_kd.synthesize --task digits --generator dit --weights save/generators/digits_dit \\
        --guidance-scale 2 --steps 100 --images-per-class 200 --out syn_dataset/digits
    python -m dm_kd.synthesize --task imagenet --weights facebook/DiT-XL-2-256 \\
        --out syn_dataset/NAME
"""

import argparse
import contextlib
import functools
import importlib.metadata
import math
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dm_kd import augment, files, image_set, models
from dm_kd.errors import DamagedError, UserError
from dm_kd.generators import dit_weights
from dm_kd.generators.deepinversion import add_teacher_dtype, teacher_dtype
from dm_kd.generators.diffusion import (
    TRAIN_STEPS,
    Diffusion,
    guided,
    make_dpm_scheduler,
    noise_source,
    sample_ddim,
    sample_ddpm,
    sample_with_scheduler,
    to_uint8,
)
from dm_kd.rivals import terms as inversion_terms
from dm_kd.run import multiplies_bf16
from dm_kd.tasks import Task, refuse_other_names

WEIGHTS_NAME = "dit"  # dit.safetensors + dit.json in a generator's folder
TABLE_TOLERANCE = 1e-3  # of a stored position table; float16 rounds it by 5e-4
SAMPLERS = ("ddpm", "ddim", "dpm++")
GUIDANCE_TERMS, ADVERSARY = {"ce_target": 1.0, "bn": 0.1}, {"adv_dad": 1.0}  # DiffDFKD's weights
MIXES = 5  # parts of the sampling with a latent cutmix between them
FP8_MAX = 448.0  # the largest e4m3 number
OTHER_CLASSES = ("--task with the label space of the generator; distill takes its images for "
                 "another task, labels unknown")
BF16_WIDTH = 128  # of networks for which a CPU's bf16 products pay
COMPILED_SHAPES = 64  # of one block's input; torch's own limit of 8 could be reached
FP8_CAPABILITY = (8, 9)  # of the GPUs that multiply 8-bit numbers: Ada, Hopper and later


# --- network --------------------------------------------------------------------------------------

def modulate(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    return x * (1 + scale[:, None]) + shift[:, None]


class TimestepEmbedder(nn.Module):
    def __init__(self, width: int, frequencies: int = 256):
        super().__init__()
        self.frequencies = frequencies
        self.mlp = nn.Sequential(nn.Linear(frequencies, width), nn.SiLU(), nn.Linear(width, width))

    def forward(self, t: Tensor) -> Tensor:
        # float32 sinusoid, cosines first: the original's rounding
        angles = t.float()[:, None] * timestep_rates(self.frequencies // 2, t.device)
        sinusoid = torch.cat([angles.cos(), angles.sin()], -1)  # [B, 256]
        return self.mlp(sinusoid.to(self.mlp[0].weight.dtype))


@functools.cache
def timestep_rates(half: int, device: torch.device) -> Tensor:
    """Rates of the sinusoid float32 [half], computed on the CPU and kept on the device: a copy at
    each step would make the GPU wait."""
    with torch.inference_mode(False):
        return torch.exp(-math.log(10000) * torch.arange(half, dtype=torch.float32) / half
                         ).to(device)


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
        return self.proj(x.to(self.proj.weight.dtype)).flatten(2).transpose(1, 2)  # [B, N, width]


class Attention(nn.Module):
    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        b, n, c = x.shape
        q, k, v = self.qkv(x).view(b, n, 3, self.heads, c // self.heads).permute(2, 0, 3, 1, 4)
        out = F.scaled_dot_product_attention(q, k, v)  # [B, heads, N, c / heads]
        return self.proj(out.transpose(1, 2).reshape(b, n, c))


class Mlp(nn.Module):
    def __init__(self, width: int):
        super().__init__()
        self.fc1 = nn.Linear(width, 4 * width)
        self.fc2 = nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(linear_gelu(x, self.fc1))


def linear_gelu(x: Tensor, layer: nn.Module) -> Tensor:
    """GELU of a linear layer, tanh form. On CPUs in float32 without gradients one oneDNN call that
    applies the GELU while the product is in cache: the whole network 1.2 times as fast, 3e-7
    relative apart."""
    if (isinstance(layer, nn.Linear) and x.device.type == "cpu"
            and x.dtype == torch.float32 and not torch.is_grad_enabled()
            and not torch.compiler.is_compiling() and fused_gelu_works()):
        return _fused_gelu(x, layer.weight, layer.bias)
    return F.gelu(layer(x), approximate="tanh")


def _fused_gelu(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "gelu", [], "tanh")


@functools.cache
def fused_gelu_works() -> bool:
    """Whether this torch has the operator, which is private to it, and it computes what it should:
    compared on an example once, before it is trusted."""
    draw = torch.Generator().manual_seed(0)
    x, weight, bias = (torch.randn(*shape, generator=draw) for shape in ((3, 16), (8, 16), (8,)))
    try:
        found = _fused_gelu(x, weight, bias)
    except Exception:  # no oneDNN, no such operator, another signature: each raises its own
        return False
    return torch.allclose(found, F.gelu(F.linear(x, weight, bias), approximate="tanh"), atol=1e-5)


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
        self.linear = nn.Linear(width, patch_size ** 2 * out_channels)
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(width, 2 * width))

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        dtype = self.linear.weight.dtype  # stays float32 when the blocks are bfloat16
        shift, scale = self.adaLN_modulation(condition.to(dtype)).chunk(2, 1)
        return self.linear(modulate(self.norm_final(x.to(dtype)), shift, scale))


class DiT(nn.Module):
    """Predicts the noise in x_t, and with learn_sigma the variance's place in its range.

    Args:
        input_size: pixels (or latent cells) per side; a multiple of patch_size.
        channels: of the input: 4 for latents, 1 or 3 for pixels.
        width, depth, heads: DiT-XL/2 has 1152, 28, 16.
        num_classes: without the null class, which is added.
        learn_sigma: the output has a second half of channels for the variance.
    """

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
        x = self.final_layer(x, condition)  # [B, N, p * p * out]
        b, n, p, side = len(x), x.shape[1], self.patch_size, math.isqrt(x.shape[1])
        assert side * side == n, n
        x = x.view(b, side, side, p, p, self.out_channels)
        return x.permute(0, 5, 1, 3, 2, 4).reshape(b, self.out_channels, side * p, side * p)

    def lower_precision(self, dtype: torch.dtype) -> "DiT":
        """Cast all but the last layer, whose output the sampler keeps in float32."""
        for part in (self.x_embedder, self.t_embedder, self.y_embedder, self.blocks):
            part.to(dtype)
        return self


class Fp8Linear(nn.Module):
    """A linear layer in 8 bits (e4m3), scaled row by row: each output's weights once, each token's
    input as it comes (Micikevicius et al. 2022, arXiv 2209.05433). On GPUs torch._scaled_mm; on
    CPUs the same rounding and a product in float32, which measures the error and gains nothing."""

    def __init__(self, layer: nn.Linear):
        super().__init__()
        weight, scale = quantise_rows(layer.weight.float())
        self.register_buffer("weight", weight)  # float8 [out, in]
        self.register_buffer("scale", scale)  # float32 [out, 1]
        self.register_buffer("bias", layer.bias.detach().clone())

    def forward(self, x: Tensor) -> Tensor:
        rows, scale = quantise_rows(x.reshape(-1, x.shape[-1]))
        if x.device.type == "cuda":
            out = torch._scaled_mm(rows, self.weight.t(), scale, self.scale.view(1, -1),
                                   bias=self.bias, out_dtype=x.dtype, use_fast_accum=True)
        else:
            out = F.linear(rows.float() * scale, self.weight.float() * self.scale,
                           self.bias.float()).to(x.dtype)
        return out.view(*x.shape[:-1], -1)


def quantise_rows(x: Tensor) -> tuple[Tensor, Tensor]:
    """[N, D] -> e4m3 [N, D] and float32 scales [N, 1] whose product is x, nearly: 3 bits of
    mantissa, the largest of each row at 448."""
    scale = x.abs().amax(1, keepdim=True).float().clamp_min(1e-12) / FP8_MAX
    return (x.float() / scale).clamp(-FP8_MAX, FP8_MAX).to(torch.float8_e4m3fn), scale


def multiplies_fp8(device: torch.device) -> bool:
    """Whether it is a GPU with 8-bit products."""
    return (device.type == "cuda"
            and torch.cuda.get_device_capability(device) >= FP8_CAPABILITY)


def to_fp8(model: DiT) -> DiT:
    """Put Fp8Linear in the place of the products of all blocks but the first and the last; the
    modulation, the embeddings and the last layer stay as they are.

    Raises:
        UserError: there are fewer than three blocks, or widths that are no multiple of 16."""
    width = model.config["width"]
    if len(model.blocks) < 3 or width % 16:
        raise UserError("--fp8 needs a network of 3 blocks or more, of a width that 16 divides",
                        found=f"{len(model.blocks)} blocks of width {width}",
                        hint="leave out --fp8")
    for block in model.blocks[1:-1]:
        for part, name in ((block.attn, "qkv"), (block.attn, "proj"), (block.mlp, "fc1"),
                           (block.mlp, "fc2")):
            setattr(part, name, Fp8Linear(getattr(part, name)))
    return model


def compile_blocks(model: nn.Module, backend: str = "inductor") -> nn.Module:
    """Compile the block: all have the same code, so one compilation serves all of a kind."""
    for block in model.blocks:
        block.compile(backend=backend, dynamic=False)
    return model


def position_embedding(side: int, width: int) -> Tensor:
    """Fixed 2-D sine-cosine table [side * side, width]: half for the column, half for the row."""
    rates = 1 / 10000 ** (np.arange(width // 4, dtype=np.float64) / (width / 4))
    rows, columns = np.divmod(np.arange(side * side), side)
    halves = []
    for position in (columns, rows):
        angles = position[:, None] * rates
        halves += [np.sin(angles), np.cos(angles)]
    # not from_numpy, which stays on the CPU where torch.device(...) says another place
    return torch.tensor(np.concatenate(halves, 1), dtype=torch.float32)


# --- sampling -------------------------------------------------------------------------------------

@contextlib.contextmanager
def computing(settings: dict, gradients: bool = False) -> Iterator[None]:
    """What a sampler's network runs in: inference mode, or where somebody takes gradients inside
    it only without them. A compiled network is compiled for every shape or not at all: past its
    limit of compilations torch would run the plain code and say nothing.

    Raises:
        UserError: torch.compile failed."""
    with contextlib.ExitStack() as stack:
        stack.enter_context(torch.no_grad() if gradients else torch.inference_mode())
        if settings.get("compiled"):
            from torch import _dynamo

            stack.enter_context(_dynamo.config.patch(
                recompile_limit=COMPILED_SHAPES, fail_on_recompile_limit_hit=True))
        try:
            yield
        except Exception as error:  # a compiler's: many classes
            if not settings.get("compiled") or "torch._" not in type(error).__module__:
                raise
            raise UserError("torch.compile failed", found=str(error).strip().splitlines()[0][:100],
                            hint="--compile off") from error


def queued(x: Tensor) -> tuple[Tensor, object]:
    """A sampler's result, which on a GPU need not be computed yet, with the event of that."""
    on_gpu = x.device.type == "cuda"
    return x, torch.cuda.current_stream(x.device).record_event() if on_gpu else None


class Finish:
    """The rest of a sampler's work, `queued` latents -> uint8 images on the CPU: decoding, rounding
    and the copy. Another thread may do it while the next batch is sampled; on a GPU in a stream of
    its own, so that the next batch's kernels run beside the decoder's and the copy."""

    def __init__(self, vae: dit_weights.Vae | None):
        self.vae, self.stream = vae, None

    @torch.inference_mode()
    def __call__(self, latents: tuple[Tensor, object]) -> Tensor:
        """
        Raises:
            UserError: the sampler made NaN or infinite values."""
        x, sampled = latents
        if sampled is None:
            return to_images(x, self.vae).cpu()
        self.stream = self.stream or torch.cuda.Stream(x.device)
        self.stream.wait_event(sampled)
        with torch.cuda.stream(self.stream):
            images = to_images(x, self.vae)
            x.record_stream(self.stream)
            return images.to("cpu")  # waits for this stream only


def to_images(x: Tensor, vae: dit_weights.Vae | None) -> Tensor:
    """Latents, or pixels in [-1, 1] -> uint8 [B, C, H, W] on the same device.

    Raises:
        UserError: NaN or infinite values."""
    x = vae.decode(x) if vae else x
    if not torch.isfinite(x).all():
        raise UserError("the generator made NaN or infinite values",
                        hint="--dtype fp32, or other weights")
    return to_uint8(x)


def latent_cutmix(x: Tensor, step: int, steps: int, seeds: list[int]
                  ) -> tuple[Tensor, float, Tensor | None]:
    """Every fifth of the sampling boxes of x_t [B, C, H, W] come from another image of the batch,
    which the rest of the sampling blends in (DiffDFKD): share ~ Beta(a, a), a ~ U(0, 1). A function
    of all the seeds and of how many of `steps` are done. Returns what augment.mix does: the batch,
    each image's own share of its area, and its partner's row (None = not mixed)."""
    if step == 0 or step % -(-steps // MIXES):
        return x, 1.0, None
    key = image_set.batch_seed(seeds)
    a = np.random.Generator(np.random.PCG64([key, step])).uniform(1e-3, 1)
    return augment.mix(x, key, 0, step, 0.0, a, 1.0)


class TeacherGuidance:
    """Moves x_t to where a teacher, looking at the predicted clean image, sees the class and its
    own batch statistics (DiffDFKD, arXiv 2504.00870), and where a student of earlier images, if
    there is one, differs from it.

    The gradient is scaled to unit length for each image and by sqrt(1 - alpha bar_t), so that
    `weight` means the same at every step and for every teacher; the authors' program takes the raw
    gradient times 1, whose size hangs on the loss's. An image hangs on the others of its shard, by
    the batch statistics. After a latent cutmix the cross-entropy takes each class by its share of
    the area: a shard is of many classes, the authors' batches are of one. On GPUs the backward
    kernels of attention and convolutions add up in any order, so that a second run's images can
    differ in their last bits.

    Args:
        teacher: in eval mode, of the generator's classes.
        weight: of the step, in units of x_t.
        student: in eval mode; it stays as it is, while the authors' program trains one between the
            batches.
        bf16: teacher and student compute in bfloat16 autocast.
    """

    def __init__(self, teacher: nn.Module, task: Task, weight: float, device: torch.device,
                 student: nn.Module | None = None, bf16: bool = False):
        self.teacher, self.weight, self.side = teacher, weight, task.resolution
        self.bf16 = bf16
        self.student, self.terms = student, GUIDANCE_TERMS | (ADVERSARY if student else {})
        self.classes = torch.arange(task.num_classes, device=device)
        self.mean, self.std = (torch.tensor(v, device=device).view(-1, 1, 1)
                               for v in (task.mean, task.std))

    def parts(self, images: Tensor, labels: Tensor) -> dict[str, Tensor]:
        """images [B, C, H, W] about -1 to 1, labels as ce_target's -> {term: weighted scalar}."""
        images = (images.float().clamp(-1, 1) + 1) / 2
        if images.shape[2] != self.side:
            images = F.interpolate(images, (self.side, self.side), mode="bicubic", antialias=True)
        return inversion_terms.weighted(self.terms, self.teacher, (images - self.mean) / self.std,
                                        self.student, labels, bf16=self.bf16)[0]

    def steer(self, x: Tensor, labels: Tensor, clean: Callable[[Tensor], Tensor], noise: Tensor
              ) -> Tensor:
        """x_t [B, C, H, W] -> the same, moved. clean: x_t -> images; noise: sqrt(1 - alpha bar).

        Raises:
            DivergedError: a term is not finite."""
        with torch.enable_grad():
            x = x.detach().requires_grad_()
            parts = self.parts(clean(x), labels)
            inversion_terms.check_finite(parts, f"at noise {float(noise):.3f} of the sampler")
            gradient, = torch.autograd.grad(sum(parts.values()), x)
        length = gradient.flatten(1).norm(dim=1).clamp_min(1e-12).view(-1, 1, 1, 1)
        return x.detach() - self.weight * noise * gradient / length


class DiTGenerator:
    """A trained DiT with its sampler settings: `sample(labels, seeds) -> uint8 images`.

    Args:
        clip: clamp the predicted x_0; for pixels only.
        vae: decoder of the latents that the DiT makes; None if it makes pixels.
        teacher: what steers the sampling, if anything does.
    """

    def __init__(self, model: DiT, settings: dict, device: torch.device, clip: bool,
                 vae: dit_weights.Vae | None = None, teacher: TeacherGuidance | None = None):
        self.model, self.settings, self.device, self.clip = model, settings, device, clip
        self.vae, self.teacher = vae, teacher
        self.resolution = model.config["input_size"] * (vae.factor if vae else 1)
        self.channels = vae.channels if vae else model.channels
        self.guided_channels = (model.channels if settings["guided_channels"] == "all"
                                else min(3, model.channels))
        self.diffusion, self.finish = Diffusion(settings["steps"], device), Finish(vae)
        # without the condition an image's class says nothing; mixed images are of two
        self.labels_known = settings["guidance_scale"] > 0 and "latent_cutmix" not in settings
        self.mixes_classes = teacher is not None  # it looks at the statistics of a batch

    def sample(self, labels: Tensor, seeds: list[int]) -> Tensor:
        """labels int64 [B]; seeds: one 64-bit number per image, which keys all its noise (start
        and every step), whatever batch it sits in -> uint8 [B, C, H, W] on the CPU, of
        `channels` and `resolution`."""
        return self.finish(self.latents(labels, seeds))

    def latents(self, labels: Tensor, seeds: list[int]) -> tuple[Tensor, object]:
        """The sampler's part of `sample`: float32 [B, C, H, W] on the device, latents or pixels. On
        a GPU it returns before they are computed, with the event of their completion.

        Raises:
            UserError: torch.compile failed."""
        with computing(self.settings, gradients=self.teacher is not None):
            return queued(self._sampled(labels, seeds))

    def _sampled(self, labels: Tensor, seeds: list[int]) -> Tensor:
        size, channels = self.model.config["input_size"], self.model.channels
        draw = noise_source(seeds, (channels, size, size), self.device)
        x, seen = draw(), labels.to(self.device)  # the task's labels, which the teacher knows
        if self.teacher and self.settings.get("latent_cutmix"):
            seen = (seen[:, None] == self.teacher.classes).float()  # shares of the image's area
        labels = as_generator_classes(labels, self.settings).to(self.device)
        scheduler = (make_dpm_scheduler(self.settings["steps"])
                     if self.settings["sampler"] == "dpm++" else None)
        at_step = self.scales(self.diffusion.timesteps)
        scales = iter(at_step[::-1] if scheduler is None else
                      self.scales(scheduler.timesteps.numpy()))

        def look(x: Tensor, t: Tensor, scale: float) -> Tensor:
            return guided(self.model, x, t, labels, self.model.num_classes, scale,
                          self.guided_channels)

        def predict(x: Tensor, t: Tensor) -> Tensor:  # called once a step, the noisiest first
            return look(x, t, next(scales))

        def steer(x: Tensor, i: int) -> Tensor:  # called once a step, the noisiest first
            nonlocal seen
            if self.settings.get("latent_cutmix"):
                x, share, partner = latent_cutmix(x, self.diffusion.steps - 1 - i,
                                                  self.diffusion.steps, seeds)
                if self.teacher and partner is not None:
                    seen = share * seen + (1 - share) * seen[partner]
            if self.teacher is None:
                return x

            def clean(x: Tensor) -> Tensor:
                times = self.diffusion.network_times[i].expand(len(x))
                out = look(x, times, at_step[i]).to(x.dtype)
                x = self.diffusion.predict_x0(x, i, out[:, :channels])
                return self.vae.decode(x) if self.vae else x

            return self.teacher.steer(x, seen, clean, self.diffusion.at("noise", i))

        if scheduler is not None:
            return sample_with_scheduler(predict, scheduler, x)
        if self.settings["sampler"] == "ddpm":
            return sample_ddpm(predict, self.diffusion, x, draw, self.clip, steer)
        return sample_ddim(predict, self.diffusion, x, self.clip)

    def scales(self, timesteps: np.ndarray) -> list[float]:
        """The guidance scale of each step: outside the guidance interval 1, one conditional forward
        (Kynkaanniemi et al. 2024, arXiv 2404.07724, here in shares of the training steps)."""
        scale = self.settings["guidance_scale"]
        low, high = self.settings.get("guidance_interval", (0.0, 1.0))
        return [scale if low <= t / (TRAIN_STEPS - 1) <= high else 1.0 for t in timesteps]


# --- command line and files -----------------------------------------------------------------------

def add_arguments(parser: argparse.ArgumentParser) -> None:
    from dm_kd.run import nonnegative_float, positive_int

    group = parser.add_argument_group("dit")
    group.add_argument("--weights", required=True, metavar="FOLDER|FILE.pt|HUB_ID",
                       help="a folder of train_generator or of diffusers, an original DiT "
                            "checkpoint, or a hub id such as facebook/DiT-XL-2-256")
    group.add_argument("--vae", default=None, metavar="FOLDER|HUB_ID",
                       help="diffusers' AutoencoderKL that decodes 4-channel latents (default: the "
                            f"one beside the weights, else {dit_weights.DEFAULT_VAE})")
    group.add_argument("--guidance-scale", type=nonnegative_float, default=2.0, metavar="S",
                       help="classifier-free guidance; 1 = one conditional forward, 0 = "
                            "unconditional (default: %(default)s)")
    group.add_argument("--steps", type=positive_int, default=100, metavar="T",
                       help="sampling steps, at most 1000 (default: %(default)s)")
    group.add_argument("--sampler", choices=SAMPLERS, default="ddpm",
                       help="ancestral DDPM, DDIM, or diffusers' DPM-Solver++ "
                            "(default: %(default)s)")
    group.add_argument("--guided-channels", choices=("3", "all"), default="3",
                       help="channels that guidance acts on; the original DiT guides 3 of 4 "
                            "latent ones (default: %(default)s)")
    group.add_argument("--guidance-interval", type=interval, default=None, metavar="LOW-HIGH",
                       help="guide only in this part of the process, 0 = the clean end, 1 = noise, "
                            "e.g. 0.2-0.8; one conditional forward elsewhere: faster, other images "
                            "(default: all of it)")
    group.add_argument("--fp8", action="store_true",
                       help="8-bit products in all blocks but the first and last, on GPUs that "
                            "have them (compute capability 8.9): faster, images change slightly")
    add_speed_arguments(group)
    group.add_argument("--teacher-guidance", type=nonnegative_float, default=0.0, metavar="W",
                       help="move x_t at each step by W sqrt(1 - alpha bar) along the gradient of "
                            "--teacher's cross-entropy and batch statistics (DiffDFKD); needs "
                            "--sampler ddpm; on GPUs not the same bits twice (default: "
                            "%(default)s)")
    group.add_argument("--teacher", default=None, metavar="SPEC",
                       help="the teacher of --teacher-guidance, as in distill")
    add_teacher_dtype(group)
    group.add_argument("--student", default=None, metavar="SPEC",
                       help="a student of an earlier set, such as its run's folder: "
                            "--teacher-guidance also looks for images on which it differs from the "
                            "teacher, of those that both put into one class (default: none)")
    group.add_argument("--latent-cutmix", action="store_true",
                       help="every fifth of the sampling steps put boxes of other images of the "
                            "batch into x_t (DiffDFKD); the set's labels are then unknown; needs "
                            "--sampler ddpm")


def add_speed_arguments(group: argparse._ArgumentGroup) -> None:
    """--compile and --dtype of a transformer of latents."""
    group.add_argument("--compile", choices=("auto", "on", "off"), default="auto",
                       help="torch.compile the network's block (default: auto = on GPUs)")
    group.add_argument("--dtype", choices=("bf16", "fp32"), default=None,
                       help="of the network; its state stays fp32 (default: bf16 on GPUs that "
                            "have it, and on CPUs with its instructions from width "
                            f"{BF16_WIDTH} on; else fp32)")


def fastest_dtype(width: int, device: torch.device) -> str:
    """"bf16" on GPUs, and where it pays on CPUs: 1.24 times as fast as "fp32" at width 128, 1.8 at
    256, measured on an AMD EPYC with avx512_bf16; slower without such instructions."""
    pays = (device.type == "cuda" or width >= BF16_WIDTH) and multiplies_bf16(device)
    return "bf16" if pays else "fp32"


def compile_as_asked(args: argparse.Namespace, model: nn.Module, device: torch.device) -> dict:
    """Compile the blocks of a network on its device where --compile says so; what it notes in the
    settings."""
    if args.compile == "on" or args.compile == "auto" and device.type == "cuda":
        compile_blocks(model)
        return {"compiled": True}
    return {}


def interval(text: str) -> tuple[float, float]:
    """'0.2-0.8' -> (0.2, 0.8)."""
    low, dash, high = text.partition("-")
    try:
        found = float(low), float(high)
        if not dash or not 0 <= found[0] < found[1] <= 1:
            raise ValueError
    except ValueError:
        raise argparse.ArgumentTypeError(
            f"must be LOW-HIGH with 0 <= LOW < HIGH <= 1, got {text}") from None
    return found


def check_flags(args: argparse.Namespace, device: torch.device) -> None:
    """Refuse what cannot be before any weights are read.

    Raises:
        UserError: too many or too few steps, nothing to guide or to guide by, no 8-bit products."""
    if args.steps > TRAIN_STEPS:
        raise UserError(f"--steps {args.steps} is more than the {TRAIN_STEPS} of training",
                        hint=f"--steps 1 to {TRAIN_STEPS}")
    if args.steps == 1 and args.sampler != "dpm++":
        raise UserError(f"--steps 1 of --sampler {args.sampler} would take noise for a nearly "
                        "clean image", hint="2 steps or more, or --sampler dpm++")
    if args.steps == TRAIN_STEPS and args.sampler == "dpm++":
        raise UserError(f"--sampler dpm++ takes fewer than {TRAIN_STEPS} steps",
                        hint="--steps 25, or --sampler ddim")
    refuse_idle_interval(args, None)
    if args.teacher_guidance and (not args.teacher or args.sampler != "ddpm"):
        raise UserError("--teacher-guidance needs --teacher and --sampler ddpm",
                        hint="--teacher SPEC --sampler ddpm")
    if args.fp8:
        if args.dtype == "fp32":
            raise UserError("--fp8 does not go with --dtype fp32", hint="--dtype bf16")
        if args.teacher_guidance:
            raise UserError("--fp8 does not go with --teacher-guidance: 8-bit products have no "
                            "gradient", hint="leave out --fp8")
        if not multiplies_fp8(device):
            raise UserError("--fp8 needs a GPU that multiplies 8-bit numbers (compute capability "
                            f"{FP8_CAPABILITY[0]}.{FP8_CAPABILITY[1]} or later)",
                            found=device.type, hint="leave out --fp8")
    for flag in ("teacher", "teacher-dtype", "student"):
        if getattr(args, flag.replace("-", "_")) and not args.teacher_guidance:
            raise UserError(f"--{flag} does nothing without --teacher-guidance",
                            hint="--teacher-guidance W, or leave it out")
    if args.latent_cutmix and (args.sampler != "ddpm" or args.batch_size < 2):
        raise UserError("--latent-cutmix needs --sampler ddpm and at least two images a batch",
                        hint="--sampler ddpm --batch-size 100, or leave it out")


def build(args: argparse.Namespace, task: Task, device: torch.device) -> DiTGenerator:
    """The generator that the flags describe.

    Raises:
        UserError: no such weights or VAE, not of this task, or flags that cannot be.
        DamagedError: bad weights.
    """
    check_flags(args, device)
    model, card = load(args.weights)
    if card["task"] not in (None, task.name):
        raise UserError(f"the generator was trained on {card['task']}, not {task.name}",
                        weights=args.weights, hint=f"--task {card['task']}")
    classes = generator_classes(model.num_classes, task, args.weights)
    refuse_other_names(card.get("class_names"), task, "the generator", OTHER_CLASSES,
                       weights=args.weights)
    vae = load_vae(args, model, card)
    dtype = args.dtype or fastest_dtype(model.config["width"], device)
    if dtype == "bf16":
        model.lower_precision(torch.bfloat16)
    settings = {"name": "dit", "weights_sha256": card["sha256"], "licence": card["licence"],
                "trained_on": card.get("trained_on"), "guidance_scale": args.guidance_scale,
                "steps": args.steps, "sampler": args.sampler,
                "guided_channels": args.guided_channels, "dtype": dtype}
    settings |= {"weights_hub_id": card["hub_id"]} if "hub_id" in card else {}
    settings |= {"generator_classes": classes} if classes else {}
    if args.guidance_interval:
        settings["guidance_interval"] = list(args.guidance_interval)
    if args.sampler == "dpm++":  # its steps are diffusers', which is missed here or never
        make_dpm_scheduler(args.steps)
        settings["diffusers"] = importlib.metadata.version("diffusers")
    if args.fp8:
        settings["fp8"] = True
        to_fp8(model)
    settings |= compile_as_asked(args, model.to(device), device)
    settings |= place(vae, device)
    settings |= {"latent_cutmix": True} if args.latent_cutmix else {}
    teacher = teacher_guidance(args, task, device, settings) if args.teacher_guidance else None
    return DiTGenerator(model, settings, device, card["clip"], vae, teacher)


def place(vae: dit_weights.Vae | None, device: torch.device) -> dict:
    """Put the decoder on the device; its settings."""
    if vae is None:
        return {}
    vae.model.requires_grad_(False).to(device)
    if device.type == "cuda":
        vae.model.to(memory_format=torch.channels_last)
    return vae.settings


def refuse_idle_interval(args: argparse.Namespace, whole: tuple[float, float] | None) -> None:
    """
    Raises:
        UserError: --guidance-interval is not `whole`, its default, where there is no guidance."""
    if args.guidance_interval != whole and args.guidance_scale in (0, 1):
        raise UserError(f"--guidance-interval does nothing at --guidance-scale "
                        f"{args.guidance_scale:g}", hint="leave it out, or another scale")


def teacher_guidance(args: argparse.Namespace, task: Task, device: torch.device, settings: dict
                     ) -> TeacherGuidance:
    """What --teacher-guidance asks for; noted in the settings.

    Raises:
        UserError: a teacher without batch norm."""
    teacher, card = models.load_frozen(args.teacher, task)
    teacher.to(device, memory_format=torch.channels_last)
    example = torch.zeros(2, task.channels, task.resolution, task.resolution, device=device)
    inversion_terms.require(teacher, set(GUIDANCE_TERMS), example, args.teacher)
    settings |= {"teacher_guidance": args.teacher_guidance, "teacher": card["name"],
                 "teacher_sha256": card["sha256"], "teacher_terms": GUIDANCE_TERMS,
                 "teacher_dtype": teacher_dtype(args, device)}
    student = None
    if args.student:
        student, card = models.load_frozen(args.student, task)
        student.to(device, memory_format=torch.channels_last)
        inversion_terms.require(student, set(), example, args.student)
        settings |= {"student": card["name"], "student_sha256": card["sha256"],
                     "teacher_terms": GUIDANCE_TERMS | ADVERSARY}
    return TeacherGuidance(teacher, task, args.teacher_guidance, device, student,
                           settings["teacher_dtype"] == "bf16")


def generator_classes(num_classes: int, task: Task, weights: str) -> list[int] | None:
    """The generator's class for each of the task's: ImageNet's own for a task made of some of
    them; None where the label spaces are one.

    Raises:
        UserError: it knows other classes."""
    if num_classes == task.num_classes:
        return None
    if num_classes == 1000 and task.imagenet_classes:
        return list(task.imagenet_classes)
    raise UserError(f"the generator has {num_classes} classes, {task.name} has "
                    f"{task.num_classes}", weights=weights,
                    hint=OTHER_CLASSES)


def as_generator_classes(labels: Tensor, settings: dict) -> Tensor:
    """The task's labels as the classes that the generator knows them by."""
    classes = settings.get("generator_classes")
    return torch.tensor(classes)[labels] if classes else labels


def load_vae(args: argparse.Namespace, model: DiT, card: dict) -> dit_weights.Vae | None:
    """--vae, else the one beside the weights, else the paper's; None for a DiT of pixels."""
    if model.channels != dit_weights.LATENT_CHANNELS:
        if args.vae:
            raise UserError(f"the DiT makes pixels of {model.channels} channels; it takes no VAE",
                            weights=args.weights, hint="leave out --vae")
        return None
    if not args.vae and card.get("pipeline"):
        return dit_weights.load_vae(args.weights, "vae/")
    return dit_weights.load_vae(args.vae or dit_weights.DEFAULT_VAE)


def load(weights: str) -> tuple[DiT, dict]:
    """Network in eval mode, float32, on the CPU, and card: sha256, licence, clip, task (None where
    unknown) and more.

    Args:
        weights: a folder of train_generator, or what `dit_weights.read` takes.

    Raises:
        UserError: nothing there, or not a DiT.  DamagedError: truncated, or not as its card says.
    """
    path = Path(weights)
    if path.name == f"{WEIGHTS_NAME}.safetensors":  # its card beside it knows the heads
        path = path.parent
    card_file = path / f"{WEIGHTS_NAME}.json"
    if not card_file.exists():
        config, state, card = dit_weights.read(str(weights))
        set_position_table(state, config, weights)
        try:
            return assemble(config, state, weights), card
        except ValueError as error:
            raise dit_weights.not_a_dit(weights, str(error)) from error
    state, card = files.read_with_card(path, WEIGHTS_NAME)
    try:
        card["task"], card["licence"], card["clip"]
        return assemble(card["config"], state, path), card
    except (KeyError, TypeError, ValueError, ArithmeticError, RuntimeError) as error:
        raise DamagedError(f"{WEIGHTS_NAME}.json does not fit the weights", file=card_file,
                           found=str(error).splitlines()[0][:100]) from error


def set_position_table(state: dict[str, Tensor], config: dict, where: str) -> None:
    """Put ours in, so that both layouts give the same bits; one in the file must be the same."""
    table = position_embedding(config["input_size"] // config["patch_size"], config["width"])[None]
    given = state.get("pos_embed", table)
    if given.shape != table.shape or not (given - table).abs().max() < TABLE_TOLERANCE:
        raise dit_weights.not_a_dit(where, "pos_embed is not DiT's table of sines and cosines")
    state["pos_embed"] = table


def assemble(config: dict, state: dict[str, Tensor], where: object) -> DiT:
    """A network in eval mode that owns copies of these weights, in float32.

    Its own are never made, and each tensor is copied out of a mapped file at once: XL/2 needs 2.7
    GB. Without the copy a result could hang on how the file aligns its tensors.

    Raises:
        ValueError: other keys or shapes.  DamagedError: NaN or infinite weights.
    """
    with torch.device("meta"):
        model = DiT(**config)
    expected = {key: value.shape for key, value in model.state_dict().items()}
    for key in sorted(expected.keys() | state.keys()):
        if key not in state or key not in expected:
            raise ValueError(f"{key} is {'missing' if key in expected else 'unknown'}")
        if state[key].shape != expected[key]:
            raise ValueError(f"{key} is {list(state[key].shape)}, not {list(expected[key])}")
        state[key] = state[key].to(torch.float32, copy=True)
        if not torch.isfinite(state[key]).all():
            raise DamagedError("the weights hold NaN or infinite values", file=where, found=key)
    model.load_state_dict(state, assign=True)
    return model.eval().requires_grad_(False)
