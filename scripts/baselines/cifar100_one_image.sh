#!/bin/sh
# CIFAR-100: One-Image, distillation on patches of one picture, DM-KD's recipe: 240 epochs. Its own, for other pairs, is
# Adam at 1e-3, 1,000 epochs of 512, temperature 8, cutmix; the row's is not known.
# Table row: One-Image, CIFAR-100.
# Expected top-1 (published), R34-R18 VGG11-R18 W40-2-W16-1 -W40-1 -W16-2: 74.56 68.51 34.62 52.39 54.71.
# PAIR=vgg11_r18, w40_2_w16_1, w40_2_w40_1 or w40_2_w16_2 for the other pairs (default: r34_r18).
# Hardware: one GPU.  Time: 1 to 2 hours (an estimate).  Disk: 200 MB.
# Needs: cifar100_synthesize_one_image.sh; the pair's teacher (cifar100_teacher.sh).
# Use: [PAIR=vgg11_r18] [NGPU=n] sh scripts/baselines/cifar100_one_image.sh [flags of python -m dm_kd.distill, such as --dry-run]
set -eu
cd "$(dirname "$0")/../.."
. scripts/setup_env.sh
. scripts/cifar100_settings.sh
launch dm_kd.distill $pair_flags --source syn_dataset/cifar100_one_image \
    $stored_recipe --out save/student_model/cifar100_one_image_$pair "$@"
