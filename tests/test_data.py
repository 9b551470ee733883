"""From files to batches: tasks, real images, sets, packing, order. Data sets are generated here in
the formats they are published in; test_cases_data.py has folders and lists."""

import argparse
import dataclasses
import gzip
import hashlib
import json
import shutil
import struct
import types
import urllib.error
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision import datasets
from torchvision.transforms.v2 import functional

from dm_kd import augment, data, image_set, synthesize, tasks
from dm_kd.augment import View
from dm_kd.data import Images, Source, load_real, load_source
from dm_kd.generators.noise import NoiseGenerator
from dm_kd.run import UserError
from dm_kd.tasks import TASKS, WNIDS, get_task

DIGITS, IMAGENET = get_task("digits"), get_task("imagenet")


@pytest.fixture(autouse=True)
def in_empty_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(tasks, "DEBIAN_FASHION", tmp_path / "nowhere")


def noise(path, size, seed=0) -> Path:
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    return path


def source_args(source, **changes) -> argparse.Namespace:
    return argparse.Namespace(**{
        "source": source, "data": None, "fold": 0, "val": "val", "cache": Path("cache"),
        "images_per_class": None, "subset_seed": None} | changes)


def digest(*tensors) -> str:
    return hashlib.sha256(b"".join(t.contiguous().numpy().tobytes() for t in tensors)).hexdigest()


# --- the table of tasks ---------------------------------------------------------------------------

@pytest.mark.parametrize("name", TASKS)
def test_a_tasks_names_and_statistics_fit_together(name):
    task = TASKS[name]
    assert task.name == name and len(task.class_names) == task.num_classes > 1
    assert len(set(task.class_names)) == task.num_classes or name == "imagenet"  # two cranes
    assert len(task.mean) == len(task.std) == task.channels in (1, 3)


def test_imagenet_100_is_the_published_part_of_imagenets_thousand():
    task = get_task("imagenet100")
    assert len(WNIDS) == 1000 and sorted(WNIDS) == list(WNIDS)
    assert (task.wnids[7], task.imagenet_classes[7]) == ("n01855672", 99)
    assert task.class_names[7] == IMAGENET.class_names[99] == "goose"
    assert IMAGENET.imagenet_classes == tuple(range(1000)) and DIGITS.imagenet_classes is None


# --- digits ---------------------------------------------------------------------------------------

FOLDS = ("ddf6aeb8999d0087", "4d905c2cffba77a8", "641d5d744aae5bcc", "3f9ec5f94430ea5c",
         "7086d16438118f9d")


@pytest.mark.parametrize("fold", range(5))
def test_the_digits_folds_share_no_writer_and_are_those_of_the_first_edition(fold):
    parts = [load_real(DIGITS, split, fold, val) for val in ("val", "dev")
             for split in ("train", "val")]
    assert digest(*[t for part in parts for t in (part.images, part.labels)])[:16] == FOLDS[fold]
    writers = DIGITS.load("train", None)[2].numpy()
    for val in ("val", "dev"):
        train, evaluated = data.split_by_group(writers, fold, val, 5)
        assert not set(writers[train]) & set(writers[evaluated])


def test_val_none_evaluates_on_nothing_and_other_folds_and_paths_are_refused():
    assert load_real(DIGITS, "val", 0, "none") is None
    assert torch.equal(load_real(DIGITS, "train", 0, "none").labels,
                       load_real(DIGITS, "train", 0, "val").labels)
    with pytest.raises(UserError, match="folds 0 to 4"):
        load_real(DIGITS, "train", 5)
    with pytest.raises(UserError, match="scikit-learn"):
        load_real(DIGITS, "train", root=Path())


# --- torchvision's data sets ----------------------------------------------------------------------

def idx(array) -> bytes:
    """LeCun's IDX format."""
    return bytes([0, 0, 8, array.ndim]) + struct.pack(f">{array.ndim}I",
                                                      *array.shape) + array.tobytes()


def test_debians_fashion_mnist_is_unpacked_once_and_dev_is_a_sixth_of_it(monkeypatch, tmp_path):
    packed = tmp_path / "debian"
    packed.mkdir()
    monkeypatch.setattr(tasks, "DEBIAN_FASHION", packed)
    images = {part: np.random.default_rng(0).integers(0, 256, (count, 28, 28), dtype=np.uint8)
              for part, count in (("train", 24), ("t10k", 12))}
    for part, pixels in images.items():
        labels = np.arange(len(pixels), dtype=np.uint8) % 10
        (packed / f"{part}-images-idx3-ubyte.gz").write_bytes(gzip.compress(idx(pixels)))
        (packed / f"{part}-labels-idx1-ubyte.gz").write_bytes(gzip.compress(idx(labels)))
    for split, part, count in (("train", "train", 24), ("val", "t10k", 12)):
        real = load_real(get_task("fashion_mnist"), split)
        assert np.array_equal(real.images[:, 0].numpy(), images[part])
        assert real.labels.tolist() == [i % 10 for i in range(count)]
    shutil.rmtree(packed)
    dev = load_real(get_task("fashion_mnist"), "val", 0, "dev")
    rest = load_real(get_task("fashion_mnist"), "train", 0, "dev")
    assert np.array_equal(dev.images[:, 0].numpy(), images["train"][5::6]) and len(dev.labels) == 4
    assert len(rest.labels) == 20


def test_cifars_and_flowers_images_and_labels_from_0(monkeypatch):
    rows = np.random.default_rng(0).integers(0, 256, (2, 32, 32, 3), dtype=np.uint8)
    parts = {"train": [1, 2, 3], "val": [6, 5], "test": [9, 12]}

    def published(name, root, split=None, train=None):
        if name == "CIFAR100":
            return types.SimpleNamespace(data=rows[:2 if train else 1], targets=[4, 0])
        return types.SimpleNamespace(_image_files=[Path(f"{i}.jpg") for i in parts[split]],
                                     _labels=[i - 1 for i in parts[split]])

    monkeypatch.setattr(tasks, "torchvision_set", published)
    real = load_real(get_task("cifar100"), "train")
    assert np.array_equal(real.images.numpy(), rows.transpose(0, 3, 1, 2))
    assert real.labels.tolist() == [4, 0]
    assert len(load_real(get_task("cifar100"), "val").images) == 1
    for split, ids in (("train", [1, 2, 3, 6, 5]), ("val", [9, 12])):
        real = load_real(get_task("flowers102"), split)
        assert real.images.paths == [f"{i}.jpg" for i in ids]
        assert real.labels.tolist() == [i - 1 for i in ids]


def test_without_a_network_a_missing_data_set_is_a_clear_error(monkeypatch):
    def download(*args, **kwargs):
        raise urllib.error.URLError("no route to host")

    monkeypatch.setattr(datasets.utils, "_urlretrieve", download)
    with pytest.raises(UserError, match="cifar10"):
        load_real(get_task("cifar10"), "val")


# --- one image ------------------------------------------------------------------------------------

def test_every_kind_of_image_becomes_8_bits_of_one_or_three_channels():
    grey = np.arange(12, dtype=np.uint8).reshape(3, 4) * 20
    colour = np.stack([grey, grey + 1, grey + 2], 2)
    kinds = {"grey.png": Image.fromarray(grey), "bits.png": Image.fromarray(grey > 100),
             "deep.png": Image.fromarray(grey.astype(np.uint16) << 8),
             "palette.png": Image.fromarray(colour).quantize(), "LA.png": Image.fromarray(
                 grey).convert("LA"), "colour.png": Image.fromarray(colour),
             "alpha.png": Image.fromarray(colour).convert("RGBA"),
             "cmyk.tif": Image.fromarray(colour).convert("CMYK")}
    for name, image in kinds.items():
        image.save(name)
        one, three = (image_set.read_image(name, channels) for channels in (1, 3))
        assert one.shape == (1, 3, 4) and three.shape == (3, 3, 4) and three.dtype == torch.uint8
        if name != "bits.png":
            assert np.abs(three.numpy().astype(int) - colour.transpose(2, 0, 1)).max() <= 2, name
    assert image_set.read_image("grey.png").shape[0] == 1
    assert image_set.read_image("palette.png").shape[0] == 3


@pytest.mark.parametrize("what", ["empty", "text", "truncated", "missing"])
def test_a_bad_image_is_named(what):
    path = noise("bad.png", (40, 40))
    content = {"empty": b"", "text": b"no image", "truncated": path.read_bytes()[:-900]}
    path.unlink() if what == "missing" else path.write_bytes(content[what])
    with pytest.raises(UserError, match=r"bad\.png"):
        image_set.read_image(path)


# --- a part of the images ------------------------------------------------------------------------

def test_images_per_class_takes_the_first_or_draws_with_a_seed():
    everything = load_source(source_args("real"), DIGITS)
    few = load_source(source_args("real", images_per_class=3), DIGITS)
    drawn, more = (load_source(source_args("real", images_per_class=n, subset_seed=1), DIGITS)
                   for n in (3, 9))
    assert few.labels.bincount().tolist() == drawn.labels.bincount().tolist() == [3] * 10
    assert torch.equal(few.images[:3], everything.images[everything.labels == 0][:3])
    pictures = [{digest(image) for image in images.images} for images in (drawn, more, few)]
    assert pictures[0] < pictures[1] and pictures[0] != pictures[2]
    labels = load_real(DIGITS, "train").labels  # as the first edition drew them
    assert digest(data.first_per_class(labels, 5)).startswith("74aee882ac9b0950")
    assert digest(data.first_per_class(labels, 5, 1)).startswith("542a3933ff852941")
    with pytest.raises(UserError, match="class 0 has 1[0-9][0-9] images"):
        load_source(source_args("real", images_per_class=1000), DIGITS)
    with pytest.raises(UserError, match="--images-per-class"):
        load_source(source_args("real", subset_seed=1), DIGITS)


# --- image sets as a source -----------------------------------------------------------------------

@pytest.fixture
def digits_set(monkeypatch):
    """A set of noise whose labels count."""
    made = Path("sets/digits")
    monkeypatch.setattr(NoiseGenerator, "labels_known", True)
    assert synthesize.main([
        "--task", "digits", "--generator", "noise", "--images-per-class", "4", "--batch-size", "8",
        "--device", "cpu", "--threads", "1", "--out", str(made)]) == 0
    return made


def test_a_set_is_its_images_in_the_order_of_positions(digits_set):
    images = load_source(source_args(digits_set), DIGITS)
    opened = image_set.ImageSet(digits_set)
    for j in range(5):
        for i, (label, k) in enumerate(opened.shard(j), 8 * j):
            assert images.labels[i] == label
            assert torch.equal(images.images[i],
                               image_set.read_image(digits_set / opened.path(label, k)))
    assert images.sha256 == opened.digest and images.generator["name"] == "noise"
    few = load_source(source_args(digits_set, images_per_class=2), DIGITS)
    assert torch.equal(few.images, images.images[:20]) and len(few.labels) == 20
    small = load_source(source_args(digits_set), dataclasses.replace(DIGITS, resolution=5))
    assert torch.equal(small.images, functional.resize(images.images, [5, 5]))


def test_a_set_that_is_damaged_or_unfinished_is_refused(digits_set):
    with pytest.raises(UserError, match="4 images per class"):
        load_source(source_args(digits_set, images_per_class=5), DIGITS)
    with pytest.raises(UserError, match="subset-seed"):
        load_source(source_args(digits_set, images_per_class=2, subset_seed=0), DIGITS)
    path = next(digits_set.glob("images/0003/*_num_2.png"))
    path.write_bytes(path.read_bytes()[:-30])
    with pytest.raises(UserError, match=path.name):
        load_source(source_args(digits_set), DIGITS)
    (digits_set / "shards/00001.csv").unlink()
    with pytest.raises(UserError, match="1 of 5 shards"):
        load_source(source_args(digits_set), DIGITS)


@pytest.mark.parametrize("change", [{"class_names": tuple("0132456789")}, {"name": "other"},
                                    {"class_names": tuple("012")}])
def test_a_sets_labels_are_not_used_where_its_classes_are_others(digits_set, change):
    images = load_source(source_args(digits_set), dataclasses.replace(DIGITS, **change))
    assert set(images.labels.tolist()) == {-1} and "not used" in images.notes[0]


def test_a_set_of_the_first_edition_is_read_as_a_folder(digits_set):
    manifest = json.loads((digits_set / "manifest.json").read_text()) | {"format_version": 1}
    (digits_set / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(UserError, match="images"):
        load_source(source_args(digits_set), DIGITS)
    images = load_source(source_args(digits_set / "images"), DIGITS)
    assert images.labels.tolist() == [c for c in range(10) for _ in range(4)]


# --- packing --------------------------------------------------------------------------------------

SIZES = ((40, 60), (60, 40), (300, 250), (256, 256), (50, 50), (33, 70))


def pictures(sizes=SIZES, where="set") -> Images:
    for i, size in enumerate(sizes):
        noise(f"{where}/class_{i}_seed_0_num_0.png", size, i)
    return data.folder_images(Path(where), IMAGENET)


def test_images_of_one_size_are_packed_once_until_one_changes(monkeypatch):
    found = pictures([(40, 60)] * 5)
    packed = data.pack(found, IMAGENET, Path("cache"))
    assert torch.equal(packed.images, torch.stack([found.images[i] for i in range(5)]))
    assert packed.sha256 and found.sha256 is None

    def never(files, i):
        assert i == 0, "only its size is read"
        return image_set.read_image(files.paths[0], 3)

    with monkeypatch.context() as patched:
        patched.setattr(data.Files, "__getitem__", never)
        assert torch.equal(data.pack(found, IMAGENET, Path("cache")).images, packed.images)
    noise(found.images.paths[1], (40, 60), 99)
    assert torch.equal(data.pack(found, IMAGENET, Path("cache")).images[1], found.images[1])


def test_large_images_of_several_sizes_stay_files_and_are_evaluated_as_centre_crops():
    found = pictures()
    packed = data.pack(found, IMAGENET, Path("cache"))
    assert packed.images is found.images and packed.sha256
    crops = data.pack(found, IMAGENET, Path("cache"), crops=True).images
    expected = [augment.centre_crops(found.images[i][None], 224)[0] for i in range(6)]
    assert torch.equal(crops, torch.stack(expected))
    assert torch.equal(data.evaluation_crops(found, torch.tensor([4, 2]), IMAGENET),
                       crops[[4, 2]])
    small = data.pack(found, get_task("cifar10"), Path("cache")).images
    assert torch.equal(small[2], functional.resize(found.images[2], [32, 32]))


def test_a_damaged_image_is_named_and_leaves_no_array():
    found = pictures([(40, 60)] * 3)
    path = Path(found.images.paths[2])
    path.write_bytes(path.read_bytes()[:-2000])
    with pytest.raises(UserError, match=path.name):
        data.pack(found, IMAGENET, Path("cache"))
    with pytest.raises(UserError, match=path.name):  # a worker's
        list(Source(found, files_view(), 3, 0).batches(0))
    assert not [p for p in Path("cache").iterdir() if p.suffix != ".lock"]


# --- batches --------------------------------------------------------------------------------------

PLAIN = View((0.5,), (0.5,))


def counted(count=10) -> Images:
    """Image i is the constant i."""
    pixels = torch.arange(count, dtype=torch.uint8).view(-1, 1, 1, 1).expand(count, 1, 2, 2)
    return Images(pixels.contiguous(), torch.arange(count) + 100)


def test_the_order_of_batches_is_that_of_the_first_edition():
    source = Source(counted(), PLAIN, 4, 3, steps_per_epoch=6)
    assert source.order(2).flatten().tolist() == [
        7, 4, 1, 8, 6, 0, 2, 9, 3, 5, 16, 11, 12, 18, 17, 15, 14, 13, 19, 10, 27, 29, 26, 20]
    assert Source(counted(), PLAIN, 4, 3).steps_per_epoch == 3
    for pixels, labels, ids in source.batches(2):
        assert torch.equal(pixels[:, 0, 0, 0], ids % 10) and torch.equal(labels, ids % 10 + 100)


def equal(batches, others) -> bool:
    batches, others = list(batches), list(others)
    return len(batches) == len(others) > 0 and all(
        torch.equal(a, b) for batch, other in zip(batches, others, strict=True)
        for a, b in zip(batch, other, strict=True))


def test_batches_begin_at_any_step_and_ranks_share_them():
    source = Source(counted(), PLAIN, 4, 3, steps_per_epoch=6)
    whole = list(source.batches(1))
    assert equal(source.batches(1, 4), whole[4:])
    assert not equal(source.batches(1), source.batches(2))
    ranks = [Source(counted(), PLAIN, 4, 3, 6, rank=r, world_size=2).batches(1) for r in (0, 1)]
    joined = [[torch.cat(parts) for parts in zip(*both, strict=True)]
              for both in zip(*ranks, strict=True)]
    assert equal(joined, whole)


def files_view(crop=True) -> View:
    return View(IMAGENET.mean, IMAGENET.std, 64, crop=crop, flip=True, mixup=0.2)


@pytest.mark.parametrize("crop", [True, False])
def test_files_are_cut_by_worker_processes_as_their_images_would_be(crop):
    found = pictures()
    source = Source(found, files_view(crop), 4, 3, steps_per_epoch=3)
    batches = list(source.batches(1))
    for step, (crops, labels, ids) in enumerate(batches):
        assert crops.shape == (4, 3, 64, 64) and torch.equal(labels, ids % 6)
        assert torch.equal(ids, source.order(1)[step])
        images = [found.images[i % 6][None] for i in ids]
        expected = [files_view(crop).cut(image, files_view(crop).draw(image, i[None], 3, 1, 0))[0]
                    for image, i in zip(images, ids, strict=True)]
        assert torch.equal(crops, torch.stack(expected))
        x, _ = source.view.apply(crops, labels, source.view.draw(crops, ids, 3, 1, step))
        draws = augment.draw_mixing(4, 64, 64, 3, 1, step, 0.2, 0, 1)
        # nothing is left but to standardise and mix
        assert torch.equal(x, augment.mix(source.view.apply(crops, labels, {})[0], draws))
    torch.manual_seed(7)
    before = torch.random.get_rng_state()
    assert equal(source.batches(1, 2), batches[2:])
    assert torch.equal(before, torch.random.get_rng_state())
