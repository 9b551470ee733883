# Sourced by the studies on Fashion-MNIST (fashion_mnist_fidelity.sh and the like), after dry_flag: what
# these scripts share. LeNet-5 with batch norms teaches LeNet-5-half, from images of the one generator
# of scripts/fashion_mnist.sh; students take the recipe of that script for half of its steps, 5 epochs
# of 200 steps of 64. Teacher, generator and set are made here where they are missing. Three seeds of one
# generator and one teacher describe; they carry no claim.
PAIR=lenet5 SIZE=cpu # the studies' own, whatever the rivals run with
. scripts/fashion_mnist_settings.sh
study_steps=200
large=save/models/fashion_mnist_wrn_16_2
set_10k=syn_dataset/fashion_mnist common="--threads 1 $dry"

# trials N: the first N of 6 seeds; every row of a study has the same ones.
trials() { for n in 0 1 2 3 4 5; do echo "seed$n"; done | head -n "$1"; }

foundation() { # teacher, large, generator, or set_10k: as fashion_mnist.sh and the rivals make them
    case $1 in
    teacher) echo "train_teacher $rival_teacher_flags --out $rival_teacher $common" ;;
    large) echo "train_teacher $teacher_flags --out $large $common" ;;
    generator) train_dit "$common" ;;
    set_10k) echo "synthesize $synthesize_flags --weights '$generator' --out $set_10k $common" ;;
    esac
}

# student ROW FLAGS: the command for a student with the seed $seed, below $runs.
student() {
    row=$1
    shift
    echo "distill $distill_flags --steps-per-epoch $study_steps $(as_student lenet5_half) $* --seed $seed --out $runs/${row}_seed$seed $common"
}
