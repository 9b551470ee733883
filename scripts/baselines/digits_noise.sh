#!/bin/sh
# Digits: images of noise, the lower line. Then: baselines/digits_real.sh --source syn_dataset/digits_noise
# --out save/student_model/digits_noise
# Table row: noise, Digits. Expected top-1: see the README's table.
# Hardware: 2 CPU cores.  Time: 1 minute.  Disk: 50 MB.
# Use: sh scripts/baselines/digits_noise.sh [flags of python -m dm_kd.synthesize, such as --dry-run]
set -eu
cd "$(dirname "$0")/../.."
. scripts/setup_env.sh
. scripts/digits_settings.sh
find_python
exec "$PYTHON" -m dm_kd.synthesize --task digits --generator noise --images-per-class $rival_images \
    --out syn_dataset/digits_noise "$@"
