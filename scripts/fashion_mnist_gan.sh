#!/bin/sh
# Fashion-MNIST: a small conditional GAN on the 60,000 real images, for fashion_mnist_baselines.sh gan_set.
# Hardware: one CPU core.  Time: 25 minutes.  Disk: 5 MB.
# Usage: sh scripts/fashion_mnist_gan.sh [flags of python -m dm_kd.train_generator, such as --dry-run]
set -eu
cd "$(dirname "$0")/.."
. scripts/setup_env.sh
launch dm_kd.train_generator --kind gan --task fashion_mnist --out save/generators/fashion_mnist_gan "$@"
