#!/bin/sh
# The digits table of the README: 5-fold cross-validation by writer, each fold with its own teacher,
# generator and student, 3 seeds of everything; the same student steps and recipe for every row.
# Hardware: 2 CPU cores (one job each).  Disk: 700 MB.
# Time: about 45 minutes with bfloat16 instructions (half of it for teachers and generators), 80 without.
# Expected top-1: the README's table. Goal: synthetic at least KD on real images - 0.5, and the
# one-sided 95 % bound above -1.
# Use: sh scripts/digits.sh [--seed N] [--threads N] [--dry-run]    seeds N, N+1, N+2 (default 0);
#      JOBS=2 processes at a time. The same command goes on after an interruption.
set -eu
cd "$(dirname "$0")/.."
. scripts/setup_env.sh
threads=1
chain_flags "scripts/digits.sh" "$@"
. scripts/digits_settings.sh
find_python
root=save/digits

commands() { # fold3_seed0
    d=$root/$1 set=syn_dataset/$(basename $root)_$1
    common="--seed ${1#*seed} --threads $threads $dry" fold=${1%_*}
    fold="--fold ${fold#fold}"
    echo "train_teacher $teacher_flags $fold --out $d/teacher $common"
    echo "train_generator $generator_flags $fold --out $d/generator $common"
    echo "synthesize $synthesize_flags --weights $d/generator --out $set $common"
    echo "synthesize --task digits --generator noise --images-per-class 200 --out ${set}_noise $common"
    [ -e $d/inspect.json ] || echo "inspect_set --task digits $fold --set $set --teacher $d/teacher --cache $root/cache --out $d/inspect.json $common"
    echo "train_teacher $alone_flags $fold --out $d/student_alone $common"
    kd="distill $distill_flags $fold --teacher $d/teacher --cache $root/cache $common"
    echo "$kd --source real --out $d/student_real"
    echo "$kd --source $set --out $d/student_synthetic"
    echo "$kd --source ${set}_noise --out $d/student_noise"
}

names=
for s in $seed $((seed + 1)) $((seed + 2)); do
    for f in 0 1 2 3 4; do names="$names fold${f}_seed$s"; done
done
run_folds "$names" commands $root
echo "report --runs $root --out $root/report --baseline student_real --rows teacher,student_alone,student_real,student_synthetic,student_noise --title 'Digits: a student that never saw a real image' $(recorded digits scripts/digits.sh) $dry" |
    "$PYTHON" -m dm_kd
