#!/bin/sh
# Digits: 1,000 images of the small DiT (theirs: Stable Diffusion 1.5), steered at each step by the teacher's
# cross-entropy and batch statistics, with latent cutmix; then: baselines/digits_real.sh --source syn_dataset/digits_diffdfkd
# --out save/student_model/digits_diffdfkd
# For the adversarial term --teacher-guidance 1 --student save/student_model/digits_diffdfkd --out syn_dataset/digits_diffdfkd_adv: images on which
# that student differs from the teacher. (Theirs trains one between the batches; the published code cannot run.)
# Table row: DiffDFKD, Digits. Expected top-1: see the README's table.
# Hardware: 2 CPU cores.  Time: 4 minutes.  Disk: 10 MB.
# Needs: digits_generator.sh; digits_teacher.sh.
# Use: sh scripts/baselines/digits_diffdfkd.sh [flags of python -m dm_kd.synthesize, such as --teacher-guidance 0.5 or --dry-run]
set -eu
cd "$(dirname "$0")/../.."
. scripts/setup_env.sh
. scripts/digits_settings.sh
find_python
exec "$PYTHON" -m dm_kd.synthesize $synthesize_flags --weights save/generators/digits_dit --teacher save/models/digits_cnn_w32 \
    $guidance_flags --images-per-class $rival_images --out syn_dataset/digits_diffdfkd "$@"
