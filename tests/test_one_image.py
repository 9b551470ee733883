"""One-Image: patches of one picture, by its seed alone."""

import argparse
import json

import numpy as np
import pytest
import torch
from PIL import Image

from dm_kd import synthesize
from dm_kd.errors import DamagedError, UserError
from dm_kd.generators import one_image
from dm_kd.tasks import get_task


@pytest.fixture(scope="module")
def picture():
    """Position is colour: red grows to the right, green downwards."""
    x, y = np.meshgrid(np.arange(200), np.arange(120))
    return Image.fromarray(np.stack([x, y, np.full_like(x, 50)], 2).astype(np.uint8))


def built(task, *argv):
    args = synthesize.parse(["--task", task, "--generator", "one_image", "--out", "unused", *argv])
    return one_image.build(args, get_task(task), torch.device("cpu"))


def patches(picture, count, size=16):
    generator = one_image.OneImageGenerator(picture, size, {})
    return generator.sample(torch.zeros(count), list(range(count)))


def test_a_patch_hangs_on_its_seed_alone(picture):
    together = patches(picture, 5)
    alone = one_image.OneImageGenerator(picture, 16, {}).sample(torch.tensor([9]), [3])
    assert together.shape == (5, 3, 16, 16) and together.dtype == torch.uint8
    assert torch.equal(together[3], alone[0]) and not torch.equal(together[3], together[2])


def test_an_inner_crop_covers_what_the_paper_says():
    draws = np.random.default_rng(0)
    sizes = np.array([one_image.inner_size(100, draws.uniform) for _ in range(4000)])
    area, aspect = sizes.prod(1) / 1e4, sizes[:, 0] / sizes[:, 1]
    assert sizes.min() >= 1 and sizes.max() <= 100
    assert area.min() < 0.02 and area.max() > 0.95 and 0.4 < area.mean() < 0.5  # near 1 few fit
    large = area > 0.1
    assert 0.73 < aspect[large].min() < 0.8 and 1.25 < aspect[large].max() < 1.37


def test_an_inner_crop_is_drawn_until_it_fits():
    answers = iter([1.0, 0.2, 0.25, 0.0])  # all of the area at aspect 1.22; a quarter, square
    assert one_image.inner_size(100, lambda low, high: next(answers)) == (50, 50)


def test_patches_come_from_all_over_the_picture_and_from_within_half_of_it(picture, monkeypatch):
    monkeypatch.setattr(one_image, "JITTER_SHARE", 0.0)
    monkeypatch.setattr(one_image, "DEGREES", 0.0)
    found = patches(picture, 300).float()
    red, green = found[:, 0], found[:, 1]
    assert red.min() < 16 and red.max() > 184 and green.min() < 10 and green.max() > 110
    assert (red.amax((1, 2)) - red.amin((1, 2))).max() <= 62  # half of 120 pixels, and rounding


def test_half_of_the_patches_keep_their_colours(picture):
    """Blue is 50 everywhere but in the black corners that turning leaves."""
    found = patches(picture, 400)[:, 2, 8, 8]
    assert 0.4 < float((found == 50).float().mean()) < 0.62


def test_turning_leaves_black_corners_in_some(monkeypatch):
    monkeypatch.setattr(one_image, "JITTER_SHARE", 0.0)
    found = patches(Image.new("RGB", (64, 64), (200, 200, 200)), 100)
    assert (found[:, :, 8, 8] == 200).all()
    dark = (found.amin((1, 2, 3)) < 100).float().mean()
    assert 0.02 < float(dark) < 0.9


def test_the_default_is_scikit_learns_photograph_with_its_licence():
    generator = built("cifar100")
    assert generator.picture.size == (640, 427) and generator.resolution == 32
    assert "CC BY 2.0" in generator.settings["licence"] and not generator.labels_known
    assert built("cifar100", "--picture", "flower.jpg").settings != generator.settings


def test_grey_tasks_get_grey_patches_and_large_ones_256_pixels():
    assert built("digits").sample(torch.tensor([0]), [1]).shape == (1, 1, 8, 8)
    assert built("imagenet").resolution == 256


def test_a_file_of_ones_own_comes_before_the_bundled_one(tmp_path, picture, monkeypatch):
    monkeypatch.chdir(tmp_path)
    picture.save("china.jpg")
    assert built("cifar100").picture.size == (200, 120)


def test_bad_pictures_are_refused(tmp_path):
    (tmp_path / "bad.png").write_bytes(b"no picture")
    Image.new("RGB", (15, 100)).save(tmp_path / "small.png")
    for name, error in (("bad.png", DamagedError), ("small.png", UserError),
                        ("none.png", UserError), (".", UserError)):
        with pytest.raises(error):
            built("cifar100", "--picture", str(tmp_path / name))


def test_the_command_makes_an_unlabelled_set(tmp_path):
    assert synthesize.main(["--task", "digits", "--generator", "one_image", "--images-per-class",
                            "2", "--batch-size", "10", "--device", "cpu", "--threads", "1",
                            "--out", str(tmp_path / "set")]) == 0
    manifest = json.loads((tmp_path / "set" / "manifest.json").read_text())
    assert manifest["generator"]["name"] == "one_image" and manifest["labels_known"] is False
    rows = (tmp_path / "set" / "index.csv").read_text().splitlines()
    assert len(rows) == 21 and all(row.split(",")[1] == "-1" for row in rows[1:])


def test_flags_of_the_module_alone():
    parser = argparse.ArgumentParser()
    one_image.add_arguments(parser)
    assert parser.parse_args([]).picture == "china.jpg"
