"""Finished runs below a folder as rows: runs whose paths differ only in seedN, foldN, genN or setN
are repetitions of one row.

    rows = collect.rows(Path("save/student_model"))
"""

import itertools
import os
import re
import shlex
from dataclasses import dataclass
from pathlib import Path

import yaml

from dm_kd.run import read_json

REPETITION = re.compile(r"(?:^|_)(?:seed|fold|gen|set)\d+(?=_|$)")


@dataclass
class Run:
    """A finished run of distill, or of train_teacher (no teacher, method "alone")."""

    row: str  # its path below --runs without seedN, foldN, genN, setN
    task: str
    student: str
    teacher: str | None
    method: str  # "alone", "real", a generator, a rival, or "folder"
    images_per_class: float | None  # of stored images, by the task's classes
    seed: int
    fold: int
    generator: int  # N of genN, else 0
    acc1: float  # of the last epoch, percent
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


def rows(folder: Path) -> list[Row]:
    """The rows of the finished and evaluated runs below a folder, the most accurate first."""
    runs: dict[str, list[Run]] = {}
    for path in sorted(folder.rglob("config.yaml")):
        config, result = yaml.safe_load(path.read_text()), path.with_name("result.json")
        classifier = "teacher" in config or "model" in config
        if classifier and result.exists() and read_json(result)["acc1"] is not None:
            run = read_run(path.parent, folder, config)
            runs.setdefault(run.row, []).append(run)
    return sorted((Row(*item) for item in runs.items()), key=lambda row: -row.acc1)


def read_run(folder: Path, root: Path, config: dict) -> Run:
    result, kind = read_json(folder / "result.json"), "student" if "teacher" in config else "model"
    card = read_json(folder / f"{kind}.json")
    generator, source = card.get("generator") or {}, str(config.get("source"))
    own = "folder" if "/" in source or "." in source else source
    count = config["inputs"].get("source_images")
    names = [REPETITION.sub("", name).strip("_") for name in folder.relative_to(root).parts]
    numbers = re.findall(r"(?:^|[_/])gen(\d+)(?=[_/]|$)", folder.as_posix())
    return Run(
        row="/".join(filter(None, names)) or folder.name, task=config["task"],
        student=str(config[kind]), teacher=(card.get("teacher") or {}).get("name"),
        method="alone" if kind == "model" else generator.get("name", own),
        images_per_class=count and round(count / card["num_classes"], 1),
        seed=config["seed"], fold=config["fold"], generator=int(numbers[-1]) if numbers else 0,
        acc1=result["acc1"], generator_settings=generator, config=config, result=result)


def inspections(folder: Path) -> dict[tuple[str, int], dict]:
    """What inspect_set wrote below a folder, by the set's path and the fold it is compared with."""
    records = map(read_json, sorted(folder.rglob("inspect*.json")))
    return {(os.path.normpath(record["set"]), record["fold"]): record for record in records}


def commands(rows: list[Row]) -> list[str]:
    """The commands that made the runs, in the order to run them: generators, teachers, image sets,
    students; without those whose folders are no longer on disk."""
    runs = [run for row in rows for run in row.runs]
    sets = [(run.source / "command.txt").read_text().strip() for run in runs
            if (run.source / "command.txt").exists()]
    weights = [Path(word) for command in sets for flag, word in itertools.pairwise(
        shlex.split(command)) if flag == "--weights"]
    teachers = [Path(str(run.config.get("teacher"))) for run in runs]
    trained = [read_json(folder / "result.json")["command"]
               for folder in (*weights, *teachers) if (folder / "result.json").exists()]
    return list(dict.fromkeys([*trained, *sets, *(run.result["command"] for run in runs)]))
