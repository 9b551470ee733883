#!/bin/sh
# Fashion-MNIST: distillation on the set of fashion_mnist_synthesize.sh, the small DiT's, in the rivals' recipe and number of steps.
# Table row: DM-KD, Fashion-MNIST. Expected top-1: see the README's table.
# Hardware: 2 CPU cores.  Time: 10 minutes.  Disk: 50 MB.
# Needs: fashion_mnist_synthesize.sh; baselines/fashion_mnist_teacher.sh; with PAIR=wrn fashion_mnist_teacher.sh.
# Use: [PAIR=wrn] sh scripts/baselines/fashion_mnist_dit.sh [flags of python -m dm_kd.distill, such as --seed 1 or --dry-run]
set -eu
cd "$(dirname "$0")/../.."
. scripts/setup_env.sh
. scripts/fashion_mnist_settings.sh
find_python
exec "$PYTHON" -m dm_kd.distill $rival_flags --source syn_dataset/fashion_mnist \
    --out save/student_model/fashion_mnist_dit$pair "$@"
