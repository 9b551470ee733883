#!/bin/sh
# ImageNet: distillation on the real training images, the paper's recipe: 100 epochs, temperature 10.
# --images-per-class 200 --subset-seed 0 --epochs 200 --lr-decay-epochs 60,120,180 for the row random real images: as many
# as the synthetic set has, as many steps. --images-per-class 25 with the rest of it for the coreset: the 2.7 GB of
# DiT-XL/2's weights hold about 25,000 of the training set's files of 110 kB.
# Table row: KD on real data, ImageNet. Expected top-1: no published number (the students alone: R50 75.45, R18 68.45, MobileNetV2 70.01).
# STUDENT=resnet18 or mobilenet_v2 for the other students (default: resnet50).
# Hardware: one GPU with 16 GB or more, or NGPU=8.  Time: 10 to 20 hours on an H200 (an estimate).  Disk: 1 GB, and 8 GB of packed validation images.
# Needs: ImageNet's training and validation set.
# Use: [STUDENT=resnet18] [NGPU=n] sh scripts/baselines/imagenet_real.sh [flags of python -m dm_kd.distill, such as --dry-run]
set -eu
cd "$(dirname "$0")/../.."
. scripts/setup_env.sh
. scripts/imagenet_settings.sh
launch dm_kd.distill $pair_flags --source real --temperature 10 --epochs 100 --lr-decay-epochs 30,60,90 $recipe \
    --out save/student_model/imagenet_real_$name "$@"
