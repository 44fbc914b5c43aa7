#!/usr/bin/env bash
# From a sequence folder, a base and inpainting weights to finished videos; a stage whose result is there is skipped.
#     bash toolbox/run_all.sh --data_path demo_data/bear --model_path checkpoints/CogVideoX-5b-I2V \
#         --transformer_id checkpoints/cognvs_ckpt_inpaint --output_dir checkpoints/cognvs_ckpt_finetuned_bear
# Further: --num_train_render 8, --num_inference_steps 50; --train_epochs, --learning_rate, --lr_scheduler,
# --training_type, --rank and --lora_alpha (the last two for lora) in place of those that finetune_cognvs.sh holds;
# --memory (single where there is one GPU, else zero2); --num_processes, the GPUs that finetune (all by default; 2
# processes without a GPU).
# The videos go to <data_path>/outputs/<name of output_dir>/.
set -euo pipefail

data_path="" model_path="" transformer_id="" output_dir=""
train_epochs="" num_train_render=8 num_inference_steps=50 num_processes="" memory="" training_type=""
settings=()
while [ $# -gt 0 ]; do
    case "$1" in
        --learning_rate | --lr_scheduler | --rank | --lora_alpha) settings+=("$1" "${2-}") ;;
        --data_path | --model_path | --transformer_id | --output_dir | --train_epochs | --num_train_render | \
            --num_inference_steps | --num_processes | --memory | --training_type) printf -v "${1#--}" %s "${2-}" ;;
        *) echo "error: $1: not an argument of run_all.sh; its first lines list them" >&2 && exit 2 ;;
    esac
    [ -n "${2-}" ] || { echo "error: $1 needs a value" >&2 && exit 2; }
    shift 2
done
for name in data_path model_path transformer_id output_dir; do
    [ -n "${!name}" ] || { echo "error: --$name is missing" >&2 && exit 2; }
    printf -v "$name" %s "$(realpath -m "${!name}")"  # the launch script reads paths relative to finetune/
done
cd "$(dirname "$0")/.."
python=$(command -v python || command -v python3)
gpus=$(nvidia-smi -L 2>/dev/null | grep -c '^GPU ' || true)
[ -z "${CUDA_VISIBLE_DEVICES+x}" ] || gpus=$(tr ',' '\n' <<< "$CUDA_VISIBLE_DEVICES" | grep -c '^[^-]' || true)
held() { sed -n "s/^$1=\"\{0,1\}\([a-z0-9]*\).*/\1/p" finetune/finetune_cognvs.sh; }
[ -n "$train_epochs" ] || train_epochs=$(held train_epochs)
[ -n "$training_type" ] || training_type=$(held training_type)
outputs="$data_path/outputs/$(basename "$output_dir")"
trap 'kill "${watcher:-}" 2>/dev/null || true' EXIT

report=""
watch_memory() {  # the largest memory in use on any GPU, in MiB, into the file $1
    local most=-1 used
    while used=$(nvidia-smi --query-gpu=memory.used --format=csv,noheader,nounits | sort -n | tail -1); do
        [ "$used" -gt "$most" ] && most=$used && echo "$most" > "$1"
        sleep 1
    done
}
stage() {  # stage NAME RESULT COMMAND...: run the command unless the file RESULT is there
    local name=$1 result=$2 begin=$SECONDS peak="no GPU" file
    shift 2
    if [ -e "$result" ]; then
        report+=$(printf '%-24s skipped: %s is there' "$name" "$result")$'\n'
        return
    fi
    echo "== $name"
    file=$(mktemp)
    [ "$gpus" -gt 0 ] && { watch_memory "$file" & watcher=$!; }
    "$@"
    [ "$gpus" -gt 0 ] && { kill "$watcher" || true; wait "$watcher" 2>/dev/null || true; peak="$(cat "$file") MiB on the fullest GPU"; }
    rm -f "$file"
    report+=$(printf '%-24s %5d s, %s' "$name" $((SECONDS - begin)) "$peak")$'\n'
}

intrinsics=()
if [ -f "$data_path/cam_info/megasam_intrinsics.npy" ]; then
    intrinsics=(--intrinsics_file cam_info/megasam_intrinsics.npy)
fi
num_eval_render=$(find trajs -maxdepth 1 -name '*.txt' | wc -l)

finetune() {
    local config resume=""
    config=$(mktemp)
    [ -n "$num_processes" ] || num_processes=$((gpus > 0 ? gpus : 2))
    sed "s/^gpu_ids:.*/gpu_ids: all/; s/^num_processes:.*/num_processes: $num_processes/" \
        finetune/accelerate_config.yaml > "$config"
    [ -z "$(find "$output_dir" -maxdepth 1 -name 'checkpoint-*[0-9]' 2>/dev/null)" ] || resume=latest
    accelerate_config=$config sh finetune/finetune_cognvs.sh --model_path "$model_path" --transformer_id "$transformer_id" \
        --output_dir "$output_dir" --base_dir_input "$data_path" --train_epochs "$train_epochs" \
        --memory "$memory" --training_type "$training_type" \
        --resume_from_checkpoint "$resume" "${settings[@]}"
    rm -f "$config"
}
kind=transformer
[ "$training_type" != lora ] || kind=lora
[ -n "$memory" ] || { [ "$gpus" = 1 ] && memory=single || memory=zero2; }
weights="$output_dir/my_checkpoint-${train_epochs}_$kind"
stage "training pairs" "$data_path/train_cameras$num_train_render.npz" \
    "$python" data_gen.py --data_path "$data_path" --mode train --num_train_render "$num_train_render" "${intrinsics[@]}"
stage "evaluation renders" "$data_path/eval_cameras$num_eval_render.npz" \
    "$python" data_gen.py --data_path "$data_path" --mode eval "${intrinsics[@]}"
stage "finetuning" "$weights" finetune
stage "inference" "$outputs/eval_render${num_eval_render}_out.mp4" \
    "$python" demo.py --model_path "$model_path" --cognvs_ckpt_path "$output_dir" --data_path "$data_path" \
    --mp4_name "eval_render*.mp4" --num_inference_steps "$num_inference_steps" --output_dir "$outputs"
stage "side by side" "$outputs/eval_render${num_eval_render}_side_by_side.mp4" \
    "$python" toolbox/side_by_side.py --data_path "$data_path" --output_dir "$outputs"
printf '\n%s\nLook at %s/\n' "$report" "$outputs"
