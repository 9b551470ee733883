"""Public weights for the DiT: both layouts, files and the hub, and the decoder of its latents.

Original (facebookresearch/DiT): one file with a state dict, bare or under `ema` or `model`; the
sizes are read off the shapes. diffusers: a folder or a hub repository with transformer/, scheduler/
and vae/. Both become one state dict with the original's keys, so both make the same images.

    python -m dm_kd.synthesize --task imagenet --weights DiT-XL-2-256x256.pt --out syn_dataset/NAME
    python -m dm_kd.synthesize --task imagenet --weights facebook/DiT-XL-2-256 \\
        --out syn_dataset/NAME
"""

import argparse
import math
import re
import zipfile
from collections.abc import Iterator
from pathlib import Path

import torch
import torch.utils.serialization
from torch import Tensor, nn

from dm_kd import files
from dm_kd.errors import DamagedError, Stopped, UserError

LATENT_CHANNELS = 4
DEFAULT_VAE = "stabilityai/sd-vae-ft-mse"  # the paper's
SD_VAE_SCALE = 0.18215
VAE_CHUNK = 8  # images decoded at once: about 2 GB of activations at 256 x 256 in float32
MODEL_FILE = "diffusion_pytorch_model"
FILE_KINDS = (".pt", ".pth", ".bin", ".safetensors")
# What the network was trained for; a sampler of another process would make other images.
PROCESS = {"beta_schedule": "linear", "beta_start": 1e-4, "beta_end": 0.02,
           "num_train_timesteps": 1000, "prediction_type": "epsilon"}
# DiT-XL/2 at 256 and 512, the only public weights of facebookresearch/DiT.
PUBLISHED = {"patch_size": 2, "channels": 4, "width": 1152, "depth": 28, "heads": 16,
             "num_classes": 1000, "learn_sigma": True}
PUBLISHED_LICENCE = "CC-BY-NC 4.0"


def read(spec: str) -> tuple[dict, dict[str, Tensor], dict]:
    """Weights in a public layout: a file, a diffusers folder or a hub id.

    Returns:
        DiT's config; the state dict in our keys, as stored (diffusers stores no pos_embed); a card
        with sha256, licence, task (None), clip, pipeline (a VAE comes with it) and, from the hub,
        hub_id.

    Raises:
        UserError: nothing there, not a DiT, another process, or it would run code.
        DamagedError: truncated or malformed.
    """
    if is_hub_id(spec):
        folder = fetch(spec, "--weights", "transformer/", "scheduler/scheduler_config.json",
                       "README.md")
        config, state, card = _read_diffusers(folder)
        return config, state, {**card, "hub_id": spec}
    path = files.must_exist(Path(spec), "--weights", "generator weights")
    if (path / "transformer").is_dir():
        return _read_diffusers(path)
    if path.is_dir():
        raise UserError("the folder holds no finished DiT", folder=path,
                        hint="train one with `python -m dm_kd.train_generator --out FOLDER`, or "
                             "give a diffusers folder")
    refuse_pickle(path)
    if path.suffix not in FILE_KINDS:
        raise UserError("the file is no weights file by its name", file=path,
                        hint="--weights FOLDER, HUB_ID, or FILE" + ", ".join(FILE_KINDS))
    return _read_original(path)


def refuse_pickle(path: Path) -> None:
    """EDM2's networks are only published as pickled Python objects; loading one runs its code."""
    if path.suffix == ".pkl":
        raise UserError("a .pkl file runs code when it is loaded (EDM2's networks are such files); "
                        "it was refused, nothing was read", file=path,
                        hint="a generator whose weights are plain tensors: .pt or .safetensors")


def not_a_dit(where: object, found: str) -> UserError:
    return UserError("the weights are not those of a DiT", weights=where, found=found[:110],
                     hint="a DiT checkpoint in the original layout, or a diffusers folder")


# --- the original layout --------------------------------------------------------------------------

def _read_original(file: Path) -> tuple[dict, dict[str, Tensor], dict]:
    state = unwrap(read_tensors(file), file)
    if any(key.startswith("transformer_blocks.") for key in state):
        raise UserError("a diffusers file cannot be read without its config.json", file=file,
                        hint="--weights with the folder that holds transformer/")
    config = sizes(state, file)
    return config, state, _card(config, [file])


def read_tensors(file: Path) -> dict:
    """A file of tensors, mapped rather than read where its format allows.

    A training checkpoint of DiT holds its flags as an argparse.Namespace, so that one class is
    allowed.

    Raises:
        UserError: the file would run code (nothing is run).  DamagedError: truncated.
    """
    if file.suffix == ".safetensors":
        return files.load_safetensors(file)
    mapped = file.is_file() and zipfile.is_zipfile(file)  # torch's older format is none
    with (torch.utils.serialization.config.patch({"load.mmap": mapped}),
          torch.serialization.safe_globals([argparse.Namespace])):
        return files.load_pt(file)


def unwrap(state: object, file: Path) -> dict[str, Tensor]:
    """The averaged weights of a training checkpoint, else its model's, else the file's own."""
    for wrapper in ("ema", "model"):
        if isinstance(state, dict) and isinstance(state.get(wrapper), dict):
            state = state[wrapper]
            break
    if not isinstance(state, dict) or not state or not all(
            isinstance(key, str) and isinstance(value, Tensor) and value.is_floating_point()
            and value.layout == torch.strided and value.device.type == "cpu"
            for key, value in state.items()):
        raise not_a_dit(file, "no state dict of real numbers, bare or under 'ema' or 'model'")
    return dict(state)


def sizes(state: dict[str, Tensor], where: Path, input_size: int | None = None,
           heads: int | None = None) -> dict:
    """DiT's config from the shapes of a state dict in our layout.

    Args:
        input_size, heads: where the shapes do not tell them.
    """
    try:
        width, channels, patch_size, _ = state["x_embedder.proj.weight"].shape
        out_channels = len(state["final_layer.linear.bias"]) // patch_size ** 2
        side = input_size or math.isqrt(state["pos_embed"].shape[1]) * patch_size
        config = {
            "input_size": side, "patch_size": patch_size, "channels": channels, "width": width,
            "depth": len({key.split(".")[1] for key in state if key.startswith("blocks.")}),
            "heads": heads or _heads(width, where),
            "num_classes": len(state["y_embedder.embedding_table.weight"]) - 1}
    except KeyError as error:
        raise not_a_dit(where, f"no {error.args[0]}") from error
    except (ValueError, TypeError, IndexError, ArithmeticError) as error:
        raise not_a_dit(where, "tensors of other shapes") from error
    if min(config.values()) < 1 or side % patch_size or width % 4 or width % config["heads"]:
        raise not_a_dit(where, f"sizes that do not fit together: {config}")
    return {**config, "learn_sigma": out_channels == 2 * channels}


def _heads(width: int, where: Path) -> int:
    """DiT-S, B and L have 64 channels per head (6, 12, 16), XL has 72 (16)."""
    if width % 64:
        raise UserError(f"cannot tell the attention heads of a DiT of width {width}", file=where,
                        hint="a diffusers folder, whose config.json tells them")
    return 16 if width == 1152 else width // 64


def _card(config: dict, paths: list[Path], folder: Path | None = None) -> dict:
    """What the weights do not say of themselves; `folder` is that of diffusers' layout."""
    licence = PUBLISHED_LICENCE if PUBLISHED.items() <= config.items() else "unknown"
    said = model_card_licence(folder) if folder else None
    return {"sha256": digest(paths), "licence": said or licence,
            "task": None, "clip": config["channels"] != LATENT_CHANNELS,
            "pipeline": folder is not None}


# --- diffusers' layout ----------------------------------------------------------------------------

# Ours (the original checkpoint's) module -> those of diffusers' DiTTransformer2DModel, in the order
# in which their rows are stacked. * = block number; diffusers keeps a copy of each embedding in
# every block. Its position table is computed, not stored.
DIFFUSERS_NAMES = {
    "x_embedder.proj": ("pos_embed.proj",),
    "t_embedder.mlp.0": ("transformer_blocks.*.norm1.emb.timestep_embedder.linear_1",),
    "t_embedder.mlp.2": ("transformer_blocks.*.norm1.emb.timestep_embedder.linear_2",),
    "y_embedder.embedding_table": (
        "transformer_blocks.*.norm1.emb.class_embedder.embedding_table",),
    "blocks.*.attn.qkv": ("transformer_blocks.*.attn1.to_q", "transformer_blocks.*.attn1.to_k",
                          "transformer_blocks.*.attn1.to_v"),
    "blocks.*.attn.proj": ("transformer_blocks.*.attn1.to_out.0",),
    "blocks.*.mlp.fc1": ("transformer_blocks.*.ff.net.0.proj",),
    "blocks.*.mlp.fc2": ("transformer_blocks.*.ff.net.2",),
    "blocks.*.adaLN_modulation.1": ("transformer_blocks.*.norm1.linear",),
    "final_layer.linear": ("proj_out_2",),
    "final_layer.adaLN_modulation.1": ("proj_out_1",),
}


def _layouts(depth: int) -> Iterator[tuple[str, list[str]]]:
    """(our key, the keys of diffusers that make it up); ours comes again for each copy."""
    for ours, theirs in DIFFUSERS_NAMES.items():
        copies = depth if "*" in theirs[0] else 1
        kinds = ("weight",) if ours.endswith("embedding_table") else ("weight", "bias")
        for block in range(copies):
            for kind in kinds:
                yield (f"{ours}.{kind}".replace("*", str(block)),
                       [f"{name}.{kind}".replace("*", str(block)) for name in theirs])


def to_diffusers(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Our state dict -> that of diffusers' DiTTransformer2DModel, no two entries in one memory."""
    depth = len({key.split(".")[1] for key in state if key.startswith("blocks.")})
    return {key: part.clone() for ours, theirs in _layouts(depth)
            for key, part in zip(theirs, state[ours].chunk(len(theirs)), strict=True)}


def from_diffusers(state: dict[str, Tensor], where: object = "") -> dict[str, Tensor]:
    """diffusers' state dict -> ours, without pos_embed, which diffusers computes.

    Raises:
        UserError: keys are missing or unknown, or the per-block embedding tables differ: ours, and
            the original, have one (diffusers' training drops labels in each block on its own).
    """
    depth = len({key.split(".")[1] for key in state if key.startswith("transformer_blocks.")})
    layouts = list(_layouts(depth))
    expected = {key for _, theirs in layouts for key in theirs}
    missing, unknown = sorted(expected - state.keys()), sorted(state.keys() - expected)
    if missing or unknown or not depth:
        raise UserError("the weights are not those of a DiTTransformer2DModel", weights=where,
                        missing=", ".join(missing[:2]) or "nothing",
                        unknown=", ".join(unknown[:2]) or "nothing")
    converted = {}
    for ours, theirs in layouts:
        parts = [state[key] for key in theirs]
        value = torch.cat(parts) if len(parts) > 1 else parts[0]
        if not torch.equal(converted.setdefault(ours, value), value):
            raise UserError("the blocks' embedding tables differ; a DiT has one for all",
                            weights=where, key=theirs[0],
                            hint="weights of the original DiT, not trained in diffusers")
    return converted


def _read_diffusers(folder: Path) -> tuple[dict, dict[str, Tensor], dict]:
    _check_process(folder / "scheduler" / "scheduler_config.json")
    config_file = folder / "transformer" / "config.json"
    theirs = _read_config(config_file)
    for name in ("sample_size", "num_attention_heads"):
        if type(theirs.get(name)) is not int or theirs[name] < 1:
            raise DamagedError(f"config.json: '{name}' is missing or wrong", file=config_file,
                               found=repr(theirs.get(name))[:60])
    paths, state = weight_files(folder / "transformer"), {}
    for path in paths:
        state |= unwrap(read_tensors(path), path)
    state = from_diffusers(state, folder)
    config = sizes(state, folder, theirs["sample_size"], theirs["num_attention_heads"])
    _check_config(theirs, config, config_file)
    return config, state, _card(config, paths, folder)


def _read_config(file: Path) -> dict:
    if not file.is_file():
        raise UserError(f"{file.parent.name}/{file.name} is missing", folder=file.parent,
                        hint="the whole diffusers folder: transformer/, scheduler/ and vae/")
    return files.read_json(file)


def _check_process(file: Path) -> None:
    """The noise schedule that the folder was trained with must be ours."""
    theirs = _read_config(file)
    known = {name: theirs.get(name) for name in PROCESS}
    known |= {name: theirs[name] for name in ("trained_betas", "rescale_betas_zero_snr")
              if theirs.get(name)}
    for name, value in known.items():
        if value != PROCESS.get(name):
            raise UserError(f"the DiT was trained on another process: {name} is {value}",
                            file=file, hint="weights trained with linear betas from 1e-4 to 0.02, "
                                            "1000 steps, epsilon prediction")


def _check_config(theirs: dict, ours: dict, file: Path) -> None:
    """config.json must describe the weights that lie beside it."""
    outputs = ours["channels"] * (2 if ours["learn_sigma"] else 1)
    expected = {
        "attention_head_dim": ours["width"] // ours["heads"], "num_layers": ours["depth"],
        "patch_size": ours["patch_size"], "in_channels": ours["channels"], "out_channels": outputs,
        "num_embeds_ada_norm": ours["num_classes"], "activation_fn": "gelu-approximate",
        "norm_type": "ada_norm_zero"}
    known = {name: theirs.get(name) for name in expected}
    known["out_channels"] = known["out_channels"] or known["in_channels"]  # null: as many
    for name, value in expected.items():
        if known[name] != value:
            raise UserError(f"config.json does not describe the weights: {name}", file=file,
                            found=f"{known[name]}, the weights need {value}",
                            hint="config.json and weights of one DiT")


def model_card_licence(folder: Path) -> str | None:
    """What the model card (README.md, the YAML between its first two rules) says."""
    card = folder / "README.md"
    parts = card.read_text(errors="replace").split("---") if card.is_file() else []
    found = re.search(r"^license: *(\S+)", parts[1], re.M) if len(parts) > 2 else None
    return found[1] if found else None


def weight_files(folder: Path) -> list[Path]:
    """The file of weights, or the several that an index names.

    Raises:
        UserError: there is none.  DamagedError: a bad index.
    """
    index = folder / f"{MODEL_FILE}.safetensors.index.json"
    names = [f"{MODEL_FILE}.safetensors", f"{MODEL_FILE}.bin"]
    whole = [folder / name for name in names if (folder / name).is_file()]
    if whole or not index.is_file():
        if not whole:
            raise UserError(f"{folder.name}/ holds no weights", folder=folder,
                            hint=f"download {' or '.join(names)} as well")
        return whole[:1]
    shards = files.read_json(index).get("weight_map")
    shards = sorted({str(name) for name in shards.values()}) if isinstance(shards, dict) else []
    if not shards or any(Path(name).name != name for name in shards):
        raise DamagedError("the index of weights names no files beside it", file=index)
    for name in shards:
        if not (folder / name).is_file():
            raise UserError(f"{folder.name}/ lacks {name}, which its index names", folder=folder,
                            hint="a whole download")
    return [folder / name for name in shards]


def digest(paths: list[Path]) -> str:
    """SHA-256 of a file; of several, that of their digests one after the other."""
    digests = [files.sha256_file(path) for path in paths]
    return digests[0] if len(digests) == 1 else files.sha256("".join(digests).encode())


# --- the hub --------------------------------------------------------------------------------------

def is_hub_id(spec: str) -> bool:
    """OWNER/NAME where no folder OWNER is here; otherwise it is a path, perhaps a mistyped one."""
    return (re.fullmatch(r"[\w.-]+/[\w.-]+", spec) is not None
            and Path(spec).suffix not in FILE_KINDS and not Path(spec).parent.exists())


def fetch(repository: str, flag: str, part: str, *others: str) -> Path:
    """Download a part of a hub repository: its config and weights, and other files.

    Args:
        part: "transformer/", "vae/" or "" (the repository is that part).

    Returns:
        The local copy of the repository.

    Raises:
        UserError: not there, no network, or huggingface_hub is missing.
    """
    try:
        from huggingface_hub import snapshot_download
    except ImportError as error:
        raise UserError(f"{flag} {repository} needs huggingface_hub", hint="pip install "
                        f"huggingface_hub, or {flag} with a folder") from error
    # facebook/DiT-XL-2-256 has .bin only; others have both kinds, of which one is enough
    for kinds in ((".safetensors", ".safetensors.index.json", "-*.safetensors"), (".bin",)):
        wanted = [f"{part}{MODEL_FILE}{kind}" for kind in kinds]
        try:
            folder = Path(snapshot_download(repository, allow_patterns=[
                f"{part}config.json", *wanted, *others]))
        except Stopped:
            raise
        except Exception as error:  # the hub's, the network's and the cache's: many classes
            lines = str(error).strip().splitlines() or [type(error).__name__]
            raise UserError(f"{flag} {repository}: no such path here, and the hub gave nothing",
                            found=lines[0][:110], hint=f"{flag} with a folder, or the same "
                            "command once with a network") from error
        if any((folder / part).glob(f"{MODEL_FILE}*.safetensors")):
            break
    return folder


# --- latents --------------------------------------------------------------------------------------

class Vae:
    """Decoder of Stable Diffusion's latents.

    Args:
        model: diffusers' AutoencoderKL.
        settings: vae_sha256, vae_scaling_factor, diffusers' version and, from the hub, vae_hub_id.
    """

    def __init__(self, model: nn.Module, settings: dict):
        self.model, self.settings = model, settings
        self.channels = model.config.out_channels
        self.factor = 2 ** (len(model.config.block_out_channels) - 1)  # pixels per latent cell

    def decode(self, latents: Tensor) -> Tensor:
        """float32 [B, 4, h, w] -> [B, 3, 8 h, 8 w], about -1 to 1."""
        latents = latents / self.settings["vae_scaling_factor"]
        return torch.cat([self.model.decode(part).sample for part in latents.split(VAE_CHUNK)])


def load_vae(spec: str, part: str = "") -> Vae:
    """The autoencoder of a folder or hub id, in float32 on the CPU.

    Args:
        part: "vae/" where it is a part of the folder or repository.

    Raises:
        UserError: nothing there, another kind of model, or diffusers is missing.
        DamagedError: truncated, or its config does not fit.
    """
    try:
        import diffusers
    except ImportError as error:
        raise UserError("decoding latents needs diffusers", hint="pip install diffusers"
                        ) from error
    hub = is_hub_id(spec)
    folder = (fetch(spec, "--vae", part) if hub else Path(spec)) / part
    if not (folder / "config.json").is_file():
        raise UserError("no VAE there: config.json is missing", folder=folder,
                        hint="--vae with a folder of AutoencoderKL (config.json and "
                             f"{MODEL_FILE}.safetensors), or a hub id")
    config = files.read_json(folder / "config.json")
    if config.get("_class_name") != "AutoencoderKL" or (
            config.get("latent_channels", LATENT_CHANNELS) != LATENT_CHANNELS):
        raise UserError("the VAE is no AutoencoderKL with 4 latent channels", folder=folder,
                        found=f"{config.get('_class_name')} with {config.get('latent_channels')}",
                        hint=f"--vae {DEFAULT_VAE}")
    paths = weight_files(folder)
    for path in paths:
        read_tensors(path)  # damage and hostile pickles end here, before diffusers reads them
    try:
        model, loaded = diffusers.AutoencoderKL.from_pretrained(
            folder, torch_dtype=torch.float32, low_cpu_mem_usage=False, output_loading_info=True)
        unfit = [*loaded["missing_keys"], *loaded["unexpected_keys"]]  # diffusers only warns
    except (OSError, ValueError, TypeError, ArithmeticError, RuntimeError) as error:
        unfit = [(str(error).strip().splitlines() or [""])[0]]
    if unfit:
        raise DamagedError("the VAE's config.json does not fit its weights", folder=folder,
                           found=str(unfit[0])[:110])
    scale = model.config.scaling_factor
    if scale != SD_VAE_SCALE:
        print(f"note: the VAE's scaling factor is {scale:g}, sd-vae's is {SD_VAE_SCALE}")
    settings = {"vae_sha256": digest(paths), "vae_scaling_factor": scale,
                "diffusers": diffusers.__version__}
    return Vae(model, settings | ({"vae_hub_id": spec} if hub else {}))
