"""Source | render | output | truth side by side, and PSNR against the truth where there is one.

    python toolbox/side_by_side.py --data_path demo_data/room

For every outputs/eval_render{i}_out.mp4 it writes outputs/eval_render{i}_side_by_side.mp4. The
truth is novel_gt{i}.mp4, which synthetic sequences have. An output of another render is refused.
"""

if __name__ == "__main__":
    import signal

    signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C during the imports shows no traceback

import argparse
import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from utils import cli, metrics, video
from utils.cli import InputError


def check_output(render, output):
    """InputError unless demo.py made the output of this very render."""
    if not render.is_file():
        raise InputError(f"{output}: its render {render} is not there; delete the output, or make "
                         "the render again with data_gen.py --mode eval")
    made_of = video.made_of(output)
    if made_of is None:
        raise InputError(f"{output}: does not say which render it was made of; run demo.py again")
    if made_of["render"] != cli.file_hash(render):
        raise InputError(f"{output}: was made of another {render.name}; run demo.py again")


def find_outputs(folder):
    """The outputs of demo.py in a folder, in order of number."""
    found = Path(folder).glob("eval_render*_out.mp4")
    return sorted(found, key=lambda path: (len(path.name), path))


def compare(folder, output):
    """Write one side by side video, and print PSNR in dB over all, known and hole pixels."""
    name = output.stem.removesuffix("_out")
    truth = folder / f"{name.replace('eval_render', 'novel_gt')}.mp4"
    paths = [folder / "gt_rgb.mp4", folder / f"{name}.mp4", output]
    if truth.is_file():
        paths.append(truth)
    clips = list(map(video.read_video, paths))
    for clip in clips:
        if clip.shape[1:] != clips[0].shape[1:]:
            raise InputError(f"{output}: it and the videos beside it differ in size; make the "
                             "renders again with data_gen.py")
    frames = min(map(len, clips))
    row = np.concatenate([clip[:frames] for clip in clips], axis=2)
    target = output.with_name(f"{name}_side_by_side.mp4")
    video.write_video(target, row[:, : row.shape[1] // 2 * 2], video.probe(output))
    print(f"wrote {target}: {' | '.join(path.stem for path in paths)}")
    if truth.is_file():
        known = video.read_mask(folder / f"{name.replace('render', 'mask')}.mp4")[:frames]
        for what, clip in zip(("render", "output"), clips[1:3], strict=True):
            psnr = metrics.masked_psnr(clip[:frames] / 255, clips[3][:frames] / 255, known)
            values = ", ".join(f"{where} {value:.2f} dB" for where, value in psnr.items())
            print(f"  {what}: {values}")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=cli.HelpFormatter)
    parser.add_argument("--data_path", type=Path, required=True, help="sequence folder")
    parser.add_argument("--output_dir", type=Path,
                        help="where demo.py wrote; <data_path>/outputs by default")
    args = parser.parse_args()
    outputs = args.output_dir or args.data_path / "outputs"
    found = find_outputs(outputs)
    if not found:
        raise InputError(f"{outputs}: no eval_render*_out.mp4; make them with demo.py")
    for output in found:
        check_output(args.data_path / f"{output.stem.removesuffix('_out')}.mp4", output)
    for output in found:
        compare(args.data_path, output)


if __name__ == "__main__":
    cli.run(main)
