#!/bin/sh
# A whole study: every run, then the report. python -m dm_kd.study --help lists data sets and studies, what each asks,
# its decision rule and its time.
# Usage: sh scripts/study.sh DATASET STUDY [--jobs N] [--seeds 0-2] [--folds 0,1] [--rows A,B] [--threads N] [--record]
#        [--dry-run]    --dry-run prints the commands; the same command continues after an interruption.
set -eu
cd "$(dirname "$0")/.."
. scripts/setup_env.sh
find_python
exec "$PYTHON" -m dm_kd.study "$@"
