"""Figures of the report as SVG text. Rows have the names that they have in the tables."""

import contextlib
import io
import re

from dm_kd.analysis import stats
from dm_kd.analysis.collect import Row

COLOURS = ("#2f6fd0", "#d9742c", "#2b9c73", "#bf4f86", "#8870cf", "#96882b", "#3d9db3", "#a3644a")
GREY = "#5d636b"
WIDTH = 5.0  # inches; 360 points, as many as a phone has pixels
STYLE = {"svg.fonttype": "none", "svg.hashsalt": "dm_kd", "text.parse_math": False,
         "font.family": "sans-serif", "font.size": 10, "legend.frameon": False,
         "legend.fontsize": 9, "axes.grid": True, "axes.spines.top": False,
         "axes.spines.right": False, "axes.axisbelow": True, "grid.alpha": 0.25,
         "figure.constrained_layout.use": True}
TICKS = (-80, -40, -20, -10, -5, -2, -1, 0, 1, 2, 5, 10, 20, 40)  # of differences in points


def draw_all(rows: list[Row], entries: list[dict], baseline: str | None
             ) -> dict[str, tuple[str, str]]:
    """{name: (SVG, caption)} of the figures that these rows have something to show in."""
    axes = {"fidelity": (lambda run: run.generator_settings.get("guidance_scale"),
                         "guidance scale"),
            "amount": (lambda run: run.images_per_class, "images per class"),
            "epochs": (lambda run: run.generator_settings.get("epochs"), "generator's epochs"),
            "teachers": (lambda run: run.result.get("teacher_acc1"), "teacher's top-1, %")}
    figures = {"gaps": draw_gaps(entries, baseline),
               **{name: draw_lines(rows, *axis, baseline) for name, axis in axes.items()}}
    return {name: figure for name, figure in figures.items() if figure}


@contextlib.contextmanager
def canvas(height: float):
    """A figure and its axes, in the report's style and without a screen."""
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context(STYLE):
        figure = Figure((WIDTH, height))
        yield figure, figure.subplots()


def svg(figure) -> str:
    """The figure as SVG that may stand alone or in a page beside others."""
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None})
    text = buffer.getvalue()
    text = re.sub(r"<metadata>.*?</metadata>", "", text[text.index("<svg"):], flags=re.DOTALL)
    return re.sub(r' id="[\w.]+_\d+"', "", text)


def shown(name: str) -> str:
    """A name as a label; matplotlib hides those that begin with an underscore."""
    name = name.lstrip("_")
    return name if len(name) <= 28 else name[:27] + "…"


def draw_gaps(entries: list[dict], baseline: str | None) -> tuple[str, str] | None:
    """A dot for each row: its difference to the baseline, and the interval. Beyond 5 points the
    axis is logarithmic, so that rows far below do not squeeze the others."""
    compared = [entry for entry in entries if entry["difference"] is not None]
    if not compared:
        return None
    with canvas(0.7 + 0.28 * len(compared)) as (figure, axis):
        for y, entry in enumerate(compared):
            colour = GREY if entry["method"] in ("real", "alone") else COLOURS[0]
            if entry["difference_low"] is not None:
                axis.plot([entry["difference_low"], entry["difference_high"]], [y, y],
                          color=colour, linewidth=1.8)
            axis.plot([entry["difference"]], [y], marker="o", color=colour, markersize=5.5)
            axis.annotate(f"{entry['difference']:+.2f}", (1.03, y), fontsize=9, va="center",
                          xycoords=("axes fraction", "data"))
        axis.axvline(0, color="black", linewidth=0.9, zorder=1)
        axis.set_xscale("symlog", linthresh=5)
        limits = axis.get_xlim()  # which the ticks would widen
        axis.set_xticks(TICKS, map(str, TICKS))
        axis.minorticks_off()
        axis.set(xlim=limits, ylim=(len(compared) - 0.4, -0.6),
                 xlabel=f"top-1 minus {shown(baseline)}, points")
        axis.set_yticks(range(len(compared)), [shown(entry["row"]) for entry in compared])
        axis.grid(axis="y", visible=False)
        return svg(figure), (f"Difference to {baseline}; bars: 95 % intervals. "
                             "Grey: trained on real images. Logarithmic beyond 5 points.")


def draw_lines(rows: list[Row], value, label: str, baseline: str | None) -> tuple[str, str] | None:
    """Accuracy over value(run), a line for each kind of images, student and setting; lines of fewer
    than three different values are left out. A dashed line is the baseline's accuracy."""
    groups: dict[tuple, list[tuple[float, Row]]] = {}
    for row in rows:
        if (x := row.mean(value)) is not None:
            run, made = row.first, row.first.generator_settings
            settings = {"guidance scale": made.get("guidance_scale"), "T": made.get("steps"),
                        "temperature": run.config.get("temperature"),
                        "images per class": run.images_per_class}
            names = (f"{k} {v:g}" if v and k != label else "" for k, v in settings.items())
            groups.setdefault((run.method, run.student, *names), []).append((x, row))
    groups = {key: sorted(line, key=lambda point: point[0]) for key, line in groups.items()
              if len({round(x, 1) for x, _ in line}) > 2}
    if not groups:
        return None
    with canvas(3.2) as (figure, axis):
        for (key, line), colour in zip(groups.items(), COLOURS * 4, strict=False):
            telling = [part for part, *others in zip(key, *groups, strict=True)
                       if part and len({*others}) > 1]
            axis.errorbar(
                [x for x, _ in line], [row.acc1 for _, row in line],
                yerr=[stats.std([run.acc1 for run in row.runs]) or 0 for _, row in line],
                color=colour, marker="o", markersize=4.5, linewidth=1.3,
                label=", ".join(telling) or key[0])
        for row in (row for row in rows if row.name == baseline):
            axis.axhline(row.acc1, color=GREY, linestyle="--", linewidth=1, label=shown(baseline))
        if label == "images per class":
            ticks = sorted({x for line in groups.values() for x, _ in line})
            axis.set_xscale("log")
            axis.set_xticks(ticks, [f"{x:g}" for x in ticks], rotation=45)
            axis.minorticks_off()
        axis.set(xlabel=label, ylabel="student's top-1, %")
        figure.legend(loc="outside upper left", ncols=2)
        return svg(figure), f"Accuracy over {label}; bars: ± standard deviation of the runs."
