#!/bin/sh
# Question: is it fidelity or coverage of the images that teaches, and does a strong recipe remove the
# effect? Grid: guidance s in 0, 1, 1.5, 2, 3, 4 x steps T in 5, 10, 20, 50, 100, 250, 100 images per
# class; for each cell the students' accuracy, and what inspect_set finds in its set: Frechet distance,
# precision, recall, density and coverage in the features of a network that has nothing to do with
# teacher or student (ResNet-14, trained here on the fold's real images), the teacher's entropy and
# agreement. Claims are made on three cells: the middle (1, 50), more guidance (4, 50), fewer steps
# (1, 5); under three recipes: plain (no mixup), the study's (half of the batches mixed up, 720
# steps), strong (the same for four times the steps).
# Decision rules, fixed beforehand; differences are paired, interval 95 % (report.py):
#   guidance (steps) matters where the interval of (4, 50) (of (1, 5)) minus (1, 50) excludes 0; it
#   does not matter where the interval lies within -0.5 and 0.5 points; else it is undecided.
#   Coverage teaches, not fidelity: both cells are below the middle, recall falls in both, and
#   precision rises in the one and falls in the other, each in nine tenths of the sets. The other way
#   round (precision falls in both, recall rises in one): fidelity teaches. Else: neither is shown.
#   A strong recipe removes the effect where it does not matter under the strong recipe and matters
#   under the plain one.
# Hardware: 2 CPU cores (one job each).  Disk: 1.5 GB.
# Time: 3 hours (measured on a processor with bfloat16 instructions, other work beside it), 22 minutes more where
# scripts/digits.sh has not made its teachers and generators; about twice that without such instructions.
# Use: sh scripts/sweeps/digits_fidelity.sh [--dry-run]     (JOBS=2: processes at a time, a thread each)
#      Trials (see digits_study.sh) of the whole grid, of the claims and of the claims' other recipes:
#      GRID=1 (fold 0) CLAIM=90 PLAIN=90 STRONG=90: 15 generators x 2 sets x 3 students; 30 each (a
#      student per set, 76 minutes in all) are a first look, which a later call with larger numbers goes
#      on from. The rest of the grid describes.
#      GUIDANCE="1 2" STEPS="20 100" for a part of the grid.
# Record: python -m dm_kd.report ... --record save/results/digits_fidelity/RECIPE (this script with RECORD=1)
set -eu
cd "$(dirname "$0")/../.."
. scripts/setup_env.sh
dry_flag "scripts/sweeps/digits_fidelity.sh" "$@"
find_python
. scripts/sweeps/digits_study.sh
root=save/digits_fidelity
n_grid=${GRID:-1} n_claim=${CLAIM:-90} n_plain=${PLAIN:-90} n_strong=${STRONG:-90}

features() { # fold0
    fold=$(number fold "$1")
    echo "train_teacher $teacher_flags --model resnet14 --fold $fold --out $root/features/$1 --threads 1 $dry"
}

cell() { # 1_50: the set of guidance and steps in the trial that was read
    s=${1%_*} t=${1#*_}
    make_set "s${s}_t$t" --guidance-scale "$s" --steps "$t"
}

study() { # CELLS: the sets of the trial that was read, what they look like, and a student of each
    runs=$root/study
    for c in $1; do
        cell "$c"
        inspect "$runs/$place/inspect_s${s}_t${t}_set$set.json" --features "$root/features/fold$fold"
        student "s${s}_t$t" --teacher "$base/teacher" --source "$source"
    done
}

grid() { # s4_fold0_gen0_set0_seed0: all steps at a guidance
    read_trial "$1"
    scale=$(number s "$1")
    study "$(for t in $steps_of; do echo "${scale}_$t"; done)"
}

claim() { # fold0_gen0_set0_seed0
    read_trial "$1"
    study "$claims"
}

recipe() { # plain_fold0_gen0_set0_seed0: students on the claims' sets by another recipe
    read_trial "$1"
    runs=$root/${1%%_*}
    case $1 in plain*) changes="--mixup 0" ;; *) changes="--epochs $((4 * study_epochs))" ;; esac
    for c in $claims; do
        cell "$c"
        student "s${s}_t$t" --teacher "$base/teacher" --source "$source" "$changes"
    done
}

scales=${GUIDANCE:-4 3 2 1.5 1 0} steps_of=${STEPS:-5 10 20 50 100 250}
claims="1_50 4_50 1_5"

most=$(printf '%s\n' "$n_grid" "$n_claim" "$n_plain" "$n_strong" | sort -n | tail -n 1)
foundations "$most"
run_folds "$(trials "$most" | sed 's/_.*//' | sort -u)" features $root
run_folds "$(for s in $scales; do trials "$n_grid" | sed "s/^/s${s}_/"; done)" grid $root
run_folds "$(trials "$n_claim")" claim $root
run_folds "$(trials "$n_plain" | sed 's/^/plain_/')" recipe $root
run_folds "$(trials "$n_strong" | sed 's/^/strong_/')" recipe $root
against="--baseline s1_t50"
if [ "$n_claim" = 0 ]; then against=; fi
for recipe in study $([ "$n_plain" = 0 ] || echo plain) $([ "$n_strong" = 0 ] || echo strong); do
    echo "report --runs $root/$recipe --out $root/report_$recipe $against --title 'Digits: guidance x steps, $recipe recipe' --question 'Is it fidelity or coverage that teaches, and does a strong recipe remove the effect?' $(recorded "digits_fidelity/$recipe" scripts/sweeps/digits_fidelity.sh) $dry"
done | "$PYTHON" -m dm_kd
