"""What is done once before training: settings and memory are checked, "" is embedded.

    python finetune/prepare.py --processes 2 FLAGS_OF_TRAIN.PY

finetune_cognvs.sh runs this before it starts the processes of memory=zero2 and zero2_offload. With
single and single_fused, train.py does it itself.
"""

import re
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from finetune import dataset, disk, memory, settings
from utils import cli, cogvideox, pipeline
from utils.cli import InputError

ONE_PROCESS = settings.Launch()


def prepare(args, launch=ONE_PROCESS, check_pairs=dataset.check_pairs):
    """InputError if the run of `args` cannot begin; else embed "" unless the embedding is cached.

    check_pairs(base_dir_input, clip_shape): raises InputError for bad training pairs, returns the
    bytes of host memory that a process keeps of them. None: pairs that are not read from files.
    """
    settings.check(args, launch.processes)
    weights = pipeline.find_weights(args.transformer_id)
    pipeline.check_weights(pipeline.CogVideoXTransformer3DModel, weights)
    config = pipeline.transformer_config(args.model_path, weights)
    kept = 0
    if check_pairs:
        settings.check_folder(args, "base_dir_input")
        vae = pipeline.read_json(args.model_path / "vae" / "config.json")
        kept = check_pairs(args.base_dir_input, cogvideox.clip_shape(config, vae))
    elif args.do_validation:
        raise InputError("--do_validation True: these pairs have no renders to inpaint; give False")
    memory.check_needs(args, launch, kept)
    disk.check(args)
    pipeline.empty_prompt(args.model_path, config["max_text_seq_length"], memory.dtype(args))


def make_launch(processes, machines, gpu_ids):
    """The Launch of accelerate_config.yaml's values. Raises InputError."""
    edit = "edit accelerate_config.yaml"
    for name, number in (("num_processes", processes), ("num_machines", machines)):
        if number < 1:
            raise InputError(f"{name} {number}: expected at least 1; {edit}")
    if processes % machines:
        raise InputError(f"num_processes {processes}: expected a multiple of num_machines "
                         f"{machines}, for it counts those of all machines; {edit}")
    if not re.fullmatch(r"all|\d+(,\d+)*", gpu_ids):
        raise InputError(f"gpu_ids {gpu_ids}: expected all, or numbers such as 0,1; {edit}")
    return settings.Launch(processes, machines, gpu_ids)


def main():
    parser = settings.make_parser(__doc__)
    parser.add_argument("--processes", type=int, required=True, help="that train, on all machines")
    parser.add_argument("--machines", type=int, default=1, help="that share them")
    parser.add_argument("--gpu_ids", default="all", help="of this machine, as in the config; "
                        "the launch script lets only these be seen")
    args = parser.parse_args()
    launch = make_launch(args.processes, args.machines, args.gpu_ids)
    prepare(args, launch)


if __name__ == "__main__":
    cli.run(main)
