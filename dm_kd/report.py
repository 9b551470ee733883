"""Turn folders of runs into tables, pictures and one page: results.json, results.md, results.csv,
curve.png, samples.png, report.html.

    python -m dm_kd.report --runs save/student_model --out save/report

Runs in like-named folders whose names differ only in seedN, foldN, genN and setN are trials of one
row. Where the trials cover all folds, a seed's accuracy is that of all its folds' predictions
together. With --baseline ROW every row is compared with it, image by image. Numbers that were
published for a row's task, pair and method stand beside it; --published writes all of them, as
tables with the script that fills each cell.
"""

import argparse
import json
import os
import sys
import time
from pathlib import Path

import numpy as np

from dm_kd import (
    files,
    published,
    report_canvas,
    report_choices,
    report_figures,
    report_page,
    run,
)
from dm_kd.errors import UserError, nearest
from dm_kd.report_runs import (
    describe,
    find_inspections,
    find_trials,
    finite,
    generator_of,
    information,
    making_words,
    number,
    plain,
    pretraining,
    published_method,
    temperatures_of,
    trained_on,
    without_groups,
)
from dm_kd.report_statistics import compare, matters, mean_accuracy, verdict

FIGURES_OF_A_SET = ("frechet", "frechet_train_to_val", "precision", "recall", "density", "coverage",
                    "teacher_entropy", "teacher_agreement")

MOST_KEPT_BYTES = 300_000  # of a record's figures
RESTS_ON = ("runs", "generators", "seeds", "images", "groups", "units", "note")


def whole_numbers(text: str) -> tuple[int, ...]:
    """'3,13' -> (3, 13)."""
    return tuple(run.nonnegative_int(part) for part in text.split(",") if part.strip())


def parse(argv: list[str]) -> argparse.Namespace:
    parser = run.Parser("report", __doc__)
    parser.add_argument("--runs", type=Path, metavar="FOLDER",
                        required="--published" not in argv, help="every run below it is read")
    parser.add_argument("--out", type=Path, required=True, metavar="FOLDER",
                        help="where the tables, the pictures and the page go")
    parser.add_argument("--rows", default="", metavar="A,B,C",
                        help="order of the rows, by run name (default: by accuracy)")
    parser.add_argument("--baseline", default=None, metavar="ROW",
                        help="row that the others are compared with, image by image")
    parser.add_argument("--claims", type=run.positive_int, default=1, metavar="N",
                        help="differences on which a claim rests: their intervals hold for all N "
                             "together (Bonferroni; default: %(default)s)")
    parser.add_argument("--leave-out-groups", type=whole_numbers, default=(), metavar="LIST",
                        help="judge on the images of other groups only, as in 3,13 (digits: "
                             "writers; default: on all images)")
    parser.add_argument("--margin", type=run.positive_float, default=0.5, metavar="POINTS",
                        help="difference in accuracy that is too small to matter, in percentage "
                             "points (default: %(default)s)")
    parser.add_argument("--record", type=Path, default=None, metavar="FOLDER",
                        help="also put results.json, results.csv and the figures there, to be "
                             "kept; of figures 300 kB at most (default: nowhere)")
    parser.add_argument("--command", default=None, metavar="TEXT",
                        help="that made the runs, as in 'sh scripts/digits.sh': into results.json "
                             "and the page (default: none)")
    parser.add_argument("--title", default="Distillation without real images", metavar="TEXT",
                        help="of the page (default: %(default)s)")
    parser.add_argument("--question", default="", metavar="TEXT",
                        help="what the runs are to answer, above the answer (default: none)")
    parser.add_argument("--choose", action="store_true",
                        help="the rows METHOD_1, METHOD_2 ... are trials of each method's "
                             "settings: also say which is chosen, and which blind agreement would "
                             "have chosen")
    parser.add_argument("--published", action="store_true",
                        help="write only published_tables.md: the published numbers, what the runs "
                             "(if any are given) have in their place, and the script of each")
    run.add_common_arguments(parser)
    return run.parse(parser, argv)


def body(argv: list[str]) -> None:
    args = parse(argv)
    if args.dry_run:
        if args.published:
            print(f"would write the published numbers into {args.out / 'published_tables.md'}")
            return
        state = "" if args.runs.exists() else " (not made yet)"
        print(f"would report on the runs in {args.runs}{state} in {args.out}")
        return
    if args.runs:
        files.must_exist(args.runs, "--runs", "folder of runs")
    trials, problems = find_trials(args.runs) if args.runs else ([], [])
    if args.leave_out_groups and trials:
        trials = without_groups(trials, list(args.leave_out_groups))
        if not trials:
            raise UserError("--leave-out-groups leaves no image of any run", folder=args.runs,
                            hint="fewer groups, or runs with predictions.json")
    if args.published:
        rows = [row_record(row, {}, args.seed) for row in make_rows(trials, [])]
        path = args.out / "published_tables.md"
        files.durable_write(path, report_page.published_tables(rows))
        print(f"{path}: {len(published.cells())} published numbers")
        return
    if not trials:
        refuse_nothing(args.runs, [p for p in problems if p["state"] == "not judged"])
    order = [name for name in args.rows.split(",") if name]
    rows = make_rows(trials, order)
    names = [row["name"] for row in rows]
    name_missing(order, names)
    comparisons = {}
    if args.baseline is not None:
        if args.baseline not in names:
            raise UserError(f"no row '{args.baseline}'",
                            hint=f"--baseline: {nearest(args.baseline, names)}")
        comparisons = compare_all(rows, args.baseline, args)
    inspections = find_inspections(args.runs, problems)
    record = make_record(rows, comparisons, inspections, problems, args.seed)
    record |= {"title": plain(args.title), "question": plain(args.question),
               "baseline": args.baseline, "claims": args.claims, "margin": args.margin,
               "left_out_groups": list(args.leave_out_groups),
               "seed": args.seed, "command": args.command and plain(args.command)}
    figures = report_figures.draw_all(rows, record, args.out)
    record["choices"] = report_choices.choices(record["rows"]) if args.choose else []
    record["findings"] = report_choices.conclude(record["choices"]) + [
        line for drawn in figures.values() for figure in drawn
        for line in figure.get("says", "").splitlines()]
    files.write_json(args.out / "results.json", record)
    files.durable_write(args.out / "results.md", report_page.markdown(record))
    files.durable_write(args.out / "results.csv", report_page.csv_table(record))
    files.durable_write(args.out / "report.html", report_page.page(record, figures))
    if args.record is not None:
        keep(record, figures, args)
    print(report_page.text_table(record))
    for problem in record["left_out"]:
        print(f"left out: {problem}", file=sys.stderr)
    print(f"\npage: {args.out / 'report.html'}")


def refuse_nothing(folder: Path, unjudged: list[dict]) -> None:
    """Raises:
        UserError: no run below the folder can be reported on."""
    if unjudged:
        raise UserError(f"the finished runs there ({len(unjudged)}) are not judged (--val none)",
                        folder=folder, first=unjudged[0]["place"],
                        hint="runs with --val val or dev; dm_kd.evaluate judges a finished one")
    raise UserError("no finished run of a classifier there", folder=folder,
                    hint="a folder with train_teacher's or distill's runs in it")


def name_missing(order: list[str], names: list[str]) -> None:
    """A line for each row of --rows that there is not (yet).

    Raises:
        UserError: there is none of them."""
    missing = [name for name in order if name not in names]
    if missing and len(missing) == len(order):
        raise UserError(f"no row '{missing[0]}'" + (
            " nor any other of --rows" if len(missing) > 1 else ""),
            hint=f"--rows: {nearest(missing[0], names)}")
    for name in missing:
        print(f"note: no row '{plain(name)}' for --rows: {nearest(name, names)}", file=sys.stderr)


def keep(record: dict, figures: dict[str, list[dict]], args: argparse.Namespace) -> None:
    """Write what is kept of the report: the results, and the figures, the small ones first, as long
    as these are not larger than MOST_KEPT_BYTES; an earlier one in the place of one that is too
    large goes. Of the inspected sets only the numbers."""
    sets = [{k: s.get(k) for k in ("set", "images", *FIGURES_OF_A_SET)} for s in record["sets"]]
    files.write_json(args.record / "results.json", {**record, "sets": sets})
    files.durable_write(args.record / "results.csv", (args.out / "results.csv").read_bytes())
    found = {}
    for section, drawn in figures.items():
        charts = [c for c in (report_canvas.standalone(f["html"]) for f in drawn) if c]
        for i, chart in enumerate(charts):
            found[f"{section}{i + 1 if len(charts) > 1 else ''}.svg"] = chart
    if figures["samples"]:
        found["samples.png"] = (args.out / "samples.png").read_bytes()
    room = MOST_KEPT_BYTES
    for name, data in sorted(found.items(), key=lambda item: len(item[1])):
        if len(data) <= room:
            room -= len(data)
            files.durable_write(args.record / name, data)
        else:
            (args.record / name).unlink(missing_ok=True)
            print(f"not kept, too large: {name} ({len(data):,} bytes)", file=sys.stderr)


# --- rows -----------------------------------------------------------------------------------------

def make_rows(trials: list[dict], order: list[str]) -> list[dict]:
    """Trials of one row together: a seed's accuracy is over all its folds' images. A row's name is
    its folder's; where several folders have it, with the folders above."""
    paths = dict.fromkeys(trial["row"] for trial in trials)
    rows, varied = [], len(temperatures_of(trials)) > 1
    for path in paths:
        mine = [trial for trial in trials if trial["row"] == path]
        keys = sorted({t["replicate"] for t in mine}, key=lambda key: [v or 0 for v in key])
        accuracies = {label(key): pooled([t for t in mine if t["replicate"] == key], "acc1")
                      for key in keys}
        folds = {t["fold"] for t in mine}
        whole = [accuracies[label(key)] for key in keys  # a seed of some folds is of other images
                 if len([t for t in mine if t["replicate"] == key]) == len(folds)]
        amounts = [t["settings"]["images_per_class"] for t in mine]
        settings = mine[0]["settings"] | {
            "images_per_class": None if None in amounts else round(float(np.mean(amounts)), 1)}
        rows.append({"name": short_name(path, paths), "trials": mine,
                     "what": describe(mine[0], temperatures_of(mine) if varied else None),
                     "acc1_by_seed": accuracies, "mean": mean_accuracy(mine),
                     "std": float(np.std(whole, ddof=1)) if len(whole) > 1 else None,
                     "folds": len(folds), "settings": settings,
                     "teacher_acc1": pooled(mine, "teacher_acc1")})
    rows.sort(key=lambda row: (-row["folds"], -row["mean"]))  # of all images before of a part
    if order:
        rows.sort(key=lambda row: order.index(row["name"]) if row["name"] in order else len(order))
    return rows


def short_name(path: tuple[str, ...], paths: dict) -> str:
    """The shortest end of a row's path that no other row has."""
    for length in range(1, len(path) + 1):
        if sum(other[-length:] == path[-length:] for other in paths) == 1:
            break
    return "/".join(path[-length:])


def label(key: tuple) -> int | str:
    generator, made, seed = key
    if generator is None and made is None:
        return seed
    parts = (("gen", generator), ("set", made), ("seed", seed))
    return " ".join(f"{what}{value}" for what, value in parts if value is not None)


def pooled(trials: list[dict], field: str) -> float | None:
    """A percentage over all images that the trials judged; None where a trial has none."""
    values = [t["result"][field] for t in trials]
    counts = [t["result"]["val_images"] for t in trials]
    return None if None in values else float(np.average(values, weights=counts))


# --- comparisons ----------------------------------------------------------------------------------

def compare_all(rows: list[dict], baseline: str, args: argparse.Namespace) -> dict[str, dict]:
    base = next(row for row in rows if row["name"] == baseline)
    found = {row["name"]: compare(row["trials"], base["trials"], args.seed, args.claims)
             for row in rows if row is not base}
    return {name: f | {"verdict": verdict(f, args.margin), "matters": matters(f, args.margin)}
            for name, f in found.items()}


# --- the record -----------------------------------------------------------------------------------

def make_record(rows: list[dict], comparisons: dict, inspections: list[dict],
                problems: list[dict], seed: int) -> dict:
    """What results.json holds; all that the tables and the page say."""
    first = rows[0]["trials"][0]["result"]
    trials = [t for r in rows for t in r["trials"]]
    sets = {os.path.normpath(str(s.get("set"))): s for s in inspections}
    return finite({
        "rows": [row_record(row, sets, seed) for row in rows],
        "against_baseline": comparisons, "sets": inspections,
        "left_out": [f"{p['place']}: {p['state']}" + (f" ({p['why']})" if p["why"] else "")
                     for p in problems], "problems": problems,
        "hardware": first.get("hardware"), "versions": first.get("versions"),
        "machines": machines(trials), "generators": generators(rows),
        "commits": sorted({str(t["result"].get("commit", "unknown")) for t in trials}),
        "date": time.strftime("%Y-%m-%d", time.gmtime()),
        "commands": list(dict.fromkeys(plain(t["result"].get("command")) for t in trials)),
    })


def row_record(row: dict, sets: dict[str, dict], seed: int) -> dict:
    trials, settings = row["trials"], row["settings"]
    images = trials[0]["inputs"].get("source_images")
    rests = compare(trials, None, seed)
    folds = {t["fold"]: t["result"]["val_images"] for t in trials}
    budgets = [t["result"]["budget"] for t in trials]
    budget = {name: mean([b.get(name) for b in budgets]) for name in (
        "images_kept", "student_steps", "generator_evaluations", "teacher_passes",
        "student_passes", "making_seconds")}
    budget["pretraining_seconds"] = mean([pretraining(t) for t in trials])
    return {"name": row["name"], "what": row["what"], "acc1_mean": round(row["mean"], 3),
            "acc1_std": None if row["std"] is None else round(row["std"], 3),
            "acc1_by_seed": {str(k): round(v, 3) for k, v in row["acc1_by_seed"].items()},
            "folds": row["folds"],
            "val_images": sum(folds.values()),
            "images_seen": trials[0]["result"]["images_seen"],
            "best_acc1_mean": mean_of(trials, "best_acc1"),
            "agreement_mean": mean_of(trials, "agreement"),
            "blind_agreement_mean": mean_of(trials, "blind_agreement"),
            "seconds_mean": mean_of(trials, "seconds"), "interval": rests.get("interval"),
            "rests_on": {k: rests.get(k) for k in RESTS_ON},
            "trials": len(trials), "method": settings["images"],
            "published_method": published_method(trials[0]),
            **{k: settings[k] for k in ("task", "teacher", "student", "guidance_scale", "steps",
                                        "images_per_class")},
            "teacher_acc1": row["teacher_acc1"], "information": information(trials[0]),
            "budget": budget, "making": making_words(trials[0]),
            "set": set_figures(trials, sets),
            "published": published.find(settings["task"], published_method(trials[0]),
                                        settings["teacher"], str(settings["student"]),
                                        number(images))}


def set_figures(trials: list[dict], sets: dict[str, dict]) -> dict:
    """Means of what inspect_set found in the images of the row's trials; {} where it has not."""
    found = [sets.get(os.path.normpath(str(t["config"].get("source")))) for t in trials]
    if None in found:
        return {}
    return {k: mean([number(s.get(k)) for s in found]) for k in FIGURES_OF_A_SET}


def mean_of(trials: list[dict], field: str) -> float | None:
    return mean([t["result"].get(field) for t in trials])


def mean(values: list[float | None]) -> float | None:
    return None if None in values else round(float(np.mean(values)), 3)


def machines(trials: list[dict]) -> list[dict]:
    """Versions and hardware, with the number of runs that had them."""
    counts = {}
    for t in trials:
        versions, hardware = t["result"].get("versions"), t["result"].get("hardware")
        key = json.dumps([versions, hardware], sort_keys=True)[:2000]
        counts.setdefault(key, {"versions": versions, "hardware": hardware, "runs": 0})["runs"] += 1
    return sorted(counts.values(), key=lambda m: -m["runs"])


def generators(rows: list[dict]) -> list[dict]:
    """The generators of the rows' images: name, what they were trained on, licence, rows."""
    found = {}
    for row in rows:
        for trial in row["trials"]:
            g = generator_of(trial)
            key = tuple(str(g.get(k) or "unknown") for k in ("name", "licence"))
            if g:
                entry = found.setdefault(key, {"name": key[0], "licence": key[1], "rows": {},
                                               "trained_on": g.get("trained_on")
                                               or trained_on(g)})
                entry["rows"][row["name"]] = None
    return [{**g, "rows": list(g["rows"])} for g in found.values()]


def main(argv: list[str] | None = None) -> int:
    return run.main(body, argv)


if __name__ == "__main__":
    sys.exit(main())
