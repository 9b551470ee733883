"""Finished runs below a folder as rows: runs whose paths differ only in seedN, foldN, genN or setN
are repetitions of one row.

    rows, skipped = collect.rows(Path("save/student_model"), order=["kd_real", "kd_dit"])
"""

import json
import os
import re
import shlex
from dataclasses import dataclass
from pathlib import Path

import yaml

REPETITION = re.compile(r"(?:^|_)(?:seed|fold|gen|set)\d+(?=_|$)")
NO_SETTINGS = {"seed", "fold", "source", "device", "threads", "images_per_class", "subset_seed"}
GENERATORS = (Path("save/generators"), Path("save/results"))  # where a set's weights are looked for
UNREADABLE = (OSError, ValueError, KeyError, TypeError, AttributeError, yaml.YAMLError)


@dataclass
class Run:
    """A finished run of distill, or of train_teacher (no teacher, method "alone")."""

    folder: Path
    row: tuple[str, ...]  # folders from --runs on, without seedN, foldN, genN, setN
    task: str
    student: str
    teacher: str | None
    method: str  # "alone", "real", a generator's name, a rival's name, or "folder"
    source: str | None
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
    def student(self) -> str:
        return self.first.student

    @property
    def acc1(self) -> float:
        return self.mean(lambda run: run.acc1)

    @property
    def teacher_acc1(self) -> float | None:
        return self.mean(lambda run: run.result.get("teacher_acc1"))


def rows(folder: Path, order: list[str]) -> tuple[list[Row], list[str]]:
    """The rows below a folder, in the order of their names given, else best first; and which runs
    were left out, with the reason."""
    runs, skipped = [], []
    for config in files_below(folder, "config.yaml"):
        try:
            run = read_run(config.parent, folder)
        except UNREADABLE as error:
            run = f"{type(error).__name__}: {str(error)[:80]}"
        if isinstance(run, Run):
            runs.append(run)
        elif run:
            skipped.append(f"{config.parent}: {run}")
    paths = list(dict.fromkeys(run.row for run in runs))
    found = [Row(short_name(path, paths), [r for r in runs if r.row == path]) for path in paths]
    found.sort(key=lambda row: -row.acc1)
    found.sort(key=lambda row: order.index(row.name) if row.name in order else len(order))
    return found, skipped


def files_below(folder: Path, pattern: str) -> list[Path]:
    """Files of that name, sorted; image sets are not entered."""
    found = []
    for place, folders, names in os.walk(folder):
        folders[:] = [] if "manifest.json" in names else sorted(folders)
        found += sorted(Path(place).glob(pattern))
    return found


def short_name(path: tuple[str, ...], paths: list[tuple[str, ...]]) -> str:
    """The shortest end of a row's path that no other row has."""
    ends = ("/".join(path[-n:]) for n in range(1, len(path) + 1)
            if sum(other[-n:] == path[-n:] for other in paths) == 1)
    return next(ends, "/".join(path))


def read_run(folder: Path, root: Path) -> Run | str:
    """A run, or why it is left out; "" for a run that trained no classifier."""
    config = yaml.safe_load((folder / "config.yaml").read_text())
    if "teacher" not in config and "model" not in config:
        return ""
    if not (folder / "result.json").exists():
        return "not finished"
    result = json.loads((folder / "result.json").read_text())
    if result["acc1"] is None:
        return "not evaluated (--val none)"
    kind = "student" if "teacher" in config else "model"
    card = json.loads((folder / f"{kind}.json").read_text())
    generator = card.get("generator") or {}
    return Run(
        folder=folder, row=row_path(folder, root, kind), task=config["task"],
        student=str(config[kind]), teacher=(card.get("teacher") or {}).get("name"),
        method=method(config, generator), source=config.get("source"),
        images_per_class=images_per_class(folder, config, card), seed=int(config["seed"]),
        fold=int(config.get("fold") or 0), generator=number_of("gen", folder, config),
        set=number_of("set", folder, config), acc1=float(result["acc1"]),
        curve=read_curve(folder), generator_settings=generator, config=config, result=result)


def without_repetition(name: str) -> str:
    return REPETITION.sub("", name).strip("_")


def row_path(folder: Path, root: Path, kind: str) -> tuple[str, ...]:
    *parents, name = folder.relative_to(root).parts or (folder.name,)
    return kind, *filter(None, map(without_repetition, parents)), without_repetition(name) or name


def number_of(what: str, folder: Path, config: dict) -> int | None:
    """N of the last genN or setN in the run's path, else in its source's."""
    for path in (folder.as_posix(), str(config.get("source") or "")):
        if hits := re.findall(rf"(?:^|[_/]){what}(\d+)(?=[_/]|$)", path):
            return int(hits[-1])
    return None


def method(config: dict, generator: dict) -> str:
    source = str(config.get("source"))
    if "teacher" not in config:
        return "alone"
    if generator:
        return str(generator["name"])
    return "folder" if "/" in source or "." in source else source


def images_per_class(folder: Path, config: dict, card: dict) -> float | None:
    """Of stored images, by the task's classes; None for a rival, which makes its own."""
    inputs = folder / "inputs.json"
    count = json.loads(inputs.read_text()).get("source_images") if inputs.exists() else None
    if count and card.get("num_classes"):
        return round(count / card["num_classes"], 1)
    return config.get("images_per_class")


def read_curve(folder: Path) -> list[float]:
    path = folder / "metrics.jsonl"
    lines = path.read_text().splitlines() if path.exists() else []
    values = [json.loads(line).get("val_acc1") for line in lines]
    return [] if None in values else values


def settings(row: Row) -> dict:
    """What may differ from row to row."""
    run = row.first
    teacher = "/".join(map(without_repetition, str(run.config.get("teacher")).split("/")))
    return {**{k: v for k, v in run.config.items() if k not in NO_SETTINGS},
            "method": run.method, "teacher": teacher, "images_per_class": run.images_per_class,
            **{k: run.generator_settings.get(k) for k in ("guidance_scale", "steps")}}


def series(rows: list[Row], *along: str) -> list[list[Row]]:
    """Groups of rows that differ in the settings `along` only (the first of them must be known),
    the largest group first."""
    groups = {}
    for row in rows:
        values = settings(row)
        if values.get(along[0]) is not None:
            key = tuple(sorted((k, str(v)) for k, v in values.items() if k not in along))
            groups.setdefault(key, []).append(row)
    return sorted((group for group in groups.values() if len(group) > 1), key=len, reverse=True)


# --- inspected sets -------------------------------------------------------------------------------

def inspections(folder: Path) -> dict[str, dict]:
    """What inspect_set wrote below a folder, by the set's path."""
    records = [json.loads(path.read_text()) for path in files_below(folder, "inspect*.json")]
    return {os.path.normpath(record["set"]): record for record in records}


def inspected(row: Row, sets: dict[str, dict], name: str) -> float | None:
    """The mean of a figure of inspect_set over the sets that a row's students learned from."""
    return row.mean(lambda run: sets.get(os.path.normpath(str(run.source)), {}).get(name))


# --- commands -------------------------------------------------------------------------------------

def commands(rows: list[Row], folder: Path) -> list[str]:
    """Every command that made the runs, in an order that works: generators, teachers, image sets,
    students. What is no longer on disk is missing."""
    runs = [run for row in rows for run in row.runs]
    weights = {}
    for place in (folder, *GENERATORS):
        for path in files_below(place, "result.json"):
            result = json.loads(path.read_text())
            weights.setdefault(result.get("weights_sha256"), (path.parent, result.get("command")))
    teachers, sets = [], []
    for run in runs:
        teacher = Path(str(run.config.get("teacher"))) / "result.json"
        if teacher.exists():
            teachers.append(json.loads(teacher.read_text()).get("command"))
        if (manifest := Path(str(run.source)) / "manifest.json").exists():
            sets.append(json.loads(manifest.read_text()) | {"folder": run.source})
    generators = [weights.get(s["generator"].get("weights_sha256"), (None, None))[1] for s in sets]
    made = [*generators, *teachers, *(set_command(s, weights) for s in sets),
            *(run.result.get("command") for run in runs)]
    return list(dict.fromkeys(command for command in made if command))


def set_command(manifest: dict, weights: dict[str, tuple]) -> str:
    """The synthesize command of an image set, from its manifest."""
    if manifest.get("command"):
        return manifest["command"]
    own = {k: v for k, v in manifest["generator"].items() if isinstance(v, (str, int, float))
           and "sha256" not in k and k not in ("name", "licence", "trained_on")}
    place, _ = weights.get(manifest["generator"].get("weights_sha256"), (None, None))
    flags = {"task": manifest["task"], "generator": manifest["generator"]["name"], "weights": place,
             **own, "images_per_class": manifest["images_per_class"],
             "batch_size": manifest["shard_size"], "seed": manifest["base_seed"],
             "out": manifest["folder"]}
    return "python -m dm_kd.synthesize " + " ".join(
        f"--{k.replace('_', '-')} {shlex.quote(str(v))}" for k, v in flags.items() if v is not None)
