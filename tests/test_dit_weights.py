"""DiT weights in both public layouts, from files, folders and the hub, and the decoded latents."""

import argparse
import csv
import json
import os
import shutil
import sys
import types
from pathlib import Path

import huggingface_hub
import numpy as np
import pytest
import safetensors.torch
import torch
from PIL import Image

from dm_kd import files, synthesize
from dm_kd.bench import imagenet_path, synthesis
from dm_kd.errors import UserError
from dm_kd.generators import dit, dit_weights
from dm_kd.tasks import get_task

diffusers = pytest.importorskip("diffusers")
DATA = Path(__file__).parent / "data"
WEIGHTS = "diffusion_pytorch_model"


def random_dit(channels: int = 4, width: int = 128) -> dit.DiT:
    torch.manual_seed(0)
    model = dit.DiT(8, 2, channels, width=width, depth=2, heads=width // 64, num_classes=10)
    for parameter in model.parameters():  # adaLN-Zero starts at zero: no block would count
        if parameter.requires_grad:
            torch.nn.init.normal_(parameter, std=0.05)
    return model.eval().requires_grad_(False)


def tiny_vae(**changes) -> torch.nn.Module:
    """sd-vae's architecture with two levels of 8 channels: 2 pixels per latent cell."""
    torch.manual_seed(1)
    settings = {"in_channels": 3, "out_channels": 3, "latent_channels": 4, "norm_num_groups": 4,
                "down_block_types": ("DownEncoderBlock2D",) * 2,
                "up_block_types": ("UpDecoderBlock2D",) * 2, "block_out_channels": (8, 8)}
    return diffusers.AutoencoderKL(**settings | changes).eval()


def write_folder(model: dit.DiT, folder: Path, **save) -> Path:
    """A DiT with its scheduler as diffusers writes them, without a VAE."""
    synthesis.make_rival(model).save_pretrained(folder / "transformer", **save)
    diffusers.DDIMScheduler(beta_start=1e-4, beta_end=0.02, beta_schedule="linear",
                            clip_sample=False).save_pretrained(folder / "scheduler")
    return folder


@pytest.fixture(scope="module")
def model():
    return random_dit()


@pytest.fixture(scope="module")
def originals(model, tmp_path_factory):
    """A folder with dit.pt, an original checkpoint, and with the same as safetensors."""
    folder = tmp_path_factory.mktemp("original")
    torch.save(model.state_dict(), folder / "dit.pt")
    safetensors.torch.save_file(model.state_dict(), folder / "plain.safetensors")
    return folder


@pytest.fixture(scope="module")
def pipeline(model, tmp_path_factory):
    """A diffusers folder of the same DiT with a tiny VAE; not to be changed."""
    folder = write_folder(model, tmp_path_factory.mktemp("pipeline"))
    tiny_vae().save_pretrained(folder / "vae")
    return folder


@pytest.fixture
def copied(pipeline, tmp_path):
    """A copy of the diffusers folder, to be changed."""
    return Path(shutil.copytree(pipeline, tmp_path / "copied"))


def change_json(file: Path, **changes) -> None:
    value = json.loads(file.read_text()) | changes
    file.write_text(json.dumps({k: v for k, v in value.items() if v != "absent"}))


def outputs(model: dit.DiT) -> torch.Tensor:
    torch.manual_seed(2)
    x, t = torch.randn(4, model.channels, 8, 8), torch.tensor([0, 10, 500, 990])
    with torch.no_grad():
        return model(x, t, torch.tensor([0, 3, 9, 10]))


def command(weights: Path | str, out: Path, *flags) -> list[str]:
    return [str(part) for part in (
        "--task", "digits", "--weights", weights, "--steps", 3, "--images-per-class", 1,
        "--classes", "0-3", "--device", "cpu", "--threads", 1, "--out", out, *flags)]


def build(weights: Path | str, *flags) -> dit.DiTGenerator:
    args = synthesize.parse(command(weights, Path("set"), *flags))
    return dit.build(args, get_task("digits"), torch.device("cpu"))


@pytest.fixture
def refused(capsys, tmp_path):
    """f(exit code, weights, *flags) -> the message of a synthesize command that was refused."""

    def check(code: int, weights, *flags) -> str:
        assert synthesize.main(command(weights, tmp_path / "set", *flags)) == code
        message = capsys.readouterr().err
        assert message.startswith("error: ") and len(message.splitlines()) <= 6, message
        assert not (tmp_path / "set").exists()
        return message

    return check


# --- one network from every layout ----------------------------------------------------------------

def test_an_original_file_gives_the_same_bits_in_both_formats(model, originals):
    for name in ("dit.pt", "plain.safetensors"):
        loaded, card = dit.load(originals / name)
        assert torch.equal(outputs(loaded), outputs(model)) and loaded.config == model.config
        assert card["sha256"] == files.sha256_file(originals / name)


@pytest.mark.parametrize("save", [{}, {"safe_serialization": False}, {"max_shard_size": "300KB"}])
def test_a_diffusers_folder_gives_the_same_bits_in_every_format(model, tmp_path, save):
    loaded, card = dit.load(write_folder(model, tmp_path, **save))
    assert torch.equal(outputs(loaded), outputs(model)) and loaded.config == model.config
    shards = len(list((tmp_path / "transformer").glob(f"{WEIGHTS}*"))) - 1
    assert (shards > 1) == ("max_shard_size" in save) and len(card["sha256"]) == 64


def test_the_golden_output_comes_from_a_diffusers_folder_too(tmp_path):
    golden = safetensors.torch.load_file(DATA / "dit_tiny_golden.safetensors")
    tiny = dit.DiT(8, 2, 4, width=32, depth=2, heads=4, num_classes=10)
    tiny.load_state_dict(safetensors.torch.load_file(DATA / "dit_tiny_weights.safetensors"))
    loaded, _ = dit.load(write_folder(tiny, tmp_path))
    out = loaded.double()(golden["x"], golden["t"], golden["y"])
    assert (out - golden["forward"]).norm() < 1e-6 * golden["forward"].norm()


def test_both_layouts_make_the_same_images(originals, pipeline, tmp_path):
    for name, weights, flags in (("a", originals / "dit.pt", ("--vae", pipeline / "vae")),
                                 ("b", pipeline, ())):
        assert synthesize.main(command(weights, tmp_path / name, *flags)) == 0
    assert (tmp_path / "a/index.csv").read_bytes() == (tmp_path / "b/index.csv").read_bytes()
    with open(tmp_path / "a/index.csv") as file:
        paths = [row["path"] for row in csv.DictReader(file)]
    pictures = [np.asarray(Image.open(tmp_path / "a" / path)) for path in paths]
    assert {p.shape for p in pictures} == {(16, 16, 3)} and len(pictures) == 4
    assert not np.array_equal(pictures[0], pictures[1])


def test_the_manifest_holds_the_digests_and_the_size_of_the_images(pipeline, tmp_path):
    assert synthesize.main(command(pipeline, tmp_path / "set")) == 0
    manifest = json.loads((tmp_path / "set/manifest.json").read_text())
    assert (manifest["resolution"], manifest["channels"]) == (16, 3)
    made_by = manifest["generator"]
    for part, name in (("transformer", "weights_sha256"), ("vae", "vae_sha256")):
        assert made_by[name] == files.sha256_file(pipeline / part / f"{WEIGHTS}.safetensors")
    assert made_by["vae_scaling_factor"] == 0.18215 and made_by["licence"] == "unknown"
    assert str(tmp_path) not in json.dumps(manifest) and str(pipeline) not in json.dumps(manifest)


def test_averaged_weights_come_before_the_models(model, tmp_path):
    other = {key: value + 1 for key, value in model.state_dict().items()}
    cases = {"bare": model.state_dict(), "model": {"model": model.state_dict(), "epoch": 3},
             "ema": {"model": other, "ema": model.state_dict(), "opt": {"state": {}}}}
    for name, content in cases.items():
        torch.save(content, tmp_path / f"{name}.pt")
        assert torch.equal(outputs(dit.load(tmp_path / f"{name}.pt")[0]), outputs(model)), name


def test_a_file_of_torchs_older_format_is_read(model, tmp_path):
    torch.save(model.state_dict(), tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    assert torch.equal(outputs(dit.load(tmp_path / "old.pt")[0]), outputs(model))


def test_half_precision_weights_become_float32(model, tmp_path):
    torch.save({k: v.half() for k, v in model.state_dict().items()}, tmp_path / "half.pt")
    loaded, _ = dit.load(tmp_path / "half.pt")
    assert {p.dtype for p in loaded.parameters()} == {torch.float32}
    assert torch.equal(loaded.pos_embed, model.pos_embed)  # computed, as for the other layout
    assert (outputs(loaded) - outputs(model)).abs().max() < 1e-2 * outputs(model).abs().max()


def test_weights_of_our_own_are_read_with_their_card_whichever_way_they_are_named(tmp_path):
    own = dit.DiT(8, 2, 1, width=128, depth=1, heads=8, num_classes=10)  # an original has 2 heads
    files.write_with_card(tmp_path / "own", "dit", own.state_dict(), {
        "task": "digits", "config": own.config, "clip": True, "licence": "mine"})
    for path in (tmp_path / "own", tmp_path / "own" / "dit.safetensors"):
        loaded, card = dit.load(path)
        assert loaded.config["heads"] == 8 and card["licence"] == "mine"


@pytest.mark.parametrize(("width", "depth", "heads", "millions"), [
    (384, 12, 6, 33.0), (768, 12, 12, 130.5), (1024, 24, 16, 458), (1152, 28, 16, 675.1)])
def test_sizes_and_parameters_of_the_published_models(width, depth, heads, millions):
    with torch.device("meta"):
        network = dit.DiT(32, 2, 4, width, depth, heads, 1000)
    count = sum(p.numel() for p in network.parameters()) / 1e6
    assert abs(count - millions) < (0.5 if millions == 458 else 0.05)
    assert dit_weights.sizes(network.state_dict(), Path("a file")) == network.config


# --- what is refused ------------------------------------------------------------------------------

class Touch:
    """Pickles to a call that makes a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.system, (f"touch '{self.path}'",)


def test_a_training_checkpoint_may_hold_its_flags(model, tmp_path):
    flags = argparse.Namespace(model="DiT-S/2", num_classes=10)
    torch.save({"ema": model.state_dict(), "args": flags}, tmp_path / "0400000.pt")
    assert torch.equal(outputs(dit.load(tmp_path / "0400000.pt")[0]), outputs(model))
    with pytest.raises(UserError, match="asks to run code"):
        files.load_pt(tmp_path / "0400000.pt")  # nothing else of the project allows the class


@pytest.mark.parametrize("zipped", [True, False])
def test_a_hostile_file_is_refused_and_runs_nothing(model, tmp_path, refused, zipped):
    for name, content in (("args", {"ema": model.state_dict(), "args": Touch(tmp_path / "canary")}),
                          ("flags", {"ema": model.state_dict(), "args": argparse.Namespace(
                              out=Touch(tmp_path / "canary"))})):
        torch.save(content, tmp_path / f"{name}.pt", _use_new_zipfile_serialization=zipped)
        message = refused(2, tmp_path / f"{name}.pt")
        assert "run code" in message and f"{name}.pt" in message
    assert not (tmp_path / "canary").exists()


def test_a_hostile_file_in_a_diffusers_folder_runs_nothing(copied, tmp_path, refused):
    for part in ("vae", "transformer"):
        (copied / part / f"{WEIGHTS}.safetensors").unlink()
        torch.save({"a": Touch(tmp_path / "canary")}, copied / part / f"{WEIGHTS}.bin")
        assert "run code" in refused(2, copied)
    assert not (tmp_path / "canary").exists()


FOREIGN = {
    "list": [1, 2], "tensor": torch.ones(3), "empty": {}, "number": {"ema": {"a": 1}},
    "others": {"weight": torch.ones(3, 3)}, "whole": {"x_embedder.proj.weight": torch.ones(3)},
    "integers": {"a": torch.ones(3).long()}, "sparse": {"a": torch.eye(3).to_sparse()}}


@pytest.mark.parametrize("name", FOREIGN)
def test_a_file_that_holds_no_dit_is_refused(name, tmp_path, refused):
    torch.save(FOREIGN[name], tmp_path / f"{name}.pt")
    assert f"{name}.pt" in refused(2, tmp_path / f"{name}.pt")


@pytest.mark.parametrize("change", ["missing", "unknown", "shape", "table", "table's shape",
                                    "channels", "no blocks"])
def test_other_keys_shapes_and_tables_are_refused(model, tmp_path, refused, change):
    state = dict(model.state_dict())
    if change == "missing":
        del state["blocks.1.attn.qkv.bias"]
    elif change == "unknown":
        state["blocks.0.attn.q_norm.weight"] = torch.ones(64)
    elif change == "shape":
        state["blocks.0.mlp.fc1.weight"] = torch.ones(256, 128)
    elif change == "table":
        state["pos_embed"] = state["pos_embed"].flip(1)
    elif change == "table's shape":
        state["pos_embed"] = state["pos_embed"][:, :15]
    elif change == "channels":
        state["final_layer.linear.bias"] = torch.ones(48)
    else:
        state = {key: value for key, value in state.items() if "blocks" not in key}
    torch.save(state, tmp_path / "other.pt")
    assert "not those of a DiT" in refused(2, tmp_path / "other.pt")


def test_an_unknown_number_of_heads_is_refused(refused):
    assert "heads" in refused(2, DATA / "dit_tiny_weights.safetensors")


def test_a_diffusers_file_without_its_folder_is_refused(pipeline, refused):
    message = refused(2, pipeline / "transformer" / f"{WEIGHTS}.safetensors")
    assert "transformer/" in message


def test_nan_weights_are_damage(model, tmp_path, refused):
    state = dict(model.state_dict())
    state["final_layer.linear.bias"] = torch.full((32,), torch.nan)
    torch.save(state, tmp_path / "nan.pt")
    assert "NaN" in refused(5, tmp_path / "nan.pt")


@pytest.mark.parametrize("change", [
    {"beta_start": 0.00085}, {"beta_end": 0.012}, {"beta_schedule": "scaled_linear"},
    {"num_train_timesteps": 4000}, {"prediction_type": "v_prediction"}, {"beta_schedule": "absent"},
    {"trained_betas": [0.1, 0.2]}, {"rescale_betas_zero_snr": True}])
def test_another_process_is_refused_by_name(copied, refused, change):
    change_json(copied / "scheduler" / "scheduler_config.json", **change)
    assert next(iter(change)) in refused(2, copied)


@pytest.mark.parametrize("change", [
    {"patch_size": 4}, {"num_layers": 3}, {"in_channels": 3}, {"out_channels": None},
    {"num_embeds_ada_norm": 1000}, {"attention_head_dim": 72}, {"activation_fn": "gelu"},
    {"norm_type": "ada_norm"}])
def test_a_config_that_does_not_describe_the_weights_is_refused_by_name(copied, refused, change):
    change_json(copied / "transformer" / "config.json", **change)
    assert next(iter(change)) in refused(2, copied)


@pytest.mark.parametrize("change", [{"sample_size": "absent"}, {"sample_size": "8"},
                                    {"num_attention_heads": 0}])
def test_a_malformed_config_is_damage(copied, refused, change):
    change_json(copied / "transformer" / "config.json", **change)
    assert next(iter(change)) in refused(5, copied)


def test_tables_that_differ_between_blocks_are_refused(copied, refused):
    file = copied / "transformer" / f"{WEIGHTS}.safetensors"
    state = safetensors.torch.load_file(file)
    state["transformer_blocks.1.norm1.emb.class_embedder.embedding_table.weight"] += 1
    safetensors.torch.save_file({k: v.clone() for k, v in state.items()}, file)
    assert "tables differ" in refused(2, copied)


@pytest.mark.parametrize("part", [
    "transformer/config.json", f"transformer/{WEIGHTS}.safetensors", "vae/config.json",
    f"vae/{WEIGHTS}.safetensors", "scheduler/scheduler_config.json"])
def test_a_truncated_file_is_damage_and_a_missing_one_is_named(copied, refused, part):
    file = copied / part
    data = file.read_bytes()
    file.write_bytes(data[:len(data) // 2])
    assert file.name in refused(5, copied)
    file.unlink()
    assert file.name.removesuffix(".safetensors") in refused(2, copied)


@pytest.mark.parametrize("kind", ["pt", "safetensors"])
def test_a_truncated_original_is_damage(originals, tmp_path, refused, kind):
    data = (originals / ("dit.pt" if kind == "pt" else "plain.safetensors")).read_bytes()
    for length in (10, len(data) // 2, len(data) - 9):
        (tmp_path / f"cut.{kind}").write_bytes(data[:length])
        assert f"cut.{kind}" in refused(5, tmp_path / f"cut.{kind}")


@pytest.mark.parametrize("weight_map", ["absent", {}, {"a": "../../x.safetensors"}, ["a"]])
def test_a_bad_index_of_shards_is_damage(copied, refused, weight_map):
    folder = copied / "transformer"
    (folder / f"{WEIGHTS}.safetensors").unlink()
    index = folder / f"{WEIGHTS}.safetensors.index.json"
    index.write_text("{}")
    change_json(index, weight_map=weight_map)
    assert index.name in refused(5, copied)


def test_another_number_of_classes_is_refused(pipeline):
    args = synthesize.parse(command(pipeline, Path("set")))
    task = argparse.Namespace(name="eleven", num_classes=11)
    with pytest.raises(UserError, match="10 classes, eleven has 11"):
        dit.build(args, task, torch.device("cpu"))


# --- latents and their decoder --------------------------------------------------------------------

def test_latents_are_decoded_as_diffusers_decodes_them(pipeline, monkeypatch):
    made = build(pipeline)
    monkeypatch.setattr(dit_weights, "VAE_CHUNK", 2)
    latents = torch.randn(5, 4, 8, 8) * 0.18215
    with torch.inference_mode():
        ours = made.vae.decode(latents)
        theirs = [diffusers.AutoencoderKL.from_pretrained(pipeline / "vae").decode(
            part / 0.18215).sample for part in latents.split(2)]
    assert torch.equal(ours, torch.cat(theirs)) and ours.shape == (5, 3, 16, 16)


def test_images_are_the_decoded_latents_of_the_sampler(pipeline, monkeypatch):
    made, seen = build(pipeline), []
    real = made.vae.decode
    monkeypatch.setattr(made.vae, "decode", lambda x: seen.append(x) or real(x))
    images = made.sample(torch.tensor([3, 7]), [1, 2])
    with torch.inference_mode():
        assert torch.equal(images, dit.to_uint8(real(seen[0])))
    assert images.shape == (2, made.channels, made.resolution, made.resolution)
    assert seen[0].shape == (2, 4, 8, 8) and seen[0].dtype == torch.float32


def test_a_teachers_gradient_goes_through_the_decoder_into_the_latents(pipeline):
    torch.manual_seed(3)
    teacher = torch.nn.Sequential(
        torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4), torch.nn.ReLU(),
        torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten(), torch.nn.Linear(4, 10))
    task = types.SimpleNamespace(resolution=16, num_classes=10, mean=(0.5,) * 3, std=(0.25,) * 3)
    made, losses = build(pipeline), []
    made.model.forward = lambda x, t, y: torch.cat([x, 0 * x], 1)  # latents of unit size throughout
    labels, seeds = torch.arange(4), [1, 2, 3, 4]
    plain = made.sample(labels, seeds)
    made.teacher = dit.TeacherGuidance(teacher.eval().requires_grad_(False), task, 0.5,
                                       torch.device("cpu"))
    real = made.teacher.steer

    def steer(x, labels, clean, noise):
        moved = real(x, labels, clean, noise)
        assert torch.allclose((moved - x).flatten(1).norm(dim=1), 0.5 * noise, rtol=1e-3)
        losses.append([sum(made.teacher.parts(clean(v), labels).values()).item()
                       for v in (x, moved)])
        return moved

    made.teacher.steer = steer
    images = made.sample(labels, seeds)
    assert len(losses) == made.settings["steps"] == 3
    for before, after in losses[1:]:  # at the noisiest the image is all but grey
        assert after < before
    assert not torch.equal(images, plain) and images.shape == (4, 3, 16, 16)


def test_latents_are_not_clipped_and_three_of_their_channels_are_guided(pipeline):
    made = build(pipeline)
    assert not made.clip and made.guided_channels == 3


def test_the_vae_stays_in_float32_beside_a_bfloat16_network(pipeline):
    made = build(pipeline, "--dtype", "bf16")
    assert made.model.blocks[0].attn.qkv.weight.dtype == torch.bfloat16
    assert {p.dtype for p in made.vae.model.parameters()} == {torch.float32}


def test_the_scaling_factor_of_the_vaes_config_holds_and_is_said(copied, capsys):
    change_json(copied / "vae" / "config.json", scaling_factor=0.13025)
    made = build(copied)
    assert made.settings["vae_scaling_factor"] == 0.13025 and "0.13025" in capsys.readouterr().out
    change_json(copied / "vae" / "config.json", scaling_factor="absent")
    assert build(copied).settings["vae_scaling_factor"] == 0.18215
    assert not capsys.readouterr().out


def test_a_config_of_the_class_that_diffusers_once_had_is_read(copied, model):
    """facebook/DiT-XL-2-256 was written by diffusers 0.12."""
    change_json(copied / "transformer" / "config.json", _class_name="Transformer2DModel",
                cross_attention_dim=None, num_vector_embeds=None, use_linear_projection=False)
    assert torch.equal(outputs(dit.load(copied)[0]), outputs(model))


def test_a_vae_with_the_older_names_of_attention_is_read(copied):
    """facebook/DiT-XL-2-256 and sd-vae-ft-mse were written before diffusers renamed them."""
    vae = tiny_vae()
    old = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    state = {}
    for key, value in vae.state_dict().items():
        for new, name in old.items():
            key = key.replace(f"attentions.0.{new}.", f"attentions.0.{name}.")
        state[key] = value
    assert any("proj_attn" in key for key in state)
    (copied / "vae" / f"{WEIGHTS}.safetensors").unlink()
    torch.save(state, copied / "vae" / f"{WEIGHTS}.bin")
    latents = torch.randn(1, 4, 8, 8)
    with torch.inference_mode():
        decoded = build(copied).vae.decode(latents)
        assert torch.equal(decoded, vae.decode(latents / 0.18215).sample)


def test_a_vae_with_missing_weights_is_damage(copied, refused):
    file = copied / "vae" / f"{WEIGHTS}.safetensors"
    state = safetensors.torch.load_file(file)
    del state["decoder.conv_in.weight"]
    safetensors.torch.save_file({k: v.clone() for k, v in state.items()}, file)
    assert "decoder.conv_in.weight" in refused(5, copied)


@pytest.mark.parametrize("change", [{"block_out_channels": [16, 16]}, {"act_fn": "nothing"},
                                    {"norm_num_groups": 0}])
def test_a_vaes_config_that_does_not_fit_is_damage(copied, refused, change):
    change_json(copied / "vae" / "config.json", **change)
    assert "VAE" in refused(5, copied)


@pytest.mark.parametrize("change", [{"_class_name": "AutoencoderTiny"}, {"latent_channels": 16}])
def test_another_kind_of_vae_is_refused(copied, refused, change):
    change_json(copied / "vae" / "config.json", **change)
    assert "AutoencoderKL" in refused(2, copied)


def test_a_folder_without_a_vae_asks_for_one(copied, refused, pipeline, tmp_path):
    shutil.rmtree(copied / "vae")
    assert "--vae" in refused(2, copied)
    assert build(copied, "--vae", pipeline / "vae").vae is not None


def test_without_diffusers_the_message_says_how_to_get_it(pipeline, refused, monkeypatch):
    monkeypatch.setitem(sys.modules, "diffusers", None)
    assert "pip install diffusers" in refused(2, pipeline)


def test_a_dit_of_pixels_needs_no_vae_and_clips(tmp_path, refused, pipeline):
    pixels = random_dit(channels=1)
    torch.save(pixels.state_dict(), tmp_path / "pixels.pt")
    made = build(tmp_path / "pixels.pt")
    assert made.vae is None and made.clip and (made.resolution, made.channels) == (8, 1)
    assert made.sample(torch.tensor([1]), [1]).shape == (1, 1, 8, 8)
    assert "--vae" in refused(2, tmp_path / "pixels.pt", "--vae", pipeline / "vae")


# --- the hub and the licence ----------------------------------------------------------------------

@pytest.fixture
def hub(monkeypatch, pipeline, model, tmp_path):
    """A hub with two repositories; gives the list of (repository, files copied)."""
    write_folder(model, tmp_path / "hub" / "dit", safe_serialization=False)  # as facebook's: .bin
    shutil.copytree(pipeline / "vae", tmp_path / "hub" / "dit" / "vae")
    shutil.copytree(pipeline / "vae", tmp_path / "hub" / "vae")
    (tmp_path / "hub" / "dit" / "transformer" / f"{WEIGHTS}.fp16.bin").write_bytes(b"not needed")
    (tmp_path / "hub" / "dit" / "README.md").write_text("---\nlicense: cc-by-nc-4.0\n---\n# DiT\n")
    repositories = {"facebook/DiT-XL-2-256": "dit", "stabilityai/sd-vae-ft-mse": "vae"}
    asked = []

    def download(repository, allow_patterns):
        source, copy = tmp_path / "hub" / repositories[repository], tmp_path / "cache" / repository
        found = huggingface_hub.utils.filter_repo_objects(
            [str(p.relative_to(source)) for p in source.rglob("*") if p.is_file()],
            allow_patterns=allow_patterns)
        for name in found:
            (copy / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(source / name, copy / name)
            asked.append((repository, name))
        return str(copy)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    monkeypatch.chdir(tmp_path)
    return asked


def test_a_hub_id_downloads_what_is_needed_and_is_recorded(hub, model):
    made = build("facebook/DiT-XL-2-256", "--dtype", "fp32")  # some processors: bf16
    assert torch.equal(outputs(made.model), outputs(model))
    assert {name for _, name in hub} == {
        "transformer/config.json", f"transformer/{WEIGHTS}.bin", "README.md",
        "scheduler/scheduler_config.json", "vae/config.json", f"vae/{WEIGHTS}.safetensors"}
    assert made.settings["weights_hub_id"] == made.settings["vae_hub_id"] == "facebook/DiT-XL-2-256"
    assert made.settings["licence"] == "cc-by-nc-4.0"


def test_an_original_checkpoint_takes_the_papers_vae_from_the_hub(hub, originals):
    made = build(originals / "dit.pt")
    assert set(hub) == {("stabilityai/sd-vae-ft-mse", name)
                        for name in ("config.json", f"{WEIGHTS}.safetensors")}
    assert made.settings["vae_hub_id"] == "stabilityai/sd-vae-ft-mse"
    assert "weights_hub_id" not in made.settings


def test_a_hub_that_cannot_be_reached_is_a_short_message(refused, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    message = refused(2, "facebook/no-such-model-here")
    assert "facebook/no-such-model-here" in message and "--weights" in message


def test_without_huggingface_hub_the_message_says_how_to_get_it(refused, monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    assert "pip install huggingface_hub" in refused(2, "facebook/DiT-XL-2-256")


@pytest.mark.parametrize(("spec", "is_id"), [
    ("facebook/DiT-XL-2-256", True), ("folder/missing", False), ("./facebook", False),
    ("a/b/c", False), ("facebook", False), ("nowhere/DiT.pt", False), ("/facebook/dit", False)])
def test_a_path_under_a_folder_that_exists_is_no_hub_id(spec, is_id, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder").mkdir()
    assert dit_weights.is_hub_id(spec) == is_id


def test_the_licence_is_the_cards_else_that_of_the_published_sizes(copied):
    assert dit.load(copied)[1]["licence"] == "unknown"
    (copied / "README.md").write_text("no front matter\nlicense: mit\n")
    assert dit.load(copied)[1]["licence"] == "unknown"
    (copied / "README.md").write_text("---\ntags: [a]\nlicense: mit\n---\nlicense: other\n")
    assert dit.load(copied)[1]["licence"] == "mit"
    published = {**dit_weights.PUBLISHED, "input_size": 32}
    card = dit_weights._card(published, [copied / "README.md"])
    assert card["licence"] == "CC-BY-NC 4.0" and not card["clip"]


# --- DiT-XL/2 -------------------------------------------------------------------------------------

@pytest.fixture
def large(tmp_path):
    """A folder that does not stay: pytest keeps those of three runs."""
    yield tmp_path
    shutil.rmtree(tmp_path)


@pytest.mark.slow
def test_xl_2_makes_the_same_256_pixel_images_from_both_layouts(large):
    imagenet_path.write_generator(large, imagenet_path.DIT, imagenet_path.SD_VAE, 0)
    original, folder = large / imagenet_path.ORIGINAL, large / imagenet_path.PIPELINE
    for name, weights in (("a", original), ("b", folder)):
        assert synthesize.main([
            "--task", "imagenet", "--weights", str(weights), "--vae", str(folder / "vae"),
            "--steps", "2", "--images-per-class", "1", "--classes", "207,388", "--batch-size", "2",
            "--device", "cpu", "--threads", "1", "--out", str(large / name)]) == 0
    assert (large / "a/index.csv").read_bytes() == (large / "b/index.csv").read_bytes()
    pictures = [np.asarray(Image.open(path)) for path in (large / "a").glob("images/*/*.png")]
    assert [p.shape for p in pictures] == [(256, 256, 3)] * 2
    assert not np.array_equal(*pictures)
    manifest = json.loads((large / "a/manifest.json").read_text())
    assert manifest["resolution"] == 256 and manifest["generator"]["licence"] == "CC-BY-NC 4.0"
