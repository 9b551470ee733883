"""Finished runs below a folder as rows: runs whose paths differ only in seedN, foldN, genN or setN
are repetitions of one row.

    rows, skipped = collect.rows(Path("save/student_model"), order=["kd_real", "kd_dit"])
"""

import itertools
import json
import os
import re
import shlex
from dataclasses import dataclass
from pathlib import Path

import yaml

from dm_kd.run import read_metrics

REPETITION = re.compile(r"(?:^|_)(?:seed|fold|gen|set)\d+(?=_|$)")
UNREADABLE = (OSError, ValueError, KeyError, TypeError, AttributeError, yaml.YAMLError)


@dataclass
class Run:
    """A finished run of distill, or of train_teacher (no teacher, method "alone")."""

    row: str  # its path below --runs without seedN, foldN, genN, setN
    task: str
    student: str
    teacher: str | None
    method: str  # "alone", "real" (also of another task), a generator, a rival, or "folder"
    images_per_class: float | None
    seed: int
    fold: int
    generator: int | None  # N of genN
    set: int | None  # N of setN
    acc1: float  # of the last epoch, percent
    curve: list[float]  # validation accuracy after each epoch, percent
    generator_settings: dict  # of the set that the student learned from
    config: dict
    result: dict

    @property
    def source(self) -> Path:
        """The image set; for other sources a path that does not exist."""
        return Path(str(self.config.get("source")))


@dataclass
class Row:
    """Repetitions of one experiment."""

    name: str
    runs: list[Run]

    @property
    def first(self) -> Run:
        return self.runs[0]

    def mean(self, value) -> float | None:
        """Of value(run) over the runs; None where a run has none."""
        values = [value(run) for run in self.runs]
        return None if None in values else sum(values) / len(values)

    @property
    def acc1(self) -> float:
        return self.mean(lambda run: run.acc1)


def rows(folder: Path, order: list[str]) -> tuple[list[Row], list[str]]:
    """The rows below a folder, those named in `order` first, the others by accuracy; and the runs
    that were left out, with the reason."""
    runs: dict[str, list[Run]] = {}
    skipped = []
    for path in files_below(folder, "config.yaml"):
        try:
            config = yaml.safe_load(path.read_text())
            if "teacher" in config or "model" in config:
                run = read_run(path.parent, folder, config)
                runs.setdefault(run.row, []).append(run)
        except UNREADABLE as error:
            skipped.append(f"{path.parent}: {str(error)[:80]}")
    return sorted((Row(*item) for item in runs.items()), key=lambda row: (
        order.index(row.name) if row.name in order else len(order), -row.acc1)), skipped


def files_below(folder: Path, pattern: str) -> list[Path]:
    """Files that match the pattern, sorted; image sets are not searched."""
    paths = []
    for place, folders, names in os.walk(folder):
        folders[:] = [] if "manifest.json" in names else sorted(folders)
        paths += sorted(Path(place).glob(pattern))
    return paths


def read_run(folder: Path, root: Path, config: dict) -> Run:
    """A run; an error of UNREADABLE if it is unfinished, damaged or was not evaluated."""
    if not (folder / "result.json").exists():
        raise ValueError("not finished")
    result = json.loads((folder / "result.json").read_text())
    kind = "student" if "teacher" in config else "model"
    card = json.loads((folder / f"{kind}.json").read_text())
    generator = card.get("generator") or {}
    names = [REPETITION.sub("", name).strip("_") for name in folder.relative_to(root).parts]
    return Run(
        row="/".join(filter(None, names)) or folder.name, task=config["task"],
        student=str(config[kind]), teacher=(card.get("teacher") or {}).get("name"),
        method=method(config, generator), images_per_class=images_per_class(config, card),
        seed=int(config["seed"]), fold=int(config.get("fold") or 0),
        generator=number_of("gen", folder, config), set=number_of("set", folder, config),
        acc1=float(result["acc1"]), curve=[m["val_acc1"] for m in read_metrics(folder)],
        generator_settings=generator, config=config, result=result)


def number_of(what: str, folder: Path, config: dict) -> int | None:
    """N of the last genN or setN in the run's path, else in its source's."""
    for path in (folder.as_posix(), str(config.get("source"))):
        if hits := re.findall(rf"(?:^|[_/]){what}(\d+)(?=[_/]|$)", path):
            return int(hits[-1])
    return None


def method(config: dict, generator: dict) -> str:
    """What the network learned from, as Run.method."""
    source = str(config.get("source"))
    if "teacher" not in config:
        return "alone"
    if generator:
        return str(generator["name"])
    return "folder" if "/" in source or "." in source else source.partition(":")[0]


def images_per_class(config: dict, card: dict) -> float | None:
    """Of stored images, by the task's classes; None for a rival, which makes its own."""
    count = (config.get("inputs") or {}).get("source_images")
    return round(count / card["num_classes"], 1) if count else config.get("images_per_class")


# --- inspected sets -------------------------------------------------------------------------------

def inspections(folder: Path) -> dict[tuple[str, int], dict]:
    """What inspect_set wrote below a folder, by the set's path and the fold it is compared with."""
    records = [json.loads(path.read_text()) for path in files_below(folder, "inspect*.json")]
    return {(os.path.normpath(record["set"]), record.get("fold", 0)): record for record in records}


def inspected(row: Row, sets: dict[tuple[str, int], dict], name: str) -> float | None:
    """The mean of a figure of inspect_set over the sets that a row's students learned from."""
    return row.mean(lambda run: sets.get((os.path.normpath(run.source), run.fold), {}).get(name))


# --- commands -------------------------------------------------------------------------------------

def commands(rows: list[Row]) -> list[str]:
    """The commands that made the runs, in the order to run them: generators, teachers, image sets,
    students; without those whose folders are no longer on disk."""
    runs = [run for row in rows for run in row.runs]
    sets = [(run.source / "command.txt").read_text().strip() for run in runs
            if (run.source / "command.txt").exists()]
    weights = [Path(word) for command in sets for flag, word in itertools.pairwise(
        shlex.split(command)) if flag == "--weights"]
    teachers = [Path(str(run.config.get("teacher"))) for run in runs]
    trained = [json.loads((folder / "result.json").read_text()).get("command")
               for folder in (*weights, *teachers) if (folder / "result.json").exists()]
    lines = [*trained, *sets, *(run.result.get("command") for run in runs)]
    return list(dict.fromkeys(filter(None, lines)))
