"""What toolbox/make_report.py does with videos: links that play from disk, depth in colour, small
pictures, and how far frames are from those that they should be.

`root` is the sequence folder, absolute; the page lies in its report/.
"""

if __name__ == "__main__":
    raise SystemExit("error: a module, not a program; toolbox/README.md lists the programs")

import base64
import itertools
import math
import os
import shutil
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from urllib.parse import quote

import cv2
import numpy as np

from utils import files, video

MOST = 60  # dB: equal pictures have no number, and no eye tells pictures apart beyond this
POSTER = 240  # pixels wide
DEPTH_WIDTH = 480  # at most
UNKNOWN = (56, 56, 56)  # where there is no depth
REGIONS = {"holes": [0], "known": [1], "all": [0, 1]}  # sums of these parts


class Videos:
    """The videos that a page shows, each opened and made ready once.

    A copy in report/ stands for one that lies outside of the folder, or that browsers do not play.
    outputs: the folder of outputs, absolute.
    """

    def __init__(self, root, outputs):
        self.root = root
        self.outputs = outputs
        self.infos = {}
        self.links = {}

    def info(self, path):
        """VideoInfo of a file. Raises InputError."""
        if path not in self.infos:
            self.infos[path] = video.probe(path)
        return self.infos[path]

    def same_size(self, paths):
        """Whether videos have one size and length."""
        infos = [self.info(path) for path in paths]
        return len({(info.frames, info.height, info.width) for info in infos}) == 1

    def link(self, path):
        """How the page names a video: relative to it."""
        if path not in self.links:
            shown = self.make_ready(Path(os.path.abspath(path)))
            self.links[path] = quote(os.fsencode(os.path.relpath(shown, self.root / "report")))
        return self.links[path]

    def make_ready(self, path):
        """The video itself, or a copy that is written if need be."""
        inside = path.is_relative_to(self.root)
        plays = video.is_playable(path)
        if inside and plays:
            return path
        if inside:
            base = self.root
        elif path.is_relative_to(self.outputs):
            base = self.outputs.parent
        else:
            base = path.parent.parent
        copy = self.root / "report" / "_".join(path.relative_to(base).parts)
        if plays:
            with files.whole(copy) as part:
                shutil.copyfile(path, part)
        else:
            write_playable(path, copy)
        return copy


def write_playable(path, target):
    """Write a video again at an even size: a pixel less where it is odd."""
    info = video.probe(path)
    height = max(2, info.height // 2 * 2)
    width = max(2, info.width // 2 * 2)
    with video.VideoWriter(target, replace(info, height=height, width=width), crf=14) as writer:
        for frame in video.iter_frames(path):
            writer.write(video.resize(frame[None], height, width))


def poster(path, moment, part=None):
    """A frame as a small JPEG, a data URL. part: only this third of its width."""
    (frame,) = video.read_frames(path, [moment])
    if part is not None:
        frame = np.array_split(frame, 3, axis=1)[part]
    height = max(1, round(POSTER * frame.shape[0] / frame.shape[1]))
    small = cv2.resize(frame, (POSTER, height), interpolation=cv2.INTER_AREA)
    jpeg = cv2.imencode(".jpg", small[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 80])[1]
    return "data:image/jpeg;base64," + base64.b64encode(jpeg).decode()


def write_depth(path, depth_map, info):
    """Depth [N, h, w] as a video, near is bright: {"near", "far"} of its colours, in depth's unit.

    The colours are linear in disparity, over one range for the whole clip. None, and no video, if
    no depth is known.
    """
    few = np.array(depth_map[:, ::4, ::4], np.float32)
    few = few[np.isfinite(few) & (few > 0)]
    if not few.size:
        return None
    far, near = np.percentile(1 / few, (2, 98))  # disparities
    scale = min(1, DEPTH_WIDTH / depth_map.shape[2])
    height = max(2, int(depth_map.shape[1] * scale) // 2 * 2)
    width = max(2, int(depth_map.shape[2] * scale) // 2 * 2)
    info = replace(info, height=height, width=width, pixel_aspect=Fraction(1))
    with video.VideoWriter(path, info, crf=16) as writer:
        for depth in depth_map:
            depth = cv2.resize(np.array(depth, np.float32), (width, height),
                               interpolation=cv2.INTER_NEAREST)
            known = np.isfinite(depth) & (depth > 0)
            share = (1 / np.where(known, depth, 1) - far) / max(near - far, 1e-12)
            levels = (255 * share.clip(0, 1)).astype(np.uint8)
            colours = cv2.applyColorMap(levels, cv2.COLORMAP_INFERNO)[..., ::-1].copy()
            colours[~known] = UNKNOWN
            writer.write(colours[None])
    return {"near": float(1 / near), "far": float(1 / far)}


def measure(target, mask, videos):
    """How far videos {name: path} are from a target of their size.

    {"holes": their share in each frame, "curves": {region: {name: PSNR of each frame in dB}},
    "means": {region: {name: PSNR of all frames}}}. Without a mask all is known. None stands for
    what no pixel tells.
    """
    errors = []  # [frames, videos, 2]: in holes, on known pixels
    pixels = []  # [frames, 2]
    masks = video.iter_frames(mask) if mask else itertools.repeat(None)
    clips = map(video.iter_frames, videos.values())
    for right, known, *frames in zip(video.iter_frames(target), masks, *clips, strict=False):
        where = np.ones(right.shape[:2], bool) if known is None else known[..., 0] > 127
        pixels.append((np.sum(~where), where.sum()))
        errors.append([squared_errors(frame, right, where) for frame in frames])
    errors = np.array(errors).reshape(len(pixels), len(videos), 2)
    pixels = np.array(pixels)
    found = {"holes": (pixels[:, 0] / pixels.sum(1)).round(4).tolist(), "curves": {}, "means": {}}
    for region, parts in REGIONS.items():
        count = pixels[:, parts].sum(1)
        curves = found["curves"][region] = {}
        means = found["means"][region] = {}
        for number, name in enumerate(videos):
            error = errors[:, number, parts].sum(1)
            curves[name] = list(map(decibels, error, count))
            means[name] = decibels(error.sum(), count.sum())
    return found


def squared_errors(frame, right, where):
    """Summed squared errors of uint8 frames [H, W, 3]: (where not `where`, where `where`)."""
    known = cv2.norm(frame, right, cv2.NORM_L2SQR, where.view(np.uint8))
    return max(0.0, cv2.norm(frame, right, cv2.NORM_L2SQR) - known), known


def decibels(error, pixels):
    """PSNR of summed squared errors of so many RGB pixels, at most MOST; None of no pixels.

    utils.metrics.psnr would need all pixels of a region again, for every frame and for the clip;
    from sums both follow, in one pass that holds a frame a video.
    """
    if not pixels:
        return None
    return round(min(MOST, 10 * math.log10(3 * 255**2 * pixels / max(error, 1e-3))), 3)
