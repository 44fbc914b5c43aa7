"""Camera paths as users give them: trajs/*.txt, presets, camera files and the pivot.

find_paths() takes --trajs and --cameras of data_gen.py, find_pivot() its --pivot. What they find
becomes the target camera of every frame by cameras_of(). utils/trajectory.py has the mathematics.
"""

import glob
import os
import re
from pathlib import Path

import numpy as np

from utils import cli, files, sequence, trajectory
from utils.cli import InputError
from utils.trajectory import AXES, PRESETS, Cameras

SHIPPED = Path(__file__).resolve().parents[1] / "trajs"
EASE = "@ease"  # at the end of an item: it starts and ends gently
JOINT = re.compile(r"\+(?![\d.])")  # between presets; the plus in 1e+1 or +5 is the number's
EXPECTED = ("a folder of .txt, a file, a quoted glob or a preset with its amount "
            f"({', '.join(PRESETS)}); presets may be joined by +, and {EASE} may follow")
MOST_KEYS = 1000  # of an axis: the spline takes seconds for 10,000
SHAPES = {"c2w": (4, 4), "intrinsics": (3, 3), "frames": ()}  # in camera files, of each frame
FAR = 1e6  # of a key or a pivot's depth: with numbers near the largest, cameras are not finite


def find_paths(trajs, cameras, intrinsics, size):
    """(name, path) of every path that is asked for; a path is what cameras_of takes.

    trajs: as --trajs, None for the shipped folder. cameras: as --cameras, which comes in place of
    trajs, or None. intrinsics [N, 3, 3] and size (width, height): the video's. Raises InputError.
    """
    if cameras is None:
        return _keyframe_paths(str(SHIPPED) if trajs is None else trajs)
    paths = []
    for file in find_files("--cameras", cameras, "an npy, npz or json"):
        path = read_cameras(file, intrinsics)
        sequence.check_intrinsics(f"{file}: intrinsics", path.intrinsics, size)
        paths.append((file.name, path))
    return paths


def cameras_of(path, intrinsics, pivot):
    """trajectory.Cameras of a path: keyframes about a pivot, or Cameras of a file as they are.

    intrinsics: [N, 3, 3], of the source.
    """
    if isinstance(path, Cameras):
        return path
    return trajectory.keyframe_cameras(path, intrinsics, pivot)


def find_files(flag, item, expected):
    """A file, the .txt of a folder, or the files of a pattern, in order of name."""
    if os.path.isfile(item):
        return [Path(item)]
    pattern = f"{glob.escape(item)}/*.txt" if os.path.isdir(item) else item
    found = sorted(map(Path, filter(os.path.isfile, glob.glob(pattern))))
    if not found:
        raise InputError(f"{flag} {cli.short(repr(item), 110)}: no such file or camera path; "
                         f"expected {expected}")
    return found


# ---- --trajs -------------------------------------------------------------------------------------


def _keyframe_paths(trajs):
    """(name, keyframes) of every path that a --trajs stands for."""
    whole = os.path.exists(trajs) or os.path.exists(trajs.removesuffix(EASE))
    paths = []
    for item in [trajs] if whole else trajs.split(","):
        paths += _paths_of_item(item)
    return paths


def _paths_of_item(item):
    """(name, keyframes) of every path that an item of --trajs stands for."""
    source = item if _is_there(item) else item.removesuffix(EASE)
    more = {} if source == item else {"ease": True}
    if not _is_there(source):
        _check_at(item, source)
        if keys := preset_keyframes(source):
            return [(item, keys | more)]
    paths = []
    for file in find_files("--trajs", source, EXPECTED):
        name = f"{file.parent.name}/{file.name}{EASE if more else ''}"
        paths.append((name, read_keyframes(file) | more))
    return paths


def _is_there(item):
    """Whether files have an item's name. The name of one preset, without + or @, means that."""
    one_preset = _names_preset(item) and not re.search("[+@]", item)
    return not one_preset and (os.path.exists(item) or bool(glob.glob(item)))


def _names_preset(item):
    return any(re.split("[:@]", part)[0].strip() in PRESETS for part in JOINT.split(item))


def _check_at(item, source):
    """InputError if more than one @ease, or anything else with an @, follows what is known.

    source: the item without @ease at its end.
    """
    before, at, _ = source.rpartition("@")
    if at and (_names_preset(before) or _is_there(before)):
        raise InputError(f"--trajs {cli.short(item, 80)}: got "
                         f"{cli.short(repr(item[len(before):]), 80)}; expected {EASE} once, at the "
                         "end, or nothing")


def preset_keyframes(item):
    """Keyframes of presets joined by +, each NAME or NAME:AMOUNT; None if none of them is there.

    Raises InputError if a name or amount is wrong, the picture is turned over or the pivot passed.
    """
    if not _names_preset(item):
        return None
    said = f"--trajs {cli.short(item, 80)}"
    paths = [_of_preset(part.strip(), said) for part in JOINT.split(item)]
    with np.errstate(all="ignore"):
        keys = trajectory.joined(paths)
    _check_keyframes(keys, said)
    return keys


def _of_preset(part, said):
    """Keyframes of NAME or NAME:AMOUNT. said: what was given, for messages."""
    name, colon, amount = part.partition(":")
    if name not in PRESETS:
        raise InputError(f"{said}: got {cli.short(repr(part), 80)} for a preset; expected "
                         f"{', '.join(PRESETS)}, with an amount or without, joined by +")
    usual, unit, keyframes = PRESETS[name]
    try:
        value = float(amount) if colon else usual
    except ValueError:
        value = np.nan
    if not abs(value) <= FAR:
        raise InputError(f"{said}: got the amount {cli.short(amount, 80)!r}; expected a number of "
                         f"{unit}, up to {FAR:g}")
    return keyframes(value)


def _check_keyframes(keys, said):
    """InputError unless keyframes of presets keep the picture upright and stay before the pivot."""
    factor = np.min(keys.get("zoom", 1))
    if factor <= 0:
        raise InputError(f"{said}: got a focal length of {factor:g} times the source's; expected a "
                         "factor above 0")
    r = np.max(keys.get("r", 0))
    if r >= 1:
        raise InputError(f"{said}: got a move of {r:g} radii, to the pivot or past it; expected "
                         "below 1")
    for name, values in keys.items():
        if not np.max(np.abs(values)) <= FAR + 1:  # a zoom's factor is 1 + its amount
            raise InputError(f"{said}: got {name} beyond {FAR:g} in all; expected smaller amounts")


def read_keyframes(path):
    """Keyframes of a trajs/*.txt file: three lines of numbers, as many on each as one likes.

    They are phi and theta in degrees and r in fractions of the radius. Blanks or commas separate
    them; # begins a comment; empty lines are left out. Raises InputError.
    """
    expected = (f"expected three lines of up to {MOST_KEYS} finite numbers: phi, theta (degrees), "
                "r (of the radius)")
    lines = []
    for line in files.read_text(path, 2**16).splitlines():
        if words := line.partition("#")[0].replace(",", " ").split():
            lines.append(words)
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


# ---- --pivot -------------------------------------------------------------------------------------


def find_pivot(text, seq):
    """The point that paths turn about, float64 [3], in camera coordinates of a Sequence's frames.

    text: as --pivot, "x,y" in pixels of the first frame, for the point that is seen there, or a
    depth on the optical axis; None for the depth at the picture's centre. Raises InputError.
    """
    numbers = [seq.pivot_depth] if text is None else pivot_numbers(text)
    if len(numbers) == 1:
        return trajectory.point_of(numbers[0])
    x, y = numbers
    width, height = seq.size
    if not (0 <= x <= width - 1 and 0 <= y <= height - 1):
        raise InputError(f"--pivot {x:g},{y:g}: lies outside the picture; expected x from 0 to "
                         f"{width - 1} and y from 0 to {height - 1}")
    depth = seq.depth(0, 1)[0, round(y), round(x)].item()
    if depth == 0:
        raise InputError(f"--pivot {x:g},{y:g}: the depth there in the first frame is not a "
                         "positive number; give another pixel, or a depth")
    return depth * np.linalg.inv(seq.intrinsics[0]) @ [x, y, 1]


def pivot_in_words(pivot, k):
    """Where paths turn. pivot: [3], in camera coordinates; k: [3, 3], of the first frame."""
    if not pivot[:2].any():
        return f"orbit radius {pivot[2]:.4g}"
    x, y, _ = k @ pivot / pivot[2]
    return f"orbit about ({x:.6g}, {y:.6g}) at depth {pivot[2]:.4g}"


def pivot_numbers(text):
    """[x, y] or [depth] of a --pivot; commas or blanks separate. Raises InputError."""
    expected = ("expected x,y in pixels of the first frame, such as 310,170, or one number above "
                f"0, up to {FAR:g}: a depth on the optical axis")
    words = text.split("," if "," in text else None)
    try:
        numbers = list(map(float, words))
    except ValueError:
        numbers = []
    is_depth = len(numbers) == 1 and 0 < numbers[0] <= FAR
    if not is_depth and not (len(numbers) == 2 and np.isfinite(numbers).all()):
        raise InputError(f"--pivot {cli.short(repr(text), 80)}: {expected}")
    return numbers


# ---- camera files --------------------------------------------------------------------------------


def read_cameras(path, intrinsics):
    """Cameras of an npy, npz or json file for a source of intrinsics [N, 3, 3].

    c2w (4, 4) or (N, 4, 4) is the target camera relative to the source camera, OpenCV, in the
    depth's units. Beside it npz and json may hold intrinsics (3, 3) or (N, 3, 3) of the target, in
    pixels of the video, and frames (N,). In place of c2w a json may hold keys (K, 4, 4), which
    trajectory.between_keys spreads over the video. Raises InputError.
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
    if path.suffix == ".txt":
        raise InputError(f"{path}: is text, as a path of --trajs; expected cameras as npy, npz or "
                         "json")
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
    return arrays | {"c2w": trajectory.between_keys(keys, count)}


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
