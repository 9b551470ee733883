#!/bin/sh
# ImageNet-100: 50,000 labelled images of 64 x 64 from the small DiT of imagenet100_generator.sh (not data-free).
# Distil with imagenet100_distill.sh --source syn_dataset/imagenet100_own_dit and its own --out. No row of the paper's.
# Hardware: one GPU.  Time: 1 hour on an H200 (an estimate).  Disk: 600 MB.
# Usage: [NGPU=8] sh scripts/imagenet100_synthesize_own_dit.sh [flags of python -m dm_kd.synthesize, such as --dry-run]
set -eu
cd "$(dirname "$0")/.."
. scripts/setup_env.sh
launch dm_kd.synthesize \
    --task imagenet100 --generator dit --weights save/generators/imagenet100_dit --guidance-scale 1.5 \
    --guided-channels all --steps 100 --images-per-class 500 --batch-size 500 \
    --out syn_dataset/imagenet100_own_dit "$@"
