#!/bin/sh
# CIFAR-100: the row One-Image: 50,000 augmented patches of one picture (any with --picture FILE).
# Hardware: one CPU core.  Time: about 5 minutes.  Disk: 150 MB.
# Use: sh scripts/cifar100_synthesize_one_image.sh [flags of python -m dm_kd.synthesize, such as --dry-run]
set -eu
cd "$(dirname "$0")/.."
. scripts/setup_env.sh
launch dm_kd.synthesize \
    --task cifar100 --generator one_image --images-per-class 500 --batch-size 1000 \
    --out syn_dataset/cifar100_one_image "$@"
