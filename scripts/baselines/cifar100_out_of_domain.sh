#!/bin/sh
# CIFAR-100: distillation on real images of other classes, those of Places365, resized to 32 x 32; DM-KD's recipe and
# number of steps, 240 epochs of 391. Ours: the published tables have this row for ImageNet only.
# Table row: out-of-domain real images, CIFAR-100.
# Expected top-1: no published number.
# PAIR=vgg11_r18, w40_2_w16_1, w40_2_w40_1 or w40_2_w16_2 for the other pairs (default: r34_r18).
# Hardware: one GPU.  Time: 2 to 3 hours, of which 1 to read the images (an estimate).  Disk: 6 GB of packed images.
# Needs: true_dataset/places365 (its 1,803,460 training images, 256 x 256); the pair's teacher (cifar100_teacher.sh).
# Use: [PAIR=vgg11_r18] [NGPU=n] sh scripts/baselines/cifar100_out_of_domain.sh [flags of python -m dm_kd.distill, such as --dry-run]
set -eu
cd "$(dirname "$0")/../.."
. scripts/setup_env.sh
. scripts/cifar100_settings.sh
launch dm_kd.distill $pair_flags --source true_dataset/places365 --source-labels none \
    $stored_recipe --steps-per-epoch 391 --out save/student_model/cifar100_out_of_domain_$pair "$@"
