"""Run several of the package's commands, one line each, in one Python process.

    python -m dm_kd < commands.txt

A line is what would follow `python -m dm_kd.`; empty lines and lines that start with # are skipped.
Every line must begin with a command that is known; then it stops at the first one that fails, with
its exit code. Saves the seconds that each start of Python takes; results are the same.
"""

import importlib
import shlex
import sys
import time

from dm_kd.errors import UserError, nearest

COMMANDS = ("train_teacher", "train_generator", "synthesize", "distill", "evaluate", "inspect_set",
            "export", "report")
BENCHES = ("bench.synthesis", "bench.distillation", "bench.rivals", "bench.imagenet_path")
USAGE = f"""python -m dm_kd < commands.txt    runs several commands, one line each
python -m dm_kd.COMMAND --help    explains one of them

COMMAND: {', '.join(COMMANDS)}"""


def words_of(number: int, line: str) -> list[str]:
    """A line's command and its flags.

    Raises:
        UserError: no known command, or a quote that is never closed."""
    try:
        words = shlex.split(line)
    except ValueError as error:
        raise UserError(f"line {number} cannot be read: {str(error).lower()}", line=line[:100],
                        known=", ".join(COMMANDS),
                        hint="words and quotes as in a shell") from error
    if words[0] not in COMMANDS + BENCHES:
        raise UserError(f"line {number} begins with no command: '{words[0][:60]}'",
                        line=line[:100], known=", ".join(COMMANDS),
                        hint=nearest(words[0], COMMANDS + BENCHES))
    return words


def main() -> int:
    if len(sys.argv) > 1 or sys.stdin is None or sys.stdin.isatty():
        asked = sys.argv[1:] in (["--help"], ["-h"])
        print(USAGE, file=sys.stdout if asked else sys.stderr, flush=True)
        return 0 if asked else UserError.exit_code
    lines = [(number, line.strip()) for number, line in enumerate(sys.stdin, 1)]
    lines = [(number, line) for number, line in lines if line and not line.startswith("#")]
    try:
        commands = [(line, words_of(number, line)) for number, line in lines]
    except UserError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    for number, (line, (entry, *argv)) in enumerate(commands, 1):
        print(f"\n[{number}/{len(commands)}] python -m dm_kd.{line}", flush=True)
        started = time.monotonic()
        code = importlib.import_module(f"dm_kd.{entry}").main(argv)
        if code:
            return code
        print(f"[{number}/{len(commands)}] {time.monotonic() - started:.1f} s", flush=True)
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except BrokenPipeError:  # what read the output, such as head, has gone
        sys.exit(importlib.import_module("dm_kd.run").reader_gone())
