#!/bin/sh
# Digits, step 4 by function matching (Beyer et al. 2022, arXiv 2106.05237): every batch mixed with a uniform share
# for both networks, five times the steps of digits_distill.sh. Expected top-1: not measured yet.
# Hardware: 2 CPU cores.  Time: 4 minutes.  Disk: 1 MB.
# Needs: digits_synthesize.sh and digits_teacher.sh.
# Usage: sh scripts/digits_distill_function_matching.sh [flags of python -m dm_kd.distill, such as --dry-run]
set -eu
cd "$(dirname "$0")/.."
. scripts/setup_env.sh
. scripts/digits_settings.sh
launch dm_kd.distill --task digits --source syn_dataset/digits --teacher save/models/digits_cnn_w32 \
    --student cnn_w8 --temperature 4 $recipe --mixup 1 --mix-share 1 --epochs 450 \
    --out save/student_model/digits_function_matching "$@"
