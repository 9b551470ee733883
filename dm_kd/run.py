"""What every command shares: flags, config files, exit codes, signals, and the Run folder.

A Run folder holds one training: config.yaml, log.txt, metrics.jsonl, last.pt and previous.pt
(checkpoints), best.pt, the weights with their card, curve.png, result.json. The same command
goes on where it stopped; a finished run says so.
"""

import argparse
import contextlib
import json
import math
import os
import platform
import shlex
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from importlib import metadata
from pathlib import Path

from dm_kd import dist, files
from dm_kd.errors import DamagedError, Stopped, UserError, nearest, refuse_difference

# Settings that may change between a run and its continuation without changing its result.
VOLATILE = {"out", "config", "debug", "dry_run", "data", "cache", "checkpoint_seconds",
            "tensorboard", "left_at_default"}
PLAIN_PROGRESS_SECONDS = 10.0
MAX_THREADS = 1024


# --- flags ----------------------------------------------------------------------------------------

def positive_int(text: str) -> int:
    return _number(text, int, lambda v: v >= 1, "must be a whole number of at least 1")


def nonnegative_int(text: str) -> int:
    return _number(text, int, lambda v: v >= 0, "must be a whole number of at least 0")


def positive_float(text: str) -> float:
    return _number(text, float, lambda v: v > 0, "must be a number above 0")


def nonnegative_float(text: str) -> float:
    return _number(text, float, lambda v: v >= 0, "must be a number of at least 0")


def probability(text: str) -> float:
    return _number(text, float, lambda v: 0 <= v <= 1, "must be a number from 0 to 1")


def epoch_list(text: str) -> tuple[int, ...]:
    """'30,60,90' -> (30, 60, 90); '' -> ()."""
    epochs = tuple(positive_int(part) for part in text.split(",") if part.strip())
    if list(epochs) != sorted(set(epochs)):
        raise argparse.ArgumentTypeError(f"must rise, got {text}")
    return epochs


def _number(text: str, kind: type, ok: Callable, rule: str):
    try:
        value = kind(text)
    except ValueError:
        value = None
    # abs() first: isfinite() cannot take an int of 400 digits
    if value is None or abs(value) > 1e15 or not math.isfinite(value) or not ok(value):
        raise argparse.ArgumentTypeError(f"{rule}, got {text}")
    return value


class Parser(argparse.ArgumentParser):
    """argparse with short errors (exit code 2) and no abbreviated flags."""

    def __init__(self, module: str, description: str):
        super().__init__(prog=f"python -m dm_kd.{module}", description=description,
                         allow_abbrev=False,
                         formatter_class=argparse.RawDescriptionHelpFormatter)

    def error(self, message: str) -> None:
        hint = f"{self.prog} --help"
        if message.startswith("unrecognized arguments: --"):
            flag = message.split()[2].split("=")[0]
            hint = f"{nearest(flag, self._option_string_actions)}; or {hint}"
        raise UserError(message, hint=hint)


def add_common_arguments(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("common")
    group.add_argument("--config", type=Path, metavar="FILE",
                       help="YAML of flags, such as a run's config.yaml; flags given here win")
    group.add_argument("--seed", type=nonnegative_int, default=0, metavar="N",
                       help="of all randomness (default: %(default)s)")
    group.add_argument("--device", default="auto", metavar="DEVICE",
                       help="cpu, cuda, cuda:1 ... (default: cuda if there is one, with "
                            "deterministic kernels: the same bits on the same kind of GPU)")
    group.add_argument("--threads", type=positive_int, default=None, metavar="N",
                       help="CPU threads; part of the result's last bits (default: 2, a resumed "
                            "run keeps its number)")
    group.add_argument("--dry-run", action="store_true",
                       help="say what would happen, its size and length; write nothing")
    group.add_argument("--debug", action="store_true", help="show the traceback of an error")


def add_data_arguments(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("real data")
    group.add_argument("--task", required=True, metavar="NAME", help="the data set, e.g. digits")
    group.add_argument("--data", type=Path, default=None, metavar="PATH",
                       help="where the real images lie (default: the usual places)")
    group.add_argument("--cache", type=Path, default=Path("save/cache"), metavar="DIR",
                       help="where images are kept unpacked (default: %(default)s)")
    group.add_argument("--fold", type=nonnegative_int, default=0, metavar="N",
                       help="which cross-validation fold is judged on, for tasks that have them "
                            "(default: %(default)s)")
    group.add_argument("--val", choices=("val", "dev", "none"), default="val",
                       help="judge on the validation split, on a part of the training data that "
                            "then leaves training (to choose settings), or not at all "
                            "(default: %(default)s)")


def parse(parser: argparse.ArgumentParser, argv: list[str]) -> argparse.Namespace:
    """Flags over a --config file over defaults. A config line means what the flag would.
    left_at_default: the names of those that have their default value."""
    first, _ = _config_parser().parse_known_args(argv)
    if first.config:
        typed = {word.split("=")[0] for word in argv}
        adding = {flag for a in parser._actions if isinstance(a, argparse._AppendAction)
                  for flag in a.option_strings} & typed  # these would add to the file's
        argv = [flag for flag in _config_as_flags(parser, first.config)
                if flag.split("=")[0] not in adding] + argv
    args = parser.parse_args(argv)
    args.left_at_default = [name for name, value in vars(args).items()
                            if value == parser.get_default(name)]
    return args


def _config_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--config", type=Path, nargs="?")  # without a value: parse() complains
    return parser


def peek(argv: list[str], flag: str, default: str) -> str:
    """The value of a flag that decides which others there are: typed, or in the --config file.
    What is wrong with either is left to `parse` to say."""
    import yaml

    first = _config_parser()
    first.add_argument(f"--{flag}", nargs="?")
    given, _ = first.parse_known_args(argv)
    value = getattr(given, flag)
    if value is None and given.config:
        with contextlib.suppress(yaml.YAMLError, OSError, ValueError, RecursionError):
            root = yaml.compose(given.config.read_text(), Loader=yaml.SafeLoader)
            if isinstance(root, yaml.MappingNode):  # composed, not built: aliases multiply
                value = next((v.value for k, v in root.value if k.value == flag and isinstance(
                    v, yaml.ScalarNode) and not v.tag.endswith(":null")), None)
    return value or default


def _config_as_flags(parser: argparse.ArgumentParser, path: Path) -> list[str]:
    """The YAML file as a list of flags. Values keep their text: `lr: 1e-3` is what one typed, not
    what YAML makes of it, and nothing in the file can build an object.

    Raises:
        UserError: not a flat mapping, an unknown key (the nearest is named) or one given twice.
    """
    import yaml

    files.must_exist(path, "--config", "config file")
    try:
        root = yaml.compose(path.read_text(), Loader=yaml.SafeLoader)
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError, OSError) as error:
        raise UserError(f"{path.name} is not readable YAML", file=path,
                        found=" ".join(str(error).split())[:100]) from error
    if root is None:
        return []
    if not isinstance(root, yaml.MappingNode):
        raise UserError(f"{path.name} must be lines of `flag: value`", file=path)
    known = {action.dest: action for action in parser._actions if action.dest != "help"}
    flags, seen = [], set()
    for key_node, node in root.value:
        where = f"{path.name} line {key_node.start_mark.line + 1}"
        if not isinstance(key_node, yaml.ScalarNode):  # not even for the message: aliases multiply
            raise UserError(f"{where}: a flag's name is one word", file=path)
        key = key_node.value.replace("-", "_")
        if key not in known:
            raise UserError(f"{where}: unknown key '{key_node.value}'", file=path,
                            hint=nearest(key, known))
        if key in seen:
            raise UserError(f"{where}: '{key}' stands twice", file=path)
        if not isinstance(node, yaml.ScalarNode):
            raise UserError(f"{where}: '{key}' must be one value", file=path)
        seen.add(key)
        flags += _as_flag(known[key], node, where)
    return flags


def _as_flag(action: argparse.Action, node, where: str) -> list[str]:
    if node.tag.endswith(":null") or action.dest == "config":
        return []
    if action.nargs == 0:
        if node.value.lower() not in ("true", "false"):
            raise UserError(f"{where}: '{action.dest}' is true or false, got {node.value}",
                            hint=f"{action.dest}: true")
        return action.option_strings[:1] if node.value.lower() == "true" else []
    return [f"{action.option_strings[0]}={node.value}"]


# --- one command ----------------------------------------------------------------------------------

def main(body: Callable[[list[str]], None], argv: list[str] | None = None) -> int:
    """Run an entry's body; its errors become short messages and the contract's exit codes."""
    argv = sys.argv[1:] if argv is None else argv
    before = signal.signal(signal.SIGTERM, _raise_stopped)
    try:
        body(argv)
        sys.stdout.flush()
        return 0
    except SystemExit as error:  # argparse after --help
        return int(error.code or 0)
    except BrokenPipeError:  # what read the output, such as head, has gone
        return reader_gone()
    except UserError as error:
        if "--debug" in argv:
            traceback.print_exc()
        print(error, file=sys.stderr)
        return error.exit_code
    except (Stopped, KeyboardInterrupt) as error:
        print("stopped; the same command again goes on with what is kept", file=sys.stderr)
        return getattr(error, "exit_code", 130)
    except RuntimeError as error:
        if type(error).__name__ != "OutOfMemoryError" or "--debug" in argv:  # torch's, of a GPU
            raise
        print(UserError("the GPU has too little memory for this", found=str(error)[:100],
                        hint="a smaller --batch-size, or nothing else on the GPU"),
              file=sys.stderr)
        return UserError.exit_code
    except OSError as error:
        known = files.storage_error(error, Path(error.filename or "a file"))
        if known is None or "--debug" in argv:
            raise
        print(known, file=sys.stderr)
        return known.exit_code
    finally:
        signal.signal(signal.SIGTERM, before)
        dist.stop()


def reader_gone() -> int:
    """Send what is still to be printed nowhere; the exit code of a program that SIGPIPE ended."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 128 + signal.SIGPIPE


def _raise_stopped(number: int, frame) -> None:
    raise Stopped(number)


@contextlib.contextmanager
def stoppable() -> Iterator[Callable[[], int]]:
    """Inside the block SIGTERM and SIGINT only set a number that the loop asks for (0 = none), so
    that it can save first. A second signal stops at once."""
    received = []

    def note(number: int, frame) -> None:
        if received:
            raise Stopped(number)
        received.append(number)

    before = {number: signal.signal(number, note) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield lambda: received[0] if received else 0
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def resume_threads(args: argparse.Namespace) -> None:
    """A run that goes on keeps the thread count it began with, unless --threads says another.

    Raises:
        DamagedError: the count is none."""
    config = args.out / "config.yaml"
    if args.threads is None and config.exists():
        args.threads = read_config(config).get("threads")
        if args.threads is not None and (type(args.threads) is not int or args.threads < 1):
            raise DamagedError(f"config.yaml is damaged: threads is {args.threads!r:.40}",
                               file=config, hint="--threads N as it was, or another --out")


def use_device(args: argparse.Namespace):
    """The torch device of the flags; sets the thread count, and on a GPU kernels that give the same
    bits each time. Resolves both in `args`.

    Raises:
        UserError: there is no such device.
    """
    import torch

    if args.device == "auto":
        args.device = "cuda" if torch.cuda.is_available() else "cpu"
    args.threads = args.threads or 2  # torchrun exports OMP_NUM_THREADS=1
    if args.threads > MAX_THREADS:
        raise UserError(f"--threads {args.threads} is more than {MAX_THREADS}", hint="--threads 2")
    torch.set_num_threads(args.threads)
    try:
        device = torch.device(args.device)
        if device.type not in ("cpu", "cuda"):
            raise RuntimeError("cpu and cuda are known")
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        raise UserError(f"no device '{args.device}' here", found=str(error).splitlines()[0][:100],
                        hint="--device cpu") from error
    if device.type == "cuda":
        same_bits()
    if device.type == "cuda" and dist.world_size() > 1:
        device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0)))
        torch.cuda.set_device(device)
    return device


def same_bits() -> None:
    """Let torch choose deterministic kernels only, as a resumed run's equal bits need: matrix
    products, cuDNN's convolutions, scatters, and inductor's reductions, which else are chosen by
    timing them. Where it has none it warns and goes on."""
    import torch

    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read when cuBLAS is first used
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.utils.deterministic.fill_uninitialized_memory = False  # which costs time, and no bit here


class Progress:
    """A bar on a terminal; elsewhere one plain line each so many seconds. On standard error."""

    def __init__(self, total: int, what: str, unit: str, done: int = 0):
        self.total, self.what, self.unit, self.done = total, what, unit, done
        self.first, self.started = done, time.monotonic()
        self.shown, self.bar = self.started, None
        if sys.stderr.isatty():
            from tqdm import tqdm

            self.bar = tqdm(total=total, desc=what, unit=f" {unit}", initial=done, leave=False)

    def update(self, count: int = 1) -> None:
        self.done += count
        now = time.monotonic()
        if self.bar is not None:
            self.bar.update(count)
        elif now - self.shown >= PLAIN_PROGRESS_SECONDS:
            self.shown = now
            rate = (self.done - self.first) / (now - self.started)
            left = (self.total - self.done) / rate if rate else math.inf
            print(f"{self.what}: {self.done}/{self.total} {self.unit}, {rate:.1f}/s, "
                  f"{left:.0f} s left", file=sys.stderr, flush=True)

    def close(self) -> None:
        if self.bar is not None:
            self.bar.close()


def versions() -> dict:
    import numpy
    import torch

    return {"python": platform.python_version(), "torch": torch.__version__,
            "numpy": numpy.__version__}


def library_versions() -> dict:
    """versions(), and those of the libraries behind networks, samplers and distances; a set's
    manifest has versions() alone, since a set goes on only where these are the same."""
    found = versions()
    for name in ("torchvision", "diffusers", "scipy", "scikit-learn", "timm"):
        with contextlib.suppress(metadata.PackageNotFoundError):
            found[name] = metadata.version(name)
    return found


def hardware(device) -> dict:
    """Names of the processor and accelerator, for a result's record."""
    import torch

    cpu = platform.processor() or platform.machine()
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                cpu = line.split(":", 1)[1].strip()
                break
    record = {"cpu": cpu, "cores": os.cpu_count(), "threads": torch.get_num_threads()}
    if device.type == "cuda":
        record["gpu"] = torch.cuda.get_device_name(device)
    if dist.world_size() > 1:
        record["processes"] = dist.world_size()
    return record


def multiplies_bf16(device) -> bool:
    """Whether bfloat16 products pay there: on GPUs from Ampere on (older ones emulate them), AMD's,
    and processors that have them."""
    if device.type == "cuda":
        import torch

        return bool(torch.version.hip) or torch.cuda.get_device_capability(device) >= (8, 0)
    try:
        flags = Path("/proc/cpuinfo").read_text()
    except OSError:
        return False
    return "avx512_bf16" in flags or "amx_bf16" in flags


def commit() -> str:
    """The project's git commit, with + if files differ from it; 'unknown' outside git."""
    folder = Path(__file__).parent
    try:
        head = subprocess.run(["git", "rev-parse", "--short=12", "HEAD"], cwd=folder,
                              capture_output=True, text=True, check=True).stdout.strip()
        changed = subprocess.run(["git", "status", "--porcelain", "-uno"], cwd=folder,
                                 capture_output=True, text=True, check=True).stdout.strip()
        return head + ("+" if changed else "")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


# --- the Run folder -------------------------------------------------------------------------------

class Run:
    """One training's folder. Use as `with Run(...) as run:`, which locks it (rank 0 only writes).

    Args:
        folder: save/student_model/<run> or the like.
        args: the resolved flags; written to config.yaml and compared on a resume.
        inputs: digests of what comes from files (teacher, images); compared too.
        weights_name: "student" | "model" | "dit": the weights' file name without suffix.
    """

    def __init__(self, folder: Path, args: argparse.Namespace, inputs: dict, weights_name: str,
                 module: str):
        self.folder, self.weights_name = Path(folder), weights_name
        self.settings = {k: _plain(v) for k, v in sorted(vars(args).items())
                         if k not in VOLATILE}
        self.left_at_default = set(getattr(args, "left_at_default", ()))
        ranks = dist.world_size()  # batch norms see each one's share of a batch
        self.inputs = inputs | ({"processes": ranks} if ranks > 1 else {})
        self.module = module
        self.data = getattr(args, "data", None)  # where, which may change
        self.checkpoint_seconds = args.checkpoint_seconds
        self._last_save = time.monotonic()
        self._lock = None
        self._whole: list[str] = []  # digests of previous.pt and last.pt, where these are whole
        self._last_damaged = False

    def __enter__(self) -> "Run":
        if dist.is_main():
            self._lock = files.locked(self.folder / ".lock", str(self.folder))
            self._lock.__enter__()
            try:
                files.remove_stale_temps(self.folder)
                self._check_settings()
            except BaseException:
                self._lock.__exit__(None, None, None)
                raise
        dist.wait()
        return self

    def __exit__(self, *error: object) -> None:
        if self._lock is not None:
            self._lock.__exit__(None, None, None)

    def _check_settings(self) -> None:
        """Write config.yaml and inputs.json, or refuse a folder that holds another run."""
        import yaml

        config, inputs = self.folder / "config.yaml", self.folder / "inputs.json"
        if config.exists():
            old = read_config(config)
            if inputs.exists():
                old |= files.read_json(inputs)
            new = self.settings | self.inputs
            for name in self.left_at_default - old.keys():  # a flag that came after the run began:
                new.pop(name, None)  # its default is what was done before there was one
            refuse_difference(old, new, self.folder, "the folder holds another run")
        elif any(p for p in self.folder.iterdir()
                 if not p.name.startswith(".") and p != inputs):  # inputs: killed in between
            raise UserError("the folder holds other files and is no run", folder=self.folder,
                            hint="another --out")
        files.write_json(inputs, self.inputs)
        files.durable_write(config, yaml.safe_dump(self.settings, sort_keys=True))

    @property
    def result(self) -> dict | None:
        """The finished run's result, or None while it is not finished.

        Raises:
            DamagedError: the weights are not those that the result speaks of.
        """
        path = self.folder / "result.json"
        if not path.exists():
            return None
        result = files.read_json(path)
        weights = self.folder / f"{self.weights_name}.safetensors"
        if not weights.exists() or files.sha256_file(weights) != result.get("weights_sha256"):
            raise DamagedError(f"{weights.name} is damaged (sha256 differs from result.json)",
                               file=weights, hint="remove result.json; the same command makes "
                                                  "the weights again from last.pt")
        return result

    def log(self, text: str) -> None:
        """A line on standard output and in log.txt, from rank 0."""
        if not dist.is_main():
            return
        if sys.stderr.isatty():
            from tqdm import tqdm

            tqdm.write(text, file=sys.stdout)
        else:
            print(text, flush=True)
        try:
            with open(self.folder / "log.txt", "a", encoding="utf-8") as file:
                file.write(text + "\n")
        except OSError as error:
            raise files.storage_error(error, self.folder / "log.txt") or error from error

    def add_metrics(self, row: dict) -> None:
        """Append an epoch's row to metrics.jsonl; rows of epochs done again are replaced."""
        if not dist.is_main():
            return
        rows = [r for r in read_metrics(self.folder) if r["epoch"] < row["epoch"]]
        files.durable_write(self.folder / "metrics.jsonl",
                            "".join(json.dumps(r) + "\n" for r in [*rows, row]))

    def due(self) -> bool:
        """Whether the last checkpoint is older than --checkpoint-seconds."""
        return time.monotonic() - self._last_save >= self.checkpoint_seconds

    def save_checkpoint(self, state: dict) -> None:
        """Write last.pt; the one before becomes previous.pt, unless it is damaged. Its digest is
        recorded first, so that a file found later is either one that was written in full or
        refused; the digests of whole files stay, however often a save fails."""
        self._last_save = time.monotonic()
        if not dist.is_main():
            return
        data = files.encode_tensors(state)
        digests = [*self._whole, files.sha256(data)]
        files.durable_write(self.folder / "checkpoints.sha256", "\n".join(digests) + "\n")
        last = self.folder / "last.pt"
        if last.exists() and not self._last_damaged:
            os.replace(last, self.folder / "previous.pt")
        files.durable_write(last, data)
        self._whole, self._last_damaged = digests[-2:], False

    def load_checkpoint(self) -> dict | None:
        """The newest checkpoint whose digest holds; None for a new run. A refused one is named.

        Raises:
            DamagedError: there are checkpoints, and none is whole.
        """
        digests = self.folder / "checkpoints.sha256"
        known = digests.read_text(errors="replace").split() if digests.exists() else []
        damaged, self._whole, newest = [], [], None
        for path in (self.folder / "previous.pt", self.folder / "last.pt"):
            if not path.exists():
                continue
            digest = files.sha256_file(path)
            if digest in known:
                self._whole.append(digest)
                newest = path
            else:
                damaged.append(path)
        self._last_damaged = self.folder / "last.pt" in damaged
        if newest is not None:
            for path in damaged:
                self.log(f"{path.name} is damaged (sha256 differs); {newest.name} is used")
            return files.load_pt(newest)
        if damaged:
            raise DamagedError("no checkpoint is whole", file=damaged[-1],
                               hint="remove the folder to start anew")
        return None

    def finish(self, tensors: dict, card: dict, result: dict) -> None:
        """Write the weights, their card, and result.json, which makes the run a finished one."""
        if dist.is_main():
            digest = files.write_with_card(self.folder, self.weights_name, tensors, card)
            files.write_json(self.folder / "result.json", {
                **result, "weights_sha256": digest, "command": self.command,
                "commit": commit(), "versions": library_versions()})
        dist.wait()

    @property
    def command(self) -> str:
        """The command line that makes this run again, from the resolved settings."""
        words = [f"python -m dm_kd.{self.module}"]
        for key, value in self.settings.items():
            flag = "--" + key.replace("_", "-")
            if value is True:
                words.append(flag)
            elif value is not None and value is not False:
                words.append(f"{flag} {shlex.quote(str(value))}")
        if self.data is not None:
            words.append(f"--data {shlex.quote(str(self.data))}")
        return " ".join([*words, f"--out {shlex.quote(str(self.folder))}"])


def _plain(value: object) -> object:
    if isinstance(value, (tuple, list)):
        return ",".join(str(v) for v in value)
    return str(value) if isinstance(value, Path) else value


def read_config(path: Path) -> dict:
    import yaml

    try:
        config = yaml.safe_load(path.read_text())
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
        raise DamagedError("config.yaml is damaged", file=path) from error
    if not isinstance(config, dict):
        raise DamagedError("config.yaml is damaged: not a mapping", file=path)
    return config


def read_metrics(folder: Path) -> list[dict]:
    """The rows of metrics.jsonl, one per epoch.

    Raises:
        DamagedError: a line is not a JSON object with an epoch.
    """
    path = Path(folder) / "metrics.jsonl"
    if not path.exists():
        return []
    rows = []
    for number, line in enumerate(path.read_text(errors="replace").splitlines(), 1):
        try:
            row = json.loads(line)
            row["epoch"] + 0  # a number: rows are compared by it
        except (ValueError, TypeError, KeyError) as error:
            raise DamagedError(f"metrics.jsonl line {number} is damaged", file=path) from error
        rows.append(row)
    return rows
