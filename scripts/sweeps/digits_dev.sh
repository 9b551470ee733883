#!/bin/sh
# Choose the settings of scripts/digits.sh on training writers only (--val dev): the generator's
# s and T at the base recipe, then the student's recipe, each tried on real and synthetic images
# alike. Decision rule: the recipe with the highest mean of the two lines is used for every row.
# Hardware: 2 CPU cores (one job each).  Time: about 15 minutes.  Disk: 60 MB.
# Use: sh scripts/sweeps/digits_dev.sh [--dry-run]   (JOBS=2: processes at a time, a thread each)
set -eu
cd "$(dirname "$0")/../.."
dry=
case "${1:-}" in
'') ;;
--dry-run) dry=--dry-run ;;
*) echo "error: unknown flag '$1'
  try      sh scripts/sweeps/digits_dev.sh [--dry-run]" >&2; exit 2 ;;
esac
. scripts/setup_env.sh
find_python
root=save/digits_dev sets=syn_dataset/digits_dev

commands() { # fold
    f=$1 d=$root/fold$1 data="--task digits --fold $1 --val dev" common="--threads 1 $dry"
    echo "train_teacher $data --model cnn_w32 --epochs 30 --batch-size 128 --lr-schedule cosine --weight-decay 5e-4 --out $d/teacher $common"
    echo "train_generator $data --steps 2000 --out $d/generator $common"
    for st in 1_20 1_50 1.5_50; do
        echo "synthesize --task digits --weights $d/generator --guidance-scale ${st%_*} --steps ${st#*_} --out ${sets}_fold${f}_s$st $common"
    done
    kd="distill $data --teacher $d/teacher --student cnn_w8 --epochs 45 --steps-per-epoch 16 --batch-size 128 --lr-schedule cosine --weight-decay 5e-4 --cache $root/cache $common"
    base="--learning-rate 0.1 --temperature 4"
    for st in 1_50 1.5_50; do
        echo "$kd $base --source ${sets}_fold${f}_s$st --out $d/base_s$st"
    done
    for recipe in base hot mixup fast fastmix; do
        case $recipe in
        base) flags=$base ;;
        hot) flags="--learning-rate 0.1 --temperature 10" ;;
        mixup) flags="$base --mixup 0.4 --mix-share 0.5" ;;
        fast) flags="--learning-rate 0.2 --temperature 4" ;;
        fastmix) flags="--learning-rate 0.2 --temperature 4 --mixup 0.4 --mix-share 0.5" ;;
        esac
        echo "$kd $flags --source real --out $d/${recipe}_real"
        echo "$kd $flags --source ${sets}_fold${f}_s1_20 --out $d/${recipe}_s1_20"
    done
}

run_folds "0 1" commands $root
report="report --runs $root --out $root/report --title 'Digits: settings, on training writers' $dry"
echo "$report" | "$PYTHON" -m dm_kd
