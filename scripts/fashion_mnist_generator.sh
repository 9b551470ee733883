#!/bin/sh
# Fashion-MNIST, step 2: a small DiT (patch 4, 2.4 M parameters) on the 60,000 real images.
# Hardware: 2 CPU cores.  Time: about 1.5 hours.  Disk: 60 MB.
# Use: sh scripts/fashion_mnist_generator.sh [flags of python -m dm_kd.train_generator, such as --dry-run]
set -eu
cd "$(dirname "$0")/.."
. scripts/setup_env.sh
. scripts/fashion_mnist_settings.sh
find_python
exec "$PYTHON" -m dm_kd.train_generator $generator_flags --out save/generators/fashion_mnist_dit "$@"
