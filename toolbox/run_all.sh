#!/bin/sh
# From a sequence folder, a base and inpainting weights to finished videos. What it does and takes:
#     bash toolbox/run_all.sh --help
root=$(cd "$(dirname "$0")/.." && pwd)
python=$(command -v python || command -v python3)
exec "$python" "$root/toolbox/run_all.py" "$@"
