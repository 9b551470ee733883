#!/bin/sh
# Question: as digits_speed_keeps_accuracy.sh, on Fashion-MNIST: the rivals' pair (LeNet-5 with
# batch norms to LeNet-5-half: on a CPU without bfloat16 instructions a WRN takes five times as long),
# all 60,000 real images, seeds 0 to 2. Decision rule: the 95 % interval of each difference to float32 lies above -0.5
# points. Expected: no difference that the intervals can tell from 0.
# Hardware: 2 CPU cores (one job each).  Time: about 30 minutes.  Disk: 300 MB.
# Use: sh scripts/sweeps/fashion_mnist_speed_keeps_accuracy.sh [--seed N] [--threads N] [--dry-run]
#      ROWS="float32 bf16" chooses rows; PAIR=wrn the pair WRN-16-2 to WRN-16-1; JOBS=2 processes at a time.
set -eu
cd "$(dirname "$0")/../.."
. scripts/setup_env.sh
threads=1
chain_flags "scripts/sweeps/fashion_mnist_speed_keeps_accuracy.sh" "$@"
. scripts/fashion_mnist_settings.sh
find_python
root=save/fashion_mnist_speed$pair teacher=$rival_teacher
rows=${ROWS:-float32 bf16 compiled cached both} common="--threads $threads $dry"
check_rows "$rows" "float32 bf16 compiled cached both"

commands() { # teacher, or seed0
    if [ "$1" = teacher ]; then
        echo "train_teacher $rival_teacher_flags --out $teacher $common"
        return
    fi
    for row in $rows; do
        case $row in
        float32) faster="--amp none --compile off" ;;
        bf16) faster="--amp bf16 --compile off" ;;
        cached) faster="--amp none --compile off --cache-teacher" ;;
        both) faster="--amp bf16 --compile off --cache-teacher" ;;
        compiled) faster="--amp none --compile on" ;;
        esac
        echo "distill $distill_flags $(as_student $rival_student) --teacher $teacher --source real --cache $root/cache $faster --seed ${1#seed} --out $root/$1/$row $common"
    done
}

run_folds teacher commands $root
run_folds "seed$seed seed$((seed + 1)) seed$((seed + 2))" commands $root
echo "report --runs $root --out $root/report --baseline float32 --rows $(echo $rows | tr ' ' ,) --title 'Fashion-MNIST: faster, at the same accuracy' $(recorded speed_keeps_accuracy/fashion_mnist scripts/sweeps/fashion_mnist_speed_keeps_accuracy.sh) $dry" |
    "$PYTHON" -m dm_kd
