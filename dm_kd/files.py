"""Durable files: all-or-nothing writes, digests, one-writer locks.

A file written here is either the old one or the new one after a crash, never half of one. A digest
(SHA-256) finds accidents, not attacks.
"""

import errno
import hashlib
import json
import os
import socket
import time
from collections.abc import Callable
from contextlib import contextmanager
from pathlib import Path

from dm_kd.errors import DamagedError, LockedError, StorageError, UserError

TEMP_MARK = ".tmp."  # a crash can leave these behind; the next writer of the folder removes them
_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_REFUSED = {errno.EACCES, errno.EPERM, errno.EROFS}
_NO_PATH = {errno.ENOTDIR, errno.EEXIST, errno.EISDIR, errno.ENAMETOOLONG, errno.ELOOP}


def storage_error(error: OSError, path: Path, size_bytes: int = 0) -> UserError | None:
    """The user's version of an operating system error, or None if it is of another kind."""
    if error.errno in _FULL:
        need = f", {size_bytes / 1e6:.1f} MB were needed" if size_bytes else ""
        return StorageError(f"no space left while writing {path.name}{need}", file=path,
                            hint="free some space and run the same command again; "
                                 "what was complete is kept")
    if error.errno in _REFUSED:
        return StorageError(f"cannot write {path.name}: {error.strerror}", file=path,
                            hint="choose a folder that you may write to")
    if error.errno in _NO_PATH:
        return UserError(f"the path cannot be used: {error.strerror}", path=error.filename or path,
                         hint="another path")
    return None


def durable_write(path: Path, data: bytes | str) -> None:
    """Write `data` so that a crash at any moment leaves the old file or the new one, never a part.

    Temporary file in the same folder, fsync, mode by umask, rename, fsync of the folder.

    Raises:
        StorageError: disk full, quota or file-size limit reached, read-only place.
    """
    durable_write_all({Path(path): data.encode() if isinstance(data, str) else data})


def durable_write_all(contents: dict[Path, bytes]) -> None:
    """The same for several files, in steps for all of them: the first fsync carries the data of all
    to the disk, and each folder needs one. A crash leaves each file old or new.

    Raises:
        StorageError: as `durable_write`."""
    temps = {path: path.with_name(f".{path.name}{TEMP_MARK}{os.getpid()}") for path in contents}
    try:
        for path, data in contents.items():
            path.parent.mkdir(parents=True, exist_ok=True)
            with open(temps[path], "wb") as file:
                file.write(data)
        for path in contents:
            _fsync(temps[path])
        for path in contents:
            os.replace(temps[path], path)
        for folder in dict.fromkeys(path.parent for path in contents):
            _fsync(folder)
    except OSError as error:
        for temp in temps.values():
            temp.unlink(missing_ok=True)
        known = storage_error(error, path, len(contents[path]))
        if known:
            raise known from error
        raise


def write_json(path: Path, value: object) -> None:
    durable_write(path, json.dumps(value, indent=1, sort_keys=False, allow_nan=False) + "\n")


def read_json(path: Path, hint: str = "") -> dict:
    """A JSON object from a file.

    Raises:
        DamagedError: not JSON, or not an object at the top.
    """
    try:
        value = json.loads(Path(path).read_bytes())
    except (ValueError, RecursionError) as error:
        raise DamagedError(f"{Path(path).name} is not valid JSON", file=path,
                           found=str(error)[:100], hint=hint) from error
    if not isinstance(value, dict):
        raise DamagedError(f"{Path(path).name} should hold a JSON object, "
                           f"found {type(value).__name__}", file=path, hint=hint)
    return value


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def sha256_file(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def tensors_digest(tensors: dict) -> str:
    """SHA-256 of a dict of tensors: names, types, shapes and bytes."""
    import torch

    digest = hashlib.sha256()
    for name, value in tensors.items():
        value = value.detach().cpu().contiguous()
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}\n".encode())
        digest.update(value.reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


def remove_stale_temps(folder: Path, name: str = "") -> None:
    """Remove what a killed writer left half-written of files whose names begin with `name`. Call it
    while holding their lock."""
    for temp in Path(folder).glob(f".{name}*{TEMP_MARK}*"):
        temp.unlink(missing_ok=True)


def check_free_space(folder: Path, size_bytes: int, what: str) -> None:
    """Refuse early what could not be finished.

    Raises:
        StorageError: less than `size_bytes` free where `folder` is or will be.
    """
    place = Path(folder).absolute()
    while not place.exists():
        place = place.parent
    stat = os.statvfs(place)
    free = stat.f_bavail * stat.f_frsize
    if free < size_bytes:
        raise StorageError(f"{what} needs {size_bytes / 1e9:.2f} GB, {free / 1e9:.2f} GB are free",
                           folder=place, hint="free some space, or give another folder")


def must_exist(path: Path, flag: str, what: str) -> Path:
    """The path itself.

    Raises:
        UserError: there is nothing at `path`; the message names the flag.
    """
    if not Path(path).exists():
        raise UserError(f"{what} not found", path=path, hint=f"{flag} with a path that exists")
    return Path(path)


@contextmanager
def locked(lock_file: Path, busy: str, blocking: bool = False):
    """Hold `lock_file` for the length of the block; the file names its holder and goes at the end.

    The lock is the kernel's (flock): it ends with the process, however that ends. It does not hold
    on every network file system.

    Args:
        lock_file: a path nobody else writes to.
        busy: what is being written, for the message.
        blocking: wait for the holder instead of raising.

    Raises:
        LockedError: a live process holds it.
    """
    from filelock import FileLock, Timeout

    lock_file = Path(lock_file)
    for tries_left in reversed(range(20)):
        try:
            lock_file.parent.mkdir(parents=True, exist_ok=True)
            lock = FileLock(lock_file)
            lock.acquire(timeout=-1 if blocking else 0)
            break
        except Timeout as error:
            raise LockedError(f"{busy} is being written by {holder(lock_file)}", lock=lock_file,
                              hint="wait for it to end, or stop it") from error
        except FileNotFoundError:  # a process that ended removed the empty folder meanwhile
            if not tries_left:
                raise
        except OSError as error:
            raise storage_error(error, lock_file) or error from error
    try:
        lock_file.write_text(f"pid {os.getpid()} on {socket.gethostname()} "
                             f"since {time.strftime('%H:%M')}")
        yield
    finally:
        lock_file.unlink(missing_ok=True)
        lock.release()


def holder(lock_file: Path) -> str:
    """Who holds the lock, as the holder wrote it."""
    try:
        return Path(lock_file).read_text().strip() or "another process"
    except OSError:
        return "another process"


def encode_tensors(state: dict) -> bytes:
    """A plain dict of tensors, numbers, strings, lists and dicts as the bytes of a `.pt` file."""
    import io

    import torch

    buffer = io.BytesIO()
    torch.save(state, buffer)
    return buffer.getvalue()


def load_pt(path: Path, device: str = "cpu") -> dict:
    """Read a `.pt` file that holds tensors and plain values. Never runs code from it.

    Raises:
        UserError: the file asks for other Python objects (they are named; none is made).
        DamagedError: truncated or not such a file.
    """
    import pickle

    import torch

    try:
        return torch.load(path, map_location=device, weights_only=True)
    except pickle.UnpicklingError as error:
        import re

        names = re.findall(r"GLOBAL ([\w.]+)", str(error))
        with open(path, "rb") as file:
            start = file.read(4)
        pickled = start[:1] == b"\x80" or start == b"PK\3\4"  # bare or zipped; else it is damage
        if names or pickled and "Unsupported" in str(error):
            found = ", ".join(sorted(set(names))[:3]) or "an unsupported object"
            raise UserError("the file asks to run code; it was refused", file=path,
                            found=found, hint="a file of plain tensors (safetensors, or a "
                                              "state dict saved with torch.save)") from error
        raise DamagedError("not a readable weights file", file=path,
                           found="neither a zip archive nor a pickle of tensors") from error
    except (FileNotFoundError, IsADirectoryError, PermissionError) as error:
        raise UserError("cannot read the file", file=path, found=error.strerror) from error
    except Exception as error:  # zip, tar and storage errors come in many classes
        raise DamagedError("the weights file is damaged or truncated", file=path,
                           found=(str(error).splitlines() or [type(error).__name__])[0][:100],
                           ) from error


def load_safetensors(path: Path) -> dict:
    """Tensors of a safetensors file.

    Raises:
        DamagedError: truncated, or not such a file.
    """
    import safetensors
    import safetensors.torch

    try:
        return safetensors.torch.load_file(path)
    except (safetensors.SafetensorError, OSError, ValueError) as error:
        raise DamagedError("the weights file is damaged or truncated", file=path,
                           found=str(error).splitlines()[0][:100]) from error


def save_safetensors(path: Path, tensors: dict) -> str:
    """Write tensors durably and return the file's SHA-256. (safetensors' own `save_file` neither
    syncs nor keeps the umask's mode.)"""
    import safetensors.torch

    data = safetensors.torch.save({name: value.detach().cpu().contiguous()
                                   for name, value in tensors.items()})
    durable_write(path, data)
    return sha256(data)


def write_with_card(folder: Path, name: str, tensors: dict, card: dict) -> str:
    """Write `name.safetensors` and then `name.json`, the card that says what it is.

    Returns the weights' SHA-256, which the card holds too."""
    digest = save_safetensors(Path(folder) / f"{name}.safetensors", tensors)
    write_json(Path(folder) / f"{name}.json", {**card, "sha256": digest})
    return digest


def read_with_card(folder: Path, name: str) -> tuple[dict, dict]:
    """Tensors and card written by `write_with_card`.

    Raises:
        DamagedError: the digest in the card is not the file's.
    """
    file, card_file = Path(folder) / f"{name}.safetensors", Path(folder) / f"{name}.json"
    card = read_json(card_file)
    if card.get("sha256") != sha256_file(must_exist(file, "a folder that holds it:", file.name)):
        raise DamagedError(f"{file.name} is damaged (sha256 differs from its card)", file=file,
                           card=card_file, hint="make it again, or copy both files again")
    return load_safetensors(file), card


def atomically(write: Callable[[Path], None], path: Path) -> None:
    """Let `write` fill a temporary file that then takes the place of `path` (for pictures)."""
    path = Path(path)
    temp = path.with_name(f".{path.stem}{TEMP_MARK}{os.getpid()}{path.suffix}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write(temp)
        os.replace(temp, path)
    except OSError as error:
        raise storage_error(error, path) or error from error
    finally:
        temp.unlink(missing_ok=True)


def _fsync(path: Path) -> None:
    """Of a file or a folder."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
