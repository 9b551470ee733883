"""The figures of `report`: which of them the runs have something to show in, and their drawing.

    python -m dm_kd.report --runs save/student_model --out save/report

Charts are SVG whose lines and letters take the page's colour, so they suit a light and a dark page.
A figure over an axis (guidance, teacher, amount of images) is drawn where rows differ on that axis
and agree on all else.
"""

import base64
import contextlib
import html
import io
import math
import os
import re
import warnings
from pathlib import Path

import numpy as np

from dm_kd import augment, files, image_files, image_set
from dm_kd.report_runs import DAMAGE, number
from dm_kd.report_statistics import common, compare, matters, partners
from dm_kd.tasks import TASKS, load_real

INK = "#5d636b"  # of the files; in the page it becomes the colour of the text
COLOURS = ("#3b7ddd", "#d9742c", "#2b9c73", "#bf4f86", "#8870cf", "#96882b", "#3d9db3", "#a3644a")
MARKS = "osD^vPX*"
WIDTH = 5.0  # inches of a chart, 360 points: as many pixels as a phone is wide
SAMPLE_COLUMNS, SAMPLE_CLASSES, THUMBNAIL = 8, 20, 64
MOST_DOTS, MOST_PANELS, MOST_NUMBERED = 40, 3, 25
STYLE = {"svg.fonttype": "none", "font.size": 9.5, "text.parse_math": False,
         "figure.constrained_layout.use": True, "legend.frameon": False, "legend.fontsize": 8.5,
         "axes.spines.top": False, "axes.spines.right": False, "axes.grid": True,
         "grid.alpha": 0.13, **dict.fromkeys((
             "text.color", "axes.labelcolor", "xtick.color", "ytick.color", "axes.edgecolor",
             "grid.color"), INK)}
FIDELITY, TEACHER = ("guidance_scale", "steps"), ("teacher", "teacher_run")
AMOUNT = ("images_per_class", "epochs", "steps_per_epoch")
SET_TITLES = {"frechet": "Fréchet distance", "precision": "precision", "recall": "recall",
              "density": "density", "coverage": "coverage",
              "teacher_entropy": "teacher's entropy, nats",
              "teacher_agreement": "teacher agrees, %"}


def draw_all(rows: list[dict], record: dict, out: Path) -> dict[str, list[dict]]:
    """section -> its figures; curve.png and samples.png in `out`. A figure is {"html", "caption"},
    "wide": True if it takes the page's width, "says": what it answers, in a sentence."""
    with canvas():
        return {"rivals": draw_rivals(record), "fidelity": draw_fidelity(rows, record),
                "teachers": draw_teachers(rows, record), "amount": draw_amount(rows, record),
                "curves": draw_curves(rows, out / "curve.png"),
                "samples": draw_samples(rows, out / "samples.png"),
                "confusion": draw_confusion(rows)}


# --- canvas ---------------------------------------------------------------------------------------

@contextlib.contextmanager
def canvas():
    """Inside the block matplotlib draws without a screen, in the report's style, and does not warn
    of letters that its own font lacks: the browser has them."""
    import matplotlib

    matplotlib.use("Agg")
    with matplotlib.rc_context(STYLE), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph")
        yield


def axes(height: float, rows: int = 1, columns: int = 1):
    """A new figure, `height` inches high, and its axes."""
    from matplotlib import pyplot

    return pyplot.subplots(rows, columns, figsize=(WIDTH, height), squeeze=rows * columns == 1)


def as_svg(figure, name: str, title: str) -> str:
    """The figure as inline SVG that fills its place, in the colours of the page. Closes it."""
    import matplotlib
    from matplotlib import pyplot

    buffer = io.StringIO()
    with matplotlib.rc_context({"svg.hashsalt": name}):
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    pyplot.close(figure)
    text = buffer.getvalue()
    text = text[text.index("<svg"):]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r' (?:width|height)="[\d.]+pt"', "", text, count=2)
    text = re.sub(r' id="[\w.]+_\d+"', "", text).replace(INK, "currentColor")
    text = re.sub(r"font: ([\d.]+px)[^;\"]*", r"font: \1 var(--sans)", text)
    label = html.escape(title, quote=True)
    return text.replace("<svg", f'<svg role="img" aria-label="{label}"', 1)


def standalone(drawn: str) -> bytes | None:
    """The chart of a figure's "html" as an SVG file on white; None where it has none."""
    if "<svg" not in drawn:
        return None
    text = drawn[drawn.index("<svg"):drawn.index("</svg>") + len("</svg>")]
    text = text.replace("currentColor", INK).replace("var(--sans)", "sans-serif")
    end = text.index(">") + 1
    ground = '<rect width="100%" height="100%" fill="white"/>'
    return f'<?xml version="1.0" encoding="utf-8"?>\n{text[:end]}{ground}{text[end:]}\n'.encode()


def legend_above(figure) -> None:
    """The lines' names above the axes, where they cover nothing; none where there is no line."""
    handles, labels = figure.axes[0].get_legend_handles_labels()
    if handles:
        columns = 1 if max(map(len, labels)) > 30 else 2
        figure.legend(handles, labels, loc="outside upper left", ncols=columns)


def write_png(figure, path: Path) -> Path:
    files.atomically(lambda p: figure.savefig(p, dpi=150, facecolor="white",
                                              metadata={"Software": None}), path)
    return path


def chart(figure, name: str, caption: str) -> dict:
    return {"html": as_svg(figure, name, caption), "caption": caption}


def picture(data: bytes, alt: str, kind: str = "png") -> str:
    coded = base64.b64encode(data).decode()
    return f"<img alt='{html.escape(alt)}' src='data:image/{kind};base64,{coded}'>"


def shown(text: str, most: int = 30) -> str:
    """A name as a label: not too long, and with no underscore first, which matplotlib hides."""
    text = text.lstrip("_") or "row"
    return text if len(text) <= most else text[:most - 1] + "…"


# --- which rows lie on an axis --------------------------------------------------------------------

def series(rows: list[dict], along: tuple[str, ...]) -> list[tuple[str, list[dict]]]:
    """Rows that agree on every setting but those of `along`, and differ there: (what sets them
    apart from the other series, rows), the best first."""
    groups = {}
    for row in rows:
        if row["settings"].get(along[0]) is not None:
            key = tuple(sorted((k, str(v)) for k, v in row["settings"].items() if k not in along))
            groups.setdefault(key, []).append(row)
    varied = [group for group in groups.values()
              if len({tuple(str(r["settings"].get(k)) for k in along) for r in group}) > 1]
    varied.sort(key=lambda group: -max(row["mean"] for row in group))
    names = [sorted({k for row in group for k in row["settings"]}) for group in varied]
    differing = [k for k in dict.fromkeys(k for keys in names for k in keys) if k not in along
                 and len({str(g[0]["settings"][k]) for g in varied
                          if g[0]["settings"].get(k) is not None}) > 1]
    return [(", ".join(in_words(k, group[0]["settings"].get(k)) for k in differing
                       if group[0]["settings"].get(k) is not None) or
             in_words("images", group[0]["settings"]["images"]), group) for group in varied]


def in_words(key: str, value: object) -> str:
    if key == "images":
        return {"real": "real images", "alone": "no teacher", "folder": "a folder of images",
                }.get(str(value), f"images of {value}")
    if key == "images_per_class":
        return f"{value:g} a class"
    text = f"{value:g}" if isinstance(value, float) else str(value)
    return text if key in ("student", "teacher", "objective") else f"{key.replace('_', ' ')} {text}"


def whiskers(entry: dict) -> list[list[float]]:
    """Lengths below and above the mean, as matplotlib's errorbar takes them; 0 where unknown."""
    low, high = entry["interval"] or [entry["acc1_mean"]] * 2
    return [[max(entry["acc1_mean"] - low, 0)], [max(high - entry["acc1_mean"], 0)]]


# --- charts ---------------------------------------------------------------------------------------

def draw_rivals(record: dict) -> list[dict]:
    """Rows as dots with intervals, in the table's order."""
    rows = record["rows"][:MOST_DOTS]
    if len(rows) < 2:
        return []
    figure, axis = axes(0.75 + (0.27 if len(rows) <= 12 else 0.2) * len(rows))
    values = sorted((row["acc1_mean"] for row in rows), reverse=True)
    middle = values[int(0.6 * (len(values) - 1))]
    floor = middle - 2 * max(values[0] - middle, 1.0)  # what lies below is an arrow at the edge
    inside = [row for row in rows if row["acc1_mean"] >= floor]
    values = [[row["acc1_mean"], *(row["interval"] or []), *(e["acc1"] for e in row["published"])]
              for row in inside]
    lows, highs = [min(v) for v in values], [max(v) for v in values]
    for y, row in enumerate(rows):
        colour = INK if row["method"] in ("real", "alone", "folder") else COLOURS[0]
        if row in inside:
            axis.errorbar([row["acc1_mean"]], [y], xerr=whiskers(row), fmt="o", color=colour,
                          markersize=5.5, elinewidth=1.6)
        else:
            axis.plot([min(lows)], [y], marker="<", color=colour, clip_on=False)
        for entry in row["published"]:
            axis.plot([entry["acc1"]], [y], marker="D", markersize=5, markerfacecolor="none",
                      color=COLOURS[1], linestyle="none")
        axis.annotate(f"{row['acc1_mean']:.2f}", (1.02, y), xycoords=("axes fraction", "data"),
                      va="center", fontsize=9)
        if row["name"] == record["baseline"]:
            axis.axvline(row["acc1_mean"], color=INK, linewidth=0.8, linestyle=(0, (4, 3)))
    space = 0.04 * max(max(highs) - min(lows), 0.5)
    axis.set_xlim(min(lows) - space, max(highs) + space)
    axis.set_ylim(len(rows) - 0.4, -0.6)
    axis.set_yticks(range(len(rows)), [shown(row["name"], 26) for row in rows])
    axis.tick_params(axis="y", length=0)
    axis.grid(axis="y", visible=False)
    axis.set_xlabel("real validation images named right, %")
    text = ("Accuracy of each row; bars: 95 % intervals (test images and training). "
            "Blue: students that saw no real image.")
    text += " An arrow: further to the left." * (len(inside) < len(rows))
    text += " Open diamonds: published numbers." * any(row["published"] for row in rows)
    text += " Dashed: the baseline." * any(r["name"] == record["baseline"] for r in rows)
    left = len(record["rows"]) - len(rows)
    text += f" The first {MOST_DOTS} rows of {len(record['rows'])}." * (left > 0)
    return [chart(figure, "rivals", text)]


def draw_curves(rows: list[dict], path: Path) -> list[dict]:
    """Validation accuracy over the training, a line per row: the mean over its trials, the band
    from the lowest to the highest seed (each the mean of its folds)."""
    figure, axis = axes(3.3)
    lines = []
    for row in rows:
        trials = [t for t in row["trials"] if t["metrics"]]
        if len(trials) == len(row["trials"]):
            length = min(len(t["metrics"]) for t in trials)
            keys = dict.fromkeys(t["replicate"] for t in trials)
            lines.append((row, np.array([np.mean([t["metrics"][:length] for t in trials
                                                  if t["replicate"] == key], 0) for key in keys])))
    for i, (row, curves) in enumerate(lines):
        x = np.arange(1, curves.shape[1] + 1) / curves.shape[1] * 100
        named = i < len(COLOURS)
        style = {"color": COLOURS[i], "label": f"{shown(row['name'])}, {row['mean']:.1f} %"} \
            if named else {"color": INK, "alpha": 0.3, "linewidth": 0.7, "zorder": 1}
        axis.plot(x, curves.mean(0), **{"linewidth": 1.6, **style})
        if named and len(curves) > 1:
            axis.fill_between(x, curves.min(0), curves.max(0), color=COLOURS[i], alpha=0.18,
                              linewidth=0)
    axis.set(xlabel="share of the training, %", ylabel="validation Acc@1, %")
    legend_above(figure)
    write_png(figure, path)
    text = ("Accuracy on real validation images during the training: means over the trials; bands "
            "from the lowest to the highest seed.")
    text += f" Grey: the other {len(lines) - len(COLOURS)} rows." * (len(lines) > len(COLOURS))
    svg = chart(figure, "curves", text)
    return [svg] if lines else []


def draw_teachers(rows: list[dict], record: dict) -> list[dict]:
    """Teacher's accuracy against the student's, a series per student and recipe, from the trials
    that all rows of the series have."""
    found = [(name, group) for name, group in teacher_series(rows)
             if all(row["teacher_acc1"] is not None for row in group)][:len(COLOURS)]
    shared = [(name, common(group, record["seed"])) for name, group in found]
    missing = [nothing_shared(name, len(group)) for (name, group), (_, kept) in zip(
        found, shared, strict=True) if not kept]
    shared = [(name, kept) for name, kept in shared if kept]
    if not shared:
        return missing
    figure, axis = axes(3.4)
    sentences = []
    for i, (name, group) in enumerate(shared):
        group = sorted(group, key=lambda row: row["teacher_acc1"])
        for row in group:
            axis.errorbar([row["teacher_acc1"]], [row["mean"]], yerr=whiskers(
                {"acc1_mean": row["mean"], "interval": row["interval"]}), color=COLOURS[i],
                elinewidth=1)
        axis.plot([r["teacher_acc1"] for r in group], [r["mean"] for r in group], marker=MARKS[i],
                  markersize=5.5, color=COLOURS[i], linewidth=0.8, label=shown(name, 48))
        if len(group) > 2:
            ranks = rank_correlation([r["teacher_acc1"] for r in group], [r["mean"] for r in group])
            sentences.append(f"{ranks:+.2f} ({name}, {len(group)} teachers)")
    axis.set(xlabel="teacher's Acc@1, %", ylabel="student's Acc@1, %")
    legend_above(figure)
    text = "Students of teachers of rising accuracy; bars: 95 % intervals."
    says = (f"Rank correlation of the teacher's and the student's accuracy: {'; '.join(sentences)}."
            if sentences else "")
    return [chart(figure, "teachers", f"{text} {says}") | {"says": says}, *missing]


def teacher_series(rows: list[dict]) -> list[tuple[str, list[dict]]]:
    """Series over teachers; a temperature of each teacher's own belongs to the teacher."""
    tuned = [(name, group) for name, group in series(rows, (*TEACHER, "temperature"))
             if len({tuple(str(r["settings"].get(k)) for k in TEACHER) for r in group})
             == len(group)]
    taken = {id(row) for _, group in tuned for row in group}
    return tuned + series([row for row in rows if id(row) not in taken], TEACHER)


def nothing_shared(name: str, settings: int) -> dict:
    """In place of a figure."""
    text = (f"Nothing is drawn or concluded ({name}): there is no trial that all {settings} "
            "settings have.")
    return {"html": "", "caption": text, "says": text}


def rank_correlation(x: list[float], y: list[float]) -> float:
    """Spearman's, ties with their mean rank; 0 where one side does not vary."""
    ranks = []
    for values in (np.array(x), np.array(y)):
        ranks.append([(values < v).sum() + ((values == v).sum() - 1) / 2 for v in values])
    spread = np.std(ranks, 1)
    return float(np.corrcoef(ranks)[0, 1]) if spread.all() else 0.0


def draw_amount(rows: list[dict], record: dict) -> list[dict]:
    """Accuracy over the images per class on a log axis, a series per kind of images, from the
    trials that all rows of the series have."""
    found = series(rows, AMOUNT)[:len(COLOURS)]
    shared = [(name, common(group, record["seed"])) for name, group in found]
    missing = [nothing_shared(name, len(group)) for (name, group), (_, kept) in zip(
        found, shared, strict=True) if not kept]
    shared = [(name, group) for name, group in shared if group]
    if not shared:
        return missing
    figure, axis = axes(3.4)
    for i, (name, group) in enumerate(shared):
        group.sort(key=lambda row: row["settings"]["images_per_class"])
        x = [row["settings"]["images_per_class"] for row in group]
        bounds = np.array([row["interval"] or [row["mean"]] * 2 for row in group])
        axis.plot(x, [row["mean"] for row in group], marker=MARKS[i], markersize=5, linewidth=1.5,
                  color=COLOURS[i], label=shown(name, 48))
        axis.fill_between(x, bounds[:, 0], bounds[:, 1], color=COLOURS[i], alpha=0.15, linewidth=0)
    ticks = sorted({r["settings"]["images_per_class"] for _, group in shared for r in group})
    axis.set_xscale("log")
    axis.set_xticks(ticks, [f"{t:g}" for t in ticks], rotation=45 if len(ticks) > 6 else 0)
    axis.minorticks_off()
    axis.set(xlabel="images per class", ylabel="student's Acc@1, %")
    legend_above(figure)
    text = "Accuracy over the images per class, log axis; bands: 95 % intervals."
    says = " ".join([*saturation(shared, record), *worth(shared, record)])
    return [chart(figure, "amount", f"{text} {says}") | {"says": says}, *missing]


def saturation(found: list[tuple[str, list[dict]]], record: dict) -> list[str]:
    """For each series of made images the smallest amount that the largest one beats by less than
    the margin: the interval of the difference lies below it."""
    sentences = []
    for name, group in found:
        if group[0]["settings"]["images"] == "real":
            continue
        for row in group[:-1]:
            gain = compare(group[-1]["trials"], row["trials"], record["seed"])
            if gain["runs"] and gain["seed_error"] is not None and (
                    gain["interval"][1] < record["margin"]):
                sentences.append(
                    f"They saturate ({name}) at {per_class(row)} a class: {per_class(group[-1])} "
                    f"gain {points(gain)}, less than {record['margin']:g}.")
                break
        else:
            sentences.append(f"No saturation is shown ({name}): none is within "
                             f"{record['margin']:g} points of {per_class(group[-1])} a class.")
    return sentences


def worth(found: list[tuple[str, list[dict]]], record: dict) -> list[str]:
    """How many made images do as well as the real rows' numbers: where the line through the made
    rows' means over the logarithm first reaches the real mean. And whether one real image is worth
    more than one made, at equal numbers (within a quarter), by the interval of the difference."""
    real = [group for _, group in found if group[0]["settings"]["images"] == "real"]
    sentences = []
    for name, made in found if len(real) == 1 else ():
        both = common(real[0] + made, record["seed"])
        if made[0]["settings"]["images"] == "real" or not both:
            continue
        ours, line = both[:len(real[0])], both[len(real[0]):]
        x = [np.log(row["settings"]["images_per_class"]) for row in line]
        y = [row["mean"] for row in line]
        sentences.append("As good as real images a class: " + "; ".join(
            f"{per_class(row)} are worth {reached(x, y, row['mean'])}" for row in ours)
            + f" ({name}).")
        for row in ours:
            for other in line:
                ratio = (row["settings"]["images_per_class"]
                         / other["settings"]["images_per_class"])
                if 0.8 <= ratio <= 1.25:
                    sentences.append(equal_amounts(row, other, record))
    return sentences


def reached(x: list[float], y: list[float], level: float) -> str:
    """exp(x) where the line through (x, y) first reaches a level, in words."""
    if y[0] >= level:
        return f"at most {np.exp(x[0]):.0f}"
    for i in range(1, len(x)):
        if y[i] >= level:
            part = (level - y[i - 1]) / (y[i] - y[i - 1])
            return f"{np.exp(x[i - 1] + part * (x[i] - x[i - 1])):.0f}"
    return f"more than {np.exp(x[-1]):.0f}"


def equal_amounts(real: dict, made: dict, record: dict) -> str:
    found = compare(real["trials"], made["trials"], record["seed"])
    change = matters(found, record["margin"])
    if not found["runs"]:
        return f"At {per_class(real)} a class: {found['note']}."
    worth = {"matters": "more" if found["difference"] > 0 else "less",
             "does not matter": "the same"}.get(change, "undecided")
    return (f"One real image against one made, at {per_class(real)} a class: {worth} (real minus "
            f"made {points(found)}).")


def per_class(row: dict) -> str:
    return f"{row['settings']['images_per_class']:g}"


def points(found: dict) -> str:
    low, high = found["interval"]
    return f"{found['difference']:+.2f} points ({low:+.2f} to {high:+.2f})"


# --- fidelity -------------------------------------------------------------------------------------

def draw_fidelity(rows: list[dict], record: dict) -> list[dict]:
    """Heat maps over guidance s and steps T: accuracy with example images at the corners, and what
    inspect_set found in the same sets, from the trials that all cells have; then what the cells
    with more of them say against the baseline."""
    figures = []
    for i, (name, group) in enumerate(series(rows, FIDELITY)[:MOST_PANELS]):
        group = [r for r in group if (r["settings"]["steps"] or 0) > 0]
        whole = {(r["settings"]["guidance_scale"], r["settings"]["steps"]): r for r in group}
        cells = {(r["settings"]["guidance_scale"], r["settings"]["steps"]): r
                 for r in common(group, record["seed"])}
        if len(whole) < 2:
            continue
        figures += [{"html": "", "caption": text, "says": text}
                    for text in conclude_fidelity(whole, record)]
        if not cells:
            figures.append(nothing_shared(name, len(whole)))
            continue
        grid = [sorted({cell[k] for cell in cells}) for k in (0, 1)]
        figure, axis = axes(0.9 + 0.42 * len(grid[1]))
        heat(axis, grid, {cell: row["mean"] for cell, row in cells.items()}, COLOURS[0])
        axis.set(xlabel="guidance scale s", ylabel="sampling steps T")
        best, worst = (f(cells, key=lambda cell: cells[cell]["mean"]) for f in (max, min))
        says = (f"Of {len(cells)} settings of s and T the best is s={best[0]:g}, T={best[1]} "
                f"({cells[best]['mean']:.2f} %), the worst s={worst[0]:g}, T={worst[1]} "
                f"({cells[worst]['mean']:.2f} %), each from "
                f"{len(cells[best]['trials'])} run{'s' * (len(cells[best]['trials']) > 1)}.")
        drawn = chart(figure, f"fidelity{i}", f"Student's Acc@1 in percent ({name}). {says}")
        drawn |= {"html": with_corners(drawn["html"], grid, cells), "says": says}
        figures.append(drawn)
        figures += draw_set_figures(i, grid, {c: seen_in(r["trials"], record)
                                              for c, r in cells.items()},
                                    {c: r["mean"] for c, r in cells.items()})
    return figures


def seen_in(trials: list[dict], record: dict) -> dict[str, float | None]:
    """Means of what inspect_set found in the sets of these trials; {} where it has not."""
    found = [inspection(t, record) for t in trials]
    if None in found:
        return {}
    values = {k: [number(s.get(k)) for s in found] for k in SET_TITLES}
    return {k: None if None in v else float(np.mean(v)) for k, v in values.items()}


def inspection(trial: dict, record: dict) -> dict | None:
    place = os.path.normpath(str(trial["config"].get("source")))
    return next((s for s in record["sets"] if os.path.normpath(str(s.get("set"))) == place), None)


def conclude_fidelity(cells: dict[tuple, dict], record: dict) -> list[str]:
    """The fidelity study's decision rule (scripts/sweeps/digits_fidelity.sh): whether guidance and
    steps matter, in the cells furthest from the baseline in one of them (steps: by their ratio),
    and whether coverage or fidelity teaches."""
    middle = next((c for c, row in cells.items() if row["name"] == record["baseline"]), None)
    claims, sentences = [], []
    for axis, what in ((0, "Guidance"), (1, "The number of steps")):
        others = [c for c in cells if middle and c != middle and c[1 - axis] == middle[1 - axis]]
        if not others:
            return []
        far = max(others, key=lambda c: abs(c[0] - middle[0]) + abs(math.log(c[1] / middle[1])))
        found = record["against_baseline"].get(cells[far]["name"], {})
        change = matters(found, record["margin"])
        shown_as = points(found) if found.get("runs") else found.get("note", "not compared")
        sentences.append(f"{what} {'is ' * (change == 'undecided')}{change}: s={far[0]:g}, "
                         f"T={far[1]} minus s={middle[0]:g}, T={middle[1]}: {shown_as}.")
        moves = {k: moved(cells[far], cells[middle], k, record) for k in ("precision", "recall")}
        claims.append(moves | {"below": change == "matters" and found["difference"] < 0})
    precision, recall = ([claim[k] for claim in claims] for k in ("precision", "recall"))
    below = all(claim["below"] for claim in claims)
    if below and recall == ["falls"] * 2 and set(precision) == {"rises", "falls"}:
        sentences.append("Coverage teaches, not fidelity: recall falls in both, precision rises in "
                         "one and falls in the other.")
    elif below and precision == ["falls"] * 2 and "rises" in recall:
        sentences.append("Fidelity teaches, not coverage: precision falls in both, recall rises in "
                         "one.")
    else:
        sentences.append("Neither coverage nor fidelity is shown to be what teaches.")
    return sentences


def moved(row: dict, middle: dict, key: str, record: dict) -> str:
    """What a figure of inspect_set does in nine tenths of the paired sets: "rises", "falls"; else
    ""."""
    pairs = {(str(x["config"].get("source")), str(y["config"].get("source"))): (
        inspection(x, record), inspection(y, record))
        for x in row["trials"] for y in middle["trials"] if partners(x, y)}
    values = [[number((s or {}).get(key)) for s in pair] for pair in pairs.values()]
    if not values or any(None in pair for pair in values):
        return ""
    changes = np.array([x - y for x, y in values])
    return ("rises" if (changes > 0).mean() >= 0.9 else
            "falls" if (changes < 0).mean() >= 0.9 else "")


def heat(axis, grid: list[list[float]], values: dict[tuple, float], colour: str,
         digits: int = 1, small: bool = False) -> None:
    """Cells in one hue, the stronger the higher, with their numbers; empty where there is none."""
    from matplotlib.colors import to_rgb

    low, high = min(values.values()), max(values.values())
    for (s, t), value in values.items():
        x, y = grid[0].index(s), grid[1].index(t)
        alpha = 0.06 + 0.6 * (value - low) / (high - low) if high > low else 0.3
        axis.add_patch(rectangle(x, y, (*to_rgb(colour), alpha)))
        axis.text(x, y, f"{value:.{digits}f}", ha="center", va="center",
                  fontsize=7 if small or len(grid[0]) > 6 else 9)
    axis.set_xlim(-0.5, len(grid[0]) - 0.5)
    axis.set_ylim(-0.5, len(grid[1]) - 0.5)
    axis.set_xticks(range(len(grid[0])), [f"{v:g}" for v in grid[0]])
    axis.set_yticks(range(len(grid[1])), [f"{v:g}" for v in grid[1]])
    axis.tick_params(length=0)
    axis.grid(visible=False)
    axis.spines[:].set_visible(False)


def rectangle(x: int, y: int, colour: tuple):
    from matplotlib.patches import Rectangle

    return Rectangle((x - 0.47, y - 0.47), 0.94, 0.94, facecolor=colour, edgecolor="none")


def draw_set_figures(number: int, grid: list, sets: dict[tuple, dict],
                     accuracies: dict[tuple, float]) -> list[dict]:
    """A small heat map for each figure that inspect_set found in every cell, and how its ranks go
    with those of the accuracies."""
    known = [k for k in SET_TITLES if all(s.get(k) is not None for s in sets.values())]
    if not known:
        return []
    lines = (len(known) + 1) // 2
    figure, places = axes(lines * (0.7 + 0.27 * len(grid[1])), lines, 2)
    for axis, key in zip(places.flat, known, strict=False):
        values = {cell: s[key] for cell, s in sets.items()}
        heat(axis, grid, values, COLOURS[2], 2 if max(values.values()) < 20 else 1, small=True)
        axis.set_title(SET_TITLES[key], fontsize=9)
        axis.tick_params(labelsize=7.5)
    for axis in places.flat[len(known):]:
        axis.set_axis_off()
    ranks = [(SET_TITLES[k].split(",")[0], rank_correlation(
        [sets[c][k] for c in accuracies], list(accuracies.values()))) for k in known]
    says = "Rank correlation of the student's accuracy over these settings with " + ", ".join(
        f"{name} {value:+.2f}" for name, value in ranks) + "."
    drawn = chart(figure, f"sets{number}", "The same sets as inspect_set sees them, over s "
                                           f"(across) and T (up). {says}")
    return [drawn | {"says": says}]


def with_corners(svg: str, grid: list[list[float]], cells: dict[tuple, dict]) -> str:
    """The heat map with a few images of the sets at its corners, where they are still there."""
    parts = []
    for place, t in (("top", grid[1][-1]), ("bottom", grid[1][0])):
        for s in dict.fromkeys((grid[0][0], grid[0][-1])):
            row = cells.get((s, t))
            image = row and examples(row["trials"][0])
            if image and (place == "bottom" or len(grid[1]) > 1):
                parts.append((place, f"<span class=corner>{image}<small>s={s:g}, T={t}</small>"
                                     "</span>"))
    top, bottom = ("".join(part for where, part in parts if where == place)
                   for place in ("top", "bottom"))
    return (f"<div class=corners>{top}</div>" * bool(top) + svg
            + f"<div class=corners>{bottom}</div>" * bool(bottom))


def examples(trial: dict) -> str | None:
    """The first image of the first ten classes of a trial's set as one picture; None without."""
    try:
        images = open_made(trial)
        if images is None:
            return None
        chosen = thumbnails([read(images, c, 0) for c in images.plan.classes[:10]])
        sheet = image_set.tile([list(chosen[:5]), list(chosen[5:])][:1 + (len(chosen) > 5)],
                               scale=max(1, 24 // chosen.shape[2]))
        return picture(image_set.encode_png(sheet), "images of the set")
    except DAMAGE:  # gone or damaged
        return None


# --- pictures of images ---------------------------------------------------------------------------

def open_made(trial: dict) -> image_set.ImageSet | None:
    """The complete image set that a trial learnt from, if it is still there."""
    source = Path(str(trial["config"].get("source", "real")))
    if not (source / "manifest.json").exists():
        return None
    images = image_set.open_set(source)
    return images if images.complete else None


def read(images: image_set.ImageSet, label: int, k: int):
    """uint8 [C, H, W]."""
    path = images.plan.path(label, k)
    return image_files.read_image((images.folder / path).read_bytes(), path,
                                  images.manifest["channels"])


def thumbnails(images: list):
    """uint8 [N, C, h, h]: small images as they are, others' centres."""
    import torch

    if all(image.shape == images[0].shape and image.shape[1] <= THUMBNAIL for image in images):
        return torch.stack(images)
    return augment.centre_crops(images, THUMBNAIL)


def draw_samples(rows: list[dict], path: Path) -> list[dict]:
    """A row per class (the first 20): real images, where they can be found, beside synthetic ones.
    Nothing where no labelled set of the task is left."""
    for trial in (t for row in rows for t in row["trials"]):
        try:
            images, task = open_made(trial), TASKS.get(trial["task"])
            if (images is None or task is None or not images.manifest["labels_known"]
                    or images.manifest["task"] != task.name):
                continue
            made = {c: thumbnails([read(images, c, k) for k in range(
                min(SAMPLE_COLUMNS, images.plan.images_per_class))])
                for c in images.plan.classes[:SAMPLE_CLASSES]}
            break
        except DAMAGE:  # perhaps the next
            continue
    else:
        return []
    real = real_images(trial, task, list(made))
    columns = [("real (training images)", real)] * bool(real) + [("synthetic", made)]
    write_png(sheet_figure(columns, [task.class_names[c] for c in made]), path)
    text = "Real training images (left) beside synthetic ones (right)." if real else \
        "Synthetic images, a row per class."
    return [{"html": picture(path.read_bytes(), text), "caption": text, "wide": True}]


def real_images(trial: dict, task, classes: list[int]) -> dict:
    """label -> a few training images [N, C, h, h]; {} where they cannot be found."""
    data = trial["config"].get("data")
    try:
        real = load_real(task, "train", trial["fold"], data=Path(data) if data else None)
        found = {}
        for c in classes:
            at = (real.labels == c).nonzero()[:, 0]
            at = at[::max(1, len(at) // SAMPLE_COLUMNS)][:SAMPLE_COLUMNS]
            found[c] = thumbnails(list(real.images[at]))
        return found
    except DAMAGE:  # the config may hold anything
        return {}


def sheet_figure(columns: list[tuple[str, dict]], names: list[str]):
    from matplotlib import pyplot

    rows = len(names)
    figure, places = pyplot.subplots(
        1, len(columns), squeeze=False,
        figsize=(3.8 * len(columns), 3.55 * rows / SAMPLE_COLUMNS + 0.4))
    for axis, (title, images) in zip(places[0], columns, strict=True):
        first = next(iter(images.values()))
        sheet = image_set.tile([list(v) for v in images.values()],
                               scale=max(1, 32 // first.shape[2]))
        axis.imshow(sheet.permute(1, 2, 0).numpy().squeeze(), cmap="gray", vmin=0, vmax=255)
        height = sheet.shape[1] / rows
        axis.set_yticks([height * (r + 0.5) for r in range(rows)],
                        [shown(name, 18) for name in names], fontsize=8)
        axis.set_xticks([])
        axis.tick_params(length=0)
        axis.grid(visible=False)
        axis.set_title(title, fontsize=10)
        axis.spines[:].set_visible(False)
    return figure


# --- confusion ------------------------------------------------------------------------------------

def draw_confusion(rows: list[dict]) -> list[dict]:
    """Which classes the best student without real images takes for which; of any row if there is
    none such. Nothing without predictions."""
    able = [row for row in rows if all(t["predictions"] is not None for t in row["trials"])]
    made = [row for row in able if row["settings"]["images"] not in ("real", "alone")]
    if not able:
        return []
    row = max(made or able, key=lambda row: row["mean"])
    counts = confusion_counts(row["trials"])
    names = row["trials"][0]["card"].get("class_names")
    if not isinstance(names, list) or len(names) < len(counts):
        names = [str(i) for i in range(len(counts))]
    share = 100 * counts / counts.sum(1, keepdims=True).clip(1)
    pairs = worst_pairs(share)
    worst = "; ".join(f"{shown(str(names[a]), 24)} as {shown(str(names[b]), 24)} "
                      f"{share[a, b]:.1f} %" for a, b in pairs)
    text = (f"{row['name']}: real classes down, answers across, in percent of the class. "
            + (f"Most often: {worst}." if pairs else "No image was mistaken."))
    side = min(0.9 + 0.36 * len(counts), 4.6)
    figure, axis = axes(max(side, 2.4))
    fill_confusion(axis, share, names)
    return [chart(figure, "confusion", text)]


def confusion_counts(trials: list[dict]) -> np.ndarray:
    """Images by real class and answer [classes, classes], over all trials.

    Classes are as many as the labels and answers need."""
    labels, guesses = (np.concatenate([t["predictions"][k] for t in trials])
                       for k in ("labels", "predictions"))
    known = (labels >= 0) & (guesses >= 0) & (labels < 10**5) & (guesses < 10**5)
    labels, guesses = labels[known], guesses[known]
    classes = int(max(labels.max(initial=0), guesses.max(initial=0))) + 1
    kept = min(classes, 2000)
    labels, guesses = labels.clip(max=kept - 1), guesses.clip(max=kept - 1)
    return np.bincount(labels * kept + guesses, minlength=kept ** 2).reshape(kept, kept)


def worst_pairs(share: np.ndarray, most: int = 5) -> list[tuple[int, int]]:
    wrong = share.copy()
    np.fill_diagonal(wrong, 0)
    order = np.argsort(-wrong, axis=None, kind="stable")[:most]
    return [divmod(int(at), len(share)) for at in order if wrong.flat[at] > 0]


def fill_confusion(axis, share: np.ndarray, names: list) -> None:
    """A coloured cell for each share, what is right in another hue; with numbers if few classes."""
    from matplotlib.colors import to_rgb

    classes, right = len(share), np.eye(len(share), dtype=bool)
    worst = max(share[~right].max(initial=0), 1e-9)
    strength = np.where(right, share / 100 * 0.35, np.sqrt(share / worst) * 0.75)
    axis.set_aspect("equal")
    if classes > MOST_NUMBERED:
        image = np.zeros((classes, classes, 4))
        image[..., :3] = np.where(right[..., None], to_rgb(COLOURS[2]), to_rgb(COLOURS[1]))
        image[..., 3] = strength
        axis.imshow(image, interpolation="nearest")
    else:
        for y, x in zip(*np.nonzero(share), strict=True):
            colour = COLOURS[2] if x == y else COLOURS[1]
            axis.add_patch(rectangle(x, y, (*to_rgb(colour), strength[y, x])))
            axis.text(x, y, f"{share[y, x]:.1f}".removesuffix(".0"), ha="center", va="center",
                      fontsize=7.5 if classes <= 12 else 5)
        axis.set_xticks(range(classes), [shown(str(n), 12) for n in names[:classes]],
                        rotation=0 if max(len(str(n)) for n in names) < 3 else 90)
        axis.set_yticks(range(classes), [shown(str(n), 16) for n in names[:classes]])
    axis.set_xlim(-0.5, classes - 0.5)
    axis.set_ylim(classes - 0.5, -0.5)
    axis.set(xlabel="answer", ylabel="real class")
    axis.tick_params(length=0)
    axis.grid(visible=False)
    axis.spines[:].set_visible(False)
