"""An image set on disk: labelled images in shards, whose bytes depend on the manifest alone.

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
import io
import os
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor
from torchvision.utils import make_grid

from dm_kd import run
from dm_kd.run import UserError

FORMAT_VERSION = 2
HEADER = "path,label,sha256\n"
MAY_DIFFER = ("images_per_class", "made_on", "generator", "generator.epochs")  # old sets lack it


def image_seed(base_seed: int, label: int, k: int, shared_noise: bool = False) -> int:
    """The 63-bit seed of image k of a class, from SHA-256("base/class/k"); with shared_noise from
    "base/k", so that all classes start from the same noise, as in the original."""
    name = f"{base_seed}/{k}" if shared_noise else f"{base_seed}/{label}/{k}"
    return int(run.sha256(name.encode())[:16], 16) >> 1


def batch_seed(seeds: list[int]) -> int:
    """The 63-bit seed of what a batch shares, from the SHA-256 of its images' seeds."""
    return int(run.sha256(" ".join(map(str, seeds)).encode())[:16], 16) >> 1


class ImageSet:
    """An image set on disk. Its manifest says which image is at which position."""

    def __init__(self, folder: Path):
        self.folder = Path(folder)
        self.manifest = run.read_json(self.folder / "manifest.json")
        if self.manifest["format_version"] != FORMAT_VERSION:
            raise UserError(f"{folder} was written by another version of dm_kd",
                            f"--source {folder}/images reads it as a folder of images")
        self.classes, self.images_per_class, self.shard_size = (
            self.manifest[name] for name in ("classes", "images_per_class", "shard_size"))
        self.images = len(self.classes) * self.images_per_class
        self.shards = -(-self.images // self.shard_size)

    def shard(self, j: int) -> list[tuple[int, int]]:
        """(label, k) of all positions of shard j, including those beyond the set's end."""
        positions = range(j * self.shard_size, (j + 1) * self.shard_size)
        return [(self.classes[p % len(self.classes)], p // len(self.classes)) for p in positions]

    def kept(self, j: int) -> int:
        """How many of shard j's positions belong to the set."""
        return min(self.shard_size, self.images - j * self.shard_size)

    def path(self, label: int, k: int) -> str:
        return f"images/{label:04d}/class_{label}_seed_{self.manifest['base_seed']}_num_{k}.png"

    def table(self, j: int) -> Path:
        return self.folder / f"shards/{j:05d}.csv"

    def rows(self, j: int) -> list[dict]:
        """The rows of shard j's CSV (path, label and sha256 of each image); empty unless the shard
        is complete (a kill may cut the last line, a set may have grown)."""
        path = self.table(j)
        text = path.read_text() if path.exists() else ""
        rows = list(csv.DictReader(text[:text.rfind("\n") + 1].splitlines()))
        return rows if len(rows) == self.kept(j) else []

    def missing(self) -> list[int]:
        return [j for j in range(self.shards) if not self.rows(j)]

    @property
    def digest(self) -> str:
        """SHA-256 of the shards' CSV files, which contain each image's."""
        return run.sha256(b"".join(self.table(j).read_bytes() for j in range(self.shards)))

    def write_image(self, label: int, k: int, image: Tensor) -> str:
        """Write the PNG file of an image; returns its row of the shard's CSV, in which the label is
        -1 where it is unknown (noise)."""
        path, data = self.path(label, k), encode_png(image)
        write_over(self.folder / path, data)
        return f"{path},{label if self.manifest['labels_known'] else -1},{run.sha256(data)}\n"

    def write_samples(self) -> None:
        """samples.png: a row for each of the first 20 classes, its first 10 images, small."""
        columns = min(10, self.images_per_class)
        images = torch.stack([read_image(self.folder / self.path(label, k),
                                         self.manifest["channels"])
                              for label in self.classes[:20] for k in range(columns)])
        side = min(images.shape[2] * max(1, 32 // images.shape[2]), 96)
        images = F.interpolate(images.float(), (side, side), mode="area").round().byte()
        run.write_file(self.folder / "samples.png",
                       encode_png(make_grid(images, columns, pad_value=255)))


def write_over(path: Path, data: bytes) -> None:
    """Write a file in place, without emptying it first, so that two processes may write the same
    bytes to the same file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(os.open(path, os.O_WRONLY | os.O_CREAT, 0o666), "wb") as file:
        file.write(data)
        file.truncate()


def begin(folder: Path, manifest: dict) -> ImageSet:
    """Begin, resume or extend a set: write its manifest."""
    if (folder / "manifest.json").exists():
        old = ImageSet(folder).manifest
        run.refuse_difference(settings(old), settings(manifest), folder, "a set of other settings")
        if old["images_per_class"] > manifest["images_per_class"]:
            raise UserError(f"{folder} has {old['images_per_class']} images per class already",
                            "--images-per-class can only grow; distill --images-per-class N uses "
                            "fewer")
        manifest["made_on"] = old["made_on"]
    run.write_json(folder / "manifest.json", manifest)
    return ImageSet(folder)


def settings(manifest: dict) -> dict:
    """The settings that determine the bytes, the generator's as "generator.steps"."""
    generator = {f"generator.{key}": value for key, value in manifest["generator"].items()}
    return {key: value for key, value in (manifest | generator).items()
            if key not in MAY_DIFFER}


def make(image_set: ImageSet, sample: Callable[[Tensor, list[int]], Tensor], shards: list[int],
         progress: Callable[[int], object]) -> None:
    """Make these shards, and samples.png once the set is complete. sample: (labels int64 [B],
    seeds) -> uint8 [B, C, H, W] on the CPU. progress: called with the images of each shard."""
    base, shared = image_set.manifest["base_seed"], image_set.manifest["shared_noise"]

    def finish(j: int, rows: list[Future]) -> None:
        write_over(image_set.table(j), "".join([HEADER, *[row.result() for row in rows]]).encode())
        progress(len(rows))

    cores = os.cpu_count() // int(os.environ.get("LOCAL_WORLD_SIZE", 1)) - torch.get_num_threads()
    with ThreadPoolExecutor(max(1, cores)) as pool:
        writing = None  # the shard before, whose images are written while the next is sampled
        for j in shards:
            places = image_set.shard(j)
            images = sample(torch.tensor([label for label, _ in places]),
                            [image_seed(base, label, k, shared) for label, k in places])
            if writing:
                writing.result()
            rows = [pool.submit(image_set.write_image, *place, image) for place, image
                    in zip(places[:image_set.kept(j)], images, strict=False)]
            writing = pool.submit(finish, j, rows)  # begins after its rows
        if writing:
            writing.result()
    if not image_set.missing():
        image_set.write_samples()


# --- pictures -------------------------------------------------------------------------------------

def read_image(path: Path | str, channels: int | None = None) -> Tensor:
    """An image file as uint8 [C, H, W]; C is 1 for grey files and 3 for others, or `channels`.
    16 bits become 8, palettes and CMYK become RGB, transparency is dropped; an EXIF orientation is
    not applied, as in torchvision. A UserError names a file that is no image, or truncated."""
    try:
        with Image.open(path) as image:
            image.info.pop("transparency", None)  # Pillow warns of some kinds of it
            if image.mode.startswith("I"):  # 16 bits, which Pillow would clip at 255
                image = Image.fromarray((np.array(image) >> 8).astype(np.uint8))
            grey = channels == 1 or channels is None and image.mode in ("L", "1")
            array = np.array(image.convert("L" if grey else "RGB"))
    except (OSError, ValueError, SyntaxError, EOFError, Image.DecompressionBombError) as error:
        raise UserError(f"cannot read the image {path}: {error}") from error
    return torch.from_numpy(array[None] if grey else array.transpose(2, 0, 1).copy())


def encode_png(image: Tensor) -> bytes:
    """uint8 [C, H, W], C = 1 or 3 -> PNG."""
    array = np.ascontiguousarray(image.numpy().transpose(1, 2, 0))
    buffer = io.BytesIO()
    Image.fromarray(array[:, :, 0] if array.shape[2] == 1 else array).save(
        buffer, "PNG", compress_level=6)
    return buffer.getvalue()
