# Sourced by the other scripts.

# setup_env FILE...: a Python with the packages of the requirement files, in $PYTHON: the active
# environment, or else .venv, which is made here. A file that was installed before is not read again.
setup_env() {
    if [ -z "${PYTHON:-}" ]; then
        if [ -n "${VIRTUAL_ENV:-}${CONDA_PREFIX:-}" ]; then
            PYTHON=python
        else
            if ! .venv/bin/python -m pip --version >/dev/null 2>&1; then # missing or incomplete
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
        echo "installing $file (torch and its GPU libraries: 3 GB to download, 6 GB on disk)"
        "$PYTHON" -m pip install --disable-pip-version-check -q -r "$file" || return $?
        cp "$file" "$stamp"
    done
}

# find_python: the active environment's Python or .venv's in $PYTHON. Installs nothing.
find_python() {
    if [ -z "${PYTHON:-}" ]; then
        PYTHON=python
        if [ -z "${VIRTUAL_ENV:-}${CONDA_PREFIX:-}" ] && [ -x .venv/bin/python ]; then
            PYTHON=.venv/bin/python
        fi
        "$PYTHON" -c 'import importlib.util as u, sys; sys.exit(u.find_spec("torch") is None)' || {
            echo "error: $PYTHON has no torch
  run sh scripts/quickstart.sh once, which makes .venv, or activate your environment" >&2
            exit 2
        }
    fi
}

# launch MODULE FLAGS...: one process, or NGPU processes under torchrun, one per GPU. torchrun starts
# all of them again, up to MAX_RESTARTS times, when one is killed; they resume from the last checkpoint.
# With PRINT_ONLY=1 the command is printed instead, a word a line: dm_kd.study reads settings so.
launch() {
    if [ -n "${PRINT_ONLY:-}" ]; then
        printf '%s\n' "$@"
        exit
    fi
    find_python
    if [ "${NGPU:-1}" -gt 1 ]; then
        exec "$PYTHON" -m torch.distributed.run --standalone --nproc-per-node "$NGPU" \
            --max-restarts "${MAX_RESTARTS:-0}" -m "$@"
    fi
    exec "$PYTHON" -m "$@"
}

# unknown WHAT GIVEN KNOWN: the error of a script whose first words are not known, exit code 2.
unknown() {
    echo "error: unknown $1 '$2'
  known: $3" >&2
    exit 2
}
