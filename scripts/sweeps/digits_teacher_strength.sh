#!/bin/sh
# Question: do weak teachers teach better, and is that so when the temperature is tuned for each?
# Grid: teachers that differ in width (cnn_w4 to cnn_w32), depth (ResNet-8, ResNet-14) and training time
# (cnn_w32 for 2 and 8 epochs of 16 steps instead of 90) x students cnn_w8 and ResNet-8 x temperature 4
# and the one of 1, 4, 16 that is best for this teacher on writers who left training (--val dev: a
# teacher, a generator and a set of their own; one cnn_w8 student each; ties: the lower). All from the
# same sets (s = 1, T = 50, 100 per class: the middle of digits_fidelity.sh), 720 student steps, in
# tuning too.
# Decision rule, fixed beforehand: a weaker teacher (cnn_w8, or cnn_w32 for 2 epochs; a lower accuracy
# over all folds) teaches better than cnn_w32 where the interval (95 %, report.py) of the paired difference of
# its cnn_w8 students lies above 0; worse: below 0; it is no matter where the interval lies within
# -0.5 and 0.5 points. The claim stands for the tuned
# temperature only if the tuned rows say the same.
# Hardware: 2 CPU cores (one job each).  Disk: 2.5 GB.
# Time: 110 minutes, of which 22 for scripts/digits.sh's teachers and generators (measured on a processor
# with bfloat16 instructions, other work beside it); twice that without such instructions (an estimate).
# Use: sh scripts/sweeps/digits_teacher_strength.sh [--dry-run]     (JOBS=2: processes at a time)
#      Trials (see digits_study.sh) of the whole grid and of the claims: GRID=5 CLAIM=90: 15 generators,
#      each with its teachers, x 2 sets x 3 students. CLAIM=30 (a student per set) is a first look, 30
#      minutes shorter, which a later call with a larger number goes on from.
# Record: python -m dm_kd.report ... --record save/results/digits_teacher_strength/ROW (this script with RECORD=1)
set -eu
cd "$(dirname "$0")/../.."
. scripts/setup_env.sh
dry_flag "scripts/sweeps/digits_teacher_strength.sh" "$@"
find_python
. scripts/sweeps/digits_study.sh
root=save/digits_teacher_strength
grid=${GRID:-5} claim=${CLAIM:-90} temperatures="1 4 16"
teachers="cnn_w4 cnn_w8 cnn_w16 cnn_w32 resnet8 resnet14 cnn_w32_epochs2 cnn_w32_epochs8"
claimed="cnn_w8 cnn_w32 cnn_w32_epochs2"

train() { # TEACHER FOLDER FLAGS
    case $1 in *_epochs*) less="--epochs ${1#*_epochs}" ;; *) less= ;; esac
    what=${1%_epochs*} folder=$2
    shift 2
    echo "train_teacher $teacher_flags --model $what $less $* --out $folder $common"
}

seed_of() { # TEACHER SEED: another one where students are of its kind: none begins with its weights
    case $1 in cnn_w8 | resnet8) echo $((100 + $2)) ;; *) echo "$2" ;; esac
}

teacher_of() { # TEACHER: its folder in the trial that was read
    case $1 in cnn_w32) echo "$base/teacher" ;; *) echo "$root/teachers/$place/$1" ;; esac
}

tune() { # fold0_cnn_w8: students of a teacher at each temperature, judged on writers left out
    fold=$(number fold "$1") teacher=${1#fold?_} d=$root/dev/fold$(number fold "$1") common="--threads 1 $dry"
    train "$teacher" "$d/$teacher" --fold "$fold" --val dev --seed "$(seed_of "$teacher" 0)"
    for t in $temperatures; do
        echo "distill $distill_flags --epochs $study_epochs --fold $fold --val dev --teacher $d/$teacher --source ${sets}_dev_fold$fold --temperature $t --cache-teacher fp32 --out $d/${teacher}_at$t $common"
    done
}

dev_set() { # fold0
    fold=$(number fold "$1") d=$root/dev/$1 common="--threads 1 $dry"
    echo "train_generator $generator_flags --fold $fold --val dev --out $d/generator $common"
    echo "synthesize $synthesize_flags --steps 50 --images-per-class $study_images --guided-channels all --weights $d/generator --out ${sets}_dev_$1 $common"
}

tuned() { # TEACHER: the temperature that was best in the trial's fold
    best_of "$root/dev/fold$fold/$1_at" "$temperatures"
}

own() { # grid_fold0_gen0: the teachers of the trials with this generator
    read_trial "$1"
    case $1 in grid*) which=$teachers ;; *) which=$claimed ;; esac
    for teacher in $which; do
        train "$teacher" "$(teacher_of "$teacher")" --fold "$fold" --seed "$(seed_of "$teacher" "$gen")"
    done
}

study() { # grid_fold0_gen0_set0_seed0: the students of the trial
    read_trial "$1"
    make_set s1_t50 --guidance-scale 1 --steps 50
    case $1 in grid*) which=$teachers students="cnn_w8 resnet8" ;; *) which=$claimed students=cnn_w8 ;; esac
    for teacher in $which; do
        at=$(tuned "$teacher") # nothing in a dry run, before anything is tuned
        for student in $students; do
            kd="--student $student --teacher $(teacher_of "$teacher") --source $source --cache-teacher fp32"
            runs=$root/${student}_fixed
            student "$teacher" "$kd"
            runs=$root/${student}_tuned
            student "$teacher" "$kd" --temperature "${at:-4}"
        done
    done
}

most=$(printf '%s\n' "$grid" "$claim" | sort -n | tail -n 1)
folds=$(trials "$most" | sed 's/_.*//' | sort -u)
foundations "$most"
run_folds "$folds" dev_set $root
run_folds "$(for f in $folds; do for t in $teachers; do echo "${f}_$t"; done; done)" tune $root
for part in grid claim; do
    eval "number_of=\$$part"
    run_folds "$(trials "$number_of" | sed "s/_set.*//; s/^/${part}_/" | sort -u)" own $root
    run_folds "$(trials "$number_of" | sed "s/^/${part}_/")" study $root
done
for row in cnn_w8_fixed cnn_w8_tuned resnet8_fixed resnet8_tuned; do
    echo "report --runs $root/$row --out $root/report_$row --rows $(echo $teachers | tr ' ' ,) --baseline cnn_w32 --title 'Digits: teachers of rising strength, student and temperature: $row' --question 'Do weak teachers teach better?' $(recorded "digits_teacher_strength/$row" scripts/sweeps/digits_teacher_strength.sh) $dry"
done | "$PYTHON" -m dm_kd
