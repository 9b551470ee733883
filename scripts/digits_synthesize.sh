#!/bin/sh
# Digits, step 3: 200 synthetic images per class.
# Hardware: 2 CPU cores.  Time: 1 minute.  Disk: 9 MB.
# Needs: digits_generator.sh.
# Usage: sh scripts/digits_synthesize.sh [flags of python -m dm_kd.synthesize, such as --dry-run]
set -eu
cd "$(dirname "$0")/.."
. scripts/setup_env.sh
. scripts/digits_settings.sh
launch dm_kd.synthesize --task digits $dit --steps 100 --images-per-class 200 --out syn_dataset/digits "$@"
