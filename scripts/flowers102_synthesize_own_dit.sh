#!/bin/sh
# Flowers-102: 20,400 labelled images (64 x 64) of the small DiT that flowers102_generator.sh trained on the
# task's own real images (not data-free).
# Table row: none of the paper's. Expected top-1: none, this step trains no classifier.
# Hardware: one GPU.  Time: about 1 hour on an H200.  Disk: 600 MB.
# Hours are estimates from operation counts; nothing was measured on a GPU yet.
# Needs: flowers102_generator.sh.
# Use: [NGPU=n] sh scripts/flowers102_synthesize_own_dit.sh [flags of python -m dm_kd.synthesize, such as --dry-run]
set -eu
cd "$(dirname "$0")/.."
. scripts/setup_env.sh
launch dm_kd.synthesize \
    --task flowers102 --generator dit --weights save/generators/flowers102_dit --guidance-scale 1.5 \
    --guided-channels all --steps 100 --images-per-class 200 --batch-size 500 \
    --out syn_dataset/flowers102_own_dit "$@"
