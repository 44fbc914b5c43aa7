#!/bin/sh
# Test-time finetuning of CogNVS on one video: edit the variables, then
#     cd finetune && sh finetune_cognvs.sh
# Arguments override the variables: sh finetune_cognvs.sh --train_epochs 100 --learning_rate 1e-5
# Paths are relative to this folder, wherever the script is called from. GPUs are chosen in accelerate_config.yaml, or by
# CUDA_VISIBLE_DEVICES for memory=single and single_fused, which take the first.
set -eu
last=""
cd "$(dirname "$0")"

model_path="../checkpoints/CogVideoX-5b-I2V"               # base model
transformer_id="../checkpoints/cognvs_ckpt_inpaint"        # CogNVS inpainting weights to start from
output_dir="../checkpoints/cognvs_ckpt_finetuned_room"     # where checkpoints and logs go
base_dir_input="../demo_data/room"                         # sequence folder with training pairs, a folder of such,
                                                           # or scenes:N, ray-traced from seed N on

training_type=sft              # sft: all weights; lora: a small adapter beside them
rank=128                       # of the adapter
lora_alpha=64
memory=zero2                   # where the training state lives:
                               #   zero2          several GPUs, as published; accelerate_config.yaml says which
                               #   zero2_offload  the same, with the optimizer in host memory
                               #   single         one GPU, 8-bit AdamW
                               #   single_fused   one GPU, the least memory: updates inside the backward pass, clipped by
                               #                  the larger of the last step's gradient norm and this one's so far
gpu_memory=0                   # above 0: GiB of each GPU to use at most
train_epochs=200               # optimiser steps
total_samples=0                # above 0: in place of train_epochs, so that more GPUs are done sooner
checkpointing_steps=200        # steps between checkpoints; the last step always writes one
checkpointing_limit=1          # training states to keep for resuming, 0 for none; all weights are kept
resume_from_checkpoint=""      # a checkpoint folder, or latest
do_validation=False            # True: inpaint training renders now and then (slower)
validation_steps=50            # steps between validations
validation_renders=1           # training renders to inpaint, shared among the GPUs
report_to=none                 # tensorboard or wandb (pip install it): beside train_log.csv and train_curve.png

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
ema_decay=0                    # above 0: also keep the running mean of the weights, my_checkpoint-N_mean
gradient_checkpointing=True    # less memory, a third more time; auto: only where memory asks for it (GPU)
compile=True                   # compile the transformer's blocks in the first step (GPU with a C compiler)
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
    --compile "$compile" --gpu_memory "$gpu_memory" --report_to "$report_to" \
    --training_type "$training_type" --rank "$rank" --lora_alpha "$lora_alpha" --memory "$memory" \
    --total_samples "$total_samples" --validation_renders "$validation_renders" --seed "$seed" "$@"
for argument in "$@"; do  # the last --memory counts, as for all others
    case "$last" in --memory) memory=$argument ;; esac
    case "$argument" in --memory=*) memory=${argument#--memory=} ;; esac
    last=$argument
done

[ -f "$accelerate_config" ] || { echo "error: accelerate_config $accelerate_config: no such file" >&2; exit 2; }
python=$(command -v python || command -v python3)
number() { sed -n "s/^$1: *\([0-9]*\).*/\1/p" "$accelerate_config"; }
processes=$(number num_processes) machines=$(number num_machines)
gpu_ids=$(sed -n "s/^gpu_ids: *[\"']\{0,1\}\([0-9, ]*\).*/\1/p" "$accelerate_config" | tr -d ' ')
set -- "$@" --machines "${machines:-1}" --gpu_ids "$gpu_ids"
case "$memory" in single*) exec "$python" train.py --prepare_for 1 "$@" ;; esac
[ "${processes:-1}" -ge 1 ] && [ "${machines:-1}" -ge 1 ] || {
    echo "error: $accelerate_config: got num_processes $processes, num_machines $machines; expected 1 or more" >&2; exit 2; }
# all settings and the memory are checked, and the empty prompt is embedded, before any process starts
"$python" train.py --prepare_for "${processes:-1}" "$@"
threads=$(( $(nproc) * ${machines:-1} / ${processes:-1} ))  # torchrun would give each process one, and warn
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-$(( threads > 1 ? threads : 1 ))}"
exec "$python" -m accelerate.commands.launch --config_file "$accelerate_config" ${gpu_ids:+--gpu_ids "$gpu_ids"} \
    train.py "$@"
