#!/bin/sh
# Fashion-MNIST: CMI beside a LeNet-5-half, 1,000 steps of 128. Our settings: nobody published any
# for 28 x 28 pixels; the CIFAR preset, but for the batch statistics' weight, 0.1, and a bank of 256:
# the best of four trials (sweeps/digits_rivals_tune.sh), 14 of its 200 updates, 5 calls before
# the first step (scripts/fashion_mnist_settings.sh: the table's minutes).
# Table row: CMI, Fashion-MNIST. Expected top-1: see the README's table.
# Hardware: 2 CPU cores.  Time: 8 minutes of one core; PAIR=wrn several times as long (estimates).  Disk: 200 MB.
# Needs: baselines/fashion_mnist_teacher.sh; with PAIR=wrn (WRN-16-2 to WRN-16-1) fashion_mnist_teacher.sh.
# Use: [PAIR=wrn] sh scripts/baselines/fashion_mnist_cmi.sh [flags of python -m dm_kd.distill, such as --seed 1 or --dry-run]
set -eu
cd "$(dirname "$0")/../.."
. scripts/setup_env.sh
. scripts/fashion_mnist_settings.sh
find_python
exec "$PYTHON" -m dm_kd.distill $rival_flags \
    $(rival cmi) \
    --out save/student_model/fashion_mnist_cmi$pair "$@"
