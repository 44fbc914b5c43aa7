"""Reproject a video by its depth along camera paths: renders, their masks and their cameras.

    python data_gen.py --data_path demo_data/room --mode eval

--mode train writes training pairs for finetune/: each frame is warped to a new camera and back, so
that the render is the source with the holes that a camera move leaves. Their paths are random; val_
renders are the same along the evaluation paths, held out from training for toolbox/score.py. --mode
eval writes the new views that demo.py inpaints. A render that is there, made of the same, is kept.
"""

if __name__ == "__main__":
    import signal

    signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C during the imports shows no traceback

import argparse
import hashlib
import os
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from utils import camera_paths, cli, fusion, sequence, trajectory, video, warp
from utils.cli import InputError

REFERENCE_FRAMES = 16  # that --fuse_static looks into, spread over the video


def parse_args():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=cli.HelpFormatter)
    add_path_arguments(parser)
    add = parser.add_argument
    add("--mode", choices=("train", "eval"), required=True)
    add("--device", help="cpu, cuda or cuda:N; the GPU if there is one by default")
    add("--num_train_render", type=int, default=8, help="random training paths")
    add("--seed", type=int, default=42, help="of the random training paths")
    add("--fuse_static", action="store_true",
        help="mode eval: fill holes from other frames where they saw static surface")
    add("--overwrite", action="store_true", help="make renders anew that are there")
    add("--preview", action="store_true",
        help="write only preview.png, renders and paths at a glance, and in mode "
        "eval design.html, where paths are drawn: open it in a browser")
    add("--crf", type=int, default=10, help="H.264 quality, 0 to 51; 0 is 4:4:4, within 2 of 255")
    return parser.parse_args()


def add_path_arguments(parser):
    """What toolbox/design_path.py takes too: the sequence, and paths through it."""
    add = parser.add_argument
    presets = ", ".join(trajectory.PRESETS)
    add("--data_path", type=Path, required=True,
        help="sequence folder with gt_rgb.mp4 and cam_info/")
    add("--depth_file", default=sequence.DEPTH, help="z-depth, (N, h, w), in the sequence folder")
    add("--intrinsics_file", help="K at the depth map's resolution, such as "
        f"{sequence.INTRINSICS}; focal length 500 without it")
    add("--extrinsics_file", help=f"camera to world, such as {sequence.C2WS}; --anchor first and "
        "--fuse_static need it, paths that follow the source camera do not")
    add("--pivot", metavar="X,Y or DEPTH", help="what paths turn about: the point seen at a pixel "
        "of the first frame, such as 310,170, or a depth on the optical axis; the depth at the "
        "picture's centre by default")
    add("--radius_scale", type=float, default=1.0,
        help="scales the pivot's depth, along its ray")
    add("--trajs", help="evaluation paths, trajs/ by default, separated by commas: a folder of "
        ".txt, a file, a quoted glob or a preset with its amount, such as orbit_left:20 "
        f"({presets}); + joins presets, as in dolly_in:0.15+orbit_right:8, and "
        f"{camera_paths.EASE} behind any of these starts and ends gently; in mode train, of the "
        "held-out pairs")
    add("--cameras", help="instead of --trajs: an npy, npz or json of target c2w relative to the "
        "source camera, (4, 4) or (N, 4, 4), or a quoted glob of such files")
    add("--anchor", choices=("source", "first"), default="source", help="what a path moves "
        "relative to: each frame's own camera, or the first frame's held still in the world")
    add("--edge_threshold", type=float, help="cut pixels where the depth around jumps by more "
        "than this share, such as 0.1; nothing is cut by default")


def check_args(args):
    check_path_args(args)
    if not 0 <= args.crf <= 51:
        raise InputError(f"--crf {args.crf}: expected 0 (best) to 51")
    if args.num_train_render < 1:
        raise InputError(f"--num_train_render {args.num_train_render}: expected at least 1")
    if args.cameras is not None and args.pivot is not None and args.mode == "eval":
        raise InputError("--pivot: camera files turn about no point; give it with --trajs, or "
                         "without --cameras")
    if args.fuse_static and args.mode == "train":
        raise InputError("--fuse_static: only with --mode eval; training pairs keep their holes")
    if args.fuse_static:
        need_source_cameras("--fuse_static", args)


def check_path_args(args):
    """InputError for what is wrong among add_path_arguments()."""
    if not 0 < args.radius_scale <= camera_paths.FAR:
        raise InputError(f"--radius_scale {args.radius_scale}: expected a number above 0, up to "
                         f"{camera_paths.FAR:g}")
    if args.cameras is not None and args.trajs is not None:
        raise InputError("--cameras and --trajs: give one of them")
    if args.edge_threshold is not None and not 0 < args.edge_threshold < np.inf:
        raise InputError(f"--edge_threshold {args.edge_threshold}: expected above 0, such as 0.1")
    if args.anchor == "first":
        need_source_cameras("--anchor first", args)


def need_source_cameras(flag, args):
    if not args.extrinsics_file:
        raise InputError(f"{flag}: needs the source cameras; give "
                         f"--extrinsics_file {sequence.C2WS}")


@dataclass(frozen=True)
class Target:
    """What one camera path is rendered to: {kind}_render{number}.mp4, with mask and cameras.

    kind: train, val or eval. name: the path's, for people.
    """

    kind: str
    number: int
    name: str
    cameras: trajectory.Cameras


def find_targets(args, seq, given, pivot):
    """All Targets of a run, in order.

    given: what camera_paths.find_paths gives. pivot: float64 [3], None where no path needs it.
    """
    paths = []
    for name, path in given:
        paths.append((name, camera_paths.cameras_of(path, seq.intrinsics, pivot)))
    if args.mode == "eval":
        return numbered(args, seq, "eval", paths)
    pairs = []
    for i, keys in enumerate(trajectory.random_keyframes(args.seed, args.num_train_render), 1):
        cameras = trajectory.keyframe_cameras(keys, seq.intrinsics, pivot)
        pairs.append((f"random path {i} of seed {args.seed}", cameras))
    held_out = []
    for name, cameras in paths:  # a pair shows one moment, so time passes on every path
        held_out.append((name, replace(cameras, frames=np.arange(seq.info.frames))))
    return numbered(args, seq, "train", pairs) + numbered(args, seq, "val", held_out)


def numbered(args, seq, kind, paths):
    """The Targets of (name, trajectory.Cameras), moved to --anchor."""
    targets = []
    for number, (name, cameras) in enumerate(paths, 1):
        if args.anchor == "first":
            cameras = trajectory.anchored_first(cameras, seq.c2w)
        targets.append(Target(kind, number, name, cameras))
    return targets


def find_pivot(args, seq):
    """The point that paths turn about, float64 [3]; None if all are --cameras, which need none."""
    if args.mode == "eval" and args.cameras is not None:
        return None
    return camera_paths.find_pivot(args.pivot, seq) * args.radius_scale


def say_what_is_unused(args, seq):
    for flag, name, instead in (
        ("intrinsics_file", sequence.INTRINSICS, "focal length 500 is used"),
        ("extrinsics_file", sequence.C2WS, "these paths follow the source camera anyway"),
    ):
        if getattr(args, flag) is None and (seq.path / name).is_file():
            print(f"note: {name} is there but unused ({instead}); give --{flag} {name} to use it")
    for note in seq.notes:
        print(f"note: {note}")
    if args.extrinsics_file:
        for doubt in sequence.doubts(seq.path):
            print(f"warning: {args.extrinsics_file}: {doubt}")
    if seq.bad_depth_share:
        print(f"note: {seq.bad_depth_share:.2%} of the depth values are not positive finite "
              "numbers and become holes")
    if seq.info.height % 2 or seq.info.width % 2:
        print(f"note: {seq.info.width} x {seq.info.height} is odd, so written as 4:4:4, which "
              "browsers may not play")


@dataclass(frozen=True)
class Warper:
    """What all frames of a run have in common. views: what fusion.fill takes, or None."""

    seq: sequence.Sequence
    mode: str
    device: torch.device
    edge_threshold: float | None
    views: tuple | None

    def warp(self, cameras, outputs, pixels, depth):
        """What the target cameras of some output frames see, as warp_chunk returns it.

        outputs: a slice or list of indices. pixels uint8 [n, H, W, 3] and depth [n, H, W] are of
        the source frames that these outputs show.
        """
        sources = cameras.frames[outputs]
        c2w = cameras.c2w[outputs]
        motion = self.tensor(np.linalg.inv(c2w))
        k = self.tensor(self.seq.intrinsics[sources])
        k_target = self.tensor(cameras.intrinsics[outputs])
        depth = depth.to(self.device)
        if self.edge_threshold:
            depth = warp.cut_edges(depth, self.edge_threshold)
        if self.views is None:
            return warp_chunk(self.mode, pixels, depth, motion, k, k_target)

        def fill(x, mask):
            world = self.tensor(self.seq.c2w[sources] @ c2w)
            z = fusion.z_buffer(depth, motion, k, k_target)
            return fusion.fill(x, mask, z, self.views, world, k_target)

        return warp_chunk(self.mode, pixels, depth, motion, k, k_target, fill)

    def tensor(self, array):
        return torch.from_numpy(np.array(array)).to(self.device)


def warp_chunk(mode, pixels, depth, motion, k, k_target=None, fill=None):
    """uint8 [n, H, W, 3] in, (uint8 [n, H, W, 3], bool [n, H, W]) out; on depth's device.

    fill: takes the new views and their masks, returns both with fewer holes.
    """
    frames = video.to_signed(torch.from_numpy(pixels).to(depth.device))
    x, mask = warp.render(mode, frames, depth, motion, k, k_target)
    if fill:
        x, mask = fill(x, mask)
    return video.to_bytes(x).cpu().numpy(), mask.cpu().numpy()


def static_views(seq, device):
    """What fusion.fill takes: reference frames, their static depth, c2w and K."""
    at = np.linspace(0, seq.info.frames - 1, REFERENCE_FRAMES)
    at = np.unique(at.round().astype(int))
    frames = torch.from_numpy(video.read_frames(seq.rgb_path, at)).to(device)
    frames = video.to_signed(frames)
    depth = torch.cat([seq.depth(i, i + 1) for i in at]).to(device)
    c2w = torch.from_numpy(seq.c2w[at]).to(device)
    k = torch.from_numpy(seq.intrinsics[at]).to(device)
    return frames, fusion.static_depth(frames, depth, c2w, k), c2w, k


def batch_size(device):
    """Frames to warp at once: several fill a GPU, one stays in a CPU core's cache."""
    return 8 if device.type == "cuda" else 1


def source_chunks(seq, frames, size):
    """Yield (slice of the output, uint8 [n, H, W, 3], depth [n, H, W]), `size` frames at a time."""
    if np.array_equal(frames, np.arange(len(frames))):
        start = 0
        for pixels in video.iter_chunks(seq.rgb_path, size):
            stop = start + len(pixels)
            yield slice(start, stop), pixels, seq.depth(start, stop)
            start = stop
    else:  # time stands still
        pixels = video.read_frames(seq.rgb_path, frames[:1])
        depth = seq.depth(frames[0], frames[0] + 1)
        for start in range(0, len(frames), size):
            n = min(size, len(frames) - start)
            yield slice(start, start + n), pixels.repeat(n, 0), depth.expand(n, -1, -1)


def in_threads(function, items, device):
    """Yield function(item) in order; on a CPU one item a core, each computed by one thread."""
    if device.type == "cuda":
        yield from video.ahead(items, function)
        return
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield from video.ahead(items, function, min(16, os.cpu_count()))
    finally:
        torch.set_num_threads(before)


def write_set(args, warper, target, tags, progress):
    """Write render, mask and cameras of a Target; return the hole share of each frame, [N].

    Others look for the render. So the old one goes first and the new one comes last (the writers
    are left in reverse order): an interrupted run leaves none beside another's mask or cameras.
    """
    seq = warper.seq
    cameras = target.cameras
    render, mask, cameras_file = set_paths(args, target)
    audio = None
    if args.mode == "eval" and not cameras.frozen and video.has_audio(seq.rgb_path):
        audio = seq.rgb_path
    holes = []
    with (
        video.VideoWriter(render, seq.info, args.crf, tags=tags, audio=audio) as render_writer,
        video.VideoWriter(mask, seq.info, mask=True, tags=tags) as mask_writer,
    ):
        chunks = source_chunks(seq, cameras.frames, batch_size(warper.device))
        warped = in_threads(lambda chunk: warper.warp(cameras, *chunk), chunks, warper.device)
        for pixels, known in warped:
            render_writer.write(pixels)
            mask_writer.write(known)
            holes.extend(1 - known.mean((1, 2)))
            progress.update(len(pixels))
        render_writer.finish()
        mask_writer.finish()
        render.unlink(missing_ok=True)
        camera_paths.write_cameras(cameras_file, cameras)
    return np.array(holes)


def set_paths(args, target):
    """Where the render, mask and cameras of a Target are."""
    number = target.number
    names = f"render{number}.mp4", f"mask{number}.mp4", f"cameras{number}.npz"
    return [args.data_path / f"{target.kind}_{name}" for name in names]


def origin(args, seq):
    """What all renders are made from, kept in their files; what differs among them is added."""
    depth = cli.file_hash(seq.path / args.depth_file)
    made = {"program": "data_gen.py", "source": cli.file_hash(seq.rgb_path), "depth": depth}
    for name in ("mode", "edge_threshold", "fuse_static", "crf"):
        made[name] = getattr(args, name)
    arrays = [seq.intrinsics, *([seq.c2w] if args.fuse_static else [])]
    return made | {"source_cameras": hash_of(arrays)}


def hash_of(arrays):
    """The SHA-256 of arrays' bytes, in hexadecimal."""
    return hashlib.sha256(b"".join(map(np.ndarray.tobytes, arrays))).hexdigest()


def is_done(args, target, tags):
    """Whether a Target's files are there, made of what `tags` say."""
    render, mask, cameras = set_paths(args, target)
    if args.overwrite or not cameras.is_file():
        return False
    return video.made_of(render) == tags and video.made_of(mask) == tags


def write_renders(args, warper, targets):
    """Write all Targets that are still to be made, then a line on each."""
    made = origin(args, warper.seq)
    to_do = []
    for target in targets:
        cameras = hash_of(vars(target.cameras).values())
        tags = {**made, "path": target.name, "cameras": cameras}
        if is_done(args, target, tags):
            print(f"{set_paths(args, target)[0]} exists and is kept: its video, depth, cameras and "
                  "settings are the same")
        else:
            to_do.append((target, tags))
    shares = []
    total = len(to_do) * warper.seq.info.frames
    bar = tqdm(total=total, unit="frame", desc=f"{args.mode} renders", disable=not to_do)
    with bar as progress:
        for target, tags in to_do:
            shares.append(write_set(args, warper, target, tags, progress))
    for (target, _), holes in zip(to_do, shares, strict=True):
        print(f"{set_paths(args, target)[0]} (and mask, cameras) from {target.name}; holes "
              f"{holes.mean():.1%}, at most {holes.max():.1%}")
        warn_of_holes(target, range(len(holes)), holes)


def warn_of_holes(target, frames, holes):
    """Say where a render leaves little to inpaint from; holes: the share of each of the frames."""
    if target.kind == "eval" and holes.max() > warp.MANY_HOLES:
        first = frames[int(np.argmax(holes > warp.MANY_HOLES))]
        print(f"warning: at frame {first} the holes of render {target.number} pass "
              f"{warp.MANY_HOLES:.0%}; inpainting has little to hold on to there: move the camera "
              "less")


def warn_of_stale(seq, targets):
    """Name renders of an earlier run with more paths: other programs would take them too."""
    counts = {}
    for target in targets:
        counts[target.kind] = target.number
    for kind, count in counts.items():
        names = [f"{kind}_render{number}.mp4" for number in range(count + 1, 1000)]
        if stale := [name for name in names if (seq.path / name).exists()]:
            print(f"warning: {', '.join(stale)} stay from an earlier run and would be used too; "
                  "delete them if not wanted")


def write_preview(warper, targets, pivot):
    """preview.png: first, middle and last frame of each path, and plots of the paths."""
    from utils import preview

    seq = warper.seq
    moments = [0, seq.info.frames // 2, seq.info.frames - 1]
    views = []
    for target in tqdm(targets, unit="path", desc="preview"):
        sources = target.cameras.frames[moments]
        depth = torch.cat([seq.depth(frame, frame + 1) for frame in sources])
        pixels = video.read_frames(seq.rgb_path, sources)
        views.append(warper.warp(target.cameras, moments, pixels, depth))
    paths = [(target.name, target.cameras) for target in targets]
    preview.write(seq.path / "preview.png", paths, views, moments, pivot)
    print(f"wrote {seq.path / 'preview.png'}")
    for target, (_, known) in zip(targets, views, strict=True):
        warn_of_holes(target, moments, 1 - known.mean((1, 2)))


def write_design(args, seq, paths, pivot):
    """design.html, on which paths are drawn; arguments are utils/designer/page.py's."""
    from utils.designer import page

    with tqdm(total=seq.info.frames, unit="frame", desc="design") as progress:
        file = page.write(args, seq, paths, pivot, progress)
    print(f"wrote {file} ({file.stat().st_size / 1e6:.1f} MB): open it in a browser")


def main():
    args = parse_args()
    check_args(args)
    device = cli.pick_device(args.device)
    files = args.depth_file, args.intrinsics_file, args.extrinsics_file
    seq = sequence.open_sequence(args.data_path, *files)
    if seq.bad_depth_share == 1:
        raise InputError(f"{seq.path}: no depth value is a positive finite number, so there is "
                         "nothing to render; expected z-depth; make or copy the depth again")
    pivot = find_pivot(args, seq)
    paths = camera_paths.find_paths(args.trajs, args.cameras, seq.intrinsics, seq.size)
    targets = find_targets(args, seq, paths, pivot)
    say_what_is_unused(args, seq)
    said = [f"{seq.info.frames} frames of {seq.info.width} x {seq.info.height}"]
    if pivot is not None:
        said.append(camera_paths.pivot_in_words(pivot, seq.intrinsics[0]))
    print(f"{seq.path}: {', '.join(said)}, computing on {device}")
    views = static_views(seq, device) if args.fuse_static else None
    warper = Warper(seq, args.mode, device, args.edge_threshold, views)
    if args.preview:
        write_preview(warper, targets, pivot)
        if args.mode == "eval":
            write_design(args, seq, paths, pivot)
        return
    with cli.lock(seq.path / f".data_gen_{args.mode}.lock"):
        for kind in {target.kind for target in targets}:
            for left in seq.path.glob(f"{kind}_*.part"):  # by a run that was killed
                left.unlink()
        write_renders(args, warper, targets)
    warn_of_stale(seq, targets)


if __name__ == "__main__":
    cli.run(main, "renders that are whole stay; the same command makes the others")
