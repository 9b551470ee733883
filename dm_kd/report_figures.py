"""The figures of `report`: which of them the runs have something to show in, and their drawing.

    python -m dm_kd.report --runs save/student_model --out save/report
"""

from pathlib import Path

import numpy as np

from dm_kd.report_canvas import (
    COLOURS,
    INK,
    axes,
    canvas,
    chart,
    legend_above,
    nothing_shared,
    points,
    rectangle,
    series,
    shown,
    whiskers,
    write_png,
)
from dm_kd.report_fidelity import draw_fidelity
from dm_kd.report_pictures import draw_samples
from dm_kd.report_runs import of_most_folds
from dm_kd.report_statistics import FEWEST_RANKED, common, compare, matters, rank_correlation

MARKS = "osD^vPX*"
MOST_NAMED = 16  # teachers whose names stand in the figure
MOST_DOTS, MOST_NUMBERED = 40, 25
TEACHER, AMOUNT = ("teacher", "teacher_run"), ("images_per_class", "epochs", "steps_per_epoch")


def draw_all(rows: list[dict], record: dict, out: Path) -> dict[str, list[dict]]:
    """section -> its figures; curve.png and samples.png in `out`. A figure is {"html", "caption"},
    "wide": True if it takes the page's width, "says": what it answers, a sentence a line."""
    with canvas():
        return {"rivals": draw_rivals(record), "fidelity": draw_fidelity(rows, record),
                "teachers": draw_teachers(rows, record), "amount": draw_amount(rows, record),
                "curves": draw_curves(rows, out / "curve.png"),
                "samples": draw_samples(rows, out / "samples.png"),
                "confusion": draw_confusion(rows)}


# --- charts ---------------------------------------------------------------------------------------

def draw_rivals(record: dict) -> list[dict]:
    """Rows as dots with intervals, in the table's order; of the most folds."""
    whole = of_most_folds(record["rows"])
    rows = whole[:MOST_DOTS]
    if len(rows) < 2:
        return []
    figure, axis = axes(0.75 + (0.27 if len(rows) <= 12 else 0.2) * len(rows))
    floor = lowest_drawn(rows)
    inside = [row for row in rows if row["acc1_mean"] >= floor]
    values = [[row["acc1_mean"], *(row["interval"] or []), *(e["acc1"] for e in row["published"])]
              for row in inside]
    lows, highs = [max(min(v), floor) for v in values], [max(v) for v in values]
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
    text += f" The first {MOST_DOTS} rows of {len(whole)}." * (len(whole) > len(rows))
    partial = len(record["rows"]) - len(whole)
    text += f" Not drawn: {partial} row{'s' * (partial > 1)} of fewer folds." * (partial > 0)
    return [chart(figure, "rivals", text)]


def lowest_drawn(rows: list[dict]) -> float:
    """Where a dot plot's axis begins, Acc@1 in %: below the better three fifths of the rows by
    twice their spread, half of an interval of theirs (the median) or one point, whichever is
    most; what lies further down becomes an arrow at the edge."""
    ranked = sorted(rows, key=lambda row: -row["acc1_mean"])
    better = ranked[:int(0.6 * (len(ranked) - 1)) + 1]
    middle = better[-1]["acc1_mean"]
    reach = [row["acc1_mean"] - row["interval"][0] for row in better if row["interval"]]
    return middle - 2 * max(better[0]["acc1_mean"] - middle, np.median(reach or 0.0), 1.0)


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
    figure, axis = axes(4)
    sentences = []
    for i, (name, group) in enumerate(shared):
        group = sorted(group, key=lambda row: row["teacher_acc1"])
        for row in group:
            axis.errorbar([row["teacher_acc1"]], [row["mean"]], yerr=whiskers(
                {"acc1_mean": row["mean"], "interval": row["interval"]}), color=COLOURS[i],
                elinewidth=1)
        axis.plot([r["teacher_acc1"] for r in group], [r["mean"] for r in group], marker=MARKS[i],
                  markersize=5.5, color=COLOURS[i], linewidth=0.8, label=shown(name, 48))
        if len(group) >= FEWEST_RANKED:
            ranks = rank_correlation([r["teacher_acc1"] for r in group], [r["mean"] for r in group])
            trials = len(group[0]["trials"])
            each = f", the {trials} trials that all have" if trials > 1 else ""
            sentences.append(f"{ranks:+.2f} ({name}, {len(group)} teachers{each})")
    if len(shared) == 1:
        name_points(axis, shared[0][1])
    axis.set(xlabel="teacher's Acc@1, %", ylabel="student's Acc@1, %")
    legend_above(figure)
    text = "Students of teachers of rising accuracy; bars: 95 % intervals."
    ranked = (f"Rank correlation of the teacher's and the student's accuracy: "
              f"{'; '.join(sentences)}." if sentences else "")
    says = [*(weaker_teachers(group, record) for _, group in found), ranked]
    return [chart(figure, "teachers", f"{text} {ranked}") | {"says": "\n".join(filter(None, says))},
            *missing]


def weaker_teachers(group: list[dict], record: dict) -> str:
    """How students of teachers weaker than the baseline's compare with the baseline; a teacher is
    weaker where its accuracy is lower in the trials that both have. "" without a baseline here."""
    base = next((row for row in group if row["name"] == record["baseline"]), None)
    pairs = [common([row, base], record["seed"]) for row in group if base and row is not base]
    weaker = [pair[0]["name"] for pair in pairs
              if pair and pair[0]["teacher_acc1"] < pair[1]["teacher_acc1"]]
    within = f"within {record['margin']:g} points"
    told = {"better": [], "worse": [], within: [], "undecided": []}
    for name in weaker:
        found = record["against_baseline"][name]
        what = matters(found, record["margin"])
        if what == "matters":
            told["better" if found["difference"] > 0 else "worse"].append(f"{name} {points(found)}")
        else:
            told[within if what == "does not matter" else "undecided"].append(name)
    return "" if not weaker else (
        f"Students of teachers weaker than {base['name']}, against its own: "
        + "; ".join(f"{what}: {', '.join(names) or 'none'}" for what, names in told.items()) + ".")


def name_points(axis, group: list[dict]) -> None:
    """The rows' names on end below their points, pushed apart where they would overlap; none where
    there are too many."""
    if len(group) > MOST_NAMED:
        return
    group = sorted(group, key=lambda row: row["teacher_acc1"])
    low, high = axis.get_ylim()
    axis.set_ylim(low - 0.6 * (high - low), high)
    left, right = axis.get_xlim()
    gap = (right - left) / 22
    places = []
    for row in group:
        places.append(max(row["teacher_acc1"], places[-1] + gap if places else left))
    for i in reversed(range(len(places))):
        places[i] = min(places[i], places[i + 1] - gap if i + 1 < len(places) else right)
    for row, place in zip(group, places, strict=True):
        end = row["interval"][0] if row["interval"] else row["mean"]
        axis.annotate(shown(row["name"], 18), (row["teacher_acc1"], end),
                      (place, low - 0.02 * (high - low)), rotation=90, fontsize=8, ha="center",
                      va="top", arrowprops={"arrowstyle": "-", "linewidth": 0.5, "color": INK,
                                            "alpha": 0.5, "shrinkA": 0, "shrinkB": 0})


def teacher_series(rows: list[dict]) -> list[tuple[str, list[dict]]]:
    """Series over teachers; a temperature of each teacher's own belongs to the teacher."""
    tuned = [(name, group) for name, group in series(rows, (*TEACHER, "temperature"))
             if len({tuple(str(r["settings"].get(k)) for k in TEACHER) for r in group})
             == len(group)]
    taken = {id(row) for _, group in tuned for row in group}
    return tuned + series([row for row in rows if id(row) not in taken], TEACHER)


def draw_amount(rows: list[dict], record: dict) -> list[dict]:
    """Accuracy over the images per class on a log axis, a series per kind of images, from the
    trials that all rows of the series have; nothing where no series has three amounts. What is said
    of two rows rests on all trials that these two have."""
    found = [(name, sorted(group, key=lambda row: row["settings"]["images_per_class"]))
             for name, group in series(rows, AMOUNT)[:len(COLOURS)]]
    if all(len({r["settings"]["images_per_class"] for r in group}) < 3 for _, group in found):
        return []
    shared = [(name, common(group, record["seed"])) for name, group in found]
    missing = [nothing_shared(name, len(group)) for (name, group), (_, kept) in zip(
        found, shared, strict=True) if not kept]
    shared = [(name, group) for name, group in shared if group]
    if not shared:
        return missing
    figure, axis = axes(3.4)
    for i, (name, group) in enumerate(shared):
        x = [row["settings"]["images_per_class"] for row in group]
        bounds = np.array([row["interval"] or [row["mean"]] * 2 for row in group])
        axis.plot(x, [row["mean"] for row in group], marker=MARKS[i], markersize=5, linewidth=1.5,
                  color=COLOURS[i], label=shown(name, 48))
        axis.fill_between(x, bounds[:, 0], bounds[:, 1], color=COLOURS[i], alpha=0.15, linewidth=0)
    ticks = sorted({r["settings"]["images_per_class"] for _, group in shared for r in group})
    ticks = [t for i, t in enumerate(ticks) if i + 1 == len(ticks) or ticks[i + 1] > 1.2 * t]
    axis.set_xscale("log")
    axis.set_xticks(ticks, [f"{t:g}" for t in ticks], rotation=45 if len(ticks) > 6 else 0)
    axis.minorticks_off()
    axis.set(xlabel="images per class", ylabel="student's Acc@1, %")
    legend_above(figure)
    text = "Accuracy over the images per class, log axis; bands: 95 % intervals."
    says = [*saturation(found, record), *worth(found, record)]
    return [chart(figure, "amount", " ".join([text, *says])) | {"says": "\n".join(says)}, *missing]


def saturation(found: list[tuple[str, list[dict]]], record: dict) -> list[str]:
    """For each series of made images the smallest amount that the largest one beats by less than
    the margin: the interval of the difference lies below it. Larger ones that fail are named."""
    sentences = []
    for name, group in found:
        if group[0]["settings"]["images"] == "real":
            continue
        gains = [compare(group[-1]["trials"], row["trials"], record["seed"]) for row in group[:-1]]
        small = [bool(gain["runs"]) and gain["seed_error"] is not None
                 and gain["interval"][1] < record["margin"] for gain in gains]
        if not any(small):
            sentences.append(f"No saturation is shown ({name}): none is within "
                             f"{record['margin']:g} points of {per_class(group[-1])} a class.")
            continue
        first = small.index(True)
        fail = [per_class(group[i]) for i in range(first, len(small)) if not small[i]]
        sentences.append(
            f"They saturate ({name}) at {per_class(group[first])} a class: {per_class(group[-1])} "
            f"gain {points(gains[first])}, less than {record['margin']:g}."
            + f" That is not shown at {', '.join(fail)}." * bool(fail))
    return sentences


def worth(found: list[tuple[str, list[dict]]], record: dict) -> list[str]:
    """How many made images do as well as the real rows' numbers: where the line through the made
    rows' means over the logarithm first reaches the real mean, and which numbers can be told from
    it. And whether one real image is worth more than one made, at equal numbers (within a quarter),
    by the interval of the difference."""
    real = [group for _, group in found if group[0]["settings"]["images"] == "real"]
    sentences = []
    for name, made in found if len(real) == 1 else ():
        both = common(real[0] + made, record["seed"])
        if made[0]["settings"]["images"] == "real" or not both:
            continue
        x = [np.log(row["settings"]["images_per_class"]) for row in made]
        y = [row["mean"] for row in both[len(real[0]):]]
        sentences.append("As good as real images a class: " + "; ".join(
            f"{per_class(row)} are worth {reached(x, y, same['mean'])}"
            f"{told_apart(row, made, record)}"
            for row, same in zip(real[0], both, strict=False)) + f" ({name}).")
        for row in real[0]:
            for other in made:
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


def told_apart(real: dict, made: list[dict], record: dict) -> str:
    """" (not M or fewer; not N or more)": the made rows' numbers, ascending, below and above those
    whose interval of the difference to a real row holds 0 (a test inverted on these numbers)."""
    found = [compare(real["trials"], row["trials"], record["seed"]) for row in made]
    signs = [0 if not f["runs"] or f["seed_error"] is None else
             int(f["interval"][0] > 0) - int(f["interval"][1] < 0) for f in found]
    low = next((i for i, sign in enumerate(signs) if sign <= 0), len(signs))
    high = next((i for i, sign in enumerate(reversed(signs)) if sign >= 0), len(signs))
    says = [f"not {per_class(made[low - 1])} or fewer"] * (low > 0) + [
        f"not {per_class(made[-high])} or more"] * (high > 0)
    return f" ({', '.join(says) or 'no number of these can be told from it'})"


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
