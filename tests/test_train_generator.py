"""Training of the small generators, DiT and GAN: what they learn, and to the same bits."""

import argparse
import json

import pytest
import torch
import torch.nn.functional as F
from float64 import float64
from PIL import Image

from dm_kd import synthesize, train_generator
from dm_kd.generators import diffusion
from dm_kd.run import Run

SMALL = {"dit": ["--width", "16", "--depth", "1", "--heads", "1"], "gan": ["--width", "8"]}


def train(kind, out, *more) -> int:
    return train_generator.main([
        "--kind", kind, "--task", "digits", *SMALL[kind], "--steps", "2", "--batch-size", "8",
        "--device", "cpu", "--threads", "1", "--out", str(out), *more])


@pytest.mark.parametrize("kind", SMALL)
def test_a_generator_of_large_images_learns_their_resized_centres(tmp_path, monkeypatch, kind):
    """Pictures of several sizes, one colour a class."""
    for name, colour in (("cat", (250, 0, 0)), ("dog", (0, 0, 250))):
        for split in ("mine/train", "mine/val"):
            (tmp_path / split / name).mkdir(parents=True)
            for i in range(3):
                Image.new("RGB", (50 + 10 * i, 70), colour).save(
                    tmp_path / split / name / f"{i}.png")
    seen, real = [], train_generator.batches_from

    def noted(*setting):
        for images, labels in real(*setting):
            seen.append(images)
            yield images, labels

    monkeypatch.setattr(train_generator, "batches_from", noted)
    task = ["--task", "folder", "--data", str(tmp_path / "mine")]
    assert train(kind, tmp_path / kind, *task, "--resolution", "16", "--cache",
                 str(tmp_path / "cache")) == 0
    means = {tuple(image.flatten(1).mean(1).mul(127.5).add(127.5).round().tolist())
             for image in torch.cat(seen)}
    assert seen[0].shape == (8, 3, 16, 16) and means == {(250, 0, 0), (0, 0, 250)}
    command = ["--generator", kind, "--weights", str(tmp_path / kind), "--images-per-class", "2",
               "--device", "cpu", "--out", str(tmp_path / "set")]
    assert synthesize.main([*task, *command]) == 0
    manifest = json.loads((tmp_path / "set" / "manifest.json").read_text())
    assert manifest["resolution"] == 16 and manifest["class_names"] == ["cat", "dog"]
    assert "real training images of folder" in manifest["generator"]["trained_on"]
    (tmp_path / "mine/train/dog").rename(tmp_path / "mine/train/eel")  # other classes are refused
    assert synthesize.main([*task, *command]) == 2


@pytest.mark.parametrize(("kind", "module", "loss"), [
    ("dit", diffusion, "diffusion_loss"), ("gan", F, "softplus")])
def test_a_generator_that_diverged_is_not_saved(tmp_path, monkeypatch, capsys, kind, module, loss):
    real = getattr(module, loss)
    monkeypatch.setattr(module, loss, lambda *inputs: real(*inputs) * torch.nan)
    monkeypatch.setattr(Run, "due", lambda run: True)
    assert train(kind, tmp_path) == 2
    assert "step 1" in capsys.readouterr().err and not list(tmp_path.glob("*.pt"))


@pytest.mark.parametrize(("kind", "expected"), [
    ("dit", [1.04501107, 0.938873901, 0.855943266, 0.835554775]),
    ("gan", [1.38855318, 0.711164503, 1.40102754, 0.935602053, 1.31743558, 0.673016069, 1.74012154,
             0.854128716])])
def test_four_updates_give_the_recorded_losses(kind, expected, digits):
    """In float64, of the DiT, or of discriminator and generator; the rate changes at each step and
    the GAN's first one has the penalty."""
    with float64():
        args = argparse.Namespace(kind=kind, seed=3, width=16, learning_rate=0.01, steps=8,
                                  patch_size=2, depth=1, heads=2, warmup_steps=6)
        model = train_generator.build(args, digits)
        update = getattr(train_generator, f"{kind}_updates")(
            args, digits, model, torch.device("cpu"))[1]
        images = torch.linspace(-1, 1, 16 * 64).view(64, 16).sin().T.reshape(16, 1, 8, 8)
        rows = [update(images.clone(), torch.arange(16) % 10, step,
                       torch.Generator().manual_seed(step)) for step in range(4, 8)]
    losses = [float(row[name]) for row in rows for name in row if "loss" in name]
    assert losses == pytest.approx(expected, rel=1e-6)
