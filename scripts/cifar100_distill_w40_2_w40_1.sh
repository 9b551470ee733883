#!/bin/sh
# CIFAR-100, step 2: wrn_40_2 to wrn_40_1, 240 epochs of 50,000 synthetic images.
# Table row: DM-KD, CIFAR-100, this pair. Published top-1: 65.01 (0.9 x KD, no labels; 1 x KD here).
# Hardware: one GPU.  Time: 1 to 2 hours (an estimate).  Disk: 200 MB.
# Needs: cifar100_synthesize.sh; cifar100_teacher.sh.
# Usage: [NGPU=8] sh scripts/cifar100_distill_w40_2_w40_1.sh [flags of python -m dm_kd.distill, such as --dry-run]
set -eu
cd "$(dirname "$0")/.."
. scripts/setup_env.sh
launch dm_kd.distill \
    --task cifar100 --source syn_dataset/imagenet_s2_t100_50k --teacher save/models/cifar100_wrn_40_2 \
    --student wrn_40_1 --temperature 4 --epochs 240 --lr-decay-epochs 150,180,210 --batch-size 128 \
    --learning-rate 0.1 --weight-decay 5e-4 --out save/student_model/cifar100_w40_2_w40_1 "$@"
