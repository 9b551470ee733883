#!/bin/sh
# Fashion-MNIST: distillation on the real training images; --images-per-class 1000 --subset-seed 0 for as many,
# drawn at random, as a synthetic set has. --images-per-class 1207 --subset-seed 0 for the row coreset: as many
# (784 bytes each) as fit into the 9,468,688 bytes of the generator's weights (fashion_mnist_generator.sh's
# dit.safetensors), 12,077 of 60,000.
# Table rows: KD on real data, random real images, coreset of the generator's bytes, Fashion-MNIST. Expected top-1: see the README's table.
# Hardware: 2 CPU cores.  Time: 10 minutes.  Disk: 10 MB.
# Needs: baselines/fashion_mnist_teacher.sh; with PAIR=wrn (WRN-16-2 to WRN-16-1) fashion_mnist_teacher.sh.
# Use: [PAIR=wrn] sh scripts/baselines/fashion_mnist_real.sh [flags of python -m dm_kd.distill, such as --seed 1 or --dry-run]
set -eu
cd "$(dirname "$0")/../.."
. scripts/setup_env.sh
. scripts/fashion_mnist_settings.sh
find_python
exec "$PYTHON" -m dm_kd.distill $rival_flags --source real \
    --out save/student_model/fashion_mnist_real$pair "$@"
