#!/bin/sh
# Question: who wins on Fashion-MNIST at an equal number of student steps? LeNet-5 with batch norms to
# LeNet-5-half, every row, seeds N to N + 2 of student and rival, one set for all three; last epoch. PAIR=wrn:
# WRN-16-2 to WRN-16-1, for ROWS="real dit" and the two best rivals. Settings: scripts/rivals_settings.sh,
# chosen on digits (digits_rivals_tune.sh), and what fits into the cap (scripts/fashion_mnist_settings.sh).
# RECIPE=strong (default: half mixup, one view for both networks, cosine, 1,000 steps of 128), or paper (the
# paper's for ImageNet: temperature 10, rate 0.1 in three drops at 30, 60 and 90 %, no mixup; 250 steps, a
# quarter). LeNet-5-half has the rate 0.02 in both: at higher ones its units die (fashion_mnist_dev.sh; 1,000
# steps at temperature 10, 10,000 real images, seed 0, --val dev: 84 % right at 0.02, 10 % at 0.04).
# Decision rule: none; rows are compared with KD on real data and with DM-KD.
# one_image_cutmix is One-Image under its paper's own CutMix of every batch, in place of the recipe's mixup.
# Images of each class: 1,000, of DiffDFKD 200 (the cap); streams and pools make theirs in the run. dit's 1,000
# exceed the cap, dit_480, the first 480 of them, keeps to it.
# Cap: 8 minutes of one core for a row and seed, a third of the minutes of the set that its seeds share among
# them, generators' pretraining apart. PAIR=wrn has no cap.
# Hardware: 2 CPU cores (one job each).  Disk: 6 GB.
# Time: 1.8 hours with two cores that have bfloat16 instructions, 25 minutes of them for the GAN; then RECIPE=paper
# 0.8; about twice that without such instructions. Besides: teacher 10 minutes, generator 90 (none with GENERATOR).
# Use: [PAIR=wrn] [RECIPE=paper] [ROWS="real dafl"] [GENERATOR=FOLDER] sh scripts/sweeps/fashion_mnist_rivals.sh [--seed N]
#      [--threads N] [--dry-run]    JOBS=2 processes at a time. The same command goes on after an interruption.
#      diffdfkd_adv, images on which seed N's student of diffdfkd differs from the teacher, needs that row.
set -eu
cd "$(dirname "$0")/../.."
. scripts/setup_env.sh
threads=1
chain_flags "scripts/sweeps/fashion_mnist_rivals.sh" "$@"
. scripts/fashion_mnist_settings.sh
find_python
case ${RECIPE:-strong} in
strong) chosen=$rival_recipe tau=4 ;;
paper)
    if [ "$rival_student" = wrn_16_1 ]; then rival_rate=0.1; fi
    chosen="--epochs 10 --steps-per-epoch 25 --batch-size 128 --learning-rate $rival_rate --lr-decay-epochs 3,6,9 --weight-decay 1e-4" tau=10
    pool_steps="--warmup-calls 5" ;;
*) echo "error: RECIPE is strong or paper, not '$RECIPE'" >&2; exit 2 ;;
esac
root=save/fashion_mnist_rivals${pair}_${RECIPE:-strong} common="--threads $threads $dry"
gan=save/generators/fashion_mnist_gan
all="alone real real_1000 real_1207 noise one_image one_image_cutmix out_of_domain gan dit dit_480 diffdfkd diffdfkd_adv deepinversion $streams $pools"
rows=${ROWS:-$all}
check_rows "$(echo "$rows" | sed 's/real_[1-9][0-9]*/real/g; s/dit_[1-9][0-9]*/dit/g')" "$all"

set_of() { # ROW: its set's folder
    case $1 in
    dit | dit_*) echo syn_dataset/fashion_mnist ;;
    noise | one_image | gan) echo "syn_dataset/fashion_mnist_$1" ;;
    one_image_cutmix) echo syn_dataset/fashion_mnist_one_image ;;
    deepinversion | diffdfkd) echo "syn_dataset/fashion_mnist_$1$pair" ;;
    diffdfkd_adv) echo "syn_dataset/fashion_mnist_$1${pair}_${RECIPE:-strong}_seed$seed" ;;
    esac
}

make_set() { # ROW
    made="synthesize --task fashion_mnist --images-per-class 1000 --out $(set_of "$1") $common"
    guided="synthesize $synthesize_flags --weights '$generator' --teacher $rival_teacher --out $(set_of "$1") $common"
    case $1 in
    noise | one_image) echo "$made --generator $1" ;;
    dit) echo "synthesize $synthesize_flags --weights '$generator' --out $(set_of dit) $common" ;;
    gan)
        echo "train_generator --kind gan --task fashion_mnist --out $gan $common"
        echo "$made $gan_flags --weights $gan" ;;
    deepinversion) echo "$made $inversion_flags --teacher $rival_teacher" ;;
    diffdfkd) echo "$guided $guidance_flags --images-per-class $guided_images" ;;
    diffdfkd_adv) echo "$guided $adversarial_flags --images-per-class $guided_images --student $root/seed$seed/diffdfkd" ;;
    esac
}

student() { # SEED ROW
    own="--seed $1 --out $root/seed$1/$2 $common"
    case $2 in
    alone) echo "train_teacher --task fashion_mnist --model $rival_student $chosen $own"; return ;;
    real) source="--source real" ;;
    real_*) source="--source real --images-per-class ${2#real_} --subset-seed $1" ;;
    out_of_domain) source="--source real:digits" ;;
    *)
        source=$(set_of "$2")
        if [ -n "$source" ]; then source="--source $source"; else source=$(rival "$2"); fi
        case $2 in dit_*) source="$source --images-per-class ${2#dit_}" ;; esac ;;
    esac
    if [ "$2" = one_image_cutmix ]; then own="$own_cutmix $own"; fi
    echo "distill $rival_pair $chosen --temperature $tau $source $own"
}

commands() { # teacher, generator, set_ROW, or seed0_ROW
    case $1 in
    teacher) echo "train_teacher $rival_teacher_flags --out $rival_teacher $common" ;;
    generator) train_dit "$common" ;;
    set_*) make_set "${1#set_}" ;;
    seed*) of=${1#seed}; student "${of%%_*}" "${of#*_}" ;;
    esac
}

sets= students= last=
for row in $rows; do
    each=
    for n in 0 1 2; do each="$each seed$((seed + n))_$row"; done
    if [ "$row" = diffdfkd_adv ]; then last=$each; continue; fi
    students="$students $each"
    made=set_${row%_cutmix} # the one of one_image
    case $row in dit_*) made=set_dit ;; esac
    case "$sets " in *" $made "*) continue ;; esac
    if [ -n "$(set_of "$row")" ]; then sets="$sets $made"; fi
done
case $rows in *dit* | *diffdfkd*) run_folds "teacher generator" commands $root ;; *) run_folds teacher commands $root ;; esac
if [ -n "$sets" ]; then run_folds "$sets" commands $root; fi
if [ -n "$students" ]; then run_folds "$students" commands $root; fi
if [ -n "$last" ]; then
    run_folds set_diffdfkd_adv commands $root
    run_folds "$last" commands $root
fi
rival_reports scripts/sweeps/fashion_mnist_rivals.sh \
    "Fashion-MNIST: rivals at an equal number of student steps ($rival_student, ${RECIPE:-strong} recipe)"
