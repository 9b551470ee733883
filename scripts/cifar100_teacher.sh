#!/bin/sh
# CIFAR-100: a teacher on the 50,000 real images. --model cifar_resnet34 or vgg11_bn with --out
# save/models/cifar100_MODEL for the others.
# Table row: teacher, CIFAR-100. Expected top-1: wrn_40_2 75.83, cifar_resnet34 78.05, vgg11_bn 71.32 (published).
# Hardware: one GPU.  Time: 1 hour.  Disk: 200 MB.
# Hours are estimates from operation counts; nothing was measured on a GPU yet.
# Use: [NGPU=n] sh scripts/cifar100_teacher.sh [flags of python -m dm_kd.train_teacher, such as --dry-run]
set -eu
cd "$(dirname "$0")/.."
. scripts/setup_env.sh
launch dm_kd.train_teacher \
    --task cifar100 --model wrn_40_2 --epochs 240 --lr-decay-epochs 150,180,210 --batch-size 128 \
    --learning-rate 0.05 --weight-decay 5e-4 --out save/models/cifar100_wrn_40_2 "$@"
