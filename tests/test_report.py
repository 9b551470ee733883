"""Reports: grouping, paired comparison, damaged runs, and a page that stands alone."""

import base64
import itertools
import json
import re
from xml.etree import ElementTree

import numpy as np
import pytest
import yaml
from fake_runs import DIT, guesses
from fake_runs import write_run as write_fake

from dm_kd import report, report_canvas
from dm_kd import report_statistics as statistics


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


def test_unknown_rows_of_the_order_are_named_and_refused_where_there_is_no_other(study, capsys):
    def said(rows, code):
        assert report.main(["--runs", str(study / "runs"), "--out", str(study / "out"),
                            "--rows", rows]) == code
        return capsys.readouterr().err

    assert said("base,ours", 0) == ""
    assert said("base,zzz,our", 0).splitlines() == [
        "note: no row 'zzz' for --rows: one of base, ours",
        "note: no row 'our' for --rows: did you mean ours"]
    assert said("zzz", 2).startswith("error: no row 'zzz'\n  try      --rows: one of base, ours")
    assert "no row 'zzz' nor any other of --rows" in said("zzz,our", 2)


def test_a_folder_without_runs_is_a_users_error(tmp_path, capsys):
    assert report.main(["--runs", str(tmp_path), "--out", str(tmp_path / "out")]) == 2
    assert "no finished run" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_runs_that_are_finished_but_not_judged_are_told_from_none(tmp_path, capsys):
    run = write_fake(tmp_path / "run", val="none")
    result = json.loads((run / "result.json").read_text())
    (run / "result.json").write_text(json.dumps(result | {"acc1": None, "val_images": 0}))
    assert report.main(["--runs", str(tmp_path), "--out", str(tmp_path / "out")]) == 2
    said = capsys.readouterr().err
    assert "the finished runs there (1) are not judged (--val none)" in said and str(run) in said
    assert not (tmp_path / "out").exists()


def test_the_page_shows_what_inspect_set_found_with_its_picture(study):
    place = study / "runs" / "inspect.json"
    place.write_text(json.dumps({"sentence": "a set: 12 images", "frechet": 1.5}))
    found = report.find_inspections(study / "runs", [])
    assert found[0]["frechet"] == 1.5 and found[0]["picture"] is None
    place.with_suffix(".png").write_bytes(b"\x89PNG\r\n\x1a\n of the set")
    assert report.main(["--runs", str(study / "runs"), "--out", str(study / "out")]) == 0
    page = (study / "out" / "report.html").read_text()
    assert "a set: 12 images" in page
    assert base64.b64encode(b"\x89PNG\r\n\x1a\n of the set").decode() in page


# --- nested trials --------------------------------------------------------------------------------

def trial(right, seed=0, gen=None, made=None, weights=None, groups=None, fold=0, first=0,
          labels=None, val="val"):
    """What `compare` reads of a trial: right is [images] of 0 and 1, ids from `first` on."""
    labels = np.ones(len(right), int) if labels is None else labels
    return {"replicate": (gen, made, seed), "fold": fold, "inputs": {}, "task": "digits",
            "card": {"generator": {"weights_sha256": weights} if weights else None},
            "config": {"val": val}, "predictions": {
                "ids": first + np.arange(len(right)), "labels": labels,
                "predictions": np.where(right, labels, 1 - labels),
                "groups": np.arange(len(right)) % 10 if groups is None else groups}}


def right(errors):
    """100 images in 10 groups of 10, `errors` of each group wrong: no test error."""
    return [0 if i // 10 < errors else 1 for i in range(100)]


def about(middle, half):
    return pytest.approx([middle - half, middle + half], abs=0.01)


T1, T2, T4 = 12.7062, 4.30265, 2.77645  # Student's 97.5 % quantiles for 1, 2, 4 degrees


def test_generators_count_whole_not_their_students_one_by_one():
    ours = [trial(right(g), seed, gen=g) for g in (0, 1, 2) for seed in (0, 1)]
    base = [trial(right(1), seed, gen=g) for g in (0, 1, 2) for seed in (0, 1)]
    found = report.compare(ours, base, seed=0)
    assert found["members"] == "3 generators" and found["runs"] == 6 and found["seeds"] == 2
    assert found["difference"] == 0 and found["test_error"] == 0
    assert found["seed_error"] == pytest.approx(10 / 3 ** 0.5, abs=1e-3)
    assert found["interval"] == about(0, T2 * 10 / 3 ** 0.5) and found["note"] == ""


def test_students_of_one_generator_count_one_by_one_and_an_accuracy_stays_below_100():
    found = report.compare([trial(right(seed), seed, gen=0) for seed in (0, 1, 2)], None, seed=0)
    assert found["members"] == "3 seeds" and found["generators"] == 1
    assert found["interval"] == [pytest.approx(90 - T2 * 10 / 3 ** 0.5, abs=0.01), 100]
    assert found["note"] == "one generator a fold: the spread of others not in the interval"
    real = report.compare([trial(right(seed), seed) for seed in (0, 1, 2)], None, seed=0)
    assert real["interval"] == found["interval"] and real["note"] == ""


def test_sets_of_one_generator_count_as_sets():
    ours = [trial(right(s), seed, gen=0, made=s) for s in (0, 1) for seed in (0, 1)]
    found = report.compare(ours, None, seed=0)
    assert found["members"] == "2 sets" and "one generator a fold" in found["note"]
    assert found["interval"][0] == pytest.approx(95 - T1 * 5, abs=0.01)


def test_generators_are_told_apart_by_their_weights_where_no_name_says_which():
    ours = [trial(right(seed // 2), seed, weights="ab"[seed // 2]) for seed in range(4)]
    base = [trial(right(0), seed) for seed in range(4)]
    found = report.compare(ours, base, seed=0)
    assert found["members"] == "2 generators" and found["difference"] == -5
    assert found["seed_error"] == pytest.approx(5)


def test_each_seed_with_a_generator_of_its_own_is_a_generator_in_every_fold():
    ours = [trial(right(0), seed, weights=f"{fold}{seed}", fold=fold, first=100 * fold)
            for seed in (0, 1) for fold in (0, 1)]
    found = report.compare(ours, None, seed=0)
    assert found["members"] == "2 generators" and found["images"] == 200


def test_the_spread_of_a_shared_baseline_counts_too():
    ours = [trial(right(1), seed, gen=g) for g in (0, 1, 2) for seed in (0, 1)]
    base = [trial(right(2 * seed), seed) for seed in (0, 1)]
    found = report.compare(ours, base, seed=0)
    assert found["runs"] == 6 and found["difference"] == 0
    assert found["seed_error"] == pytest.approx(10) and found["interval"] == about(0, T1 * 10)


def test_a_baseline_of_one_run_leaves_its_spread_unknown():
    ours = [trial(right(g), gen=g) for g in (0, 1, 2)]
    found = report.compare(ours, [trial(right(1))], seed=0)
    assert found["seed_error"] is None and "one run on a side" in found["note"]


def test_a_baseline_with_generators_is_paired_with_each_of_them():
    ours = [trial(right(0), seed) for seed in (0, 1)]
    base = [trial(right(g), seed, gen=g) for g in (0, 1) for seed in (0, 1)]
    found = report.compare(ours, base, seed=0)
    assert found["runs"] == 4 and found["difference"] == 5


def test_an_unfinished_fold_takes_no_image_from_the_others():
    ours = [trial(right(1 + fold), seed, fold=fold, first=100 * fold)
            for seed in (0, 1) for fold in (0, 1)]
    base = [trial(right(0), t["replicate"][2], fold=t["fold"], first=100 * t["fold"])
            for t in ours[:3]]  # seed 1 has not done fold 1
    found = report.compare(ours, base, seed=0)
    assert found["images"] == 200 and found["difference"] == -15 and found["runs"] == 3
    assert found["note"] == "runs differ in number by fold (2, 1); 3 of 4 runs paired"


def test_a_fold_of_one_run_borrows_the_spread_of_the_others():
    runs = [trial(right(errors), seed, fold=fold, first=100 * fold)
            for fold, seed, errors in ((0, 0, 0), (0, 1, 2), (1, 0, 1))]
    found = report.compare(runs, None, seed=0)
    # s^2 = 200 in fold 0: 200 / 2 there, 200 / 1 in fold 1, a quarter of their sum
    assert found["seed_error"] == pytest.approx(75 ** 0.5, abs=1e-3)


def test_folds_stand_for_runs_whose_spread_a_fold_cannot_show():
    """Of 3 folds with 10, 20 and 30 % of their 100, 100 and 200 images wrong, the mean is 77.5."""
    def runs(folds=3, seeds=1, **about):
        return [trial(right(1 + fold) * (1 + fold // 2), seed, fold=fold, first=300 * fold,
                      **about) for fold in range(folds) for seed in range(seeds)]

    found = report.compare(runs(), None, seed=0)
    # shares 1/4, 1/4, 1/2, off by 12.5, 2.5, -7.5: 3 / 2 * (9.77 + 0.39 + 14.06) = 36.33
    assert found["members"] == "3 folds" and found["note"] == "" and found["test_error"] == 0
    assert found["seed_error"] == pytest.approx(6.027, abs=0.01)
    assert found["interval"] == [pytest.approx(77.5 - T2 * 6.027, abs=0.05), 100]
    assert report.compare(runs(seeds=2, gen=0), None, seed=0)["interval"] == found["interval"]
    assert report.compare(runs(seeds=2), None, seed=0)["members"] == "2 seeds"
    assert "spread of training" in report.compare(runs(folds=2), None, seed=0)["note"]


def test_folds_alike_by_chance_do_not_narrow_what_the_runs_say():
    runs = [trial(right(seed), seed, gen=0, fold=fold, first=100 * fold)
            for fold in range(3) for seed in (0, 2)]
    found = report.compare(runs, None, seed=0)
    assert found["members"] == "3 folds" and found["interval"][1] == 100
    assert found["seed_error"] == pytest.approx(10 / 3 ** 0.5, abs=0.01)
    assert found["interval"][0] == pytest.approx(90 - 3.18245 * 10 / 3 ** 0.5, abs=0.01)


def test_seeds_on_images_of_their_own_are_compared_and_the_training_is_unknown():
    ours, base = ([trial(right(e + seed), seed, fold=seed, first=100 * seed) for seed in (0, 1)]
                  for e in (1, 2))
    found = report.compare(ours, base, seed=0)
    assert found["difference"] == 10 and found["images"] == 200 and found["seed_error"] is None
    assert found["note"] == "seeds: 1: spread of training not in the interval"


def test_folds_that_differ_in_difficulty_are_no_test_error():
    runs = [trial(right(5 * fold), 0, fold=fold, first=100 * fold) for fold in (0, 1)]
    found = report.compare(runs, None, seed=0)
    assert found["difference"] == 75 and found["test_error"] == 0


def test_the_variance_of_redrawn_groups_is_unbiased():
    # 0 or 1, drawn twice: means 0, 0.5, 1 with variance 1/8; s^2 / n is 1/4
    assert statistics.redrawn(np.array([[0.0, 7.0]]), np.array([7, 7]), 0) == pytest.approx(
        0.25, rel=1e-12)


@pytest.mark.parametrize("n", [2, 3, 5])
def test_few_groups_are_redrawn_in_every_way_whatever_the_seed(n):
    rng = np.random.default_rng(n)
    sums, counts = rng.normal(size=(1, n)), rng.integers(1, 9, n).astype(float)
    found = {statistics.redrawn(sums, counts, seed) for seed in range(3)}
    ways = [list(way) for way in itertools.product(range(n), repeat=n)]
    means = [sums[0, way].sum() / counts[way].sum() for way in ways]
    assert len(found) == 1 and found.pop() == pytest.approx(np.var(means) * n / (n - 1))


def test_many_groups_are_redrawn_as_often_as_is_said():
    assert len(statistics.draws(0, 6)) == statistics.BOOTSTRAP_DRAWS


def test_each_part_has_the_quantile_of_its_own_degrees_of_freedom():
    # 2.26216^2 * 4e-4 + 4.30265^2 * 1e-4 = 0.00389823
    assert statistics.half_width([(4e-4, 9), (1e-4, 2)], 0.975) == pytest.approx(6.24358, rel=1e-5)


def test_what_training_does_to_single_images_is_counted_once():
    answers = np.random.default_rng(0).random((4, 5000)) < 0.8  # runs that share nothing
    found = report.compare([trial(row, seed, groups=np.arange(5000)) for seed, row in
                            enumerate(answers)], None, seed=0)
    assert found["test_error"] == pytest.approx(100 * (0.16 / 20_000) ** 0.5, rel=0.05)
    assert found["seed_error"] < 0.5 * found["test_error"]


@pytest.mark.parametrize("interval, known, words, change", [
    ([0.1, 2.0], 1.0, "better", "matters"), ([-0.4, 0.6], 1.0, "no worse by more than 0.5",
                                             "undecided"),
    ([-0.4, 0.4], 1.0, "no worse by more than 0.5", "does not matter"),
    ([-0.9, -0.1], 1.0, "worse", "matters"), ([-0.6, 0.2], 1.0, "undecided", "undecided"),
    ([5.0, 6.0], None, "undecided: one run", "undecided")])
def test_verdicts_follow_the_interval_and_the_margin(interval, known, words, change):
    found = {"runs": 2, "interval": interval, "seed_error": known}
    assert statistics.verdict(found, 0.5) == words
    assert statistics.matters(found, 0.5) == change


def test_the_margin_decides_the_verdict_in_the_tables_and_the_answer(study):
    for margin, words, change in (("0.5", "better", "matters"), ("30", "better", "matters")):
        assert report.main(["--runs", str(study / "runs"), "--out", str(study / "out"),
                            "--baseline", "base", "--margin", margin]) == 0
        record = json.loads((study / "out" / "results.json").read_text())
        assert record["against_baseline"]["ours"]["verdict"] == words
        assert record["against_baseline"]["ours"]["matters"] == change
        assert f"| {words} |" in (study / "out" / "results.md").read_text()
    assert report.main(["--runs", str(study / "runs"), "--out", str(study / "out"),
                        "--baseline", "ours", "--margin", "30"]) == 0
    text = (study / "out" / "report.html").read_text()
    assert "no worse by more than 30" in text and "difference, by 30 points" in text


def test_groups_that_are_left_out_judge_nothing(tmp_path, capsys):
    """Fake runs have the groups 10 fold + 0 to 9, each the images of one class."""
    for seed in (0, 1, 2):
        for fold in (0, 1):
            for name, acc1 in (("ours", 80), ("base", 90)):
                write_fake(tmp_path / "runs" / f"fold{fold}_seed{seed}" / name, acc1, seed=seed,
                           fold=fold)
    flags = ["--runs", str(tmp_path / "runs"), "--out", str(tmp_path / "out"), "--baseline", "base"]
    gone = [3, 5, *range(10, 20)]
    assert report.main([*flags, "--leave-out-groups", ",".join(map(str, gone))]) == 0
    record = json.loads((tmp_path / "out" / "results.json").read_text())
    row = next(row for row in record["rows"] if row["name"] == "ours")
    right = []
    for seed in (0, 1, 2):
        place = tmp_path / "runs" / f"fold0_seed{seed}" / "ours" / "predictions.json"
        known = json.loads(place.read_text())
        right += [a == b for g, a, b in zip(known["groups"], known["labels"],
                                            known["predictions"], strict=True) if g not in gone]
    assert row["acc1_mean"] == pytest.approx(100 * np.mean(right), abs=1e-3)
    assert row["val_images"] == 48 and row["folds"] == 1 and row["agreement_mean"] is None
    assert record["against_baseline"]["ours"]["images"] == 48
    assert "groups 3, 5, 10" in (tmp_path / "out" / "report.html").read_text()
    capsys.readouterr()
    assert report.main([*flags, "--leave-out-groups", ",".join(map(str, range(20)))]) == 2
    assert "leaves no image" in capsys.readouterr().err


def test_claims_widen_the_interval_through_students_quantile():
    ours = [trial(right(seed), seed) for seed in range(5)]
    base = [trial(right(0), seed) for seed in range(5)]
    one, ten = (report.compare(ours, base, seed=0, claims=n)["interval"] for n in (1, 10))
    assert one == about(-20, T4 * 50 ** 0.5) and ten == about(-20, 5.59757 * 50 ** 0.5)


@pytest.mark.parametrize("other, why", [
    ({"val": "dev"}, "other validation images"), ({"labels": np.zeros(100, int)}, "other labels")])
def test_other_validation_images_or_labels_are_not_compared(other, why):
    found = report.compare([trial(right(1))], [trial(right(1), **other)], seed=0)
    assert found["runs"] == 0 and found["note"].startswith(f"not comparable: {why}")


def test_other_tasks_are_not_compared_and_unpaired_runs_say_so():
    base = trial(right(1)) | {"task": "cifar100"}
    assert "other tasks" in report.compare([trial(right(1))], [base], seed=0)["note"]
    found = report.compare([trial(right(1), 0)], [trial(right(1), 1)], seed=0)
    assert found == {"runs": 0, "note": "not comparable: no run that both have"}


@pytest.mark.parametrize("folds, writers, members", [
    *itertools.product((1, 5), (0,), (2, 3, 5)), *itertools.product((5,), (4,), (1, 2, 3, 5)),
    (3, 0, 1), (5, 0, 1)])
def test_intervals_cover_the_truth_as_often_as_they_say(folds, writers, members):
    """Images of random difficulty (the same within a writer, in part), runs of random skill: a run
    is right where its skill is above the difficulty. 300 studies; the truth is the mean skill."""
    numbers, hits, images = np.random.default_rng(3), 0, 40 if writers else 600
    for _ in range(300):
        runs = []
        for fold in range(folds):
            group = np.arange(images) % writers if writers else np.arange(images)
            shift = numbers.uniform(-0.15, 0.15, max(writers, 1))[group] if writers else 0
            difficulty = numbers.random(images) + shift
            runs += [trial(difficulty < numbers.uniform(0.55, 0.75), seed, fold=fold,
                           first=images * fold, groups=group + fold * writers)
                     for seed in range(members)]
        low, high = report.compare(runs, None, seed=0)["interval"]
        hits += low <= 65 <= high
    assert 0.92 <= hits / 300 <= 0.98


def test_four_writers_are_redrawn_whole_and_fewer_are_not_but_named():
    """Of 100 images by 4 writers, one fails at 20 of its 25: writers differ, images do not tell."""
    wrong = np.array([0 if i < 20 else 1 for i in range(100)])

    def found(writers):
        return report.compare([trial(wrong, seed, groups=np.arange(100) * writers // 100)
                               for seed in (0, 1)], None, seed=0)

    four, two = found(4), found(2)
    assert four["units"] == "writers" and four["groups"] == 4 and four["note"] == ""
    assert four["test_error"] == pytest.approx(20, rel=0.05)  # 80 / 4, of the writers' means
    assert two["units"] == "images" and two["note"] == "2 writers: others not in the interval"
    assert two["test_error"] == pytest.approx(4, rel=0.05)
    assert found(0)["note"] == "1 writer: others not in the interval"


def test_many_groups_have_the_normal_limit_of_the_bootstrap():
    numbers = np.random.default_rng(0)
    answers = (numbers.random((2, 4000)) < 0.8).astype(int)
    ours, base = ([trial(a, groups=np.arange(4000))] for a in answers)
    found = report.compare(ours, base, seed=0)
    differences = 100.0 * (answers[0] - answers[1])
    error = differences.std() / 4000 ** 0.5
    assert found["groups"] == 4000 and found["test_error"] == pytest.approx(error, rel=0.01)
    low, high = found["interval"]
    assert high - low == pytest.approx(2 * 1.96 * error, rel=0.01)


def test_few_and_many_groups_agree_on_the_same_predictions(monkeypatch):
    answers = (np.random.default_rng(1).random(480) < 0.7).astype(int)
    ours = [trial(answers, groups=np.arange(480))]
    exact = report.compare(ours, None, seed=0)
    monkeypatch.setattr(statistics, "MANY_GROUPS", 100)
    limit = report.compare(ours, None, seed=0)
    assert limit["interval"] == pytest.approx(exact["interval"], abs=0.25)
    assert limit["test_error"] == pytest.approx(exact["test_error"], rel=0.04)


# --- rows -----------------------------------------------------------------------------------------

def test_rows_of_one_name_in_other_folders_stay_apart(tmp_path):
    for place in ("lenet/seed0/real", "wrn/seed0/real", "wrn/seed0/noise"):
        write_fake(tmp_path / place)
    rows = report.make_rows(report.find_trials(tmp_path)[0], [])
    assert sorted(row["name"] for row in rows) == ["lenet/real", "noise", "wrn/real"]


def test_a_row_names_its_temperatures_where_rows_differ_in_them(tmp_path):
    def said(**of):
        for name, temperatures in of.items():
            for seed, t in enumerate(temperatures):
                write_fake(tmp_path / f"{name}_seed{seed}", seed=seed, temperature=t)
        rows = report.make_rows(report.find_trials(tmp_path)[0], [])
        return {row["name"]: row["what"] for row in rows}

    assert said(a=[4.0, 4.0]) == {"a": "cnn_w8, KD from cnn_w32 on real images"}
    assert said(tuned=[16.0, 1.0]) == {
        "a": "cnn_w8, KD (temperature 4) from cnn_w32 on real images",
        "tuned": "cnn_w8, KD (temperature 1 or 16) from cnn_w32 on real images"}


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


def test_the_mean_weighs_folds_by_images_and_an_incomplete_seed_makes_no_standard_deviation(
        tmp_path):
    for fold, seed, acc1, images in ((0, 0, 80, 50), (0, 1, 100, 50), (1, 0, 50, 150)):
        write_fake(tmp_path / f"fold{fold}_seed{seed}" / "a", acc1, fold=fold, seed=seed,
                   images=images)
    row, = report.make_rows(report.find_trials(tmp_path)[0], [])
    assert row["mean"] == pytest.approx((90 * 50 + 50 * 150) / 200) and row["std"] is None
    assert row["acc1_by_seed"] == {0: 57.5, 1: 100.0}
    entry, = report.make_record([row], {}, [], [], 0)["rows"]
    assert entry["val_images"] == 200 and entry["rests_on"]["runs"] == 3
    assert entry["interval"][0] < entry["acc1_mean"] < entry["interval"][1]


def test_what_is_kept_has_the_command_the_tables_and_charts_on_white(study, monkeypatch, capsys):
    flags = ["--runs", str(study / "runs"), "--out", str(study / "out"), "--record",
             str(study / "kept"), "--command", "sh scripts/study.sh <x>"]
    assert report.main(flags) == 0
    kept = {path.name: path.read_bytes() for path in (study / "kept").iterdir()}
    assert kept.keys() == {"results.json", "results.csv", "rivals.svg", "curves.svg",
                           "confusion.svg"}
    assert json.loads(kept["results.json"])["command"] == "sh scripts/study.sh <x>"
    assert "sh scripts/study.sh &lt;x&gt;" in (study / "out" / "report.html").read_text()
    for name in ("rivals.svg", "curves.svg", "confusion.svg"):
        root = ElementTree.fromstring(kept[name])
        assert root.tag == "{http://www.w3.org/2000/svg}svg" and root.get("viewBox")
        assert root[0].attrib == {"width": "100%", "height": "100%", "fill": "white"}
        assert b"currentColor" not in kept[name] and b"var(" not in kept[name]
        assert report_canvas.DARK.encode() in kept[name] and b"DejaVu" not in kept[name]
    figures = sorted(len(data) for name, data in kept.items() if name.endswith(".svg"))
    assert sum(figures) < report.MOST_KEPT_BYTES
    monkeypatch.setattr(report, "MOST_KEPT_BYTES", figures[0] - 1)
    assert report.main(flags) == 0  # and nothing of the report before is left beside its results
    assert {p.name for p in (study / "kept").iterdir()} == {"results.json", "results.csv"}
    assert "not kept, too large: rivals.svg" in capsys.readouterr().err


def test_rows_of_a_part_of_the_images_stand_below_and_do_not_answer(tmp_path):
    made = {**DIT, "guidance_scale": 1.0, "steps": 5}
    for fold in (0, 1):
        write_fake(tmp_path / "runs" / f"fold{fold}_seed0" / "whole", 80, fold=fold, source="s",
                  generator=made)
    write_fake(tmp_path / "runs" / "fold0_seed0" / "part", 95, source="s", generator=made)
    out = tmp_path / "out"
    assert report.main(["--runs", str(tmp_path / "runs"), "--out", str(out)]) == 0
    record = json.loads((out / "results.json").read_text())
    assert [row["name"] for row in record["rows"]] == ["whole", "part"]
    assert "names 80.00 %" in (out / "results.md").read_text()


def test_of_an_inspected_set_the_figures_are_kept(tmp_path):
    write_fake(tmp_path / "runs" / "a", source="s", generator=DIT)
    (tmp_path / "runs" / "inspect.json").write_text(json.dumps(
        {"set": "s", "images": 10, "recall": 0.5, "sentence": "x" * 400_000}))
    flags = ["--runs", str(tmp_path / "runs"), "--out", str(tmp_path / "out")]
    assert report.main([*flags, "--record", str(tmp_path / "kept")]) == 0
    [kept] = json.loads((tmp_path / "kept" / "results.json").read_text())["sets"]
    assert kept["set"] == "s" and kept["recall"] == 0.5 and "sentence" not in kept
    assert (tmp_path / "kept" / "curves.svg").exists()
