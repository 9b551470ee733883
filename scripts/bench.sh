#!/bin/sh
# How fast sampling, distilling and the rivals' loops are, each against re-stated rivals, interleaved in one run, after
# the results were compared; a table, and JSON in save/bench.
# Expected top-1: none, this measures speed.
# Hardware: 2 CPU cores, or a GPU.  Time: 20 minutes; synthesis under 5 (8 on a GPU).  Disk: 80 MB.
# Use: sh scripts/bench.sh [synthesis|distillation|rivals] [flags]; no name = all.
#      distillation --parts small,large,loader,gpu chooses; gpu needs no GPU, but is slow without one;
#      synthesis --full-size small runs its GPU part too, at a size for any processor;
#      rivals --methods dafl,fastdfkd chooses
set -eu
cd "$(dirname "$0")/.."
. scripts/setup_env.sh
find_python
names="synthesis distillation rivals"
case "${1:-}" in
    synthesis | distillation | rivals) names=$1; shift ;;
esac
for name in $names; do
    "$PYTHON" -m "dm_kd.bench.$name" "$@"
done
