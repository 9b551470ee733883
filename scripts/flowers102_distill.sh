#!/bin/sh
# Flowers-102: ResNet-18 to ResNet-50 on the synthetic ImageNet set. The loss needs no labels, so all its classes serve.
# Table row: DM-KD, Flowers-102. Published top-1: 85.4 (its epochs are not published: 200 is ours).
# Hardware: one GPU with 16 GB, or NGPU=8.  Time: 2 to 4 hours on an H200 (an estimate).  Disk: 40 GB.
# Needs: imagenet_synthesize.sh and flowers102_teacher.sh.
# Usage: [NGPU=8] sh scripts/flowers102_distill.sh [flags of python -m dm_kd.distill, such as --dry-run]
set -eu
cd "$(dirname "$0")/.."
. scripts/setup_env.sh
launch dm_kd.distill \
    --task flowers102 --source syn_dataset/imagenet_s2_t100 --teacher save/models/flowers102_resnet18 \
    --student torchvision:resnet50 --temperature 10 --epochs 200 --lr-decay-epochs 60,120,180 \
    --batch-size 256 --learning-rate 0.1 --weight-decay 1e-4 --out save/student_model/flowers102_rn18_rn50 "$@"
