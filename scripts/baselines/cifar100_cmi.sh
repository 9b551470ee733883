#!/bin/sh
# CIFAR-100: CMI, 200 epochs of 400 student steps of 256.
# Table row: CMI, CIFAR-100.
# Expected top-1 (published), R34-R18 VGG11-R18 W40-2-W16-1 -W40-1 -W16-2: 77.04 70.56 57.91 68.88 68.75.
# Published after a start from 50,000 images inverted before and with 40 epochs of 2,000 steps for some pairs; from scratch here.
# PAIR=vgg11_r18, w40_2_w16_1, w40_2_w40_1 or w40_2_w16_2 for the other pairs (default: r34_r18).
# Hardware: one GPU.  Time: up to 19 hours (their figure for R34-R18; an estimate).  Disk: 1 GB.
# Needs: the pair's teacher, cifar100_teacher.sh --model cifar_resnet34 --out save/models/cifar100_cifar_resnet34.
# Use: [PAIR=vgg11_r18] sh scripts/baselines/cifar100_cmi.sh [flags of python -m dm_kd.distill, such as --dry-run]
set -eu
cd "$(dirname "$0")/../.."
. scripts/setup_env.sh
. scripts/cifar100_settings.sh
find_python
exec "$PYTHON" -m dm_kd.distill $pair_flags \
    --source cmi --learning-rate 0.1 --temperature 20 $schedule \
    --out save/student_model/cifar100_cmi_$pair "$@"
