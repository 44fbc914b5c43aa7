"""The page on which camera paths are drawn: one file with the video, its depth and the warp.

It opens from disk in any browser, without a server or a network. paths.js has the paths' formulas,
spline.js how a txt's numbers are joined, warp.js the warp of utils/warp.py, design.js what is seen.
"""

import base64
import gzip
import html
import io
import json
import os
import re
import shlex
from pathlib import Path

import numpy as np
import torch.nn.functional as F
from PIL import Image

from utils import cli, files, sequence, trajectory, video

HERE = Path(__file__).resolve().parent
SCRIPTS = {"SHARED": ["paths.js", "spline.js"], "WARP": ["warp.js"], "SCRIPT": ["design.js"]}
LONGEST = 854  # pixels of the longer side that are shown
MOST_FRAMES = 100  # that are kept; of a longer video every second, third, ...
QUALITIES = range(84, 40, -4)  # of AVIF: the best at which pictures take up to so many bytes:
PICTURES = 6.3e6
CODES = 2**16  # of depth; 0 stands for unknown
ENDLESS = 0x7C00  # the bits of float16's infinity: those below are its positive numbers


def shown_size(info):
    """(width, height) at which a video is shown."""
    share = min(1, LONGEST / max(info.width, info.height))
    return max(1, round(info.width * share)), max(1, round(info.height * share))


def encode_depth(maps):
    """{width, height, maps, and log unless the codes are float16's bits} of depth [n, h, w].

    A map is a pack() of codes in 0 to 65,535. Depth that float16 holds exactly is kept so. Other
    depth is rounded to even steps of its logarithm, [low, step], which are some 1e-4 of it.
    """
    known = np.isfinite(maps) & (maps > 0)
    with np.errstate(over="ignore"):
        half = np.where(known, maps, 0).astype(np.float16)
    found = {"width": maps.shape[2], "height": maps.shape[1]}
    bits = half.view(np.uint16)
    if (half == np.where(known, maps, 0)).all() and (bits < ENDLESS).all():
        codes = bits
    else:
        logs = np.log(np.where(known, maps, 1).astype(np.float64))
        low, high = logs[known].min(), logs[known].max()
        step = max((high - low) / (CODES - 2), 1e-12)
        codes = np.where(known, np.rint((logs - low) / step) + 1, 0).astype(np.uint16)
        found["log"] = [low - step, step]
    found["maps"] = [pack(each) for each in codes]
    return found


def pack(codes):
    """A map of codes uint16 [h, w] as base64 of gzip.

    Kept is by how much each differs from the median of its left neighbour a, its upper one b and
    a + b - c, with c between them (LOCO-I's predictor; 0 beyond the map): all low bytes, then all
    high ones, of 0, -1, 1, -2, 2, ... as 0, 1, 2, 3, 4, ...
    """
    padded = np.pad(codes.astype(np.int32), ((1, 0), (1, 0)))
    left, upper, between = padded[1:, :-1], padded[:-1, 1:], padded[:-1, :-1]
    low, high = np.minimum(left, upper), np.maximum(left, upper)
    guess = np.clip(left + upper - between, low, high)
    off = (codes - guess).astype(np.int16).astype(np.int32)  # modulo 65,536
    steps = np.where(off < 0, -2 * off - 1, 2 * off).astype(np.uint16)
    planes = (steps & 255).astype(np.uint8).tobytes() + (steps >> 8).astype(np.uint8).tobytes()
    return base64.b64encode(gzip.compress(planes, 6, mtime=0)).decode()


def encode_pictures(frames):
    """AVIF of frames, uint8 [H, W, 3] each, as base64; of one quality for all."""
    for quality in QUALITIES:
        some = frames[:: -(-len(frames) // 3)]
        size = sum(len(encode_picture(frame, quality)) for frame in some)
        if size * len(frames) / len(some) <= PICTURES:
            break
    return list(video.ahead(frames, lambda frame: encode_picture(frame, quality), os.cpu_count()))


def encode_picture(pixels, quality):
    coded = io.BytesIO()
    Image.fromarray(pixels).save(coded, "AVIF", quality=quality, speed=10, max_threads=1)
    return base64.b64encode(coded.getvalue()).decode()


def depth_maps(seq, frames, size):
    """Depth [n, h, w] of frames: as in its file, or at the size shown if that is smaller."""
    height, width = seq.depth_map.shape[1:]
    if width <= size[0] and height <= size[1]:
        return np.array(seq.depth_map[frames])
    maps = []
    for frame in frames:
        depth = seq.depth(frame, frame + 1)[None]
        maps.append(F.interpolate(depth, size[::-1], mode="nearest-exact")[0, 0].numpy())
    return np.stack(maps)


def page_path(name, path, anchor, frames):
    """A path as paths.js has it. path: keyframes or trajectory.Cameras."""
    page = {"name": Path(name).name.removesuffix(".txt").removesuffix(".json"), "anchor": anchor,
            "between": "lines", "ease": False, "still": None, "pivot": None, "base": None,
            "tracks": {axis: [[0, 0]] for axis in trajectory.AXES}}
    if isinstance(path, trajectory.Cameras):
        page["base"] = {"c2w": path.c2w.tolist(), "intrinsics": path.intrinsics.tolist()}
        page["still"] = int(path.frames[0]) if path.frozen else None
        return page
    for axis, keys in path.items():
        if axis not in ("frozen", "ease"):
            at = np.linspace(0, 1, len(keys)) if len(keys) > 1 else [0]
            page["tracks"][axis] = [[float(t), float(key)] for t, key in zip(at, keys, strict=True)]
    page["between"] = "spline"
    page["ease"] = bool(path.get("ease"))
    page["still"] = frames // 2 if path.get("frozen") else None
    return page


def presets():
    """What paths.js's addPreset takes; every preset's keyframes are a line in its amount."""
    found = []
    for name, (usual, unit, keyframes) in trajectory.PRESETS.items():
        ends = []
        for amount in (0, 1):
            keys = keyframes(amount)
            ends.append({axis: np.array(key).tolist() for axis, key in keys.items()})
        found.append({"name": name, "usual": usual, "unit": unit, "zero": ends[0], "one": ends[1]})
    return found


def gather(args, seq, paths, pivot, progress):
    """What the page's script needs, for JSON; arguments are write()'s."""
    info = seq.info
    size = shown_size(info)
    every = -(-info.frames // MOST_FRAMES)
    frames = np.arange(0, info.frames, every)
    shown = []
    for frame, pixels in enumerate(video.iter_frames(seq.rgb_path)):
        if frame % every == 0:
            shown.append(video.resize(pixels[None], size[1], size[0])[0])
        progress.update()
    return {
        "id": f"{cli.file_hash(seq.rgb_path)[:16]} {pivot.tolist()}",
        "title": cli.short(seq.path.resolve().name, 80), "command": command(args),
        "frames": info.frames, "every": every, "fps": float(info.fps),
        "times": list(map(float, info.times or ())), "video": [info.width, info.height],
        "width": size[0], "height": size[1], "pixel_aspect": float(info.pixel_aspect),
        "k": seq.intrinsics.tolist(), "c2w": None if seq.c2w is None else seq.c2w.tolist(),
        "pivot": pivot.tolist(), "edge_threshold": args.edge_threshold, "presets": presets(),
        "paths": [page_path(name, path, args.anchor, info.frames) for name, path in paths],
        "pictures": encode_pictures(shown), "depth": encode_depth(depth_maps(seq, frames, size)),
    }


def command(args):
    """[What begins a data_gen.py command for this folder, what a txt needs besides]."""
    start = ["python", "data_gen.py", "--data_path", str(args.data_path), "--mode", "eval"]
    for name in ("intrinsics_file", "extrinsics_file", "edge_threshold"):
        if getattr(args, name) is not None:
            start += [f"--{name}", str(getattr(args, name))]
    if args.depth_file != sequence.DEPTH:
        start += ["--depth_file", args.depth_file]
    orbit = ["--pivot", args.pivot] if args.pivot is not None else []
    if args.radius_scale != 1:
        orbit += ["--radius_scale", str(args.radius_scale)]
    return [shlex.join(start), shlex.join(orbit)]


def write(args, seq, paths, pivot, progress):
    """Write <data_path>/design.html and return its path.

    args: the paths' arguments of data_gen.py. seq: the Sequence that they open. paths: (name,
    keyframes or Cameras) to begin with. pivot: float64 [3], what paths turn about in source camera
    coordinates, or None for the usual point. progress.update() is called for each frame.
    """
    if pivot is None:
        pivot = trajectory.point_of(usual_depth(seq))
    told = gather(args, seq, paths, pivot, progress)
    parts = {"TITLE": html.escape(told["title"]), "DATA": json.dumps(
        told, allow_nan=False, separators=(",", ":")).replace("<", "\\u003c")}
    for place, names in SCRIPTS.items():
        scripts = [(HERE / name).read_text(encoding="utf-8") for name in names]
        parts[place] = "\n".join(scripts)
    template = (HERE / "design.html").read_text(encoding="utf-8")
    page = re.sub(r"@([A-Z]+)@", lambda place: parts[place[1]], template)
    file = seq.path / "design.html"
    with files.whole(file) as part:
        part.write_text(page, encoding="utf-8")
    return file


def usual_depth(seq):
    """The middle one of the first frame's known depths; 1 if there are none."""
    depth = seq.depth(0, 1)
    known = depth[depth > 0]
    return known.median().item() if len(known) else 1.0
