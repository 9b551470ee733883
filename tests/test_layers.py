"""Who imports whom at the top of a file, read from the source: levels, circles, hubs, entries."""

import ast
import functools
from pathlib import Path

PACKAGE = Path(__file__).parent.parent / "dm_kd"
SOURCES = {".".join(p.relative_to(PACKAGE).with_suffix("").parts): p
           for p in sorted(PACKAGE.rglob("*.py")) if p.name != "__init__.py"}
ENTRIES = {"synthesize", "distill", "train_teacher", "train_generator", "evaluate", "inspect_set",
           "export", "report", "study", "bench"}
HUBS = {"tasks", "run", "dist"}  # anyone may import them
ON_USE = {"diffusers", "timm", "transformers", "sklearn"}  # slow or optional


def imports_at_top(name: str) -> set[str]:
    """Dotted names that a module imports when it is imported itself, not inside a function."""
    found = set()
    for node in ast.parse(SOURCES[name].read_text()).body:
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return found


@functools.cache
def of_package(name: str) -> frozenset[str]:
    """Modules of the package that a module imports."""
    return frozenset({n.removeprefix("dm_kd.") for n in imports_at_top(name)} & SOURCES.keys())


def level(name: str, above: tuple[str, ...] = ()) -> int:
    """The number of modules in the longest chain of imports from a module down."""
    assert name not in above, f"import circle: {' -> '.join((*above, name))}"
    return 1 + max((level(other, (*above, name)) for other in of_package(name)), default=0)


def test_imports_form_at_most_six_levels_and_no_circle():
    levels = {name: level(name) for name in SOURCES}
    assert max(levels.values()) <= 6, sorted(levels.items(), key=lambda item: -item[1])[:5]


def test_no_file_is_imported_by_more_than_half_of_the_others():
    for name in SOURCES.keys() - HUBS:
        users = [other for other in SOURCES if name in of_package(other)]
        assert len(users) <= len(SOURCES) / 2, (name, users)


def test_no_file_imports_an_entry():
    for name in SOURCES:
        assert not of_package(name) & ENTRIES, name


def test_slow_and_optional_packages_are_imported_on_use():
    for name in SOURCES:
        assert not {n.split(".")[0] for n in imports_at_top(name)} & ON_USE, name
