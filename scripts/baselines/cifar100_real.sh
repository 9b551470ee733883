#!/bin/sh
# CIFAR-100: distillation on the real training images, 200 epochs of Fast-Datafree's recipe.
# Expected top-1 (published), R34-R18 VGG11-R18 W40-2-W16-1 -W40-1 -W16-2: 77.87 75.07 64.06 68.58 70.79: below the students alone
# (77.10 77.10 65.31 72.19 73.56) in four of five, so suspect; ours should come out higher.
# Theirs is temperature 1; --temperature 4 --learning-rate 0.05 --batch-size 64 --epochs 240 --lr-decay-epochs 150,180,210
# --weight-decay 5e-4 is RepDistiller's. --images-per-class N --subset-seed 0 for the row random real images (all 500 of a
# class are as many as the synthetic sets have).
# PAIR=vgg11_r18, w40_2_w16_1, w40_2_w40_1 or w40_2_w16_2 for the other pairs (default: r34_r18).
# Table row: KD on real data, CIFAR-100.
# Hardware: one GPU.  Time: 1 hour (an estimate).  Disk: 1 GB.
# Needs: the pair's teacher, cifar100_teacher.sh --model cifar_resnet34 --out save/models/cifar100_cifar_resnet34; CIFAR-100 in true_dataset/.
# Use: [PAIR=vgg11_r18] [NGPU=n] sh scripts/baselines/cifar100_real.sh [flags of python -m dm_kd.distill, such as --dry-run]
set -eu
cd "$(dirname "$0")/../.."
. scripts/setup_env.sh
. scripts/cifar100_settings.sh
launch dm_kd.distill $pair_flags --source real --temperature 1 $real_recipe \
    --out save/student_model/cifar100_real_$pair "$@"
