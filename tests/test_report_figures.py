"""Figures of the report: drawn only where the runs vary, with hand-computed contents."""

import itertools
import re
import shutil

import numpy as np
import pytest
import torch
from fake_runs import DIT, write_run, write_study

from dm_kd import (
    image_files,
    image_set,
    report,
    report_canvas,
    report_fidelity,
    report_figures,
    report_pictures,
    report_statistics,
)


def rows_of(root):
    rows = report.make_rows(report.find_trials(root)[0], [])
    return rows, report.make_record(rows, {}, [], [], 0) | {"baseline": None, "margin": 0.5,
                                                            "seed": 0}


def row(mean=90.0, **settings):
    return {"mean": mean, "name": "a", "settings": {"images": "real", "student": "s", **settings}}


def test_a_series_is_of_rows_that_differ_on_the_axis_only():
    rows = [row(1, images_per_class=10), row(2, images_per_class=20),
            row(3, images_per_class=10, images="dit"), row(4, images_per_class=20, images="dit"),
            row(5, images_per_class=10, student="other"), row(6, images_per_class=None)]
    found = report_canvas.series(rows, report_figures.AMOUNT)
    assert [(name, [r["mean"] for r in group]) for name, group in found] == [
        ("images of dit", [3, 4]), ("real images", [1, 2])]


def test_rows_that_agree_on_the_axis_are_no_series():
    assert report_canvas.series([row(1, steps=5, guidance_scale=1.0), row(2, steps=5,
                                  guidance_scale=1.0)], report_fidelity.FIDELITY) == []


@pytest.mark.parametrize("level, amount", [
    (70, "at most 10"), (75, "32"), (85, "316"), (95, "more than 1000")])
def test_an_amount_is_read_off_the_logarithmic_axis_where_the_line_first_gets_there(level, amount):
    x = np.log([10, 100, 1000])
    assert report_figures.reached(x, [70, 80, 90], level) == amount
    assert report_figures.reached(x, [70, 90, 80], 85) == "56"


MADE = ((10, 60), (100, 80), (200, 80))  # images a class, right in %


def amount_study(root, seeds=(0, 1), made=MADE):
    """Real images that are right in 80, 95 % at 10, 100 a class, and made ones."""
    for seed in seeds:
        for n, acc1 in ((10, 80), (100, 95)):
            write_run(root / f"real_{n}_seed{seed}", acc1, seed=seed, numbers=0, images=100,
                      per_class=n, images_per_class=n)
        for n, acc1 in made:
            write_run(root / f"made_{n}_seed{seed}", acc1, seed=seed, numbers=0, images=100,
                      per_class=n, images_per_class=n, source="s", generator=DIT)
    rows, record = rows_of(root)
    with report_canvas.canvas():
        return report_figures.draw_amount(rows, record)[0]["says"]


def test_saturation_and_worth_follow_the_studys_rules(tmp_path):
    says = amount_study(tmp_path)
    assert "saturate (images of dit) at 100 a class: 200 gain +0.00" in says
    assert "10 are worth 100 (not 10 or fewer); 100 are worth more than 200 (not 200 or " in says
    assert "at 10 a class: more (real minus made +20.00" in says
    assert "at 100 a class: more (real minus made +15.00" in says


def test_larger_amounts_that_do_not_meet_the_rule_of_saturation_are_named(tmp_path):
    says = amount_study(tmp_path, made=(*MADE[:2], (150, 60), MADE[2]))
    assert "at 100 a class: 200 gain +0.00" in says and "That is not shown at 150." in says
    assert "not shown" not in amount_study(tmp_path / "before")


def test_what_a_real_image_is_worth_is_bounded_on_both_sides(tmp_path):
    says = amount_study(tmp_path, made=((10, 60), (100, 80), (200, 90), (400, 70)))
    assert "10 are worth 100 (not 10 or fewer);" in says  # 400 are worse again, 200 better
    says = amount_study(tmp_path / "steady", made=((10, 60), (100, 80), (200, 90), (400, 90)))
    assert "10 are worth 100 (not 10 or fewer, not 200 or more);" in says


def test_two_amounts_are_compared_by_all_trials_that_both_have(tmp_path):
    """A row of fewer trials does not take the others' from what is said of these."""
    amount_study(tmp_path)  # two seeds of 200 that are as good as 100
    for seed in (2, 3):
        for n, acc1 in ((100, 80), (200, 90)):
            write_run(tmp_path / f"made_{n}_seed{seed}", acc1, seed=seed, numbers=0, images=100,
                      per_class=n, images_per_class=n, source="s", generator=DIT)
    rows, record = rows_of(tmp_path)
    with report_canvas.canvas():
        says = report_figures.draw_amount(rows, record)[0]["says"]
    assert "No saturation is shown (images of dit)" in says
    assert "10 are worth 100 (not 10 or fewer);" in says  # the line is of the two that all have


def test_one_run_shows_no_saturation(tmp_path):
    says = amount_study(tmp_path, seeds=(0,))
    assert "No saturation is shown" in says and "at 10 a class: undecided" in says
    assert "10 are worth 100 (no number of these can be told from it);" in says


def grid_study(root, recall, precision, far=60, baseline="s1_t50"):
    """Two seeds of (s, T) = (1, 50) at 90 %, (4, 50) and (1, 5) at `far`; what inspect_set saw."""
    for i, (s, t, acc1) in enumerate(((1, 50, 90), (4, 50, far), (1, 5, far))):
        for seed in (0, 1):
            write_run(root / f"s{s}_t{t}_seed{seed}", acc1, seed=seed, numbers=0, images=100,
                      source=f"syn/{i}", generator={**DIT, "guidance_scale": float(s), "steps": t})
    rows, _ = rows_of(root)
    sets = [{"set": f"syn/{i}", "recall": r, "precision": p}
            for i, (r, p) in enumerate(zip(recall, precision, strict=True))]
    args = report.parse(["--runs", "r", "--out", "o"])
    record = report.make_record(rows, report.compare_all(rows, "s1_t50", args), sets, [], 0) | {
        "baseline": baseline, "margin": 0.5, "seed": 0}
    with report_canvas.canvas():
        return " ".join(f.get("says", "") for f in report_fidelity.draw_fidelity(rows, record))


@pytest.mark.parametrize("recall, precision, far, words", [
    ((0.9, 0.5, 0.6), (0.5, 0.8, 0.4), 60, "Coverage teaches, not fidelity"),
    ((0.9, 0.5, 0.95), (0.5, 0.4, 0.4), 60, "Fidelity teaches, not coverage"),
    ((0.9, 0.5, 0.95), (0.5, 0.8, 0.4), 60, "Neither coverage nor fidelity"),
    ((0.9, 0.5, 0.6), (0.5, 0.8, 0.4), 90, "Neither coverage nor fidelity"),
    ((0.9, None, 0.6), (0.5, 0.8, 0.4), 60, "Neither coverage nor fidelity")])
def test_the_fidelity_studys_rule_is_evaluated_in_words(tmp_path, recall, precision, far, words):
    says = grid_study(tmp_path, recall, precision, far)
    assert words in says
    assert f"Guidance {'matters' if far == 60 else 'does not matter'}: s=4, T=50 minus" in says
    assert "The number of steps" in says and "s=1, T=5 minus s=1, T=50" in says


def test_without_a_baseline_in_the_grid_nothing_is_concluded(tmp_path):
    assert "Guidance" not in grid_study(tmp_path, (0, 0, 0), (0, 0, 0), baseline="other")


def test_a_heat_map_is_of_the_trials_that_all_cells_have(tmp_path):
    for s, seed, acc1 in ((1, 0, 80), (1, 1, 100), (1, 2, 100), (2, 0, 85)):
        write_run(tmp_path / f"s{s}_seed{seed}", acc1, seed=seed, images=100, source="s",
                  generator={**DIT, "guidance_scale": float(s), "steps": 50})
    rows, record = rows_of(tmp_path)
    with report_canvas.canvas():
        drawn = report_fidelity.draw_fidelity(rows, record)[0]
    assert "the best is s=2, T=50 (85.00 %), the worst s=1, T=50 (80.00 %), each from 1 run." in (
        drawn["says"])
    assert ">80.0<" in drawn["html"] and ">93.3<" not in drawn["html"]


def test_settings_without_a_common_trial_say_so_and_are_not_drawn(tmp_path):
    for i in (0, 1, 2):
        write_run(tmp_path / f"cell{i}", seed=i, source="s",
                  generator={**DIT, "guidance_scale": float(i), "steps": 50})
        write_run(tmp_path / f"amount{i}", seed=i, per_class=10 + i)
        write_run(tmp_path / f"taught{i}", seed=i, teacher=f"t{i}", objective="dkd")
    rows, record = rows_of(tmp_path)
    with report_canvas.canvas():
        drawn = [draw(rows, record) for draw in (
            report_fidelity.draw_fidelity, report_figures.draw_amount,
            report_figures.draw_teachers)]
    assert [len(figures) for figures in drawn] == [1, 1, 1]
    assert all("no trial that all 3 settings have" in f[0]["says"] and f[0]["html"] == ""
               for f in drawn)


def test_a_temperature_of_each_teachers_own_is_no_setting_of_the_scatter():
    rows = [row(teacher="a", temperature=1), row(teacher="b", temperature=4),
            row(teacher="c", temperature=4)]
    (_, group), = report_figures.teacher_series(rows)
    assert [r["settings"]["teacher"] for r in group] == ["a", "b", "c"]
    rows += [row(teacher="a", temperature=4), row(teacher="b", temperature=1)]
    found = report_figures.teacher_series(rows)  # a temperature of the study
    assert sorted((name, len(group)) for name, group in found) == [
        ("temperature 1", 2), ("temperature 4", 3)]


@pytest.mark.parametrize("x, y, value", [
    ([1, 2, 3], [5, 6, 70], 1), ([1, 2, 3], [3, 2, 1], -1), ([1, 2, 3], [4, 4, 4], 0),
    ([1, 2, 3, 4], [1, 3, 2, 4], 0.8)])
def test_rank_correlation_has_the_hand_computed_value(x, y, value):
    assert report_statistics.rank_correlation(x, y) == pytest.approx(value)


def test_confusion_counts_and_its_worst_pairs_are_hand_counted():
    trials = [{"predictions": {"labels": np.array([0, 0, 0, 1]),
                               "predictions": np.array([0, 1, 1, 1])}},
              {"predictions": {"labels": np.array([2, 1]), "predictions": np.array([0, 1])}}]
    counts = report_figures.confusion_counts(trials)
    assert counts.tolist() == [[1, 2, 0], [0, 2, 0], [1, 0, 0]]
    share = 100 * counts / counts.sum(1, keepdims=True)
    assert report_figures.worst_pairs(share) == [(2, 0), (0, 1)]


def test_runs_that_vary_on_every_axis_have_every_figure(tmp_path):
    write_study(tmp_path / "runs", seeds=(0, 1), scales=(1, 2), steps=(5, 20))
    assert report.main(["--runs", str(tmp_path / "runs"), "--out", str(tmp_path / "out")]) == 0
    page = (tmp_path / "out" / "report.html").read_text()
    for section in ("fidelity", "teachers", "amount", "rivals", "curves", "confusion"):
        assert f"<section id='{section}'>" in page, section
    assert "Fréchet distance (real images: 0.50)" in page and "the best is s=1, T=20" in page
    assert "+0.32 (cnn_w16, 4 teachers, the 2 trials that all have)" in page
    assert "real images a class: 10 are worth" in page
    assert "with Fréchet distance" in page.split("<nav")[0]  # among the findings on top
    assert "id='samples'" not in page and "class=corner" not in page  # the sets are gone


def test_runs_that_vary_on_no_axis_have_none_of_its_figures(tmp_path):
    for place, source in (("real", "real"), ("noise", "syn/noise")):
        write_run(tmp_path / place, source=source,
                  generator={"name": "noise"} if source != "real" else None)
    rows, record = rows_of(tmp_path)
    figures = report_figures.draw_all(rows, record, tmp_path / "out")
    assert {k for k, v in figures.items() if v} == {"rivals", "curves", "confusion"}
    assert (tmp_path / "out" / "curve.png").exists()


@pytest.mark.parametrize("cells, ranked", [(3, False), (4, True)])
def test_three_cells_have_no_rank_correlation(tmp_path, cells, ranked):
    sets = {(1.0, t): {"recall": t / 10} for t in range(1, cells + 1)}
    with report_canvas.canvas():
        drawn, = report_fidelity.draw_set_figures(
            0, [[1.0], list(range(1, cells + 1))], sets, {c: 90.0 + c[1] for c in sets})
    assert ("says" in drawn) == ranked == ("recall +1.00" in drawn["caption"])


def test_example_images_stand_at_the_corners_of_the_heat_map(tmp_path, noise_folder):
    for s in (1.0, 2.0):
        for steps in (5, 20):
            write_run(tmp_path / f"s{s:g}_{steps}", source=str(noise_folder),
                      generator={**DIT, "guidance_scale": s, "steps": steps})
    rows, record = rows_of(tmp_path)
    with report_canvas.canvas():
        drawn = report_fidelity.draw_fidelity(rows, record)[0]["html"]
    corners = re.findall(r"<span class=corner><img [^>]*>\s*<small>(.*?)</small>", drawn)
    assert corners == ["s=1, T=20", "s=2, T=20", "s=1, T=5", "s=2, T=5"]
    before = drawn.split("<svg")[0]
    assert "s=1, T=20" in before and "s=1, T=5" not in before


def test_samples_show_real_images_beside_those_of_a_labelled_set(tmp_path, noise_folder,
                                                                 monkeypatch):
    write_run(tmp_path / "a", source=str(noise_folder), generator=DIT)
    trials, _ = report.find_trials(tmp_path)
    assert report_pictures.draw_samples([{"trials": trials}], tmp_path / "s.png") == []  # no labels
    images = image_set.open_set(noise_folder)
    images.manifest["labels_known"] = True
    monkeypatch.setattr(report_pictures, "open_made", lambda trial: images)
    sheets = []
    monkeypatch.setattr(report_pictures, "sheet_figure", lambda columns, names: sheets.append(
        (columns, names)))
    monkeypatch.setattr(report_pictures, "write_png", lambda figure, path: path.write_bytes(b"PNG"))
    samples, = report_pictures.draw_samples([{"trials": trials}], tmp_path / "s.png")
    (real, made), names = sheets[0]
    assert names == list("0123456789") and samples["wide"]
    assert real[0].startswith("real") and made[0] == "synthetic"
    assert real[1][3].shape == (8, 1, 8, 8) and made[1][3].shape == (4, 1, 8, 8)
    path = noise_folder / images.plan.path(3, 2)
    assert torch.equal(made[1][3][2], image_files.read_image(path.read_bytes(), path, 1))


@pytest.mark.parametrize("field, value", [
    ("data", 5), ("data", -1.5), ("data", True), ("data", "x\0"), ("data", float("nan")),
    ("fold", 99), ("fold", 10**30), ("source", 5), ("source", "x\0"), ("source", None)])
def test_samples_are_drawn_of_a_config_with_anything_in_it(tmp_path, noise_folder, monkeypatch,
                                                           field, value):
    write_run(tmp_path / "a", source=str(noise_folder), generator=DIT)
    trial = report.find_trials(tmp_path)[0][0]
    trial["config"][field] = value
    trial["fold"] = value if field == "fold" else 0
    images = image_set.open_set(noise_folder)
    images.manifest["labels_known"] = True
    opened = report_pictures.open_made
    monkeypatch.setattr(report_pictures, "open_made", lambda trial: opened(trial) and images)
    monkeypatch.setattr(report_pictures, "write_png", lambda figure, path: path.write_bytes(b"PNG"))
    found = report_pictures.draw_samples([{"trials": [trial]}], tmp_path / "s.png")
    assert len(found) == (field != "source")


def test_a_damaged_image_leaves_its_picture_out(tmp_path, noise_folder):
    folder = tmp_path / "set"
    shutil.copytree(noise_folder, folder)
    for image in folder.glob("images/*/*.png"):
        image.write_bytes(b"no picture")
    write_run(tmp_path / "runs" / "a", source=str(folder), generator=DIT)
    trial = report.find_trials(tmp_path / "runs")[0][0]
    assert report_fidelity.examples(trial) is None
    assert report_pictures.draw_samples([{"trials": [trial]}], tmp_path / "samples.png") == []


def test_a_chart_takes_the_colours_of_the_page_and_fetches_nothing(tmp_path):
    for i in range(3):
        write_run(tmp_path / f"a{i}", 90 + i)
    rows, record = rows_of(tmp_path)
    figures = report_figures.draw_all(rows, record, tmp_path / "out")
    svg = figures["rivals"][0]["html"]
    assert svg.startswith("<svg role=") and "currentColor" in svg and "<text" in svg
    assert "var(--sans)" in svg and "DejaVu" not in svg
    assert report_canvas.INK not in svg and "<metadata" not in svg
    assert not re.search(r"(href|src)=['\"]?http", svg) and ' id="axes_1"' not in svg


def test_names_that_matplotlib_would_read_as_formulas_or_hide_are_drawn_as_they_are(tmp_path):
    for name in ("$a_{$", "_hidden", "a & <b>", "名前"):
        write_run(tmp_path / name)
    rows, record = rows_of(tmp_path)
    figures = report_figures.draw_all(rows, record, tmp_path / "out")
    svg = figures["rivals"][0]["html"] + figures["curves"][0]["html"]
    assert svg.count("$a_{$") == 2 and svg.count(">hidden") == 2 and "a &amp; &lt;b&gt;" in svg
    assert "名前" in svg


def test_a_row_far_below_the_others_is_an_arrow_with_its_number(tmp_path):
    for name, acc1 in (("a", 98), ("b", 97), ("c", 96), ("noise", 20)):
        write_run(tmp_path / name, acc1, images=100)
    rows, record = rows_of(tmp_path)
    with report_canvas.canvas():
        drawn, = report_figures.draw_rivals(record)
    assert "An arrow" in drawn["caption"] and ">20.00<" in drawn["html"]
    assert ">40<" not in drawn["html"]  # the axis does not reach down there
    for seed, acc1 in enumerate((99, 91)):  # nor does it for an interval, of 44 to 100 %
        write_run(tmp_path / f"seed{seed}" / "wide", acc1, seed=seed, images=100)
    with report_canvas.canvas():
        drawn, = report_figures.draw_rivals(rows_of(tmp_path)[1])
    assert "wide" in drawn["html"] and ">60<" not in drawn["html"]


def test_a_row_not_far_below_its_neighbours_intervals_is_drawn_with_its_own(tmp_path):
    for name, accs in (("a", (94, 96)), ("b", (94, 95)), ("c", (93, 95)), ("d", (93, 95)),
                       ("lower", (90, 92))):
        for seed, acc1 in enumerate(accs):
            write_run(tmp_path / f"seed{seed}" / name, acc1, seed=seed, images=100)
    with report_canvas.canvas():
        drawn, = report_figures.draw_rivals(rows_of(tmp_path)[1])
    assert "An arrow" not in drawn["caption"]


def test_only_rows_without_real_images_are_blue(tmp_path):
    for name, acc1 in (("a", 90.0), ("b", 91.0)):
        write_run(tmp_path / name, acc1, images=100)
    _, record = rows_of(tmp_path)
    blue = []
    for methods in (("real", "folder"), ("real", "dit")):
        for row, method in zip(record["rows"], methods, strict=True):
            row["method"] = method
        with report_canvas.canvas():
            drawn, = report_figures.draw_rivals(record)
        blue.append(report_canvas.COLOURS[0] in drawn["html"])
    assert blue == [False, True]


def test_the_band_of_a_curve_is_from_the_lowest_to_the_highest_seed(tmp_path, monkeypatch):
    for seed, acc1 in ((0, 50.0), (1, 70.0)):
        for fold in (0, 1):
            write_run(tmp_path / f"fold{fold}_seed{seed}" / "a", acc1 + 10 * fold, seed=seed,
                      fold=fold, images=100)
    rows, _ = rows_of(tmp_path)
    seen = []
    from matplotlib.axes import Axes
    monkeypatch.setattr(Axes, "fill_between", lambda self, x, low, high, **k: seen.append(
        (low[-1], high[-1])))
    with report_canvas.canvas():
        report_figures.draw_curves(rows, tmp_path / "curve.png")
    assert seen[0] == pytest.approx((55 * (1 - 0.5 ** 8), 75 * (1 - 0.5 ** 8)))


def test_rows_of_fewer_folds_are_not_drawn_beside_the_others(tmp_path):
    for fold in (0, 1):
        for name in ("a", "b"):
            write_run(tmp_path / f"fold{fold}_seed0" / name, 80, fold=fold)
    write_run(tmp_path / "fold0_seed0" / "part", 95)
    rows, record = rows_of(tmp_path)
    with report_canvas.canvas():
        [drawn] = report_figures.draw_rivals(record)
    assert "part" not in drawn["html"] and "Not drawn: 1 row of fewer folds." in drawn["caption"]


@pytest.mark.parametrize("values, alphas", [
    ([50, 97, 98, 99, 100], [0.06, 0.06 + 0.6 * 0.625, 0.06 + 0.6 * 0.75]),
    ([90, 100, 100], [0.06, 0.66, 0.66]), ([80, 80], [0.3, 0.3])])
def test_a_cell_far_below_the_rest_does_not_make_them_look_alike(values, alphas):
    with report_canvas.canvas():
        figure, axis = report_canvas.axes(2)
        report_fidelity.heat(axis, [list(range(len(values))), [5]],
                             {(i, 5): v for i, v in enumerate(values)}, "#000000")
        found = [patch.get_facecolor()[3] for patch in axis.patches]
        figure.clear()
    assert found[:len(alphas)] == pytest.approx(alphas)


def amounts(tmp_path, *numbers):
    """What draw_amount makes of a run of real images for each of these numbers a class."""
    for n in numbers:
        write_run(tmp_path / f"real_{n}", per_class=float(n), images_per_class=n)
    rows, record = rows_of(tmp_path)
    with report_canvas.canvas():
        return report_figures.draw_amount(rows, record)


def test_two_amounts_are_no_curve(tmp_path):
    assert amounts(tmp_path / "two", 100, 140) == []
    assert len(amounts(tmp_path / "three", 100, 140, 300)) == 1


def folders(root, sources):
    """What draw_amount makes of runs of 10, 20 ... images a class of these folders."""
    for i, source in enumerate(sources):
        write_run(root / f"row{i}", source=source, per_class=float(10 * 2 ** i))
    rows, record = rows_of(root)
    with report_canvas.canvas():
        return report_figures.draw_amount(rows, record)


def test_amounts_of_other_folders_are_no_curve(tmp_path):
    assert folders(tmp_path / "three", ("data/a", "data/b", "real:fashion_mnist")) == []
    [drawn] = folders(tmp_path / "one", ("data/a_fold0", "data/a_fold1/", "./data/a_fold0"))
    assert "(a folder of images)" in drawn["says"]


def test_amounts_that_lie_close_have_one_tick(tmp_path):
    [drawn] = amounts(tmp_path, 40, 145, 160)
    assert ">40<" in drawn["html"] and ">160<" in drawn["html"] and ">145<" not in drawn["html"]


def test_equal_settings_have_no_best_one(tmp_path):
    for s in (1, 2):
        write_run(tmp_path / f"s{s}", 80, source="s",
                  generator={**DIT, "guidance_scale": float(s), "steps": 50})
    rows, record = rows_of(tmp_path)
    with report_canvas.canvas():
        drawn = report_fidelity.draw_fidelity(rows, record)
    assert drawn[0]["says"].startswith("All 2 settings of s and T are equal (80.00 %)")


def test_the_points_of_teachers_have_names_that_do_not_overlap(tmp_path):
    def drawn(folder, teachers):
        for name, (acc1, right) in teachers.items():
            write_run(tmp_path / folder / name, right, source="s", teacher_acc1=acc1,
                      generator=DIT, teacher=name)
        rows, record = rows_of(tmp_path / folder)
        with report_canvas.canvas():
            [figure] = report_figures.draw_teachers(rows, record)
        return figure["html"]

    close = {f"t{i}": (97 + i / 100, 80 + i) for i in range(5)} | {"far": (70.0, 60)}
    names = re.findall(r"translate\(([\d.]+) [\d.]+\)[^>]*rotate\(-90\)[^>]*>(t\d|far)<",
                       drawn("few", close))
    assert {name for _, name in names} == set(close)
    places = sorted(float(x) for x, _ in names)
    assert min(b - a for a, b in itertools.pairwise(places)) > 9  # points; letters of 8
    many = {f"t{i}": (60 + i, 80) for i in range(report_figures.MOST_NAMED + 1)}
    assert ">t1<" not in drawn("many", many)


def test_students_of_weaker_teachers_are_set_against_the_baselines(tmp_path):
    # teacher: (its accuracy, the student's in two seeds); 600 images
    found = {"strong": (98.0, 80, 80), "weak": (90.0, 90, 90), "weaker": (80.0, 70, 70),
             "weakest": (70.0, 80, 80), "unsure": (60.0, 95, 65), "stronger": (99.0, 60, 60)}
    for name, (own, *accuracies) in found.items():
        for seed, acc1 in enumerate(accuracies):
            write_run(tmp_path / f"seed{seed}" / name, acc1, seed=seed, numbers=0, images=600,
                      source="s", generator=DIT, teacher=name, teacher_acc1=own)
    rows = report.make_rows(report.find_trials(tmp_path)[0], [])
    against = {row["name"]: report_statistics.compare(row["trials"], rows_by(rows)["strong"], 0)
               for row in rows if row["name"] != "strong"}
    record = {"baseline": "strong", "margin": 0.5, "seed": 0, "against_baseline": against}
    says = report_figures.weaker_teachers(rows, record)
    assert re.search(r"weaker than strong, .* better: weak \+\d", says)
    assert re.search(r"worse: weaker -\d.*; within 0.5 points: weakest; undecided: unsure", says)
    assert "stronger" not in says
    assert report_figures.weaker_teachers(rows, record | {"baseline": None}) == ""


def rows_by(rows):
    return {row["name"]: row["trials"] for row in rows}
