#!/bin/sh
# Digits: distillation on 100 images a class of digits_synthesize.sh's set, the small DiT's, in the rivals' recipe and number of steps.
# Table row: DM-KD, Digits. Expected top-1: see the README's table.
# Hardware: 2 CPU cores.  Time: 1 minute.  Disk: 50 MB.
# Needs: digits_synthesize.sh; digits_teacher.sh.
# Use: sh scripts/baselines/digits_dit.sh [flags of python -m dm_kd.distill, such as --seed 1 or --dry-run]
set -eu
cd "$(dirname "$0")/../.."
. scripts/setup_env.sh
. scripts/digits_settings.sh
find_python
exec "$PYTHON" -m dm_kd.distill $rival_flags --source syn_dataset/digits --images-per-class $rival_images --teacher save/models/digits_cnn_w32 \
    --out save/student_model/digits_dit "$@"
