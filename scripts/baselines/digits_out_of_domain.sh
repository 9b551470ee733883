#!/bin/sh
# Digits: distillation on real images of other classes: the 60,000 images of Fashion-MNIST, resized. What
# Places365 is to ImageNet. (Patches of a photograph: digits_one_image.sh.)
# Table row: out-of-domain real images, Digits. Expected top-1: see the README's table.
# Hardware: 2 CPU cores.  Time: 1 minute.  Disk: 5 MB.
# Needs: digits_teacher.sh; Fashion-MNIST's files.
# Use: sh scripts/baselines/digits_out_of_domain.sh [flags of python -m dm_kd.distill, such as --seed 1 or --dry-run]
set -eu
cd "$(dirname "$0")/../.."
. scripts/setup_env.sh
. scripts/digits_settings.sh
find_python
exec "$PYTHON" -m dm_kd.distill $rival_flags --source real:fashion_mnist --teacher save/models/digits_cnn_w32 \
    --out save/student_model/digits_out_of_domain "$@"
