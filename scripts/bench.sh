#!/bin/sh
# How fast distilling and sampling are beside other loops, interleaved in one run, after their results were compared.
# Prints tables of ratios and writes save/bench/NAME.json.
# Hardware: 2 CPU cores, or a GPU.  Time: about 2 minutes.  Disk: 80 MB.
# Usage: sh scripts/bench.sh [distillation|synthesis] [flags of python -m dm_kd.bench, such as --threads 1 or --dry-run]
set -eu
cd "$(dirname "$0")/.."
. scripts/setup_env.sh
case "${1:-}" in
distillation | synthesis) launch dm_kd.bench "$@" ;;
esac
for name in distillation synthesis; do
    (launch dm_kd.bench "$name" "$@")
done
