"""What DiT, SiT and iMF share: their flags, the network in its precision, and the decoder."""

import argparse
from pathlib import Path

import torch
from torch import Tensor, nn

from dm_kd import run
from dm_kd.generators import weights
from dm_kd.generators.diffusion import noise_source, to_uint8
from dm_kd.run import UserError, multiplies_bf16
from dm_kd.tasks import Task

LATENT_CHANNELS = 4
VAE_CHUNK = 10  # most images decoded at once: 2.5 GB of activations at 256 x 256 in float32
CPU_CHUNK = 32  # images in one forward, so that a small network's activations stay in the cache
BF16_WIDTH = 128  # from here on bf16 products pay on a CPU that has them


class LatentGenerator:
    """A trained network with its sampler, which a subclass implements as `denoise`: (labels, seeds,
    draw) -> x_0 float32 [B, C, h, w], latents or pixels in [-1, 1]; draw() first gives x_T, then
    each step's noise. settings: all that determines the bytes, for the manifest."""

    def __init__(self, model: nn.Module, settings: dict, device: torch.device,
                 vae: "Vae | None" = None):
        self.model, self.settings, self.device, self.vae = model, settings, device, vae
        self.labels_known = settings.get("guidance_scale") != 0  # at 0 the class is unknown
        self.resolution = model.config["input_size"] * (vae.factor if vae else 1)
        self.channels = vae.channels if vae else model.channels

    @torch.no_grad()
    def sample(self, labels: Tensor, seeds: list[int]) -> Tensor:
        """uint8 [B, channels, resolution, resolution] on the CPU. labels: the task's classes;
        seeds: a number per image, which gives all its noise whatever its batch."""
        size = self.model.config["input_size"]
        draw = noise_source(seeds, (self.model.channels, size, size), self.device)
        x = self.denoise(labels, seeds, draw)
        return to_images(self.vae.decode(x) if self.vae else x)

    def network(self, *inputs: Tensor) -> Tensor:
        """The network's output; on CPUs it gets few images at a time."""
        if self.device.type != "cpu":
            return self.model(*inputs)
        parts = zip(*(value.split(CPU_CHUNK) for value in inputs), strict=True)
        return torch.cat([self.model(*part) for part in parts])

    def guided_channels(self) -> int:
        """How many channels guidance acts on; the original DiT guides 3 of 4 latent ones."""
        channels = self.model.channels
        return channels if self.settings["guided_channels"] == "all" else min(3, channels)


def to_images(x: Tensor) -> Tensor:
    """Pixels in [-1, 1] -> uint8 on the CPU; a UserError if some are NaN or infinite."""
    if not torch.isfinite(x).all():
        raise UserError("the generator made NaN or infinite values", "--dtype fp32")
    return to_uint8(x).cpu()


def generator_classes(card: dict, num_classes: int, task: Task, where: object) -> dict:
    """{"generator_classes": the generator's class for each of the task's} where the task has some
    of ImageNet's classes; {} where both have the same."""
    names, own = card.get("class_names", list(task.class_names)), task.imagenet_classes
    if num_classes == 1000 and own and own != tuple(range(1000)):
        return {"generator_classes": list(own)}
    if num_classes == task.num_classes and names == list(task.class_names):
        return {}
    raise UserError(f"{where}: the generator has {num_classes} classes {names[:3]} ..., not those "
                    f"of {task.name}",
                    "one class too few: it was trained with class_dropout_prob=0, which has no "
                    "null class" if num_classes == task.num_classes - 1 else "")


def as_generator_classes(labels: Tensor, generator) -> Tensor:
    """The task's labels as the generator's, on its device."""
    classes = generator.settings.get("generator_classes")
    return (torch.tensor(classes)[labels] if classes else labels).to(generator.device)


def add_arguments(group: argparse._ArgumentGroup, metavar: str, weights_help: str, steps: int
                  ) -> None:
    add = group.add_argument
    add("--weights", required=True, metavar=metavar, help=weights_help)
    add("--vae", default="stabilityai/sd-vae-ft-mse", metavar="FOLDER|HUB_ID",
        help="diffusers' AutoencoderKL that decodes 4-channel latents (default: the paper's, "
             "%(default)s)")
    add("--dtype", choices=("bf16", "fp32"), default=None,
        help="of the network; the sampler's state stays fp32; on GPUs bf16 decodes in fp16 "
             f"(default: bf16 on GPUs, and from width {BF16_WIDTH} on on CPUs, that have it)")
    add("--steps", type=run.positive_int, default=steps, metavar="T",
        help="sampling steps (default: %(default)s)")


def lower_precision(model: nn.Module) -> None:
    """Cast all but the last layer to bfloat16; the sampler keeps its output in float32."""
    for name, parameter in model.named_parameters():
        if "final_layer" not in name:
            parameter.data = parameter.data.to(torch.bfloat16)


def compile_blocks(model: nn.Module) -> None:
    """Compile each block; all have the same code, so the first compilation serves all."""
    for block in model.blocks:
        block.compile(dynamic=False)


def prepare(args: argparse.Namespace, task: Task, model: nn.Module, card: dict,
            device: torch.device) -> tuple[dict, "Vae | None"]:
    """Put the network on the device in --dtype and load its decoder (None for pixels); both are
    compiled where that is possible. Returns the settings that say so, and the decoder."""
    bf16 = multiplies_bf16(device) and (device.type == "cuda"
                                        or model.config["width"] >= BF16_WIDTH)
    settings = {"name": args.generator, "weights_sha256": card["sha256"],
                "licence": card["licence"], "steps": args.steps,
                "dtype": args.dtype or ("bf16" if bf16 else "fp32"),
                **generator_classes(card, model.num_classes, task, args.weights)}
    if not Path(args.weights).exists():
        settings["weights"] = args.weights  # a hub id
    vae = None
    if model.channels == LATENT_CHANNELS:
        half = device.type == "cuda" and settings["dtype"] == "bf16"
        vae = Vae(weights.local(args.vae), device, torch.float16 if half else torch.float32)
        settings |= vae.settings
    if settings["dtype"] == "bf16":
        lower_precision(model)
    model.to(device)
    if run.resolve_compile(args.compile, device) == "on":
        settings["compiled"] = True
        compile_blocks(model)
        if vae:
            vae.model.decoder.compile(dynamic=False)
    return settings, vae


class Vae:
    """Decoder of Stable Diffusion's latents, diffusers' AutoencoderKL, in float32 or float16. With
    random weights float16 changed images by 1 grey level at most, bfloat16 by 9."""

    def __init__(self, folder: Path, device: torch.device, dtype: torch.dtype = torch.float32):
        import diffusers

        self.model, loaded = diffusers.AutoencoderKL.from_pretrained(
            folder, low_cpu_mem_usage=False, output_loading_info=True)
        unfit = [*loaded["missing_keys"], *loaded["unexpected_keys"]]  # diffusers only warns
        if unfit:
            raise UserError(f"{folder}: config.json does not fit the weights, first key: "
                            f"{unfit[0]}")
        self.model.eval().requires_grad_(False).to(device, dtype)
        if device.type == "cuda":
            self.model.to(memory_format=torch.channels_last)
        config = self.model.config
        self.channels = config.out_channels
        self.factor = 2 ** (len(config.block_out_channels) - 1)  # pixels per latent cell
        self.settings = {"vae_sha256": run.sha256_file(weights.weight_file(folder)),
                         "vae_scaling_factor": config.scaling_factor,
                         "vae_dtype": str(dtype).removeprefix("torch."),
                         "diffusers": diffusers.__version__}

    def decode(self, latents: Tensor) -> Tensor:
        """float32 [B, 4, h, w] -> [B, 3, 8 h, 8 w], about -1 to 1; in equal parts of the batch, so
        that there is one shape to compile."""
        chunk = max(n for n in range(1, VAE_CHUNK + 1) if len(latents) % n == 0)
        latents = (latents / self.settings["vae_scaling_factor"]).to(self.model.dtype)
        return torch.cat([self.model.decode(part).sample.float() for part in latents.split(chunk)])
