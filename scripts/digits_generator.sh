#!/bin/sh
# Digits, step 2: a small DiT on the same real images.
# Table row: the README's, with the steps after it. Expected top-1: none, this step trains no classifier.
# Hardware: 2 CPU cores.  Time: 2 minutes.  Disk: 30 MB.
# Use: sh scripts/digits_generator.sh [flags of python -m dm_kd.train_generator, such as --fold 1 or --dry-run]
set -eu
cd "$(dirname "$0")/.."
. scripts/setup_env.sh
. scripts/digits_settings.sh
find_python
exec "$PYTHON" -m dm_kd.train_generator $generator_flags --out save/generators/digits_dit "$@"
