"""README and the pages of save/results: their figures are of records, their links lead somewhere.

Every "mean ± std" and every interval must be in a record. That it is the right row's is not
checked: a figure that a new record changed, or a slip of the keyboard, is found, two rows that
changed places are not.
"""

import csv
import json
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PAGES = ("README.md", "save/results/studies.md", "save/results/rivals.md", "save/results/speed.md")
NUMBER = r"[+-]?\d+\.\d+"
STATED = re.compile(rf"(?P<mean>{NUMBER}) ± (?P<std>{NUMBER})|(?:(?P<value>{NUMBER})\*{{0,2}}"
                    rf"(?: \(|, | \| ))?(?P<low>[+-]\d+\.\d+) to (?P<high>[+-]\d+\.\d+)")
# of earlier runs, told beside the later ones; or the range of several rows, no interval
OTHERS = {"README.md": {"-1.5 to -2.9"},
          "save/results/studies.md": {"-3.0 to +0.5", "-0.20 to +0.42", "+2.3 to +2.7"}}


def of_value(value):
    """(means, intervals) in a results.json: (mean, std) and (value or None, low, high)."""
    means, intervals = [], []
    if isinstance(value, dict):
        if value.get("acc1_std") is not None:
            means.append((value["acc1_mean"], value["acc1_std"]))
        if isinstance(value.get("interval"), list):
            middle = value.get("difference", value.get("acc1_mean"))
            intervals.append((middle, *value["interval"]))
        value = list(value.values())
    if isinstance(value, str):
        intervals += [(None, float(m["low"]), float(m["high"])) for m in STATED.finditer(value)
                      if m["low"]]
    for part in value if isinstance(value, list) else []:
        found = of_value(part)
        means, intervals = means + found[0], intervals + found[1]
    return means, intervals


@pytest.fixture(scope="module")
def recorded():
    means, intervals = [], []
    for path in sorted((ROOT / "save/results").rglob("results*.json")):
        found = of_value(json.loads(path.read_text(encoding="utf-8")))
        means, intervals = means + found[0], intervals + found[1]
    for path in sorted((ROOT / "save/results").rglob("against_dit*/results.csv")):
        for row in csv.DictReader(path.read_text(encoding="utf-8").splitlines()):
            if row["against_low"]:
                intervals.append(tuple(float(row[f"against_{k}"])
                                       for k in ("difference", "low", "high")))
    assert means and intervals
    flipped = [(None if v is None else -v, -high, -low) for v, low, high in intervals]
    return means, intervals + flipped


def agrees(stated, value):
    """Whether a figure is the value rounded; the value itself may have been rounded before."""
    return abs(float(stated) - value) <= 0.6 * 10 ** -len(stated.split(".")[1])


def known(found, recorded):
    means, intervals = recorded
    if found["mean"]:
        return any(agrees(found["mean"], m) and agrees(found["std"], s) for m, s in means)
    return any(agrees(found["low"], low) and agrees(found["high"], high)
               and (None in (value, found["value"]) or agrees(found["value"], value))
               for value, low, high in intervals)


@pytest.mark.parametrize("page", PAGES)
def test_figures_are_of_records(page, recorded):
    text = " ".join((ROOT / page).read_text(encoding="utf-8").split())
    stated = [m for m in STATED.finditer(text)
              if not any(other in m.group() for other in OTHERS.get(page, ()))]
    assert len(stated) > 15
    assert [m.group() for m in stated if not known(m, recorded)] == []


def test_a_slip_is_found(recorded):
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    stated = [m for m in STATED.finditer(text) if known(m, recorded)]
    slips = [STATED.search(re.sub(r"\d(?!.*\d)", lambda d: str((int(d[0]) + 5) % 10), m.group()))
             for m in stated]
    assert sum(known(m, recorded) for m in slips) < len(slips) / 3


def anchors(path):
    """The names that GitHub gives a page's headings."""
    heads = re.findall(r"^#+ (.+)$", path.read_text(encoding="utf-8"), re.M)
    return {re.sub(r"[^\w -]", "", head.lower()).replace(" ", "-") for head in heads}


@pytest.mark.parametrize("page", [*PAGES, "save/results/README.md", "true_dataset/README.md"])
def test_links_lead_somewhere(page):
    lost = []
    for link in re.findall(r"\]\(([^)\s]+)\)", (ROOT / page).read_text(encoding="utf-8")):
        place, _, anchor = link.partition("#")
        target = (ROOT / page).parent / place if place else ROOT / page
        if not link.startswith("http") and not (
                target.exists() and (not anchor or anchor in anchors(target))):
            lost.append(link)
    assert lost == []
