"""Figures of the report: drawn only where the runs vary, with hand-computed contents."""

import re
import shutil

import numpy as np
import pytest
import torch
from fake_runs import DIT, write_run, write_study

from dm_kd import image_files, image_set, report, report_figures


def rows_of(root):
    rows = report.make_rows(report.find_trials(root)[0], [])
    return rows, report.make_record(rows, {}, [], [], 0) | {"baseline": None}


def row(mean=90.0, **settings):
    return {"mean": mean, "name": "a", "settings": {"images": "real", "student": "s", **settings}}


def test_a_series_is_of_rows_that_differ_on_the_axis_only():
    rows = [row(1, images_per_class=10), row(2, images_per_class=20),
            row(3, images_per_class=10, images="dit"), row(4, images_per_class=20, images="dit"),
            row(5, images_per_class=10, student="other"), row(6, images_per_class=None)]
    found = report_figures.series(rows, report_figures.AMOUNT)
    assert [(name, [r["mean"] for r in group]) for name, group in found] == [
        ("images of dit", [3, 4]), ("real images", [1, 2])]


def test_rows_that_agree_on_the_axis_are_no_series():
    assert report_figures.series([row(1, steps=5, guidance_scale=1.0), row(2, steps=5,
                                  guidance_scale=1.0)], report_figures.FIDELITY) == []


def test_a_real_images_worth_is_read_off_the_logarithmic_axis():
    real = [row(80, images_per_class=10), row(90, images_per_class=1000)]
    made = [row(70, images_per_class=50, images="dit"), row(85, images_per_class=500, images="dit")]
    sentence, = report_figures.worth([("real", real), ("made", made)])
    assert "about 100 real ones" in sentence and "worth 0.2 real" in sentence
    made[1]["mean"] = 95
    assert "more than 1000 real ones" in report_figures.worth([("real", real), ("made", made)])[0]
    made[1]["mean"] = 60
    assert report_figures.worth([("real", real), ("made", made)]) == []


@pytest.mark.parametrize("x, y, value", [
    ([1, 2, 3], [5, 6, 70], 1), ([1, 2, 3], [3, 2, 1], -1), ([1, 2, 3], [4, 4, 4], 0),
    ([1, 2, 3, 4], [1, 3, 2, 4], 0.8)])
def test_rank_correlation_has_the_hand_computed_value(x, y, value):
    assert report_figures.rank_correlation(x, y) == pytest.approx(value)


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
    assert "Fréchet distance" in page and "the best is s=1, T=20" in page
    assert "+0.32 (cnn_w16, 4 teachers)" in page and "real ones a class" in page
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


def test_example_images_stand_at_the_corners_of_the_heat_map(tmp_path, noise_folder):
    for s in (1.0, 2.0):
        for steps in (5, 20):
            write_run(tmp_path / f"s{s:g}_{steps}", source=str(noise_folder),
                      generator={**DIT, "guidance_scale": s, "steps": steps})
    rows, record = rows_of(tmp_path)
    with report_figures.canvas():
        drawn = report_figures.draw_fidelity(rows, record)[0]["html"]
    corners = re.findall(r"<span class=corner><img [^>]*>\s*<small>(.*?)</small>", drawn)
    assert corners == ["s=1, T=20", "s=2, T=20", "s=1, T=5", "s=2, T=5"]
    before = drawn.split("<svg")[0]
    assert "s=1, T=20" in before and "s=1, T=5" not in before


def test_samples_show_real_images_beside_those_of_a_labelled_set(tmp_path, noise_folder,
                                                                 monkeypatch):
    write_run(tmp_path / "a", source=str(noise_folder), generator=DIT)
    trials, _ = report.find_trials(tmp_path)
    assert report_figures.draw_samples([{"trials": trials}], tmp_path / "s.png") == []  # no labels
    images = image_set.open_set(noise_folder)
    images.manifest["labels_known"] = True
    monkeypatch.setattr(report_figures, "open_made", lambda trial: images)
    sheets = []
    monkeypatch.setattr(report_figures, "sheet_figure", lambda columns, names: sheets.append(
        (columns, names)))
    monkeypatch.setattr(report_figures, "write_png", lambda figure, path: path.write_bytes(b"PNG"))
    samples, = report_figures.draw_samples([{"trials": trials}], tmp_path / "s.png")
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
    opened = report_figures.open_made
    monkeypatch.setattr(report_figures, "open_made", lambda trial: opened(trial) and images)
    monkeypatch.setattr(report_figures, "write_png", lambda figure, path: path.write_bytes(b"PNG"))
    found = report_figures.draw_samples([{"trials": [trial]}], tmp_path / "s.png")
    assert len(found) == (field != "source")


def test_a_damaged_image_leaves_its_picture_out(tmp_path, noise_folder):
    folder = tmp_path / "set"
    shutil.copytree(noise_folder, folder)
    for image in folder.glob("images/*/*.png"):
        image.write_bytes(b"no picture")
    write_run(tmp_path / "runs" / "a", source=str(folder), generator=DIT)
    trial = report.find_trials(tmp_path / "runs")[0][0]
    assert report_figures.examples(trial) is None
    assert report_figures.draw_samples([{"trials": [trial]}], tmp_path / "samples.png") == []


def test_a_chart_takes_the_colours_of_the_page_and_fetches_nothing(tmp_path):
    for i in range(3):
        write_run(tmp_path / f"a{i}", 90 + i)
    rows, record = rows_of(tmp_path)
    figures = report_figures.draw_all(rows, record, tmp_path / "out")
    svg = figures["rivals"][0]["html"]
    assert svg.startswith("<svg role=") and "currentColor" in svg and "<text" in svg
    assert report_figures.INK not in svg and "<metadata" not in svg
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
    with report_figures.canvas():
        drawn, = report_figures.draw_rivals(record)
    assert "An arrow" in drawn["caption"] and ">20.00<" in drawn["html"]
    assert ">40<" not in drawn["html"]  # the axis does not reach down there


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
    with report_figures.canvas():
        report_figures.draw_curves(rows, tmp_path / "curve.png")
    assert seen[0] == pytest.approx((55 * (1 - 0.5 ** 8), 75 * (1 - 0.5 ** 8)))
