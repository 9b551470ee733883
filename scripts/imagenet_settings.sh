# Sourced by baselines/imagenet_*.sh: STUDENT=resnet50 (default), resnet18 or mobilenet_v2, the published
# students of ResNet-50; and the recipe of 90 epochs of the rows that name 90.
# adversary: FastDFKD's published weight of adv_dad, by student.
name=${STUDENT:-resnet50}
case $name in
resnet50 | mobilenet_v2) adversary=0.1 ;;
resnet18) adversary=1 ;;
*) echo "error: STUDENT is resnet50, resnet18 or mobilenet_v2, not '$name'" >&2; exit 2 ;;
esac
pair_flags="--task imagenet --teacher torchvision:resnet50 --student torchvision:$name"
recipe="--batch-size 256 --learning-rate 0.1 --weight-decay 1e-4"
recipe_90="--epochs 90 --lr-decay-epochs 30,60 $recipe"
