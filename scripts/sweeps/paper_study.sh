# Sourced by fidelity.sh, teacher_strength.sh, amount.sh and ways.sh: the paper's data sets, and the
# settings that do not vary in a study. They are those of scripts/<task>_teacher.sh, _synthesize.sh and
# _distill*.sh (a test compares them). Every data set learns from images of ImageNet's own classes: the
# loss needs no labels, so a set serves all of them (CIFAR-100 takes 50 images per class, the others 200).

# study_flags SCRIPT [TASK] [--dry-run]: $task and $dry, and the settings of the task.
study_flags() {
    script=$1 task=imagenet
    shift
    case "${1:-}" in
    '' | -*) ;;
    *) task=$1; shift ;;
    esac
    dry_flag "$script [imagenet|imagenet100|cifar100|flowers102]" "$@"
    synthesize_flags="--task imagenet --generator dit --weights '${WEIGHTS:-facebook/DiT-XL-2-256}' --vae '${VAE:-stabilityai/sd-vae-ft-mse}' --guidance-scale 2 --steps 100"
    recipe="--temperature 10 --batch-size 256 --learning-rate 0.1 --weight-decay 1e-4"
    images=200 set_suffix= family=torchvision: teacher_name=resnet18
    case $task in
    imagenet)
        distill_flags="--task imagenet $recipe --epochs 100 --lr-decay-epochs 30,60,90 --student torchvision:resnet18"
        four_times="--epochs 400 --lr-decay-epochs 120,240,360" tenth="--epochs 10 --lr-decay-epochs 3,6,9"
        steps="--steps-per-epoch 782" features=convnext_tiny ;;
    imagenet100 | flowers102)
        teacher_flags="--task $task --epochs 100 --batch-size 256 --learning-rate 0.1 --lr-decay-epochs 30,60,90 --weight-decay 1e-4"
        distill_flags="--task $task $recipe --epochs 200 --lr-decay-epochs 60,120,180 --student torchvision:resnet50"
        four_times="--epochs 800 --lr-decay-epochs 240,480,720" tenth="--epochs 20 --lr-decay-epochs 6,12,18"
        short_flags="--epochs 10 --lr-decay-epochs 3,6,9" steps="--steps-per-epoch 782" features=shufflenet_v2_x1_0 ;;
    cifar100)
        images=50 set_suffix=_50k family= teacher_name=wrn_40_2
        teacher_flags="--task cifar100 --epochs 240 --lr-decay-epochs 150,180,210 --batch-size 128 --learning-rate 0.05 --weight-decay 5e-4"
        distill_flags="--task cifar100 --temperature 4 --epochs 240 --lr-decay-epochs 150,180,210 --batch-size 128 --learning-rate 0.1 --weight-decay 5e-4 --student wrn_16_2"
        four_times="--epochs 960 --lr-decay-epochs 600,720,840" tenth="--epochs 24 --lr-decay-epochs 15,18,21"
        short_flags=$tenth steps="--steps-per-epoch 391" features=vgg8_bn ;;
    *)
        echo "error: unknown task '$task'
  try      sh $script [imagenet|imagenet100|cifar100|flowers102] [--dry-run]" >&2; exit 2 ;;
    esac
    JOBS=${JOBS:-1}
}

# model NAME: the spec of a teacher: torchvision's for ImageNet, else the folder that train makes.
model() {
    if [ "$task" = imagenet ]; then
        echo "torchvision:$1"
    else
        echo "save/models/${task}_$1"
    fi
}

# train NAME: the command that trains a teacher, NAME_short for a tenth of the epochs; nothing for
# ImageNet, whose teachers are torchvision's.
train() {
    [ "$task" != imagenet ] || return 0
    case $1 in *_short) less=$short_flags ;; *) less= ;; esac
    echo "train_teacher $teacher_flags --model $family${1%_short} $less --out $(model "$1") $dry"
}

# make_set NAME FLAGS: the command for a set of ImageNet's classes, in $source; the same for all tasks.
make_set() {
    source=syn_dataset/imagenet_$1
    shift
    echo "synthesize $synthesize_flags $* --out $source $dry"
}

# student ROW FLAGS: the command for the student of that name, below $runs.
student() {
    row=$1
    shift
    echo "distill $distill_flags $* --seed $seed --out $runs/${row}_seed$seed $dry"
}
