#!/bin/sh
# Test-time finetuning of CogNVS on one video: edit the values below, then
#     cd finetune && sh finetune_cognvs.sh
# Flags override the values: sh finetune_cognvs.sh --train_epochs 100 --learning_rate 1e-5
# Paths are relative to this folder, wherever the script is called from. accelerate_config.yaml says
# which GPUs train; memory=single takes the first num_processes that CUDA_VISIBLE_DEVICES names, and
# single_fused the first.
# The environment may name another accelerate_config, or with memory=single and single_fused
# another trainer: a program that takes the same flags, in place of train.py.
set -eu
CDPATH="" cd -- "$(dirname -- "$0")"

model_path="../checkpoints/CogVideoX-5b-I2V"             # base model
transformer_id="../checkpoints/cognvs_ckpt_inpaint"      # CogNVS inpainting weights to start from
output_dir="../checkpoints/cognvs_ckpt_finetuned_room"   # where checkpoints and logs go
base_dir_input="../demo_data/room"   # sequence folder with training pairs, or a folder of such

training_type=sft              # sft: all weights; lora: a small adapter beside them
rank=128                       # of the adapter
lora_alpha=64
memory=zero2                   # where the training state lives:
                               #   zero2          several GPUs, as published
                               #   zero2_offload  the same, with the optimizer in host memory
                               #   single         8-bit AdamW, all of it on each GPU
                               #   single_fused   one GPU, the least memory: updates inside the
                               #     backward pass, clipped by the larger of the last step's
                               #     gradient norm and this one's so far
num_processes=1                # GPUs that memory=single trains on
gpu_memory=0                   # above 0: GiB of each GPU to use at most
train_epochs=200               # optimiser steps
total_samples=0                # above 0: in place of train_epochs, so that more GPUs end sooner
checkpointing_steps=50         # steps between checkpoints; the last step always writes one
checkpointing_limit=1          # checkpoints to keep: weights and the state to resume from; older
                               # ones are deleted. 0: the newest weights alone, no state
resume_from_checkpoint=""      # a checkpoint-N folder, or latest
evaluation_steps=25            # steps between looks at the loss of a fixed batch (train_curve.png)
do_validation=False            # True: inpaint held-out renders now and then (slower)
validation_steps=50            # steps between validations
validation_renders=1           # held-out renders to inpaint, shared among the GPUs
report_to=none                 # tensorboard or wandb (pip install it): beside train_log.csv

learning_rate=2e-5
lr_scheduler=constant          # constant, linear or cosine, the last two falling to 0 at the end
lr_warmup_steps=0
beta1=0.9
beta2=0.95
epsilon=1e-8
weight_decay=1e-4
max_grad_norm=1.0
batch_size=1                   # samples a GPU takes at once
gradient_accumulation_steps=1  # times it does so before each optimiser step
ema_decay=0                    # above 0: also keep the running mean, my_checkpoint-N_mean
gradient_checkpointing=True    # recompute all but attention; auto: as little as the GPU's memory
                               # allows; full: all, the least memory; False: nothing
condition_encodings=32         # noisy renders to encode before the first step, or more if there are
                               # more pairs; each step draws one, which takes a fifth off its time.
                               # 0: a new one in every step, as published
compile=True                   # the transformer's blocks, in the first step (GPU, C compiler)
seed=42
accelerate_config="${accelerate_config:-accelerate_config.yaml}"
trainer="${trainer:-train.py}"

fail() { echo "error: $1" >&2; exit 2; }
python=$(command -v python || command -v python3) || fail "no python: activate its environment"
# What a cluster or another launch left in the environment: the configuration alone counts here.
for name in $(env | sed -nE \
    -e 's/^((LOCAL_|NODE_|GROUP_|ROLE_)?RANK|(LOCAL_|GROUP_|ROLE_)?WORLD_SIZE)=.*/\1/p' \
    -e 's/^(MASTER_(ADDR|PORT))=.*/\1/p' \
    -e 's/^((ACCELERATE|TORCHELASTIC|SLURM|OMPI|PMIX?|MPI|MV2|FSDP|COGNVS)_[A-Za-z0-9_]+)=.*/\1/p'
); do
    unset "$name"
done
for argument in "$@"; do
    case "$argument" in -h | --help)
        sed -n '/^# /s/^# //p; /^set /q' finetune_cognvs.sh
        exec "$python" "$trainer" --help ;;
    esac
done

set -- --model_path "$model_path" --transformer_id "$transformer_id" --output_dir "$output_dir" \
    --base_dir_input "$base_dir_input" --training_type "$training_type" --rank "$rank" \
    --lora_alpha "$lora_alpha" --memory "$memory" --num_processes "$num_processes" \
    --gpu_memory "$gpu_memory" \
    --train_epochs "$train_epochs" --total_samples "$total_samples" \
    --checkpointing_steps "$checkpointing_steps" --checkpointing_limit "$checkpointing_limit" \
    --resume_from_checkpoint "$resume_from_checkpoint" --evaluation_steps "$evaluation_steps" \
    --do_validation "$do_validation" --validation_steps "$validation_steps" \
    --validation_renders "$validation_renders" --report_to "$report_to" \
    --learning_rate "$learning_rate" --lr_scheduler "$lr_scheduler" \
    --lr_warmup_steps "$lr_warmup_steps" --beta1 "$beta1" --beta2 "$beta2" --epsilon "$epsilon" \
    --weight_decay "$weight_decay" --max_grad_norm "$max_grad_norm" --batch_size "$batch_size" \
    --gradient_accumulation_steps "$gradient_accumulation_steps" --ema_decay "$ema_decay" \
    --gradient_checkpointing "$gradient_checkpointing" \
    --condition_encodings "$condition_encodings" --compile "$compile" --seed "$seed" "$@"

before=""
for argument in "$@"; do  # the last one counts, as for all flags
    case "$before" in
        --memory) memory=$argument ;;
        --num_processes) num_processes=$argument ;;
    esac
    case "$argument" in
        --memory=*) memory=${argument#--memory=} ;;
        --num_processes=*) num_processes=${argument#--num_processes=} ;;
    esac
    before=$argument
done
case "$memory,$num_processes" in
    single,[2-9] | single,[1-9][0-9]*) ;;
    single*) exec "$python" "$trainer" "$@" ;;
esac
[ "$trainer" = train.py ] || fail "trainer $trainer: got memory=$memory and num_processes=\
$num_processes; expected single*, and 1"
exec "$python" launch.py "$accelerate_config" "$@"
