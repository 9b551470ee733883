#!/bin/sh
# Question: which T, how many images per class and how many student steps should scripts/digits.sh
# use? Grid: T in 20, 50, 100 with 200 images per class and T = 20 with 1,000, at 45 x 16 student
# steps; real images, T = 20 and 50 at 90 x 16. Judged on writers who leave training (--val dev: 3, 6,
# 12 and 13, whom other folds judge on), folds 0 to 2, student seeds 0 and 1; every recipe is tried on real and synthetic images alike. Decision
# rule: the T with the highest mean; the number of steps with the higher mean of real and synthetic.
# Hardware: 2 CPU cores (one job each).  Time: about 35 minutes.  Disk: 150 MB.
# Use: sh scripts/sweeps/digits_dev.sh [--dry-run]   (JOBS=2: processes at a time, a thread each)
set -eu
cd "$(dirname "$0")/../.."
. scripts/setup_env.sh
dry_flag "scripts/sweeps/digits_dev.sh" "$@"
find_python
root=save/digits_dev sets=syn_dataset/digits_dev

commands() { # fold
    f=$1 d=$root/fold$1 data="--task digits --fold $1 --val dev" common="--threads 1 $dry"
    echo "train_generator $data --steps 2000 --out $d/generator $common"
    for t in 20 50 100; do
        echo "synthesize --task digits --weights $d/generator --guidance-scale 1 --steps $t --out ${sets}_fold${f}_t$t $common"
    done
    echo "synthesize --task digits --weights $d/generator --guidance-scale 1 --steps 20 --images-per-class 1000 --out ${sets}_fold${f}_t20_1000 $common"
    for epochs in 45 90; do
        recipe="--epochs $epochs --steps-per-epoch 16 --batch-size 128 --learning-rate 0.2 --lr-schedule cosine --weight-decay 5e-4 --mixup 0.4 --mix-share 0.5"
        echo "train_teacher $data --model cnn_w32 $recipe --out $d/teacher_$epochs $common"
        case $epochs in 45) tried="t20 t50 t100 t20_1000" ;; *) tried="t20 t50" ;; esac
        for seed in 0 1; do
            kd="distill $data --teacher $d/teacher_$epochs --student cnn_w8 $recipe --temperature 4 --cache $root/cache --seed $seed $common"
            echo "$kd --source real --out $d/real_${epochs}_seed$seed"
            for set in $tried; do
                echo "$kd --source ${sets}_fold${f}_$set --out $d/${set}_${epochs}_seed$seed"
            done
        done
    done
}

run_folds "0 1 2" commands $root
report="report --runs $root --out $root/report --title 'Digits: settings, on training writers' $(recorded digits_dev scripts/sweeps/digits_dev.sh) $dry"
echo "$report" | "$PYTHON" -m dm_kd
