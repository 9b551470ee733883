#!/bin/sh
# ImageNet: One-Image, 200,000 patches of 256 x 256 of one picture (theirs is declared unlicensed, so any of yours);
# --images-per-class 1281 for as many as published (140 GB).
# Then, their recipe as far as it is the same loop: distill --task imagenet --source syn_dataset/imagenet_one_image
# --teacher torchvision:resnet18 --student torchvision:resnet50 --optimizer adamw --learning-rate 0.01 --weight-decay 5e-4
# --temperature 8 --cutmix 1 --epochs 200 --lr-schedule cosine --batch-size 512 --out save/student_model/imagenet_one_image
# (no colour jitter, grey or solarize here; their loss lacks the factor temperature squared, theirs is 512 per GPU).
# Table row: One-Image, ImageNet. Expected top-1 (published): R50 66.20 (from R18; 55.5 from R50).
# Hardware: 16 CPU cores; a GPU for the student.  Time: 3 hours on one core, less with --rank (an estimate).  Disk: 22 GB.
# Use: [NGPU=n] sh scripts/baselines/imagenet_one_image.sh [flags of python -m dm_kd.synthesize, such as --picture FILE or --dry-run]
set -eu
cd "$(dirname "$0")/../.."
. scripts/setup_env.sh
launch dm_kd.synthesize --task imagenet --generator one_image --images-per-class 200 --batch-size 1000 \
    --out syn_dataset/imagenet_one_image "$@"
