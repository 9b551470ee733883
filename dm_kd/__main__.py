"""Run several of the package's commands, one line each, in one Python process.

    python -m dm_kd < commands.txt

A line is what would follow `python -m dm_kd.`; empty lines and lines that start with # are skipped.
Stops at the first command that fails, with its exit code. Saves the seconds that each start of
Python takes; results are the same.
"""

import importlib
import shlex
import sys
import time


def main() -> int:
    commands = [line.strip() for line in sys.stdin]
    commands = [line for line in commands if line and not line.startswith("#")]
    for number, line in enumerate(commands, 1):
        entry, *argv = shlex.split(line)
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
