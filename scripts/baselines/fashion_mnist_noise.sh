#!/bin/sh
# Fashion-MNIST: images of noise, the lower line. Then: baselines/fashion_mnist_real.sh
# --source syn_dataset/fashion_mnist_noise --out save/student_model/fashion_mnist_noise
# Table row: noise, Fashion-MNIST. Expected top-1: see the README's table.
# Hardware: 2 CPU cores.  Time: 1 minute.  Disk: 50 MB.
# Use: sh scripts/baselines/fashion_mnist_noise.sh [flags of python -m dm_kd.synthesize, such as --dry-run]
set -eu
cd "$(dirname "$0")/../.."
. scripts/setup_env.sh
find_python
exec "$PYTHON" -m dm_kd.synthesize --task fashion_mnist --generator noise --images-per-class 1000 \
    --out syn_dataset/fashion_mnist_noise "$@"
