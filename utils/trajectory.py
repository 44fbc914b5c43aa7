"""Camera paths: keyframes, presets and camera files to the target camera of every frame.

Axes are OpenCV's (x right, y down, z forward). A path moves the camera relative to each source
frame's own camera:

    X_tgt = Ry(phi) Rx(theta) (X_src - (R + r R) e_z) + R e_z

This is an orbit about the point at depth R on the optical axis: phi (degrees) takes the camera to
the right, theta (degrees) up, and r forward, by a fraction of R. A path's keyframes are a dict of
lists, {"phi": [...], "theta": [...], "r": [...]}; an axis that is not there stays 0. Presets may
add "zoom", factors of the focal length, and "frozen": time stands still at the middle frame.
"""

import random
from dataclasses import dataclass

import numpy as np
from scipy.interpolate import UnivariateSpline
from scipy.spatial.transform import Rotation, Slerp

from utils import cli, files, sequence
from utils.cli import InputError

AXES = ("phi", "theta", "r")
MOST_KEYS = 1000  # of an axis: the spline takes seconds for 10,000
SHAPES = {"c2w": (4, 4), "intrinsics": (3, 3), "frames": ()}  # in camera files, of each frame
FAR = 1e6  # of a key: with numbers near the largest there are, cameras are not finite
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


def read_keyframes(path):
    """Keyframes of a trajs/*.txt file: three lines of numbers, as many on each as one likes.

    They are phi and theta in degrees and r in fractions of the radius. Raises InputError.
    """
    expected = (f"expected three lines of up to {MOST_KEYS} finite numbers: phi, theta (degrees), "
                "r (of the radius)")
    lines = [line.split() for line in files.read_text(path, 2**16).splitlines() if line.strip()]
    if len(lines) != 3:
        raise InputError(f"{path}: got {len(lines)} lines; {expected}")
    if max(map(len, lines)) > MOST_KEYS:
        raise InputError(f"{path}: got a line of {max(map(len, lines))} numbers; {expected}")
    try:
        keys = [list(map(float, line)) for line in lines]
    except ValueError as error:
        raise InputError(f"{path}: {cli.short(error)}; {expected}") from error
    if not (np.abs(np.concatenate(keys)) <= FAR).all():
        raise InputError(f"{path}: got numbers that are not finite, or beyond {FAR:g}; {expected}")
    return dict(zip(AXES, keys, strict=True))


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


def interpolate(keys, frames):
    """Keyframes of one axis, spread evenly over the video, to `frames` values, float64 [frames].

    Up to 3 keys: piecewise linear. 4 or more: scipy's cubic smoothing spline, whose ends are set to
    the first and last key.
    """
    at = np.linspace(0, 1, frames)
    x = np.linspace(0, 1, len(keys))
    if len(keys) < 4:
        return np.interp(at, x, keys)
    values = UnivariateSpline(x, keys, k=3)(at)
    values[-1] = keys[-1]
    values[0] = keys[0]
    return values


def relative_motion(keyframes, frames, radius):
    """Source camera to target camera of each frame, float64 [frames, 4, 4].

    radius: R in depth units. The formula stands at the head of this file.
    """
    phi = np.radians(interpolate(keyframes.get("phi", [0]), frames))
    theta = np.radians(interpolate(keyframes.get("theta", [0]), frames))
    r = interpolate(keyframes.get("r", [0]), frames)
    motion = np.tile(np.eye(4), (frames, 1, 1))
    motion[:, :3, :3] = _rotation(phi, 2, 0) @ _rotation(theta, 1, 2)
    pivot = radius * (1 + r)
    motion[:, :3, 3] = -motion[:, :3, 2] * pivot[:, None] + [0, 0, radius]
    return motion


def _rotation(angle, a, b):
    """Matrices [N, 3, 3] that turn axis a towards axis b by angles [N] in radians."""
    matrix = np.tile(np.eye(3), (len(angle), 1, 1))
    matrix[:, a, a] = matrix[:, b, b] = np.cos(angle)
    matrix[:, b, a] = np.sin(angle)
    matrix[:, a, b] = -np.sin(angle)
    return matrix


def angles(c2w, radius):
    """phi and theta in degrees and r, each [N], of target cameras c2w [N, 4, 4].

    The inverse of relative_motion.
    """
    motion = np.linalg.inv(c2w)
    phi = np.degrees(np.arctan2(-motion[:, 2, 0], motion[:, 0, 0]))
    theta = np.degrees(np.arctan2(-motion[:, 1, 2], motion[:, 1, 1]))
    pivot = np.sum(([0, 0, radius] - motion[:, :3, 3]) * motion[:, :3, 2], axis=1)
    return phi, theta, pivot / radius - 1


def preset_keyframes(item):
    """Keyframes of a preset item NAME or NAME:AMOUNT; None if its name is no preset's.

    Raises InputError if the amount is no number, turns the picture over or passes the pivot.
    """
    name, colon, amount = item.partition(":")
    if name not in PRESETS:
        return None
    usual, unit, keyframes = PRESETS[name]
    try:
        value = float(amount) if colon else usual
    except ValueError:
        value = np.nan
    item = cli.short(item, 80)
    if not abs(value) <= FAR:
        raise InputError(f"--trajs {item}: got the amount {cli.short(amount, 80)!r}; expected a "
                         f"number of {unit}, up to {FAR:g}")
    keys = keyframes(value)
    factor = min(keys.get("zoom", [1]))
    if factor <= 0:
        raise InputError(f"--trajs {item}: got a focal length of {factor:g} times the source's; "
                         "expected a factor above 0")
    if max(keys.get("r", [0])) >= 1:
        raise InputError(f"--trajs {item}: got a move of {max(keys['r']):g} radii, to the pivot or "
                         "past it; expected below 1")
    return keys


def keyframe_cameras(keyframes, intrinsics, radius):
    """Cameras of keyframes for a source of intrinsics [N, 3, 3]; radius: R in depth units."""
    count = len(intrinsics)
    k = intrinsics.copy()
    k[:, [0, 1], [0, 1]] *= interpolate(keyframes.get("zoom", [1]), count)[:, None]
    frames = np.full(count, count // 2) if keyframes.get("frozen") else np.arange(count)
    return Cameras(np.linalg.inv(relative_motion(keyframes, count, radius)), k, frames)


def anchored_first(cameras, c2w):
    """Cameras relative to the first frame's, still in the world, made relative to each source's.

    c2w: [N, 4, 4], of the source.
    """
    moved = np.linalg.inv(c2w[cameras.frames]) @ c2w[0] @ cameras.c2w
    return Cameras(moved, cameras.intrinsics, cameras.frames)


def read_cameras(path, intrinsics):
    """Cameras of an npy, npz or json file for a source of intrinsics [N, 3, 3].

    c2w (4, 4) or (N, 4, 4) is the target camera relative to the source camera, OpenCV, in the
    depth's units. Beside it npz and json may hold intrinsics (3, 3) or (N, 3, 3) of the target, in
    pixels of the video, and frames (N,). In place of c2w a json may hold keys (K, 4, 4), which
    between_keys spreads over the video. Raises InputError.
    """
    count = len(intrinsics)
    in_order = np.arange(count)
    found = {"intrinsics": intrinsics, "frames": in_order} | _read_arrays(path, count)
    for name, shape in SHAPES.items():
        found[name] = np.broadcast_to(found[name].astype(np.float64), (count, *shape))
    sequence.check_poses(f"{path}: c2w", found["c2w"])
    sequence.check_intrinsics(f"{path}: intrinsics", found["intrinsics"])
    frames = found["frames"]
    still = (frames == frames[0]).all() and frames[0] in in_order
    if not still and not np.array_equal(frames, in_order):
        raise InputError(f"{path}: {_expected_frames(count)}")
    return Cameras(found["c2w"], found["intrinsics"], frames.astype(int))


def write_cameras(path, cameras):
    """Write an npz that read_cameras reads, beside its name and moved into place."""
    with files.whole(path) as part, open(part, "wb") as file:
        np.savez(file, c2w=cameras.c2w, intrinsics=cameras.intrinsics, frames=cameras.frames)


def _read_arrays(path, count):
    """The arrays of a camera file for `count` frames that are there, numbers of the right shape."""
    if path.suffix == ".json":
        there = _json_arrays(path, count)
    else:
        there = files.headers(path, SHAPES)
    if "c2w" not in there:
        raise InputError(f"{path}: has no c2w; expected c2w (4, 4) or (N, 4, 4)")
    for name, array in there.items():
        _check_shape(path, name, array, count)
    return there if path.suffix == ".json" else files.read(path, there)


def _json_arrays(path, count):
    """The arrays of a JSON file; keys are spread over `count` frames as c2w."""
    data = files.read_json(path, object)
    if not isinstance(data, dict):
        data = {"c2w": data}
    with files.refused(path, "JSON of arrays"):
        arrays = {name: np.array(data[name]) for name in SHAPES if name in data}
        keys = np.array(data.get("keys", []))
    if "c2w" in arrays or not keys.size:
        return arrays
    if keys.dtype.kind not in "fiu" or keys.shape[1:] != (4, 4) or len(keys) > MOST_KEYS:
        raise InputError(f"{path}: keys are {cli.short(keys.dtype, 60)} of shape "
                         f"{cli.short(keys.shape, 60)}; expected numbers of shape (K, 4, 4), K up "
                         f"to {MOST_KEYS}")
    sequence.check_poses(f"{path}: keys", keys)
    return arrays | {"c2w": between_keys(keys, count)}


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


def _check_shape(path, name, array, count):
    """InputError unless an array, or its header, is of numbers and of one of its shapes."""
    one = SHAPES[name]
    shapes = (count, *one), one or (count,)
    if array.dtype.kind in "fiu" and array.shape in shapes:
        return
    if name == "frames":
        raise InputError(f"{path}: {_expected_frames(count)}")
    raise InputError(f"{path}: {name} is {cli.short(array.dtype, 60)} of shape "
                     f"{cli.short(array.shape, 60)}; expected numbers of shape {one}, or "
                     f"{shapes[0]} for the {count} frames")


def _expected_frames(count):
    return f"frames must be 0 to {count - 1}, or one frame number {count} times"
