#!/bin/sh
# Test-time finetuning of CogNVS on one video: edit the variables, then
#     cd finetune && sh finetune_cognvs.sh
# Arguments override the variables: sh finetune_cognvs.sh --train_epochs 100 --learning_rate 1e-5
# Paths are relative to this folder, wherever the script is called from. GPUs are chosen in accelerate_config.yaml.
set -eu
cd "$(dirname "$0")"

model_path="../checkpoints/CogVideoX-5b-I2V"               # base model
transformer_id="../checkpoints/cognvs_ckpt_inpaint"        # CogNVS inpainting weights to start from
output_dir="../checkpoints/cognvs_ckpt_finetuned_room"     # where checkpoints and logs go
base_dir_input="../demo_data/room"                         # sequence folder with training pairs, a folder of such,
                                                           # or scenes:N, ray-traced from seed N on

train_epochs=200               # optimiser steps
checkpointing_steps=200        # steps between checkpoints; the last step always writes one
checkpointing_limit=1          # checkpoints to keep
resume_from_checkpoint=""      # a checkpoint folder, or latest
do_validation=False            # True: inpaint a training render now and then (slower)
validation_steps=50            # steps between validations

learning_rate=2e-5
lr_scheduler=constant          # constant, linear or cosine, the last two falling to 0 at the last step
lr_warmup_steps=0
beta1=0.9
beta2=0.95
epsilon=1e-8
weight_decay=1e-4
max_grad_norm=1.0
batch_size=1                   # samples a GPU takes at once
gradient_accumulation_steps=1  # times it does so before each optimiser step
ema_decay=0                    # above 0: also keep the running mean of the weights, checkpoint-N/ema_transformer
gradient_checkpointing=True    # less memory, a third more time
seed=42
accelerate_config="${accelerate_config:-accelerate_config.yaml}"

set -- --model_path "$model_path" --transformer_id "$transformer_id" --output_dir "$output_dir" \
    --base_dir_input "$base_dir_input" --train_epochs "$train_epochs" --checkpointing_steps "$checkpointing_steps" \
    --checkpointing_limit "$checkpointing_limit" --resume_from_checkpoint "$resume_from_checkpoint" \
    --do_validation "$do_validation" --validation_steps "$validation_steps" --learning_rate "$learning_rate" \
    --lr_scheduler "$lr_scheduler" --lr_warmup_steps "$lr_warmup_steps" --beta1 "$beta1" --beta2 "$beta2" \
    --epsilon "$epsilon" --weight_decay "$weight_decay" --max_grad_norm "$max_grad_norm" \
    --batch_size "$batch_size" --ema_decay "$ema_decay" \
    --gradient_accumulation_steps "$gradient_accumulation_steps" --gradient_checkpointing "$gradient_checkpointing" \
    --seed "$seed" "$@"

[ -f "$accelerate_config" ] || { echo "error: accelerate_config $accelerate_config: no such file" >&2; exit 2; }
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}"  # what torchrun would set, with a warning
python=$(command -v python || command -v python3)
"$python" train.py --prepare_only True "$@"  # checks all settings and embeds the empty prompt before any process starts
exec "$python" -m accelerate.commands.launch --config_file "$accelerate_config" train.py "$@"
