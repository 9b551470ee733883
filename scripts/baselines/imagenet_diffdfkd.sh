#!/bin/sh
# ImageNet: DiffDFKD, 140 images a class of DiT-XL/2 (theirs: Stable Diffusion 1.5 and class names; ours knows the
# classes), steered at each of 50 steps by ResNet-50's cross-entropy and batch statistics, guidance 3, latent cutmix.
# The gradient has unit length, theirs the loss's; the published code cannot run. The number of images is ours, as many as
# DeepInversion's row. Then: baselines/imagenet_diffdfkd_distill.sh
# For the adversarial term --student save/student_model/imagenet_diffdfkd_resnet50 and another --out: images on which
# that student differs from the teacher.
# Table row: DiffDFKD, ImageNet. Expected top-1: none, this step trains no classifier.
# Hardware: one GPU with 80 GB, or several with --rank.  Time: 2 to 5 days on an H200 (an estimate).  Disk: 17 GB.
# Needs: DiT-XL/2's and the teacher's weights, downloaded.
# Use: [NGPU=n] sh scripts/baselines/imagenet_diffdfkd.sh [flags of python -m dm_kd.synthesize, such as --dry-run]
set -eu
cd "$(dirname "$0")/../.."
. scripts/setup_env.sh
launch dm_kd.synthesize --task imagenet --generator dit --weights facebook/DiT-XL-2-256 --vae stabilityai/sd-vae-ft-mse \
    --guidance-scale 3 --guided-channels all --steps 50 --teacher torchvision:resnet50 --teacher-guidance 1 --latent-cutmix \
    --images-per-class 140 --batch-size 20 --out syn_dataset/imagenet_diffdfkd "$@"
