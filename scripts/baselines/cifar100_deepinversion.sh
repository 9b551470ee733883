#!/bin/sh
# CIFAR-100: DeepInversion, 500 images a class out of the pair's teacher, CIFAR-10's preset ("paper": 2,000 iterations of
# 256 images, rate 0.05, batch statistics 10, total variation 2.5e-5). Then: baselines/cifar100_deepinversion_distill.sh
# The published row DeepInv is the adaptive kind: cifar100_adi.sh. Table row: DeepInversion, CIFAR-100.
# Expected top-1: none, this step trains no classifier.
# PAIR=vgg11_r18, w40_2_w16_1, w40_2_w40_1 or w40_2_w16_2 for the other pairs (default: r34_r18).
# Hardware: one GPU.  Time: 5 to 20 hours, by the teacher (an estimate).  Disk: 200 MB.
# Needs: the pair's teacher (cifar100_teacher.sh).
# Use: [PAIR=vgg11_r18] [NGPU=n] sh scripts/baselines/cifar100_deepinversion.sh [flags of python -m dm_kd.synthesize, such as --dry-run]
set -eu
cd "$(dirname "$0")/../.."
. scripts/setup_env.sh
. scripts/cifar100_settings.sh
launch dm_kd.synthesize --task cifar100 --generator deepinversion --teacher save/models/$teacher \
    --images-per-class 500 --batch-size 256 --out syn_dataset/${teacher}_deepinversion "$@"
