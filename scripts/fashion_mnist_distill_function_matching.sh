#!/bin/sh
# Fashion-MNIST, step 4 by function matching (Beyer et al. 2022, arXiv 2106.05237): every batch mixed with a
# uniform share (mixup with Beta(1, 1)) before both networks, and five times the steps of
# fashion_mnist_distill.sh on a cosine. Expected top-1: not measured yet.
# Hardware: 2 CPU cores.  Time: 15 minutes.  Disk: 50 MB.
# Use: sh scripts/fashion_mnist_distill_function_matching.sh [flags of python -m dm_kd.distill, such as --dry-run]
set -eu
cd "$(dirname "$0")/.."
. scripts/setup_env.sh
. scripts/fashion_mnist_settings.sh
find_python
exec "$PYTHON" -m dm_kd.distill $distill_flags $(as_student lenet5_half) --mixup 1 --mix-share 1 --epochs 25 --source syn_dataset/fashion_mnist --teacher save/models/fashion_mnist_wrn_16_2 --out save/student_model/fashion_mnist_function_matching "$@"
