#!/bin/sh
# CIFAR-100: distillation on 50,000 images of noise, DM-KD's recipe: 240 epochs.
# Table row: noise, CIFAR-100.
# Expected top-1: no published number.
# PAIR=vgg11_r18, w40_2_w16_1, w40_2_w40_1 or w40_2_w16_2 for the other pairs (default: r34_r18).
# Hardware: one GPU.  Time: 1 to 2 hours (an estimate).  Disk: 200 MB.
# Needs: baselines/cifar100_noise.sh; the pair's teacher (cifar100_teacher.sh).
# Use: [PAIR=vgg11_r18] [NGPU=n] sh scripts/baselines/cifar100_noise_distill.sh [flags of python -m dm_kd.distill, such as --dry-run]
set -eu
cd "$(dirname "$0")/../.."
. scripts/setup_env.sh
. scripts/cifar100_settings.sh
launch dm_kd.distill $pair_flags --source syn_dataset/cifar100_noise \
    $stored_recipe --out save/student_model/cifar100_noise_$pair "$@"
