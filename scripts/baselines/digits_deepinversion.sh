#!/bin/sh
# Digits: DeepInversion, 100 images a class out of the teacher. Then:
# baselines/digits_real.sh --source syn_dataset/digits_deepinversion --out save/student_model/digits_deepinversion
# Table row: DeepInversion, digits. Expected top-1: see the README's table.
# Settings: the best of four trials (sweeps/digits_rivals_tune.sh). With the weight 10 of the batch statistics, as
# CIFAR-10's, the teacher takes fewer of the images for their class than with 1; students learn no less.
# Hardware: 2 CPU cores.  Time: 3 minutes.  Disk: 10 MB.
# Needs: digits_teacher.sh.
# Use: sh scripts/baselines/digits_deepinversion.sh [flags of python -m dm_kd.synthesize, such as --dry-run]
set -eu
cd "$(dirname "$0")/../.."
. scripts/setup_env.sh
. scripts/digits_settings.sh
find_python
exec "$PYTHON" -m dm_kd.synthesize --task digits $inversion_flags \
    --teacher save/models/digits_cnn_w32 --images-per-class $rival_images \
    --out syn_dataset/digits_deepinversion "$@"
