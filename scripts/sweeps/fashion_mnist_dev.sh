#!/bin/sh
# Question: which learning rate should the students of scripts/fashion_mnist.sh have? A first try of 0.05
# for both left LeNet-5-half, which has no batch norm, at 10 to 73 % (dead units: the loss at temperature
# 4 counts 16 times), while WRN-16-1 learned. Grid: LeNet-5-half, rate 0.002, 0.005, 0.01, 0.02; 10,000
# real images, seed 0, the recipe of fashion_mnist_settings.sh otherwise. Judged on a part of the
# training images (--val dev), which the teacher has seen and no student.
# Decision rule: the highest Acc@1 of the last epoch.
# Hardware: 2 CPU cores.  Time: about 10 minutes after fashion_mnist.sh's teacher.  Disk: 50 MB.
# Use: sh scripts/sweeps/fashion_mnist_dev.sh [--dry-run]     Running it again goes on where it stopped.
set -eu
cd "$(dirname "$0")/../.."
. scripts/setup_env.sh
dry_flag "scripts/sweeps/fashion_mnist_dev.sh" "$@"
. scripts/fashion_mnist_settings.sh
find_python
root=save/fashion_mnist_dev teacher=save/models/fashion_mnist_wrn_16_2 common="--threads 1 $dry"

commands() { # teacher, or lenet5_half
    if [ "$1" = teacher ]; then
        echo "train_teacher $teacher_flags --out $teacher $common"
        return
    fi
    for rate in 0.002 0.005 0.01 0.02; do # all see the same views: the teacher runs once
        echo "distill $distill_flags --val dev --teacher $teacher --cache-teacher --student $1 --learning-rate $rate --source real --images-per-class 1000 --cache $root/cache --out $root/$1_$rate $common"
    done
}

run_folds teacher commands $root
run_folds lenet5_half commands $root
echo "report --runs $root --out $root/report --title 'Fashion-MNIST: rate of LeNet-5-half, on training images' $(recorded fashion_mnist_dev scripts/sweeps/fashion_mnist_dev.sh) $dry" |
    "$PYTHON" -m dm_kd
