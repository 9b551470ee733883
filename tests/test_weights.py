"""DiT weights in every layout, from files, folders and the hub, and the decoded latents."""

import argparse
import json
import shutil
from pathlib import Path

import huggingface_hub
import pytest
import torch
from processes import Bomb

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
    """A DiT as diffusers writes it, without a VAE."""
    as_diffusers(model).save_pretrained(folder / "transformer", **save)
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

    def save(content, name="dit.pt") -> Path:
        torch.save(content, tmp_path / name)
        return tmp_path / name

    return save


def change_json(file: Path, **changes) -> None:
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def outputs(model: dit.DiT) -> torch.Tensor:
    torch.manual_seed(2)
    x, t = torch.randn(4, model.channels, 8, 8), torch.tensor([0, 10, 500, 990])
    with torch.no_grad():
        return model(x, t, torch.tensor([0, 3, 9, 10]))


def command(spec: Path | str, *flags) -> list[str]:
    return [str(part) for part in ("--task", "digits", "--weights", spec, "--steps", 3, "--device",
                                   "cpu", "--threads", 1, "--out", "unused", *flags)]


def build(spec: Path | str, *flags) -> dit.DiTGenerator:
    """With the VAE in the same folder, if there is one."""
    vae = ("--vae", Path(spec) / "vae") if (Path(spec) / "vae").exists() else ()
    return dit.build(synthesize.parse(command(spec, *vae, *flags)), get_task("digits"), CPU)


# --- one network from every layout ----------------------------------------------------------------

@pytest.mark.parametrize("form", ["bare", "original", "state_dict_ema", "model_ema", "module.",
                                  "_orig_mod.", "bfloat16"])
def test_a_file_is_read_in_every_form(model, saved, form, capsys):
    """Averaged weights are taken where there are some; training checkpoints hold flags too."""
    state = model.state_dict()
    raw, flags = {key: value + 1 for key, value in state.items()}, argparse.Namespace(model="DiT")
    content = {"bare": state, "original": {"model": raw, "ema": state, "opt": {}, "args": flags},
               "state_dict_ema": {"state_dict": raw, "state_dict_ema": state},
               "model_ema": {"model": raw, "model_ema": state},
               "bfloat16": {"ema": {key: value.bfloat16() for key, value in state.items()}}}
    path = saved(content.get(form) or {form + key: value for key, value in state.items()})
    loaded, card = dit.load(path)
    exact = 0 if form != "bfloat16" else 0.02
    assert torch.allclose(outputs(loaded), outputs(model), atol=exact)
    assert loaded.config == model.config
    assert card == {"sha256": run.sha256_file(path), "licence": weights.LICENCE}
    assert ("averaged" in capsys.readouterr().err) == (form not in ("bare", "module.",
                                                                    "_orig_mod."))


def test_a_diffusers_folder_gives_the_same_bits_in_both_formats(model, tmp_path, pipeline):
    for folder in (pipeline, write_folder(model, tmp_path, safe_serialization=False)):
        loaded, _ = dit.load(folder)
        assert torch.equal(outputs(loaded), outputs(model)) and loaded.config == model.config


def test_weights_of_our_own_are_read_with_their_card(tmp_path):
    own = dit.DiT(8, 2, 1, width=128, depth=1, heads=8, num_classes=10)  # an original has 2 heads
    card = {"task": "digits", "config": own.config, "clip": True, "licence": "mine",
            "class_names": list("0123456789")}
    run.write_with_card(tmp_path / "own", "dit", own.state_dict(), card)
    loaded, card = dit.load(tmp_path / "own")
    assert loaded.config["heads"] == 8 and card["licence"] == "mine"
    assert build(tmp_path / "own").vae is None
    args = synthesize.parse(["--task", "fashion_mnist", *command(tmp_path / "own")[2:]])
    with pytest.raises(UserError, match="classes"):
        dit.build(args, get_task("fashion_mnist"), CPU)


@pytest.mark.parametrize(("width", "depth", "heads", "millions"), [
    (384, 12, 6, 33.0), (1152, 28, 16, 675.1)])
def test_sizes_and_parameters_of_the_published_models(width, depth, heads, millions):
    with torch.device("meta"):
        network = dit.DiT(32, 2, 4, width, depth, heads, 1000)
    count = sum(p.numel() for p in network.parameters()) / 1e6
    assert abs(count - millions) < 0.05
    assert weights.sizes(network.state_dict(), "a file") == network.config


# --- what is refused ------------------------------------------------------------------------------

def test_a_hostile_file_is_refused_and_runs_nothing(model, tmp_path, saved, copied):
    hostile = Bomb(tmp_path / "canary")
    for name, content in (("args.pt", {"ema": model.state_dict(), "args": hostile}),
                          ("edm2.pkl", hostile)):
        with pytest.raises(UserError, match="run|code"):
            dit.load(saved(content, name))
    for part in ("vae", "transformer"):
        (copied / part / f"{NAME}.safetensors").unlink()
        torch.save({"a": hostile}, copied / part / f"{NAME}.bin")
        with pytest.raises((UserError, OSError)):
            build(copied)
    assert not (tmp_path / "canary").exists()


@pytest.mark.parametrize(("key", "value"), [
    ("x_embedder.proj.weight", None), ("blocks.0.attn.q_norm.weight", torch.ones(64)),
    ("blocks.0.mlp.fc1.weight", torch.ones(256, 128))])
def test_the_first_key_that_differs_is_named(model, saved, key, value):
    state = {k: v for k, v in (dict(model.state_dict()) | {key: value}).items() if v is not None}
    with pytest.raises(UserError, match=key):
        dit.load(saved(state))


def test_a_dit_without_a_null_class_is_named_as_what_it_is(saved):
    state, table = random_dit(1).state_dict(), "y_embedder.embedding_table.weight"
    with pytest.raises(UserError, match="class_dropout_prob=0"):
        build(saved(state | {table: state[table][:10]}))


def test_an_unknown_number_of_heads_is_refused():
    with pytest.raises(UserError, match="heads"):
        dit.load(DATA / "dit_tiny_weights.safetensors")


# --- latents and their decoder --------------------------------------------------------------------

def test_images_are_the_decoded_latents_whichever_layout_the_dit_has(
        model, saved, pipeline, monkeypatch):
    made, seen = build(pipeline, "--dtype", "fp32"), []
    real = made.vae.decode
    monkeypatch.setattr(made.vae, "decode", lambda x: seen.append(x) or real(x))
    images = made.sample(torch.tensor([3, 7, 1]), [1, 2, 3])
    theirs = diffusers.AutoencoderKL.from_pretrained(pipeline / "vae")
    with torch.no_grad():
        decoded = torch.cat([theirs.decode(part / 0.18215).sample for part in seen[0].split(3)])
    assert torch.equal(images, latent.to_images(decoded))
    assert images.shape == (3, made.channels, made.resolution, made.resolution) == (3, 3, 16, 16)
    assert seen[0].shape == (3, 4, 8, 8) and made.guided_channels() == 3
    other = build(saved(model.state_dict()), "--vae", pipeline / "vae", "--dtype", "fp32")
    assert torch.equal(other.sample(torch.tensor([3, 7, 1]), [1, 2, 3]), images)


def test_the_vae_stays_in_float32_beside_a_bfloat16_network_and_is_in_the_settings(copied):
    made = build(copied, "--dtype", "bf16")
    assert {p.dtype for p in made.vae.model.parameters()} == {torch.float32}
    for part, name in (("transformer", "weights_sha256"), ("vae", "vae_sha256")):
        assert made.settings[name] == run.sha256_file(copied / part / f"{NAME}.safetensors")
    assert made.settings["vae_scaling_factor"] == 0.18215
    assert str(copied) not in json.dumps(made.settings)


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.cuda)])
def test_the_decoder_in_float16_is_within_two_grey_levels(pipeline, device):
    vae, exact = (latent.Vae(pipeline / "vae", torch.device(where), dtype)
                  for where, dtype in ((device, torch.float16), ("cpu", torch.float32)))
    latents = torch.randn(20, 4, 8, 8)
    images = [latent.to_images(v.decode(latents.to(v.model.device))).int() for v in (vae, exact)]
    assert vae.settings["vae_dtype"] == "float16" and images[1].float().std() > 20
    assert (images[0] - images[1]).abs().max() <= 2


def test_the_decoder_sees_one_shape(pipeline, monkeypatch):
    vae, seen = latent.Vae(pipeline / "vae", CPU), []
    vae.model.decoder.register_forward_pre_hook(lambda _, x: seen.append(len(x[0])))
    assert len(vae.decode(torch.randn(12, 4, 4, 4))) == 12 and seen == [6, 6]


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


# --- the hub --------------------------------------------------------------------------------------

def test_a_hub_id_downloads_what_is_needed_and_is_recorded(monkeypatch, pipeline, model, tmp_path):
    place = tmp_path / "cache" / "facebook"
    write_folder(model, place, safe_serialization=False)  # as facebook's: .bin
    shutil.copytree(pipeline / "vae", place / "vae")
    (place / "transformer" / f"{NAME}.fp16.bin").write_bytes(b"not needed")
    (place / "README.md").write_text("---\nlicense: cc-by-nc-4.0\n---\n# DiT\n")
    wanted = []

    def download(repository, **patterns):
        assert repository == "facebook/DiT-XL-2-256"
        wanted.extend(huggingface_hub.utils.filter_repo_objects(
            [str(p.relative_to(place)) for p in place.rglob("*") if p.is_file()], **patterns))
        return str(place)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    monkeypatch.chdir(tmp_path)
    made = build("facebook/DiT-XL-2-256", "--dtype", "fp32", "--vae", place / "vae")
    assert torch.equal(outputs(made.model), outputs(model))
    assert set(wanted) == {
        "transformer/config.json", f"transformer/{NAME}.bin", "README.md", "vae/config.json",
        f"vae/{NAME}.safetensors"}
    assert made.settings["weights"] == "facebook/DiT-XL-2-256"
    assert made.settings["licence"] == "cc-by-nc-4.0"


def test_a_path_under_a_folder_that_exists_is_no_hub_id(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder").mkdir()
    for spec in ("folder/missing", "./facebook", "a/b/c", "facebook", "/facebook/dit"):
        assert weights.local(spec) == Path(spec)
