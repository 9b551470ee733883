"""The shell scripts: readable by sh, with a header, and a dry run that touches nothing."""

import importlib
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from dm_kd import models
from dm_kd.tasks import get_task

ROOT = Path(__file__).parent.parent
SCRIPTS = sorted(p for p in (ROOT / "scripts").rglob("*.sh"))
RUNNABLE = [p for p in SCRIPTS if p.read_text().startswith("#!/bin/sh")]
NO_DRY_RUN = {"test.sh"}  # its flags are pytest's


def is_chain(script):
    """Whether it runs several commands and reads its flags itself."""
    text = script.read_text()
    return any(flags in text for flags in ("chain_flags", "dry_flag", "study_flags"))


@pytest.fixture(scope="module")
def fresh(tmp_path_factory):
    """A copy of the project as a clone has it: nothing made yet."""
    folder = tmp_path_factory.mktemp("clone")
    for name in ("dm_kd", "scripts"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "requirements.txt", folder)
    return folder


SMALL = {"GRID": "1", "CLAIM": "2", "PLAIN": "1", "STRONG": "1", "TRIALS": "2"}  # of the studies
PART = {"GUIDANCE": "1 4", "STEPS": "5"}  # of a grid of guidance and steps


RECORDER = """#!/bin/sh
# Writes down what python would run, instead of starting it: dm_kd's commands, one a line.
case "$*" in
-c*) exec %s "$@" ;;
"-m dm_kd") cat >>"$RECORD" ;;
*)
    printf %%s "${2#dm_kd.}" >>"$RECORD"
    shift 2
    for word; do printf " '%%s'" "$word"; done >>"$RECORD"
    echo >>"$RECORD" ;;
esac
"""


@pytest.fixture(scope="module")
def recorder(tmp_path_factory):
    path = tmp_path_factory.mktemp("recorder") / "python"
    path.write_text(RECORDER % sys.executable)
    path.chmod(0o755)
    return path


def run_script(folder, script, *flags, **variables):
    return subprocess.run(["sh", script.relative_to(ROOT), *flags], cwd=folder, text=True,
                          capture_output=True, env={**os.environ, "PYTHON": sys.executable,
                                                    "PYTHONDONTWRITEBYTECODE": "1", **SMALL,
                                                    **PART, **variables})


def test_a_python_without_torch_is_named(tmp_path):
    shutil.copytree(ROOT / "scripts", tmp_path / "scripts")
    python = tmp_path / "python"
    python.write_text("#!/bin/sh\nexit 1\n")
    python.chmod(0o755)
    own = {k: v for k, v in os.environ.items()
           if k not in ("PYTHON", "VIRTUAL_ENV", "CONDA_PREFIX")}
    done = subprocess.run(["sh", "scripts/digits_teacher.sh"], cwd=tmp_path, text=True,
                          capture_output=True, env=own | {"PATH": f"{tmp_path}:{own['PATH']}"})
    assert done.returncode == 2 and "error: python has no torch" in done.stderr
    assert "quickstart.sh" in done.stderr


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda p: p.name)
def test_sh_can_read_it(script):
    subprocess.run(["sh", "-n", script], check=True)


@pytest.mark.parametrize("script", [p for p in RUNNABLE if p.name != "bench.sh"],
                         ids=lambda p: p.name)  # which runs two commands with the same flags
def test_one_command_hands_its_flags_on_and_a_chain_names_unknown_ones(script):
    text = script.read_text()
    assert text.rstrip().endswith('"$@"') != is_chain(script), script


@pytest.mark.parametrize("script", RUNNABLE, ids=lambda p: p.name)
def test_header_says_what_it_takes_and_gives_and_it_stops_at_errors(script):
    text = script.read_text()
    header = text.split("set -eu")[0]
    assert "set -eu" in text
    for word in ("Hardware:", "Time:", "Disk:"):
        assert word in header, word
    if script.parent.name != "sweeps":  # a study has a question, and a rule for the answer
        assert "Expected" in header
    else:
        assert "Question:" in header and re.search(r"\brule|\bverdict", header, re.I)


STEPS = [p for p in RUNNABLE if p.parent.name == "scripts"
         and re.search("_(teacher|synthesize|generator|gan|distill)", p.stem)]


@pytest.mark.parametrize("script", STEPS, ids=lambda p: p.name)
def test_a_step_says_its_top_1_or_that_it_trains_no_classifier(script):
    header = script.read_text().split("set -eu")[0].replace("\n# ", " ")
    assert re.search("Expected top-1: (none, this step trains no classifier|no published "
                     "number|not |see |about [0-9]|[0-9]|wrn_40_2 [0-9])", header)
    if re.search("_(synthesize|generator|gan)", script.stem):
        assert "trains no classifier" in header and "Table row" in header


def test_the_gpu_size_of_fashion_mnist_is_another_study_and_the_default_is_as_it_was(study):
    for size, flags, per_class, rows, end in (
            ("cpu", {"patch_size": 4, "width": 144, "steps": 6000}, 1000, 3, ""),
            ("gpu", {"patch_size": 2, "width": 384}, 6000, 4, "_gpu")):
        made = [settings(words) for words in study("scripts/fashion_mnist.sh", SIZE=size)]
        [generator] = [args for entry, args in made if entry == "train_generator"]
        [images] = [args for entry, args in made if entry == "synthesize"]
        students = [args for entry, args in made if entry == "distill"]
        assert flags.items() <= generator.items() and images["images_per_class"] == per_class
        assert str(generator["out"]) == f"save/generators/fashion_mnist_dit{end}" == (
            images["weights"])
        assert str(images["out"]) == f"syn_dataset/fashion_mnist{end}"
        assert len(students) == rows * 2 * 3  # students, seeds
        assert len({args["epochs"] * args["steps_per_epoch"] for args in students}) == 1
        for step in ("generator", "synthesize"):
            [own] = study(f"scripts/fashion_mnist_{step}.sh", "--dry-run", SIZE=size)
            expected = dict(generator if step == "generator" else images)
            assert settings(own)[1] | {"threads": 0} == expected | {"threads": 0}
    report = made[-1][1]
    assert report["baseline"] == "wrn_16_1_real" and "synthetic_10k" in str(report["rows"])


@pytest.mark.parametrize("script, generators", [
    ("fashion_mnist.sh", 1), *((f"sweeps/fashion_mnist_{name}.sh", of) for name, of in (
        ("fidelity", 1), ("amount", 1), ("teacher_strength", 1), ("approximations", 1),
        ("rivals", 2)))])  # the GAN
def test_with_a_generator_given_none_is_trained_and_all_images_are_its(
        study, tmp_path, script, generators):
    given = "save/results/fashion_mnist/generator"
    (tmp_path / given).mkdir(parents=True)
    plain = [settings(words) for words in study(f"scripts/{script}")]
    taken = [settings(words) for words in study(f"scripts/{script}", GENERATOR=given)]
    trained = [sum(entry == "train_generator" for entry, _ in made) for made in (plain, taken)]
    assert trained == [generators, generators - 1]
    usual = "save/generators/fashion_mnist_dit"
    weights = [[str(args["weights"]) for entry, args in made if entry == "synthesize"
                and args["generator"] == "dit"] for made in (plain, taken)]
    assert set(weights[0]) == {usual} and set(weights[1]) == {given}
    assert len(weights[0]) == len(weights[1])


def test_a_size_of_fashion_mnist_that_is_none_is_refused(fresh):
    done = run_script(fresh, ROOT / "scripts/fashion_mnist.sh", "--dry-run", SIZE="huge")
    assert done.returncode == 2 and "SIZE is cpu or gpu" in done.stderr


@pytest.mark.parametrize("script", [p for p in RUNNABLE if p.name not in NO_DRY_RUN],
                         ids=lambda p: p.name)
def test_dry_run_works_without_earlier_output_and_writes_nothing(script, fresh, recorder, tmp_path,
                                                                 monkeypatch, capsys):
    before, record = sorted(fresh.rglob("*")), tmp_path / "commands"
    done = run_script(fresh, script, "--dry-run", PYTHON=str(recorder), RECORD=str(record))
    assert done.returncode == 0, done.stderr
    commands = [line for line in record.read_text().splitlines() if line.strip()]
    monkeypatch.chdir(fresh)
    for line in commands:  # in this process: a start of Python takes three seconds
        entry, *argv = shlex.split(line)
        assert importlib.import_module(f"dm_kd.{entry}").main(argv) == 0, capsys.readouterr().err
        assert "would" in capsys.readouterr().out, line
    assert commands and sorted(fresh.rglob("*")) == before


def test_a_dry_run_in_processes_of_its_own(fresh):
    for name in ("quickstart", "digits_distill"):
        done = run_script(fresh, ROOT / f"scripts/{name}.sh", "--dry-run")
        assert done.returncode == 0 and "would" in done.stdout, done.stderr


@pytest.mark.parametrize("script", [p for p in RUNNABLE if is_chain(p)],
                         ids=lambda p: p.name)  # the others hand their flags on to a command
def test_an_unknown_flag_is_refused(script, fresh):
    done = run_script(fresh, script, "--no-such-flag")
    assert done.returncode == 2 and "no-such-flag" in done.stderr


# --- the studies, with a stand-in for python that makes what a command would make -----------------

PAPER_STUDIES = ("fidelity", "teacher_strength", "amount", "ways")
PAPER_TASKS = ("imagenet", "imagenet100", "cifar100", "flowers102")
STUDIES = [(p.name, ()) for p in SCRIPTS if p.parent.name == "sweeps" and p in RUNNABLE
           and ("digits_study" in p.read_text() or "fashion_mnist_study" in p.read_text())]
STUDIES += [(f"{study}.sh", (task,)) for study in PAPER_STUDIES for task in PAPER_TASKS]
STAND_IN = """#!%s
import json, pathlib, shlex, sys

if "-m" in sys.argv and sys.argv[-1] != "dm_kd":
    print(shlex.join(sys.argv[2:]))
    sys.exit()
for line in sys.stdin:
    with open("commands.txt", "a") as file:
        file.write(line)
    words = shlex.split(line)
    flags = dict(zip(words[1:], words[2:]))
    for name in ("--teacher", "--source", "--weights", "--features", "--set", "--runs"):
        path = flags.get(name, "")
        if path.startswith(("save/", "syn_dataset/")) and not pathlib.Path(path).exists():
            sys.exit(f"{path} is not made yet: {line}")
    if "--baseline" in flags:
        rows = {p.name.split("_seed")[0].split("_set")[0]
                for p in pathlib.Path(flags["--runs"]).rglob("*")}
        if flags["--baseline"] not in rows:
            sys.exit(f"no row {flags['--baseline']} in {sorted(rows)}")
    out = pathlib.Path(flags["--out"])
    if out.suffix == ".json":
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text("{}")
    else:
        out.mkdir(parents=True, exist_ok=True)
        best = float(flags.get("--temperature", 0)) == 16
        result = {"best_acc1": 99.5, "acc1": 90 + best}
        (out / "result.json").write_text(json.dumps(result, indent=1))
"""


@pytest.fixture
def study(tmp_path):
    """f(script, *flags, **variables) -> the commands that the study runs, in order, as word lists;
    each finds what it needs."""
    shutil.copytree(ROOT / "scripts", tmp_path / "scripts")
    stand_in = tmp_path / "python"
    stand_in.write_text(STAND_IN % sys.executable)
    stand_in.chmod(0o755)

    def run(script, *flags, **variables):
        (tmp_path / "commands.txt").unlink(missing_ok=True)
        done = subprocess.run(["sh", script, *flags], cwd=tmp_path, text=True, capture_output=True,
                              env={**os.environ, "PYTHON": str(stand_in), "JOBS": "1", **variables})
        assert done.returncode == 0, done.stderr
        if not (tmp_path / "commands.txt").exists():
            return [shlex.split(done.stdout)]
        return [shlex.split(line) for line in (tmp_path / "commands.txt").read_text().splitlines()]

    return run


def settings(words):
    """(entry, resolved flags) of a command's words."""
    entry = words[0].removeprefix("dm_kd.")
    args = vars(importlib.import_module(f"dm_kd.{entry}").parse(words[1:]))
    return entry, {k: v for k, v in args.items() if k not in ("left_at_default", "dry_run")}


@pytest.mark.parametrize("script, flags", STUDIES,
                         ids=lambda value: value if isinstance(value, str) else "".join(value))
def test_a_study_makes_things_before_it_uses_them_and_each_of_its_flags_exists(study, script,
                                                                               flags):
    made, named, few = {}, set(), SMALL if flags else SMALL | PART
    commands = [settings(words) for words in study(f"scripts/sweeps/{script}", *flags, **few)]
    for entry, args in commands:
        assert made.setdefault(args["out"], args) == args  # no two things in one place
        if entry in ("distill", "train_teacher"):
            named.add((args["task"], args["student" if entry == "distill" else "model"]))
    with torch.device("meta"):
        for task, name in named:
            models.build(name, get_task(task))
    entries = [entry for entry, _ in commands]
    assert entries[-1] == "report" and {"distill", "synthesize"} <= set(entries)


@pytest.mark.parametrize("task, teacher, synthesize, distill", [
    ("imagenet", None, "imagenet", "imagenet"),
    ("imagenet100", "imagenet100", "imagenet", "imagenet100"),
    ("flowers102", "flowers102", "imagenet", "flowers102"),
    ("cifar100", "cifar100", "cifar100", "cifar100_distill_w40_2_w16_2")])
def test_a_studys_settings_are_those_of_the_tasks_own_scripts(study, task, teacher, synthesize,
                                                              distill):
    commands = [settings(words) for words in study("scripts/sweeps/ways.sh", task)]
    steps = {"train_teacher": teacher and f"{teacher}_teacher",
             "synthesize": f"{synthesize}_synthesize",
             "distill": distill if "_distill" in distill else f"{distill}_distill"}
    for step, script in steps.items():
        if script:
            mine = next(args for entry, args in commands if entry == step)
            [expected] = study(f"scripts/{script}.sh", "--dry-run")
            expected = settings(expected)[1]
            if step == "distill":
                mine["out"] = expected["out"]
            assert mine == expected


def test_trials_of_the_digits_nest(study, tmp_path):
    script = ". scripts/sweeps/digits_study.sh; trials 90"
    names = subprocess.run(["sh", "-c", script], cwd=tmp_path, text=True, check=True,
                           capture_output=True).stdout.split()
    trials = [tuple(int(part[-2:].lstrip("dtn")) for part in name.split("_")) for name in names]
    assert len(set(trials)) == 90
    assert [t[0] for t in trials[:10]] == [*range(5), *range(5)]
    assert [len({t[1:3] for t in trials[:n]}) for n in (5, 15, 30, 90)] == [1, 3, 6, 6]
    made_from = {}
    for _, generator, made, seed in trials:  # no student's seed serves two sets
        assert made_from.setdefault(seed, (generator, made)) == (generator, made)
    assert len(made_from) == 18


def test_the_tuned_students_have_the_temperature_that_was_best_on_training_writers(study):
    commands = [settings(words) for words in study("scripts/sweeps/digits_teacher_strength.sh",
                                                   **SMALL)]
    students = [args for entry, args in commands if entry == "distill"]
    assert {a["temperature"] for a in students if "_tuned" in str(a["out"])} == {16}
    assert {a["temperature"] for a in students if "_fixed" in str(a["out"])} == {4}
    tried = [a for a in students if "/dev/" in str(a["out"])]
    assert {a["val"] for a in tried} == {"dev"} and {a["temperature"] for a in tried} == {1, 4, 16}
    judged = [a for a in students if "/dev/" not in str(a["out"])]
    assert not {a["teacher"] for a in tried} & {a["teacher"] for a in judged}
    assert not {a["source"] for a in tried} & {a["source"] for a in judged}


def test_a_study_goes_on_with_more_trials_and_looks_at_each_set_once(study):
    few = SMALL | PART | {"PLAIN": "0", "STRONG": "0"}
    first = study("scripts/sweeps/digits_fidelity.sh", **few)
    again = study("scripts/sweeps/digits_fidelity.sh", **few | {"CLAIM": "3"})
    assert {shlex.join(c) for c in first if c[0] != "inspect_set"} < set(map(shlex.join, again))
    looked = [c for c in again if c[0] == "inspect_set"]
    assert len(looked) == 3 and not set(map(shlex.join, looked)) & set(map(shlex.join, first))


def test_the_strong_recipe_of_the_digits_has_four_times_the_studys_steps(study):
    made = [settings(w) for w in study("scripts/sweeps/digits_fidelity.sh", **SMALL, **PART)]
    epochs = {str(args["out"]).split("/")[2]: args["epochs"] for entry, args in made
              if entry == "distill"}
    assert epochs == {"study": 45, "plain": 45, "strong": 180}
    assert {a["images_per_class"] for entry, a in made if entry == "synthesize"} == {100}


@pytest.mark.parametrize("script, flags, name", [
    ("digits_amount", (), "digits_amount"), ("digits_dev", (), "digits_dev"),
    ("fashion_mnist_dev", (), "fashion_mnist_dev"),
    ("fashion_mnist_amount", (), "fashion_mnist_amount"), ("ways", ("cifar100",), "cifar100_ways")])
def test_a_study_keeps_its_report_in_save_results_only_when_asked(study, script, flags, name):
    for record in ("", "1"):
        reports = [c for c in study(f"scripts/sweeps/{script}.sh", *flags,
                                    **SMALL | {"TRIALS": "1", "RECORD": record})
                   if c[0] == "report"]
        kept = [dict(zip(c[1:], c[2:], strict=False)) for c in reports if "--record" in c]
        assert len(kept) == (len(reports) if record else 0)
        if record:
            assert len({k["--record"] for k in kept}) == len(kept)
            assert kept[0]["--record"] == f"save/results/{name}"
            again = shlex.join(["sh", f"scripts/sweeps/{script}.sh", *flags])
            given = "TRIALS=1 GRID=1 CLAIM=2 PLAIN=1 STRONG=1"
            assert {k["--command"] for k in kept} == {f"{given} {again}"}


def test_a_record_names_the_rows_and_the_recipe_it_was_made_with(study):
    report = study("scripts/sweeps/digits_rivals.sh", RECORD="1", RECIPE="paper", ROUNDS="2",
                   ROWS="real dafl")[-1]
    assert report[report.index("--command") + 1] == (
        'RECIPE=paper ROUNDS=2 ROWS="real dafl" sh scripts/sweeps/digits_rivals.sh')


@pytest.mark.parametrize(("task", "others"), [("digits", [(3, 6, 12, 13)]),
                                              ("fashion_mnist", [])])
def test_rivals_are_compared_with_dm_kd_too_where_it_is_a_row(study, task, others):
    made = study(f"scripts/sweeps/{task}_rivals.sh", RECORD="1", ROWS="real dit")
    reports = [args for entry, args in map(settings, made) if entry == "report"]
    assert [args["baseline"] for args in reports] == ["real", "dit"] + ["dit"] * len(others)
    assert len({args["record"] for args in reports}) == len(reports)
    assert [tuple(args["leave_out_groups"]) for args in reports[2:]] == others


@pytest.mark.parametrize(("script", "rows", "wrong"), [
    ("digits_rivals", "real dfal", "dfal"), ("fashion_mnist_rivals", "real_12 dit_480 da", "da"),
    ("fashion_mnist_rivals", "real_x", "real_x"), ("digits_amount", "real_7", "real_7"),
    ("digits_ways", "base temperature3", "temperature3")])
def test_an_unknown_row_is_refused_before_anything_is_made(fresh, script, rows, wrong):
    done = run_script(fresh, ROOT / f"scripts/sweeps/{script}.sh", ROWS=rows)
    assert done.returncode == 2 and f"no row '{wrong}'; there are:" in done.stderr


@pytest.mark.parametrize("script", ["digits_rivals", "fashion_mnist_rivals"])
def test_rivals_train_the_diffusion_model_only_for_rows_that_use_it(study, script):
    for rows, trained in (("real dafl", False), ("diffdfkd", True), ("dit", True)):
        made = study(f"scripts/sweeps/{script}.sh", "--dry-run", ROWS=rows)
        assert any(words[0] == "train_generator" for words in made) == trained, rows


def test_an_unknown_task_of_a_study_is_refused(fresh):
    for name in PAPER_STUDIES:
        done = run_script(fresh, ROOT / f"scripts/sweeps/{name}.sh", "imagenette", "--dry-run")
        assert done.returncode == 2 and "imagenette" in done.stderr


def test_a_row_that_is_unknown_ends_a_dry_run_too(fresh):
    script = ROOT / "scripts/sweeps/digits_speed_keeps_accuracy.sh"
    done = run_script(fresh, script, "--dry-run", ROWS="fast")
    assert done.returncode == 2 and "'fast'" in done.stderr and "would" not in done.stdout


# --- the rivals' scripts --------------------------------------------------------------------------

BASELINES = ROOT / "scripts/baselines"
PAIRS = {"r34_r18": ("cifar_resnet34", "cifar_resnet18"),
         "vgg11_r18": ("vgg11_bn", "cifar_resnet18"),
         "w40_2_w16_1": ("wrn_40_2", "wrn_16_1"), "w40_2_w40_1": ("wrn_40_2", "wrn_40_1"),
         "w40_2_w16_2": ("wrn_40_2", "wrn_16_2")}


def sourcing(settings_file):
    return sorted(p.stem for p in BASELINES.glob("*.sh") if settings_file in p.read_text())


@pytest.mark.parametrize("pair", PAIRS)
def test_each_cifar100_baseline_takes_the_five_published_pairs(study, pair):
    teacher, student = PAIRS[pair]
    for name in sourcing("cifar100_settings.sh"):
        [words] = study(f"scripts/baselines/{name}.sh", "--dry-run", PAIR=pair)
        entry, args = settings(words)
        assert args.get("teacher", f"save/models/cifar100_{teacher}") == (
            f"save/models/cifar100_{teacher}"), name
        if entry == "synthesize":
            assert str(args["out"]).startswith(f"syn_dataset/cifar100_{teacher}_"), name
        else:
            assert args["student" if entry == "distill" else "model"] == student, name
            assert str(args["out"]).endswith(f"_{pair}"), name


def test_fastdfkd_has_its_published_rates_and_weights(study):
    for name, steps, rate, latent_rate in (("fast2", 2, 5e-3, 0.015), ("fast5", 5, 3e-3, 0.01),
                                           ("fastdfkd", 10, 2e-3, 0.01)):
        for pair, weights in {"r34_r18": (1.33, 0.5), "vgg11_r18": (1, 0.5),
                              "w40_2_w16_2": (1.1, 0.4)}.items():
            [words] = study(f"scripts/baselines/cifar100_{name}.sh", "--dry-run", PAIR=pair)
            args = settings(words)[1]
            assert (args["inner_steps"], args["generator_rate"], args["latent_rate"]) == (
                steps, rate, latent_rate)
            assert (args["adv_dad_weight"], args["ce_target_weight"]) == weights
    for student, weight in (("resnet50", 0.1), ("resnet18", 1), ("mobilenet_v2", 0.1)):
        [words] = study("scripts/baselines/imagenet_fastdfkd_reptile.sh", "--dry-run",
                        STUDENT=student)
        assert settings(words)[1]["adv_dad_weight"] == weight


@pytest.mark.parametrize("student", ["resnet50", "resnet18", "mobilenet_v2"])
def test_each_imagenet_baseline_takes_the_three_published_students(study, student):
    for name in sourcing("imagenet_settings.sh"):
        [words] = study(f"scripts/baselines/{name}.sh", "--dry-run", STUDENT=student)
        entry, args = settings(words)
        assert args["student" if entry == "distill" else "model"] == f"torchvision:{student}", name
        assert str(args["out"]).endswith(f"_{student}"), name


@pytest.mark.parametrize("variable, name", [("PAIR", "cifar100_real"),
                                            ("STUDENT", "imagenet_real")])
def test_an_unknown_pair_or_student_is_refused(fresh, variable, name):
    done = run_script(fresh, BASELINES / f"{name}.sh", "--dry-run", **{variable: "resnet99"})
    assert done.returncode == 2 and f"{variable} is " in done.stderr


def test_what_makes_a_cifar100_or_imagenet_set_has_a_script_for_its_student(study):
    read = {}
    for path in [*BASELINES.glob("cifar100_*.sh"), *BASELINES.glob("imagenet_*.sh")]:
        [words] = study(f"scripts/baselines/{path.name}", "--dry-run")
        read[path.stem] = settings(words)
    made = {name: str(args["out"]) for name, (entry, args) in read.items() if entry == "synthesize"}
    assert len(made) == 7
    for name, out in made.items():
        entry, args = read[f"{name}_distill"]
        assert (entry, args["source"]) == ("distill", out)


FASHION_RIVALS = "scripts/sweeps/fashion_mnist_rivals.sh"


@pytest.mark.parametrize("recipe, steps, expected", [
    ("strong", 1000, {"temperature": 4, "learning_rate": 0.02, "lr_schedule": "cosine",
                      "mixup": 0.4, "mix_share": 0.5, "weight_decay": 5e-4}),
    ("paper", 250, {"temperature": 10, "learning_rate": 0.02, "lr_schedule": "step",
                     "lr_decay_epochs": (3, 6, 9), "mixup": 0, "weight_decay": 1e-4})])
def test_fashion_mnists_rivals_have_one_recipe_and_one_number_of_steps(study, recipe, steps,
                                                                       expected):
    made = [settings(words) for words in study(FASHION_RIVALS, "--dry-run", RECIPE=recipe)]
    students = [args for entry, args in made if entry == "distill"]
    assert len(students) == 3 * 22
    for args in students:
        assert args["epochs"] * args["steps_per_epoch"] == steps and args["batch_size"] == 128
        if args["out"].name == "one_image_cutmix":  # its own, in place of the recipe's mixup
            assert (args["mixup"], args["cutmix"], args["mix_share"]) == (0, 0.25, 1)
            args = args | {key: expected[key] for key in ("mixup", "mix_share") if key in expected}
        assert {key: args[key] for key in expected} == expected, args["out"]
        assert args.get("calls_per_epoch", 1) == 1
    alone = [args for entry, args in made
             if entry == "train_teacher" and args["model"] == "lenet5_half"]
    expected.pop("temperature")
    assert len(alone) == 3
    for args in alone:
        assert {key: args[key] for key in expected} == expected
        assert args["epochs"] * args["steps_per_epoch"] == steps


def test_fashion_mnists_rivals_draw_the_real_images_anew_for_each_seed(study):
    made = [settings(words)[1] for words in study(FASHION_RIVALS, "--dry-run", "--seed", "5",
                                                  ROWS="real_1000 real_1207")][1:-1]
    assert [(a["seed"], a["subset_seed"], a["images_per_class"]) for a in made] == [
        (seed, seed, n) for n in (1000, 1207) for seed in (5, 6, 7)]


def test_the_adversarial_set_is_made_after_the_student_it_is_made_against(study):
    made = study(FASHION_RIVALS, ROWS="diffdfkd diffdfkd_adv")
    outs = [words[words.index("--out") + 1] for words in made]
    root = "save/fashion_mnist_rivals_strong/seed0"
    adversarial = "syn_dataset/fashion_mnist_diffdfkd_adv_strong_seed0"
    assert (outs.index(f"{root}/diffdfkd") < outs.index(adversarial)
            < outs.index(f"{root}/diffdfkd_adv"))
    plain, against = [settings(words)[1] for words in made if words[0] == "synthesize"]
    assert against.pop("student") == f"{root}/diffdfkd" and str(against.pop("out")) == adversarial
    assert (against.pop("teacher_guidance"), plain.pop("teacher_guidance")) == (1, 3)
    assert against.items() <= plain.items()


def test_the_larger_pair_has_the_papers_rate_in_the_papers_recipe(study):
    for recipe, rate in (("strong", 0.05), ("paper", 0.1)):
        made = study(FASHION_RIVALS, "--dry-run", ROWS="real", RECIPE=recipe, PAIR="wrn")
        assert {settings(w)[1]["learning_rate"] for w in made if w[0] == "distill"} == {rate}


def test_each_rival_has_four_different_trials_with_one_number_of_student_steps(study):
    trials = {}
    script = "scripts/sweeps/digits_rivals_tune.sh"
    for entry, args in map(settings, study(script, "--dry-run")):
        name = args["out"].name.removeprefix("digits_tune_").replace("gan_weights_", "gan_")
        if name.startswith(("fold0_seed0_", "fold1_seed0_")):
            name = name.split("_", 2)[2]
        if name[-2:-1] == "_" and name[-1] in "1234":
            own = {key: value for key, value in args.items()
                   if key not in ("out", "source", "fold", "teacher", "student", "weights")}
            trials.setdefault(name[:-2], {}).setdefault(name[-1], {})[entry] = own
    assert len(trials) == 15
    for method, own in trials.items():
        assert sorted(own) == ["1", "2", "3", "4"], method
        whole = [tuple(sorted((entry, str(sorted(args.items(), key=str)))
                              for entry, args in commands.items())) for commands in own.values()]
        assert len(set(whole)) == 4, method
        assert len({args["seed"] for commands in own.values() for args in commands.values()}) == 1
        for commands in own.values():
            args = commands["distill"]
            assert args["epochs"] * args["steps_per_epoch"] == 720, method
            made = commands.get("synthesize")
            assert made is None or made["images_per_class"] == args["images_per_class"] + 10


def test_the_random_real_digits_are_drawn_with_the_runs_seed(study):
    made = [settings(words)[1] for words in study("scripts/sweeps/digits_rivals.sh", "--dry-run",
                                                  ROWS="real_100", ROUNDS="2")]
    drawn = [(args["seed"], args["subset_seed"]) for args in made if args.get("subset_seed") is not
             None]
    assert sorted(set(drawn)) == [(0, 0), (1, 1)] and len(drawn) == 10


@pytest.mark.parametrize("recipe, steps", [("strong", 720), ("paper", 180)])
def test_the_digits_rivals_have_every_row_once_in_a_fold_and_one_number_of_steps(study, recipe,
                                                                                 steps):
    made = study("scripts/sweeps/digits_rivals.sh", RECIPE=recipe)  # which checks the order
    root = f"save/digits_rivals_{recipe}/"
    runs = [settings(words)[1] for words in made if words[0] in ("distill", "train_teacher")
            and words[words.index("--out") + 1].startswith(root)]
    places = [str(args["out"]).removeprefix(root).split("/") for args in runs]
    assert len(places) == len({tuple(p) for p in places}) == 5 * 21
    assert {fold for fold, _ in places} == {f"fold{n}_seed0" for n in range(5)}
    assert {args["epochs"] * args["steps_per_epoch"] for args in runs} == {steps}


def in_shell(text, cwd=ROOT):
    return subprocess.run(["sh", "-c", f". scripts/setup_env.sh; {text}"], cwd=cwd, text=True,
                          check=True, capture_output=True).stdout.strip()


def test_no_student_of_the_teacher_study_begins_with_its_teachers_weights(study):
    for script, *flags in (("digits_teacher_strength",), ("fashion_mnist_teacher_strength",),
                           ("teacher_strength", "cifar100"), ("teacher_strength", "imagenet100")):
        commands = [settings(words) for words in study(f"scripts/sweeps/{script}.sh", *flags,
                                                       **SMALL)]
        made = {str(a["out"]): (a["model"], a["seed"]) for entry, a in commands
                if entry == "train_teacher"}
        pairs = [(made[a["teacher"]], (a["student"], a["seed"])) for entry, a in commands
                 if entry == "distill"]
        assert any(teacher[0] == student[0] for teacher, student in pairs)
        assert not [teacher for teacher, student in pairs if teacher == student]


def test_the_best_run_is_found_by_its_number_the_first_of_equal_ones(tmp_path):
    for value, acc1 in ((1, 98.125), (4, 98.5), (16, 98.5)):
        (tmp_path / f"at{value}").mkdir()
        (tmp_path / f"at{value}" / "result.json").write_text(
            json.dumps({"best_acc1": 99.0, "acc1": acc1}, indent=1))
    assert in_shell(f"best_of {tmp_path}/at '1 4 16 64'") == "4"
    assert in_shell(f"best_of {tmp_path}/none '1 4'") == ""


def test_a_record_names_the_variables_and_the_seed_of_the_call():
    call = "chain_flags x {}; RECORD=1; recorded a scripts/x.sh"
    assert in_shell(call.format("")) == "--record save/results/a --command 'sh scripts/x.sh'"
    assert in_shell(call.format("--seed 3")).endswith("'sh scripts/x.sh --seed 3'")
    assert in_shell("RECORD=1; recorded a x").endswith("'sh x'")


def test_paths_with_spaces_reach_the_commands(study):
    commands = study("scripts/sweeps/fashion_mnist_fidelity.sh", **SMALL,
                     GENERATOR="my models/dit")
    weights = {a["weights"] for entry, a in map(settings, commands) if entry == "synthesize"}
    assert weights == {"my models/dit"}
