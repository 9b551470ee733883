#!/bin/sh
# The Fashion-MNIST table of the README: one teacher and one generator on the 60,000 real images;
# students from all real images, from 10,000 real ones and from 10,000 synthetic ones, 3 seeds each,
# the same number of steps for every row.
# SIZE=gpu: a larger generator and 60,000 synthetic images; rows for all of them and for the first 10,000.
# Hardware: 2 CPU cores; one GPU for SIZE=gpu.  Time: about 3.5 hours; SIZE=gpu about 1.5 hours on an H200, of
# which the generator 20 minutes (estimates from operation counts).  Disk: 400 MB; SIZE=gpu 1 GB.
# Expected top-1: the README's table. Goals: 10,000 synthetic images within 0.5 points of 10,000 real;
# with SIZE=gpu 60,000 synthetic ones within 1.0 of all 60,000 real.
# Use: [SIZE=gpu] [GENERATOR=FOLDER] sh scripts/fashion_mnist.sh [--seed N] [--threads N] [--dry-run]    seeds N, N+1, N+2 (default 0);
#      JOBS=2 processes at a time. The same command goes on after an interruption.
set -eu
cd "$(dirname "$0")/.."
. scripts/setup_env.sh
threads=1
chain_flags "scripts/fashion_mnist.sh" "$@"
. scripts/fashion_mnist_settings.sh
find_python
root=save/fashion_mnist$size teacher=save/models/fashion_mnist_wrn_16_2
set=syn_dataset/fashion_mnist$size
common="--threads $threads $dry" rows="real real_10k synthetic" baseline=real_10k
if [ "$size" = _gpu ]; then rows="$rows synthetic_10k" baseline=real; fi

commands() { # teacher, generator, inspect, or seed0
    case $1 in
    teacher) echo "train_teacher $teacher_flags --out $teacher $common" ;;
    generator)
        train_dit "$common"
        echo "synthesize $synthesize_flags --weights '$generator' --out $set $common" ;;
    inspect) [ -e $root/inspect.json ] || echo "inspect_set --task fashion_mnist --set $set --teacher $teacher --out $root/inspect.json $common" ;;
    *)
        kd="distill $distill_flags --teacher $teacher --cache-teacher fp32 --seed ${1#seed} $common"
        for row in $rows; do
            case $row in
            real) source=real ;;
            real_10k) source="real --images-per-class 1000 --subset-seed ${1#seed}" ;;
            synthetic) source=$set ;;
            synthetic_10k) source="$set --images-per-class 1000" ;;
            esac
            for student in lenet5_half wrn_16_1; do # the second one reads the first one's logits
                echo "$kd $(as_student $student) --source $source --out $root/$1/${student}_$row"
            done
        done ;;
    esac
}

run_folds "teacher generator" commands $root
run_folds "inspect seed$seed seed$((seed + 1)) seed$((seed + 2))" commands $root
for student in lenet5_half wrn_16_1; do
    compared=$(for row in $rows; do echo "${student}_$row"; done | paste -sd, -)
    echo "report --runs $root --out $root/report_$student --baseline ${student}_$baseline --rows $compared --title 'Fashion-MNIST: $student' $(recorded fashion_mnist/$student scripts/fashion_mnist.sh) $dry"
done | "$PYTHON" -m dm_kd
