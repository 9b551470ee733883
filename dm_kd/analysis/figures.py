"""Figures of the report as SVG text, and the sample images as a PNG.

Names of rows are those of the tables. What lies outside the axes is marked by an arrow.
"""

import contextlib
import io
import json
import re
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from dm_kd.analysis import collect
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
MOST_ROWS = 40  # of the dot plot
REACH = 3  # times the better half's spread below the median is drawn, the rest is an arrow
SAMPLES, SAMPLE_CLASSES, SAMPLE_SIDE = 8, 10, 32  # small images are enlarged to so many pixels
MAPS = {"teacher_agreement": "teacher agrees, %", "frechet": "Fréchet distance",
        "precision": "precision", "recall": "recall"}  # of inspect_set, beside the accuracy


def draw_all(rows: list[Row], made: list[dict], baseline: str | None, sets: dict[str, dict]
             ) -> dict[str, tuple[str, str]]:
    """{name: (SVG, caption)} of the figures that these rows have something to show in."""
    figures = {"gaps": draw_gaps(made, baseline), "curves": draw_curves(rows),
               "fidelity": draw_fidelity(rows, sets),
               "amount": draw_lines(rows, "images_per_class", "images per class"),
               "teachers": draw_lines(rows, "teacher_acc1", "teacher's top-1, %")}
    return {name: figure for name, figure in figures.items() if figure}


# --- canvas ---------------------------------------------------------------------------------------

@contextlib.contextmanager
def canvas(height: float, columns: int = 1):
    """A figure and its axes, in the report's style and without a screen."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    with matplotlib.rc_context(STYLE):
        figure, axes = pyplot.subplots(1, columns, figsize=(WIDTH, height), squeeze=False)
        yield figure, axes[0]
        pyplot.close(figure)


def svg(figure, name: str) -> str:
    """The figure as SVG that may stand alone or in a page beside others."""
    import matplotlib

    buffer = io.StringIO()
    with matplotlib.rc_context({"svg.hashsalt": name}):
        figure.savefig(buffer, format="svg", metadata={"Date": None})
    text = buffer.getvalue()
    text = re.sub(r"<metadata>.*?</metadata>", "", text[text.index("<svg"):], flags=re.DOTALL)
    return re.sub(r' id="[\w.]+_\d+"', "", text)


def shown(name: str, most: int = 30) -> str:
    """A name as a label; matplotlib hides those that begin with an underscore."""
    name = name.lstrip("_")
    return name if len(name) <= most else name[:most - 1] + "…"


# --- charts ---------------------------------------------------------------------------------------

def draw_gaps(made: list[dict], baseline: str | None) -> tuple[str, str] | None:
    """A dot for each row: its difference to the baseline with the interval; without a baseline its
    accuracy with the standard deviation."""
    entries = [e for e in made if baseline is None or e["difference"] is not None][:MOST_ROWS]
    if len(entries) < 1 + (baseline is None):
        return None
    if baseline is None:
        values = [(e["acc1_mean"], *(e["acc1_mean"] + sign * (e["acc1_std"] or 0)
                                     for sign in (-1, 1))) for e in entries]
    else:
        values = [(e["difference"], e["difference_low"], e["difference_high"]) for e in entries]
    low, high = limits(values if baseline is None else [*values, (0.0, None, None)])
    with canvas(0.7 + 0.28 * len(entries)) as (figure, (axis,)):
        for y, (entry, (middle, left, right)) in enumerate(zip(entries, values, strict=True)):
            colour = GREY if entry["method"] in ("real", "alone") else COLOURS[0]
            left, right = (middle if v is None else v for v in (left, right))
            axis.plot(np.clip([left, right], low, high), [y, y], color=colour, linewidth=1.8)
            if left < low:
                axis.plot([low], [y], marker="<", color=colour, markersize=6, clip_on=False)
            if right > high:
                axis.plot([high], [y], marker=">", color=colour, markersize=6, clip_on=False)
            if middle >= low:
                axis.plot([middle], [y], marker="o", color=colour, markersize=5.5)
            sign = "" if baseline is None else "+"
            axis.annotate(f"{middle:{sign}.1f}", (1.03, y), xycoords=("axes fraction", "data"),
                          va="center", fontsize=9)
        if baseline is not None:
            axis.axvline(0, color="black", linewidth=0.9, zorder=1)
        axis.set(xlim=(low, high), ylim=(len(entries) - 0.4, -0.6), xlabel=(
            "top-1, %" if baseline is None else f"top-1 minus {shown(baseline)}, points"))
        axis.set_yticks(range(len(entries)), [shown(e["row"], 26) for e in entries])
        axis.tick_params(axis="y", length=0)
        axis.grid(axis="y", visible=False)
        text = ("Top-1 accuracy; bars: ± standard deviation of the runs." if baseline is None else
                f"Difference to {baseline}; bars: 95 % intervals.")
        text += " Grey: trained on real images."
        if any(end is not None and not low <= end <= high for value in values for end in value):
            text += " Arrows: beyond the axis."
        text += f" The first {MOST_ROWS} of {len(made)} rows." * (len(made) > MOST_ROWS)
        return svg(figure, "gaps"), text


def limits(values: list[tuple]) -> tuple[float, float]:
    """The range of the axis for (middle, low, high): all points but those far below the better
    half, and their intervals as long as these do not treble it."""
    middles = [v[0] for v in values]
    median, best = float(np.median(middles)), max(middles)
    floor = median - REACH * max(best - median, 1.0)
    inside = [v for v in values if v[0] >= floor]
    lowest = min(v[0] for v in inside)
    room = max(best - lowest, 1.0)
    low = max(min([lowest, *(v[1] for v in inside if v[1] is not None)]), lowest - room)
    high = min(max([best, *(v[2] for v in inside if v[2] is not None)]), best + room)
    margin = 0.05 * (high - low)
    return low - margin, high + margin


def draw_curves(rows: list[Row]) -> tuple[str, str] | None:
    """Validation accuracy over the training; a line is the mean of a row's runs, the band reaches
    from the lowest to the highest run."""
    whole = [row for row in rows if all(len(run.curve) > 1 for run in row.runs)][:len(COLOURS)]
    if not whole:
        return None
    with canvas(3.4) as (figure, (axis,)):
        bottom = []
        for row, colour in zip(whole, COLOURS, strict=False):
            length = min(len(run.curve) for run in row.runs)
            curves = np.array([run.curve[:length] for run in row.runs])
            x = np.arange(1, length + 1) / length * 100
            axis.plot(x, curves.mean(0), color=colour, linewidth=1.6, label=shown(row.name))
            axis.fill_between(x, curves.min(0), curves.max(0), color=colour, alpha=0.15,
                              linewidth=0)
            bottom.append(curves.mean(0)[length // 4:].min())
        axis.set_ylim(bottom=max(min(bottom) - 2, 0))
        axis.set(xlabel="share of the training, %", ylabel="validation top-1, %")
        figure.legend(loc="outside upper left", ncols=2)
        text = "Validation accuracy after each epoch; bands: from the lowest to the highest run."
        text += f" The first {len(whole)} rows." * (len(whole) < len(rows))
        return svg(figure, "curves"), text


def draw_lines(rows: list[Row], x: str, label: str) -> tuple[str, str] | None:
    """Accuracy over the images per class (log axis) or over the teacher's accuracy: a line for each
    group of rows that differ in nothing else; none with fewer than three values."""
    along = ("images_per_class", "epochs", "steps_per_epoch")
    if x == "teacher_acc1":
        along = ("teacher", "temperature")
    groups = [[(row.first.images_per_class if x == "images_per_class" else row.teacher_acc1, row)
               for row in group] for group in collect.series(rows, *along)]
    groups = [sorted(g, key=lambda point: point[0]) for g in groups if len(
        {value for value, _ in g} - {None}) > 2 and None not in {value for value, _ in g}]
    if not groups:
        return None
    with canvas(3.2) as (figure, (axis,)):
        for group, colour in zip(groups, COLOURS, strict=False):
            run = group[0][1].first
            name = f"{run.method} images" if x == "images_per_class" else run.student
            axis.errorbar([value for value, _ in group], [row.acc1 for _, row in group], yerr=[
                np.std([r.acc1 for r in row.runs], ddof=min(1, len(row.runs) - 1))
                for _, row in group], color=colour, marker="o", markersize=4.5, linewidth=1.3,
                label=shown(name))
        if x == "images_per_class":
            ticks = sorted({value for group in groups for value, _ in group})
            axis.set_xscale("log")
            axis.set_xticks(ticks, [f"{v:g}" for v in ticks], rotation=45)
            axis.minorticks_off()
        axis.set(xlabel=label, ylabel="student's top-1, %")
        figure.legend(loc="outside upper left", ncols=2)
        return svg(figure, x), f"Accuracy over {label}; bars: ± standard deviation of the runs."


def draw_fidelity(rows: list[Row], sets: dict[str, dict]) -> tuple[str, str] | None:
    """Accuracy over guidance and sampling steps as a map, and what inspect_set measured in the same
    sets; of the largest group of rows that differ in nothing else."""
    groups = collect.series(rows, "guidance_scale", "steps")
    if not groups or len(groups[0]) < 4:
        return None
    cells = {tuple(row.first.generator_settings[k] for k in ("guidance_scale", "steps")): row
             for row in groups[0]}
    maps = {"student's top-1, %": {cell: row.acc1 for cell, row in cells.items()}}
    for key, title in MAPS.items():
        values = {cell: collect.inspected(row, sets, key) for cell, row in cells.items()}
        if None not in values.values():
            maps[title] = values
    scales, steps = (sorted({cell[i] for cell in cells}) for i in (0, 1))
    lines = -(-len(maps) // 2)
    with canvas(0.1) as (figure, (first,)):
        first.remove()
        figure.set_size_inches(WIDTH, lines * (0.9 + 0.32 * len(steps)))
        places = figure.subplots(lines, min(2, len(maps)), squeeze=False).flat
        for axis, (title, values) in zip(places, maps.items(), strict=False):
            grid = np.array([[values.get((s, t), np.nan) for s in scales] for t in steps])
            axis.imshow(grid, cmap="Blues", origin="lower", aspect="auto", alpha=0.6)
            for (y, x), value in np.ndenumerate(grid):
                if np.isfinite(value):
                    axis.text(x, y, f"{value:.{1 if value >= 20 else 2}f}", ha="center",
                              va="center", fontsize=8)
            axis.set_xticks(range(len(scales)), [f"{s:g}" for s in scales])
            axis.set_yticks(range(len(steps)), [f"{t:g}" for t in steps])
            axis.set_title(title, fontsize=9.5)
            axis.grid(visible=False)
            axis.tick_params(length=0, labelsize=8)
        for axis in list(figure.axes)[len(maps):]:
            axis.set_axis_off()
        return svg(figure, "fidelity"), "Over guidance scale s (across) and sampling steps T (up)."


# --- samples --------------------------------------------------------------------------------------

def draw_samples(rows: list[Row]) -> tuple[bytes, str] | None:
    """A PNG with a line of images for each class: real training images on the left where they can
    be found, synthetic ones on the right, of the first row whose set is still on disk."""
    from dm_kd import image_set

    for run in (run for row in rows for run in row.runs):
        manifest = Path(str(run.source)) / "manifest.json"
        classes = json.loads(manifest.read_text())["classes"] if manifest.exists() else []
        synthetic = [[image_set.read_image(path) for path in sorted(manifest.parent.glob(
            f"images/*/class_{c}_seed_*_num_[0-{SAMPLES - 1}].png"))]
            for c in classes[:SAMPLE_CLASSES]]
        if not synthetic or not all(synthetic):
            continue
        lines, text = synthetic, f"Images of {run.source}, a line for each class."
        if real := real_images(run, classes[:SAMPLE_CLASSES]):
            space = torch.full_like(synthetic[0][0], 255)
            lines = [[*left, space, *right] for left, right in zip(real, synthetic, strict=True)]
            text = f"Real training images (left) and images of {run.source} (right)."
        scale = max(1, SAMPLE_SIDE // lines[0][0].shape[1])
        return image_set.encode_png(image_set.tile(lines, scale)), text
    return None


def real_images(run: Run, classes: list[int]) -> list[list[Tensor]]:
    """Training images of each class of a small task; [] where they are not on disk."""
    from dm_kd.data import load_real

    task = get_task(run.task)
    try:
        real = None if task.large else load_real(task, "train", run.fold)
    except UserError:
        real = None
    return [] if real is None else [[*real.images[(real.labels == c).nonzero()[:SAMPLES, 0]]]
                                    for c in classes]
