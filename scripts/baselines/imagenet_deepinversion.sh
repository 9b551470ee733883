#!/bin/sh
# ImageNet: DeepInversion-2k, 140 images a class out of ResNet-50. Then:
# baselines/imagenet_deepinversion_distill.sh
# Table row: DeepInv-2k, ImageNet. Expected top-1: none, this step trains no classifier.
# Hardware: one GPU with 40 GB or more, or several machines with --rank.  Time: 10 days (an estimate).  Disk: 20 GB.
# Needs: the teacher's weights (downloaded).
# Use: [NGPU=n] sh scripts/baselines/imagenet_deepinversion.sh [flags of python -m dm_kd.synthesize, such as --dry-run]
set -eu
cd "$(dirname "$0")/../.."
. scripts/setup_env.sh
launch dm_kd.synthesize --task imagenet --generator deepinversion --teacher torchvision:resnet50 \
    --images-per-class 140 --batch-size 84 --out syn_dataset/imagenet_deepinversion "$@"
