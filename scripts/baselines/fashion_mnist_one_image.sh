#!/bin/sh
# Fashion-MNIST: 10,000 augmented patches of one photograph (scikit-learn's china.jpg, in grey);
# then: baselines/fashion_mnist_real.sh --source syn_dataset/fashion_mnist_one_image
# --out save/student_model/fashion_mnist_one_image (One-Image's own CutMix: --mixup 0 --cutmix 0.25 --mix-share 1)
# Table row: One-Image, Fashion-MNIST. Expected top-1: see the README's table.
# Hardware: one CPU core.  Time: 2 minutes.  Disk: 50 MB.
# Use: sh scripts/baselines/fashion_mnist_one_image.sh [flags of python -m dm_kd.synthesize, such as --picture FILE or --dry-run]
set -eu
cd "$(dirname "$0")/../.."
. scripts/setup_env.sh
find_python
exec "$PYTHON" -m dm_kd.synthesize --task fashion_mnist --generator one_image --images-per-class 1000 \
    --out syn_dataset/fashion_mnist_one_image "$@"
