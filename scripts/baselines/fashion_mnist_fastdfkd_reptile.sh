#!/bin/sh
# Fashion-MNIST: FastDFKD (Reptile) beside a LeNet-5-half, 1,000 steps of 128. Our settings: nobody published any
# for 28 x 28 pixels; the CIFAR preset, but for the weights of the batch statistics, 1, and of the adversary, 0.1:
# the best of four trials (sweeps/digits_rivals_tune.sh).
# Table row: FastDFKD (Reptile), Fashion-MNIST. Expected top-1: see the README's table.
# Hardware: 2 CPU cores.  Time: 7 minutes of one core; PAIR=wrn several times as long (estimates).  Disk: 200 MB.
# Needs: baselines/fashion_mnist_teacher.sh; with PAIR=wrn (WRN-16-2 to WRN-16-1) fashion_mnist_teacher.sh.
# Use: [PAIR=wrn] sh scripts/baselines/fashion_mnist_fastdfkd_reptile.sh [flags of python -m dm_kd.distill, such as --seed 1 or --dry-run]
set -eu
cd "$(dirname "$0")/../.."
. scripts/setup_env.sh
. scripts/fashion_mnist_settings.sh
find_python
exec "$PYTHON" -m dm_kd.distill $rival_flags \
    $(rival fastdfkd_reptile) \
    --out save/student_model/fashion_mnist_fastdfkd_reptile$pair "$@"
