#!/bin/sh
# Fashion-MNIST: 2,000 images of the small DiT (theirs: Stable Diffusion 1.5), steered at each step by the teacher's
# cross-entropy and batch statistics, with latent cutmix; then: baselines/fashion_mnist_real.sh --source syn_dataset/fashion_mnist_diffdfkd
# --out save/student_model/fashion_mnist_diffdfkd
# For the adversarial term --teacher-guidance 1 --student save/student_model/fashion_mnist_diffdfkd --out syn_dataset/fashion_mnist_diffdfkd_adv: images on which
# that student differs from the teacher. (Theirs trains one between the batches; the published code cannot run.)
# Table row: DiffDFKD, Fashion-MNIST. Expected top-1: see the README's table.
# Hardware: 2 CPU cores.  Time: 20 minutes of one core (10,000 images: 100); PAIR=wrn longer (estimates).  Disk: 50 MB.
# Needs: fashion_mnist_generator.sh; baselines/fashion_mnist_teacher.sh; with PAIR=wrn fashion_mnist_teacher.sh.
# Use: [PAIR=wrn] sh scripts/baselines/fashion_mnist_diffdfkd.sh [flags of python -m dm_kd.synthesize, such as --teacher-guidance 0.5 or --dry-run]
set -eu
cd "$(dirname "$0")/../.."
. scripts/setup_env.sh
. scripts/fashion_mnist_settings.sh
find_python
exec "$PYTHON" -m dm_kd.synthesize $synthesize_flags --weights "$generator" --teacher $rival_teacher \
    $guidance_flags --images-per-class $guided_images --out syn_dataset/fashion_mnist_diffdfkd$pair "$@"
