#!/bin/sh
# Digits, step 4: a student from synthetic images alone. Expected top-1: see the README's table.
# Hardware: 2 CPU cores.  Time: 45 s.  Disk: 1 MB.
# Use: sh scripts/digits_distill.sh [flags of python -m dm_kd.distill, such as --fold 1 or --dry-run]
set -eu
cd "$(dirname "$0")/.."
. scripts/setup_env.sh
. scripts/digits_settings.sh
find_python
exec "$PYTHON" -m dm_kd.distill $distill_flags --source syn_dataset/digits --teacher save/models/digits_cnn_w32 --out save/student_model/digits "$@"
