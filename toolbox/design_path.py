"""Draw camera paths in a browser, on the very picture that will be rendered.

    python toolbox/design_path.py --data_path demo_data/room \\
        --intrinsics_file cam_info/megasam_intrinsics.npy

writes <data_path>/design.html: one file with the video, its depth and data_gen.py's warp, holes
included, which opens from disk without a server or a network. Drag the new view, set keyframes,
save a json (--cameras of data_gen.py) or a txt (--trajs).
"""

if __name__ == "__main__":
    import signal

    signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C during the imports shows no traceback

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import data_gen
from utils import camera_paths, cli, sequence


def parse_args():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=cli.HelpFormatter)
    data_gen.add_path_arguments(parser)
    return parser.parse_args()


def main():
    args = parse_args()
    data_gen.check_path_args(args)
    files = args.depth_file, args.intrinsics_file, args.extrinsics_file
    seq = sequence.open_sequence(args.data_path, *files)
    paths = camera_paths.find_paths(args.trajs, args.cameras, seq.intrinsics, seq.size)
    pivot = camera_paths.find_pivot(args.pivot, seq) * args.radius_scale
    data_gen.say_what_is_unused(args, seq)
    data_gen.write_design(args, seq, paths, pivot)


if __name__ == "__main__":
    cli.run(main)
