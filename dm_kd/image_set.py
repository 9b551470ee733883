"""An image set on disk: labelled images in shards, whose bytes are the same by any route.

    manifest.json        every setting that makes the bytes; written first
    images/0003/class_3_seed_0_num_17.png
    shards/00017.csv     path, label, sha256 of a shard's images; written after them
    samples.png          a row of images per class; written when all shards are there

Position p = k * classes + c is image k of the c-th class. Shard j holds positions j B to
j B + B - 1 and is always sampled in full, so an image's bytes depend on neither the process that
makes it, nor the order, nor a crash. Only images_per_class may grow. To make a damaged shard again,
delete its CSV and run the same command.
"""

import csv
import hashlib
import io
import os
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from dm_kd import run
from dm_kd.run import UserError

FORMAT_VERSION = 2
FIELDS = ("path", "label", "sha256")
MAY_DIFFER = ("images_per_class", "made_on")  # when a set is resumed
SAMPLE_ROWS, SAMPLE_COLUMNS = 20, 10


def image_seed(base_seed: int, label: int, k: int, shared_noise: bool = False) -> int:
    """The 64-bit seed of image k of a class: the first 8 bytes of SHA-256("base/class/k").

    With shared_noise the class is left out, so that all classes start from the same noise, as in
    the original DM-KD."""
    name = f"{base_seed}/{k}" if shared_noise else f"{base_seed}/{label}/{k}"
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big") >> 1


def batch_seed(seeds: list[int]) -> int:
    """The 64-bit seed of what a batch shares: the first 8 bytes of SHA-256 of its images' seeds."""
    digest = hashlib.sha256(" ".join(map(str, seeds)).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


@dataclass(frozen=True)
class Plan:
    """Which image is at which position, from the manifest alone."""

    classes: tuple[int, ...]
    images_per_class: int
    shard_size: int
    base_seed: int
    shared_noise: bool

    @property
    def images(self) -> int:
        return len(self.classes) * self.images_per_class

    @property
    def shards(self) -> int:
        return -(-self.images // self.shard_size)

    def at(self, position: int) -> tuple[int, int]:
        """(label, k) of a position."""
        k, c = divmod(position, len(self.classes))
        return self.classes[c], k

    def shard(self, j: int) -> list[tuple[int, int]]:
        """(label, k) of all positions of shard j, also those after the set's end."""
        return [self.at(p) for p in range(j * self.shard_size, (j + 1) * self.shard_size)]

    def kept(self, j: int) -> int:
        """How many of shard j's positions belong to the set."""
        return min(self.shard_size, self.images - j * self.shard_size)

    def path(self, label: int, k: int) -> str:
        return f"images/{label:04d}/class_{label}_seed_{self.base_seed}_num_{k}.png"

    def seed(self, label: int, k: int) -> int:
        return image_seed(self.base_seed, label, k, self.shared_noise)


class ImageSet:
    """An image set on disk. `manifest` is read by `open_set`, or given by whoever makes it."""

    def __init__(self, folder: Path, manifest: dict):
        self.folder, self.manifest = Path(folder), manifest
        self.plan = Plan(tuple(manifest["classes"]), *(manifest[name] for name in (
            "images_per_class", "shard_size", "base_seed", "shared_noise")))

    @property
    def first_edition(self) -> bool:
        """Whether it was made before shards had CSV files; such sets are read only."""
        return self.manifest["format_version"] < FORMAT_VERSION

    def rows(self, j: int) -> list[dict]:
        """The rows of shard j's CSV, path, label and sha256 of each image; none where it is not
        made, or only in part because the set has grown."""
        try:
            text = (self.folder / f"shards/{j:05d}.csv").read_text()
        except FileNotFoundError:
            return []
        rows = list(csv.DictReader(io.StringIO(text[:text.rfind("\n") + 1])))
        return rows if len(rows) == self.plan.kept(j) else []

    def missing(self) -> list[int]:
        return [j for j in range(self.plan.shards) if not self.rows(j)]

    @property
    def digest(self) -> str:
        """SHA-256 of the shards' CSV files, which hold that of every image."""
        texts = [(self.folder / f"shards/{j:05d}.csv").read_bytes()
                 for j in range(self.plan.shards)]
        return run.sha256(b"".join(texts))

    def known_label(self, label: int) -> int:
        """-1 where an image's class says nothing about it (noise)."""
        return label if self.manifest["labels_known"] else -1

    def write_shard(self, j: int, images: list[bytes]) -> None:
        """Write the PNG files that belong to the set, then the shard's CSV."""
        lines = [",".join(FIELDS)]
        for (label, k), data in zip(self.plan.shard(j), images, strict=False):
            path = self.plan.path(label, k)
            write_over(self.folder / path, data)
            lines.append(f"{path},{self.known_label(label)},{run.sha256(data)}")
        write_over(self.folder / f"shards/{j:05d}.csv", ("\n".join(lines) + "\n").encode())

    def damage(self, j: int) -> list[str]:
        """What is wrong with each image of a finished shard that is not as its CSV says."""
        wrong = []
        for row, key in zip(self.rows(j), self.plan.shard(j), strict=False):
            path = self.folder / self.plan.path(*key)
            if row["path"] != self.plan.path(*key):
                wrong.append(f"{self.folder}/shards/{j:05d}.csv: {row['path']} is not of the set")
            elif not path.exists():
                wrong.append(f"{path} is missing")
            elif run.sha256_file(path) != row["sha256"]:
                wrong.append(f"{path} is damaged (sha256 differs)")
        return wrong

    def write_samples(self) -> None:
        """samples.png: a row for each of the first 20 classes, its first 10 images."""
        columns = range(min(SAMPLE_COLUMNS, self.plan.images_per_class))
        rows = [[read_image(self.folder / self.plan.path(label, k), self.manifest["channels"])
                 for k in columns] for label in self.plan.classes[:SAMPLE_ROWS]]
        picture = tile(rows, scale=max(1, 32 // rows[0][0].shape[1]))
        run.write_file(self.folder / "samples.png", encode_png(picture))


def write_over(path: Path, data: bytes) -> None:
    """Write a file in place and cut it at its new end. A file that has these bytes already never
    loses one, even for a moment, so two processes may write the same one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(os.open(path, os.O_WRONLY | os.O_CREAT, 0o666), "wb") as file:
        file.write(data)
        file.truncate()


def open_set(folder: Path) -> ImageSet:
    """An existing set.

    Raises:
        UserError: no set there, or made by a newer version."""
    path = Path(folder) / "manifest.json"
    if not path.exists():
        raise UserError(f"{folder} holds no image set (no manifest.json)",
                        "make one with `python -m dm_kd.synthesize --out FOLDER`")
    manifest = run.read_json(path)
    if manifest["format_version"] > FORMAT_VERSION:
        raise UserError(f"{path} was written by a newer version of dm_kd")
    return ImageSet(folder, manifest)


def begin(folder: Path, manifest: dict) -> ImageSet:
    """Begin a set, resume it, or let it grow; the manifest is on disk afterwards.

    Raises:
        UserError: the folder holds a set with other settings (named), or other files."""
    path = folder / "manifest.json"
    if path.exists():
        old = open_set(folder).manifest
        run.refuse_difference(settings(old), settings(manifest), folder, "a set of other settings")
        if old["images_per_class"] > manifest["images_per_class"]:
            raise UserError(f"{folder} has {old['images_per_class']} images per class already",
                            "--images-per-class can only grow; distill --images-per-class N uses "
                            "fewer")
        if old["images_per_class"] == manifest["images_per_class"]:
            return ImageSet(folder, old)
    elif folder.exists() and any(not p.name.startswith(".") for p in folder.iterdir()):
        raise UserError(f"{folder} holds other files and is no image set", "another --out")
    run.write_json(path, manifest)
    return ImageSet(folder, manifest)


def settings(manifest: dict) -> dict:
    """What makes the bytes, as "generator.steps": 100."""
    flat = {}
    for key, value in manifest.items():
        flat |= ({f"{key}.{name}": each for name, each in value.items()}
                 if isinstance(value, dict) else {key: value})
    return {key: value for key, value in flat.items() if key not in MAY_DIFFER}


def make(image_set: ImageSet, sample: Callable[[Tensor, list[int]], Tensor], rank: int,
         world_size: int, progress: Callable[[int], object]) -> int:
    """Make the missing ones of shards rank, rank + world_size, ...; samples.png if the set is then
    complete. Returns how many shards were made.

    Threads encode a shard on the cores that are left while the next one is sampled.

    Args:
        sample: (labels int64 [B], seeds) -> uint8 [B, C, H, W] on the CPU; see generators/.
        progress: told the number of images after each shard.
    """
    plan, made, encoding = image_set.plan, 0, None

    def write(j: int, images: list[Future]) -> None:
        image_set.write_shard(j, [image.result() for image in images])
        progress(plan.kept(j))

    encoders = max(1, (os.cpu_count() or 1) - torch.get_num_threads())
    with ThreadPoolExecutor(encoders) as pool:
        for j in range(rank, plan.shards, world_size):
            if image_set.rows(j):
                continue
            labels = torch.tensor([label for label, _ in plan.shard(j)])
            images = sample(labels, [plan.seed(*key) for key in plan.shard(j)])
            if encoding:
                write(*encoding)
            encoding = j, [pool.submit(encode_png, image) for image in images[:plan.kept(j)]]
            made += 1
        if encoding:
            write(*encoding)
    if not image_set.missing():
        image_set.write_samples()
    return made


# --- pictures -------------------------------------------------------------------------------------

def read_image(path: Path | str, channels: int | None = None, sha256: str | None = None) -> Tensor:
    """An image file as uint8 [C, H, W]; C is 1 for grey files and 3 for others, or `channels`.
    16 bits become 8, palettes and CMYK become RGB, transparency is dropped; an EXIF orientation is
    not applied, as in torchvision.

    Raises:
        UserError: not an image, truncated, or not of that SHA-256; the file is named."""
    try:
        data = Path(path).read_bytes()
        if sha256 and run.sha256(data) != sha256:
            raise ValueError("its sha256 is not the one that the set's shards record")
        with Image.open(io.BytesIO(data)) as image:
            image.info.pop("transparency", None)  # Pillow warns of some kinds of it
            if image.mode.startswith("I"):  # 16 bits, which Pillow would clip at 255
                image = Image.fromarray((np.array(image) >> 8).astype(np.uint8))
            grey = channels == 1 or channels is None and image.mode in ("L", "1")
            array = np.array(image.convert("L" if grey else "RGB"))
    except (OSError, ValueError, SyntaxError, EOFError, Image.DecompressionBombError) as error:
        what = getattr(error, "strerror", None) or str(error).split("<_io")[0]
        raise UserError(f"cannot read the image {path}: {what}") from error
    return torch.from_numpy(array[None] if grey else array.transpose(2, 0, 1).copy())


def encode_png(image: Tensor) -> bytes:
    """uint8 [C, H, W], C = 1 or 3 -> PNG."""
    array = image.permute(1, 2, 0).contiguous().numpy()
    buffer = io.BytesIO()
    Image.fromarray(array[:, :, 0] if array.shape[2] == 1 else array).save(
        buffer, "PNG", compress_level=6)
    return buffer.getvalue()


def tile(rows: list[list[Tensor]], scale: int = 1, gap: int = 2) -> Tensor:
    """Rows of equal-sized uint8 [C, h, w] images -> one picture on white."""
    c, h, w = rows[0][0].shape
    h, w = h * scale, w * scale
    height, width = len(rows) * (h + gap) + gap, max(map(len, rows)) * (w + gap) + gap
    sheet = torch.full((c, height, width), 255, dtype=torch.uint8)
    for r, row in enumerate(rows):
        for i, image in enumerate(row):
            large = image.repeat_interleave(scale, 1).repeat_interleave(scale, 2)
            top, left = gap + r * (h + gap), gap + i * (w + gap)
            sheet[:, top:top + h, left:left + w] = large
    return sheet
