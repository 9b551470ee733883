"""Numbers of the report against values worked out by hand, and how runs become rows."""

import fake_runs
import pytest
import sklearn
import torch
from scipy import stats as scipy_stats

from dm_kd.analysis import collect, fidelity, stats, tables


def difference(root):
    """The paired difference of the row dit to the row real."""
    rows = {row.name: row for row in collect.rows(root)}
    return stats.paired_difference(rows["dit"].runs, rows["real"].runs)


# --- runs and rows --------------------------------------------------------------------------------

def test_runs_that_differ_only_in_their_repetition_are_one_row(tmp_path):
    for fold in (0, 1):
        for seed in (0, 1):
            fake_runs.write_run(tmp_path / f"fold{fold}" / f"dit_seed{seed}", 90.0 + seed,
                                seed=seed, fold=fold)
    fake_runs.write_run(tmp_path / "seed0" / "real", 95.0)
    rows = collect.rows(tmp_path)
    assert [(row.name, len(row.runs)) for row in rows] == [("real", 1), ("dit", 4)]
    assert rows[1].acc1 == 90.5


def test_rows_of_one_name_in_other_folders_keep_their_folders(tmp_path):
    fake_runs.write_run(tmp_path / "lenet" / "real", 80.0)
    fake_runs.write_run(tmp_path / "wrn" / "real", 90.0)
    assert [row.name for row in collect.rows(tmp_path)] == ["wrn/real", "lenet/real"]


@pytest.mark.parametrize("source, generator, method", [
    ("real", None, "real"), ("syn_dataset/x", fake_runs.DIT, "dit"), ("dafl", None, "dafl"),
    ("images/cats", None, "folder"), ("list.txt", None, "folder")])
def test_what_the_student_learned_from(tmp_path, source, generator, method):
    fake_runs.write_run(tmp_path / "run", 90.0, source=source, generator=generator)
    assert collect.rows(tmp_path)[0].first.method == method


def test_unfinished_and_foreign_folders_are_left_out(tmp_path):
    for name in ("whole", "running", "unevaluated"):
        fake_runs.write_run(tmp_path / name, 90.0)
    (tmp_path / "running" / "result.json").unlink()
    (tmp_path / "unevaluated" / "result.json").write_text('{"acc1": null}')
    (tmp_path / "generator").mkdir()
    (tmp_path / "generator" / "config.yaml").write_text("steps: 5\n")
    assert [row.name for row in collect.rows(tmp_path)] == ["whole"]


def test_commands_are_those_of_generators_teachers_sets_and_students_in_that_order(
        tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for path, text in (("generators/g/result.json", '{"command": "make g"}'),
                       ("save/cnn_w32/result.json", '{"command": "make teacher"}'),
                       ("sets/s/command.txt", "make images --weights generators/g --seed 7\n")):
        (tmp_path / path).parent.mkdir(parents=True)
        (tmp_path / path).write_text(text)
    fake_runs.write_run(tmp_path / "runs" / "dit", 90.0, source="sets/s", generator=fake_runs.DIT)
    assert collect.commands(collect.rows(tmp_path / "runs")) == [
        "make g", "make teacher", "make images --weights generators/g --seed 7",
        "python -m dm_kd.distill --out dit"]


# --- statistics -----------------------------------------------------------------------------------

def grid(root, name, values):
    """A run for each (fold, seed): accuracy."""
    for (fold, seed), acc1 in values.items():
        fake_runs.write_run(root / f"fold{fold}" / f"seed{seed}" / name, acc1, fold=fold, seed=seed)


def test_folds_are_the_units_and_seeds_are_averaged_within_them(tmp_path):
    """Differences of the folds: -1 (of -0.5 and -1.5), -2 and -3; t(2) at 97.5 % is 4.3027."""
    grid(tmp_path, "real", {(0, 0): 90, (0, 1): 92, (1, 0): 80, (2, 0): 95})
    grid(tmp_path, "dit", {(0, 0): 89.5, (0, 1): 90.5, (1, 0): 78, (2, 0): 92})
    found = difference(tmp_path)
    assert (found["unit"], found["n"], found["difference"]) == ("fold", 3, -2.0)
    assert found["high"] - found["low"] == pytest.approx(2 * 4.3027 / 3 ** 0.5, abs=1e-4)
    assert found["p"] == pytest.approx(scipy_stats.ttest_1samp([-1, -2, -3], 0).pvalue)


def test_without_folds_seeds_are_the_units(tmp_path):
    grid(tmp_path, "real", {(0, 0): 90, (0, 1): 92, (0, 2): 91})
    grid(tmp_path, "dit", {(0, 0): 89, (0, 1): 90, (0, 3): 50})
    found = difference(tmp_path)
    assert (found["unit"], found["n"], found["difference"]) == ("seed", 2, -1.5)


def test_students_of_one_generator_are_not_independent(tmp_path):
    for generator in (0, 1):
        for seed in (0, 1, 2):
            place = tmp_path / f"gen{generator}" / f"seed{seed}"
            fake_runs.write_run(place / "dit", 80.0 + generator, seed=seed)
            fake_runs.write_run(place / "real", 90.0, seed=seed)
    found = difference(tmp_path)
    assert (found["unit"], found["n"], found["difference"]) == ("generator", 2, -9.5)


def test_one_unit_and_equal_differences_have_no_interval(tmp_path):
    grid(tmp_path, "real", {(0, 0): 90, (0, 1): 80})
    grid(tmp_path, "dit", {(0, 0): 90, (0, 1): 80})
    grid(tmp_path, "once", {(0, 0): 85})
    entries = {e["row"]: e for e in tables.records(collect.rows(tmp_path), "real", {})}
    assert entries["once"]["difference"] == -5 and entries["once"]["difference_low"] is None
    assert entries["dit"]["difference"] == 0 and entries["dit"]["difference_low"] is None
    assert entries["dit"]["p_holm"] is None
    assert entries["real"]["difference"] is None


def test_holm_has_the_hand_computed_values():
    assert stats.holm([0.01, None, 0.04, 0.03, 0.005]) == [
        pytest.approx(v) if v else None for v in (0.03, None, 0.06, 0.06, 0.02)]
    assert stats.holm([0.9, 0.6]) == [1.0, 1.0]


# --- published numbers ----------------------------------------------------------------------------

@pytest.mark.parametrize("task, count, total", [
    ("cifar100", 81, 4915.35), ("imagenet", 19, 1171.61), ("imagenet100", 4, 326.10),
    ("flowers102", 3, 254.80)])
def test_published_tables_are_complete_and_every_number_has_a_command(task, count, total):
    """Counted and added up from the papers' tables: a lost or mistyped number changes the sum."""
    cells = [p for p in tables.published() if p["task"] == task]
    assert (len(cells), round(sum(float(p["acc1"]) for p in cells), 2)) == (count, total)
    assert all(p["command"] and p["source"] in tables.SOURCES for p in cells)


# --- distances of sets ----------------------------------------------------------------------------

def points(*values):
    return torch.tensor(values, dtype=torch.float64)[:, None]


def normal(count, dim, seed, scale=1.0):
    draw = torch.Generator().manual_seed(seed)
    return torch.randn(count, dim, generator=draw, dtype=torch.float64) * scale


def test_frechet_distance_of_shifted_and_scaled_features_is_the_closed_form():
    real = normal(300, 3, 0)
    real = real - real.mean(0)
    shift = torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64)
    trace = float(real.T.cov().trace())  # of S and 9 S: tr(S + 9 S - 2 * 3 S) = 4 tr(S)
    assert fidelity.frechet_distance(real + shift, real) == pytest.approx(5.25, abs=1e-6)
    assert fidelity.frechet_distance(3 * real, real) == pytest.approx(4 * trace, abs=1e-6)


def test_neighbourhoods_on_a_line_have_the_hand_counted_values():
    """k = 2. Real 0, 1, 3, 20: balls of 3, 2, 3, 19. Made 2, 6, 40: balls of 38, 34, 38."""
    found = fidelity.neighbourhoods(points(0, 1, 3, 20), points(2, 6, 40), k=2)
    # 6 is exactly at the reach of 3's ball: outside, but inside 20's; 40 is outside of all
    assert found == {"precision": 2 / 3, "recall": 1.0, "coverage": 1.0}


def test_neighbourhoods_equal_the_published_package_and_do_not_depend_on_chunks():
    prdc = pytest.importorskip("prdc")
    real, made = normal(120, 5, 8), normal(90, 5, 9, 1.1)
    expected = {k: pytest.approx(float(v)) for k, v in prdc.compute_prdc(
        real.numpy(), made.numpy(), 3).items() if k != "density"}
    assert fidelity.neighbourhoods(real, made, 3) == expected
    with sklearn.config_context(working_memory=0.01):
        assert fidelity.neighbourhoods(real, made, 3) == expected
