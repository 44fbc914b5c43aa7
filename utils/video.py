"""Video files in and out: the one place that knows codecs, frame rates, colour and value ranges.

Frames in memory are RGB uint8 [F, H, W, 3], upright; masks are bool [F, H, W]. PyAV reads and
writes the files.
"""

import contextlib
import itertools
import json
import struct
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import av
import cv2
import numpy as np
from av.sidedata.sidedata import Type
from av.video.reformatter import VideoReformatter

from utils.cli import InputError

MATRICES = {1: "bt709", 9: "bt2020", 10: "bt2020"}  # by number in ITU-T H.273; all others: bt601
TAGS = {"bt601": 6, "bt709": 1}  # what is written as matrix, primaries and transfer
MATRIX_NAMES = {"bt601": "ITU601", "bt709": "ITU709"}  # PyAV's
LIMITED_RANGE = 1


@dataclass(frozen=True)
class VideoInfo:
    """Frame count, upright size in pixels, exact frame rate and YCbCr matrix of a file.

    matrix: bt601, bt709 or bt2020.
    """

    frames: int
    height: int
    width: int
    fps: Fraction
    matrix: str = "bt709"


def probe(path):
    """VideoInfo of a file; its first frame is decoded.

    A file without a tag counts as BT.601, as FFmpeg and OpenCV (the published code) read it.
    Raises InputError if the file is missing, is no video or has no frames.
    """
    with _opened(path) as (container, stream):
        first = next(container.decode(stream), None)
        if first is None:
            raise InputError(f"{path}: got no frames; expected at least one")
        height, width = _upright(first, first.to_ndarray(format="gray")).shape
        fps = Fraction(stream.average_rate).limit_denominator(1001)
        matrix = MATRICES.get(stream.codec_context.colorspace, "bt601")
        return VideoInfo(_promised_frames(container, stream), height, width, fps, matrix)


def iter_frames(path):
    """Yield the frames of a video in the order shown, each uint8 [H, W, 3] RGB.

    Raises InputError if a frame cannot be decoded, or if there are not as many as promised.
    """
    count = 0
    size = {}  # of the first frame; should a later one have another, it is scaled
    reformatter = VideoReformatter()  # the same bytes as OpenCV's, so as published
    with _opened(path) as (container, stream):
        stream.thread_type = "AUTO"
        for frame in container.decode(stream):
            count += 1
            size = size or {"width": frame.width, "height": frame.height}
            rgb = reformatter.reformat(frame, format="rgb24", interpolation="BICUBIC", **size)
            yield _upright(frame, rgb.to_ndarray())
        promised = _promised_frames(container, stream)
    if count != promised or count == 0:
        raise InputError(f"{path}: its header promises {promised} frames, {count} can be decoded "
                         "(cut off, or cut without re-encoding?); encode it again")


@contextlib.contextmanager
def _opened(path):
    """(container, video stream) of a local file; what goes wrong with it becomes an InputError."""
    if not Path(path).is_file():
        raise InputError(f"{path}: no such file")
    local = {"protocol_whitelist": "file"}  # whatever else a playlist may name
    expected = "expected a video with at least one frame, such as mp4 with H.264"
    try:
        with av.open(f"file:{path}", options=local) as container:
            stream = container.streams.best("video")
            if stream is None or not stream.average_rate:
                raise InputError(f"{path}: got no moving picture; {expected}")
            yield container, stream
    except av.FFmpegError as error:
        raise InputError(f"{path}: could not be decoded ({error.strerror}); {expected}; if it is "
                         "cut off, encode it again") from error


def _promised_frames(container, stream):
    """The frame count in the header; where there is none, as in mkv, that of the packets."""
    if stream.frames:
        return stream.frames
    container.seek(0)
    return sum(1 for packet in container.demux(stream) if packet.size)


def _upright(frame, pixels):
    """Pixels [H, W, ...] turned and mirrored by quarter turns as the frame's tag asks for."""
    tag = frame.side_data.get(Type.DISPLAYMATRIX)
    if tag is None:
        return pixels
    a, b, _, c, d = struct.unpack_from("=5i", bytes(tag))  # x' = a x + c y, y' = b x + d y
    if a == 0 and d == 0:
        pixels = pixels.swapaxes(0, 1)
        a, d = c, b
    pixels = pixels[:, ::-1] if a < 0 else pixels
    pixels = pixels[::-1] if d < 0 else pixels
    return np.ascontiguousarray(pixels)


def iter_chunks(path, size):
    """Yield the frames of a video as uint8 [n, H, W, 3], n = `size` but for the last."""
    frames = iter_frames(path)
    while chunk := list(itertools.islice(frames, size)):
        yield np.stack(chunk)


def read_video(path, limit=None):
    """The first `limit` frames of a video (all by default), uint8 [F, H, W, 3] RGB."""
    return np.stack(list(itertools.islice(iter_frames(path), limit)))


def read_frames(path, indices):
    """The frames of a video at `indices`, in that order, uint8 [len(indices), H, W, 3] RGB."""
    wanted = {}
    for number, frame in enumerate(itertools.islice(iter_frames(path), max(indices) + 1)):
        if number in indices:
            wanted[number] = frame
    return np.stack([wanted[index] for index in indices])


def read_mask(path):
    """A mask video as bool [F, H, W]: thresholded at half."""
    return read_video(path)[..., 0] > 127


def read_grey16(path):
    """A video of 16-bit grey, uint16 [N, h, w]. Raises InputError if its pixels are others."""
    with _opened(path) as (container, stream):
        pixels = str(stream.codec_context.pix_fmt)
        if not pixels.startswith("gray16"):
            raise InputError(f"{path}: its pixels are {pixels}; expected 16-bit grey, such as PNG "
                             "or FFV1 in mkv")
        frames = [frame.to_ndarray(format="gray16le") for frame in container.decode(stream)]
    return np.stack(frames)


def made_of(path):
    """The dict that VideoWriter was given as `tags`; None if there is none or no such video."""
    try:
        with _opened(path) as (container, _):
            tags = json.loads(container.metadata.get("comment", "null"))
    except ValueError:  # InputError, and what is no JSON
        return None
    return tags if isinstance(tags, dict) else None


def to_signed(frames):
    """A uint8 tensor [F, H, W, 3] as the warp takes it: float32 [F, 3, H, W] in [-1, 1]."""
    return frames.permute(0, 3, 1, 2).contiguous().float().div_(255).mul_(2).sub_(1)


def to_bytes(x):
    """The way back, rounded down as published: uint8 [F, H, W, 3] of [F, 3, H, W] in [-1, 1]."""
    return (x + 1).mul_(127.5).floor_().clamp_(0, 255).byte().permute(0, 2, 3, 1)


class VideoWriter:
    """Writes H.264 beside `path` and moves it into place when whole.

    with VideoWriter(path, info, crf) as writer:
        writer.write(frames)  # uint8 [F, H, W, 3] RGB; or bool [F, H, W] with mask=True

    crf 1 and up is 4:2:0, which browsers play; crf 0 is 4:4:4 without coding loss. Odd sizes are
    always 4:4:4. tags: a dict, kept as JSON in the file, which made_of() reads. Leaving by an
    exception leaves no file. Raises OSError if the file cannot be written.
    """

    def __init__(self, path, info, crf=10, mask=False, tags=None):
        self.path = Path(path)
        self.part = Path(f"{path}.part")
        self.pixels = "gray" if mask else "rgb24"
        self.matrix = "bt601" if info.matrix == "bt601" else "bt709"
        self.reformatter = VideoReformatter()
        self.count = 0
        self.path.parent.mkdir(parents=True, exist_ok=True)
        where = {"format": "mp4", "options": {"movflags": "faststart"}}
        with self._clear_errors():
            self.container = av.open(f"file:{self.part}", "w", **where)
        if tags is not None:
            self.container.metadata["comment"] = json.dumps(tags)
        self.stream = self._add_stream(info, crf)

    def _add_stream(self, info, crf):
        fps = Fraction(info.fps)
        options = {"crf": str(crf), "threads": "auto"}
        size = {"width": info.width, "height": info.height}
        stream = self.container.add_stream("libx264", fps, options, time_base=1 / fps, **size)
        codec = stream.codec_context
        even = info.height % 2 == 0 and info.width % 2 == 0
        codec.pix_fmt = "yuv420p" if even and crf > 0 else "yuv444p"
        codec.thread_type = "AUTO"
        codec.color_range = LIMITED_RANGE
        codec.colorspace = codec.color_primaries = codec.color_trc = TAGS[self.matrix]
        return stream

    def write(self, frames):
        if frames.dtype == bool:
            frames = frames.astype(np.uint8) * 255
        assert frames.dtype == np.uint8, frames.dtype
        codec = self.stream.codec_context
        colour = {"dst_colorspace": MATRIX_NAMES[self.matrix], "dst_color_range": LIMITED_RANGE}
        for pixels in frames:
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(pixels), self.pixels)
            frame.pts = self.count
            frame.time_base = codec.time_base
            self.count += 1
            with self._clear_errors():
                yuv = self.reformatter.reformat(frame, format=codec.pix_fmt,
                                                interpolation="BICUBIC", **colour)
                self.container.mux(self.stream.encode(yuv))

    def finish(self):
        """Make the file whole, still beside its name; leaving the writer moves it into place."""
        assert self.count, "no frames were written"
        with self._clear_errors():
            self.container.mux(self.stream.encode())
            self.container.close()
        self.container = None

    @contextlib.contextmanager
    def _clear_errors(self):
        try:
            yield
        except av.FFmpegError as error:
            raise OSError(f"{self.path}: could not be written: {error.strerror}") from error

    def __enter__(self):
        return self

    def __exit__(self, kind, error, trace):
        try:
            if kind is None:
                if self.container:
                    self.finish()
                self.part.replace(self.path)
        finally:
            if self.container:
                with contextlib.suppress(av.FFmpegError):
                    self.container.close()
            self.part.unlink(missing_ok=True)


def write_video(path, frames, info, crf=10, tags=None):
    """Write uint8 [F, H, W, 3] RGB at info's rate and matrix; the size is that of the frames."""
    info = VideoInfo(len(frames), *frames.shape[1:3], info.fps, info.matrix)
    with VideoWriter(path, info, crf, tags=tags) as writer:
        writer.write(frames)


def resize(frames, height, width, method=cv2.INTER_AREA):
    """Frames [F, H, W, 3] of any dtype resized, by OpenCV's area averaging as published."""
    if frames.shape[1:3] == (height, width):
        return frames
    return np.stack([cv2.resize(frame, (width, height), interpolation=method) for frame in frames])


def fit_length(frames, count):
    """The first `count` frames; a shorter clip repeats its last frame."""
    return frames[np.minimum(np.arange(count), len(frames) - 1)]


def ahead(items, function=None, threads=1):
    """Yield function(item) of each item in order, computed while earlier results are used.

    One thread takes the items from their iterator, `threads` more call `function`, and no more
    than `threads` results wait. Without a function the items themselves are yielded.
    """
    items = iter(items)
    end = object()

    def compute(taken):
        item = taken.result()
        return item if item is end or function is None else function(item)

    with ThreadPoolExecutor(1) as taker, ThreadPoolExecutor(threads) as pool:
        pending = deque()
        for _ in range(threads):
            pending.append(pool.submit(compute, taker.submit(next, items, end)))
        while (result := pending.popleft().result()) is not end:
            pending.append(pool.submit(compute, taker.submit(next, items, end)))
            yield result
