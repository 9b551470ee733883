"""Who imports whom, read from the source: the layers of the package, and what loads only on use."""

import ast
from pathlib import Path

import pytest

from dm_kd.__main__ import BENCHES, COMMANDS

PACKAGE = Path(__file__).parent.parent / "dm_kd"
SOURCES = {".".join(p.relative_to(PACKAGE).with_suffix("").parts): p
           for p in sorted(PACKAGE.rglob("*.py")) if p.name != "__init__.py"}
ENTRIES = {"synthesize", "distill", "train_teacher", "train_generator", "evaluate", "inspect_set",
           "export", "report"}
LEAVES = {"errors", "files", "image_files", "class_names"}  # anyone may import them
MAKERS = {"tasks", "real_data", "models", "image_set", "objectives", "inversion_terms", "augment"}
ALLOWED = {  # besides the leaves; what is not listed imports nothing else of the package
    "errors": set(), "class_names": set(), "files": {"errors"},
    "image_files": {"errors", "files"}, "tasks": {"real_data"},
    "models": {"tasks", "small_models"}, "run": {"dist"},
    "image_set": {"dist", "augment"}, "fidelity": {"augment"},
    "import_export": {"augment", "image_set", "tasks"},
    "report_figures": {"report_canvas", "report_fidelity", "report_pictures", "report_runs",
                       "report_statistics"},
    "report_fidelity": {"image_set", "report_canvas", "report_pictures", "report_runs",
                        "report_statistics"},
    "report_pictures": {"augment", "image_set", "tasks", "report_canvas", "report_runs"},
    "report_page": {"published", "report_runs"},
    "report_runs": {"run"}, "report_statistics": {"report_runs"},
    "engine": {"augment", "objectives", "run", "dist"}}
FLAG_TYPES = {"positive_int", "nonnegative_int", "positive_float", "nonnegative_float",
              "probability", "epoch_list", "Progress"}
OF_RUN = FLAG_TYPES | {"multiplies_bf16"}  # what those that make images may take from it
HEAVY = {"torchvision", "diffusers", "torchmetrics", "matplotlib", "sklearn", "timm",
         "transformers", "yaml", "tqdm"}


def imports(node: ast.AST):
    """(module, names) of every import in a piece of source, names () for a plain import."""
    for part in ast.walk(node):
        if isinstance(part, ast.Import):
            yield from ((alias.name, ()) for alias in part.names)
        elif isinstance(part, ast.ImportFrom):
            assert part.level == 0, "relative import"
            yield part.module, tuple(alias.name for alias in part.names)


def of_package(name: str) -> dict[str, set[str]]:
    """Modules of the package that a module imports, with the names taken from each."""
    found: dict[str, set[str]] = {}
    for module, names in imports(ast.parse(SOURCES[name].read_text())):
        if module == "dm_kd" or module in ("dm_kd.generators", "dm_kd.sources", "dm_kd.bench"):
            prefix = module.removeprefix("dm_kd").strip(".")
            for part in names:
                found.setdefault(f"{prefix}.{part}".strip("."), set())
        elif module.startswith("dm_kd."):
            found.setdefault(module.removeprefix("dm_kd."), set()).update(names)
    return found


def folder(name: str) -> str:
    return name.split(".")[0] if "." in name else ""


def test_the_reader_sees_imports_of_every_form():
    assert {"augment", "dist", "errors", "run", "files"} <= of_package("engine").keys()
    assert "positive_int" in of_package("engine")["run"]
    assert "sources.stored" in of_package("distill")
    assert "run" in of_package("generators.dit")


@pytest.mark.parametrize("name", SOURCES)
def test_a_module_imports_only_modules_that_exist(name):
    assert of_package(name).keys() <= SOURCES.keys()


@pytest.mark.parametrize("name", [n for n in SOURCES if n in ALLOWED or not folder(n)
                                  and n not in ENTRIES | {"__main__", "frozen"}])
def test_a_part_imports_only_the_layers_below_it(name):
    allowed = ALLOWED.get(name, set()) | (set() if name in LEAVES else LEAVES)
    assert of_package(name).keys() <= allowed


@pytest.mark.parametrize("name", [n for n in SOURCES if folder(n) in ("generators", "sources")])
def test_generators_and_sources_import_what_makes_images_and_little_of_run(name):
    found = of_package(name)
    own = {n for n in SOURCES if folder(n) == folder(name)}
    assert found.keys() <= MAKERS | LEAVES | own | {"run"}
    assert found.get("run", OF_RUN) and found.get("run", set()) <= OF_RUN


@pytest.mark.parametrize("name", sorted(ENTRIES & SOURCES.keys()))
def test_entries_import_no_entries_and_no_bench(name):
    found = of_package(name).keys()
    assert not found & ENTRIES and not any(folder(n) == "bench" for n in found)
    assert found  # an entry does something


def test_the_starter_of_commands_names_no_module_but_errors_in_its_imports():
    assert of_package("__main__").keys() <= {"errors"}


def test_the_starter_knows_every_command():
    runnable = {name for name, path in SOURCES.items()
                if path.read_text().endswith("sys.exit(main())\n")}
    assert set(COMMANDS) == ENTRIES and {*COMMANDS, *BENCHES} == runnable


@pytest.mark.parametrize("name", SOURCES)
def test_heavy_packages_are_imported_on_use_only(name):
    top = ast.Module([n for n in ast.parse(SOURCES[name].read_text()).body
                      if not isinstance(n, (ast.FunctionDef, ast.ClassDef))], [])
    roots = {module.split(".")[0] for module, _ in imports(top)}
    assert not roots & HEAVY


@pytest.mark.parametrize("name", SOURCES)
def test_a_module_says_at_its_top_what_it_is_for(name):
    assert len(ast.get_docstring(ast.parse(SOURCES[name].read_text())) or "") > 40
