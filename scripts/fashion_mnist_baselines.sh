#!/bin/sh
# Fashion-MNIST: the other methods' rows, 1,000 steps of 128. METHOD_set makes the images that METHOD learns from.
# The pair is LeNet-5 with batch norms (which several methods read) to LeNet-5-half; PAIR=wrn: WRN-16-2 to WRN-16-1.
# Usage: [PAIR=wrn] sh scripts/fashion_mnist_baselines.sh METHOD [flags of the command it starts, such as --dry-run]
#   teacher              the pair's
#   alone                the student on real images and labels
#   real real_1000       KD on all real images, or on 1,000 a class drawn at random
#   real_1207            as many as fit into the 9.5 MB of the generator's weights
#   dit                  DM-KD: the 10,000 images of fashion_mnist_synthesize.sh
#   gan(_set)            a conditional GAN (fashion_mnist_gan.sh), truncation 0.7
#   noise(_set)          images of noise, the lower bound
#   one_image(_set)      patches of scikit-learn's china.jpg in grey; one_image_cutmix: with that paper's own CutMix
#   deepinversion(_set)  out of the teacher, 250 iterations
#   diffdfkd(_set)       2,000 images of the small DiT (theirs: Stable Diffusion 1.5) guided by the teacher; then
#                        diffdfkd_adv(_set): images on which diffdfkd's student differs from the teacher
#   dafl dfq zskt        a generator trained beside the student; its first map has 64 channels, published 128
#   fastdfkd fastdfkd_reptile fast_sequential cmi nayer adi: a growing pool; CMI has 14 of 200 updates, NAYER 10 of 40
# Expected top-1: the README's table. Settings: scripts/rivals_settings.sh, chosen on digits, and what fits into 8
# minutes of a core per row and seed.
# Hardware: 2 CPU cores.  Time: 2 to 10 minutes, gan_set 25, deepinversion_set and diffdfkd_set 20; PAIR=wrn several
# times as long.  Disk: 200 MB.
# Needs: fashion_mnist_baselines.sh teacher; dit, diffdfkd: fashion_mnist_generator.sh.
set -eu
cd "$(dirname "$0")/.."
. scripts/setup_env.sh
. scripts/fashion_mnist_settings.sh
. scripts/rivals_settings.sh
method=${1:-}
if [ $# -gt 0 ]; then shift; fi
case ${PAIR:-lenet5} in
lenet5) model=lenet5_bn student=lenet5_half pair= rate=$lenet5_rate teacher_rate=0.05 ;;
wrn) model=wrn_16_2 student=wrn_16_1 pair=_wrn rate=$wrn_rate teacher_rate=0.1 ;;
*) unknown PAIR "$PAIR" "lenet5 wrn" ;;
esac
teacher=save/models/fashion_mnist_$model
out="--out save/student_model/fashion_mnist_$method$pair"
short="--epochs 20 --steps-per-epoch 50 --batch-size 128 --learning-rate $rate --lr-schedule cosine --weight-decay 5e-4 \
--mixup 0.4 --mix-share 0.5"
kd="dm_kd.distill --task fashion_mnist --teacher $teacher --student $student --temperature 4 $short $out"
set=syn_dataset/fashion_mnist_${method%_set}
make="dm_kd.synthesize --task fashion_mnist --images-per-class"
guided="200 $dit --teacher $teacher --latent-cutmix --out $set$pair --teacher-guidance"
# 128 images a call; 10 calls before the first step, then one in each of the 20 epochs
pool="--warmup-calls 10" width="--generator-width 64" cmi="--warmup-calls 5 --inner-steps 14" nayer="--inner-steps 10"

case $method in
teacher)
    launch dm_kd.train_teacher --task fashion_mnist --model $model $teacher_recipe --learning-rate $teacher_rate \
        --out $teacher "$@" ;;
alone) launch dm_kd.train_teacher --task fashion_mnist --model $student $short $out "$@" ;;
real) launch $kd --source real "$@" ;;
real_1000 | real_1207) launch $kd --source real --images-per-class ${method#real_} --subset-seed 0 "$@" ;;
dit) launch $kd --source syn_dataset/fashion_mnist "$@" ;;
noise | one_image | gan) launch $kd --source $set "$@" ;;
deepinversion | diffdfkd | diffdfkd_adv) launch $kd --source $set$pair "$@" ;;
one_image_cutmix) launch $kd --source ${set%_cutmix} --mixup 0 --cutmix 0.25 --mix-share 1 "$@" ;;
noise_set | one_image_set) launch $make 1000 --generator ${method%_set} --out $set "$@" ;;
gan_set)
    launch $make 1000 --generator gan --weights save/generators/fashion_mnist_gan --truncation 0.7 --out $set "$@" ;;
deepinversion_set)
    launch $make 1000 --generator deepinversion --teacher $teacher --iterations 250 --pixel-rate 0.1 --bn-weight 10 \
        --batch-size 250 --out $set$pair "$@" ;;
diffdfkd_set) launch $make $guided 3 "$@" ;;
diffdfkd_adv_set) launch $make $guided 1 --student save/student_model/fashion_mnist_diffdfkd$pair "$@" ;;
*)
    case " $streams_and_pools " in
    *" $method "*) launch $kd $(rival "$method") "$@" ;;
    esac
    unknown method "$method" "teacher alone real real_1000 real_1207 dit gan(_set) noise(_set) one_image(_set) \
one_image_cutmix deepinversion(_set) diffdfkd(_set) diffdfkd_adv(_set) $streams_and_pools" ;;
esac
