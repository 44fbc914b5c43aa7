#!/usr/bin/env bash
# Sets up .venv and runs everything once, on the shipped sequence and a small random model, on the CPU or a GPU.
set -euo pipefail
cd "$(dirname "$0")/.."
. toolbox/venv.sh
use_venv cognvs_requirements.txt

[ -e checkpoints/tiny/base/model_index.json ] || python toolbox/make_tiny_checkpoint.py --output_dir checkpoints/tiny
bash toolbox/run_all.sh --data_path demo_data/room --model_path checkpoints/tiny/base \
    --transformer_id checkpoints/tiny/cognvs_ckpt_inpaint --output_dir checkpoints/cognvs_tiny_finetuned_room \
    --train_epochs 20 --num_inference_steps 10 --learning_rate 3e-4
cat <<'END'
The renders with their holes are demo_data/room/eval_render*.mp4, the finished views are in
demo_data/room/outputs/cognvs_tiny_finetuned_room/. Look first, there, at
    eval_render1_side_by_side.mp4    source | render | output | truth
The small model has random weights: it shows that every stage works, not what the real weights make of the holes.
END
