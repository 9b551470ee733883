# Sourced by the settings of digits and fashion_mnist: the rivals' flags, each once, for the scripts in
# baselines/ and the sweeps. Terms, weights and rates are the CIFAR presets' unless a flag says another;
# nobody published any for 8 x 8 or 28 x 28 pixels. pool_steps, set by those settings: the same number of
# student steps in fewer epochs, each of which begins with a call for new images (published: 400 steps).
# stream_flags, cmi_flags, nayer_flags and DeepInversion's iterations, set there too: what fits into the minutes
# of the tables at that size of images.
# 128 images a call or step (published: 200 to 400): half the minutes, for all alike.
streams="dafl dfq zskt" pools="fastdfkd fastdfkd_reptile fast_sequential cmi nayer adi"
call="--synthesis-batch 128"

rival() { # METHOD: the flags of its source; those that digits_rivals_tune.sh found best
    case $1 in
    # the last batch norm of DAFL's paper; a sigmoid gave 63 % instead of 88
    dafl) echo "$call --source dafl --generator-output norm $stream_flags" ;;
    dafl_untrained) echo "$(rival dafl) --generator-rate 1e-12" ;; # a control: the generator stays as it began
    dfq | zskt) echo "$call --source $1 $stream_flags" ;;
    cmi) echo "$pool_steps $call --source cmi --bank-images 256 --bn-weight 0.1 $cmi_flags" ;;
    adi) echo "$pool_steps $call --source adi --bn-weight 10 --inner-steps 100" ;;
    nayer) echo "$pool_steps $call --source nayer --bn-ema-weight 1 $nayer_flags" ;;
    fastdfkd_reptile) echo "$pool_steps $call --source $1 --bn-ema-weight 1 --adv-dad-weight 0.1" ;;
    fast_sequential) echo "$pool_steps $call --source $1 --bn-ema-weight 1 --generator-rate 5e-3" ;;
    *) echo "$pool_steps $call --source $1 --bn-ema-weight 1" ;;
    esac
}

gan_flags="--generator gan --truncation 0.7"
inversion_flags="--generator deepinversion --pixel-rate 0.1 --bn-weight 10 --batch-size 250"
guidance_flags="--teacher-guidance 3 --latent-cutmix --steps 50" # DiffDFKD's own, on top of synthesize_flags
adversarial_flags="$guidance_flags --teacher-guidance 1" # with --student
own_cutmix="--mixup 0 --cutmix 0.25 --mix-share 1" # One-Image's own, of every batch

# rival_reports SCRIPT TITLE [GROUPS]: $root's rows against KD on real images, against DM-KD where that is a row,
# and so again without the images of GROUPS.
rival_reports() {
    name=$(basename "$root") says="--runs $root --title '$2' $dry"
    {
        case " $rows " in *" real "*) against="--baseline real" ;; *) against= ;; esac
        echo "report $says --out $root/report $against $(recorded "$name" "$1")"
        case " $rows " in *" dit "*)
            against="--baseline dit"
            echo "report $says --out $root/report_dit $against $(recorded "$name/against_dit" "$1")"
            if [ -n "${3:-}" ]; then
                echo "report $says --out $root/report_others $against --leave-out-groups $3 $(recorded "$name/against_dit_others" "$1")"
            fi ;;
        esac
    } | "$PYTHON" -m dm_kd
}
