"""Convert MegaSAM's {seq}_sgd_cvd_hr.npz into a sequence folder's cam_info/.

    python toolbox/convert_megasam_outputs.py --megasam_npz_path bear_sgd_cvd_hr.npz \\
        --output_path demo_data/bear

Writes gt_rgb.mp4 too, if there is none. This is the published name of
toolbox/geometry/convert_depth.py --format megasam.
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from toolbox.geometry import convert_depth
from utils import cli


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=cli.HelpFormatter)
    parser.add_argument("--megasam_npz_path", type=Path, dest="input", required=True)
    parser.add_argument("--output_path", type=Path, required=True, help="sequence folder to write")
    parser.add_argument("--fps", type=float, help="of gt_rgb.mp4, if it is made from the images")
    parser.set_defaults(format="megasam", **convert_depth.DEFAULTS)
    convert_depth.convert(parser.parse_args())


if __name__ == "__main__":
    cli.run(main)
