# Sourced by the digits scripts: the recipe of teachers and students, chosen on writers who had left training
# (save/results/digits_dev.json). Every row of a table takes the same number of steps.
recipe="--epochs 90 --steps-per-epoch 16 --batch-size 128 --learning-rate 0.2 --lr-schedule cosine \
--weight-decay 5e-4 --mixup 0.4 --mix-share 0.5"
dit="--generator dit --weights save/generators/digits_dit --guidance-scale 1"
