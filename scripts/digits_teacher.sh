#!/bin/sh
# Digits, step 1: a teacher (cnn_w32) on the real images of 11 of the 14 writers. Expected top-1: about 98.
# Hardware: 2 CPU cores.  Time: 75 s.  Disk: 2 MB.
# Usage: sh scripts/digits_teacher.sh [flags of python -m dm_kd.train_teacher, such as --dry-run]
set -eu
cd "$(dirname "$0")/.."
. scripts/setup_env.sh
. scripts/digits_settings.sh
launch dm_kd.train_teacher --task digits --model cnn_w32 $recipe --out save/models/digits_cnn_w32 "$@"
