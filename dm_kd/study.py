"""Run a study: all its commands, then the report. The studies are data, in dm_kd/studies.py.

    python -m dm_kd.study DATASET STUDY [--dry-run]      or   sh scripts/study.sh DATASET STUDY ...

Its commands run in stages, --jobs at a time, each in a process of its own. What is finished is
skipped, so the same command resumes a study; --dry-run prints all commands, to copy and edit.

Seed n is a student of set n // 3, which is made by generator n // 6; digits have a teacher and a
generator per fold and n // 6, other data sets one of each. So seeds 0-17 are three generators, two
sets of each and three students of each set. Rows without a claim take the first seeds only.
"""

import argparse
import concurrent.futures
import functools
import importlib
import json
import os
import shlex
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from dm_kd import run
from dm_kd.run import UserError, nearest
from dm_kd.studies import QUICKSTART, STEPS, STUDIES, Row

ROOT = Path(__file__).parent.parent
SMALL = ("digits", "fashion_mnist")
OF_DISTILL = {"teacher", "student", "temperature", "cache-teacher", "source"}
Command = dict[str, str | bool]  # {"module": "dm_kd.distill", "task": "digits", "seed": "0"}


# --- commands -------------------------------------------------------------------------------------

@functools.cache
def settings(script: str) -> Command:
    """What "digits_baselines.sh dafl" of scripts/ runs; "distill" has no flags yet."""
    name, *arguments = script.split()
    if not name.endswith(".sh"):
        return {"module": f"dm_kd.{name}"}
    done = subprocess.run(["sh", f"scripts/{name}", *arguments], cwd=ROOT, check=True, text=True,
                          stdout=subprocess.PIPE, env={**os.environ, "PRINT_ONLY": "1"})
    module, *words = done.stdout.splitlines()
    return {"module": module, **flags_of(words)}


def flags_of(words: list[str]) -> Command:
    """["--fold", "1", "--shared-noise"] -> {"fold": "1", "shared-noise": True}; the last wins."""
    flags, name = {}, ""
    for word in words:
        if word.startswith("--"):
            name = word[2:]
        flags[name] = True if word.startswith("--") else word
    return flags


def command(text: str) -> Command:
    """A script or module with flags behind it, which replace its own. Flags that do not apply are
    left out: distill's for train_teacher, the teacher or weights of a METHOD_set without any."""
    script, _, rest = text.partition(" --")
    own = settings(script.strip())
    flags = flags_of(shlex.split(f"--{rest}")) if rest else {}
    unused = OF_DISTILL if own["module"] == "dm_kd.train_teacher" else set()
    if ".sh " in script and script.endswith("_set"):
        unused = {"teacher", "weights"} - own.keys()
    return own | {name: value for name, value in flags.items() if name not in unused}


def words_of(flags: Command) -> list[str]:
    """A command as the words after `python -m`."""
    return [flags["module"], *(word for name, value in flags.items() if name != "module"
                               for word in (f"--{name}", value) if word is not True)]


def finished(flags: Command) -> bool:
    """Whether a run has its result, an image set all its shards, an inspection its file."""
    module, out = flags["module"].removeprefix("dm_kd."), Path(flags["out"])
    if module != "synthesize" or not (out / "manifest.json").exists():
        return (out if module == "inspect_set" else out / "result.json").exists()
    manifest = json.loads((out / "manifest.json").read_text())
    images = len(manifest["classes"]) * int(flags["images-per-class"])
    return (manifest["images_per_class"] >= int(flags["images-per-class"])
            and len(list(out.glob("shards/[0-9]*"))) >= -(-images // manifest["shard_size"]))


def execute(flags: Command) -> None:
    """Run a command in a process of its own.

    Raises:
        UserError: it failed; with its last lines."""
    began = time.monotonic()
    done = subprocess.run([sys.executable, "-m", *words_of(flags)], text=True,
                          stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    if done.returncode:
        raise UserError(f"exit code {done.returncode}: python -m {shlex.join(words_of(flags))}",
                        "\n  ".join(done.stdout.splitlines()[-8:]))
    print(f"{time.monotonic() - began:7.1f} s  {flags['module'][6:]} {flags['out']}", flush=True)
    if flags["module"] == "dm_kd.report":
        print(done.stdout)


def execute_here(flags: Command, dry_run: bool) -> None:
    """Run a command in this process: a start of Python and torch takes three seconds."""
    print(f"python -m {shlex.join(words_of(flags))}", flush=True)
    module, *argv = words_of(flags)
    code = 0 if dry_run else importlib.import_module(module).main(argv)
    if code:
        sys.exit(code)


def run_stage(stage: list[Command], args: argparse.Namespace) -> None:
    """Run the commands of a stage that are not finished, or print all of them."""
    stage = {flags["out"]: flags for flags in reversed(stage)}  # of several for one place the first
    todo = [flags | ({"threads": str(args.threads)} if args.threads else {})
            for flags in reversed(stage.values())]
    if args.dry_run:
        for flags in todo:
            print(f"python -m {shlex.join(words_of(flags))}")
        return
    with concurrent.futures.ThreadPoolExecutor(args.jobs) as pool:
        futures = [pool.submit(execute, flags) for flags in todo if not finished(flags)]
        try:
            for future in concurrent.futures.as_completed(futures):
                future.result()
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


# --- the stages of a study ------------------------------------------------------------------------

class Plan:
    """The commands of a study. A trial is (fold, seed); it fills the braces of studies.py."""

    def __init__(self, args: argparse.Namespace):
        self.study, self.steps = STUDIES[args.data_set][args.study], STEPS[args.data_set]
        self.root = f"save/{args.data_set}" + (f"_{args.study}" if args.study != "main" else "")
        self.folds = args.folds if args.data_set == "digits" else [None]
        self.seeds = args.seeds or numbers(self.study.seeds)
        self.rows = {name: row for name, row in self.study.rows.items()
                     if name in (args.rows or self.study.rows)}
        for name in set(args.rows) - self.rows.keys():
            raise UserError(f"no row '{name}'", nearest(name, self.study.rows))

    def trials(self, name: str, group: str) -> list[tuple[int | None, int]]:
        """(fold, seed) of the students of a row in a group."""
        seeds = self.seeds
        if self.study.claims and name not in self.study.claims:
            seeds = seeds[:self.study.few] if group == next(iter(self.study.groups)) else []
        return [(fold, seed) for seed in seeds for fold in self.folds]

    def fill(self, text: str, row: Row, trial: tuple, group: str = "") -> Command:
        """The command of a text whose braces the trial fills; group: a folder below the study's."""
        fold, seed = trial
        place = self.root + ("_dev" if group == "dev" else f"/{group}" if group else "")
        values = {"fold": fold, "gen": seed // 6, "set_seed": seed // 3, "seed": seed,
                  "set": seed // 3 if fold is None else seed // 3 % 2,
                  "end": f"_set{seed // 3}" if seed >= 3 else "",
                  "base": f"save/digits/fold{fold}_gen{seed // 6}",
                  "place": place if fold is None else f"{place}/fold{fold}_gen{seed // 6}"}
        values["needs"] = command(row.needs.format_map(values))["out"] if row.needs else ""
        return command(text.format_map(values))

    def images(self, row: Row, trial: tuple, group: str) -> Command:
        """The command that makes a row's image set."""
        name, _, flags = row.images.partition(" ")
        usual = f"{self.steps['images'].replace('{name}', name)} {flags}"
        return self.fill(row.images if name.endswith(".sh") else usual, row, trial, group)

    def inspection(self, name: str, row: Row, trial: tuple, group: str) -> Command:
        """The command that inspects a row's image set, with the teacher of its students."""
        student = self.student(name, row, trial, group)
        fold = "--fold {fold}" if "fold" in student else ""
        return self.fill(f"inspect_set --task {student['task']} --set {student['source']} "
                         f"--teacher {student['teacher']} {fold} {self.study.inspect} "
                         f"--out {{place}}/inspect_{name}_set{{set}}.json", row, trial, group)

    def student(self, name: str, row: Row, trial: tuple, group: str, more: str = "") -> Command:
        """The command of a student: flags of the data set, the group, the row, then `more`."""
        script, _, flags = self.steps["student"].partition(" ")
        own, dashes, rest = row.student.partition("--")
        source = f"--source {self.images(row, trial, group)['out']}" if row.images else ""
        return self.fill(f"{own.strip() or script} {flags} {self.study.groups.get(group, '')} "
                         f"--seed {{seed}} --out {{place}}/{name}_set{{set}}_seed{{seed}} "
                         f"{source} {dashes}{rest} {more}", row, trial, group)

    def tries(self, name: str, fold: int | None) -> list[Command]:
        """A row's runs with each of the flags to choose from, on training images set aside."""
        first, *_ = self.study.groups.values()
        first = first.replace("--cache-teacher", "")  # they would write one cache at a time
        return [self.student(f"{name}_try{i}", self.study.rows[name], (fold, self.seeds[0]), "dev",
                             f"{first} {self.study.tune_flags} --val dev {flags}")
                for i, flags in enumerate(self.study.tune)]

    def tuned(self, name: str, group: str, fold: int | None) -> str:
        """The flags that were best for a row, of equal ones the first; none before all ran."""
        if not (self.study.tune_row or group.endswith("_tuned")):
            return ""
        paths = [Path(flags["out"]) / "result.json"
                 for flags in self.tries(self.study.tune_row or name, fold)]
        if not all(path.exists() for path in paths):
            return ""
        accuracies = [json.loads(path.read_text())["acc1"] for path in paths]
        return self.study.tune[accuracies.index(max(accuracies))]

    def stages(self) -> Iterator[list[Command]]:
        """Lists of commands that do not need each other; first what the others may use."""
        study, groups = self.study, list(self.study.groups)
        every = [(name, row, trial, groups[0]) for name, row in self.rows.items()
                 for trial in self.trials(name, groups[0])]
        first = [text for step, text in self.steps.items()
                 if step not in ("images", "student", "network")]
        yield [self.fill(text, row, trial) for _, row, trial, _ in every
               for text in (*first, row.needs) if text]
        for late in (False, True):
            part = [p for p in every if p[1].late == late]
            yield [self.images(*p[1:]) for p in part if p[1].images]
            if study.inspect is not None:
                yield [self.inspection(*p) for p in part if p[1].images]
            if study.tune and part:
                yield [flags for name in ([study.tune_row] if study.tune_row else self.rows)
                       for fold in self.folds for flags in self.tries(name, fold)]
            for group in groups:
                yield [self.student(name, row, trial, group, self.tuned(name, group, trial[0]))
                       for name, row in self.rows.items() if row.late == late
                       for trial in self.trials(name, group)]

    def reports(self, record: bool) -> list[Command]:
        """A report per group and baseline."""
        made = []
        for group in self.study.groups:
            runs = f"{self.root}/{group}".rstrip("/")
            for i, baseline in enumerate(self.study.baseline.split(",")):
                end = f"/against_{baseline}" if i else ""
                made.append({"module": "dm_kd.report", "runs": runs, "out": f"{runs}/report{end}",
                             "title": f"{self.study.title} {group}".strip()})
                if baseline in self.rows:
                    made[-1]["baseline"] = baseline
                if record:
                    made[-1]["record"] = runs.replace("save/", "save/results/", 1) + end
        return made


# --- the command ----------------------------------------------------------------------------------

def numbers(text: str) -> list[int]:
    """"0-2,6" -> [0, 1, 2, 6]."""
    ends = [[run.nonnegative_int(end) for end in part.split("-")] for part in text.split(",")]
    return [n for part in ends for n in range(part[0], part[-1] + 1)]


def parse(argv: list[str]) -> argparse.Namespace:
    parser = run.Parser("study", __doc__)
    add = parser.add_argument
    add("data_set", choices=STUDIES, metavar="DATASET", help=", ".join(STUDIES))
    add("study", metavar="STUDY", help="; ".join(
        f"{name}: {', '.join(studies)}" for name, studies in STUDIES.items()))
    add("--jobs", type=run.positive_int, default=None, metavar="N",
        help="commands at a time (default: 2; 1 for the data sets that need a GPU)")
    add("--seeds", type=numbers, default=None, metavar="0-2,6", help="default: the study's own")
    add("--folds", type=numbers, default=list(range(5)), metavar="0,1",
        help="of the digits (default: all five)")
    add("--rows", type=lambda text: text.split(","), default=[], metavar="A,B",
        help="only these rows (default: all)")
    add("--threads", type=run.positive_int, default=None, metavar="N",
        help="CPU threads of each command (default: 1 for digits and fashion_mnist)")
    add("--record", action="store_true", help="keep the tables in save/results too")
    add("--dry-run", action="store_true", help="print the commands; write nothing")
    args = parser.parse_args(argv)
    if args.study not in STUDIES[args.data_set]:
        raise UserError(f"{args.data_set} has no study '{args.study}'",
                        nearest(args.study, STUDIES[args.data_set]))
    if args.data_set in SMALL:
        args.threads = args.threads or (2 if args.study == "quickstart" else 1)
    args.jobs = args.jobs or (2 if args.data_set in SMALL else 1)
    return args


def body(argv: list[str]) -> None:
    args = parse(argv)
    if args.study == "quickstart":
        for text in QUICKSTART:
            execute_here(command(f"{text} --threads {args.threads}"), args.dry_run)
        return
    plan = Plan(args)
    used = {value for stage in [*plan.stages()][1:] for flags in stage for value in flags.values()}
    for i, stage in enumerate(plan.stages()):
        run_stage([flags for flags in stage if i or flags["out"] in used], args)
    run_stage(plan.reports(args.record), args)


def main(argv: list[str] | None = None) -> int:
    return run.main(body, argv)


if __name__ == "__main__":
    sys.exit(main())
