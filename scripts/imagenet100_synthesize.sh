#!/bin/sh
# ImageNet-100: 50,000 labelled images of its hundred classes from DiT-XL/2, guidance 2, 100 steps; the classes are
# found by their WordNet ids. (imagenet100_distill.sh takes the images of all thousand; --source
# syn_dataset/imagenet100_s2_t100 and its own --out for these.) No row of the paper's.
# Hardware: one GPU with 16 GB.  Time: 80 minutes on an H200 (an estimate).  Disk: 6 GB.
# Needs: DiT-XL/2's weights (CC-BY-NC 4.0), downloaded; or --weights FILE.pt or a diffusers folder.
# Usage: [NGPU=8] sh scripts/imagenet100_synthesize.sh [flags of python -m dm_kd.synthesize, such as --dry-run]
set -eu
cd "$(dirname "$0")/.."
. scripts/setup_env.sh
launch dm_kd.synthesize \
    --task imagenet100 --generator dit --weights facebook/DiT-XL-2-256 --vae stabilityai/sd-vae-ft-mse \
    --guidance-scale 2 --steps 100 \
    --images-per-class 500 --out syn_dataset/imagenet100_s2_t100 "$@"
