#!/bin/sh
# Digits: distillation on the real training images; --images-per-class 100 --subset-seed 0 for the row random
# real images (drawn, not the first; as many as the synthetic sets have).
# The row coreset (as many real images as fit into the generator's weights) is this one: the 2,906,272 bytes of
# digits_generator.sh's dit.safetensors hold 45,410 images of 64 bytes, and there are about 1,530.
# Table rows: KD on real data, random real images, coreset of the generator's bytes, Digits. Expected top-1: see the README's table.
# Hardware: 2 CPU cores.  Time: 1 minute.  Disk: 10 MB.
# Needs: digits_teacher.sh.
# Use: sh scripts/baselines/digits_real.sh [flags of python -m dm_kd.distill, such as --seed 1 or --dry-run]
set -eu
cd "$(dirname "$0")/../.."
. scripts/setup_env.sh
. scripts/digits_settings.sh
find_python
exec "$PYTHON" -m dm_kd.distill $rival_flags --source real --teacher save/models/digits_cnn_w32 \
    --out save/student_model/digits_real "$@"
