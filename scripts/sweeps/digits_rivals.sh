#!/bin/sh
# Question: who wins on digits at an equal number of student steps? Every row of the README's table of
# rivals: 5 folds by writer, seeds from N on, one teacher and one student, last epoch. Each fold and
# seed shares the teacher and the generator of scripts/digits.sh, which are made here if they are not
# there. 1,000 images in each set; pools make 2,560 (NAYER 3,200), streams a batch for each step. Settings:
# scripts/rivals_settings.sh, chosen by digits_rivals_tune.sh.
# ROUNDS=1 (default): seed N in all five folds; each round more is another seed, ROUNDS=5 is all 25.
# RECIPE=strong (default: half mixup, one view for both networks, 720 steps of 128: half of
# the study's), or paper (the paper's for ImageNet: rate 0.1 in three drops, temperature 10, no mixup; 180
# steps, a quarter).
# one_image_cutmix is One-Image under its paper's own CutMix of every batch, in place of the recipe's mixup.
# ROWS=dafl_untrained, not in the table: DAFL whose generator stays as it began, to see what its training does.
# STEPS=4: four times the student steps of the strong recipe, to see whom their number held back; the pools'
# calls too.
# diffdfkd_adv, images on which the student of diffdfkd differs from the teacher, needs that row before it.
# Decision rule: none; rows are compared with KD on real data by paired intervals over writers, and with DM-KD,
# once more without the four writers whom the settings were chosen on.
# Hardware: 2 CPU cores (one job each).  Disk: 4 GB.
# Time: about 12 minutes of one core with bfloat16 instructions for a fold and seed, teacher and DiT 3 more.
# Cap: 10 minutes of one core for a row, its images among them (STEPS=4: 20).
# Use: [RECIPE=paper] [ROUNDS=5] [STEPS=4] [ROWS="real dafl"] sh scripts/sweeps/digits_rivals.sh [--seed N]
#      [--threads N] [--dry-run]    JOBS=2 processes at a time. The same command goes on after an interruption.
set -eu
cd "$(dirname "$0")/../.."
. scripts/setup_env.sh
threads=1
chain_flags "scripts/sweeps/digits_rivals.sh" "$@"
. scripts/digits_settings.sh
find_python
times=${STEPS:-1}
case $times in 1) more= ;; [2-9]) more=_x$times ;; *) echo "error: STEPS is 1 to 9, not '$times'" >&2; exit 2 ;; esac
shared=save/digits root=save/digits_rivals_${RECIPE:-strong}$more
case ${RECIPE:-strong} in
strong) chosen="$recipe --epochs $((45 * times))" tau=4 pool_steps="--epochs $((15 * times)) --steps-per-epoch 48 --warmup-calls 5" ;;
paper)
    if [ $times != 1 ]; then echo "error: STEPS is for RECIPE=strong" >&2; exit 2; fi
    chosen="$steps $rival_steps --steps-per-epoch 4 --learning-rate 0.1 --lr-decay-epochs 13,27,40 --weight-decay 1e-4" tau=10
    pool_steps="--epochs 15 --steps-per-epoch 12 --warmup-calls 5 --lr-decay-epochs 4,9,13" ;;
*) echo "error: RECIPE is strong or paper, not '$RECIPE'" >&2; exit 2 ;;
esac
chosen_on=3,6,12,13 # writers: the rivals' settings on 3 and 13, the recipe on all four
online="$streams dafl_untrained $pools"
all="alone real real_100 noise one_image one_image_cutmix out_of_domain gan dit diffdfkd diffdfkd_adv deepinversion $streams $pools"
rows=${ROWS:-$all}
check_rows "$rows" "$all dafl_untrained"

commands() { # shared_fold3_seed0, then stored_ (rows with a set, or none) and online_ (with a source)
    part=${1%%_*} trial=${1#*_}
    d=$root/$trial t=$shared/$trial/teacher set=syn_dataset/digits_$trial
    common="--seed ${1#*seed} --threads $threads $dry" fold=${trial%_*}
    fold="--fold ${fold#fold}"
    kd="distill --task digits --student cnn_w8 $chosen --temperature $tau $fold --teacher $t --cache $root/cache $common"
    made="synthesize --task digits $common --images-per-class $rival_images"
    own_dit="synthesize $synthesize_flags --images-per-class $rival_images --weights $shared/$trial/generator $common"
    if [ "$part" = shared ]; then
        echo "train_teacher $teacher_flags $fold --out $t $common"
        case $rows in *dit* | *diffdfkd*) echo "train_generator $generator_flags $fold --out $shared/$trial/generator $common" ;; esac
        return
    fi
    for row in $rows; do
        case "$part $online " in
        online*" $row "*) echo "$kd $(rival "$row") --out $d/$row" ;;
        online* | *" $row "*) ;;
        *) stored "$row" ;;
        esac
    done
}

stored() { # ROW of the fold and seed above
    source=${set}_${1}_$rival_images own=
    case $1 in
    alone) echo "train_teacher --task digits --model cnn_w8 $chosen $fold --out $d/$1 $common"; return ;;
    real) source=real ;;
    real_100) source="real --images-per-class $rival_images --subset-seed ${trial#*seed}" ;;
    out_of_domain) source=real:fashion_mnist ;;
    dit) echo "$own_dit --out $source" ;;
    noise) echo "$made --generator noise --out $source" ;;
    one_image | one_image_cutmix)
        source=${set}_one_image_$rival_images
        echo "$made --generator one_image --out $source"
        case $1 in *_cutmix) own=$own_cutmix ;; esac ;;
    gan)
        echo "train_generator --kind gan --task digits $fold --out $shared/$trial/gan $common"
        echo "$made $gan_flags --weights $shared/$trial/gan --out $source" ;;
    deepinversion) echo "$made $inversion_flags --teacher $t --out $source" ;;
    diffdfkd) echo "$own_dit $guidance_flags --teacher $t --out $source" ;;
    diffdfkd_adv)
        source=${source}_${RECIPE:-strong}$more # of its student
        echo "$own_dit $adversarial_flags --teacher $t --student $d/diffdfkd --out $source" ;;
    esac
    echo "$kd $own --source $source --out $d/$1"
}

trials= round=0
while [ $round -lt "${ROUNDS:-1}" ]; do
    for f in 0 1 2 3 4; do trials="$trials fold${f}_seed$((seed + round))"; done
    round=$((round + 1))
done
run_folds "$(for n in $trials; do echo "shared_$n"; done)" commands $root
parts=$(for row in $rows; do case " $online " in *" $row "*) echo online ;; *) echo stored ;; esac; done | sort -u)
run_folds "$(for n in $trials; do for part in $parts; do echo "${part}_$n"; done; done)" commands $root
rival_reports scripts/sweeps/digits_rivals.sh \
    "Digits: rivals at an equal number of student steps (${RECIPE:-strong} recipe${more:+, $times times the steps})" \
    "$chosen_on"
