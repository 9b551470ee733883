"""Scripts and studies: every command they run, for every pair and student, and its order."""

import functools
import importlib
import json
import os
import shlex
import subprocess
from pathlib import Path

import pytest

from dm_kd import study
from dm_kd.run import UserError
from dm_kd.studies import STUDIES

ROOT = Path(__file__).parent.parent
SCRIPTS = {p.name: p for p in sorted((ROOT / "scripts").glob("*.sh"))}
STEPS = [name for name, path in SCRIPTS.items() if "\nlaunch dm_kd." in path.read_text()]
PAIRS = {"r34_r18": ("cifar_resnet34", "cifar_resnet18"),
         "vgg11_r18": ("vgg11_bn", "cifar_resnet18"), "w40_2_w16_1": ("wrn_40_2", "wrn_16_1"),
         "w40_2_w40_1": ("wrn_40_2", "wrn_40_1"), "w40_2_w16_2": ("wrn_40_2", "wrn_16_2"),
         **{student: ("", student) for student in ("resnet50", "resnet18", "mobilenet_v2")}}


def run_script(name, *arguments, **variables):
    return subprocess.run(["sh", f"scripts/{name}", *arguments], cwd=ROOT, text=True,
                          capture_output=True, env={**os.environ, **variables})


def words(name, *arguments, **variables):
    """[module, flags ...] that a script would run."""
    done = run_script(name, *arguments, PRINT_ONLY="1", **variables)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def flags_of(words):
    """["--fold", "1", "--shared-noise"] -> {"fold": "1", "shared-noise": True}; the last wins."""
    flags, name = {}, ""
    for word in words:
        name = word[2:] if word.startswith("--") else name
        flags[name] = True if word.startswith("--") else word
    return flags


def flags(name, *arguments, **variables):
    return flags_of(words(name, *arguments, **variables)[1:])


@functools.cache
def methods(name):
    """The methods of a *_baselines.sh, by its own error for an unknown one."""
    done = run_script(name, "no_such_method")
    assert done.returncode == 2 and "no_such_method" in done.stderr
    known = done.stderr.split("known:")[1].split()
    return [m.removesuffix("(_set)") for m in known] + [
        m.replace("(_set)", "_set") for m in known if m.endswith("(_set)")]


BASELINES = [(name, method) for name in SCRIPTS if name.endswith("_baselines.sh")
             for method in methods(name)]


@pytest.fixture
def dry_run(tmp_path, monkeypatch, capsys):
    """f([module, flags ...]): the command takes these flags where nothing was made before; it
    writes nothing."""
    monkeypatch.chdir(tmp_path)

    def check(command):
        module, *argv = command
        code = importlib.import_module(module).main([*argv, "--dry-run"])
        assert code == 0, shlex.join(command) + capsys.readouterr().err
        assert not list(tmp_path.iterdir())

    return check


@pytest.mark.parametrize("name", STEPS)
def test_a_step_runs_dry_and_takes_further_flags(name, dry_run):
    dry_run(words(name))
    assert flags(name, "--out", "elsewhere", "--seed", "7").items() >= {
        "out": "elsewhere", "seed": "7"}.items()


def test_the_gpu_size_of_fashion_mnist_runs_dry(dry_run):
    for name in ("fashion_mnist_generator.sh", "fashion_mnist_synthesize.sh",
                 "fashion_mnist_distill.sh"):
        dry_run(words(name, SIZE="gpu"))
        assert flags(name, SIZE="gpu")["out"].endswith("_gpu")


@pytest.mark.parametrize(("name", "method"), BASELINES)
def test_a_baseline_runs_dry_and_takes_further_flags(name, method, dry_run):
    dry_run(words(name, method))
    assert flags(name, method, "--seed", "7")["seed"] == "7"


@pytest.mark.parametrize("pair", PAIRS)
def test_baselines_take_the_published_pairs(pair):
    teacher, student = PAIRS[pair]
    data = "cifar100" if teacher else "imagenet"
    for method in methods(f"{data}_baselines.sh"):
        command = flags(f"{data}_baselines.sh", method, pair)
        assert command.get("teacher", teacher).endswith(teacher)
        if method != "teacher" and not method.endswith("_set"):
            assert command.get("student", command.get("model")).endswith(student), method
            assert command["out"].endswith(f"{method}_{pair}")
    if teacher:
        own = flags(f"cifar100_distill_{pair}.sh")
        assert own["teacher"].endswith(teacher) and own["student"] == student


def test_fashion_mnist_baselines_take_two_pairs():
    for method in methods("fashion_mnist_baselines.sh"):
        command = flags("fashion_mnist_baselines.sh", method, PAIR="wrn")
        assert command.get("teacher", "wrn_16_2").endswith("wrn_16_2")
        assert command.get("student", "wrn_16_1").endswith(("wrn_16_1", "diffdfkd_wrn")), method


def test_fastdfkd_has_its_published_rates_and_weights():
    for method, own in (("fast2", ("2", "5e-3", "0.015")), ("fast5", ("5", "3e-3", "0.01")),
                        ("fastdfkd", (None, None, None))):
        for pair, weights in {"r34_r18": ("1.33", "0.5"), "vgg11_r18": ("1", "0.5"),
                              "w40_2_w16_2": ("1.1", "0.4")}.items():
            command = flags("cifar100_baselines.sh", method, pair)
            assert tuple(map(command.get, ("inner-steps", "generator-rate", "latent-rate"))) == own
            assert (command["adv-dad-weight"], command["ce-target-weight"]) == weights


def test_an_unknown_pair_or_student_is_refused():
    for name in ("cifar100_baselines.sh", "imagenet_baselines.sh"):
        done = run_script(name, "real", "resnet99")
        assert done.returncode == 2 and "resnet99" in done.stderr


def test_the_quickstart_runs_dry(dry_run):
    printed = run_script("quickstart.sh", "--dry-run", PYTHON="echo").stdout.splitlines()
    assert len(printed) == 9
    for line in printed:
        dry_run(line.split()[1:-1])


def test_with_ngpu_torchrun_is_launched():
    command = run_script("imagenet_distill.sh", "--dry-run", PYTHON="echo", NGPU="8").stdout.split()
    assert command[:2] == ["-m", "torch.distributed.run"] and command[-1] == "--dry-run"
    assert command[command.index("--nproc-per-node") + 1] == "8"
    assert command.index("dm_kd.distill") > command.index("8")


# --- studies --------------------------------------------------------------------------------------

def commands(capsys, *argv):
    """The words of each command that a study prints."""
    assert study.main([*argv, "--dry-run"]) == 0
    return [shlex.split(line) for line in capsys.readouterr().out.splitlines()]


@functools.cache
def script_words(name, *arguments):
    return words(name, *arguments)


def whole(command):
    """[module, flags ...] of a printed command, a script's own flags first."""
    if command[0] == "python":
        return command[2:]
    first = next(i for i, word in enumerate(command) if word.startswith("--"))
    return [*script_words(command[1].removeprefix("scripts/"), *command[2:first]),
            *command[first:]]


@pytest.mark.parametrize(("data", "name"), [
    (data, name) for data, studies in STUDIES.items() for name in studies])
def test_a_study_makes_things_once_and_before_it_uses_them(data, name, capsys, dry_run):
    printed = commands(capsys, data, name)
    outs = {study.flag(command, "--out") for command in printed}
    assert printed[-1][2] == "dm_kd.report" and len(outs) == len(printed)
    made, kinds, starts = set(), {}, {}
    for command in printed:
        made.add(study.flag(command, "--out"))
        module, *given = whole(command)
        flags = flags_of(given)
        used = {value for flag, value in flags.items() if flag != "runs"} & outs
        assert used <= made, command
        kinds.setdefault((module, *flags), [module, *given])
        start = flags.get("student", flags.get("model")), flags.get("seed", "0")
        if module == "dm_kd.train_teacher":
            starts[flags["out"]] = start
        elif module == "dm_kd.distill":  # no student starts with its teacher's weights
            assert starts.get(flags["teacher"]) != start, command
    for command in kinds.values():  # each flag exists
        dry_run(command)


@pytest.fixture
def pretend(tmp_path, monkeypatch):
    """The --out of the commands that were run; each leaves what a real one would."""
    monkeypatch.chdir(tmp_path)
    done = []

    def execute(command):
        out = Path(study.flag(command, "--out"))
        done.append(str(out))
        (out / "shards").mkdir(parents=True, exist_ok=True)
        if str(out).startswith("syn_dataset"):
            (out / "shards/00000.csv").touch()
            (out / "manifest.json").write_text(json.dumps({
                "classes": [0, 1], "shard_size": 10**6, "images_per_class": 100}))
        elif out.name == "report":
            (out / "results.md").touch()
        else:
            (out / "result.json").write_text("{}")

    monkeypatch.setattr(study, "execute", execute)
    return done


def test_a_study_resumes_and_grows(pretend):
    few = ("fashion_mnist", "amount", "--rows", "synthetic_10,real_10", "--jobs", "1")
    assert study.main([*few, "--seeds", "0"]) == 0
    first = pretend.copy()
    assert len(first) == 6  # teacher, generator, images, two students, report
    pretend.clear()
    assert study.main([*few, "--seeds", "0"]) == 0
    assert pretend == first[-1:]
    pretend.clear()
    assert study.main([*few, "--seeds", "0,1"]) == 0  # a second student of the same set
    assert len(pretend) == 3 and not {*pretend[:2]} & {*first}


def test_a_failed_command_and_unknown_names_are_errors(capsys):
    with pytest.raises(UserError, match="no_such_module"):
        study.execute(study.command("no_such_module --out x"))
    assert study.main(["digits", "fidelty"]) == 2 and "fidelity" in capsys.readouterr().err
    assert study.main(["digits", "amount", "--rows", "real_7"]) == 2
    assert "real_7" in capsys.readouterr().err
