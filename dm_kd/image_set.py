"""ImageSet: labelled images and a manifest, made in shards, the same bytes by any route.

    manifest.json    every setting that makes the bytes; written first
    images/0003/class_3_seed_0_num_17.png
    shards/00017.json    a shard's paths, labels and digests; written after its images
    contact_sheet.png
    index.csv        path, label, k, digests; written last: an index means complete

Beside it lies NAME.seconds.jsonl, what each shard took. It is no part of the set, since no two runs
take the same time; where it is missing, the time is unknown.

Position p = k * classes + c (image k of the c-th class). Shard j holds positions j B to j B + B - 1
and is always computed in full, so no image's bytes depend on who computes it, in what order, or
after which crash. Only images_per_class may grow.
"""

import contextlib
import csv
import functools
import hashlib
import io
import json
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from dm_kd import augment, files, image_files
from dm_kd.errors import DamagedError, LockedError, UserError, refuse_difference
from dm_kd.image_files import read_image

FORMAT_VERSION = 1
INDEX_FIELDS = ("path", "label", "k", "sha256", "pixels_sha256")
MAX_IMAGES, MAX_SHARD = 10 ** 9, 10 ** 6  # of a set, of a shard
SHEET_ROWS, SHEET_COLUMNS = 20, 10
WRITTEN_AT_ONCE = 256  # images that share the wait for the disk
ENCODERS, LARGE_SIDE = 4, 64  # threads that encode images of so many pixels per side or more
DECODED_AHEAD = 256  # images that are in memory while a map is built


# --- what an image's noise hangs on ---------------------------------------------------------------

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
    """Which image stands at which position, from the manifest alone."""

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
        """(label, k) of all positions of shard j, also those past the set's end."""
        return [self.at(p) for p in range(j * self.shard_size, (j + 1) * self.shard_size)]

    def kept(self, j: int) -> int:
        """How many of shard j's positions belong to the set."""
        return min(self.shard_size, self.images - j * self.shard_size)

    def path(self, label: int, k: int) -> str:
        return f"images/{label:04d}/class_{label}_seed_{self.base_seed}_num_{k}.png"

    def seed(self, label: int, k: int) -> int:
        return image_seed(self.base_seed, label, k, self.shared_noise)


def plan_of(manifest: dict) -> Plan:
    return Plan(tuple(manifest["classes"]), manifest["images_per_class"], manifest["shard_size"],
                manifest["base_seed"], manifest["shared_noise"])


# --- the folder -----------------------------------------------------------------------------------

class ImageSet:
    """An image set on disk. `manifest` is read by `open_set`, or given by the one who makes it."""

    def __init__(self, folder: Path, manifest: dict):
        self.folder, self.manifest, self.plan = Path(folder), manifest, plan_of(manifest)

    @property
    def complete(self) -> bool:
        return (self.folder / "index.csv").exists()

    @property
    def settings_digest(self) -> str:
        """SHA-256 of the manifest but for images_per_class, which may grow; stands in every shard
        record."""
        settings = {k: v for k, v in self.manifest.items() if k != "images_per_class"}
        return files.sha256(json.dumps(settings, sort_keys=True).encode())

    @property
    def digest(self) -> str:
        """SHA-256 of index.csv, which holds the digest of every image."""
        return files.sha256_file(self.folder / "index.csv")

    def record_path(self, j: int) -> Path:
        return self.folder / "shards" / f"{j:05d}.json"

    def record(self, j: int) -> list[dict] | None:
        """The shard's list of images; None if it is not made, or made for a smaller set.

        Raises:
            DamagedError: the record does not match the plan.
        """
        path = self.record_path(j)
        if not path.exists():
            return None
        record = files.read_json(path, hint="the same command with --repair")
        entries, keys = record.get("images"), self.plan.shard(j)
        ok = record.get("settings_sha256") == self.settings_digest and record.get("shard") == j
        ok = ok and isinstance(entries, list) and len(entries) <= self.plan.kept(j) and all(
            isinstance(e, dict) and e.get("path") == self.plan.path(*key)
            and e.get("label") == self.known_label(key[0]) and e.get("k") == key[1]
            and isinstance(e.get("sha256"), str)
            and isinstance(e.get("pixels_sha256"), str)
            for e, key in zip(entries, keys, strict=False))
        if not ok:
            raise DamagedError(f"shard record {path.name} does not match the manifest", file=path,
                               hint="the same synthesize command with --repair")
        return entries if len(entries) == self.plan.kept(j) else None

    def shard_damage(self, j: int) -> str | None:
        """What is wrong with a shard that has a record; None if every byte is as recorded.

        A digest of pixels is believed where the index says the same; else the image is decoded,
        so that a damaged record cannot come into a new index."""
        try:
            entries = self.record(j)
        except DamagedError:
            return "its record is damaged"
        start = j * self.plan.shard_size + 1  # below the header
        for position, entry in enumerate(entries or [], start):
            path = self.folder / entry["path"]
            if not path.exists():
                return f"{entry['path']} is missing"
            if files.sha256_file(path) != entry["sha256"]:
                return f"{entry['path']} differs (sha256)"
            if self.index_lines[position:position + 1] != [_index_line(entry)] and (
                    self._pixels_of(path) != entry["pixels_sha256"]):
                return f"its record is damaged: not the pixels of {entry['path']}"
        return None

    @functools.cached_property
    def index_lines(self) -> list[str]:
        """The lines of index.csv as they stood when first looked at, header first; none where the
        set is not complete."""
        try:
            return (self.folder / "index.csv").read_text(errors="replace").split("\n")
        except OSError:
            return []

    def _pixels_of(self, path: Path) -> str | None:
        """SHA-256 of an image file's pixels; None where it cannot be decoded."""
        try:
            image = read_image(path.read_bytes(), path, self.manifest["channels"])
        except (OSError, DamagedError):
            return None
        return _pixels_sha256(image)

    def known_pixels(self, j: int) -> list[set[str]]:
        """What is left to tell the pixels of each image of a damaged shard by: their digests in the
        record, in the index, and of a file that is as one of these says. Normally one value."""
        try:
            entries = files.read_json(self.record_path(j)).get("images")
        except (OSError, DamagedError):
            entries = None
        entries = entries if isinstance(entries, list) else []
        start = j * self.plan.shard_size + 1  # below the index's header
        rows = [dict(zip(INDEX_FIELDS, line.split(","), strict=False))
                for line in self.index_lines[start:start + self.plan.kept(j)]]
        known = []
        for i, key in enumerate(self.plan.shard(j)[:self.plan.kept(j)]):
            path = self.plan.path(*key)
            named = [e for e in [*entries[i:i + 1], *rows[i:i + 1]]
                     if isinstance(e, dict) and e.get("path") == path]
            found = {str(e["pixels_sha256"]) for e in named if e.get("pixels_sha256")}
            file = self.folder / path
            if file.is_file() and files.sha256_file(file) in [e.get("sha256") for e in named]:
                found |= {digest for digest in [self._pixels_of(file)] if digest}
            known.append(found)
        return known

    def write_shard(self, j: int, images: Tensor, known: list[set[str]] | None = None) -> None:
        """Write the images that belong to the set, then the record.

        Args:
            images: uint8 [shard_size, C, H, W].
            known: the pixel digests that each may have, where the shard is made again.

        Raises:
            UserError: an image is not the one it was; nothing is written.
        """
        assert len(images) == self.plan.shard_size, (len(images), self.plan.shard_size)
        entries, contents = [], {}
        kept = list(zip(self.plan.shard(j), images, strict=True))[:self.plan.kept(j)]
        self._refuse_others(j, kept, known)
        for ((label, k), image), data in zip(kept, encode_all([i for _, i in kept]), strict=True):
            path = self.plan.path(label, k)
            contents[self.folder / path] = data
            entries.append({"path": path, "label": self.known_label(label), "k": k,
                            "sha256": files.sha256(data),
                            "pixels_sha256": _pixels_sha256(image)})
            if len(contents) == WRITTEN_AT_ONCE or len(entries) == self.plan.kept(j):
                files.durable_write_all(contents)
                contents = {}
        files.write_json(self.record_path(j), {
            "shard": j, "settings_sha256": self.settings_digest, "images": entries})

    def _refuse_others(self, j: int, kept: list, known: list[set[str]] | None) -> None:
        for (key, image), digests in zip(kept, known or [], strict=False):
            if digests and _pixels_sha256(image) not in digests:
                raise UserError(
                    f"shard {j:05d} was made again with other pixels than it had; it stays as it "
                    "was", image=self.folder / self.plan.path(*key),
                    made_on=self.manifest.get("made_on") or "not recorded",
                    hint="the same kind of machine, with the same torch; or a new set, in another "
                         "--out")

    def known_label(self, label: int) -> int:
        """-1 where the class of an image says nothing (noise)."""
        return label if self.manifest["labels_known"] else -1

    @property
    def seconds_path(self) -> Path:
        return Path(f"{self.folder.resolve()}.seconds.jsonl")

    def note_seconds(self, **fields: object) -> None:
        """Append a line to what is known of the time: shard and seconds, or pretraining_seconds. A
        place that cannot be written to costs no image: the time is unknown then. Imported images
        were not made here: nothing is noted."""
        if self.manifest["generator"].get("name") == "import":
            return
        line = json.dumps({"settings_sha256": self.settings_digest, **fields}) + "\n"
        with contextlib.suppress(OSError), open(self.seconds_path, "ab") as file:
            file.write(line.encode())

    def seconds(self) -> dict[str, float | None]:
        """making_seconds: of all shards, of the processes that made them together;
        pretraining_seconds: of the generator's own training. None where unknown."""
        shards, pretraining, digest = {}, None, self.settings_digest
        try:
            lines = self.seconds_path.read_text(errors="replace").splitlines()
        except OSError:
            lines = []
        for line in lines:
            with contextlib.suppress(ValueError, TypeError, KeyError, RecursionError):
                found = json.loads(line)
                if found["settings_sha256"] != digest:
                    continue  # of a set that was here before
                value = found["seconds" if "shard" in found else "pretraining_seconds"]
                if not 0 <= value < 1e12:  # NaN among them
                    continue
                if "shard" in found:
                    shards[found["shard"]] = value
                else:
                    pretraining = value
        known = [shards.get(j) for j in range(self.plan.shards)]
        return {"making_seconds": None if None in known else round(sum(known), 3),
                "pretraining_seconds": pretraining}

    def missing(self) -> list[int]:
        return [j for j in range(self.plan.shards) if self.record(j) is None]

    def write_index(self) -> None:
        """contact_sheet.png, then index.csv. Call it when no shard is missing."""
        for name, data in self._summaries():
            files.durable_write(self.folder / name, data)

    def summary_damage(self) -> str | None:
        """Which of a complete set's contact sheet and index is not what its shards make it.

        Raises:
            DamagedError: the manifest's count, a shard's record, or an image of the contact sheet
                is damaged."""
        refuse_wrong_count(self)
        for name, data in self._summaries():
            path = self.folder / name
            if not path.exists() or path.read_bytes() != data:
                return name
        return None

    def _summaries(self) -> Iterator[tuple[str, bytes]]:
        yield "contact_sheet.png", self._contact_sheet()
        lines = [",".join(INDEX_FIELDS)]
        for j in range(self.plan.shards):
            lines += map(_index_line, self.record(j))
        yield "index.csv", "".join(f"{line}\n" for line in lines).encode()

    def index(self) -> list[dict]:
        """The rows of index.csv; label and k are ints.

        Raises:
            UserError: the set is not complete.  DamagedError: a row is malformed.
        """
        if not self.complete:
            made = self.plan.shards - len(self.missing())
            raise UserError(f"the set is not complete: {made} of {self.plan.shards} shards",
                            folder=self.folder, hint="run its synthesize command again; it goes on")
        path = self.folder / "index.csv"
        try:
            rows = list(csv.DictReader(io.StringIO(path.read_text(errors="replace"))))
        except csv.Error as error:
            raise DamagedError("index.csv is damaged", file=path, found=str(error),
                               hint="the same synthesize command with --repair") from error
        for number, row in enumerate(rows, 2):
            try:
                row["label"], row["k"] = int(row["label"]), int(row["k"])
                label, k = self.plan.at(number - 2)
                if (row["path"] != self.plan.path(label, k) or row.keys() != set(INDEX_FIELDS)
                        or None in row.values()
                        or (row["label"], row["k"]) != (self.known_label(label), k)):
                    raise ValueError("not the image that the manifest puts here")
            except (ValueError, TypeError, KeyError) as error:
                raise DamagedError(f"index.csv line {number} is damaged", file=path,
                                   hint="the same synthesize command with --repair") from error
        if len(rows) != self.plan.images:
            raise DamagedError(f"index.csv has {len(rows)} images, the manifest says "
                               f"{self.plan.images}", file=path,
                               hint="the same synthesize command with --repair")
        return rows

    def _contact_sheet(self) -> bytes:
        """A row per class (the first 20), its first 10 images."""
        classes = self.plan.classes[:SHEET_ROWS]
        columns = min(SHEET_COLUMNS, self.plan.images_per_class)
        rows = [[self._sheet_image(c, k) for k in range(columns)] for c in classes]
        return encode_png(tile(rows, scale=max(1, 32 // rows[0][0].shape[1])))

    def _sheet_image(self, label: int, k: int) -> Tensor:
        path, side = self.folder / self.plan.path(label, k), self.manifest["resolution"]
        try:
            image = read_image(path.read_bytes(), path, self.manifest["channels"])
        except OSError as error:
            raise DamagedError("an image of the set cannot be read", file=path,
                               found=error.strerror,
                               hint="the same synthesize command with --repair") from error
        if image.shape[1:] != (side, side):
            raise DamagedError(f"the image is {list(image.shape[1:])}, the set's are {side} x "
                               f"{side}", file=path,
                               hint="the same synthesize command with --repair")
        return image


def _index_line(entry: dict) -> str:
    """An image's line of index.csv; no field holds a comma."""
    return ",".join(str(entry[field]) for field in INDEX_FIELDS)


def _pixels_sha256(image: Tensor) -> str:
    return files.sha256(image.contiguous().numpy().tobytes())


def open_set(folder: Path) -> ImageSet:
    """An existing set.

    Raises:
        UserError: no set there, or made by a newer version.  DamagedError: a bad manifest.
    """
    path = Path(folder) / "manifest.json"
    if not path.exists():
        raise UserError("the folder holds no image set (no manifest.json)", folder=folder,
                        hint="make one with `python -m dm_kd.synthesize --out FOLDER`")
    manifest = files.read_json(path)
    version = manifest.get("format_version")
    if isinstance(version, int) and version > FORMAT_VERSION:
        raise UserError(f"the set was made by a newer version (format {version}, known: "
                        f"{FORMAT_VERSION})", file=path, hint="a newer dm_kd")
    whole = (int, "num_classes", "images_per_class", "shard_size", "base_seed", "resolution",
             "channels", "format_version")
    flags = (bool, "shared_noise", "labels_known")
    for kind, *names in (whole, flags, (str, "task"), (dict, "generator")):
        for name in names:
            if type(manifest.get(name)) is not kind or kind is int and manifest[name] < 0:
                raise DamagedError(f"manifest.json: '{name}' is missing or wrong", file=path,
                                   found=repr(manifest.get(name))[:60])
    classes = manifest.get("classes")
    if (not isinstance(classes, list) or not classes or len(set(map(repr, classes))) < len(classes)
            or not all(type(c) is int and 0 <= c < manifest["num_classes"] for c in classes)
            or not 0 < manifest["shard_size"] <= MAX_SHARD or manifest["images_per_class"] < 1
            or len(classes) * manifest["images_per_class"] > MAX_IMAGES):
        raise DamagedError("manifest.json: classes or sizes are wrong", file=path)
    return ImageSet(folder, manifest)


def begin(folder: Path, manifest: dict) -> ImageSet:
    """Start a set, go on with it, or let it grow; the manifest is on disk afterwards.

    What it says of the machine (made_on) is that of whoever began the set; another is let in, with
    a note.

    Raises:
        UserError: the folder holds a set with other settings (shown), or other files.
    """
    with _alone(folder):
        return _begin(Path(folder), manifest)


def _begin(folder: Path, manifest: dict) -> ImageSet:
    path = folder / "manifest.json"
    if path.exists() and not _is_import_without_images(folder, manifest):
        old = open_set(folder).manifest
        manifest = _of_the_same_machine(old, manifest, folder)
        if old["images_per_class"] <= manifest["images_per_class"]:
            refuse_difference(_flat({**old, "images_per_class": 0}),
                              _flat({**manifest, "images_per_class": 0}), folder,
                              "the folder holds a set with other settings")
        else:
            refuse_wrong_count(ImageSet(folder, old))
            raise UserError(f"the set has {old['images_per_class']} images per class already",
                            folder=folder, hint="--images-per-class can only grow; distill "
                                                "--images-per-class N uses fewer")
        if old["images_per_class"] < manifest["images_per_class"]:
            (folder / "index.csv").unlink(missing_ok=True)  # an index means complete
            (folder / "contact_sheet.png").unlink(missing_ok=True)
            files.write_json(path, manifest)
    else:
        if folder.exists() and _other_files(folder):
            raise UserError("the folder holds other files and is no image set", folder=folder,
                            hint="another --out")
        files.write_json(path, manifest)
    return ImageSet(folder, manifest)


def _other_files(folder: Path) -> bool:
    """Whether a folder holds anything, but for a manifest and what is hidden."""
    return any(p.name != "manifest.json" and not p.name.startswith(".") for p in folder.iterdir())


def _is_import_without_images(folder: Path, manifest: dict) -> bool:
    """Whether there is only the manifest of an import that failed before its first image: the
    next import, of mended images, may replace it."""
    return all(m["generator"].get("name") == "import" for m in (
        manifest, open_set(folder).manifest)) and not _other_files(folder)


def refuse_wrong_count(images: ImageSet) -> None:
    """
    Raises:
        DamagedError: the set has an index, which is written last, but the manifest asks for shards
            that were never made."""
    if images.complete and images.missing():
        count, classes = len(images.index_lines) - 2, len(images.plan.classes)
        raise DamagedError(f"manifest.json is damaged: it says {images.plan.images} images, "
                           f"index.csv has {count}", file=images.folder / "manifest.json",
                           hint=f'"images_per_class": {count // classes} in it')


def _of_the_same_machine(old: dict, manifest: dict, folder: Path) -> dict:
    """The manifest with the machine of the old one, and a note where that differs."""
    here = manifest.get("made_on")
    if here and old.get("made_on") not in (None, here):
        print(f"note: {folder} was begun on {old['made_on']}, this is {here}: images of the two "
              "may differ in their last bits")
    settings = {k: v for k, v in manifest.items() if k != "made_on"}
    return settings | ({"made_on": old["made_on"]} if "made_on" in old else {})


def _flat(manifest: dict, prefix: str = "") -> dict:
    out = {}
    for key, value in manifest.items():
        out |= _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {
            prefix + key: value}
    return out


@contextlib.contextmanager
def _alone(folder: Path) -> Iterator[Path]:
    """Only one process at a time starts, or writes the files at the top of the set; held for
    moments. Yields the folder of locks."""
    locks = Path(folder) / ".lock"
    try:
        with files.locked(locks / "start", str(folder), blocking=True):
            yield locks
    finally:
        _remove_if_empty(locks)


def _remove_if_empty(locks: Path) -> None:
    with contextlib.suppress(OSError):
        locks.rmdir()  # the last one out leaves no trace


@contextlib.contextmanager
def writing(folder: Path, rank: int, world_size: int) -> Iterator[None]:
    """Hold the set for one (rank, world) pair.

    Raises:
        LockedError: the same rank is alive, or any rank of another world size.
    """
    mine = f"rank{rank}of{world_size}"
    with contextlib.ExitStack() as stack:
        with _alone(folder) as locks:
            stack.callback(_remove_if_empty, locks)
            for other in sorted(locks.glob("rank*of*")):
                if other.name != mine and not other.name.endswith(f"of{world_size}"):
                    try:
                        with files.locked(other, str(folder)):
                            pass
                    except LockedError as error:
                        raise LockedError(
                            f"{folder} is being written by {files.holder(other)} as "
                            f"{other.name}", lock=other,
                            hint=f"the same --world-size as it ({other.name}), or wait") from error
            stack.enter_context(files.locked(locks / mine, str(folder)))
            files.remove_stale_temps(folder)
        yield


def make(image_set: ImageSet, sample: Callable[[Tensor, list[int]], Tensor], rank: int,
         world_size: int, progress: Callable[[int], None],
         finish: Callable[[Tensor], Tensor] | None = None,
         damaged: dict[int, str] | None = None) -> int:
    """Make the missing shards of this rank; then, if none is missing at all, write the index.

    A second thread encodes and writes a shard while the next one is sampled. At most one shard
    waits for it, in order, so a kill loses two shards at most; what stops the thread (a full disk)
    is raised here.

    Args:
        sample: (labels int64 [B], seeds) -> uint8 [B, C, H, W]; see generators/.
        progress: told the number of images after each shard.
        finish: what makes uint8 [B, C, H, W] on the CPU of sample's value, in the second thread.
        damaged: every shard to be made again, this rank's and others' (None: not a repair). Each
            keeps its record until then, and must come out with the same pixels.

    Returns:
        How many shards were made.
    """
    plan, made, since, seconds = image_set.plan, 0, time.monotonic(), 0.0

    def write(j: int, value: Tensor, seconds: float) -> int:
        again = image_set.record_path(j).exists() or damaged and j in damaged
        known = image_set.known_pixels(j) if again else None  # a set that grows keeps its images
        value = finish(value) if finish else value
        image_set.note_seconds(shard=j, seconds=round(seconds, 6))  # no record without its time
        image_set.write_shard(j, value, known)
        return plan.kept(j)

    with ThreadPoolExecutor(1) as writer:
        pending = None
        for j in range(rank, plan.shards, world_size):
            if not (damaged and j in damaged) and image_set.record(j) is not None:
                continue
            keys = plan.shard(j)
            labels = torch.tensor([label for label, _ in keys])
            value = sample(labels, [plan.seed(*key) for key in keys])
            if pending:
                progress(pending.result())
            since, before = time.monotonic(), since
            seconds = since - before
            pending, last = writer.submit(write, j, value, seconds), j
            made += 1
        if pending:
            progress(pending.result())
            seconds += time.monotonic() - since  # nothing was sampled while the last was written
            image_set.note_seconds(shard=last, seconds=round(seconds, 6))
    with _alone(image_set.folder):
        ready = (not image_set.complete if damaged is None else
                 not any(image_set.shard_damage(j) for j in damaged))  # other ranks' are whole too
        if ready and not image_set.missing():
            for place in (image_set.folder / "shards", *image_set.folder.glob("images/*")):
                files.remove_stale_temps(place)  # every shard is made: no other rank needs its own
            image_set.write_index()
    return made


def damaged_shards(image_set: ImageSet, progress: Callable[[int], None], rank: int = 0,
                   world_size: int = 1) -> dict[int, str]:
    """Every shard of a rank's whose bytes are not as recorded, with what is wrong."""
    found = {}
    for j in range(rank, image_set.plan.shards, world_size):
        damage = image_set.shard_damage(j)
        if damage:
            found[j] = damage
        progress(image_set.plan.kept(j))
    return found


# --- pixels ---------------------------------------------------------------------------------------

def encode_png(image: Tensor) -> bytes:
    """uint8 [C, H, W], C = 1 or 3 -> PNG."""
    array = image.permute(1, 2, 0).contiguous().numpy()
    buffer = io.BytesIO()
    Image.fromarray(array[:, :, 0] if array.shape[2] == 1 else array).save(
        buffer, "PNG", compress_level=6)
    return buffer.getvalue()


def encode_all(images: list[Tensor]) -> Iterator[bytes]:
    """`encode_png` of each in order; large ones by several threads (zlib works without Python's
    lock)."""
    if images[0].shape[1] < LARGE_SIDE:
        yield from map(encode_png, images)
        return
    with ThreadPoolExecutor(ENCODERS) as pool:
        yield from pool.map(encode_png, images)


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


def packed(image_set: ImageSet, cache: Path, progress: Callable[[int], None],
           side: int | None = None) -> tuple[Tensor, Tensor]:
    """All images of a complete set as one uint8 memory map [N, C, H, W], and their labels [N].

    Built once per index digest in `cache`; each file's digest is checked on the way.

    Args:
        side: resize the images to side x side pixels (default: as they are).

    Raises:
        DamagedError: a file is not as the index says; nothing is left behind.
        StorageError: no space for the map.
    """
    rows, m, key = image_set.index(), image_set.manifest, image_set.digest
    shape = (m["channels"], m["resolution"], m["resolution"])
    resized = side not in (None, m["resolution"])
    if resized:
        key = files.sha256(f"{key} {side}".encode())

    def images() -> Iterator[Tensor]:
        for image in _checked(image_set, rows, shape):
            yield augment.resize(image[None], side, side)[0] if resized else image
            progress(1)

    final = (len(rows), shape[0], side, side) if resized else (len(rows), *shape)
    images, _ = image_files.packed(cache, key, final, images, str(image_set.folder))
    return images, torch.tensor([row["label"] for row in rows])


def whole_file(path: Path, digest: str) -> bytes:
    """An image file of a set.

    Raises:
        DamagedError: it is gone, or not what it was."""
    hint = "its synthesize command with --repair"
    try:
        data = path.read_bytes()
    except OSError as error:
        raise DamagedError("an image of the set cannot be read", file=path, found=error.strerror,
                           hint=hint) from error
    if files.sha256(data) != digest:
        raise DamagedError(f"{path.name} is damaged (sha256 differs)", file=path, hint=hint)
    return data


def _checked(image_set: ImageSet, rows: list[dict], shape: tuple) -> Iterator[Tensor]:
    """The set's images in order, each compared with its digest; several are decoded at a time."""
    def checked(row: dict) -> Tensor:
        path = image_set.folder / row["path"]
        image = read_image(whole_file(path, row["sha256"]), path, shape[0])
        if image.shape != shape:
            raise DamagedError(f"the image is {list(image.shape)}, the set's are {list(shape)}",
                               file=path)
        return image

    with ThreadPoolExecutor(image_files.DECODERS if shape[1] >= LARGE_SIDE else 1) as pool:
        for start in range(0, len(rows), DECODED_AHEAD):
            yield from pool.map(checked, rows[start:start + DECODED_AHEAD])
