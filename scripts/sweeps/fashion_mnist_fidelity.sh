#!/bin/sh
# Question: as digits_fidelity.sh, on Fashion-MNIST: is it fidelity or coverage of the images that
# teaches? Grid: guidance s in 1, 2, 4 x steps T in 5, 20, 50, 40 images per class from the one generator
# of scripts/fashion_mnist.sh, 3 seeds of set and student; LeNet-5-half students of LeNet-5 with batch
# norms, 1,000 steps; inspect_set in the features of WRN-16-2, which has nothing to do with either.
# Decision rule: none. One generator: descriptive, no claim; the page shows the cells' means beside their
# sets' distances, precision and recall, and the interval (95 %, report.py) of each cell minus (1, 50),
# which holds for this generator and teacher.
# Hardware: 2 CPU cores (one job each).  Disk: 200 MB.
# Time: about 24 minutes (an estimate: of one core, sets 27 minutes, students 16, inspect_set 4), 3 hours
# more where scripts/fashion_mnist.sh has not made its teacher and generator.
# Use: [GENERATOR=FOLDER] sh scripts/sweeps/fashion_mnist_fidelity.sh [--dry-run]     (JOBS=2: processes at a time)
#      TRIALS=3 (see fashion_mnist_study.sh); a later call with a larger number goes on. GUIDANCE="1 2"
#      STEPS="20" for a part of the grid.
# Record: python -m dm_kd.report ... --record save/results/fashion_mnist_fidelity (this script with RECORD=1)
set -eu
cd "$(dirname "$0")/../.."
. scripts/setup_env.sh
dry_flag "scripts/sweeps/fashion_mnist_fidelity.sh" "$@"
find_python
. scripts/sweeps/fashion_mnist_study.sh
root=save/fashion_mnist_fidelity runs=save/fashion_mnist_fidelity/students trials=${TRIALS:-3}

cell() { # seed0_s1_t50: the set, what it looks like, and a student
    seed=$(number seed "$1") s=$(number s "$1") t=$(number t "$1")
    source=syn_dataset/fashion_mnist_study_set${seed}_s${s}_t$t look=$runs/inspect_s${s}_t${t}_set$seed.json
    echo "synthesize $synthesize_flags --guided-channels all --guidance-scale $s --steps $t --images-per-class 40 --weights '$generator' --seed $seed --out $source $common"
    [ -e "$look" ] || echo "inspect_set --task fashion_mnist --set $source --teacher $rival_teacher --features $large --compare 1000 --out $look $common"
    student "s${s}_t${t}_set$seed" --teacher "$rival_teacher" --source "$source"
}

cells= against=
for trial in $(trials "$trials"); do
    for s in ${GUIDANCE:-1 2 4}; do
        for t in ${STEPS:-5 20 50}; do cells="$cells ${trial}_s${s}_t$t"; done
    done
done
case $cells in *_s1_t50*) against="--baseline s1_t50" ;; esac
run_folds "teacher large generator" foundation $root
run_folds "$cells" cell $root
echo "report --runs $runs --out $root/report $against --title 'Fashion-MNIST: guidance x steps' --question 'Is it fidelity or coverage that teaches?' $(recorded fashion_mnist_fidelity scripts/sweeps/fashion_mnist_fidelity.sh) $dry" |
    "$PYTHON" -m dm_kd
