#!/bin/sh
# Flowers-102: 20,000 images of all of the ImageNet DiT's own classes, s = 2, T = 100. Only two of them
# are flowers (daisy, yellow lady's slipper); the loss needs no labels, so all of them serve.
# Table row: none of the paper's; flowers102_distill.sh's is 85.4. Expected top-1: none, this step trains no classifier.
# Hardware: one GPU with 16 GB or more.  Time: about 30 minutes on an H200.  Disk: 3 GB.
# Hours are estimates from operation counts; nothing was measured on a GPU yet.
# Needs: DiT-XL/2's weights (CC-BY-NC 4.0), downloaded; or --weights FILE.pt or a diffusers folder.
# Use: [NGPU=n] sh scripts/flowers102_synthesize.sh [flags of python -m dm_kd.synthesize, such as --dry-run]
set -eu
cd "$(dirname "$0")/.."
. scripts/setup_env.sh
launch dm_kd.synthesize \
    --task imagenet --generator dit --weights facebook/DiT-XL-2-256 --vae stabilityai/sd-vae-ft-mse \
    --guidance-scale 2 --steps 100 --images-per-class 20 --out syn_dataset/imagenet_s2_t100_20k "$@"
