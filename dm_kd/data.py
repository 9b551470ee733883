"""Images as the training loop reads them: real ones, image sets, folders and list files.

    images = load_source(args, task)                    what --source names
    source = Source(images, view, batch_size=256, seed=0)
    for pixels, labels, ids in source.batches(epoch=0):  uint8 [B, C, H, W]
        x, labels = source.view.train(pixels, labels, ids, seed, epoch, step)

There are two forms. Images of one size are a uint8 array in memory or in a memory map that is
packed once. Large training images of several sizes stay files, which a DataLoader's workers decode
and crop. After `Source` nobody asks which it was.
"""

import argparse
import dataclasses
import os
import re
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torchvision.datasets.folder import IMG_EXTENSIONS

from dm_kd import augment, files, image_set, run
from dm_kd.augment import View
from dm_kd.errors import UserError
from dm_kd.image_set import read_image
from dm_kd.tasks import ROOT, WNIDS, Task, get_task, is_visible, split_folder

NAMED_LABEL = re.compile(r"class_([0-9]+)_")  # the original's class_{c}_seed_{k}_num_{i}.png
WNID = re.compile(r"n\d{8}")  # a WordNet id
DECODERS = 8  # threads that pack; Pillow decodes without Python's lock
MAX_WORKERS = 16  # processes that decode files while training
CHUNK = 256  # images in memory while packing


class Files:
    """Image files of any size, decoded on demand.

    Args:
        channels: 1 or 3, to which every image is converted.
        root: folder that the paths are named from in the digest, so that a copy elsewhere has the
            same.
        digests: SHA-256 of each file, or None.
        size: (height, width) of all, where that is known.
    """

    def __init__(self, paths: list[str], channels: int, root: Path | None = None,
                 digests: list[str] | None = None, size: tuple[int, int] | None = None):
        self.paths, self.channels, self.root = paths, channels, root
        self.digests, self.size = digests, size

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, i: int) -> Tensor:
        """uint8 [C, h, w].  Raises UserError: not an image, or damaged."""
        return read_image(self.paths[i], self.channels, self.digests and self.digests[i])

    def chosen(self, index: Tensor) -> "Files":
        index = index.tolist()
        return Files([self.paths[i] for i in index], self.channels, self.root,
                     self.digests and [self.digests[i] for i in index], self.size)

    def one_size(self) -> tuple[int, int] | None:
        """(height, width) of all images, from their headers; None where they differ."""
        if self.size:
            return self.size
        first = tuple(self[0].shape[1:])
        for path in self.paths:
            try:
                with Image.open(path) as image:
                    if (image.height, image.width) != first:
                        return None
            except OSError as error:
                raise UserError(f"cannot read the image {path}: {error}") from error
        return first

    def fingerprints(self, labels: Tensor) -> tuple[str, str]:
        """SHA-256 of names, labels and sizes; and one that changes with paths and times too, which
        keys a packed copy.

        Raises:
            UserError: a file is missing or empty."""
        lines, times = [], []
        for path, label in zip(self.paths, labels.tolist(), strict=True):
            status = os.stat(path) if os.path.isfile(path) else None
            if not status or not status.st_size:
                raise UserError(f"the image {path} is {'empty' if status else 'missing'}")
            name = os.path.relpath(path, self.root) if self.root else path
            lines.append(f"{name}\t{label}\t{status.st_size}\n")
            times.append(f"{path}\t{status.st_mtime_ns}\n")
        content = files.sha256("".join(lines).encode())
        return content, files.sha256("".join([content, *times]).encode())


@dataclass(frozen=True)
class Images:
    """images uint8 [N, C, H, W] or Files; labels int64 [N], -1 = unknown; groups int64 [N], who
    made each, or None; sha256 of files, None for tensors; generator: what a set's manifest says of
    it, or None; notes: lines for the log."""

    images: Tensor | Files
    labels: Tensor
    groups: Tensor | None = None
    sha256: str | None = None
    generator: dict | None = None
    notes: list[str] = dataclasses.field(default_factory=list)

    def chosen(self, index: Tensor) -> "Images":
        """Those at the positions int64 [M]."""
        images = (self.images.chosen(index) if isinstance(self.images, Files)
                  else self.images[index])
        return dataclasses.replace(self, images=images, labels=self.labels[index],
                                   groups=None if self.groups is None else self.groups[index])


# --- real images ----------------------------------------------------------------------------------

def load_real(task: Task, split: str, fold: int = 0, val: str = "val", root: Path | None = None
              ) -> Images | None:
    """Real images as they are: split "train", or "val" (what the student is evaluated on).

    Args:
        fold: 0 .. task.folds - 1.
        val: "val" the validation split, "dev" a part of the training images, which then leaves
            training, "none" nothing (the "val" split is then None).
        root: where the files are, if not below true_dataset/.

    Raises:
        UserError: no such fold, or the files are missing."""
    if not 0 <= fold < task.folds:
        raise UserError(f"{task.name} has folds 0 to {task.folds - 1}, not {fold}", "--fold 0")
    if split == "val" and val == "none":
        return None
    part = "val" if split == "val" and val == "val" else "train"
    if task.load is None:
        images = class_folders(task, part, val, root)
    else:
        try:
            pixels, labels, groups = task.load(part, root)
        except (OSError, RuntimeError) as error:  # torchvision's, and urllib's
            raise UserError(f"{task.name} cannot be loaded from {root or ROOT}: {error}",
                            "see true_dataset/README.md") from error
        images = Images(Files(pixels, task.channels, root or ROOT) if isinstance(pixels, list)
                        else pixels, labels, groups)
    if task.folds > 1:
        train, evaluated = split_by_group(images.groups, fold, val, task.folds)
        return images.chosen(train if split == "train" else evaluated)
    if val != "dev":
        return images
    dev = (torch.arange(len(images.labels)) % 6 == 5 if images.groups is None
           else images.groups == 1)
    return images.chosen((dev if split == "val" else ~dev).nonzero()[:, 0])


def split_by_group(groups: Tensor, fold: int, val: str, folds: int) -> tuple[Tensor, Tensor]:
    """Indices (train, evaluated) of a fold of grouped cross-validation; no group is in both. "dev"
    evaluates on a fifth of the training groups instance, which then leave training."""
    from sklearn.model_selection import GroupKFold

    groups = groups.numpy()
    train, evaluated = list(GroupKFold(folds).split(groups, groups=groups))[fold]
    if val == "dev":
        inner, dev = next(iter(GroupKFold(folds).split(train, groups=groups[train])))
        train, evaluated = train[inner], train[dev]
    return torch.from_numpy(train), torch.from_numpy(evaluated)


def class_folders(task: Task, part: str, val: str, root: Path | None) -> Images:
    """A split of class folders, or of `path label` lists with ImageNet's labels.

    Raises:
        UserError: not there, other classes, or training and validation images are the same."""
    root = root or ROOT / "imagenet"
    lists = [root] if root.is_file() else [root / f"imagenet_{part}.txt",
                                           root.parent / f"imagenet_{part}.txt"]
    place = next((path for path in lists if path.is_file()), None)
    if place is None and root.is_dir():
        splits = [split_folder(root, name) for name in ("train", "val")]
        place = splits[part == "val"] if any(splits) else root
    if place is None:
        raise UserError(f"no {part} images of {task.name} in {root}",
                        f"--data FOLDER with {part}/<class>/ or imagenet_{part}.txt in it; --val "
                        "none trains without evaluation; torchvision.datasets.ImageNet unpacks "
                        "ImageNet's archives")
    if place == root and val == "val":
        raise UserError(f"{root} would be both trained on and evaluated on",
                        "--data FOLDER with train/ and val/ in it; --val dev or none")
    if place.is_dir():
        images = folder_images(place, task)
    elif not task.wnids:
        images = list_images(place, task, root, need_labels=True)
    else:  # ImageNet's labels
        images = list_images(place, get_task("imagenet"), root, need_labels=True)
        table = torch.full((len(WNIDS),), -1)
        table[torch.tensor(task.imagenet_classes)] = torch.arange(task.num_classes)
        images = dataclasses.replace(images, labels=table[images.labels])
    if images.labels.max() < 0:
        raise UserError(f"{place} has no image of a class of {task.name}", "<class>/IMAGE")
    return images.chosen((images.labels >= 0).nonzero()[:, 0])


def load_validation(task: Task, args: argparse.Namespace) -> Images | None:
    """What --val evaluates on, as a uint8 tensor [N, C, size, size]: centre crops where the task is
    large; None with --val none. args: data, fold, val, cache.

    Raises:
        UserError: the images are missing, or one is damaged."""
    real = load_real(task, "val", args.fold, args.val, args.data)
    if real is None:
        return None
    return noted(pack(real, task, args.cache, crops=True), task, "validation")


# --- what --source names --------------------------------------------------------------------------

def load_source(args: argparse.Namespace, task: Task) -> Images:
    """The images to train on: `real`, `real:TASK`, an image set, a folder or a list file.

    args: source, data, fold, val, cache; images_per_class, subset_seed and source_labels where the
    command has them.

    Raises:
        UserError: no such images, of other classes, not complete, or one is damaged."""
    source, per_class = str(args.source), getattr(args, "images_per_class", None)
    seed, path = getattr(args, "subset_seed", None), Path(args.source)
    labelled = getattr(args, "source_labels", "task") == "task"
    if seed is not None and (per_class is None or (path / "manifest.json").exists()):
        raise UserError("--subset-seed draws the images of --images-per-class, of real images, "
                        "folders and lists", "leave it out: a set's images are independent draws")
    if (path / "manifest.json").exists():
        images = load_set(path, task, args.cache, per_class)
    else:
        if source == "real":
            images = load_real(task, "train", args.fold, args.val, args.data)
        elif source.startswith("real:"):
            images = other_task(source.removeprefix("real:"), task)
        elif path.is_dir():
            if split_folder(path, "train") and split_folder(path, "val"):
                raise UserError(f"{path} holds images to train on and to evaluate on",
                                f"--source {split_folder(path, 'train')}")
            images = folder_images(path, task, labelled)
        elif path.is_file():
            images = list_images(path, task, args.data, labelled)
        else:
            raise UserError(f"--source {source} does not exist",
                            "an image set, a folder or list file of images, `real`, or a method")
        if per_class is not None:
            images = images.chosen(first_per_class(images.labels, per_class, seed))
        images = pack(images, task, args.cache)
    if not labelled:
        images = dataclasses.replace(images, labels=torch.full_like(images.labels, -1))
    return noted(images, task, "source")


def other_task(name: str, task: Task) -> Images:
    """The real training images of another task at this one's size; their classes are not its own.

    Raises:
        UserError: no such task, or one of large images or other channels."""
    other = get_task(name)
    if task.large or other.large or other.channels != task.channels:
        raise UserError(f"{task.name} takes no images of {name} by name",
                        "small images of the same channels; else --source FOLDER --source-labels "
                        "none")
    images = load_real(other, "train").images
    if other.resolution != task.resolution:
        images = augment.resize(images, task.resolution, task.resolution)
    return Images(images.contiguous(), torch.full((len(images),), -1))


def load_set(folder: Path, task: Task, cache: Path, images_per_class: int | None = None) -> Images:
    """An image set as one array, in the order of its positions; labels are -1 where it is of other
    classes. Each file is compared with its digest when it is packed.

    Args:
        images_per_class: use the first so many of each class (default: all).

    Raises:
        UserError: of other channels, not complete, too few images, or damaged."""
    found = image_set.open_set(folder)
    plan, manifest = found.plan, found.manifest
    if manifest["channels"] != task.channels:
        raise UserError(f"{folder} has {manifest['channels']} channels, {task.name} has "
                        f"{task.channels}", f"--task {manifest['task']}")
    if (images_per_class or 0) > plan.images_per_class:
        raise UserError(f"{folder} has {plan.images_per_class} images per class",
                        "synthesize more, or a smaller --images-per-class")
    keys = [plan.at(p) for p in range(plan.images)]
    label_of, notes = set_labels(manifest, task)
    labels = torch.tensor([label_of[found.known_label(label)] for label, _ in keys])
    digests = digest = None
    if not found.first_edition:
        digests = [row["sha256"] for j in range(plan.shards) for row in found.rows(j)]
        if len(digests) < plan.images:
            raise UserError(f"{folder} is not complete: {len(found.missing())} of {plan.shards} "
                            "shards are missing", "run its synthesize command again")
        digest = found.digest
    image_files = Files([str(folder / plan.path(*key)) for key in keys], task.channels, folder,
                        digests, (manifest["resolution"],) * 2)
    images = pack(Images(image_files, labels, None, digest, manifest["generator"], notes), task,
                  cache)
    count = (images_per_class or plan.images_per_class) * len(plan.classes)
    return images.chosen(slice(count))  # positions run over the classes first


def set_labels(manifest: dict, task: Task) -> tuple[dict[int, int], list[str]]:
    """(label of a set -> the task's, which is -1 where it is not known; notes). Two folders both
    have the task name "folder", so classes are matched by name."""
    classes, names, ours = manifest["classes"], manifest["class_names"], task.class_names
    unknown = dict.fromkeys([*classes, -1], -1)
    if manifest["task"] != task.name:
        return unknown, []
    if names == [ours[c] if c < len(ours) else None for c in classes]:
        return {c: c for c in [*classes, -1]}, []  # also where two share a name, as cranes do
    strange = [name for name in names if name not in ours]
    if strange:
        return unknown, [f"note: the set's labels are not used: {len(strange)} of its classes are "
                         f"none of the task's, first: {strange[0]}"]
    return unknown | {c: ours.index(name) for c, name in zip(classes, names, strict=True)}, [
        "note: the set numbers its classes in another way: labels go by class name"]


def first_per_class(labels: Tensor, per_class: int, seed: int | None = None) -> Tensor:
    """Positions of the first `per_class` images of each class, class by class; with a seed, of the
    first in an order drawn with it, so that fewer images are part of more.

    Raises:
        UserError: a class has fewer, or labels are unknown."""
    if labels.min() < 0:
        raise UserError("--images-per-class needs images with known labels",
                        "leave it out, or a list with labels")
    classes, counts = labels.unique(return_counts=True)
    if counts.min() < per_class:
        raise UserError(f"class {int(classes[counts.argmin()])} has {int(counts.min())} images",
                        f"--images-per-class {int(counts.min())} or fewer")
    chosen = []
    for c in classes.tolist():
        own = (labels == c).nonzero()[:, 0]
        if seed is not None:
            own = own[torch.from_numpy(np.random.default_rng([seed, c]).permutation(len(own)))]
        chosen.append(own[:per_class])
    return torch.cat(chosen)


def noted(images: Images, task: Task, what: str) -> Images:
    """With a note on classes that have no image, where any label is known."""
    counts = torch.bincount(images.labels[images.labels >= 0].cpu(), minlength=task.num_classes)
    empty = (counts == 0).nonzero()[:, 0].tolist()
    if not empty or len(empty) == task.num_classes:
        return images
    note = (f"note: {len(empty)} of {task.num_classes} classes have no {what} image, first: "
            f"{task.class_names[empty[0]]}")
    return dataclasses.replace(images, notes=[*images.notes, note])


# --- folders and lists ----------------------------------------------------------------------------

def folder_images(folder: Path, task: Task, labelled: bool = True) -> Images:
    """The images below a folder, sorted. Labels are those of file names with `class_<label>_`, else
    of the class folders, else -1.

    Raises:
        UserError: no images, or labels of other classes."""
    names, skipped = [], []
    for place, folders, own in os.walk(folder, followlinks=True):
        folders[:] = filter(is_visible, folders)
        for name in filter(is_visible, own):
            image = name.lower().endswith(IMG_EXTENSIONS)
            (names if image else skipped).append(Path(place, name).relative_to(folder))
    if not names:
        raise UserError(f"no images in {folder}", f"files of {', '.join(IMG_EXTENSIONS)}")
    notes = [f"note: {len(skipped)} files in {folder} are no images and were skipped, first: "
             f"{min(skipped)}"] if skipped else []
    names, labels = sorted(names), torch.full((len(names),), -1)
    named = [NAMED_LABEL.match(path.name) for path in names]
    if labelled and all(named):
        labels = in_range([int(match[1]) for match in named], task, f"a file name in {folder}")
    elif labelled and any(len(path.parts) > 1 for path in names):
        index = class_indices({path.parent.parts[:1] for path in names}, task, folder)
        labels = torch.tensor([index[path.parent.parts[:1]] for path in names])
    paths = [str(folder / path) for path in names]
    return Images(Files(paths, task.channels, folder), labels, notes=notes)


def in_range(labels: list[int], task: Task, where: str) -> Tensor:
    """The labels as int64 [N].  Raises UserError: one is no class."""
    for label in labels:
        if not 0 <= label < task.num_classes:
            raise UserError(f"label {label} of {where} is out of range: {task.name} has "
                            f"{task.num_classes} classes, 0 to {task.num_classes - 1}",
                            "distill --source-labels none for images of other classes")
    return torch.tensor(labels, dtype=torch.int64)


def class_indices(found: set[tuple[str, ...]], task: Task, origin: Path
                  ) -> dict[tuple[str, ...], int]:
    """Class folder -> class index. Folders are named by class, by index, or (ImageNet) by WordNet
    id. Folders of ImageNet beside the classes of a part of it have -1.

    Args:
        found: the folder that each image is in as (name,), () = in none.

    Raises:
        UserError: folders of other classes."""
    folders = {folder[0] for folder in found if folder}
    exact = {name: i for i, name in enumerate(task.class_names)}
    if task.wnids and all(map(WNID.fullmatch, folders)):
        index = dict.fromkeys(folders & set(WNIDS), -1)
        index |= {wnid: i for i, wnid in enumerate(task.wnids)}
    elif folders <= exact.keys():  # also where the names are numbers
        index = exact
    elif all(folder.isascii() and folder.isdigit() for folder in folders):
        index = {folder: int(folder) for folder in folders if int(folder) < task.num_classes}
    else:
        index = {simplified(name): i for name, i in exact.items()} | exact
        index |= {folder: index[simplified(folder)] for folder in folders - exact.keys()
                  if simplified(folder) in index}
    strange = sorted(folders - index.keys())
    if strange or () in found:
        what = f"the folder '{strange[0]}'" if strange else "an image beside the class folders"
        raise UserError(f"{origin}: {what} is of no class of {task.name}, which has "
                        f"{', '.join(task.class_names[:3])} ...",
                        "rename the folders; distill --source-labels none if labels do not matter")
    return {(folder,): index[folder] for folder in folders}


def simplified(name: str) -> str:
    """A class name for comparing: letters and digits, lower case."""
    return re.sub(r"[\W_]+", "", name.casefold())


def list_images(path: Path, task: Task, root: Path | None = None, labelled: bool = True,
                need_labels: bool = False) -> Images:
    """A list file: `path` or `path label` per line; labels are at the end, so paths may hold
    spaces. Without one, the label is that of the name (`class_<label>_`) or -1.

    Paths may be relative to the working directory, to the list's folder or its parent, or to
    `root`. Of a path from another machine, the longest end that exists there is taken.

    Raises:
        UserError: a line without an image, its file or its label, with its number."""
    try:
        lines = path.read_text(encoding="utf-8-sig").replace("\\", "/").split("\n")
    except UnicodeDecodeError as error:
        raise UserError(f"the list {path} is no text file") from error
    places = [Path(), path.parent, path.parent.parent, *([root] if root else [])]
    paths, labels = [], []
    for number, line in enumerate(map(str.strip, lines), 1):
        if not line:
            continue
        match = re.fullmatch(r"(.*\S)\s+(-?[0-9]+)", line)
        name, label = match.groups() if match else (line, None)
        if label is None and (named := NAMED_LABEL.match(PurePosixPath(name).name)):
            label = named[1]
        paths.append(located(name, places))
        labels.append(None if label is None else int(label))
        if paths[-1] is None:
            raise UserError(f"{path}, line {number}: no file {name[:200]}",
                            "--data FOLDER that the list's paths start from")
        if (label is None) != (labels[0] is None) or need_labels and label is None:
            raise UserError(f"{path}, line {number} has {'no' if label is None else 'a'} label, "
                            "others not", "`path label` on every line")
    if not paths:
        raise UserError(f"the list {path} is empty")
    known = labelled and labels[0] is not None
    return Images(Files(paths, task.channels, path.parent), in_range(labels, task, str(path))
                  if known else torch.full((len(paths),), -1))


def located(name: str, places: list[Path]) -> str | None:
    """The path of an image of a list, as `list_images` says."""
    parts = PurePosixPath(name).parts
    tries = (place.joinpath(*parts[i:]) for i in range(len(parts)) for place in places)
    return next((str(path) for path in tries if os.path.isfile(path)), None)


# --- packing --------------------------------------------------------------------------------------

def pack(images: Images, task: Task, cache: Path, crops: bool = False) -> Images:
    """Files as one memory map in `cache`, wherever all images then have one size: small images are
    resized to the task's, and with `crops` large ones become centre crops. Large images of several
    sizes stay files.

    Raises:
        UserError: a file is damaged; it is named."""
    source, side = images.images, task.resolution
    if isinstance(source, Tensor):
        return images
    content = key = images.sha256
    if content is None:
        content, key = source.fingerprints(images.labels)
        images = dataclasses.replace(images, sha256=content)
    size = (side, side) if crops or not task.large else source.one_size()
    if size is None:
        return images

    def fitted(i: int) -> Tensor:
        image = source[i]
        if image.shape[1:] == size:
            return image
        if task.large:
            return augment.centre_crops(image[None], side)[0]
        return augment.resize(image[None], side, side)[0]

    shape = (len(source), source.channels, *size)
    key = files.sha256(f"{key} {shape} {crops and task.large}".encode())
    packed = memory_map(Path(cache) / f"{key[:24]}.u8", shape, fitted)
    return dataclasses.replace(images, images=packed)


def memory_map(path: Path, shape: tuple[int, ...], image: Callable[[int], Tensor]) -> Tensor:
    """A uint8 array [N, C, H, W] as a file at `path`, written from image(0), image(1), ... if it is
    not there. Of processes that start together one writes, the others wait."""
    from filelock import FileLock

    path.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{path}.lock"):
        if not path.exists():
            bar, temp = run.progress(shape[0], "read images", "images"), Path(f"{path}.tmp")
            try:
                with open(temp, "wb") as file, ThreadPoolExecutor(DECODERS) as pool:
                    for start in range(0, shape[0], CHUNK):
                        chunk = range(start, min(start + CHUNK, shape[0]))
                        for pixels in pool.map(image, chunk):
                            assert pixels.shape == shape[1:], (pixels.shape, shape)
                            file.write(pixels.contiguous().numpy().tobytes())
                        bar.update(len(chunk))
                os.replace(temp, path)
            finally:
                bar.close()
                temp.unlink(missing_ok=True)
    return torch.from_numpy(np.memmap(path, np.uint8, "c", shape=shape))


def resident(images: Images, device: torch.device) -> Images:
    """On the device where they take less than half of its free memory; labels with them."""
    if device.type == "cpu" or isinstance(images.images, Files) or (
            images.images.numel() >= torch.cuda.mem_get_info(device)[0] // 2):
        return images
    return dataclasses.replace(images, images=images.images.to(device),
                               labels=images.labels.to(device))


def evaluation_crops(images: Images, index: Tensor, task: Task) -> Tensor:
    """Those at the positions int64 [M] as one uint8 tensor [M, C, H, W]; of files their centre
    crops."""
    if isinstance(images.images, Tensor):
        return images.images[index.to(images.images.device)]
    return torch.cat([augment.centre_crops(images.images[i][None], task.resolution)
                      for i in index.tolist()])


# --- batches --------------------------------------------------------------------------------------

class Source:
    """Images in a shuffled order that is a function of (seed, epoch), so that a resumed run needs
    nothing but the step's number.

    Args:
        view: the training view; `self.view` is what is left of it to apply to the batches.
        batch_size: of all ranks together; a multiple of the world size.
        steps_per_epoch: default ceil(N / batch_size), the last batch filled from a second order.
        device: where the loop runs; for a GPU batches are prepared ahead, in pinned memory.
    """

    def __init__(self, images: Images, view: View, batch_size: int, seed: int,
                 steps_per_epoch: int | None = None, device: torch.device | str = "cpu",
                 rank: int = 0, world_size: int = 1):
        assert batch_size % world_size == 0, (batch_size, world_size)
        self.images, self.labels, self.seed = images.images, images.labels, seed
        self.batch_size, self.rank, self.world_size = batch_size, rank, world_size
        self.steps_per_epoch = steps_per_epoch or -(-len(self.labels) // batch_size)
        self.pinned = torch.device(device).type == "cuda" and not self.labels.is_cuda
        self.view = self.cutting = view
        if isinstance(self.images, Files):  # its workers cut and mirror
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
        if isinstance(self.images, Files):
            yield from self.decoded(epoch, ids)
        elif self.pinned:
            yield from one_ahead(self.gather, ids)
        else:
            yield from map(self.gather, ids)

    def gather(self, ids: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The batch of these ids from an array."""
        index = augment.send(ids % len(self.labels), self.labels.device)
        if not self.pinned:  # index_select is on CPUs 3 times faster than [...]
            return torch.index_select(self.images, 0, index), self.labels[index], ids
        images = torch.empty((len(index), *self.images.shape[1:]), dtype=torch.uint8,
                             pin_memory=True)  # of torch's pool: not used again before it was sent
        torch.index_select(self.images, 0, index, out=images)
        return images, self.labels[index].pin_memory(), ids

    def decoded(self, epoch: int, ids: Tensor) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """Batches of files; ids int64 [steps, B/W]. Worker processes decode and crop."""
        cores = (os.cpu_count() or 1) // int(os.environ.get("LOCAL_WORLD_SIZE", 1))
        crops = Crops(self.images, self.labels, self.cutting, self.seed, epoch)
        loader = torch.utils.data.DataLoader(
            crops, batch_sampler=ids.tolist(), num_workers=max(1, min(cores, MAX_WORKERS)),
            collate_fn=collate, pin_memory=self.pinned, generator=torch.Generator())
        for batch in loader:
            if isinstance(batch, int):
                self.images[batch]  # raises what the worker met, an error that names the file
            yield batch


class Crops(torch.utils.data.Dataset):
    """Virtual id -> (training crop uint8 [C, size, size], label, id), or the position of an image
    that cannot be decoded."""

    def __init__(self, images: Files, labels: Tensor, view: View, seed: int, epoch: int):
        self.images, self.labels, self.view, self.seed, self.epoch = (images, labels, view, seed,
                                                                      epoch)

    def __getitem__(self, i: int) -> tuple[Tensor, Tensor, int] | int:
        position = i % len(self.labels)
        try:
            image = self.images[position][None]
        except UserError:
            return position
        crop = self.view.cut(image, torch.tensor([i]), self.seed, self.epoch)[0]
        return crop, self.labels[position], i


def collate(items: list) -> list[Tensor] | int:
    """A batch, or the position of the first image that could not be decoded."""
    bad = [item for item in items if isinstance(item, int)]
    return bad[0] if bad else torch.utils.data.default_collate(items)


def one_ahead(make: Callable, items: Tensor) -> Iterator:
    """make(item) of each in turn; a thread makes the next one while the caller has this one."""
    with ThreadPoolExecutor(1, "gather") as thread:
        coming = None
        for item in items:
            ready, coming = coming, thread.submit(make, item)
            if ready is not None:
                yield ready.result()
        if coming is not None:
            yield coming.result()
