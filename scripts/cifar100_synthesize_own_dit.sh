#!/bin/sh
# CIFAR-100: 50,000 labelled images from the small DiT of cifar100_generator.sh (not data-free). Distil with
# cifar100_distill_*.sh --source syn_dataset/cifar100_own_dit and its own --out. No row of the paper's.
# Hardware: one GPU.  Time: 10 minutes on an H200 (an estimate).  Disk: 150 MB.
# Usage: [NGPU=8] sh scripts/cifar100_synthesize_own_dit.sh [flags of python -m dm_kd.synthesize, such as --dry-run]
set -eu
cd "$(dirname "$0")/.."
. scripts/setup_env.sh
launch dm_kd.synthesize \
    --task cifar100 --generator dit --weights save/generators/cifar100_dit --guidance-scale 1.5 \
    --guided-channels all --steps 100 --images-per-class 500 --batch-size 1000 \
    --out syn_dataset/cifar100_own_dit "$@"
