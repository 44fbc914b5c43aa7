#!/bin/sh
# Sets up .venv and runs the linter and all tests, in three processes. Arguments go to pytest.
set -eu
cd "$(dirname "$0")/.."
. toolbox/venv.sh
use_venv cognvs_requirements.txt tests/requirements.txt
ruff check .
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}"  # processes of one thread, not of all cores
# Three keep two cores busy, for many tests wait for programs that they started.
exec python -m pytest -c tests/pytest.ini tests -n 3 --dist loadfile "$@"
