#!/bin/sh
# CIFAR-100: FastDFKD (first-order MAML), 5 inner steps, 200 epochs of 400 student steps of 256.
# Table row: FastDFKD (first-order MAML), 5 inner steps, CIFAR-100.
# Expected top-1 (published), R34-R18 VGG11-R18 W40-2-W16-1 -W40-1 -W16-2: 72.82 65.28 52.90 61.80 63.83.
# Weights by pair: scripts/cifar100_settings.sh. The row Fast-5: K = 5 and its rates; otherwise cifar100_fastdfkd.sh.
# Their cosine ends at 2e-4, ours at 0.
# PAIR=vgg11_r18, w40_2_w16_1, w40_2_w40_1 or w40_2_w16_2 for the other pairs (default: r34_r18).
# Hardware: one GPU.  Time: up to 3 hours (their figure for R34-R18; an estimate).  Disk: 1 GB.
# Needs: the pair's teacher, cifar100_teacher.sh --model cifar_resnet34 --out save/models/cifar100_cifar_resnet34.
# Use: [PAIR=vgg11_r18] sh scripts/baselines/cifar100_fast5.sh [flags of python -m dm_kd.distill, such as --dry-run]
set -eu
cd "$(dirname "$0")/../.."
. scripts/setup_env.sh
. scripts/cifar100_settings.sh
find_python
exec "$PYTHON" -m dm_kd.distill $pair_flags \
    --source fastdfkd --inner-steps 5 --generator-rate 3e-3 --latent-rate 0.01 \
    --adv-dad-weight $adversary --ce-target-weight $sure --learning-rate 0.2 --temperature 20 $schedule \
    --out save/student_model/cifar100_fast5_$pair "$@"
