# Sourced by quickstart.sh and tests/run.sh: use_venv FILE... makes .venv with these requirement files and activates it.
# One that is there and complete is used as it is.
use_venv() {
    stamp=".venv/.installed-$(cat "$@" | cksum | tr ' ' -)"
    if [ ! -f "$stamp" ]; then
        python3 -c 'import sys; sys.exit(sys.version_info < (3, 11))' || {
            echo "error: got $(python3 --version), expected Python 3.11 or newer as python3" >&2
            exit 2
        }
        .venv/bin/python -m pip --version >/dev/null 2>&1 || python3 -m venv --clear .venv
        requirements=()
        for file in "$@"; do requirements+=(-r "$file"); done
        .venv/bin/python -m pip install --disable-pip-version-check "${requirements[@]}"
        touch "$stamp"
    fi
    . .venv/bin/activate
}
