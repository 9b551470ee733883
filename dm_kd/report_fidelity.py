"""The figures of `report` over guidance and steps: accuracy, and what inspect_set saw.

The decision rule that they answer by is that of scripts/sweeps/digits_fidelity.sh.
"""

import math
import os

import numpy as np

from dm_kd import image_set
from dm_kd.report_canvas import (
    COLOURS,
    MOST_PANELS,
    axes,
    chart,
    nothing_shared,
    picture,
    points,
    rectangle,
    series,
)
from dm_kd.report_pictures import open_made, read, thumbnails
from dm_kd.report_runs import DAMAGE, number
from dm_kd.report_statistics import (
    FEWEST_RANKED,
    common,
    matters,
    partners,
    rank_correlation,
)

FIDELITY = ("guidance_scale", "steps")
YARDSTICK = "frechet_train_to_val"  # of real training images
SET_TITLES = {"frechet": "Fréchet distance", "precision": "precision", "recall": "recall",
              "density": "density", "coverage": "coverage",
              "teacher_entropy": "teacher's entropy, nats",
              "teacher_agreement": "teacher agrees, %"}


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
        same = cells[best]["mean"] == cells[worst]["mean"]
        says = (f"All {len(cells)} settings of s and T are equal ({cells[best]['mean']:.2f} %)."
                if same else
                f"Of {len(cells)} settings of s and T the best is s={best[0]:g}, T={best[1]} "
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
    values = {k: [number(s.get(k)) for s in found] for k in (*SET_TITLES, YARDSTICK)}
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
    """Cells in one hue, the stronger the higher, with their numbers; empty where there is none.
    A few cells far below the rest are as pale as can be, so that the rest are told apart."""
    from matplotlib.colors import to_rgb

    high, middle = max(values.values()), float(np.median(list(values.values())))
    low = min(values.values())
    if high > middle:
        low = max(low, middle - 3 * (high - middle))
    for (s, t), value in values.items():
        x, y = grid[0].index(s), grid[1].index(t)
        alpha = 0.06 + 0.6 * max(value - low, 0) / (high - low) if high > low else 0.3
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


def draw_set_figures(number: int, grid: list, sets: dict[tuple, dict],
                     accuracies: dict[tuple, float]) -> list[dict]:
    """A small heat map for each figure that inspect_set found in every cell, and how its ranks go
    with those of the accuracies, where there are enough of them."""
    known = [k for k in SET_TITLES if all(s.get(k) is not None for s in sets.values())]
    if not known:
        return []
    lines = (len(known) + 1) // 2
    figure, places = axes(lines * (0.7 + 0.27 * len(grid[1])), lines, 2)
    for axis, key in zip(places.flat, known, strict=False):
        values = {cell: s[key] for cell, s in sets.items()}
        heat(axis, grid, values, COLOURS[2], 2 if max(values.values()) < 20 else 1, small=True)
        real = [s[YARDSTICK] for s in sets.values() if s.get(YARDSTICK) is not None]
        axis.set_title(SET_TITLES[key] + (f" (real images: {np.mean(real):.2f})"
                                          if key == "frechet" and real else ""), fontsize=9)
        axis.tick_params(labelsize=7.5)
    for axis in places.flat[len(known):]:
        axis.set_axis_off()
    caption = "The same sets as inspect_set sees them, over s (across) and T (up)."
    if len(sets) < FEWEST_RANKED:
        return [chart(figure, f"sets{number}", caption)]
    ranks = [(SET_TITLES[k].split(",")[0], rank_correlation(
        [sets[c][k] for c in accuracies], list(accuracies.values()))) for k in known]
    says = "Rank correlation of the student's accuracy over these settings with " + ", ".join(
        f"{name} {value:+.2f}" for name, value in ranks) + "."
    return [chart(figure, f"sets{number}", f"{caption} {says}") | {"says": says}]


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
