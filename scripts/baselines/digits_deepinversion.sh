#!/bin/sh
# Digits: DeepInversion, 200 images a class out of the teacher. Then:
# digits_distill.sh --source syn_dataset/digits_deepinversion --out save/student_model/digits_deepinversion
# Table row: DeepInversion, digits. Expected top-1: see the README's table. Settings: CIFAR-10's, half the iterations.
# Hardware: 2 CPU cores.  Time: 10 minutes.  Disk: 10 MB.
# Needs: digits_teacher.sh.
# Use: sh scripts/baselines/digits_deepinversion.sh [flags of python -m dm_kd.synthesize, such as --dry-run]
set -eu
cd "$(dirname "$0")/../.."
. scripts/setup_env.sh
find_python
exec "$PYTHON" -m dm_kd.synthesize --task digits --generator deepinversion \
    --teacher save/models/digits_cnn_w32 --iterations 1000 --images-per-class 200 --batch-size 250 \
    --out syn_dataset/digits_deepinversion "$@"
