"""What is done once before training: settings and memory are checked, and the empty prompt is embedded.

    python finetune/prepare.py --processes 2 FLAGS OF train.py

finetune_cognvs.sh runs this before it starts the processes of memory=zero2. With memory=single and
single_fused, train.py does it itself.
"""

import os
import re
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from finetune import dataset, memory, settings
from utils import cli, cogvideox, pipeline
from utils.cli import InputError


def prepare(args, launch=settings.Launch(), check_pairs=dataset.check_pairs):
    """Raise InputError if the run of `args` cannot begin; else embed the empty prompt, unless that is cached.

    check_pairs(base_dir_input, clip_shape): raises InputError for bad training pairs, returns the bytes of host
    memory that a process keeps them in. None for a caller whose pairs are not files: base_dir_input is not read.
    """
    settings.check(args, launch.processes)
    weights = pipeline.find_weights(args.transformer_id)
    pipeline.check_weights(pipeline.CogVideoXTransformer3DModel, weights)
    config = pipeline.transformer_config(args.model_path, weights)
    kept = 0
    if check_pairs:
        settings.check_folder("base_dir_input", args.base_dir_input)
        vae = pipeline.read_json(args.model_path / "vae" / "config.json")
        kept = check_pairs(args.base_dir_input, cogvideox.clip_shape(config, vae))
    elif args.do_validation:
        raise InputError("--do_validation True: these training pairs have no renders to inpaint; give False")
    memory.check_needs(args, launch, kept)
    pipeline.empty_prompt(args.model_path, config["max_text_seq_length"], memory.dtype(args))


def parse_launch(args):
    """The Launch that the flags describe. Raises InputError."""
    for name in ("processes", "machines"):
        if getattr(args, name) < 1:
            raise InputError(f"num_{name} {getattr(args, name)}: expected at least 1; edit accelerate_config.yaml")
    if args.processes % args.machines:
        raise InputError(f"num_processes {args.processes}: expected a multiple of num_machines {args.machines}; edit "
                         "accelerate_config.yaml")
    if not re.fullmatch(r"all|\d+(,\d+)*", args.gpu_ids):
        raise InputError(f"gpu_ids {args.gpu_ids}: expected all, or numbers such as 0,1; edit accelerate_config.yaml")
    return settings.Launch(args.processes, args.machines, args.gpu_ids)


def main():
    parser = settings.make_parser(__doc__)
    parser.add_argument("--processes", type=int, required=True, help="that train, on all machines together")
    parser.add_argument("--machines", type=int, default=1, help="that share them")
    parser.add_argument("--gpu_ids", default="all", help="GPUs of this machine, as in accelerate_config.yaml")
    args = parser.parse_args()
    launch = parse_launch(args)
    if launch.gpu_ids != "all" and os.environ.get("CUDA_VISIBLE_DEVICES") != "":
        os.environ["CUDA_VISIBLE_DEVICES"] = launch.gpu_ids  # as accelerate launch will
    prepare(args, launch)


if __name__ == "__main__":
    cli.run(main)
