#!/bin/sh
# CIFAR-100: DiffDFKD, 500 images a class of a DiT steered at each of 50 steps by the pair's teacher (cross-entropy and
# batch statistics), guidance 3, latent cutmix. Then: baselines/cifar100_diffdfkd_distill.sh
# Theirs: Stable Diffusion 1.5 and class names, and CIFAR-10. Here: the small DiT that cifar100_generator.sh trains on the
# task's own images; and the gradient has unit length, theirs the loss's. The published code cannot run.
# For the adversarial term --student save/student_model/cifar100_diffdfkd_PAIR and another --out: images on which that
# student differs from the teacher.
# Table row: DiffDFKD, CIFAR-100. Expected top-1: none, this step trains no classifier.
# PAIR=vgg11_r18, w40_2_w16_1, w40_2_w40_1 or w40_2_w16_2 for the other pairs (default: r34_r18).
# Hardware: one GPU.  Time: 1 hour on an H200 (an estimate).  Disk: 200 MB.
# Needs: cifar100_generator.sh; the pair's teacher (cifar100_teacher.sh).
# Use: [PAIR=vgg11_r18] [NGPU=n] sh scripts/baselines/cifar100_diffdfkd.sh [flags of python -m dm_kd.synthesize, such as --dry-run]
set -eu
cd "$(dirname "$0")/../.."
. scripts/setup_env.sh
. scripts/cifar100_settings.sh
launch dm_kd.synthesize --task cifar100 --generator dit --weights save/generators/cifar100_dit --guidance-scale 3 \
    --guided-channels all --steps 50 --teacher save/models/$teacher --teacher-guidance 1 --latent-cutmix \
    --images-per-class 500 --batch-size 500 --out syn_dataset/${teacher}_diffdfkd "$@"
