#!/bin/sh
# ImageNet-100: 50,000 images of 256 x 256 from a text-to-image model prompted with the class names.
# Hardware: one GPU with 16 GB.  Time: 3 hours on an H200 (an estimate).  Disk: 6 GB, and 7 GB of weights.
# Needs: pip install transformers; SDXL-Turbo's weights (non-commercial licence), downloaded; or --weights with any
# other text-to-image pipeline of diffusers.
# Usage: [NGPU=8] sh scripts/imagenet100_synthesize_text_to_image.sh [flags of dm_kd.synthesize, such as --dry-run]
set -eu
cd "$(dirname "$0")/.."
. scripts/setup_env.sh
launch dm_kd.synthesize \
    --task imagenet100 --generator text_to_image --weights stabilityai/sdxl-turbo \
    --prompt "a photo of a {}" --steps 1 --guidance-scale 0 --render-size 512 --batch-size 50 \
    --images-per-class 500 --out syn_dataset/imagenet100_text_to_image "$@"
