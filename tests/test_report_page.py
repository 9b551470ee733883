"""The report's page and tables: nothing from outside, nothing unescaped, and tried in a browser."""

import csv
import html
import io
import json
import re
import shutil
import subprocess
import time

import pytest
import yaml
from fake_runs import DIT, write_run, write_study

from dm_kd import report, report_choices, report_page, report_runs

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))),
                None)
HOSTILE = "<img src=x onerror=alert(1)>'\"&`|*_"


def make(tmp_path, *flags):
    """The report on tmp_path/runs: (page, Markdown, CSV rows, record)."""
    out = tmp_path / "out"
    assert report.main(["--runs", str(tmp_path / "runs"), "--out", str(out), *flags]) == 0
    table = list(csv.DictReader(io.StringIO((out / "results.csv").read_text())))
    return ((out / "report.html").read_text(), (out / "results.md").read_text(), table,
            json.loads((out / "results.json").read_text()))


def test_text_of_files_is_escaped_everywhere(tmp_path):
    run = write_run(tmp_path / "runs" / HOSTILE.replace("/", ""), source=f"x/{HOSTILE}",
                    teacher=HOSTILE, student=HOSTILE,
                    generator={**DIT, "name": HOSTILE, "licence": HOSTILE, "trained_on": HOSTILE})
    for name in ("result.json", "student.json"):
        record = json.loads((run / name).read_text())
        record |= {"command": HOSTILE, "commit": HOSTILE, "versions": {HOSTILE: HOSTILE},
                   "hardware": HOSTILE, "class_names": [HOSTILE] * 10}
        (run / name).write_text(json.dumps(record))
    (tmp_path / "runs" / "inspect.json").write_text(json.dumps(
        {"set": f"x/{HOSTILE}", "sentence": HOSTILE, "images": HOSTILE,
         "worst_class": {"name": HOSTILE, "percent": 3}}))
    (write_run(tmp_path / "runs" / f"hurt{HOSTILE}") / "config.yaml").write_text(f"a: [{HOSTILE}")
    write_run(tmp_path / "runs" / "b")
    page, markdown, _, _ = make(tmp_path, "--title", HOSTILE, "--question", HOSTILE,
                                "--baseline", HOSTILE.strip("_"))
    assert "<img src=x" not in page and "onerror=alert(1)&gt;" in page
    assert "<img" not in markdown.replace("\\<img", "")


def test_bytes_in_names_and_control_characters_never_break_the_page(tmp_path):
    runs = tmp_path / "runs"
    write_run(runs / "whole")
    write_run(runs / "b\udcff\x1b[31m")
    page, _, table, record = make(tmp_path)
    assert "b?" in page and "\x1b" not in page
    assert {row["name"] for row in record["rows"]} == {"whole", "b? [31m"} and len(table) == 2


def test_a_page_comes_of_runs_with_anything_in_any_field(tmp_path):
    runs = tmp_path / "runs"
    write_run(runs / "whole")
    generator = {**DIT, "guidance_scale": 1.0, "steps": 5}
    for v, value in enumerate((None, True, -1, 1e308, float("nan"), "x", [], {"a": [1]})):
        for name in ("result.json", "student.json", "inputs.json", "config.yaml"):
            fields = yaml.safe_load((write_run(runs / "now", source="s", generator=generator)
                                     / name).read_text())
            shutil.rmtree(runs / "now")
            for field in fields:
                run = write_run(runs / f"{name}_{field}_{v}", source="s", generator=generator)
                (run / name).write_text(json.dumps({**fields, field: value}))
    page, _, table, record = make(tmp_path, "--baseline", "whole")
    assert len(table) > 100 and len(record["problems"]) > 20 and "</html>" in page


def test_the_browser_is_told_to_fetch_nothing_and_nothing_is_linked(tmp_path):
    write_run(tmp_path / "runs" / "a")
    page, *_ = make(tmp_path)
    assert "default-src 'none'" in page
    assert not re.search(r"(src|href)=['\"]?(?!#|data:)[\w/]", page)
    assert "url(" not in page.replace("url(#", "") and "@import" not in page


def test_tables_have_the_same_numbers_in_csv_markdown_and_html(tmp_path):
    for name, acc1 in (("a", 90), ("b", 80)):
        write_run(tmp_path / "runs" / name, acc1, images=100)
    page, markdown, table, _ = make(tmp_path, "--baseline", "b")
    assert [row["acc1_mean"] for row in table] == ["90.0", "80.0"]
    assert table[0]["against_difference"] == "10.0" and table[1]["against_difference"] == ""
    assert "| a | " in markdown and "| 90.00 |" in markdown and "<td class=n>90.00</td>" in page
    assert "+10.00 (" in page and "minus b" in page


def test_tables_say_what_an_interval_rests_on(tmp_path):
    for seed in (0, 1):
        write_run(tmp_path / "runs" / f"a_seed{seed}", seed=seed)
    run = write_run(tmp_path / "runs" / "b")
    page, markdown, table, _ = make(tmp_path, "--baseline", "a")
    assert "<td class=t>2 runs, 2 seeds, 10 writers</td>" in page and "2 runs, 2 seeds" in markdown
    assert "seeds: 1: spread of training not in the interval; 1 of 2 runs of the baseline" in page
    fields = [{row["name"]: row[f"rests_on_{k}"] for row in table}["a"] for k in (
        "runs", "generators", "seeds", "images", "groups", "units")]
    assert fields == ["2", "0", "2", "60", "10", "writers"]
    assert {row["name"]: row["against_runs"] for row in table} == {"a": "", "b": "1"}
    config = yaml.safe_load((run / "config.yaml").read_text())
    (run / "config.yaml").write_text(yaml.safe_dump(config | {"val": "dev"}))
    page, *_ = make(tmp_path, "--baseline", "a")
    assert "not comparable: other validation images (--val)" in page and "minus a" not in page


def test_a_cell_of_a_spreadsheet_is_no_formula(tmp_path):
    write_run(tmp_path / "runs" / "=cmd()")
    assert make(tmp_path)[2][0]["name"] == "'=cmd()"


def test_runs_that_are_left_out_stand_on_the_page_with_the_reason(tmp_path):
    write_run(tmp_path / "runs" / "whole")
    later = write_run(tmp_path / "runs" / "later", epochs=36)
    (later / "result.json").unlink()
    foreign = tmp_path / "runs" / "foreign"
    foreign.mkdir()
    (foreign / "config.yaml").write_text("model_type: bert")
    page, markdown, _, record = make(tmp_path)
    assert "not finished" in page and "epoch 8 of 36" in page
    assert "its config.yaml is of another program" in page and "epoch 8 of 36" in markdown
    assert len(record["left_out"]) == 2 and "2 left out" in page


def test_a_column_that_no_row_has_anything_in_is_left_out(tmp_path):
    run = write_run(tmp_path / "runs" / "a", per_class=None)
    (run / "predictions.json").unlink()
    page, *_ = make(tmp_path)
    assert "published" not in page and "95 % interval</button>" not in page


def test_the_answer_is_about_students_of_the_baselines_kind(tmp_path):
    dit = DIT | {"guidance_scale": 1.0, "steps": 50}
    write_run(tmp_path / "runs" / "small_real", 80, student="cnn_w4")
    for name, acc1, student in (("small", 70, "cnn_w4"), ("large", 90, "cnn_w16")):
        write_run(tmp_path / "runs" / name, acc1, student=student, source="set", generator=dit)
    _, text, _, _ = make(tmp_path, "--baseline", "small_real")
    assert "names 70.00" in text and "-10.00 points" in text and "small\\_real with 80" in text


def test_blind_agreement_has_a_column_where_a_run_has_it(tmp_path):
    run = write_run(tmp_path / "runs" / "a")
    write_run(tmp_path / "runs" / "b")
    assert "agrees, blind %" not in make(tmp_path)[1]
    result = json.loads((run / "result.json").read_text())
    (run / "result.json").write_text(json.dumps(result | {"blind_agreement": 61.25}))
    page, markdown, table, _ = make(tmp_path)
    assert "agrees, blind %" in page and "| 61.25 |" in markdown
    assert [row["blind_agreement_mean"] for row in table] == ["61.25", ""]


def test_the_budget_has_the_accuracy_the_information_and_three_kinds_of_minutes(tmp_path):
    known = write_run(tmp_path / "runs" / "known", 90, source="s", generator=DIT)
    result = json.loads((known / "result.json").read_text())
    result["budget"] |= {"making_seconds": 120.0, "pretraining_seconds": 3600.0}
    (known / "result.json").write_text(json.dumps(result | {"blind_agreement": 61.25}))
    write_run(tmp_path / "runs" / "unknown", 80, source="s", generator=DIT)
    write_run(tmp_path / "runs" / "dafl", 70, source="dafl", per_class=None)
    write_run(tmp_path / "runs" / "real", 60)
    page, markdown, table, record = make(tmp_path)
    budget = markdown.split("## Budget")[1]
    heads, _, *lines = [line[2:-2].split(" | ") for line in budget.splitlines()
                        if line.startswith("|")]
    assert heads == ["row", "Acc@1 %", "best %", "agrees %", "agrees, blind %", "learns from",
                     "images kept", "student steps", "generator evaluations", "teacher passes",
                     "student passes", "images seen", "minutes", "minutes for the images",
                     "generator pretraining, minutes"]
    assert [line[12:] for line in lines] == [
        ["1.5", "2.0", "60.0"], ["1.5", "?", "?"], ["1.5", "in minutes", "0.0"], ["1.5", "", ""]]
    assert lines[0][1:6] == ["90.00", "90.10", "90.00", "61.25",
                             "teacher + public prior: a generator trained on ImageNet"]
    assert [row["budget_making_seconds"] for row in table] == ["120.0", "", "", ""]
    assert "minutes for the images" in page and "trained on" in page
    assert record["generators"][0]["trained_on"] == "ImageNet"


def test_the_best_epoch_stands_beside_the_last(tmp_path):
    write_run(tmp_path / "runs" / "a", 90)
    assert "| Acc@1 % | best % |" in make(tmp_path)[1]


def test_the_table_of_sets_names_the_class_that_the_teacher_sees_least(tmp_path):
    write_run(tmp_path / "runs" / "a")
    (tmp_path / "runs" / "inspect.json").write_text(json.dumps(
        {"set": "s", "sentence": "s", "worst_class": {"class": 3, "name": "lady's slipper",
                                                      "percent": 61.25}}))
    page, markdown, _, _ = make(tmp_path)
    assert "lady&#x27;s slipper: 61.2" in page and "| lady's slipper: 61.2 |" in markdown
    assert "worst class, %" in markdown


def test_pictures_of_inspections_are_shown_until_the_page_is_large_enough(tmp_path, monkeypatch):
    write_run(tmp_path / "runs" / "a")
    for i in range(5):
        (tmp_path / "runs" / f"inspect{i}.json").write_text(json.dumps(
            {"set": f"set{i}", "sentence": f"sentence {i}"}))
        (tmp_path / "runs" / f"inspect{i}.png").write_bytes(report_runs.PNG + bytes(392))
    monkeypatch.setattr(report_page, "MOST_PICTURES_BYTES", 1000)
    page, *_ = make(tmp_path)
    assert page.count("nearest real images") == 2 and "sentence 1" in page
    assert "set4" in page and "sentence 4" not in page


@pytest.mark.parametrize("cells, numeric", [
    (["90.00 ± 0.1", ""], True), (["1,000", "20"], True), (["-0.50 (-1.00 to +0.00)"], True),
    (["97.0 to 98.0"], True), (["real images"], False), (["76.58 DM-KD"], False), (["-"], False)])
def test_a_column_of_numbers_is_told_from_one_of_words(cells, numeric):
    assert report_page.is_numeric(cells) is numeric


# --- in a browser ---------------------------------------------------------------------------------

WATCH = """<script>
window.problems = [];
addEventListener('error', e => problems.push(e.message));
addEventListener('unhandledrejection', e => problems.push(String(e.reason)));
addEventListener('securitypolicyviolation', e => problems.push('fetched ' + e.blockedURI));
console.error = console.warn = (...words) => problems.push(words.join(' '));
</script>"""
LOOK = """<script>
addEventListener('load', () => {
  const table = document.querySelector('#budget table');
  const head = [...table.tHead.rows[0].cells].find(c => c.textContent.startsWith('images kept'));
  const column = () => [...table.tBodies[0].rows].map(row => row.cells[head.cellIndex].textContent);
  const states = [column()];
  for (let i = 0; i < 2; i++) {
    head.querySelector('button').click();
    states.push(head.getAttribute('aria-sort'), column());
  }
  const first = table.tHead.rows[0].cells[0];
  first.querySelector('button').click();
  const names = [...table.tBodies[0].rows].map(row => row.cells[0].textContent);
  const wide = [...document.querySelectorAll('body *')].filter(e => !e.closest('.wide, pre, svg')
    && e.getBoundingClientRect().right > innerWidth + 1).map(e => e.outerHTML.slice(0, 80));
  parent.postMessage({width: innerWidth, content: document.documentElement.scrollWidth, states,
    problems, wide, names, sorted: first.getAttribute('aria-sort'),
    left: head.getAttribute('aria-sort'), charts: document.querySelectorAll('figure svg').length,
    small: [...document.querySelectorAll('figure svg')].map(s => s.getBoundingClientRect().width),
    ink: getComputedStyle(document.body).color}, '*');
});
</script>"""
FRAMES = """<!doctype html><meta charset=utf-8><pre id=seen></pre><script>
const seen = [];
addEventListener('message', e => { seen.push(e.data);
  document.getElementById('seen').textContent = JSON.stringify(seen); });
</script>"""


def look(page, folder, widths, dark=False):
    """What the page says of itself inside frames of these widths."""
    page = page.replace("<head>", "<head>" + WATCH).replace("</body>", LOOK + "</body>")
    frames = "".join(f'<iframe style="width:{w}px;height:800px;border:0" '
                     f'srcdoc="{html.escape(page)}"></iframe>' for w in widths)
    (folder / "frames.html").write_text(FRAMES + frames)
    found = subprocess.run(
        [CHROMIUM, "--headless=new", "--no-sandbox", "--disable-gpu", "--window-size=1500,900",
         f"--user-data-dir={folder / 'profile'}", "--virtual-time-budget=10000",
         *(["--blink-settings=preferredColorScheme=0"] if dark else []), "--dump-dom",
         (folder / "frames.html").as_uri()], capture_output=True, text=True, timeout=300)
    text = re.search(r'<pre id="seen">(.*?)</pre>', found.stdout, re.DOTALL)
    assert text and text[1], found.stderr[-500:]
    return {seen["width"]: seen for seen in json.loads(html.unescape(text[1]))}


@pytest.fixture(scope="module")
def study_page(tmp_path_factory):
    root = tmp_path_factory.mktemp("browser")
    write_study(root / "runs", seeds=(0, 1), scales=(0, 1, 2), steps=(5, 20))
    write_run(root / "runs" / ("a_very_long_name_without_any_space" * 3), 100)
    later = write_run(root / "runs" / "later")
    (later / "result.json").unlink()
    page, *_ = make(root, "--baseline", "real_160", "--question", "Which?")
    return page


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium")
def test_in_a_browser_nothing_overflows_or_fails_and_tables_sort_by_number(study_page, tmp_path):
    seen = look(study_page, tmp_path, (390, 1440))
    assert seen.keys() == {390, 1440}
    for width, state in seen.items():
        assert state["problems"] == [] and state["wide"] == []
        assert state["content"] <= width and state["charts"] >= 6
        before, way, falling, back, rising = state["states"]
        assert way == "descending" and back == "ascending" and before != falling
        numbers = [int(cell.replace(",", "")) for cell in falling]
        assert numbers == sorted(numbers, reverse=True) and numbers[0] == 6400
        assert rising == sorted(rising, key=lambda cell: int(cell.replace(",", "")))
        assert state["names"] == sorted(state["names"], key=natural)
        assert state["sorted"] == "ascending" and state["left"] is None
    assert min(seen[390]["small"]) > 340


def natural(name):
    return [int(part) if part.isdigit() else part.lower() for part in re.split(r"(\d+)", name)]


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium")
def test_the_page_follows_the_browsers_colour_scheme(study_page, tmp_path):
    inks = []
    for dark in (False, True):
        (tmp_path / str(dark)).mkdir()
        seen = look(study_page, tmp_path / str(dark), (390,), dark)
        inks.append(int(re.search(r"\d+", seen[390]["ink"])[0]))
    assert inks[0] < 80 and inks[1] > 180


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium")
def test_the_look_through_the_browser_sees_errors_and_overflow(study_page, tmp_path):
    broken = study_page.replace("<main>", "<main><div style='width:3000px'>x</div><img src=http:"
                                "//localhost:9/a.png><script>nothing.there()</script>")
    state = look(broken, tmp_path, (390,))[390]
    assert any("nothing is not defined" in p for p in state["problems"])
    assert any(p.startswith("fetched http") for p in state["problems"])
    assert state["wide"] and state["content"] > 390


# --- size -----------------------------------------------------------------------------------------

@pytest.mark.slow
def test_500_runs_take_less_than_30_seconds_and_10_megabytes(tmp_path):
    for seed in range(5):
        for i in range(100):
            source = "real" if i % 2 else f"syn/s{i}"
            write_run(tmp_path / "runs" / f"row{i}_seed{seed}", 60 + i / 3, seed=seed, images=500,
                      source=source, numbers=100 * i + seed,
                      generator=None if i % 2 else {**DIT, "guidance_scale": float(i % 10),
                                                    "steps": 10 * (1 + i // 10)})
            if not i % 2 and not seed:
                place = tmp_path / "runs" / f"inspect{i}.json"
                place.write_text(json.dumps({"set": source, "sentence": "a set", "frechet": i}))
                place.with_suffix(".png").write_bytes(report_runs.PNG + bytes(250_000))
    started, cpu = time.monotonic(), time.process_time()
    page, *_ = make(tmp_path, "--baseline", "row1")
    print(f"{time.monotonic() - started:.1f} s, {time.process_time() - cpu:.1f} s of processor, "
          f"{len(page) / 1e6:.2f} MB")
    assert time.process_time() - cpu < 30 and len(page.encode()) < 10e6
    assert "row99" in page and page.count("row") > 500


def choice_row(name, acc1, blind, evaluations=0.0):
    return {"name": name, "acc1_mean": acc1, "blind_agreement_mean": blind,
            "budget": {"generator_evaluations": evaluations}}


def test_choices_take_the_best_trial_and_say_what_choosing_blind_costs():
    rows = [choice_row("a_1", 90.0, 50.0), choice_row("a_2", 95.0, 40.0),
            choice_row("b_1", 80.0, 70.0, 200.0), choice_row("b_2", 80.0, 70.0, 100.0),
            choice_row("c_1", 70.0, None), choice_row("c_10", 60.0, 90.0),
            choice_row("alone_1", 99.0, 99.0), choice_row("teacher", 99.0, None)]
    found = report_choices.choices(rows)
    assert [(c["method"], c["chosen"], c["blind"], c["lost"]) for c in found] == [
        ("a", 2, 1, 5.0), ("b", 2, 1, 0.0), ("c", 1, None, None)]
    assert report_choices.conclude(found) == [
        "Choosing by blind agreement takes the same setting, or one as good, for 1 of 2 methods; "
        "in the others it loses 5.0 to 5.0 points, 2.5 on average over all."]


def test_the_choices_stand_in_the_tables_and_on_the_page_where_asked_for(tmp_path):
    for n, acc1 in ((1, 80.0), (2, 90.0)):
        write_run(tmp_path / "runs" / f"dafl_{n}", acc1)
    page, markdown, _, record = make(tmp_path, "--choose")
    assert [c["chosen"] for c in record["choices"]] == [2]
    assert "Choice of settings" in page and "| dafl | 2 | dafl\\_2 | 90.00 |  |  |" in markdown
    page, markdown, _, record = make(tmp_path)
    assert record["choices"] == [] and "Choice of settings" not in page + markdown


def test_what_is_only_said_takes_no_place_among_the_figures():
    drawn, said = {"html": "<svg>", "caption": "drawn"}, {"html": "", "caption": "said"}
    assert report_page.figures_section([said, drawn]).count("<figure") == 1
    assert "said" not in report_page.figures_section([said, drawn])
    assert "said" in report_page.figures_section([said])
