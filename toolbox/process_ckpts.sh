#!/bin/sh
# Turns the training checkpoints */checkpoint-N into */my_checkpoint-N_transformer/, weights that demo.py loads. Runs of
# this trainer have them already; this is for checkpoints of the published one.
#     cp toolbox/process_ckpts.sh toolbox/config.json toolbox/diffusion_pytorch_model.safetensors.index.json checkpoints/
#     cd checkpoints && sh process_ckpts.sh
# Works on all runs in the folder it is run in, or on those named as arguments. What is there already is left alone.
# The training state stays unless DELETE_TRAINING_STATE=yes is given. Needs memory for the whole model in fp32 (22.5 GB for the real one).
set -eu

CHECKPOINT_DIR="${CHECKPOINT_DIR:-checkpoint-200}"
DELETE_TRAINING_STATE="${DELETE_TRAINING_STATE:-no}"
python=$(command -v python || command -v python3)
weights=diffusion_pytorch_model

convert() {  # convert <run>/checkpoint-N <target folder>
    rm -rf "$2.part"
    "$python" "$1/zero_to_fp32.py" --safe_serialization "$1" "$2.part"
    for shard in "$2.part"/model*.safetensors; do
        mv "$shard" "$2.part/$weights${shard#"$2.part/model"}"
    done
    if [ -f "$2.part/model.safetensors.index.json" ]; then  # several shards: the index that lists those just written
        sed "s/\"model-/\"$weights-/" "$2.part/model.safetensors.index.json" > "$2.part/$weights.safetensors.index.json"
        rm "$2.part/model.safetensors.index.json"
    fi
    if [ -f "$1/config.json" ]; then  # the run's own model; a checkpoint of the published trainer has none
        cp "$1/config.json" "$2.part/"
    else
        cp config.json "$2.part/"
    fi
    mv "$2.part" "$2"
    echo "wrote $2"
}

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
        echo "error: neither $checkpoint/config.json nor config.json is there; copy toolbox/config.json here" >&2
        exit 2
    fi
    if [ "$DELETE_TRAINING_STATE" = yes ]; then
        rm -rf "$checkpoint"
        echo "deleted $checkpoint"
    fi
done
if [ "$found" = no ]; then
    echo "error: no */$CHECKPOINT_DIR of a training run in $(pwd); set CHECKPOINT_DIR to the step that is there" >&2
    exit 2
fi
