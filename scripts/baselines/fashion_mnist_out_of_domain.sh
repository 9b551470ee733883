#!/bin/sh
# Fashion-MNIST: distillation on real images of other classes: the 1,437 digits of scikit-learn, resized. What
# Places365 is to ImageNet. (Patches of a photograph: fashion_mnist_one_image.sh.)
# Table row: out-of-domain real images, Fashion-MNIST. Expected top-1: see the README's table.
# Hardware: 2 CPU cores.  Time: 10 minutes.  Disk: 5 MB.
# Needs: baselines/fashion_mnist_teacher.sh; with PAIR=wrn fashion_mnist_teacher.sh.
# Use: [PAIR=wrn] sh scripts/baselines/fashion_mnist_out_of_domain.sh [flags of python -m dm_kd.distill, such as --seed 1 or --dry-run]
set -eu
cd "$(dirname "$0")/../.."
. scripts/setup_env.sh
. scripts/fashion_mnist_settings.sh
find_python
exec "$PYTHON" -m dm_kd.distill $rival_flags --source real:digits \
    --out save/student_model/fashion_mnist_out_of_domain$pair "$@"
