#!/bin/sh
# Question: as digits_approximations.sh, on Fashion-MNIST: what do the sampler's approximations cost a
# student (LeNet-5-half, from the rivals' teacher)? Grid: s = 2, 100 images per class, from the one
# generator of fashion_mnist.sh: exact ancestral T = 50, that study's; T = 25; DPM-Solver++ with 25 steps;
# the same with guidance in 0.2 to 0.8 only; with FP8=1, on a GPU that has them, fp8 products, and all
# together. Seeds 0 to 2 of set and student.
# Judged on the 10,000 test images; nothing is chosen by it: the rule and its verdict are those of
# digits_approximations.sh (lower end of the 95 % interval against exact above -1 point), and this
# says whether they hold here.
# Hardware: 2 CPU cores (one job each).  Time: about 45 minutes after fashion_mnist.sh's generator.
# Disk: 100 MB.
# Use: [GENERATOR=FOLDER] sh scripts/sweeps/fashion_mnist_approximations.sh [--dry-run]   (JOBS=2: processes at a time, a
# thread each). Running it again goes on where it stopped.
set -eu
cd "$(dirname "$0")/../.."
. scripts/setup_env.sh
dry_flag "scripts/sweeps/fashion_mnist_approximations.sh" "$@"
. scripts/fashion_mnist_settings.sh
find_python
. scripts/sweeps/approximations_study.sh
root=save/fashion_mnist_approximations sets=syn_dataset/fashion_mnist_approximations
teacher=$rival_teacher common="--threads 1 $dry"
ways="exact t25 dpm25 dpm25_interval$ways_on_gpu"

commands() { # teacher, generator, or seed0
    case $1 in
    teacher) echo "train_teacher $rival_teacher_flags --out $teacher $common"; return ;;
    generator) train_dit "$common"; return ;;
    esac
    for name in $ways; do
        set=${sets}_$1_$name
        echo "synthesize $synthesize_flags --guidance-scale 2 --guided-channels all --images-per-class 100 $(sampler $name 50) --weights '$generator' --seed ${1#seed} --out $set $common"
        [ -e "$root/$1/inspect_$name.json" ] || echo "inspect_set --task fashion_mnist --set $set --teacher $teacher --compare 2000 --cache $root/cache --out $root/$1/inspect_$name.json $common"
        echo "distill $distill_flags $(as_student lenet5_half) --teacher $teacher --source $set --cache $root/cache --seed ${1#seed} --out $root/$1/$name $common"
    done
}

run_folds "teacher generator" commands $root
run_folds "seed0 seed1 seed2" commands $root
echo "report --runs $root --out $root/report --baseline exact --margin 1 --title 'Fashion-MNIST: what the approximations cost a student' $(recorded fashion_mnist_approximations scripts/sweeps/fashion_mnist_approximations.sh) $dry" |
    "$PYTHON" -m dm_kd
