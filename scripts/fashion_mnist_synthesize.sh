#!/bin/sh
# Fashion-MNIST, step 3: 1,000 synthetic images per class.
# Table row: the README's, with the steps after it. Expected top-1: none, this step trains no classifier.
# Hardware: 2 CPU cores.  Time: 40 minutes.  Disk: 45 MB.
# SIZE=gpu: 6,000 images per class, 5 minutes on an H200 (an estimate), 250 MB, in ..._gpu.
# Use: [SIZE=gpu] [GENERATOR=FOLDER] sh scripts/fashion_mnist_synthesize.sh [flags of python -m dm_kd.synthesize, such as --dry-run]
set -eu
cd "$(dirname "$0")/.."
. scripts/setup_env.sh
. scripts/fashion_mnist_settings.sh
find_python
exec "$PYTHON" -m dm_kd.synthesize $synthesize_flags --weights "$generator" --out syn_dataset/fashion_mnist$size "$@"
