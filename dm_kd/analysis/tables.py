"""Rows as records (results.json), CSV and Markdown; published numbers (published.csv)."""

import csv
import io
import itertools
import os
from pathlib import Path

from dm_kd.analysis import stats
from dm_kd.analysis.collect import Row

PUBLISHED = Path(__file__).with_name("published.csv")
SOURCES = {
    "DM-KD": "README of github.com/zhengli97/DM-KD (arXiv 2305.12954)",
    "Fast-Datafree": "README and logs of github.com/zju-vipa/Fast-Datafree (arXiv 2112.06253)",
    "CMI": "README of github.com/zju-vipa/CMI (arXiv 2105.08584)",
    "One-Image": "README, abstract of github.com/yukimasano/single-img-extrapolating "
                 "(arXiv 2112.00725)",
}
RESULT_FIELDS = ("best_acc1", "teacher_acc1", "agreement", "seconds")
SET_FIELDS = ("frechet", "precision", "recall", "coverage", "teacher_agreement")
PUBLISHED_NOTE = """\
Top-1 on the real validation images, percent, copied from the sources below; none was measured here.
They are the best epoch on the test images where the source keeps that one (Fast-Datafree, CMI,
DM-KD). A command is that of the row's first number; for the others the pair or the student in it
changes. Made by `python -m dm_kd.report --published --out save/results`."""


# --- records --------------------------------------------------------------------------------------

def records(rows: list[Row], baseline: str | None, sets: dict) -> list[dict]:
    """A flat record of each row, its runs in "runs". With a baseline: the paired difference to it
    in points, its interval, and a p value corrected for the number of comparisons (Holm)."""
    base = next((row.runs for row in rows if row.name == baseline), [])
    none = dict.fromkeys(("difference", "low", "high", "unit", "n", "p"))
    differences = [row.name != baseline and stats.paired_difference(row.runs, base) or none
                   for row in rows]
    corrected = stats.holm([difference["p"] for difference in differences])
    entries = [
        {**record(row, sets), "difference": d["difference"], "difference_low": d["low"],
         "difference_high": d["high"], "difference_unit": d["unit"], "difference_n": d["n"],
         "p_holm": p} for row, d, p in zip(rows, differences, corrected, strict=True)]
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
        **{f"set_{key}": row.mean(lambda r, k=key: sets.get(
            (os.path.normpath(r.source), r.fold), {}).get(k)) for key in SET_FIELDS},
        "command": run.result["command"],
        "runs": [{"seed": r.seed, "fold": r.fold, "generator": r.generator, "acc1": r.acc1}
                 for r in row.runs]}


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
    def text(form: str, *names: str) -> str:
        values = [entry[name] for name in names]
        return "" if None in values else form.format(*values)

    return {"mean": text("{:.2f}", "acc1_mean"), "std": text("± {:.2f}", "acc1_std"),
            "n": str(entry["n"]), "difference": text("{:+.2f}", "difference"),
            "interval": text("({:+.2f} to {:+.2f})", "difference_low", "difference_high"),
            "p": text("p = {:.3f}", "p_holm").replace("= 0.000", "< 0.001"),
            "agreement": text("{:.1f}", "agreement_mean")}


def caption(entries: list[dict], baseline: str | None) -> str:
    """How the numbers of a table were computed."""
    text = "Top-1 of the last epoch on real validation images: mean ± standard deviation of n runs."
    units = sorted({f"{e['difference_n']} {e['difference_unit']}s" for e in entries
                    if e["difference_low"] is not None})
    if units:
        text += (f" Differences to {baseline} are paired; 95 % intervals: Student's t over "
                 f"{' or '.join(units)}; p: paired t tests, corrected together (Holm).")
    return text


def results(entries: list[dict], baseline: str | None) -> str:
    """The main table in Markdown."""
    lines = [["row", "top-1 %", "n", f"minus {baseline}" if baseline else "", "agreement %"]]
    for entry in entries:
        cell = cells(entry)
        lines.append([entry["row"], f"{cell['mean']} {cell['std']}".strip(), cell["n"], " ".join(
            (cell["difference"], cell["interval"], cell["p"])).strip(), cell["agreement"]])
    return markdown_table(lines)


def markdown_table(lines: list[list[str]]) -> str:
    """Lines of cells, the heading first."""
    heads, *lines = lines
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |"
                     for line in (heads, ["---"] * len(heads), *lines))


# --- published numbers ----------------------------------------------------------------------------

def published() -> list[dict]:
    """Rows of published.csv: task, label (the method), column (of the paper's table), teacher,
    student, images, epochs, source, acc1, command. teacher is "" for a network trained alone."""
    with open(PUBLISHED, newline="") as file:
        return list(csv.DictReader(file))


def published_tables() -> str:
    """Markdown: for each task a table, a line for each method and source, and its commands."""
    parts = ["# Published numbers", PUBLISHED_NOTE]
    for task in dict.fromkeys(p["task"] for p in published()):
        lines, commands = {}, {}
        for p in (p for p in published() if p["task"] == task):
            key = tuple(p[k] for k in ("label", "images", "epochs", "source"))
            line = lines.setdefault(key, {"method": p["label"], **{
                k: p[k] for k in ("teacher", "images", "epochs", "source")}})
            if line["teacher"] != p["teacher"]:  # it is in the columns' names
                line["teacher"] = ""
            line[p["column"]] = p["acc1"]
            commands.setdefault(p["label"], p["command"].replace(" && ", "\n"))
        columns = [name for name in dict.fromkeys(itertools.chain(*lines.values()))
                   if any(line.get(name) for line in lines.values())]
        cells = [[line.get(name, "") for name in columns] for line in lines.values()]
        parts += [f"## {task}", markdown_table([columns, *cells]), "\n".join((
            "```sh", *(f"# {label}\n{command}" for label, command in commands.items()), "```"))]
    sources = "\n".join(f"- {name}: {text}" for name, text in SOURCES.items())
    return "\n\n".join([*parts, "## Sources", sources]) + "\n"
