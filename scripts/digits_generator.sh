#!/bin/sh
# Digits, step 2: a small DiT on the same real images.
# Hardware: 2 CPU cores.  Time: 2 minutes.  Disk: 30 MB.
# Usage: sh scripts/digits_generator.sh [flags of python -m dm_kd.train_generator, such as --dry-run]
set -eu
cd "$(dirname "$0")/.."
. scripts/setup_env.sh
launch dm_kd.train_generator --task digits --steps 2000 --out save/generators/digits_dit "$@"
