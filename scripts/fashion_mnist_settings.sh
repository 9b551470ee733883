# Sourced by the fashion_mnist scripts: the study's settings, each once. The students' recipe and
# their number of steps are the same for every row of a table: 2,000 steps of 64 in that of
# fashion_mnist.sh, 4,000 of 128 in that of the rivals (scripts/baselines).
steps="--epochs 5 --steps-per-epoch 400 --batch-size 64"
recipe="$steps --learning-rate 0.05 --lr-schedule cosine --weight-decay 5e-4"
teacher_flags="--task fashion_mnist --model wrn_16_2 --epochs 15 --batch-size 128 --learning-rate 0.1 --lr-schedule cosine --weight-decay 5e-4"
generator_flags="--task fashion_mnist --patch-size 4 --width 144 --depth 6 --heads 6 --steps 6000 --batch-size 64 --learning-rate 2e-3 --warmup-steps 200 --ema 0.999"
synthesize_flags="--task fashion_mnist --generator dit --guidance-scale 1 --steps 50 --images-per-class 1000"
distill_flags="--task fashion_mnist $recipe --temperature 4"
rival_steps="--epochs 40 --steps-per-epoch 100 --batch-size 128"
rival_flags="$distill_flags $rival_steps --student lenet5_half"
