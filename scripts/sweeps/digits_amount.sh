#!/bin/sh
# Question: where do synthetic images saturate against real ones, and how many synthetic images is a
# real one worth? Grid: 10, 20, 40 ... 1,280 synthetic images per class (s = 1, T = 20, the first of
# one set of 1,280), 10, 20, 40, 80 real ones (drawn from all training writers, --subset-seed: the
# digits lie writer by writer) and all real ones (about 145 per class); the same 720 student steps,
# recipe and teacher for every row. T is 20, not 100, since 15 sets of 12,800 images at T = 100 would take
# 3 hours of one core; (1, 20) is a cell of digits_fidelity.sh.
# Decision rules, fixed beforehand; differences are paired, interval 95 % (report.py):
#   synthetic images saturate at the smallest N for which the interval of 1,280 minus N lies below +0.5
#   points. If there is none, they do not saturate.
#   N real images per class are worth M synthetic ones where the line through the synthetic rows'
#   means over log N first reaches the real row's mean; "more than 1,280" where it never does. One
#   real image is worth more than one synthetic one where, at equal N in 10 to 80, the interval of
#   real minus synthetic lies above 0; they are worth the same where it lies within -0.5 and 0.5.
# Hardware: 2 CPU cores (one job each).  Disk: 2.5 GB.
# Time: 2.5 hours (measured on a processor with bfloat16 instructions, other work beside it; TRIALS=30 57 minutes),
# 22 minutes more where scripts/digits.sh has not made its teachers and generators; about twice that without
# such instructions.
# Use: sh scripts/sweeps/digits_amount.sh [--dry-run]     (JOBS=2: processes at a time, a thread each)
#      TRIALS=90 (see digits_study.sh): 15 generators, two sets of each and three students of each set;
#      TRIALS=30 makes one student of each, and a later call with a larger number goes on.
# Record: python -m dm_kd.report ... --record save/results/digits_amount (this script with RECORD=1)
set -eu
cd "$(dirname "$0")/../.."
. scripts/setup_env.sh
dry_flag "scripts/sweeps/digits_amount.sh" "$@"
find_python
. scripts/sweeps/digits_study.sh
root=save/digits_amount runs=save/digits_amount/students trials=${TRIALS:-90}
all="synthetic_10 synthetic_20 synthetic_40 synthetic_80 synthetic_160 synthetic_320 synthetic_640 synthetic_1280 real_10 real_20 real_40 real_80 real_all"
rows=${ROWS:-$all}
check_rows "$rows" "$all"

study() { # fold0_gen0_set0_seed0: the students of the trial
    read_trial "$1"
    make_set s1_t20_1280 --steps 20 --images-per-class 1280
    for row in $rows; do
        n=${row#*_}
        case $row in
        synthetic_*) student "$row" --teacher "$base/teacher" --source "$source" --images-per-class "$n" ;;
        real_all) student "$row" --teacher "$base/teacher" --source real ;;
        real_*) student "$row" --teacher "$base/teacher" --source real --images-per-class "$n" --subset-seed $((2 * gen + set)) ;;
        esac
    done
}

foundations "$trials"
run_folds "$(trials "$trials")" study $root
echo "report --runs $runs --out $root/report --baseline synthetic_1280 --title 'Digits: number of images' --question 'How many synthetic images is a real one worth?' $(recorded digits_amount scripts/sweeps/digits_amount.sh) $dry" |
    "$PYTHON" -m dm_kd
