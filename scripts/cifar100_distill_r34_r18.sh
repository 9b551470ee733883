#!/bin/sh
# CIFAR-100, step 2: cifar_resnet34 to cifar_resnet18, 240 epochs of 50,000 synthetic images.
# Table row: DM-KD, CIFAR-100, this pair. Published top-1: 76.58 (0.9 x KD, no labels; 1 x KD here).
# Hardware: one GPU.  Time: 1 to 2 hours (an estimate).  Disk: 200 MB.
# Needs: cifar100_synthesize.sh; cifar100_teacher.sh --model cifar_resnet34 --out save/models/cifar100_cifar_resnet34.
# Usage: [NGPU=8] sh scripts/cifar100_distill_r34_r18.sh [flags of python -m dm_kd.distill, such as --dry-run]
set -eu
cd "$(dirname "$0")/.."
. scripts/setup_env.sh
launch dm_kd.distill \
    --task cifar100 --source syn_dataset/imagenet_s2_t100_50k --teacher save/models/cifar100_cifar_resnet34 \
    --student cifar_resnet18 --temperature 4 --epochs 240 --lr-decay-epochs 150,180,210 --batch-size 128 \
    --learning-rate 0.1 --weight-decay 5e-4 --out save/student_model/cifar100_r34_r18 "$@"
