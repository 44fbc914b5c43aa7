"""Make a base folder and inpainting weights of random numbers, in the layout of the real ones.

    python toolbox/small_model/make_tiny_checkpoint.py --output_dir /tmp/tiny

writes OUTPUT_DIR/base (like CogVideoX-5b-I2V) and OUTPUT_DIR/cognvs_ckpt_inpaint. --size tiny is a
few MB, for tests; small is the model of checkpoints/tiny before its training; 5b has the real
sizes, for trying speed and memory (32 GB of disk in bf16).
"""

import argparse
import contextlib
import functools
import json
import shutil
import sys
from pathlib import Path

import torch
from diffusers import CogVideoXDPMScheduler

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from utils import cli, pipeline
from utils.pipeline import AutoencoderKLCogVideoX, CogVideoXTransformer3DModel

TRANSFORMER = json.loads((Path(__file__).resolve().parents[1] / "config.json").read_text())
VAE = {
    "down_block_types": ["CogVideoXDownBlock3D"] * 4, "up_block_types": ["CogVideoXUpBlock3D"] * 4,
    "block_out_channels": [128, 256, 256, 512], "latent_channels": 16, "layers_per_block": 3,
    "norm_num_groups": 32, "temporal_compression_ratio": 4, "sample_height": 480,
    "sample_width": 720, "scaling_factor": 0.7, "invert_scale_latents": True,
}
T5 = {
    "vocab_size": 32128, "d_model": 4096, "d_kv": 64, "d_ff": 10240, "num_layers": 24,
    "num_heads": 64, "feed_forward_proj": "gated-gelu", "tie_word_embeddings": False,
}
SCHEDULER = {
    "beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear",
    "clip_sample": False, "num_train_timesteps": 1000, "prediction_type": "v_prediction",
    "rescale_betas_zero_snr": True, "set_alpha_to_one": True, "snr_shift_scale": 1.0,
    "timestep_spacing": "trailing",
}
MODEL_INDEX = {
    "_class_name": "CogVideoXImageToVideoPipeline",
    "_diffusers_version": "0.42.1",
    "scheduler": ["diffusers", "CogVideoXDPMScheduler"],
    "text_encoder": ["transformers", "T5EncoderModel"],
    "tokenizer": ["transformers", "T5Tokenizer"],
    "transformer": ["diffusers", "CogVideoXTransformer3DModel"],
    "vae": ["diffusers", "AutoencoderKLCogVideoX"],
}
TINY_TRANSFORMER = {
    "num_attention_heads": 2, "attention_head_dim": 32, "num_layers": 2, "text_embed_dim": 32,
    "time_embed_dim": 32, "max_text_seq_length": 8, "sample_height": 12, "sample_width": 18,
}
TINY_VAE = {"block_out_channels": [8, 16, 16, 16], "layers_per_block": 1, "norm_num_groups": 4}
TINY_T5 = {
    "vocab_size": 128, "d_model": 32, "d_kv": 8, "d_ff": 64, "num_layers": 2, "num_heads": 4,
}
SMALL_TRANSFORMER = TINY_TRANSFORMER | {
    "num_attention_heads": 4, "attention_head_dim": 64, "num_layers": 5, "time_embed_dim": 64,
    "sample_height": 16, "sample_width": 24, "use_learned_positional_embeddings": False,
    "in_channels": 96, "out_channels": 48,
}
SMALL_VAE = {
    "block_out_channels": [16, 48, 96, 96], "layers_per_block": 1, "norm_num_groups": 8,
    "latent_channels": 48, "sample_height": 128, "sample_width": 192,
}
SIZES = {  # what differs from the real configurations
    "tiny": (TINY_TRANSFORMER, TINY_VAE, TINY_T5),
    "small": (SMALL_TRANSFORMER, SMALL_VAE, TINY_T5),
    "5b": ({}, {}, {}),
}


def parse_args():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=cli.HelpFormatter)
    add = parser.add_argument
    add("--output_dir", type=Path, required=True)
    add("--size", choices=SIZES, default="tiny")
    add("--frames", type=int, default=49, help="of a clip: 8k + 1")
    add("--height", type=int, help="in pixels, a multiple of 16; 96 (tiny), 128 or 480 by default")
    add("--width", type=int, help="in pixels, a multiple of 16; 144 (tiny), 192 or 720 by default")
    add("--dtype", choices=("bf16", "fp32"), default="fp32")
    add("--seed", type=int, default=0)
    add("--device", default="cpu", help="where the numbers are drawn")
    args = parser.parse_args()
    if args.frames < 1 or args.frames % 8 != 1:
        raise cli.InputError(f"--frames {args.frames}: expected 8k + 1")
    for name in ("height", "width"):
        pixels = getattr(args, name)
        if pixels is not None and (pixels < 16 or pixels % 16):
            raise cli.InputError(f"--{name} {pixels}: expected a multiple of 16")
    return args


def configs(size, frames=49, height=None, width=None):
    """(transformer, vae, t5) configurations of one of SIZES; height and width: pixels of a clip."""
    transformer, vae, t5 = SIZES[size]
    transformer = TRANSFORMER | transformer | {"sample_frames": frames}
    if height:
        transformer["sample_height"] = height // 8
    if width:
        transformer["sample_width"] = width // 8
    return transformer, VAE | vae, T5 | t5


def random_model(cls, config, dtype, device):
    """A model of class cls with its first weights, drawn by the global generator on a device."""
    with device, default_dtype(dtype):
        return cls.from_config(config).to(dtype)


def random_text_encoder(config, dtype, device):
    """The same of the T5 encoder, whose class is not diffusers'."""
    from transformers import T5Config, T5EncoderModel

    with device, default_dtype(dtype):
        return T5EncoderModel(T5Config(**config)).to(dtype)


@contextlib.contextmanager
def default_dtype(dtype):
    """torch's default dtype while it is entered: tensors are drawn in it, not cast to it."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def randomise(model):
    """Weights of unit gain, so that every layer and the text matter (some start at zero)."""
    for name, tensor in model.state_dict().items():
        if "pos_embedding" in name:
            continue
        if tensor.ndim > 1:
            torch.nn.init.normal_(tensor, std=tensor[0].numel() ** -0.5)
        elif name.endswith("weight"):
            torch.nn.init.normal_(tensor, 1, 0.1)
        else:
            torch.nn.init.normal_(tensor, 0, 0.1)


def save_tokenizer(folder, vocabulary):
    """Train a sentencepiece model on a few words: the spiece.model of a T5 tokenizer."""
    import sentencepiece
    from transformers import T5Tokenizer

    folder.mkdir(parents=True, exist_ok=True)
    words = ("the same scene seen from a new camera path, without holes: reconstruct, inpaint, "
             "finetune").split()
    with open(folder / "spiece.model", "wb") as file:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(words * 10), model_writer=file, vocab_size=vocabulary,
            hard_vocab_limit=False, pad_id=0, eos_id=1, unk_id=2, bos_id=-1, minloglevel=2,
        )
    T5Tokenizer.from_pretrained(folder, extra_ids=8).save_pretrained(folder)
    assert (folder / "spiece.model").exists()


def save_models(args):
    """Text encoder, VAE and transformer; one at a time is in memory."""
    transformer, vae, t5 = configs(args.size, args.frames, args.height, args.width)
    dtype = torch.bfloat16 if args.dtype == "bf16" else torch.float32
    device = cli.pick_device(args.device)
    base = args.output_dir / "base"
    weights = args.output_dir / "cognvs_ckpt_inpaint"
    torch.manual_seed(args.seed)
    for folder, make, config in (
        (base / "text_encoder", random_text_encoder, t5),
        (base / "vae", functools.partial(random_model, AutoencoderKLCogVideoX), vae),
        (weights, functools.partial(random_model, CogVideoXTransformer3DModel), transformer),
    ):
        model = make(config, dtype, device)
        if args.size != "small":
            randomise(model)
        pipeline.save_whole(model.save_pretrained, folder)
        print(f"wrote {folder}")


def main():
    args = parse_args()
    save_models(args)
    base = args.output_dir / "base"
    shutil.rmtree(base / "transformer", ignore_errors=True)
    (base / "transformer").unlink(missing_ok=True)
    (base / "transformer").symlink_to(Path("..") / "cognvs_ckpt_inpaint")  # nobody reads it
    CogVideoXDPMScheduler.from_config(SCHEDULER).save_pretrained(base / "scheduler")
    save_tokenizer(base / "tokenizer", 64)
    (base / "model_index.json").write_text(json.dumps(MODEL_INDEX, indent=2) + "\n")
    print(f"wrote {base}: random numbers, for trying the program, not for pictures")


if __name__ == "__main__":
    cli.run(main)
