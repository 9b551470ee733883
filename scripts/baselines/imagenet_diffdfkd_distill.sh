#!/bin/sh
# ImageNet: distillation on the set of imagenet_diffdfkd.sh, DiffDFKD's recipe for 224-pixel sets: 240 epochs of 256,
# temperature 30 (rate 0.1 or 0.2, weight decay 1e-4 or 5e-4, 220 to 240 epochs there).
# Table row: DiffDFKD, ImageNet. Expected top-1: no number found in text.
# STUDENT=resnet18 or mobilenet_v2 for the other students (default: resnet50).
# Hardware: one GPU with 16 GB or more, or NGPU=8.  Time: 3 to 8 hours on an H200 (an estimate).  Disk: 28 GB of packed images.
# Needs: baselines/imagenet_diffdfkd.sh; ImageNet's validation set.
# Use: [STUDENT=resnet18] [NGPU=n] sh scripts/baselines/imagenet_diffdfkd_distill.sh [flags of python -m dm_kd.distill, such as --dry-run]
set -eu
cd "$(dirname "$0")/../.."
. scripts/setup_env.sh
. scripts/imagenet_settings.sh
launch dm_kd.distill $pair_flags --source syn_dataset/imagenet_diffdfkd --temperature 30 --epochs 240 \
    --lr-decay-epochs 150,180,210 $recipe \
    --out save/student_model/imagenet_diffdfkd_$name "$@"
