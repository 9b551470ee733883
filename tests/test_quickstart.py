"""The README's first command, whole: real digits to a student that never saw one."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


def run_quickstart(folder):
    env = {**os.environ, "PYTHON": sys.executable}
    return subprocess.run(["sh", "scripts/quickstart.sh", "--threads", "1"], cwd=folder, env=env,
                          text=True, capture_output=True)


@pytest.mark.timeout(1500)
def test_quickstart_teaches_a_student_without_real_images_and_a_second_call_changes_nothing(
        tmp_path):
    for name in ("dm_kd", "scripts"):
        shutil.copytree(ROOT / name, tmp_path / name)
    shutil.copy(ROOT / "requirements.txt", tmp_path)
    first = run_quickstart(tmp_path)
    assert first.returncode == 0, first.stderr[-2000:]
    out = tmp_path / "save" / "quickstart"
    for name in ("samples.png", "curve.png", "results.json", "report.html",
                 "student_synthetic/student.safetensors"):
        assert (out / name).stat().st_size > 500, name
    rows = json.loads((out / "results.json").read_text())["rows"]
    acc = {row["name"]: row["acc1_mean"] for row in rows}
    assert acc["teacher"] > 95 and acc["student_real"] > 93
    assert acc["student_synthetic"] > 88 and acc["student_noise"] < acc["student_synthetic"] - 20
    assert "student_synthetic" in first.stdout  # the table at the end

    weights = {p: p.read_bytes() for p in out.rglob("*.safetensors")}
    second = run_quickstart(tmp_path)
    assert second.returncode == 0 and "every digest holds" in second.stdout
    assert "Epoch" in first.stdout + first.stderr
    assert "Epoch" not in second.stdout + second.stderr  # nothing trains again
    assert weights == {p: p.read_bytes() for p in out.rglob("*.safetensors")}
