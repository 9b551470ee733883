#!/bin/sh
# ImageNet, step 2: ResNet-50 to ResNet-50, 200 epochs: the teacher of the rivals' rows.
# Published top-1: none with this teacher.
# Hardware: one GPU with 16 GB, or NGPU=8.  Time: 2 to 5 hours on an H200 (an estimate).
# Disk: 40 GB of packed training images and 8 GB of packed validation images in save/cache.
# Needs: syn_dataset/imagenet_s2_t100 (imagenet_synthesize.sh) and ImageNet's validation set.
# Usage: [NGPU=8] sh scripts/imagenet_distill_rn50_rn50.sh [flags of python -m dm_kd.distill, such as --dry-run]
set -eu
cd "$(dirname "$0")/.."
. scripts/setup_env.sh
launch dm_kd.distill \
    --task imagenet --source syn_dataset/imagenet_s2_t100 --teacher torchvision:resnet50 \
    --student torchvision:resnet50 --temperature 10 --epochs 200 --lr-decay-epochs 60,120,180 \
    --batch-size 256 --learning-rate 0.1 --weight-decay 1e-4 \
    --out save/student_model/imagenet_rn50_rn50 "$@"
