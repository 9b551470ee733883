#!/bin/sh
# Digits: FastDFKD (sequential) beside the student, 720 steps of 128. Our settings: nobody published
# any for 8 x 8 pixels; the CIFAR preset, but for the batch statistics' weight, 1, and the generator's rate, 5e-3:
# the best of four trials (sweeps/digits_rivals_tune.sh).
# Table row: FastDFKD (sequential), digits. Expected top-1: see the README's table.
# Hardware: 2 CPU cores.  Time: 1 to 4 minutes.  Disk: 10 MB.
# Needs: digits_teacher.sh.
# Use: sh scripts/baselines/digits_fast_sequential.sh [flags of python -m dm_kd.distill, such as --fold 1 or --dry-run]
set -eu
cd "$(dirname "$0")/../.."
. scripts/setup_env.sh
. scripts/digits_settings.sh
find_python
exec "$PYTHON" -m dm_kd.distill $rival_flags $(rival fast_sequential) \
    --teacher save/models/digits_cnn_w32 --out save/student_model/digits_fast_sequential "$@"
