"""Commands as real processes that a test can kill at an exact point.

One server imports the package, which takes seconds, and forks a child for each command. A child
counts its training steps ("step") and the files that it puts in place ("before last.pt", "after
last.pt"), and sends itself a signal at the one that a test names.

    ended = processes.run("synthesize", "--task", "digits", ...)
    ended = processes.run("distill", ..., at="before last.pt", count=2)      # kill -9 there
    child = processes.start("distill", ...); child.signal(15); child.wait()
    ended = processes.ranks("distill", ..., processes=2)       # as torchrun would start them
"""

import atexit
import functools
import importlib
import json
import os
import random
import runpy
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import traceback
from collections import Counter
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parent.parent


# --- the tests' side ------------------------------------------------------------------------------

class Ended(NamedTuple):
    code: int  # as a shell shows it: 137 after kill -9
    out: str
    err: str
    seconds: float


class Child:
    """A running command."""

    def __init__(self, pid: int, folder: Path):
        self.pid, self.folder, self.started = pid, folder, time.monotonic()

    def signal(self, number: int) -> None:
        os.kill(self.pid, number)

    def wait(self) -> Ended:
        code = _ask({"do": "wait", "pid": self.pid})
        out, err = ((self.folder / name).read_text() for name in ("out", "err"))
        shutil.rmtree(self.folder)
        return Ended(code, out, err, time.monotonic() - self.started)

    def wait_until_stopped(self) -> None:
        """Until a SIGSTOP that was asked for has stopped it."""
        while Path(f"/proc/{self.pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "T":
            time.sleep(0.01)


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
    children = [start(entry, *argv, environment={**group, "RANK": str(rank)})
                for rank in range(processes)]
    return [child.wait() for child in children]


def random_kills(entry: str, *argv: object, out: Path, kills: int, seconds: float) -> None:
    """Run the command and kill -9 it after a random time below `seconds`, until that has hit a
    living process `kills` times. Where the command has ended before, it begins anew."""
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
        _watch(request["at"], request["count"], request["send"])
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


def _watch(at: str, count: int, send: int) -> None:
    """Make training steps and os.replace note their moments."""
    from dm_kd import engine

    seen, step, replace = Counter(), engine.train_step, os.replace

    def note(moment: str) -> None:
        seen[moment] += 1
        if moment == at and seen[moment] == count:
            os.kill(os.getpid(), send)

    def train_step(*args: object, **options: object) -> object:
        note("step")
        return step(*args, **options)

    def watched_replace(source: object, target: object) -> None:
        note(f"before {Path(target).name}")
        replace(source, target)
        note(f"after {Path(target).name}")

    engine.train_step, os.replace = train_step, watched_replace


if __name__ == "__main__":
    serve()
