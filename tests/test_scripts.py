"""The shell scripts: readable by sh, with a header, and a dry run that touches nothing."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
SCRIPTS = sorted(p for p in (ROOT / "scripts").rglob("*.sh"))
RUNNABLE = [p for p in SCRIPTS if p.read_text().startswith("#!/bin/sh")]
NO_DRY_RUN = {"test.sh"}  # its flags are pytest's


def snapshot():
    return {p: p.stat().st_mtime_ns for folder in ("save", "syn_dataset", "true_dataset")
            for p in (ROOT / folder).rglob("*")}


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda p: p.name)
def test_sh_can_read_it(script):
    subprocess.run(["sh", "-n", script], check=True)


@pytest.mark.parametrize("script", RUNNABLE, ids=lambda p: p.name)
def test_header_says_time_and_disk_and_it_stops_at_errors(script):
    text = script.read_text()
    header = text.split("set -eu")[0]
    assert "set -eu" in text and "Time:" in header and "Disk:" in header, script


@pytest.mark.parametrize("script", [p for p in RUNNABLE if p.name not in NO_DRY_RUN],
                         ids=lambda p: p.name)
def test_dry_run_works_without_earlier_output_and_writes_nothing(script):
    before = snapshot()
    done = subprocess.run(["sh", script, "--dry-run"], capture_output=True, text=True,
                          env={**os.environ, "PYTHON": sys.executable})
    assert done.returncode == 0, done.stderr
    assert "would" in done.stdout and snapshot() == before


@pytest.mark.parametrize("script", [p for p in RUNNABLE if p.name not in NO_DRY_RUN],
                         ids=lambda p: p.name)
def test_an_unknown_flag_is_refused(script):
    done = subprocess.run(["sh", script, "--no-such-flag"], capture_output=True, text=True,
                          env={**os.environ, "PYTHON": sys.executable})
    assert done.returncode == 2 and "no-such-flag" in done.stderr
