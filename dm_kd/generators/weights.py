"""Reads the weights of diffusion transformers; nothing in a file is run.

Three layouts become one state dict with the original's keys, so that all make the same images:

- the original (facebookresearch/DiT): a file with a state dict, bare or under `ema` or `model`; the
  sizes are read off the shapes;
- diffusers: a folder or a hub repository with transformer/, scheduler/ and vae/;
- a folder of train_generator: dit.safetensors and its card.
"""

import argparse
import math
import re
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

from dm_kd import run
from dm_kd.run import UserError

NAME = "dit"  # train_generator writes dit.safetensors and dit.json
MODEL_FILE = "diffusion_pytorch_model"
WRAPPERS = ("ema", "state_dict_ema", "model_ema", "model", "state_dict")  # averages come first
PREFIXES = ("module.", "_orig_mod.")  # of DistributedDataParallel and torch.compile
# What the network was trained for; a sampler of another process would make other images.
PROCESS = {"beta_schedule": "linear", "beta_start": 1e-4, "beta_end": 0.02,
           "num_train_timesteps": 1000, "prediction_type": "epsilon"}
# DiT-XL/2 at 256 and 512, the only public weights of facebookresearch/DiT.
PUBLISHED = {"patch_size": 2, "channels": 4, "width": 1152, "depth": 28, "heads": 16,
             "num_classes": 1000, "learn_sigma": True}
PUBLISHED_LICENCE = "CC-BY-NC 4.0"


def read(spec: str) -> tuple[dict, dict[str, Tensor], dict]:
    """DiT's config, its state dict in the original's keys as stored (diffusers stores no
    pos_embed), and a card: sha256, licence, clip, pipeline (a VAE comes with it), task (None where
    unknown) and, from the hub, hub_id.

    Raises:
        UserError: nothing there, not a DiT, another process, damaged, or it would run code.
    """
    if is_hub_id(spec):
        folder = fetch(spec, "transformer/", "scheduler/scheduler_config.json", "README.md")
        config, state, card = _read_diffusers(folder)
        return config, state, {**card, "hub_id": spec}
    path = Path(spec)
    folder = path.parent if path.name == f"{NAME}.safetensors" else path
    if (folder / f"{NAME}.json").is_file():
        state, card = run.read_with_card(folder, NAME)
        return card["config"], state, {"pipeline": False, **card}
    if path.is_dir():
        return _read_diffusers(path)
    state = read_state(path)
    config = sizes(state, path)
    return config, state, _card(config, [path])


def not_a_dit(where: object, reason: str) -> UserError:
    return UserError(f"{where}: the weights are not those of a DiT: {reason}",
                     "--weights with a checkpoint of the original, a diffusers folder or a folder "
                     "of train_generator")


# --- files of tensors -----------------------------------------------------------------------------

def read_tensors(file: Path) -> dict:
    """A file's content.

    Raises:
        UserError: it would run code (nothing is run), or is damaged."""
    if file.suffix == ".safetensors":
        return run.load_safetensors(file)
    # a training checkpoint of DiT holds its flags as an argparse.Namespace
    with torch.serialization.safe_globals([argparse.Namespace]):
        return run.load_pt(file)


def read_state(file: Path) -> dict[str, Tensor]:
    """The averaged weights of a checkpoint, else its model's, else the file's own; without the
    prefixes that wrappers add."""
    state = read_tensors(file)
    for wrapper in WRAPPERS:
        if isinstance(state, dict) and isinstance(state.get(wrapper), dict):
            state = state[wrapper]
            break
    if not isinstance(state, dict) or not state or not all(
            isinstance(key, str) and isinstance(value, Tensor) for key, value in state.items()):
        raise not_a_dit(file, "no state dict of tensors, bare or under 'ema' or 'model'")
    for prefix in PREFIXES:
        if all(key.startswith(prefix) for key in state):
            state = {key.removeprefix(prefix): value for key, value in state.items()}
    return dict(state)


def sizes(state: dict[str, Tensor], where: object, input_size: int | None = None,
          heads: int | None = None) -> dict:
    """DiT's config from the shapes of a state dict in the original's layout.

    Args:
        input_size, heads: where the shapes do not tell them.
    """
    try:
        width, channels, patch_size, _ = state["x_embedder.proj.weight"].shape
        out_channels = len(state["final_layer.linear.bias"]) // patch_size ** 2
        side = input_size or math.isqrt(state["pos_embed"].shape[1]) * patch_size
        classes = len(state["y_embedder.embedding_table.weight"]) - 1  # the last is the null class
    except (KeyError, ValueError, IndexError) as error:
        raise not_a_dit(where, f"no {error}") from error
    if heads is None and width % 64:
        raise UserError(f"{where}: the file does not tell the attention heads of a DiT of width "
                        f"{width}", "a diffusers folder, whose config.json tells them")
    depth = len({key.split(".")[1] for key in state if key.startswith("blocks.")})
    # DiT-S, B and L have 64 channels per head (6, 12, 16), XL has 72 (16)
    heads = heads or (16 if width == 1152 else width // 64)
    return {"input_size": side, "patch_size": patch_size, "channels": channels, "width": width,
            "depth": depth, "heads": heads, "num_classes": classes,
            "learn_sigma": out_channels == 2 * channels}


def _card(config: dict, paths: list[Path], folder: Path | None = None) -> dict:
    """What the weights do not say of themselves; `folder` is that of diffusers' layout."""
    licence = PUBLISHED_LICENCE if PUBLISHED.items() <= config.items() else "unknown"
    return {"sha256": digest(paths), "licence": folder and model_card_licence(folder) or licence,
            "task": None, "clip": config["channels"] != 4, "pipeline": folder is not None}


def digest(paths: list[Path]) -> str:
    """SHA-256 of a file; of several, that of their digests one after the other."""
    digests = [run.sha256_file(path) for path in paths]
    return digests[0] if len(digests) == 1 else run.sha256("".join(digests).encode())


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
        UserError: a key is missing or unknown, or the per-block embedding tables differ: ours, and
            the original, have one (diffusers' training drops labels in each block on its own).
    """
    depth = len({key.split(".")[1] for key in state if key.startswith("transformer_blocks.")})
    layouts = list(_layouts(depth))
    differing = {key for _, theirs in layouts for key in theirs} ^ state.keys()
    if differing or not depth:
        key = min(differing, default="transformer_blocks.0")
        raise not_a_dit(where, f"{key} is {'unknown' if key in state else 'missing'} in a "
                               "DiTTransformer2DModel")
    converted = {}
    for ours, theirs in layouts:
        parts = [state[key] for key in theirs]
        value = torch.cat(parts) if len(parts) > 1 else parts[0]
        if not torch.equal(converted.setdefault(ours, value), value):
            raise not_a_dit(where, f"the blocks' embedding tables differ: {theirs[0]}")
    return converted


def _read_diffusers(folder: Path) -> tuple[dict, dict[str, Tensor], dict]:
    process = run.read_json(folder / "scheduler" / "scheduler_config.json")
    for name in (*PROCESS, "trained_betas", "rescale_betas_zero_snr"):
        if (process.get(name) or None) != PROCESS.get(name):
            raise UserError(f"{folder}/scheduler: the DiT was trained on another process: {name} "
                            f"is {process.get(name)}, not {PROCESS.get(name)}")
    theirs = run.read_json(folder / "transformer" / "config.json")
    paths, state = weight_files(folder / "transformer"), {}
    for path in paths:
        state |= read_tensors(path)
    state = from_diffusers(state, folder)
    heads = theirs.get("num_attention_heads")
    config = sizes(state, folder, theirs.get("sample_size"), heads)
    # what the shapes do not show
    expected = {"attention_head_dim": config["width"] // config["heads"],
                "activation_fn": "gelu-approximate", "norm_type": "ada_norm_zero"}
    for name, value in expected.items():
        if theirs.get(name) != value:
            raise not_a_dit(folder, f"{name} is {theirs.get(name)} in config.json, not {value}")
    return config, state, _card(config, paths, folder)


def model_card_licence(folder: Path) -> str | None:
    """What the model card (README.md, the YAML between its first two rules) says."""
    card = folder / "README.md"
    parts = card.read_text(errors="replace").split("---") if card.is_file() else []
    line = re.search(r"^license: *(\S+)", parts[1], re.M) if len(parts) > 2 else None
    return line[1] if line else None


def weight_files(folder: Path) -> list[Path]:
    """The file of weights, or the several that an index names."""
    for name in (f"{MODEL_FILE}.safetensors", f"{MODEL_FILE}.bin"):
        if (folder / name).is_file():
            return [folder / name]
    index = run.read_json(folder / f"{MODEL_FILE}.safetensors.index.json")
    return [folder / Path(name).name for name in sorted(set(index["weight_map"].values()))]


# --- the hub --------------------------------------------------------------------------------------

def is_hub_id(spec: str) -> bool:
    """OWNER/NAME where no folder OWNER is here; otherwise it is a path, perhaps a mistyped one."""
    return (re.fullmatch(r"[\w.-]+/[\w.-]+", spec) is not None
            and Path(spec).suffix not in (".pt", ".pth", ".bin", ".safetensors")
            and not Path(spec).parent.exists())


def fetch(repository: str, part: str, *others: str) -> Path:
    """A local copy of a hub repository's part ("transformer/", "vae/", or "" if the repository is
    that part) and of other files."""
    from huggingface_hub import snapshot_download

    # facebook/DiT-XL-2-256 has .bin only; others have both kinds, of which one is enough
    for kinds in ((".safetensors", ".safetensors.index.json", "-*.safetensors"), (".bin",)):
        folder = Path(snapshot_download(repository, allow_patterns=[
            f"{part}config.json", *others, *(f"{part}{MODEL_FILE}{kind}" for kind in kinds)]))
        if any((folder / part).glob(f"{MODEL_FILE}*.safetensors")):
            break
    return folder
