"""Real data in the formats they are published in, generated here: whole, damaged and hostile.

Labels are checked against the pixels: each image says in its colour which class it is of.
"""

import functools
import gzip
import io
import multiprocessing
import os
import pickle
import random
import shutil
import struct
import tarfile
import time
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision
from PIL import Image
from processes import contents
from scipy.io import savemat

from dm_kd import files, real_data
from dm_kd.class_names import IMAGENET100
from dm_kd.errors import DamagedError, UserError
from dm_kd.image_files import ImageFiles
from dm_kd.tasks import get_task, load_real


@pytest.fixture(autouse=True)
def in_empty_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def load(task, split="val", data=None, **options):
    return load_real(get_task(task, data), split, data=data, **options)


def picture(number=0, kind="PNG") -> bytes:
    """A tiny image whose colour is the number."""
    buffer = io.BytesIO()
    Image.new("RGB", (2, 2), (number >> 8, number & 255, 0)).save(buffer, kind)
    return buffer.getvalue()


def save(path: Path, number=0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(picture(number))
    return path


def numbers(found: ImageFiles) -> list[int]:
    """The number that each picture shows."""
    return [int(image[0, 0, 0]) * 256 + int(image[1, 0, 0])
            for image in found[torch.arange(len(found))]]


# --- Fashion-MNIST --------------------------------------------------------------------------------

def idx(array) -> bytes:
    """LeCun's IDX format."""
    return bytes([0, 0, 8, array.ndim]) + struct.pack(f">{array.ndim}I",
                                                      *array.shape) + array.tobytes()


def fashion_arrays(count, seed=0):
    draw = np.random.default_rng(seed)
    return (draw.integers(0, 256, (count, 28, 28), dtype=np.uint8),
            draw.permutation(np.arange(count, dtype=np.uint8) % 10))


def write_fashion(folder: Path, end="", **changes) -> Path:
    """24 training and 12 test images; `changes`: file stem -> other bytes."""
    folder.mkdir(parents=True, exist_ok=True)
    for prefix, count in (("train", 24), ("t10k", 12)):
        for what, array in zip(("images-idx3", "labels-idx1"), fashion_arrays(count), strict=True):
            data = changes.get(f"{prefix}_{what[:6]}", idx(array))
            data = gzip.compress(data, 1) if end else data
            (folder / f"{prefix}-{what}-ubyte{end}").write_bytes(data)
    return folder


@pytest.mark.parametrize("end", ["", ".gz"])
def test_fashion_mnist_is_what_its_idx_files_hold(tmp_path, end):
    data = write_fashion(tmp_path / "data", end)
    for split, count in (("train", 24), ("val", 12)):
        real, (images, labels) = load("fashion_mnist", split, data), fashion_arrays(count)
        assert real.images.shape == (count, 1, 28, 28) and real.images.dtype == torch.uint8
        assert np.array_equal(real.images[:, 0].numpy(), images)
        assert np.array_equal(real.labels.numpy(), labels) and real.labels.dtype == torch.int64
        assert real.ids.tolist() == list(range(count))


@pytest.mark.parametrize("place", ["true_dataset/fashion_mnist", "true_dataset/FashionMNIST/raw"])
def test_fashion_mnist_is_found_at_its_usual_places(place):
    write_fashion(Path(place), ".gz")
    assert len(load("fashion_mnist").labels) == 12


LABELS = fashion_arrays(24)[1]
IMAGES = fashion_arrays(24)[0]


@pytest.mark.parametrize("end", ["", ".gz"])
@pytest.mark.parametrize("changes", [
    {"train_images": b"\0\0\x09" + idx(IMAGES)[3:]}, {"train_images": b"PK\3\4" + bytes(99)},
    {"train_images": idx(IMAGES)[:-1]}, {"train_images": idx(IMAGES) + b"\0"},
    {"train_images": idx(IMAGES)[:7]}, {"train_images": b""}, {"train_images": b"\0\0\x08"},
    {"train_images": b"\0\0\x08\x00"}, {"train_images": b"\0\0\x08\x00\x07"},
    {"train_images": b"\0\0\x08\xff" + bytes(40)}, {"train_images": idx(IMAGES[:, :27])},
    {"train_images": idx(IMAGES[0])}, {"train_images": idx(IMAGES[:20])},
    {"train_images": idx(IMAGES[:0])}, {"train_images": idx(IMAGES[:0]),
                                        "train_labels": idx(LABELS[:0])},
    {"train_images": b"\0\0\x08\x03" + struct.pack(">iii", -24, -28, 28) + IMAGES.tobytes()},
    {"train_images": b"\0\0\x08\x02" + struct.pack(">ii", -2, -3) + bytes(6)},
    {"train_labels": idx(LABELS[:-1])}, {"train_labels": idx(LABELS + 1)},
    {"train_labels": idx(np.full(24, 255, np.uint8))}, {"train_labels": idx(LABELS[:, None])},
    {"train_labels": idx(LABELS).replace(b"\0\0\x08", b"\0\0\x0d", 1)}])
def test_bad_idx_files_are_damage_and_named(tmp_path, changes, end):
    data = write_fashion(tmp_path / "data", end, **changes)
    with pytest.raises(DamagedError, match="train") as error:
        load("fashion_mnist", "train", data)
    assert error.value.exit_code == 5 and len(load("fashion_mnist", "val", data).labels) == 12


def test_a_truncated_gz_file_is_damage(tmp_path):
    data = write_fashion(tmp_path / "data", ".gz")
    path = data / "train-images-idx3-ubyte.gz"
    whole = path.read_bytes()
    for length in range(0, len(whole), len(whole) // 9):
        path.write_bytes(whole[:length])
        with pytest.raises(DamagedError, match="train-images"):
            load("fashion_mnist", "train", data)


def test_a_missing_idx_file_is_named(tmp_path):
    data = write_fashion(tmp_path / "data")
    (data / "train-labels-idx1-ubyte").unlink()
    with pytest.raises(UserError, match="train-labels-idx1-ubyte"):
        load("fashion_mnist", "train", data)


@pytest.mark.parametrize("task, expected", [
    ("fashion_mnist", "train-images-idx3-ubyte"), ("cifar100", "cifar-100-python"),
    ("flowers102", "imagelabels.mat"), ("imagenet", "n01440764"), ("imagenet100", "n01440764")])
@pytest.mark.parametrize("data", ["folder", "file", "nowhere"])
def test_a_place_without_the_data_set_is_told_what_belongs_there(tmp_path, task, expected, data):
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").mkdir() if task.startswith("imagenet") else (
        tmp_path / "file").write_text("mine")
    with pytest.raises(UserError, match=expected) as error:
        load(task, "val", tmp_path / data)
    assert error.value.exit_code == 2 and data in str(error.value)


@pytest.mark.parametrize("task, dataset", [
    ("fashion_mnist", "FashionMNIST"), ("cifar100", "CIFAR100"), ("flowers102", "Flowers102")])
@pytest.mark.parametrize("error", [OSError("no route to host"), RuntimeError("not found or corru"),
                                   OSError()])
def test_without_a_network_a_data_set_says_where_to_put_it(monkeypatch, task, dataset, error):
    def download(self, root, download, **settings):
        raise error

    monkeypatch.setattr(real_data, "FASHION_PLACES", real_data.FASHION_PLACES[:2])
    monkeypatch.setattr(getattr(torchvision.datasets, dataset), "__init__", download)
    with pytest.raises(UserError, match=f"could not download {dataset}") as found:
        load(task)
    assert "true_dataset/" in str(found.value) and len(str(found.value).splitlines()) <= 6


DEBIAN = Path("/usr/share/datasets/fashion-mnist")  # Debian's package dataset-fashion-mnist


@pytest.mark.skipif(not DEBIAN.exists(), reason="dataset-fashion-mnist is not installed")
def test_the_real_fashion_mnist_has_its_counts_and_the_tasks_statistics():
    task = get_task("fashion_mnist")
    train, val = (load_real(task, split) for split in ("train", "val"))
    assert train.labels.bincount().tolist() == [6000] * 10
    assert val.labels.bincount().tolist() == [1000] * 10
    levels = torch.bincount(train.images.flatten(), minlength=256).double()
    values = torch.arange(256).double() / 255
    mean = float((levels * values).sum() / levels.sum())
    std = float((levels * (values - mean) ** 2).sum() / levels.sum()) ** 0.5
    assert abs(mean - task.mean[0]) < 2e-3 and abs(std - task.std[0]) < 2e-3


# --- CIFAR-100 ------------------------------------------------------------------------------------

class Python2(pickle._Pickler):
    """Writes as Python 2 did, in which CIFAR's files were made: byte strings, old module names."""

    dispatch = {**pickle._Pickler.dispatch}

    def save_text(self, text):
        data = text if isinstance(text, bytes) else text.encode("latin1")
        self.write(pickle.BINSTRING + struct.pack("<i", len(data)) + data)

    dispatch[bytes] = dispatch[str] = save_text


def python2_pickle(value) -> bytes:
    buffer = io.BytesIO()
    Python2(buffer, protocol=2).dump(value)
    return buffer.getvalue().replace(b"numpy._core.multiarray", b"numpy.core.multiarray")


def cifar_content(count) -> dict:
    draw = np.random.default_rng(count)
    return {"data": draw.integers(0, 256, (count, 3072), dtype=np.uint8),
            "fine_labels": draw.integers(0, 100, count).tolist(),
            "coarse_labels": draw.integers(0, 20, count).tolist(),
            "filenames": [f"{i}.png" for i in range(count)], "batch_label": "training batch 1 of 1"}


def write_cifar(folder: Path, layout: str) -> Path:
    """24 training and 12 test images."""
    folder.mkdir(parents=True)
    for part, count in (("train", 24), ("test", 12)):
        content = cifar_content(count)
        if layout == "binary":
            rows = np.concatenate([np.stack([content["coarse_labels"], content["fine_labels"]], 1),
                                   content["data"]], 1).astype(np.uint8)
            (folder / f"{part}.bin").write_bytes(rows.tobytes())
        else:
            data = python2_pickle(content) if layout == "python" else pickle.dumps(content)
            (folder / part).write_bytes(data)
    return folder


@pytest.mark.parametrize("layout, name", [
    ("python", "cifar-100-python"), ("python 3", "cifar-100-python"),
    ("binary", "cifar-100-binary"), ("binary", "mine")])
def test_cifar_100_is_the_same_in_all_layouts(tmp_path, layout, name):
    folder = write_cifar(tmp_path / "data" / name, layout)
    for data in {folder, folder if name == "mine" else folder.parent}:
        for split, count in (("train", 24), ("val", 12)):
            real, content = load("cifar100", split, data), cifar_content(count)
            assert np.array_equal(real.images.numpy(), content["data"].reshape(-1, 3, 32, 32))
            assert real.labels.tolist() == content["fine_labels"]
            assert real.images.dtype == torch.uint8 and real.labels.dtype == torch.int64


def test_cifar_100_is_found_at_its_usual_place():
    write_cifar(Path("true_dataset/cifar-100-python"), "python")
    assert len(load("cifar100").labels) == 12


class Touch:
    """Unpickling it makes a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.system, (f"touch '{self.path}'",)


@pytest.mark.parametrize("protocol", range(6))
@pytest.mark.parametrize("inside", ["bare", "beside", "array"])
def test_a_hostile_cifar_file_runs_nothing(tmp_path, protocol, inside):
    value = Touch(tmp_path / "canary")
    if inside != "bare":
        value = {**cifar_content(24), "data" if inside == "array" else "x":
                 np.array([value], object) if inside == "array" else value}
    folder = write_cifar(tmp_path / "data", "python")
    (folder / "train").write_bytes(pickle.dumps(value, protocol))
    with pytest.raises(UserError, match="asks to run code") as error:
        load("cifar100", "train", folder)
    assert error.value.exit_code == 2
    assert not (tmp_path / "canary").exists()


GADGETS = [b"cbuiltins\neval\n(S'open(\"canary\", \"w\")'\ntR.", b"cnumpy\nload\n(S'x'\ntR.",
           b"cnumpy\nfromfile\n(S'/etc/passwd'\ntR.", b"cos\nsystem\n(S'touch canary'\ntR.",
           b"cnumpy._core.multiarray\nscalar\n(tR.", b"c_codecs\nlookup\n(S'x'\ntR.",
           b"cnumpy\ntesting.rundocs\n.", b"cos._multiarray\n_reconstruct.__globals__\n.",
           b"(S'touch canary'\nios\nsystem\n.", b"\x80\x04\x8c\x02os\x8c\x06system\x93."]


@pytest.mark.parametrize("data", GADGETS)
def test_a_pickle_may_name_nothing_but_arrays(tmp_path, data):
    folder = write_cifar(tmp_path / "data", "python")
    (folder / "train").write_bytes(data)
    with pytest.raises(UserError):
        load("cifar100", "train", folder)
    assert not Path("canary").exists()


def array_pickle(text: bytes, flags: int) -> bytes:
    """An array of one number whose type is `text`, with flags of its own, as Python 2 wrote it."""
    dtype = (b"cnumpy\ndtype\n(S'" + text + b"'\nI0\nI1\ntR(I3\nS'|'\nNNNI-1\nI-1\nI"
             + str(flags).encode() + b"\ntb")
    return (b"(dS'data'\ncnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(I0\ntS'b'\ntR"
            b"(I1\n(I1\nt" + dtype + b"I00\nS'AAAAAAAA'\ntbs.")


@pytest.mark.parametrize("text", [b"O8", b"V8", b"S8", b"f8", b"M8", b"u2"])
@pytest.mark.parametrize("flags", [0, 63])
def test_bytes_of_a_pickle_are_never_taken_for_objects(tmp_path, text, flags):
    """NumPy would take these eight for an address, where the flags say that there is none."""
    folder = write_cifar(tmp_path / "data", "python")
    (folder / "train").write_bytes(array_pickle(text, flags))
    with pytest.raises(DamagedError, match="damaged or is no pickle"):
        load("cifar100", "train", folder)


def test_arrays_of_a_pickle_keep_numbers_and_order(tmp_path):
    content = {"data": np.arange(12, dtype=np.uint8).reshape(3, 4),
               "labels": np.array([5, -7, 1 << 40]), "turned": np.asfortranarray(
                   np.arange(6, dtype=np.uint8).reshape(2, 3))}
    for data in (pickle.dumps(content, 2), python2_pickle(content)):
        (tmp_path / "a").write_bytes(data)
        found = real_data.unpickle_arrays(tmp_path / "a")
        assert all(np.array_equal(found[key], value) for key, value in content.items())


def test_a_truncated_cifar_file_is_damage(tmp_path):
    for layout, name in (("python", "train"), ("binary", "train.bin")):
        path = write_cifar(tmp_path / layout, layout) / name
        whole = path.read_bytes()
        for length in [*range(0, 700, 23), len(whole) // 2 + 9, len(whole) - 1]:
            path.write_bytes(whole[:length])
            with pytest.raises(DamagedError, match="train") as error:
                load("cifar100", "train", path.parent)
            assert error.value.exit_code == 5


def test_flipped_bytes_of_a_pickle_never_raise_anything_but_a_users_error(tmp_path):
    path = write_cifar(tmp_path / "data", "python") / "train"
    data, draw, refused = path.read_bytes(), random.Random(0), 0
    text = [i for i, byte in enumerate(data) if i < 300 or i > 24 * 3072 + 150]  # besides pixels
    for _ in range(400):
        flipped = bytearray(data)
        for _ in range(draw.randint(1, 3)):
            flipped[draw.choice(text)] = draw.randrange(256)
        path.write_bytes(flipped)
        try:
            load("cifar100", "train", path.parent)
        except UserError as error:
            refused += 1
            assert len(str(error).splitlines()) <= 6
    assert refused > 100


@pytest.mark.parametrize("change", [
    {"data": None}, {"data": [300]}, {"data": "text"}, {"data": np.zeros((24, 3071), np.uint8)},
    {"data": np.zeros((23, 3072), np.uint8)}, {"data": {}}, {"fine_labels": [100] * 24},
    {"fine_labels": [-1] * 24}, {"fine_labels": ["a"] * 24}, {"fine_labels": None},
    {"fine_labels": [10 ** 30] * 24}, {"fine_labels": [[0]] * 24}, {"fine_labels": [0.5, "x"]},
    {"data": np.zeros((0, 3072), np.uint8), "fine_labels": []}, {"fine_labels": 3}])
def test_a_cifar_file_that_holds_something_else_is_damage(tmp_path, change):
    folder = write_cifar(tmp_path / "data", "python")
    (folder / "train").write_bytes(pickle.dumps({**cifar_content(24), **change}))
    with pytest.raises(DamagedError, match="'train'"):
        load("cifar100", "train", folder)


@pytest.mark.parametrize("value", [[], 3, None, {}, {"data": 1}])
def test_a_pickle_of_another_kind_is_damage(tmp_path, value):
    folder = write_cifar(tmp_path / "data", "python")
    (folder / "train").write_bytes(pickle.dumps(value))
    with pytest.raises(DamagedError, match="train"):
        load("cifar100", "train", folder)


def test_a_label_out_of_range_in_the_binary_layout_is_damage(tmp_path):
    folder = write_cifar(tmp_path / "data", "binary")
    data = bytearray((folder / "test.bin").read_bytes())
    data[3074 * 5 + 1] = 100
    (folder / "test.bin").write_bytes(data)
    with pytest.raises(DamagedError, match="'test'"):
        load("cifar100", "val", folder)


# --- Flowers-102 ----------------------------------------------------------------------------------

def write_flowers(folder: Path, images=16, **changes) -> Path:
    """Ids 1, 4, 7 ... train, 2, 5, 8 ... validation, 3, 6, 9 ... test; image i shows i."""
    labels = np.random.default_rng(0).integers(1, 103, (1, images))
    labels[0, :2] = 1, 102
    content = {"labels": labels, "trnid": np.arange(1, images + 1, 3)[None],
               "valid": np.arange(2, images + 1, 3)[None],
               "tstid": np.arange(3, images + 1, 3)[None], **changes}
    for i in range(1, images + 1):
        save(folder / f"jpg/image_{i:05d}.jpg", i)
    savemat(folder / "imagelabels.mat", {"labels": content["labels"]})
    savemat(folder / "setid.mat", {k: content[k] for k in ("trnid", "valid", "tstid")})
    return folder


@pytest.mark.parametrize("val, split, first", [
    ("val", "train", (1, 2)), ("val", "val", (3,)), ("none", "train", (1, 2)),
    ("dev", "train", (1,)), ("dev", "val", (2,))])
def test_flowers_102_has_the_published_splits_and_labels_from_0(tmp_path, val, split, first):
    data = write_flowers(tmp_path / "flowers")
    real = load("flowers102", split, data, val=val)
    ids = sorted(i for start in first for i in range(start, 17, 3))
    labels = np.random.default_rng(0).integers(1, 103, (1, 16))[0]
    labels[:2] = 1, 102
    assert sorted(real.ids.tolist()) == ids and numbers(real.images) == real.ids.tolist()
    assert real.labels.tolist() == [labels[i - 1] - 1 for i in real.ids]
    assert torch.equal(real.images.labels, real.labels)


def test_flowers_102_is_found_at_its_usual_place():
    write_flowers(Path("true_dataset/flowers-102"))
    assert len(load("flowers102").labels) == 5


@pytest.mark.parametrize("compressed", [False, True])
@pytest.mark.parametrize("kind", ["i1", "u1", "i2", "u2", "i4", "u4", "i8", "u8", "f4", "f8"])
@pytest.mark.parametrize("count", [1, 3, 4, 5, 8, 40])
def test_a_mat_file_is_read_as_scipy_writes_it(tmp_path, kind, count, compressed):
    content = {"a": np.arange(count).astype(kind)[None], "a_long_name": np.ones((count, 1), kind),
               "text": "hello", "nothing": np.zeros((0, 0)), "cell": np.array([["a"]], object)}
    savemat(tmp_path / "x.mat", content, do_compression=compressed)
    found = real_data.read_mat(tmp_path / "x.mat")
    assert np.array_equal(found["a"], np.arange(count).astype(kind))
    assert np.array_equal(found["a_long_name"], np.ones(count, kind)) and not len(found["nothing"])
    assert "cell" not in found


@pytest.mark.parametrize("changes", [
    {"tstid": np.array([[0, 1]])}, {"tstid": np.array([[17]])}, {"tstid": np.array([[-3]])},
    {"labels": np.zeros((1, 16))}, {"labels": np.full((1, 16), 103)}, {"labels": np.ones((1, 3))},
    {"tstid": np.array([["a"]])}, {"tstid": np.zeros((1, 0))}, {"labels": np.full((1, 16), np.nan)},
    {"tstid": np.array([[{}]], object)}])
def test_flowers_102_files_that_do_not_fit_together_are_damage(tmp_path, changes):
    data = write_flowers(tmp_path / "flowers", **changes)
    with pytest.raises(DamagedError, match="flowers") as error:
        load("flowers102", "val", data)
    assert error.value.exit_code == 5


def test_a_mat_file_without_its_variable_is_damage(tmp_path):
    data = write_flowers(tmp_path / "flowers")
    savemat(data / "setid.mat", {"other": 1})
    with pytest.raises(DamagedError, match="tstid"):
        load("flowers102", "val", data)


@pytest.mark.parametrize("content", [b"", b"hello\n" * 50, bytes(500), bytes(range(256)),
                                     b"MATLAB 7.3 MAT-file".ljust(124) + b"\0\2IM" + bytes(400)])
@pytest.mark.parametrize("name", ["setid.mat", "imagelabels.mat"])
def test_a_mat_file_of_other_bytes_is_damage_and_named(tmp_path, name, content):
    data = write_flowers(tmp_path / "flowers")
    (data / name).write_bytes(content)
    with pytest.raises(DamagedError, match=name):
        load("flowers102", "val", data)


@pytest.mark.parametrize("name", ["setid.mat", "imagelabels.mat"])
def test_flipped_and_missing_bytes_of_a_mat_file_never_raise_anything_but_a_users_error(tmp_path,
                                                                                        name):
    path, draw, refused = write_flowers(tmp_path / "flowers") / name, random.Random(0), 0
    data = path.read_bytes()
    for _ in range(300):
        flipped = bytearray(data[:draw.choice([len(data), draw.randrange(len(data))])])
        for _ in range(draw.randint(1, 3)):
            if flipped:
                flipped[draw.randrange(len(flipped))] = draw.randrange(256)
        path.write_bytes(flipped)
        try:
            load("flowers102", "val", path.parent)
        except UserError as error:
            refused += 1
            assert len(str(error).splitlines()) <= 6
    assert refused > 100


def test_missing_parts_of_flowers_102_are_named(tmp_path):
    data = write_flowers(tmp_path / "flowers")
    (data / "jpg/image_00006.jpg").unlink()
    with pytest.raises(UserError, match="image_00006.jpg"):
        numbers(load("flowers102", "val", data).images)
    (data / "imagelabels.mat").unlink()
    with pytest.raises(UserError, match="imagelabels.mat"):
        load("flowers102", "val", data)


# --- ImageNet -------------------------------------------------------------------------------------

@functools.cache
def wnids() -> tuple[str, ...]:
    """A thousand ids with the true ones of ImageNet-100 and of both ends at their places, and
    invented ones between them."""
    known = {0: 1440764, 999: 15075141, **{i: int(w[1:]) for w, i in IMAGENET100.items()}}
    places = sorted(known)
    between = np.interp(np.arange(1000), places, [known[p] for p in places])
    assert (np.diff(between.astype(int)) > 0).all()
    return tuple(f"n{int(number):08d}" for number in between)


@pytest.fixture(scope="session")
def thousand(tmp_path_factory):
    """val/ with a folder per class and an image in each that shows the class; do not change it."""
    root = tmp_path_factory.mktemp("imagenet")
    for i, wnid in enumerate(wnids()):
        save(root / "val" / wnid / f"ILSVRC2012_val_{i:08d}.JPEG", i)
    return root


@pytest.fixture
def copy(tmp_path, thousand):
    """The same with links, to change."""
    (tmp_path / "imagenet/val").mkdir(parents=True)
    for folder in (thousand / "val").iterdir():
        (tmp_path / "imagenet/val" / folder.name).symlink_to(folder)
    return tmp_path / "imagenet"


@pytest.mark.parametrize("inside", ["", "val"])
def test_wordnet_folders_in_sorted_order_are_imagenets_classes(thousand, inside):
    real = load("imagenet", "val", thousand / inside)
    assert real.labels.tolist() == list(range(1000))
    some = torch.tensor([0, 1, 207, 500, 999])
    assert numbers(real.images.chosen(some)) == some.tolist()


def test_imagenet_is_found_at_its_usual_place(thousand):
    Path("true_dataset").mkdir()
    Path("true_dataset/imagenet").symlink_to(thousand)
    assert len(load("imagenet").labels) == 1000


@pytest.mark.parametrize("task, labels", [("imagenet", [3, 999, 0]), ("imagenet100", [2, 0])])
def test_a_list_has_imagenets_labels(tmp_path, task, labels):
    """true_dataset/imagenet_val.txt of the original: labels by sorted WordNet id."""
    classes = [3, 999, 0] if task == "imagenet" else [54, 0, 15]
    lines = [f"images/val  {c}.JPEG {c}" for c in classes]
    for c in classes:
        save(Path(f"true_dataset/images/val  {c}.JPEG"), c)
    Path("true_dataset/imagenet_val.txt").write_text("\r\n".join(lines))
    (tmp_path / "elsewhere").mkdir()
    shutil.copy("true_dataset/imagenet_val.txt", "elsewhere/imagenet_val.txt")
    shutil.copytree("true_dataset/images", "elsewhere/images")
    for data in (None, tmp_path / "elsewhere", tmp_path / "elsewhere/imagenet_val.txt"):
        real = load(task, "val", data)
        assert real.labels.tolist() == labels == real.images.labels.tolist()
        assert numbers(real.images) == [c for c in classes if task == "imagenet"
                                        or c in IMAGENET100.values()]


def test_a_list_for_each_split_is_read_for_that_split(tmp_path):
    for number, (split, line) in enumerate((("train", "a.png 5"), ("val", "b.png 6"))):
        save(tmp_path / "data" / line.split()[0], number)
        (tmp_path / f"data/imagenet_{split}.txt").write_text(line)
    for split, label in (("train", 5), ("val", 6)):
        real = load("imagenet", split, tmp_path / "data")
        assert real.labels.tolist() == [label] and numbers(real.images) == [label - 5]


@pytest.mark.parametrize("lines, code", [
    (["a.png"], 5), (["a.png 1", "a.png"], 5), (["a.png 1000"], 2), (["b.png 1"], 2), ([""], 2),
    (["class_7_a.png"], 0)])
def test_a_list_for_judging_needs_a_label_on_each_line(lines, code):
    save(Path("a.png")), save(Path("class_7_a.png"))
    Path("list.txt").write_text("\n".join(lines))
    if not code:
        assert load("imagenet", "val", Path("list.txt")).labels.tolist() == [7]
        return
    with pytest.raises(UserError, match="list.txt") as error:
        load("imagenet", "val", Path("list.txt"))
    assert error.value.exit_code == code


def test_a_list_without_a_class_of_imagenet100_is_refused():
    save(Path("a.png"))
    Path("list.txt").write_text("a.png 0")
    with pytest.raises(UserError, match="list.txt"):
        load("imagenet100", "val", Path("list.txt"))


def change_missing(root):
    (root / "val" / wnids()[500]).unlink()


def change_extra(root):
    save(root / "val/n09999999/1.png")


def change_first(root):
    (root / "val" / wnids()[0]).rename(root / "val/n00000001")


def change_last(root):
    (root / "val" / wnids()[-1]).rename(root / "val/n99999999")


def change_empty(root):
    (root / "val" / wnids()[500]).unlink()
    (root / "val" / wnids()[500]).mkdir()
    (root / "val" / wnids()[500] / "notes.txt").write_text("hello")


def change_half_unpacked(root):
    """torchvision was killed between unpacking and sorting into folders."""
    save(root / "val/ILSVRC2012_val_00050000.JPEG")


@pytest.mark.parametrize("change, shown", [
    (change_missing, "1 classes are missing"), (change_extra, "1 classes too many"),
    (change_first, "n00000001"), (change_last, "n99999999"),
    (change_empty, wnids()[500]), (change_half_unpacked, "ILSVRC2012_val_00050000.JPEG")])
def test_folders_that_are_not_imagenets_thousand_are_refused(copy, change, shown):
    assert len(load("imagenet", "val", copy).labels) == 1000
    change(copy)
    with pytest.raises(UserError, match=shown) as error:
        load("imagenet", "val", copy)
    assert error.value.exit_code == 2


def test_one_missing_class_of_imagenet100_is_named(copy):
    missing = list(IMAGENET100)[40]
    (copy / "val" / missing).unlink()
    with pytest.raises(UserError, match=missing):
        load("imagenet100", "val", copy)


@pytest.mark.parametrize("kind", ["the thousand", "the hundred", "the hundred and one"])
def test_imagenet100_has_the_labels_of_its_class_names(thousand, tmp_path, kind):
    if kind != "the thousand":
        for wnid in [*IMAGENET100, *([wnids()[1]] if "one" in kind else [])]:
            (tmp_path / "hundred/val").mkdir(parents=True, exist_ok=True)
            (tmp_path / "hundred/val" / wnid).symlink_to(thousand / "val" / wnid)
    real = load("imagenet100", "val", thousand if kind == "the thousand" else tmp_path / "hundred")
    assert real.labels.tolist() == list(range(100)) == real.images.labels.tolist()
    assert numbers(real.images) == list(IMAGENET100.values())  # the true classes, in that order


def test_imagenet100s_names_are_those_of_its_classes():
    names, all_names = get_task("imagenet100").class_names, get_task("imagenet").class_names
    assert [all_names[i] for i in IMAGENET100.values()] == list(names)
    assert names[0] == "robin" and IMAGENET100["n01558993"] == 15  # n01558993 is the robin
    assert list(IMAGENET100) == sorted(IMAGENET100)
    assert list(IMAGENET100.values()) == sorted(IMAGENET100.values())


@pytest.mark.parametrize(("wnid", "index", "name", "position"), [
    ("n01558993", 15, "robin", 0), ("n01692333", 45, "Gila monster", 1),
    ("n02085620", 151, "Chihuahua", 13), ("n02086240", 155, "Shih-Tzu", 14),
    ("n02099849", 209, "Chesapeake Bay retriever", 22), ("n02123045", 281, "tabby", 35),
    ("n02483362", 368, "gibbon", 42), ("n03085013", 508, "computer keyboard", 54),
    ("n04517823", 882, "vacuum", 90), ("n13040303", 994, "stinkhorn", 99)])
def test_ten_of_imagenet100s_classes_are_these(wnid, index, name, position):
    assert IMAGENET100[wnid] == index and list(IMAGENET100)[position] == wnid
    assert get_task("imagenet").class_names[index] == name
    assert get_task("imagenet100").class_names[position] == name


@pytest.mark.parametrize("task", ["imagenet", "imagenet100"])
@pytest.mark.parametrize("kind", ["list", "folder"])
def test_training_on_what_is_judged_is_refused(thousand, task, kind):
    """One list, or one folder of class folders, is no training and no validation split."""
    data = thousand / "val"
    if kind == "list":
        data = Path("list.txt")
        data.write_text("\n".join(f"{thousand}/val/{w}/ILSVRC2012_val_{i:08d}.JPEG {i}"
                                  for i, w in enumerate(wnids())))
    with pytest.raises(UserError, match="--val dev"):
        load(task, "train", data)
    whole = set(load(task, "train", data, val="none").images.names)
    parts = [set(load(task, s, data, val="dev").images.names) for s in ("train", "val")]
    assert parts[0] | parts[1] == whole and not parts[0] & parts[1]


# --- torchvision's layout of ImageNet -------------------------------------------------------------

@pytest.fixture(scope="module")
def archives(tmp_path_factory):
    """ILSVRC2012_img_val.tar and the devkit: 1,003 images, in the devkit's own order of classes."""
    root, draw = tmp_path_factory.mktemp("archives"), random.Random(0)
    order = draw.sample(wnids(), 1000)  # the devkit's id i + 1
    truth = [*range(1, 1001), 7, 7, 500]
    draw.shuffle(truth)
    with tarfile.open(root / "ILSVRC2012_img_val.tar", "w") as tar:
        for number, identity in enumerate(truth, 1):
            data = picture(wnids().index(order[identity - 1]))
            member = tarfile.TarInfo(f"ILSVRC2012_val_{number:08d}.JPEG")
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    names = ("ILSVRC2012_ID", "WNID", "words", "gloss", "num_children", "children",
             "wordnet_height", "num_train_images")
    rows = [(i, w, f"class {i}, other name", "a gloss", 0, np.zeros((1, 0)), 0, 1300)
            for i, w in enumerate(order, 1)]
    rows += [(i, f"n{i:08d}", "inner node", "a gloss", 2, np.array([[1, 2]]), 3, 0)
             for i in range(1001, 1005)]
    folder = root / "ILSVRC2012_devkit_t12"
    (folder / "data").mkdir(parents=True)
    savemat(folder / "data/meta.mat", {"synsets": np.array(
        rows, dtype=[(name, object) for name in names])[:, None]})
    (folder / "data/ILSVRC2012_validation_ground_truth.txt").write_text(
        "".join(f"{identity}\n" for identity in truth))
    with tarfile.open(root / "ILSVRC2012_devkit_t12.tar.gz", "w:gz") as tar:
        tar.add(folder, folder.name)
    shutil.rmtree(folder)
    return root


@pytest.fixture
def unpacked(archives, tmp_path, monkeypatch):
    """A copy of the archives, whose digests torchvision takes for the published ones."""
    root = shutil.copytree(archives, tmp_path / "imagenet")
    import hashlib

    table = torchvision.datasets.imagenet.ARCHIVE_META
    for part in ("val", "devkit"):
        data = (root / table[part][0]).read_bytes()
        monkeypatch.setitem(table, part, (table[part][0], hashlib.md5(data).hexdigest()))
    return root


def test_torchvisions_archives_have_labels_by_wordnet_order_and_not_by_devkit_id(unpacked):
    real = load("imagenet", "val", unpacked)
    assert len(real.labels) == 1003 and set(real.labels.tolist()) == set(range(1000))
    assert numbers(real.images) == real.labels.tolist()
    before = contents(unpacked)
    assert torch.equal(load("imagenet", "val", unpacked).labels, real.labels)  # unpacked once
    assert contents(unpacked) == before


def test_archives_that_are_not_the_published_ones_are_refused(unpacked):
    tar = unpacked / "ILSVRC2012_img_val.tar"
    tar.write_bytes(tar.read_bytes()[:-1000])
    with pytest.raises(UserError, match="ILSVRC2012_img_val.tar"):
        load("imagenet", "val", unpacked)


def in_processes(function, count=3):
    """What `function` returns in each of several processes that begin together."""
    context = multiprocessing.get_context("fork")
    found, start = context.Queue(), context.Barrier(count)

    def work():
        start.wait()
        try:
            found.put(function())
        except BaseException as error:  # so that the parent is told
            found.put(repr(error))

    processes = [context.Process(target=work) for _ in range(count)]
    for process in processes:
        process.start()
    results = [found.get(timeout=120) for _ in processes]
    for process in processes:
        process.join()
    return results


def noted(monkeypatch, dataset, made):
    """Let each use of a data set of torchvision leave a line in uses.txt and call `made`."""
    real = getattr(torchvision.datasets, dataset)

    def use(*args, **options):
        with open("uses.txt", "a") as file:
            file.write(f"{dataset}\n")
        made(real, *args, **options)

    monkeypatch.setattr(torchvision.datasets, dataset, use)


def test_processes_that_come_at_once_unpack_imagenet_once(unpacked, monkeypatch):
    def slowly(real, *args):
        real(*args)
        time.sleep(0.5)  # val/ is there, and the others are waiting

    noted(monkeypatch, "ImageNet", slowly)
    found = in_processes(lambda: sorted(load("imagenet", "val", unpacked).labels.tolist()))
    assert found[0] == found[1] == found[2] and len(found[0]) == 1003
    assert Path("uses.txt").read_text().split() == ["ImageNet"]
    assert not list(unpacked.glob(".unpack*"))


def test_unpacking_that_was_stopped_begins_anew(unpacked, monkeypatch):
    def killed(root):
        (Path(root) / "val").mkdir(parents=True, exist_ok=True)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(torchvision.datasets.imagenet, "parse_val_archive", killed)
        with pytest.raises(KeyboardInterrupt):
            load("imagenet", "val", unpacked)
    (unpacked / ".unpacking/val").mkdir(parents=True)  # what SIGKILL leaves
    assert len(load("imagenet", "val", unpacked).labels) == 1003


@pytest.mark.parametrize("begun", ["at once", "while one is downloading"])
def test_processes_that_come_at_once_download_once_and_never_see_half(monkeypatch, begun):
    monkeypatch.setattr(real_data, "FASHION_PLACES", real_data.FASHION_PLACES[:2])

    def slowly(real, root, download):
        whole = write_fashion(Path(f"whole{os.getpid()}"))
        place = Path(root) / "FashionMNIST/raw"
        place.mkdir(parents=True)
        for path in sorted(whole.iterdir()):  # t10k, whose presence is looked at, comes first
            shutil.copy(path, place)
            time.sleep(0.3)

    def look():
        if begun != "at once":
            time.sleep(0.2 * (os.getpid() % 3))
        return len(load("fashion_mnist", "train").labels)

    noted(monkeypatch, "FashionMNIST", slowly)
    assert in_processes(look) == [24, 24, 24]
    assert Path("uses.txt").read_text().split() == ["FashionMNIST"]
    assert not list(Path("true_dataset").glob(".*"))


def test_a_missing_devkit_is_named(unpacked):
    (unpacked / "ILSVRC2012_devkit_t12.tar.gz").unlink()
    with pytest.raises(UserError, match="ILSVRC2012_devkit_t12.tar.gz"):
        load("imagenet", "val", unpacked)


# --- any folder -----------------------------------------------------------------------------------

def write_folder(root: Path, classes, per_class=6, parts=("train", "val")) -> Path:
    """Image k of the c-th class shows 100 c + k."""
    for part in parts:
        for c, name in enumerate(classes):
            for k in range(per_class):
                save(root / part / name / f"{k}.png", 100 * c + k)
    return root


@pytest.mark.parametrize("names, order", [
    (["10", "2", "1"], ("1", "2", "10")), (["b", "a10", "a2"], ("a10", "a2", "b")),
    (["n00000002", "n00000001"], ("n00000001", "n00000002")), (["10", "a", "9"], ("10", "9", "a")),
    (["0010", "9"], ("9", "0010")), (["two words", "Ä"], ("two words", "Ä"))])
def test_a_folders_classes_are_in_order_of_number_or_else_of_name(tmp_path, names, order):
    data = write_folder(tmp_path / "data", names)
    task = get_task("folder", data)
    assert task.class_names == order and task.num_classes == len(order)
    for split in ("train", "val"):
        real = load_real(task, split, data=data)
        assert {n // 100: int(label) for n, label in zip(
            numbers(real.images), real.labels, strict=True)} == {
                c: order.index(name) for c, name in enumerate(names)}
        assert torch.equal(real.images.labels, real.labels)


def test_images_may_lie_deeper_in_a_class_folder(tmp_path):
    data = write_folder(tmp_path / "data", ["a", "b"], 1)
    save(data / "train/b/deep/a/1.png")
    assert load("folder", "train", data).labels.tolist() == [0, 1, 1]


def test_a_folder_of_classes_alone_trains_with_dev_and_is_not_judged_on(tmp_path):
    data = write_folder(tmp_path, ["a", "b"], parts=("",))
    assert len(load("folder", "train", data).labels) == 12
    train, dev = (load("folder", split, data, val="dev") for split in ("train", "val"))
    assert (len(train.labels), len(dev.labels)) == (10, 2)
    assert load("folder", "val", data, val="none") is None
    with pytest.raises(UserError, match="--val dev or none"):
        load("folder", "val", data)


def test_a_folder_with_train_only_is_not_judged_on(tmp_path):
    data = write_folder(tmp_path / "data", ["a", "b"], parts=("train",))
    assert len(load("folder", "val", data, val="dev").labels) == 2
    with pytest.raises(UserError, match="--val dev or none"):
        load("folder", "val", data)


def test_a_validation_class_that_training_has_not_is_refused(tmp_path):
    data = write_folder(tmp_path / "data", ["a", "b"])
    save(data / "val/c/1.png")
    with pytest.raises(UserError, match="'c' in val/ is no class of train/"):
        load("folder", "val", data)


def test_an_image_outside_of_the_class_folders_is_refused(tmp_path):
    data = write_folder(tmp_path / "data", ["a", "b"])
    save(data / "train/1.png")
    with pytest.raises(UserError, match="1.png"):
        load("folder", "train", data)


def test_a_systems_hidden_files_are_no_classes_and_no_images(tmp_path):
    data = write_folder(tmp_path / "data", ["a", "b"], 1)
    save(data / "train/.thumbnails/1.png"), save(data / "train/a/._0.png")
    (data / "train/.DS_Store").write_bytes(b"x")
    assert get_task("folder", data).class_names == ("a", "b")
    assert load("folder", "train", data).labels.tolist() == [0, 1]


@pytest.mark.parametrize("make", [
    lambda root: None, lambda root: root.mkdir(), lambda root: root.write_text("mine"),
    lambda root: save(root / "train/a/1.png"), lambda root: save(root / "a/1.png"),
    lambda root: save(root / "1.png"), lambda root: save(root / "train")])
def test_a_place_without_two_class_folders_is_refused(tmp_path, make):
    make(tmp_path / "data")
    with pytest.raises(UserError, match="data"):
        get_task("folder", tmp_path / "data")
    with pytest.raises(UserError, match="--data"):
        get_task("folder")


def test_class_folders_without_images_are_refused(tmp_path):
    for name in ("a", "b"):
        (tmp_path / "data/train" / name).mkdir(parents=True)
    with pytest.raises(UserError, match="no images in train/"):
        load("folder", "train", tmp_path / "data")


def test_one_class_folder_without_images_is_refused_in_training_only(tmp_path):
    data = write_folder(tmp_path / "data", ["a", "b", "c"])
    for part in ("val", "train"):
        for path in (data / part / "b").iterdir():
            path.unlink()
        if part == "val":
            assert set(load("folder", "val", data).labels.tolist()) == {0, 2}
    with pytest.raises(UserError, match="1 of 3 class folders hold no images") as error:
        load("folder", "train", data)
    assert "train/b" in str(error.value)


# --- --val dev ------------------------------------------------------------------------------------

@pytest.fixture
def generated(tmp_path, thousand):
    """f(task) -> a place with its training images."""
    def imagenet():
        (tmp_path / "imagenet").mkdir()
        (tmp_path / "imagenet/train").symlink_to(thousand / "val")
        return tmp_path / "imagenet"

    return {"fashion_mnist": lambda: write_fashion(tmp_path / "data"),
            "cifar100": lambda: write_cifar(tmp_path / "data", "python"),
            "flowers102": lambda: write_flowers(tmp_path / "data"),
            "folder": lambda: write_folder(tmp_path / "data", ["a", "b"]),
            "imagenet": imagenet, "imagenet100": imagenet}


def identities(real) -> list:
    """What each image is, by its pixels or its name."""
    return (real.images.names if isinstance(real.images, ImageFiles)
            else [files.sha256(image.numpy().tobytes()) for image in real.images])


@pytest.mark.parametrize("task", ["fashion_mnist", "cifar100", "flowers102", "folder", "imagenet",
                                  "imagenet100"])
def test_dev_images_come_from_training_and_leave_it(generated, task):
    data = generated[task]()
    whole = load(task, "train", data, val="none")
    train, dev = (load(task, split, data, val="dev") for split in ("train", "val"))
    sets = [set(identities(real)) for real in (whole, train, dev)]
    assert sets[1] | sets[2] == sets[0] and not sets[1] & sets[2] and sets[1] and sets[2]
    assert sorted(train.ids.tolist() + dev.ids.tolist()) == sorted(whole.ids.tolist())
    label = dict(zip(identities(whole), whole.labels.tolist(), strict=True))
    for real in (train, dev):
        assert [label[i] for i in identities(real)] == real.labels.tolist()
        assert len(real.images) == len(real.labels) == len(real.ids) == len(real.groups)


def test_too_few_images_for_dev_are_refused(tmp_path):
    data = write_folder(tmp_path / "data", ["a", "b"], 1)
    with pytest.raises(UserError, match="--val dev"):
        load("folder", "val", data, val="dev")


@pytest.mark.parametrize("task", ["fashion_mnist", "cifar100", "flowers102", "imagenet",
                                  "imagenet100"])
def test_only_digits_have_folds(generated, task):
    with pytest.raises(UserError, match="folds 0 to 0"):
        load(task, "val", generated[task](), fold=1)
