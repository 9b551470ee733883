#!/bin/sh
# Fashion-MNIST, step 3: 1,000 synthetic images per class; SIZE=gpu 6,000.
# Hardware: 2 CPU cores; SIZE=gpu one GPU.  Time: 40 minutes; 5 minutes on an H200 (an estimate).  Disk: 45 MB; 250 MB.
# Needs: fashion_mnist_generator.sh, or --weights save/results/fashion_mnist/generator for the recorded one.
# Usage: [SIZE=gpu] sh scripts/fashion_mnist_synthesize.sh [flags of python -m dm_kd.synthesize, such as --dry-run]
set -eu
cd "$(dirname "$0")/.."
. scripts/setup_env.sh
. scripts/fashion_mnist_settings.sh
launch dm_kd.synthesize --task fashion_mnist $dit --images-per-class $images \
    --out syn_dataset/fashion_mnist$size "$@"
