#!/bin/sh
# ImageNet: distillation on the patches of imagenet_one_image.sh from ResNet-18, their recipe as far as it is the same
# loop: no colour jitter, grey or solarize here; their loss lacks the factor temperature squared, their batch is 512
# on each GPU. --teacher torchvision:resnet50 with another --out for their other number.
# Table row: One-Image, ImageNet. Expected top-1 (published): R50 66.20 from R18 on 1,281,167 patches (55.5 from R50).
# STUDENT=resnet18 or mobilenet_v2 for the other students (default: resnet50).
# Hardware: one GPU with 16 GB or more, or NGPU=8.  Time: 4 to 8 hours on an H200 (an estimate).  Disk: 40 GB of packed images.
# Needs: baselines/imagenet_one_image.sh; ImageNet's validation set.
# Use: [STUDENT=resnet18] [NGPU=n] sh scripts/baselines/imagenet_one_image_distill.sh [flags of python -m dm_kd.distill, such as --dry-run]
set -eu
cd "$(dirname "$0")/../.."
. scripts/setup_env.sh
. scripts/imagenet_settings.sh
launch dm_kd.distill --task imagenet --source syn_dataset/imagenet_one_image --teacher torchvision:resnet18 \
    --student torchvision:$name --optimizer adamw --learning-rate 0.01 --weight-decay 5e-4 --temperature 8 --cutmix 1 \
    --epochs 200 --lr-schedule cosine --batch-size 512 \
    --out save/student_model/imagenet_one_image_$name "$@"
