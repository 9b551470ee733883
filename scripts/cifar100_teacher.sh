#!/bin/sh
# CIFAR-100: a teacher on the 50,000 real images: WRN-40-2; --model cifar_resnet34 or vgg11_bn with --out
# save/models/cifar100_MODEL for the others. Table row: teacher, CIFAR-100.
# Published top-1: wrn_40_2 75.83, cifar_resnet34 78.05, vgg11_bn 71.32. Recipe: Fast-Datafree's train_scratch.py, whose
# rate falls to a fifth at each of the three epochs, ours to a tenth; its number of epochs is not published.
# Hardware: one GPU.  Time: 1 hour (an estimate).  Disk: 200 MB.
# Usage: [NGPU=8] sh scripts/cifar100_teacher.sh [flags of python -m dm_kd.train_teacher, such as --dry-run]
set -eu
cd "$(dirname "$0")/.."
. scripts/setup_env.sh
launch dm_kd.train_teacher \
    --task cifar100 --model wrn_40_2 --epochs 200 --lr-decay-epochs 120,150,180 --batch-size 256 \
    --learning-rate 0.1 --weight-decay 1e-4 --out save/models/cifar100_wrn_40_2 "$@"
