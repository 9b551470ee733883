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
    done = subprocess.run(["sh", "scripts/quickstart.sh", "--threads", "1"], cwd=folder, text=True,
                          env={**os.environ, "PYTHON": sys.executable}, capture_output=True)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    return done.stdout


@pytest.mark.timeout(1500)
def test_quickstart_teaches_a_student_without_real_images_and_a_second_call_changes_nothing(
        tmp_path):
    for name in ("dm_kd", "scripts"):
        shutil.copytree(ROOT / name, tmp_path / name)
    shutil.copy(ROOT / "requirements.txt", tmp_path)
    printed = run_quickstart(tmp_path)
    out = tmp_path / "save" / "quickstart"
    assert (out / "report.html").stat().st_size > 5000
    rows = json.loads((out / "results.json").read_text())["rows"]
    acc = {row["row"]: row["acc1_mean"] for row in rows}
    assert acc["teacher"] > 95 and acc["student_real"] > 93
    assert acc["student_synthetic"] > 88 and acc["student_noise"] < acc["student_synthetic"] - 20
    assert "student_synthetic" in printed  # the table at the end

    def trained():
        return {p: (p.stat().st_mtime_ns, p.read_bytes()) for pattern in (
            "*.safetensors", "metrics.jsonl") for p in out.rglob(pattern)}

    before = trained()
    run_quickstart(tmp_path)
    assert len(before) > 8 and trained() == before
