#!/bin/sh
# ImageNet, step 1: the paper's synthetic set, DiT-XL/2 at 256 x 256, s = 2, T = 100, 200 images per class.
# Table rows: 140K, 200K and 1.28M images are --images-per-class 140, 200 and 1280 (a set may grow).
# Expected top-1: none, this step trains no classifier; published after 200 epochs on them: ResNet-50 66.74,
# 68.63, 72.43, ResNet-18 60.10, 61.61, 68.25 (imagenet_distill*.sh).
# Hardware: one GPU with 16 GB or more.  Time: about 5 hours on an H200 for 200K, 32 for 1.28M.
# Disk: 24 GB for 200K, 150 GB for 1.28M.
# Hours are estimates from operation counts; nothing was measured on a GPU yet.
# Needs: DiT-XL/2's weights (CC-BY-NC 4.0), downloaded; or --weights FILE.pt or a diffusers folder.
# Use: [NGPU=n] sh scripts/imagenet_synthesize.sh [flags of python -m dm_kd.synthesize, such as --dry-run]
set -eu
cd "$(dirname "$0")/.."
. scripts/setup_env.sh
launch dm_kd.synthesize \
    --task imagenet --generator dit --weights facebook/DiT-XL-2-256 --vae stabilityai/sd-vae-ft-mse \
    --guidance-scale 2 --steps 100 --images-per-class 200 --out syn_dataset/imagenet_s2_t100 "$@"
