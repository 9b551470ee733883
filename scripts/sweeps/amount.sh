#!/bin/sh
# Question: as digits_amount.sh, with the paper's settings on imagenet (the default), imagenet100, cifar100
# or flowers102: where do synthetic images saturate against real ones, and how many synthetic images is a
# real one worth? Grid: the first 20, 50, 140, 200, 1,280 images of each of ImageNet's classes of one set
# (s = 2, T = 100; 140K, 200K and 1.28M are the paper's; cifar100: 5 to 200), and real images per class
# drawn with --subset-seed, at the same number of student steps (those of the 200K set; cifar100: of 50K).
# Decision rules, fixed beforehand: those of digits_amount.sh, by the number of images in all, for equal
# numbers within a quarter; interval 95 % (report.py). With one set and seed, the
# default, nothing is claimed: descriptive. A claim needs SEEDS="0 1 2", and holds for this set.
# Needs: DiT-XL/2's weights (WEIGHTS=FILE.pt VAE=FOLDER, else downloaded), and the real training images.
# Hardware: one GPU with 16 GB or more; jobs one after the other (JOBS=n).
# Time: on an H200, estimates from operation counts: the set 32 hours (cifar100: 5; a set of fewer images
# grows to it: name it imagenet_s2_t100_1280 first), students imagenet 7 hours, imagenet100 or flowers102
# 27, cifar100 15.
# Disk: 150 GB of images and 250 GB of packed ones (cifar100: 24 GB).
# Use: [SEEDS="0"] sh scripts/sweeps/amount.sh [TASK] [--dry-run]
# Record: python -m dm_kd.report ... --record save/results/TASK_amount/BASELINE (this script with RECORD=1)
set -eu
cd "$(dirname "$0")/../.."
. scripts/setup_env.sh
. scripts/sweeps/paper_study.sh
study_flags scripts/sweeps/amount.sh "$@"
find_python
root=save/${task}_amount runs=save/${task}_amount/students teacher=$(model $teacher_name)
synthetic="20 50 140 200 1280"
case $task in
imagenet) real="20 50 140 200 700" ;;
imagenet100) real="50 100 200 500" ;;
flowers102) real="5 10 20" ;;
cifar100) real="50 100 200 400" synthetic="5 10 20 50 200" ;;
esac
most=${synthetic##* }

study() { # synthetic_20, or real_20
    n=${1#*_}
    for seed in ${SEEDS:-0}; do
        case $1 in
        synthetic*) student "$1" --teacher "$teacher" --source "$source" --images-per-class "$n" "$steps" ;;
        real_all) student "$1" --teacher "$teacher" --source real "$steps" ;;
        real*) student "$1" --teacher "$teacher" --source real --images-per-class "$n" --subset-seed "$seed" "$steps" ;;
        esac
    done
}

first() { # first: the teacher and the set
    train "$teacher_name"
    make_set "s2_t100_$most" --images-per-class "$most"
}

source=syn_dataset/imagenet_s2_t100_$most
run_folds first first $root
run_folds "$(for n in $synthetic; do echo "synthetic_$n"; done; for n in $real all; do echo "real_$n"; done)" study $root
for baseline in "synthetic_$most" real_all; do
    echo "report --runs $runs --out $root/report_$baseline --baseline $baseline --title '$task: number of images, against $baseline' --question 'How many synthetic images is a real one worth?' $(recorded "${task}_amount/$baseline" "scripts/sweeps/amount.sh $task") $dry"
done | "$PYTHON" -m dm_kd
