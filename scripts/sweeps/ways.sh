#!/bin/sh
# Question: as digits_ways.sh, with the paper's settings on imagenet (the default), imagenet100, cifar100
# or flowers102: what do temperature, augmentation, objective, sampler, and noise shared across classes
# matter to a student from synthetic images? Grid: one change at a time from the paper's recipe (base: its
# temperature, crops and flips, no mixing, kd, the (2, 100) set): temperatures 1, 5, 20, 30 (cifar100:
# 1, 2, 8, 12); no augmentation; mixup 0.4 and cutmix 0.25, the two of the published code; mse, dist, and
# dkd (at a quarter of the learning rate: its loss is about nine times kd's); DDIM with 100 steps,
# DPM-Solver++ with 25; the same noise for every class, as the published images have.
# Decision rule, fixed beforehand: a change matters where the interval of its paired difference to base
# excludes 0 (95 % for all 13 rows together, Bonferroni's correction: --claims 13; of the images and the
# students' training); no matter: within -0.5 and 0.5 points. One set each: a claim needs SEEDS="0 1 2",
# and holds for these sets.
# Needs: DiT-XL/2's weights (WEIGHTS=FILE.pt VAE=FOLDER, else downloaded), and the task's own data.
# Hardware: one GPU with 16 GB or more; jobs one after the other (JOBS=n).
# Time: on an H200, estimates from operation counts: four sets 17 hours (cifar100: 4), students imagenet
# 11 hours, imagenet100 or flowers102 40, cifar100 20.
# Disk: 4 sets of 24 GB, 40 GB each while they are in save/cache (cifar100: 6 GB each).
# Use: [SEEDS="0"] sh scripts/sweeps/ways.sh [TASK] [--dry-run]    With one set and seed, the default,
#      nothing is claimed: descriptive.
# Record: python -m dm_kd.report ... --record save/results/TASK_ways (this script with RECORD=1)
set -eu
cd "$(dirname "$0")/../.."
. scripts/setup_env.sh
. scripts/sweeps/paper_study.sh
study_flags scripts/sweeps/ways.sh "$@"
find_python
root=save/${task}_ways runs=save/${task}_ways/students teacher=$(model $teacher_name)
temperatures="1 5 20 30"
if [ "$task" = cifar100 ]; then temperatures="1 2 8 12"; fi

way() { # base, temperature20, ...: its set and students
    flags= sampler= set_name=s2_t100$set_suffix
    case $1 in
    temperature*) flags="--temperature ${1#temperature}" ;;
    no_augmentation) flags="--augment none" ;;
    mixup) flags="--mixup 0.4" ;;
    cutmix) flags="--cutmix 0.25" ;;
    mse | dist) flags="--objective $1" ;;
    dkd) flags="--objective dkd --learning-rate 0.025" ;;
    ddim) sampler="--sampler ddim" set_name=s2_t100_ddim$set_suffix ;;
    dpm25) sampler="--sampler dpm++ --steps 25" set_name=s2_t25_dpm$set_suffix ;;
    shared_noise) sampler=--shared-noise set_name=s2_t100_shared$set_suffix ;;
    esac
    make_set "$set_name" --images-per-class "$images" "$sampler"
    for seed in ${SEEDS:-0}; do student "$1" --teacher "$teacher" --source "$source" "$flags"; done
}

first() { # first: the teacher
    train "$teacher_name"
}

run_folds first first $root
run_folds "base $(for t in $temperatures; do echo "temperature$t"; done) no_augmentation mixup cutmix mse dist dkd ddim dpm25 shared_noise" way $root
echo "report --runs $runs --out $root/report --baseline base --claims 13 --title '$task: temperature, augmentation, objective, sampler, shared noise' --question 'What else matters to a student from synthetic images?' $(recorded "${task}_ways" "scripts/sweeps/ways.sh $task") $dry" |
    "$PYTHON" -m dm_kd
