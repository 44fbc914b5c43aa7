#!/usr/bin/env bash
# Makes a model of the kind of checkpoints/tiny from nothing, on one GPU, into the folder $1. Scenes
# are ray-traced while training goes on, so two runs see about the same scenes but never in the same
# order. By arithmetic it takes 65 minutes on an H100 with 16 CPU cores. The shipped model went
# another way (checkpoints/tiny/README.md).
set -euo pipefail
[ $# = 1 ] && [ "${1#-}" = "$1" ] || {
    echo "usage: bash toolbox/small_model/train_small_model.sh FOLDER" >&2
    exit 2
}
folder=$(realpath -m "$1")
cd "$(dirname "$0")/../.."
start=$folder/start

python toolbox/small_model/make_tiny_checkpoint.py --size small --output_dir "$start"

# The VAE: scenes from seeds 1,000 and 101,000 on, then from 300,000 and 400,000 on while the
# learning rate falls.
python toolbox/small_model/train_vae.py --vae_config "$start/base/vae" \
    --output_dir "$folder/vae1" --minutes 15 --first_seed 1000
python toolbox/small_model/train_vae.py --vae_config "$start/base/vae" \
    --output_dir "$folder/vae2" --minutes 15 --first_seed 300000 --last \
    --resume "$folder/vae1/state.safetensors"
cp "$folder"/vae2/{config.json,diffusion_pytorch_model.safetensors} "$start/base/vae/"

# The transformer: pairs of scenes from seeds 600,000 and 700,000 on; a step takes 0.12 s.
trainer=../toolbox/small_model/train_transformer.py sh finetune/finetune_cognvs.sh \
    --memory single --first_seed 600000 --model_path "$start/base" \
    --transformer_id "$start/cognvs_ckpt_inpaint" --output_dir "$folder/transformer" \
    --train_epochs 12000 --checkpointing_steps 1000 --batch_size 384 --ema_decay 0.998 \
    --learning_rate 1e-3 --lr_scheduler cosine --lr_warmup_steps 200 --gradient_checkpointing False

# The VAE's decoder alone, on other scenes: the latents stay, and with them the scaling factor in
# config.json.
python toolbox/small_model/train_vae.py --vae_config "$start/base/vae" \
    --output_dir "$folder/vae3" --minutes 10 --first_seed 9000000 --last --learning_rate 5e-4 \
    --freeze_encoder --resume "$start/base/vae/diffusion_pytorch_model.safetensors"
cp "$folder/vae3/diffusion_pytorch_model.safetensors" "$start/base/vae/"
echo "base: $start/base; weights: $folder/transformer/my_checkpoint-12000_mean"
