#!/bin/sh
# CIFAR-100, step 1: 50,000 images of ImageNet's classes, DiT-XL/2, s = 2, T = 100; the loss needs no labels,
# so they serve any label space (they are resized to 32 x 32).
# Table row: DM-KD, CIFAR-100, with cifar100_distill_*.sh. Expected top-1: none, this step trains no classifier.
# Hardware: one GPU with 16 GB or more.  Time: about 80 minutes on an H200.  Disk: 6 GB.
# Hours are estimates from operation counts; nothing was measured on a GPU yet.
# Use: [NGPU=n] sh scripts/cifar100_synthesize.sh [flags of python -m dm_kd.synthesize, such as --dry-run]
set -eu
cd "$(dirname "$0")/.."
. scripts/setup_env.sh
launch dm_kd.synthesize \
    --task imagenet --generator dit --weights facebook/DiT-XL-2-256 --vae stabilityai/sd-vae-ft-mse \
    --guidance-scale 2 --steps 100 --images-per-class 50 --out syn_dataset/imagenet_s2_t100_50k "$@"
