"""Figures of the report as SVG text, and the sample images as a PNG.

Rows have the names that they have in the tables. An arrow marks what is outside an axis.
"""

import contextlib
import io
import json
import re

import numpy as np
import torch
from torch import Tensor

from dm_kd.analysis import collect, stats
from dm_kd.analysis.collect import Row, Run
from dm_kd.run import UserError
from dm_kd.tasks import get_task

COLOURS = ("#2f6fd0", "#d9742c", "#2b9c73", "#bf4f86", "#8870cf", "#96882b", "#3d9db3", "#a3644a")
GREY = "#5d636b"
WIDTH = 5.0  # inches; 360 points, as many as a phone has pixels
STYLE = {"svg.fonttype": "none", "text.parse_math": False, "font.family": "sans-serif",
         "font.size": 10, "legend.frameon": False, "legend.fontsize": 9, "axes.grid": True,
         "axes.spines.top": False, "axes.spines.right": False, "axes.axisbelow": True,
         "grid.alpha": 0.25, "figure.constrained_layout.use": True}
REACH = 3  # an arrow: further below the median than 3 times the distance of the best above it
SAMPLES, SAMPLE_CLASSES, SAMPLE_SIDE = 8, 10, 32  # smaller images are enlarged to 32 pixels a side
MAPS = {"precision": "precision", "recall": "recall", "frechet": "Fréchet distance"}  # of the sets


def draw_all(rows: list[Row], entries: list[dict], baseline: str | None, sets: dict
             ) -> dict[str, tuple[str, str]]:
    """{name: (SVG, caption)} of the figures that these rows have something to show in."""
    figures = {"gaps": draw_gaps(entries, baseline), "curves": draw_curves(rows),
               "fidelity": draw_fidelity(rows, sets),
               "amount": draw_lines(rows, lambda run: run.images_per_class, "images per class"),
               "teachers": draw_lines(rows, lambda run: run.result.get("teacher_acc1"),
                                      "teacher's top-1, %")}
    return {name: figure for name, figure in figures.items() if figure}


# --- canvas ---------------------------------------------------------------------------------------

@contextlib.contextmanager
def canvas(height: float, lines: int = 1, columns: int = 1):
    """A figure and its axes, in the report's style and without a screen."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    with matplotlib.rc_context(STYLE):
        figure, axes = pyplot.subplots(lines, columns, figsize=(WIDTH, height), squeeze=False)
        yield figure, axes.flat
        pyplot.close(figure)


def svg(figure) -> str:
    """The figure as SVG that may stand alone or in a page beside others."""
    import matplotlib

    buffer = io.StringIO()
    with matplotlib.rc_context({"svg.hashsalt": "dm_kd"}):
        figure.savefig(buffer, format="svg", metadata={"Date": None})
    text = buffer.getvalue()
    text = re.sub(r"<metadata>.*?</metadata>", "", text[text.index("<svg"):], flags=re.DOTALL)
    return re.sub(r' id="[\w.]+_\d+"', "", text)


def shown(name: str) -> str:
    """A name as a label; matplotlib hides those that begin with an underscore."""
    name = name.lstrip("_")
    return name if len(name) <= 28 else name[:27] + "…"


# --- charts ---------------------------------------------------------------------------------------

def draw_gaps(entries: list[dict], baseline: str | None) -> tuple[str, str] | None:
    """A dot for each row: its difference to the baseline, and the interval."""
    compared = [entry for entry in entries if entry["difference"] is not None]
    if not compared:
        return None
    low, high = limits([0, *(entry["difference"] for entry in compared)])
    with canvas(0.7 + 0.28 * len(compared)) as (figure, (axis, *_)):
        for y, entry in enumerate(compared):
            middle = entry["difference"]
            left, right = (middle if entry[key] is None else entry[key]
                           for key in ("difference_low", "difference_high"))
            colour = GREY if entry["method"] in ("real", "alone") else COLOURS[0]
            axis.plot(np.clip([left, right], low, high), [y, y], color=colour, linewidth=1.8)
            for end, marker, outside in ((low, "<", left < low), (high, ">", right > high)):
                if outside:
                    axis.plot([end], [y], marker=marker, color=colour, clip_on=False)
            if middle >= low:
                axis.plot([middle], [y], marker="o", color=colour, markersize=5.5)
            axis.annotate(f"{middle:+.2f}", (1.03, y), fontsize=9, va="center",
                          xycoords=("axes fraction", "data"))
        axis.axvline(0, color="black", linewidth=0.9, zorder=1)
        axis.set(xlim=(low, high), ylim=(len(compared) - 0.4, -0.6),
                 xlabel=f"top-1 minus {shown(baseline)}, points")
        axis.set_yticks(range(len(compared)), [shown(entry["row"]) for entry in compared])
        axis.grid(axis="y", visible=False)
        bars = any(entry["difference_low"] is not None for entry in compared)
        return svg(figure), (f"Difference to {baseline}" + "; bars: 95 % intervals" * bars
                             + ". Grey: trained on real images. Arrows: beyond the axis.")


def limits(middles: list[float]) -> tuple[float, float]:
    """The range of an axis on which rows far below the others do not squeeze these."""
    median, best = float(np.median(middles)), max(middles)
    floor = median - REACH * max(best - median, 1.0)
    lowest = min(middle for middle in middles if middle >= floor)
    margin = 0.25 * max(best - lowest, 1.0)
    return lowest - margin, best + margin


def draw_curves(rows: list[Row]) -> tuple[str, str] | None:
    """Validation accuracy over the training; a line is the mean of a row's runs, the band reaches
    from the lowest to the highest run."""
    whole = [row for row in rows if all(len(run.curve) > 1 for run in row.runs)][:len(COLOURS)]
    if not whole:
        return None
    with canvas(3.4) as (figure, (axis, *_)):
        for row, colour in zip(whole, COLOURS, strict=False):
            length = min(len(run.curve) for run in row.runs)
            curves = np.array([run.curve[:length] for run in row.runs])
            x = np.arange(1, length + 1) / length * 100
            axis.plot(x, curves.mean(0), color=colour, linewidth=1.6, label=shown(row.name))
            axis.fill_between(x, curves.min(0), curves.max(0), color=colour, alpha=0.15,
                              linewidth=0)
        axis.set(xlabel="share of the training, %", ylabel="validation top-1, %")
        figure.legend(loc="outside upper left", ncols=2)
        text = "Validation accuracy after each epoch; bands: from the lowest to the highest run."
        return svg(figure), text + f" The first {len(whole)} rows." * (len(whole) < len(rows))


def draw_lines(rows: list[Row], value, label: str) -> tuple[str, str] | None:
    """Accuracy over value(run), a line for each student, temperature and kind of images; lines of
    fewer than three different values are left out."""
    groups: dict[str, list[tuple[float, Row]]] = {}
    for row in rows:
        if (x := row.mean(value)) is not None:
            run = row.first
            temperature = run.config.get("temperature")
            groups.setdefault(f"{run.student}, {run.method}" + (
                f", temperature {temperature:g}" if temperature else ""), []).append((x, row))
    groups = {name: sorted(points, key=lambda point: point[0]) for name, points in groups.items()
              if len({round(x, 1) for x, _ in points}) > 2}
    if not groups:
        return None
    with canvas(3.2) as (figure, (axis, *_)):
        for (name, points), colour in zip(groups.items(), COLOURS, strict=False):
            axis.errorbar(
                [x for x, _ in points], [row.acc1 for _, row in points],
                yerr=[stats.std([run.acc1 for run in row.runs]) or 0 for _, row in points],
                color=colour, marker="o", markersize=4.5, linewidth=1.3, label=shown(name))
        if label == "images per class":
            ticks = sorted({x for points in groups.values() for x, _ in points})
            axis.set_xscale("log")
            axis.set_xticks(ticks, [f"{x:g}" for x in ticks], rotation=45)
            axis.minorticks_off()
        axis.set(xlabel=label, ylabel="student's top-1, %")
        figure.legend(loc="outside upper left", ncols=2)
        return svg(figure), f"Accuracy over {label}; bars: ± standard deviation of the runs."


def draw_fidelity(rows: list[Row], sets: dict) -> tuple[str, str] | None:
    """Accuracy over guidance and sampling steps as a map, and what inspect_set measured in the same
    sets. None with fewer than four different settings."""
    cells = {(run.generator_settings["guidance_scale"], run.generator_settings["steps"]): row
             for row in rows for run in row.runs[:1]
             if {"guidance_scale", "steps"} <= run.generator_settings.keys()}
    if len(cells) < 4:
        return None
    maps = {"student's top-1, %": {cell: row.acc1 for cell, row in cells.items()}}
    for key, title in MAPS.items():
        values = {cell: collect.inspected(row, sets, key) for cell, row in cells.items()}
        if None not in values.values():
            maps[title] = values
    scales, steps = (sorted({cell[i] for cell in cells}) for i in (0, 1))
    lines, columns = -(-len(maps) // 2), min(2, len(maps))
    with canvas(lines * (0.9 + 0.32 * len(steps)), lines, columns) as (figure, axes):
        for axis, (title, values) in zip(axes, maps.items(), strict=False):
            grid = np.array([[values.get((s, t), np.nan) for s in scales] for t in steps])
            axis.imshow(grid, cmap="Blues", origin="lower", aspect="auto", alpha=0.6)
            for (y, x), value in np.ndenumerate(grid):
                if np.isfinite(value):
                    axis.text(x, y, f"{value:.3g}", ha="center", va="center", fontsize=8)
            axis.set_xticks(range(len(scales)), [f"{s:g}" for s in scales])
            axis.set_yticks(range(len(steps)), [f"{t:g}" for t in steps])
            axis.set_title(title, fontsize=9.5)
            axis.grid(visible=False)
        return svg(figure), "Over guidance scale s (across) and sampling steps T (up)."


# --- samples --------------------------------------------------------------------------------------

def draw_samples(rows: list[Row]) -> bytes | None:
    """A PNG of the first row's set that is on disk, a line for each class: real training images on
    the left where they can be found, synthetic ones on the right."""
    from dm_kd import image_set

    run = next((run for row in rows for run in row.runs if (run.source / "samples.png").exists()),
               None)
    if run is None:
        return None
    classes = json.loads((run.source / "manifest.json").read_text())["classes"][:SAMPLE_CLASSES]
    lines = [[image_set.read_image(path) for path in sorted(run.source.glob(
        f"images/*/class_{c}_seed_*_num_[0-{SAMPLES - 1}].png"))] for c in classes]
    space = torch.full_like(lines[0][0], 255)
    lines = [[*real, space, *line] for real, line in zip(
        real_images(run, classes), lines, strict=True)]
    scale = max(1, SAMPLE_SIDE // space.shape[1])
    return image_set.encode_png(image_set.tile(lines, scale))


def real_images(run: Run, classes: list[int]) -> list[list[Tensor]]:
    """Training images of each class of a small task; none where they are not on disk."""
    from dm_kd.data import load_real

    task = get_task(run.task)
    try:
        real = None if task.large else load_real(task, "train", run.fold)
    except UserError:
        real = None
    return [[*real.images[(real.labels == c).nonzero()[:SAMPLES, 0]]] if real else []
            for c in classes]
