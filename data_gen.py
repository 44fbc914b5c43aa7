"""Reproject a video by its depth along camera paths and write the renders, their masks and their cameras.

    python data_gen.py --data_path demo_data/room --mode eval

--mode train writes training pairs for finetune/: each frame warped to a new camera and back, so that the render is the
source with the holes that a camera move leaves. --mode eval writes the new views that demo.py inpaints.
"""

import argparse
import glob
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from utils import cli, sequence, trajectory, video, warp
from utils.cli import InputError

CHUNK = 4  # frames in memory at a time


def parse_args():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=cli.HelpFormatter)
    parser.add_argument("--data_path", type=Path, required=True, help="sequence folder with gt_rgb.mp4 and cam_info/")
    parser.add_argument("--mode", choices=("train", "eval"), required=True)
    parser.add_argument("--device", help="cpu, cuda or cuda:N; the GPU if there is one by default")
    parser.add_argument("--depth_file", default=sequence.DEPTH, help="z-depth, (N, h, w), in the sequence folder")
    parser.add_argument("--intrinsics_file", help=f"K at the depth map's resolution, such as {sequence.INTRINSICS}; "
                        "focal length 500 without it")
    parser.add_argument("--extrinsics_file", help=f"camera to world, such as {sequence.C2WS}; these paths follow the "
                        "source camera, so it is checked and changes nothing")
    parser.add_argument("--num_train_render", type=int, default=8, help="random training paths")
    parser.add_argument("--radius_scale", type=float, default=1.0, help="scales the orbits' radius, the first frame's "
                        "centre depth")
    parser.add_argument("--trajs", help="camera paths: a folder of .txt, a file or a quoted glob; by default trajs/ in "
                        "mode eval, random paths in mode train")
    parser.add_argument("--seed", type=int, default=42, help="of the random training paths")
    parser.add_argument("--crf", type=int, default=10, help="H.264 quality, 0 to 51; 0 is 4:4:4, within 2 of 255")
    return parser.parse_args()


def camera_paths(args):
    """The paths to render, in order: (name, keyframes)."""
    if args.mode == "train" and args.trajs is None:
        if args.num_train_render < 1:
            raise InputError(f"--num_train_render {args.num_train_render}: expected at least 1")
        paths = trajectory.random_keyframes(args.seed, args.num_train_render)
        return [(f"random path {i} of seed {args.seed}", keyframes) for i, keyframes in enumerate(paths, 1)]
    where = Path(args.trajs or Path(__file__).parent / "trajs")
    files = sorted(where.glob("*.txt") if where.is_dir() else map(Path, glob.glob(str(where))))
    if not files:
        raise InputError(f"--trajs {where}: no camera path there; expected a folder of .txt, a file or a quoted glob")
    return [(f"{file.parent.name}/{file.name}", trajectory.read_keyframes(file)) for file in files]


def say_what_is_unused(args, seq):
    for flag, name in (("intrinsics_file", sequence.INTRINSICS), ("extrinsics_file", sequence.C2WS)):
        if getattr(args, flag) is None and (seq.path / name).is_file():
            instead = "focal length 500 is used" if "intr" in flag else "these paths follow the source camera anyway"
            print(f"note: {name} is there but unused ({instead}); give --{flag} {name} to use it")
    if seq.bad_depth_share:
        print(f"note: {seq.bad_depth_share:.2%} of the depth values are not positive finite numbers and become holes")
    if seq.info.height % 2 or seq.info.width % 2:
        print(f"note: {seq.info.width} x {seq.info.height} is odd, so written as 4:4:4, which browsers may not play")


def warp_chunk(mode, frames, depth, motion, k):
    """uint8 [n, H, W, 3] in, (uint8 [n, H, W, 3], bool [n, H, W]) out; computed on depth's device."""
    x = torch.from_numpy(frames).to(depth.device).permute(0, 3, 1, 2).float() / 255 * 2 - 1  # [n, 3, H, W] in [-1, 1]
    if mode == "train":
        x, mask = warp.double_warp(x, depth, motion, k)
    else:
        x, mask = warp.dilate_holes(*warp.forward_warp(x, depth, motion, k))
    x = ((x + 1) / 2 * 255).floor().clamp(0, 255).byte().permute(0, 2, 3, 1)  # [n, H, W, 3]
    return x.cpu().numpy(), mask.cpu().numpy()


def save_cameras(path, motion, k):
    """Target camera relative to the source camera and K, per frame, written beside the name and moved into place."""
    part = Path(f"{path}.part")
    with open(part, "wb") as file:
        np.savez(file, c2w=np.linalg.inv(motion), intrinsics=k)
    part.replace(path)


def render(args, seq, keyframes, number, device, progress):
    """Write {mode}_render, {mode}_mask and {mode}_cameras of one path, a few frames at a time."""
    out = {kind: seq.path / f"{args.mode}_{kind}{number}" for kind in ("render", "mask", "cameras")}
    motion = trajectory.relative_motion(keyframes, seq.info.frames, seq.pivot_depth * args.radius_scale)
    with (
        video.VideoWriter(f"{out['render']}.mp4", seq.info, args.crf) as render_writer,
        video.VideoWriter(f"{out['mask']}.mp4", seq.info, mask=True) as mask_writer,
    ):
        start = 0
        for frames in video.iter_chunks(seq.rgb_path, CHUNK):
            stop = start + len(frames)
            cameras = (torch.from_numpy(np.array(a[start:stop])).to(device) for a in (motion, seq.intrinsics))
            pixels, mask = warp_chunk(args.mode, frames, seq.depth(start, stop).to(device), *cameras)
            render_writer.write(pixels)
            mask_writer.write(mask)
            progress.update(len(frames))
            start = stop
    save_cameras(f"{out['cameras']}.npz", motion, seq.intrinsics)


def main():
    args = parse_args()
    device = cli.pick_device(args.device)
    if not 0 <= args.crf <= 51:
        raise InputError(f"--crf {args.crf}: expected 0 (best) to 51")
    paths = camera_paths(args)
    seq = sequence.open_sequence(args.data_path, args.depth_file, args.intrinsics_file, args.extrinsics_file)
    radius = seq.pivot_depth * args.radius_scale
    say_what_is_unused(args, seq)
    size = f"{seq.info.frames} frames of {seq.info.width} x {seq.info.height}"
    print(f"{seq.path}: {size}, orbit radius {radius:.4g}, computing on {device}")
    with tqdm(total=len(paths) * seq.info.frames, unit="frame", desc=f"{args.mode} renders") as progress:
        for number, (_, keyframes) in enumerate(paths, 1):
            render(args, seq, keyframes, number, device, progress)
    for number, (name, _) in enumerate(paths, 1):
        print(f"{seq.path / f'{args.mode}_render{number}.mp4'} (and mask, cameras) from {name}")


if __name__ == "__main__":
    cli.run(main)
