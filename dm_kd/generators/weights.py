"""Reads the weights of diffusion transformers; nothing in a file is run.

Three layouts become one state dict with the original's keys: the original's file
(facebookresearch/DiT), whose shapes tell the sizes; diffusers' folder or hub repository with
transformer/; a folder of train_generator, dit.safetensors and its card.
"""

import math
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from dm_kd import run
from dm_kd.run import UserError

MODEL_FILE = "diffusion_pytorch_model"
FILES = ("README.md", "*config.json", f"*{MODEL_FILE}.safetensors", f"*{MODEL_FILE}.bin")
LICENCE = "that of the weights (published ones: DiT CC-BY-NC 4.0, SiT and iMF MIT)"


def read(spec: str) -> tuple[dict, dict[str, Tensor], dict]:
    """DiT's config, its state dict in the original's keys as stored (diffusers stores no
    pos_embed), and a card: sha256, licence."""
    path = local(spec)
    if (path / "dit.json").is_file():
        state, card = run.read_with_card(path, "dit")
        return card["config"], state, card
    if path.is_dir():
        theirs = run.read_json(path / "transformer" / "config.json")
        file = weight_file(path / "transformer")
        state = from_diffusers(read_state(file))
        config = sizes(state, path, theirs["sample_size"], theirs["num_attention_heads"])
        return config, state, card_of(file, model_card_licence(path))
    state = read_state(path)
    return sizes(state, path), state, card_of(path, LICENCE)


def card_of(file: Path, licence: str) -> dict:
    return {"sha256": run.sha256_file(file), "licence": licence}


def local(spec: str, patterns: Sequence[str] = FILES) -> Path:
    """The path of --weights or --vae. OWNER/NAME, where no folder OWNER is here, is a hub id, of
    which the files of these patterns are downloaded first."""
    if Path(spec).parent.exists() or not re.fullmatch(r"[\w.-]+/[\w.-]+", spec):
        return Path(spec)
    from huggingface_hub import snapshot_download

    return Path(snapshot_download(spec, allow_patterns=list(patterns), ignore_patterns=["*fp16*"]))


def read_state(file: Path) -> dict[str, Tensor]:
    """A checkpoint's averaged weights, else its model's, with the network's own keys."""
    from dm_kd import checkpoints

    state, facts = checkpoints.read(file)
    if "weights" in facts:
        print(f"{file}: {facts['weights']}", file=sys.stderr)
    return checkpoints.under_prefix(state, ["x_embedder.proj.weight"])[0]


def sizes(state: dict[str, Tensor], where: object, input_size: int | None = None,
          heads: int | None = None) -> dict:
    """DiT's config from the shapes of a state dict in the original's layout; input_size and heads
    where the shapes do not tell them."""
    try:
        width, channels, patch_size, _ = state["x_embedder.proj.weight"].shape
        out_channels = len(state["final_layer.linear.bias"]) // patch_size ** 2
        side = input_size or math.isqrt(state["pos_embed"].shape[1]) * patch_size
        classes = len(state["y_embedder.embedding_table.weight"]) - 1  # the last is the null class
    except KeyError as error:
        raise UserError(f"{where}: the weights are not those of a DiT: no {error}") from error
    if heads is None and width % 64:
        raise UserError(f"{where}: the file does not tell the attention heads of a DiT of width "
                        f"{width}", "a diffusers folder, whose config.json tells them")
    # DiT-S, B and L have 64 channels per head (6, 12, 16), XL has 72 (16)
    heads = heads or (16 if width == 1152 else width // 64)
    return {"input_size": side, "patch_size": patch_size, "channels": channels, "width": width,
            "depth": depth(state, "blocks"), "heads": heads, "num_classes": classes,
            "learn_sigma": out_channels == 2 * channels}


def depth(state: dict[str, Tensor], blocks: str) -> int:
    return len({key.split(".")[1] for key in state if key.startswith(f"{blocks}.")})


def fill(build: Callable[[], nn.Module], state: dict[str, Tensor], where: object) -> nn.Module:
    """The network of `build` in eval mode with these weights in float32; each is copied in turn:
    XL/2 needs 2.7 GB."""
    with torch.device("meta"):
        model = build()
    for key in state:
        state[key] = state[key].to(torch.float32, copy=True)
    try:
        model.load_state_dict(state, assign=True)
    except RuntimeError as error:  # its second line names keys
        raise UserError(f"{where}: the weights are not those of this network: "
                        f"{str(error).splitlines()[1].strip()[:200]}") from error
    return model.eval().requires_grad_(False)


# Ours (the original checkpoint's) module -> those of diffusers' DiTTransformer2DModel, in the order
# in which their rows are stacked. * = a block; diffusers keeps a copy of each embedding in every
# block. Its position table is computed, not stored.
DIFFUSERS_NAMES = {
    "x_embedder.proj": ["pos_embed.proj"],
    "t_embedder.mlp.0": ["transformer_blocks.*.norm1.emb.timestep_embedder.linear_1"],
    "t_embedder.mlp.2": ["transformer_blocks.*.norm1.emb.timestep_embedder.linear_2"],
    "y_embedder.embedding_table": ["transformer_blocks.*.norm1.emb.class_embedder.embedding_table"],
    "blocks.*.attn.qkv": [f"transformer_blocks.*.attn1.to_{part}" for part in "qkv"],
    "blocks.*.attn.proj": ["transformer_blocks.*.attn1.to_out.0"],
    "blocks.*.mlp.fc1": ["transformer_blocks.*.ff.net.0.proj"],
    "blocks.*.mlp.fc2": ["transformer_blocks.*.ff.net.2"],
    "blocks.*.adaLN_modulation.1": ["transformer_blocks.*.norm1.linear"],
    "final_layer.linear": ["proj_out_2"],
    "final_layer.adaLN_modulation.1": ["proj_out_1"],
}


def _layouts(blocks: int) -> Iterator[tuple[str, list[str]]]:
    """(our key, the keys of diffusers that make it up); ours comes again for each copy."""
    for ours, theirs in DIFFUSERS_NAMES.items():
        for block in range(blocks if "*" in theirs[0] else 1):
            for kind in ("weight", "bias")[:1 if "embedding_table" in ours else 2]:
                yield (f"{ours}.{kind}".replace("*", str(block)),
                       [f"{name}.{kind}".replace("*", str(block)) for name in theirs])


def to_diffusers(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Our state dict -> that of diffusers' DiTTransformer2DModel, no two entries in one memory."""
    return {key: part.clone() for ours, theirs in _layouts(depth(state, "blocks"))
            for key, part in zip(theirs, state[ours].chunk(len(theirs)), strict=True)}


def from_diffusers(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """diffusers' state dict -> ours, without pos_embed; of the embeddings the last block's copy.
    Unknown keys stay, and `fill` names them."""
    state = dict(state)
    converted = {ours: torch.cat([state.pop(key) for key in theirs])
                 for ours, theirs in _layouts(depth(state, "transformer_blocks"))}
    return converted | state


def model_card_licence(folder: Path) -> str:
    """What the model card, README.md, says."""
    card = folder / "README.md"
    text = card.read_text() if card.is_file() else ""
    return (re.findall(r"^license: *(\S+)", text, re.M) or ["unknown"])[0]


def weight_file(folder: Path) -> Path:
    file = folder / f"{MODEL_FILE}.safetensors"
    return file if file.exists() else file.with_suffix(".bin")
