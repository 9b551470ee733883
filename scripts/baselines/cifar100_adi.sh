#!/bin/sh
# CIFAR-100: adaptive DeepInversion, 200 epochs of 400 student steps of 256.
# Table row: adaptive DeepInversion, CIFAR-100.
# Expected top-1 (published), R34-R18 VGG11-R18 W40-2-W16-1 -W40-1 -W16-2: 61.32 54.13 53.77 61.33 61.34.
# Published as "DeepInv": the last iterate, and their JS with its clamp; the best iterate and a textbook JS here.
# PAIR=vgg11_r18, w40_2_w16_1, w40_2_w40_1 or w40_2_w16_2 for the other pairs (default: r34_r18).
# Hardware: one GPU.  Time: up to 42 hours (their figure for R34-R18; an estimate).  Disk: 1 GB.
# Needs: the pair's teacher, cifar100_teacher.sh --model cifar_resnet34 --out save/models/cifar100_cifar_resnet34.
# Use: [PAIR=vgg11_r18] sh scripts/baselines/cifar100_adi.sh [flags of python -m dm_kd.distill, such as --dry-run]
set -eu
cd "$(dirname "$0")/../.."
. scripts/setup_env.sh
. scripts/cifar100_settings.sh
find_python
exec "$PYTHON" -m dm_kd.distill $pair_flags \
    --source adi --learning-rate 0.1 --temperature 20 $schedule \
    --out save/student_model/cifar100_adi_$pair "$@"
