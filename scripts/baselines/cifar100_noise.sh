#!/bin/sh
# CIFAR-100: 50,000 images of noise, the lower line. Then: baselines/cifar100_noise_distill.sh
# Table row: noise, CIFAR-100. Expected top-1: none, this step trains no classifier.
# Hardware: one CPU core.  Time: 5 minutes (an estimate).  Disk: 200 MB.
# Use: [NGPU=n] sh scripts/baselines/cifar100_noise.sh [flags of python -m dm_kd.synthesize, such as --dry-run]
set -eu
cd "$(dirname "$0")/../.."
. scripts/setup_env.sh
launch dm_kd.synthesize --task cifar100 --generator noise --images-per-class 500 --batch-size 1000 \
    --out syn_dataset/cifar100_noise "$@"
