#!/bin/sh
# Fashion-MNIST: distillation on the real training images; --images-per-class 1000 for as many as a synthetic set has.
# Table row: KD on real data, Fashion-MNIST. Expected top-1: see the README's table.
# Hardware: 2 CPU cores.  Time: 10 minutes.  Disk: 10 MB.
# Needs: fashion_mnist_teacher.sh.
# Use: sh scripts/baselines/fashion_mnist_real.sh [flags of python -m dm_kd.distill, such as --images-per-class 1000 or --dry-run]
set -eu
cd "$(dirname "$0")/../.."
. scripts/setup_env.sh
. scripts/fashion_mnist_settings.sh
find_python
exec "$PYTHON" -m dm_kd.distill $rival_flags --source real --teacher save/models/fashion_mnist_wrn_16_2 \
    --out save/student_model/fashion_mnist_real "$@"
