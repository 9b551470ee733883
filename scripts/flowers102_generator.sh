#!/bin/sh
# Flowers-102: a small DiT (64 x 64 pixels, patch 4, 12 M parameters) on the task's own real images. Not data-free:
# it shows what survives the way through synthetic images. Then flowers102_synthesize_own_dit.sh. No row of the paper's.
# Hardware: one GPU.  Time: 6 hours on an H200 (an estimate).  Disk: 2 GB.
# Usage: sh scripts/flowers102_generator.sh [flags of python -m dm_kd.train_generator, such as --dry-run]
set -eu
cd "$(dirname "$0")/.."
. scripts/setup_env.sh
launch dm_kd.train_generator \
    --task flowers102 --resolution 64 --patch-size 4 --width 256 --depth 10 --heads 8 --steps 200000 \
    --batch-size 256 --learning-rate 5e-4 --warmup-steps 1000 --ema 0.9999 --augment default \
    --out save/generators/flowers102_dit "$@"
