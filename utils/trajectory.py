"""Camera paths: keyframes <-> the camera motion of every frame.

Axes are OpenCV's (x right, y down, z forward). A path moves the camera relative to each source frame's own camera:

    X_tgt = Ry(phi) Rx(theta) (X_src - (R + r R) e_z) + R e_z

an orbit about the point at depth R on the optical axis; phi about the y axis and theta about the x axis in degrees, r
in fractions of R. A path's keyframes are a dict of three lists, {"phi": [...], "theta": [...], "r": [...]}.
"""

import random
from pathlib import Path

import numpy as np
from scipy.interpolate import UnivariateSpline

from utils.cli import InputError

AXES = ("phi", "theta", "r")


def read_keyframes(path):
    """Keyframes of a trajs/*.txt file: three lines of numbers, phi and theta in degrees, r in fractions of R."""
    expected = "expected three lines of finite numbers: phi, theta (degrees), r (fractions of the radius)"
    lines = [line.split() for line in Path(path).read_text().splitlines() if line.strip()]
    try:
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
    phi, theta, r = (interpolate(keyframes[axis], frames) for axis in AXES)
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
