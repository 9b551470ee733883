# Sourced by the studies on the digits (digits_fidelity.sh and the like), after dry_flag: the trials,
# and what these scripts share. A trial is a fold by writer, a generator with its teacher, a set and a
# student; every row of a study has the same trials, so that its rows are compared in pairs. Teachers
# and generators are those of scripts/digits.sh (made here where they are missing). The studies take
# its recipe for half of its steps, 45 epochs of 16, and 100 images per class: all four together take
# about 7 hours of two cores with bfloat16 instructions, teachers and generators among them.
. scripts/digits_settings.sh
study_epochs=45 study_images=100
sets=syn_dataset/digits_study

# trials N: the first N of 90. 15 are the 5 folds x generators 0 to 2: 15 generators and teachers, each
# trained by itself; 30 have a second set from each of these; 90 a second and a third student from each
# of the 30 sets. Generators come first since students of one generator share what it left out.
trials() {
    for student in 0 1 2; do
        for set in 0 1; do
            for gen in 0 1 2; do
                for fold in 0 1 2 3 4; do
                    echo "fold${fold}_gen${gen}_set${set}_seed$((6 * gen + 3 * set + student))"
                done
            done
        done
    done | head -n "$1"
}

# read_trial NAME: its numbers, the folder of its teacher and generator, and flags of all commands.
read_trial() {
    fold=$(number fold "$1") gen=$(number gen "$1") set=$(number set "$1") seed=$(number seed "$1")
    base=save/digits/fold${fold}_seed$gen place=fold${fold}_gen$gen common="--threads 1 $dry"
}

# foundations N: the teacher and the generator of the first N trials, each once.
foundations() {
    run_folds "$(trials "$1" | sed 's/_set.*//' | sort -u)" foundation "$root"
}
foundation() { # fold0_gen1: as scripts/digits.sh makes them
    read_trial "$1"
    echo "train_teacher $teacher_flags --fold $fold --out $base/teacher --seed $gen $common"
    echo "train_generator $generator_flags --fold $fold --out $base/generator --seed $gen $common"
}

# make_set NAME FLAGS: the command for a set of the trial that was read, in $source.
make_set() {
    source=${sets}_${place}_set${set}_$1
    shift
    echo "synthesize $synthesize_flags --images-per-class $study_images --guided-channels all $* --weights $base/generator --seed $((2 * gen + set)) --out $source $common"
}

# inspect FILE FLAGS: the command that looks at $source, once.
inspect() {
    file=$1
    shift
    [ -e "$file" ] || echo "inspect_set --task digits --fold $fold --set $source --teacher $base/teacher $* --out $file $common"
}

# student ROW FLAGS: the command for a student of the trial that was read, below $runs.
student() {
    row=$1
    shift
    echo "distill $distill_flags --epochs $study_epochs --fold $fold $* --seed $seed --out $runs/$place/${row}_set${set}_seed$seed $common"
}
