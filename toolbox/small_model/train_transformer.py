"""Train the small model's transformer on ray-traced scenes, with the trainer of finetune/.

    trainer=../toolbox/small_model/train_transformer.py sh finetune/finetune_cognvs.sh \\
        --memory single --first_seed 600000 --model_path FOLDER/base ...

finetune_cognvs.sh holds all other settings; base_dir_input is not read.
"""

import contextlib
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from finetune import launch, settings, train
from finetune.prepare import prepare
from toolbox.small_model import photographs
from toolbox.small_model.scene_pairs import ScenePairs
from utils import cli
from utils.cli import InputError

SCENES = 700  # traced in three and a half minutes by an H100 and 16 CPU cores


def parse_args():
    parser = settings.make_parser(__doc__)
    parser.add_argument("--first_seed", type=int, required=True, help="of the scenes; those made "
                        "while it trains have seeds from 100,000 further on")
    parser.add_argument("--scenes", type=int, default=SCENES, help="before the first step")
    args = parser.parse_args()
    if args.first_seed < 0:
        raise InputError(f"--first_seed {args.first_seed}: expected 0 or more")
    if args.scenes < 1:
        raise InputError(f"--scenes {args.scenes}: expected at least 1")
    if not args.memory.startswith("single"):
        raise InputError(f"--memory {args.memory}: one process trains on ray-traced scenes; give "
                         "single or single_fused")
    args.condition_encodings = 0  # these pairs are encoded ahead
    return args


def main():
    args = parse_args()
    print(photographs.missing(), end="")
    prepare(args, check_pairs=None)
    with contextlib.ExitStack() as stack:

        def open_scenes(base_dir_input, model_path, clip_shape, rank, device):
            """In place of dataset.open_pairs."""
            pairs = ScenePairs(model_path, clip_shape, rank, device, args.first_seed, args.scenes)
            stack.callback(pairs.stream.close)
            return pairs

        train.train(args, open_pairs=open_scenes)


if __name__ == "__main__":
    cli.run(main, launch.GO_ON)
