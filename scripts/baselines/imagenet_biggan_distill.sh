#!/bin/sh
# ImageNet: distillation on the set of imagenet_biggan.sh, 90 epochs. The published row's number of epochs is known, the
# rest of its recipe is not: temperature and rate are DM-KD's.
# Table row: BigGAN, ImageNet. Expected top-1 (published): R50 64.00.
# STUDENT=resnet18 or mobilenet_v2 for the other students (default: resnet50).
# Hardware: one GPU with 16 GB or more, or NGPU=8.  Time: 2 to 5 hours on an H200 (an estimate).  Disk: 43 GB of packed images.
# Needs: baselines/imagenet_biggan.sh; ImageNet's validation set.
# Use: [STUDENT=resnet18] [NGPU=n] sh scripts/baselines/imagenet_biggan_distill.sh [flags of python -m dm_kd.distill, such as --dry-run]
set -eu
cd "$(dirname "$0")/../.."
. scripts/setup_env.sh
. scripts/imagenet_settings.sh
launch dm_kd.distill $pair_flags --source syn_dataset/imagenet_biggan --temperature 10 $recipe_90 \
    --out save/student_model/imagenet_biggan_$name "$@"
