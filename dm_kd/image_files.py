"""Image files as users have them: a list, a folder or a zip archive, with or without labels.

    files = image_files.find(Path("syn_dataset/s2_st100_200k.txt"), task.class_names, 3)
    files[torch.tensor([0, 7])]     two decoded images, uint8 [C, h, w] each

Lists are the original DM-KD's (a path per line, the label in `class_<label>_`) or hold `path label`
lines. Nothing is unpacked: an archive's members are read where they are.
"""

import contextlib
import io
import os
import re
import struct
import threading
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path, PurePosixPath

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from dm_kd import files
from dm_kd.errors import DamagedError, UserError

MAX_PIXELS = 64_000_000  # of one image; more is taken for a decompression bomb
MAX_ASPECT = 100  # of an image's sides
MAX_BYTES = 256_000_000  # of one image's file
SUFFIXES = (".png", ".jpg", ".jpeg")
NAMED_LABEL = re.compile(r"class_([0-9]+)_")  # the original's class_{c}_seed_{k}_num_{i}.png
WNID = re.compile(r"n\d{8}")  # a WordNet id
HEAD_BYTES = 65_536  # of a file, which hold the size of nearly every image
DECODERS = 8  # threads: Pillow decodes without Python's lock
BAD_ZIP = (zipfile.BadZipFile, zlib.error, struct.error, OSError, EOFError, ValueError,
           RuntimeError, OverflowError, MemoryError)  # what damage ends in
Image.MAX_IMAGE_PIXELS = None  # `opened` refuses what Pillow, above its own limit, only warns of


class ImageFiles:
    """Images on disk of any size, decoded when they are asked for.

    Args:
        names: what identifies each, for messages and `read`.
        labels: int64 [N], -1 = unknown.
        place: where they lie: `read(name, limit)` gives a file's first bytes, or all of them;
            `stamp(name)` changes with them, `mark(name)` too but for a move or copy, `where(name)`
            is what a message shows.
        channels: 1 or 3, to which every image is converted.
    """

    def __init__(self, names: list[str], labels: Tensor, place: "Folder | Archive",
                 channels: int):
        assert len(names) == len(labels), (len(names), len(labels))
        self.names, self.labels, self.place, self.channels = names, labels, place, channels

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index: Tensor) -> list[Tensor]:
        """uint8 [C, h, w] of each position.

        Raises:
            DamagedError: a file is no image, or truncated; it is named."""
        return self.map(self.decode, index.tolist())

    def decode(self, position: int) -> Tensor:
        name = self.names[position]
        return read_image(self.place.read(name), self.place.where(name), self.channels)

    def size(self, position: int) -> tuple[int, int]:
        """(height, width), from the file's header: its first bytes, unless that is longer."""
        with contextlib.suppress(DamagedError):  # or the file is damaged: then all of it is read
            return self._size(self.names[position], HEAD_BYTES)
        return self._size(self.names[position], None)

    def _size(self, name: str, limit: int | None) -> tuple[int, int]:
        with opened(self.place.read(name, limit), self.place.where(name)) as image:
            return image.height, image.width

    def sizes(self) -> list[tuple[int, int]]:
        """(height, width) of all; finds missing, empty and foreign files before any computing."""
        return self.map(self.size, range(len(self)))

    def map(self, function: Callable, positions: Iterable[int]) -> list:
        with ThreadPoolExecutor(DECODERS) as pool:
            return list(pool.map(function, positions))

    @property
    def fingerprint(self) -> str:
        """SHA-256 of names and labels, and of each file's size and time of change: whether a
        packed copy is still theirs."""
        lines = (f"{name}\t{label}\t{self.place.stamp(name)}\n" for name, label in
                 zip(self.names, self.labels.tolist(), strict=True))
        return files.sha256("".join(lines).encode())

    @property
    def identity(self) -> str:
        """SHA-256 of names, labels and each file's size (in an archive: checksum): the same for a
        copy in another place."""
        root = os.path.commonpath(self.names) if os.path.isabs(self.names[0]) else ""
        lines = (f"{name.removeprefix(root)}\t{label}\t{self.place.mark(name)}\n" for name, label
                 in zip(self.names, self.labels.tolist(), strict=True))
        return files.sha256("".join(lines).encode())

    def chosen(self, index: Tensor, labels: Tensor | None = None) -> "ImageFiles":
        """Those at the positions `index`, with other labels if given."""
        return ImageFiles([self.names[i] for i in index.tolist()],
                          self.labels[index] if labels is None else labels,
                          self.place, self.channels)


# --- one image ------------------------------------------------------------------------------------

@contextlib.contextmanager
def opened(data: bytes, name: object) -> Iterator[Image.Image]:
    """An image file's bytes as a Pillow image; what is wrong with them is a DamagedError."""
    try:
        if not data:
            raise ValueError("the file is empty")
        with Image.open(io.BytesIO(data), formats=("PNG", "JPEG")) as image:
            if image.width * image.height > MAX_PIXELS:
                raise DamagedError(
                    f"the image has {image.width} x {image.height} pixels; "
                    f"{MAX_PIXELS // 10 ** 6} million are allowed", file=name)
            if max(image.size) > MAX_ASPECT * min(image.size):  # resizing the short side multiplies
                raise DamagedError(f"the image has {image.width} x {image.height} pixels: one side "
                                   f"is more than {MAX_ASPECT} times the other", file=name)
            yield image
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        found = ("no such image at its start" if isinstance(error, UnidentifiedImageError)
                 else str(error)[:100])  # Pillow names its own buffer
        raise DamagedError("the image is damaged or is no PNG or JPEG", file=name,
                           found=found) from error


def read_image(data: bytes, name: object, channels: int | None = None) -> Tensor:
    """PNG or JPEG bytes -> uint8 [C, H, W]; C is 1 for grey files and 3 for others, or `channels`.
    16 bits become 8; palettes and CMYK become RGB; transparency is dropped.

    Raises:
        DamagedError: not such an image, truncated, or larger than 64 megapixels.
    """
    with opened(data, name) as image:
        image.info.pop("transparency", None)  # Pillow warns of some kinds of it
        if image.mode.startswith("I"):  # 16 bits, which Pillow would clip at 255
            image = Image.fromarray((np.array(image) >> 8).astype(np.uint8))
        grey = channels == 1 or channels is None and image.mode in ("L", "1")
        array = np.array(image.convert("L" if grey else "RGB"))
    return torch.from_numpy(array[None] if grey else array.transpose(2, 0, 1).copy())


# --- packed copies --------------------------------------------------------------------------------

def packed(cache: Path, key: str, shape: tuple[int, ...], images: Callable[[], Iterable[Tensor]],
           what: str) -> tuple[Tensor, str]:
    """Images of one size as a uint8 memory map [N, C, H, W], and the SHA-256 of its bytes.

    Built once per key; processes that come meanwhile wait for it, and those that come later read
    it side by side. A damaged map is made again.

    Args:
        key: changes with whatever the images are made of.
        images: () -> the N images in order, uint8 [C, H, W].

    Raises:
        DamagedError: an image is bad; nothing is left behind.
        StorageError: no space for the map.
    """
    stem = Path(cache) / key[:24]
    data, done = stem.with_suffix(".u8"), stem.with_suffix(".json")

    def write(temp: Path) -> None:
        with open(temp, "wb") as file:
            for image in images():
                assert image.shape == shape[1:], (image.shape, shape)
                file.write(image.contiguous().numpy().tobytes())

    digest = _whole(data, done)  # without the lock: a map is only ever replaced by a whole one
    if digest is None:
        with files.locked(stem.with_suffix(".lock"), str(data), blocking=True):
            digest = _whole(data, done)  # made by another process meanwhile
            if digest is None:
                done.unlink(missing_ok=True)
                files.remove_stale_temps(data.parent, stem.name)
                files.check_free_space(data.parent, int(np.prod(shape)), "the packed cache")
                files.atomically(write, data)
                digest = files.sha256_file(data)
                files.write_json(done, {"of": what, "shape": list(shape), "sha256": digest})
    return torch.from_numpy(np.memmap(data, np.uint8, "c", shape=shape)), digest


def _whole(data: Path, done: Path) -> str | None:
    """The digest of a packed copy that is as its card says, or None."""
    try:
        digest = files.sha256_file(data)
        return digest if files.read_json(done).get("sha256") == digest else None
    except (OSError, DamagedError):
        return None


# --- what users bring -----------------------------------------------------------------------------

def find(path: Path, class_names: tuple[str, ...], channels: int, labelled: bool = True,
         root: Path | None = None, wnids: tuple[str, ...] | None = None) -> ImageFiles:
    """The images of a list file, a folder or a zip archive.

    Labels come from the lines of a list, else from file names with `class_<label>_`, else from the
    folder that an image lies in (matched to the classes by `class_indices`), else they are -1.

    Args:
        class_names: of the task, in index order.
        labelled: False = all labels are -1 (images of another label space).
        root: one more place that a list's paths may be relative to.
        wnids: as in `class_indices`.

    Raises:
        UserError: nothing there, no images, both train/ and val/, labels of other classes.
        DamagedError: a malformed line, or a damaged archive.
    """
    path = files.must_exist(path, "--source or --data", "images")
    if path.is_dir():
        names = images_below(path)
        place = Folder(path)
    elif path.suffix.lower() == ".zip" or zipfile.is_zipfile(path):
        place = Archive(path)
        names = place.names()
    elif path.suffix.lower() in (".txt", ".csv", ".lst"):
        return read_list(path, class_names, channels, labelled, root)
    else:
        raise UserError("not a folder, a .txt list or a zip archive", path=path)
    if not names:
        raise UserError("no PNG or JPEG images in it", path=path)
    if {"train", "val"} <= {name.split("/")[0] for name in names if name.count("/") > 1}:
        raise UserError("it holds train/ and val/: images to learn from and to be judged on",
                        path=path, hint=f"{path}/train, as a folder or list of its own")
    labels = torch.full((len(names),), -1)
    if labelled:
        labels = labels_of(names, class_names, path, wnids)
    return ImageFiles(names, labels, place, channels)


def images_below(folder: Path) -> list[str]:
    """The relative paths of the images in a folder, sorted. Links are followed (of ImageNet's class
    folders, a part is often linked), but into no folder twice on a path."""
    found, above = [], {folder: {os.path.realpath(folder)}}
    for place, folders, names in os.walk(folder, followlinks=True):
        here = above.pop(Path(place))
        for name in list(folders):
            real = os.path.realpath(Path(place) / name)
            if real in here:
                folders.remove(name)  # a link back
            else:
                above[Path(place) / name] = here | {real}
        found += [Path(place) / name for name in names
                  if Path(name).suffix.lower() in SUFFIXES]
    names = (p.relative_to(folder).as_posix() for p in sorted(found) if p.is_file())
    return [name for name in names if not hidden(name)]


def hidden(name: str) -> bool:
    """Whether a relative path is a system's own: .thumbnails/, Finder's __MACOSX/ and ._1.png."""
    return any(re.match(r"\.[^./]|__MACOSX$", part) for part in name.split("/"))


class Folder:
    """Files by their paths relative to a folder (or absolute)."""

    def __init__(self, path: Path):
        self.path = path

    def where(self, name: str) -> Path:
        return self.path / name

    def read(self, name: str, limit: int | None = None) -> bytes:
        """A file's bytes, or the first of them."""
        path = self.path / name
        try:
            size = path.stat().st_size
            if size > MAX_BYTES:
                raise DamagedError(f"the image file has {size / 1e6:.0f} MB", file=path)
            with open(path, "rb") as file:
                return file.read(limit)
        except OSError as error:
            raise UserError("cannot read an image", file=path, found=error.strerror) from error

    def stamp(self, name: str) -> str:
        status = self.status(name)
        return f"{self.path / name}\t{status.st_size}\t{status.st_mtime_ns}"

    def mark(self, name: str) -> str:
        return str(self.status(name).st_size)

    def status(self, name: str) -> os.stat_result:
        try:
            return (self.path / name).stat()
        except OSError as error:
            raise UserError("cannot read an image", file=self.path / name,
                            found=error.strerror) from error


class Archive:
    """A zip archive that is read in place: nothing is written, whatever its members are called."""

    def __init__(self, path: Path):
        self.path, self.lock = path, threading.Lock()
        try:
            self.zip = zipfile.ZipFile(path)
        except BAD_ZIP as error:
            raise DamagedError("the zip archive is damaged", file=path,
                               found=str(error)[:100]) from error

    def where(self, name: str) -> str:
        return f"{self.path}: {name}"

    def names(self) -> list[str]:
        return sorted({i.filename for i in self.zip.infolist()
                       if not i.is_dir() and PurePosixPath(i.filename).suffix.lower() in SUFFIXES
                       and not hidden(i.filename)})

    def stamp(self, name: str) -> str:
        return f"{self.path}\t{self.mark(name)}"

    def mark(self, name: str) -> str:
        return str(self.zip.getinfo(name).CRC)

    def read(self, name: str, limit: int | None = None) -> bytes:
        """A member's bytes, or the first of them."""
        try:
            with self.lock:
                info = self.zip.getinfo(name)
                if info.flag_bits & 1:
                    raise UserError("the zip archive is encrypted", file=self.path, member=name,
                                    hint="unpack it, and give the folder")
                if info.file_size > MAX_BYTES:
                    raise DamagedError(f"a member has {info.file_size / 1e6:.0f} MB unpacked",
                                       file=self.path, member=name)
                if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
                    raise DamagedError("a member is packed in a way that is not read here",
                                       file=self.path, member=name,
                                       hint="a zip archive with the usual compression (deflate)")
                with self.zip.open(info) as file:
                    # a number of bytes, which keeps a bomb from unpacking
                    return file.read(limit or info.file_size + 1)
        except BAD_ZIP as error:
            raise DamagedError("a member of the zip archive is damaged", file=self.path,
                               member=name, found=str(error)[:100]) from error


def labels_of(names: list[str], class_names: tuple[str, ...], origin: Path,
              wnids: tuple[str, ...] | None = None) -> Tensor:
    """Labels int64 [N] from file names with `class_<label>_`, else from folders, else -1."""
    named = [NAMED_LABEL.match(PurePosixPath(name).name) for name in names]
    if all(named):
        return in_range([int(m[1][:18]) for m in named], class_names, origin, names)
    folders = [PurePosixPath(name).parent.name for name in names]
    if not any(folders):
        return torch.full((len(names),), -1)
    index = class_indices(set(folders), class_names, origin, wnids)
    return torch.tensor([index[folder] for folder in folders])


def in_range(labels: list[int], class_names: tuple[str, ...], origin: Path,
             names: list[str], need_labels: bool = False) -> Tensor:
    """The labels as int64 [N]. need_labels: to go without them is no way out.

    Raises:
        UserError: one is no index of `class_names`; its image is named."""
    for label, name in zip(labels, names, strict=True):
        if not 0 <= label < len(class_names):
            hint = "the right --task" if need_labels else (
                "the right --task; distill --source-labels none if the images are of other "
                "classes")
            if min(labels) == 1 and max(labels) == len(class_names):
                hint = f"labels from 0 to {max(labels) - 1}: these begin with 1"
                if len(class_names) == 1000:
                    hint += ("; if they are the devkit's ids, their order is another one too: the "
                             "labels wanted are places in the sorted WordNet ids")
            raise UserError(f"label {label} is out of range: the task has {len(class_names)} "
                            "classes", path=origin, image=name, hint=hint)
    return torch.tensor(labels, dtype=torch.int64)


def class_indices(folders: set[str], class_names: tuple[str, ...], origin: Path,
                  wnids: tuple[str, ...] | None = None) -> dict[str, int]:
    """Folder name -> class index. Folders are named by class, by index, or (ImageNet) by WordNet
    id; sorting the names as text would put 10 before 2.

    Args:
        wnids: the classes' WordNet ids in index order, where only some of ImageNet's are used;
            other folders then get -1. Without them only ImageNet's thousand have ids.

    Raises:
        UserError: folders of other classes, or some missing where only their number tells the
            order (WordNet ids)."""
    exact = {name: i for i, name in enumerate(class_names)}
    if "" in folders:
        raise UserError("images lie beside the folders of the classes", path=origin,
                        hint="move them into the folder of their class; distill --source-labels "
                             "none if labels do not matter")
    if wnids is None and folders <= exact.keys():  # also where the names are numbers or ids
        return {f: exact[f] for f in folders}
    if (wnids or len(class_names) == 1000) and all(WNID.fullmatch(f) for f in folders):
        return _wordnet_indices(folders, class_names, origin, wnids)
    if all(f.isascii() and f.isdigit() for f in folders):
        indices = {f: int(f[:18]) for f in folders}
    else:
        known = {_plain(name): i for i, name in enumerate(class_names)}
        indices = {f: exact.get(f, known.get(_plain(f), -1)) for f in folders}
    strange = sorted(f for f, i in indices.items() if not 0 <= i < len(class_names))
    if strange:
        raise UserError(f"folder '{strange[0]}' is no class of the task "
                        f"({len(strange)} of {len(folders)} are not)", path=origin,
                        found=", ".join(sorted(folders)[:4]),
                        expected=", ".join(class_names[:4]) + ", or 0, 1, 2 ...",
                        hint="rename the folders; distill --source-labels none if labels do not "
                             "matter")
    return indices


def _wordnet_indices(folders: set[str], class_names: tuple[str, ...], origin: Path,
                     wnids: tuple[str, ...] | None) -> dict[str, int]:
    order = sorted(folders) if wnids is None else list(wnids)
    missing = len(class_names) - len(folders & set(order))
    if missing:
        first = next((w for w in order if w not in folders), "unknown which")
        raise UserError(f"{abs(missing)} classes {'are missing' if missing > 0 else 'too many'}: "
                        f"{len(folders)} WordNet folders, the task has {len(class_names)}",
                        path=origin, **({"first": first} if wnids else {}),
                        hint="WordNet ids give indices only when every class has its folder")
    return {**dict.fromkeys(folders, -1), **{w: i for i, w in enumerate(order)}}


def _plain(name: str) -> str:
    """A class name for comparing: letters and digits, lower case."""
    return re.sub(r"[\W_]+", "", name.casefold())


# --- list files -----------------------------------------------------------------------------------

def read_list(path: Path, class_names: tuple[str, ...], channels: int, labelled: bool = True,
              root: Path | None = None, need_labels: bool = False) -> ImageFiles:
    """A list: `path` or `path label` per line; labels are at the end, so paths may hold spaces.
    Without labels those of the images' folders count, where these are the task's classes, else -1.
    Blank lines, a byte-order mark, CRLF and backslashes are fine. Paths may be relative to the
    working directory, to the list's folder or its parent, or to `root`; else the base name is
    looked for below the list's folder and `root`.

    Raises:
        DamagedError: a line without a label where others have one (or need_labels); no image name.
        UserError: a label out of range, no file for a line.
    """
    lines = parse_list(path, need_labels)
    places = Places([Path.cwd(), path.parent, path.parent.parent, *([root] if root else [])],
                    [path.parent, *([root] if root else [])])
    names = [places.find(name, path, number) for number, name, _ in lines]
    labels = [label for _, _, label in lines]
    if not labelled:
        labels = torch.full((len(names),), -1)
    elif None in labels:
        labels = folder_labels([name for _, name, _ in lines], class_names, path)
    else:
        labels = in_range(labels, class_names, path, names, need_labels)
    return ImageFiles(names, labels, Folder(Path("/")), channels)


def folder_labels(names: list[str], class_names: tuple[str, ...], origin: Path) -> Tensor:
    """Labels int64 [N] from the last folder of each path, all -1 where one is no class."""
    folders = [PurePosixPath(name).parent.name for name in names]
    try:
        index = class_indices(set(folders), class_names, origin)
    except UserError:
        return torch.full((len(names),), -1)
    return torch.tensor([index[folder] for folder in folders])


def parse_list(path: Path, need_labels: bool) -> list[tuple[int, str, int | None]]:
    """(line number, image path, label or None) of each line; a list has labels on all or none."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (UnicodeDecodeError, OSError) as error:
        raise DamagedError("not a text file", file=path, found=str(error)[:100]) from error
    lines = []
    for number, line in enumerate(text.split("\n"), 1):
        line = line.strip().replace("\\", "/")
        if not line:
            continue
        name, _, last = line.replace("\t", " ").rpartition(" ")
        if name and re.fullmatch(r"-?[0-9]+", last):
            name = line[:len(name)].rstrip()
        else:
            name, last = line, None
        if PurePosixPath(name).suffix.lower() not in SUFFIXES or "\0" in name:
            raise DamagedError(f"line {number} names no PNG or JPEG image", file=path,
                               found=line[:80], hint="a path, or a path and a label, per line")
        if last is None and (match := NAMED_LABEL.match(PurePosixPath(name).name)):
            last = match[1]
        lines.append((number, name, None if last is None else int(last[:18])))
        bare = [entry for entry in (lines[0], lines[-1]) if entry[2] is None]
        if bare and (need_labels or len(bare) == 1 and len(lines) > 1):
            raise DamagedError(f"line {bare[0][0]} has no label", file=path, found=bare[0][1][:80],
                               hint="`path label` on every line")
    if not lines:
        raise UserError("the list is empty", file=path)
    return lines


class Places:
    """Where a list's relative paths lead: the place that held the last one is tried first."""

    def __init__(self, places: list[Path], below: list[Path]):
        self.places, self.below, self.by_name = [p.absolute() for p in places], below, None

    def find(self, name: str, origin: Path, number: int) -> str:
        """The absolute path of an image.

        Raises:
            UserError: it is nowhere; the places are named."""
        for i, place in enumerate(self.places):
            if os.path.isfile(place / name):  # Path.is_file raises for a name that is too long
                self.places.insert(0, self.places.pop(i))
                return str(place / name)
        if self.by_name is None:
            self.by_name = {}
            for path in dict.fromkeys(folder.resolve() / image for folder in self.below
                                      for image in images_below(folder)):
                self.by_name.setdefault(path.name, []).append(path)
        found = self.by_name.get(PurePosixPath(name).name, [])
        if len(found) > 1:  # cat/1.png and dog/1.png: the one with more folders in common
            common = [len(os.path.commonprefix([p.parts[::-1], PurePosixPath(name).parts[::-1]]))
                      for p in found]
            found = [p for p, n in zip(found, common, strict=True) if n == max(common)]
        if len(found) > 1:
            raise UserError(f"line {number}: there are {len(found)} images of that name",
                            file=origin, image=name, found=f"{found[0]} and {found[1]}"[:160],
                            hint="--data FOLDER that the list's paths start from")
        if not found:
            raise UserError(f"line {number}: the image is not there", file=origin, image=name,
                            tried=", ".join(dict.fromkeys(map(str, self.places)))[:160],
                            hint="--data FOLDER that the list's paths start from")
        return str(found[0])
