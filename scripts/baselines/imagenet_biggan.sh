#!/bin/sh
# ImageNet: 215 images a class of BigGAN-deep-256, truncation 1. No code of the published row is public: the number of
# images is known, the truncation is not. Then: baselines/imagenet_biggan_distill.sh
# Table row: BigGAN, ImageNet. Expected top-1: none, this step trains no classifier.
# Hardware: one GPU.  Time: 2 hours (an estimate).  Disk: 22 GB.
# Needs: config.json and pytorch_model.bin of BigGAN-deep-256 (pytorch-pretrained-biggan's) in save/generators/biggan-deep-256.
# Use: [NGPU=n] sh scripts/baselines/imagenet_biggan.sh [flags of python -m dm_kd.synthesize, such as --truncation 0.5 or --dry-run]
set -eu
cd "$(dirname "$0")/../.."
. scripts/setup_env.sh
launch dm_kd.synthesize --task imagenet --generator biggan --weights save/generators/biggan-deep-256 --truncation 1 \
    --images-per-class 215 --batch-size 100 --out syn_dataset/imagenet_biggan "$@"
