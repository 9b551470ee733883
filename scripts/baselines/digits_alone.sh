#!/bin/sh
# Digits: the student alone, on the real images and their labels, with the rows' recipe and number of steps.
# Table row: student alone, Digits. Expected top-1: see the README's table.
# Hardware: 2 CPU cores.  Time: 1 minute.  Disk: 5 MB.
# Use: sh scripts/baselines/digits_alone.sh [flags of python -m dm_kd.train_teacher, such as --seed 1 or --dry-run]
set -eu
cd "$(dirname "$0")/../.."
. scripts/setup_env.sh
. scripts/digits_settings.sh
find_python
exec "$PYTHON" -m dm_kd.train_teacher $alone_flags $rival_steps --out save/student_model/digits_alone "$@"
