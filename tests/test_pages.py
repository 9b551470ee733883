"""README and the pages: their links lead somewhere, and the commands on them exist."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PAGES = sorted(str(path.relative_to(ROOT)) for path in (
    ROOT / "README.md", *ROOT.glob("*/README.md"), *ROOT.glob("save/results/**/*.md")))


def anchors(path):
    """The names that GitHub gives a page's headings."""
    heads = re.findall(r"^#+ (.+)$", path.read_text(encoding="utf-8"), re.M)
    return {re.sub(r"[^\w -]", "", head.lower()).replace(" ", "-") for head in heads}


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page):
    lost = []
    for link in re.findall(r"\]\(([^)\s]+)\)", (ROOT / page).read_text(encoding="utf-8")):
        place, _, anchor = link.partition("#")
        target = (ROOT / page).parent / place if place else ROOT / page
        if not link.startswith("http") and not (
                target.exists() and (not anchor or anchor in anchors(target))):
            lost.append(link)
    assert lost == []


def commands(text):
    """Scripts and modules that a text names."""
    return {*re.findall(r"\bsh (scripts/[\w/{},-]+\.sh)", text),
            *(f"dm_kd/{name}.py" for name in re.findall(r"python -m dm_kd\.(\w+)", text))}


@pytest.mark.parametrize("page", [*PAGES, "dm_kd/analysis/published.csv"])
def test_commands_exist(page):
    named = commands((ROOT / page).read_text(encoding="utf-8"))
    assert [name for name in sorted(named) if "{" not in name and not (ROOT / name).exists()] == []
