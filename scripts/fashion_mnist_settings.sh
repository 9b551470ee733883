# Sourced by the fashion_mnist scripts: the study's settings, each once. The students' recipe and
# their number of steps are the same for every row of a table: 2,000 steps of 64 in that of
# fashion_mnist.sh, 1,000 of 128 with half mixup in that of the rivals (scripts/baselines).
. scripts/rivals_settings.sh
steps="--epochs 5 --steps-per-epoch 400 --batch-size 64"
lenet5_rate=0.02
teacher_flags="--task fashion_mnist --model wrn_16_2 --epochs 15 --batch-size 128 --learning-rate 0.1 --lr-schedule cosine --weight-decay 5e-4"
# SIZE=gpu, for fashion_mnist.sh and its steps: a larger generator, as many synthetic images as there are
# real ones, 20 epochs of these. Its folders end in _gpu.
case ${SIZE:-cpu} in
cpu)
    size= images=1000
    network="--patch-size 4 --width 144 --depth 6 --heads 6 --steps 6000 --batch-size 64 --learning-rate 2e-3 --warmup-steps 200 --ema 0.999" ;;
gpu)
    size=_gpu images=6000 steps="--epochs 20 --steps-per-epoch 469 --batch-size 128"
    network="--patch-size 2 --width 384 --depth 8 --heads 6 --steps 30000 --batch-size 256 --learning-rate 5e-4 --warmup-steps 1000 --ema 0.9995" ;;
*) echo "error: SIZE is cpu or gpu, not '$SIZE'" >&2; exit 2 ;;
esac
generator_flags="--task fashion_mnist $network"
# GENERATOR=save/results/fashion_mnist/generator: the recorded one (SIZE=cpu), and none is trained.
generator=${GENERATOR:-save/generators/fashion_mnist_dit$size}
train_dit() { # FLAGS: the command for the generator, unless one was given
    [ -n "${GENERATOR:-}" ] || echo "train_generator $generator_flags --out '$generator' $*"
}
synthesize_flags="--task fashion_mnist --generator dit --guidance-scale 1 --steps 50 --images-per-class $images"
recipe="$steps --learning-rate 0.05 --lr-schedule cosine --weight-decay 5e-4"
distill_flags="--task fashion_mnist $recipe --temperature 4"
as_student() { # NAME: a student with its rate (sweeps/fashion_mnist_dev.sh: at 0.05 LeNet's units die)
    case $1 in lenet5*) echo "--student $1 --learning-rate $lenet5_rate" ;; *) echo "--student $1" ;; esac
}
# The rivals' pair: LeNet-5 with batch norms (those that read a teacher's batch statistics need some, the
# plain LeNet-5 has none; so all rows have it) to the plain LeNet-5-half. PAIR=wrn: WRN-16-2 to WRN-16-1.
rival_teacher_flags="--task fashion_mnist --model lenet5_bn --epochs 15 --batch-size 128 --learning-rate 0.05 --lr-schedule cosine --weight-decay 5e-4"
case ${PAIR:-lenet5} in
lenet5) rival_teacher=save/models/fashion_mnist_lenet5_bn rival_student=lenet5_half pair= rival_rate=$lenet5_rate ;;
wrn) rival_teacher=save/models/fashion_mnist_wrn_16_2 rival_student=wrn_16_1 pair=_wrn rival_rate=0.05 rival_teacher_flags=$teacher_flags ;;
*) echo "error: PAIR is lenet5 or wrn, not '$PAIR'" >&2; exit 2 ;;
esac
rival_steps="--epochs 20 --steps-per-epoch 50 --batch-size 128"
rival_recipe="$rival_steps --learning-rate $rival_rate --lr-schedule cosine --weight-decay 5e-4 --mixup 0.4 --mix-share 0.5"
rival_pair="--task fashion_mnist --teacher $rival_teacher --student $rival_student"
rival_flags="$rival_pair $rival_recipe --temperature 4"
# What fits into 8 minutes of one core for a row and seed (sweeps/fashion_mnist_rivals.sh), estimated on a processor
# without bfloat16 instructions (Intel Xeon at 2.8 GHz): an update of 128 images takes 1.1 s, adi's 0.1, DeepInversion's
# of 250 0.11; each of the streams' student steps costs 0.26 s of generator, whose narrower first map saves a quarter.
# With such instructions the streams take 2 minutes a row and seed, the pools 1.5 to 2, NAYER 6. The pools make 10
# calls before the first step and one in each of the 20 epochs; FastDFKD has its 10 updates, CMI 14 of 200 and 5 calls
# before, NAYER 10 of 40 for each batch of noisy layers.
pool_steps="--warmup-calls 10" stream_flags="--generator-width 64" cmi_flags="--warmup-calls 5 --inner-steps 14" nayer_flags="--inner-steps 10"
inversion_flags="$inversion_flags --iterations 250"
guided_images=200 # of each class, of DiffDFKD: 21 to 25 minutes; 1,000 would take 100 and more
