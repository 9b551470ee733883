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
import functools
import json
import os
import sys
import time
from pathlib import Path

import numpy as np

from dm_kd import files, published, report_figures, report_page, run
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
    trained_on,
)

BOOTSTRAP_DRAWS = 10_000
MIN_GROUPS = 8  # redrawing fewer says little of the spread between them
MANY_GROUPS = 500  # from here on sums of redrawn groups are normal
FIGURES_OF_A_SET = ("frechet", "precision", "recall", "density", "coverage", "teacher_entropy",
                    "teacher_agreement")


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
    parser.add_argument("--title", default="Distillation without real images", metavar="TEXT",
                        help="of the page (default: %(default)s)")
    parser.add_argument("--question", default="", metavar="TEXT",
                        help="what the runs are to answer, above the answer (default: none)")
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
    if args.published:
        rows = [row_record(row, {}, args.seed) for row in make_rows(trials, [])]
        path = args.out / "published_tables.md"
        files.durable_write(path, report_page.published_tables(rows))
        print(f"{path}: {len(published.cells())} published numbers")
        return
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
    inspections = find_inspections(args.runs, problems)
    record = make_record(rows, comparisons, inspections, problems, args.seed)
    record |= {"title": plain(args.title), "question": plain(args.question),
               "baseline": args.baseline}
    figures = report_figures.draw_all(rows, record, args.out)
    record["findings"] = [figure["says"] for drawn in figures.values() for figure in drawn
                          if figure.get("says")]
    files.write_json(args.out / "results.json", record)
    files.durable_write(args.out / "results.md", report_page.markdown(record))
    files.durable_write(args.out / "results.csv", report_page.csv_table(record))
    files.durable_write(args.out / "report.html", report_page.page(record, figures))
    print(report_page.text_table(record))
    for problem in record["left_out"]:
        print(f"left out: {problem}", file=sys.stderr)
    print(f"\npage: {args.out / 'report.html'}")


# --- rows -----------------------------------------------------------------------------------------

def make_rows(trials: list[dict], order: list[str]) -> list[dict]:
    """Trials of one row together: a seed's accuracy is over all its folds' images. A row's name is
    its folder's; where several folders have it, with the folders above."""
    paths = dict.fromkeys(trial["row"] for trial in trials)
    rows = []
    for path in paths:
        mine = [trial for trial in trials if trial["row"] == path]
        keys = sorted({t["replicate"] for t in mine}, key=lambda key: [v or 0 for v in key])
        accuracies = {label(key): pooled([t for t in mine if t["replicate"] == key], "acc1")
                      for key in keys}
        values = np.array(list(accuracies.values()))
        amounts = [t["settings"]["images_per_class"] for t in mine]
        settings = mine[0]["settings"] | {
            "images_per_class": None if None in amounts else round(float(np.mean(amounts)), 1)}
        rows.append({"name": short_name(path, paths), "trials": mine, "what": describe(mine[0]),
                     "acc1_by_seed": accuracies, "mean": float(values.mean()),
                     "std": float(values.std(ddof=1)) if len(values) > 1 else None,
                     "folds": len({t["fold"] for t in mine}), "settings": settings,
                     "teacher_acc1": pooled(mine, "teacher_acc1")})
    rows.sort(key=lambda row: -row["mean"])
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

def compare_all(rows: list[dict], baseline: str, seed: int) -> dict[str, dict]:
    base = next(row for row in rows if row["name"] == baseline)
    return {row["name"]: compare(row["trials"], base["trials"], seed) for row in rows
            if row is not base and has_predictions(row["trials"] + base["trials"])}


def has_predictions(trials: list[dict]) -> bool:
    return all(t["predictions"] is not None for t in trials)


def compare(ours: list[dict], base: list[dict] | None, seed: int) -> dict:
    """Accuracy difference in points over the trials and images that both judged, paired; without a
    base the accuracy itself.

    Trials nest: a generator has sets, a set has students. The highest of these levels that has
    several members ("redrawn") is what is redrawn, each member with all below it. Where only one
    side has that level, and the other side's trials are paired with several of its members, those
    trials are redrawn too.

    test_error: standard error from the finite test set, from redrawing its groups (writers; single
    images where groups are unknown or too few) with the trials kept. seed_error: the standard
    deviation of the members' differences over sqrt(members). interval and lower_bound: 95 %
    two-sided and one-sided, from redrawing both (percentile bootstrap, 10,000 draws).
    """
    a, b = judged(ours), judged(base) if base is not None else {}
    pairs = ([(x, y) for x in a for y in b if fits(x, y)] if base is not None
             else [(x, None) for x in a])
    parts = [side[key] for pair in pairs for side, key in zip((a, b), pair, strict=True)
             if key is not None]
    images = functools.reduce(np.intersect1d, [part["ids"] for part in parts] or [np.zeros(0)])
    if not len(images):
        return {"seeds": 0}
    groups = parts[0]["groups"][np.searchsorted(parts[0]["ids"], images)]
    if -1 in groups or len(set(groups.tolist())) < MIN_GROUPS:
        groups = np.arange(len(images))
    _, index, counts = np.unique(groups, return_inverse=True, return_counts=True)
    right = [[0 if key is None else is_right(side[key], images)
              for side, key in zip((a, b), pair, strict=True)] for pair in pairs]
    sums = np.stack([np.bincount(index, x - y, len(counts)) for x, y in right])
    level, members, shared = top_level(pairs, ours, base)
    tests, both = redrawn(sums, counts, members, shared, seed)
    means = 100 * sums.sum(1) / counts.sum()
    by_member = np.bincount(members, means) / np.bincount(members)
    several = len(by_member) > 1
    return {"difference": round(float(means.mean()), 3), "seeds": len(pairs),
            "images": len(images), "groups": len(counts),
            "redrawn": f"{len(by_member)} {level}{'s' * several}",
            "test_error": round(float(tests.std()), 3),
            "seed_error": (round(float(by_member.std(ddof=1) / len(by_member) ** 0.5), 3)
                           if several else None),
            "interval": [round(float(v), 3) for v in np.percentile(both, [2.5, 97.5])],
            "lower_bound": round(float(np.percentile(both, 5)), 3)}


def judged(trials: list[dict]) -> dict[tuple, dict[str, np.ndarray]]:
    """replicate -> predictions over all its folds, ids in rising order."""
    found = {}
    for key in sorted({t["replicate"] for t in trials}, key=lambda key: [v or 0 for v in key]):
        parts = [t["predictions"] for t in trials if t["replicate"] == key]
        whole = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
        _, first = np.unique(whole["ids"], return_index=True)
        found[key] = {name: values[first] for name, values in whole.items()}
    return found


def is_right(predictions: dict[str, np.ndarray], images: np.ndarray) -> np.ndarray:
    at = np.searchsorted(predictions["ids"], images)
    return (predictions["labels"] == predictions["predictions"])[at].astype(float)


def fits(x: tuple, y: tuple) -> bool:
    """Whether two replicates are of one seed, and of one generator and set where both have them."""
    return all(p == q or p is None or q is None for p, q in zip(x, y, strict=True))


def makers(trials: list[dict] | None, level: str) -> dict[tuple, object]:
    """replicate -> which generator or set made its images: by its number, else by the digests in
    the folds that every replicate has; None where there is none."""
    by_fold = {}
    for t in trials or []:
        digest = (generator_of(t).get("weights_sha256") if level == "generator"
                  else t["inputs"].get("source_sha256"))
        by_fold.setdefault(t["replicate"], {})[t["fold"]] = digest
    folds = sorted(set.intersection(*map(set, by_fold.values()))) if by_fold else []
    found = {}
    for key, digests in by_fold.items():
        known = tuple(digests[fold] for fold in folds)
        named = key[:1] if level == "generator" else key[:2]
        found[key] = (named if named[-1] is not None else
                      known if known and None not in known else None)
    return found


def top_level(pairs: list[tuple], ours: list[dict], base: list[dict] | None
              ) -> tuple[str, np.ndarray, np.ndarray | None]:
    """The highest level with several members; each pair's member; and where one side lacks the
    level and its replicates stand in several members, each pair's replicate of that side."""
    for level in ("generator", "set"):
        sides = [makers(ours, level), makers(base, level)]
        labels = [tuple(None if key is None else side[key]
                        for side, key in zip(sides, pair, strict=True)) for pair in pairs]
        if len(set(labels)) < 2:
            continue
        members = numbered(labels)
        for side in (0, 1) if base is not None else ():
            replicates = numbered([pair[side] for pair in pairs])
            if ({found[side] for found in labels} == {None}
                    and 1 < replicates.max() + 1 < len(set(zip(replicates, members, strict=True)))):
                return level, members, replicates
        return level, members, None
    return "seed", np.arange(len(pairs)), None


def numbered(labels: list) -> np.ndarray:
    """Equal labels as equal numbers, from 0 in order of their first appearance."""
    known = {value: i for i, value in enumerate(dict.fromkeys(labels))}
    return np.array([known[value] for value in labels])


def redrawn(sums: np.ndarray, counts: np.ndarray, members: np.ndarray, shared: np.ndarray | None,
            seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Mean differences in points [draws]: with groups redrawn; with groups and members redrawn.

    Args:
        sums: of right answers [pairs, groups]. counts: images [groups].
        members, shared: each pair's [pairs], as top_level has them.
    """
    n, extra = len(counts), 0 if shared is None else shared.max() + 1
    both = np.vstack([sums, counts])
    if n <= MANY_GROUPS:
        times, weights, others = draws(seed, n, members.max() + 1, extra)
        drawn = (times @ both.T.astype(np.float32)).astype(float)  # whole numbers: exact
    else:  # the sums' normal limit, with their covariance
        _, weights, others = draws(seed, 1, members.max() + 1, extra)
        centred = both - both.mean(1, keepdims=True)
        values, vectors = np.linalg.eigh(centred @ centred.T)
        normal = np.random.default_rng([seed, n]).standard_normal((BOOTSTRAP_DRAWS, len(both)))
        drawn = both.sum(1) + normal @ (vectors * np.sqrt(values.clip(0))).T
    by_pair, sizes = drawn[:, :-1], drawn[:, -1]
    weights = weights[:, members] * (1 if shared is None else others[:, shared])
    total = weights.sum(1)
    kept = total > 0  # a crossed draw may hold no pair at all
    both = (weights * by_pair).sum(1)[kept] / total[kept] / sizes[kept]
    return 100 * by_pair.mean(1) / sizes, 100 * both


@functools.lru_cache(maxsize=4)
def draws(seed: int, groups: int, members: int, shared: int) -> tuple[np.ndarray, ...]:
    """How often each group, member and shared replicate is drawn, [draws, n] each."""
    random = np.random.default_rng(seed)
    counts = []
    for n in (groups, members, shared):
        drawn = random.integers(n, size=(BOOTSTRAP_DRAWS, n)) if n else np.zeros((1, 0), int)
        flat = drawn + np.arange(len(drawn))[:, None] * n
        counts.append(np.bincount(flat.ravel(), minlength=len(drawn) * n).reshape(len(drawn), n)
                      .astype(np.float32))
    return tuple(counts)


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
    interval = (compare(trials, None, seed).get("interval") if has_predictions(trials) else None)
    budgets = [t["result"]["budget"] for t in trials]
    budget = {name: mean([b.get(name) for b in budgets]) for name in (
        "images_kept", "student_steps", "generator_evaluations", "teacher_passes",
        "student_passes", "making_seconds")}
    budget["pretraining_seconds"] = mean([pretraining(t) for t in trials])
    return {"name": row["name"], "what": row["what"], "acc1_mean": round(row["mean"], 3),
            "acc1_std": None if row["std"] is None else round(row["std"], 3),
            "acc1_by_seed": {str(k): round(v, 3) for k, v in row["acc1_by_seed"].items()},
            "folds": row["folds"],
            "val_images": sum(t["result"]["val_images"] for t in trials)
            // len(row["acc1_by_seed"]),
            "images_seen": trials[0]["result"]["images_seen"],
            "best_acc1_mean": mean_of(trials, "best_acc1"),
            "agreement_mean": mean_of(trials, "agreement"),
            "blind_agreement_mean": mean_of(trials, "blind_agreement"),
            "seconds_mean": mean_of(trials, "seconds"), "interval": interval,
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
