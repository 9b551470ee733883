#!/bin/sh
# ImageNet: adaptive DeepInversion, 90 epochs of 540 student steps of 256, 18 calls for 84 images each: with the 47
# before the first step 140,000 images. Theirs goes on from a finished set of DeepInversion's, a batch after every 50
# steps, and its student was never released; from nothing here, every 30 steps, and the student draws from the newest
# 20,000 (--pool-images 140028: 21 GB in memory and in each checkpoint). Weights, iterations and batch: theirs.
# Table row: adaptive DeepInversion, ImageNet. Expected top-1: no published number (DeepInv-2k: 68.00).
# STUDENT=resnet18 or mobilenet_v2 for the other students (default: resnet50).
# Hardware: one GPU with 40 GB or more.  Time: 10 to 15 days (an estimate).  Disk: 8 GB (the pool in two checkpoints).
# Needs: ImageNet's validation set.
# Use: [STUDENT=resnet18] sh scripts/baselines/imagenet_adi.sh [flags of python -m dm_kd.distill, such as --dry-run]
set -eu
cd "$(dirname "$0")/../.."
. scripts/setup_env.sh
. scripts/imagenet_settings.sh
find_python
exec "$PYTHON" -m dm_kd.distill $pair_flags --source adi --temperature 3 --steps-per-epoch 540 --calls-per-epoch 18 \
    --warmup-calls 47 $recipe_90 --checkpoint-seconds 3600 \
    --out save/student_model/imagenet_adi_$name "$@"
