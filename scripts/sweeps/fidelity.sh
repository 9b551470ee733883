#!/bin/sh
# Question: as digits_fidelity.sh, with the paper's settings on imagenet (the default), imagenet100,
# cifar100 or flowers102: is it fidelity or coverage of the images that teaches, and does a strong recipe
# remove the effect? Grid: the paper's guidance s in 1, 1.6, 1.8, 2, 3, 4 x steps T in 100, 150, 200,
# 250 of DiT-XL/2; for each cell the student's accuracy and what inspect_set finds in the features of
# an independent network (ConvNeXt-T, torchvision's; else ShuffleNetV2 or VGG-8 trained here). Its
# corners and the paper's two released settings under a strong recipe: half of the batches mixed up, four
# times the epochs.
# Decision rules, fixed beforehand: those of digits_fidelity.sh for (4, 100) (guidance) and (1, 250)
# (steps) against (1, 100), interval 95 % (report.py); "plain recipe" is the paper's. With one set and seed,
# the default, nothing is claimed: descriptive. A claim needs SETS="0 1" SEEDS="0 1 2", and holds for this
# one generator.
# Needs: ImageNet's validation set or the task's own data, and DiT-XL/2's weights (WEIGHTS=FILE.pt
# VAE=FOLDER, else downloaded).
# Hardware: one GPU with 16 GB or more; jobs one after the other (JOBS=n).
# Time: on an H200, estimates from operation counts: sets 190 hours (cifar100: 48; they are shared by the
# tasks that take 200 images per class); students imagenet 18 hours, imagenet100 or flowers102 72,
# cifar100 36; the strong recipe as much again. PER_CLASS=50 takes a quarter of the sets' time.
# Disk: 24 sets of 24 GB, 40 GB each while they are in save/cache (cifar100: 6 GB each).
# Use: [PER_CLASS=n] [SETS="0"] [SEEDS="0"] sh scripts/sweeps/fidelity.sh [TASK] [--dry-run]
#      GUIDANCE="1 2" STEPS="100 250" make a part of the grid only, without the strong recipe and the
#      report: one such call on each of several GPUs (CUDA_VISIBLE_DEVICES=1), then the whole one; the others
#      begin when the first has trained the teacher and the features' network (imagenet: at once).
# Record: python -m dm_kd.report ... --record save/results/TASK_fidelity/RECIPE (this script with RECORD=1)
set -eu
cd "$(dirname "$0")/../.."
. scripts/setup_env.sh
. scripts/sweeps/paper_study.sh
study_flags scripts/sweeps/fidelity.sh "$@"
find_python
root=save/${task}_fidelity teacher=$(model $teacher_name)
if [ -n "${PER_CLASS:-}" ]; then images=$PER_CLASS set_suffix=_${PER_CLASS}_per_class; fi

models() { # models: the teacher, and the network of the features
    train "$teacher_name"
    train "$features"
}

cell() { # s1.6_t150: its sets, what they look like, and students
    s=${1%_t*} t=${1#*_t} runs=$root/paper
    s=${s#s}
    for set in ${SETS:-0}; do
        make_set "$1$set_suffix$([ "$set" = 0 ] || echo "_set$set")" --guidance-scale "$s" --steps "$t" --images-per-class "$images" --seed "$set"
        look=$root/paper/inspect_${1}_set$set.json
        [ -e "$look" ] || echo "inspect_set --task $task --set $source --teacher $teacher --features $(model $features) --out $look $dry"
        for seed in ${SEEDS:-0}; do student "${1}_set$set" --teacher "$teacher" --source "$source"; done
    done
}

strong() { # strong_s1_t100: its students by the strong recipe
    name_of=${1#strong_} runs=$root/strong
    for set in ${SETS:-0}; do
        source=syn_dataset/imagenet_$name_of$set_suffix$([ "$set" = 0 ] || echo "_set$set")
        for seed in ${SEEDS:-0}; do
            student "${name_of}_set$set" --teacher "$teacher" --source "$source" --mixup 0.4 --mix-share 0.5 "$four_times"
        done
    done
}

cells=
for s in ${GUIDANCE:-1 1.6 1.8 2 3 4}; do
    for t in ${STEPS:-100 150 200 250}; do cells="$cells s${s}_t$t"; done
done
run_folds models models $root
run_folds "$cells" cell $root
if [ -n "${GUIDANCE:-}${STEPS:-}" ]; then exit; fi
run_folds "strong_s1_t100 strong_s2_t100 strong_s4_t100 strong_s1_t250 strong_s4_t250" strong $root
for recipe in paper strong; do
    echo "report --runs $root/$recipe --out $root/report_$recipe --baseline s1_t100 --title '$task: guidance x steps, $recipe recipe' --question 'Is it fidelity or coverage that teaches, and does a strong recipe remove the effect?' $(recorded "${task}_fidelity/$recipe" "scripts/sweeps/fidelity.sh $task") $dry"
done | "$PYTHON" -m dm_kd
