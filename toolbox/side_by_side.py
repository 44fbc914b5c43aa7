"""Source | render | output | truth side by side, and PSNR against the truth where there is one.

    python toolbox/side_by_side.py --data_path demo_data/room

For every outputs/eval_render{i}_out.mp4 it writes outputs/eval_render{i}_side_by_side.mp4. The
truth is novel_gt{i}.mp4, which synthetic sequences have. An output of another render is refused.
"""

import argparse
import re
import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from utils import cli, metrics, video
from utils.cli import InputError


def numbers_of(outputs):
    """The i of every eval_render{i}_out.mp4 in a folder, in order."""
    numbers = []
    for path in outputs.glob("eval_render*_out.mp4"):
        match = re.fullmatch(r"eval_render(\d+)_out", path.stem)
        if match:
            numbers.append(int(match[1]))
    if not numbers:
        raise InputError(f"{outputs}: no eval_render*_out.mp4; make them with demo.py")
    return sorted(numbers)


def check_pair(render, output):
    """InputError unless demo.py made the output of this very render."""
    if not render.is_file():
        raise InputError(f"{output}: its render {render} is not there; delete the output, or make "
                         "the render again with data_gen.py --mode eval")
    made_of = video.made_of(output)
    if made_of is None:
        raise InputError(f"{output}: does not say which render it was made of; run demo.py again")
    if made_of["render"] != cli.file_hash(render):
        raise InputError(f"{output}: was made of another {render.name}; run demo.py again")


def compare(folder, outputs, number):
    """Write one side by side video, and print PSNR in dB over all, known and hole pixels."""
    output = outputs / f"eval_render{number}_out.mp4"
    paths = [folder / "gt_rgb.mp4", folder / f"eval_render{number}.mp4", output]
    truth = folder / f"novel_gt{number}.mp4"
    if truth.is_file():
        paths.append(truth)
    clips = [video.read_video(path) for path in paths]
    if len({clip.shape[1:] for clip in clips}) > 1:
        raise InputError(f"{output}: it and the videos beside it differ in size; make the renders "
                         "again with data_gen.py")
    frames = min(map(len, clips))
    clips = [clip[:frames] for clip in clips]
    row = np.concatenate(clips, axis=2)
    target = outputs / f"eval_render{number}_side_by_side.mp4"
    video.write_video(target, row[:, : row.shape[1] // 2 * 2], video.probe(output))
    print(f"wrote {target}: {' | '.join(path.stem for path in paths)}")
    if truth.is_file():
        known = video.read_mask(folder / f"eval_mask{number}.mp4")[:frames]
        print_psnr("render", clips[1], clips[3], known)
        print_psnr("output", clips[2], clips[3], known)


def print_psnr(name, clip, truth, known):
    """PSNR of a clip, uint8 [N, H, W, 3], over all, known (bool [N, H, W]) and hole pixels."""
    psnr = metrics.masked_psnr(clip / 255, truth / 255, known)
    print(f"  {name}: " + ", ".join(f"{where} {value:.2f} dB" for where, value in psnr.items()))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=cli.HelpFormatter)
    parser.add_argument("--data_path", type=Path, required=True, help="sequence folder")
    parser.add_argument("--output_dir", type=Path,
                        help="where demo.py wrote; <data_path>/outputs by default")
    args = parser.parse_args()
    outputs = args.output_dir or args.data_path / "outputs"
    numbers = numbers_of(outputs)
    for number in numbers:
        check_pair(args.data_path / f"eval_render{number}.mp4",
                   outputs / f"eval_render{number}_out.mp4")
    for number in numbers:
        compare(args.data_path, outputs, number)


if __name__ == "__main__":
    cli.run(main)
