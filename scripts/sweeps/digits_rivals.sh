#!/bin/sh
# Question: who wins on digits at an equal number of student steps? Every row of the README's table of
# rivals: 5 folds by writer, seeds from N on, one teacher and one student, last epoch. Each fold and
# seed shares the teacher, the generator and the set of scripts/digits.sh, which are made here if they
# are not there. Settings: scripts/rivals_settings.sh, chosen by digits_rivals_tune.sh.
# ROUNDS=1 (default): seed N in all five folds; each round more is another seed, ROUNDS=5 is all 25.
# RECIPE=strong (default: half mixup, one view for both networks, 1,440 steps of 128: the study's), or
# paper (the paper's for ImageNet: rate 0.1 in three drops, temperature 10, no mixup; 360 steps, a quarter).
# one_image_cutmix is One-Image under its paper's own CutMix of every batch, in place of the recipe's mixup.
# STEPS=4: four times the student steps, to see whom their number held back; the pools' calls too.
# Decision rule: none; rows are compared with KD on real data by paired intervals over writers.
# Hardware: 2 CPU cores (one job each).  Disk: 4 GB.
# Time: about 50 minutes of one core for a fold and seed. Cap: 10 minutes of one core for a row, its
# images among them (STEPS=4: 20).
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
strong) chosen="$recipe --epochs $((90 * times))" tau=4 pool_steps="--epochs $((30 * times)) --steps-per-epoch 48 --warmup-calls 10" ;;
paper)
    chosen="$steps --steps-per-epoch $((4 * times)) --learning-rate 0.1 --lr-decay-epochs 27,54,81 --weight-decay 1e-4" tau=10
    pool_steps="--epochs 30 --steps-per-epoch $((12 * times)) --warmup-calls 10 --lr-decay-epochs 9,18,27" ;;
*) echo "error: RECIPE is strong or paper, not '$RECIPE'" >&2; exit 2 ;;
esac
rows=${ROWS:-alone real real_140 noise one_image one_image_cutmix out_of_domain gan dit diffdfkd diffdfkd_adv deepinversion $streams $pools}

commands() { # fold3_seed0
    d=$root/$1 t=$shared/$1/teacher set=syn_dataset/digits_$1
    common="--seed ${1#*seed} --threads $threads $dry" fold=${1%_*}
    fold="--fold ${fold#fold}"
    kd="distill --task digits --student cnn_w8 $chosen --temperature $tau $fold --teacher $t --cache $root/cache $common"
    made="synthesize --task digits $common --images-per-class 200"
    echo "train_teacher $teacher_flags $fold --out $t $common"
    echo "train_generator $generator_flags $fold --out $shared/$1/generator $common"
    echo "synthesize $synthesize_flags --weights $shared/$1/generator --out $set $common"
    for row in $rows; do
        source=${set}_$row
        case $row in
        alone) echo "train_teacher --task digits --model cnn_w8 $chosen $fold --out $d/$row $common" ;;
        real) source=real ;;
        real_140) source="real --images-per-class 140 --subset-seed ${1#*seed}" ;;
        out_of_domain) source=real:fashion_mnist ;;
        dit) source=$set ;;
        one_image_cutmix)
            echo "$made --generator one_image --out ${set}_one_image"
            echo "$kd $own_cutmix --source ${set}_one_image --out $d/$row"
            continue ;;
        noise | one_image) echo "$made --generator $row --out $source" ;;
        gan)
            echo "train_generator --kind gan --task digits $fold --out $shared/$1/gan $common"
            echo "$made --generator gan --weights $shared/$1/gan --truncation 1 --out $source" ;;
        deepinversion) echo "$made $inversion_flags --teacher $t --out $source" ;;
        diffdfkd) echo "synthesize $synthesize_flags $guidance_flags --weights $shared/$1/generator --teacher $t --out $source $common" ;;
        diffdfkd_adv) echo "synthesize $synthesize_flags $guidance_flags --weights $shared/$1/generator --teacher $t --student $d/diffdfkd --out ${source}_${RECIPE:-strong} $common"
            source=${source}_${RECIPE:-strong} ;;
        *) echo "$kd $(rival "$row") --out $d/$row"; continue ;;
        esac
        [ "$row" = alone ] || echo "$kd --source $source --out $d/$row"
    done
}

names= round=0
while [ $round -lt "${ROUNDS:-1}" ]; do
    for f in 0 1 2 3 4; do names="$names fold${f}_seed$((seed + round))"; done
    round=$((round + 1))
done
run_folds "$names" commands $root
case " $rows " in *" real "*) baseline="--baseline real" ;; *) baseline= ;; esac
echo "report --runs $root --out $root/report $baseline --title 'Digits: rivals at an equal number of student steps (${RECIPE:-strong} recipe)' $(recorded digits_rivals_${RECIPE:-strong}$more scripts/sweeps/digits_rivals.sh) $dry" |
    "$PYTHON" -m dm_kd
