#!/bin/sh
# CIFAR-100: the other methods' rows of the table. METHOD_set makes the images that METHOD learns from.
# Usage: [NGPU=8] sh scripts/cifar100_baselines.sh METHOD [PAIR] [flags of the command it starts, such as --dry-run]
#   PAIR is r34_r18 (default), vgg11_r18, w40_2_w16_1, w40_2_w40_1 or w40_2_w16_2.
#
# METHOD             published top-1 of the five pairs, in that order
# teacher            78.05 71.32 75.83 75.83 75.83
# alone              77.10 77.10 65.31 72.19 73.56: the student on real images and labels
# real               77.87 75.07 64.06 68.58 70.79: KD on real images, suspect since below alone; ours should be higher
# dafl               74.47 54.16 20.88 42.83 43.70
# zskt               67.74 54.31 36.66 53.60 54.59
# dfq                77.01 66.21 51.27 54.43 64.79
# adi                61.32 54.13 53.77 61.33 61.34: adaptive DeepInversion, published as DeepInv
# cmi                77.04 70.56 57.91 68.88 68.75
# fast2 fast5        69.76 62.83 41.77 53.15 57.08 and 72.82 65.28 52.90 61.80 63.83
# fastdfkd           74.34 67.44 54.02 63.91 65.12
# one_image(_set)    74.56 68.51 34.62 52.39 54.71
# no published number: fastdfkd_reptile, fast_sequential, nayer, diffdfkd(_set), deepinversion(_set),
#                    noise(_set), out_of_domain (Places365)
#
# Differences from the published recipes (Fast-Datafree's unless said):
# alone, teacher     its rate falls to a fifth at 120, 150 and 180, ours to a tenth
# real               its loss is KD + 0.1 x cross-entropy, ours 0.9 x KD + 0.1 x cross-entropy
# dafl zskt dfq cmi adi fast* nayer: its cosine ends at 2e-4, ours at 0 (as in CMI's own program)
# dafl zskt dfq      temperature 1, since their programs ignore --T; it gives DAFL the teacher as the student
# dfq                CMI's script for r34_r18 has --learning-rate 0.05
# adi                2,000 iterations, as the row's name says; its script has 1,000. Best iterate, not the last
# cmi                500 steps, as the row's name says; its script has 200. It starts from 50,000 inverted
#                    images, and for some pairs takes 40 epochs of 2,000 steps; we start from nothing
# nayer              one-hot class embeddings, its own are CLIP vectors
# one_image          DM-KD's recipe; its own for other pairs is Adam at 1e-3, 1,000 epochs of 512, temperature 8, CutMix
# deepinversion      CIFAR-10's preset; the authors' student was never released
# diffdfkd           the small DiT of cifar100_generator.sh in place of Stable Diffusion 1.5 and class names; a gradient
#                    of unit length, not the loss's; its public recipe is for CIFAR-10. For the adversarial term:
#                    diffdfkd_set --student save/student_model/cifar100_diffdfkd_PAIR and its own --out
#
# Hardware: one GPU.  Time, up to (their figures for r34_r18): zskt 2 hours, fast* 3, dafl nayer 4, dfq 9, adi 42 and
# cmi 19 with half the iterations; the others 1 to 2 (estimates), deepinversion_set 5 to 20.
# Disk: 1 GB; nayer 2 GB, out_of_domain 6 GB.
# Needs: the pair's teacher; CIFAR-100 in true_dataset/; out_of_domain: true_dataset/places365.
set -eu
cd "$(dirname "$0")/.."
. scripts/setup_env.sh
method=${1:-} pair=r34_r18
if [ $# -gt 0 ]; then shift; fi
case ${1:-} in '' | -*) ;; *) pair=$1; shift ;; esac

# adv, target: FastDFKD's published weights of the adversary and of the teacher's cross-entropy.
case $pair in
r34_r18) teacher=cifar_resnet34 student=cifar_resnet18 adv=1.33 target=0.5 ;;
vgg11_r18) teacher=vgg11_bn student=cifar_resnet18 adv=1 target=0.5 ;;
w40_2_w16_1 | w40_2_w40_1 | w40_2_w16_2) teacher=wrn_40_2 student=wrn_${pair#w40_2_w} adv=1.1 target=0.4 ;;
*) unknown pair "$pair" "r34_r18 vgg11_r18 w40_2_w16_1 w40_2_w40_1 w40_2_w16_2" ;;
esac
models=save/models/cifar100_$teacher out=save/student_model/cifar100_${method}_$pair
kd="dm_kd.distill --task cifar100 --teacher $models --student $student --out $out"
own="--temperature 4 --epochs 240 --lr-decay-epochs 150,180,210 --batch-size 128 --learning-rate 0.1 --weight-decay 5e-4"
loop="--epochs 200 --steps-per-epoch 400 --lr-schedule cosine --batch-size 256 --weight-decay 1e-4"
stream="$loop --augment none --temperature 1 --learning-rate 0.1"
pool="$loop --temperature 20 --learning-rate"
fast="$pool 0.2 --adv-dad-weight $adv --ce-target-weight $target --source"
make="dm_kd.synthesize --task cifar100 --images-per-class 500"

case $method in
teacher) exec sh scripts/cifar100_teacher.sh --model $teacher --out $models "$@" ;;
alone) exec sh scripts/cifar100_teacher.sh --model $student --out $out "$@" ;;
real)
    launch $kd --source real --temperature 1 --label-weight 0.1 --epochs 200 --lr-decay-epochs 120,150,180 \
        --batch-size 128 --learning-rate 0.1 --weight-decay 1e-4 "$@" ;;
dafl | zskt | dfq) launch $kd --source $method $stream "$@" ;;
adi) launch $kd --source adi --inner-steps 2000 $pool 0.1 "$@" ;;
cmi) launch $kd --source cmi --inner-steps 500 $pool 0.1 "$@" ;;
fast2) launch $kd $fast fastdfkd --inner-steps 2 --generator-rate 5e-3 --latent-rate 0.015 "$@" ;;
fast5) launch $kd $fast fastdfkd --inner-steps 5 --generator-rate 3e-3 --latent-rate 0.01 "$@" ;;
fastdfkd | fastdfkd_reptile | fast_sequential) launch $kd $fast $method "$@" ;;
nayer) launch $kd --source nayer $pool 0.2 --batch-size 512 "$@" ;;
noise_set | one_image_set)
    launch $make --generator ${method%_set} --batch-size 1000 --out syn_dataset/cifar100_${method%_set} "$@" ;;
noise | one_image) launch $kd --source syn_dataset/cifar100_$method $own "$@" ;;
out_of_domain)
    launch $kd --source true_dataset/places365 --source-labels none --steps-per-epoch 391 $own "$@" ;;
deepinversion_set)
    launch $make --generator deepinversion --teacher $models --batch-size 256 \
        --out syn_dataset/cifar100_${teacher}_deepinversion "$@" ;;
deepinversion) launch $kd --source syn_dataset/cifar100_${teacher}_deepinversion $pool 0.1 "$@" ;;
diffdfkd_set)
    launch $make --generator dit --weights save/generators/cifar100_dit --guidance-scale 3 --guided-channels all \
        --steps 50 --teacher $models --teacher-guidance 1 --latent-cutmix --batch-size 500 \
        --out syn_dataset/cifar100_${teacher}_diffdfkd "$@" ;;
diffdfkd)
    launch $kd --source syn_dataset/cifar100_${teacher}_diffdfkd --temperature 30 --epochs 240 \
        --lr-decay-epochs 150,180,210 --batch-size 256 --learning-rate 0.2 --weight-decay 5e-4 "$@" ;;
*) unknown method "$method" "teacher alone real dafl zskt dfq adi cmi fast2 fast5 fastdfkd fastdfkd_reptile \
fast_sequential nayer noise(_set) one_image(_set) out_of_domain deepinversion(_set) diffdfkd(_set)" ;;
esac
