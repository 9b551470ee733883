#!/bin/sh
# CIFAR-100: NAYER (one-hot class embeddings), 200 epochs of 400 student steps of 512.
# Table row: NAYER (one-hot class embeddings), CIFAR-100.
# Expected top-1: no number found in text.
# A call makes 2 batches of 400 images in 40 updates each, one of the 20 in the warm-up 10; all 240,000 are kept.
# The settings of its programs, 220 epochs with the warm-up; their cosine ends at 2e-4, ours at 0.
# Class names in place of one-hot vectors, as theirs: --label-embeddings openai/clip-vit-base-patch32.
# PAIR=vgg11_r18, w40_2_w16_1, w40_2_w40_1 or w40_2_w16_2 for the other pairs (default: r34_r18).
# Hardware: one GPU.  Time: up to 4 hours (their figure for R34-R18; an estimate).  Disk: 2 GB (the pool in two checkpoints).
# Needs: the pair's teacher, cifar100_teacher.sh --model cifar_resnet34 --out save/models/cifar100_cifar_resnet34.
# Use: [PAIR=vgg11_r18] sh scripts/baselines/cifar100_nayer.sh [flags of python -m dm_kd.distill, such as --dry-run]
set -eu
cd "$(dirname "$0")/../.."
. scripts/setup_env.sh
. scripts/cifar100_settings.sh
find_python
exec "$PYTHON" -m dm_kd.distill $pair_flags \
    --source nayer --learning-rate 0.2 --temperature 20 $schedule --batch-size 512 \
    --out save/student_model/cifar100_nayer_$pair "$@"
