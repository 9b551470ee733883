"""What DiT, SiT and iMF share: noise from each image's own seed, decoding, rounding to uint8, and
the flags --weights, --vae, --dtype and --compile. Their modules hold network and sampler.
"""

import argparse
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

from dm_kd import run
from dm_kd.generators import weights
from dm_kd.generators.diffusion import noise_source, to_uint8
from dm_kd.run import UserError, multiplies_bf16
from dm_kd.tasks import Task

LATENT_CHANNELS = 4
DEFAULT_VAE = "stabilityai/sd-vae-ft-mse"  # the paper's
VAE_CHUNK = 8  # images decoded at once: about 2 GB of activations at 256 x 256 in float32
BF16_WIDTH = 128  # from here on bf16 products pay on a CPU that has them


class LatentGenerator:
    """A trained network with its sampler, which a subclass implements as `denoise`.

    Args:
        settings: all that makes the bytes, for the manifest; the sampler reads its own there.
        vae: decoder of the network's latents; None if it makes pixels.
    """

    labels_known = True

    def __init__(self, model: nn.Module, settings: dict, device: torch.device,
                 vae: "Vae | None" = None):
        self.model, self.settings, self.device, self.vae = model, settings, device, vae
        self.resolution = model.config["input_size"] * (vae.factor if vae else 1)
        self.channels = vae.channels if vae else model.channels

    def sample(self, labels: Tensor, seeds: list[int]) -> Tensor:
        """uint8 [B, channels, resolution, resolution] on the CPU.

        Args:
            labels: int64 [B], the task's classes.
            seeds: a 64-bit number per image, which all its noise depends on (the start and every
                step), so that it does not depend on its batch.
        """
        size = self.model.config["input_size"]
        draw = noise_source(seeds, (self.model.channels, size, size), self.device)
        with torch.no_grad():
            x = self.denoise(labels, seeds, draw)
            return to_images(self.vae.decode(x) if self.vae else x)

    def denoise(self, labels: Tensor, seeds: list[int], draw: Callable[[], Tensor]) -> Tensor:
        """x_0 float32 [B, C, h, w]: latents, or pixels in [-1, 1]. draw() first gives x_T, then
        each step's noise."""
        raise NotImplementedError

    def network_labels(self, labels: Tensor) -> Tensor:
        """The task's labels as the network's classes, on the device."""
        return as_generator_classes(labels, self.settings).to(self.device)

    def guided_channels(self) -> int:
        """How many channels guidance acts on; the original DiT guides 3 of 4 latent ones."""
        channels = self.model.channels
        return channels if self.settings["guided_channels"] == "all" else min(3, channels)


def to_images(x: Tensor) -> Tensor:
    """Pixels in [-1, 1] -> uint8 on the CPU.

    Raises:
        UserError: NaN or infinite values."""
    if not torch.isfinite(x).all():
        raise UserError("the generator made NaN or infinite values", "--dtype fp32")
    return to_uint8(x).cpu()


# --- classes --------------------------------------------------------------------------------------

def check_classes(card: dict, task: Task, where: object) -> None:
    """Raise UserError if the card names another task, or other classes (every folder is the task
    "folder")."""
    ours, theirs = list(task.class_names), card.get("class_names")
    if card.get("task") not in (None, task.name) or theirs not in (None, ours):
        other = [name for name in theirs or [] if name not in ours][:3]
        raise UserError(f"{where}: the generator was trained on {card['task']}, not on "
                        f"{task.name} with these classes {other or ''}")


def generator_classes(num_classes: int, task: Task, where: str) -> dict:
    """The setting "generator_classes", the generator's class for each of the task's, where the task
    has some of ImageNet's classes; {} where both have the same.

    Raises:
        UserError: the generator has another number of classes."""
    if num_classes == task.num_classes:
        return {}
    if num_classes == 1000 and task.imagenet_classes:
        return {"generator_classes": list(task.imagenet_classes)}
    raise UserError(f"{where}: the generator has {num_classes} classes, {task.name} has "
                    f"{task.num_classes}", "--task with the generator's classes; distill takes its "
                    "images for another task, labels unknown")


def as_generator_classes(labels: Tensor, settings: dict) -> Tensor:
    classes = settings.get("generator_classes")
    return torch.tensor(classes)[labels] if classes else labels


# --- flags and placement --------------------------------------------------------------------------

def add_arguments(group: argparse._ArgumentGroup, metavar: str, weights_help: str) -> None:
    group.add_argument("--weights", required=True, metavar=metavar, help=weights_help)
    group.add_argument("--vae", default=None, metavar="FOLDER|HUB_ID",
                       help="diffusers' AutoencoderKL that decodes 4-channel latents (default: "
                            f"the one beside the weights, else {DEFAULT_VAE})")
    group.add_argument("--dtype", choices=("bf16", "fp32"), default=None,
                       help="of the network; the sampler's state and the VAE stay fp32 (default: "
                            "bf16 on GPUs that have it, and from width "
                            f"{BF16_WIDTH} on on CPUs that do; else fp32)")
    group.add_argument("--compile", choices=("auto", "on", "off"), default="auto",
                       help="torch.compile the network's blocks (default: auto = on GPUs)")


def interval(text: str) -> tuple[float, float]:
    """'0.2-0.8' -> (0.2, 0.8)."""
    low, _, high = text.partition("-")
    try:
        times = float(low), float(high)
    except ValueError:
        times = 1.0, 0.0
    if not 0 <= times[0] < times[1] <= 1:
        raise argparse.ArgumentTypeError(f"must be LOW-HIGH with 0 <= LOW < HIGH <= 1, got {text}")
    return times


def fastest_dtype(width: int, device: torch.device) -> str:
    """"bf16" on GPUs, and where it pays on CPUs: 1.24 times as fast as "fp32" at width 128, 1.8 at
    256, measured on an AMD EPYC with avx512_bf16; slower without such instructions."""
    pays = (device.type == "cuda" or width >= BF16_WIDTH) and multiplies_bf16(device)
    return "bf16" if pays else "fp32"


def lower_precision(model: nn.Module) -> None:
    """Cast all but the last layer to bfloat16; the sampler keeps its output in float32."""
    for name, parameter in model.named_parameters():
        if "final_layer" not in name:
            parameter.data = parameter.data.to(torch.bfloat16)


def compile_blocks(model: nn.Module) -> None:
    """Compile the block: all have the same code, so one compilation serves all."""
    for block in model.blocks:
        block.compile(dynamic=False)


def prepare(args: argparse.Namespace, model: nn.Module, device: torch.device, pipeline: bool = False
            ) -> tuple[dict, "Vae | None"]:
    """Put the network on the device as --dtype and --compile say, and load its decoder. Returns
    the settings that say so, and the decoder (None for pixels). pipeline: args.weights has a VAE.
    """
    vae = None
    if model.channels == LATENT_CHANNELS:
        own = pipeline and not args.vae
        vae = load_vae(args.weights if own else args.vae or DEFAULT_VAE, "vae/" if own else "")
        vae.model.to(device)
        if device.type == "cuda":
            vae.model.to(memory_format=torch.channels_last)
    settings = {"dtype": args.dtype or fastest_dtype(model.config["width"], device)}
    if settings["dtype"] == "bf16":
        lower_precision(model)
    model.to(device)
    if args.compile == "on" or args.compile == "auto" and device.type == "cuda":
        compile_blocks(model)
        settings["compiled"] = True
    return settings | (vae.settings if vae else {}), vae


# --- the decoder ----------------------------------------------------------------------------------

class Vae:
    """Decoder of Stable Diffusion's latents, diffusers' AutoencoderKL."""

    def __init__(self, model: nn.Module, settings: dict):
        self.model, self.settings = model, settings
        self.channels = model.config.out_channels
        self.factor = 2 ** (len(model.config.block_out_channels) - 1)  # pixels per latent cell

    def decode(self, latents: Tensor) -> Tensor:
        """float32 [B, 4, h, w] -> [B, 3, 8 h, 8 w], about -1 to 1."""
        latents = latents / self.settings["vae_scaling_factor"]
        return torch.cat([self.model.decode(part).sample for part in latents.split(VAE_CHUNK)])


def load_vae(spec: str, part: str = "") -> Vae:
    """The autoencoder of a folder or hub id, or of its `part` "vae/", in float32 on the CPU.

    Raises:
        UserError: another kind of model, or bad files."""
    import diffusers

    hub = weights.is_hub_id(spec)
    folder = (weights.fetch(spec, part) if hub else Path(spec)) / part
    config = run.read_json(folder / "config.json")
    if config.get("_class_name") != "AutoencoderKL" or (
            config.get("latent_channels", LATENT_CHANNELS) != LATENT_CHANNELS):
        raise UserError(f"{folder}: {config.get('_class_name')} with "
                        f"{config.get('latent_channels')} latent channels is not an AutoencoderKL "
                        "with 4", f"--vae {DEFAULT_VAE}")
    paths = weights.weight_files(folder)
    for path in paths:
        weights.read_tensors(path)  # damaged and hostile files fail before diffusers reads them
    model, loaded = diffusers.AutoencoderKL.from_pretrained(
        folder, torch_dtype=torch.float32, low_cpu_mem_usage=False, output_loading_info=True)
    unfit = [*loaded["missing_keys"], *loaded["unexpected_keys"]]  # diffusers only warns
    if unfit:
        raise UserError(f"{folder}: config.json does not fit the weights, first key: {unfit[0]}")
    settings = {"vae_sha256": weights.digest(paths), "diffusers": diffusers.__version__,
                "vae_scaling_factor": model.config.scaling_factor}
    model.requires_grad_(False)
    return Vae(model.eval(), settings | ({"vae_hub_id": spec} if hub else {}))
