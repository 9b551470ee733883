#!/bin/sh
# ImageNet, step 2: ResNet-18 to ResNet-18, 100 epochs: the published script; its accuracy is not in the paper's table.
# Expected top-1: no published number (61.6 at 200 epochs).
# Hardware: one GPU with 16 GB or more, or NGPU=8.  Time: 28 to 60 minutes on an H200.  Disk: 40 GB of packed
# images and 8 GB of packed validation images.
# Hours are estimates from operation counts; nothing was measured on a GPU yet.
# Needs: syn_dataset/imagenet_s2_t100 (imagenet_synthesize.sh) and ImageNet's validation set.
# Use: [NGPU=n] [MAX_RESTARTS=n] sh scripts/imagenet_distill.sh [flags of python -m dm_kd.distill, such as --dry-run]
set -eu
cd "$(dirname "$0")/.."
. scripts/setup_env.sh
launch dm_kd.distill \
    --task imagenet --source syn_dataset/imagenet_s2_t100 \
    --teacher torchvision:resnet18 --student torchvision:resnet18 --temperature 10 --batch-size 256 \
    --learning-rate 0.1 --epochs 100 --lr-decay-epochs 30,60,90 --weight-decay 1e-4 --out save/student_model/imagenet_rn18_rn18 "$@"
