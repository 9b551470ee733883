#!/bin/sh
# Fashion-MNIST, step 4 by function matching (Beyer et al. 2022, arXiv 2106.05237): every batch mixed with a uniform
# share for both networks, five times the steps of fashion_mnist_distill.sh. Expected top-1: not measured yet.
# Hardware: 2 CPU cores.  Time: 15 minutes.  Disk: 50 MB.
# Needs: fashion_mnist_synthesize.sh and fashion_mnist_teacher.sh.
# Usage: sh scripts/fashion_mnist_distill_function_matching.sh [flags of python -m dm_kd.distill, such as --dry-run]
set -eu
cd "$(dirname "$0")/.."
. scripts/setup_env.sh
. scripts/fashion_mnist_settings.sh
launch dm_kd.distill --task fashion_mnist --source syn_dataset/fashion_mnist \
    --teacher save/models/fashion_mnist_wrn_16_2 --student lenet5_half --temperature 4 $recipe \
    --mixup 1 --mix-share 1 --epochs 25 --out save/student_model/fashion_mnist_function_matching "$@"
