#!/bin/sh
# Fashion-MNIST: the rivals' teacher, LeNet-5 with a batch norm after each convolution. Some rivals read a
# teacher's batch statistics, and the plain LeNet-5 has none; all rows have this teacher, so that they compare.
# Table row: teacher, Fashion-MNIST. Expected top-1: see the README's table.
# Hardware: 2 CPU cores.  Time: 10 minutes.  Disk: 5 MB.
# Use: sh scripts/baselines/fashion_mnist_teacher.sh [flags of python -m dm_kd.train_teacher, such as --dry-run]
set -eu
cd "$(dirname "$0")/../.."
. scripts/setup_env.sh
. scripts/fashion_mnist_settings.sh
find_python
exec "$PYTHON" -m dm_kd.train_teacher $rival_teacher_flags --out $rival_teacher "$@"
