"""Video files in and out: the one place that knows codecs, frame rates, colour tags and value ranges.

Frames in memory are RGB uint8 [F, H, W, 3], masks bool [F, H, W]. Files pass through the ffmpeg of imageio-ffmpeg.
"""

import itertools
import os
import re
import subprocess
import tempfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import cv2
import imageio_ffmpeg
import numpy as np

from utils.cli import InputError

MATRICES = {"bt709": "bt709", "smpte170m": "bt601", "bt470bg": "bt601", "bt2020nc": "bt2020", "bt2020c": "bt2020"}


@dataclass(frozen=True)
class VideoInfo:
    """Frame count, size in pixels, exact frame rate, and the YCbCr matrix of the file (bt601, bt709 or bt2020)."""

    frames: int
    height: int
    width: int
    fps: Fraction
    matrix: str = "bt709"


def probe(path):
    """VideoInfo of a file. An untagged file counts as BT.601, as ffmpeg and OpenCV (the published code) read it.

    Raises InputError if the file is missing, is no video or has no frames.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"{path}: no such file")
    os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", "-8")  # what its ffmpeg has to say names no file
    capture = cv2.VideoCapture(str(path))  # OpenCV gives the rate exactly; ffmpeg prints two decimals
    count_height_width = (cv2.CAP_PROP_FRAME_COUNT, cv2.CAP_PROP_FRAME_HEIGHT, cv2.CAP_PROP_FRAME_WIDTH)
    size = [int(capture.get(prop)) for prop in count_height_width]
    fps = capture.get(cv2.CAP_PROP_FPS)
    if min(size) < 1 or fps <= 0:
        raise InputError(f"{path}: got no readable video; expected a video file with at least one frame (mp4, H.264)")
    header = subprocess.run([imageio_ffmpeg.get_ffmpeg_exe(), "-hide_banner", "-i", str(path)], capture_output=True)
    stream = re.search(r"Video: (.*)", header.stderr.decode(errors="replace"))
    tags = re.findall("|".join(MATRICES), stream.group(1) if stream else "")
    return VideoInfo(*size, Fraction(fps).limit_denominator(1001), MATRICES[tags[0]] if tags else "bt601")


def iter_frames(path):
    """Yield the frames of a video in file order, each uint8 [H, W, 3] RGB."""
    info = probe(path)
    scale = f"scale=in_color_matrix={info.matrix}"  # ffmpeg's usual rounding: the same bytes as OpenCV, so as published
    stream = imageio_ffmpeg.read_frames(path, output_params=["-fps_mode", "passthrough", "-vf", scale])
    count = 0
    try:
        next(stream)  # the header
        for frame in stream:
            count += 1
            yield np.frombuffer(frame, np.uint8).reshape(info.height, info.width, 3)
    except (OSError, RuntimeError) as error:
        said = str(error).split("\n")[0]  # and then all that ffmpeg said
        raise InputError(f"{path}: could not be decoded ({said}); if it is cut off, encode it again") from error
    if count != info.frames:
        raise InputError(f"{path}: its header promises {info.frames} frames, {count} can be decoded (cut off, or cut "
                         "without re-encoding?); encode it again")


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
    wanted = {int(index): None for index in indices}
    for i, frame in enumerate(itertools.islice(iter_frames(path), max(wanted) + 1)):
        if i in wanted:
            wanted[i] = frame
    return np.stack([wanted[int(index)] for index in indices])


def to_signed(frames):
    """A uint8 tensor [F, H, W, 3] as the warp takes it: float32 [F, 3, H, W] in [-1, 1]."""
    return frames.permute(0, 3, 1, 2).contiguous().float().div_(255).mul_(2).sub_(1)


def to_bytes(x):
    """The way back, rounded down as published: uint8 [F, H, W, 3] of a tensor [F, 3, H, W] in [-1, 1]."""
    return (x + 1).mul_(127.5).floor_().clamp_(0, 255).byte().permute(0, 2, 3, 1)


def read_mask(path):
    """A mask video as bool [F, H, W]: thresholded at half."""
    return read_video(path)[..., 0] > 127


class VideoWriter:
    """Writes H.264 beside `path` and moves it into place when whole; leaving by an exception leaves no file.

    with VideoWriter(path, info, crf) as writer:
        writer.write(frames)  # uint8 [F, H, W, 3] RGB; or bool [F, H, W] with mask=True

    crf 1 and up is 4:2:0, which browsers play; crf 0 is 4:4:4 without coding loss. Odd sizes are always 4:4:4.
    """

    def __init__(self, path, info, crf=10, mask=False):
        self.path, self.part = Path(path), Path(f"{path}.part")
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.log = tempfile.TemporaryFile()
        even = info.height % 2 == 0 and info.width % 2 == 0
        matrix, tag = ("bt601", "smpte170m") if info.matrix == "bt601" else ("bt709", "bt709")
        command = [
            imageio_ffmpeg.get_ffmpeg_exe(), "-y", "-loglevel", "error",
            "-f", "rawvideo", "-pix_fmt", "gray" if mask else "rgb24", "-s", f"{info.width}x{info.height}",
            "-r", str(info.fps), "-i", "-", "-vf", f"scale=out_color_matrix={matrix}:out_range=tv",
            "-c:v", "libx264", "-crf", str(crf), "-pix_fmt", "yuv420p" if even and crf > 0 else "yuv444p",
            "-colorspace", tag, "-color_primaries", tag, "-color_trc", tag, "-color_range", "tv",
            "-movflags", "+faststart", "-f", "mp4", str(self.part),
        ]  # fmt: skip
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stderr=self.log)

    def write(self, frames):
        frames = frames.astype(np.uint8) * 255 if frames.dtype == bool else frames
        assert frames.dtype == np.uint8, frames.dtype
        try:
            self.process.stdin.write(np.ascontiguousarray(frames).data)
        except BrokenPipeError:
            self._fail()

    def _fail(self):
        self.process.wait()
        self.log.seek(0)
        raise OSError(f"{self.path}: could not be written: {self.log.read().decode(errors='replace').strip()}")

    def __enter__(self):
        return self

    def __exit__(self, kind, error, trace):
        try:
            if kind:
                self.process.kill()
            self.process.stdin.close()
            if self.process.wait() and not kind:
                self._fail()
            if not kind:
                self.part.replace(self.path)
        finally:
            self.log.close()
            self.part.unlink(missing_ok=True)


def write_video(path, frames, info, crf=10):
    """Write uint8 [F, H, W, 3] RGB at info's rate and colour tag; the size is that of the frames."""
    info = VideoInfo(len(frames), *frames.shape[1:3], info.fps, info.matrix)
    with VideoWriter(path, info, crf) as writer:
        writer.write(frames)


def resize(frames, height, width, method=cv2.INTER_AREA):
    """Frames [F, H, W, 3] of any dtype resized, by OpenCV's area averaging as published."""
    if frames.shape[1:3] == (height, width):
        return frames
    return np.stack([cv2.resize(frame, (width, height), interpolation=method) for frame in frames])


def fit_length(frames, count):
    """The first `count` frames; a shorter clip repeats its last frame."""
    return frames[np.minimum(np.arange(count), len(frames) - 1)]


def ahead(items):
    """The items of an iterator, each made in a thread while the one before is used."""
    end = object()
    with ThreadPoolExecutor(1) as thread:
        following = thread.submit(next, items, end)
        while (item := following.result()) is not end:
            following = thread.submit(next, items, end)
            yield item
