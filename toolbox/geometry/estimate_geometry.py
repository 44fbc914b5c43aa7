"""Depth, focal length and cameras of a bare video, and a verdict whether they can be trusted.

    python toolbox/geometry/estimate_geometry.py --video my.mp4 --output demo_data/mine \\
        --model_path checkpoints/Depth-Anything-V2-Metric-Indoor-Large-hf

writes demo_data/mine/gt_rgb.mp4 and, in its cam_info/, depth, K, camera to world, geometry.json
(the verdict, and how well each frame fits) and geometry.png. --model_path is a folder of a depth
model of the transformers library, relative or metric; or its hub name, with --download. Such are:
{models}
--data_path SEQ takes a folder that holds gt_rgb.mp4 already. Without --model_path the depth that is
there (--depth_file) is taken in place of a network's. Depth of other programs is refined so, and
with --keep_cameras their cameras stay.

Optical flow between frames 1 to 32 apart is explained by a still scene, seen from a moving camera
of one focal length, whose depth is the network's but for smooth errors (solver.py). Videos longer
than {window} frames are solved in windows that overlap. What was done stays when the program is
stopped: the same command goes on.
"""

if __name__ == "__main__":
    import signal

    signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C during the imports shows no traceback

import argparse
import contextlib
import itertools
import json
import shutil
import sys
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import torch
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from toolbox.geometry import networks, picture, shots, verdict
from utils import cli, files, geometry, sequence, video
from utils.cli import InputError

PICTURE = "cam_info/geometry.png"
K_SHARE = 0.02  # of the long side: K may differ so much from one of a centred pinhole
WORK = "cam_info/geometry.part"  # what is done, until all is


def parse_args():
    listed = "".join(f"  {name} ({size}, {licence}): {use}\n"
                     for name, size, licence, use in networks.MODELS)
    text = __doc__.format(models=listed, window=shots.LONGEST)
    parser = argparse.ArgumentParser(description=text, formatter_class=cli.HelpFormatter)
    add = parser.add_argument
    add("--video", type=Path, help="a video, for a new sequence folder")
    add("--output", type=Path, help="the folder to make of --video")
    add("--data_path", type=Path, help="instead of both: a folder with gt_rgb.mp4")
    add("--model_path", help="folder of a depth model, or its hub name with --download")
    add("--download", action="store_true", help="allow fetching the model from the hub")
    add("--depth_file", help="z-depth (N, h, w), npy, in the folder or anywhere, in place of a "
        "network's")
    add("--keep_cameras", action="store_true", help="keep the K and camera to world that are in "
        "cam_info/, and refine depth alone")
    add("--focal", type=float, help="focal length in pixels of the video, where it is known")
    add("--start", type=float, default=0, help="of --video: seconds to leave out")
    add("--frames", type=int, help="of --video: frames to take")
    add("--fps", type=float, help="of --video: frames a second to take")
    add("--batch_size", type=int, default=1, help="frames that the network sees at a time")
    add("--overwrite", action="store_true", help="replace what is there")
    add("--device", help="of the network: cpu, cuda or cuda:N; the GPU if there is one by default")
    return parser.parse_args()


def check_args(args):
    """InputError for flags that do not go together; sets args.data_path."""
    if (args.video is None) == (args.data_path is None) or (args.video and not args.output):
        raise InputError("give --video FILE and --output FOLDER, or --data_path FOLDER")
    if args.video is None and (args.start or args.frames or args.fps):
        raise InputError("--start, --frames and --fps cut --video; --data_path is taken whole")
    for name in ("start", "frames", "fps", "focal", "batch_size"):
        value = getattr(args, name)
        if value is None:
            continue
        if not np.isfinite(value) or value < 0 or value == 0 and name != "start":
            raise InputError(f"--{name} {value}: expected a number above 0")
    args.data_path = args.data_path or args.output
    if args.keep_cameras and args.focal:
        raise InputError("--focal and --keep_cameras: give one of them")


def check_outputs(args):
    """InputError if this run would replace a file."""
    names = [sequence.DEPTH, sequence.INTRINSICS, sequence.C2WS]
    if args.keep_cameras:
        names = names[:1]
    if args.video:
        names.append("gt_rgb.mp4")
    there = [args.data_path / name for name in names if (args.data_path / name).exists()]
    if there and not args.overwrite and not is_begun(args):
        raise InputError(f"{there[0]}: is there already; give --overwrite to replace it")


# ---- the video -----------------------------------------------------------------------------------


def cut_video(args):
    """Write --video, or the part of it that is asked for, as gt_rgb.mp4."""
    info = video.probe(args.video)
    starts = info.times or [t / info.fps for t in range(info.frames + 1)]
    chosen = chosen_frames(args, [float(start) for start in starts])
    if len(chosen) < 2:
        raise InputError(f"--video {args.video}: {len(chosen)} frames are left of {info.frames}; "
                         "expected at least 2: see --start, --frames, --fps")
    target = args.data_path / "gt_rgb.mp4"
    if len(chosen) == info.frames and args.video.suffix.lower() == ".mp4":
        target.parent.mkdir(parents=True, exist_ok=True)
        with files.whole(target) as part:
            shutil.copyfile(args.video, part)
        return
    kept = [starts[t] - starts[chosen[0]] for t in [*chosen, chosen[-1] + 1]]
    gaps = np.diff(kept[:-1])
    uneven = info.times or gaps.max() > gaps.min()
    info = replace(info, frames=len(chosen), times=tuple(kept) if uneven else None)
    if args.fps and gaps.max() < 2 / args.fps and not gaps.min() > 1.01 / args.fps:
        info = info.at_rate(args.fps)
    elif not uneven:
        info = info.at_rate(1 / gaps[0])
    wanted = set(chosen)
    frames = itertools.islice(video.iter_frames(args.video), chosen[-1] + 1)
    with video.VideoWriter(target, info) as writer:
        for t, frame in enumerate(tqdm(frames, unit="frame", desc="video")):
            if t in wanted:
                writer.write(frame[None])


def chosen_frames(args, starts):
    """Which frames --start, --fps and --frames leave, of those that begin at these seconds; the
    last is the end."""
    first = args.start - 1e-6
    chosen = [t for t, start in enumerate(starts[:-1]) if start >= first]
    if args.fps and args.fps < 1 / min(np.diff(starts)):
        ticks = np.arange(args.start, starts[-1], 1 / args.fps) - 1e-6
        nearest = np.searchsorted(starts, ticks)
        chosen = sorted(set(nearest.tolist()) & set(chosen))
    return chosen[: args.frames]


# ---- depth before --------------------------------------------------------------------------------


def open_network(args):
    """(config, network, what makes its input of frames), or None without --model_path."""
    if not args.model_path:
        return None
    config = networks.load_config(args)
    return config, *networks.load_model(args, config, cli.pick_device(args.device))


def depth_of_network(args, info, network):
    """(inverse depth [N, h, w], memory-mapped; focal length, pixels, or None; whether metric)."""
    config, model, prepare = network
    size = networks.fit_size(info.height, info.width)
    path = args.data_path / WORK / "network.npy"
    done_path = args.data_path / WORK / "network_done.npy"
    focals = np.load(done_path) if done_path.is_file() else np.zeros(0)
    shape = (info.frames, *size)
    mode = "r+" if len(focals) and path.is_file() else "w+"
    maps = np.lib.format.open_memmap(path, mode, np.float32, shape)
    with tqdm(initial=len(focals), total=info.frames, unit="frame", desc="depth") as bar:
        for first, frames in chunks(args, len(focals)):
            inverse, focal = networks.predict(model, prepare(frames), size)
            right = np.isfinite(inverse).all() and inverse.max() > 0
            if not right or focal is not None and not (focal > 0).all():
                drop_work(args)
                raise InputError(f"{args.model_path}: gave depth that is not positive and finite; "
                                 "expected trained weights")
            maps[first : first + len(frames)] = inverse
            found = np.full(len(frames), np.nan) if focal is None else focal
            focals = np.concatenate([focals[:first], found])
            maps.flush()
            sequence.save_array(done_path, focals)
            bar.update(len(frames))
    focal = np.median(focals) * info.width
    return maps, float(focal) if np.isfinite(focal) else None, networks.is_metric(config)


def chunks(args, start):
    """(first, frames) of gt_rgb.mp4 from a frame on, a batch at a time."""
    first = 0
    for frames in video.iter_chunks(args.data_path / "gt_rgb.mp4", args.batch_size):
        if first + len(frames) > start:
            yield first, frames
        first += len(frames)


def depth_path(args):
    """The file of --depth_file, or of the depth that is there."""
    path = args.data_path / (args.depth_file or sequence.DEPTH)
    if not path.is_file() and args.depth_file and Path(args.depth_file).is_file():
        path = Path(args.depth_file)
    return path


def check_depth_file(args):
    """InputError if there is neither a model nor depth."""
    path = depth_path(args)
    if not path.is_file():
        raise InputError(f"{path}: no such file; give --model_path, a depth model (see --help), or "
                         "--depth_file")


def depth_of_file(args, info):
    """Inverse depth [N, h, w] of --depth_file, or of the depth that is there; 0 where unknown."""
    path = depth_path(args)
    depth = sequence.load_array(path, [(info.frames, None, None)])
    geometry.check_shape(path, depth.shape[:0:-1], (info.width, info.height))
    files.check_memory(path, 6 * depth.size)  # float32, and a half beside it when it is written
    inverse = np.zeros(depth.shape, np.float32)
    for each, to in zip(depth, inverse, strict=True):
        np.divide(1, each, out=to, where=np.isfinite(each) & (each > 0), casting="unsafe")
    if not inverse.any():
        raise InputError(f"{path}: has no positive finite depth; expected z-depth")
    return inverse


def focal_of_file(path):
    """The focal length by the picture's diagonal that a phone wrote into a video, or None."""
    for name, value in video.read_tags(path).items():
        if "35mm" in name.lower() or "35_mm" in name.lower():
            with contextlib.suppress(ValueError):
                if 5 < float(value) < 1000:
                    return float(value) / 43.27  # mm, the diagonal of 36 x 24
    return None


def known_cameras(args, info, depth_size):
    """(focal length in pixels of the video, w2c [N, 4, 4]) of the files that are there.

    depth_size: (h, w) of the depth, whose pixels K may be in.
    """
    path = args.data_path / sequence.INTRINSICS
    k, notes = sequence.video_intrinsics(path, info, depth_size)
    for note in notes:
        print(f"note: {note}")
    wanted = np.array([[k[0, 0, 0], 0, info.width / 2], [0, k[0, 0, 0], info.height / 2],
                       [0, 0, 1]])
    if np.abs(k - wanted).max() > K_SHARE * max(info.height, info.width):
        raise InputError(f"{path}: --keep_cameras needs one focal length for all frames, x and y, "
                         f"and the centre in the middle; got {cli.short(str(k[0].tolist()), 200)}")
    return float(k[0, 0, 0]), np.linalg.inv(
        sequence.camera_poses(args.data_path / sequence.C2WS, info.frames))


# ---- all of it -----------------------------------------------------------------------------------


def made_of(args):
    """What results depend on, to know whether those of an earlier start can be used."""
    facts = {name: str(getattr(args, name)) for name in
             ("model_path", "depth_file", "keep_cameras", "focal", "start", "frames", "fps")}
    used = [args.video or args.data_path / "gt_rgb.mp4"]
    if not args.model_path:
        used.append(depth_path(args))
    if args.keep_cameras:
        used += [args.data_path / name for name in (sequence.INTRINSICS, sequence.C2WS)]
    return facts | {str(path): cli.file_hash(path) for path in used if path.is_file()}


def is_begun(args):
    """Whether an earlier start of the same command left what it had done."""
    record = args.data_path / WORK / "made_of.json"
    return record.is_file() and files.read_json(record) == made_of(args)


def open_work(args):
    """Make the folder of what is done; it is emptied if that was made of something else."""
    work = args.data_path / WORK
    if is_begun(args):
        return
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    with files.whole(work / "made_of.json") as part:
        part.write_text(json.dumps(made_of(args)))


def drop_work(args):
    """Delete the folder of what is done, and cam_info/ if there is nothing else in it."""
    shutil.rmtree(args.data_path / WORK, ignore_errors=True)
    with contextlib.suppress(OSError):
        (args.data_path / WORK).parent.rmdir()


def write(args, info, found):
    """Write what was found: depth last, for without it the same command goes on."""
    height, width = found.disparity.shape[1:]
    k = np.array([[found.focal, 0, info.width // 2], [0, found.focal, info.height // 2], [0, 0, 1]])
    k = k * geometry.scale((info.width, info.height), (width, height))
    depth = np.zeros(found.disparity.shape, np.float32)
    for each, to in zip(found.disparity, depth, strict=True):
        np.divide(1, each, out=to, where=each > 0)
    if not args.keep_cameras:
        sequence.save_array(args.data_path / sequence.INTRINSICS, k.astype(np.float32))
        sequence.save_array(args.data_path / sequence.C2WS, found.c2w.astype(np.float32))
    record = verdict.as_record(found)
    record["c2ws_hash"] = cli.file_hash(args.data_path / sequence.C2WS)
    with files.whole(args.data_path / sequence.VERDICT) as part:
        part.write_text(json.dumps(record, indent=1) + "\n")
    picture.write(args.data_path / PICTURE, found)
    sequence.save_array(args.data_path / sequence.DEPTH, sequence.half_if_exact(depth))
    shutil.rmtree(args.data_path / WORK)
    print(f"wrote {args.data_path}/{sequence.DEPTH}, megasam_intrinsics.npy, megasam_c2ws.npy, "
          f"geometry.json and geometry.png: {info.frames} frames, depth {width} x {height}, "
          f"focal length {found.focal:.1f} pixels")
    for sentence in found.sentences:
        print(f"verdict: {sentence}")


def main():
    args = parse_args()
    check_args(args)
    check_outputs(args)
    if args.download:
        networks.check_network()
    cv2.setNumThreads(1)  # with more, these small pictures take several times as long
    video.probe(args.video or args.data_path / "gt_rgb.mp4")
    network = open_network(args)
    if network is None:
        check_depth_file(args)
    with cli.lock(args.data_path / ".estimate_geometry.lock"):
        fresh = not is_begun(args)
        rgb = args.data_path / "gt_rgb.mp4"
        try:
            if args.video and (fresh or not rgb.is_file()):
                open_work(args)
                cut_video(args)
            run(args, network)
        except InputError:
            if fresh and args.video:  # what was begun is nothing that could go on
                rgb.unlink(missing_ok=True)
                drop_work(args)
            raise


def run(args, network):
    """From gt_rgb.mp4 to cam_info/; files are refused before anything is written there."""
    info = video.probe(args.data_path / "gt_rgb.mp4")
    if info.frames < 2:
        raise InputError(f"{args.data_path}/gt_rgb.mp4: has one frame; expected at least 2")
    short, long = sorted((info.height, info.width))
    if short < 16 or long > 10 * short:
        raise InputError(f"{args.data_path}/gt_rgb.mp4: got {info.width} x {info.height}; expected "
                         "16 pixels or more, and a side no longer than ten times the other")
    focal, metric = None, True
    inverse = None if network else depth_of_file(args, info)
    w2c = None
    if args.keep_cameras:
        size = networks.fit_size(info.height, info.width) if network else inverse.shape[1:]
        kept_focal, w2c = known_cameras(args, info, size)
    open_work(args)
    if network:
        inverse, focal, metric = depth_of_network(args, info, network)
    torch.set_num_threads(1)
    fixed = args.focal is not None or args.keep_cameras
    tagged = focal_of_file(args.video or args.data_path / "gt_rgb.mp4")
    if tagged and not fixed:
        focal = tagged * np.hypot(info.width, info.height)
        print(f"note: the video says that its focal length is {focal:.0f} pixels; begun with that")
    if args.keep_cameras:
        focal = kept_focal
    found = shots.find_geometry(
        args.data_path / "gt_rgb.mp4", info, inverse, args.data_path / WORK,
        shots.Known(args.focal or focal, fixed, w2c, metric))
    write(args, info, found)


if __name__ == "__main__":
    cli.run(main)
