"""Camera paths: from keyframes to the target camera of every frame.

Axes are OpenCV's (x right, y down, z forward). A path moves the camera relative to each source
frame's own camera:

    X_tgt = Ry(phi) Rx(theta) (X_src - (1 + r) P) + P

This is an orbit about the pivot P: phi (degrees) takes the camera to the right, theta (degrees) up,
and r towards P, by a fraction of the way. `pivot` is P in source camera coordinates, [3], or a
number R that stands for [0, 0, R], the point at depth R on the optical axis.

A path's keyframes are a dict of lists, {"phi": [...], "theta": [...], "r": [...]}; an axis that is
not there stays 0. There may also be "zoom", factors of the focal length; "frozen": time stands
still at the middle frame; and "ease": the path starts and ends gently.
"""

import random
from dataclasses import dataclass

import numpy as np
from scipy.interpolate import UnivariateSpline
from scipy.spatial.transform import Rotation, Slerp

AXES = ("phi", "theta", "r")
FLAGS = ("frozen", "ease")  # in keyframes, beside the axes and "zoom"
RANGES = {"phi": 15, "theta": 10, "r": 0.1}  # of random training paths, to both sides
TURN = np.linspace(0, 2 * np.pi, 9)
SPIRAL_RIGHT = np.sin(TURN)
SPIRAL_UP = (1 - np.cos(TURN)) / 2
PRESETS = {  # name: (usual amount, its unit, keyframes of an amount)
    "orbit_left": (20, "degrees", lambda a: {"phi": [0, -a]}),
    "orbit_right": (20, "degrees", lambda a: {"phi": [0, a]}),
    "arc_up": (10, "degrees", lambda a: {"theta": [0, a]}),
    "arc_down": (10, "degrees", lambda a: {"theta": [0, -a]}),
    "dolly_in": (0.3, "fractions of the radius", lambda a: {"r": [0, a]}),
    "dolly_out": (0.3, "fractions of the radius", lambda a: {"r": [0, -a]}),
    "zoom_in": (0.2, "fractions of the focal length", lambda a: {"zoom": [1, 1 + a]}),
    "zoom_out": (0.2, "fractions of the focal length", lambda a: {"zoom": [1, 1 - a]}),
    "spiral": (10, "degrees", lambda a: {
        "phi": a * SPIRAL_RIGHT, "theta": a * SPIRAL_UP, "r": [0, 0.1],
    }),
    "bullet_time": (30, "degrees", lambda a: {"phi": [0, -a], "frozen": True}),
}


@dataclass(frozen=True)
class Cameras:
    """The target camera of every output frame.

    c2w: float64 [N, 4, 4], target camera to source camera. intrinsics: float64 [N, 3, 3], the
    target's, in pixels. frames: int [N], the source frame that each output frame shows: 0 to
    N - 1, or one frame all along.
    """

    c2w: np.ndarray
    intrinsics: np.ndarray
    frames: np.ndarray

    @property
    def frozen(self):
        """Whether time stands still: one source frame all along."""
        return not np.array_equal(self.frames, np.arange(len(self.frames)))


def random_keyframes(seed, count):
    """Keyframes of `count` random training paths.

    Each has four ascending keys an axis: two from the axis' range and two between those two.
    """
    rng = random.Random(seed)
    paths = []
    for _ in range(count):
        keys = {}
        for axis, limit in RANGES.items():
            keys[axis] = [rng.uniform(-limit, limit), rng.uniform(-limit, limit)]
        for ends in keys.values():  # in the published order: after the ends of all axes
            # The published code scales only these two r by R; here all four are fractions of R.
            ends += [rng.uniform(*ends), rng.uniform(*ends)]
            ends.sort()
        paths.append(keys)
    return paths


def interpolate(keys, frames, ease=False):
    """Keyframes of one axis, spread evenly over the video, to `frames` values, float64 [frames].

    Up to 3 keys: piecewise linear. 4 or more: scipy's cubic smoothing spline, whose ends are set to
    the first and last key. ease: the path t in [0, 1] is gone through at 3 t^2 - 2 t^3.
    """
    at = np.linspace(0, 1, frames)
    if ease:
        at = at**2 * (3 - 2 * at)
    x = np.linspace(0, 1, len(keys))
    if len(keys) < 4:
        return np.interp(at, x, keys)
    values = UnivariateSpline(x, keys, k=3)(at)
    values[-1] = keys[-1]
    values[0] = keys[0]
    return values


def joined(paths):
    """Keyframes that move along several keyframes at once: axes are added, zooms multiplied.

    Of two lists of an axis the shorter one is first brought to the length of the other by lines.
    """
    keys = {}
    for path in paths:
        for name, more in path.items():
            if name not in keys or name in FLAGS:
                keys[name] = more
            else:
                both = _of_one_length(keys[name], more)
                keys[name] = (np.prod if name == "zoom" else np.sum)(both, axis=0)
    return keys


def _of_one_length(*lists):
    """Lists of keys, each with as many as the longest, [len(lists), K]."""
    at = np.linspace(0, 1, max(map(len, lists)))
    return [np.interp(at, np.linspace(0, 1, len(keys)), keys) for keys in lists]


def point_of(pivot):
    """A pivot, [3] or a number R that stands for [0, 0, R], as float64 [3]."""
    return np.array([0, 0, pivot] if np.ndim(pivot) == 0 else pivot, np.float64)


def relative_motion(keyframes, frames, pivot):
    """Source camera to target camera of each frame, float64 [frames, 4, 4].

    The formula, and what a pivot is, stands at the head of this file.
    """
    values = []
    for axis in AXES:
        keys = keyframes.get(axis, [0])
        values.append(interpolate(keys, frames, keyframes.get("ease", False)))
    phi, theta, r = values
    rotation = _rotation(np.radians(phi), 2, 0) @ _rotation(np.radians(theta), 1, 2)
    pivot = point_of(pivot)
    motion = np.tile(np.eye(4), (frames, 1, 1))
    motion[:, :3, :3] = rotation
    motion[:, :3, 3] = pivot - np.einsum("nij,nj->ni", rotation, (1 + r)[:, None] * pivot)
    return motion


def _rotation(angle, a, b):
    """Matrices [N, 3, 3] that turn axis a towards axis b by angles [N] in radians."""
    matrix = np.tile(np.eye(3), (len(angle), 1, 1))
    matrix[:, a, a] = matrix[:, b, b] = np.cos(angle)
    matrix[:, b, a] = np.sin(angle)
    matrix[:, a, b] = -np.sin(angle)
    return matrix


def angles(c2w, pivot):
    """phi and theta in degrees and r, each [N], of target cameras c2w [N, 4, 4].

    The inverse of relative_motion.
    """
    pivot = point_of(pivot)
    motion = np.linalg.inv(c2w)
    phi = np.degrees(np.arctan2(-motion[:, 2, 0], motion[:, 0, 0]))
    theta = np.degrees(np.arctan2(-motion[:, 1, 2], motion[:, 1, 1]))
    turned = np.einsum("nji,nj->ni", motion[:, :3, :3], pivot - motion[:, :3, 3])  # (1 + r) P
    return phi, theta, turned @ pivot / (pivot @ pivot) - 1


def keyframe_cameras(keyframes, intrinsics, pivot):
    """Cameras of keyframes for a source of intrinsics [N, 3, 3]; pivot: as of relative_motion."""
    count = len(intrinsics)
    k = intrinsics.copy()
    zoom = interpolate(keyframes.get("zoom", [1]), count, keyframes.get("ease", False))
    k[:, [0, 1], [0, 1]] *= zoom[:, None]
    frames = np.full(count, count // 2) if keyframes.get("frozen") else np.arange(count)
    return Cameras(np.linalg.inv(relative_motion(keyframes, count, pivot)), k, frames)


def anchored_first(cameras, c2w):
    """Cameras relative to the first frame's, still in the world, made relative to each source's.

    c2w: [N, 4, 4], of the source.
    """
    moved = np.linalg.inv(c2w[cameras.frames]) @ c2w[0] @ cameras.c2w
    return Cameras(moved, cameras.intrinsics, cameras.frames)


def between_keys(keys, frames):
    """Poses [frames, 4, 4] along key poses [K, 4, 4], which are spread evenly over the video.

    From one to the next they turn about one axis and move on a line, both at an even pace.
    """
    at = np.linspace(0, 1, len(keys)) if len(keys) > 1 else np.array([0, 1])
    keys = np.array(keys if len(keys) > 1 else [*keys, *keys], np.float64)
    moments = np.linspace(0, 1, frames) if frames > 1 else np.zeros(1)
    poses = np.tile(np.eye(4), (frames, 1, 1))
    poses[:, :3, :3] = Slerp(at, Rotation.from_matrix(keys[:, :3, :3]))(moments).as_matrix()
    for axis in range(3):
        poses[:, axis, 3] = np.interp(moments, at, keys[:, axis, 3])
    return poses
