#!/bin/sh
# Question: as digits_amount.sh, on Fashion-MNIST: where do synthetic images saturate against real ones,
# and how many synthetic images is a real one worth? Grid: 10, 20, 50 ... 1,000 images per class,
# synthetic (the first of the set of scripts/fashion_mnist.sh: s = 1, T = 50) and real (drawn with
# --subset-seed), and all 6,000 real ones; LeNet-5-half students of LeNet-5 with batch norms, 3 seeds,
# the same 1,000 student steps and recipe for every row.
# Decision rule: none. One generator and one set: descriptive, no claim; the page shows the interval
# (95 %, report.py) of each row minus 1,000 synthetic images per class, and of equal numbers' difference.
# Hardware: 2 CPU cores (one job each).  Disk: 200 MB.
# Time: about 14 minutes (an estimate: 45 students of 35 s of one core), 3.5 hours more where
# scripts/fashion_mnist.sh has not made its generator and set.
# Use: [GENERATOR=FOLDER] sh scripts/sweeps/fashion_mnist_amount.sh [--dry-run]     (JOBS=2: processes at a time)
#      TRIALS=3 (see fashion_mnist_study.sh); a later call with a larger number goes on.
# Record: python -m dm_kd.report ... --record save/results/fashion_mnist_amount (this script with RECORD=1)
set -eu
cd "$(dirname "$0")/../.."
. scripts/setup_env.sh
dry_flag "scripts/sweeps/fashion_mnist_amount.sh" "$@"
find_python
. scripts/sweeps/fashion_mnist_study.sh
root=save/fashion_mnist_amount runs=save/fashion_mnist_amount/students trials=${TRIALS:-3}

study() { # seed0_50, or seed0_all: the synthetic and the real student
    seed=$(number seed "$1") n=${1#*_} kd="--teacher $rival_teacher"
    case $n in
    all) student real_all "$kd" --source real ;;
    *)
        student "synthetic_$n" "$kd" --source "$set_10k" --images-per-class "$n"
        student "real_$n" "$kd" --source real --images-per-class "$n" --subset-seed "$seed" ;;
    esac
}

students=
for trial in $(trials "$trials"); do
    for n in 10 20 50 100 200 500 1000 all; do students="$students ${trial}_$n"; done
done

run_folds "teacher generator" foundation $root
run_folds set_10k foundation $root
run_folds "$students" study $root
echo "report --runs $runs --out $root/report --baseline synthetic_1000 --title 'Fashion-MNIST: number of images' --question 'How many synthetic images is a real one worth?' $(recorded fashion_mnist_amount scripts/sweeps/fashion_mnist_amount.sh) $dry" |
    "$PYTHON" -m dm_kd
