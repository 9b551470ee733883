"""What all commands use: errors, flags, config files, signals, progress, files, the Run folder."""

import argparse
import contextlib
import ctypes
import difflib
import functools
import hashlib
import importlib.util
import json
import math
import os
import platform
import re
import shlex
import shutil
import signal
import subprocess
import sys
import sysconfig
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import filelock
import safetensors.torch
import torch
import yaml
from tqdm import tqdm

from dm_kd import dist

# Settings that may change when a run is resumed: its result does not depend on them.
VOLATILE = {"out", "config", "command", "dry_run", "data", "cache", "checkpoint_seconds"}
PROGRESS_SECONDS = 10.0  # between lines, where there is no terminal
tqdm.monitor_interval = 0  # no thread of tqdm's: commands fork


class UserError(Exception):
    """A user's mistake: `main` prints `error: what`, below it the hint, and exits with code 2."""

    def __init__(self, what: str, hint: str = ""):
        super().__init__(f"{what}\n  {hint}" if hint else what)


class Stopped(Exception):
    """Raised after a signal, its argument, once everything is saved."""


def nearest(name: str, known) -> str:
    """A hint: the known names closest to `name`, or the first twelve if none is close."""
    close = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
    return ("did you mean " if close else "one of ") + ", ".join(close or sorted(known)[:12])


def refuse_difference(old: dict, new: dict, folder: Path, what: str = "another run") -> None:
    """Raise a UserError that names the settings in which `old` and `new` differ."""
    changed = [f"{key}: {old.get(key)} -> {new.get(key)}"
               for key in sorted(old.keys() | new.keys()) if old.get(key) != new.get(key)]
    if changed:
        raise UserError(f"{folder} holds {what} ({', '.join(changed)})",
                        "use another --out, or the settings as they were")


# --- flags ----------------------------------------------------------------------------------------

def _number(kind: type, low: float, high: float = math.inf, above: bool = False) -> Callable:
    """A flag's type: a finite number from `low` (or above it) to `high`."""
    def number(text: str):
        value = kind(text)  # argparse turns a ValueError into its own message
        if low <= value <= high and value < math.inf and not (above and value == low):
            return value
        raise argparse.ArgumentTypeError(f"{text} is not {'above' if above else 'from'} {low}"
                                         + (f" to {high}" if high < math.inf else ""))

    return number


positive_int = _number(int, 1)
nonnegative_int = _number(int, 0)
positive_float = _number(float, 0, above=True)
nonnegative_float = _number(float, 0)
probability = _number(float, 0, 1)


def epoch_list(text: str) -> tuple[int, ...]:
    """'30,60,90' -> (30, 60, 90); '' -> ()."""
    return tuple(positive_int(part) for part in text.split(",") if part.strip())


def numbers(text: str) -> tuple[float, ...]:
    """'0.5,0.5,0.5' -> (0.5, 0.5, 0.5)."""
    return tuple(float(part) for part in text.split(","))


class Parser(argparse.ArgumentParser):
    """argparse whose errors are UserErrors, and whose flags cannot be abbreviated."""

    def __init__(self, module: str, description: str):
        super().__init__(f"python -m dm_kd.{module}", description=description, allow_abbrev=False,
                         formatter_class=argparse.RawDescriptionHelpFormatter)

    def error(self, message: str) -> None:
        raise UserError(message, f"{self.prog} --help")


def add_common_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument_group("common").add_argument
    add("--config", metavar="FILE",
        help="YAML file of flags, such as a run's config.yaml; typed flags win")
    add("--seed", type=nonnegative_int, default=0, metavar="N",
        help="seed of all randomness (default: %(default)s)")
    add("--device", default="auto", help="cpu, cuda, cuda:1 ... (default: cuda if there is a GPU)")
    add("--threads", type=positive_int, default=2, metavar="N",
        help="CPU threads; a result's last bits depend on them (%(default)s)")
    add("--dry-run", action="store_true", help="print the plan, write nothing")


def add_task_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument_group("task").add_argument
    add("--task", required=True, metavar="NAME", help="the data set, e.g. digits")
    add("--data", type=Path, metavar="PATH",
        help="folder of the real images (default: the usual places)")
    add("--class-order", type=Path, metavar="FILE",
        help="the class folders' names in the order of the networks' outputs, one a line (default: "
             "sorted as text, as torchvision's ImageFolder does)")
    add("--resolution", type=positive_int, metavar="PIXELS",
        help="of large images (default: 224); below 100 a folder's images are small ones: resized "
             "to it, padded and cropped in training")
    add("--channels", type=int, choices=(1, 3), help="of a folder's images (default: 3)")
    for name in ("mean", "std"):
        add(f"--{name}", type=numbers, metavar="X,X,X",
            help="of each channel, of images in [0, 1] (default: ImageNet's)")


def add_data_arguments(parser: argparse.ArgumentParser) -> None:
    add_task_arguments(parser)
    add = parser.add_argument_group("real data").add_argument
    add("--cache", type=Path, default=Path("save/cache"), metavar="DIR",
        help="where unpacked images are kept (default: %(default)s)")
    add("--fold", type=nonnegative_int, default=0, metavar="N",
        help="cross-validation fold, where a task has them (default: %(default)s)")
    add("--val", choices=("val", "dev", "none"), default="val",
        help="evaluate on the validation split, on a held-out part of the training data (to "
             "choose settings), or not at all (default: %(default)s)")


def add_compile_argument(parser: argparse._ActionsContainer) -> None:
    parser.add_argument(
        "--compile", choices=("auto", "on", "off"), default="auto",
        help="torch.compile the networks (default: on GPUs, where Triton and a C compiler are)")


def parse(parser: argparse.ArgumentParser, argv: list[str]) -> argparse.Namespace:
    """The flags of `argv` over those of its --config file over the defaults."""
    words = _with_config(argv)
    for flag in (word.partition("=")[0] for word in words if word.startswith("--")):
        if flag not in parser._option_string_actions:  # before argparse asks for required ones
            raise UserError(f"no flag {flag}", nearest(flag, parser._option_string_actions))
    args = parser.parse_args(words)
    args.command = shlex.join([*parser.prog.split(), *argv])
    return args


def peek(argv: list[str], flag: str, default: str = "") -> str:
    """The value of a flag that decides which other flags there are, before the parser is built."""
    argv = argv if flag == "config" else _with_config(argv)
    early = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    early.add_argument(f"--{flag}", nargs="?", dest="value")  # without a value: `parse` complains
    return early.parse_known_args(argv)[0].value or default


def _with_config(argv: list[str]) -> list[str]:
    """argv after the lines of its --config file as --flag=value, so that a value means what it
    would mean if typed. BaseLoader builds text, lists and dicts only, and runs nothing."""
    path = peek(argv, "config")
    if not path:
        return argv
    try:
        config = yaml.load(Path(path).read_bytes(), yaml.BaseLoader) or {}
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise UserError(f"{path} is not YAML: {' '.join(str(error).split())[:200]}") from error
    if not isinstance(config, dict):
        raise UserError(f"{path} must consist of lines `flag: value`")
    config.pop("inputs", None)  # in a run's config.yaml; these are not flags
    flags = []
    for key, value in config.items():
        option = f"--{key}".replace("_", "-")
        if not isinstance(value, str):
            raise UserError(f"{path}: '{key}' must be one value")
        if value == "true":
            flags.append(option)
        elif value not in ("false", "null"):
            flags.append(f"{option}={value}")
    return flags + argv


def command(body: Callable[[list[str]], None]) -> Callable[[list[str] | None], int]:
    """Decorates a command's `main`: it takes sys.argv's flags unless it is given some, and returns
    the exit code, 2 after a user's mistake, 128 + n after signal n, both without a traceback."""
    @functools.wraps(body)
    def main(argv: list[str] | None = None) -> int:
        signal.signal(signal.SIGTERM, signal.default_int_handler)  # raises KeyboardInterrupt
        try:
            body(sys.argv[1:] if argv is None else argv)
            return 0
        except (UserError, OSError) as error:
            print(f"error: {error}", file=sys.stderr)  # an OSError names its path
            return 2
        except (Stopped, KeyboardInterrupt) as error:
            print("stopped; run the same command again to resume", file=sys.stderr)
            return 128 + (error.args or (signal.SIGINT,))[0]
        finally:
            dist.stop()

    return main


@contextlib.contextmanager
def stoppable() -> Iterator[Callable[[], int]]:
    """Inside the block SIGTERM and SIGINT only set a number that the loop can ask for (0 = none),
    so that it saves first."""
    received = [0]
    before = {number: signal.signal(number, lambda number, frame: received.append(number))
              for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield lambda: received[-1]
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def use_device(args: argparse.Namespace) -> torch.device:
    """The device that --device names, set as the current one. Sets the number of CPU threads. On a
    GPU kernels are deterministic, unless the command has the flag --deterministic, off."""
    torch.set_num_threads(args.threads)
    if sys.platform == "linux":
        # glibc returns large blocks to the system, which clears them again at their next use: 64
        # crops of 224 pixels took 18 ms to standardise in place of 3
        libc = ctypes.CDLL(None)
        for option, value in ((-4, 0), (-1, 1 << 30)):  # M_MMAP_MAX, M_TRIM_THRESHOLD
            getattr(libc, "mallopt", lambda *_: 0)(option, value)
    if args.device == "auto":
        args.device = "cuda" if torch.cuda.is_available() else "cpu"
    if not re.fullmatch(r"cpu|cuda(:\d+)?", args.device) or (
            args.device != "cpu" and not torch.cuda.is_available()):
        raise UserError(f"no device {args.device} here", "--device cpu")
    device = torch.device(args.device)
    if device.type == "cuda":
        if device.index is None or dist.world_size() > 1:  # each rank has a GPU
            device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0)))
        torch.cuda.set_device(device)  # before anything is allocated, else on GPU 0 too
        if getattr(args, "deterministic", True):
            os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read at its first use
            torch.use_deterministic_algorithms(True, warn_only=True)
            torch.utils.deterministic.fill_uninitialized_memory = False  # slow, changes no result
        else:
            torch.backends.cudnn.benchmark = True  # the fastest of all kernels
    return device


def resolve_compile(choice: str, device: torch.device) -> str:
    """"on" or "off"; auto is on for GPUs that Triton supports, where a C compiler and Python's
    headers are installed."""
    if choice != "auto":
        return choice
    compiler = os.environ.get("CC") or shutil.which("gcc") or shutil.which("clang")
    headers = Path(sysconfig.get_paths()["include"], "Python.h").exists()
    able = (device.type == "cuda" and importlib.util.find_spec("triton") and compiler and headers
            and (torch.version.hip or torch.cuda.get_device_capability(device) >= (7, 0)))
    return "on" if able else "off"


def progress(total: int, what: str, unit: str = "it", done: int = 0) -> tqdm:
    """A bar on a terminal, elsewhere a line every 10 seconds, on standard error."""
    lines = {} if sys.stderr.isatty() else {
        "bar_format": "{desc}: {n_fmt}/{total_fmt}{unit}, {rate_fmt}, {remaining} left\n",
        "mininterval": PROGRESS_SECONDS, "delay": PROGRESS_SECONDS, "miniters": 1}
    return tqdm(total=total, desc=what, unit=f" {unit}", initial=done, leave=False, **lines)


# --- the machine and the program, for records ----------------------------------------------------

def versions() -> dict:
    """Versions of Python and of those packages that shape results and are in use."""
    names = ("torch", "torchvision", "numpy", "timm", "diffusers", "transformers")
    return {"python": platform.python_version(),
            **{name: sys.modules[name].__version__ for name in names if name in sys.modules}}


def hardware(device: torch.device) -> dict:
    """Names of the processor and the GPU, cores, threads and processes."""
    record = {"cpu": "".join(re.findall(r"model name\s*: (.*)", _cpuinfo())[:1]),
              "cores": os.cpu_count(), "threads": torch.get_num_threads(),
              "processes": dist.world_size()}
    if device.type == "cuda":
        record["gpu"] = torch.cuda.get_device_name(device)
    return record


def multiplies_bf16(device: torch.device) -> bool:
    """Whether the hardware multiplies bfloat16 itself: emulation is slower than float32."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return bool(re.search("avx512_bf16|amx_bf16", _cpuinfo()))


def _cpuinfo() -> str:
    path = Path("/proc/cpuinfo")
    return path.read_text() if path.exists() else ""


def commit() -> str:
    """The project's git commit, with + if files differ from it; 'unknown' outside git."""
    command = ["git", "describe", "--always", "--abbrev=12", "--dirty=+", "--exclude=*"]
    with contextlib.suppress(OSError):
        return subprocess.run(command, cwd=Path(__file__).parent, capture_output=True,
                              text=True).stdout.strip() or "unknown"
    return "unknown"


# --- files ----------------------------------------------------------------------------------------

@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary name whose file takes the place of `path` at the end of the block. Killed at any
    moment, `path` is the old file or the new one, never a part."""
    temp = Path(path).with_name(f".{Path(path).stem}.tmp.{os.getpid()}{Path(path).suffix}")
    temp.parent.mkdir(parents=True, exist_ok=True)
    try:
        yield temp
        with open(temp, "rb") as file:
            os.fsync(file.fileno())
        os.replace(temp, path)
    finally:
        temp.unlink(missing_ok=True)


def write_file(path: Path, data: bytes | str) -> None:
    with replacing(path) as temp:
        temp.write_bytes(data.encode() if isinstance(data, str) else data)


def write_json(path: Path, value: object) -> None:
    write_file(path, json.dumps(value, indent=1, allow_nan=False) + "\n")


def read_json(path: Path) -> dict:
    return json.loads(Path(path).read_bytes())


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def sha256_file(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def load_pt(path: Path) -> dict:
    """The contents of a file of torch.save, on the CPU; a UserError if the file is damaged or would
    run code."""
    with open(path, "rb") as file:
        try:
            return torch.load(file, map_location="cpu", weights_only=True)
        except Exception as error:  # a damaged file raises one of many classes
            if wanted := re.findall(r"GLOBAL ([\w.]+)", str(error)):
                raise UserError(f"{path} holds more than tensors: it asks to run {wanted[0]}",
                                "save model.state_dict() where it was trained") from error
            raise UserError(f"{path} is damaged: {str(error)[:100]}") from error


def load_safetensors(path: Path) -> dict:
    try:
        return safetensors.torch.load_file(path)
    except (safetensors.SafetensorError, ValueError) as error:
        raise UserError(f"{path} is damaged or truncated: {error}") from error


def encoded(tensors: dict) -> bytes:
    """The tensors in the safetensors format."""
    return safetensors.torch.save({key: value.detach().cpu().contiguous()
                                   for key, value in tensors.items()})


def write_with_card(folder: Path, name: str, tensors: dict, card: dict) -> str:
    """Write NAME.safetensors, then NAME.json, which describes the weights and has their SHA-256.
    Returns that SHA-256."""
    data = encoded(tensors)
    write_file(Path(folder) / f"{name}.safetensors", data)
    write_json(Path(folder) / f"{name}.json", {**card, "sha256": sha256(data)})
    return sha256(data)


def read_with_card(folder: Path, name: str) -> tuple[dict, dict]:
    """Tensors and card that `write_with_card` wrote; a UserError if they do not belong together."""
    weights, card = Path(folder) / f"{name}.safetensors", read_json(Path(folder) / f"{name}.json")
    if card.get("sha256") != sha256_file(weights):
        raise UserError(f"{weights} is damaged: its sha256 is not that of {name}.json")
    return load_safetensors(weights), card


# --- the Run folder -------------------------------------------------------------------------------

class Run:
    """One training's folder. `with Run(...) as run:` keeps a second writer out; only rank 0 writes.

    args (the flags) and inputs (digests of teacher and images) are written to config.yaml; a run
    can only be resumed with the same ones. weights_name: such as "student".
    """

    def __init__(self, folder: Path, args: argparse.Namespace, inputs: dict, weights_name: str):
        self.folder, self.weights_name = Path(folder), weights_name
        self.settings = {name: _plain(value) for name, value in sorted(vars(args).items())
                         if name not in VOLATILE}
        ranks = dist.world_size()  # each computes batch statistics of its share of a batch
        self.inputs = inputs | ({"processes": ranks} if ranks > 1 else {})
        self.checkpoint_seconds, self.saved_at = args.checkpoint_seconds, time.monotonic()
        self.command = args.command

    def __enter__(self) -> "Run":
        if dist.is_main():
            config = self.folder / "config.yaml"
            if config.exists():
                old = yaml.safe_load(config.read_bytes())
                old |= old.pop("inputs", {})
                refuse_difference(old, self.settings | self.inputs, self.folder)
            self.folder.mkdir(parents=True, exist_ok=True)
            self.lock = filelock.FileLock(self.folder / ".lock", timeout=0)
            try:
                self.lock.acquire()
            except filelock.Timeout as error:
                raise UserError(f"another process writes to {self.folder}") from error
            for temp in self.folder.glob(".*.tmp.*"):  # of a killed process
                temp.unlink()
            if not config.exists():
                write_file(config, yaml.safe_dump(self.settings | {"inputs": self.inputs},
                                                  sort_keys=False))
        dist.wait()
        return self

    def __exit__(self, *error: object) -> None:
        if dist.is_main():
            self.lock.release()

    @property
    def result(self) -> dict | None:
        """result.json; None while the run is not finished."""
        path = self.folder / "result.json"
        return read_json(path) if path.exists() else None

    def log(self, text: str) -> None:
        """Print a line, and append it to log.txt, on rank 0."""
        if dist.is_main():
            tqdm.write(text, file=sys.stdout)  # above a bar, if there is one
            sys.stdout.flush()
            with open(self.folder / "log.txt", "a", encoding="utf-8") as file:
                file.write(text + "\n")

    def add_metrics(self, row: dict) -> None:
        """Append an epoch's row to metrics.jsonl; it replaces one from before a kill."""
        if dist.is_main():
            rows = [old for old in read_metrics(self.folder) if old["epoch"] < row["epoch"]]
            write_file(self.folder / "metrics.jsonl",
                       "".join(json.dumps(r) + "\n" for r in [*rows, row]))

    def due(self) -> bool:
        """Whether the last checkpoint is older than --checkpoint-seconds."""
        return time.monotonic() - self.saved_at >= self.checkpoint_seconds

    def save_checkpoint(self, state: dict) -> None:
        self.saved_at = time.monotonic()
        if dist.is_main():
            with replacing(self.folder / "last.pt") as temp:
                torch.save(state, temp)

    def load_checkpoint(self) -> dict | None:
        path = self.folder / "last.pt"
        return load_pt(path) if path.exists() else None

    def save_best(self, tensors: dict) -> None:
        """Write the weights of the highest validation accuracy so far."""
        if dist.is_main():
            write_file(self.folder / "best.safetensors", encoded(tensors))

    def finish(self, tensors: dict, card: dict, result: dict) -> None:
        """Write the weights, their card, and result.json, which makes the run a finished one."""
        if dist.is_main():
            digest = write_with_card(self.folder, self.weights_name, tensors, card)
            write_json(self.folder / "result.json", {
                **result, "weights_sha256": digest, "command": self.command,
                "commit": commit(), "versions": versions()})
        dist.wait()


def _plain(value: object) -> object:
    """A flag's value as it would be typed."""
    if isinstance(value, tuple | list):
        return ",".join(str(v) for v in value)
    return str(value) if isinstance(value, Path) else value


def read_metrics(folder: Path) -> list[dict]:
    """The rows of metrics.jsonl, one per epoch."""
    path = Path(folder) / "metrics.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
