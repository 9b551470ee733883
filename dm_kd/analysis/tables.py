"""Rows as records (results.json), CSV and Markdown; published numbers (published.csv)."""

import csv
import io
from pathlib import Path

from dm_kd.analysis import collect, stats
from dm_kd.analysis.collect import Row

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
PUBLISHED_NOTE = """\
Top-1 on the real validation images, percent, copied from the sources below; none was measured here.
They are the best epoch on the test images where the source keeps that one (Fast-Datafree, CMI,
DM-KD). A command is that of the row's first number; for the others the pair or the student in it
changes. Made by `python -m dm_kd.report --published --out save/results`."""


# --- records --------------------------------------------------------------------------------------

def records(rows: list[Row], baseline: str | None, sets: dict) -> list[dict]:
    """A flat record of each row, its runs in "runs". With a baseline: the paired difference to it
    in points with its interval, and for rows with the baseline's student a p value, corrected for
    the number of these rows (Holm)."""
    base = next((row for row in rows if row.name == baseline), None)
    entries, p_values = [], []
    for row in rows:
        compared = stats.paired_difference(row.runs, base.runs) if base and row != base else None
        compared = compared or dict.fromkeys(("difference", "low", "high", "unit", "n", "p"))
        same_student = base and row.first.student == base.first.student
        p_values.append(compared["p"] if same_student else None)
        entries.append(record(row, sets) | {"difference": compared["difference"]} | {
            f"difference_{key}": compared[key] for key in ("low", "high", "unit", "n")})
    for entry, p in zip(entries, stats.holm(p_values), strict=True):
        entry["p_holm"] = p
    return [{key: round(value, 4) if isinstance(value, float) else value
             for key, value in entry.items()} for entry in entries]


def record(row: Row, sets: dict) -> dict:
    """The fields of a row that depend on no other row."""
    run = row.first
    return {
        "row": row.name, "task": run.task, "student": run.student, "teacher": run.teacher,
        "method": run.method, "images_per_class": row.mean(lambda r: r.images_per_class),
        **{key: run.generator_settings.get(key) for key in ("guidance_scale", "steps")},
        "n": len(row.runs), "acc1_mean": row.acc1,
        "acc1_std": stats.std([r.acc1 for r in row.runs]),
        **{f"{key}_mean": row.mean(lambda r, k=key: r.result.get(k)) for key in RESULT_FIELDS},
        **{f"set_{key}": collect.inspected(row, sets, key) for key in SET_FIELDS},
        "command": run.result.get("command"),
        "runs": [{"seed": r.seed, "fold": r.fold, "generator": r.generator, "set": r.set,
                  "acc1": r.acc1} for r in row.runs]}


def as_csv(entries: list[dict]) -> str:
    """The records without runs and commands."""
    buffer = io.StringIO()
    fields = [key for key in entries[0] if key not in ("runs", "command")]
    writer = csv.DictWriter(buffer, fields, lineterminator="\n", extrasaction="ignore")
    writer.writeheader()
    writer.writerows(entries)
    return buffer.getvalue()


# --- text -----------------------------------------------------------------------------------------

def cells(entry: dict) -> dict[str, str]:
    """The texts of a row's cells, such as {"mean": "94.31", "std": "± 0.20", "n": "3",
    "difference": "-1.67", "interval": "(-3.20 to -0.14)", "p": "p = 0.041", "agreement": "99.1"};
    "" where there is no number."""
    def text(name: str, form: str) -> str:
        return "" if entry[name] is None else form.format(entry[name])

    low, p = text("difference_low", "({:+.2f} to "), entry["p_holm"]
    return {"mean": text("acc1_mean", "{:.2f}"), "std": text("acc1_std", "± {:.2f}"),
            "n": str(entry["n"]), "difference": text("difference", "{:+.2f}"),
            "interval": low + text("difference_high", "{:+.2f})"),
            "p": "p < 0.001" if p is not None and p < 0.001 else text("p_holm", "p = {:.2g}"),
            "agreement": text("agreement_mean", "{:.1f}")}


def caption(entries: list[dict], baseline: str | None) -> str:
    """How the numbers of a table were computed."""
    text = "Top-1 of the last epoch on real validation images: mean ± standard deviation of n runs."
    compared = [entry for entry in entries if entry["difference_low"] is not None]
    if compared:
        units = sorted({f"{e['difference_n']} {e['difference_unit']}s" for e in compared})
        text += (f" Differences to {baseline} are paired; 95 % intervals: Student's t over "
                 f"{' or '.join(units)}; p: paired t tests, corrected together (Holm) for the rows "
                 f"with the student of {baseline}.")
    elif baseline:
        text += f" Differences to {baseline} are of single runs, without an interval."
    return text


def results(entries: list[dict], baseline: str | None) -> str:
    """The main table in Markdown."""
    lines = [["row", "top-1 %", "n", f"minus {baseline}" if baseline else "", "agreement %"]]
    for entry in entries:
        cell = cells(entry)
        lines.append([entry["row"], f"{cell['mean']} {cell['std']}".strip(), cell["n"], " ".join(
            (cell["difference"], cell["interval"], cell["p"])).strip(), cell["agreement"]])
    return markdown_table(lines)


def markdown_table(lines: list[list[str | None]]) -> str:
    """Lines of cells, the heading first."""
    heads, *lines = lines
    return "\n".join("| " + " | ".join((cell or "").replace("|", "\\|") for cell in line) + " |"
                     for line in (heads, ["---"] * len(heads), *lines))


# --- published numbers ----------------------------------------------------------------------------

def published() -> list[dict]:
    """Rows of published.csv: task, label, method, column (of the paper's table), teacher, student,
    images, epochs, source, acc1, command. teacher is "" for a network trained alone."""
    with open(PUBLISHED, newline="") as file:
        return list(csv.DictReader(file))


def published_tables() -> str:
    """Markdown: a table for each task, a line for each method and source."""
    parts = ["# Published numbers", PUBLISHED_NOTE]
    for task in dict.fromkeys(p["task"] for p in published()):
        cells = [p for p in published() if p["task"] == task]
        lines = {}
        for p in cells:
            key = tuple(p[k] for k in ("label", "images", "epochs", "source"))
            line = lines.setdefault(key, {"command": f"`{p['command']}`", "teacher": p["teacher"]})
            line["teacher"] = p["teacher"] if line["teacher"] == p["teacher"] else ""  # in columns
            line[p["column"]] = p["acc1"]
        columns = list(dict.fromkeys(p["column"] for p in cells))
        parts += [f"## {task}", markdown_table([
            ["method", "teacher", *columns, "images", "epochs", "source", "command"],
            *([label, line["teacher"], *(line.get(c) for c in columns), images, epochs, source,
               line["command"]] for (label, images, epochs, source), line in lines.items())])]
    sources = "\n".join(f"- {name}: {text}" for name, text in SOURCES.items())
    return "\n\n".join([*parts, "## Sources", sources]) + "\n"
