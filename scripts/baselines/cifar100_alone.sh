#!/bin/sh
# CIFAR-100: the student alone, on the real images and their labels, in the recipe of cifar100_real.sh (ours for
# this row: how the published students were trained is not part of what was published with the table).
# Table row: student alone, CIFAR-100.
# Expected top-1 (published), R34-R18 VGG11-R18 W40-2-W16-1 -W40-1 -W16-2: 77.10 77.10 65.31 72.19 73.56.
# PAIR=vgg11_r18, w40_2_w16_1, w40_2_w40_1 or w40_2_w16_2 for the other pairs (default: r34_r18).
# Hardware: one GPU.  Time: 1 hour (an estimate).  Disk: 200 MB.
# Needs: CIFAR-100 in true_dataset/.
# Use: [PAIR=vgg11_r18] [NGPU=n] sh scripts/baselines/cifar100_alone.sh [flags of python -m dm_kd.train_teacher, such as --dry-run]
set -eu
cd "$(dirname "$0")/../.."
. scripts/setup_env.sh
. scripts/cifar100_settings.sh
launch dm_kd.train_teacher --task cifar100 --model $student $real_recipe \
    --out save/student_model/cifar100_alone_$pair "$@"
