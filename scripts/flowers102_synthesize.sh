#!/bin/sh
# Flowers-102: 20,000 images of ImageNet's classes from DiT-XL/2, guidance 2, 100 steps. Two of the classes are flowers;
# the loss needs no labels, so all serve. (flowers102_distill.sh takes ImageNet's 200,000.) No row of the paper's.
# Hardware: one GPU with 16 GB.  Time: 30 minutes on an H200 (an estimate).  Disk: 3 GB.
# Needs: DiT-XL/2's weights (CC-BY-NC 4.0), downloaded; or --weights FILE.pt or a diffusers folder.
# Usage: [NGPU=8] sh scripts/flowers102_synthesize.sh [flags of python -m dm_kd.synthesize, such as --dry-run]
set -eu
cd "$(dirname "$0")/.."
. scripts/setup_env.sh
launch dm_kd.synthesize \
    --task imagenet --generator dit --weights facebook/DiT-XL-2-256 --vae stabilityai/sd-vae-ft-mse \
    --guidance-scale 2 --steps 100 \
    --images-per-class 20 --out syn_dataset/imagenet_s2_t100_20k "$@"
