"""The page on which camera paths are drawn: one file with the video, its depth and the warp.

It opens from disk in any browser, without a server or a network. paths.js has the paths' formulas,
spline.js how a txt's numbers are joined, warp.js the warp of utils/warp.py; the other scripts are
what is seen: state.js (changes, undo), view.js, timeline.js, overview.js, files.js, design.js.
"""

import base64
import functools
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

from utils import camera_paths, cli, files, sequence, trajectory, video, warp
from utils.cli import InputError

HERE = Path(__file__).resolve().parent
SCRIPTS = {"SHARED": ["paths.js", "spline.js"], "WARP": ["warp.js"], "SCRIPT": [
    "state.js", "files.js", "view.js", "timeline.js", "overview.js", "design.js"]}
LONGEST = 854  # pixels of the longer side that are shown
MOST_FRAMES = 100  # that are kept; of a longer video every second, third, ...
QUALITIES = range(80, 40, -6)  # of AVIF: the best at which the page takes up to so many bytes,
PAGE = 9.3e6
PICTURES = 3e6  # but pictures may take so many
CODES = 2**16  # of depth; 0 stands for unknown
FAR_TO_NEAR = 200  # beyond this, a few near pixels would take up the steps of 1 / z
CONSTANTS = {
    "sharpness": warp.SHARPNESS, "max_depth": warp.MAX_DEPTH, "reach": warp.REACH,
    "many_holes": warp.MANY_HOLES, "far": camera_paths.FAR, "most_keys": camera_paths.MOST_KEYS,
}


def shown_size(info):
    """(width, height) at which a video is shown."""
    share = min(1, LONGEST / max(info.width, info.height))
    return max(1, round(info.width * share)), max(1, round(info.height * share))


def encode_depth(maps):
    """{width, height, maps, and kind, low, step unless the codes are float16's bits} of [n, h, w].

    A map is a pack() of codes in 0 to 65,535. Depth that float16 holds exactly is kept so. Other
    depth is rounded: where it lies `step` times its code above `low`, in 1 / z, or in log z if the
    farthest is over FAR_TO_NEAR times the nearest.
    """
    found = {"width": maps.shape[2], "height": maps.shape[1]}
    with np.errstate(over="ignore"):
        halves = maps.astype(np.float16)
    if all((half[known(each)] == each[known(each)]).all()
           for half, each in zip(halves, maps, strict=True)):
        codes = [np.where(known(half), half, 0).view(np.uint16) for half in halves]
        return found | {"maps": in_threads(pack, codes)}
    ends = np.array([[each[known(each)].min(), each[known(each)].max()]
                     for each in maps if known(each).any()], np.float64)
    near, far = ends.min(), ends.max()
    kind = "inverse" if far <= FAR_TO_NEAR * near else "log"
    low, high = sorted([to_even(near, kind), to_even(far, kind)])
    step = max((high - low) / (CODES - 2), 1e-300)
    packed = []
    for each in maps:
        code = np.rint((to_even(np.where(known(each), each, near), kind) - low) / step) + 1
        packed.append(pack(np.where(known(each), code, 0).astype(np.uint16)))
    return found | {"maps": packed, "kind": kind, "low": float(low - step), "step": float(step)}


def known(depth):
    return np.isfinite(depth) & (depth > 0)


def to_even(depth, kind):
    """What codes are even steps of."""
    depth = np.asarray(depth, np.float64)
    return 1 / depth if kind == "inverse" else np.log(depth)


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


def encode_pictures(frames, most):
    """AVIF of frames, uint8 [H, W, 3] each, as base64, of one quality; in about `most` bytes."""
    some = frames[len(frames) // 8 :: -(-len(frames) // 4)]
    for quality in QUALITIES:
        size = sum(map(len, in_threads(functools.partial(encode_picture, quality), some)))
        if size * len(frames) / len(some) <= most:
            break
    return in_threads(functools.partial(encode_picture, quality), frames)


def in_threads(function, items):
    return list(video.ahead(items, function, os.cpu_count()))


def encode_picture(quality, pixels):
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
        if axis not in trajectory.FLAGS:
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
    depth = encode_depth(depth_maps(seq, frames, size))
    room = max(PICTURES, PAGE - sum(map(len, depth["maps"])))
    return {
        "id": f"{cli.file_hash(seq.rgb_path)[:16]} {pivot.tolist()}",
        "title": cli.short(seq.path.resolve().name, 80),
        "fused": bool(vars(args).get("fuse_static")),
        "frames": info.frames, "every": every, "fps": float(info.fps),
        "times": list(map(float, info.times or ())), "video": [info.width, info.height],
        "width": size[0], "height": size[1], "pixel_aspect": float(info.pixel_aspect),
        "k": seq.intrinsics.tolist(), "c2w": None if seq.c2w is None else seq.c2w.tolist(),
        "pivot": pivot.tolist(), "edge_threshold": args.edge_threshold, "presets": presets(),
        "paths": [page_path(name, path, args.anchor, info.frames) for name, path in paths],
        "pictures": encode_pictures(shown, room), "depth": depth, "constants": CONSTANTS,
    }


def command(args, pivot):
    """[What begins a data_gen.py command for this folder, what a txt needs besides].

    pivot: as --pivot, or None.
    """
    start = ["python", "data_gen.py", "--data_path", str(args.data_path), "--mode", "eval"]
    for name in ("intrinsics_file", "extrinsics_file", "edge_threshold"):
        if getattr(args, name) is not None:
            start += [f"--{name}", str(getattr(args, name))]
    if args.depth_file != sequence.DEPTH:
        start += ["--depth_file", args.depth_file]
    if vars(args).get("fuse_static"):
        start += ["--fuse_static"]
    orbit = [f"--pivot={pivot}"] if pivot is not None else []
    if args.radius_scale != 1:
        orbit += ["--radius_scale", str(args.radius_scale)]
    return [shlex.join(start), shlex.join(orbit)]


def write(args, seq, paths, pivot, progress):
    """Write <data_path>/design.html and return its path.

    args: the arguments of data_gen.py. seq: the Sequence that they open. paths: (name, keyframes or
    Cameras) to begin with. pivot: float64 [3], what paths turn about in source camera coordinates,
    or None for the depth at the centre. progress.update() is called for each frame.
    """
    words = args.pivot
    if pivot is None:
        depth, words = usual_depth(seq)
        pivot = trajectory.point_of(depth * args.radius_scale)
    told = gather(args, seq, paths, pivot, progress) | {"command": command(args, words)}
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
    """(Depth of what paths turn about, as --pivot or None): the depth at the centre.

    Where that is unknown, it is the middle one of the first frame's known depths, or 1.
    """
    try:
        return seq.pivot_depth, None
    except InputError:
        depth = seq.depth(0, 1)
        there = depth[depth > 0]
        middle = there.median().item() if len(there) else 1.0
        return middle, middle
