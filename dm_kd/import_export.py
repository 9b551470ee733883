"""Image sets from other people's images, and image sets for other people's programs.

    python -m dm_kd.synthesize --task imagenet --import s2_st100_200k.txt --out syn_dataset/theirs
    python -m dm_kd.synthesize --export syn_dataset --out syn_dataset/ours

Import: a list, a folder or an archive (zip, tar, compressed tar), such as the original DM-KD's sets
or any ImageFolder, becomes an ImageSet whose manifest holds the digest of every byte that was read.
Nothing is unpacked to the names in an archive: its members are read where they are.

Export: the original's names and list file, s{S}_st{T}_{amount}.txt, or an ImageFolder. The same
command goes on where it was stopped; nothing that is there is overwritten.
"""

import functools
import hashlib
import os
import re
import shutil
import tarfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from lzma import LZMAError
from pathlib import Path, PurePosixPath

import torch
from torch import Tensor

from dm_kd import augment, files, image_files, image_set
from dm_kd.errors import DamagedError, UserError
from dm_kd.image_files import MAX_BYTES, SUFFIXES, ImageFiles
from dm_kd.tasks import Task

LARGE_SIDE = 256  # pixels of imported large images of several sizes, as of the paper's sets
# A compressed tar may unpack to so many times its size (images are packed already), and this more.
MAX_EXPANSION, SPARE_BYTES = 20, 100_000_000
IMAGES_PER_SEED = 10  # of a class in the original: class_{c}_seed_{k // 10}_num_{k % 10}.png
PACKED = (b"\x1f\x8b", b"BZh", b"\xfd7zXZ")  # how gzip, bzip2 and xz begin
COPIED_AT_ONCE = 256  # files of an export that share the wait for the disk
OTHER_SETTINGS = {  # setting of a generator that is not the original's -> its mark in a set's name
    "guidance_scale": "s", "network_guidance": "w", "steps": "st", "num_inference_steps": "st",
    "truncation": "t"}
BAD_TAR = (tarfile.TarError, LZMAError, zlib.error, OSError, EOFError, ValueError, OverflowError,
           IndexError)  # what damage ends in


# --- archives -------------------------------------------------------------------------------------

class Tar:
    """An uncompressed tar archive that is read in place: regular members that are named like
    images. Links, devices and sparse files are passed over; nothing is written.

    Raises:
        DamagedError: no tar archive, truncated, or a bad header."""

    def __init__(self, path: Path, shown: Path | None = None):
        self.path, self.shown = path, shown or path
        try:
            with tarfile.open(path, "r:") as archive:
                self.members = {m.name: (m.offset_data, m.size) for m in archive
                                if m.isreg() and not m.issparse()
                                and PurePosixPath(m.name).suffix.lower() in SUFFIXES
                                and not image_files.hidden(m.name)}
                end = archive.offset
            with open(path, "rb") as file:
                file.seek(end)
                if file.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
                    raise ValueError("it has no end mark: truncated, or a header is damaged")
        except BAD_TAR as error:
            raise DamagedError("the tar archive is damaged", file=self.shown,
                               found=str(error)[:100]) from error

    def where(self, name: str) -> str:
        return f"{self.shown}: {name}"

    def names(self) -> list[str]:
        return sorted(self.members)

    def read(self, name: str) -> bytes:
        offset, size = self.members[name]
        if size > MAX_BYTES:
            raise DamagedError(f"a member has {size / 1e6:.0f} MB", file=self.shown, member=name)
        with open(self.path, "rb") as file:
            file.seek(offset)
            return file.read(size)


def unpack_stream(path: Path, to: Path) -> None:
    """Decompress a .tar.gz, .tar.bz2 or .tar.xz into one file, no larger than images can be.

    Raises:
        DamagedError: damaged, or it unpacks to more than 20 times its size.
        StorageError: no space."""
    import bz2
    import gzip
    import lzma

    limit = MAX_EXPANSION * path.stat().st_size + SPARE_BYTES
    opener = dict(zip(PACKED, (gzip.open, bz2.open, lzma.open), strict=True))[
        next(magic for magic in PACKED if _start(path).startswith(magic))]
    files.check_free_space(to.parent, path.stat().st_size, "the unpacked archive")
    to.parent.mkdir(parents=True, exist_ok=True)
    written = 0
    try:
        with opener(path) as packed, open(to, "wb") as plain:
            while chunk := packed.read(1 << 20):
                written += len(chunk)
                if written > limit:
                    raise DamagedError(f"the archive unpacks to more than {limit / 1e6:.0f} MB, "
                                       f"{MAX_EXPANSION} times its size", file=path,
                                       hint="unpack it yourself, and give the folder")
                _write(plain, chunk, to)
    except BAD_TAR as error:
        raise DamagedError("the archive is damaged", file=path, found=str(error)[:100]) from error


def _write(file, chunk: bytes, path: Path) -> None:
    try:
        file.write(chunk)
    except OSError as error:
        raise files.storage_error(error, path, len(chunk)) or error from error


def _start(path: Path) -> bytes:
    with open(path, "rb") as file:
        return file.read(512)


def is_compressed(path: Path) -> bool:
    return path.is_file() and _start(path).startswith(PACKED)


@contextmanager
def opened(path: Path, task: Task, out: Path, root: Path | None) -> Iterator[ImageFiles]:
    """The images of a list, folder or archive, with labels where they have any. A compressed tar
    lies unpacked in out/.import for the length of the block.

    Raises:
        UserError: nothing there, an image set, no images, other classes, or images elsewhere.
        DamagedError: a damaged archive or list.
    """
    path = files.must_exist(path, "--import", "images")
    if (path / "manifest.json").exists():
        raise UserError("the folder is an image set already", path=path,
                        hint="use it as it is, or --export it first")
    temp = out / ".import"
    shutil.rmtree(temp, ignore_errors=True)  # of a killed import
    try:
        if is_compressed(path):
            unpack_stream(path, temp / "archive.tar")
            yield _of_tar(Tar(temp / "archive.tar", path), task)
        elif path.suffix.lower() == ".tar" or path.is_file() and _start(path)[257:262] == b"ustar":
            yield _of_tar(Tar(path), task)
        else:
            found = image_files.find(path, task.class_names, task.channels, True, root, task.wnids)
            refuse_elsewhere(found, path, root)
            yield found
    finally:
        shutil.rmtree(temp, ignore_errors=True)


def refuse_elsewhere(images: ImageFiles, path: Path, root: Path | None) -> None:
    """A list or folder may come from anybody, so what its lines and links lead to must lie in the
    working directory, in the folder, in the list's folder or its parent, or below `root`.

    Raises:
        UserError: an image lies elsewhere; nothing of it has been read."""
    if not isinstance(images.place, image_files.Folder):
        return
    own = [path] if path.is_dir() else [path.absolute().parent, path.absolute().parent.parent]
    places = [os.path.realpath(p) for p in (Path.cwd(), *own, *([root] if root else []))]
    real_folder = functools.cache(os.path.realpath)
    for name in images.names:
        folder, base = os.path.split(images.place.path / name)
        real = os.path.join(real_folder(folder), base)
        real = os.path.realpath(real) if os.path.islink(real) else real
        if not any(Path(real).is_relative_to(place) for place in places):
            raise UserError("an image to import lies elsewhere", image=name, place=real,
                            hint="--data with the folder that all of its images lie below")


def _of_tar(tar: Tar, task: Task) -> ImageFiles:
    names = tar.names()
    if not names:
        raise UserError("no PNG or JPEG images in it", path=tar.shown)
    labels = image_files.labels_of(names, task.class_names, tar.shown, task.wnids)
    return ImageFiles(names, labels, tar, task.channels)


# --- import ---------------------------------------------------------------------------------------

class Importer:
    """Other people's images as a generator: `sample(labels, seeds) -> uint8 images`, and how many
    each class has. Every image is read once for the digest before anything is written.

    Args:
        images: with labels -1 where they are not of the task.
        base_seed: of the set, from which the seeds that `sample` is given are made.
    """

    def __init__(self, images: ImageFiles, task: Task, base_seed: int,
                 progress: Callable[[int], None]):
        if (images.labels >= 0).any() and (images.labels < 0).any():
            images = images.chosen((images.labels >= 0).nonzero()[:, 0])
        order = sorted(range(len(images)), key=lambda i: natural(images.names[i]))
        if isinstance(images.place, image_files.Folder) and images.place.path == Path("/"):
            order = range(len(images))  # a list has an order of its own
        self.images, self.labels_known = images, bool(images.labels[0] >= 0)
        self.by_class: dict[int, list[int]] = {}
        for i in order:
            self.by_class.setdefault(max(0, int(images.labels[i])), []).append(i)
        self.classes = sorted(self.by_class)
        self.per_class = min(map(len, self.by_class.values()))
        digest, sizes = self._read_all(progress)
        self.resolution, self.fit = fitted_size(sizes, task)
        self.channels, self.base_seed = images.channels, base_seed
        self.at = {image_set.image_seed(base_seed, label, k): i
                   for label, chosen in self.by_class.items() for k, i in enumerate(chosen)}
        self.settings = {"name": "import", "licence": "that of the imported images",
                         "source_sha256": digest, "source_images": len(images), "fit": self.fit}

    def _read_all(self, progress: Callable[[int], None]) -> tuple[str, set[tuple[int, int]]]:
        """SHA-256 over the label, the base name and the SHA-256 of each file, class by class; and
        the (height, width) that there are."""
        def look(i: int) -> tuple[str, tuple[int, int]]:
            name = self.images.names[i]
            data, where = self.images.place.read(name), self.images.place.where(name)
            with image_files.opened(data, where) as image:
                return files.sha256(data), (image.height, image.width)

        total, sizes = hashlib.sha256(), set()
        positions = [i for c in self.classes for i in self.by_class[c]]
        for start in range(0, len(positions), COPIED_AT_ONCE):
            part = positions[start:start + COPIED_AT_ONCE]
            for i, (digest, size) in zip(part, self.images.map(look, part), strict=True):
                base = PurePosixPath(self.images.names[i]).name
                total.update(f"{int(self.images.labels[i])}\t{base}\t{digest}\n".encode(
                    errors="surrogateescape"))
                sizes.add(size)
            progress(len(part))
        return total.hexdigest(), sizes

    def sample(self, labels: Tensor, seeds: list[int]) -> Tensor:
        """uint8 [B, C, side, side]; black past the set's end, where a shard is cut off."""
        side = self.resolution
        out = torch.zeros(len(seeds), self.channels, side, side, dtype=torch.uint8)
        found = [(b, self.at[seed]) for b, seed in enumerate(seeds) if seed in self.at]
        images = self.images.map(self.images.decode, [i for _, i in found])
        for (b, _), image in zip(found, images, strict=True):
            out[b] = fitted(image, side, self.fit)
        return out


def natural(name: str) -> list:
    """A sort key in which num_2 comes before num_10."""
    return [(0, int(part[:18]), "") if part.isascii() and part.isdigit() else (1, 0, part)
            for part in re.split(r"([0-9]+)", name)]


def fitted_size(sizes: set[tuple[int, int]], task: Task) -> tuple[int, str]:
    """Pixels per side, and how images come to it."""
    if len(sizes) == 1 and len(set(next(iter(sizes)))) == 1:
        return next(iter(sizes))[0], "as they are"
    if task.crop:
        return LARGE_SIDE, f"shorter side resized to {LARGE_SIDE}, centre cut out"
    return task.resolution, f"resized to {task.resolution} x {task.resolution}"


def fitted(image: Tensor, side: int, fit: str) -> Tensor:
    """uint8 [C, h, w] -> [C, side, side]."""
    h, w = image.shape[1:]
    if (h, w) == (side, side):
        return image
    if not fit.startswith("shorter side"):
        return augment.resize(image[None], side, side)[0]
    h, w = (side, max(side, round(side * w / h))) if h <= w else (max(side, round(side * h / w)),
                                                                  side)
    image = augment.resize(image[None], h, w)[0]
    top, left = (h - side) // 2, (w - side) // 2
    return image[:, top:top + side, left:left + side]


# --- export ---------------------------------------------------------------------------------------

def set_name(manifest: dict) -> str:
    """The original's name for a set, s{S}_st{T}_{amount}, with each approximation in it that the
    original's sampler did not make; names of generators without guidance and steps begin with the
    generator. Letters, digits and _ . + - only, whatever the manifest holds.

    Raises:
        DamagedError: a setting is not what it should be."""
    try:
        return re.sub(r"[^\w.+-]+", "-", "_".join(_name_parts(manifest)))
    except (ValueError, TypeError, IndexError) as error:
        raise DamagedError("manifest.json: the generator's settings are not as they should be",
                           found=str(error)[:80]) from error


def _name_parts(manifest: dict) -> list[str]:
    made, count = manifest["generator"], len(manifest["classes"]) * manifest["images_per_class"]
    amount = f"{count // 1000}k" if count % 1000 == 0 else str(count)
    if "guidance_scale" not in made or "steps" not in made:
        parts = [re.sub(r"[^\w.-]+", "-", str(made.get("name", "set")))]
        parts += [f"{mark}{made[key]:g}" for key, mark in OTHER_SETTINGS.items()
                  if isinstance(made.get(key), (int, float))]
        if made.get("network_guidance_interval"):
            parts.append("gi{:g}-{:g}".format(*made["network_guidance_interval"]))
    else:
        parts = [f"s{made['guidance_scale']:g}", f"st{made['steps']}"]
    if made.get("sampler", "ddpm") != "ddpm":
        parts.append(str(made["sampler"]).replace("+", "p"))
    if made.get("guidance_interval", [0, 1]) != [0, 1]:
        parts.append("gi{:g}-{:g}".format(*made["guidance_interval"]))
    if made.get("teacher_guidance"):
        parts.append(f"tg{made['teacher_guidance']:g}")
    parts += ["adv"] if made.get("student") else []
    parts += ["cutmix"] if made.get("latent_cutmix") else []
    parts += ["fp8"] if made.get("fp8") else []
    return [*parts, amount]


def export(images: image_set.ImageSet, folder: Path, layout: str, progress: Callable[[int], None]
           ) -> Path:
    """Copy a complete set's files, each compared with its digest, under the names of a layout.

    Args:
        layout: "list": folder/NAME/class_{c}_seed_{k}_num_{i}.png and the list folder/NAME.txt,
            whose paths begin with the folder's own name, as the original's syn_dataset/ does;
            "imagefolder": folder/NAME_imagefolder/<class index, 4 digits>/*.png. Images without
            known labels are image_{c}_{k}.png, and lie flat.

    Returns:
        The list, or the folder of class folders.

    Raises:
        UserError: the set is not complete, or other files have those names.
        DamagedError: a file of the set is damaged.
    """
    rows, name = images.index(), set_name(images.manifest)
    place = folder / (name if layout == "list" else f"{name}_imagefolder")
    targets = [target(row, images.manifest, layout) for row in rows]
    with files.locked(folder / f".{place.name}.lock", str(place)):
        for below in {(place / t).parent for t in targets}:
            files.remove_stale_temps(below)
        for start in range(0, len(rows), COPIED_AT_ONCE):
            part = slice(start, start + COPIED_AT_ONCE)
            contents = {}
            for row, to in zip(rows[part], targets[part], strict=True):
                data = image_set.whole_file(images.folder / row["path"], row["sha256"])
                if not _is_there(place / to, data):
                    contents[place / to] = data
            if contents:
                files.durable_write_all(contents)
            progress(len(rows[part]))
        if layout != "list":
            return place
        base = Path(os.path.abspath(folder)).name
        text = "".join(f"{base}/{name}/{t}\n" for t in targets).encode()
        listing = folder / f"{name}.txt"
        if not _is_there(listing, text):
            files.durable_write(listing, text)
        return listing


def target(row: dict, manifest: dict, layout: str) -> str:
    """An image's path in an export."""
    k, label = row["k"], row["label"]
    if label < 0:
        c = PurePosixPath(row["path"]).parent.name  # tells images of one k apart
        return f"image_{c}_{k}.png"
    name = f"class_{label}_seed_{k // IMAGES_PER_SEED}_num_{k % IMAGES_PER_SEED}.png"
    return name if layout == "list" else f"{label:04d}/{name}"


def _is_there(path: Path, data: bytes) -> bool:
    """Whether the file is there with these bytes.

    Raises:
        UserError: with others."""
    if not path.exists():
        return False
    if path.is_file() and path.stat().st_size == len(data) and path.read_bytes() == data:
        return True
    raise UserError("another file has that name already", file=path,
                    hint="--export with an empty folder")
