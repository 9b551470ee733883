"""DiT weights in every layout, from files, folders and the hub, and the decoded latents."""

import argparse
import json
import os
import shutil
import types
from pathlib import Path

import huggingface_hub
import pytest
import safetensors.torch
import torch

from dm_kd import run, synthesize
from dm_kd.generators import dit, latent, weights
from dm_kd.run import UserError
from dm_kd.tasks import get_task

diffusers = pytest.importorskip("diffusers")
DATA = Path(__file__).parent / "data"
NAME = "diffusion_pytorch_model"
CPU = torch.device("cpu")


def random_dit(channels: int = 4) -> dit.DiT:
    torch.manual_seed(0)
    model = dit.DiT(8, 2, channels, width=128, depth=2, heads=2, num_classes=10)
    for parameter in model.parameters():  # adaLN-Zero starts at zero: no block would count
        if parameter.requires_grad:
            torch.nn.init.normal_(parameter, std=0.05)
    return model.eval().requires_grad_(False)


def tiny_vae() -> torch.nn.Module:
    """sd-vae's architecture with two levels of 8 channels: 2 pixels per latent cell."""
    torch.manual_seed(1)
    return diffusers.AutoencoderKL(
        in_channels=3, out_channels=3, latent_channels=4, norm_num_groups=4,
        down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2,
        block_out_channels=(8, 8)).eval()


def as_diffusers(model: dit.DiT) -> torch.nn.Module:
    config = model.config
    theirs = diffusers.DiTTransformer2DModel(
        num_attention_heads=config["heads"], attention_head_dim=config["width"] // config["heads"],
        in_channels=config["channels"], out_channels=model.out_channels,
        num_layers=config["depth"], sample_size=config["input_size"],
        patch_size=config["patch_size"], num_embeds_ada_norm=config["num_classes"])
    theirs.load_state_dict(weights.to_diffusers(model.state_dict()))
    return theirs.eval().requires_grad_(False)


def write_folder(model: dit.DiT, folder: Path, **save) -> Path:
    """A DiT with its scheduler as diffusers writes them, without a VAE."""
    as_diffusers(model).save_pretrained(folder / "transformer", **save)
    diffusers.DDIMScheduler(beta_start=1e-4, beta_end=0.02, beta_schedule="linear",
                            clip_sample=False).save_pretrained(folder / "scheduler")
    return folder


@pytest.fixture(scope="module")
def model():
    return random_dit()


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


@pytest.fixture
def saved(tmp_path):
    """f(content) -> a .pt file of it."""

    def save(content, name="dit.pt", **options) -> Path:
        torch.save(content, tmp_path / name, **options)
        return tmp_path / name

    return save


def change_json(file: Path, **changes) -> None:
    value = json.loads(file.read_text()) | changes
    file.write_text(json.dumps({k: v for k, v in value.items() if v != "absent"}))


def outputs(model: dit.DiT) -> torch.Tensor:
    torch.manual_seed(2)
    x, t = torch.randn(4, model.channels, 8, 8), torch.tensor([0, 10, 500, 990])
    with torch.no_grad():
        return model(x, t, torch.tensor([0, 3, 9, 10]))


def command(spec: Path | str, *flags) -> list[str]:
    return [str(part) for part in ("--task", "digits", "--weights", spec, "--steps", 3, "--device",
                                   "cpu", "--threads", 1, "--out", "unused", *flags)]


def build(spec: Path | str, *flags) -> dit.DiTGenerator:
    return dit.build(synthesize.parse(command(spec, *flags)), get_task("digits"), CPU)


# --- one network from every layout ----------------------------------------------------------------

def test_every_form_of_the_original_gives_the_same_bits(model, saved, tmp_path):
    state = model.state_dict()
    other = {key: value + 1 for key, value in state.items()}
    safetensors.torch.save_file(state, tmp_path / "plain.safetensors")
    flags = argparse.Namespace(model="DiT-S/2", num_classes=10)  # training checkpoints hold them
    for path in (
            tmp_path / "plain.safetensors", saved(state, "bare.pt"),
            saved(state, "old.pt", _use_new_zipfile_serialization=False),
            saved({"model": state, "epoch": 3}, "model.pt"),
            saved({"model": other, "ema": state, "opt": {"state": {}}, "args": flags}, "ema.pt"),
            saved({f"module.{key}": value for key, value in state.items()}, "ddp.pt")):
        loaded, card = dit.load(path)
        assert torch.equal(outputs(loaded), outputs(model)) and loaded.config == model.config, path
        assert card["sha256"] == run.sha256_file(path) and card["licence"] == "unknown"


def test_half_precision_weights_become_float32(model, saved):
    loaded, _ = dit.load(saved({k: v.half() for k, v in model.state_dict().items()}))
    assert {p.dtype for p in loaded.parameters()} == {torch.float32}
    assert torch.equal(loaded.pos_embed, model.pos_embed)  # computed, as for the other layout
    assert (outputs(loaded) - outputs(model)).abs().max() < 1e-2 * outputs(model).abs().max()


@pytest.mark.parametrize("save", [{}, {"safe_serialization": False}, {"max_shard_size": "300KB"}])
def test_a_diffusers_folder_gives_the_same_bits_in_every_format(model, tmp_path, save):
    loaded, card = dit.load(write_folder(model, tmp_path, **save))
    assert torch.equal(outputs(loaded), outputs(model)) and loaded.config == model.config
    shards = len(list((tmp_path / "transformer").glob(f"{NAME}*"))) - 1
    assert (shards > 1) == ("max_shard_size" in save) and len(card["sha256"]) == 64


def test_the_key_map_there_and_back_gives_the_same_weights_in_memory_of_their_own(model):
    state = model.state_dict()
    theirs = weights.to_diffusers(state)
    back = weights.from_diffusers(theirs)
    assert back.keys() == state.keys() - {"pos_embed"}  # computed in diffusers
    assert all(torch.equal(value, state[key]) for key, value in back.items())
    assert len({value.data_ptr() for value in theirs.values()}) == len(theirs)


def test_weights_of_our_own_are_read_with_their_card_whichever_way_they_are_named(tmp_path):
    own = dit.DiT(8, 2, 1, width=128, depth=1, heads=8, num_classes=10)  # an original has 2 heads
    card = {"task": "digits", "config": own.config, "clip": True, "licence": "mine",
            "class_names": list("0123456789")}
    run.write_with_card(tmp_path / "own", "dit", own.state_dict(), card)
    for path in (tmp_path / "own", tmp_path / "own" / "dit.safetensors"):
        loaded, card = dit.load(path)
        assert loaded.config["heads"] == 8 and card["licence"] == "mine"
    assert build(tmp_path / "own").clip
    for task, change in (("fashion_mnist", {}), ("digits", {"class_names": list("012345678x")})):
        run.write_with_card(tmp_path / "own", "dit", own.state_dict(), card | change)
        args = synthesize.parse(["--task", task, *command(tmp_path / "own")[2:]])
        with pytest.raises(UserError):
            dit.build(args, get_task(task), CPU)


@pytest.mark.parametrize(("width", "depth", "heads", "millions"), [
    (384, 12, 6, 33.0), (768, 12, 12, 130.5), (1024, 24, 16, 458), (1152, 28, 16, 675.1)])
def test_sizes_and_parameters_of_the_published_models(width, depth, heads, millions):
    with torch.device("meta"):
        network = dit.DiT(32, 2, 4, width, depth, heads, 1000)
    count = sum(p.numel() for p in network.parameters()) / 1e6
    assert abs(count - millions) < (0.5 if millions == 458 else 0.05)
    assert weights.sizes(network.state_dict(), "a file") == network.config


def test_the_licence_is_the_cards_else_that_of_the_published_sizes(copied):
    assert dit.load(copied)[1]["licence"] == "unknown"
    (copied / "README.md").write_text("---\ntags: [a]\nlicense: mit\n---\nlicense: other\n")
    assert dit.load(copied)[1]["licence"] == "mit"
    card = weights._card({**weights.PUBLISHED, "input_size": 32}, [copied / "README.md"], None)
    assert card["licence"] == "CC-BY-NC 4.0" and not card["clip"]


# --- what is refused ------------------------------------------------------------------------------

class Touch:
    """Pickles to a call that makes a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.system, (f"touch '{self.path}'",)


@pytest.mark.parametrize("zipped", [True, False])
def test_a_hostile_file_is_refused_and_runs_nothing(model, tmp_path, saved, copied, zipped):
    hostile = Touch(tmp_path / "canary")
    for name, content in (("args.pt", {"ema": model.state_dict(), "args": hostile}),
                          ("edm2.pkl", hostile),
                          ("flags.pt", {"args": argparse.Namespace(out=hostile)})):
        path = saved(content, name, _use_new_zipfile_serialization=zipped)
        with pytest.raises(UserError, match="run|code"):
            dit.load(path)
    for part in ("vae", "transformer"):
        (copied / part / f"{NAME}.safetensors").unlink()
        torch.save({"a": hostile}, copied / part / f"{NAME}.bin")
        with pytest.raises(UserError, match="run|code"):
            build(copied)
    assert not (tmp_path / "canary").exists()


@pytest.mark.parametrize("content", [
    [1, 2], torch.ones(3), {}, {"ema": {"a": 1}}, {"weight": torch.ones(3, 3)},
    {"x_embedder.proj.weight": torch.ones(3)}], ids=repr)
def test_a_file_that_holds_no_dit_is_refused(content, saved):
    with pytest.raises(UserError, match="not those of a DiT"):
        dit.load(saved(content))


@pytest.mark.parametrize(("key", "value"), [
    ("blocks.1.attn.qkv.bias", None), ("blocks.0.attn.q_norm.weight", torch.ones(64)),
    ("blocks.0.mlp.fc1.weight", torch.ones(256, 128)), ("pos_embed", torch.zeros(1, 16, 128))])
def test_the_first_key_that_differs_is_named(model, saved, key, value):
    state = {k: v for k, v in (dict(model.state_dict()) | {key: value}).items() if v is not None}
    with pytest.raises(UserError, match=key):
        dit.load(saved(state))


def test_an_unknown_number_of_heads_is_refused():
    with pytest.raises(UserError, match="heads"):
        dit.load(DATA / "dit_tiny_weights.safetensors")


@pytest.mark.parametrize("change", [
    {"beta_start": 0.00085}, {"beta_schedule": "scaled_linear"}, {"num_train_timesteps": 4000},
    {"prediction_type": "v_prediction"}, {"beta_schedule": "absent"}, {"trained_betas": [0.1]},
    {"rescale_betas_zero_snr": True}])
def test_another_process_is_refused_by_name(copied, change):
    change_json(copied / "scheduler" / "scheduler_config.json", **change)
    with pytest.raises(UserError, match=next(iter(change))):
        dit.load(copied)


@pytest.mark.parametrize("change", [{"activation_fn": "gelu"}, {"norm_type": "ada_norm"},
                                    {"attention_head_dim": 72}])
def test_another_network_is_refused_by_name(copied, change):
    change_json(copied / "transformer" / "config.json", **change)
    with pytest.raises(UserError, match=next(iter(change))):
        dit.load(copied)


@pytest.mark.parametrize("part", [
    "transformer/config.json", f"transformer/{NAME}.safetensors", "vae/config.json",
    f"vae/{NAME}.safetensors", "scheduler/scheduler_config.json"])
def test_a_truncated_or_missing_file_is_named(copied, part):
    file = copied / part
    file.write_bytes(file.read_bytes()[:100])
    with pytest.raises(UserError, match=file.name):
        build(copied)
    file.unlink()
    with pytest.raises(FileNotFoundError, match=file.name):
        build(copied)


def test_another_number_of_classes_is_refused(pipeline):
    args = synthesize.parse(["--task", "imagenet100", *command(pipeline)[2:]])
    with pytest.raises(UserError, match="10 classes"):
        dit.build(args, get_task("imagenet100"), CPU)


# --- latents and their decoder --------------------------------------------------------------------

def test_images_are_the_decoded_latents_whichever_layout_the_dit_has(
        model, saved, pipeline, monkeypatch):
    made, seen = build(pipeline, "--dtype", "fp32"), []
    monkeypatch.setattr(latent, "VAE_CHUNK", 2)
    real = made.vae.decode
    monkeypatch.setattr(made.vae, "decode", lambda x: seen.append(x) or real(x))
    images = made.sample(torch.tensor([3, 7, 1]), [1, 2, 3])
    theirs = diffusers.AutoencoderKL.from_pretrained(pipeline / "vae")
    with torch.no_grad():
        decoded = torch.cat([theirs.decode(part / 0.18215).sample for part in seen[0].split(2)])
    assert torch.equal(images, latent.to_images(decoded))
    assert images.shape == (3, made.channels, made.resolution, made.resolution) == (3, 3, 16, 16)
    assert seen[0].shape == (3, 4, 8, 8) and not made.clip and made.guided_channels() == 3
    other = build(saved(model.state_dict()), "--vae", pipeline / "vae", "--dtype", "fp32")
    assert torch.equal(other.sample(torch.tensor([3, 7, 1]), [1, 2, 3]), images)


def test_the_vae_stays_in_float32_beside_a_bfloat16_network_and_is_in_the_settings(copied):
    made = build(copied, "--dtype", "bf16")
    assert {p.dtype for p in made.vae.model.parameters()} == {torch.float32}
    for part, name in (("transformer", "weights_sha256"), ("vae", "vae_sha256")):
        assert made.settings[name] == run.sha256_file(copied / part / f"{NAME}.safetensors")
    assert made.settings["vae_scaling_factor"] == 0.18215
    assert str(copied) not in json.dumps(made.settings)
    change_json(copied / "vae" / "config.json", scaling_factor=0.13025)
    assert build(copied).settings["vae_scaling_factor"] == 0.13025


def test_files_of_older_diffusers_are_read(copied, model):
    """facebook/DiT-XL-2-256 and sd-vae-ft-mse are of diffusers 0.12: other names of the class and
    of the decoder's attention."""
    change_json(copied / "transformer" / "config.json", _class_name="Transformer2DModel",
                cross_attention_dim=None, num_vector_embeds=None, use_linear_projection=False)
    vae, state = tiny_vae(), {}
    old = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    for key, value in vae.state_dict().items():
        for new, name in old.items():
            key = key.replace(f"attentions.0.{new}.", f"attentions.0.{name}.")
        state[key] = value
    (copied / "vae" / f"{NAME}.safetensors").unlink()
    torch.save(state, copied / "vae" / f"{NAME}.bin")
    made, latents = build(copied, "--dtype", "fp32"), torch.randn(1, 4, 8, 8)
    assert torch.equal(outputs(made.model), outputs(model))
    with torch.no_grad():
        assert torch.equal(made.vae.decode(latents), vae.decode(latents / 0.18215).sample)


def test_a_teachers_gradient_goes_through_the_decoder_into_the_latents(pipeline):
    made, gradients = build(pipeline, "--dtype", "fp32"), []

    def move(x, labels, clean, noise):
        with torch.enable_grad():
            x = x.detach().requires_grad_()
            images = clean(x)
            assert images.shape == (2, 3, 16, 16)
            gradients.append(torch.autograd.grad(images.square().mean(), x)[0])
        return x.detach()

    made.teacher = types.SimpleNamespace(move=move)
    made.sample(torch.arange(2), [1, 2])
    assert len(gradients) == 3 and all(gradient.any() for gradient in gradients)


# --- the hub --------------------------------------------------------------------------------------

@pytest.fixture
def hub(monkeypatch, pipeline, model, tmp_path):
    """A hub with two repositories; gives the list of (repository, file) that were copied."""
    write_folder(model, tmp_path / "hub" / "dit", safe_serialization=False)  # as facebook's: .bin
    shutil.copytree(pipeline / "vae", tmp_path / "hub" / "dit" / "vae")
    shutil.copytree(pipeline / "vae", tmp_path / "hub" / "vae")
    (tmp_path / "hub" / "dit" / "transformer" / f"{NAME}.fp16.bin").write_bytes(b"not needed")
    (tmp_path / "hub" / "dit" / "README.md").write_text("---\nlicense: cc-by-nc-4.0\n---\n# DiT\n")
    repositories = {"facebook/DiT-XL-2-256": "dit", "stabilityai/sd-vae-ft-mse": "vae"}
    asked = []

    def download(repository, allow_patterns):
        source, copy = tmp_path / "hub" / repositories[repository], tmp_path / "cache" / repository
        for name in huggingface_hub.utils.filter_repo_objects(
                [str(p.relative_to(source)) for p in source.rglob("*") if p.is_file()],
                allow_patterns=allow_patterns):
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
        "transformer/config.json", f"transformer/{NAME}.bin", "README.md",
        "scheduler/scheduler_config.json", "vae/config.json", f"vae/{NAME}.safetensors"}
    assert made.settings["weights_hub_id"] == made.settings["vae_hub_id"] == "facebook/DiT-XL-2-256"
    assert made.settings["licence"] == "cc-by-nc-4.0"


@pytest.mark.parametrize(("spec", "is_id"), [
    ("facebook/DiT-XL-2-256", True), ("folder/missing", False), ("./facebook", False),
    ("a/b/c", False), ("facebook", False), ("nowhere/DiT.pt", False), ("/facebook/dit", False)])
def test_a_path_under_a_folder_that_exists_is_no_hub_id(spec, is_id, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder").mkdir()
    assert weights.is_hub_id(spec) == is_id
