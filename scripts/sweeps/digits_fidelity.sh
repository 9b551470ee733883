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
# Time: about 1.8 hours (an estimate from measured steps: of one core, grid 58 minutes, claims 83, plain
# 30, strong 40, features 7), 40 minutes more where scripts/digits.sh has not made its teachers and
# generators.
# Use: sh scripts/sweeps/digits_fidelity.sh [--dry-run]     (JOBS=2: processes at a time, a thread each)
#      Trials (see digits_study.sh) of the whole grid, of the claims and of the claims' other recipes:
#      GRID=1 (fold 0) CLAIM=30 PLAIN=30 STRONG=10; a later call with larger numbers goes on. A claim
#      needs 30: 15 generators x 2 sets x 1 student; so STRONG=30 for one about the strong recipe: 40
#      minutes more. CLAIM=90 PLAIN=90 give three students per set: an hour more. The rest of the grid
#      describes.
#      GUIDANCE="1 2" STEPS="20 100" for a part of the grid.
# Record: python -m dm_kd.report ... --record save/results/digits_fidelity/RECIPE (this script with RECORD=1)
set -eu
cd "$(dirname "$0")/../.."
. scripts/setup_env.sh
dry_flag "scripts/sweeps/digits_fidelity.sh" "$@"
find_python
. scripts/sweeps/digits_study.sh
root=save/digits_fidelity
grid=${GRID:-1} claim=${CLAIM:-30} plain=${PLAIN:-30} strong=${STRONG:-10}

cells() { # N CELLS: the cells of each of the first N trials
    for trial in $(trials "$1"); do
        for cell in $2; do echo "${trial}_$cell"; done
    done
}

features() { # fold0
    fold=$(number fold "$1")
    echo "train_teacher $teacher_flags --model resnet14 --fold $fold --out $root/features/$1 --threads 1 $dry"
}

cell() { # fold0_gen0_set0_seed0_s1_t50: the set, what it looks like, and a student
    read_trial "$1"
    s=$(number s "$1") t=$(number t "$1") runs=$root/study
    make_set "s${s}_t$t" --guidance-scale "$s" --steps "$t"
    inspect "$runs/$place/inspect_s${s}_t${t}_set$set.json" --features "$root/features/fold$fold"
    student "s${s}_t$t" --teacher "$base/teacher" --source "$source"
}

recipe() { # plain_fold0_gen0_set0_seed0_s1_t50: a student on the same set by another recipe
    read_trial "$1"
    s=$(number s "$1") t=$(number t "$1") runs=$root/${1%%_*}
    case $1 in plain*) changes="--mixup 0" ;; *) changes="--epochs $((4 * study_epochs))" ;; esac
    make_set "s${s}_t$t" --guidance-scale "$s" --steps "$t"
    student "s${s}_t$t" --teacher "$base/teacher" --source "$source" "$changes"
}

whole=
for s in ${GUIDANCE:-0 1 1.5 2 3 4}; do
    for t in ${STEPS:-5 10 20 50 100 250}; do whole="$whole s${s}_t$t"; done
done
claims="s1_t50 s4_t50 s1_t5"

most=$(printf '%s\n' "$grid" "$claim" "$plain" "$strong" | sort -n | tail -n 1)
foundations "$most"
run_folds "$(trials "$most" | sed 's/_.*//' | sort -u)" features $root
run_folds "$(cells "$grid" "$whole")" cell $root
run_folds "$(cells "$claim" "$claims")" cell $root
run_folds "$(cells "$plain" "$claims" | sed 's/^/plain_/')" recipe $root
run_folds "$(cells "$strong" "$claims" | sed 's/^/strong_/')" recipe $root
against="--baseline s1_t50"
if [ "$claim" = 0 ]; then against=; fi
for recipe in study $([ "$plain" = 0 ] || echo plain) $([ "$strong" = 0 ] || echo strong); do
    echo "report --runs $root/$recipe --out $root/report_$recipe $against --title 'Digits: guidance x steps, $recipe recipe' --question 'Is it fidelity or coverage that teaches, and does a strong recipe remove the effect?' $(recorded "digits_fidelity/$recipe" scripts/sweeps/digits_fidelity.sh) $dry"
done | "$PYTHON" -m dm_kd
