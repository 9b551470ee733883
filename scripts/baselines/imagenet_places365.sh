#!/bin/sh
# ImageNet: distillation on Places365, real images of other classes.
# Table row: Places365+KD, ImageNet. Expected top-1 (published): R50 55.74, R18 45.53, MobileNetV2 39.89 (their hyper-parameters are not public).
# STUDENT=resnet18 or mobilenet_v2 for the other students (default: resnet50).
# Hardware: one GPU with 16 GB or more, or NGPU=8.  Time: 15 to 30 hours on an H200 (an estimate).  Disk: 25 GB of images, 360 GB
# unpacked (--cache DIR).
# Needs: true_dataset/places365 (its 1,803,460 training images, 256 x 256) and ImageNet's validation set.
# Use: [STUDENT=resnet18] [NGPU=n] sh scripts/baselines/imagenet_places365.sh [flags of python -m dm_kd.distill, such as --dry-run]
set -eu
cd "$(dirname "$0")/../.."
. scripts/setup_env.sh
. scripts/imagenet_settings.sh
launch dm_kd.distill $pair_flags --source true_dataset/places365 --source-labels none \
    --temperature 10 --epochs 200 --lr-decay-epochs 120,150,180 $recipe \
    --out save/student_model/imagenet_places365_$name "$@"
