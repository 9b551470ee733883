"""Images as the training loop reads them: real ones, image sets, folders and list files.

    images = load_source(args, task)                     what --source names
    source = Source(images, view, batch_size=256, seed=0)
    for pixels, labels, ids in source.batches(epoch):    uint8 [B, C, H, W], int64 [B], int64 [B]
        draws = source.view.draw(pixels, ids, seed, epoch, step)
        x, labels = source.view.apply(pixels, labels, draws)

There are two forms. Images of one size are a uint8 array, in memory or in a memory map that is
packed once. Large training images of several sizes stay files, which a DataLoader's workers decode
and crop. Both give the same kind of batch.
"""

import argparse
import contextlib
import dataclasses
import glob
import os
import re
import signal
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np
import torch
from filelock import FileLock
from torch import Tensor
from torchvision.datasets.folder import IMG_EXTENSIONS

from dm_kd import augment, dist, image_set, run
from dm_kd.augment import View
from dm_kd.image_set import read_image
from dm_kd.run import UserError
from dm_kd.tasks import ROOT, TASKS, WNIDS, Task, split_folders

WORDNET_ID = re.compile(r"(?:^|_)(n[0-9]{8})(?=_|$)")  # the hub's ILSVRC2012_val_1_n02110341.JPEG
NAMED_LABEL = re.compile(r"class_([0-9]+)_")  # the original's class_{c}_seed_{k}_num_{i}.png
DECODERS = 8  # threads that pack; Pillow decodes without the GIL
CHUNK = 256  # images in memory while packing
MAX_WORKERS = 16  # processes that decode files while training


@dataclass(frozen=True)
class Files:
    """Image files of any size, decoded on demand to `channels` (1 or 3)."""

    paths: list[str]
    channels: int

    def __getitem__(self, i: int) -> Tensor:
        """uint8 [C, h, w]."""
        return read_image(self.paths[i], self.channels)


@dataclass(frozen=True)
class Images:
    images: Tensor | Files  # uint8 [N, C, H, W] or files
    labels: Tensor  # int64 [N], -1 = unknown
    sha256: str | None = None  # of files; None for tensors
    generator: dict | None = None  # from a set's manifest
    notes: list[str] = dataclasses.field(default_factory=list)  # lines for the log

    def chosen(self, index: Tensor | slice) -> "Images":
        """Those at the positions int64 [M]."""
        images = self.images
        if isinstance(images, Files):
            images = Files([images.paths[i] for i in index.tolist()], images.channels)
        else:
            images = images[index]
        return dataclasses.replace(self, images=images, labels=self.labels[index])


# --- real images ----------------------------------------------------------------------------------

def load_real(task: Task, split: str, fold: int = 0, val: str = "val", root: Path | None = None
              ) -> Images | None:
    """A task's real images: split "train", or "val", which is what --val says: "val" the validation
    split, "dev" a part of the training images (which "train" then lacks), "none" None."""
    if not 0 <= fold < task.folds:
        raise UserError(f"{task.name} has folds 0 to {task.folds - 1}, not {fold}", "--fold 0")
    if split == "val" and val == "none":
        return None
    part = "val" if split == val == "val" else "train"
    if task.load is None or root and task.folds == 1 and has_class_folders(root, task):
        images = class_folders(task, part, root, part == "val" or val != "val")
    elif root and not root.is_dir():  # torchvision would make it, and download into it
        raise UserError(f"no folder {root}", f"without --data {task.name} is read from {ROOT}")
    else:
        try:
            pixels, labels, groups = task.load(part, root)
        except (RuntimeError, OSError) as error:  # torchvision's, or no network
            raise UserError(f"{task.name} is not in {root or ROOT}: {error}",
                            "see true_dataset/README.md") from error
        images = Images(Files(pixels, task.channels) if isinstance(pixels, list) else pixels,
                        labels, notes=[f"note: --class-order does not change {task.name}'s own "
                                       "labels"] if task.folders else [])
    if task.folds > 1:
        train, evaluated = split_by_group(groups.numpy(), fold, val, task.folds)
        return images.chosen(train if split == "train" else evaluated)
    if val == "dev":
        held_out = torch.arange(len(images.labels)) % 6 == 5
        return images.chosen((held_out == (split == "val")).nonzero()[:, 0])
    return images


def has_class_folders(root: Path, task: Task) -> bool:
    """Whether `root` has splits or classes as folders, in place of torchvision's files."""
    return bool(split_folders(root)) or any(
        path.is_dir() and (path.name in task.class_names or path.name.isdecimal())
        for path in root.glob("*"))


def split_by_group(groups: np.ndarray, fold: int, val: str, folds: int) -> tuple[Tensor, Tensor]:
    """Indices (train, evaluated) of a fold of grouped cross-validation; no group is in both. With
    val "dev" the evaluated ones are a fold of the training groups instead."""
    from sklearn.model_selection import GroupKFold

    train, evaluated = list(GroupKFold(folds).split(groups, groups=groups))[fold]
    if val == "dev":
        inner, dev = next(iter(GroupKFold(folds).split(train, groups=groups[train])))
        train, evaluated = train[inner], train[dev]
    return torch.from_numpy(train), torch.from_numpy(evaluated)


def class_folders(task: Task, part: str, root: Path | None, alone: bool) -> Images:
    """A split from class folders, or from a `path label` list with ImageNet's labels; where `root`
    has no splits and the part is used `alone`, from all its class folders."""
    listed = (root or ROOT) / f"imagenet_{part}.txt"
    if root is None or task.name != "folder" and (root / "imagenet").is_dir():
        root = (root or ROOT) / "imagenet"
    splits = split_folders(root)
    folder = splits.get(part, root if alone and not splits else None)
    if task.wnids and listed.is_file():
        images = list_images(listed, TASKS["imagenet"], root)
        ours = torch.full((len(WNIDS) + 1,), -1)  # the last is for -1, no label
        ours[torch.tensor(task.imagenet_classes)] = torch.arange(task.num_classes)
        images = dataclasses.replace(images, labels=ours[images.labels])
    elif folder and folder.is_dir():
        images = folder_images(folder, task)
    else:
        raise UserError(f"no {part} images of {task.name} in {root}",
                        f"--data FOLDER with {part}/<class>/ or imagenet_{part}.txt; --val dev "
                        "holds out a part of the training images, --val none evaluates nothing")
    labelled = (images.labels >= 0).nonzero()[:, 0]
    if not len(labelled):
        raise UserError(f"{root} has no {part} image of a class of {task.name}",
                        "class folders, a list, or files named by WordNet id")
    if left := len(images.labels) - len(labelled):
        images.notes.append(f"note: {left} {part} images are left out: other classes, or none")
    return images.chosen(labelled)  # of ImageNet's classes only the task's


def load_validation(task: Task, args: argparse.Namespace) -> Images | None:
    """What --val evaluates on as a uint8 tensor [N, C, H, W], centre crops where the task is large;
    None with --val none."""
    real = load_real(task, "val", args.fold, args.val, args.data)
    if real:
        real.notes.extend(described(real, task, "validation"))
    return real and pack(real, task, args.cache, crops=True)


def described(images: Images, task: Task, what: str) -> list[str]:
    """Lines for the log: the order of the classes is the most common mistake."""
    labels, names = images.labels[images.labels >= 0], ", ".join(task.class_names[:12])
    files = images.images.paths if isinstance(images.images, Files) else ()
    where = f" in {os.path.commonpath(files)}" if files else ""
    notes = [f"{what}: {len(labels)} of {len(images.labels)} images{where} have labels, of "
             f"{len(labels.unique())} of {task.num_classes} classes: {names}"
             + " ..." * (task.num_classes > 12)]
    if task.large and files:
        height, width = images.images[0].shape[1:]
        if min(height, width) < task.resolution // 2:
            notes.append(f"note: {what} images of {width} x {height} pixels are enlarged to "
                         f"{task.resolution}; another size: --resolution")
    return notes


def evaluated_too(images: Images, task: Task, args: argparse.Namespace) -> list[str]:
    """A line for the log where files of a folder or list are also validation images."""
    if task.load or args.source == "real" or args.val == "none" or isinstance(
            images.images, Tensor):
        return []
    real = load_real(task, "val", args.fold, args.val, args.data)
    known, files = ({(status.st_dev, status.st_ino) for status in map(os.stat, each.images.paths)}
                    for each in (real, images))
    same = len(known & files)
    return [f"note: {same} of {len(files)} images of {args.source} are validation images, so the "
            "accuracy says little"] if same else []


# --- what --source names --------------------------------------------------------------------------

def load_source(args: argparse.Namespace, task: Task) -> Images:
    """The images to train on: `real`, an image set, a folder or a list file. Some commands lack
    --images-per-class, --subset-seed and --source-labels."""
    path, labelled = Path(args.source), getattr(args, "source_labels", "task") == "task"
    per_class, seed = getattr(args, "images_per_class", None), getattr(args, "subset_seed", None)
    is_set = (path / "manifest.json").exists()
    if seed is not None and (per_class is None or is_set):
        raise UserError("--subset-seed draws the --images-per-class of real images, folders and "
                        "lists", "leave it out: a set's images are independent draws")
    if args.source == "real":
        images = load_real(task, "train", args.fold, args.val, args.data)
    elif is_set:
        images = load_set(path, task, args.cache, per_class)
    elif path.is_dir():
        images = folder_images(path, task, labelled)
    elif path.is_file():
        images = list_images(path, task, args.data, labelled)
    else:
        raise UserError(f"--source {path} does not exist",
                        "an image set, a folder or list file of images, `real`, or a method")
    if per_class is not None and not is_set:
        images = images.chosen(first_per_class(images.labels, per_class, seed))
    if not labelled:
        images = dataclasses.replace(images, labels=torch.full_like(images.labels, -1))
    images.notes.extend(described(images, task, args.source) + evaluated_too(images, task, args))
    return pack(images, task, args.cache)


def load_set(folder: Path, task: Task, cache: Path, images_per_class: int | None = None) -> Images:
    """An image set as one array in the order of its positions: all images, or the first
    `images_per_class` of each class."""
    opened = image_set.ImageSet(folder)
    per_class, classes = images_per_class or opened.images_per_class, opened.classes
    if per_class > opened.images_per_class:
        raise UserError(f"{folder} has {opened.images_per_class} images per class",
                        "synthesize more, or a smaller --images-per-class")
    rows = [row for j in range(opened.shards) for row in opened.rows(j)]
    if len(rows) < opened.images:
        raise UserError(f"{folder} lacks {len(opened.missing())} of {opened.shards} shards",
                        "run its synthesize command again")
    labels, notes = torch.tensor([int(row["label"]) for row in rows]), []
    theirs, ours = opened.manifest["class_names"], dict(enumerate(task.class_names))
    if (opened.manifest["task"], theirs) != (task.name, [*map(ours.get, classes)]):
        labels = torch.full_like(labels, -1)
        notes = ["note: labels of the set are not used: its classes are of "
                 f"{opened.manifest['task']}, others or in another order"]
    files = Files([str(folder / row["path"]) for row in rows], task.channels)
    images = Images(files, labels, opened.digest, opened.manifest["generator"], notes)
    # position p has class p modulo classes
    return pack(images, task, cache).chosen(slice(per_class * len(classes)))


def first_per_class(labels: Tensor, per_class: int, seed: int | None = None) -> Tensor:
    """Positions of the first `per_class` images of each class, class by class; with a seed, of the
    first in a drawn order, so that a smaller choice is part of a larger one."""
    chosen = []
    for c in labels.unique().tolist():
        own = (labels == c).nonzero()[:, 0]
        if c < 0 or len(own) < per_class:
            raise UserError(f"--images-per-class {per_class}: class {c} has {len(own)} images "
                            "(-1: without labels)", "a smaller --images-per-class")
        if seed is not None:
            own = own[torch.from_numpy(np.random.default_rng([seed, c]).permutation(len(own)))]
        chosen.append(own[:per_class])
    return torch.cat(chosen)


# --- folders and lists ----------------------------------------------------------------------------

def folder_images(folder: Path, task: Task, labelled: bool = True) -> Images:
    """The images below a folder, sorted. Labels come from names `class_<label>_...`, else from the
    class folders, else are -1."""
    names = [Path(name) for name in glob.glob("**", root_dir=folder, recursive=True)]  # not hidden
    paths = sorted(name for name in names if name.suffix.lower() in IMG_EXTENSIONS)
    skipped = [name for name in names if name.suffix.lower() not in IMG_EXTENSIONS
               and (folder / name).is_file()]
    if not paths:
        raise UserError(f"no images in {folder}", f"files of {', '.join(IMG_EXTENSIONS)}")
    notes = [f"note: skipped {len(skipped)} files in {folder} that are not images, first: "
             f"{min(skipped)}"] if skipped else []
    labels = torch.full((len(paths),), -1)
    named = [NAMED_LABEL.match(path.name) for path in paths]
    classes = classes_of(folder, paths, task)
    if labelled and all(named) and not {*classes} & {*task.class_names}:
        labels = in_range([int(match[1]) for match in named], task, folder)
    elif labelled and any(classes):
        classes = [name or path.name for name, path in zip(classes, paths, strict=True)]
        index = class_indices({*classes}, task, folder, notes)
        labels = torch.tensor([index[name] for name in classes])
    return Images(Files([str(folder / path) for path in paths], task.channels), labels,
                  notes=notes)


def in_range(labels: list[int], task: Task, where: Path) -> Tensor:
    """The labels as int64 [N]; a UserError if one is no class of the task."""
    if max(labels) >= task.num_classes:
        raise UserError(f"{where}: label {max(labels)} is out of range: {task.name} has classes 0 "
                        f"to {task.num_classes - 1}",
                        "distill --source-labels none for images of other classes")
    return torch.tensor(labels, dtype=torch.int64)


def classes_of(folder: Path, paths: list[Path], task: Task) -> list[str | None]:
    """The class folder of each image; for ImageNet's flat folders the WordNet id, from the table
    that Kaggle or Tiny-ImageNet has near them or from the image's name; None: neither."""
    tables = [place / "LOC_val_solution.csv" for place in
              (folder, *folder.absolute().parents[:4])] + [folder / "val_annotations.txt"]
    text = "".join(table.read_text() for table in tables if table.is_file())
    known = dict(re.findall(r"^([^.,\t\n]+)[^,\t\n]*[,\t](n[0-9]{8})", text, re.MULTILINE))

    def name(path: Path) -> str | None:
        ids = WORDNET_ID.findall(path.stem) if task.wnids else ()
        return known.get(path.stem) or (
            path.parts[0] if path.parent.name else ids[-1] if ids else None)

    return [name(path) for path in paths]


def class_indices(folders: set[str], task: Task, where: Path, notes: list[str]
                  ) -> dict[str, int]:
    """Class folder -> class index. Folders are named by class, by number, or (ImageNet) by WordNet
    id. Folders of ImageNet beside the classes of a part of it have -1. Appends to the notes what
    was assumed of numbers."""
    index = {name: i for i, name in enumerate(task.folders or task.class_names)}
    if task.folders or task.name == "folder":
        if not task.folders and not task.wnids and re.search("[0-9]", "".join(index)):
            notes.append("note: the class folders' numbers are sorted as text, as torchvision's "
                         "ImageFolder does; else --class-order FILE")
    elif task.wnids and folders & {*WNIDS}:
        index = dict.fromkeys(WNIDS, -1) | {wnid: i for i, wnid in enumerate(task.wnids)}
    elif not folders & index.keys() and all(map(str.isdecimal, folders)):
        numbers = {*map(int, folders)}
        if 0 not in numbers and not {1, task.num_classes} <= numbers:
            raise UserError(f"{where}: are the class folders {', '.join(sorted(folders)[:5])} "
                            "numbered from 0 or from 1?", "--class-order FILE says it")
        first = int(0 not in numbers)
        index = {name: int(name) - first for name in folders
                 if int(name) - first < task.num_classes}
        notes.append(f"note: class folders are numbers, read as: {first} is "
                     f"'{task.class_names[0]}', {first + 1} is '{task.class_names[1]}' ...; else "
                     "--class-order FILE")
    if strange := sorted(folders - index.keys()):
        raise UserError(f"{where}/{strange[0]} is no class of {task.name}, which has "
                        f"{', '.join(task.class_names[:3])} ...",
                        "rename the folders; distill --source-labels none if labels do not matter")
    return index


def list_images(path: Path, task: Task, root: Path | None = None, labelled: bool = True) -> Images:
    """A list file: `path` or `path label` per line; paths may contain spaces, and start at the
    working directory, the list's folder or its parent, or `root`. Of a path from another machine
    (the original's lists) the longest end that exists in one of these is taken. Where no label is
    given it is that of the name (`class_<label>_...`) or -1."""
    places = [Path(), path.parent, path.parent.parent, *([root] if root else [])]
    paths, labels, names = [], [], {}
    for number, line in enumerate(path.read_text(encoding="utf-8-sig").splitlines(), 1):
        if not line.strip() or Path(line).name.startswith("._"):  # of macOS
            continue
        name, label = re.fullmatch(r"\s*(.*?\S)(?:\s+([0-9]+))?\s*", line).groups()
        parts = PurePosixPath(name).parts
        ends = (place.joinpath(*parts[i:]) for i in range(len(parts)) for place in places)
        file = next(filter(Path.is_file, ends), None)
        if file is None or names.setdefault(file, name) != name:  # b/0.png is not a/0.png
            raise UserError(f"{path}, line {number}: no file {name[:200]}",
                            "--data FOLDER that the list's paths start from")
        named = NAMED_LABEL.match(file.name)
        paths.append(str(file.absolute()))
        labels.append(named[1] if named and label is None else label)
    numbers = [int(label) for label in labels if label is not None]
    if not paths or len(numbers) not in (0, len(paths)):
        raise UserError(f"{path} has {len(paths)} lines, {len(numbers)} with a label",
                        "`path label` on every line, or `path`")
    return Images(Files(paths, task.channels), in_range(numbers, task, path)
                  if numbers and labelled else torch.full((len(paths),), -1))


# --- packing --------------------------------------------------------------------------------------

class SeveralSizes(Exception):
    """Images that cannot be one array."""


def pack(images: Images, task: Task, cache: Path, crops: bool = False) -> Images:
    """Files as one memory map in `cache` where all images then have one size: small ones are
    resized to the task's, with `crops` large ones become centre crops. Large images of several
    sizes stay files."""
    files, side = images.images, task.resolution
    if isinstance(files, Tensor):
        return images
    images = dataclasses.replace(images, sha256=images.sha256 or fingerprint(
        files.paths, images.labels.tolist()))
    crops = crops and task.large
    size = (side, side) if crops or not task.large else tuple(files[0].shape[1:])

    def fitted(i: int) -> Tensor:
        image = files[i][None]
        if crops or not task.large:
            image = augment.centre_crops(
                image, side, task.resize if crops else (side, "bilinear", True))
        if image.shape[2:] != size:
            raise SeveralSizes
        return image[0]

    shape = (len(files.paths), files.channels, *size)
    key = run.sha256(f"{images.sha256} {shape} {(crops and task.resize) or crops}".encode())
    with contextlib.suppress(SeveralSizes):
        packed = memory_map(Path(cache) / f"{key[:24]}.u8", shape, fitted)
        images = dataclasses.replace(images, images=packed)
    return images


def fingerprint(paths: list[str], labels: list[int]) -> str:
    """SHA-256 of the files' names below their common folder, sizes, times and labels."""
    root, rows = len(os.path.commonpath([*map(os.path.dirname, paths)])), []
    for path, label, status in zip(paths, labels, map(os.stat, paths), strict=True):
        rows.append(f"{path[root:]}\t{label}\t{status.st_size}\t{status.st_mtime_ns}\n")
    return run.sha256("".join(rows).encode())


def memory_map(path: Path, shape: tuple[int, ...], image: Callable[[int], Tensor]) -> Tensor:
    """A uint8 array [N, C, H, W] in a file, written from image(0), image(1), ... where it is
    missing. Of processes that start together one writes, the others wait."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{path}.lock"):
        if not path.exists():
            with (run.replacing(path) as temp, open(temp, "wb") as file,
                  ThreadPoolExecutor(DECODERS) as pool,
                  run.progress(shape[0], "read images", "images") as bar):
                for start in range(0, shape[0], CHUNK):
                    chunk = range(shape[0])[start:start + CHUNK]
                    for pixels in pool.map(image, chunk):
                        file.write(pixels.contiguous().numpy().tobytes())
                    bar.update(len(chunk))
    with warnings.catch_warnings(action="ignore"):  # read-only: a writable map needs as much memory
        return torch.from_numpy(np.memmap(path, np.uint8, "r", shape=shape))


def resident(images: Images, device: torch.device) -> Images:
    """On the GPU where they take less than half of its free memory; labels with them."""
    if device.type == "cpu" or isinstance(images.images, Files) or (
            images.images.numel() >= torch.cuda.mem_get_info(device)[0] // 2):
        return images
    return dataclasses.replace(images, images=images.images.to(device),
                               labels=images.labels.to(device))


def evaluation_crops(images: Images, index: Tensor, task: Task) -> Tensor:
    """The images at the positions int64 [M] as a uint8 tensor [M, C, H, W]; centre crops of
    files."""
    if isinstance(images.images, Tensor):
        return images.images[index]
    return torch.cat([augment.centre_crops(images.images[i][None], task.resolution)
                      for i in index.tolist()])


# --- batches --------------------------------------------------------------------------------------

def start_source(images: Images, view: View, args: argparse.Namespace, device: torch.device
                 ) -> "Source":
    """Join the other ranks, which all have the images by now; returns this rank's source."""
    dist.start(device)
    return Source(resident(images, device), view, args.batch_size, args.seed, args.steps_per_epoch,
                  device, dist.rank(), dist.world_size())


class Source:
    """Images in a shuffled order that is a function of (seed, epoch), so a resumed run needs only
    the step's number. batch_size is that of all ranks; `view` becomes the part of the training view
    that batches still need. The last batch is filled from a second order."""

    def __init__(self, images: Images, view: View, batch_size: int, seed: int,
                 steps_per_epoch: int | None = None, device: torch.device | str = "cpu",
                 rank: int = 0, world_size: int = 1):
        assert batch_size % world_size == 0, (batch_size, world_size)
        self.images, self.labels, self.seed = images.images, images.labels, seed
        self.batch_size, self.rank, self.world_size = batch_size, rank, world_size
        self.steps_per_epoch = steps_per_epoch or -(-len(self.labels) // batch_size)
        self.pinned = torch.device(device).type == "cuda" and not self.labels.is_cuda
        self.view, self.cut = view, dataclasses.replace(view, mixup=0, cutmix=0)
        if isinstance(self.images, Files):  # the workers crop and mirror
            self.view = dataclasses.replace(view, crop=False, flip=False)

    def order(self, epoch: int) -> Tensor:
        """Virtual ids of an epoch, int64 [steps_per_epoch, batch_size]: position + N times the
        number of times the image came before, so that each is unique and gets its own view."""
        count, size = self.steps_per_epoch * self.batch_size, len(self.labels)
        rounds = [np.random.Generator(np.random.PCG64([self.seed, epoch, r])).permutation(size)
                  + r * size for r in range(-(-count // size))]
        return torch.from_numpy(np.concatenate(rounds)[:count]).view(-1, self.batch_size)

    def batches(self, epoch: int, first_step: int = 0, student: object = None
                ) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """(images uint8 [B/W, C, H, W], labels, virtual ids) of this rank, from `first_step`."""
        share = self.batch_size // self.world_size
        ids = self.order(epoch)[first_step:, self.rank * share:(self.rank + 1) * share]
        if isinstance(self.images, Tensor):
            return map(self.gather, ids)
        cores = (os.cpu_count() or 1) // int(os.environ.get("LOCAL_WORLD_SIZE", 1))
        return iter(torch.utils.data.DataLoader(
            Crops(self, epoch), batch_sampler=ids.tolist(), pin_memory=self.pinned,
            num_workers=max(1, min(cores, MAX_WORKERS)), worker_init_fn=ignore_signals,
            generator=torch.Generator()))  # leaves torch's own as it is

    def gather(self, ids: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The batch of these ids from an array."""
        index = augment.send(ids % len(self.labels), self.labels.device)
        images = torch.empty(len(ids), *self.images.shape[1:], dtype=torch.uint8,
                             device=self.images.device, pin_memory=self.pinned)
        torch.index_select(self.images, 0, index, out=images)  # on CPUs 3 times faster than [...]
        return images, self.labels[index], ids


def ignore_signals(_: int) -> None:
    """In a worker process: a signal to the whole group must not end it before the run is saved."""
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)


@dataclass(frozen=True)
class Crops(torch.utils.data.Dataset):
    """Virtual id -> (training crop uint8 [C, size, size], label, id), of a source of files."""

    source: Source
    epoch: int

    def __getitem__(self, i: int) -> tuple[Tensor, Tensor, int]:
        source, position = self.source, i % len(self.source.labels)
        image = source.images[position][None]
        draws = source.cut.draw(image, torch.tensor([i]), source.seed, self.epoch, 0)
        return source.cut.cut(image, draws)[0], source.labels[position], i
