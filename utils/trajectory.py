"""Camera paths: keyframes, presets and camera files <-> the target camera of every frame.

Axes are OpenCV's (x right, y down, z forward). A path moves the camera relative to each source frame's own camera:

    X_tgt = Ry(phi) Rx(theta) (X_src - (R + r R) e_z) + R e_z

an orbit about the point at depth R on the optical axis: phi (degrees) takes the camera to the right, theta (degrees)
up, r in, by a fraction of R. A path's keyframes are a dict of lists, {"phi": [...], "theta": [...], "r": [...]}; what
is not there stays 0. Presets may add "zoom", factors of the focal length, and "frozen": time stands still at the middle
frame.
"""

import json
import random
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from scipy.interpolate import UnivariateSpline

from utils.cli import InputError

AXES = ("phi", "theta", "r")
TURN = np.linspace(0, 2 * np.pi, 9)
PRESETS = {  # name: (usual amount, what it is of, keyframes of an amount)
    "orbit_left": (20, "degrees", lambda a: {"phi": [0, -a]}),
    "orbit_right": (20, "degrees", lambda a: {"phi": [0, a]}),
    "arc_up": (10, "degrees", lambda a: {"theta": [0, a]}),
    "arc_down": (10, "degrees", lambda a: {"theta": [0, -a]}),
    "dolly_in": (0.3, "of the radius", lambda a: {"r": [0, a]}),
    "dolly_out": (0.3, "of the radius", lambda a: {"r": [0, -a]}),
    "zoom_in": (0.2, "of the focal length", lambda a: {"zoom": [1, 1 + a]}),
    "zoom_out": (0.2, "of the focal length", lambda a: {"zoom": [1, 1 - a]}),
    "spiral": (10, "degrees", lambda a: {"phi": a * np.sin(TURN), "theta": a / 2 * (1 - np.cos(TURN)), "r": [0, 0.1]}),
    "bullet_time": (30, "degrees", lambda a: {"phi": [0, -a], "frozen": True}),
}


@dataclass(frozen=True)
class Cameras:
    """The target camera of every output frame.

    c2w: float64 [N, 4, 4], target camera to source camera. intrinsics: float64 [N, 3, 3], the target's, in pixels.
    frames: int [N], the source frame that each shows: 0 to N - 1, or one frame all along.
    """

    c2w: np.ndarray
    intrinsics: np.ndarray
    frames: np.ndarray


def read_keyframes(path):
    """Keyframes of a trajs/*.txt file: three lines of numbers, phi and theta in degrees, r in fractions of R."""
    expected = "expected three lines of finite numbers: phi, theta (degrees), r (fractions of the radius)"
    try:
        lines = [line.split() for line in Path(path).read_text().splitlines() if line.strip()]
        keys = [[float(number) for number in line] for line in lines]
    except ValueError as error:
        raise InputError(f"{path}: {error}; {expected}") from error
    if len(keys) != 3 or not np.isfinite(np.concatenate(keys)).all():
        raise InputError(f"{path}: got {len(keys)} lines; {expected}")
    return dict(zip(AXES, keys, strict=True))


def random_keyframes(seed, count):
    """`count` random training paths: four ascending keys an axis, two from its range and two between those two."""
    rng = random.Random(seed)
    paths = []
    for _ in range(count):
        ends = [[rng.uniform(-limit, limit) for _ in range(2)] for limit in (15, 10, 0.1)]
        inner = [[rng.uniform(*pair) for _ in range(2)] for pair in ends]
        # The published code scales only the two inner r by R; here all four are fractions of R.
        paths.append({axis: sorted(e + i) for axis, e, i in zip(AXES, ends, inner, strict=True)})
    return paths


def interpolate(keys, frames):
    """Keyframes of one axis, spread evenly over the video, to `frames` values, float64 [frames].

    Up to 3 keys: piecewise linear. 4 or more: scipy's cubic smoothing spline, its ends set to the first and last key.
    """
    at, x = np.linspace(0, 1, frames), np.linspace(0, 1, len(keys))
    if len(keys) < 4:
        return np.interp(at, x, keys)
    values = UnivariateSpline(x, keys, k=3)(at)
    values[-1], values[0] = keys[-1], keys[0]
    return values


def relative_motion(keyframes, frames, radius):
    """Source-camera to target-camera transform of each frame, float64 [frames, 4, 4]; `radius` is R in depth units."""
    phi, theta, r = (interpolate(keyframes.get(axis, [0]), frames) for axis in AXES)
    c, s = np.cos(np.radians(phi)), np.sin(np.radians(phi))
    ry = np.tile(np.eye(3), (frames, 1, 1))
    ry[:, 0, 0], ry[:, 0, 2], ry[:, 2, 0], ry[:, 2, 2] = c, s, -s, c
    c, s = np.cos(np.radians(theta)), np.sin(np.radians(theta))
    rx = np.tile(np.eye(3), (frames, 1, 1))
    rx[:, 1, 1], rx[:, 1, 2], rx[:, 2, 1], rx[:, 2, 2] = c, -s, s, c
    motion = np.tile(np.eye(4), (frames, 1, 1))
    motion[:, :3, :3] = ry @ rx
    motion[:, :3, 3] = -motion[:, :3, 2] * (radius * (1 + r))[:, None] + [0, 0, radius]
    return motion


def angles(c2w, radius):
    """phi and theta in degrees and r, each [N], of target cameras c2w [N, 4, 4]: the inverse of relative_motion."""
    motion = np.linalg.inv(c2w)
    phi = np.degrees(np.arctan2(-motion[:, 2, 0], motion[:, 0, 0]))
    theta = np.degrees(np.arctan2(-motion[:, 1, 2], motion[:, 1, 1]))
    return phi, theta, np.linalg.norm(motion[:, :3, 3] - [0, 0, radius], axis=1) / radius - 1


def preset_keyframes(item):
    """Keyframes of a preset item NAME or NAME:AMOUNT; None if its name is no preset's. Raises InputError."""
    name, _, amount = item.partition(":")
    if name not in PRESETS:
        return None
    usual, unit, keyframes = PRESETS[name]
    try:
        value = float(amount or usual)
    except ValueError as error:
        raise InputError(f"--trajs {item}: got the amount {amount!r}; expected a number {unit}") from error
    if not np.isfinite(value) or (unit != "degrees" and value >= 1):
        raise InputError(f"--trajs {item}: got {amount}; expected a finite number {unit}, below 1 if not in degrees")
    return keyframes(value)


def keyframe_cameras(keyframes, intrinsics, radius):
    """Cameras of keyframes for a source of intrinsics [N, 3, 3] and an orbit of `radius` R in depth units."""
    count = len(intrinsics)
    k = intrinsics.copy()
    k[:, [0, 1], [0, 1]] *= interpolate(keyframes.get("zoom", [1]), count)[:, None]
    frames = np.full(count, count // 2) if keyframes.get("frozen") else np.arange(count)
    return Cameras(np.linalg.inv(relative_motion(keyframes, count, radius)), k, frames)


def anchored_first(cameras, c2w):
    """Cameras relative to the first frame's camera, held still in the world, made relative to each source frame's."""
    return Cameras(np.linalg.inv(c2w[cameras.frames]) @ c2w[0] @ cameras.c2w, cameras.intrinsics, cameras.frames)


def read_cameras(path, intrinsics):
    """Cameras of an npy, npz or json file for a source of intrinsics [N, 3, 3].

    c2w (4, 4) or (N, 4, 4), target camera relative to the source camera, OpenCV, in the depth's units; npz and json may
    hold intrinsics (3, 3) or (N, 3, 3) of the target, in pixels of the video, and frames (N,), beside it.
    """
    try:
        data = json.loads(path.read_text()) if path.suffix == ".json" else np.load(path, allow_pickle=False)
        data = data if hasattr(data, "keys") else {"c2w": data}
        c2w, k = np.array(data["c2w"], np.float64), np.array(data.get("intrinsics", intrinsics), np.float64)
        frames = np.array(data.get("frames", np.arange(len(intrinsics))))
    except (ValueError, KeyError, TypeError, EOFError) as error:
        raise InputError(f"{path}: {error}; expected an npy, npz or json with c2w (4, 4) or (N, 4, 4)") from error
    count = len(intrinsics)
    for name, array, shape in (("c2w", c2w, (4, 4)), ("intrinsics", k, (3, 3))):
        if array.shape not in (shape, (count, *shape)) or not np.isfinite(array).all():
            raise InputError(f"{path}: {name} has shape {array.shape}; expected finite numbers of shape {shape} or "
                             f"{(count, *shape)}, as the video has {count} frames")
    if frames.shape != (count,) or not (np.array_equal(frames, np.arange(count)) or np.isin(frames, frames[0]).all()):
        raise InputError(f"{path}: frames must be 0 to {count - 1}, or one frame number {count} times")
    if not 0 <= frames[0] < count or np.abs(np.linalg.det(c2w[..., :3, :3]) - 1).max() > 1e-3:
        raise InputError(f"{path}: expected c2w that are a rotation and a translation, and frames within the video")
    return Cameras(np.broadcast_to(c2w, (count, 4, 4)), np.broadcast_to(k, (count, 3, 3)), frames.astype(int))
