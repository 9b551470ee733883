# Sourced by quickstart.sh and test.sh: an environment with the packages of the given requirement
# files, in $PYTHON. Uses the active environment, else .venv, which it makes.
#   . scripts/setup_env.sh; setup_env requirements.txt [tests/requirements.txt]
setup_env() {
    if [ -z "${PYTHON:-}" ]; then
        if [ -n "${VIRTUAL_ENV:-}${CONDA_PREFIX:-}" ]; then
            PYTHON=python
        else
            if ! .venv/bin/python -m pip --version >/dev/null 2>&1; then # none, or half of one
                python3 -c 'import sys; sys.exit(sys.version_info < (3, 11))' || {
                    echo "error: Python 3.11 or newer is needed, python3 is $(python3 -V)" >&2
                    return 2
                }
                echo "making .venv"
                python3 -m venv --clear .venv
            fi
            PYTHON=.venv/bin/python
        fi
    fi
    prefix=$("$PYTHON" -c 'import sys; print(sys.prefix)')
    for file in "$@"; do
        stamp=$prefix/dm_kd_$(echo "$file" | tr / _)
        cmp -s "$file" "$stamp" && continue
        if [ "$file" = requirements.txt ]; then
            echo "installing $file: up to 3 GB to download, 6 GB on disk (torch with its GPU" \
                "libraries), a few minutes"
        else
            echo "installing $file: about 150 MB"
        fi
        "$PYTHON" -m pip install --disable-pip-version-check -q -r "$file" || return $?
        cp "$file" "$stamp"
    done
}

# The interpreter of the active environment or of .venv, without installing anything: $PYTHON.
find_python() {
    if [ -z "${PYTHON:-}" ]; then
        PYTHON=python
        if [ -z "${VIRTUAL_ENV:-}${CONDA_PREFIX:-}" ] && [ -x .venv/bin/python ]; then
            PYTHON=.venv/bin/python
        fi
        "$PYTHON" -c 'import importlib.util as u, sys; sys.exit(u.find_spec("torch") is None)' || {
            echo "error: $PYTHON has no torch
  try      sh scripts/quickstart.sh once, which makes .venv; or activate your environment" >&2
            exit 2
        }
    fi
}

# run_folds "0 1 2" COMMANDS LOGS: for each name, the lines that `COMMANDS name` prints in one Python
# process each, JOBS at a time (default 2); their output in LOGS/log_<name>.txt, or here in a dry run.
run_folds() {
    names=$1 printer=$2 logs=$3
    if [ -n "${dry:-}" ]; then
        lines=$(for name in $names; do "$printer" "$name" || exit; done) || return
        echo "$lines" | "$PYTHON" -m dm_kd
        return
    fi
    mkdir -p "$logs"
    for name in $names; do "$printer" "$name" >"$logs/commands_$name.txt"; done
    echo "running $(echo $names | wc -w) jobs, ${JOBS:-2} at a time; see $logs/log_*.txt"
    echo $names | tr ' ' '\n' | xargs -P "${JOBS:-2}" -I{} sh -c \
        '"$1" -m dm_kd <"$2/commands_{}.txt" >>"$2/log_{}.txt" 2>&1 || { tail -n 6 "$2/log_{}.txt" >&2; exit 1; }' \
        sh "$PYTHON" "$logs"
}

# chain_flags SCRIPT "$@": the flags of a script that runs many commands, in $seed, $threads (of each
# command; a default is set before) and $dry.
chain_flags() {
    script=$1 seed=0 seeded= dry=
    shift
    while [ $# -gt 0 ]; do
        case "$1" in
        --seed) seed=${2:?--seed needs a number} seeded=" --seed $2"; shift 2 ;;
        --threads) threads=${2:?--threads needs a number}; shift 2 ;;
        --dry-run) dry=--dry-run; shift ;;
        *) echo "error: unknown flag '$1'
  try      sh $script [--seed N] [--threads N] [--dry-run]" >&2; exit 2 ;;
        esac
    done
}

# dry_flag SCRIPT "$@": the one flag of a script with fixed seeds, in $dry.
dry_flag() {
    case "${2:-}" in
    '') dry= ;;
    --dry-run) dry=--dry-run ;;
    *) echo "error: unknown flag '$2'
  try      sh $1 [--dry-run]" >&2; exit 2 ;;
    esac
}

# check_rows ROWS ALL: ends where one of ROWS is not among them.
check_rows() {
    for row in $1; do
        case " $2 " in *" $row "*) ;; *) echo "error: no row '$row'; there are: $2" >&2; exit 2 ;; esac
    done
}

# recorded NAME SCRIPT: with RECORD=1 report's flags that keep its tables and charts in save/results/NAME,
# and the command with the variables and the seed that the script was called with.
recorded() {
    if [ "${RECORD:-}" = 1 ]; then echo "--record save/results/$1 --command '${called_with}sh $2${seeded:-}'"; fi
}
called_with=
for variable in GENERATOR PAIR RECIPE ROUNDS STEPS TRIALS GRID CLAIM PLAIN STRONG GUIDANCE METHODS SIZE SEEDS SETS PER_CLASS FP8 WEIGHTS VAE ROWS; do
    eval "value=\${$variable:-}"
    case $value in
    '') ;;
    *[!A-Za-z0-9._/-]*) called_with="$called_with$variable=\"$value\" " ;;
    *) called_with="$called_with$variable=$value " ;;
    esac
done

# number WHAT NAME: the 2 of "set" in fold0_gen1_set2_seed3_s1.5
number() { echo "$2" | tr _ '\n' | sed -n "s/^$1\([0-9.][0-9.]*\)\$/\1/p"; }

# best_of PREFIX "1 4 16": of the finished runs in PREFIX1, PREFIX4 ... the one with the highest accuracy, of
# equal ones the first; nothing where none is finished.
best_of() {
    found=$(for value in $2; do
        sed -n "s/^ *\"acc1\": \([0-9.]*\).*/\1 $value/p" "$1$value/result.json" 2>/dev/null || true
    done | LC_ALL=C sort -s -k 1,1nr | head -n 1)
    echo "${found#* }"
}

# launch MODULE FLAGS...: one process, or NGPU of them under torchrun (one per GPU), in place of the
# shell. With MAX_RESTARTS=n all of them start again, up to n times, where one was killed; they go on
# from the last checkpoint.
launch() {
    find_python
    module=$1
    shift
    if [ "${NGPU:-1}" -gt 1 ]; then
        exec "$PYTHON" -m torch.distributed.run --standalone --nproc-per-node "$NGPU" \
            --max-restarts "${MAX_RESTARTS:-0}" -m "$module" "$@"
    fi
    exec "$PYTHON" -m "$module" "$@"
}
