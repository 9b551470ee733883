"""Any text-to-image pipeline of diffusers, prompted with a task's class names.

For label spaces that no class-conditional generator has (CIFAR-100, Flowers-102, a folder of one's
own): Stable Diffusion, SDXL-Turbo, Sana-Sprint, FLUX.2 and the like, by hub id or folder. Needs
transformers (an extra) beside diffusers.

    python -m dm_kd.synthesize --task flowers102 --generator text_to_image \\
        --weights stabilityai/sdxl-turbo --prompt "a photo of a {}, a type of flower" --steps 4 \\
        --guidance-scale 0 --images-per-class 100 --out syn_dataset/flowers102_sdxl_turbo

Each image has a random generator of its own, on the CPU, so that its noise does not hang on its
batch. What is not given (steps, guidance, size) is the pipeline's own default, and recorded. Only
safetensors weights and components of diffusers and transformers are loaded, so that nothing in a
folder can run code. A checker that blackens pictures is left out, since black pictures teach
nothing.
"""

import argparse
import importlib.metadata
import inspect
from pathlib import Path

import torch
from torch import Tensor

from dm_kd import augment, files
from dm_kd.errors import DamagedError, Stopped, UserError
from dm_kd.generators import dit_weights
from dm_kd.run import multiplies_bf16
from dm_kd.tasks import Task

PROMPT = "a photo of a {}"
LARGE_SIDE = 256  # pixels of an image for tasks of large images, as DiT's
LIBRARIES = ("diffusers", "transformers")
CHECKERS = {"safety_checker": None, "requires_safety_checker": False}
GREY = (0.299, 0.587, 0.114)  # ITU-R BT.601, as Pillow's
# newer tokenizers keep the template that a prompt is put into as chat_template.jinja
CONFIGS = ("model_index.json", "*/*.json", "*/*.txt", "*/*.model", "*/*.jinja")
# a repository's root may hold the same weights once more, as one file; fp16 copies too
WANTED = (*CONFIGS, "README.md", "LICENSE*", "*/*.safetensors")


def prompt(text: str) -> str:
    """A template with one {}."""
    if text.count("{}") != 1 or "{" in text.replace("{}", ""):
        raise argparse.ArgumentTypeError(f"'{text}' needs one {{}} for the class name")
    return text


def add_arguments(parser: argparse.ArgumentParser) -> None:
    from dm_kd.run import nonnegative_float, positive_int

    group = parser.add_argument_group("text_to_image")
    group.add_argument("--weights", required=True, metavar="FOLDER|HUB_ID",
                       help="a text-to-image pipeline of diffusers")
    group.add_argument("--prompt", type=prompt, default=PROMPT, metavar="TEXT",
                       help="template; {} becomes the class name (default: '%(default)s')")
    group.add_argument("--steps", type=positive_int, default=None, metavar="T",
                       help="sampling steps, the pipeline's num_inference_steps (default: its own)")
    group.add_argument("--guidance-scale", type=nonnegative_float, default=None, metavar="S",
                       help="the pipeline's guidance_scale (default: its own)")
    group.add_argument("--render-size", type=positive_int, default=None, metavar="PIXELS",
                       help="side of the images the pipeline makes (default: its own)")
    group.add_argument("--resolution", type=positive_int, default=None, metavar="PIXELS",
                       help="side of the stored images, resized with antialiasing (default: the "
                            f"task's, {LARGE_SIDE} for large images)")
    group.add_argument("--dtype", choices=("bf16", "fp32"), default=None,
                       help="of the networks (default: bf16 on GPUs that have it, else fp32)")


class TextToImageGenerator:
    """A pipeline with its prompts: `sample(labels, seeds) -> uint8 images`.

    Args:
        call: what the pipeline is called with beside prompts and generators.
        prompts: by class index.
    """

    labels_known = True

    def __init__(self, pipeline, prompts: list[str], call: dict, resolution: int, channels: int,
                 settings: dict):
        self.pipeline, self.prompts, self.call = pipeline, prompts, call
        self.resolution, self.channels, self.settings = resolution, channels, settings

    @torch.inference_mode()
    def sample(self, labels: Tensor, seeds: list[int]) -> Tensor:
        """-> uint8 [B, C, H, H] on the CPU.

        Raises:
            UserError: the pipeline made NaN or infinite values."""
        images = self.pipeline(
            prompt=[self.prompts[label] for label in labels.tolist()],
            generator=[torch.Generator().manual_seed(seed) for seed in seeds],
            output_type="np", **self.call).images
        images = torch.from_numpy(images).permute(0, 3, 1, 2).float()  # [B, 3, H, W] in [0, 1]
        if not torch.isfinite(images).all():
            raise UserError("the generator made NaN or infinite values", hint="--dtype fp32")
        if self.channels == 1:
            images = (images * torch.tensor(GREY).view(1, 3, 1, 1)).sum(1, keepdim=True)
        images = (images * 255 + 0.5).clamp(0, 255).to(torch.uint8)
        if images.shape[2:] != (self.resolution, self.resolution):
            images = augment.resize(images, self.resolution, self.resolution)
        return images.contiguous()


def build(args: argparse.Namespace, task: Task, device: torch.device) -> TextToImageGenerator:
    """The generator that the flags describe.

    Raises:
        UserError: nothing there, no text-to-image pipeline, a flag it does not take, or a missing
            package.
        DamagedError: bad files.
    """
    diffusers = _diffusers()
    hub = dit_weights.is_hub_id(args.weights)
    folder = _fetch(args.weights) if hub else Path(args.weights)
    index = check_folder(folder, diffusers)
    bf16 = device.type == "cuda" and multiplies_bf16(device)
    dtype = args.dtype or ("bf16" if bf16 else "fp32")
    pipeline = _load(diffusers, folder, index, dtype).to(device)
    call = settings_of(pipeline, args)
    prompts = [args.prompt.replace("{}", name.replace("_", " ")) for name in task.class_names]
    resolution = args.resolution or (LARGE_SIDE if task.crop else task.resolution)
    settings = {
        "name": "text_to_image", "pipeline": index["_class_name"],
        "weights_sha256": dit_weights.digest(sorted(folder.glob("*/*.safetensors"))),
        "configs_sha256": dit_weights.digest(sorted(  # scheduler and tokenizers make bytes too
            path for pattern in CONFIGS for path in folder.glob(pattern))),
        "licence": dit_weights.model_card_licence(folder) or "unknown", "prompt": args.prompt,
        "prompts": prompts, **call, "dtype": dtype, "diffusers": diffusers.__version__,
        "transformers": importlib.metadata.version("transformers")}
    settings |= {"weights_hub_id": args.weights} if hub else {}
    return TextToImageGenerator(pipeline, prompts, call, resolution, task.channels, settings)


def _diffusers():
    try:
        import diffusers
        import transformers  # noqa: F401
    except ImportError as error:
        raise UserError("--generator text_to_image needs diffusers and transformers",
                        found=str(error)[:100], hint="pip install diffusers transformers"
                        ) from error
    return diffusers


def check_folder(folder: Path, diffusers) -> dict:
    """A pipeline's model_index.json, where all of its parts are diffusers' and transformers' own.

    Raises:
        UserError: no pipeline, or parts of other packages.  DamagedError: not JSON.
    """
    file = folder / "model_index.json"
    if not file.is_file():
        raise UserError("no text-to-image pipeline there (no model_index.json)", folder=folder,
                        hint="--weights with a folder of diffusers, or a hub id such as "
                             "stabilityai/sdxl-turbo")
    index = files.read_json(file)
    for name, value in index.items():
        if name in CHECKERS or not isinstance(value, list) or value == [None, None]:
            continue
        own = value and (value[0] in LIBRARIES or hasattr(diffusers.pipelines, str(value[0])))
        if not own or Path(str(value[0])).name != value[0]:
            raise UserError(f"the pipeline's part '{name}' is not of diffusers or transformers",
                            file=file, found=str(value)[:100],
                            hint="a pipeline without code of its own")
    if not isinstance(index.get("_class_name"), str):
        raise DamagedError("model_index.json names no pipeline", file=file)
    return index


def _load(diffusers, folder: Path, index: dict, dtype: str):
    """The pipeline of a checked folder, from safetensors.

    Raises:
        UserError: another kind of pipeline, or no safetensors.  DamagedError: bad files.
    """
    import safetensors

    kind = getattr(diffusers, index["_class_name"], None)
    accepted = inspect.signature(kind.__call__).parameters if kind else {}
    if not {"prompt", "generator", "output_type"} <= accepted.keys() or (
            {"strength", "mask_image"} & accepted.keys()):  # those change a picture
        raise UserError(f"{index['_class_name']} is no text-to-image pipeline of this diffusers",
                        folder=folder, found=f"diffusers {diffusers.__version__}",
                        hint="a newer diffusers, or a text-to-image pipeline")
    parts = {name: value for name, value in CHECKERS.items() if name in index}
    try:
        pipeline = kind.from_pretrained(
            folder, use_safetensors=True, local_files_only=True,
            torch_dtype=torch.bfloat16 if dtype == "bf16" else torch.float32, **parts)
    except (OSError, ValueError, TypeError, RuntimeError, ImportError, AttributeError, KeyError,
            safetensors.SafetensorError) as error:
        raise DamagedError("the pipeline cannot be loaded", folder=folder,
                           found=(str(error).strip().splitlines() or [""])[0][:110],
                           hint="the whole folder, with safetensors weights; pip install -U "
                                "diffusers transformers") from error
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def settings_of(pipeline, args: argparse.Namespace) -> dict:
    """The keywords that the pipeline is called with: the flags, else its own defaults.

    Raises:
        UserError: it does not take one of them."""
    accepted = inspect.signature(pipeline.__call__).parameters
    wanted = {"num_inference_steps": args.steps, "guidance_scale": args.guidance_scale,
              "height": args.render_size, "width": args.render_size}
    call = {}
    for name, value in wanted.items():
        if value is not None and name not in accepted:
            raise UserError(f"{type(pipeline).__name__} has no {name}",
                            hint="leave the flag out")
        value = accepted[name].default if value is None and name in accepted else value
        if value is not None:
            call[name] = value
    return call


def _fetch(repository: str) -> Path:
    """Download a pipeline's parts; the local copy.

    Raises:
        UserError: not there, or no network."""
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(repository, allow_patterns=list(WANTED),
                                      ignore_patterns=["*.fp16.*", "*fp16*/*"]))
    except Stopped:
        raise
    except Exception as error:  # the hub's, the network's and the cache's: many classes
        lines = str(error).strip().splitlines() or [type(error).__name__]
        raise UserError(f"--weights {repository}: no such path here, and the hub gave nothing",
                        found=lines[0][:110], hint="--weights with a folder, or the same command "
                                                   "once with a network") from error
