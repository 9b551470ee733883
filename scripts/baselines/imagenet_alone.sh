#!/bin/sh
# ImageNet: the student alone, on the real images and their labels, 90 epochs.
# Table row: student alone, ImageNet. Expected top-1 (published, "scratch"): R50 75.45, R18 68.45, MobileNetV2 70.01; how
# they were trained is not part of what was published with the table, so the recipe (torchvision's first one) is ours.
# STUDENT=resnet18 or mobilenet_v2 for the other students (default: resnet50).
# Hardware: one GPU with 16 GB or more, or NGPU=8.  Time: 8 to 15 hours on an H200 (an estimate).  Disk: 1 GB, and 8 GB of packed validation images.
# Needs: ImageNet's training and validation set.
# Use: [STUDENT=resnet18] [NGPU=n] sh scripts/baselines/imagenet_alone.sh [flags of python -m dm_kd.train_teacher, such as --dry-run]
set -eu
cd "$(dirname "$0")/../.."
. scripts/setup_env.sh
. scripts/imagenet_settings.sh
launch dm_kd.train_teacher --task imagenet --model torchvision:$name $recipe_90 \
    --out save/student_model/imagenet_alone_$name "$@"
