#!/bin/sh
# Fashion-MNIST, step 1: a teacher (WRN-16-2) on the 60,000 real images. Expected top-1: 94.3.
# Hardware: 2 CPU cores.  Time: 2 hours.  Disk: 20 MB.
# Usage: sh scripts/fashion_mnist_teacher.sh [flags of python -m dm_kd.train_teacher, such as --dry-run]
set -eu
cd "$(dirname "$0")/.."
. scripts/setup_env.sh
. scripts/fashion_mnist_settings.sh
launch dm_kd.train_teacher --task fashion_mnist --model wrn_16_2 $teacher_recipe --learning-rate 0.1 \
    --out save/models/fashion_mnist_wrn_16_2 "$@"
