"""Any text-to-image pipeline of diffusers, prompted with a task's class names.

For label spaces that no class-conditional generator has (CIFAR-100, Flowers-102, a folder of one's
own): Stable Diffusion, SDXL-Turbo, Sana-Sprint, FLUX.2 and the like, by hub id or folder. Needs
transformers (an extra) beside diffusers.

    python -m dm_kd.synthesize --task flowers102 --generator text_to_image \\
        --weights stabilityai/sdxl-turbo --prompt "a photo of a {}, a type of flower" --steps 4 \\
        --guidance-scale 0 --images-per-class 100 --out syn_dataset/flowers102_sdxl_turbo

Each image has a random generator of its own, on the CPU, so its noise does not depend on its batch.
What is not given (steps, guidance, size) is the pipeline's own default, and recorded. Only
safetensors weights and components of diffusers and transformers are loaded, so nothing in a folder
can run code. A checker that blackens pictures is left out: black pictures teach nothing.
"""

import argparse
import inspect
from pathlib import Path

import torch
from torch import Tensor

from dm_kd import augment, run
from dm_kd.generators import weights
from dm_kd.run import UserError, multiplies_bf16, nonnegative_float, positive_int
from dm_kd.tasks import Task

LARGE_SIDE = 256  # pixels of an image for tasks of large images, as DiT's
LIBRARIES = ("diffusers", "transformers")
CHECKERS = {"safety_checker": None, "requires_safety_checker": False}
GREY = (0.299, 0.587, 0.114)  # ITU-R BT.601, as Pillow's
# newer tokenizers keep the template that a prompt is put into as chat_template.jinja
CONFIGS = ("model_index.json", "*/*.json", "*/*.txt", "*/*.model", "*/*.jinja")
# a repository's root may hold the same weights once more, as one file; fp16 copies too
WANTED = [*CONFIGS, "README.md", "LICENSE*", "*/*.safetensors"]
UNWANTED = ["*.fp16.*", "*fp16*/*"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument_group("text_to_image").add_argument
    add("--weights", required=True, metavar="FOLDER|HUB_ID",
        help="a text-to-image pipeline of diffusers")
    add("--prompt", default="a photo of a {}", metavar="TEXT",
        help="template; {} becomes the class name (default: '%(default)s')")
    add("--steps", type=positive_int, default=None, metavar="T",
        help="sampling steps, the pipeline's num_inference_steps (default: its own)")
    add("--guidance-scale", type=nonnegative_float, default=None, metavar="S",
        help="the pipeline's guidance_scale (default: its own)")
    add("--render-size", type=positive_int, default=None, metavar="PIXELS",
        help="side of the images the pipeline makes (default: its own)")
    add("--resolution", type=positive_int, default=None, metavar="PIXELS",
        help="side of the stored images, resized with antialiasing (default: the task's, "
             f"{LARGE_SIDE} for large images)")
    add("--dtype", choices=("bf16", "fp32"), default=None,
        help="of the networks (default: bf16 on GPUs that have it, else fp32)")


class TextToImageGenerator:
    """A pipeline with its prompts, by class index, and the other keywords of its call."""

    labels_known = True

    def __init__(self, pipeline, prompts: list[str], call: dict, resolution: int, channels: int,
                 settings: dict):
        self.pipeline, self.prompts, self.call = pipeline, prompts, call
        self.resolution, self.channels, self.settings = resolution, channels, settings

    @torch.no_grad()
    def sample(self, labels: Tensor, seeds: list[int]) -> Tensor:
        """uint8 [B, C, H, H] on the CPU."""
        images = self.pipeline(
            prompt=[self.prompts[label] for label in labels.tolist()],
            generator=[torch.Generator().manual_seed(seed) for seed in seeds],
            output_type="np", **self.call).images
        images = torch.from_numpy(images).permute(0, 3, 1, 2).float()  # [B, 3, H, W] in [0, 1]
        if not torch.isfinite(images).all():
            raise UserError("the generator made NaN or infinite values", "--dtype fp32")
        if self.channels == 1:
            images = (images * torch.tensor(GREY).view(1, 3, 1, 1)).sum(1, keepdim=True)
        images = (images * 255 + 0.5).clamp(0, 255).to(torch.uint8)
        if images.shape[2:] != (self.resolution, self.resolution):
            images = augment.resize(images, self.resolution, self.resolution)
        return images.contiguous()


def build(args: argparse.Namespace, task: Task, device: torch.device) -> TextToImageGenerator:
    """The generator of the flags."""
    if args.prompt.count("{}") != 1:
        raise UserError(f"--prompt '{args.prompt}' needs one {{}} for the class name")
    import diffusers
    import transformers
    from huggingface_hub import snapshot_download

    hub, folder = weights.is_hub_id(args.weights), args.weights
    if hub:
        folder = snapshot_download(folder, allow_patterns=WANTED, ignore_patterns=UNWANTED)
    folder = Path(folder)
    bf16 = device.type == "cuda" and multiplies_bf16(device)
    dtype = args.dtype or ("bf16" if bf16 else "fp32")
    pipeline = load(folder, diffusers, torch.bfloat16 if dtype == "bf16" else torch.float32)
    call = call_settings(pipeline.to(device), args)
    prompts = [args.prompt.replace("{}", name.replace("_", " ")) for name in task.class_names]
    resolution = args.resolution or (LARGE_SIDE if task.large else task.resolution)
    settings = {
        "name": "text_to_image", "pipeline": type(pipeline).__name__,
        "weights_sha256": weights.digest(sorted(folder.glob("*/*.safetensors"))),
        "configs_sha256": weights.digest(sorted(  # scheduler and tokenizers make bytes too
            path for pattern in CONFIGS for path in folder.glob(pattern))),
        "licence": weights.model_card_licence(folder) or "unknown", "prompt": args.prompt,
        "prompts": prompts, **call, "dtype": dtype, "diffusers": diffusers.__version__,
        "transformers": transformers.__version__}
    settings |= {"weights_hub_id": args.weights} if hub else {}
    return TextToImageGenerator(pipeline, prompts, call, resolution, task.channels, settings)


def load(folder: Path, diffusers, dtype: torch.dtype):
    """The pipeline of a folder, from safetensors.

    Raises:
        UserError: no text-to-image pipeline, or a part not of diffusers or transformers."""
    index_file = folder / "model_index.json"
    index = run.read_json(index_file)
    for name, value in index.items():
        if name in CHECKERS or not isinstance(value, list) or value == [None, None]:
            continue
        package = str(value[0])
        if package not in LIBRARIES and (  # a folder of the pipeline's own may hold code
                Path(package).name != package or not hasattr(diffusers.pipelines, package)):
            raise UserError(f"{index_file}: the part '{name}' is {value}, not of diffusers "
                            "or transformers and could run code")
    kind = getattr(diffusers, str(index.get("_class_name")), None)
    accepted = inspect.signature(kind.__call__).parameters if kind else {}
    if not {"prompt", "generator", "output_type"} <= accepted.keys() or (
            {"strength", "mask_image"} & accepted.keys()):  # those change a picture
        raise UserError(f"{index_file}: {index.get('_class_name')} is no text-to-image pipeline of "
                        f"diffusers {diffusers.__version__}")
    left_out = {name: value for name, value in CHECKERS.items() if name in index}
    pipeline = kind.from_pretrained(folder, use_safetensors=True, local_files_only=True,
                                    torch_dtype=dtype, **left_out)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def call_settings(pipeline, args: argparse.Namespace) -> dict:
    """The keywords that the pipeline is called with: the flags, else its own defaults."""
    accepted = inspect.signature(pipeline.__call__).parameters
    wanted = {"num_inference_steps": args.steps, "guidance_scale": args.guidance_scale,
              "height": args.render_size, "width": args.render_size}
    call = {}
    for name, value in wanted.items():
        if value is not None and name not in accepted:
            raise UserError(f"{type(pipeline).__name__} has no {name}", "leave the flag out")
        value = accepted[name].default if value is None and name in accepted else value
        if value is not None:
            call[name] = value
    return call
