#!/bin/sh
# CIFAR-100: CMI, 200 epochs of 400 student steps of 256.
# Table row: CMI, CIFAR-100.
# Published top-1, R34-R18 VGG11-R18 W40-2-W16-1 -W40-1 -W16-2: 77.04 70.56 57.91 68.88 68.75.
# Published after a start from 50,000 images inverted before and with 40 epochs of 2,000 steps for some pairs; from scratch here.
# The pair is R34 to R18 unless flags say another: --teacher save/models/cifar100_vgg11_bn --student cifar_resnet18;
# --teacher save/models/cifar100_wrn_40_2 --student wrn_16_1 | wrn_40_1 | wrn_16_2; each with an --out of its own.
# Hardware: one GPU.  Time: up to 19 hours (their figure for R34-R18; an estimate).  Disk: 1 GB.
# Needs: cifar100_teacher.sh --model cifar_resnet34 --out save/models/cifar100_cifar_resnet34.
# Use: sh scripts/baselines/cifar100_cmi.sh [flags of python -m dm_kd.distill, such as --dry-run]
set -eu
cd "$(dirname "$0")/../.."
. scripts/setup_env.sh
find_python
exec "$PYTHON" -m dm_kd.distill --task cifar100 --teacher save/models/cifar100_cifar_resnet34 \
    --student cifar_resnet18 --source cmi --learning-rate 0.1 --temperature 20 --epochs 200 --steps-per-epoch 400 \
    --lr-schedule cosine --weight-decay 1e-4 --batch-size 256 --out save/student_model/cifar100_cmi_r34_r18 "$@"
