#!/bin/sh
# CIFAR-100: FastDFKD (first-order MAML), 200 epochs of 400 student steps of 256.
# Table row: FastDFKD (first-order MAML), CIFAR-100.
# Published top-1, R34-R18 VGG11-R18 W40-2-W16-1 -W40-1 -W16-2: 74.34 67.44 54.02 63.91 65.12.
# Weights by pair: R34 --adv-dad-weight 1.33; VGG11 1.0; WRN --adv-dad-weight 1.1 --ce-target-weight 0.4. K = 10.
# Their cosine ends at 2e-4, ours at 0.
# The pair is R34 to R18 unless flags say another: --teacher save/models/cifar100_vgg11_bn --student cifar_resnet18;
# --teacher save/models/cifar100_wrn_40_2 --student wrn_16_1 | wrn_40_1 | wrn_16_2; each with an --out of its own.
# Hardware: one GPU.  Time: up to 3 hours (their figure for R34-R18; an estimate).  Disk: 1 GB.
# Needs: cifar100_teacher.sh --model cifar_resnet34 --out save/models/cifar100_cifar_resnet34.
# Use: sh scripts/baselines/cifar100_fastdfkd.sh [flags of python -m dm_kd.distill, such as --dry-run]
set -eu
cd "$(dirname "$0")/../.."
. scripts/setup_env.sh
find_python
exec "$PYTHON" -m dm_kd.distill --task cifar100 --teacher save/models/cifar100_cifar_resnet34 \
    --student cifar_resnet18 --source fastdfkd --adv-dad-weight 1.33 --learning-rate 0.2 --temperature 20 --epochs 200 --steps-per-epoch 400 \
    --lr-schedule cosine --weight-decay 1e-4 --batch-size 256 --out save/student_model/cifar100_fastdfkd_r34_r18 "$@"
