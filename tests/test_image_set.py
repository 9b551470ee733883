"""Image sets: what is where, the same bytes by any route and after any kill, damage named."""

import hashlib
import shutil
import types
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

from dm_kd import image_set, synthesize
from dm_kd.run import UserError


def sample(labels, seeds):
    """Images that depend on label and seed only, as a generator's do."""
    return torch.stack([torch.randint(0, 256, (1, 8, 8), dtype=torch.uint8, generator=torch
                        .Generator().manual_seed(seed + int(label)))
                        for label, seed in zip(labels, seeds, strict=True)])


def manifest(**changes) -> dict:
    return {"format_version": 2, "task": "digits", "num_classes": 10, "classes": [1, 4, 7],
            "class_names": ["1", "4", "7"], "images_per_class": 5, "resolution": 8, "channels": 1,
            "labels_known": True, "generator": {"name": "test", "steps": 3, "licence": "none"},
            "shared_noise": False, "base_seed": 0, "shard_size": 4, "device": "cpu", "threads": 2,
            "versions": {"torch": "2"}, "made_on": "here"} | changes


def make(folder, ranks=((0, 1),), **changes) -> image_set.ImageSet:
    """The set, made by each (rank, world size) in turn."""
    for rank, world_size in ranks:
        images = image_set.begin(folder, manifest(**changes))
        own = [j for j in images.missing() if j % world_size == rank]
        image_set.make(images, sample, own, lambda count: None)
    return image_set.ImageSet(folder)


def contents(folder):
    return {str(p.relative_to(folder)): p.read_bytes() for p in Path(folder).rglob("*")
            if p.is_file() and p.name != "command.txt"}


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("finished") / "set"
    make(folder)
    return folder


@pytest.fixture
def copy(tmp_path, finished):
    """A copy of the finished set, to damage."""
    return shutil.copytree(finished, tmp_path / "copy")


# --- the same bytes by any route ------------------------------------------------------------------

def test_images_and_rows_are_what_the_generator_made(finished):
    images = image_set.ImageSet(finished)
    places = [place for j in range(4) for place in images.shard(j)]
    assert places[:7] == [(1, 0), (4, 0), (7, 0), (1, 1), (4, 1), (7, 1), (1, 2)]
    assert places[12:] == [(1, 4), (4, 4), (7, 4), (1, 5)]  # always sampled in full
    assert [len(images.rows(j)) for j in range(4)] == [4, 4, 4, 3]
    for j in range(4):
        for row, (label, k) in zip(images.rows(j), images.shard(j), strict=False):
            data = (finished / row["path"]).read_bytes()
            made = sample(torch.tensor([label]), [image_set.image_seed(0, label, k)])[0]
            assert torch.equal(image_set.read_image(finished / row["path"]), made)
            assert (row["label"], row["sha256"]) == (str(label), hashlib.sha256(data).hexdigest())
    assert images.missing() == []
    sheet = image_set.read_image(finished / "samples.png")  # a row a class, 4 times as large
    last = image_set.read_image(finished / images.path(7, 4))
    assert sheet.shape == (3, 3 * 34 + 2, 5 * 34 + 2)
    assert torch.equal(sheet[:1, 70:102:4, 138:170:4], last) and int(sheet[0, 0, 0]) == 255


@pytest.mark.parametrize("ranks", [((1, 2), (0, 2)), ((2, 3), (0, 3), (1, 3)), ((1, 3), (0, 1))])
def test_ranks_in_any_order_and_number_give_the_same_bytes(tmp_path, finished, ranks):
    make(tmp_path / "set", ranks)
    assert contents(tmp_path / "set") == contents(finished)


def test_growth_gives_the_bytes_of_the_larger_set(tmp_path, finished):
    digest = make(tmp_path / "set", images_per_class=3).digest
    grown = image_set.begin(tmp_path / "set", manifest())
    assert grown.missing() == [2, 3]  # shard 2 was made, but not all of it kept
    make(tmp_path / "set")
    assert contents(tmp_path / "set") == contents(finished) and grown.digest != digest


def test_a_finished_set_is_left_alone_and_a_lost_shard_is_made_again(copy, finished):
    images = image_set.begin(copy, manifest(made_on="elsewhere"))
    assert not images.missing() and contents(copy) == contents(finished)
    (copy / "shards/00001.csv").unlink()
    (copy / images.path(4, 1)).write_bytes(b"damaged, and longer than it was" * 99)
    assert images.missing() == [1]
    image_set.make(images, sample, [1], lambda count: None)
    assert contents(copy) == contents(finished)


def test_a_file_that_is_written_again_is_whole_at_every_moment(tmp_path):
    """So two processes that make the same shard are no danger to each other."""
    path, data, seen = tmp_path / "x.png", b"x" * 100_000, set()
    path.write_bytes(data + b"left of a longer one")
    image_set.write_over(path, data)
    with ThreadPoolExecutor(1) as thread:
        writing = thread.submit(lambda: [image_set.write_over(path, data) for _ in range(300)])
        while not seen or not writing.done():
            seen.add(path.read_bytes())
    assert seen == {data}


# --- settings and damage --------------------------------------------------------------------------

@pytest.mark.parametrize(("change", "shown"), [
    ({"base_seed": 1}, "base_seed: 0 -> 1"),
    ({"generator": {"name": "test", "steps": 4, "licence": "none"}}, "generator.steps: 3 -> 4"),
    ({"classes": [1, 4], "class_names": ["1", "4"]}, "classes"), ({"threads": 3}, "threads"),
    ({"images_per_class": 4}, "only grow")])
def test_changed_settings_are_refused_and_named(copy, finished, change, shown):
    with pytest.raises(UserError, match=shown):
        image_set.begin(copy, manifest(**change))
    assert contents(copy) == contents(finished)


def test_verify_names_every_damaged_file(copy, capsys):
    assert synthesize.main(flags(copy, "--verify")) == 0
    plan = image_set.ImageSet(copy)
    damaged = copy / plan.path(4, 0)
    damaged.write_bytes(damaged.read_bytes()[:-1] + b"x")
    (copy / plan.path(7, 3)).unlink()
    assert synthesize.main(flags(copy, "--verify")) == 2
    shown = capsys.readouterr().err
    assert str(damaged) in shown and str(copy / plan.path(7, 3)) in shown
    assert shown.count(str(copy)) == 2


# --- the command ----------------------------------------------------------------------------------

def flags(folder, *more):
    return ["--task", "digits", "--generator", "noise", "--out", str(folder), *more]


def test_a_generator_that_reads_batch_statistics_gets_classes_from_all_over(tmp_path, digits):
    args = synthesize.parse(flags(tmp_path / "set", "--batch-size", "7"))
    generator = types.SimpleNamespace(resolution=8, channels=1, labels_known=True, settings={},
                                      mixes_classes=True)
    mixed = synthesize.make_manifest(args, digits, generator, torch.device("cpu"))["classes"]
    assert sorted(mixed) == list(range(10)) and mixed != list(range(10))


# --- pictures -------------------------------------------------------------------------------------

@pytest.mark.parametrize("channels", [1, 3])
def test_png_keeps_every_pixel(channels, tmp_path):
    image = torch.randint(0, 256, (channels, 5, 7), dtype=torch.uint8)
    (tmp_path / "x.png").write_bytes(image_set.encode_png(image))
    assert torch.equal(image_set.read_image(tmp_path / "x.png"), image)
    assert image_set.read_image(tmp_path / "x.png", 3).shape == (3, 5, 7)
