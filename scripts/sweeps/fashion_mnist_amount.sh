#!/bin/sh
# Question: as digits_amount.sh, on Fashion-MNIST: where do synthetic images saturate against real ones,
# and how many synthetic images is a real one worth? Grid: 10, 20, 40 ... 1,280 images per class,
# synthetic (s = 1, T = 50, the first of one set of 1,280) and real (drawn with --subset-seed), and all
# 6,000 real ones; LeNet-5-half, the same 2,000 student steps, recipe and teacher for every row.
# Decision rules, fixed beforehand: those of digits_amount.sh, at N in 10 to 1,280, with intervals from
# redrawing images and sets; what is claimed holds for this one generator.
# Hardware: 2 CPU cores (one job each).  Disk: 300 MB.
# Time: about 2.8 hours (an estimate from measured steps: sets 51 minutes, students 119), 3 hours more
# where scripts/fashion_mnist.sh has not made its teacher and generator.
# Use: sh scripts/sweeps/fashion_mnist_amount.sh [--dry-run]     (JOBS=2: processes at a time)
#      TRIALS=2 (see fashion_mnist_study.sh); a later call with a larger number goes on. A claim needs
#      TRIALS=6: 4 hours more.
set -eu
cd "$(dirname "$0")/../.."
. scripts/setup_env.sh
dry_flag "scripts/sweeps/fashion_mnist_amount.sh" "$@"
find_python
. scripts/sweeps/fashion_mnist_study.sh
root=save/fashion_mnist_amount runs=save/fashion_mnist_amount/students trials=${TRIALS:-2}
amounts="10 20 40 80 160 320 640 1280"

study() { # set0_seed0
    set=$(number set "$1") seed=$(number seed "$1") kd="$(as_student lenet5_half) --teacher $teacher"
    make_set s1_t50_1280 --images-per-class 1280
    for n in $amounts; do
        student "synthetic_$n" "$kd" --source "$source" --images-per-class "$n"
        student "real_$n" "$kd" --source real --images-per-class "$n" --subset-seed "$set"
    done
    student real_all "$kd" --source real
}

run_folds "teacher generator" foundation $root
run_folds "$(trials "$trials")" study $root
for baseline in synthetic_1280 $(for n in $amounts; do echo "real_$n"; done); do
    echo "report --runs $runs --out $root/report_$baseline --baseline $baseline --title 'Fashion-MNIST: number of images, against $baseline' --question 'How many synthetic images is a real one worth?' $dry"
done | "$PYTHON" -m dm_kd
