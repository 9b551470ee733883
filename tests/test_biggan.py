"""BigGAN-deep through its package: plain tensors, truncation, statistics."""

import json
import sys

import pytest
import torch

from dm_kd import synthesize
from dm_kd.errors import DamagedError, UserError
from dm_kd.generators import biggan, gan
from dm_kd.tasks import get_task


class Table(torch.nn.Module):
    """A layer with the statistics of 51 truncations: row i holds i."""

    def __init__(self):
        super().__init__()
        self.register_buffer("running_means", torch.arange(51.0)[:, None].repeat(1, 2))
        self.register_buffer("running_vars", torch.arange(51.0)[:, None].repeat(1, 2) ** 2)


@pytest.mark.parametrize("truncation", [0.02, 0.58, 0.59, 0.999, 1.0])
def test_statistics_are_interpolated_between_the_two_nearest_truncations(truncation):
    """Also where 0.58 / 0.02 comes out below 29."""
    table = Table()
    biggan.set_truncation(table, truncation)
    assert torch.allclose(table.running_means, torch.full((51, 2), 50 * truncation), atol=1e-4)
    low = int(50 * truncation + 1e-9)
    share = 50 * truncation - low
    expected = (1 - share) * low ** 2 + share * (low + 1) ** 2
    assert torch.allclose(table.running_vars, torch.full((51, 2), expected), rtol=1e-5)


def test_without_the_package_the_message_says_how_to_get_it(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "pytorch_pretrained_biggan", None)
    assert synthesize.main(["--task", "imagenet", "--generator", "biggan", "--weights",
                            str(tmp_path), "--device", "cpu", "--out", str(tmp_path / "set")]) == 2
    assert "pip install pytorch-pretrained-biggan" in capsys.readouterr().err


# --- with the package -----------------------------------------------------------------------------

@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    package = pytest.importorskip("pytorch_pretrained_biggan")
    place = tmp_path_factory.mktemp("biggan")
    torch.manual_seed(0)
    config = package.BigGANConfig(
        output_dim=8, z_dim=8, class_embed_dim=8, channel_width=8, num_classes=1000,
        layers=[(True, 16, 8), (False, 8, 4), (False, 4, 2), (False, 2, 1)],
        attention_layer_position=1)
    model = package.BigGAN(config)
    for name, tensor in model.state_dict().items():
        if name.endswith(("generator.bn.weight", "generator.bn.bias")):
            tensor.normal_()  # the package leaves them uninitialised
    (place / "config.json").write_text(config.to_json_string())
    torch.save(model.state_dict(), place / "pytorch_model.bin")
    return place


def made(folder, *argv, task="imagenet") -> biggan.BigGANGenerator:
    args = synthesize.parse(["--task", task, "--generator", "biggan", "--weights", str(folder),
                             "--out", "unused", *argv])
    return biggan.build(args, get_task(task), torch.device("cpu"))


def test_an_image_hangs_on_its_seed_and_class_and_not_on_its_batch(folder):
    generator = made(folder)
    together = generator.sample(torch.tensor([1, 2, 2]), [5, 6, 7])
    alone = generator.sample(torch.tensor([2]), [6])
    assert together.shape == (3, 3, 8, 8) and together.dtype == torch.uint8
    assert (together[1].int() - alone[0].int()).abs().max() <= 1
    assert not torch.equal(together[1], together[2])
    assert not torch.equal(generator.sample(torch.tensor([3]), [6]), alone)


def test_it_is_the_packages_network_on_our_cut_noise(folder):
    import pytorch_pretrained_biggan as package

    config = package.BigGANConfig.from_json_file(folder / "config.json")
    model = package.BigGAN(config).eval()
    model.load_state_dict(torch.load(folder / "pytorch_model.bin", weights_only=True))
    with torch.no_grad():
        image = model(0.4 * gan.truncated_normal(9, 8)[None],
                      torch.nn.functional.one_hot(torch.tensor([7]), 1000).float(), 0.4)
    expected = ((image + 1) / 2 * 255).round().clamp(0, 255)
    found = made(folder, "--truncation", "0.4").sample(torch.tensor([7]), [9])
    assert (found.float() - expected).abs().max() <= 1


def test_values_that_are_no_numbers_are_no_images(folder):
    generator = made(folder)
    generator.model.generator.requires_grad_(False)
    for tensor in generator.model.state_dict().values():
        tensor.mul_(float("nan")) if tensor.is_floating_point() else None
    with pytest.raises(UserError, match="NaN or infinite"):
        generator.sample(torch.tensor([1]), [5])


def test_imagenet_100_gets_imagenets_own_classes_and_the_manifest_says_so(folder):
    generator = made(folder, task="imagenet100")
    assert torch.equal(generator.sample(torch.tensor([99]), [4]),
                       made(folder).sample(torch.tensor([994]), [4]))
    assert generator.settings["generator_classes"][-1] == 994
    assert generator.settings["name"] == "biggan" and json.dumps(generator.settings)
    assert len(generator.settings["config_sha256"]) == 64  # its eps makes bytes too


def test_hostile_and_unfit_files_are_refused(folder, tmp_path):
    for name in ("config.json", "pytorch_model.bin"):
        (tmp_path / name).write_bytes((folder / name).read_bytes())
    (tmp_path / "pytorch_model.bin").write_bytes(b"\x80\x04cos\nsystem\n(S'touch hacked'\ntR.")
    with pytest.raises(UserError, match="run code"):
        made(tmp_path)
    torch.save({"embeddings.weight": torch.zeros(2, 2)}, tmp_path / "pytorch_model.bin")
    with pytest.raises(DamagedError, match="does not fit"):
        made(tmp_path)
    (tmp_path / "config.json").unlink()
    with pytest.raises(UserError, match="config not found"):
        made(tmp_path)
    with pytest.raises(UserError, match="1000 classes"):
        made(folder, task="digits")
