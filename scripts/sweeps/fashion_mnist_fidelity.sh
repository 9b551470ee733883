#!/bin/sh
# Question: as digits_fidelity.sh, on Fashion-MNIST: is it fidelity or coverage of the images that
# teaches, and does a strong recipe remove the effect? Grid: guidance s in 1, 2, 4 x steps T in 5, 20,
# 50, 200 images per class from the one generator of scripts/fashion_mnist.sh; LeNet-5-half students;
# inspect_set in the features of a ResNet-8 trained here. Claims on the cells (1, 50), (4, 50), (1, 5),
# under the study's recipe (no mixup) and a strong one (half of the batches mixed up, four times the
# steps).
# Decision rules, fixed beforehand: those of digits_fidelity.sh, with intervals from redrawing images
# and sets; "plain recipe" is the study's. What is claimed holds for this one generator.
# Hardware: 2 CPU cores (one job each).  Disk: 500 MB.
# Time: about 3.6 hours (an estimate from measured steps: grid 71 minutes, claims 65, strong 84), 3 hours
# more where scripts/fashion_mnist.sh has not made its teacher and generator.
# Use: sh scripts/sweeps/fashion_mnist_fidelity.sh [--dry-run]     (JOBS=2: processes at a time)
#      Trials (see fashion_mnist_study.sh) of the whole grid, the claims and the strong recipe: GRID=1
#      CLAIM=6 STRONG=2; a later call with larger numbers goes on. A claim about the strong recipe
#      needs STRONG=6: 2.8 hours more. GUIDANCE="1 2" STEPS="20" for a part of the grid.
set -eu
cd "$(dirname "$0")/../.."
. scripts/setup_env.sh
dry_flag "scripts/sweeps/fashion_mnist_fidelity.sh" "$@"
find_python
. scripts/sweeps/fashion_mnist_study.sh
root=save/fashion_mnist_fidelity
grid=${GRID:-1} claim=${CLAIM:-6} strong=${STRONG:-2}

cells() { # N CELLS: the cells of each of the first N trials
    for trial in $(trials "$1"); do
        for cell in $2; do echo "${trial}_$cell"; done
    done
}

features() { # features
    echo "train_teacher $teacher_flags --model resnet8 --epochs 5 --out $root/$1 $common"
}

cell() { # set0_seed0_s1_t50: the set, what it looks like, and a student
    set=$(number set "$1") seed=$(number seed "$1") s=$(number s "$1") t=$(number t "$1")
    runs=$root/study look=$root/study/inspect_s${s}_t${t}_set$set.json
    make_set "s${s}_t$t" --guidance-scale "$s" --steps "$t" --images-per-class 200
    [ -e "$look" ] || echo "inspect_set --task fashion_mnist --set $source --teacher $teacher --features $root/features --out $look $common"
    student "s${s}_t$t" $(as_student lenet5_half) --teacher $teacher --source "$source"
}

strong() { # strong_set0_seed0_s1_t50: a student on the same set by the strong recipe
    set=$(number set "$1") seed=$(number seed "$1") s=$(number s "$1") t=$(number t "$1")
    runs=$root/strong
    make_set "s${s}_t$t" --guidance-scale "$s" --steps "$t" --images-per-class 200
    student "s${s}_t$t" $(as_student lenet5_half) --teacher $teacher --source "$source" --mixup 0.4 --mix-share 0.5 --epochs 20
}

whole=
for s in ${GUIDANCE:-1 2 4}; do
    for t in ${STEPS:-5 20 50}; do whole="$whole s${s}_t$t"; done
done
claims="s1_t50 s4_t50 s1_t5"

run_folds "teacher generator" foundation $root
run_folds features features $root
run_folds "$(cells "$grid" "$whole")" cell $root
run_folds "$(cells "$claim" "$claims")" cell $root
run_folds "$(cells "$strong" "$claims" | sed 's/^/strong_/')" strong $root
against="--baseline s1_t50"
if [ "$claim" = 0 ]; then against=; fi
for recipe in study $([ "$strong" = 0 ] || echo strong); do
    echo "report --runs $root/$recipe --out $root/report_$recipe $against --title 'Fashion-MNIST: guidance x steps, $recipe recipe' --question 'Is it fidelity or coverage that teaches, and does a strong recipe remove the effect?' $dry"
done | "$PYTHON" -m dm_kd
