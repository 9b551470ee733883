#!/bin/sh
# Digits, step 4: a student (cnn_w8) from synthetic images alone. Expected top-1: the README's table.
# Hardware: 2 CPU cores.  Time: 45 s.  Disk: 1 MB.
# Needs: digits_synthesize.sh and digits_teacher.sh.
# Usage: sh scripts/digits_distill.sh [flags of python -m dm_kd.distill, such as --dry-run]
set -eu
cd "$(dirname "$0")/.."
. scripts/setup_env.sh
. scripts/digits_settings.sh
launch dm_kd.distill --task digits --source syn_dataset/digits --teacher save/models/digits_cnn_w32 \
    --student cnn_w8 --temperature 4 $recipe --out save/student_model/digits "$@"
