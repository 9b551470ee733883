#!/bin/sh
# Fashion-MNIST: the student alone, on the real images and their labels, with the rows' recipe and number of steps.
# Table row: student alone, Fashion-MNIST. Expected top-1: see the README's table.
# Hardware: 2 CPU cores.  Time: 10 minutes.  Disk: 5 MB.
# Use: [PAIR=wrn] sh scripts/baselines/fashion_mnist_alone.sh [flags of python -m dm_kd.train_teacher, such as --seed 1 or --dry-run]
set -eu
cd "$(dirname "$0")/../.."
. scripts/setup_env.sh
. scripts/fashion_mnist_settings.sh
find_python
exec "$PYTHON" -m dm_kd.train_teacher --task fashion_mnist --model $rival_student $rival_recipe \
    --out save/student_model/fashion_mnist_alone$pair "$@"
