"""What `report` writes of its record: text, Markdown and CSV tables, and one self-contained page.

    python -m dm_kd.report --runs save/student_model --out save/report

The page fetches nothing, and says so to the browser (its content security policy); all that comes
from files is escaped. A table is a list of columns, (heading, cell of a row): a cell is text, a
number, or None for an empty one.
"""

import base64
import csv
import html
import io
import json
from collections.abc import Callable
from pathlib import Path

from dm_kd import published
from dm_kd.report_runs import of_most_folds

Column = tuple[str, Callable[[dict], object]]
MOST_PICTURES_BYTES = 3_000_000  # of inspect_set's; the page stays below 10 MB
MOST_COMMAND = 3000  # characters
BUDGET_NOTE = ("Per run, means over the trials. Evaluations and passes are images through a "
               "network, forward. Minutes are the student's run; images made while it learns are "
               "in them (in minutes), those of a stored set and the generator's own training stand "
               "apart, of all processes together (?: not recorded).")
CHOICE_NOTE = ("Chosen: the highest Acc@1 on the real validation images; of equal ones that with "
               "fewer generator evaluations, then the first. Blind: the highest agreement of "
               "student and teacher on images of the method that were held out, then the first.")
PUBLISHED_NOTE = """\
Top-1 on the real validation images, percent. The published ones are copied from the sources below,
none was measured here; they are the best epoch on the test images where the source keeps that one
(Fast-Datafree, CMI, DM-KD). Ours is the last epoch, mean ± standard deviation over the trials; an
empty cell was not run. Made by `python -m dm_kd.report --published --out save/results` (with
`--runs FOLDER` for ours).

A script is `sh scripts/NAME`. PAIR is r34_r18, vgg11_r18, w40_2_w16_1, w40_2_w40_1 or
w40_2_w16_2, in the columns' order, and `baselines/cifar100_*.sh` take it as `PAIR=vgg11_r18 sh
scripts/...`; MODEL is the network of the cell. `baselines/imagenet_*.sh` take STUDENT=resnet18 or
mobilenet_v2 for the other columns."""
FIRST = {"fidelity": "Guidance and steps", "teachers": "Teacher strength",
         "amount": "Amount of images", "rivals": "Side by side"}  # figures above the table
THEN = {"samples": "Real and synthetic images", "curves": "Training", "confusion": "Mistakes"}


# --- cells ----------------------------------------------------------------------------------------

def number(value: float | None, digits: int = 2) -> str:
    if value is None:
        return ""
    return f"{value:,.0f}" if digits == 0 else f"{value:.{digits}f}"


def spread(row: dict) -> str:
    return f"{row['acc1_mean']:.2f}" + (
        "" if row["acc1_std"] is None else f" ± {row['acc1_std']:.2f}")


def interval(bounds: list[float] | None, sign: str = "") -> str:
    return "" if not bounds else f"{bounds[0]:{sign}.2f} to {bounds[1]:{sign}.2f}"


def rests_on(row: dict) -> str:
    """What the interval of the row's mean was computed from."""
    found = row["rests_on"]
    counts = [(found["runs"], "run"), (found["generators"], "generator"), (found["seeds"], "seed"),
              (found["groups"], (found["units"] or "").removesuffix("s"))]
    return ", ".join(f"{n:,} {what}{'s' * (n > 1)}" for n, what in counts if n)


def published_text(row: dict) -> str:
    """Each number with its source, and with its images where these were several amounts."""
    return "; ".join(f"{e['acc1']:.2f} {e['source']}"
                     + (f", {e['images']:,} images" if e["images"] else "")
                     for e in row["published"])


def results_columns(record: dict) -> list[Column]:
    """Of the main table; columns that no row has anything in are left out."""
    compared = record["against_baseline"]

    def against(field: str, show: Callable) -> Callable:
        def cell(row: dict):
            found = compared.get(row["name"], {})
            return show(found[field]) if found.get("runs") else ""
        return cell

    def difference(row: dict) -> str:
        found = compared.get(row["name"], {})
        return (f"{found['difference']:+.2f} ({interval(found['interval'], '+')})"
                if found.get("runs") else "")

    columns = [
        ("Acc@1 %", spread), ("best %", lambda r: number(r["best_acc1_mean"])),
        ("95 % interval", lambda r: interval(r["interval"])),
        (f"minus {record['baseline']}", difference),
        ("verdict", against("verdict", str)),
        (f"difference, by {record['margin']:g} points", against("matters", str)),
        ("test error", against("test_error", number)),
        ("seed error", against("seed_error", number)),
        ("published", published_text),
        ("agrees %", lambda r: number(r["agreement_mean"])),
        ("agrees, blind %", lambda r: number(r["blind_agreement_mean"])),
        ("teacher %", lambda r: number(r["teacher_acc1"])),
        ("images a class", lambda r: number(r["images_per_class"], 0)),
        ("rests on", rests_on),
        ("note", lambda r: "; ".join(dict.fromkeys("; ".join(filter(None, (
            r["rests_on"]["note"], compared.get(r["name"], {}).get("note")))).split("; ")))),
        ("trials", lambda r: str(r["trials"])), ("folds", lambda r: str(r["folds"])),
        ("learns from", lambda r: r["information"])]
    return [column for column in columns if any(column[1](row) for row in record["rows"])]


def budget_columns(record: dict) -> list[Column]:
    """What the rows were allowed and what they used, with what came of it; columns that no row has
    anything in are left out."""
    def used(name: str) -> Callable:
        return lambda row: number(row["budget"][name], 0)

    def minutes(seconds: float | None, unknown: str = "") -> str:
        return unknown if seconds is None else number(seconds / 60, 1)

    columns = [("Acc@1 %", spread), ("best %", lambda r: number(r["best_acc1_mean"])),
               ("agrees %", lambda r: number(r["agreement_mean"])),
               ("agrees, blind %", lambda r: number(r["blind_agreement_mean"])),
               ("learns from", lambda r: r["information"]),
               ("images kept", used("images_kept")), ("student steps", used("student_steps")),
               ("generator evaluations", used("generator_evaluations")),
               ("teacher passes", used("teacher_passes")),
               ("student passes", used("student_passes")),
               ("images seen", lambda r: number(r["images_seen"], 0)),
               ("minutes", lambda r: minutes(r["seconds_mean"])),
               ("minutes for the images",
                lambda r: minutes(r["budget"]["making_seconds"], r["making"])),
               ("generator pretraining, minutes",
                lambda r: minutes(r["budget"]["pretraining_seconds"], r["making"]))]
    return [column for column in columns if any(column[1](row) for row in record["rows"])]


def set_columns(record: dict) -> list[Column]:
    """Of what inspect_set found; a set is told by its path."""
    def found(*path: str, digits: int = 3) -> Callable:
        def cell(entry: dict) -> str:
            for key in path:
                entry = entry.get(key) if isinstance(entry, dict) else None
            known = isinstance(entry, (int, float)) and not isinstance(entry, bool)
            return number(entry, digits) if known else ""
        return cell

    def worst(entry: dict) -> str:
        found = entry.get("worst_class")
        if not isinstance(found, dict) or not isinstance(found.get("percent"), (int, float)):
            return ""
        return f"{str(found.get('name') or '')[:40]}: {number(found['percent'], 1)}"

    columns = [("images", found("images", digits=0)),
               ("s", found("generator", "guidance_scale", digits=1)),
               ("T", found("generator", "steps", digits=0)),
               ("teacher agrees %", found("teacher_agreement", digits=1)),
               ("worst class, %", worst), ("entropy, nats", found("teacher_entropy")),
               ("Fréchet", found("frechet", digits=2)),
               ("real train's", found("frechet_train_to_val", digits=2)),
               *((name, found(name)) for name in ("precision", "recall", "density", "coverage")),
               ("near-duplicates %", found("duplicates", "near_percent", digits=2)),
               ("nearest real, ratio", found("copying", "ratio", digits=2))]
    return [column for column in columns if any(column[1](s) for s in record["sets"])]


CHOICE_COLUMNS = [
    ("trials", lambda c: str(c["trials"])), ("chosen", lambda c: f"{c['method']}_{c['chosen']}"),
    ("Acc@1 %", lambda c: number(c["acc1"])),
    ("blind choice", lambda c: "" if c["blind"] is None else f"{c['method']}_{c['blind']}"),
    ("its Acc@1 %", lambda c: number(c["blind_acc1"])),
    ("points lost", lambda c: number(c["lost"]))]


# --- text, Markdown, CSV --------------------------------------------------------------------------

def text_table(record: dict) -> str:
    """The rows as aligned text."""
    lines = [("row", "Acc@1 %", "agrees %", "seconds", "what")]
    for row in record["rows"]:
        lines.append((row["name"], spread(row), number(row["agreement_mean"], 1),
                      number(row["seconds_mean"], 0).replace(",", ""), row["what"]))
    widths = [max(len(line[i]) for line in lines) for i in range(4)]
    return "\n".join("  ".join([line[0].ljust(widths[0]), *(
        line[i].rjust(widths[i]) for i in (1, 2, 3)), line[4]]) for line in lines)


def markdown(record: dict) -> str:
    """results.md: question, answer, the tables, what is left out."""
    parts = [f"# {marked(record['title'])}"]
    if record["question"]:
        parts.append(f"*{marked(record['question'])}*")
    parts.append(marked(answer(record)))
    parts += ["\n".join(f"- {marked(text)}" for text in record["findings"])] * bool(
        record["findings"])
    parts.append(markdown_table([("row", lambda r: r["name"]), ("what", lambda r: r["what"]),
                                 *results_columns(record)], record["rows"]))
    if record["choices"]:
        parts.append("## Choice of settings\n\n" + markdown_table(
            [("method", lambda c: c["method"]), *CHOICE_COLUMNS], record["choices"]))
        parts.append(CHOICE_NOTE)
    parts.append("## Budget\n\n" + markdown_table(
        [("row", lambda r: r["name"]), *budget_columns(record)], record["rows"]))
    parts.append(BUDGET_NOTE)
    if record["sets"]:
        parts.append("## Image sets\n\n" + markdown_table(
            [("set", lambda s: s.get("set")), *set_columns(record)], record["sets"]))
    parts += [f"Published: {marked(text)}" for text in sources(record)]
    if record["left_out"]:
        parts.append("## Left out\n\n" + "\n".join(f"- {marked(t)}" for t in record["left_out"]))
    return "\n\n".join(parts) + "\n"


def published_tables(rows: list[dict]) -> str:
    """published_tables.md: every published number, what the rows have in its place, the script."""
    parts = ["# Published numbers, and ours", PUBLISHED_NOTE]
    pairs = [tuple(map(short, pair)) for pair in published.PAIRS]
    for task, title in (("cifar100", "CIFAR-100"), ("cifar10", "CIFAR-10 (no scripts here)")):
        heads = ["method"] + [h for t, s in pairs for h in (f"{t} to {s}", "ours")]
        lines = [[label, *in_cells(rows, task, label, source, accuracies, published.PAIRS), source,
                  script] for label, _, source, accuracies, script in published.PAIRED[task]]
        parts += [f"## {title}", plain_table([*heads, "source", "script"], lines)]
        if task == "cifar100":
            parts += ["## ImageNet", imagenet_table(rows)]
    lines = [[task, label, short(teacher), short(student), number(acc1),
              ours(rows, {"task": task, "method": method, "teacher": teacher, "student": student,
                          "images": None}), source, script]
             for task, label, method, teacher, student, source, acc1, script in published.OTHERS]
    parts += ["## Others", plain_table(["task", "method", "teacher", "student", "published", "ours",
                                        "source", "script"], lines), "## Sources"]
    parts.append("\n".join(f"- {k}: {v}" for k, v in published.SOURCES.items()))
    return "\n\n".join(parts) + "\n"


def imagenet_table(rows: list[dict]) -> str:
    heads = ["method", "images", "epochs", "teacher"]
    heads += [h for s in published.STUDENTS for h in (short(s), "ours")]
    lines = []
    for label, _, teacher, images, epochs, source, accuracies, script in published.IMAGENET:
        pairs = [(teacher, student) for student in published.STUDENTS]
        lines.append([label, number(images, 0), number(epochs, 0), short(teacher),
                      *in_cells(rows, "imagenet", label, source, accuracies, pairs), source,
                      script])
    return plain_table([*heads, "source", "script"], lines)


def in_cells(rows: list[dict], task: str, label: str, source: str, accuracies: tuple, pairs: tuple
             ) -> list[str]:
    """Published and ours in turn, for each pair."""
    known = {(c["teacher"], c["student"]): c for c in published.cells()
             if (c["task"], c["label"], c["source"]) == (task, label, source)}
    found = []
    for (teacher, student), acc1 in zip(pairs, accuracies, strict=True):
        alone = published.ALONE.get(label)
        key = (teacher, student) if alone is None else (None, (teacher, student)[alone])
        found += [number(acc1), ours(rows, known[key]) if key in known else ""]
    return found


def ours(rows: list[dict], cell: dict) -> str:
    """The rows that stand for a published number, each with its name if there are several."""
    fitting = [row for row in rows if row["published_method"]
               and published.of_same(cell, row["task"], row["published_method"], row["teacher"],
                                     str(row["student"]))
               and (cell["images"] is None or row["making"] == "in minutes"
                    or published.of_amount(cell, row["budget"]["images_kept"]))]
    return "; ".join(spread(row) + f" ({row['name']})" * (len(fitting) > 1) for row in fitting)


def short(model: str | None) -> str:
    """A network's name as the papers' tables shorten it: R34, VGG11, W40-2."""
    name = (model or "").replace("resnet", "R").replace("vgg", "VGG").replace("mobilenet_v", "MBv")
    return name.replace("wrn_", "W").replace("_", "-")


def plain_table(heads: list[str], lines: list[list[str]]) -> str:
    return markdown_table([(head, lambda line, i=i: line[i]) for i, head in enumerate(heads)],
                          lines)


def marked(value: object) -> str:
    """Text that Markdown shows as it is."""
    text = "" if value is None else str(value)
    return "".join("\\" + c if c in "\\`*_[]<>|#" else c for c in text)


def markdown_table(columns: list[Column], rows: list[dict]) -> str:
    lines = [[marked(name) for name, _ in columns], ["---"] * len(columns)]
    lines += [[marked(cell(row)) for _, cell in columns] for row in rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def csv_table(record: dict) -> str:
    """results.csv: a line per row, plain numbers. No cell of text begins as a formula does."""
    compared = record["against_baseline"]
    names = ("name", "what", "task", "method", "teacher", "student", "guidance_scale", "steps",
             "images_per_class", "information", "trials", "folds", "val_images", "acc1_mean",
             "acc1_std", "best_acc1_mean", "agreement_mean", "blind_agreement_mean", "teacher_acc1",
             "images_seen", "seconds_mean", "making")
    against = ("difference", "runs", "test_error", "seed_error", "lower_bound", "verdict",
               "matters", "note")
    lines = []
    for row in record["rows"]:
        line = {k: row[k] for k in names}
        line["interval_low"], line["interval_high"] = row["interval"] or (None, None)
        found = compared.get(row["name"], {})
        line |= {f"rests_on_{k}": v for k, v in row["rests_on"].items()}
        line |= {f"against_{k}": found.get(k) for k in against}
        line["against_low"], line["against_high"] = found.get("interval") or (None, None)
        line |= {f"budget_{k}": v for k, v in row["budget"].items()}
        line |= {f"set_{k}": v for k, v in row["set"].items()}
        lines.append(line | {"published": published_text(row)})
    buffer = io.StringIO()
    fields = list(dict.fromkeys(k for line in lines for k in line))
    writer = csv.DictWriter(buffer, fields, lineterminator="\n")
    writer.writeheader()
    for line in lines:
        writer.writerow({k: "'" + v if isinstance(v, str) and v[:1] in ("=", "+", "-", "@") else v
                         for k, v in line.items()})
    return buffer.getvalue()


# --- the answer -----------------------------------------------------------------------------------

def answer(record: dict) -> str:
    """The result in a sentence or two, of the rows with the baseline's student if it has one, and
    of the most folds."""
    student = {row["name"]: row["student"] for row in record["rows"]}.get(record["baseline"])
    rows = [row for row in record["rows"] if student in (None, row["student"])]
    rows = of_most_folds(rows)
    best = max(rows, key=lambda row: row["acc1_mean"])
    made = [row for row in rows if "synthetic" in row["what"]]
    sentences = []
    if made:
        row = max(made, key=lambda r: r["acc1_mean"])
        sentences.append(f"A student that never saw a real image ({row['what']}) names "
                         f"{spread(row)} % of the real validation images.")
        against = record["against_baseline"].get(row["name"])
        if against and against["runs"]:
            low, high = against["interval"]
            sentences.append(f"Against the baseline {record['baseline']}: "
                             f"{against['difference']:+.2f} points, 95 % interval {low:+.2f} to "
                             f"{high:+.2f}: {against['verdict']}.")
    if not made or best is not row:
        sentences.append(f"Best row: {best['name']} with {spread(best)} % of real validation "
                         "images right.")
    return " ".join(sentences)


def sources(record: dict) -> list[str]:
    used = {e["source"] for row in record["rows"] for e in row["published"]}
    return [f"{name}: {published.SOURCES[name]}" for name in sorted(used)]


# --- the page -------------------------------------------------------------------------------------

POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'unsafe-inline'"
STYLE = """
:root { color-scheme: light dark; --ink: #1d1f21; --soft: #5b6167; --paper: #fdfdfb;
  --line: #dcdcd6; --tint: #f3f3ee; --link: #2456a6;
  --sans: system-ui, -apple-system, "Segoe UI", sans-serif;
  --serif: Charter, "Bitstream Charter", "Iowan Old Style", "Palatino Linotype", Georgia, serif; }
@media (prefers-color-scheme: dark) { :root { --ink: #e4e3df; --soft: #a3a6a8; --paper: #16181a;
  --line: #34383b; --tint: #1f2225; --link: #8ab4f0; } }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 2.5rem 1rem 4rem; max-width: 70rem; background: var(--paper);
  color: var(--ink); font: 1.0625rem/1.55 var(--serif); overflow-wrap: break-word; }
header, .text { max-width: 42rem; }
h1 { font-size: clamp(1.7rem, 5vw, 2.5rem); line-height: 1.15; font-weight: 600; margin: 0 0 1rem;
  letter-spacing: -.01em; text-wrap: balance; }
h2 { font-size: 1.3rem; font-weight: 600; margin: 2.4rem 0 .8rem; padding-top: .8rem;
  border-top: 1px solid var(--line); }
.question { font-size: 1.2rem; font-style: italic; color: var(--soft); margin: 0 0 .8rem; }
.answer { font-size: 1.2rem; margin: 0 0 1.2rem; }
a { color: var(--link); text-decoration-thickness: 1px; text-underline-offset: .15em; }
nav { font: .88rem/2 var(--sans); display: flex; flex-wrap: wrap; gap: 0 1.1rem; }
.note, figcaption, .facts { font: .88rem/1.5 var(--sans); color: var(--soft); }
figure { margin: .3rem 0 .6rem; } figcaption { max-width: 38rem; margin-top: .5rem; }
.figures { display: grid; gap: 1rem 3rem; grid-template-columns: minmax(0, 1fr); }
svg { display: block; width: 100%; height: auto; max-width: 38rem; }
img { max-width: 100%; height: auto; background: #fff; border-radius: 4px; }
.wide img { min-width: 40rem; } figure > div > img { padding: .4rem; display: block; }
.corners { display: flex; justify-content: space-between; gap: 1rem; max-width: 38rem;
  margin: .3rem 0; }
.corner { max-width: 46%; } .corner img { display: block; image-rendering: pixelated; }
.corner:last-child:not(:first-child) { text-align: right; }
small { font: .8rem/1.4 var(--sans); color: var(--soft); }
.wide { overflow: auto; max-height: 46rem; margin: 0 -1rem; padding: 0 1rem; }
table { border-collapse: collapse; font: .88rem/1.4 var(--sans); min-width: 100%; }
th, td { text-align: left; padding: .45rem .8rem .45rem 0; border-bottom: 1px solid var(--line);
  vertical-align: top; }
thead th { box-shadow: inset 0 -1.5px var(--ink); vertical-align: bottom; position: sticky; top: 0;
  background: var(--paper); border: 0; }
tbody th { font-weight: 600; min-width: 10rem; }
tbody th small { display: block; font-weight: 400; }
.n { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; }
td.t { min-width: 9rem; }
th button { all: unset; cursor: pointer; font-weight: 600; } th button::after { content: " ↕";
  color: var(--soft); opacity: .5; } th[aria-sort] button::after { opacity: 1; }
th[aria-sort=ascending] button::after { content: " ↑"; }
th[aria-sort=descending] button::after { content: " ↓"; }
th button:focus-visible, a:focus-visible, summary:focus-visible, .wide:focus-visible {
  outline: 2px solid var(--link); outline-offset: 2px; }
pre { overflow-x: auto; padding: .8rem 1rem; background: var(--tint); border-radius: 4px;
  font: .78rem/1.5 ui-monospace, Menlo, Consolas, monospace; max-height: 26rem; }
summary { cursor: pointer; font: .95rem/1.6 var(--sans); } details { margin: .5rem 0; }
@media (min-width: 60rem) { .figures.two { grid-template-columns: repeat(2, minmax(0, 1fr)); }
  .figures:not(.two) figure:not(.whole) { display: grid; gap: 2.5rem; align-items: end;
    grid-template-columns: minmax(0, 36rem) minmax(0, 1fr); }
  tbody th { min-width: 19rem; } }
@media print { pre, .wide { white-space: pre-wrap; max-height: none; } nav { display: none; } }
"""
SCRIPT = """
for (const table of document.querySelectorAll('table')) {
  const heads = [...table.tHead.rows[0].cells], body = table.tBodies[0];
  heads.forEach((head, i) => head.querySelector('button').addEventListener('click', () => {
    const falling = head.getAttribute('aria-sort') === 'ascending' ||
      !head.hasAttribute('aria-sort') && head.classList.contains('n');
    heads.forEach(other => other.removeAttribute('aria-sort'));
    head.setAttribute('aria-sort', falling ? 'descending' : 'ascending');
    const key = row => row.cells[i].textContent.trim();
    const value = row => parseFloat(key(row).replace(/,/g, ''));
    const order = (a, b) => head.classList.contains('n')
      ? isNaN(value(a)) - isNaN(value(b)) || (falling ? value(b) - value(a) : value(a) - value(b))
      : key(a).localeCompare(key(b), undefined, {numeric: true}) * (falling ? -1 : 1);
    body.append(...[...body.rows].sort(order));
  }));
}
"""


def esc(value: object) -> str:
    return html.escape("" if value is None else str(value), quote=True)


def page(record: dict, figures: dict[str, list[dict]]) -> str:
    """One self-contained page: question and answer first, then what varies, the table, how it was
    made. figures: as report_figures.draw_all returns them."""
    sections = [(key, FIRST[key], figures_section(figures[key])) for key in FIRST if figures[key]]
    sections += [("results", "Results", results_section(record))]
    sections += [("choices", "Choice of settings", choices_section(record))] * bool(
        record["choices"])
    sections += [(key, THEN[key], figures_section(figures[key])) for key in THEN if figures[key]]
    sections += [("sets", "Image sets", sets_section(record)) if record["sets"] else None,
                 ("budget", "Budget", budget_section(record)),
                 ("licences", "Generators and licences", licences_section(record)),
                 ("left-out", "Left out", left_out_section(record)) if record["problems"] else None,
                 ("commands", "Commands", commands_section(record)),
                 ("made-with", "Made with", made_with_section(record))]
    sections = [section for section in sections if section]
    links = "".join(f"<a href='#{key}'>{title}</a>" for key, title, _ in sections)
    main = "\n".join(f"<section id='{key}'><h2>{title}</h2>\n{content}\n</section>"
                     for key, title, content in sections)
    return (f"<!doctype html>\n<html lang=en><head><meta charset=utf-8>"
            f"<meta http-equiv=Content-Security-Policy content=\"{POLICY}\">"
            f"<meta name=viewport content='width=device-width, initial-scale=1'>"
            f"<title>{esc(record['title'])}</title><style>{STYLE}</style></head>\n<body>"
            f"{header(record, links)}\n<main>\n{main}\n</main>\n<script>{SCRIPT}</script></body>"
            "</html>\n")


def header(record: dict, links: str) -> str:
    asked = f"<p class=question>{esc(record['question'])}</p>" if record["question"] else ""
    trials = sum(row["trials"] for row in record["rows"])
    facts = [f"{len(record['rows'])} rows", f"{trials} runs", record["date"]]
    if record["problems"]:
        facts.insert(2, f"<a href='#left-out'>{len(record['problems'])} left out</a>")
    found = "".join(f"<li>{esc(text)}</li>" for text in record["findings"])
    return (f"<header><h1>{esc(record['title'])}</h1>{asked}"
            f"<p class=answer>{esc(answer(record))}</p>{f'<ul>{found}</ul>' * bool(found)}"
            f"<p class=facts>{' · '.join(facts)}</p>"
            f"</header><nav aria-label=Sections>{links}</nav>")


def table(columns: list[Column], rows: list[dict], name: str) -> str:
    """An HTML table that sorts by a click on a heading. The first column's cells are HTML, the
    others' text; a column whose cells all begin like numbers is one of numbers."""
    kinds = ["", *("n" if is_numeric([cell(row) for row in rows]) else "t"
                   for _, cell in columns[1:])]
    head = "".join(f"<th scope=col class='{kind}'><button type=button>{esc(title)}</button></th>"
                   for (title, _), kind in zip(columns, kinds, strict=True))
    lines = []
    for row in rows:
        cells = "".join(f"<td class={kind}>{esc(cell(row))}</td>"
                        for (_, cell), kind in zip(columns[1:], kinds[1:], strict=True))
        lines.append(f"<tr><th scope=row>{columns[0][1](row)}</th>{cells}</tr>")
    return (f"<div class=wide tabindex=0 role=region aria-label='{esc(name)}'><table><thead><tr>"
            f"{head}</tr></thead><tbody>" + "\n".join(lines) + "</tbody></table></div>")


def is_numeric(cells: list[object]) -> bool:
    return all(not c or str(c).lstrip("+-")[:1].isdigit() for c in cells) and not any(
        c.isalpha() for cell in cells for c in str(cell or "").replace(" to ", ""))


def results_section(record: dict) -> str:
    text = ("Acc@1 is the last epoch's: the mean over images and runs ± the standard deviation "
            "over seeds. Intervals are 95 %, from Student's t with the variance of redrawn test "
            "groups (writers where they are known) and that of the runs of a fold, by the highest "
            "level of generators, sets and seeds that has several.")
    if record["left_out_groups"]:
        text += (" Images of the groups " + ", ".join(map(str, record["left_out_groups"]))
                 + " are left out, and with them what is known of all images together only.")
    if record["against_baseline"]:
        text += f" Differences are paired, image by image, with {esc(record['baseline'])}."
        text += (f" Verdict, by the interval of the difference: better (above 0), no worse by more "
                 f"than {record['margin']:g} points (above -{record['margin']:g}), worse (below "
                 "0), else undecided; a single run decides nothing. The difference matters where "
                 "the interval holds no 0, does not where it lies within "
                 f"{record['margin']:g} points of 0, else that is undecided.")
        if record["claims"] > 1:
            text += (f" Their intervals hold for {record['claims']} claims together (Bonferroni: "
                     f"{100 - 5 / record['claims']:.2f} % each).")
    if any(row["published"] for row in record["rows"]):
        text += " Published: " + "; ".join(map(esc, sources(record))) + "."
    shown = table([("row", lambda r: f"{esc(r['name'])}<small>{esc(r['what'])}</small>"),
                   *results_columns(record)], record["rows"], "Results")
    return f"{shown}<p class='note text'>{text}</p>"


def figures_section(figures: list[dict]) -> str:
    """What is drawn; what is only said stands in the findings, and here where nothing is drawn."""
    figures = [figure for figure in figures if figure["html"]] or figures
    two = " two" if len(figures) > 1 else ""
    drawn = [f"<figure{' class=whole' * figure.get('wide', False)}><div>{figure['html']}</div>"
             f"<figcaption>{esc(figure['caption'])}</figcaption></figure>" for figure in figures]
    return f"<div class='figures{two}'>" + "\n".join(drawn) + "</div>"


def sets_section(record: dict) -> str:
    """The table of what inspect_set found, and its pictures as long as they are not too much."""
    parts = [table([("set", lambda s: esc(s.get("set"))), *set_columns(record)], record["sets"],
                   "Image sets")]
    room = MOST_PICTURES_BYTES
    for entry in record["sets"]:
        try:
            data = Path(entry["picture"]).read_bytes() if entry["picture"] else b""
        except OSError:
            data = b""
        drawn = ""
        if data and len(data) <= room:
            room -= len(data)
            drawn = ("<div class=wide><img alt='Images by class, worst confusions, entropy, "
                     "nearest real images' "
                     f"src='data:image/png;base64,{base64.b64encode(data).decode()}'></div>")
        if len(record["sets"]) <= 3 or drawn:
            opened = " open" if entry is record["sets"][0] else ""
            parts.append(f"<details{opened}><summary>{esc(entry.get('set'))}</summary>"
                         f"<p class='note text'>{esc(entry['sentence'])}</p>{drawn}</details>")
    return "\n".join(parts)


def budget_section(record: dict) -> str:
    return table([("row", lambda r: esc(r["name"])), *budget_columns(record)], record["rows"],
                 "Budget") + (
        f"<p class='note text'>{BUDGET_NOTE}</p>")


def choices_section(record: dict) -> str:
    return table([("method", lambda c: esc(c["method"])), *CHOICE_COLUMNS], record["choices"],
                 "Choice of settings") + f"<p class='note text'>{CHOICE_NOTE}</p>"


def licences_section(record: dict) -> str:
    if not record["generators"]:
        return "<p class=note>No row has images of a generator.</p>"
    return table([("generator", lambda g: esc(g["name"])), ("licence", lambda g: g["licence"]),
                  ("trained on", lambda g: g["trained_on"]),
                  ("rows", lambda g: ", ".join(g["rows"][:6])
                   + (f" and {len(g['rows']) - 6} more" if len(g["rows"]) > 6 else ""))],
                 record["generators"], "Generators and licences")


def left_out_section(record: dict) -> str:
    return table([("run", lambda p: esc(p["place"])), ("state", lambda p: p["state"]),
                  ("why", lambda p: p["why"])], record["problems"], "Left out")


def commands_section(record: dict) -> str:
    commands = [str(command)[:MOST_COMMAND] for command in record["commands"]]
    opened = " open" if len(commands) <= 8 else ""
    study = f"<pre tabindex=0>{esc(record['command'])}</pre>" if record["command"] else ""
    return (f"{study}<details{opened}><summary>The command of each run ({len(commands)})</summary>"
            f"<pre tabindex=0>{esc(chr(10).join(commands))}</pre></details>")


def made_with_section(record: dict) -> str:
    def of(part: str) -> Callable:
        def cell(machine: dict) -> str:
            found = machine[part] if isinstance(machine[part], dict) else {}
            return ", ".join(f"{k} {v}" for k, v in found.items())
        return cell

    machines = table([("runs", lambda m: esc(m["runs"])), ("versions", of("versions")),
                      ("hardware", of("hardware"))], record["machines"], "Versions and hardware")
    commits = json.dumps(record["commits"])[1:-1].replace('"', "")
    return f"{machines}<p class='note text'>Commits of dm_kd: {esc(commits)}.</p>"
