"""Means of a row's runs and differences between rows, with intervals, for `report`.

    python -m dm_kd.report --runs save/student_model --out save/report --baseline ROW

A run of a row is known by its fold and its replicate, (generator, set, seed).
"""

import functools
import itertools

import numpy as np

from dm_kd.report_runs import generator_of

BOOTSTRAP_DRAWS = 10_000
MIN_GROUPS = 4  # the spread between fewer writers, those of one fold, is unknown
FEWEST_FOLDS = 3  # from here on their spread is an estimate where runs have none
FEWEST_RANKED = 4  # a rank correlation of fewer says nothing
MANY_GROUPS = 500  # from here on sums of redrawn groups are normal


def mean_accuracy(trials: list[dict]) -> float:
    """Mean over all images of the mean over the runs that judged an image, percent: each fold
    weighs by its images."""
    folds = [[t["result"] for t in trials if t["fold"] == fold]
             for fold in dict.fromkeys(t["fold"] for t in trials)]
    return float(np.average([np.mean([r["acc1"] for r in fold]) for fold in folds],
                            weights=[np.mean([r["val_images"] for r in fold]) for fold in folds]))


def has_predictions(trials: list[dict]) -> bool:
    return all(t["predictions"] is not None for t in trials)


def compare(ours: list[dict], base: list[dict] | None, seed: int, claims: int = 1) -> dict:
    """Accuracy difference in points over the runs and images that both sides judged, paired;
    without a base the accuracy itself. {"runs": 0, "note": why} where nothing can be compared.

    Runs are paired within a fold, by generator, set and seed. With d[i] the mean of an image's
    differences over its fold's runs, the estimate is the mean of d over all images. Its variance
    has two parts:

    a (test_error squared): the finite test set. In each fold, groups (writers; single images where
    writers are unknown, or fewer than 4, which the note says) are redrawn with replacement and the
    fold's mean of d is taken anew, in every way there is to draw them, else 10,000 times (Efron and
    Tibshirani, An Introduction to the Bootstrap, 1993); times n / (n - 1) for n groups it is
    unbiased. Folds add by their shares of the images, squared.
    Degrees of freedom: groups - folds. One stratum for all where a fold has one group.

    b (seed_error squared): the training. Members are the generators (sets, seeds) of a fold, the
    highest of these levels that has several, each the mean of its runs: it counts as a whole. A
    fold's part is s^2 / k, s^2 the variance of its k members, less what a holds of it already: the
    redrawn groups' variance of the members' deviations from d, over k - 1 (the interaction of two
    random factors; Cornfield and Tukey, Annals of Mathematical Statistics 27, 1956). Folds add by
    their squared shares, at least to 0; a fold of one member takes the others' mean. Degrees of
    freedom: sum of (k - 1). Where one side lacks the level and its runs are paired with several
    members, the spread over those runs is a third part.

    Where b is unknown (one member in every fold, or one run of a side; or all runs of a fold share
    one generator, whose like may differ more than the runs do), 3 folds or more stand for both
    parts: each has writers, teacher, generator and runs of its own. With w a fold's share, e its
    mean of d and k folds, the variance is k / (k - 1) times the sum of (w (e - estimate))^2, with
    k - 1 degrees of freedom; b is what it has more than a. The interval is the wider of this and
    the runs' own. With fewer folds seed_error is None or of the runs alone, and the note says so.

    interval: estimate -+ sqrt(t(df_a)^2 a + t(df_b)^2 b), t the 1 - 0.025 / claims quantile
    (Bonferroni) of Student's t (Banerjee, Sankhya 22, 1960). In simulations of 2 to 5 members in 1
    or 5 folds it covers 92 to 98 % at any ratio of a to b; a common t with Satterthwaite's degrees
    of freedom covers 85 % with two seeds, and [min, max] of two 50 %. An accuracy near 100 % by
    itself is covered less often than a difference: 87 to 95 % with 14 writers.
    lower_bound: one-sided.
    """
    why = incomparable(ours, base)
    folds = [] if why else [f for f in (pair_fold(ours, base, fold) for fold in sorted(
        {t["fold"] for t in ours})) if f]
    if not folds:
        return {"runs": 0, "note": f"not comparable: {why or 'no run that both have'}"}
    units = group_folds(folds)
    images = np.array([f["right"].shape[1] for f in folds])
    shares = images / images.sum()
    estimate = 100 * float(shares @ [f["right"].mean() for f in folds])
    test, groups, df_test = test_part(folds, shares, seed)
    level, labellings = members_of(folds, base is not None)
    trained = [training_part(folds, labels, shares, seed) for labels in labellings]
    unseen = unseen_spread(folds, level, trained)
    parts = [(test, df_test), *(part for part in trained if part)]
    own_fold = []
    if unseen and len(folds) >= FEWEST_FOLDS:
        unseen, own_fold = "", [(spread_of_folds(folds, shares), len(folds) - 1)]
        trained = [(max(own_fold[0][0], sum(v for v, _ in parts)) - test, len(folds) - 1)]
    half, half_one_sided = (max(half_width(p, chance) for p in (parts, own_fold))
                            for chance in (1 - 0.025 / claims, 0.95))
    bounds = [estimate - half, estimate + half]
    if base is None:
        bounds = np.clip(bounds, 0, 100)
    members = max(int(labels.max()) + 1 for labels in labellings[0])
    return {"difference": round(estimate, 3), "runs": sum(len(f["pairs"]) for f in folds),
            "generators": most(folds, lambda x: maker(x, "generator")),
            "seeds": most(folds, lambda x: x["replicate"][2]), "images": int(images.sum()),
            "groups": groups, "units": units,
            "members": (f"{len(folds)} folds" if own_fold else
                        f"{members} {level}{'s' * (members > 1)}"),
            "test_error": round(100 * test ** 0.5, 3),
            "seed_error": (None if None in trained else
                           round(100 * sum(part[0] for part in trained) ** 0.5, 3)),
            "interval": [round(float(v), 3) for v in bounds],
            "lower_bound": round(estimate - half_one_sided, 3),
            "note": "; ".join(notes(folds, ours, base, unseen))}


def verdict(found: dict, margin: float) -> str:
    """What a comparison says of the row against the baseline; margin in points."""
    if not found["runs"]:
        return ""
    low, high = found["interval"]
    if found["seed_error"] is None:
        return "undecided: one run"
    return ("better" if low > 0 else f"no worse by more than {margin:g}" if low > -margin
            else "worse" if high < 0 else "undecided")


def matters(found: dict, margin: float) -> str:
    """Whether a change matters: "matters", "does not matter" (within the margin), "undecided"."""
    if not found.get("runs") or found["seed_error"] is None:
        return "undecided"
    low, high = found["interval"]
    return ("matters" if low > 0 or high < 0 else
            "does not matter" if -margin <= low and high <= margin else "undecided")


def common(rows: list[dict], seed: int) -> list[dict]:
    """The rows with the trials that all of them have (runs of a fold that can be paired), their
    means and "interval" over those; [] where there is no such trial."""
    kept, before = [row["trials"] for row in rows], 0
    while sum(map(len, kept)) != before:
        before = sum(map(len, kept))
        kept = [[t for t in mine if all(any(partners(t, o) for o in other) for other in kept)]
                for mine in kept]
    if not before:
        return []
    found = []
    for row, trials in zip(rows, kept, strict=True):
        teachers = [t["result"]["teacher_acc1"] for t in trials]
        found.append(row | {
            "trials": trials, "mean": mean_accuracy(trials),
            "interval": compare(trials, None, seed).get("interval"),
            "teacher_acc1": None if None in teachers else float(np.average(
                teachers, weights=[t["result"]["val_images"] for t in trials]))})
    return found


def partners(x: dict, y: dict) -> bool:
    return x["fold"] == y["fold"] and fits(x["replicate"], y["replicate"])


# --- pairs ----------------------------------------------------------------------------------------

def incomparable(ours: list[dict], base: list[dict] | None) -> str:
    """Why the runs cannot be set against each other image by image; "" where they can."""
    trials = ours + (base or [])
    if not has_predictions(trials):
        return "a run without predictions"
    if len({t["task"] for t in trials}) > 1:
        return "other tasks"
    if len({t["config"].get("val") for t in trials}) > 1:
        return "other validation images (--val)"
    labels = {}
    for t in trials:
        known = labels.setdefault(t["fold"], t["predictions"])
        _, i, j = np.intersect1d(known["ids"], t["predictions"]["ids"], return_indices=True)
        if (known["labels"][i] != t["predictions"]["labels"][j]).any():
            return "other labels for the same images"
    return ""


def pair_fold(ours: list[dict], base: list[dict] | None, fold: int) -> dict | None:
    """A fold's paired runs, and "right" [pairs, images]: 1 where the first is right, less 1 where
    the second is. None without a pair or a common image."""
    xs, ys = ([t for t in side or [] if t["fold"] == fold] for side in (ours, base))
    pairs = ([(x, None) for x in xs] if base is None else
             [(x, y) for x in xs for y in ys if partners(x, y)])
    runs = [t for pair in pairs for t in pair if t]
    ids = functools.reduce(np.intersect1d, [t["predictions"]["ids"] for t in runs] or [[]])
    if not len(ids):
        return None
    first = runs[0]["predictions"]
    right = [is_right(x, ids) - (0 if y is None else is_right(y, ids)) for x, y in pairs]
    return {"pairs": pairs, "right": np.stack(right),
            "groups": first["groups"][np.searchsorted(first["ids"], ids)],
            "cut": max(len(t["predictions"]["ids"]) for t in runs) - len(ids)}


def is_right(trial: dict, images: np.ndarray) -> np.ndarray:
    found = trial["predictions"]
    at = np.searchsorted(found["ids"], images)
    return (found["labels"] == found["predictions"])[at].astype(float)


def fits(x: tuple, y: tuple) -> bool:
    """Whether two replicates are of one seed, and of one generator and set where both have them."""
    return all(p == q or p is None or q is None for p, q in zip(x, y, strict=True))


def most(folds: list[dict], what) -> int:
    """How many different ones the first sides of a fold's pairs have, at most."""
    return max(len({what(x) for x, _ in f["pairs"]} - {None}) for f in folds)


def maker(trial: dict | None, level: str) -> object:
    """Which generator or set made a run's images: by its number, else by its digest; None where
    there is none."""
    if trial is None:
        return None
    named = trial["replicate"][:1 if level == "generator" else 2]
    if named[-1] is not None:
        return named
    digest = (generator_of(trial).get("weights_sha256") if level == "generator"
              else trial["inputs"].get("source_sha256"))
    return None if digest is None else str(digest)


def members_of(folds: list[dict], paired: bool) -> tuple[str, list[list[np.ndarray]]]:
    """The highest level with several members in a fold; each pair's member, fold by fold; and where
    a side lacks the level and its runs stand in several members, each pair's run of that side."""
    for level in ("generator", "set"):
        made = [[tuple(maker(t, level) for t in pair) for pair in f["pairs"]] for f in folds]
        members = [numbered(labels) for labels in made]
        if not any(m.any() for m in members):
            continue
        labellings = [members]
        for side in (0, 1) if paired else ():
            runs = [numbered([pair[side]["replicate"] for pair in f["pairs"]]) for f in folds]
            if ({found[side] for labels in made for found in labels} == {None} and any(
                    len(set(r.tolist())) < len(set(zip(r.tolist(), m.tolist(), strict=True)))
                    for r, m in zip(runs, members, strict=True))):
                labellings.append(runs)
        return level, labellings
    return "seed", [[np.arange(len(f["pairs"])) for f in folds]]


def numbered(labels: list) -> np.ndarray:
    """Equal labels as equal numbers, from 0 in order of their first appearance."""
    known = {value: i for i, value in enumerate(dict.fromkeys(labels))}
    return np.array([known[value] for value in labels])


def unseen_spread(folds: list[dict], level: str, trained: list[tuple | None]) -> str:
    """Which spread of training the runs of single folds can't show; "" where they show it all."""
    if trained[0] is None:
        return f"{level}s: 1: spread of training not in the interval"
    if None in trained:
        return "one run on a side: its spread of training not in the interval"
    if level != "generator" and any(
            maker(t, "generator") is not None for f in folds for pair in f["pairs"] for t in pair):
        return "one generator a fold: the spread of others not in the interval"
    return ""


def notes(folds: list[dict], ours: list[dict], base: list[dict] | None, unseen: str) -> list[str]:
    """What the interval does not say."""
    found = [unseen] if unseen else []
    numbers = [len(f["pairs"]) for f in folds]
    if len(set(numbers)) > 1:
        found.append(f"runs differ in number by fold ({', '.join(map(str, numbers))})")
    sides = [[pair[i] for f in folds for pair in f["pairs"]] for i in (0, 1)]
    for name, side, trials in zip(("", " of the baseline"), sides, (ours, base), strict=True):
        paired = len({(t["fold"], t["replicate"]) for t in side if t})
        if trials is not None and paired < len(trials):
            found.append(f"{paired} of {len(trials)} runs{name} paired")
    if 0 < (writers := writers_of(folds)) < MIN_GROUPS:
        found.append(f"{writers} writer{'s' * (writers > 1)}: others not in the interval")
    cut = sum(f["cut"] for f in folds)
    return found + [f"{cut} images that not every run judged left out"] * (cut > 0)


# --- variances ------------------------------------------------------------------------------------

def group_folds(folds: list[dict]) -> str:
    """Set each fold's "index" (group of each image) and "counts" (images of each group); what the
    groups are."""
    writers = writers_of(folds) >= MIN_GROUPS
    for f in folds:
        groups = f["groups"] if writers else np.arange(len(f["groups"]))
        _, f["index"], f["counts"] = np.unique(groups, return_inverse=True, return_counts=True)
    return "writers" if writers else "images"


def writers_of(folds: list[dict]) -> int:
    """How many writers the images are of; 0 where that is not known of every image."""
    known = {g for f in folds for g in f["groups"].tolist()}
    return 0 if -1 in known else len(known)


def test_part(folds: list[dict], shares: np.ndarray, seed: int) -> tuple[float, int, int]:
    """Variance of the estimate from the finite test set; groups in all; degrees of freedom."""
    sums = [np.bincount(f["index"], f["right"].mean(0), len(f["counts"])) for f in folds]
    counts = [f["counts"] for f in folds]
    groups = sum(map(len, counts))
    if min(map(len, counts)) < 2:  # a fold of one writer has no spread of its own
        sums, counts, shares = [np.concatenate(sums)], [np.concatenate(counts)], np.ones(1)
    total = sum(w * w * redrawn(s[None], c, seed)
                for w, s, c in zip(shares, sums, counts, strict=True))
    return float(total), groups, max(groups - len(counts), 1)


def redrawn(sums: np.ndarray, counts: np.ndarray, seed: int) -> float:
    """Variance of a mean over images when its groups are redrawn, times n / (n - 1); of several
    means, the sum of their variances.

    Args:
        sums: of the values in each group [means, n]. counts: images [n]."""
    n = len(counts)
    if n < 2:
        return 0.0
    if n > MANY_GROUPS:  # the ratio's linear limit
        off = sums - counts * (sums.sum(1, keepdims=True) / counts.sum())
        return float((off ** 2).sum() / counts.sum() ** 2 * n / (n - 1))
    times = draws(seed, n)
    means = (times @ sums.T) / (times @ counts)[:, None]
    return float(means.var(0).sum() * n / (n - 1))


@functools.lru_cache(maxsize=16)
def draws(seed: int, n: int) -> np.ndarray:
    """How often each of n groups is drawn, [draws, n]: in each of all n^n equally likely ways where
    these are no more than the random draws, which leaves nothing to the seed."""
    if n ** n <= BOOTSTRAP_DRAWS:
        return np.array([np.bincount(way, minlength=n) for way in
                         itertools.product(range(n), repeat=n)], dtype=float)
    drawn = np.random.default_rng(seed).integers(n, size=(BOOTSTRAP_DRAWS, n))
    flat = drawn + np.arange(len(drawn))[:, None] * n
    return np.bincount(flat.ravel(), minlength=len(drawn) * n).reshape(len(drawn), n).astype(float)


def training_part(folds: list[dict], members: list[np.ndarray], shares: np.ndarray, seed: int
                  ) -> tuple[float, int] | None:
    """(variance of the estimate from the spread of the members beyond what test_part holds, degrees
    of freedom); None where no fold has several."""
    sizes, found = [], []
    for f, member in zip(folds, members, strict=True):
        k = int(member.max()) + 1
        of_member = np.stack([f["right"][member == m].mean(0) for m in range(k)])
        off = of_member - of_member.mean(0)
        sums = np.stack([np.bincount(f["index"], row, len(f["counts"])) for row in off])
        held = redrawn(sums, f["counts"], seed) if k > 1 else 0.0
        sizes.append(k)
        found.append((off.mean(1) ** 2).sum() - held)  # (k - 1) times a member's own variance
    df = sum(sizes) - len(sizes)
    if not df:
        return None
    pooled = sum(found) / df
    own = [v / (k - 1) if k > 1 else pooled for v, k in zip(found, sizes, strict=True)]
    return max(float(sum(w * w * v / k for w, v, k in zip(shares, own, sizes, strict=True))), 0), df


def spread_of_folds(folds: list[dict], shares: np.ndarray) -> float:
    """Variance of the estimate from the spread of the folds' own (Cochran, Sampling Techniques,
    1977, 6.3: of a ratio, folds as clusters)."""
    means = np.array([f["right"].mean() for f in folds])
    off = shares * (means - shares @ means)
    return float((off ** 2).sum() * len(folds) / (len(folds) - 1))


def half_width(parts: list[tuple[float, int]], level: float) -> float:
    """In points: sqrt of the sum of t^2 times variance, t the quantile `level` for its degrees."""
    from scipy.special import stdtrit

    return 100 * sum(float(stdtrit(df, level)) ** 2 * variance for variance, df in parts) ** 0.5


def rank_correlation(x: list[float], y: list[float]) -> float:
    """Spearman's, ties with their mean rank; 0 where one side does not vary."""
    ranks = []
    for values in (np.array(x), np.array(y)):
        ranks.append([(values < v).sum() + ((values == v).sum() - 1) / 2 for v in values])
    spread = np.std(ranks, 1)
    return float(np.corrcoef(ranks)[0, 1]) if spread.all() else 0.0
