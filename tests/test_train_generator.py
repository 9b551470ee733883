"""Training of the small generators, DiT and GAN: what they learn, and to the same bits."""

import json

import pytest
import torch
from PIL import Image

from dm_kd import synthesize, train_generator
from dm_kd.generators import diffusion, gan
from dm_kd.run import UserError

SMALL = {"dit": ["--width", "16", "--depth", "1", "--heads", "1"], "gan": ["--width", "8"]}
KINDS = pytest.mark.parametrize("kind", SMALL)


def train(kind, out, *more, steps=6) -> int:
    task = [] if "--task" in more else ["--task", "digits"]
    return train_generator.main([
        "--kind", kind, *task, *SMALL[kind], "--steps", str(steps), "--batch-size", "8",
        "--sample-every", "4", "--device", "cpu", "--threads", "1", "--out", str(out), *more])


@KINDS
def test_a_run_that_was_stopped_ends_in_the_same_bits(kind, tmp_path, monkeypatch):
    """Saved after each step, stopped after the third, run again."""
    save, whole, stopped = train_generator.run.Run.save_checkpoint, tmp_path / "a", tmp_path / "b"

    class Killed(Exception):
        pass

    def killed(run, state):
        save(run, state)
        if state["step"] == 3:
            raise Killed

    assert train(kind, whole) == 0
    with monkeypatch.context() as patch:
        patch.setattr(train_generator.run.Run, "save_checkpoint", killed)
        patch.setattr(train_generator.run.Run, "due", lambda run: True)
        with pytest.raises(Killed):
            train(kind, stopped)
    assert train(kind, stopped) == 0
    for name in (f"{kind}.safetensors", f"{kind}.json", "samples_0000004.png",
                 "samples_0000006.png"):
        assert (stopped / name).read_bytes() == (whole / name).read_bytes(), name
    row = json.loads((whole / "metrics.jsonl").read_text().splitlines()[-1])
    assert row["step"] == 6 and row["train_loss"] > 0 and row["images_seen"] == 48
    assert json.loads((whole / "result.json").read_text())["steps"] == 6
    assert train(kind, whole) == 0  # a finished run is left as it is


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


@KINDS
def test_a_generator_of_large_images_learns_their_resized_centres(
        large, tmp_path, monkeypatch, kind):
    seen, update = [], f"{kind}_updates"
    real = getattr(train_generator, update)

    def noted(*setting):
        parts, step = real(*setting)
        return parts, lambda images, *rest: seen.append(images.clone()) or step(images, *rest)

    monkeypatch.setattr(train_generator, update, noted)
    out = tmp_path / kind
    assert train(kind, out, "--task", "folder", "--data", str(large), "--resolution", "16",
                 "--cache", str(tmp_path / "cache"), steps=2) == 0
    means = {tuple(image.flatten(1).float().mean(1).tolist()) for image in torch.cat(seen)}
    assert seen[0].shape == (8, 3, 16, 16) and means == {(250, 0, 0), (0, 0, 250)}
    (tmp_path / "other/train/cat").mkdir(parents=True)
    (tmp_path / "other/train/eel").mkdir()
    for root, code in ((large, 0), (tmp_path / "other", 2)):  # other classes are refused
        assert synthesize.main([
            "--task", "folder", "--data", str(root), "--generator", kind, "--weights", str(out),
            *(["--steps", "2"] if kind == "dit" else []), "--images-per-class", "2", "--batch-size",
            "2", "--device", "cpu", "--threads", "1", "--out", str(tmp_path / f"set{code}"),
        ]) == code
    manifest = json.loads((tmp_path / "set0" / "manifest.json").read_text())
    assert manifest["resolution"] == 16 and manifest["class_names"] == ["cat", "dog"]
    assert "real training images of folder" in manifest["generator"]["trained_on"]


@pytest.mark.parametrize(("kind", "module", "loss"), [
    ("dit", diffusion, "diffusion_loss"), ("gan", gan, "generator_loss")])
def test_a_generator_that_diverged_is_not_saved(tmp_path, monkeypatch, capsys, kind, module, loss):
    real = getattr(module, loss)
    monkeypatch.setattr(module, loss, lambda *inputs: real(*inputs) * torch.nan)
    assert train(kind, tmp_path, "--sample-every", "1") == 2
    assert "step 1" in capsys.readouterr().err
    assert not list(tmp_path.glob("samples*")) and not list(tmp_path.glob("*.pt"))


def test_step_inputs_depend_on_the_seed_and_step_and_drop_a_tenth_of_the_labels():
    images, labels = torch.randint(256, (4000, 1, 2, 2), dtype=torch.uint8), torch.full((4000,), 3)
    x0, dropped, i, noise = train_generator.step_inputs(images, labels, 10, 0, 5)
    again, other = (train_generator.step_inputs(images, labels, 10, seed, 5) for seed in (0, 1))
    assert torch.equal(again[3], noise) and not torch.equal(other[3], noise)
    assert torch.equal(x0, images / 127.5 - 1) and set(dropped.tolist()) == {3, 10}
    assert 0.08 < (dropped == 10).float().mean() < 0.12
    assert torch.equal(i // 250, torch.arange(4000) // 1000)  # spread evenly over the process


def test_large_images_need_a_resolution():
    with pytest.raises(UserError, match="too large"):
        train_generator.body(["--task", "imagenet100", "--out", "unused", "--dry-run"])
