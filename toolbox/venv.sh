# Sourced by quickstart.sh and tests/run.sh.
# use_venv FILE... installs these requirement files into .venv, unless they are, and activates it.
use_venv() {
    stamp=".venv/.installed-$(cat "$@" | cksum | tr ' ' -)"
    if [ ! -f "$stamp" ]; then
        python3 -c 'import sys; sys.exit(sys.version_info < (3, 11))' || {
            echo "error: got $(python3 --version), expected Python 3.11 or newer as python3" >&2
            exit 2
        }
        .venv/bin/python -m pip --version >/dev/null 2>&1 || python3 -m venv --clear .venv
        requirements=""
        for file in "$@"; do requirements="$requirements -r $file"; done
        # shellcheck disable=SC2086  # one word for each
        .venv/bin/python -m pip install --disable-pip-version-check $requirements
        touch "$stamp"
    fi
    . .venv/bin/activate
}
