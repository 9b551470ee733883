#!/bin/sh
# ImageNet: One-Image, 200,000 patches of 256 x 256 of one picture (theirs is declared unlicensed, so any of yours);
# --images-per-class 1281 for as many as published (140 GB). Then:
# baselines/imagenet_one_image_distill.sh
# Table row: One-Image, ImageNet. Expected top-1: none, this step trains no classifier.
# Hardware: 16 CPU cores.  Time: 3 hours on one core, less with --rank (an estimate).  Disk: 22 GB.
# Use: [NGPU=n] sh scripts/baselines/imagenet_one_image.sh [flags of python -m dm_kd.synthesize, such as --picture FILE or --dry-run]
set -eu
cd "$(dirname "$0")/../.."
. scripts/setup_env.sh
launch dm_kd.synthesize --task imagenet --generator one_image --images-per-class 200 --batch-size 1000 \
    --out syn_dataset/imagenet_one_image "$@"
