#!/bin/sh
# Fashion-MNIST, step 4: a student (LeNet-5-half) from 10,000 synthetic images alone. Expected
# top-1: see the README's table.
# Hardware: 2 CPU cores.  Time: 5 minutes.  Disk: 50 MB.
# SIZE=gpu: from 60,000, 20 epochs.
# Use: [SIZE=gpu] sh scripts/fashion_mnist_distill.sh [flags of python -m dm_kd.distill, such as --dry-run, or
#      --student wrn_16_1 --learning-rate 0.05]
set -eu
cd "$(dirname "$0")/.."
. scripts/setup_env.sh
. scripts/fashion_mnist_settings.sh
find_python
exec "$PYTHON" -m dm_kd.distill $distill_flags $(as_student lenet5_half) --source syn_dataset/fashion_mnist$size --teacher save/models/fashion_mnist_wrn_16_2 --out save/student_model/fashion_mnist$size "$@"
