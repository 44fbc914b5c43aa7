"""Make a base folder and inpainting weights of random numbers, in the layout of the real ones.

    python toolbox/make_tiny_checkpoint.py --output_dir /tmp/tiny

writes OUTPUT_DIR/base (like CogVideoX-5b-I2V) and OUTPUT_DIR/cognvs_ckpt_inpaint. --size tiny is a few MB, for tests;
small is the model of checkpoints/tiny before its training; 5b has the real sizes, for trying speed and memory (32 GB of
disk in bf16).
"""

import argparse
import json
import shutil
import sys
from pathlib import Path

import sentencepiece
import torch
from diffusers import CogVideoXDPMScheduler

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from utils import cli
from utils.pipeline import AutoencoderKLCogVideoX, CogVideoXTransformer3DModel

TRANSFORMER = json.loads((Path(__file__).resolve().parents[1] / "config.json").read_text())
VAE = {
    "down_block_types": ["CogVideoXDownBlock3D"] * 4, "up_block_types": ["CogVideoXUpBlock3D"] * 4,
    "block_out_channels": [128, 256, 256, 512], "latent_channels": 16, "layers_per_block": 3, "norm_num_groups": 32,
    "temporal_compression_ratio": 4, "sample_height": 480, "sample_width": 720, "scaling_factor": 0.7,
    "invert_scale_latents": True,
}  # fmt: skip
T5 = {
    "vocab_size": 32128, "d_model": 4096, "d_kv": 64, "d_ff": 10240, "num_layers": 24, "num_heads": 64,
    "feed_forward_proj": "gated-gelu", "tie_word_embeddings": False,
}  # fmt: skip
TINY_TRANSFORMER = {
    "num_attention_heads": 2, "attention_head_dim": 32, "num_layers": 2, "text_embed_dim": 32, "time_embed_dim": 32,
    "max_text_seq_length": 8, "sample_height": 12, "sample_width": 18,
}  # fmt: skip
TINY_VAE = {"block_out_channels": [8, 16, 16, 16], "layers_per_block": 1, "norm_num_groups": 4}
TINY_T5 = {"vocab_size": 128, "d_model": 32, "d_kv": 8, "d_ff": 64, "num_layers": 2, "num_heads": 4}
SMALL_TRANSFORMER = TINY_TRANSFORMER | {
    "num_attention_heads": 4, "attention_head_dim": 64, "num_layers": 5, "time_embed_dim": 64, "sample_height": 16,
    "sample_width": 24, "use_learned_positional_embeddings": False, "in_channels": 64, "out_channels": 32,
}  # fmt: skip
SMALL_VAE = {
    "block_out_channels": [16, 32, 64, 64], "layers_per_block": 1, "norm_num_groups": 8, "latent_channels": 32,
    "sample_height": 128, "sample_width": 192,
}  # fmt: skip
SIZES = {
    "tiny": (TINY_TRANSFORMER, TINY_VAE, TINY_T5), "small": (SMALL_TRANSFORMER, SMALL_VAE, TINY_T5), "5b": ({}, {}, {}),
}  # fmt: skip
SCHEDULER = {
    "beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "clip_sample": False,
    "num_train_timesteps": 1000, "prediction_type": "v_prediction", "rescale_betas_zero_snr": True,
    "set_alpha_to_one": True, "snr_shift_scale": 1.0, "timestep_spacing": "trailing",
}  # fmt: skip


def parse_args():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=cli.HelpFormatter)
    parser.add_argument("--output_dir", type=Path, required=True)
    parser.add_argument("--size", choices=SIZES, default="tiny")
    parser.add_argument("--frames", type=int, default=49, help="of a clip: 8k + 1")
    parser.add_argument("--height", type=int, help="in pixels, a multiple of 16; 96 (tiny), 128 or 480 by default")
    parser.add_argument("--width", type=int, help="in pixels, a multiple of 16; 144 (tiny), 192 or 720 by default")
    parser.add_argument("--dtype", choices=("bf16", "fp32"), default="fp32")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", help="where the numbers are drawn")
    return parser.parse_args()


def configs(args):
    """(transformer, vae, t5) configurations."""
    transformer, vae, t5 = (a | b for a, b in zip((TRANSFORMER, VAE, T5), SIZES[args.size], strict=True))
    transformer |= {"sample_frames": args.frames}
    transformer |= {"sample_height": args.height // 8} if args.height else {}
    transformer |= {"sample_width": args.width // 8} if args.width else {}
    return transformer, vae, t5


def randomise(model):
    """Fill a model with weights of unit gain, so that every layer and the text matter (some start at zero)."""
    for name, tensor in model.state_dict().items():
        if "pos_embedding" in name:
            continue
        if tensor.ndim > 1:
            torch.nn.init.normal_(tensor, std=tensor[0].numel() ** -0.5)
        elif name.endswith("weight"):
            torch.nn.init.normal_(tensor, 1, 0.1)
        else:
            torch.nn.init.normal_(tensor, 0, 0.1)
    return model


def save_tokenizer(folder, vocabulary):
    """Train a sentencepiece model on a few words and save it as the spiece.model of a T5 tokenizer."""
    from transformers import T5Tokenizer

    folder.mkdir(parents=True, exist_ok=True)
    words = "the same scene seen from a new camera path, without holes: reconstruct, inpaint, finetune".split()
    with open(folder / "spiece.model", "wb") as file:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(words * 10), model_writer=file, vocab_size=vocabulary, hard_vocab_limit=False,
            pad_id=0, eos_id=1, unk_id=2, bos_id=-1, minloglevel=2,
        )  # fmt: skip
    T5Tokenizer.from_pretrained(folder, extra_ids=8).save_pretrained(folder)
    assert (folder / "spiece.model").exists()


def main():
    from transformers import T5Config, T5EncoderModel

    args = parse_args()
    height, width = args.height or 96, args.width or 144
    if args.frames < 1 or min(height, width) < 16 or args.frames % 8 != 1 or height % 16 or width % 16:
        raise cli.InputError(f"{args.frames} x {height} x {width}: expected 8k + 1 frames and multiples of 16 pixels")
    transformer, vae, t5 = configs(args)
    dtype = torch.bfloat16 if args.dtype == "bf16" else torch.float32
    base = args.output_dir / "base"
    torch.manual_seed(args.seed)
    torch.set_default_dtype(dtype)
    with cli.pick_device(args.device or "cpu"):
        parts = {
            base / "text_encoder": lambda: T5EncoderModel(T5Config(**t5)),
            base / "vae": lambda: AutoencoderKLCogVideoX.from_config(vae),
            args.output_dir / "cognvs_ckpt_inpaint": lambda: CogVideoXTransformer3DModel.from_config(transformer),
        }
        for folder, make in parts.items():
            model = make().to(dtype)
            (model if args.size == "small" else randomise(model)).save_pretrained(folder)
            print(f"wrote {folder}")
    shutil.rmtree(base / "transformer", ignore_errors=True)
    (base / "transformer").unlink(missing_ok=True)
    (base / "transformer").symlink_to(Path("..") / "cognvs_ckpt_inpaint")  # nobody reads it
    CogVideoXDPMScheduler.from_config(SCHEDULER).save_pretrained(base / "scheduler")
    save_tokenizer(base / "tokenizer", 64)
    (base / "model_index.json").write_text(json.dumps(MODEL_INDEX, indent=2) + "\n")
    print(f"wrote {base}: random numbers, for trying the program, not for pictures")


MODEL_INDEX = {
    "_class_name": "CogVideoXImageToVideoPipeline", "_diffusers_version": "0.42.1",
    "scheduler": ["diffusers", "CogVideoXDPMScheduler"], "text_encoder": ["transformers", "T5EncoderModel"],
    "tokenizer": ["transformers", "T5Tokenizer"], "transformer": ["diffusers", "CogVideoXTransformer3DModel"],
    "vae": ["diffusers", "AutoencoderKLCogVideoX"],
}  # fmt: skip

if __name__ == "__main__":
    cli.run(main)
