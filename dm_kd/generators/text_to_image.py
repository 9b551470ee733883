"""Any text-to-image pipeline of diffusers (Stable Diffusion, SDXL-Turbo, FLUX.2 and the like),
prompted with a task's class names: for label spaces that no class-conditional generator has. Needs
transformers (an extra) beside diffusers.

Each image has its own random generator, on the CPU, so its noise does not depend on its batch.
Only safetensors are read and no Python file is downloaded or accepted, so nothing in a folder can
run code. A checker that blackens pictures is left out: black pictures teach nothing.
"""

import argparse
import sys

import torch
from torch import Tensor

from dm_kd import augment, run
from dm_kd.generators import weights
from dm_kd.run import UserError, multiplies_bf16, nonnegative_float, positive_int
from dm_kd.tasks import Task

LARGE_SIDE = 256  # pixels of an image for tasks of large images, as DiT's
# newer tokenizers keep the template that a prompt is put into as chat_template.jinja
FILES = ("README.md", "model_index.json", "*/*.json", "*/*.txt", "*/*.model", "*/*.jinja",
         "*/*.safetensors")


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
        help="side of the images the pipeline makes (default: its own); they are resized to the "
             f"task's, {LARGE_SIDE} for large images")


class TextToImageGenerator:
    """A pipeline with its prompts, by class index, and the other keywords of its call."""

    labels_known, channels = True, 3

    def __init__(self, pipeline, prompts: list[str], call: dict, resolution: int, settings: dict):
        self.pipeline, self.prompts, self.call = pipeline, prompts, call
        self.resolution, self.settings = resolution, settings

    @torch.no_grad()
    def sample(self, labels: Tensor, seeds: list[int]) -> Tensor:
        images = self.pipeline(
            prompt=[self.prompts[label] for label in labels.tolist()],
            generator=[torch.Generator().manual_seed(seed) for seed in seeds],
            output_type="np", **self.call).images
        images = torch.from_numpy(images).permute(0, 3, 1, 2).float()  # [B, 3, H, W] in [0, 1]
        if not torch.isfinite(images).all():
            raise UserError("the pipeline made NaN or infinite values")
        images = (images * 255 + 0.5).clamp(0, 255).to(torch.uint8)
        if images.shape[2:] != (self.resolution, self.resolution):
            images = augment.resize(images, self.resolution, self.resolution)
        return images.contiguous()


def distinct(class_names: tuple[str, ...]) -> list[str]:
    """The class names as words; where two differ in case alone, as ImageNet's Cardigans, the dog
    and the garment, with the class's number."""
    names = [name.replace("_", " ") for name in class_names]
    words = [name.casefold() for name in names]
    for i in [i for i, word in enumerate(words) if words.count(word) > 1]:
        names[i] += f", class {i}"
        print(f"note: another class has the same name: '{names[i]}'", file=sys.stderr)
    return names


def build(args: argparse.Namespace, task: Task, device: torch.device) -> TextToImageGenerator:
    import diffusers
    import transformers

    folder = weights.local(args.weights, FILES)
    code = next(folder.rglob("*.py"), None)  # diffusers would import it
    if code:
        raise UserError(f"{code} could run code; a pipeline needs none")
    bf16 = device.type == "cuda" and multiplies_bf16(device)
    pipeline = diffusers.DiffusionPipeline.from_pretrained(
        folder, use_safetensors=True, local_files_only=True, safety_checker=None,
        torch_dtype=torch.bfloat16 if bf16 else torch.float32).to(device)
    pipeline.set_progress_bar_config(disable=True)
    flags = {"num_inference_steps": args.steps, "guidance_scale": args.guidance_scale,
             "height": args.render_size, "width": args.render_size}
    call = {name: value for name, value in flags.items() if value is not None}
    prompts = [args.prompt.replace("{}", name) for name in distinct(task.class_names)]
    files = sorted(path for pattern in FILES[1:] for path in folder.glob(pattern))
    settings = {
        "name": "text_to_image",
        "pipeline_sha256": run.sha256("".join(map(run.sha256_file, files)).encode()),
        "licence": weights.model_card_licence(folder), "prompts": prompts, **call,
        "dtype": "bf16" if bf16 else "fp32",
        "diffusers": diffusers.__version__, "transformers": transformers.__version__}
    return TextToImageGenerator(pipeline, prompts, call,
                                LARGE_SIDE if task.large else task.resolution, settings)
