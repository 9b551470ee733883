#!/bin/sh
# Digits: a small conditional GAN on the same real images as digits_generator.sh's DiT (not data-free);
# then: python -m dm_kd.synthesize --task digits --generator gan --weights save/generators/digits_gan
# --truncation 0.7 --out syn_dataset/digits_gan
# Table row: none of the paper's. Expected top-1: none, this step trains no classifier.
# Hardware: one CPU core.  Time: 2 minutes.  Disk: 5 MB.
# Use: sh scripts/digits_gan.sh [flags of python -m dm_kd.train_generator, such as --fold 1 or --dry-run]
set -eu
cd "$(dirname "$0")/.."
. scripts/setup_env.sh
find_python
exec "$PYTHON" -m dm_kd.train_generator --kind gan --task digits --out save/generators/digits_gan "$@"
