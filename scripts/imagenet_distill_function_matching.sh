#!/bin/sh
# ImageNet, step 2 by function matching (Beyer et al. 2022, arXiv 2106.05237): teacher and student see
# the same strongly cropped view, mixed with a uniform share (mixup with Beta(1, 1)), over a long
# cosine schedule, no labels. ResNet-18 to ResNet-50, 600 epochs of the 200K set.
# Expected top-1: no published number on synthetic images. The optimiser is DM-KD's SGD at batch 256,
# not the paper's Adam at 4,096, so that only views and schedule differ from imagenet_distill_rn18_rn50.sh.
# Hardware: one GPU with 16 GB or more, or NGPU=8.  Time: 6 to 10 hours on an H200.  Disk: 40 GB of packed
# images and 8 GB of packed validation images.
# Hours are estimates from operation counts; nothing was measured on a GPU yet.
# Needs: syn_dataset/imagenet_s2_t100 (imagenet_synthesize.sh) and ImageNet's validation set.
# Use: [NGPU=n] [MAX_RESTARTS=n] sh scripts/imagenet_distill_function_matching.sh [flags of python -m dm_kd.distill]
set -eu
cd "$(dirname "$0")/.."
. scripts/setup_env.sh
launch dm_kd.distill \
    --task imagenet --source syn_dataset/imagenet_s2_t100 \
    --teacher torchvision:resnet18 --student torchvision:resnet50 --temperature 10 --batch-size 256 \
    --mixup 1 --lr-schedule cosine --warmup-epochs 5 --learning-rate 0.1 --epochs 600 --weight-decay 1e-4 \
    --out save/student_model/imagenet_function_matching "$@"
