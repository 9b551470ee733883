"""The report command: tables, figures and one self-contained page of a folder of runs."""

import csv
import json
import re
from pathlib import Path

import fake_runs
import pytest

from dm_kd import report


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    """A folder with runs/, and report/ that was made of them."""
    root = tmp_path_factory.mktemp("study")
    fake_runs.write_study(root / "runs")
    fake_runs.write_run(root / "runs" / "seed0" / "<b>_$x$", 93.0)
    assert report.main(["--runs", str(root / "runs"), "--out", str(root / "report"), "--baseline",
                        "real"]) == 0
    return root


def test_every_file_is_written(study):
    assert {path.name for path in (study / "report").iterdir()} == {
        "report.html", "results.json", "results.csv", "results.md", "gaps.svg", "epochs.svg",
        "fidelity.svg", "amount.svg", "teachers.svg"}


def test_the_tables_have_a_row_for_each_experiment(study):
    lines = list(csv.DictReader((study / "report" / "results.csv").open()))
    assert [line["row"] for line in lines[:3]] == ["real", "alone", "s1_T50"] and len(lines) == 15
    synthetic = lines[2]
    assert synthetic["student"] == "cnn_w8" and synthetic["n"] == "3"
    assert float(synthetic["acc1_mean"]) == pytest.approx(95.3333, abs=1e-4)
    assert float(synthetic["acc1_std"]) == pytest.approx(1 / 3, abs=1e-4)
    assert float(synthetic["difference"]) == pytest.approx(-1.8667, abs=1e-4)
    assert (synthetic["difference_unit"], synthetic["set_recall"]) == ("seed", "0.85")
    record = json.loads((study / "report" / "results.json").read_text())
    assert [run["acc1"] for run in record["rows"][0]["runs"]] == [97.0, 97.2, 97.4]
    assert record["baseline"] == "real" and record["commits"] == ["0123"]


def test_the_page_has_answer_figures_and_commands_fetches_nothing_and_shows_names(study):
    page = (study / "report" / "report.html").read_text()
    answer = re.search(r'class="answer">(.*?)<', page)[1]
    for part in ("s1_T50", "95.33", "1.87 points below real", "-2.20 to -1.54"):
        assert part in answer
    assert page.count("<svg") == 5 and "python -m dm_kd.distill --out dafl" in page
    assert "over 3 seeds" in page
    assert "default-src 'none'" in page and "&lt;b&gt;_$x$" in page and "<b>_" not in page
    assert not re.search(r'(?:src|href)="(?!data:|#)', page)


def test_samples_of_a_set_are_shown(tmp_path, noise_folder):
    fake_runs.write_run(tmp_path / "runs" / "noise", 90.0, source=str(noise_folder))
    assert report.main(["--runs", str(tmp_path / "runs"), "--out", str(tmp_path / "out")]) == 0
    assert "data:image/png;base64" in (tmp_path / "out" / "report.html").read_text()


def test_an_unknown_baseline_is_refused_with_the_nearest(tmp_path, capsys):
    fake_runs.write_run(tmp_path / "runs" / "real", 90.0)
    argv = ["--runs", str(tmp_path / "runs"), "--baseline", "rael", "--out", str(tmp_path / "out")]
    assert report.main(argv) == 2
    assert "did you mean real" in capsys.readouterr().err and not (tmp_path / "out").exists()


def test_published_tables_are_those_on_the_page(tmp_path):
    assert report.main(["--published", "--out", str(tmp_path)]) == 0
    page = Path(__file__).parent.parent / "save/results/published_tables.md"
    assert (tmp_path / "published_tables.md").read_text() == page.read_text()
