#!/bin/sh
# ImageNet-100: a small DiT (64 x 64 pixels, patch 4, 12 M parameters) trained on the task's own real images.
# Not data-free: it shows what survives the detour through synthetic images.
# Table row: none of the paper's. Expected top-1: none, this step trains no classifier.
# Hardware: one GPU.  Time: about 6 hours on an H200.  Disk: 2 GB.
# Hours are estimates from operation counts; nothing was measured on a GPU yet.
# Use: sh scripts/imagenet100_generator.sh [flags of python -m dm_kd.train_generator, such as --dry-run]
set -eu
cd "$(dirname "$0")/.."
. scripts/setup_env.sh
find_python
exec "$PYTHON" -m dm_kd.train_generator \
    --task imagenet100 --resolution 64 --patch-size 4 --width 256 --depth 10 --heads 8 --steps 200000 \
    --batch-size 256 --learning-rate 5e-4 --warmup-steps 1000 --ema 0.9999 --augment default \
    --out save/generators/imagenet100_dit "$@"
