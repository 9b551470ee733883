#!/bin/sh
# Install, lint and the test suite (CPU, offline after the install), JOBS=2 processes at a time. All should pass; what
# needs a GPU is skipped without one.
# Hardware: 2 CPU cores.  Time: about 3 minutes after the install.  Disk: 6 GB for packages.
# Usage: sh scripts/test.sh [pytest flags, such as -m slow or -k dit]
set -eu
cd "$(dirname "$0")/.."
. scripts/setup_env.sh
setup_env requirements.txt tests/requirements.txt
"$PYTHON" -m ruff check dm_kd tests
exec "$PYTHON" -m pytest -c tests/pytest.ini -n "${JOBS:-2}" --dist worksteal tests "$@"
