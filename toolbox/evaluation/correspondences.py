"""Which frames of a scene belong together: DyCheck's pairs of source and target.

Frame i of a prediction is of the source's frame source[i], and is compared with target[i].
"""

if __name__ == "__main__":
    raise SystemExit("error: a module, not a program; toolbox/README.md lists the programs")

from pathlib import Path

from utils import files
from utils.cli import InputError, short

ENDS = ("source", "target")
KINDS = ('{"source": [...], "target": [...]}, or a list of [source, target] or of {"source": ..., '
         '"target": ...}, of frames by number or name')


def find(scene, target, given=None):
    """The file of a scene: `given`, or in a folder that is given or else `target`; None if there is
    none beside the target."""
    if given and not given.is_dir():
        return given
    root = given or target
    for path in (root / scene / "correspondence.json", root / f"{scene}.json"):
        if path.is_file():
            return path
    if given:
        raise InputError(f"{given}: has neither {scene}.json nor {scene}/correspondence.json; "
                         "expected one of them")
    return None


def read(path, scene):
    """(source, target) of a file, lists of as many frames: numbers from 0, or names."""
    value = files.read_json(path, object)
    if isinstance(value, dict):
        value = value.get(scene, value)  # one file of all scenes
    columns = []
    for end in ENDS:
        column = value
        if isinstance(value, list):
            column = [end_of(pair, end) for pair in value]
        elif isinstance(value, dict):
            column = value.get(end)
        columns.append(column)
    if not all(map(is_frames, columns)) or len(columns[0]) != len(columns[1]):
        raise InputError(f"{path}: holds no correspondences of {scene}; expected {KINDS}")
    return columns


def end_of(pair, end):
    """The source or target of a pair; None of what is none."""
    if isinstance(pair, dict):
        return pair.get(end)
    return pair[ENDS.index(end)] if isinstance(pair, list) and len(pair) == 2 else None


def is_frames(column):
    """Whether something is a list of frames, by number or name."""
    return isinstance(column, list) and column and all(map(is_frame, column))


def is_frame(key):
    return type(key) is str or type(key) is int and key >= 0


def pick(source, keys, path):
    """A target, or its masks, with the frames that `keys` of a correspondence file name."""
    numbers = source.numbers
    picks = []
    for key in keys:
        number = key
        if isinstance(key, str):
            number = numbers.get(key, numbers.get(Path(key).stem))
        if number is None or number >= len(source):
            raise InputError(f"{path}: target {short(key, 60)} is not in {source.path}; expected "
                             f"numbers below {len(source)}, or names of a folder's frames")
        picks.append(number)
    if not source.pictures and sorted(picks) != picks:
        raise InputError(f"{path}: targets are not in the order of time, but {source.path} is a "
                         "video; expected that order, or a folder of frames")
    return source.pick(picks)
