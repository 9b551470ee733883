#!/bin/sh
# ImageNet-100: 50,000 labelled images of its hundred classes, DiT-XL/2 at 256 x 256, s = 2, T = 100: the
# ImageNet DiT's own classes, found by their WordNet ids. (imagenet100_distill.sh takes all thousand
# instead, as the loss needs no labels: --source syn_dataset/imagenet100_s2_t100 for these.)
# Table row: none of the paper's; imagenet100_distill.sh's is 85.9. Expected top-1: none, this step trains no classifier.
# Hardware: one GPU with 16 GB or more.  Time: about 80 minutes on an H200.  Disk: 6 GB.
# Hours are estimates from operation counts; nothing was measured on a GPU yet.
# Needs: DiT-XL/2's weights (CC-BY-NC 4.0), downloaded; or --weights FILE.pt or a diffusers folder.
# Use: [NGPU=n] sh scripts/imagenet100_synthesize.sh [flags of python -m dm_kd.synthesize, such as --dry-run]
set -eu
cd "$(dirname "$0")/.."
. scripts/setup_env.sh
launch dm_kd.synthesize \
    --task imagenet100 --generator dit --weights facebook/DiT-XL-2-256 --vae stabilityai/sd-vae-ft-mse \
    --guidance-scale 2 --steps 100 --images-per-class 500 --out syn_dataset/imagenet100_s2_t100 "$@"
