#!/bin/sh
# Fashion-MNIST: DeepInversion, 1,000 images a class out of the teacher. Then:
# baselines/fashion_mnist_real.sh --source syn_dataset/fashion_mnist_deepinversion --out save/student_model/fashion_mnist_deepinversion
# Table row: DeepInversion, Fashion-MNIST. Expected top-1: see the README's table. Settings: those of digits
# with 250 iterations, not 500 (scripts/fashion_mnist_settings.sh: the table's minutes).
# Hardware: 2 CPU cores.  Time: 20 minutes of one core; PAIR=wrn several times as long (estimates).  Disk: 20 MB.
# Needs: baselines/fashion_mnist_teacher.sh; with PAIR=wrn (WRN-16-2 to WRN-16-1) fashion_mnist_teacher.sh.
# Use: [PAIR=wrn] sh scripts/baselines/fashion_mnist_deepinversion.sh [flags of python -m dm_kd.synthesize, such as --dry-run]
set -eu
cd "$(dirname "$0")/../.."
. scripts/setup_env.sh
. scripts/fashion_mnist_settings.sh
find_python
exec "$PYTHON" -m dm_kd.synthesize --task fashion_mnist $inversion_flags \
    --teacher $rival_teacher --images-per-class 1000 \
    --out syn_dataset/fashion_mnist_deepinversion$pair "$@"
