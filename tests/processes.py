"""Commands as real processes that a test can kill at an exact point. Not a test itself.

A start of Python costs seconds (imports), so one server process imports the package and forks a
child for each command; no numbers are computed before the fork. In a child, every moment of
every durable write (after the opening, in the middle, before and after fsync, rename and removal)
has a name such as "before replace last.pt" and is counted; a test asks for a signal at one of them.
No hook is in the package: the child wraps `os` and `open`.

    ended = processes.run("synthesize", "--task", "digits", ...)
    ended = processes.run("distill", ..., at="half last.pt", count=2)      # kill -9 there
    child = processes.start("distill", ...); child.signal(15); child.wait()
"""

import atexit
import functools
import io
import json
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
WAIT_SECONDS = 120.0


# --- the tests' side ------------------------------------------------------------------------------

@dataclass(frozen=True)
class Ended:
    """How a command ended. code: as a shell shows it (137 = kill -9)."""

    code: int
    out: str
    err: str
    moments: tuple[str, ...]  # all of them, if it ended by itself
    seconds: float


class Child:
    """A running command."""

    def __init__(self, pid: int, folder: Path):
        self.pid, self.folder = pid, folder
        self.started = time.monotonic()

    def signal(self, number: int) -> None:
        os.kill(self.pid, number)

    def wait(self) -> Ended:
        code = _ask({"do": "wait", "pid": self.pid})["code"]
        text = {name: (self.folder / name).read_text(errors="replace")
                if (self.folder / name).exists() else "" for name in ("out", "err", "moments")}
        shutil.rmtree(self.folder)
        return Ended(code, text["out"], text["err"], tuple(text["moments"].splitlines()),
                     time.monotonic() - self.started)

    def wait_until_stopped(self) -> None:
        """Until a SIGSTOP that was asked for has stopped it."""
        for _ in range(int(WAIT_SECONDS / 0.01)):
            if Path(f"/proc/{self.pid}/stat").read_text().rsplit(")", 1)[1].split()[0] == "T":
                return
            time.sleep(0.01)
        raise AssertionError(f"process {self.pid} did not stop")


def start(entry: str, *argv: object, at: str | int | None = None, count: int = 1,
          send: int = signal.SIGKILL, file_limit_bytes: int | None = None) -> Child:
    """Start `python -m dm_kd.ENTRY ARGV`, by a fork.

    Args:
        at: the moment of the signal, by name, or by number among all moments (from 0).
        count: at which occurrence of the name.
        send: the signal.
        file_limit_bytes: no file may become larger; stands for a full disk.
    """
    folder = Path(tempfile.mkdtemp(prefix="dm_kd_child_"))
    reply = _ask({"do": "start", "entry": entry, "argv": [str(a) for a in argv],
                  "folder": str(folder), "at": at, "count": count, "send": int(send),
                  "limit": file_limit_bytes})
    return Child(reply["pid"], folder)


def run(entry: str, *argv: object, **options: object) -> Ended:
    return start(entry, *argv, **options).wait()


def random_kills(entry: str, *argv: object, out: Path, kills: int, seconds: float) -> None:
    """Run the command and kill -9 it, after a random time below `seconds`, until that has hit a
    living process `kills` times. Where the command has come to its end before that, its folder is
    removed and it begins again."""
    chance, hit = random.Random(kills), 0
    for _ in range(20 * kills):
        child = start(entry, *argv, "--out", out)
        time.sleep(chance.uniform(0.0, seconds))
        child.signal(signal.SIGKILL)  # not reaped before wait(), so the pid is still its own
        ended = child.wait()
        assert ended.code in (0, 137), ended.err
        hit += ended.code == 137
        if hit == kills:
            return
        if ended.code == 0:
            shutil.rmtree(out)
    raise AssertionError(f"only {hit} of {kills} kills hit")


def contents(folder: Path) -> dict[str, bytes]:
    """Every file below a folder, hidden ones and folders too, by relative path."""
    return {str(p.relative_to(folder)): b"" if p.is_dir() else p.read_bytes()
            for p in sorted(Path(folder).rglob("*"))}


def error_lines(text: str) -> list[str]:
    """Standard error without notes of progress."""
    return [line for line in text.splitlines() if line.strip() and " s left" not in line]


@functools.cache
def _server() -> subprocess.Popen:
    server = subprocess.Popen([sys.executable, __file__], stdin=subprocess.PIPE, text=True,
                              stdout=subprocess.PIPE, cwd=ROOT, start_new_session=True)
    atexit.register(server.stdin.close)
    return server


def _ask(request: dict) -> dict:
    server = _server()
    server.stdin.write(json.dumps(request) + "\n")
    server.stdin.flush()
    reply = server.stdout.readline()
    assert reply, "the fork server ended"
    return json.loads(reply)


# --- the server's side ----------------------------------------------------------------------------

def serve() -> None:
    sys.path.insert(0, str(ROOT))
    import importlib

    import matplotlib.backends.backend_agg  # noqa: F401
    import matplotlib.pyplot  # noqa: F401
    import sklearn.datasets  # noqa: F401
    import sklearn.model_selection  # noqa: F401
    import torch._dynamo  # noqa: F401  (the first optimizer imports it: seconds)

    for name in ("synthesize", "distill", "train_teacher", "train_generator", "evaluate",
                 "generators.dit", "generators.noise"):
        importlib.import_module(f"dm_kd.{name}")
    children = set()
    for line in sys.stdin:
        request = json.loads(line)
        if request["do"] == "start":
            pid = os.fork()
            if pid == 0:
                _be_child(request)
            children.add(pid)
            reply = {"pid": pid}
        else:
            reply = {"code": _wait(request["pid"])}
            children.discard(request["pid"])
        print(json.dumps(reply), flush=True)
    for pid in children:
        os.kill(pid, signal.SIGKILL)


def _wait(pid: int) -> int:
    deadline = time.monotonic() + WAIT_SECONDS
    while True:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            code = os.waitstatus_to_exitcode(status)
            return 128 - code if code < 0 else code
        if time.monotonic() > deadline:
            os.kill(pid, signal.SIGKILL)
            deadline = float("inf")
        time.sleep(0.002)


def _be_child(request: dict) -> None:
    """Become the command; never returns."""
    import importlib

    folder, catchers, code = Path(request["folder"]), [], 1
    try:
        os.setsid()
        signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored if pytest runs with "&"
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND
        os.dup2(os.open(folder / "out", flags), 1)
        os.dup2(os.open(folder / "err", flags), 2)
        if request["limit"]:  # which holds for files only: the output goes through pipes
            for number, name in ((1, "out"), (2, "err")):
                with open(folder / name, "wb") as file:
                    cat = subprocess.Popen(["cat"], stdin=subprocess.PIPE, stdout=file)
                os.dup2(cat.stdin.fileno(), number)
                cat.stdin.close()
                catchers.append(cat)
            resource.setrlimit(resource.RLIMIT_FSIZE, (request["limit"], request["limit"]))
        moments = Moments(request["at"], request["count"], request["send"])
        moments.watch()
        code = importlib.import_module(f"dm_kd.{request['entry']}").main(request["argv"])
        if not request["limit"]:
            moments.off = True
            (folder / "moments").write_text("".join(f"{m}\n" for m in moments.seen))
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        for number, cat in enumerate(catchers, 1):
            os.close(number)
            cat.wait()
        os._exit(code)


class Moments:
    """Names and counts what the process does to the disk; sends itself a signal at one moment."""

    def __init__(self, at: str | int | None, count: int, send: int):
        self.at, self.count, self.send = at, count, send
        self.seen, self.off = [], False

    def __call__(self, name: str) -> None:
        if self.off:
            return
        index = len(self.seen)
        self.seen.append(name)
        if index == self.at or name == self.at and self.seen.count(name) == self.count:
            os.kill(os.getpid(), self.send)

    def watch(self) -> None:
        from dm_kd import engine, files

        for function in ("replace", "unlink", "rmdir"):
            setattr(os, function, self._around(getattr(os, function), function,
                                               -1 if function == "replace" else 0))
        os.fsync = self._around(os.fsync, "fsync", 0)
        os.open = self._around(os.open, "open", 0, only="start")  # the lock of image_set.writing
        files.open = self._open
        step = engine.train_step

        def train_step(*args: object) -> object:
            self("step")
            return step(*args)

        engine.train_step = train_step

    def _around(self, function, name: str, which: int, only: str | None = None):
        def wrapped(*args: object, **options: object) -> object:
            about = _short(args[which])
            if only not in (None, about):
                return function(*args, **options)
            self(f"before {name} {about}")
            value = function(*args, **options)
            self(f"after {name} {about}")
            return value
        return wrapped

    def _open(self, path: object, mode: str = "r", *args: object, **options: object) -> object:
        if mode != "wb":
            return open(path, mode, *args, **options)
        file = HalfWriter(io.FileIO(path, "w"))
        file.moments, file.about = self, _short(path)
        self(f"opened {file.about}")
        return file


class HalfWriter(io.BufferedWriter):
    """A file whose every write has a moment in its middle."""

    def write(self, data: bytes) -> int:
        half = len(data) // 2
        super().write(data[:half])
        self.flush()
        self.moments(f"half {self.about}")
        return half + super().write(data[half:])


def _short(place: object) -> str:
    """'.last.pt.tmp.123' or its descriptor -> 'last.pt'."""
    path = os.readlink(f"/proc/self/fd/{place}") if isinstance(place, int) else os.fspath(place)
    name = os.path.basename(path)
    return name[1:].split(".tmp.")[0] if ".tmp." in name else name


if __name__ == "__main__":
    serve()
