#!/bin/sh
# Fashion-MNIST: DFQ beside a LeNet-5-half, 4,000 steps of 128. Our settings: nobody published any
# for 28 x 28 pixels; terms, weights and rates are the CIFAR preset's.
# Table row: DFQ, Fashion-MNIST. Expected top-1: see the README's table.
# Hardware: 2 CPU cores.  Time: 20 to 90 minutes.  Disk: 200 MB.
# Needs: fashion_mnist_teacher.sh.
# Use: sh scripts/baselines/fashion_mnist_dfq.sh [flags of python -m dm_kd.distill, such as --student wrn_16_1 or --dry-run]
set -eu
cd "$(dirname "$0")/../.."
. scripts/setup_env.sh
. scripts/fashion_mnist_settings.sh
find_python
exec "$PYTHON" -m dm_kd.distill $rival_flags \
    --source dfq --student-steps 1 --synthesis-batch 128 \
    --teacher save/models/fashion_mnist_wrn_16_2 --out save/student_model/fashion_mnist_dfq "$@"
