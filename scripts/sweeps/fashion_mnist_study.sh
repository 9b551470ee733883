# Sourced by the studies on Fashion-MNIST (fashion_mnist_fidelity.sh and the like), after dry_flag: the
# trials, and what these scripts share: the teacher, the one generator and the set of
# scripts/fashion_mnist.sh (made here where they are missing). A trial is a set of that generator and
# a student; every row of a study has the same trials, so that its rows are compared in pairs.
. scripts/fashion_mnist_settings.sh
teacher=save/models/fashion_mnist_wrn_16_2 generator=save/generators/fashion_mnist_dit
common="--threads 1 $dry"

# trials N: the first N of 6: sets 0 and 1 first, then three students of each.
trials() {
    for student in 0 1 2; do
        for set in 0 1; do echo "set${set}_seed$((3 * set + student))"; done
    done | head -n "$1"
}

# number WHAT NAME: the 2 of "set" in set2_seed6_s1.5
number() { echo "$2" | tr _ '\n' | sed -n "s/^$1\([0-9.][0-9.]*\)\$/\1/p"; }

foundation() { # teacher, or generator: as scripts/fashion_mnist.sh makes them
    case $1 in
    teacher) echo "train_teacher $teacher_flags --out $teacher $common" ;;
    generator) echo "train_generator $generator_flags --out $generator $common" ;;
    esac
}

# make_set NAME FLAGS: the command for set number $set, in $source.
make_set() {
    source=syn_dataset/fashion_mnist_study_set${set}_$1
    shift
    echo "synthesize $synthesize_flags --guided-channels all $* --weights $generator --seed $set --out $source $common"
}

# student ROW FLAGS: the command for a student of the set $set with the seed $seed, below $runs.
student() {
    row=$1
    shift
    echo "distill $distill_flags $* --seed $seed --out $runs/${row}_set${set}_seed$seed $common"
}
