"""Turn folders of runs into a table, pictures and one page: results.json, curve.png, samples.png,
report.html.

    python -m dm_kd.report --runs save/student_model --out save/report

Runs whose names differ only in _seedN and foldN are trials of one row. Where the trials cover all
folds, a seed's accuracy is that of all its folds' predictions together. With --baseline ROW every
row is compared with it, image by image.
"""

import argparse
import base64
import html
import json
import re
import sys
import time
from pathlib import Path

import numpy as np

from dm_kd import files, image_files, image_set, run
from dm_kd.errors import UserError, nearest
from dm_kd.tasks import TASKS, load_real

BOOTSTRAP_DRAWS = 10_000
MIN_GROUPS = 8  # redrawing fewer says little of the spread between them
SAMPLE_COLUMNS = 8


def parse(argv: list[str]) -> argparse.Namespace:
    parser = run.Parser("report", __doc__)
    parser.add_argument("--runs", type=Path, required=True, metavar="FOLDER",
                        help="every run below it is read")
    parser.add_argument("--out", type=Path, required=True, metavar="FOLDER",
                        help="where the table, the pictures and the page go")
    parser.add_argument("--rows", default="", metavar="A,B,C",
                        help="order of the rows, by run name (default: by accuracy)")
    parser.add_argument("--baseline", default=None, metavar="ROW",
                        help="row that the others are compared with, image by image")
    parser.add_argument("--title", default="Distillation without real images", metavar="TEXT",
                        help="of the page (default: %(default)s)")
    run.add_common_arguments(parser)
    return run.parse(parser, argv)


def body(argv: list[str]) -> None:
    args = parse(argv)
    if args.dry_run:
        state = "" if args.runs.exists() else " (not made yet)"
        print(f"would report on the runs in {args.runs}{state} in {args.out}")
        return
    files.must_exist(args.runs, "--runs", "folder of runs")
    trials, problems = find_trials(args.runs)
    if not trials:
        raise UserError("no finished run of a classifier there", folder=args.runs,
                        hint="a folder with train_teacher's or distill's runs in it")
    rows = make_rows(trials, [name for name in args.rows.split(",") if name])
    comparisons = {}
    if args.baseline is not None:
        names = [row["name"] for row in rows]
        if args.baseline not in names:
            raise UserError(f"no row '{args.baseline}'",
                            hint=f"--baseline: {nearest(args.baseline, names)}")
        comparisons = compare_all(rows, args.baseline, args.seed)
    pictures = {"curve.png": draw_curves(rows, args.out / "curve.png"),
                "samples.png": draw_samples(trials, args.out / "samples.png")}
    inspections = find_inspections(args.runs, problems)
    record = make_record(rows, comparisons, inspections, problems)
    files.write_json(args.out / "results.json", record)
    files.durable_write(args.out / "report.html",
                        make_page(args, rows, record, pictures, trials, problems))
    print(text_table(record))
    for problem in problems:
        print(f"left out: {problem}", file=sys.stderr)
    print(f"\npage: {args.out / 'report.html'}")


# --- reading --------------------------------------------------------------------------------------

def find_trials(folder: Path) -> tuple[list[dict], list[str]]:
    """Finished classifier runs below a folder, and what could not be read, each with its reason."""
    trials, problems = [], []
    for config_path in sorted(folder.rglob("config.yaml")):
        place = config_path.parent
        try:
            trial = read_trial(place)
            if trial is None:
                problems.append(f"{place}: not finished")
            elif trial["result"].get("acc1") is not None:
                trials.append(trial)
        except (UserError, KeyError, TypeError, ValueError) as error:
            problems.append(f"{place}: damaged ({str(error).splitlines()[0][:80]})")
    return trials, problems


def find_inspections(folder: Path, problems: list[str]) -> list[dict]:
    """What inspect_set wrote below a folder; unreadable ones are added to `problems`."""
    found = []
    for path in sorted(folder.rglob("inspect*.json")):
        try:
            record = files.read_json(path)
            picture = path.with_suffix(".png")
            found.append({**record, "sentence": str(record["sentence"]),
                          "picture": str(picture) if picture.exists() else None})
        except (UserError, KeyError):
            problems.append(f"{path}: damaged")
    return found


def read_trial(place: Path) -> dict | None:
    """A run's config, result, card, metrics and predictions; None while it is not finished."""
    if not (place / "result.json").exists():
        return None
    config, result = run.read_config(place / "config.yaml"), files.read_json(place / "result.json")
    kind = "distill" if "teacher" in config else "train_teacher"
    card_path = place / ("student.json" if kind == "distill" else "model.json")
    if not card_path.exists():  # a generator
        return {"result": {}}
    predictions = place / "predictions.json"
    return {"place": place, "name": row_name(place), "kind": kind, "config": config,
            "result": result, "card": files.read_json(card_path),
            "metrics": run.read_metrics(place), "seed": config["seed"],
            "fold": config.get("fold", 0), "task": config["task"],
            "predictions": files.read_json(predictions) if predictions.exists() else None}


def row_name(place: Path) -> str:
    """The run's folder name without its _seedN and _foldN."""
    return re.sub(r"_?(seed|fold)\d+", "", place.name) or place.name


def describe(trial: dict) -> str:
    """What the row is, in words."""
    config, card = trial["config"], trial["card"]
    if trial["kind"] == "train_teacher":
        return f"{config['model']}, cross-entropy on real images"
    source = config["source"]
    generator = card.get("generator") or {}
    if source == "real":
        images = "real images"
    elif generator.get("name") == "noise":
        images = "noise"
    elif "guidance_scale" in generator:
        images = (f"synthetic images ({generator['name']}, s={generator['guidance_scale']:g}, "
                  f"T={generator['steps']})")
    else:
        images = f"images of {generator.get('name', source)}"
    return f"{config['student']}, KD from {card['teacher']['name']} on {images}"


# --- rows and comparisons -------------------------------------------------------------------------

def make_rows(trials: list[dict], order: list[str]) -> list[dict]:
    """Trials of one name are one row: a seed's accuracy is over all its folds' images."""
    rows = []
    for name in dict.fromkeys(trial["name"] for trial in trials):
        mine = [trial for trial in trials if trial["name"] == name]
        accuracies = {seed: pooled_acc1([t for t in mine if t["seed"] == seed])
                      for seed in sorted({t["seed"] for t in mine})}
        values = np.array(list(accuracies.values()))
        rows.append({"name": name, "trials": mine, "what": describe(mine[0]),
                     "acc1_by_seed": accuracies, "mean": float(values.mean()),
                     "std": float(values.std(ddof=1)) if len(values) > 1 else None,
                     "folds": len({t["fold"] for t in mine})})
    rows.sort(key=lambda row: -row["mean"])
    if order:
        rows.sort(key=lambda row: order.index(row["name"]) if row["name"] in order else len(order))
    return rows


def pooled_acc1(trials: list[dict]) -> float:
    """Percent right over all images that the trials judged, each image once."""
    right = sum(t["result"]["acc1"] * t["result"]["val_images"] for t in trials)
    return right / sum(t["result"]["val_images"] for t in trials)


def correctness(trials: list[dict]) -> dict[int, dict[int, tuple[bool, int]]]:
    """seed -> image id -> (right, group)."""
    found = {}
    for trial in trials:
        p = trial["predictions"]
        for image, group, label, guess in zip(p["ids"], p["groups"], p["labels"],
                                              p["predictions"], strict=True):
            found.setdefault(trial["seed"], {})[image] = (label == guess, group)
    return found


def compare_all(rows: list[dict], baseline: str, seed: int) -> dict[str, dict]:
    base = next(row for row in rows if row["name"] == baseline)
    return {row["name"]: compare(row["trials"], base["trials"], seed) for row in rows
            if row is not base and all(t["predictions"] for t in row["trials"] + base["trials"])}


def compare(ours: list[dict], base: list[dict], seed: int) -> dict:
    """Accuracy difference in points over the seeds and images that both judged, paired.

    test_error: standard error from the finite test set, from redrawing its groups (writers; single
    images where groups are unknown or too few) with the seeds kept. seed_error: the differences'
    standard deviation over seeds over sqrt(seeds). interval and lower_bound: 95 % two-sided and
    one-sided, from redrawing both levels (percentile bootstrap, 10,000 draws).
    """
    a, b = correctness(ours), correctness(base)
    seeds = sorted(a.keys() & b.keys())
    if not seeds:
        return {"seeds": 0}
    images = sorted(set.intersection(*(set(a[s]) & set(b[s]) for s in seeds)))
    if not images:
        return {"seeds": 0}
    groups = [a[seeds[0]][i][1] for i in images]
    if -1 in groups or len(set(groups)) < MIN_GROUPS:
        groups = list(range(len(images)))
    names, index = np.unique(groups, return_inverse=True)
    sums = np.zeros((len(seeds), len(names)))
    for row, s in enumerate(seeds):
        np.add.at(sums[row], index, [100.0 * (a[s][i][0] - b[s][i][0]) for i in images])
    counts = np.bincount(index).astype(float)
    random = np.random.default_rng(seed)
    drawn = random.integers(len(names), size=(BOOTSTRAP_DRAWS, len(names)))
    drawn_seeds = random.integers(len(seeds), size=(BOOTSTRAP_DRAWS, len(seeds)))
    sizes = counts[drawn].sum(1)
    by_seed = sums.sum(1) / counts.sum()
    tests = sums.mean(0)[drawn].sum(1) / sizes
    both = np.array([sums[s][:, d].sum(1).mean() for s, d in zip(drawn_seeds, drawn, strict=True)])
    both = both / sizes
    return {"difference": round(float(by_seed.mean()), 3), "seeds": len(seeds),
            "images": len(images), "groups": len(names),
            "test_error": round(float(tests.std()), 3),
            "seed_error": (round(float(by_seed.std(ddof=1) / len(seeds) ** 0.5), 3)
                           if len(seeds) > 1 else None),
            "interval": [round(float(v), 3) for v in np.percentile(both, [2.5, 97.5])],
            "lower_bound": round(float(np.percentile(both, 5)), 3)}


def make_record(rows: list[dict], comparisons: dict, inspections: list[dict],
                problems: list[str]) -> dict:
    """What results.json holds."""
    first = rows[0]["trials"][0]["result"]
    return {
        "rows": [{"name": r["name"], "what": r["what"], "acc1_mean": round(r["mean"], 3),
                  "acc1_std": None if r["std"] is None else round(r["std"], 3),
                  "acc1_by_seed": {str(k): round(v, 3) for k, v in r["acc1_by_seed"].items()},
                  "folds": r["folds"],
                  "val_images": sum(t["result"]["val_images"] for t in r["trials"])
                  // len(r["acc1_by_seed"]),
                  "images_seen": r["trials"][0]["result"]["images_seen"],
                  "best_acc1_mean": mean_of(r["trials"], "best_acc1"),
                  "agreement_mean": mean_of(r["trials"], "agreement"),
                  "seconds_mean": mean_of(r["trials"], "seconds")} for r in rows],
        "against_baseline": comparisons, "sets": inspections, "left_out": problems,
        "hardware": first.get("hardware"), "versions": first.get("versions"),
        "commits": sorted({t["result"].get("commit", "unknown") for r in rows
                           for t in r["trials"]}),
        "date": time.strftime("%Y-%m-%d", time.gmtime()),
        "commands": list(dict.fromkeys(t["result"].get("command") for r in rows
                                       for t in r["trials"])),
    }


def mean_of(trials: list[dict], field: str) -> float | None:
    values = [t["result"].get(field) for t in trials]
    return None if None in values else round(float(np.mean(values)), 3)


# --- showing --------------------------------------------------------------------------------------

def spread(row: dict) -> str:
    return f"{row['acc1_mean']:.2f}" + (
        "" if row["acc1_std"] is None else f" ± {row['acc1_std']:.2f}")


def text_table(record: dict) -> str:
    """The rows as aligned text."""
    lines = [("row", "Acc@1 %", "agrees %", "seconds", "what")]
    for row in record["rows"]:
        agreement = "" if row["agreement_mean"] is None else f"{row['agreement_mean']:.1f}"
        lines.append((row["name"], spread(row), agreement, f"{row['seconds_mean']:.0f}",
                      row["what"]))
    widths = [max(len(line[i]) for line in lines) for i in range(4)]
    return "\n".join("  ".join([line[0].ljust(widths[0]), *(
        line[i].rjust(widths[i]) for i in (1, 2, 3)), line[4]]) for line in lines)


def draw_curves(rows: list[dict], path: Path) -> Path:
    """Validation accuracy over the epochs, a line per row, mean over its trials."""
    pyplot = headless_pyplot()
    figure, axis = pyplot.subplots(figsize=(7, 4), layout="constrained")
    for row in rows:
        curves = [[m["val_acc1"] for m in t["metrics"]] for t in row["trials"]]
        length = min(map(len, curves))
        if length:
            mean = np.mean([c[:length] for c in curves], 0)
            axis.plot(np.arange(1, length + 1) / length, mean,
                      label=f"{row['name']} ({row['mean']:.1f} %)")
    axis.set(xlabel="share of the training", ylabel="validation Acc@1 (%)")
    axis.grid(alpha=0.3)
    axis.legend(fontsize=8)
    files.atomically(lambda p: figure.savefig(p, dpi=120, metadata={"Software": None}), path)
    pyplot.close(figure)
    return path


def draw_samples(trials: list[dict], path: Path) -> Path | None:
    """A row per class (the first 20): real images beside synthetic ones. None without a set made
    for a task of small images (a set's own contact sheet shows large ones)."""
    for trial in trials:
        source, task = Path(trial["config"].get("source", "real")), TASKS.get(trial["task"])
        if (source / "manifest.json").exists() and task and not task.crop:
            images = image_set.open_set(source)
            if (images.manifest["labels_known"] and images.complete
                    and images.manifest["task"] == task.name):
                break
    else:
        return None
    pyplot, data = headless_pyplot(), trial["config"].get("data")
    real = load_real(task, "train", trial["fold"], data=Path(data) if data else None)
    rows = []
    for c in images.plan.classes[:20]:
        chosen = real.images[real.labels == c]
        chosen = chosen[::max(1, len(chosen) // SAMPLE_COLUMNS)][:SAMPLE_COLUMNS]
        made = [image_files.read_image((images.folder / images.plan.path(c, k)).read_bytes(),
                                       images.plan.path(c, k), task.channels)
                for k in range(min(SAMPLE_COLUMNS, images.plan.images_per_class))]
        rows.append((task.class_names[c], list(chosen), made))
    figure, axes = pyplot.subplots(1, 2, figsize=(7.6, 3.55 * len(rows) / SAMPLE_COLUMNS + 0.4),
                                   layout="constrained")
    for axis, column, title in ((axes[0], 1, "real (training images)"), (axes[1], 2, "synthetic")):
        sheet = image_set.tile([row[column] for row in rows], scale=4)
        axis.imshow(sheet.permute(1, 2, 0).numpy().squeeze(), cmap="gray", vmin=0, vmax=255)
        height = sheet.shape[1] / len(rows)
        axis.set_yticks([height * (r + 0.5) for r in range(len(rows))], [row[0] for row in rows],
                        fontsize=8)
        axis.set_xticks([])
        axis.set_title(title, fontsize=10)
        for side in axis.spines.values():
            side.set_visible(False)
    files.atomically(lambda p: figure.savefig(p, dpi=120, metadata={"Software": None}), path)
    pyplot.close(figure)
    return path


def headless_pyplot():
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    return pyplot


STYLE = """
:root { color-scheme: light dark; }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 0 auto; padding: 1rem; }
table { border-collapse: collapse; width: 100%; }
th, td { text-align: left; padding: .3rem .6rem; border-bottom: 1px solid #8885; }
td.n, th.n { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; }
td small { opacity: .75; display: inline-block; min-width: 13rem; } .wide { overflow-x: auto; }
img { max-width: 100%; height: auto; background: #fff; border-radius: 6px; }
pre { overflow-x: auto; padding: .6rem; background: #8881; border-radius: 6px; font-size: .8rem; }
p.note, figcaption { opacity: .8; font-size: .9rem; } figure { margin: 1rem 0; }
"""


def make_page(args: argparse.Namespace, rows: list[dict], record: dict, pictures: dict,
              trials: list[dict], problems: list[str]) -> str:
    """One self-contained page: answer first, then table, pictures, commands. Nothing is fetched."""
    esc = html.escape
    parts = [f"<!doctype html><html lang=en><meta charset=utf-8>"
             f"<meta name=viewport content='width=device-width, initial-scale=1'>"
             f"<title>{esc(args.title)}</title><style>{STYLE}</style><h1>{esc(args.title)}</h1>",
             f"<p>{esc(answer(record))}</p>", html_table(record)]
    captions = {"samples.png": "Real training images (left) beside synthetic ones (right).",
                "curve.png": "Accuracy on real validation images during training."}
    for name in ("samples.png", "curve.png"):
        if pictures[name] is not None:
            data = base64.b64encode(pictures[name].read_bytes()).decode()
            parts.append(f"<figure><img alt='{esc(captions[name])}' "
                         f"src='data:image/png;base64,{data}'><figcaption>{captions[name]}"
                         f"</figcaption></figure>")
    for inspection in record["sets"]:
        parts.append(f"<p class=note>{esc(inspection['sentence'])}</p>")
        if inspection["picture"]:
            data = base64.b64encode(Path(inspection["picture"]).read_bytes()).decode()
            parts.append("<img alt='Worst confusions, entropy, nearest real images' "
                         f"src='data:image/png;base64,{data}'>")
    generators = [t["card"].get("generator") or {} for t in trials]
    licences = "; ".join(sorted({g["licence"] for g in generators if "licence" in g})) or "none"
    parts.append(f"<p class=note>Licence of the generators: {esc(licences)}.</p>")
    commands = "\n".join(map(str, record["commands"]))
    parts.append(f"<h2>Commands</h2><details open><summary>{len(trials)} runs</summary>"
                 f"<pre>{esc(commands)}</pre></details>")
    facts = {k: record[k] for k in ("date", "commits", "versions", "hardware")}
    parts.append(f"<h2>Made with</h2><pre>{esc(json.dumps(facts, indent=1))}</pre>")
    if problems:
        items = "".join(f"<li>{esc(p)}</li>" for p in problems)
        parts.append(f"<h2>Left out</h2><ul>{items}</ul>")
    return "\n".join(parts) + "</html>\n"


def answer(record: dict) -> str:
    """The result in a sentence or two."""
    best = max(record["rows"], key=lambda row: row["acc1_mean"])
    made = [row for row in record["rows"] if "synthetic" in row["what"]]
    text = f"Best row: {best['name']} with {spread(best)} % of real validation images right."
    if made:
        row = max(made, key=lambda r: r["acc1_mean"])
        text = (f"A student that never saw a real image ({row['what']}) names {spread(row)} % of "
                f"the real validation images. " + text)
        against = record["against_baseline"].get(row["name"])
        if against and against["seeds"]:
            low, high = against["interval"]
            text += (f" Against the baseline: {against['difference']:+.2f} points, 95 % interval "
                     f"{low:+.2f} to {high:+.2f}.")
    return text


def html_table(record: dict) -> str:
    esc = html.escape
    head = ["row", "Acc@1 %", "best %", "agrees %", "images seen", "seconds"]
    compared = record["against_baseline"]
    if compared:
        head += ["difference", "95 % interval", "test error", "seed error"]
    cells = "".join(f"<th{' class=n' if i else ''}>{h}</th>" for i, h in enumerate(head))
    lines = [f"<div class=wide><table><tr>{cells}</tr>"]
    for row in record["rows"]:
        values = [spread(row), shown(row["best_acc1_mean"]), shown(row["agreement_mean"]),
                  f"{row['images_seen']:,}", shown(row["seconds_mean"], 0)]
        if compared:
            c = compared.get(row["name"], {})
            values += ([f"{c['difference']:+.2f}", "{:+.2f} to {:+.2f}".format(*c["interval"]),
                        shown(c["test_error"]), shown(c["seed_error"])] if c.get("seeds")
                       else ["", "", "", ""])
        numbers = "".join(f"<td class=n>{v}</td>" for v in values)
        lines.append(f"<tr><td>{esc(row['name'])}<br><small>{esc(row['what'])}</small></td>"
                     f"{numbers}</tr>")
    return "\n".join(lines) + "</table></div>"


def shown(value: float | None, digits: int = 2) -> str:
    return "" if value is None else f"{value:.{digits}f}"


def main(argv: list[str] | None = None) -> int:
    return run.main(body, argv)


if __name__ == "__main__":
    sys.exit(main())
