# Sourced by digits_approximations.sh and fashion_mnist_approximations.sh: the sampler's approximations.

# sampler WAY EXACT: the flags that make images the given way; the exact one takes EXACT ancestral steps.
sampler() {
    case $1 in
    exact) echo "--steps $2" ;;
    t50) echo "--steps 50" ;;
    t25) echo "--steps 25" ;;
    dpm25) echo "--sampler dpm++ --steps 25" ;;
    interval) echo "--steps $2 --guidance-interval 0.2-0.8" ;;
    interval_low) echo "--steps $2 --guidance-interval 0-0.5" ;;
    dpm25_interval) echo "--sampler dpm++ --steps 25 --guidance-interval 0.2-0.8" ;;
    bf16) echo "--steps $2 --dtype bf16" ;;
    fp8) echo "--steps $2 --fp8" ;;
    together) echo "--sampler dpm++ --steps 25 --guidance-interval 0.2-0.8 --fp8" ;;
    esac
}

ways_on_gpu= # of a GPU that has fp8 products
if [ "${FP8:-0}" = 1 ]; then ways_on_gpu=" fp8 together"; fi
