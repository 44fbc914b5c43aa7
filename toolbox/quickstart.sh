#!/bin/sh
# Sets up .venv and runs everything once, on the shipped sequence and the shipped small model:
#     bash toolbox/quickstart.sh
# It takes about 5 minutes on 2 CPU cores, or less on a GPU.
set -eu
case "${1-}" in
    -h | --help) sed -n '2,4s/^# \{0,1\}//p' "$0"; exit 0 ;;
    ?*) echo "error: got $1; quickstart.sh takes no arguments" >&2; exit 2 ;;
esac
cd "$(dirname "$0")/.."
. toolbox/venv.sh
use_venv cognvs_requirements.txt

sh toolbox/run_all.sh --data_path demo_data/room --model_path checkpoints/tiny/base \
    --transformer_id checkpoints/tiny/cognvs_ckpt_inpaint \
    --output_dir checkpoints/tiny_finetuned_room \
    --train_epochs 20 --learning_rate 5e-5 --lr_scheduler linear --num_inference_steps 10 \
    --score quick
cat <<'END'
Open demo_data/room/report/index.html in a browser: source, render with its holes, output and truth.
The small model fills holes as the real one does, but softly (checkpoints/tiny/README.md).
To start any program yourself, first activate its environment:
    . .venv/bin/activate
END
