#!/bin/sh
# Digits: a small conditional GAN on the same real images, for digits_baselines.sh gan_set.
# Hardware: one CPU core.  Time: 2 minutes.  Disk: 5 MB.
# Usage: sh scripts/digits_gan.sh [flags of python -m dm_kd.train_generator, such as --dry-run]
set -eu
cd "$(dirname "$0")/.."
. scripts/setup_env.sh
launch dm_kd.train_generator --kind gan --task digits --out save/generators/digits_gan "$@"
