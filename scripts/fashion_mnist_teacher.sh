#!/bin/sh
# Fashion-MNIST, step 1: a teacher (WRN-16-2) on the 60,000 real images. Expected top-1: 94.3
# (a first try of 6 epochs gave 92.84).
# Hardware: 2 CPU cores.  Time: about 2 hours.  Disk: 20 MB.
# Use: sh scripts/fashion_mnist_teacher.sh [flags of python -m dm_kd.train_teacher, such as --dry-run]
set -eu
cd "$(dirname "$0")/.."
. scripts/setup_env.sh
. scripts/fashion_mnist_settings.sh
find_python
exec "$PYTHON" -m dm_kd.train_teacher $teacher_flags --out save/models/fashion_mnist_wrn_16_2 "$@"
