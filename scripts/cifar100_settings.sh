# Sourced by baselines/cifar100_*.sh: the five published pairs, PAIR=r34_r18 (default), vgg11_r18,
# w40_2_w16_1, w40_2_w40_1 or w40_2_w16_2, and the recipes: $schedule is what the methods that make images while
# the student learns share, 80,000 student steps of 256; $real_recipe Fast-Datafree's on real images; $stored_recipe
# DM-KD's on stored ones (cifar100_distill_*.sh).
# adversary, sure: FastDFKD's published weights of adv_dad and ce_target, by teacher.
pair=${PAIR:-r34_r18}
case $pair in
r34_r18) teacher=cifar100_cifar_resnet34 student=cifar_resnet18 adversary=1.33 sure=0.5 ;;
vgg11_r18) teacher=cifar100_vgg11_bn student=cifar_resnet18 adversary=1 sure=0.5 ;;
w40_2_w16_1 | w40_2_w40_1 | w40_2_w16_2) teacher=cifar100_wrn_40_2 student=wrn_${pair#w40_2_w} adversary=1.1 sure=0.4 ;;
*) echo "error: PAIR is r34_r18, vgg11_r18, w40_2_w16_1, w40_2_w40_1 or w40_2_w16_2, not '$pair'" >&2; exit 2 ;;
esac
pair_flags="--task cifar100 --teacher save/models/$teacher --student $student"
schedule="--epochs 200 --steps-per-epoch 400 --lr-schedule cosine --weight-decay 1e-4 --batch-size 256"
real_recipe="--epochs 200 --lr-decay-epochs 120,150,180 --batch-size 128 --learning-rate 0.1 --weight-decay 1e-4"
stored_recipe="--temperature 4 --epochs 240 --lr-decay-epochs 150,180,210 --batch-size 128 --learning-rate 0.1 --weight-decay 5e-4"
