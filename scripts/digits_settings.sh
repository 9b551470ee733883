# Sourced by the digits scripts: the study's settings, each once. Chosen on writers who had left training
# (scripts/sweeps/digits_dev.sh; save/results/digits_dev.json); the student's recipe and its number of
# steps are the same for every row of a table.
. scripts/rivals_settings.sh
steps="--epochs 90 --steps-per-epoch 16 --batch-size 128"
recipe="$steps --learning-rate 0.2 --lr-schedule cosine --weight-decay 5e-4 --mixup 0.4 --mix-share 0.5"
teacher_flags="--task digits --model cnn_w32 $recipe"
generator_flags="--task digits --steps 2000"
synthesize_flags="--task digits --generator dit --guidance-scale 1 --steps 100 --images-per-class 200"
alone_flags="--task digits --model cnn_w8 $recipe"
rival_steps="--epochs 45" # the rivals' table: half of the steps, 720, and 1,000 images
rival_images=100 pool_steps="--epochs 15 --steps-per-epoch 48 --warmup-calls 5" # 20 calls of 128 images: 2,560
stream_flags= cmi_flags="--inner-steps 40" nayer_flags="--loops 1 --warmup-loops 2 --inner-steps 20"
inversion_flags="$inversion_flags --iterations 300"
distill_flags="--task digits --student cnn_w8 $recipe --temperature 4"
rival_flags="$distill_flags $rival_steps"
