"""What the benchmarks share: interleaved timing, the processor's ceiling, the table, the record.

Variants are timed in turn, A B C A B C ..., in one process, so that a busy machine slows them all.
Numbers are ratios of one round's times, as median and interquartile range over the rounds.
"""

import argparse
import platform
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from dm_kd import files, run
from dm_kd.errors import UserError

CEILING_SIZE = 2048  # rows of the square matrices whose product is the ceiling


def parse(name: str, description: str, threads: int, repeats: int, argv: list[str],
          add_arguments: Callable = lambda parser: None) -> argparse.Namespace:
    """Flags of a benchmark; `add_arguments` adds its own sizes."""
    parser = run.Parser(f"bench.{name}", description)
    add_arguments(parser)
    parser.add_argument("--repeats", type=run.positive_int, default=repeats, metavar="N",
                        help="timed rounds, after one that is not timed (default: %(default)s)")
    parser.add_argument("--threads", type=run.positive_int, default=threads, metavar="N",
                        help="CPU threads (default: %(default)s)")
    parser.add_argument("--device", default="auto", metavar="DEVICE",
                        help="cpu, cuda ... (default: cuda if there is one)")
    parser.add_argument("--out", type=Path, default=Path("save/bench"), metavar="DIR",
                        help=f"where the record {name}.json is written (default: %(default)s)")
    parser.add_argument("--dry-run", action="store_true", help="say what would be timed")
    parser.add_argument("--seed", type=run.nonnegative_int, default=0, metavar="N",
                        help="of weights and inputs (default: %(default)s)")
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    return parser.parse_args(argv)


class NotEquivalent(UserError):
    """What would be timed computes something else; `checks` has the figures."""

    checks: dict[str, dict]


def require(checks: dict[str, dict]) -> None:
    """Equivalence comes before speed. All figures are printed.

    Args:
        checks: name -> {"value", "limit"}: passed where value <= limit (no limit: reported only).

    Raises:
        NotEquivalent: one is not; no speed is printed.
    """
    failed = []
    for name, check in checks.items():
        bound = check.get("limit")
        print(f"  {name:<68} {check['value']:.2e}" + (f"   (<= {bound:g})" if bound else ""))
        if bound is not None and not check["value"] <= bound:
            failed.append((name, f"{check['value']:.2e}, limit {bound:g}"))
    if failed:
        error = NotEquivalent(f"not equivalent: {failed[0][0]}", found=failed[0][1],
                              hint="no speed is measured of something else")
        error.checks = checks
        raise error


def relative_error(value: torch.Tensor, expected: torch.Tensor) -> float:
    """Largest difference over the largest value."""
    return ((value - expected).abs().max() / expected.abs().max()).item()


def interleave(variants: dict[str, Callable], repeats: int, device: torch.device) -> dict:
    """Seconds of each round: {name: {"wall": [repeats], "cpu": [repeats]}}; the first, untimed
    round is {"warm_up": seconds}. cpu = this process's processor time, over all its threads."""
    times = {name: {"wall": [], "cpu": []} for name in variants}
    for turn in range(repeats + 1):
        for name, variant in variants.items():
            synchronize(device)
            wall, cpu = time.perf_counter(), time.process_time()
            variant()
            synchronize(device)
            cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
            if turn == 0:
                times[name]["warm_up"] = wall
            else:
                times[name]["wall"].append(wall)
                times[name]["cpu"].append(cpu)
    return times


def synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def ceiling(device: torch.device, dtype: torch.dtype = torch.float32) -> tuple[Callable, float]:
    """A square matrix product of random numbers, to be timed as one more variant; its FLOPs."""
    size = CEILING_SIZE * (4 if device.type == "cuda" else 1)
    a, b = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
    return lambda: a @ b, 2.0 * size ** 3


def spread(values) -> dict:
    low, median, high = np.percentile(np.asarray(values), (25, 50, 75))
    return {"median": float(median), "q25": float(low), "q75": float(high)}


def ratio(times: dict, base: str, other: str, clock: str) -> dict:
    """How many times faster `other` is than `base`: each round's ratio, then median and IQR."""
    pairs = zip(times[base][clock], times[other][clock], strict=True)
    return spread([a / b for a, b in pairs])


def choose_clock(device: torch.device, threads: int) -> str:
    """Processor time where it means the work done: one CPU thread. It leaves out the time that
    other processes took. Threads that wait for each other burn it, and a GPU doesn't show in it."""
    return "cpu" if device.type == "cpu" and threads == 1 else "wall"


def table(times: dict, base: str, clock: str, images: int, flops: dict[str, float],
          roof: str) -> list[dict]:
    """A row for each variant but the ceiling `roof`, also printed.

    Args:
        images: of one call;  flops: needed by one call of each variant (not what it computes).
    """
    peak = flops[roof] / spread(times[roof][clock])["median"]
    print(f"\n  {'variant':<44} {'faster than A':>22} {'images/s':>9} {'% of GEMM':>9}"
          f" {'warm-up s':>9}")
    rows = []
    for name in (n for n in times if n != roof):
        seconds = spread(times[name][clock])
        row = {"variant": name, "seconds": seconds,
               "images_per_second": images / seconds["median"],
               "ceiling_percent": 100 * flops[name] / seconds["median"] / peak,
               "warm_up_seconds": times[name]["warm_up"],
               **{f"ratio_{c}": ratio(times, base, name, c) for c in ("cpu", "wall")}}
        rows.append(row)
        r = row[f"ratio_{clock}"]
        print(f"  {name:<44} {r['median']:6.2f}x [{r['q25']:5.2f}, {r['q75']:5.2f}] "
              f"{row['images_per_second']:9.1f} {row['ceiling_percent']:9.0f}"
              f" {row['warm_up_seconds']:9.2f}")
    print(f"  GEMM ceiling in the same rounds: {peak / 1e9:.0f} GFLOP/s; clock: {clock} time")
    return rows


def verdict(name: str, measured: dict, goal: float) -> dict:
    """A goal, printed with what was reached; never asserted."""
    reached = measured["median"] >= goal
    print(f"  {name:<68} {measured['median']:.2f}x [{measured['q25']:.2f}, "
          f"{measured['q75']:.2f}]   goal {goal:g}x {'reached' if reached else 'MISSED'}")
    return {"name": name, **measured, "goal": goal, "reached": reached}


def record(args: argparse.Namespace, name: str, device: torch.device, contents: dict) -> None:
    """Write the JSON record to args.out / (name).json."""
    settings = {key: value for key, value in vars(args).items()
                if key not in ("out", "debug", "dry_run")}
    path = args.out / f"{name}.json"
    files.write_json(path, {
        "bench": name, "settings": settings, "device": device.type, **contents,
        "ceiling_size": CEILING_SIZE, "hardware": run.hardware(device),
        "versions": run.versions(), "machine": platform.machine(), "commit": run.commit()})
    print(f"  record: {path}")
