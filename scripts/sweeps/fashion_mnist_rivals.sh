#!/bin/sh
# Question: who wins on Fashion-MNIST at 4,000 student steps of 128? LeNet-5 with batch norms to
# LeNet-5-half, every row, seeds N to N + 2 of student and rival; the sets are made once. PAIR=wrn:
# WRN-16-2 to WRN-16-1, for ROWS="real dit" and the two best rivals. Settings: scripts/rivals_settings.sh,
# chosen on digits (digits_rivals_tune.sh). Last epoch is the reported one.
# RECIPE=plain (default: the study's of fashion_mnist.sh), or strong (half mixup, 4 times the steps).
# Decision rule: none; rows are compared with KD on real data.
# Hardware: 2 CPU cores (one job each).  Disk: 6 GB.
# Time: about 12 hours with two cores (strong: 35): 6 hours a seed (cmi 82 minutes, nayer 64, the streams 39
# each, FastDFKD 22 each: from the seconds an update took on a busy core, bench.sh rivals) and 4 for the
# sets. Cap: 90 minutes for a row and seed (strong: four times); what takes longer gets fewer --inner-steps.
# Use: [PAIR=wrn] [RECIPE=strong] [ROWS="real dafl"] sh scripts/sweeps/fashion_mnist_rivals.sh [--seed N]
#      [--threads N] [--dry-run]    JOBS=2 processes at a time. The same command goes on after an interruption.
set -eu
cd "$(dirname "$0")/../.."
. scripts/setup_env.sh
threads=1
chain_flags "scripts/sweeps/fashion_mnist_rivals.sh" "$@"
. scripts/fashion_mnist_settings.sh
find_python
root=save/fashion_mnist_rivals${pair}_${RECIPE:-plain} set=syn_dataset/fashion_mnist common="--threads $threads $dry"
case ${RECIPE:-plain} in
plain) more= ;;
strong) more="--epochs 160 --mixup 0.4 --mix-share 0.5" ;;
*) echo "error: RECIPE is plain or strong, not '$RECIPE'" >&2; exit 2 ;;
esac
rows=${ROWS:-alone real real_1000 real_1207 noise one_image out_of_domain gan dit diffdfkd deepinversion $streams $pools}

has() { case " $rows " in *" $1 "*) ;; *) return 1 ;; esac; }

commands() { # teacher, generator, sets, or seed0
    made="synthesize --task fashion_mnist $common --images-per-class"
    case $1 in
    teacher) echo "train_teacher $rival_teacher_flags --out $rival_teacher $common" ;;
    generator)
        echo "train_generator $generator_flags --out save/generators/fashion_mnist_dit $common"
        echo "synthesize $synthesize_flags --weights save/generators/fashion_mnist_dit --out $set $common"
        if has gan; then echo "train_generator --kind gan --task fashion_mnist --out save/generators/fashion_mnist_gan $common"; fi ;;
    sets)
        for row in noise one_image; do
            if has $row; then echo "$made 1000 --generator $row --out ${set}_$row"; fi
        done
        if has gan; then echo "$made 1000 --generator gan --weights save/generators/fashion_mnist_gan --truncation 1 --out ${set}_gan"; fi
        if has deepinversion; then echo "$made 100 $inversion_flags --teacher $rival_teacher --out ${set}_deepinversion$pair"; fi
        if has diffdfkd; then echo "synthesize $synthesize_flags $guidance_flags --weights save/generators/fashion_mnist_dit --teacher $rival_teacher --images-per-class 500 --out ${set}_diffdfkd$pair $common"; fi ;;
    *)
        own="--seed ${1#seed} $common"
        for row in $rows; do
            case $row in
            alone) echo "train_teacher --task fashion_mnist --model $rival_student $recipe $rival_steps $more --out $root/$1/$row $own"; continue ;;
            real) source="--source real" ;;
            real_*) source="--source real --images-per-class ${row#real_}" ;;
            out_of_domain) source="--source real:digits" ;;
            dit) source="--source $set" ;;
            noise | one_image | gan) source="--source ${set}_$row" ;;
            deepinversion | diffdfkd) source="--source ${set}_$row$pair" ;;
            *) source=$(rival "$row") ;;
            esac
            echo "distill $rival_flags $more $source --out $root/$1/$row $own"
        done ;;
    esac
}

run_folds "teacher generator" commands $root
run_folds sets commands $root
run_folds "seed$seed seed$((seed + 1)) seed$((seed + 2))" commands $root
case " $rows " in *" real "*) baseline="--baseline real" ;; *) baseline= ;; esac
echo "report --runs $root --out $root/report $baseline --title 'Fashion-MNIST: rivals at an equal number of student steps ($rival_student, ${RECIPE:-plain} recipe)' $dry" |
    "$PYTHON" -m dm_kd
