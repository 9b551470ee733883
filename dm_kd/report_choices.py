"""What `report --choose` makes of trials: the setting of each method that the validation images
choose, and the one that blind agreement would have chosen."""

import re


def choices(rows: list[dict]) -> list[dict]:
    """A choice for each method with several rows METHOD_1, METHOD_2 ... (record rows of report).

    Chosen is the highest Acc@1; of equal ones that with fewer generator evaluations, then the
    first. Blind is the highest blind agreement (of student and teacher on the method's own held-out
    images), then the first; None where a row has none. lost: Acc@1 of chosen minus blind's, points.
    """
    methods = {}
    for row in rows:
        named = re.fullmatch(r"(.+)_(\d+)", row["name"])
        if named:
            methods.setdefault(named[1], {})[int(named[2])] = row
    found = [choice(method, trials) for method, trials in methods.items() if len(trials) > 1]
    return sorted(found, key=lambda c: (-c["acc1"], c["method"]))


def choice(method: str, trials: dict[int, dict]) -> dict:
    def merit(n: int) -> tuple:
        cost = trials[n]["budget"]["generator_evaluations"] or 0
        return trials[n]["acc1_mean"], -cost, -n

    best = max(trials, key=merit)
    agreements = {n: row["blind_agreement_mean"] for n, row in trials.items()}
    blind = None if None in agreements.values() else max(trials, key=lambda n: (agreements[n], -n))
    acc1 = trials[best]["acc1_mean"]
    found = {"method": method, "trials": len(trials), "chosen": best, "acc1": acc1, "blind": blind}
    if blind is None:
        return found | {"blind_acc1": None, "lost": None}
    blind_acc1 = trials[blind]["acc1_mean"]
    return found | {"blind_acc1": blind_acc1, "lost": round(acc1 - blind_acc1, 3)}


def conclude(found: list[dict]) -> list[str]:
    """How often choosing blind costs nothing, and what it costs; [] where nothing was chosen."""
    blind = [c["lost"] for c in found if c["lost"] is not None]
    if not blind:
        return []
    free = sum(lost == 0 for lost in blind)
    cost = (f"; in the others it loses {min(filter(None, blind)):.1f} to {max(blind):.1f} points, "
            f"{sum(blind) / len(blind):.1f} on average over all") if free < len(blind) else ""
    return [f"Choosing by blind agreement takes the same setting, or one as good, for {free} of "
            f"{len(blind)} methods{cost}."]
