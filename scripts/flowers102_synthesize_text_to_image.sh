#!/bin/sh
# Flowers-102: 20,400 images of a text-to-image model prompted with the class names, stored at 256 x 256.
# Table row: none of the paper's. Expected top-1: none, this step trains no classifier.
# Hardware: one GPU with 16 GB or more.  Time: about 1 hour on an H200.  Disk: 6 GB, and 7 GB of weights.
# Hours are estimates from operation counts; nothing was measured on a GPU yet.
# Needs: pip install transformers; SDXL-Turbo's weights (its own non-commercial licence), downloaded; or
# --weights with any other text-to-image pipeline of diffusers, a hub id or a folder.
# Use: [NGPU=n] sh scripts/flowers102_synthesize_text_to_image.sh [flags of python -m dm_kd.synthesize, such as --dry-run]
set -eu
cd "$(dirname "$0")/.."
. scripts/setup_env.sh
launch dm_kd.synthesize \
    --task flowers102 --generator text_to_image --weights stabilityai/sdxl-turbo \
    --prompt "a photo of a {}, a type of flower" --steps 1 --guidance-scale 0 --render-size 512 --batch-size 50 \
    --images-per-class 200 --out syn_dataset/flowers102_text_to_image "$@"
