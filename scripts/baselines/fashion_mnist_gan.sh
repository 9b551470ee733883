#!/bin/sh
# Fashion-MNIST: 10,000 images of a small conditional GAN, truncation 0.7 (the best of four trials: sweeps/digits_rivals_tune.sh);
# then: baselines/fashion_mnist_real.sh --source syn_dataset/fashion_mnist_gan
# --out save/student_model/fashion_mnist_gan
# Table row: conditional GAN, Fashion-MNIST. Expected top-1: see the README's table.
# Hardware: 2 CPU cores.  Time: 1 minute.  Disk: 50 MB.
# Needs: scripts/fashion_mnist_gan.sh (which trains it on the task's real images).
# Use: sh scripts/baselines/fashion_mnist_gan.sh [flags of python -m dm_kd.synthesize, such as --truncation 0.5 or --dry-run]
set -eu
cd "$(dirname "$0")/../.."
. scripts/setup_env.sh
. scripts/fashion_mnist_settings.sh
find_python
exec "$PYTHON" -m dm_kd.synthesize --task fashion_mnist $gan_flags --weights save/generators/fashion_mnist_gan \
    --images-per-class 1000 --out syn_dataset/fashion_mnist_gan "$@"
