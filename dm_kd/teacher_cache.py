"""The teacher's logits of every training image, kept on disk for the next student.

    python -m dm_kd.distill ... --cache-teacher          (fp16; --cache-teacher fp32: the same bits)

A student with the same seed, views, batches and teacher, whatever its network, rate or objective,
reads them instead of running the teacher. Nothing is approximated by re-use: every epoch has views
of its own, so every epoch has logits of its own.

    save/cache/teacher_<key>/settings.json    what the logits are made of; the key is its digest
    save/cache/teacher_<key>/0007.logits      epoch 8: a record per step and process: the logits of
                                              its images in the batch's order, and their SHA-256

A record counts only where its digest holds, so a run may be killed at any byte, and what is damaged
is computed again. Records are read and written by position, not mapped: on a full disk a write to a
map would end the process without a word.
"""

import hashlib
import json
import os
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

from dm_kd import files
from dm_kd.errors import UserError

STORAGE = {"fp16": torch.float16, "fp32": torch.float32}
DIGEST_BYTES = 32


class TeacherCache:
    """Logits by (epoch, step, rank).

    Args:
        cache: the folder of all caches.
        settings: everything that makes the logits, JSON values; another value is another cache.
        storage: "fp16" or "fp32", the numbers on disk and in the loss.
        shape: (images of one record, classes).
        epochs, steps_per_epoch: how many records will be asked for.
        log: takes a line for the user.

    Raises:
        StorageError: no space for the records that are still missing.
    """

    def __init__(self, cache: Path, settings: dict, storage: str, shape: tuple[int, int],
                 epochs: int, steps_per_epoch: int, rank: int, world_size: int,
                 log: Callable[[str], None]):
        settings = {**settings, "storage": storage, "shape": list(shape), "world_size": world_size}
        key = files.sha256(json.dumps(settings, sort_keys=True).encode())
        self.folder, self.dtype, self.shape = Path(cache) / f"teacher_{key[:24]}", STORAGE[
            storage], shape
        self.rank, self.world_size, self.log = rank, world_size, log
        self.logits_bytes = shape[0] * shape[1] * self.dtype.itemsize
        self._file, self._epoch, self._said = -1, -1, set()
        whole = steps_per_epoch * world_size * self.record_bytes
        missing = sum(max(0, whole - _size(self.path(epoch))) for epoch in range(epochs))
        files.check_free_space(self.folder, missing, "--cache-teacher")
        if rank == 0 and not (self.folder / "settings.json").exists():
            files.write_json(self.folder / "settings.json", settings)
        log(f"teacher's logits in {self.folder}: {missing / 1e9:.2f} of {epochs * whole / 1e9:.2f} "
            "GB are still to be computed")

    @property
    def record_bytes(self) -> int:
        return self.logits_bytes + DIGEST_BYTES

    def path(self, epoch: int) -> Path:
        return self.folder / f"{epoch:04d}.logits"

    def logits(self, teacher: nn.Module, epoch: int, step: int, x: Tensor) -> Tensor:
        """float32 [images, classes] of a batch: from the disk, or from the teacher and then kept.
        Both give the number that is on the disk, so a run that goes on sees no other.

        Raises:
            UserError: logits too large for float16.  StorageError: no space left."""
        record = self.read(epoch, step)
        if record is None:
            found = teacher(x).float()
            record = found.to(self.dtype).cpu()
            assert record.shape == self.shape, (record.shape, self.shape)
            if record.isinf().any() and found.isfinite().all():
                raise UserError("the teacher's logits are too large for float16",
                                largest=f"{found.abs().max().item():g}",
                                hint="--cache-teacher fp32")
            self.write(epoch, step, record)
        if x.device.type == "cuda":
            record = record.pin_memory()
        return record.to(x.device, non_blocking=True).float()

    def read(self, epoch: int, step: int) -> Tensor | None:
        """The record, or None where there is none or it is damaged (which is said, once a file)."""
        data = os.pread(self._opened(epoch), self.record_bytes, self._offset(step))
        content, digest = data[:self.logits_bytes], data[self.logits_bytes:]
        if len(digest) < DIGEST_BYTES or not any(digest):
            return None  # not written yet, or a kill came between its first and last byte
        if hashlib.sha256(content).digest() != digest:
            if epoch not in self._said:
                self._said.add(epoch)
                self.log(f"{self.path(epoch)} is damaged (sha256 differs, step {step + 1}); the "
                         "teacher computes it again")
            return None
        return torch.frombuffer(bytearray(content), dtype=self.dtype).view(self.shape)

    def write(self, epoch: int, step: int, record: Tensor) -> None:
        content = record.numpy().tobytes()
        data, offset = content + hashlib.sha256(content).digest(), self._offset(step)
        try:
            while data:  # near a limit a write may be a short one
                written = os.pwrite(self._opened(epoch), data, offset)
                data, offset = data[written:], offset + written
        except OSError as error:
            raise files.storage_error(error, self.path(epoch), len(content)) or error from error

    def _offset(self, step: int) -> int:
        return (step * self.world_size + self.rank) * self.record_bytes

    def _opened(self, epoch: int) -> int:
        if epoch != self._epoch:
            self.close()
            try:
                self.folder.mkdir(parents=True, exist_ok=True)
                self._file = os.open(self.path(epoch), os.O_RDWR | os.O_CREAT, 0o666)
            except OSError as error:
                raise files.storage_error(error, self.path(epoch)) or error from error
            self._epoch = epoch
        return self._file

    def close(self) -> None:
        if self._file >= 0:
            os.close(self._file)
        self._file = self._epoch = -1


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0
