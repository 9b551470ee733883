#!/bin/sh
# Fashion-MNIST: a small conditional GAN on the 60,000 real images (not data-free);
# then: python -m dm_kd.synthesize --task fashion_mnist --generator gan --weights save/generators/fashion_mnist_gan
# --truncation 0.7 --out syn_dataset/fashion_mnist_gan
# Table row: none of the paper's. Expected top-1: none, this step trains no classifier.
# Hardware: one CPU core.  Time: about 25 minutes (2.7 GHz).  Disk: 5 MB.
# Use: sh scripts/fashion_mnist_gan.sh [flags of python -m dm_kd.train_generator, such as --fold 1 or --dry-run]
set -eu
cd "$(dirname "$0")/.."
. scripts/setup_env.sh
find_python
exec "$PYTHON" -m dm_kd.train_generator --kind gan --task fashion_mnist --out save/generators/fashion_mnist_gan "$@"
