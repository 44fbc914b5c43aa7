"""Video files in and out: the one place that knows codecs, frame rates, colour and value ranges.

Frames in memory are RGB uint8 [F, H, W, 3], upright; masks are bool [F, H, W]. PyAV reads and
writes the files.
"""

import contextlib
import itertools
import json
import math
import shlex
import struct
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path

import av
import cv2
import numpy as np
from av.sidedata.sidedata import Type
from av.stream import Disposition
from av.video.reformatter import Interpolation, VideoReformatter

from utils.cli import InputError

# Numbers are those of ITU-T H.273.
MATRICES = {1: "bt709", 9: "bt2020", 10: "bt2020"}  # all others: bt601
TAGS = {"bt601": 6, "bt709": 1}  # what is written as matrix, primaries and transfer
MATRIX_NAMES = {"bt601": "ITU601", "bt709": "ITU709"}  # PyAV's
LIMITED_RANGE = 1
HDR = {16: "PQ", 18: "HLG"}  # by transfer
WIDE = {9: "BT.2020", 11: "DCI-P3", 12: "Display P3"}  # by primaries

# FFmpeg's own scaler is 30 of 255 levels off where it converts primaries, and either clips what is
# brighter than white or dims the whole picture. So a user converts, by these filters.
TO_709 = "-vf zscale=p=bt709:t=bt709:m=bt709:r=tv,format=yuv420p "
HDR_TO_709 = ("-vf zscale=t=linear:npl=203,format=gbrpf32le,zscale=p=bt709,"
              "tonemap=mobius:param=0.7:desat=0,zscale=t=bt709:m=bt709:r=tv,format=yuv420p ")
DOLBY_TO_709 = ("-vf libplacebo=colorspace=bt709:color_primaries=bt709:color_trc=bt709:"
                "format=yuv420p ")

NO_PICTURES = (Disposition.attached_pic | Disposition.timed_thumbnails | Disposition.still_image)
MP4_SOUND = {"aac", "ac3", "alac", "eac3", "flac", "mp3", "opus"}  # codecs that mp4 can hold

WITH_ALPHA = {"vp8": "libvpx", "vp9": "libvpx-vp9"}  # FFmpeg's own decoders leave alpha out


@dataclass(frozen=True)
class VideoInfo:
    """Frame count, upright size in pixels, exact frame rate and YCbCr matrix of a file.

    matrix: bt601, bt709 or bt2020. times: None at a constant rate; else frames + 1 Fractions, when
    each frame begins and when the last one ends, in seconds from the first; fps is then their mean.
    pixel_aspect: the width of a pixel by its height.
    """

    frames: int
    height: int
    width: int
    fps: Fraction
    matrix: str = "bt709"
    times: tuple | None = None
    pixel_aspect: Fraction = Fraction(1)

    def at_rate(self, fps):
        """The same at a constant rate."""
        return replace(self, fps=Fraction(fps), times=None)


def probe(path):
    """VideoInfo of a file. Its first frame is decoded; the others only where packets do not tell.

    A file without a tag counts as BT.601, as FFmpeg and OpenCV (the published code) read it.
    Raises InputError if the file is missing, is no video, has no frames, is cut off, or if its
    colours cannot be read rightly; OSError if it may not be read.
    """
    packets = _Packets()
    with _opened(path) as (container, stream):
        first = next(_decoded(container, stream, packets), None)
        if first is None:
            raise InputError(f"{path}: got no frames; expected at least one")
        converter = _Converter(path, first)
        for packet in container.demux(stream):
            packets.note(packet)
        packets.check_whole(path, stream)
        starts = packets.starts(first)
        if starts is None:
            starts = _decoded_starts(path)
        fps, times = _timing(stream, starts, packets.durations)
        matrix = MATRICES.get(stream.codec_context.colorspace, "bt601")
        aspect = Fraction(stream.sample_aspect_ratio or 1)
        return VideoInfo(len(starts), *converter.upright_size, fps, matrix, times,
                         1 / aspect if converter.transposed else aspect)


def has_audio(path):
    """Whether a video has sound."""
    with _opened(path) as (container, _):
        return len(container.streams.audio) > 0


def is_playable(path):
    """Whether every browser plays a video: H.264 of 8 bits and 4:2:0, in mp4."""
    with _opened(path) as (container, stream):
        codec = stream.codec_context
        pixels = codec.pix_fmt in ("yuv420p", "yuvj420p")
        return pixels and codec.name == "h264" and "mp4" in container.format.name


def read_tags(path):
    """{name: value} of what the file says of itself, such as a phone's model."""
    with _opened(path) as (container, stream):
        return {**stream.metadata, **container.metadata}


def iter_frames(path):
    """Yield the frames that a player shows, in that order, each uint8 [H, W, 3] RGB.

    Transparent pixels are shown over black. Raises what probe() raises, and InputError if a frame
    cannot be decoded, or if there are not as many as the file's packets promise.
    """
    packets = _Packets()
    first, count = None, 0
    with _opened(path) as (container, stream):
        stream.thread_type = "AUTO"
        for frame in _decoded(container, stream, packets):
            if first is None:
                first, convert = frame, _Converter(path, frame)
            count += 1
            yield convert(frame)
        packets.check_whole(path, stream)
    starts = packets.starts(first)
    if not count or starts is not None and len(starts) != count:
        raise InputError(f"{path}: promises {len(starts or ())} frames, {count} can be decoded; "
                         f"encode it again: {_mending(path)}")


@contextlib.contextmanager
def _opened(path):
    """(container, moving picture) of a file; what is wrong with it becomes an InputError.

    FFmpeg gets the open file, not its name, so any name will do; and of protocols this one alone,
    so a playlist reaches neither the network nor other files.
    """
    if not Path(path).is_file():
        what = "is no regular file" if Path(path).exists() else "no such file"
        raise InputError(f"{path}: {what}; expected a video file")
    expected = "expected a video with at least one frame, such as mp4 with H.264"
    with open(path, "rb") as file:
        options = {"fd": str(file.fileno()), "protocol_whitelist": "fd"}
        try:
            with av.open("fd:", options=options, metadata_errors="replace") as container:
                stream = _picture(container)
                if stream is None:
                    raise InputError(f"{path}: got no moving picture; {expected}")
                yield container, stream
        except av.FFmpegError as error:
            raise InputError(f"{path}: could not be decoded ({error.strerror}); {expected}; if a "
                             f"player shows it, encode it again: {_mending(path)}") from error


def _picture(container):
    """The video stream that a player shows; covers and thumbnails are none."""
    best = container.streams.best("video")
    moving = [s for s in container.streams.video if not s.disposition & NO_PICTURES]
    return best if best in moving else next(iter(moving), None)


def _mending(path, filters=""):
    """The command that turns a file into one that can be read."""
    path = str(path) if Path(path).is_absolute() else f"./{path}"  # a name may begin with a dash
    name = shlex.quote(path)
    return f"ffmpeg -i {name} {filters}-c:v libx264 -crf 12 {shlex.quote(path + '_mended.mp4')}"


def _decoded(container, stream, packets):
    """Yield the decoded frames of a stream; its packets are noted in `packets`."""
    name = stream.codec_context.name
    decoder = stream
    if stream.metadata.get("alpha_mode") == "1" and name in WITH_ALPHA:
        decoder = av.CodecContext.create(WITH_ALPHA[name], "r")
    for packet in container.demux(stream):
        packets.note(packet)
        yield from decoder.decode(packet)


def _decoded_starts(path):
    """When each frame begins, in ticks, in the order shown; None for what the file does not say."""
    with _opened(path) as (container, stream):
        stream.thread_type = "AUTO"
        return [frame.pts for frame in _decoded(container, stream, _Packets())]


class _Packets:
    """What the packets of a stream say about its frames.

    read: how many there were. durations: {start: duration} of the frames, both in ticks.
    """

    def __init__(self):
        self.read = 0
        self.durations = {}
        self.clear = True

    def note(self, packet):
        self.read += packet.size > 0
        if packet.size and not packet.is_discard:  # an edit list discards frames
            self.clear &= packet.pts not in self.durations and packet.pts is not None
            self.durations[packet.pts] = packet.duration or 0

    def check_whole(self, path, stream):
        promised = len(stream.index_entries)
        if self.read < promised:
            raise InputError(f"{path}: promises {promised} frames, {self.read} are there (cut "
                             f"off?); keep these by {_mending(path)}")

    def starts(self, first):
        """When each frame begins, in ticks, if the first one decoded is `first`.

        What comes before it cannot be decoded. None where packets do not tell: they lack times, or
        may be halves of an interlaced frame.
        """
        if not self.clear or first is None or first.pts is None or first.interlaced_frame:
            return None
        return sorted(start for start in self.durations if start >= first.pts)


def _timing(stream, starts, durations):
    """(rate, VideoInfo's times) of frames that begin at `starts`, in ticks.

    The rate is constant if no frame is further away from it than rounding leaves it. Files are
    rounded to their ticks, and before to 1/600 or 1/1000 s, if they were converted from QuickTime
    or Matroska.
    """
    tick = stream.time_base
    rates = [rate for rate in (stream.guessed_rate, stream.average_rate) if rate]
    rates = rates or [25]  # as FFmpeg has it
    if None in starts or len(set(starts)) < len(starts):
        return _simple(rates[0]), None
    gap = Fraction(starts[-1] - starts[0], max(len(starts) - 1, 1))  # the mean, in ticks
    if gap:
        rates.append(1 / (gap * tick))
    rounding = math.gcd(*(start - starts[0] for start in starts))
    if not rounding or rounding * tick > Fraction(1, 500):
        rounding = 1
    for rate in map(_simple, rates):
        if _is_even(starts, 1 / (rate * tick), rounding):
            return rate, None
    end = starts[-1] + (durations.get(starts[-1]) or gap)
    times = tuple((start - starts[0]) * tick for start in [*starts, end])
    return _simple(len(starts) / times[-1]), times


def _simple(rate):
    return Fraction(rate).limit_denominator(1001)


def _is_even(starts, gap, rounding):
    """Whether frames begin `gap` ticks apart, to within `rounding`. In integers, which are fast."""
    limit = gap.denominator
    distances = (abs((start - starts[0]) * limit - number * gap.numerator)
                 for number, start in enumerate(starts))
    return max(distances) <= limit * rounding


class _Converter:
    """Turns the frames of a file into upright RGB. upright_size: height and width.

    Raises InputError for colours that would come out wrong, and for what is no quarter turn.
    """

    def __init__(self, path, first):
        _check_colours(path, first)
        self.flips, self.transposed = _quarter_turn(path, first)
        self.size = {"width": first.width, "height": first.height}
        self.upright_size = (first.height, first.width)[:: -1 if self.transposed else 1]
        parts = first.format.components
        alpha = first.format.has_palette or any(part.is_alpha for part in parts)
        self.format = "rgba" if alpha else "rgb24"
        self.method = Interpolation.BICUBIC  # the same bytes as OpenCV's, so as published
        if max(part.bits for part in parts) > 8:  # which would be up to 3 levels too dark
            self.method |= Interpolation.ACCURATE_RND | Interpolation.FULL_CHR_H_INT
        self.reformatter = VideoReformatter()

    def __call__(self, frame):
        """uint8 [H, W, 3]; a frame of another size than the first is scaled to it."""
        pixels = self.reformatter.reformat(frame, format=self.format, interpolation=self.method,
                                           **self.size).to_ndarray()
        if self.format == "rgba":
            product = pixels[..., :3] * pixels[..., 3:].astype(np.uint16)
            pixels = ((product + 127) // 255).astype(np.uint8)
        pixels = pixels.swapaxes(0, 1) if self.transposed else pixels
        return np.ascontiguousarray(pixels[self.flips])


def _check_colours(path, frame):
    said = "got {}; expected SDR with BT.709 or BT.601 primaries; convert it: {}"
    if frame.color_trc in HDR:
        said = said.format(f"HDR ({HDR[frame.color_trc]})", _mending(path, HDR_TO_709))
    elif Type.DOVI_METADATA in frame.side_data:
        said = said.format("Dolby Vision without another picture", _mending(path, DOLBY_TO_709))
    elif frame.color_primaries in WIDE:
        said = said.format(f"{WIDE[frame.color_primaries]} primaries", _mending(path, TO_709))
    else:
        return
    raise InputError(f"{path}: {said}")


def _quarter_turn(path, frame):
    """(slices that mirror rows and columns, whether they were swapped before), by a frame's tag."""
    tag = frame.side_data.get(Type.DISPLAYMATRIX)
    if tag is None:
        return (slice(None), slice(None)), False
    a, b, _, c, d = struct.unpack_from("=5i", bytes(tag))  # x' = a x + c y, y' = b x + d y
    transposed = abs(a) + abs(d) < abs(b) + abs(c)
    if transposed:
        a, b, c, d = c, d, a, b
    if abs(b) + abs(c) > 0.02 * (abs(a) + abs(d)):  # about one degree
        raise InputError(f"{path}: is to be turned by an angle that is no quarter turn; write it "
                         f"turned: {_mending(path)}")
    rows, columns = (slice(None, None, -1 if number < 0 else 1) for number in (d, a))
    return (rows, columns), transposed


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

    If info has times, no more frames than it counts can be written.
    crf 1 and up is 4:2:0, which browsers play; crf 0 is 4:4:4 without coding loss. Odd sizes are
    always 4:4:4. tags: a dict, kept as JSON in the file, which made_of() reads. audio: a video; its
    sound is copied, from its first picture on and as long as info says. Where mp4 cannot hold the
    codec, it is encoded as stereo AAC. Leaving by an exception leaves no file. Raises OSError if
    the file cannot be written.
    """

    def __init__(self, path, info, crf=10, mask=False, tags=None, audio=None):
        self.path = Path(path)
        self.part = Path(f"{path}.part")
        self.pixels = "gray" if mask else "rgb24"
        self.matrix = "bt601" if info.matrix == "bt601" else "bt709"
        self.reformatter = VideoReformatter()
        self.info = info
        self.audio = audio
        self.count = 0
        self.path.parent.mkdir(parents=True, exist_ok=True)
        # All sound comes before the pictures, and waits for them however long it is.
        options = {"movflags": "faststart", "max_interleave_delta": "0"}
        with self._clear_errors():
            self.container = av.open(f"file:{self.part}", "w", "mp4", options)
        if tags is not None:
            self.container.metadata["comment"] = json.dumps(tags)
        self.stream = self._add_stream(info, crf)

    def _add_stream(self, info, crf):
        fps = Fraction(info.fps)
        tick = 1 / fps
        if info.times:
            tick = Fraction(1, math.lcm(*{moment.denominator for moment in info.times}))
        # x264's AVX-512 code for mbtree makes another file of the same pictures each time.
        options = {"crf": str(crf), "threads": "auto", "mbtree": "0"}
        if info.times:
            options.update(flags="+frame_duration", bf="0")  # mp4 has the gaps of decoding times
        size = {"width": info.width, "height": info.height}
        stream = self.container.add_stream("libx264", fps, options, time_base=tick, **size)
        codec = stream.codec_context
        if info.pixel_aspect != 1:
            codec.sample_aspect_ratio = info.pixel_aspect
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
        if self.audio:
            self._mux_sound()
        codec = self.stream.codec_context
        colour = {"dst_colorspace": MATRIX_NAMES[self.matrix], "dst_color_range": LIMITED_RANGE}
        for pixels in frames:
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(pixels), self.pixels)
            frame.pts = self._ticks(self.count)
            if self.info.times:
                frame.duration = self._ticks(self.count + 1) - frame.pts
            frame.time_base = codec.time_base
            self.count += 1
            with self._clear_errors():
                yuv = self.reformatter.reformat(frame, format=codec.pix_fmt,
                                                interpolation="BICUBIC", **colour)
                self.container.mux(self.stream.encode(yuv))

    def _mux_sound(self):
        end = self.info.times[-1] if self.info.times else self.info.frames / Fraction(self.info.fps)
        packets = _sound(self.audio, end, self.container)
        self.audio = None
        with self._clear_errors():
            self.container.mux(packets)

    def _ticks(self, number):
        """When a frame begins, in the encoder's time base."""
        times = self.info.times
        return int(times[number] / self.stream.codec_context.time_base) if times else number

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


def _sound(path, end, container):
    """The packets of a video's sound for another container, to which its streams are added.

    That is what is heard in the first `end` seconds from its first picture on.
    """
    with _opened(path) as (source, pictures):
        first = next(source.decode(pictures))
        start = first.time_base * (first.pts or 0)
    packets, encoded = [], {}
    with _opened(path) as (source, _):
        sounds = source.streams.audio
        copied = {s.index: container.add_stream_from_template(s) for s in sounds if _fits_mp4(s)}
        for sound in sounds:
            if not _fits_mp4(sound):
                encoded[sound.index] = container.add_stream("aac", sound.rate, layout="stereo")
        for packet in source.demux(list(sounds)):
            if packet.stream_index in encoded:
                for frame in packet.decode():
                    if _moved(frame, start, end):
                        packets += encoded[packet.stream_index].encode(frame)
            elif packet.size and _moved(packet, start, end):
                packet.stream = copied[packet.stream_index]
                packets.append(packet)
    for track in encoded.values():
        packets += track.encode()
    return packets


def _fits_mp4(sound):
    return sound.codec_context.codec.canonical_name in MP4_SOUND


def _moved(piece, start, end):
    """Let a packet or frame of sound begin `start` seconds earlier; whether it is still heard."""
    begin = piece.pts * piece.time_base - start
    piece.pts = piece.dts = round(begin / piece.time_base)
    return -piece.duration * piece.time_base <= begin < end  # = : an encoder starts with silence


def write_video(path, frames, info, crf=10, tags=None):
    """Write uint8 [F, H, W, 3] RGB at info's rate and matrix; the size is that of the frames.

    Its times are kept if they are as many.
    """
    times = info.times if len(frames) == info.frames else None
    height, width = frames.shape[1:3]
    info = replace(info, frames=len(frames), height=height, width=width, times=times)
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
