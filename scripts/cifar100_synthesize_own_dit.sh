#!/bin/sh
# CIFAR-100: 50,000 labelled images of the small DiT that cifar100_generator.sh trained on the task's
# own real images (not data-free).
# Table row: none of the paper's. Expected top-1: none, this step trains no classifier.
# Hardware: one GPU.  Time: about 10 minutes on an H200.  Disk: 150 MB.
# Hours are estimates from operation counts; nothing was measured on a GPU yet.
# Needs: cifar100_generator.sh.
# Use: [NGPU=n] sh scripts/cifar100_synthesize_own_dit.sh [flags of python -m dm_kd.synthesize, such as --dry-run]
set -eu
cd "$(dirname "$0")/.."
. scripts/setup_env.sh
launch dm_kd.synthesize \
    --task cifar100 --generator dit --weights save/generators/cifar100_dit --guidance-scale 1.5 \
    --guided-channels all --steps 100 --images-per-class 500 --batch-size 1000 \
    --out syn_dataset/cifar100_own_dit "$@"
