# Sourced by the fashion_mnist scripts: what they share. SIZE=gpu: a larger generator, as many synthetic images as
# there are real ones, students of 20 epochs of these; its folders end in _gpu.
case ${SIZE:-cpu} in
cpu)
    size= images=1000 steps="--epochs 5 --steps-per-epoch 400 --batch-size 64"
    network="--patch-size 4 --width 144 --depth 6 --heads 6 --steps 6000 --batch-size 64 --learning-rate 2e-3 \
--warmup-steps 200 --ema 0.999" ;;
gpu)
    size=_gpu images=6000 steps="--epochs 20 --steps-per-epoch 469 --batch-size 128"
    network="--patch-size 2 --width 384 --depth 8 --heads 6 --steps 30000 --batch-size 256 --learning-rate 5e-4 \
--warmup-steps 1000 --ema 0.9995" ;;
*) unknown SIZE "$SIZE" "cpu gpu" ;;
esac
teacher_recipe="--epochs 15 --batch-size 128 --lr-schedule cosine --weight-decay 5e-4"
# LeNet-5-half has no batch norm: its ReLUs die at 0.05, the rate of WRN-16-1 (save/results/fashion_mnist).
lenet5_rate=0.02 wrn_rate=0.05
recipe="$steps --learning-rate $lenet5_rate --lr-schedule cosine --weight-decay 5e-4"
dit="--generator dit --weights save/generators/fashion_mnist_dit$size --guidance-scale 1 --steps 50"
