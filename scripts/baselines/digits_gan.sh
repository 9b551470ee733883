#!/bin/sh
# Digits: 1,000 images of a small conditional GAN, truncation 0.7 (the best of four trials: sweeps/digits_rivals_tune.sh);
# then: baselines/digits_real.sh --source syn_dataset/digits_gan
# --out save/student_model/digits_gan
# Table row: conditional GAN, Digits. Expected top-1: see the README's table.
# Hardware: 2 CPU cores.  Time: 1 minute.  Disk: 10 MB.
# Needs: scripts/digits_gan.sh (which trains it on the task's real images).
# Use: sh scripts/baselines/digits_gan.sh [flags of python -m dm_kd.synthesize, such as --truncation 0.5 or --dry-run]
set -eu
cd "$(dirname "$0")/../.."
. scripts/setup_env.sh
. scripts/digits_settings.sh
find_python
exec "$PYTHON" -m dm_kd.synthesize --task digits $gan_flags --weights save/generators/digits_gan \
    --images-per-class $rival_images --out syn_dataset/digits_gan "$@"
