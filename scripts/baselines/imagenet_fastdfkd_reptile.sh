#!/bin/sh
# ImageNet: FastDFKD (Reptile, K = 50), ResNet-50 to STUDENT, 400 epochs of 1,000 student steps of 100: the logged run.
# Table row: FastDFKD-50, ImageNet. Expected top-1 (published): R50 68.61, R18 53.45, MobileNetV2 43.02; all after a start from
# a set that was never released, and best epochs; from nothing here,
# and the student draws from the newest 20,000 of the 400,000 images, theirs from all (60 GB: --pool-images 402000).
# STUDENT=resnet18 or mobilenet_v2 for the other students (default: resnet50). Their adversarial
# weight is 0.1, for ResNet-18 1 (scripts/imagenet_settings.sh).
# Hardware: one GPU with 40 GB or more.  Time: 5 to 10 days (an estimate).  Disk: 15 GB (the pool in two checkpoints).
# Needs: ImageNet's validation set.
# Use: [STUDENT=resnet18] sh scripts/baselines/imagenet_fastdfkd_reptile.sh [flags of python -m dm_kd.distill, such as --dry-run]
set -eu
cd "$(dirname "$0")/../.."
. scripts/setup_env.sh
. scripts/imagenet_settings.sh
find_python
exec "$PYTHON" -m dm_kd.distill $pair_flags \
    --source fastdfkd_reptile --adv-dad-weight $adversary --temperature 5 --epochs 400 --steps-per-epoch 1000 --batch-size 100 \
    --learning-rate 0.1 --lr-schedule cosine --weight-decay 1e-4 --checkpoint-seconds 3600 \
    --out save/student_model/imagenet_fastdfkd_reptile_$name "$@"
