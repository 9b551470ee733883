"""The shell scripts: readable by sh, with a header, and a dry run that touches nothing."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
SCRIPTS = sorted(p for p in (ROOT / "scripts").rglob("*.sh"))
RUNNABLE = [p for p in SCRIPTS if p.read_text().startswith("#!/bin/sh")]
NO_DRY_RUN = {"test.sh"}  # its flags are pytest's


def is_chain(script):
    """Whether it runs several commands and reads its flags itself."""
    text = script.read_text()
    return "chain_flags" in text or "dry_flag" in text


@pytest.fixture(scope="module")
def fresh(tmp_path_factory):
    """A copy of the project as a clone has it: nothing made yet."""
    folder = tmp_path_factory.mktemp("clone")
    for name in ("dm_kd", "scripts"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "requirements.txt", folder)
    return folder


def run_script(folder, script, *flags):
    return subprocess.run(["sh", script.relative_to(ROOT), *flags], cwd=folder, text=True,
                          capture_output=True, env={**os.environ, "PYTHON": sys.executable,
                                                    "PYTHONDONTWRITEBYTECODE": "1"})


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda p: p.name)
def test_sh_can_read_it(script):
    subprocess.run(["sh", "-n", script], check=True)


@pytest.mark.parametrize("script", [p for p in RUNNABLE if p.name != "bench.sh"],
                         ids=lambda p: p.name)  # which runs two commands with the same flags
def test_one_command_hands_its_flags_on_and_a_chain_names_unknown_ones(script):
    text = script.read_text()
    assert text.rstrip().endswith('"$@"') != is_chain(script), script


@pytest.mark.parametrize("script", RUNNABLE, ids=lambda p: p.name)
def test_header_says_time_and_disk_and_it_stops_at_errors(script):
    text = script.read_text()
    header = text.split("set -eu")[0]
    assert "set -eu" in text and "Time:" in header and "Disk:" in header, script


@pytest.mark.parametrize("script", [p for p in RUNNABLE if p.name not in NO_DRY_RUN],
                         ids=lambda p: p.name)
def test_dry_run_works_without_earlier_output_and_writes_nothing(script, fresh):
    before = sorted(fresh.rglob("*"))
    done = run_script(fresh, script, "--dry-run")
    assert done.returncode == 0, done.stderr
    assert "would" in done.stdout and sorted(fresh.rglob("*")) == before


@pytest.mark.parametrize("script", [p for p in RUNNABLE if is_chain(p)],
                         ids=lambda p: p.name)  # the others hand their flags on to a command
def test_an_unknown_flag_is_refused(script, fresh):
    done = run_script(fresh, script, "--no-such-flag")
    assert done.returncode == 2 and "no-such-flag" in done.stderr
