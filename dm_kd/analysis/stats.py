"""Numbers that can be checked by hand: the standard deviation of a row's runs, and paired
differences between two rows with an interval over independent units."""

from collections import defaultdict

import numpy as np

from dm_kd.analysis.collect import Run

# Runs of a fold share its test images, runs of a generator its weights. The first of these levels
# with several members is the independent unit.
UNITS = ("fold", "generator", "seed")


def std(values: list[float]) -> float | None:
    """The sample standard deviation; None for fewer than two values."""
    return float(np.std(values, ddof=1)) if len(values) > 1 else None


def paired_difference(runs: list[Run], baseline: list[Run]) -> dict | None:
    """Accuracy of a row minus that of the baseline, in points; None without runs to pair.

    Two runs are a pair if they have the same task, fold, generator and seed. Differences are
    averaged within an independent unit first (over seeds within a fold where there are folds), and
    the interval is Student's t over the units.

    Returns:
        {"difference", "low", "high", "unit", "n", "p"}: n is the number of units. The 95 % interval
        and the p value of a two-sided t test are None for a single unit, and where all units differ
        equally: accuracies are multiples of 1/images, and such units do not show the spread.
    """
    pairs = [(x, y) for x in runs for y in baseline
             if all(getattr(x, key) == getattr(y, key) for key in ("task", *UNITS))]
    if not pairs:
        return None
    unit = next((u for u in UNITS if len({getattr(x, u) for x, _ in pairs}) > 1), "seed")
    members = defaultdict(list)
    for x, y in pairs:
        members[getattr(x, unit)].append(x.acc1 - y.acc1)
    differences = [float(np.mean(values)) for values in members.values()]
    low, high, p = t_interval(differences)
    return {"difference": float(np.mean(differences)), "low": low, "high": high, "unit": unit,
            "n": len(differences), "p": p}


def t_interval(values: list[float]) -> tuple[float | None, float | None, float | None]:
    """(low, high, p): Student's 95 % interval of the mean of independent values, and the p value
    of their t test against 0; all None where the values have no spread."""
    from scipy import stats

    if np.ptp(values) < 1e-9:  # one value, or equal ones
        return None, None, None
    test = stats.ttest_1samp(values, 0)
    low, high = test.confidence_interval(0.95)
    return float(low), float(high), float(test.pvalue)


def holm(p_values: list[float | None]) -> list[float | None]:
    """P values corrected for several comparisons (Holm, Scandinavian Journal of Statistics 6,
    1979): the k-th smallest of m times m - k + 1, but at least the one before and at most 1."""
    order = sorted((p, i) for i, p in enumerate(p_values) if p is not None)
    corrected, largest = list(p_values), 0.0
    for rank, (p, i) in enumerate(order):
        largest = corrected[i] = max(largest, min(1.0, p * (len(order) - rank)))
    return corrected
