#!/bin/sh
# Digits: 1,000 augmented patches of one photograph (scikit-learn's china.jpg, in grey);
# then: baselines/digits_real.sh --source syn_dataset/digits_one_image
# --out save/student_model/digits_one_image (One-Image's own CutMix: --mixup 0 --cutmix 0.25 --mix-share 1)
# Table row: One-Image, Digits. Expected top-1: see the README's table.
# Hardware: one CPU core.  Time: 1 minute.  Disk: 10 MB.
# Use: sh scripts/baselines/digits_one_image.sh [flags of python -m dm_kd.synthesize, such as --picture FILE or --dry-run]
set -eu
cd "$(dirname "$0")/../.."
. scripts/setup_env.sh
. scripts/digits_settings.sh
find_python
exec "$PYTHON" -m dm_kd.synthesize --task digits --generator one_image --images-per-class $rival_images \
    --out syn_dataset/digits_one_image "$@"
