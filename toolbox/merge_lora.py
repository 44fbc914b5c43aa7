"""Merge a LoRA folder into the weights it belongs to.

    python toolbox/merge_lora.py --lora_path checkpoints/RUN/my_checkpoint-200_lora \\
        --output_dir checkpoints/RUN/my_checkpoint-200_transformer
"""

if __name__ == "__main__":
    import signal

    signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C during the imports shows no traceback

import argparse
import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from utils import cli, pipeline
from utils.cli import InputError


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=cli.HelpFormatter)
    parser.add_argument("--lora_path", type=Path, required=True,
                        help="my_checkpoint-N_lora, or the run it is in")
    parser.add_argument("--output_dir", type=Path, required=True,
                        help="weights folder to write, bf16")
    args = parser.parse_args()
    lora = pipeline.find_weights(args.lora_path)
    if not (lora / pipeline.ADAPTER).is_file():
        raise InputError(f"{lora}: got whole weights; expected a LoRA folder with "
                         f"{pipeline.ADAPTER}")
    if args.output_dir.exists():
        raise InputError(f"{args.output_dir} exists and is kept; choose another folder")
    transformer = pipeline.load_transformer(lora, torch.bfloat16)
    pipeline.save_whole(lambda folder: transformer.save_pretrained(folder, max_shard_size="5GB"),
                        args.output_dir)
    print(f"wrote {args.output_dir}")


if __name__ == "__main__":
    cli.run(main)
