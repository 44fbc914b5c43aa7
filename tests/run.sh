#!/bin/sh
# Sets up .venv and runs the linter and all tests. Arguments go to pytest.
set -eu
cd "$(dirname "$0")/.."
. toolbox/venv.sh
use_venv cognvs_requirements.txt tests/requirements.txt
ruff check .
exec python -m pytest -c tests/pytest.ini tests "$@"
