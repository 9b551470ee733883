#!/bin/sh
# A whole study: every run, then the report. The studies, what they ask, their decision rules and times are in
# dm_kd/studies.py. The same command resumes a study; --dry-run prints its commands, to copy and edit.
# Hardware: 2 CPU cores for digits and fashion_mnist, else one GPU.  Time: 45 minutes to days.  Disk: 1 GB and more.
# Usage: sh scripts/study.sh DATASET STUDY [--jobs N] [--seeds 0,1] [--rows A,B] [--record] [--dry-run]
#        --help lists the data sets and their studies
set -eu
cd "$(dirname "$0")/.."
. scripts/setup_env.sh
find_python
exec "$PYTHON" -m dm_kd.study "$@"
