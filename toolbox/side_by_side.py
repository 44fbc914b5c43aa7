"""Source | render | output | truth side by side, and PSNR against the truth where there is one.

    python toolbox/side_by_side.py --data_path demo_data/room

For every outputs/eval_render{i}_out.mp4 writes outputs/eval_render{i}_side_by_side.mp4; the truth is novel_gt{i}.mp4,
which synthetic sequences have.
"""

import argparse
import re
import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from utils import cli, metrics, video


def compare(folder, outputs, number):
    """Write one side by side video, and print the PSNR of render and output in dB over all, known and hole pixels."""
    out = outputs / f"eval_render{number}_out.mp4"
    names = [folder / "gt_rgb.mp4", folder / f"eval_render{number}.mp4", out, folder / f"novel_gt{number}.mp4"]
    clips = [video.read_video(name) for name in names if name.exists()]
    if len({clip.shape[1:] for clip in clips}) > 1:
        raise cli.InputError(f"{out}: {out.stem} and the videos beside it differ in size; make the renders anew")
    frames = min(map(len, clips))
    clips = [clip[:frames] for clip in clips]
    target = out.with_name(f"eval_render{number}_side_by_side.mp4")
    row = np.concatenate(clips, 2)[:, : clips[0].shape[1] // 2 * 2]
    video.write_video(target, row, video.probe(out))
    print(f"wrote {target}: {' | '.join(name.stem for name in names if name.exists())}")
    if len(clips) == 4:
        mask = video.read_mask(folder / f"eval_mask{number}.mp4")[:frames]
        for name, clip in (("render", clips[1]), ("output", clips[2])):
            psnr = metrics.masked_psnr(clip / 255, clips[3] / 255, mask)
            print(f"  {name}: " + ", ".join(f"{where} {value:.2f} dB" for where, value in psnr.items()))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=cli.HelpFormatter)
    parser.add_argument("--data_path", type=Path, required=True, help="sequence folder")
    parser.add_argument("--output_dir", type=Path, help="where demo.py wrote; <data_path>/outputs by default")
    args = parser.parse_args()
    outputs = args.output_dir or args.data_path / "outputs"
    numbers = [int(re.findall(r"\d+", p.stem)[0]) for p in outputs.glob("eval_render[0-9]*_out.mp4")]
    if not numbers:
        raise cli.InputError(f"{outputs}: no eval_render*_out.mp4; make them with demo.py")
    for number in sorted(numbers):
        compare(args.data_path, outputs, number)


if __name__ == "__main__":
    cli.run(main)
