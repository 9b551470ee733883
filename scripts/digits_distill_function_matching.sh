#!/bin/sh
# Digits, step 4 by function matching (Beyer et al. 2022, arXiv 2106.05237): every batch mixed with a
# uniform share (mixup with Beta(1, 1)) before both networks, and five times the steps of
# digits_distill.sh on a cosine. Expected top-1: not measured yet.
# Hardware: 2 CPU cores.  Time: 4 minutes.  Disk: 1 MB.
# Use: sh scripts/digits_distill_function_matching.sh [flags of python -m dm_kd.distill, such as --dry-run]
set -eu
cd "$(dirname "$0")/.."
. scripts/setup_env.sh
. scripts/digits_settings.sh
find_python
exec "$PYTHON" -m dm_kd.distill $distill_flags --mixup 1 --mix-share 1 --epochs 450 --source syn_dataset/digits --teacher save/models/digits_cnn_w32 --out save/student_model/digits_function_matching "$@"
