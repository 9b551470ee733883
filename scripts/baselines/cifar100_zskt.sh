#!/bin/sh
# CIFAR-100: ZSKT, 200 epochs of 400 student steps of 256.
# Table row: ZSKT, CIFAR-100.
# Expected top-1 (published), R34-R18 VGG11-R18 W40-2-W16-1 -W40-1 -W16-2: 67.74 54.31 36.66 53.60 54.59.
# Published with temperature 1 (their --T is not used there); Fast-Datafree gives the teacher as the student, CMI does not.
# PAIR=vgg11_r18, w40_2_w16_1, w40_2_w40_1 or w40_2_w16_2 for the other pairs (default: r34_r18).
# Hardware: one GPU.  Time: up to 2 hours (their figure for R34-R18; an estimate).  Disk: 1 GB.
# Needs: the pair's teacher, cifar100_teacher.sh --model cifar_resnet34 --out save/models/cifar100_cifar_resnet34.
# Use: [PAIR=vgg11_r18] sh scripts/baselines/cifar100_zskt.sh [flags of python -m dm_kd.distill, such as --dry-run]
set -eu
cd "$(dirname "$0")/../.."
. scripts/setup_env.sh
. scripts/cifar100_settings.sh
find_python
exec "$PYTHON" -m dm_kd.distill $pair_flags \
    --source zskt --augment none --learning-rate 0.1 --temperature 1 $schedule \
    --out save/student_model/cifar100_zskt_$pair "$@"
