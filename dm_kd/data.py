"""Images as the training loop reads them: real ones, image sets, folders and list files.

    images = load_source(args, task)                     what --source names
    source = Source(images, view, batch_size=256, seed=0)
    for pixels, labels, ids in source.batches(epoch):    uint8 [B, C, H, W], int64 [B], int64 [B]
        x, labels = source.view.train(pixels, labels, ids, seed, epoch, step)

There are two forms. Images of one size are a uint8 array, in memory or in a memory map that is
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
from filelock import FileLock
from PIL import Image
from torch import Tensor
from torchvision.datasets.folder import IMG_EXTENSIONS

from dm_kd import augment, image_set, run
from dm_kd.augment import View
from dm_kd.image_set import read_image
from dm_kd.run import UserError
from dm_kd.tasks import ROOT, WNIDS, Task, get_task, is_visible, split_folder

NAMED_LABEL = re.compile(r"class_([0-9]+)_")  # the original's class_{c}_seed_{k}_num_{i}.png
DECODERS = 8  # threads that pack; Pillow decodes without Python's lock
CHUNK = 256  # images in memory while packing
MAX_WORKERS = 16  # processes that decode files while training


@dataclass(frozen=True)
class Files:
    """Image files of any size, decoded on demand to `channels` (1 or 3). Where they are known,
    digests are their SHA-256, and size the (height, width) of all."""

    paths: list[str]
    channels: int
    digests: list[str] | None = None
    size: tuple[int, int] | None = None

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, i: int) -> Tensor:
        """uint8 [C, h, w].  Raises UserError: not an image, or damaged."""
        return read_image(self.paths[i], self.channels, self.digests and self.digests[i])

    def chosen(self, index: Tensor) -> "Files":
        index = index.tolist()
        return dataclasses.replace(self, paths=[self.paths[i] for i in index],
                                   digests=self.digests and [self.digests[i] for i in index])

    def one_size(self) -> tuple[int, int] | None:
        """(height, width) of all images, from their headers; None where they differ."""
        if self.size:
            return self.size
        first = tuple(self[0].shape[1:])
        for path in self.paths:
            with Image.open(path) as image:
                if (image.height, image.width) != first:
                    return None
        return first

    def fingerprints(self, labels: Tensor) -> tuple[str, str]:
        """SHA-256 of the files' names, sizes and labels, the same for a copy elsewhere; and of
        their paths and times too, which is the key of a packed array."""
        status = [os.stat(path) for path in self.paths]
        root = len(os.path.commonpath([os.path.dirname(path) for path in self.paths]))
        rows = list(zip(self.paths, labels.tolist(), status, strict=True))
        content = "".join(f"{path[root:]}\t{label}\t{s.st_size}\n" for path, label, s in rows)
        times = "".join(f"{path}\t{s.st_mtime_ns}\n" for path, _, s in rows)
        return run.sha256(content.encode()), run.sha256((content + times).encode())


@dataclass(frozen=True)
class Images:
    images: Tensor | Files  # uint8 [N, C, H, W] or files
    labels: Tensor  # int64 [N], -1 = unknown
    groups: Tensor | None = None  # int64 [N], who made each
    sha256: str | None = None  # of files; None for tensors
    generator: dict | None = None  # what a set's manifest says of it
    notes: list[str] = dataclasses.field(default_factory=list)  # lines for the log

    def chosen(self, index: Tensor) -> "Images":
        """Those at the positions int64 [M]."""
        images = (self.images.chosen(index) if isinstance(self.images, Files)
                  else self.images[index])
        return dataclasses.replace(self, images=images, labels=self.labels[index],
                                   groups=None if self.groups is None else self.groups[index])


# --- real images ----------------------------------------------------------------------------------

def load_real(task: Task, split: str, fold: int = 0, val: str = "val", root: Path | None = None
              ) -> Images | None:
    """Real images as they are: split "train", or "val", what --val evaluates on ("val": the
    validation split, "dev": a part of the training images, which then leaves training, "none":
    nothing). root: where the files are (default: true_dataset/).

    Raises:
        UserError: no such fold, or the images are missing."""
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
        except (RuntimeError, OSError) as error:  # torchvision's, or no network
            raise UserError(f"{task.name} is not in {root or ROOT}: {error}",
                            "see true_dataset/README.md") from error
        images = Images(Files(pixels, task.channels) if isinstance(pixels, list) else pixels,
                        labels, groups)
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
    evaluates on a fifth of the training groups instead, which then leave training."""
    from sklearn.model_selection import GroupKFold

    groups = groups.numpy()
    train, evaluated = list(GroupKFold(folds).split(groups, groups=groups))[fold]
    if val == "dev":
        inner, dev = next(iter(GroupKFold(folds).split(train, groups=groups[train])))
        train, evaluated = train[inner], train[dev]
    return torch.from_numpy(train), torch.from_numpy(evaluated)


def class_folders(task: Task, part: str, val: str, root: Path | None) -> Images:
    """A split from class folders, or from a `path label` list with ImageNet's labels.

    Raises:
        UserError: not there, other classes, or training and validation images are the same."""
    root = root or ROOT / "imagenet"
    lists = [root, root / f"imagenet_{part}.txt", root.parent / f"imagenet_{part}.txt"]
    place = next((path for path in lists if path.is_file()), None)
    if place is None and root.is_dir():
        splits = {name: split_folder(root, name) for name in ("train", "val")}
        place = splits[part] if any(splits.values()) else root
    if place is None:
        raise UserError(f"no {part} images of {task.name} in {root}",
                        f"--data FOLDER with {part}/<class>/ or imagenet_{part}.txt in it, or "
                        "--val none; torchvision.datasets.ImageNet unpacks ImageNet's archives")
    if place == root and (part, val) == ("train", "val"):
        raise UserError(f"{root} would be both trained on and evaluated on",
                        "--data FOLDER with train/ and val/ in it; --val dev or none")
    if place.is_dir():
        images = folder_images(place, task)
    else:
        images = list_images(place, get_task("imagenet") if task.wnids else task, root)
        if task.wnids:
            ours = torch.full((len(WNIDS),), -1)
            ours[torch.tensor(task.imagenet_classes)] = torch.arange(task.num_classes)
            images = dataclasses.replace(images, labels=ours[images.labels])
    if images.labels.max() < 0:
        raise UserError(f"{place} has no image of a class of {task.name}", "<class>/IMAGE")
    return images.chosen((images.labels >= 0).nonzero()[:, 0])  # not those of other classes


def load_validation(task: Task, args: argparse.Namespace) -> Images | None:
    """What --val evaluates on, as a uint8 tensor [N, C, size, size], centre crops where the task is
    large; None with --val none. args: data, fold, val, cache.

    Raises:
        UserError: the images are missing, or one is damaged."""
    real = load_real(task, "val", args.fold, args.val, args.data)
    return real and with_note(pack(real, task, args.cache, crops=True), task, "validation")


# --- what --source names --------------------------------------------------------------------------

def load_source(args: argparse.Namespace, task: Task) -> Images:
    """The images to train on: `real`, `real:TASK`, an image set, a folder or a list file.

    args: source, data, fold, val, cache, and where the command has them images_per_class,
    subset_seed and source_labels.

    Raises:
        UserError: no such images, of other classes, not complete, or one is damaged."""
    source, path = str(args.source), Path(args.source)
    per_class, seed = getattr(args, "images_per_class", None), getattr(args, "subset_seed", None)
    labelled = getattr(args, "source_labels", "task") == "task"
    is_set = (path / "manifest.json").exists()
    if seed is not None and (per_class is None or is_set):
        raise UserError("--subset-seed draws the --images-per-class of real images, folders and "
                        "lists", "leave it out: a set's images are independent draws")
    if source == "real":
        images = load_real(task, "train", args.fold, args.val, args.data)
    elif source.startswith("real:"):
        images = other_task(source.removeprefix("real:"), task)
    elif is_set:
        images = load_set(path, task, args.cache, per_class)
    elif path.is_dir():
        if split_folder(path, "train") and split_folder(path, "val"):
            raise UserError(f"{path} holds images to train on and images to evaluate on",
                            f"--source {split_folder(path, 'train')}")
        images = folder_images(path, task, labelled)
    elif path.is_file():
        images = list_images(path, task, args.data, labelled, False)
    else:
        raise UserError(f"--source {source} does not exist",
                        "an image set, a folder or list file of images, `real`, or a method")
    if per_class is not None and not is_set:
        images = images.chosen(first_per_class(images.labels, per_class, seed))
    if not labelled:
        images = dataclasses.replace(images, labels=torch.full_like(images.labels, -1))
    return with_note(pack(images, task, args.cache), task, "source")


def other_task(name: str, task: Task) -> Images:
    """The real training images of another task at this one's size; their classes are not its own.

    Raises:
        UserError: no such task, or one of large images or other channels."""
    other = get_task(name)
    if task.large or other.large or other.channels != task.channels:
        raise UserError(f"--source real:{name} needs small images with {task.channels} channels",
                        "--source FOLDER --source-labels none")
    images = load_real(other, "train").images
    if other.resolution != task.resolution:
        images = augment.resize(images, task.resolution, task.resolution).contiguous()
    return Images(images, torch.full((len(images),), -1))


def load_set(folder: Path, task: Task, cache: Path, images_per_class: int | None = None) -> Images:
    """An image set as one array, in the order of its positions; labels are -1 where it is of other
    classes. Each file is compared with its digest when it is packed. images_per_class: of each
    class the first so many (default: all).

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
    paths = [str(folder / plan.path(*key)) for key in keys]
    images = Images(Files(paths, task.channels, digests, (manifest["resolution"],) * 2), labels,
                    None, digest, manifest["generator"], notes)
    count = (images_per_class or plan.images_per_class) * len(plan.classes)
    return pack(images, task, cache).chosen(slice(count))  # positions run over the classes first


def set_labels(manifest: dict, task: Task) -> tuple[dict[int, int], list[str]]:
    """(label in a set -> the task's, or -1; notes). Two folders are both the task "folder", so
    classes are matched by name."""
    classes, names, ours = manifest["classes"], manifest["class_names"], task.class_names
    same = names == [ours[c] if c < len(ours) else None for c in classes]
    if manifest["task"] == task.name and same:  # also where two share a name, as ImageNet's cranes
        return {c: c for c in [*classes, -1]}, []
    unknown = dict.fromkeys([*classes, -1], -1)
    strange = [name for name in names if name not in ours]
    if manifest["task"] != task.name or strange:
        return unknown, [f"note: labels of the set are not used: it is of {manifest['task']} and "
                         f"has {len(strange)} classes that {task.name} has not"]
    return unknown | {c: ours.index(name) for c, name in zip(classes, names, strict=True)}, [
        "note: the set numbers its classes in another way: labels go by class name"]


def first_per_class(labels: Tensor, per_class: int, seed: int | None = None) -> Tensor:
    """Positions of the first `per_class` images of each class, class by class; with a seed, of the
    first in an order drawn with it, so that fewer images are part of more.

    Raises:
        UserError: a class has fewer, or labels are unknown."""
    classes, counts = labels.unique(return_counts=True)
    if labels.min() < 0 or counts.min() < per_class:
        raise UserError("--images-per-class needs images with labels" if labels.min() < 0 else
                        f"class {classes[counts.argmin()]} has {counts.min()} images",
                        f"--images-per-class {counts.min()} or fewer")
    chosen = []
    for c in classes.tolist():
        own = (labels == c).nonzero()[:, 0]
        if seed is not None:
            own = own[torch.from_numpy(np.random.default_rng([seed, c]).permutation(len(own)))]
        chosen.append(own[:per_class])
    return torch.cat(chosen)


def with_note(images: Images, task: Task, what: str) -> Images:
    """The images with a note on the classes that have none, where any label is known."""
    counts = torch.bincount(images.labels[images.labels >= 0], minlength=task.num_classes)
    empty = (counts == 0).nonzero()[:, 0].tolist()
    if not 0 < len(empty) < task.num_classes:
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
    paths, skipped = [], []
    for place, folders, names in os.walk(folder, followlinks=True):
        folders[:] = filter(is_visible, folders)
        for name in filter(is_visible, names):
            image = name.lower().endswith(IMG_EXTENSIONS)
            (paths if image else skipped).append(Path(place, name).relative_to(folder))
    if not paths:
        raise UserError(f"no images in {folder}", f"files of {', '.join(IMG_EXTENSIONS)}")
    notes = [f"note: {len(skipped)} files in {folder} are no images and were skipped, first: "
             f"{min(skipped)}"] if skipped else []
    paths, labels = sorted(paths), torch.full((len(paths),), -1)
    named = [NAMED_LABEL.match(path.name) for path in paths]
    beside = [path for path in paths if len(path.parts) == 1]
    if labelled and all(named):
        labels = in_range([int(match[1]) for match in named], task, folder)
    elif labelled and len(beside) < len(paths):
        if beside:
            raise UserError(f"{folder / beside[0]} is in no class folder")
        index = class_indices({path.parts[0] for path in paths}, task, folder)
        labels = torch.tensor([index[path.parts[0]] for path in paths])
    return Images(Files([str(folder / path) for path in paths], task.channels), labels,
                  notes=notes)


def in_range(labels: list[int], task: Task, where: Path) -> Tensor:
    """The labels as int64 [N].  Raises UserError: one is no class."""
    wrong = next((label for label in labels if not 0 <= label < task.num_classes), None)
    if wrong is not None:
        raise UserError(f"{where}: label {wrong} is out of range: {task.name} has classes 0 to "
                        f"{task.num_classes - 1}",
                        "distill --source-labels none for images of other classes")
    return torch.tensor(labels, dtype=torch.int64)


def class_indices(folders: set[str], task: Task, where: Path) -> dict[str, int]:
    """Class folder -> class index. Folders are named by class, by index, or (ImageNet) by WordNet
    id. Folders of ImageNet beside the classes of a part of it have -1.

    Raises:
        UserError: one is no class."""
    index = {name: i for i, name in enumerate(task.class_names)}
    if task.wnids and folders <= set(WNIDS):
        index = dict.fromkeys(WNIDS, -1) | {wnid: i for i, wnid in enumerate(task.wnids)}
    elif not folders <= index.keys() and all(name.isdecimal() for name in folders):
        index = {name: int(name) for name in folders if int(name) < task.num_classes}
    else:
        simple = {simplified(name): i for name, i in index.items()}
        index |= {name: simple[simplified(name)] for name in folders - index.keys()
                  if simplified(name) in simple}
    if strange := sorted(folders - index.keys()):
        raise UserError(f"{where}/{strange[0]} is no class of {task.name}, which has "
                        f"{', '.join(task.class_names[:3])} ...",
                        "rename the folders; distill --source-labels none if labels do not matter")
    return index


def simplified(name: str) -> str:
    """A class name for comparing: letters and digits, lower case."""
    return re.sub(r"[\W_]+", "", name.casefold())


def list_images(path: Path, task: Task, root: Path | None = None, labelled: bool = True,
                need_labels: bool = True) -> Images:
    """A list file: `path` or `path label` per line; labels are at the end, so paths may hold
    spaces. Without one, the label is that of the name (`class_<label>_`) or -1.

    Paths may be relative to the working directory, to the list's folder or its parent, or to
    `root`. Of a path from another machine, the longest end that exists there is taken.

    Raises:
        UserError: a line without its file or its label, with its number."""
    places = [Path(), path.parent, path.parent.parent, *([root] if root else [])]
    lines = path.read_text(encoding="utf-8-sig", errors="replace").replace("\\", "/").split("\n")
    paths, labels = [], []
    for number, line in enumerate(map(str.strip, lines), 1):
        if not line:
            continue
        match = re.fullmatch(r"(.*\S)\s+(-?[0-9]+)", line)
        name, label = match.groups() if match else (line, None)
        named = NAMED_LABEL.match(PurePosixPath(name).name)
        label = named[1] if named and label is None else label
        parts = PurePosixPath(name).parts
        tries = (place.joinpath(*parts[i:]) for i in range(len(parts)) for place in places)
        file = next((str(file) for file in tries if os.path.isfile(file)), None)
        if file is None:
            raise UserError(f"{path}, line {number}: no file {name[:200]}",
                            "--data FOLDER that the list's paths start from")
        if label is None and (need_labels or any(labels)) or label and None in labels[-1:]:
            raise UserError(f"{path}, line {number}: labels on some lines only",
                            "`path label` on every line")
        paths.append(file)
        labels.append(label)
    if not paths:
        raise UserError(f"the list {path} is empty")
    known = labelled and labels[0] is not None
    return Images(Files(paths, task.channels), in_range(list(map(int, labels)), task, path)
                  if known else torch.full((len(paths),), -1))


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
    key = images.sha256
    if key is None:
        content, key = source.fingerprints(images.labels)
        images = dataclasses.replace(images, sha256=content)
    size = (side, side) if crops or not task.large else source.one_size()
    if size is None:
        return images

    def fitted(i: int) -> Tensor:
        image = source[i][None]
        if image.shape[2:] != size:
            image = (augment.centre_crops(image, side) if task.large else
                     augment.resize(image, side, side))
        return image[0]

    shape = (len(source), source.channels, *size)
    key = run.sha256(f"{key} {shape} {crops and task.large}".encode())
    array = memory_map(Path(cache) / f"{key[:24]}.u8", shape, fitted)
    return dataclasses.replace(images, images=array)


def memory_map(path: Path, shape: tuple[int, ...], image: Callable[[int], Tensor]) -> Tensor:
    """A uint8 array [N, C, H, W] in a file, made of image(0), image(1), ... if it is not there. Of
    processes that start together one writes, the others wait. What the caller writes into the array
    does not reach the file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{path}.lock"):
        if not path.exists():
            bar = run.progress(shape[0], "read images", "images")
            temp = path.with_suffix(".tmp")
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
                temp.unlink(missing_ok=True)
                bar.close()
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
        if isinstance(self.images, Files):  # the workers cut and mirror
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


@dataclass(frozen=True)
class Crops(torch.utils.data.Dataset):
    """Virtual id -> (training crop uint8 [C, size, size], label, id), or the position of an image
    that cannot be decoded."""

    images: Files
    labels: Tensor
    view: View
    seed: int
    epoch: int

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
