#!/bin/sh
# Flowers-102: 20,400 images of 256 x 256 from a text-to-image model prompted with the class names. No row of the paper's.
# Hardware: one GPU with 16 GB.  Time: 1 hour on an H200 (an estimate).  Disk: 6 GB, and 7 GB of weights.
# Needs: pip install transformers; SDXL-Turbo's weights (non-commercial licence), downloaded; or --weights with any
# other text-to-image pipeline of diffusers.
# Usage: [NGPU=8] sh scripts/flowers102_synthesize_text_to_image.sh [flags of dm_kd.synthesize, such as --dry-run]
set -eu
cd "$(dirname "$0")/.."
. scripts/setup_env.sh
launch dm_kd.synthesize \
    --task flowers102 --generator text_to_image --weights stabilityai/sdxl-turbo \
    --prompt "a photo of a {}, a type of flower" --steps 1 --guidance-scale 0 --render-size 512 --batch-size 50 \
    --images-per-class 200 --out syn_dataset/flowers102_text_to_image "$@"
