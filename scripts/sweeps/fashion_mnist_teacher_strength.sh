#!/bin/sh
# Question: as digits_teacher_strength.sh, on Fashion-MNIST: do weak teachers teach better, also when the
# temperature is tuned for each? Grid: teachers LeNet-5-half (the student's own size), LeNet-5 with batch
# norms after 1 and after 15 epochs, and WRN-16-2 x temperature 4 and the one of 1, 4, 16 that is best
# for this teacher on a sixth of the training images (--val dev; teachers and generator have seen these,
# no student has; one student each; ties: the lower). LeNet-5-half students, 1,000 steps, 3 seeds, all
# from the set of scripts/fashion_mnist.sh.
# Decision rule: none. One generator and one training of each teacher: descriptive, no claim; the page
# shows the interval (95 %, report.py) of each teacher's students minus those of LeNet-5 after 15 epochs.
# Hardware: 2 CPU cores (one job each).  Disk: 300 MB.
# Time: about 20 minutes (an estimate: of one core, teachers 6 minutes, tuning 7, students 13, the logits
# of WRN-16-2 13), 4 hours more where scripts/fashion_mnist.sh has not been run.
# Use: [GENERATOR=FOLDER] sh scripts/sweeps/fashion_mnist_teacher_strength.sh [--dry-run]     (JOBS=2: processes at a time)
#      TRIALS=3 (see fashion_mnist_study.sh); a later call with a larger number goes on.
# Record: python -m dm_kd.report ... --record save/results/fashion_mnist_teacher_strength/ROW (this script with RECORD=1)
set -eu
cd "$(dirname "$0")/../.."
. scripts/setup_env.sh
dry_flag "scripts/sweeps/fashion_mnist_teacher_strength.sh" "$@"
find_python
. scripts/sweeps/fashion_mnist_study.sh
root=save/fashion_mnist_teacher_strength trials=${TRIALS:-3} temperatures="1 4 16"
teachers="lenet5_half lenet5_bn_epochs1 lenet5_bn wrn_16_2"

teacher_of() { # TEACHER: its folder
    case $1 in
    lenet5_bn) echo "$rival_teacher" ;;
    wrn_16_2) echo "$large" ;;
    *) echo "$root/teachers/$1" ;;
    esac
}

train() { # lenet5_half, or lenet5_bn_epochs1
    case $1 in
    lenet5_half) changes="--model lenet5_half --learning-rate $lenet5_rate --seed 100" ;; # no student's seed
    *_epochs*) changes="--epochs ${1#*_epochs}" ;;
    esac
    echo "train_teacher $rival_teacher_flags $changes --out $(teacher_of "$1") $common"
}

tune() { # tune_TEACHER: students at each temperature, judged on training images
    from=${1#tune_}
    for t in $temperatures; do
        echo "distill $distill_flags --steps-per-epoch $study_steps --val dev $(as_student lenet5_half) --teacher $(teacher_of "$from") --source $set_10k --temperature $t --cache-teacher fp32 --out $root/dev/${from}_at$t $common"
    done
}

tuned() { # TEACHER: the temperature that was best
    best_of "$root/dev/$1_at" "$temperatures"
}

study() { # seed0_TEACHER: its students
    seed=$(number seed "$1") from=${1#*_}
    at=$(tuned "$from") # nothing in a dry run, before anything is tuned
    kd="--teacher $(teacher_of "$from") --source $set_10k --cache-teacher fp32"
    runs=$root/fixed
    student "$from" "$kd"
    runs=$root/tuned
    student "$from" "$kd" --temperature "${at:-4}"
}

students=
for trial in $(trials "$trials"); do
    for t in $teachers; do students="$students ${trial}_$t"; done
done

run_folds "teacher large generator" foundation $root
run_folds set_10k foundation $root
run_folds "lenet5_half lenet5_bn_epochs1" train $root
run_folds "$(for t in $teachers; do echo "tune_$t"; done)" tune $root
run_folds "$students" study $root
for row in fixed tuned; do
    echo "report --runs $root/$row --out $root/report_$row --rows $(echo $teachers | tr ' ' ,) --baseline lenet5_bn --title 'Fashion-MNIST: teachers of rising strength, temperature $row' --question 'Do weak teachers teach better?' $(recorded "fashion_mnist_teacher_strength/$row" scripts/sweeps/fashion_mnist_teacher_strength.sh) $dry"
done | "$PYTHON" -m dm_kd
