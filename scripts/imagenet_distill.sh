#!/bin/sh
# ImageNet, step 2: ResNet-18 to ResNet-18, 100 epochs: the published script.
# Published top-1: none at 100 epochs; 61.61 at 200 (--epochs 200 --lr-decay-epochs 60,120,180 and its own --out).
# Hardware: one GPU with 16 GB, or NGPU=8.  Time: 28 to 60 minutes on an H200 (an estimate).
# Disk: 40 GB of packed training images and 8 GB of packed validation images in save/cache.
# Needs: syn_dataset/imagenet_s2_t100 (imagenet_synthesize.sh) and ImageNet's validation set.
# Usage: [NGPU=8] [MAX_RESTARTS=3] sh scripts/imagenet_distill.sh [flags of python -m dm_kd.distill, such as --dry-run]
set -eu
cd "$(dirname "$0")/.."
. scripts/setup_env.sh
launch dm_kd.distill \
    --task imagenet --source syn_dataset/imagenet_s2_t100 --teacher torchvision:resnet18 \
    --student torchvision:resnet18 --temperature 10 --epochs 100 --lr-decay-epochs 30,60,90 \
    --batch-size 256 --learning-rate 0.1 --weight-decay 1e-4 \
    --out save/student_model/imagenet_rn18_rn18 "$@"
