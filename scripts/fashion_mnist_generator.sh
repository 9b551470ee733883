#!/bin/sh
# Fashion-MNIST, step 2: a small DiT (patch 4, 2.4 M parameters; SIZE=gpu: patch 2, 21.9 M) on the 60,000 real images.
# Hardware: 2 CPU cores; SIZE=gpu one GPU.  Time: 1.5 hours; 20 minutes on an H200 (an estimate).  Disk: 60 MB.
# Usage: [SIZE=gpu] sh scripts/fashion_mnist_generator.sh [flags of python -m dm_kd.train_generator, such as --dry-run]
set -eu
cd "$(dirname "$0")/.."
. scripts/setup_env.sh
. scripts/fashion_mnist_settings.sh
launch dm_kd.train_generator --task fashion_mnist $network \
    --out save/generators/fashion_mnist_dit$size "$@"
