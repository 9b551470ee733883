#!/bin/sh
# ImageNet, step 2 by function matching (Beyer et al. 2022, arXiv 2106.05237): every batch mixed with a uniform
# share (mixup with Beta(1, 1)) for both networks, a long cosine schedule. ResNet-18 to ResNet-50, 600 epochs.
# Published top-1: none on synthetic images. The optimiser is DM-KD's SGD with batches of 256, not Beyer's Adam
# with 4,096, so that only views and schedule differ from imagenet_distill_rn18_rn50.sh.
# Hardware: one GPU with 16 GB, or NGPU=8.  Time: 6 to 10 hours on an H200 (an estimate).
# Disk: 40 GB of packed training images and 8 GB of packed validation images in save/cache.
# Needs: syn_dataset/imagenet_s2_t100 (imagenet_synthesize.sh) and ImageNet's validation set.
# Usage: [NGPU=8] [MAX_RESTARTS=3] sh scripts/imagenet_distill_function_matching.sh [flags of python -m dm_kd.distill]
set -eu
cd "$(dirname "$0")/.."
. scripts/setup_env.sh
launch dm_kd.distill \
    --task imagenet --source syn_dataset/imagenet_s2_t100 --teacher torchvision:resnet18 \
    --student torchvision:resnet50 --temperature 10 --epochs 600 --lr-schedule cosine --warmup-epochs 5 \
    --mixup 1 --batch-size 256 --learning-rate 0.1 --weight-decay 1e-4 \
    --out save/student_model/imagenet_function_matching "$@"
