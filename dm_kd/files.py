"""Old names of what is in run.py. Delete this file when nothing imports it."""

import contextlib
import io
import os
from pathlib import Path

from dm_kd import run
from dm_kd.run import (  # noqa: F401
    UserError,
    load_safetensors,
    read_with_card,
    replacing,
    sha256,
    sha256_file,
    tensors_digest,
    write_json,
    write_with_card,
)

durable_write = run.write_file


def durable_write_all(contents: dict) -> None:
    for path, data in contents.items():
        run.write_file(path, data)


def read_json(path, hint: str = "") -> dict:
    value = run.read_json(path)
    if not isinstance(value, dict):
        raise UserError(f"{path} is no JSON object", hint)
    return value


def load_pt(path, device: str = "cpu") -> dict:
    return run.load_pt(path)


def must_exist(path, flag: str = "", what: str = "") -> Path:
    if not Path(path).exists():
        raise UserError(f"{what} not found: {path}", f"{flag} with a path that exists")
    return Path(path)


def storage_error(error: OSError, path, size_bytes: int = 0) -> UserError:
    return UserError(f"cannot write {path}: {error.strerror}")


def check_free_space(folder, size_bytes: int, what: str) -> None:
    place = Path(folder).absolute()
    while not place.exists():
        place = place.parent
    stat = os.statvfs(place)
    if stat.f_bavail * stat.f_frsize < size_bytes:
        raise UserError(f"{what} needs {size_bytes / 1e9:.2f} GB", f"free some space in {place}")


def remove_stale_temps(folder, name: str = "") -> None:
    for temp in Path(folder).glob(f".{Path(name).stem}*.tmp.*"):
        temp.unlink(missing_ok=True)


@contextlib.contextmanager
def locked(lock_file, busy: str, blocking: bool = False):
    from filelock import FileLock, Timeout

    Path(lock_file).parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(lock_file)
    try:
        lock.acquire(timeout=-1 if blocking else 0)
    except Timeout as error:
        raise UserError(f"{busy} is being written by another process") from error
    try:
        yield
    finally:
        Path(lock_file).unlink(missing_ok=True)
        lock.release()


def holder(lock_file) -> str:
    return "another process"


def encode_tensors(state: dict) -> bytes:
    import torch

    buffer = io.BytesIO()
    torch.save(state, buffer)
    return buffer.getvalue()


def save_safetensors(path, tensors: dict) -> str:
    import safetensors.torch

    data = safetensors.torch.save({k: v.detach().cpu().contiguous() for k, v in tensors.items()})
    run.write_file(path, data)
    return sha256(data)


def atomically(write, path) -> None:
    with replacing(path) as temp:
        write(temp)
