"""Reports: grouping, paired comparison, damaged runs, and a page that stands alone."""

import base64
import json
import re

import numpy as np
import pytest
import yaml

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
