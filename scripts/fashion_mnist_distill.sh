#!/bin/sh
# Fashion-MNIST, step 4: a student (LeNet-5-half) from 10,000 synthetic images alone; SIZE=gpu from 60,000, 20 epochs.
# Expected top-1: the README's table. Other students: --student wrn_16_1 --learning-rate 0.05.
# Hardware: 2 CPU cores.  Time: 5 minutes.  Disk: 50 MB.
# Needs: fashion_mnist_synthesize.sh and fashion_mnist_teacher.sh.
# Usage: [SIZE=gpu] sh scripts/fashion_mnist_distill.sh [flags of python -m dm_kd.distill, such as --dry-run]
set -eu
cd "$(dirname "$0")/.."
. scripts/setup_env.sh
. scripts/fashion_mnist_settings.sh
launch dm_kd.distill --task fashion_mnist --source syn_dataset/fashion_mnist$size \
    --teacher save/models/fashion_mnist_wrn_16_2 --student lenet5_half --temperature 4 $recipe \
    --out save/student_model/fashion_mnist$size "$@"
