"""Commands as real processes that a test can kill at an exact point.

multiprocessing's fork server imports the package, which takes seconds, and forks a child for each
command. A child counts its training steps ("step") and the files that it writes ("before last.pt",
"after last.pt"), and sends itself a signal at the one that a test names.

    ended = processes.run("distill", ..., at="before last.pt", count=2)      # kill -9 there
    ended = processes.ranks("distill", ..., processes=2)       # as torchrun would start them
"""

import atexit
import importlib
import multiprocessing
import os
import runpy
import signal
import socket
import sys
import tempfile
import traceback
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple
from unittest import mock

ROOT = Path(__file__).resolve().parent.parent
SERVER = multiprocessing.get_context("forkserver")
SERVER.set_forkserver_preload([
    "processes", "matplotlib.pyplot", "matplotlib.backends.backend_agg", "sklearn.datasets",
    "sklearn.model_selection", "torch._dynamo",  # the first optimizer imports it
    *(f"dm_kd.{entry}" for entry in ("synthesize", "distill", "train_teacher", "train_generator",
                                     "evaluate"))])


class Ended(NamedTuple):
    code: int  # as a shell shows it: 137 after kill -9
    out: str
    err: str


class Child:
    """A running `python -m dm_kd.ENTRY ARGV`, or a Python file, which gets the signal `send` at the
    moment `at` when that comes for the `count`-th time."""

    def __init__(self, entry: object, *argv: object, at: str = "", count: int = 1,
                 send: int = signal.SIGKILL, environment: dict | None = None):
        self.folder = tempfile.TemporaryDirectory(prefix="dm_kd_child_")
        self.process = SERVER.Process(target=_be_child, args=(
            self.folder.name, str(entry), [str(a) for a in argv], (at, count, send),
            environment or {}))
        path = {"PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}"}  # of the server, if it starts now
        with mock.patch.dict(os.environ, path):
            self.process.start()
        atexit.register(self.process.kill)  # else the tests wait for it at their end

    def wait(self) -> Ended:
        self.process.join()
        code = self.process.exitcode
        with self.folder:
            out, err = (Path(self.folder.name, name).read_text() for name in ("out", "err"))
        return Ended(128 - code if code < 0 else code, out, err)


def run(entry: object, *argv: object, **options: object) -> Ended:
    return Child(entry, *argv, **options).wait()


def ranks(entry: str, *argv: object, processes: int) -> list[Ended]:
    """The same command in several processes that find each other as under torchrun."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    group = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "GLOO_SOCKET_IFNAME": "lo",
             "WORLD_SIZE": str(processes)}
    children = [Child(entry, *argv, environment={**group, "RANK": str(r), "LOCAL_RANK": str(r)})
                for r in range(processes)]
    return [child.wait() for child in children]


def contents(folder: Path) -> dict[str, bytes]:
    """The files below a folder by relative path; b"" for a folder. Not those whose names start with
    a dot (locks, and what a killed process left half-written), nor an image set's command."""
    return {str(p.relative_to(folder)): b"" if p.is_dir() else p.read_bytes()
            for p in sorted(Path(folder).rglob("*")) if not p.name.startswith(".")
            and p.name != "command.txt"}


def _be_child(folder: str, entry: str, argv: list[str], moment: tuple, environment: dict) -> None:
    """Become the command; never returns."""
    code = 1
    try:
        os.setsid()
        signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored if pytest runs with "&"
        for number, name in ((1, "out"), (2, "err")):
            os.dup2(os.open(Path(folder, name), os.O_WRONLY | os.O_APPEND | os.O_CREAT), number)
        os.environ.update(environment)
        watch(*moment)
        if entry.endswith(".py"):
            sys.argv = [entry, *argv]
            runpy.run_path(entry, run_name="__main__")
            code = 0
        else:
            code = importlib.import_module(f"dm_kd.{entry}").main(argv)
    except SystemExit as error:
        code = error.code
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def watch(at: str, count: int, send: int = signal.SIGKILL) -> None:
    """Send this process a signal at a training step, or before or after it writes a file."""
    from dm_kd import engine, image_set

    seen, step = Counter(), engine.train_step

    def note(moment: str) -> None:
        seen[moment] += 1
        if moment == at and seen[moment] == count:
            os.kill(os.getpid(), send)

    def train_step(*args: object, **options: object) -> object:
        note("step")
        return step(*args, **options)

    def noted(write: Callable, path: int) -> Callable:
        def call(*args: object) -> None:
            note(f"before {Path(args[path]).name}")
            write(*args)
            note(f"after {Path(args[path]).name}")

        return call

    engine.train_step, os.replace = train_step, noted(os.replace, path=1)
    image_set.write_over = noted(image_set.write_over, path=0)
