"""Whether a sequence folder is sound, and what was made of it belongs to it."""

import numpy as np
import torch

import data_gen
import demo
from finetune import dataset
from toolbox import side_by_side
from utils import camera_paths, cli, cogvideox, sequence, video, warp, windows
from utils.cli import InputError

CLIP = 49  # frames of the full-size model's clip
VIEW = 2, 150  # degrees that a field of view lies between, of a K in pixels of its depth map

MODES = {"train": "train", "val": "train", "eval": "eval"}  # of data_gen.py, by kind of render


def look(report, args, configs):
    """Look at the video, its depth, K, poses and paths, and at what was made of it."""
    path = args.data_path
    info = report.check("gt_rgb.mp4", rgb, report, path, configs)
    if not info:
        return
    files = chosen_files(report, args)
    seq = report.check("depth", depth, report, path, files[0])
    if seq:
        report.check("paths", geometry, report, seq, files, args.trajs)
    report.check("renders", renders, report, path, info, files[0])
    report.check("outputs", outputs, report, path)


def geometry(report, seq, files, trajs):
    """Look at K, poses and paths. seq: without them. files: of depth, K and poses."""
    depth_file, k_file, c2w_file = files
    path = seq.path
    moments, frames = three_frames(seq)
    known = k_file and report.check("K", sequence.open_sequence, path, depth_file, k_file)
    if known or not k_file:
        seq = known or seq
        for note in seq.notes:
            report.note("K", note)
        report.check("K", field_of_view, report, seq, bool(known))
    posed = c2w_file and report.check("poses", sequence.open_sequence, path, depth_file,
                                      k_file if known else None, c2w_file)
    if posed:
        report.check("poses", motion, report, posed.c2w)
    report.check("paths", holes, report, trajs, seq, moments, frames)


def chosen_files(report, args):
    """(depth, K, poses): the files given, else those of the usual names that are there, else None.

    data_gen.py reads K and poses only if they are given.
    """
    files = [args.depth_file or sequence.DEPTH]
    for label, flag, usual in (("K", "intrinsics_file", sequence.INTRINSICS),
                               ("poses", "extrinsics_file", sequence.C2WS)):
        name = getattr(args, flag)
        if name is None and (args.data_path / usual).is_file():
            name = usual
            report.note(label, f"of {usual}, which data_gen.py reads only with --{flag}")
        files.append(name)
    return files


def rgb(report, path, configs):
    """Say what the video is, and how it meets the model's clip; its VideoInfo."""
    info = video.probe(path / "gt_rgb.mp4")
    clip = cogvideox.clip_shape(*configs)[0] if configs else CLIP
    count = len(windows.starts(info.frames, clip, clip // 4 + 1))
    fit = f"{count} windows of {clip}" if count > 1 else f"one clip of {clip}"
    report.line("gt_rgb.mp4", f"{info.frames} frames of {info.width} x {info.height}, "
                f"{float(info.fps):.5g} a second, {info.matrix}; {fit}")
    return info


def depth(report, path, file):
    """The sequence, without K and poses, if its depth is sound."""
    seq = sequence.open_sequence(path, file)
    height, width = seq.depth_map.shape[1:]
    shown = np.array(seq.depth_map[:: max(1, seq.info.frames // 8)], np.float32)
    good = shown[np.isfinite(shown) & (shown > 0)]
    if not good.size:
        raise InputError(f"{path / file}: got no positive finite number; expected z-depth")
    low, middle, high = np.quantile(good, [0.01, 0.5, 0.99])
    report.line("depth", f"{width} x {height}, {low:.4g} to {high:.4g}, median {middle:.4g}; "
                f"{seq.bad_depth_share:.2%} are no positive finite numbers")
    report.line("radius", f"{seq.pivot_depth:.4g}, the depth that paths turn about")
    return seq


def field_of_view(report, seq, given):
    """Say what the first frame's K sees. given: whether it is from a file."""
    k = seq.intrinsics[0]
    size = seq.size
    focal = k[[0, 1], [0, 1]]
    angles = np.degrees(2 * np.arctan(np.divide(size, focal) / 2))
    said = f"field of view {angles[0]:.1f} x {angles[1]:.1f} degrees, focal length {focal[0]:.4g}"
    if not given:
        report.line("K", f"{said} pixels of the video, which is used where no file is given")
        return
    if not all(VIEW[0] < angle < VIEW[1] for angle in angles):
        raise InputError(f"got a {said}; expected {VIEW[0]} to {VIEW[1]} degrees: give K in pixels "
                         "of the depth map")
    sequence.check_intrinsics("K in pixels of the video", seq.intrinsics, size)
    report.line("K", f"{said}, centre {k[0, 2]:.4g} {k[1, 2]:.4g} pixels of the video")


def three_frames(seq):
    """The first, middle and last moment, and {moment: uint8 [H, W, 3]} of them.

    All frames are decoded, so that a video that is cut off is noticed.
    """
    moments = [0, seq.info.frames // 2, seq.info.frames - 1]
    kept = {}
    for number, frame in enumerate(video.iter_frames(seq.rgb_path)):
        if number in moments:
            kept[number] = frame
    return moments, kept


def pixels_and_depth(seq, frames, at):
    """uint8 [n, H, W, 3] and float32 [n, H, W] of the moments `at`."""
    return np.stack([frames[i] for i in at]), torch.cat([seq.depth(i, i + 1) for i in at])


def motion(report, c2w):
    """Say how the camera moves."""
    steps = np.linalg.norm(np.diff(c2w[:, :3, 3], axis=0), axis=1)
    turned = c2w[0, :3, :3].T @ c2w[:, :3, :3]
    cosine = (np.trace(turned, axis1=1, axis2=2) - 1) / 2
    angle = np.degrees(np.arccos(cosine.clip(-1, 1))).max()
    report.line("poses", f"a way of {steps.sum():.3g}, at most {steps.max(initial=0):.2g} a frame; "
                f"turns by up to {angle:.1f} degrees")


def holes(report, trajs, seq, moments, frames):
    """Say how much of each path's render is holes, at three moments."""
    warper = data_gen.Warper(seq, "eval", torch.device("cpu"), None, None)
    for name, path in camera_paths.find_paths(trajs, None, seq.intrinsics, seq.size):
        cameras = camera_paths.cameras_of(path, seq.intrinsics, seq.pivot_depth)
        pixels, z = pixels_and_depth(seq, frames, cameras.frames[moments])
        _, known = warper.warp(cameras, moments, pixels, z)
        shares = 1 - known.mean((1, 2))
        said = ", ".join(f"{share:.0%}" for share in shares)
        report.line(name, f"holes at first, middle and last frame: {said}")
        if shares.max() > warp.MANY_HOLES:
            report.note(name, f"passes {warp.MANY_HOLES:.0%}: move the camera less")


def renders(report, path, info, depth_file):
    """Look at the renders of both modes; and at the training pairs, if those are sound."""
    depth_file = path / depth_file
    facts = {"source": cli.file_hash(path / "gt_rgb.mp4")}
    if depth_file.is_file():
        facts["depth"] = cli.file_hash(depth_file)
    for kind, mode in MODES.items():
        found = sorted(path.glob(f"{kind}_render*.mp4"))
        made_of = [report.check(file.name, render, file, info, facts) for file in found]
        if not found:
            report.line(f"{kind} renders", f"none yet; data_gen.py --mode {mode} makes them")
        elif None not in made_of:
            if kind == "train":
                report.check("training pairs", dataset.find_videos, path)
            unknown = made_of.count({})
            report.line(f"{kind} renders", f"{len(found)}, of this video" + (
                f"; {unknown} do not say of which" if unknown else ""))


def render(path, source, facts):
    """What a render was made of; {} if it does not say, as the published ones.

    source: the video's VideoInfo. InputError if the render, its mask or its cameras do not belong
    to the video or its depth.
    """
    info = video.probe(path)
    again = f"make it again with data_gen.py --mode {MODES[path.name.partition('_')[0]]}"
    if (info.frames, info.height, info.width) != (source.frames, source.height, source.width):
        raise InputError(f"{path}: got {info.frames} frames of {info.width} x {info.height}; "
                         f"gt_rgb.mp4 has {source.frames} of {source.width} x {source.height}; "
                         f"{again}")
    demo.find_mask(path, info)
    cameras = path.with_name(f"{path.stem.replace('render', 'cameras')}.npz")
    if cameras.is_file():
        camera_paths.read_cameras(cameras, sequence.video_intrinsics(None, source, None)[0])
    made_of = video.made_of(path) or {}
    for what, name in (("source", "gt_rgb.mp4"), ("depth", "depth")):
        if what in facts and made_of.get(what, facts[what]) != facts[what]:
            raise InputError(f"{path}: was made of another {name}; {again}")
    return made_of


def outputs(report, path):
    """See that every output was made of the render beside it."""
    found = sorted(path.glob("outputs/**/eval_render*_out.mp4"))
    stale = report.wrong
    for output in found:
        beside = path / f"{output.stem.removesuffix('_out')}.mp4"
        report.check(output.name, side_by_side.check_output, beside, output)
    if stale == report.wrong:
        report.line("outputs", f"{len(found)}, of these renders" if found else "none yet")
