#!/bin/sh
# CIFAR-100: DFQ, 200 epochs of 400 student steps of 256.
# Table row: DFQ, CIFAR-100.
# Published top-1, R34-R18 VGG11-R18 W40-2-W16-1 -W40-1 -W16-2: 77.01 66.21 51.27 54.43 64.79.
# Published with temperature 1 (their --T is not used there); Fast-Datafree gives the teacher as the student, CMI does not.
# CMI's script for R34-R18 has --learning-rate 0.05.
# The pair is R34 to R18 unless flags say another: --teacher save/models/cifar100_vgg11_bn --student cifar_resnet18;
# --teacher save/models/cifar100_wrn_40_2 --student wrn_16_1 | wrn_40_1 | wrn_16_2; each with an --out of its own.
# Hardware: one GPU.  Time: up to 9 hours (their figure for R34-R18; an estimate).  Disk: 1 GB.
# Needs: cifar100_teacher.sh --model cifar_resnet34 --out save/models/cifar100_cifar_resnet34.
# Use: sh scripts/baselines/cifar100_dfq.sh [flags of python -m dm_kd.distill, such as --dry-run]
set -eu
cd "$(dirname "$0")/../.."
. scripts/setup_env.sh
find_python
exec "$PYTHON" -m dm_kd.distill --task cifar100 --teacher save/models/cifar100_cifar_resnet34 \
    --student cifar_resnet18 --source dfq --augment none --learning-rate 0.1 --temperature 1 --epochs 200 --steps-per-epoch 400 \
    --lr-schedule cosine --weight-decay 1e-4 --batch-size 256 --out save/student_model/cifar100_dfq_r34_r18 "$@"
