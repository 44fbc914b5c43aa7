"""Reproject a video by its depth along camera paths and write the renders, their masks and their cameras.

    python data_gen.py --data_path demo_data/room --mode eval

--mode train writes training pairs for finetune/: each frame warped to a new camera and back, so that the render is the
source with the holes that a camera move leaves. --mode eval writes the new views that demo.py inpaints.
"""

import argparse
import functools
import glob
import itertools
import os
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from utils import cli, fusion, sequence, trajectory, video, warp
from utils.cli import InputError

MANY_HOLES = 0.6  # share of a frame beyond which inpainting has little to hold on to


def parse_args():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=cli.HelpFormatter)
    parser.add_argument("--data_path", type=Path, required=True, help="sequence folder with gt_rgb.mp4 and cam_info/")
    parser.add_argument("--mode", choices=("train", "eval"), required=True)
    parser.add_argument("--device", help="cpu, cuda or cuda:N; the GPU if there is one by default")
    parser.add_argument("--depth_file", default=sequence.DEPTH, help="z-depth, (N, h, w), in the sequence folder")
    parser.add_argument("--intrinsics_file", help=f"K at the depth map's resolution, such as {sequence.INTRINSICS}; "
                        "focal length 500 without it")
    parser.add_argument("--extrinsics_file", help=f"camera to world, such as {sequence.C2WS}; --anchor first and "
                        "--fuse_static need it, paths that follow the source camera do not")
    parser.add_argument("--num_train_render", type=int, default=8, help="random training paths")
    parser.add_argument("--radius_scale", type=float, default=1.0, help="scales the orbits' radius, the first frame's "
                        "centre depth")
    parser.add_argument("--trajs", help="camera paths, separated by commas: a folder of .txt, a file, a quoted glob "
                        f"or a preset with its amount, such as orbit_left:20 ({', '.join(trajectory.PRESETS)}); by "
                        "default trajs/ in mode eval, random paths in mode train")
    parser.add_argument("--cameras", help="instead of --trajs: an npy, npz or json of target c2w relative to the "
                        "source camera, (4, 4) or (N, 4, 4), or a quoted glob of such files")
    parser.add_argument("--anchor", choices=("source", "first"), default="source", help="what a path moves relative "
                        "to: each frame's own camera, or the first frame's held still in the world")
    parser.add_argument("--seed", type=int, default=42, help="of the random training paths")
    parser.add_argument("--edge_threshold", type=float, help="cut pixels where the depth around jumps by more than "
                        "this share, such as 0.1; nothing is cut by default")
    parser.add_argument("--fuse_static", action="store_true", help="mode eval: fill holes from other frames where they "
                        "saw static surface")
    parser.add_argument("--preview", action="store_true", help="write only preview.png: renders and paths at a glance")
    parser.add_argument("--crf", type=int, default=10, help="H.264 quality, 0 to 51; 0 is 4:4:4, within 2 of 255")
    return parser.parse_args()


def keyframes_of(item):
    """(name, keyframes) of everything one item of --trajs stands for."""
    preset = trajectory.preset_keyframes(item)
    if preset:
        return [(item, preset)]
    files = sorted(Path(item).glob("*.txt") if Path(item).is_dir() else map(Path, glob.glob(item)))
    if not files:
        raise InputError(f"--trajs {item}: no camera path there; expected a folder of .txt, a file, a quoted glob or a "
                         f"preset with its amount ({', '.join(trajectory.PRESETS)})")
    return [(f"{file.parent.name}/{file.name}", trajectory.read_keyframes(file)) for file in files]


def camera_paths(args, seq):
    """The paths to render, in order: (name, trajectory.Cameras)."""
    if args.cameras:
        files = sorted(map(Path, glob.glob(args.cameras)))
        if not files:
            raise InputError(f"--cameras {args.cameras}: no such file")
        paths = [(file.name, trajectory.read_cameras(file, seq.intrinsics)) for file in files]
    else:
        if args.mode == "train" and args.trajs is None:
            random = trajectory.random_keyframes(args.seed, args.num_train_render)
            named = [(f"random path {i} of seed {args.seed}", keyframes) for i, keyframes in enumerate(random, 1)]
        else:
            items = [args.trajs] if args.trajs and os.path.exists(args.trajs) else (args.trajs or "").split(",")
            items = items if args.trajs else [str(Path(__file__).parent / "trajs")]
            named = [path for item in items for path in keyframes_of(item)]
        radius = seq.pivot_depth * args.radius_scale
        paths = [(name, trajectory.keyframe_cameras(keys, seq.intrinsics, radius)) for name, keys in named]
    if args.anchor == "first":
        paths = [(name, trajectory.anchored_first(cameras, seq.c2w)) for name, cameras in paths]
    return paths


def check(args):
    if not 0 <= args.crf <= 51:
        raise InputError(f"--crf {args.crf}: expected 0 (best) to 51")
    if args.num_train_render < 1:
        raise InputError(f"--num_train_render {args.num_train_render}: expected at least 1")
    if not (np.isfinite(args.radius_scale) and args.radius_scale > 0):
        raise InputError(f"--radius_scale {args.radius_scale}: expected a number above 0")
    if args.edge_threshold is not None and not args.edge_threshold > 0:
        raise InputError(f"--edge_threshold {args.edge_threshold}: expected a number above 0, such as 0.1")
    if args.cameras and args.trajs:
        raise InputError("--cameras and --trajs: give one of them")
    if args.fuse_static and args.mode == "train":
        raise InputError("--fuse_static: only with --mode eval; training pairs must keep their holes")
    for flag, needs in (("--anchor first", args.anchor == "first"), ("--fuse_static", args.fuse_static)):
        if needs and not args.extrinsics_file:
            raise InputError(f"{flag}: needs the source cameras; give --extrinsics_file {sequence.C2WS}")


def say_what_is_unused(args, seq):
    for flag, name in (("intrinsics_file", sequence.INTRINSICS), ("extrinsics_file", sequence.C2WS)):
        if getattr(args, flag) is None and (seq.path / name).is_file():
            instead = "focal length 500 is used" if "intr" in flag else "these paths follow the source camera anyway"
            print(f"note: {name} is there but unused ({instead}); give --{flag} {name} to use it")
    if seq.bad_depth_share:
        print(f"note: {seq.bad_depth_share:.2%} of the depth values are not positive finite numbers and become holes")
    if seq.info.height % 2 or seq.info.width % 2:
        print(f"note: {seq.info.width} x {seq.info.height} is odd, so written as 4:4:4, which browsers may not play")


def source_chunks(seq, frames, size):
    """Yield (outputs, pixels, depth) a few frames at a time: a slice of the output, uint8 [n, H, W, 3], [n, H, W]."""
    if np.array_equal(frames, np.arange(len(frames))):
        stop = 0
        for pixels in video.iter_chunks(seq.rgb_path, size):
            start, stop = stop, stop + len(pixels)
            yield slice(start, stop), pixels, seq.depth(start, stop)
    else:  # time stands still
        pixels, depth = video.read_frames(seq.rgb_path, frames[:1]), seq.depth(frames[0], frames[0] + 1)
        for start in range(0, len(frames), size):
            n = min(size, len(frames) - start)
            yield slice(start, start + n), pixels.repeat(n, 0), depth.expand(n, -1, -1)


def warp_chunk(mode, pixels, depth, motion, k, k_target=None, fill=None):
    """uint8 [n, H, W, 3] in, (uint8 [n, H, W, 3], bool [n, H, W]) out; computed on depth's device.

    fill: called with the new views and masks of mode eval, returns both with fewer holes.
    """
    x, mask = warp.render(mode, video.to_signed(torch.from_numpy(pixels).to(depth.device)), depth, motion, k, k_target)
    if fill:
        x, mask = fill(x, mask)
    return video.to_bytes(x).cpu().numpy(), mask.cpu().numpy()


def static_views(seq, device, count=16):
    """Reference frames for fusion.fill, spread over the video."""
    at = np.unique(np.linspace(0, seq.info.frames - 1, count).round().astype(int))
    frames = video.to_signed(torch.from_numpy(video.read_frames(seq.rgb_path, at)).to(device))
    depth = torch.cat([seq.depth(i, i + 1) for i in at]).to(device)
    c2w, k = (torch.from_numpy(np.array(x[at])).to(device) for x in (seq.c2w, seq.intrinsics))
    return frames, fusion.static_depth(frames, depth, c2w, k), c2w, k


def warp_frames(args, seq, cameras, device, views, outputs, pixels, depth):
    """Warp source frames to the target cameras of some output frames (a slice or a list of indices)."""
    sources = cameras.frames[outputs]
    c2w, k, k_target = cameras.c2w[outputs], seq.intrinsics[sources], cameras.intrinsics[outputs]
    motion, k, k_target = (torch.from_numpy(np.array(a)).to(device) for a in (np.linalg.inv(c2w), k, k_target))
    depth = depth.to(device)
    if args.edge_threshold:
        depth = warp.cut_edges(depth, args.edge_threshold)
    fill = None
    if args.fuse_static:
        world = torch.from_numpy(seq.c2w[sources] @ c2w).to(device)
        z = fusion.z_buffer(depth, motion, k, k_target)
        fill = functools.partial(fusion.fill, z=z, views=views, target_c2w=world, k_target=k_target)
    return warp_chunk(args.mode, pixels, depth, motion, k, k_target, fill)


def batch_size(device):
    """Frames to warp at once: several fill a GPU, one stays in a CPU core's cache."""
    return 8 if device.type == "cuda" else 1


def in_threads(function, items, device):
    """Yield function(item) in order; on a CPU one item a core, each computed by one thread, and no more in memory."""
    threads, before = 1 if device.type == "cuda" else min(16, os.cpu_count()), torch.get_num_threads()
    torch.set_num_threads(before if device.type == "cuda" else 1)
    try:
        with ThreadPoolExecutor(threads) as pool:
            pending = deque(pool.submit(function, item) for item in itertools.islice(items, threads))
            while pending:
                result = pending.popleft().result()
                pending.extend(pool.submit(function, item) for item in itertools.islice(items, 1))
                yield result
    finally:
        torch.set_num_threads(before)


def save_cameras(path, cameras):
    """The target cameras as --cameras reads them, written beside the name and moved into place."""
    part = Path(f"{path}.part")
    with open(part, "wb") as file:
        np.savez(file, c2w=cameras.c2w, intrinsics=cameras.intrinsics, frames=cameras.frames)
    part.replace(path)


def render(args, seq, cameras, number, device, views, progress):
    """Write {mode}_render, {mode}_mask and {mode}_cameras of one path; return the hole share of each frame."""
    out = {kind: seq.path / f"{args.mode}_{kind}{number}" for kind in ("render", "mask", "cameras")}
    holes = []
    with (
        video.VideoWriter(f"{out['render']}.mp4", seq.info, args.crf) as render_writer,
        video.VideoWriter(f"{out['mask']}.mp4", seq.info, mask=True) as mask_writer,
    ):
        chunks = source_chunks(seq, cameras.frames, batch_size(device))
        warped = in_threads(lambda chunk: warp_frames(args, seq, cameras, device, views, *chunk), chunks, device)
        for pixels, mask in warped:
            render_writer.write(pixels)
            mask_writer.write(mask)
            holes += list(1 - mask.mean((1, 2)))
            progress.update(len(pixels))
    save_cameras(f"{out['cameras']}.npz", cameras)
    return np.array(holes)


def write_preview(args, seq, paths, device, views):
    """preview.png: first, middle and last frame of each path, and plots of the paths."""
    from utils import preview

    moments = [0, seq.info.frames // 2, seq.info.frames - 1]
    rows = []
    for _, cameras in tqdm(paths, unit="path", desc="preview"):
        sources = cameras.frames[moments]
        depth = torch.cat([seq.depth(frame, frame + 1) for frame in sources])
        pixels = video.read_frames(seq.rgb_path, sources)
        rows.append(warp_frames(args, seq, cameras, device, views, moments, pixels, depth))
    preview.write(seq.path / "preview.png", [name for name, _ in paths], [cameras for _, cameras in paths], rows,
                  moments, seq.pivot_depth * args.radius_scale)
    print(f"wrote {seq.path / 'preview.png'}")


def report(args, seq, number, name, holes):
    """One line on a finished render, and a warning where there is little left to inpaint from."""
    print(f"{seq.path / f'{args.mode}_render{number}.mp4'} (and mask, cameras) from {name}; "
          f"holes {holes.mean():.1%}, at most {holes.max():.1%}")
    if holes.max() > MANY_HOLES:
        first = int(np.argmax(holes > MANY_HOLES))
        print(f"warning: at frame {first} the holes of render {number} pass {MANY_HOLES:.0%}; inpainting has little to "
              "hold on to there: move the camera less")


def say_what_is_stale(args, seq, count):
    """Name renders of an earlier run with more paths: finetuning would take them too."""
    stale = [p.name for i in range(count + 1, 1000) if (p := seq.path / f"{args.mode}_render{i}.mp4").exists()]
    if stale:
        print(f"warning: {', '.join(stale)} stay from an earlier run and would be used too; delete them if not wanted")


def main():
    args = parse_args()
    check(args)
    device = cli.pick_device(args.device)
    seq = sequence.open_sequence(args.data_path, args.depth_file, args.intrinsics_file, args.extrinsics_file)
    paths = camera_paths(args, seq)
    say_what_is_unused(args, seq)
    size = f"{seq.info.frames} frames of {seq.info.width} x {seq.info.height}"
    print(f"{seq.path}: {size}, orbit radius {seq.pivot_depth * args.radius_scale:.4g}, computing on {device}")
    views = static_views(seq, device) if args.fuse_static else None
    if args.preview:
        write_preview(args, seq, paths, device, views)
        return
    with tqdm(total=len(paths) * seq.info.frames, unit="frame", desc=f"{args.mode} renders") as progress:
        holes = [render(args, seq, cameras, number, device, views, progress)
                 for number, (_, cameras) in enumerate(paths, 1)]
    for number, ((name, _), share) in enumerate(zip(paths, holes, strict=True), 1):
        report(args, seq, number, name, share)
    say_what_is_stale(args, seq, len(paths))


if __name__ == "__main__":
    cli.run(main)
