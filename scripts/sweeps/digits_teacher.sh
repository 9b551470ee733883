#!/bin/sh
# Question: which teacher generalises best to writers it has not seen? In scripts/digits.sh's first
# three seeds KD on real images was no better than the student alone, with a teacher of 97.9 %.
# Grid: cnn_w16, cnn_w32, cnn_w64 x weight decay 5e-4, 2e-3, the study's recipe otherwise; and the
# student's own size (cnn_w8) as a control. Judged on training writers only (--val dev), all 5 folds,
# seeds 0 and 1. Decision rule: the highest mean over folds and seeds; within 0.2 points of it the
# smallest network.
# Hardware: 2 CPU cores (one job each).  Time: about 1 hour.  Disk: 150 MB.
# Use: sh scripts/sweeps/digits_teacher.sh [--dry-run]   (JOBS=2: processes at a time, a thread each)
set -eu
cd "$(dirname "$0")/../.."
. scripts/setup_env.sh
dry_flag "scripts/sweeps/digits_teacher.sh" "$@"
find_python
root=save/digits_teacher
recipe="--epochs 90 --steps-per-epoch 16 --batch-size 128 --learning-rate 0.2 --lr-schedule cosine --mixup 0.4 --mix-share 0.5"

commands() { # fold3_seed0
    fold=${1%_*}
    for model in cnn_w8 cnn_w16 cnn_w32 cnn_w64; do
        for decay in 5e-4 2e-3; do
            echo "train_teacher --task digits --val dev --fold ${fold#fold} --model $model $recipe --weight-decay $decay --seed ${1#*seed} --threads 1 --out $root/$1/${model}_wd$decay $dry"
        done
    done
}

run_folds "fold0_seed0 fold1_seed0 fold2_seed0 fold3_seed0 fold4_seed0 fold0_seed1 fold1_seed1 fold2_seed1 fold3_seed1 fold4_seed1" commands $root
echo "report --runs $root --out $root/report --title 'Digits: which teacher, on training writers' $(recorded digits_teacher scripts/sweeps/digits_teacher.sh) $dry" |
    "$PYTHON" -m dm_kd
