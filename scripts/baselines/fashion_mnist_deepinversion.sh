#!/bin/sh
# Fashion-MNIST: DeepInversion, 100 images a class out of the teacher. Then:
# fashion_mnist_distill.sh --epochs 40 --steps-per-epoch 100 --batch-size 128 (the rivals' number of steps)
# --source syn_dataset/fashion_mnist_deepinversion --out save/student_model/fashion_mnist_deepinversion
# Table row: DeepInversion, Fashion-MNIST. Expected top-1: see the README's table. Settings: those of digits.
# Hardware: 2 CPU cores.  Time: 60 to 90 minutes.  Disk: 20 MB.
# Needs: fashion_mnist_teacher.sh.
# Use: sh scripts/baselines/fashion_mnist_deepinversion.sh [flags of python -m dm_kd.synthesize, such as --dry-run]
set -eu
cd "$(dirname "$0")/../.."
. scripts/setup_env.sh
find_python
exec "$PYTHON" -m dm_kd.synthesize --task fashion_mnist --generator deepinversion \
    --teacher save/models/fashion_mnist_wrn_16_2 --iterations 500 --pixel-rate 0.1 --bn-weight 1 --images-per-class 100 --batch-size 250 \
    --out syn_dataset/fashion_mnist_deepinversion "$@"
