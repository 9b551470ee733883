#!/bin/sh
# Question: does anything that makes distilling faster cost accuracy? Grid: float32; bfloat16; both
# networks compiled; kept teacher logits (fp16); bfloat16 and kept logits. Real images (no generator's
# noise between the rows), 5 folds by writer, seeds 0 to 2, the recipe of scripts/digits.sh; every row
# begins from the same weights and sees the same views. Decision rule: the 95 % interval of each difference to float32 lies above -0.5 points.
# Expected: no difference that the intervals can tell from 0.
# Hardware: 2 CPU cores (one job each).  Time: about 90 minutes.  Disk: 400 MB.
# Use: sh scripts/sweeps/digits_speed_keeps_accuracy.sh [--seed N] [--threads N] [--dry-run]
#      ROWS="float32 bf16" chooses rows; JOBS=2 processes at a time.
set -eu
cd "$(dirname "$0")/../.."
. scripts/setup_env.sh
threads=1
chain_flags "scripts/sweeps/digits_speed_keeps_accuracy.sh" "$@"
. scripts/digits_settings.sh
find_python
root=save/digits_speed rows=${ROWS:-float32 bf16 compiled cached both}
check_rows "$rows" "float32 bf16 compiled cached both"

commands() { # fold3_seed0
    d=$root/$1 common="--seed ${1#*seed} --threads $threads $dry" fold=${1%_*}
    fold="--fold ${fold#fold}"
    echo "train_teacher $teacher_flags $fold --out $d/teacher $common"
    for row in $rows; do
        case $row in
        float32) faster="--amp none --compile off" ;;
        bf16) faster="--amp bf16 --compile off" ;;
        cached) faster="--amp none --compile off --cache-teacher" ;;
        both) faster="--amp bf16 --compile off --cache-teacher" ;;
        compiled) faster="--amp none --compile on" ;;
        esac
        echo "distill $distill_flags $fold --teacher $d/teacher --source real --cache $root/cache $faster --out $d/$row $common"
    done
}

names=
for s in $seed $((seed + 1)) $((seed + 2)); do
    for f in 0 1 2 3 4; do names="$names fold${f}_seed$s"; done
done
run_folds "$names" commands $root
echo "report --runs $root --out $root/report --baseline float32 --rows $(echo $rows | tr ' ' ,) --title 'Digits: faster, at the same accuracy' $(recorded speed_keeps_accuracy/digits scripts/sweeps/digits_speed_keeps_accuracy.sh) $dry" |
    "$PYTHON" -m dm_kd
