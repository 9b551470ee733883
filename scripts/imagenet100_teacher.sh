#!/bin/sh
# ImageNet-100: a ResNet-18 teacher on the 126,689 real training images.
# Table row: teacher, ImageNet-100. Published top-1: 89.6 (how it was trained is not known).
# Hardware: one GPU.  Time: 1 to 4 hours (an estimate).  Disk: 500 MB.
# Usage: [NGPU=8] sh scripts/imagenet100_teacher.sh [flags of python -m dm_kd.train_teacher, such as --dry-run]
set -eu
cd "$(dirname "$0")/.."
. scripts/setup_env.sh
launch dm_kd.train_teacher \
    --task imagenet100 --model torchvision:resnet18 --epochs 100 --lr-decay-epochs 30,60,90 \
    --batch-size 256 --learning-rate 0.1 --weight-decay 1e-4 --out save/models/imagenet100_resnet18 "$@"
