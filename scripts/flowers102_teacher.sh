#!/bin/sh
# Flowers-102: a ResNet-18 teacher on the 2,040 real training images.
# Table row: teacher, Flowers-102. Published top-1: 87.9 (how it was trained is not known; from random weights, as
# here, it will be lower).
# Hardware: one GPU.  Time: 1 to 4 hours (an estimate).  Disk: 500 MB.
# Usage: [NGPU=8] sh scripts/flowers102_teacher.sh [flags of python -m dm_kd.train_teacher, such as --dry-run]
set -eu
cd "$(dirname "$0")/.."
. scripts/setup_env.sh
launch dm_kd.train_teacher \
    --task flowers102 --model torchvision:resnet18 --epochs 100 --lr-decay-epochs 30,60,90 \
    --batch-size 256 --learning-rate 0.1 --weight-decay 1e-4 --out save/models/flowers102_resnet18 "$@"
