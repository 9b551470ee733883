#!/bin/sh
# Fashion-MNIST, step 2: a small DiT (patch 4, 2.4 M parameters) on the 60,000 real images.
# Table row: the README's, with the steps after it. Expected top-1: none, this step trains no classifier.
# Hardware: 2 CPU cores.  Time: about 1.5 hours.  Disk: 60 MB.
# SIZE=gpu: patch 2, 14 M parameters, about 20 minutes on an H200 (an estimate), in ..._dit_gpu.
# Use: [SIZE=gpu] sh scripts/fashion_mnist_generator.sh [flags of python -m dm_kd.train_generator, such as --dry-run]
set -eu
cd "$(dirname "$0")/.."
. scripts/setup_env.sh
. scripts/fashion_mnist_settings.sh
find_python
exec "$PYTHON" -m dm_kd.train_generator $generator_flags --out save/generators/fashion_mnist_dit$size "$@"
