# Sourced by quickstart.sh and test.sh: an environment with the packages of the given requirement
# files, in $PYTHON. Uses the active environment, else .venv, which it makes.
#   . scripts/setup_env.sh; setup_env requirements.txt [tests/requirements.txt]
setup_env() {
    if [ -z "${PYTHON:-}" ]; then
        if [ -n "${VIRTUAL_ENV:-}${CONDA_PREFIX:-}" ]; then
            PYTHON=python
        else
            if [ ! -x .venv/bin/python ]; then
                python3 -c 'import sys; sys.exit(sys.version_info < (3, 11))' || {
                    echo "error: Python 3.11 or newer is needed, python3 is $(python3 -V)" >&2
                    return 2
                }
                echo "making .venv"
                python3 -m venv .venv
            fi
            PYTHON=.venv/bin/python
        fi
    fi
    stamp=$("$PYTHON" -c 'import sys; print(sys.prefix)')/dm_kd_requirements.txt
    if ! cat "$@" | cmp -s - "$stamp"; then
        echo "installing $*: up to 3 GB to download, 6 GB on disk (torch with its GPU libraries)," \
            "a few minutes"
        for file in "$@"; do
            "$PYTHON" -m pip install --disable-pip-version-check -q -r "$file" || return $?
        done
        cat "$@" >"$stamp"
    fi
}
