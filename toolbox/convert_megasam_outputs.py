"""Convert MegaSAM's {seq}_sgd_cvd_hr.npz into a sequence folder's cam_info/ (and gt_rgb.mp4, if there is none).

    python toolbox/convert_megasam_outputs.py --megasam_npz_path bear_sgd_cvd_hr.npz --output_path demo_data/bear
"""

import argparse
import sys
from fractions import Fraction
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from utils import cli, sequence, video
from utils.cli import InputError


def parse_args():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=cli.HelpFormatter)
    parser.add_argument("--megasam_npz_path", type=Path, required=True)
    parser.add_argument("--output_path", type=Path, required=True, help="sequence folder to write")
    parser.add_argument("--fps", type=float, default=24, help="of gt_rgb.mp4, if it is made from the images")
    return parser.parse_args()


def load(path):
    """MegaSAM's arrays: images uint8 [T, H, W, 3], depths [T, H, W], intrinsic [3, 3], cam_c2w [T, 4, 4]."""
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in ("images", "depths", "intrinsic", "cam_c2w")}
    except (ValueError, KeyError, EOFError) as error:
        raise InputError(f"{path}: {error}; expected MegaSAM's npz: images, depths, intrinsic, cam_c2w") from error
    frames, height, width = arrays["depths"].shape
    expected = {"images": (frames, height, width, 3), "intrinsic": (3, 3), "cam_c2w": (frames, 4, 4)}
    for name, shape in expected.items():
        if arrays[name].shape != shape:
            raise InputError(f"{path}: {name} has shape {arrays[name].shape}, expected {shape} beside depths "
                             f"{arrays['depths'].shape}")
    return arrays


def main():
    args = parse_args()
    arrays = load(args.megasam_npz_path)
    frames, height, width = arrays["depths"].shape
    rgb = args.output_path / "gt_rgb.mp4"
    if rgb.exists() and video.probe(rgb).frames != frames:
        raise InputError(f"{rgb}: has {video.probe(rgb).frames} frames, the npz has {frames}; give another output_path")
    if not rgb.exists():
        fps = Fraction(args.fps).limit_denominator(1001)
        video.write_video(rgb, arrays["images"], video.VideoInfo(frames, height, width, fps))
        print(f"wrote {rgb} from the images, {float(fps):g} frames a second")
    types = {"depths": np.float16, "intrinsic": np.float32, "cam_c2w": np.float32}
    names = {"depths": sequence.DEPTH, "intrinsic": sequence.INTRINSICS, "cam_c2w": sequence.C2WS}
    for key, name in names.items():
        sequence.save_array(args.output_path / name, arrays[key].astype(types[key]))
        print(f"wrote {args.output_path / name}")


if __name__ == "__main__":
    cli.run(main)
