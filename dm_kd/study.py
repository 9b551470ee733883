"""Run a study: all its commands, then the report. The studies are data, in dm_kd/studies.py.

    python -m dm_kd.study DATASET STUDY [--dry-run]      or   sh scripts/study.sh DATASET STUDY ...

A command runs after those whose output it uses, --jobs at a time, each in its own process.
Finished ones are skipped, so the same command resumes a study; --dry-run prints all of them, to
copy and edit.

Seed n is a student of set n // 3, which is made by generator n // 6; digits have a teacher and a
generator per fold and n // 6, other data sets one of each. So seeds 0-17 are three generators, two
sets of each and three students of each set.
"""

import argparse
import itertools
import json
import os
import shlex
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from dm_kd import run
from dm_kd.run import UserError, nearest
from dm_kd.studies import DATA_SETS, STUDIES, Row

SMALL = ("digits", "fashion_mnist")  # run on CPUs, each command on one core
Command = list[str]  # its words


# --- commands -------------------------------------------------------------------------------------

def command(text: str) -> Command:
    """"digits_teacher.sh --seed 1" is a script of scripts/, "inspect_set --seed 1" a module. Of a
    flag that is there several times the last one is kept, as argparse does."""
    first, *flags = " ".join(text.split()).split(" --")
    name, *words = first.split()
    start = ["sh", f"scripts/{name}"] if name.endswith(".sh") else ["python", "-m", f"dm_kd.{name}"]
    last = {part.split()[0]: f"--{part}" for part in flags}
    return [*start, *words, *" ".join(last.values()).split()]


def flag(words: Command, name: str) -> str:
    """The value of a flag; "" if it is not there."""
    return dict(itertools.pairwise(words)).get(name, "")


def finished(words: Command) -> bool:
    """Whether a run has its result, an image set all its shards, an inspection its file."""
    out = Path(flag(words, "--out"))
    if not (out / "manifest.json").exists():
        return (out if out.suffix == ".json" else out / "result.json").exists()
    manifest = json.loads((out / "manifest.json").read_text())
    wanted = int(flag(words, "--images-per-class") or manifest["images_per_class"])
    shards = -(-len(manifest["classes"]) * wanted // manifest["shard_size"])
    return (wanted <= manifest["images_per_class"]
            and len(list(out.glob("shards/[0-9]*"))) >= shards)


def execute(words: Command) -> None:
    """Run a command in its own process. Raises UserError with its last lines if it fails."""
    began = time.monotonic()
    done = subprocess.run([sys.executable if word == "python" else word for word in words],
                          env={**os.environ, "PYTHON": sys.executable}, text=True,
                          stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    if done.returncode:
        raise UserError(f"exit code {done.returncode}: {shlex.join(words)}",
                        "\n  ".join(done.stdout.splitlines()[-8:]))
    print(f"{time.monotonic() - began:7.1f} s  {flag(words, '--out')}", flush=True)


def stages(goals: list[Command], others: list[Command]) -> list[list[Command]]:
    """The goals and the others that they need, each in a stage after those whose --out it uses."""
    makers = {flag(words, "--out"): words for words in (*others, *goals)}
    levels: dict[str, int] = {}

    def level(out: str) -> int:
        if out not in levels:
            used = (makers.keys() & makers[out]) - {out}
            levels[out] = 1 + max(map(level, used), default=-1)
        return levels[out]

    last = max(level(flag(words, "--out")) for words in goals)
    return [[makers[out] for out in levels if levels[out] == i] for i in range(last + 1)]


# --- a study --------------------------------------------------------------------------------------

class Plan:
    """The commands of a study. A trial is (fold, seed); it fills the braces of studies.py."""

    def __init__(self, args: argparse.Namespace):
        self.study, self.data = STUDIES[args.data_set][args.study], DATA_SETS[args.data_set]
        self.root = args.data_set + (f"_{args.study}" if args.study != "main" else "")
        self.folds = range(5) if args.data_set == "digits" else [None]
        self.threads = " --threads 1" if args.data_set in SMALL else ""
        self.seeds, self.record = args.seeds, args.record
        self.rows = {name: row for name, row in self.study.rows.items()
                     if name in (args.rows or self.study.rows)}
        for name in set(args.rows) - self.rows.keys():
            raise UserError(f"no row '{name}'", nearest(name, self.study.rows))

    def fill(self, text: str, trial: tuple[int | None, int]) -> Command:
        """The command of a text, its braces filled with the numbers of the trial."""
        fold, seed = trial
        part = "" if fold is None else f"/fold{fold}_gen{seed // 6}"
        return command(text.format(
            fold=fold, gen=seed // 6, set=seed // 3, seed=seed,
            end=f"_set{seed // 3}" if seed >= 3 else "", base=f"save/digits_networks{part}",
            place=f"save/{self.root}{part}") + self.threads)

    def named(self, usual: str, text: str, trial: tuple) -> Command:
        """The command of an image set or a network: a whole one, or its name and flags."""
        name, _, flags = text.partition(" ")
        whole = name.endswith(".sh")
        return self.fill(text if whole else f"{usual.replace('{name}', name)} {flags}", trial)

    def student(self, name: str, row: Row, trial: tuple) -> Command:
        """The command of a student: flags of the data set, then of the study, then of the row."""
        text = row.student
        if text.startswith("--") or not text:
            text = f"{self.data.student} {self.study.students} {text}"
        for what, usual, made in (("source", self.data.images, row.images),
                                  ("teacher", self.data.network, row.teacher)):
            if made:
                text += f" --{what} {flag(self.named(usual, made, trial), '--out')}"
        return self.fill(f"{text} --seed {{seed}} --out {{place}}/{name}_set{{set}}_seed{{seed}}",
                         trial)

    def stages(self) -> list[list[Command]]:
        """All commands but the report's; those of a stage are independent of each other."""
        goals, others = [], []
        for name, row in self.rows.items():
            seeds = self.seeds or row.seeds or self.study.seeds
            for trial in ((fold, seed) for seed in seeds for fold in self.folds):
                goals.append(self.student(name, row, trial))
                others += [self.fill(text, trial) for text in self.data.generators]
                others += [self.named(self.data.network, text, trial)
                           for text in (*self.data.networks, row.teacher) if text]
                if row.images:
                    others.append(self.named(self.data.images, row.images, trial))
                    images = flag(others[-1], "--out")
                if row.images and self.study.inspect:  # rows with the same set share it
                    goals.append(self.fill(f"{self.data.inspect} --set {images} --out "
                                           f"{{place}}/inspect_{Path(images).name}.json", trial))
        return stages(goals, others)

    def report(self) -> Command:
        """The report's command; with differences if the baseline is among the rows."""
        out = f"save/results/{self.root}" if self.record else f"save/{self.root}/report"
        words = command(f"report --runs save/{self.root} --out {out}")
        baseline = self.study.baseline
        return [*words, *(["--baseline", baseline] if baseline in self.rows else ())]


# --- the command ----------------------------------------------------------------------------------

def parse(argv: list[str]) -> argparse.Namespace:
    parser = run.Parser("study", __doc__)
    add = parser.add_argument
    add("data_set", choices=STUDIES, metavar="DATASET", help=", ".join(STUDIES))
    add("study", metavar="STUDY", help="; ".join(
        f"{name}: {', '.join(studies)}" for name, studies in STUDIES.items()))
    add("--jobs", type=run.positive_int, default=None, metavar="N",
        help="commands at a time (default: 2; 1 for the data sets that need a GPU)")
    add("--seeds", type=lambda text: [int(part) for part in text.split(",")], default=None,
        metavar="0,1,6", help="only these (default: the study's own)")
    add("--rows", type=lambda text: text.split(","), default=[], metavar="A,B",
        help="only these rows (default: all)")
    add("--record", action="store_true", help="write the report to save/results")
    add("--dry-run", action="store_true", help="print the commands; write nothing")
    args = parser.parse_args(argv)
    if args.study not in STUDIES[args.data_set]:
        raise UserError(f"{args.data_set} has no study '{args.study}'",
                        nearest(args.study, STUDIES[args.data_set]))
    args.jobs = args.jobs or (2 if args.data_set in SMALL else 1)
    return args


@run.command
def main(argv: list[str]) -> None:
    args = parse(argv)
    plan = Plan(args)
    for stage in [*plan.stages(), [plan.report()]]:
        if args.dry_run:
            print("\n".join(map(shlex.join, stage)))
        else:
            with ThreadPoolExecutor(args.jobs) as pool:
                list(pool.map(execute, [words for words in stage if not finished(words)]))
    if not args.dry_run:
        print(Path(flag(plan.report(), "--out"), "results.md").read_text())


if __name__ == "__main__":
    sys.exit(main())
