"""Where each data set's real images lie, and how they are read: one loader per data set.

A loader is f(split, val, fold, data) -> RealData, split "train" or "val". `data` is the path the
user gave, or None for the usual places under true_dataset/. See tasks.py for the table of tasks.
"""

import functools
import gzip
import pickle
import re
import shutil
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from dm_kd import files, image_files
from dm_kd.class_names import CIFAR100, IMAGENET100
from dm_kd.errors import DamagedError, UserError
from dm_kd.image_files import ImageFiles

ROOT = Path("true_dataset")
# scikit-learn's digits lie in the file in 14 contiguous blocks, one per writer (INRIA scikit-learn
# course, "non i.i.d. data"); a split that shares writers flatters by about two points.
DIGITS_WRITER_STARTS = (0, 130, 256, 386, 516, 646, 776, 915, 1029, 1157, 1287, 1415, 1545, 1667)
DIGITS_FOLDS = 5


@dataclass(frozen=True)
class RealData:
    """Real images of one split. images uint8 [N, C, H, W], or files of any size; labels int64 [N];
    ids int64 [N], the position in the whole data set; groups int64 [N], who made it (-1 where
    unknown)."""

    images: Tensor | ImageFiles
    labels: Tensor
    ids: Tensor
    groups: Tensor

    def chosen(self, index: Tensor) -> "RealData":
        images = (self.images.chosen(index) if isinstance(self.images, ImageFiles)
                  else self.images[index])
        return RealData(images, self.labels[index], self.ids[index], self.groups[index])


def plain(images: Tensor | ImageFiles, labels: Tensor) -> RealData:
    """Images of nobody in particular, numbered as they come."""
    return RealData(images, labels, torch.arange(len(labels)), torch.full((len(labels),), -1))


def with_dev(train: RealData, split: str, val: str, load_val) -> RealData:
    """The split asked for; with val = "dev" a fixed sixth of the training images, evenly spread, is
    judged on instead of the validation split and leaves training."""
    if val != "dev":
        return train if split == "train" else load_val()
    is_dev = torch.arange(len(train.labels)) % 6 == 5
    if not is_dev.any():
        raise UserError(f"{len(train.labels)} training images are too few for --val dev",
                        hint="6 or more, or --val none")
    return train.chosen((is_dev if split == "val" else ~is_dev).nonzero()[:, 0])


# --- digits ---------------------------------------------------------------------------------------

@functools.cache
def _digits_arrays() -> tuple[Tensor, Tensor, np.ndarray]:
    from sklearn.datasets import load_digits

    digits = load_digits()
    images = np.rint(digits.images * (255 / 16)).astype(np.uint8)  # levels are 0..16
    writers = np.searchsorted(DIGITS_WRITER_STARTS, np.arange(len(images)), side="right") - 1
    return torch.from_numpy(images)[:, None], torch.from_numpy(digits.target).long(), writers


def split_by_group(groups: np.ndarray, fold: int, val: str, folds: int) -> tuple:
    """Indices (train, judged) of a grouped cross-validation fold; no group is in both.

    val = "dev" judges on a fifth of the training groups instead, which then leave training: the
    place to choose settings. Deterministic.
    """
    from sklearn.model_selection import GroupKFold

    train, judged = list(GroupKFold(folds).split(groups, groups=groups))[fold]
    if val == "dev":
        inner, dev = next(iter(GroupKFold(folds).split(train, groups=groups[train])))
        train, judged = train[inner], train[dev]
    return train, judged


def digits(split: str, val: str, fold: int, data: Path | None) -> RealData:
    if data is not None:
        raise UserError("the digits come with scikit-learn; they have no path", data=data,
                        hint="leave out --data")
    images, labels, writers = _digits_arrays()
    train, judged = split_by_group(writers, fold, val, DIGITS_FOLDS)
    chosen = torch.from_numpy(train if split == "train" else judged)
    return RealData(images[chosen], labels[chosen], chosen, torch.from_numpy(writers)[chosen])


# --- Fashion-MNIST (Xiao, Rasul & Vollgraf 2017, arXiv 1708.07747) --------------------------------

FASHION_PLACES = (ROOT / "fashion_mnist", ROOT / "FashionMNIST/raw",
                  Path("/usr/share/datasets/fashion-mnist"))  # Debian's dataset-fashion-mnist


def fashion_mnist(split: str, val: str, fold: int, data: Path | None) -> RealData:
    folder = _fashion_folder(data)

    def load(prefix: str) -> RealData:
        images = read_idx(folder / f"{prefix}-images-idx3-ubyte")
        labels = read_idx(folder / f"{prefix}-labels-idx1-ubyte")
        if (images.shape[1:] != (28, 28) or labels.shape != images.shape[:1] or not labels.size
                or labels.max() > 9):
            raise DamagedError("images and labels do not fit together", file=folder / prefix,
                               found=f"{list(images.shape)} and {list(labels.shape)}")
        return plain(torch.from_numpy(images)[:, None], torch.from_numpy(labels).long())

    if split == "val" and val == "val":
        return load("t10k")
    return with_dev(load("train"), split, val, None)


def _fashion_folder(data: Path | None) -> Path:
    def find() -> Path | None:
        return next((place for place in ((data,) if data else FASHION_PLACES)
                     if any((place / f"t10k-images-idx3-ubyte{end}").exists()
                            for end in ("", ".gz"))), None)

    if data and not find():
        raise UserError("no Fashion-MNIST files there", data=data,
                        expected="train-images-idx3-ubyte(.gz) and its three sisters")
    return data or fetched(find, "FashionMNIST", "apt install dataset-fashion-mnist, or put the "
                                                 "four .gz files in true_dataset/fashion_mnist/")


def fetched(find: Callable[[], Path | None], dataset: str, hint: str, **settings) -> Path:
    """What `find` finds; torchvision fetches that data set into true_dataset/ if it is nothing.
    One process does so, those that come meanwhile wait for it.

    Raises:
        UserError: no network, or what came is not what was published."""
    lock = ROOT / f".{dataset}.lock"
    found = find()
    if found and not lock.exists():  # looked at after the files: they were not half there
        return found
    try:
        from torchvision import datasets

        with files.locked(lock, str(ROOT / dataset), blocking=True):
            if not find():
                getattr(datasets, dataset)(ROOT, download=True, **settings)
            if found := find():
                return found
            raise RuntimeError("its files are not where they belong")
    except (OSError, RuntimeError) as error:  # urllib's errors are OSErrors
        raise UserError(f"could not download {dataset}", to=ROOT,
                        found=(str(error).splitlines() or [""])[0][:100], hint=hint) from error


def read_idx(path: Path) -> np.ndarray:
    """Unsigned bytes in LeCun's IDX format, `path` or `path`.gz: 0, 0, 8, rank, sizes (big-endian
    int32), values.

    Raises:
        UserError: not there.  DamagedError: truncated, or another format."""
    packed = path.with_name(path.name + ".gz")
    path = packed if packed.exists() else files.must_exist(path, "--data", "an IDX file")
    try:
        with (gzip.open if path == packed else open)(path, "rb") as file:
            content = file.read(1 << 28)
        rank = content[3]
        shape = np.frombuffer(content, ">i4", rank, 4)
        values = np.frombuffer(content, np.uint8, offset=4 + 4 * rank)
        if content[:3] != b"\0\0\x08" or values.size != shape.astype(np.int64).prod():
            raise ValueError(f"{values.size} bytes for {shape.tolist()}")
        return values.reshape(shape).copy()
    except (OSError, EOFError, ValueError, IndexError, zlib.error) as error:
        raise DamagedError("not a whole IDX file of bytes", file=path,
                           found=str(error)[:100]) from error


# --- CIFAR-100 (Krizhevsky 2009) ------------------------------------------------------------------

def cifar100(split: str, val: str, fold: int, data: Path | None) -> RealData:
    folder = _cifar_folder(data)
    if split == "val" and val == "val":
        return _cifar_part(folder, "test", 10000)
    return with_dev(_cifar_part(folder, "train", 50000), split, val, None)


def _cifar_folder(data: Path | None) -> Path:
    def find() -> Path | None:
        places = [(data or ROOT) / name for name in ("cifar-100-binary", "cifar-100-python", ".")]
        return next((place for place in places if (place / "train.bin").exists()
                     or (place / "train").is_file()), None)

    if data and not find():
        raise UserError("no CIFAR-100 files there", data=data,
                        expected="cifar-100-python/ or cifar-100-binary/ (train and test)")
    return find() if data else fetched(
        find, "CIFAR100", "put cifar-100-python/ in true_dataset/, or --data PATH")


def _cifar_part(folder: Path, part: str, count: int) -> RealData:
    binary = folder / f"{part}.bin"
    try:
        if binary.exists():  # coarse label, fine label, 3072 values
            rows = np.frombuffer(binary.read_bytes(), np.uint8).reshape(-1, 3074)
            pixels, labels = rows[:, 2:], rows[:, 1]
        else:
            content = unpickle_arrays(folder / part)
            pixels = np.asarray(content["data"], np.uint8)
            labels = np.asarray(content["fine_labels"], np.int64)
        images = torch.from_numpy(pixels.reshape(-1, 3, 32, 32).copy())
        labels = torch.from_numpy(labels.astype(np.int64))
        if (not len(images) or labels.shape != images.shape[:1]
                or not 0 <= labels.min() <= labels.max() < len(CIFAR100)):
            raise ValueError(f"{len(images)} images, labels {list(labels.shape)}")
    except (KeyError, ValueError, TypeError, OverflowError, OSError) as error:
        raise DamagedError(f"not CIFAR-100's '{part}' file", file=folder / part,
                           found=str(error)[:100], hint=f"the published file, {count} images"
                           ) from error
    return plain(images, labels)


class _Dtype:
    """What a pickle says of an array's numbers."""

    def __init__(self, text: str, *_: object):
        self.text, self.order = text.lstrip("|<"), "<"

    def __setstate__(self, state: tuple):
        self.order = state[1]


class _Array:
    """An array of a pickle. NumPy's own unpickling trusts the flags that a file states, and takes
    its bytes for addresses where these say so."""

    def __setstate__(self, state: tuple):
        _, shape, dtype, fortran, data = state
        if dtype.text not in ("u1", "i4", "i8") or dtype.order not in ("|", "<"):
            raise ValueError(f"an array of '{dtype.order}{dtype.text}'")
        data = data.encode("latin1") if isinstance(data, str) else data
        self.array = np.frombuffer(data, dtype.text).reshape(shape, order="F" if fortran else "C")


class _ArraysOnly(pickle.Unpickler):
    """Unpickles plain values and numpy arrays; any other object is refused before it is made."""

    def find_class(self, module: str, name: str):
        if name == "_reconstruct" and module.endswith("multiarray"):
            return lambda *_: _Array()
        if (module, name) in {("numpy", "ndarray"), ("numpy", "dtype")}:
            return {"ndarray": _Array, "dtype": _Dtype}[name]
        if (module, name) == ("_codecs", "encode"):
            return lambda text, encoding: text.encode("latin1")
        raise UserError("the file asks to run code; it was refused", found=f"{module}.{name}",
                        hint="the data set's own files")


def unpickle_arrays(path: Path) -> dict:
    """A pickled dict of numpy arrays, lists and strings (CIFAR's layout).

    Raises:
        UserError: it asks for other objects.  DamagedError: truncated, or no pickle."""
    with open(files.must_exist(path, "--data", "a data file"), "rb") as file:
        try:
            content = _ArraysOnly(file, encoding="latin1").load()
            if isinstance(content, dict):
                content = {key: value.array if isinstance(value, _Array) else value
                           for key, value in content.items()}
        except (pickle.UnpicklingError, EOFError, ValueError, TypeError, AttributeError, KeyError,
                IndexError, ImportError, MemoryError, OverflowError) as error:
            raise DamagedError("the file is damaged or is no pickle", file=path,
                               found=str(error)[:100]) from error
    if not isinstance(content, dict):
        raise DamagedError("the file holds no dict", file=path, found=type(content).__name__)
    return content


# --- ImageNet, all classes or some (Russakovsky et al. 2015, arXiv 1409.0575) ---------------------

FIRST_WNID, LAST_WNID = "n01440764", "n15075141"  # tench, toilet tissue


def imagenet_names() -> tuple[str, ...]:
    from torchvision.models import ResNet18_Weights

    return tuple(ResNet18_Weights.IMAGENET1K_V1.meta["categories"])


def imagenet(split: str, val: str, fold: int, data: Path | None) -> RealData:
    if split == "val" and val == "val":
        return _as_real(_imagenet_files("val", val, data))
    return with_dev(_as_real(_imagenet_files("train", val, data)), split, val, None)


def imagenet100(split: str, val: str, fold: int, data: Path | None) -> RealData:
    """The images of the hundred classes, with labels 0 to 99, from folders of all ImageNet or of
    these classes only, or from a list with ImageNet's labels."""
    which = "val" if split == "val" and val == "val" else "train"
    found = _imagenet_files(which, val, data, tuple(IMAGENET100))
    return with_dev(_as_real(found), split, val, lambda: _as_real(found))


def _as_real(found: ImageFiles) -> RealData:
    return plain(found, found.labels)


def _imagenet_files(part: str, val: str, data: Path | None, wnids: tuple[str, ...] | None = None
                    ) -> ImageFiles:
    """Images and labels from a `path label` list (labels by sorted WordNet id), a folder per
    WordNet id, or torchvision's layout (archives, which it unpacks)."""
    root = data or ROOT / "imagenet"
    lists = [root] if root.is_file() else [root / f"imagenet_{part}.txt",
                                           ROOT / f"imagenet_{part}.txt"][:1 if data else 2]
    for path in lists:
        if path.is_file():
            _refuse_one_place(path, root, part, val)
            found = image_files.read_list(path, imagenet_names(), 3, need_labels=True,
                                          root=root if root.is_dir() else None)
            return found if wnids is None else _hundred(found, path)
    if part == "val" and (root / "ILSVRC2012_img_val.tar").exists() and not (root / part).exists():
        _unpack_with_torchvision(root)
    for folder in (root / part, root):
        if not folder.is_dir():
            continue
        if loose := next(folder.glob("ILSVRC2012_*.JPEG"), None):
            raise UserError(f"ImageNet's {part} images lie outside of class folders", file=loose,
                            hint=f"imagenet_{part}.txt (path label) in true_dataset/; or, where "
                                 f"unpacking was stopped, remove {part}/ to unpack again")
        if any(image_files.WNID.fullmatch(p.name) for p in folder.iterdir()):
            _refuse_one_place(folder, root, part, val)
            return _wordnet_folder(folder, wnids)
    raise UserError(f"ImageNet's {part} images are not there", data=root,
                    expected=f"imagenet_{part}.txt (path label), {part}/n01440764/*.JPEG, or "
                             "torchvision's two archives",
                    hint="--data PATH, or put them in true_dataset/imagenet/; --val none to train "
                         "without judging" if part == "val" else "--data PATH")


def _refuse_one_place(place: Path, root: Path, part: str, val: str) -> None:
    """One list, or one folder of class folders, is what is judged on, and then not trained on."""
    if place == root and part == "train" and val == "val":
        raise UserError("the images would be trained and judged on", data=root,
                        hint="--data with train/ and val/ in it; --val dev or none")


def _hundred(found: ImageFiles, origin: Path) -> ImageFiles:
    """Those with a label among the hundred, relabelled."""
    table = torch.full((1000,), -1)
    table[torch.tensor(list(IMAGENET100.values()))] = torch.arange(len(IMAGENET100))
    labels = table[found.labels]
    index = (labels >= 0).nonzero()[:, 0]
    if not len(index):
        raise UserError("no image of ImageNet-100's classes in the list", file=origin,
                        hint="ImageNet's labels: 15, 45 and so on")
    return found.chosen(index, labels[index])


def _unpack_with_torchvision(root: Path) -> None:
    """Make val/ whole, in a folder of its own: whoever sees val/ sees all of it. torchvision knows
    that the devkit numbers classes in another order than WordNet ids."""
    from torchvision.datasets import ImageNet

    temp = root / ".unpacking"
    try:
        with files.locked(root / ".unpacking.lock", str(root), blocking=True):
            if (root / "val").exists():  # another process made it meanwhile
                return
            shutil.rmtree(temp, ignore_errors=True)  # of one that was stopped
            temp.mkdir()
            try:
                for name in ("ILSVRC2012_img_val.tar", "ILSVRC2012_devkit_t12.tar.gz"):
                    (temp / name).symlink_to(Path("..") / name)
                ImageNet(temp, "val")
                (temp / "val").rename(root / "val")
            finally:
                shutil.rmtree(temp, ignore_errors=True)
    except (OSError, RuntimeError) as error:
        raise UserError("torchvision could not unpack ImageNet's archives", data=root,
                        found=(str(error).splitlines() or [""])[0][:120],
                        hint="ILSVRC2012_img_val.tar and ILSVRC2012_devkit_t12.tar.gz, as published"
                        ) from error


def _wordnet_folder(folder: Path, wnids: tuple[str, ...] | None) -> ImageFiles:
    folders = sorted(p.name for p in folder.iterdir() if image_files.WNID.fullmatch(p.name))
    names = imagenet_names() if wnids is None else tuple(IMAGENET100)
    index = image_files.class_indices(set(folders), names, folder, wnids)
    if wnids is None and (folders[0], folders[-1]) != (FIRST_WNID, LAST_WNID):
        raise UserError("the thousand folders are not those of ImageNet-1K", data=folder,
                        found=f"{folders[0]} to {folders[-1]}",
                        expected=f"{FIRST_WNID} (tench) to {LAST_WNID} (toilet tissue)")
    paths = [f"{f}/{p.name}" for f in folders if index[f] >= 0
             for p in sorted((folder / f).iterdir()) if p.suffix.lower() in image_files.SUFFIXES]
    labels = torch.tensor([index[path.partition("/")[0]] for path in paths], dtype=torch.int64)
    empty = set(range(len(names))) - set(labels.tolist())
    if empty:
        first = next(f for f in folders if index[f] == min(empty))
        raise UserError(f"{len(empty)} class folders hold no images", data=folder / first)
    return ImageFiles(paths, labels, image_files.Folder(folder), 3)


# --- Oxford Flowers-102 (Nilsback & Zisserman 2008) -----------------------------------------------

def flowers_names() -> tuple[str, ...]:
    from torchvision.datasets import Flowers102

    return tuple(Flowers102.classes)


def flowers102(split: str, val: str, fold: int, data: Path | None) -> RealData:
    """Training: the published train and validation splits (2,040 images), judged: test (6,149).
    --val dev judges on the published validation split."""
    root = data or ROOT / "flowers-102"
    if not data:
        fetched(lambda: root if (root / "setid.mat").exists() else None, "Flowers102",
                "put jpg/, imagelabels.mat and setid.mat in true_dataset/flowers-102/",
                split="test")
    elif not (root / "setid.mat").exists():
        raise UserError("no Flowers-102 there", data=data,
                        expected="jpg/, imagelabels.mat and setid.mat")
    sets, labels = (read_mat(root / name) for name in ("setid.mat", "imagelabels.mat"))
    parts = {"train": ("trnid",) if val == "dev" else ("trnid", "valid"),
             "val": ("valid",) if val == "dev" else ("tstid",)}[split]
    try:
        ids = np.concatenate([_row_from_1(sets[p]) for p in parts])
        chosen = torch.from_numpy(_row_from_1(labels["labels"], len(flowers_names()))[ids - 1] - 1)
    except (KeyError, IndexError, ValueError, TypeError, AttributeError) as error:
        raise DamagedError("setid.mat and imagelabels.mat do not fit together", folder=root,
                           found=str(error)[:100]) from error
    names = [f"jpg/image_{i:05d}.jpg" for i in ids]
    images = ImageFiles(names, chosen, image_files.Folder(root), 3)
    return RealData(images, chosen, torch.from_numpy(ids), torch.full((len(ids),), -1))


def _row_from_1(array: np.ndarray, last: float = 1e9) -> np.ndarray:
    """Whole numbers from 1 to `last`, int64 [N].

    Raises:
        ValueError: they are others, or there are none."""
    if not array.size or not ((array >= 1) & (array <= last)).all():
        raise ValueError(f"numbers from 1 to {last:.0f} were expected")
    return array.astype(np.int64)


MAT_NUMBERS = {1: "i1", 2: "u1", 3: "<i2", 4: "<u2", 5: "<i4", 6: "<u4", 7: "<f4", 9: "<f8",
               12: "<i8", 13: "<u8"}
MAT_ARRAY, MAT_COMPRESSED = 14, 15
MAT_MAX_BYTES = 1 << 24  # of one array


def read_mat(path: Path) -> dict[str, np.ndarray]:
    """The number arrays of a MATLAB 5 file (MathWorks, "MAT-File Format"), flat. By hand: at some
    damaged bytes scipy's reader ends the whole process.

    Raises:
        UserError: not there.  DamagedError: truncated, or another format."""
    content, arrays = files.must_exist(path, "--data", "a .mat file").read_bytes(), {}
    try:
        if content[124:128] != b"\0\1IM":
            raise ValueError("no MATLAB 5 file")
        for kind, data in _mat_elements(content[128:]):
            if kind == MAT_COMPRESSED:
                data = zlib.decompressobj().decompress(data, MAT_MAX_BYTES)
                kind, data = next(_mat_elements(data))
            if kind == MAT_ARRAY:
                _, _, (_, name), (kind, values), *_ = _mat_elements(data)
                if kind in MAT_NUMBERS:
                    arrays[name.decode("latin1")] = np.frombuffer(values, MAT_NUMBERS[kind])
    except (ValueError, StopIteration, zlib.error) as error:
        raise DamagedError("the .mat file is damaged", file=path,
                           found=str(error)[:100]) from error
    return arrays


def _mat_elements(data: bytes) -> Iterator[tuple[int, bytes]]:
    """(type, bytes) of each element: a tag of type and size, then the bytes, up to a multiple of 8;
    four bytes or fewer lie in the tag itself, beside a size of 16 bits."""
    place = 0
    while place < len(data):
        kind, size = np.frombuffer(data, "<u4", 2, place).tolist()
        small = kind >> 16
        start, size = (place + 4, small) if small else (place + 8, size)
        if start + size > len(data) or small > 4:
            raise ValueError("truncated")
        yield kind & 0xFFFF, data[start:start + size]
        place = start + (4 if small else size if kind == MAT_COMPRESSED else size + -size % 8)


# --- any folder -----------------------------------------------------------------------------------

def folder_classes(data: Path | None) -> tuple[str, ...]:
    """The class names of an ImageFolder: its train/ (or own) subfolders, numbers by value.

    Raises:
        UserError: no --data, or no subfolders."""
    if data is None:
        raise UserError("--task folder needs --data FOLDER",
                        hint="--data FOLDER with train/<class>/ and val/<class>/")
    root = files.must_exist(data, "--data", "the data folder")
    root = root / "train" if (root / "train").is_dir() else root
    if not root.is_dir():
        raise UserError("--task folder needs a folder of class folders", data=root)
    names = sorted(p.name for p in root.iterdir()
                   if p.is_dir() and not image_files.hidden(p.name))
    if len(names) < 2:
        raise UserError(f"the folder has {len(names)} class folders, at least 2 are needed",
                        data=root, hint="--data FOLDER with train/<class>/ and val/<class>/")
    number = all(re.fullmatch(r"[0-9]{1,18}", n) for n in names)
    return tuple(sorted(names, key=int) if number else names)


def folder(class_names: tuple[str, ...], split: str, val: str, fold: int, data: Path) -> RealData:
    def load(part: str) -> RealData:
        root = data / part if (data / "train").is_dir() else data
        if not root.is_dir():
            raise UserError(f"the data folder has no {part}/", data=data,
                            hint=f"{part}/<class>/, or --val dev or none")
        position = {name: i for i, name in enumerate(class_names)}
        paths = image_files.images_below(root)
        strange = sorted({p.split("/")[0] for p in paths} - position.keys())
        if strange or not paths:
            raise UserError(f"'{strange[0]}' in {part}/ is no class of train/" if strange else
                            f"no images in {part}/", data=root)
        labels = torch.tensor([position[p.split("/")[0]] for p in paths])
        empty = [name for name, i in position.items() if i not in labels]
        if part == "train" and empty:
            raise UserError(f"{len(empty)} of {len(position)} class folders hold no images",
                            data=root / empty[0], hint="images for the class, or no folder")
        return plain(ImageFiles(paths, labels, image_files.Folder(root), 3), labels)

    if not (data / "train").is_dir() and split == "val" and val == "val":
        raise UserError("the data folder has no val/", data=data,
                        hint="train/<class>/ and val/<class>/, or --val dev or none")
    if split == "val" and val == "val":
        return load("val")
    return with_dev(load("train"), split, val, None)
