#!/bin/sh
# Digits: the other methods' rows, cnn_w32 to cnn_w8, 720 steps of 128 and 1,000 images (pools 2,560, NAYER 3,200).
# METHOD_set makes the images that METHOD learns from.
# Usage: sh scripts/digits_baselines.sh METHOD [flags of the command it starts, such as --fold 1, --seed 1 or --dry-run]
#   alone                the student on real images and labels
#   real real_100        KD on all real images, or on 100 a class drawn at random. (As many as fit into the generator's
#                        2.9 MB are more than there are: no row of its own.)
#   dit                  DM-KD: the first 100 images per class of digits_synthesize.sh
#   gan(_set)            a conditional GAN (digits_gan.sh), truncation 0.7
#   noise(_set)          images of noise, the lower bound
#   one_image(_set)      patches of scikit-learn's china.jpg in grey; one_image_cutmix: with that paper's own CutMix
#   deepinversion(_set)  out of the teacher, 300 iterations
#   diffdfkd(_set)       the small DiT (theirs: Stable Diffusion 1.5) guided by the teacher; then diffdfkd_adv(_set):
#                        images on which diffdfkd's student differs from the teacher
#   dafl dfq zskt        a generator trained beside the student
#   fastdfkd fastdfkd_reptile fast_sequential cmi nayer adi: a growing pool; fewer inner updates than published
# Expected top-1: the README's table. Settings: scripts/rivals_settings.sh; ours, nobody published any for 8 x 8 pixels.
# Hardware: 2 CPU cores.  Time: 1 to 4 minutes.  Disk: 10 MB.
# Needs: digits_teacher.sh; dit, diffdfkd: digits_generator.sh.
set -eu
cd "$(dirname "$0")/.."
. scripts/setup_env.sh
. scripts/digits_settings.sh
. scripts/rivals_settings.sh
method=${1:-}
if [ $# -gt 0 ]; then shift; fi
teacher=save/models/digits_cnn_w32
out="--out save/student_model/digits_$method"
kd="dm_kd.distill --task digits --teacher $teacher --student cnn_w8 --temperature 4 $recipe --epochs 45 $out"
make="dm_kd.synthesize --task digits --images-per-class 100 --out syn_dataset/digits_${method%_set}"
guided="$dit --steps 50 --teacher $teacher --latent-cutmix --teacher-guidance"
pool="--epochs 15 --steps-per-epoch 48 --warmup-calls 5" # 720 steps too
width= cmi="--inner-steps 40" nayer="--loops 1 --warmup-loops 2 --inner-steps 20"

case $method in
alone) launch dm_kd.train_teacher --task digits --model cnn_w8 $recipe --epochs 45 $out "$@" ;;
real) launch $kd --source real "$@" ;;
real_100) launch $kd --source real --images-per-class 100 --subset-seed 0 "$@" ;;
dit) launch $kd --source syn_dataset/digits --images-per-class 100 "$@" ;;
noise | one_image | gan | deepinversion | diffdfkd | diffdfkd_adv)
    launch $kd --source syn_dataset/digits_$method "$@" ;;
one_image_cutmix) launch $kd --source syn_dataset/digits_one_image --mixup 0 --cutmix 0.25 --mix-share 1 "$@" ;;
noise_set | one_image_set) launch $make --generator ${method%_set} "$@" ;;
gan_set) launch $make --generator gan --weights save/generators/digits_gan --truncation 0.7 "$@" ;;
deepinversion_set)
    launch $make --generator deepinversion --teacher $teacher --iterations 300 --pixel-rate 0.1 --bn-weight 10 \
        --batch-size 250 "$@" ;;
diffdfkd_set) launch $make $guided 3 "$@" ;;
diffdfkd_adv_set) launch $make $guided 1 --student save/student_model/digits_diffdfkd "$@" ;;
*)
    case " $streams_and_pools " in
    *" $method "*) launch $kd $(rival "$method") "$@" ;;
    esac
    unknown method "$method" "alone real real_100 dit gan(_set) noise(_set) one_image(_set) one_image_cutmix \
deepinversion(_set) diffdfkd(_set) diffdfkd_adv(_set) $streams_and_pools" ;;
esac
