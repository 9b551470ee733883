#!/bin/sh
# Question: what do the sampler's approximations cost a student? Grid: s = 2, 200 images per class,
# from one generator per fold: exact ancestral T = 100; T = 50; T = 25; DPM-Solver++ with 25 steps;
# guidance in 0.2 to 0.8 only, and in 0 to 0.5; both together; bf16 network; with FP8=1, on a GPU that
# has them, fp8 products, and these together with both. Students of seeds 0, 1 and 2, five folds,
# judged on training writers only (--val dev). Rule, fixed beforehand: an approximation is offered as harmless where the lower end of
# its 95 % interval against exact is above -1 point; what is neither faster nor harmless is left out.
# Hardware: 2 CPU cores (one job each).  Time: about 40 minutes.  Disk: 200 MB.
# Use: sh scripts/sweeps/digits_approximations.sh [--dry-run]   (JOBS=2: processes at a time, a thread
# each). Running it again goes on where it stopped.
set -eu
cd "$(dirname "$0")/../.."
. scripts/setup_env.sh
dry_flag "scripts/sweeps/digits_approximations.sh" "$@"
find_python
. scripts/sweeps/approximations_study.sh
root=save/digits_approximations sets=syn_dataset/digits_approximations
recipe="--epochs 45 --steps-per-epoch 16 --batch-size 128 --learning-rate 0.2 --lr-schedule cosine --weight-decay 5e-4 --mixup 0.4 --mix-share 0.5"
ways="exact t50 t25 dpm25 interval interval_low dpm25_interval bf16$ways_on_gpu"

commands() { # fold
    f=$1 d=$root/fold$1 data="--task digits --fold $1 --val dev" common="--threads 1 $dry"
    echo "train_teacher $data --model cnn_w32 $recipe --out $d/teacher $common"
    echo "train_generator $data --steps 2000 --out $d/generator $common"
    for name in $ways; do
        set=${sets}_fold${f}_$name
        echo "synthesize --task digits --weights $d/generator --guidance-scale 2 --guided-channels all $(sampler $name 100) --out $set $common"
        [ -e "$d/inspect_$name.json" ] || echo "inspect_set $data --set $set --teacher $d/teacher --cache $root/cache --out $d/inspect_$name.json $common"
        for seed in 0 1 2; do
            echo "distill $data --teacher $d/teacher --student cnn_w8 $recipe --temperature 4 --cache $root/cache --seed $seed --source $set --out $d/${name}_seed$seed $common"
        done
    done
}

run_folds "0 1 2 3 4" commands $root
echo "report --runs $root --out $root/report --baseline exact --margin 1 --title 'Digits: what the approximations cost a student' $(recorded digits_approximations scripts/sweeps/digits_approximations.sh) $dry" |
    "$PYTHON" -m dm_kd
