#!/bin/sh
# CIFAR-100: the row One-Image: 50,000 augmented patches of one picture (any with --picture FILE).
# Table row: One-Image, CIFAR-100: 74.56 68.51 34.62 52.39 54.71 (published, R34-R18 VGG11-R18 W40-2-W16-1
# -W40-1 -W16-2), with cifar100_distill_*.sh on this set. Expected top-1: none, this step trains no classifier.
# Hardware: one CPU core.  Time: about 5 minutes.  Disk: 150 MB.
# Use: sh scripts/cifar100_synthesize_one_image.sh [flags of python -m dm_kd.synthesize, such as --dry-run]
set -eu
cd "$(dirname "$0")/.."
. scripts/setup_env.sh
launch dm_kd.synthesize \
    --task cifar100 --generator one_image --images-per-class 500 --batch-size 1000 \
    --out syn_dataset/cifar100_one_image "$@"
