#!/bin/sh
# How fast sampling and distilling are, each against re-stated rivals, interleaved in one run, after
# the results were compared; a table, and JSON in save/bench.
# Hardware: 2 CPU cores, or a GPU.  Time: 12 minutes; synthesis under 5 (8 on a GPU).  Disk: 80 MB.
# Use: sh scripts/bench.sh [synthesis|distillation] [flags]; no name = both.
#      distillation --parts small,large,loader,gpu chooses; gpu needs no GPU, but is slow without one
set -eu
cd "$(dirname "$0")/.."
. scripts/setup_env.sh
find_python
names="synthesis distillation"
case "${1:-}" in
    synthesis | distillation) names=$1; shift ;;
esac
for name in $names; do
    "$PYTHON" -m "dm_kd.bench.$name" "$@"
done
