#!/bin/sh
# CIFAR-100, step 1: 50,000 images of ImageNet's classes from DiT-XL/2, guidance 2, 100 steps. The loss needs no
# labels, so they serve CIFAR-100's (resized to 32 x 32). Table row: DM-KD, CIFAR-100, with cifar100_distill_*.sh.
# Hardware: one GPU with 16 GB.  Time: 80 minutes on an H200 (an estimate).  Disk: 6 GB.
# Needs: DiT-XL/2's weights (CC-BY-NC 4.0), downloaded; or --weights FILE.pt or a diffusers folder.
# Usage: [NGPU=8] sh scripts/cifar100_synthesize.sh [flags of python -m dm_kd.synthesize, such as --dry-run]
set -eu
cd "$(dirname "$0")/.."
. scripts/setup_env.sh
launch dm_kd.synthesize \
    --task imagenet --generator dit --weights facebook/DiT-XL-2-256 --vae stabilityai/sd-vae-ft-mse \
    --guidance-scale 2 --steps 100 \
    --images-per-class 50 --out syn_dataset/imagenet_s2_t100_50k "$@"
