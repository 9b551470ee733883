#!/bin/sh
# Question: does the ImageNet path work at its real sizes where there are no weights and no ImageNet?
# DiT-XL/2 with random weights, as an original .pt and as a diffusers folder, writes two 256 x 256 PNGs
# with 2 steps each; ResNet-18 to ResNet-18 at 224 trains one epoch on an original-style list of 16
# images and on the set just made; a folder per WordNet id is judged. The real commands, on generated
# files, each in a process of its own. Shapes, formats and memory are what this shows: no accuracy.
# Rule: it works where every command ends with 0 and both layouts give the same PNGs.
# Hardware: 2 CPU cores, 8 GB of memory.  Time: about 5 minutes.  Disk: 7 GB, removed at the end.
# Needs: pip install diffusers.
# Use: sh scripts/sweeps/imagenet_path.sh [flags of python -m dm_kd.bench.imagenet_path, such as --dry-run]
set -eu
cd "$(dirname "$0")/../.."
. scripts/setup_env.sh
find_python
exec "$PYTHON" -m dm_kd.bench.imagenet_path --out save/results "$@"
