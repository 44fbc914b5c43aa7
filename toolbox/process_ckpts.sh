#!/bin/sh
# Turns training checkpoints */checkpoint-200 into */my_checkpoint-200_transformer/, weights that
# demo.py loads. Runs of this trainer have them already; it is for those of the published trainer.
#     cp toolbox/process_ckpts.sh toolbox/config.json \
#         toolbox/diffusion_pytorch_model.safetensors.index.json checkpoints/
#     cd checkpoints && sh process_ckpts.sh
# It works on all runs in the folder that it is started in, or on those named as arguments. Weights
# that are there already are left alone. Another step than 200: edit CHECKPOINT_DIR below, or
#     CHECKPOINT_DIR=checkpoint-100 sh process_ckpts.sh
# The training state stays, unless DELETE_TRAINING_STATE=yes is given. The weights come in the
# trainer's bf16, 11.1 GB for the real model. They are read and written one shard at a time.
set -eu

CHECKPOINT_DIR="${CHECKPOINT_DIR:-checkpoint-200}"
DELETE_TRAINING_STATE="${DELETE_TRAINING_STATE:-no}"
SHARD_SIZE="${SHARD_SIZE:-5GB}"
python=$(command -v python || command -v python3)

fail() { echo "error: $1" >&2; exit 2; }

convert() {  # convert <run>/checkpoint-N <target folder>
    latest=$(cat "$1/latest")
    case "$latest" in
        "" | . | .. | */*) fail "$1/latest: got '$latest'; expected the name of a folder in $1" ;;
    esac
    rm -rf "$2.part"
    mkdir "$2.part"
    # ZeRO-2 keeps the bf16 weights whole. demo.py would round the float32 ones to the same.
    "$python" - "$1/$latest/mp_rank_00_model_states.pt" "$2.part" "$SHARD_SIZE" <<'END' ||
import ctypes
import json
import os
import signal
import sys

ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG: to end when this script does

import torch
from huggingface_hub import split_torch_state_dict_into_shards
from safetensors.torch import save_file

path, folder, size = sys.argv[1:]
pattern = "diffusion_pytorch_model{suffix}.safetensors"
try:
    state = torch.load(path, map_location="cpu", mmap=True, weights_only=True)["module"]
    meta = {name: tensor.to("meta") for name, tensor in state.items()}
    plan = split_torch_state_dict_into_shards(meta, filename_pattern=pattern, max_shard_size=size)
    for file, names in plan.filename_to_tensors.items():
        shard = {name: state[name].clone() for name in names}
        save_file(shard, f"{folder}/{file}", {"format": "pt"})
        os.chmod(f"{folder}/{file}", os.stat(folder).st_mode & 0o666)  # safetensors makes it 0600
    if plan.is_sharded:
        index = {"metadata": plan.metadata, "weight_map": plan.tensor_to_filename}
        with open(f"{folder}/diffusion_pytorch_model.safetensors.index.json", "w") as file:
            json.dump(index, file, indent=2)
except Exception as error:  # of a file that is broken or not to be trusted, or a disk that is full
    reason = " ".join(str(error).split()).split("trusted source. ")[-1][:200]
    print(f"error: {path}: could not be made into weights: {reason}", file=sys.stderr)
    sys.exit(2)
END
        { rm -rf "$2.part"; exit 2; }
    if [ -f "$1/config.json" ]; then  # of this trainer; the published one writes none
        cp "$1/config.json" "$2.part/"
    else
        cp config.json "$2.part/"
    fi
    mv "$2.part" "$2"
    echo "wrote $2"
}

case "${1-}" in
    -h | --help) sed -n '2,/^set/s/^# \{0,1\}//p' "$0"; exit 0 ;;
esac
[ $# -gt 0 ] || set -- *
found=no
for run in "$@"; do
    checkpoint="$run/$CHECKPOINT_DIR"
    [ -f "$checkpoint/latest" ] || continue
    found=yes
    target="${checkpoint%/*}/my_${CHECKPOINT_DIR}_transformer"
    if [ -d "${checkpoint%/*}/my_${CHECKPOINT_DIR}_lora" ]; then
        echo "$run is a LoRA; it needs no processing"
        continue
    elif [ -d "$target" ]; then
        echo "$target is there already"
    elif [ -f "$checkpoint/config.json" ] || [ -f config.json ]; then
        convert "$checkpoint" "$target"
    else
        fail "no $checkpoint/config.json and no config.json here; copy toolbox/config.json here"
    fi
    if [ "$DELETE_TRAINING_STATE" = yes ]; then
        rm -rf "$checkpoint"
        echo "deleted $checkpoint"
    fi
done
if [ "$found" = no ]; then
    fail "no */$CHECKPOINT_DIR of a run in $(pwd); set CHECKPOINT_DIR to a step that is there"
fi
