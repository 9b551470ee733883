#!/bin/sh
# Digits: DeepInversion, 200 images a class out of the teacher. Then:
# digits_distill.sh --source syn_dataset/digits_deepinversion --out save/student_model/digits_deepinversion
# Table row: DeepInversion, digits. Expected top-1: see the README's table.
# Our settings, not CIFAR-10's: with its weight 10 of the statistics and 300 iterations the teacher took
# 44 % of the images for their class, with 1 and 200 iterations all.
# Hardware: 2 CPU cores.  Time: 10 minutes.  Disk: 10 MB.
# Needs: digits_teacher.sh.
# Use: sh scripts/baselines/digits_deepinversion.sh [flags of python -m dm_kd.synthesize, such as --dry-run]
set -eu
cd "$(dirname "$0")/../.."
. scripts/setup_env.sh
. scripts/digits_settings.sh
find_python
exec "$PYTHON" -m dm_kd.synthesize --task digits $inversion_flags \
    --teacher save/models/digits_cnn_w32 --images-per-class 200 \
    --out syn_dataset/digits_deepinversion "$@"
