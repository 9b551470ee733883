#!/bin/sh
# Digits, step 3: 200 synthetic images per class.
# Table row: the README's, with the steps after it. Expected top-1: none, this step trains no classifier.
# Hardware: 2 CPU cores.  Time: 1 minute.  Disk: 9 MB.
# Use: sh scripts/digits_synthesize.sh [flags of python -m dm_kd.synthesize, such as --fold 1 or --dry-run]
set -eu
cd "$(dirname "$0")/.."
. scripts/setup_env.sh
. scripts/digits_settings.sh
find_python
exec "$PYTHON" -m dm_kd.synthesize $synthesize_flags --weights save/generators/digits_dit --out syn_dataset/digits "$@"
