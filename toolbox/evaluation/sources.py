"""Frames to be compared, wherever they lie: in videos, or in folders of pictures; and their pairs.

Frames are RGB uint8 [H, W, 3], read one by one, so that a video of any length fits in memory.
"""

if __name__ == "__main__":
    raise SystemExit("error: a module, not a program; toolbox/README.md lists the programs")

import contextlib
import re
from collections import Counter
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path

import cv2
import numpy as np
from PIL import Image, ImageOps

from utils import files, video
from utils.cli import InputError

VIDEOS = (".mp4", ".mov", ".mkv", ".webm", ".avi", ".m4v")
PICTURES = (".png", ".jpg", ".jpeg")
MODES = ("1", "L", "LA", "P", "PA", "RGB", "RGBA")  # of PIL: those of 8 bits
ORIENTATION = 0x0112  # the tag of Exif
SMALLEST = 32  # pixels a side that every measure can take; AlexNet needs 31


@dataclass(frozen=True)
class Source:
    """The frames of a video, or of pictures in order.

    path: what the user named; pictures: the files, empty for a video; picks: the numbers of the
    frames that are compared, in that order; height, width: upright, in pixels.
    """

    path: Path
    pictures: tuple
    picks: tuple
    height: int
    width: int

    def __len__(self):
        return len(self.picks)

    @property
    def size(self):
        return self.height, self.width

    @property
    def numbers(self):
        """{name: number} of the pictures; of a video there are none."""
        return {name_of(path): number for number, path in enumerate(self.pictures)}

    def pick(self, picks):
        """The same with other frames; those of a video have to be in the order of time."""
        return replace(self, picks=tuple(picks))

    def read(self):
        """Yield the frames that are picked, uint8 [H, W, 3]."""
        if self.pictures:
            for number in self.picks:
                yield read_picture(self.pictures[number])
            return
        times = Counter(self.picks)
        for number, frame in enumerate(islice(video.iter_frames(self.path), max(times) + 1)):
            for _ in range(times[number]):
                yield frame


@dataclass(frozen=True)
class Pair:
    """Two Sources of as many frames, which are compared at a size (height, width), and a mask's."""

    name: str
    pred: Source
    target: Source
    mask: Source | None
    size: tuple

    def __len__(self):
        return len(self.pred)

    def read(self):
        """Yield (frame, truth, mask): uint8 [H, W, 3] twice, bool [H, W] or None."""
        masks = self.mask.read() if self.mask else [None] * len(self)
        for frame, truth, mask in zip(self.pred.read(), self.target.read(), masks, strict=True):
            if mask is not None:
                mask = fit(mask[..., 0], self.size) > 127
            yield fit(frame, self.size), fit(truth, self.size), mask


def fit(picture, size):
    """A uint8 picture at a size (height, width): shrunk by averaging, enlarged bilinearly."""
    if picture.shape[:2] == size:
        return picture
    smaller = size[0] * size[1] < picture.shape[0] * picture.shape[1]
    how = cv2.INTER_AREA if smaller else cv2.INTER_LINEAR
    return cv2.resize(picture, size[::-1], interpolation=how)


# ---- finding -------------------------------------------------------------------------------------


def name_of(path):
    """What a file or folder is paired by: its name without what follows the dot, and _out."""
    return (path.name if path.is_dir() else path.stem).removesuffix("_out")


def by_number(path):
    """A key that sorts frame2 before frame10."""
    parts = re.split(r"(\d+)", path.name)
    return [int(part) if odd % 2 else part for odd, part in enumerate(parts)], path.name


def visible(folder, suffixes):
    """The files of a folder that have one of the suffixes, in the order of their numbers."""
    found = []
    for path in folder.iterdir():
        if path.suffix.lower() in suffixes and path.name[0] != "." and path.is_file():
            found.append(path)
    return sorted(found, key=by_number)


def contents(folder):
    """(videos, pictures) that lie in a folder. Raises InputError if there are both."""
    videos, pictures = visible(folder, VIDEOS), visible(folder, PICTURES)
    if videos and pictures:
        raise InputError(f"{folder}: mixes videos ({videos[0].name}) and frames "
                         f"({pictures[0].name}); expected a folder of one or the other")
    return videos, pictures


def many(path):
    """{name: path} of the videos in a folder, or else of its subfolders; None for one source."""
    if not path.is_dir():
        return None
    videos, pictures = contents(path)
    if pictures:
        return None
    found = {}
    for each in videos or sorted(filter(Path.is_dir, path.iterdir()), key=by_number):
        name = name_of(each)
        if name[0] == ".":
            continue
        if name in found:
            raise InputError(f"{path}: got {found[name].name} and {each.name}; expected one of a "
                             "name, with or without _out")
        found[name] = each
    if not found:
        raise InputError(f"{path}: is empty; expected videos ({', '.join(VIDEOS)}), frames "
                         f"({', '.join(PICTURES)}), or subfolders of them")
    return found


def open_source(path):
    """The Source of a video, of a picture, or of a folder with one video or with frames."""
    if path.is_dir():
        videos, pictures = contents(path)
        if len(videos) > 1 or not videos and not pictures:
            got = f"{len(videos)} videos" if videos else "neither videos nor frames"
            raise InputError(f"{path}: got {got}; expected one video, or frames")
        if pictures:
            return of_pictures(path, pictures)
        path = videos[0]
    elif path.suffix.lower() in PICTURES:
        return of_pictures(path, [path])
    info = video.probe(path)
    return Source(path, (), tuple(range(info.frames)), info.height, info.width)


def of_pictures(path, pictures):
    """The Source of pictures, which have to be of one size and of different names."""
    names = Counter(map(name_of, pictures))
    if max(names.values()) > 1:
        name = names.most_common(1)[0][0]
        raise InputError(f"{path}: has several frames of the name {name}; expected one of a name")
    sizes = {}
    for each in pictures:
        sizes.setdefault(picture_size(each), each)
    if len(sizes) > 1:
        (size, first), (other, second), *_ = sizes.items()
        raise InputError(f"{second}: is {said_size(other)}, {first.name} {said_size(size)}; "
                         "expected frames of one size")
    return Source(path, tuple(pictures), tuple(range(len(pictures))), *next(iter(sizes)))


def picture_size(path):
    """(height, width) of a picture, upright; its pixels are not decoded."""
    with opened(path) as image:
        width, height = image.size
        if image.format == "JPEG" and image.getexif().get(ORIENTATION, 1) >= 5:  # a quarter turn
            return width, height
        return height, width


def read_picture(path):
    """The pixels of a picture as a viewer shows them, uint8 [H, W, 3]; transparent ones over
    black, as in videos."""
    with opened(path) as image:
        if image.format == "JPEG":  # of a png the tag may lie behind its pixels
            image = ImageOps.exif_transpose(image)
        image = image.convert("RGBA")
        black = Image.new("RGBA", image.size, (0, 0, 0, 255))
        return np.asarray(Image.alpha_composite(black, image).convert("RGB"))


@contextlib.contextmanager
def opened(path):
    """PIL's picture in a file; what is wrong with it becomes an InputError."""
    with open(path, "rb") as file, files.refused(path, "picture", "a whole png or jpg"):
        with Image.open(file) as image:
            if image.mode not in MODES:
                raise InputError(f"{path}: its pixels are of PIL's mode {image.mode}; expected "
                                 "grey or RGB of 8 bits")
            yield image


def said_size(size):
    return f"{size[0]} x {size[1]} (height x width)"


# ---- pairing -------------------------------------------------------------------------------------


def find_pairs(pred, target, mask=None, resize=False, trim=False):
    """The Pairs of two paths, and of a mask's: of one source each, or of folders, by name.

    Raises InputError for what is unpaired, or of other sizes or lengths; see make_pair.
    """
    paths = [pred, target] + [mask] * (mask is not None)
    found = list(map(many, paths))
    if not any(found):
        members = by_name(list(map(open_source, paths)), trim)
        return [make_pair(name_of(pred), *members, resize=resize, trim=trim)]
    if not all(found):
        raise InputError(f"{paths[found.index(None)]}: is one source, others are folders of "
                         "several; expected files, or folders paired by name")
    check_paired(paths, found)
    pairs = []
    for name in found[1]:
        members = by_name([open_source(each[name]) for each in found], trim)
        pairs.append(make_pair(name, *members, resize=resize, trim=trim))
    return pairs


def check_paired(paths, names):
    """InputError if not all paths have the same names, a list of them for each path."""
    everywhere = set(names[0]).intersection(*names[1:])
    unpaired = []
    for path, there in zip(paths, names, strict=True):
        for name in there:
            if name not in everywhere:
                unpaired.append(f"{path}/{name}")
    if unpaired:
        listed = ", ".join(unpaired[:5]) + ", ..." * (len(unpaired) > 5)
        raise InputError(f"{len(unpaired)} without a partner of the same name: {listed}; expected "
                         f"the same names in {' and '.join(map(str, paths))}")


def by_name(sources, trim):
    """Sources whose frames are those of the same names, where they come from folders of frames.

    trim: those that all have; else it is an InputError if one has others.
    """
    named = [each for each in sources if each.path.is_dir() and each.pictures]
    if len(named) < 2:
        return sources
    names = [each.numbers for each in named]
    if not trim:
        check_paired([each.path for each in named], names)
    everywhere = set(names[0]).intersection(*names[1:])
    if not everywhere:
        raise InputError(f"{named[0].path} and {named[1].path}: no frame of one has the name of "
                         "one of the other; expected the same names")
    order = [name for name in names[0] if name in everywhere]
    picked = []
    for each in sources:
        if each in named:
            each = each.pick(map(each.numbers.get, order))
        picked.append(each)
    return picked


def make_pair(name, pred, target, mask=None, resize=False, trim=False, sizes=()):
    """A Pair, at the target's size, or at the first of `sizes` if these do not have it.

    Raises InputError for another size unless `resize`, and for other lengths unless `trim`, which
    keeps the first frames of all.
    """
    sources = [pred, target] + [mask] * (mask is not None)
    size, expected = target.size, f"{said_size(target.size)}, as {target.path} is"
    if sizes and size not in sizes:
        size, expected = sizes[0], " or ".join(map(said_size, sizes))
    for each in sources:
        if each.size != size and not resize:
            raise InputError(f"{each.path}: is {said_size(each.size)}; expected {expected}; "
                             "--resize scales it")
    if min(size) < SMALLEST:
        raise InputError(f"{target.path}: is {said_size(size)}; expected {SMALLEST} or more")
    least = min(map(len, sources))
    if max(map(len, sources)) > least and not trim:
        lengths = ", ".join(f"{each.path} {len(each)}" for each in sources)
        raise InputError(f"{name}: expected as many frames, got {lengths}; --trim compares the "
                         f"first {least}")
    sources = [each.pick(each.picks[:least]) for each in sources]
    return Pair(name, *sources, *[None] * (mask is None), size=size)
