"""Reports: grouping, paired comparison, damaged runs, and a page that stands alone."""

import base64
import json
import re

import numpy as np
import pytest
import yaml
from fake_runs import DIT, guesses
from fake_runs import write_run as write_fake

from dm_kd import report


def write_run(folder, seed, fold, guesses, ids, labels, groups, source="real"):
    folder.mkdir(parents=True)
    right = np.mean(np.array(guesses) == np.array(labels))
    (folder / "config.yaml").write_text(yaml.safe_dump({
        "seed": seed, "fold": fold, "task": "digits", "teacher": "t", "student": "cnn_w8",
        "source": source}))
    (folder / "student.json").write_text(json.dumps({"teacher": {"name": "cnn_w32"}}))
    (folder / "result.json").write_text(json.dumps({
        "acc1": 100 * right, "val_images": len(ids), "best_acc1": 100 * right, "agreement": 90.0,
        "seconds": 1.0, "images_seen": 10, "command": f"command of {folder.name}"}))
    (folder / "metrics.jsonl").write_text(json.dumps({"epoch": 1, "val_acc1": 50.0}) + "\n")
    (folder / "predictions.json").write_text(json.dumps({
        "ids": ids, "groups": groups, "labels": labels, "predictions": guesses}))


@pytest.fixture
def study(tmp_path):
    """Two rows, two seeds, two folds of 20 images in 4 groups each; row `ours` has 1 error per fold
    and seed, row `base` has 3."""
    for seed in (0, 1):
        for fold in (0, 1):
            ids = list(range(20 * fold, 20 * fold + 20))
            labels = [i % 10 for i in ids]
            groups = [4 * fold + (i % 4) for i in range(20)]
            for name, errors in (("ours", 1), ("base", 3)):
                guesses = [(v + 1) % 10 if i < errors else v for i, v in enumerate(labels)]
                write_run(tmp_path / "runs" / f"fold{fold}_seed{seed}" / name, seed, fold, guesses,
                          ids, labels, groups)
    return tmp_path


def test_trials_of_one_name_are_one_row_and_folds_are_pooled(study):
    trials, problems = report.find_trials(study / "runs")
    rows = report.make_rows(trials, [])
    assert problems == [] and [row["name"] for row in rows] == ["ours", "base"]
    assert rows[0]["acc1_by_seed"] == {0: 95.0, 1: 95.0} and rows[1]["mean"] == 85.0
    assert rows[0]["std"] == 0.0 and rows[0]["folds"] == 2


def test_paired_difference_has_the_hand_computed_value(study):
    rows = report.make_rows(report.find_trials(study / "runs")[0], [])
    found = report.compare(rows[0]["trials"], rows[1]["trials"], seed=0)
    assert found["difference"] == 10.0 and found["images"] == 40 and found["groups"] == 8
    assert found["seed_error"] == 0.0 and found["test_error"] > 0
    assert found["interval"][0] <= found["lower_bound"] <= 10.0 <= found["interval"][1]


def test_identical_rows_differ_by_nothing(study):
    rows = report.make_rows(report.find_trials(study / "runs")[0], [])
    found = report.compare(rows[0]["trials"], rows[0]["trials"], seed=0)
    assert found["difference"] == 0 and found["interval"] == [0, 0] and found["test_error"] == 0


def test_a_seed_offset_shows_as_seed_error_only(tmp_path):
    ids, labels = list(range(40)), [0] * 40
    for seed, errors in ((0, 0), (1, 8)):
        guesses = [1 if i % 5 == 0 and errors else 0 for i in ids]
        write_run(tmp_path / f"seed{seed}" / "a", seed, 0, guesses, ids, labels,
                  [i // 5 for i in ids])
        write_run(tmp_path / f"seed{seed}" / "b", seed, 0, labels, ids, labels,
                  [i // 5 for i in ids])
    rows = {r["name"]: r for r in report.make_rows(report.find_trials(tmp_path)[0], [])}
    found = report.compare(rows["a"]["trials"], rows["b"]["trials"], seed=0)
    assert found["difference"] == -10.0 and found["seed_error"] == 10.0
    assert found["test_error"] == 0.0  # every group has the same share of errors


def test_page_stands_alone_and_shows_commands_and_problems(study, capsys):
    broken = study / "runs" / "fold0_seed0" / "ours" / "result.json"
    broken.write_text(broken.read_text()[:20])
    unfinished = study / "runs" / "later"
    unfinished.mkdir()
    (unfinished / "config.yaml").write_text("seed: 0\n")
    code = report.main(["--runs", str(study / "runs"), "--out", str(study / "out"),
                        "--baseline", "base"])
    page = (study / "out" / "report.html").read_text()
    assert code == 0 and "not finished" in page and "damaged" in page and "command of base" in page
    assert not re.search(r"(src|href)=['\"]?(http|//)", page)
    record = json.loads((study / "out" / "results.json").read_text())
    assert len(record["left_out"]) == 2 and record["against_baseline"]["ours"]["seeds"] == 2
    assert "ours" in capsys.readouterr().out


def test_unknown_baseline_names_the_nearest(study, capsys):
    code = report.main(["--runs", str(study / "runs"), "--out", str(study / "out"),
                        "--baseline", "bas"])
    assert code == 2 and "did you mean base" in capsys.readouterr().err


def test_a_folder_without_runs_is_a_users_error(tmp_path, capsys):
    assert report.main(["--runs", str(tmp_path), "--out", str(tmp_path / "out")]) == 2
    assert "no finished run" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_the_page_shows_what_inspect_set_found_with_its_picture(study):
    place = study / "runs" / "inspect.json"
    place.write_text(json.dumps({"sentence": "a set: 12 images", "frechet": 1.5}))
    found = report.find_inspections(study / "runs", [])
    assert found[0]["frechet"] == 1.5 and found[0]["picture"] is None
    place.with_suffix(".png").write_bytes(b"\x89PNG of the set")
    assert report.main(["--runs", str(study / "runs"), "--out", str(study / "out")]) == 0
    page = (study / "out" / "report.html").read_text()
    assert "a set: 12 images" in page
    assert base64.b64encode(b"\x89PNG of the set").decode() in page


# --- nested trials --------------------------------------------------------------------------------

def trial(right, seed=0, gen=None, made=None, weights=None, groups=None, fold=0):
    """What `compare` reads of a trial: right is [images] of 0 and 1."""
    n = len(right)
    return {"replicate": (gen, made, seed), "fold": fold, "inputs": {},
            "card": {"generator": {"weights_sha256": weights} if weights else None},
            "predictions": {"ids": np.arange(n), "labels": np.ones(n, int),
                            "predictions": np.array(right),
                            "groups": np.arange(n) % 10 if groups is None else groups}}


def right(errors):
    """100 images in 10 groups of 10, `errors` of each group wrong: no test error."""
    return [0 if i // 10 < errors else 1 for i in range(100)]


def test_generators_are_redrawn_whole_not_their_students_one_by_one():
    ours = [trial(right(g), seed, gen=g) for g in (0, 1, 2) for seed in (0, 1)]
    base = [trial(right(1), seed, gen=g) for g in (0, 1, 2) for seed in (0, 1)]
    found = report.compare(ours, base, seed=0)
    assert found["redrawn"] == "3 generators" and found["seeds"] == 6
    assert found["difference"] == 0 and found["test_error"] == 0
    assert found["seed_error"] == pytest.approx(10 / 3 ** 0.5, abs=1e-3)
    assert found["interval"] == [-10, 10]  # one generator three times: 1 draw in 27


def test_students_of_one_generator_are_redrawn_one_by_one():
    ours = [trial(right(seed), seed, gen=0) for seed in (0, 1, 2)]
    found = report.compare(ours, None, seed=0)
    assert found["redrawn"] == "3 seeds" and found["interval"] == [80, 100]


def test_sets_of_one_generator_are_redrawn_as_sets():
    ours = [trial(right(s), seed, gen=0, made=s) for s in (0, 1) for seed in (0, 1)]
    found = report.compare(ours, None, seed=0)
    assert found["redrawn"] == "2 sets" and found["interval"] == [90, 100]


def test_generators_are_told_apart_by_their_weights_where_no_name_says_which():
    ours = [trial(right(seed // 2), seed, weights="ab"[seed // 2]) for seed in range(4)]
    base = [trial(right(0), seed) for seed in range(4)]
    found = report.compare(ours, base, seed=0)
    assert found["redrawn"] == "2 generators" and found["difference"] == -5
    assert found["seed_error"] == pytest.approx(5)


def test_each_seed_with_a_generator_of_its_own_is_a_generator_in_every_fold():
    ours = [{**trial(right(0), seed, weights=f"{fold}{seed}", fold=fold)}
            for seed in (0, 1) for fold in (0, 1)]
    assert report.compare(ours, None, seed=0)["redrawn"] == "2 generators"


def test_a_shared_baseline_is_redrawn_too():
    ours = [trial(right(1), seed, gen=g) for g in (0, 1, 2) for seed in (0, 1)]
    base = [trial(right(2 * seed), seed) for seed in (0, 1)]
    found = report.compare(ours, base, seed=0)
    assert found["seeds"] == 6 and found["difference"] == 0
    assert found["interval"] == [-10, 10]  # the same seed of the baseline twice: 1 draw in 2


def test_a_baseline_with_generators_is_paired_with_each_of_them():
    ours = [trial(right(0), seed) for seed in (0, 1)]
    base = [trial(right(g), seed, gen=g) for g in (0, 1) for seed in (0, 1)]
    found = report.compare(ours, base, seed=0)
    assert found["seeds"] == 4 and found["difference"] == 5


def test_many_groups_have_the_normal_limit_of_the_bootstrap():
    numbers = np.random.default_rng(0)
    answers = (numbers.random((2, 4000)) < 0.8).astype(int)
    ours, base = ([trial(a, groups=np.arange(4000))] for a in answers)
    found = report.compare(ours, base, seed=0)
    differences = 100.0 * (answers[0] - answers[1])
    error = differences.std() / 4000 ** 0.5
    assert found["groups"] == 4000 and found["test_error"] == pytest.approx(error, rel=0.03)
    low, high = found["interval"]
    assert high - low == pytest.approx(2 * 1.96 * error, rel=0.04)


def test_few_and_many_groups_agree_on_the_same_predictions(monkeypatch):
    answers = (np.random.default_rng(1).random(900) < 0.7).astype(int)
    ours = [trial(answers, groups=np.arange(900))]
    exact = report.compare(ours, None, seed=0)
    monkeypatch.setattr(report, "MANY_GROUPS", 100)
    limit = report.compare(ours, None, seed=0)
    assert limit["interval"] == pytest.approx(exact["interval"], abs=0.25)
    assert limit["test_error"] == pytest.approx(exact["test_error"], rel=0.04)


# --- rows -----------------------------------------------------------------------------------------

def test_rows_of_one_name_in_other_folders_stay_apart(tmp_path):
    for place in ("lenet/seed0/real", "wrn/seed0/real", "wrn/seed0/noise"):
        write_fake(tmp_path / place)
    rows = report.make_rows(report.find_trials(tmp_path)[0], [])
    assert sorted(row["name"] for row in rows) == ["lenet/real", "noise", "wrn/real"]


def test_a_row_names_its_generators_sets_and_seeds(tmp_path):
    for g in (0, 1):
        write_fake(tmp_path / f"gen{g}" / "a_set3", seed=5)
    row, = report.make_rows(report.find_trials(tmp_path)[0], [])
    assert list(row["acc1_by_seed"]) == ["gen0 set3 seed5", "gen1 set3 seed5"]


def test_the_record_of_a_row_has_its_interval_budget_and_published_numbers(tmp_path):
    write_fake(tmp_path / "runs" / "dm-kd", 80, task="cifar100", teacher="cifar_resnet34",
               student="cifar_resnet18", source="syn/x", teacher_acc1=97.5,
               generator={**DIT, "guidance_scale": 2.0, "steps": 100})
    (tmp_path / "runs" / "inspect.json").write_text(json.dumps(
        {"set": "syn/./x", "sentence": "a set", "frechet": 2.5}))
    out = tmp_path / "out"
    assert report.main(["--runs", str(tmp_path / "runs"), "--out", str(out)]) == 0
    record = json.loads((out / "results.json").read_text())
    row, = record["rows"]
    assert row["published"] == [{"acc1": 76.58, "source": "DM-KD", "images": None}]
    assert row["budget"]["generator_evaluations"] == 40_000 and row["teacher_acc1"] == 97.5
    assert row["interval"][0] < row["acc1_mean"] < row["interval"][1]
    assert row["set"]["frechet"] == 2.5 and row["guidance_scale"] == 2.0
    assert record["generators"][0]["licence"] == "CC-BY-NC 4.0"
    assert record["machines"] == [{"versions": {"torch": "2.15.0"}, "runs": 1,
                                   "hardware": {"cpu": "a processor", "cores": 2}}]
    assert "76.58 DM-KD" in (out / "results.csv").read_text()
    assert "76.58 DM-KD" in (out / "results.md").read_text()


def test_the_published_tables_have_ours_where_a_run_fills_a_cell(tmp_path, capsys):
    generator = {**DIT, "guidance_scale": 2.0, "steps": 100}
    networks = {"teacher": "cifar_resnet34", "student": "cifar_resnet18", "task": "cifar100"}
    for seed, acc1 in ((0, 80), (1, 90)):
        write_fake(tmp_path / "runs" / f"dm-kd_seed{seed}", acc1, seed=seed, source="syn/x",
                   generator=generator, **networks)
    for name, k in (("fast", 10), ("fast5", 5)):
        write_fake(tmp_path / "runs" / name, 55 + k, source="fastdfkd", inner_steps=k,
                   per_class=None, **networks)
    write_fake(tmp_path / "runs" / "own", 70, source="syn/own", **networks, generator=generator | {
        "trained_on": "real training images of cifar100, fold 0 (--val val)"})
    few = {"task": "imagenet", "teacher": "resnet18", "student": "resnet50"}
    for name, acc1, per_class in (("a", 60, 14_000), ("b", 40, 700)):  # x 10: 140,000 and 7,000
        write_fake(tmp_path / "runs" / name, acc1, source="syn/i", generator=generator,
                   per_class=per_class, **few)
    out = tmp_path / "out"
    assert report.main(["--published", "--runs", str(tmp_path / "runs"), "--out", str(out)]) == 0
    assert [p.name for p in out.iterdir()] == ["published_tables.md"]
    lines = (out / "published_tables.md").read_text().splitlines()
    cells = {line.split(" | ")[0]: line.split(" | ") for line in reversed(lines)}  # first tables
    assert cells["| DM-KD"][1:4] == ["76.58", "85.00 ± 7.07", "70.83"]
    assert cells["| Fast-5"][1:3] == ["72.82", "60.00"] and cells["| Fast-2"][2] == ""
    assert cells["| Fast-10 (the paper's FastDFKD)"][1:3] == ["74.34", "65.00"]
    assert cells["| DM-KD, 140K"][4:6] == ["66.74", "60.00"]
    assert cells["| DM-KD, 200K"][4:6] == ["68.63", ""]
    assert "published numbers" in capsys.readouterr().out


def test_the_published_tables_need_no_runs_and_all_else_does(tmp_path, capsys):
    assert report.main(["--published", "--out", str(tmp_path), "--dry-run"]) == 0
    assert "would write the published numbers" in capsys.readouterr().out
    assert not list(tmp_path.iterdir())
    assert report.main(["--published", "--out", str(tmp_path)]) == 0
    text = (tmp_path / "published_tables.md").read_text()
    assert "| 69.75 |  | 54.66 |  | 43.15 |" in text and "sh" in text
    assert report.main(["--out", str(tmp_path)]) == 2
    assert "--runs" in capsys.readouterr().err


def test_the_question_stands_above_the_answer(study):
    assert report.main(["--runs", str(study / "runs"), "--out", str(study / "out"),
                        "--question", "Which is <better>?"]) == 0
    page = (study / "out" / "report.html").read_text()
    assert 0 < page.index("Which is &lt;better&gt;?") < page.index("Best row: ours")
    assert "Which is" in (study / "out" / "results.md").read_text()


def test_the_fake_runs_have_the_accuracy_they_were_asked_for():
    labels, answers = guesses(80, 50, 0)
    assert np.mean(np.array(labels) == answers) == 0.8
