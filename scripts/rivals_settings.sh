# Sourced by digits_baselines.sh and fashion_mnist_baselines.sh: the flags of the methods that make images
# while the student learns. Nobody published settings for 8 x 8 or 28 x 28 pixels: these are the CIFAR presets with
# the changes that were best of four trials each on digits (save/results/digits_rivals_tune), and with
# 128 images per batch (published: 200 to 400). $pool, $width, $cmi and $nayer are set by the two scripts.
rival() { # METHOD
    case $1 in
    # the last batch norm of DAFL's paper: with a sigmoid the images begin grey, and the student may learn nothing
    dafl) set -- dafl --generator-output norm $width ;;
    dfq | zskt) set -- "$1" $width ;;
    cmi) set -- cmi $pool $cmi --bank-images 256 --bn-weight 0.1 ;;
    adi) set -- adi $pool --bn-weight 10 --inner-steps 100 ;;
    nayer) set -- nayer $pool $nayer --bn-ema-weight 1 ;;
    fastdfkd_reptile) set -- "$1" $pool --bn-ema-weight 1 --adv-dad-weight 0.1 ;;
    fast_sequential) set -- "$1" $pool --bn-ema-weight 1 --generator-rate 5e-3 ;;
    fastdfkd) set -- "$1" $pool --bn-ema-weight 1 ;;
    esac
    echo "--synthesis-batch 128 --source $*"
}
streams_and_pools="dafl dfq zskt fastdfkd fastdfkd_reptile fast_sequential cmi nayer adi"
