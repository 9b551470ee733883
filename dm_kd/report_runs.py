"""Read the runs below a folder for `report`, whatever else lies there: finished ones as trials, the
others with what is wrong.

    python -m dm_kd.report --runs save/student_model --out save/report

Nothing in a file is trusted: what is not as a run writes it makes the run a damaged or foreign one.
"""

import json
import math
import os
import re
from pathlib import Path

import numpy as np

from dm_kd import files, run
from dm_kd.errors import UserError

DAMAGE = (UserError, OSError, KeyError, TypeError, ValueError, AttributeError, IndexError,
          RecursionError, OverflowError)  # all that a file with anything in it can cause
TOKEN = re.compile(r"(?:^|_|(?<=/))(?:seed|fold|gen|set)\d+(?=[_/]|$)")
IMAGENET = "ImageNet"
PUBLIC = ("dit", "sit", "imf", "biggan")  # generators whose public weights learnt ImageNet
UNTRAINED = ("noise", "one_image", "deepinversion")  # generators without weights of their own
NOT_SETTINGS = {"seed", "fold", "source", "device", "threads", "images_per_class",
                "subset_seed"}  # of a config
FILES = ("config.yaml", "result.json", "student.json", "model.json", "inputs.json",
         "metrics.jsonl", "predictions.json")  # of a run, as far as they are read
PNG = b"\x89PNG\r\n\x1a\n"


# --- reading --------------------------------------------------------------------------------------

def plain(value: object) -> str:
    """Text that any page or terminal can hold: no control characters, no half characters."""
    text = str(value).encode("utf-8", "replace").decode()
    return "".join(c if c.isprintable() else " " for c in text)


def finite(value: object) -> object:
    """The same JSON value with null for what is no finite number, and plain strings."""
    if isinstance(value, dict):
        return {plain(k): finite(v) for k, v in value.items()}
    if isinstance(value, list):
        return [finite(v) for v in value]
    if isinstance(value, str):
        return plain(value)
    return None if isinstance(value, float) and not math.isfinite(value) else value


def found_below(folder: Path, pattern: str) -> list[Path]:
    """Files with such a name, in order; image sets and hidden folders are not entered."""
    wanted, found = re.compile(pattern), []
    for place, folders, names in os.walk(folder):
        folders[:] = [] if "manifest.json" in names else sorted(
            name for name in folders if not name.startswith("."))
        found += [Path(place) / name for name in sorted(names) if wanted.fullmatch(name)]
    return found


def must_be_regular(path: Path, root: Path) -> None:
    """Reading a pipe never ends, and a link may lead to what is nobody's to publish.

    Raises:
        ValueError: something with this path is no file, or one outside `root`."""
    if os.path.lexists(path) and not (
            path.is_file() and path.resolve().is_relative_to(root.resolve())):
        raise ValueError(f"{path.name} is no regular file below --runs")


def find_trials(folder: Path) -> tuple[list[dict], list[dict]]:
    """Finished classifier runs below a folder; and what is left out: {"place", "state", "why"}."""
    trials, problems, seen = [], [], set()
    for config_path in found_below(folder, r"config\.yaml"):
        place = config_path.parent
        try:
            trial, why = read_trial(place, folder), ""
        except DAMAGE as error:
            why = "damaged"
            text = f"no {error}" if isinstance(error, KeyError) else str(error)
            problems.append(left_out(place, why, text.removeprefix("error: ")))
        if not why and trial["state"] == "finished":
            identity = trial["row"], trial["replicate"], trial["fold"]
            if identity in seen:
                problems.append(left_out(place, "twice", "another run is the same trial"))
            else:
                trials.append(trial)
            seen.add(identity)
        elif not why and trial["state"]:
            problems.append(left_out(place, trial["state"], trial["why"]))
    return trials, problems


def left_out(place: Path, state: str, why: str) -> dict:
    first = (why.splitlines() or [""])[0][:80]
    return {"place": plain(place), "state": state, "why": plain(first)}


def find_inspections(folder: Path, problems: list[dict]) -> list[dict]:
    """What inspect_set wrote below a folder; unreadable ones are added to `problems`."""
    found = []
    for path in found_below(folder, r"inspect.*\.json"):
        try:
            picture = path.with_suffix(".png")
            for file in (path, picture):
                must_be_regular(file, folder)
            record = finite(files.read_json(path))
            found.append({**record, "sentence": str(record["sentence"]),
                          "picture": str(picture) if is_png(picture) else None})
        except DAMAGE as error:
            problems.append(left_out(path, "damaged", str(error).removeprefix("error: ")))
    return found


def is_png(path: Path) -> bool:
    if not path.exists():
        return False
    with path.open("rb") as file:
        return file.read(len(PNG)) == PNG


def read_trial(place: Path, root: Path) -> dict:
    """A run's config, result, card, metrics and predictions, and what it is a trial of. "state" is
    "finished", or what the run is instead ("why" says more; "" for a generator).

    Raises:
        what is in DAMAGE: a file does not hold what a run's file holds."""
    for name in FILES:
        must_be_regular(place / name, root)
    config = {plain(k): v for k, v in run.read_config(place / "config.yaml").items()
              if isinstance(v, (str, int, float, type(None)))}
    kind = ("distill" if "teacher" in config else "train_teacher" if "model" in config else "")
    if "seed" not in config:
        return {"state": "foreign", "why": "its config.yaml is of another program"}
    if not (place / "result.json").exists():
        return {"state": "not finished", "why": progress(place, config)}
    result = files.read_json(place / "result.json")
    if not kind:
        return {"state": "" if "steps" in result else "foreign", "why": "no classifier's run"}
    if result["acc1"] is None:
        return {"state": "not judged", "why": "trained with --val none"}
    card = finite(files.read_json(place / ("student.json" if kind == "distill" else "model.json")))
    inputs = finite(files.read_json(place / "inputs.json")
                    if (place / "inputs.json").exists() else {})
    trial = {"state": "finished", "place": place, "kind": kind, "config": finite(config),
             "result": checked(finite(result)), "card": card, "inputs": inputs,
             "metrics": curve(run.read_metrics(place)), "seed": int(config["seed"]),
             "fold": int(config.get("fold") or 0), "task": str(config["task"]),
             "predictions": read_predictions(place / "predictions.json")}
    trial |= {"name": row_name(place), "row": row_path(place, root, trial["task"], kind),
              "replicate": replicate(place, root, trial), "settings": settings_of(trial)}
    return trial


def progress(place: Path, config: dict) -> str:
    rows = run.read_metrics(place)
    if not rows:
        return "no epoch done"
    acc1 = rows[-1].get("val_acc1")
    judged = f", Acc@1 {acc1:.1f} %" if isinstance(acc1, float) else ""
    return f"epoch {rows[-1]['epoch']} of {config.get('epochs', '?')}{judged}"


def checked(result: dict) -> dict:
    """The result with numbers where numbers belong.

    Raises:
        ValueError: the accuracy or the count of images is none."""
    if not 0 <= result["acc1"] <= 100 or not 0 < result["val_images"] < 1e12:
        raise ValueError(f"acc1 {result['acc1']!r:.20}, val_images {result['val_images']!r:.20}")
    budget = result.get("budget") if isinstance(result.get("budget"), dict) else {}
    clean = {"budget": {k: number(v) for k, v in budget.items()}}
    for name in ("best_acc1", "agreement", "blind_agreement", "seconds", "images_seen",
                 "teacher_acc1"):
        clean[name] = number(result.get(name))
    return result | clean


def number(value: object) -> float | int | None:
    """The value if it is a number that can be drawn."""
    able = isinstance(value, (int, float)) and not isinstance(value, bool)
    return value if able and abs(value) < 1e15 else None


def curve(rows: list[dict]) -> list[float]:
    """Validation accuracy after each epoch; empty where an epoch has none."""
    values = [number(row.get("val_acc1")) for row in rows]
    return [] if None in values else values


def read_predictions(path: Path) -> dict[str, np.ndarray] | None:
    """ids, groups, labels and predictions, int64 [N] each, ids in rising order and once each.

    Raises:
        ValueError: they are of unequal lengths."""
    if not path.exists():
        return None
    record = files.read_json(path)
    lists = {k: np.array(record[k], dtype=np.int64)
             for k in ("ids", "groups", "labels", "predictions")}
    if {v.shape for v in lists.values()} != {(len(record["ids"]),)}:
        raise ValueError("predictions.json: lists of unequal lengths")
    _, first = np.unique(lists["ids"], return_index=True)
    return {k: v[first] for k, v in lists.items()}


def without_groups(trials: list[dict], groups: list[int]) -> list[dict]:
    """The trials judged on the images of other groups only; those that have none, or no
    predictions, are dropped. What is known of all images together (the best epoch, agreements, the
    teacher's accuracy) is then unknown."""
    kept = []
    for trial in trials:
        known = trial["predictions"]
        if known is None or not (stay := ~np.isin(known["groups"], groups)).any():
            continue
        left = {name: values[stay] for name, values in known.items()}
        right = left["labels"] == left["predictions"]
        unknown = dict.fromkeys(("best_acc1", "agreement", "blind_agreement", "teacher_acc1"))
        kept.append(trial | {"predictions": left, "metrics": [], "result": trial["result"] | unknown
                             | {"acc1": 100 * float(right.mean()), "val_images": len(right)}})
    return kept


# --- what a run is a trial of ---------------------------------------------------------------------

def row_name(place: Path) -> str:
    """The run's folder name without its seedN, foldN, genN and setN."""
    return plain(TOKEN.sub("", place.name).strip("_") or place.name)


def row_path(place: Path, root: Path, task: str, kind: str) -> tuple[str, ...]:
    """What the trials of a row share: task, kind, and the folders from --runs on without their
    numbers."""
    parents = place.relative_to(root).parts[:-1]
    left = [plain(TOKEN.sub("", part).strip("_")) for part in parents]
    return task, kind, *(part for part in left if part), row_name(place)


def replicate(place: Path, root: Path, trial: dict) -> tuple[int | None, int | None, int]:
    """(generator, set, seed): numbers from genN and setN in the folders from --runs on, or in the
    source's path, and the student's seed."""
    parts = [*place.relative_to(root).parts, place.name]
    source = str(trial["config"].get("source") or "")
    numbers = []
    for what in ("gen", "set"):
        hits = re.findall(rf"(?:^|[_/]){what}(\d+)(?=[_/]|$)", "/".join([source, *parts]))
        numbers.append(int(hits[-1]) if hits else None)
    return (*numbers, trial["seed"])


def settings_of(trial: dict) -> dict[str, object]:
    """What may vary from row to row, flat: the method, the models, the images' settings, and the
    recipe as the config has it."""
    config, card, generator = trial["config"], trial["card"], generator_of(trial)
    teacher = card.get("teacher") if isinstance(card.get("teacher"), dict) else {}
    method = method_of(trial)
    found = {k: v for k, v in config.items() if k not in NOT_SETTINGS}
    found |= {f"generator's {k}": v if isinstance(v, (str, int, float)) else json.dumps(v)[:80]
              for k, v in generator.items() if "sha256" not in k and k not in (
                  "name", "licence", "trained_on", "guidance_scale", "steps")}
    found |= {"task": trial["task"], "images": plain(method),
              "student": plain(config.get("student", config.get("model"))),
              "teacher": teacher.get("name") and plain(teacher["name"]),
              "teacher_run": TOKEN.sub("", str(config.get("teacher", ""))),
              "guidance_scale": number(generator.get("guidance_scale")),
              "steps": number(generator.get("steps")),
              "images_per_class": images_per_class(trial)}
    if method == "folder":  # only the path says which images
        found["source"] = plain(TOKEN.sub("", os.path.normpath(str(config.get("source")))))
    return found


def generator_of(trial: dict) -> dict:
    generator = trial["card"].get("generator")
    return generator if isinstance(generator, dict) else {}


def method_of(trial: dict) -> str:
    """"alone" (no teacher), "real", the generator's name, the online source's, or "folder"."""
    if trial["kind"] == "train_teacher":
        return "alone"
    source = str(trial["config"].get("source"))
    generator = generator_of(trial)
    if generator or source == "real":
        return str(generator.get("name")) if generator else source
    stored = "source_images" in trial["inputs"] or "/" in source or "." in source
    return "folder" if stored else source


def images_per_class(trial: dict) -> float | None:
    """Of stored images, by the task's classes (a set may be of more, as ImageNet's are); None for
    those that are made while the student learns."""
    count = number(trial["inputs"].get("source_images"))
    classes = number(trial["card"].get("num_classes"))
    given = (count / classes if count and classes else
             number(trial["config"].get("images_per_class")))
    return given if given and given > 0 else None


def describe(trial: dict, temperatures: list[float] | None = None) -> str:
    """What the row is, in words; with its temperatures where they are given."""
    config, settings, generator = trial["config"], trial["settings"], generator_of(trial)
    if trial["kind"] == "train_teacher":
        return plain(f"{config['model']}, cross-entropy on real images")
    s, steps = settings["guidance_scale"], settings["steps"]
    if settings["images"] == "real":
        images = "real images"
    elif generator.get("name") == "noise":
        images = "noise"
    elif s is not None and steps is not None:
        steered = ", teacher-guided" * ("teacher_guidance" in generator)
        images = f"synthetic images ({generator.get('name')}, s={s:g}, T={steps}{steered})"
    else:
        images = f"images of {generator.get('name', config.get('source'))}"
    return plain(f"{config.get('student')}, {loss(trial, temperatures or [])} on {images}")


def loss(trial: dict, temperatures: list[float]) -> str:
    """What the student is trained with, in words: no teacher where labels are all of it."""
    config = trial["config"]
    objective, share = config.get("objective") or "kd", number(config.get("label_weight")) or 0
    if share == 1:
        return "cross-entropy"
    notes = [str(objective)] * (objective != "kd")
    notes += [f"label weight {share:g}"] * (share > 0)
    if temperatures and objective != "mse":
        notes.append("temperature " + " or ".join(f"{t:g}" for t in temperatures))
    return ("KD" + f" ({', '.join(notes)})" * bool(notes)
            + f" from {trial['settings']['teacher']}")


def temperatures_of(trials: list[dict]) -> list[float]:
    """Those that students of a teacher were trained at, rising."""
    found = {number(t["config"].get("temperature")) for t in trials if t["kind"] == "distill"}
    return sorted(found - {None})


def published_method(trial: dict) -> str:
    """The method as published.py names it: FastDFKD by its inner steps, Places365 by its folder's
    name, DM-KD only with a public generator; "" where the row is none of the published ones."""
    method, config, generator = method_of(trial), trial["config"], generator_of(trial)
    if method == "fastdfkd":
        return f"fastdfkd-{config.get('inner_steps') or 10}"
    if method == "folder":
        named = Path(str(config.get("source"))).name.lower()
        return "places365" if named.startswith("places365") else ""
    steered = "teacher_guidance" in generator
    if steered or method == "dit" and trained_on(generator) != IMAGENET:
        return ""  # DiffDFKD; a generator of the task's own
    return "" if method == "real" and config.get("images_per_class") else method


# --- what the student could learn from, and when it was made --------------------------------------

def trained_on(generator: dict) -> str | None:
    """The data that a generator learnt: a task's name, "ImageNet", or what its card says; None
    where that is unknown."""
    said = generator.get("trained_on")
    if said:
        return plain(re.sub(r"real training images of (\S+), fold .*", r"\1", str(said)))
    public = generator.get("name") in PUBLIC and generator.get("licence") not in (None, "unknown")
    return IMAGENET if public else None


def information(trial: dict) -> str:
    """What the student could learn from: the teacher only, a public prior beside it, or a generator
    trained on the task's data."""
    if trial["kind"] == "train_teacher":
        return "the task's real images and labels"
    added = prior(trial)
    return plain(f"teacher + {added}" if added else "teacher only")


def prior(trial: dict) -> str:
    """What the student's images hold that the teacher does not; "" for nothing."""
    method, generator, task = trial["settings"]["images"], generator_of(trial), trial["task"]
    if method == "real":
        return "the task's real images"
    if method == "folder":
        _, named, other = str(trial["config"].get("source")).partition("real:")
        return f"public prior: real images of {other}" if named else "public prior: a folder"
    if not generator:
        embeddings = str(trial["config"].get("label_embeddings") or "onehot")
        return "" if embeddings == "onehot" else "public prior: embeddings of the class names"
    if method in ("one_image", "text_to_image", "import"):
        return "public prior: " + {"one_image": "one picture", "import": "imported images",
                                   "text_to_image": "a text-to-image model"}[method]
    if method in ("noise", "deepinversion"):
        return ""
    data = trained_on(generator)
    if data == task or data == IMAGENET and task in ("imagenet", "imagenet100"):
        return "a generator trained on the task's data"
    return f"public prior: a generator trained on {data or 'unknown images'}"


def making_words(trial: dict) -> str:
    """Where the seconds of making the images are not known as a number: "" (real images, not made),
    "in minutes" (made while the student learns) or "?"."""
    method = trial["settings"]["images"]
    real = method in ("alone", "real") or str(trial["config"].get("source")).startswith("real:")
    return "" if real else "?" if generator_of(trial) or method == "folder" else "in minutes"


def pretraining(trial: dict) -> float | None:
    """Seconds of the generator's own training; 0 for what has no weights or trains them within the
    run, None where unknown."""
    found = number(trial["result"]["budget"].get("pretraining_seconds"))
    if found is not None or making_words(trial) == "":
        return found
    method = trial["settings"]["images"]
    return 0 if making_words(trial) == "in minutes" or method in UNTRAINED else None


def of_most_folds(rows: list[dict]) -> list[dict]:
    """The rows (of report's record) that have as many folds as any: those of fewer are of a part of
    the images, and not to be shown beside them."""
    most = max(row["folds"] for row in rows)
    return [row for row in rows if row["folds"] == most]
