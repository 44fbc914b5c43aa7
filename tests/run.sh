#!/bin/sh
# Sets up .venv and runs the linter and all tests, in two processes. Arguments go to pytest.
set -eu
cd "$(dirname "$0")/.."
. toolbox/venv.sh
use_venv cognvs_requirements.txt tests/requirements.txt
ruff check .
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}"  # two processes of one thread, not of all cores
exec python -m pytest -c tests/pytest.ini tests -n 2 --dist loadfile "$@"
