#!/bin/sh
# ImageNet, step 1: the paper's synthetic set. DiT-XL/2 at 256 x 256, guidance 2, 100 steps, 200 images per class.
# Table rows: DM-KD with 140K, 200K and 1.28M images: --images-per-class 140, 200 or 1280 (a set may grow).
# Published top-1 after 200 epochs on them: ResNet-50 66.74, 68.63, 72.43; ResNet-18 60.10, 61.61, 68.25.
# Hardware: one GPU with 16 GB.  Time (estimates): 5 hours on an H200 for 200K images, 32 for 1.28M.
# Disk: 24 GB for 200K, 150 GB for 1.28M.
# Needs: DiT-XL/2's weights (CC-BY-NC 4.0), downloaded; or --weights FILE.pt or a diffusers folder.
# Usage: [NGPU=8] sh scripts/imagenet_synthesize.sh [flags of python -m dm_kd.synthesize, such as --dry-run]
set -eu
cd "$(dirname "$0")/.."
. scripts/setup_env.sh
launch dm_kd.synthesize \
    --task imagenet --generator dit --weights facebook/DiT-XL-2-256 --vae stabilityai/sd-vae-ft-mse \
    --guidance-scale 2 --steps 100 \
    --images-per-class 200 --out syn_dataset/imagenet_s2_t100 "$@"
