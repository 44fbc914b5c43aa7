"""What is done once before training: settings and memory are checked, "" is embedded.

    python finetune/prepare.py --processes 2 FLAGS_OF_TRAIN.PY

launch.py runs this before it starts several processes. With one, train.py does it itself.
"""

import signal
import sys
from pathlib import Path

if __name__ == "__main__":  # Ctrl-C while libraries load ends without a traceback
    signal.signal(signal.SIGINT, signal.SIG_DFL)

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from finetune import dataset, disk, launch, memory, settings
from utils import cogvideox, pipeline
from utils.cli import InputError

ONE_PROCESS = settings.Launch()


def prepare(args, where=ONE_PROCESS, check_pairs=dataset.check_pairs):
    """InputError if the run of `args` cannot begin; else embed "" unless the embedding is cached.

    check_pairs(base_dir_input, clip_shape): raises InputError for bad training pairs, returns the
    bytes of host memory that a process keeps of them. None: pairs that are not read from files.
    """
    settings.check(args, where.processes)
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
    elif args.condition_encodings:
        raise InputError(f"--condition_encodings {args.condition_encodings}: these pairs cannot be "
                         "encoded ahead; give 0")
    memory.check_needs(args, where, kept)
    disk.check(args)
    pipeline.empty_prompt(args.model_path, config["max_text_seq_length"], memory.dtype(args))


def main():
    parser = settings.make_parser(__doc__)
    parser.add_argument("--processes", type=int, required=True, help="that train, on all machines")
    parser.add_argument("--machines", type=int, default=1, help="that share them")
    parser.add_argument("--gpu_ids", default="all", help="of this machine, as in "
                        "accelerate_config.yaml; launch.py lets only these be seen")
    args = parser.parse_args()
    prepare(args, settings.Launch(args.processes, args.machines, args.gpu_ids))


if __name__ == "__main__":
    launch.run(main)
