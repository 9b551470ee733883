"""Rows as records (results.json), CSV and Markdown; published numbers (published.csv)."""

import csv
import io
from functools import cache
from pathlib import Path

from dm_kd.analysis import collect, stats
from dm_kd.analysis.collect import Row, Run

PUBLISHED = Path(__file__).with_name("published.csv")
SOURCES = {
    "DM-KD": "README of github.com/zhengli97/DM-KD (arXiv 2305.12954)",
    "Fast-Datafree": "README and logs of github.com/zju-vipa/Fast-Datafree (arXiv 2112.06253)",
    "CMI": "README of github.com/zju-vipa/CMI (arXiv 2105.08584)",
    "One-Image": "README and abstract of github.com/yukimasano/single-img-extrapolating "
                 "(arXiv 2112.00725)",
}
RESULT_FIELDS = ("best_acc1", "teacher_acc1", "agreement", "seconds")
SET_FIELDS = ("frechet", "precision", "recall", "density", "coverage", "teacher_agreement",
              "teacher_entropy")
SAME_AMOUNT = 0.1  # relative difference of two numbers of images that are compared
PUBLISHED_NOTE = """\
Top-1 on the real validation images, percent, copied from the sources below; none was measured here.
They are the best epoch on the test images where the source keeps that one (Fast-Datafree, CMI,
DM-KD). "Ours" is the last epoch, mean ± standard deviation over n runs. A command is that of the
row's first number; for the others the pair or the student in it changes. Made by `python -m
dm_kd.report --published --out save/results` (with `--runs FOLDER` for ours)."""


# --- records --------------------------------------------------------------------------------------

def records(rows: list[Row], baseline: str | None, sets: dict[str, dict]) -> list[dict]:
    """A flat record of each row, its runs in "runs". With a baseline: the paired difference to it
    in points with its interval, and for the rows of the same student a p value that is corrected
    for all of them together (Holm)."""
    base = next((row for row in rows if row.name == baseline), None)
    made, p_values = [], []
    for row in rows:
        compared = stats.paired_difference(row.runs, base.runs) if base and row != base else None
        compared = compared or dict.fromkeys(("difference", "low", "high", "unit", "n", "p"))
        p_values.append(compared.pop("p") if base and row.student == base.student else None)
        difference = {k if k == "difference" else f"difference_{k}": v for k, v in compared.items()}
        made.append({"row": row.name, **record(row, sets), **difference})
    corrected = stats.holm(p_values)
    return [rounded({**entry, "p_holm": p}) for entry, p in zip(made, corrected, strict=True)]


def record(row: Row, sets: dict[str, dict]) -> dict:
    run = row.first
    kept = ("seed", "fold", "generator", "set", "acc1")
    return {
        "task": run.task, "student": run.student, "teacher": run.teacher,
        "method": run.method, "images_per_class": row.mean(lambda r: r.images_per_class),
        **{k: run.generator_settings.get(k) for k in ("guidance_scale", "steps")},
        "n": len(row.runs), "folds": len({r.fold for r in row.runs}), "acc1_mean": row.acc1,
        "acc1_std": stats.std([r.acc1 for r in row.runs]),
        **{f"{k}_mean": row.mean(lambda r, k=k: r.result.get(k)) for k in RESULT_FIELDS},
        **{f"set_{k}": collect.inspected(row, sets, k) for k in SET_FIELDS},
        "published": list(dict.fromkeys(
            f"{p['acc1']} ({p['source']})" for p in published_for(run))),
        "command": run.result.get("command"),
        "runs": [{k: getattr(r, k) for k in kept if getattr(r, k) is not None} for r in row.runs]}


def rounded(value):
    if isinstance(value, dict):
        return {k: rounded(v) for k, v in value.items()}
    if isinstance(value, list):
        return [rounded(v) for v in value]
    return round(value, 4) if isinstance(value, float) else value


# --- text -----------------------------------------------------------------------------------------

def accuracy(entry: dict) -> str:
    """94.31 ± 0.20, or 94.31 of a single run."""
    spread = "" if entry["acc1_std"] is None else f" ± {entry['acc1_std']:.2f}"
    return f"{entry['acc1_mean']:.2f}{spread}"


def difference(entry: dict) -> str:
    """-1.67 (-3.20 to -0.14), p = 0.041; "" for the baseline."""
    if entry["difference"] is None:
        return ""
    low, high = entry["difference_low"], entry["difference_high"]
    interval = "" if low is None else f" ({low:+.2f} to {high:+.2f})"
    p = p_value(entry)
    return f"{entry['difference']:+.2f}{interval}" + f", {p}" * bool(p)


def p_value(entry: dict) -> str:
    p = entry["p_holm"]
    return "" if p is None else "p < 0.001" if p < 0.001 else f"p = {p:.2g}"


def what(entry: dict) -> str:
    """The row in the field's terms."""
    if entry["method"] == "alone":
        return f"{entry['student']}, cross-entropy on real images"
    s, steps = entry["guidance_scale"], entry["steps"]
    images = {"real": "real images", "folder": "a folder of images"}.get(
        entry["method"], f"images of {entry['method']}")
    images += f", s={s:g}, T={steps}" if s is not None and steps is not None else ""
    return f"{entry['teacher']} to {entry['student']}, {images}"


def caption(made: list[dict], baseline: str | None) -> str:
    """How the numbers of a table were computed."""
    text = "Top-1 of the last epoch on real validation images: mean ± standard deviation of n runs."
    compared = [entry for entry in made if entry["difference_low"] is not None]
    if compared:
        units = sorted({f"{e['difference_n']} {e['difference_unit']}s" for e in compared})
        text += (f" Differences to {baseline} are paired; 95 % intervals: Student's t over "
                 f"{' or '.join(units)}.")
    elif baseline:
        text += f" Differences to {baseline} are of single runs, without an interval."
    if any(entry["p_holm"] is not None for entry in compared):
        text += " p: of a paired t test, corrected for all rows together (Holm)."
    return text


def as_csv(made: list[dict]) -> str:
    buffer = io.StringIO()
    fields = [k for k in made[0] if k not in ("runs", "command")]
    writer = csv.DictWriter(buffer, fields, lineterminator="\n", extrasaction="ignore")
    writer.writeheader()
    writer.writerows(entry | {"published": "; ".join(entry["published"])} for entry in made)
    return buffer.getvalue()


def markdown_table(lines: list[list[str | None]]) -> str:
    """Lines of cells, the heading first."""
    heads, *lines = lines
    return "\n".join("| " + " | ".join((cell or "").replace("|", "\\|") for cell in line) + " |"
                     for line in (heads, ["---"] * len(heads), *lines))


def results(made: list[dict], baseline: str | None) -> list[list[str]]:
    """The main table, its heading first: five columns, the last of published numbers where a row
    has one, else of the student's agreement with the teacher."""
    lines = [["row", "top-1 %", "n", f"minus {baseline}, 95 % interval" if baseline else ""]]
    lines += [[e["row"], accuracy(e), str(e["n"]), difference(e)] for e in made]
    if any(e["published"] for e in made):
        last = ["published", *("; ".join(e["published"]) for e in made)]
    else:
        last = ["agreement %", *(
            "" if e["agreement_mean"] is None else f"{e['agreement_mean']:.1f}" for e in made)]
    return [[*line, cell] for line, cell in zip(lines, last, strict=True)]


def plain_text(lines: list[list[str]]) -> str:
    """A table for the terminal."""
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join("  ".join(map(str.ljust, line, widths)).rstrip() for line in lines)


# --- published numbers ----------------------------------------------------------------------------

@cache
def published() -> list[dict]:
    """Rows of published.csv: task, label, method, column (of the paper's table), teacher, student,
    images, epochs, source, acc1, command. teacher is "" for a network trained alone."""
    with open(PUBLISHED, newline="") as file:
        return list(csv.DictReader(file))


def plain_name(model: str | None) -> str:
    """An architecture's name as the papers have it: cifar_resnet34 and torchvision:resnet34 are
    resnet34, vgg11_bn is vgg11."""
    name = (model or "").split("@")[0].split(":")[-1].removeprefix("cifar").removeprefix("_")
    return name.removesuffix("_bn")


def published_for(run: Run) -> list[dict]:
    """Published numbers of a run's task, method and networks; where there are several amounts of
    images, those of about the run's amount, if any."""
    named = published_method(run)
    names = plain_name(run.teacher), plain_name(run.student)
    found = [p for p in published() if p["task"] == run.task and named in p["method"].split()
             and (p["teacher"], p["student"]) == names]
    if run.images_per_class is None or len({p["images"] for p in found}) < 2:
        return found
    count = 1000 * run.images_per_class  # only ImageNet's rows are of several amounts
    return [p for p in found if abs(int(p["images"]) / count - 1) < SAME_AMOUNT] or found


def published_method(run: Run) -> str | None:
    """The method as published.csv names it; None where no published row corresponds: DM-KD needs a
    generator trained on ImageNet, KD on real images all of them."""
    if run.method == "fastdfkd":
        return f"fastdfkd-{run.config.get('inner_steps') or 10}"
    if run.method == "folder":
        return "places365" if Path(str(run.source)).name.startswith("places365") else None
    if run.method == "real" and run.config.get("images_per_class"):
        return None
    own = run.generator_settings.get("trained_on") or "teacher_guidance" in run.generator_settings
    return None if own and run.method != "biggan" else run.method


def published_tables(rows: list[Row]) -> str:
    """Markdown: a table for each task, a line for each method and source, ours in brackets."""
    ours = [(published_for(row.first), record(row, {})) for row in rows]
    parts = ["# Published numbers, and ours", PUBLISHED_NOTE]
    for task in dict.fromkeys(p["task"] for p in published()):
        cells = [p for p in published() if p["task"] == task]
        lines = {}
        for p in cells:
            mine = [f" (ours {accuracy(r)}, n = {r['n']})" for found, r in ours if p in found]
            key = tuple(p[k] for k in ("label", "images", "epochs", "source"))
            line = lines.setdefault(key, {"command": f"`{p['command']}`", "teacher": p["teacher"]})
            line["teacher"] = p["teacher"] if line["teacher"] == p["teacher"] else ""  # in columns
            line[p["column"]] = p["acc1"] + "".join(mine)
        columns = list(dict.fromkeys(p["column"] for p in cells))
        parts += [f"## {task}", markdown_table([
            ["method", "teacher", *columns, "images", "epochs", "source", "command"],
            *([label, line["teacher"], *(line.get(c) for c in columns), images, epochs, source,
               line["command"]] for (label, images, epochs, source), line in lines.items())])]
    sources = "\n".join(f"- {name}: {text}" for name, text in SOURCES.items())
    return "\n\n".join([*parts, "## Sources", sources]) + "\n"
