"""Small generators on large images: their centres, resized, whichever kind is trained."""

import json

import pytest
import torch
from PIL import Image

from dm_kd import image_set, synthesize, train_generator
from dm_kd.errors import UserError
from dm_kd.tasks import get_task


@pytest.fixture(scope="module")
def large(tmp_path_factory):
    """An ImageFolder of two classes, three pictures each of several sizes: one colour a class."""
    root = tmp_path_factory.mktemp("large")
    for name, colour in (("cat", (250, 0, 0)), ("dog", (0, 0, 250))):
        for split in ("train", "val"):
            (root / split / name).mkdir(parents=True)
            for i in range(3):
                Image.new("RGB", (50 + 10 * i, 70), colour).save(
                    root / split / name / f"{i}.png")
    return root


@pytest.mark.parametrize(("kind", "small"), [
    ("dit", ["--patch-size", "4", "--width", "16", "--depth", "1", "--heads", "1"]),
    ("gan", ["--width", "8", "--latent-size", "4"])])
def test_a_generator_of_large_images_learns_their_resized_centres(large, tmp_path, monkeypatch,
                                                                  kind, small, capsys):
    seen = []
    real = train_generator.StoredSource
    monkeypatch.setattr(train_generator, "StoredSource",
                        lambda images, *rest: seen.append(images) or real(images, *rest))
    out = tmp_path / kind
    assert train_generator.main([
        "--kind", kind, "--task", "folder", "--data", str(large), "--resolution", "16", *small,
        "--steps", "2", "--batch-size", "4", "--cache", str(tmp_path / "cache"), "--device", "cpu",
        "--threads", "1", "--out", str(out)]) == 0
    images = torch.as_tensor(seen[0])
    assert images.shape == (6, 3, 16, 16)
    assert images.flatten(2).float().mean(2).tolist() == [[250, 0, 0]] * 3 + [[0, 0, 250]] * 3
    assert synthesize.main([
        "--task", "folder", "--data", str(large), "--generator", kind, "--weights", str(out),
        *(["--steps", "2"] if kind == "dit" else []), "--images-per-class", "2", "--batch-size",
        "2", "--device", "cpu", "--threads", "1", "--out", str(tmp_path / "set")]) == 0
    manifest = json.loads((tmp_path / "set" / "manifest.json").read_text())
    assert manifest["resolution"] == 16 and manifest["class_names"] == ["cat", "dog"]
    known = image_set.open_set(tmp_path / "set").seconds()  # the generator's own with them
    assert known["pretraining_seconds"] == json.loads((out / "result.json").read_text())["seconds"]
    assert known["making_seconds"] > 0
    (tmp_path / "other/train/cat").mkdir(parents=True)
    (tmp_path / "other/train/eel").mkdir()
    assert synthesize.main([
        "--task", "folder", "--data", str(tmp_path / "other"), "--generator", kind, "--weights",
        str(out), "--images-per-class", "2", "--device", "cpu", "--out", str(tmp_path / "no")]) == 2
    assert "class 1 is 'dog', in the data it is 'eel'" in capsys.readouterr().err
    assert not (tmp_path / "no").exists()


def test_large_images_need_a_resolution_and_small_ones_keep_theirs():
    with pytest.raises(UserError, match="too large"):
        train_generator.at_resolution(get_task("imagenet100"), None)
    with pytest.raises(UserError, match="8 pixels"):
        train_generator.at_resolution(get_task("digits"), 16)
    assert train_generator.at_resolution(get_task("digits"), None).resolution == 8
    assert train_generator.at_resolution(get_task("imagenet100"), 64).resolution == 64


@pytest.mark.parametrize(("kind", "module", "loss", "small"), [
    ("dit", "diffusion", "diffusion_loss", ["--width", "16", "--depth", "1", "--heads", "1"]),
    ("gan", "gan", "generator_loss", ["--width", "8", "--latent-size", "4"])])
def test_a_generator_that_diverged_draws_no_samples(tmp_path, monkeypatch, capsys, kind, module,
                                                    loss, small):
    place = getattr(train_generator, module)
    real = getattr(place, loss)
    monkeypatch.setattr(place, loss, lambda *inputs: real(*inputs) * torch.nan)
    assert train_generator.main([
        "--kind", kind, "--task", "digits", *small, "--steps", "3", "--sample-every", "1",
        "--batch-size", "4", "--device", "cpu", "--threads", "1", "--out", str(tmp_path)]) == 4
    assert "became NaN or infinite before step 1" in capsys.readouterr().err
    assert not list(tmp_path.glob("samples*"))
