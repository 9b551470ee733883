#!/bin/sh
# CIFAR-100: distillation on DiffDFKD's 50,000 images, its recipe for CIFAR-10: 240 epochs of 256, temperature 30 (rate
# 0.1 or 0.2, weight decay 1e-4 or 5e-4, 220 to 240 epochs there).
# Table row: DiffDFKD, CIFAR-100.
# Expected top-1: no number found in text.
# PAIR=vgg11_r18, w40_2_w16_1, w40_2_w40_1 or w40_2_w16_2 for the other pairs (default: r34_r18).
# Hardware: one GPU.  Time: 1 to 2 hours (an estimate).  Disk: 200 MB.
# Needs: baselines/cifar100_diffdfkd.sh; the pair's teacher (cifar100_teacher.sh).
# Use: [PAIR=vgg11_r18] [NGPU=n] sh scripts/baselines/cifar100_diffdfkd_distill.sh [flags of python -m dm_kd.distill, such as --dry-run]
set -eu
cd "$(dirname "$0")/../.."
. scripts/setup_env.sh
. scripts/cifar100_settings.sh
launch dm_kd.distill $pair_flags --source syn_dataset/${teacher}_diffdfkd \
    --temperature 30 --epochs 240 --lr-decay-epochs 150,180,210 --batch-size 256 --learning-rate 0.1 \
    --weight-decay 5e-4 --out save/student_model/cifar100_diffdfkd_$pair "$@"
