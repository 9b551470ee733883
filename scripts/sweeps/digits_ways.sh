#!/bin/sh
# Question: what do temperature, augmentation, objective, sampler, and noise shared across classes
# matter to a student from synthetic images? Grid: one change at a time from the study's recipe (base:
# temperature 4, half of the batches mixed up, kd, s = 1, T = 100, ancestral sampling, 100 per class):
# temperature 1, 2, 8, 16; no mixing; no mixing and no augmentation; all batches mixed up; half of them
# cut-mixed; objectives mse, dist, and dkd (at a quarter of the learning rate: its loss is about nine
# times kd's); DDIM with 100 steps; DPM-Solver++ with 25; the same noise for every class.
# Decision rule, fixed beforehand: a change matters where the interval of its paired difference to base
# excludes 0 (95 % for all 14 rows together, Bonferroni's correction: --claims 14; of the writers and the
# generators' training); it does not matter where the interval lies within -0.5 and 0.5 points; else it
# is undecided. Nothing here changes the settings of
# scripts/digits_settings.sh, which are chosen on training writers.
# Hardware: 2 CPU cores (one job each).  Disk: 1.5 GB.
# Time: about 55 minutes (measured on a processor with bfloat16 instructions), 22 more where
# scripts/digits.sh has not made its teachers and generators; about twice that without such instructions.
# Use: sh scripts/sweeps/digits_ways.sh [--dry-run]     (JOBS=2: processes at a time, a thread each)
#      TRIALS=30 (see digits_study.sh): 15 generators, two sets of each, a student of each set; a later call
#      with a larger number goes on. TRIALS=90 gives three students per set: 2 hours on top, or of
#      ROWS="base dist", those of a claim, 20 minutes (estimates).
# Record: python -m dm_kd.report ... --record save/results/digits_ways (this script with RECORD=1)
set -eu
cd "$(dirname "$0")/../.."
. scripts/setup_env.sh
dry_flag "scripts/sweeps/digits_ways.sh" "$@"
find_python
. scripts/sweeps/digits_study.sh
root=save/digits_ways runs=save/digits_ways/students trials=${TRIALS:-30}
all="base temperature1 temperature2 temperature8 temperature16 mse dkd dist no_mixing no_augmentation all_mixup half_cutmix ddim dpm25 shared_noise"
rows=${ROWS:-$all}
check_rows "$rows" "$all"

change() { # what differs from base in training
    case $1 in
    temperature*) echo "--temperature ${1#temperature}" ;;
    mse | dist) echo "--objective $1" ;;
    dkd) echo "--objective dkd --learning-rate 0.05" ;;
    no_mixing) echo "--mixup 0" ;;
    no_augmentation) echo "--mixup 0 --augment none" ;;
    all_mixup) echo "--mix-share 1" ;;
    half_cutmix) echo "--mixup 0 --cutmix 1" ;;
    esac
}

set_of() { # ROW: its set's name and flags
    case $1 in
    ddim) echo "s1_t100_ddim --sampler ddim" ;;
    dpm25) echo "s1_t25_dpm --sampler dpm++ --steps 25" ;;
    shared_noise) echo "s1_t100_shared --shared-noise" ;;
    *) echo s1_t100 ;;
    esac
}

study() { # fold0_gen0_set0_seed0: the students of the trial
    read_trial "$1"
    made=
    for way in $rows; do
        if [ "$made" != "$(set_of "$way")" ]; then
            made=$(set_of "$way")
            make_set $made
        fi
        keep=
        case $way in base | temp* | mse | dkd | dist) keep="--cache-teacher fp32" ;; esac # the same views
        student "$way" --teacher "$base/teacher" --source "$source" "$(change "$way")" "$keep"
    done
}

foundations "$trials"
run_folds "$(trials "$trials")" study $root
echo "report --runs $runs --out $root/report --baseline base --claims 14 --title 'Digits: temperature, augmentation, objective, sampler, shared noise' --question 'What else matters to a student from synthetic images?' $(recorded digits_ways scripts/sweeps/digits_ways.sh) $dry" |
    "$PYTHON" -m dm_kd
