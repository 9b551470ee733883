#!/bin/sh
# Digits, step 1: a teacher on real images of 11 of the 14 writers. Expected top-1: about 98.
# Hardware: 2 CPU cores.  Time: 75 s.  Disk: 2 MB.
# Use: sh scripts/digits_teacher.sh [flags of python -m dm_kd.train_teacher, such as --fold 1 or --dry-run]
set -eu
cd "$(dirname "$0")/.."
. scripts/setup_env.sh
. scripts/digits_settings.sh
find_python
exec "$PYTHON" -m dm_kd.train_teacher $teacher_flags --out save/models/digits_cnn_w32 "$@"
