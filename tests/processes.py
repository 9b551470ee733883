"""Commands as real processes that a test can kill at an exact point.

One server imports the package, which takes seconds, and forks a child for each command. A child
counts its training steps ("step") and the files that it writes ("before last.pt", "after
last.pt"), and sends itself a signal at the one that a test names.

    ended = processes.run("distill", ..., at="before last.pt", count=2)      # kill -9 there
    ended = processes.ranks("distill", ..., processes=2)       # as torchrun would start them
"""

import atexit
import functools
import importlib
import json
import os
import runpy
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import traceback
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parent.parent


# --- the tests' side ------------------------------------------------------------------------------

class Ended(NamedTuple):
    code: int  # as a shell shows it: 137 after kill -9
    out: str
    err: str


class Child:
    """A running command."""

    def __init__(self, pid: int, folder: Path):
        self.pid, self.folder = pid, folder

    def wait(self) -> Ended:
        code = _ask({"do": "wait", "pid": self.pid})
        out, err = ((self.folder / name).read_text() for name in ("out", "err"))
        shutil.rmtree(self.folder)
        return Ended(code, out, err)


def start(entry: str, *argv: object, at: str = "", count: int = 1, send: int = signal.SIGKILL,
          environment: dict | None = None) -> Child:
    """Start `python -m dm_kd.ENTRY ARGV`, or a Python file, by a fork, which gets the signal `send`
    at the moment `at` when that comes for the `count`-th time."""
    folder = Path(tempfile.mkdtemp(prefix="dm_kd_child_"))
    for name in ("out", "err"):
        (folder / name).touch()
    return Child(_ask({"do": "start", "entry": str(entry), "argv": [str(a) for a in argv],
                       "folder": str(folder), "at": at, "count": count, "send": int(send),
                       "environment": environment or {}}), folder)


def run(entry: str, *argv: object, **options: object) -> Ended:
    return start(entry, *argv, **options).wait()


def ranks(entry: str, *argv: object, processes: int) -> list[Ended]:
    """The same command in several processes that find each other as under torchrun."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    group = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "GLOO_SOCKET_IFNAME": "lo",
             "WORLD_SIZE": str(processes)}
    children = [start(entry, *argv, environment={**group, "RANK": str(r), "LOCAL_RANK": str(r)})
                for r in range(processes)]
    return [child.wait() for child in children]


def contents(folder: Path) -> dict[str, bytes]:
    """The files below a folder by relative path; b"" for a folder. Not those whose names start with
    a dot (locks, and what a killed process left half-written), nor an image set's command."""
    return {str(p.relative_to(folder)): b"" if p.is_dir() else p.read_bytes()
            for p in sorted(Path(folder).rglob("*")) if not p.name.startswith(".")
            and p.name != "command.txt"}


@functools.cache
def _server() -> subprocess.Popen:
    server = subprocess.Popen([sys.executable, __file__], stdin=subprocess.PIPE, text=True,
                              stdout=subprocess.PIPE, cwd=ROOT, start_new_session=True)
    atexit.register(server.stdin.close)
    return server


def _ask(request: dict) -> int:
    server = _server()
    server.stdin.write(json.dumps(request) + "\n")
    server.stdin.flush()
    reply = server.stdout.readline()
    assert reply, "the fork server ended"
    return int(reply)


# --- the server's side ----------------------------------------------------------------------------

def serve() -> None:
    sys.path.insert(0, str(ROOT))
    for name in ("matplotlib.pyplot", "matplotlib.backends.backend_agg", "sklearn.datasets",
                 "sklearn.model_selection", "torch._dynamo",  # the first optimizer imports it
                 *(f"dm_kd.{entry}" for entry in ("synthesize", "distill", "train_teacher",
                                                  "train_generator", "evaluate"))):
        importlib.import_module(name)
    children = set()
    for line in sys.stdin:
        request = json.loads(line)
        if request["do"] == "start":
            answer = os.fork() or _be_child(request)
            children.add(answer)
        else:
            _, status = os.waitpid(request["pid"], 0)
            code = os.waitstatus_to_exitcode(status)
            answer = 128 - code if code < 0 else code  # as a shell says it
            children.discard(request["pid"])
        print(answer, flush=True)
    for pid in children:
        os.kill(pid, signal.SIGKILL)


def _be_child(request: dict) -> None:
    """Become the command; never returns."""
    code = 1
    try:
        os.setsid()
        signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored if pytest runs with "&"
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        for number, name in ((1, "out"), (2, "err")):
            os.dup2(os.open(Path(request["folder"], name), os.O_WRONLY | os.O_APPEND), number)
        os.environ.update(request["environment"])
        watch(request["at"], request["count"], request["send"])
        if request["entry"].endswith(".py"):
            sys.argv = [request["entry"], *request["argv"]]
            runpy.run_path(request["entry"], run_name="__main__")
            code = 0
        else:
            code = importlib.import_module(f"dm_kd.{request['entry']}").main(request["argv"])
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


if __name__ == "__main__":
    serve()


class Bomb:
    """A pickle that would touch a file when it is read."""

    def __init__(self, canary):
        self.canary = canary

    def __reduce__(self):
        return os.system, (f"touch '{self.canary}'",)
