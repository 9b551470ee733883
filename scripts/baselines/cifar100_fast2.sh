#!/bin/sh
# CIFAR-100: FastDFKD (first-order MAML), 2 inner steps, 200 epochs of 400 student steps of 256.
# Table row: FastDFKD (first-order MAML), 2 inner steps, CIFAR-100.
# Expected top-1 (published), R34-R18 VGG11-R18 W40-2-W16-1 -W40-1 -W16-2: 69.76 62.83 41.77 53.15 57.08.
# Weights by pair: scripts/cifar100_settings.sh. The row Fast-2: K = 2 and its rates; otherwise cifar100_fastdfkd.sh.
# Their cosine ends at 2e-4, ours at 0.
# PAIR=vgg11_r18, w40_2_w16_1, w40_2_w40_1 or w40_2_w16_2 for the other pairs (default: r34_r18).
# Hardware: one GPU.  Time: up to 3 hours (their figure for R34-R18; an estimate).  Disk: 1 GB.
# Needs: the pair's teacher, cifar100_teacher.sh --model cifar_resnet34 --out save/models/cifar100_cifar_resnet34.
# Use: [PAIR=vgg11_r18] sh scripts/baselines/cifar100_fast2.sh [flags of python -m dm_kd.distill, such as --dry-run]
set -eu
cd "$(dirname "$0")/../.."
. scripts/setup_env.sh
. scripts/cifar100_settings.sh
find_python
exec "$PYTHON" -m dm_kd.distill $pair_flags \
    --source fastdfkd --inner-steps 2 --generator-rate 5e-3 --latent-rate 0.015 \
    --adv-dad-weight $adversary --ce-target-weight $sure --learning-rate 0.2 --temperature 20 $schedule \
    --out save/student_model/cifar100_fast2_$pair "$@"
