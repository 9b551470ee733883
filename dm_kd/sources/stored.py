"""Stored images, real or synthetic, in a stateless shuffled order.

The order of an epoch is a function of (seed, epoch), so a run that starts again at a step needs
nothing but the step's number.
"""

import argparse
import dataclasses
import re
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from dm_kd import augment, files, image_files
from dm_kd.errors import DamagedError
from dm_kd.image_files import ImageFiles
from dm_kd.real_data import RealData
from dm_kd.run import Progress
from dm_kd.tasks import Task, load_real, may_have_seen

CHUNK = 256  # images decoded at a time


def gathered(images: Tensor | ImageFiles, task: Task, cache: Path, judged: bool
             ) -> tuple[Tensor | ImageFiles, str | None]:
    """Images as the loop reads them, and a digest of files (None for tensors) that stays when they
    are moved.

    Files become one memory map wherever all their images have one size: what is judged as centre
    crops, small images resized to the task's size. For random-resized crops only files that differ
    in size stay files, decoded when they are cut.

    Args:
        cache: folder of the maps.

    Raises:
        DamagedError: a file is bad; it is named.
    """
    if not isinstance(images, ImageFiles):
        return images, None
    fingerprint, side = images.fingerprint, task.resolution
    size = (side, side) if judged or not task.crop else common_size(images, fingerprint, cache)
    if size is None:
        return images, images.identity
    shape = (len(images), images.channels, *size)

    def decoded() -> Iterator[Tensor]:
        bar = Progress(len(images), "read images", "images")
        for chunk in torch.arange(len(images)).split(CHUNK):
            for image in images[chunk]:
                if judged and task.crop:
                    image = augment.centre_crops([image], side)[0]
                elif not task.crop and image.shape[1:] != (side, side):
                    image = augment.resize(image[None], side, side)[0]
                yield image
            bar.update(len(chunk))
        bar.close()

    key = files.sha256(f"{fingerprint} {shape} {judged and task.crop}".encode())
    return image_files.packed(cache, key, shape, decoded, images.names[0])


def set_labels(manifest: dict, labels: torch.Tensor, task: Task) -> tuple[torch.Tensor, str | None]:
    """(a set's labels as the task's indices, what is worth saying of them). Two folders have the
    task name "folder" both: so classes are found by name. All labels are -1 where the set is of
    another task, or one of its classes is none of the task's."""
    unknown = torch.full_like(labels, -1)
    if manifest["task"] != task.name:
        return unknown, None
    classes, ours = manifest["classes"], task.class_names
    expected = [ours[c] if c < len(ours) else None for c in classes]
    names = manifest.get("class_names", expected)
    if names == expected and None not in names:  # also where two of them share a name, as cranes do
        return labels, None
    if not isinstance(names, list) or len(names) != len(classes):
        names = [None] * len(classes)
    strange = [name for name in names if name not in ours]
    if strange:
        return unknown, (f"the set's labels are not used: {len(strange)} of its {len(classes)} "
                         f"classes are none of the task's, first: {strange[0]}")
    table = torch.full((max(classes) + 1,), -1)
    table[torch.tensor(classes)] = torch.tensor([ours.index(name) for name in names])
    return table[labels], "the set numbers its classes in another way: its labels go by name"


def seen_note(generator: dict | None, task: Task, args: argparse.Namespace) -> str | None:
    """A line for the user where a set's generator may have learnt from what `args` judge on."""
    said = re.fullmatch(rf"real training images of {re.escape(task.name)}, fold (\d+) "
                        r"\(--val (\w+)\)", str((generator or {}).get("trained_on")))
    if not said or not may_have_seen(int(said[1]), said[2], args):
        return None
    return (f"note: the set's generator was trained for fold {said[1]} with --val {said[2]}; it "
            f"may have seen images that fold {args.fold} with --val {args.val} judges on")


def common_size(images: ImageFiles, fingerprint: str, cache: Path) -> tuple[int, int] | None:
    """(height, width) of all images, None where they differ. Every file's header is read for it, so
    that missing, empty and foreign files are found before any training, though not what is damaged
    further in: decoding names that. The answer is kept in the cache."""
    known = Path(cache) / f"{fingerprint[:24]}.size.json"
    try:
        size = files.read_json(known)["size"]
        if size is None or size == list(images.size(0)):
            return size and tuple(size)
    except (OSError, KeyError, DamagedError):
        pass  # not known yet
    sizes = set(images.sizes())
    size = sizes.pop() if len(sizes) == 1 else None
    files.write_json(known, {"size": size, "images": len(images)})
    return size


def load_judged(task: Task, args: argparse.Namespace) -> RealData | None:
    """What --val judges on, as a tensor; None with --val none. args: task, data, fold, val, cache.

    Raises:
        UserError: the images are not there.  DamagedError: one is bad."""
    real = load_real(task, "val", args.fold, args.val, args.data)
    if real is None:
        return None
    return dataclasses.replace(real, images=gathered(real.images, task, args.cache, True)[0])


def resident(images: Tensor | ImageFiles, labels: Tensor, device: torch.device
             ) -> tuple[Tensor | ImageFiles, Tensor]:
    """On the device where they take less than half of its free memory; labels with them."""
    if device.type == "cpu" or not isinstance(images, Tensor):
        return images, labels
    if images.numel() >= torch.cuda.mem_get_info(device)[0] // 2:
        return images, labels
    return images.to(device), labels.to(device)


def far_from(device: torch.device, images: Tensor | ImageFiles) -> bool:
    """Whether a GPU would wait for each batch to be gathered or decoded on the CPU."""
    return device.type == "cuda" and not (isinstance(images, Tensor) and images.is_cuda)


def making(generator: dict | None, images: int, seconds: dict | None = None) -> dict:
    """What so many images of a set took: evaluations and passes in images, from its manifest's
    generator; making_seconds, and the pretraining_seconds of the generator. Nothing where that is
    not known.

    Args:
        seconds: {"making_seconds": of all its images, "of_images": how many these are,
            "pretraining_seconds"}, None where unknown. Importing images is not making them.
    """
    found, used = seconds or {}, evaluations(generator, images)
    if found.get("making_seconds") is not None and generator["name"] != "import":
        used["making_seconds"] = round(found["making_seconds"] * images / found["of_images"], 3)
    if found.get("pretraining_seconds") is not None:
        used["pretraining_seconds"] = found["pretraining_seconds"]
    return used


def evaluations(generator: dict | None, images: int) -> dict:
    """generator_evaluations, teacher_passes and student_passes of so many images of a set."""
    name = (generator or {}).get("name")
    if name in ("noise", "one_image", "import"):
        return {"generator_evaluations": 0}
    if name in ("dit", "sit"):
        each = generator["steps"] * (2 if generator.get("sampler") == "heun" else 1)
        low, high = generator.get("guidance_interval", (0.0, 1.0))
        if generator["guidance_scale"] not in (0, 1):
            each += round(each * (high - low))
        steered = "teacher_guidance" in generator  # predicts once more for the teacher
        looked = images * generator["steps"]
        return {"generator_evaluations": images * each * (1 + steered),
                "teacher_passes": looked * steered,
                **({"student_passes": looked} if "student" in generator else {})}
    if name == "imf":
        return {"generator_evaluations": images * generator["steps"]}
    if name in ("gan", "biggan"):
        return {"generator_evaluations": images}
    if name == "deepinversion":
        return {"generator_evaluations": 0, "teacher_passes": images * generator["iterations"]}
    return {}


class StoredSource:
    """Images in memory, or in a memory map.

    Args:
        images: uint8 [N, C, H, W], or files of several sizes.
        labels: int64 [N], -1 = unknown.
        batch_size: of all ranks together; a multiple of the world size.
        steps_per_epoch: default ceil(N / batch_size), the last batch filled from a second order.
        ahead: gather the next batch in a thread while the step before it runs, into pinned memory
            where there is a GPU. The same batches.
        made: what making the images took, where it is known, as `making` has it.
        spare: uint8 images of the same set that are not trained on.
    """

    def __init__(self, images: Tensor | ImageFiles, labels: Tensor, batch_size: int, seed: int,
                 rank: int = 0, world_size: int = 1, steps_per_epoch: int | None = None,
                 ahead: bool = False, made: dict | None = None, spare: Tensor | None = None):
        assert batch_size % world_size == 0, (batch_size, world_size)
        self.images, self.labels, self.seed = images, labels, seed
        self.batch_size, self.rank, self.world_size = batch_size, rank, world_size
        self.steps_per_epoch = steps_per_epoch or -(-len(images) // batch_size)
        self.ahead, self.pinned = ahead, ahead and torch.cuda.is_available()
        self.spare = spare
        self._order = None, None  # the last epoch asked for, and its order
        made = {"generator_evaluations": None, "teacher_passes": 0, "student_passes": 0,
                **(made or {})}
        self.seconds = {k: made.pop(k) for k in ("making_seconds", "pretraining_seconds")
                        if k in made}  # apart: a run's rows are the same for every equal set
        self.made = made

    def order(self, epoch: int) -> np.ndarray:
        """Virtual ids of an epoch, int64 [steps_per_epoch * batch_size]: position + N times the
        number of times the image came before, so that each is unique and gets its own view."""
        if self._order[0] == epoch:
            return self._order[1]
        count, size = self.steps_per_epoch * self.batch_size, len(self.images)
        rounds = [np.random.Generator(np.random.PCG64([self.seed, epoch, r])).permutation(size)
                  + r * size for r in range(-(-count // size))]
        self._order = epoch, np.concatenate(rounds)[:count]
        return self._order[1]

    def batches(self, epoch: int, first_step: int = 0, student: object = None
                ) -> Iterator[tuple[Tensor | list[Tensor], Tensor, Tensor]]:
        """(images uint8 [B/W, C, H, W] or a list of [C, h, w], labels, virtual ids) of this rank,
        from `first_step`."""
        order = torch.from_numpy(self.order(epoch))
        share = self.batch_size // self.world_size

        def batch(step: int) -> tuple[Tensor | list[Tensor], Tensor, Tensor]:
            start = step * self.batch_size + self.rank * share
            ids = order[start:start + share]
            return *self.gather(ids % len(self.images)), ids

        steps = range(first_step, self.steps_per_epoch)
        yield from one_ahead(batch, steps) if self.ahead else map(batch, steps)

    def gather(self, index: Tensor) -> tuple[Tensor | list[Tensor], Tensor]:
        """(images, labels) at the positions `index`, int64 [B] on the CPU."""
        index = augment.send(index, self.labels.device)
        if not self.pinned:
            images = (torch.index_select(self.images, 0, index)  # on CPUs 3 times faster than [...]
                      if isinstance(self.images, Tensor) else self.images[index])
            return images, self.labels[index]
        labels = self.labels[index].pin_memory()
        if not isinstance(self.images, Tensor):
            return self.images[index], labels
        images = torch.empty((len(index), *self.images.shape[1:]), dtype=torch.uint8,
                             pin_memory=True)  # of torch's pool: not used again before it was sent
        return torch.index_select(self.images, 0, index, out=images), labels

    def warm_up(self, student: object) -> Iterator[int]:
        """Nothing comes before the first step."""
        return iter(())

    def held_out(self, student: object) -> Tensor | None:
        """Images of the same set that were not trained on."""
        return self.spare

    def budget(self) -> dict[str, int | None]:
        """What this source has used, in images; the loop's own passes come on top."""
        return {"images_kept": len(self.images), **self.made}

    def state_dict(self) -> dict:
        """Nothing: the order is a function."""
        return {}

    def load_state_dict(self, state: dict) -> None:
        assert state == {}, state


def one_ahead(make: Callable, items: range) -> Iterator:
    """make(item) of each in turn; a thread makes the next one while the caller has this one."""
    with ThreadPoolExecutor(1, "gather") as thread:
        coming = None
        for item in items:
            ready, coming = coming, thread.submit(make, item)
            if ready is not None:
                yield ready.result()
        if coming is not None:
            yield coming.result()
