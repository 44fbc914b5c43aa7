import os
import resource
import signal
import struct
import threading
import time
import wave
from fractions import Fraction

import av
import cv2
import numpy as np
import pytest

from utils import video
from utils.cli import InputError


def clip(frames=5, height=48, width=64):
    """Smooth moving colours, uint8."""
    size = np.array([frames, height, width]).reshape(3, 1, 1, 1)
    t, y, x = np.mgrid[:frames, :height, :width] / size
    return (np.stack([x, y, (x + y + t) / 3], -1) * 255).astype(np.uint8)


def info(frames, fps=24, matrix="bt709"):
    return video.VideoInfo(len(frames), *frames.shape[1:3], Fraction(fps), matrix)


def header(path):
    """Pixel format, profile and the numbers of matrix, primaries, transfer and range of a file."""
    with av.open(str(path)) as container:
        codec = container.streams.video[0].codec_context
        colour = codec.colorspace, codec.color_primaries, codec.color_trc, codec.color_range
        return codec.pix_fmt, codec.profile, *colour


def encode(path, frames, **settings):
    """Write a file as another program would, with settings of PyAV's encoder; returns it."""
    with av.open(str(path), "w") as container:
        container.metadata.update(settings.pop("metadata", {}))
        stream = container.add_stream(settings.pop("codec", "libx264"), 25)
        stream.height, stream.width = frames.shape[1:3]
        for name, value in settings.items():
            setattr(stream.codec_context, name, value)
        for pixels in frames:
            frame = av.VideoFrame.from_ndarray(pixels, "rgb24")
            container.mux(stream.encode(frame.reformat(format=stream.codec_context.pix_fmt)))
        container.mux(stream.encode())
    return path


def opencv(path):
    """All frames as the published code reads them."""
    capture = cv2.VideoCapture(str(path))
    frames = []
    while (got := capture.read())[0]:
        frames.append(got[1][..., ::-1])
    return np.stack(frames)


@pytest.mark.parametrize("matrix", ["bt601", "bt709"])
def test_crf_0_is_444_and_within_2_of_255(tmp_path, matrix):
    frames = np.random.default_rng(0).integers(0, 256, (3, 48, 64, 3), np.uint8)
    video.write_video(tmp_path / "a.mp4", frames, info(frames, matrix=matrix), crf=0)
    assert np.abs(video.read_video(tmp_path / "a.mp4").astype(int) - frames).max() <= 2
    assert header(tmp_path / "a.mp4")[0] == "yuv444p"


@pytest.mark.parametrize("matrix, tag", [("bt601", 6), ("bt709", 1), ("bt2020", 1)])
def test_colours_are_tagged_and_come_back(tmp_path, matrix, tag):
    red = np.full((3, 72, 128, 3), (198, 30, 40), np.uint8)
    video.write_video(tmp_path / "a.mp4", red, info(red, matrix=matrix))
    assert header(tmp_path / "a.mp4") == ("yuv420p", "High", tag, tag, tag, video.LIMITED_RANGE)
    assert video.probe(tmp_path / "a.mp4").matrix == ("bt601" if matrix == "bt601" else "bt709")
    assert np.abs(video.read_video(tmp_path / "a.mp4").astype(int) - red).max() <= 3


@pytest.mark.parametrize("settings, matrix", [
    ({}, "bt601"),
    ({"colorspace": 1}, "bt709"),
    ({"colorspace": 6}, "bt601"),
    ({"colorspace": 9}, "bt2020"),
    ({"color_primaries": 1, "color_trc": 1}, "bt601"),  # an unknown matrix beside known primaries
    ({"metadata": {"title": "Video: bt2020nc"}}, "bt601"),
    ({"colorspace": 1, "color_range": 2}, "bt709"),
    ({"colorspace": 7}, "bt601"),  # SMPTE 240M, which has no name here, is decoded as what it is
    ({"pix_fmt": "yuv444p", "colorspace": 1}, "bt709"),
    ({"pix_fmt": "yuvj420p"}, "bt601"),
])
def test_pixels_are_those_that_opencv_reads(tmp_path, settings, matrix):
    path = encode(tmp_path / "a.mp4", clip(), **settings)
    assert video.probe(path).matrix == matrix
    assert np.array_equal(video.read_video(path), opencv(path))


def turned(path, *matrix):
    """Give a file the display matrix (a, b, c, d): x' = a x + c y, y' = b x + d y."""
    a, b, c, d = (number << 16 for number in matrix)
    data = bytearray(path.read_bytes())
    identity = struct.pack(">9i", 1 << 16, 0, 0, 0, 1 << 16, 0, 0, 0, 1 << 30)
    at = data.rindex(identity)  # of the track; the one before is the movie's
    data[at : at + 36] = struct.pack(">9i", a, b, 0, c, d, 0, 0, 0, 1 << 30)
    path.write_bytes(data)


@pytest.mark.parametrize("matrix, upright", [
    ((0, 1, -1, 0), lambda f: np.rot90(f, -1, (1, 2))),
    ((0, -1, 1, 0), lambda f: np.rot90(f, 1, (1, 2))),
    ((-1, 0, 0, -1), lambda f: f[:, ::-1, ::-1]),
    ((-1, 0, 0, 1), lambda f: f[:, :, ::-1]),
    ((0, 1, 1, 0), lambda f: f.swapaxes(1, 2)),
])
def test_frames_are_turned_as_the_tag_asks(tmp_path, matrix, upright):
    frames = clip()
    video.write_video(tmp_path / "a.mp4", frames, info(frames))
    expected = upright(video.read_video(tmp_path / "a.mp4"))
    turned(tmp_path / "a.mp4", *matrix)
    assert np.array_equal(video.read_video(tmp_path / "a.mp4"), expected)
    found = video.probe(tmp_path / "a.mp4")
    assert (found.height, found.width) == expected.shape[1:3]


@pytest.mark.parametrize("fps", [
    Fraction(30000, 1001), Fraction(24000, 1001), Fraction(20), Fraction(25, 2), Fraction(1, 3),
])
def test_size_length_and_rate_come_back_exactly(tmp_path, fps):
    frames = clip(7, 46, 62)
    video.write_video(tmp_path / "a.mp4", frames, info(frames, fps))
    assert video.probe(tmp_path / "a.mp4") == video.VideoInfo(7, 46, 62, fps, "bt709")
    assert len(video.read_video(tmp_path / "a.mp4")) == 7
    assert video.read_video(tmp_path / "a.mp4", 3).shape == (3, 46, 62, 3)
    assert [len(chunk) for chunk in video.iter_chunks(tmp_path / "a.mp4", 3)] == [3, 3, 1]


@pytest.mark.parametrize("height, width", [(48, 64), (47, 63)])
def test_a_mask_comes_back_exactly(tmp_path, height, width):
    rng = np.random.default_rng(0)
    mask = np.concatenate([rng.random((4, height, width)) < share for share in (0.02, 0.5, 0.98)])
    shape = info(mask[..., None])
    with video.VideoWriter(tmp_path / "m.mp4", shape, mask=True) as writer:
        writer.write(mask[:5])
        writer.write(mask[5:])
    assert np.array_equal(video.read_mask(tmp_path / "m.mp4"), mask)
    assert header(tmp_path / "m.mp4")[0] == ("yuv444p" if width % 2 else "yuv420p")


def test_a_writer_that_fails_leaves_nothing(tmp_path):
    frames = clip()
    with pytest.raises(RuntimeError), video.VideoWriter(tmp_path / "a.mp4", info(frames)) as writer:
        writer.write(frames)
        raise RuntimeError
    assert list(tmp_path.iterdir()) == []


def test_a_file_stays_beside_its_name_until_the_writer_is_left(tmp_path):
    frames = clip()
    (tmp_path / "a.mp4").write_bytes(b"old")
    with video.VideoWriter(tmp_path / "a.mp4", info(frames)) as writer:
        writer.write(frames)
        writer.finish()
        assert (tmp_path / "a.mp4").read_bytes() == b"old"
        assert video.probe(tmp_path / "a.mp4.part") == info(frames)
    assert [p.name for p in tmp_path.iterdir()] == ["a.mp4"]
    assert video.probe(tmp_path / "a.mp4") == info(frames)


def test_what_cannot_be_written_is_one_line_and_leaves_nothing(tmp_path, capfd):
    """A file may grow to 1 KB here, as on a full disk."""
    frames = np.random.default_rng(0).integers(0, 256, (60, 96, 128, 3), np.uint8)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1024, limits[1]))
    try:
        with pytest.raises(OSError, match="a.mp4: could not be written: ") as error:
            video.write_video(tmp_path / "a.mp4", frames, info(frames))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, before)
    assert "\n" not in str(error.value) and list(tmp_path.iterdir()) == []
    assert capfd.readouterr() == ("", "")


def test_a_file_says_what_it_was_made_of(tmp_path):
    frames = clip()
    tags = {"render": "ab12", "mask": None, "settings": {"steps": 50, "fit": "gefüllt"}}
    video.write_video(tmp_path / "a.mp4", frames, info(frames), tags=tags)
    video.write_video(tmp_path / "b.mp4", frames, info(frames))
    encode(tmp_path / "c.mp4", frames, metadata={"comment": "holidays"})
    encode(tmp_path / "d.mp4", frames, metadata={"comment": "5"})
    (tmp_path / "e.mp4").write_bytes(b"no video")
    assert video.made_of(tmp_path / "a.mp4") == tags
    for name in "bcdef":
        assert video.made_of(tmp_path / f"{name}.mp4") is None
    pixels = [video.read_video(tmp_path / f"{name}.mp4") for name in "ab"]
    assert np.array_equal(*pixels)


def test_a_name_is_a_local_file_whatever_it_looks_like(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    frames = clip()
    for name in ("-i.mp4", "http:a.mp4", "100%d é [1].mp4"):
        video.write_video(name, frames, info(frames))
        assert video.probe(name) == info(frames)
    assert len(os.listdir()) == 3


def test_16_bit_grey_comes_back_exactly(tmp_path):
    depth = np.random.default_rng(0).integers(0, 1 << 16, (4, 20, 30), np.uint16)
    with av.open(str(tmp_path / "d.mkv"), "w") as container:
        stream = container.add_stream("ffv1", 10, width=30, height=20)
        stream.pix_fmt = "gray16le"
        for pixels in depth:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, "gray16le")))
        container.mux(stream.encode())
    assert np.array_equal(video.read_grey16(tmp_path / "d.mkv"), depth)
    encode(tmp_path / "a.mp4", clip())
    with pytest.raises(InputError, match="a.mp4: its pixels are yuv420p; expected 16-bit grey"):
        video.read_grey16(tmp_path / "a.mp4")


def test_what_is_no_video_is_refused(tmp_path):
    (tmp_path / "a.mp4").write_bytes(b"no video")
    (tmp_path / "c.mp4").write_bytes(b"")
    with wave.open(str(tmp_path / "sound.mp4"), "wb") as sound:
        sound.setparams((1, 2, 8000, 0, "NONE", ""))
        sound.writeframes(bytes(8000))
    for name in ("a.mp4", "b.mp4", "c.mp4", "sound.mp4"):
        with pytest.raises(InputError, match=name):
            video.probe(tmp_path / name)


def test_frames_are_found_by_number(tmp_path):
    frames = clip(7)
    video.write_video(tmp_path / "a.mp4", frames, info(frames))
    whole = video.read_video(tmp_path / "a.mp4")
    indices = np.array([5, 0, 5, 2])
    assert np.array_equal(video.read_frames(tmp_path / "a.mp4", indices), whole[indices])


def test_length_is_cut_or_filled_with_the_last_frame():
    frames = np.arange(3)
    assert video.fit_length(frames, 2).tolist() == [0, 1]
    assert video.fit_length(frames, 5).tolist() == [0, 1, 2, 2, 2]


def test_resize_averages_areas_and_keeps_what_fits():
    frames = clip(2, 48, 64)
    assert video.resize(frames, 48, 64) is frames
    halves = frames.reshape(2, 24, 2, 32, 2, 3).mean((2, 4))
    assert np.abs(video.resize(frames, 24, 32) - halves).max() <= 0.5
    assert video.resize(frames, 96, 128).shape == (2, 96, 128, 3)


def test_a_file_that_is_cut_off_is_an_error(tmp_path):
    frames = np.random.default_rng(0).integers(0, 256, (30, 96, 128, 3), np.uint8)
    video.write_video(tmp_path / "a.mp4", frames, info(frames), crf=20)
    whole = (tmp_path / "a.mp4").read_bytes()  # the header comes first
    for kept, message in ((len(whole) // 2, "promises 30 frames"), (3000, "could not be decoded")):
        (tmp_path / "a.mp4").write_bytes(whole[:kept])
        with pytest.raises(InputError, match=f"a.mp4: .*{message}"):
            video.read_video(tmp_path / "a.mp4")


def test_an_item_is_made_while_the_one_before_is_used():
    made = [threading.Event() for _ in range(3)]

    def items():
        for number, event in enumerate(made):
            event.set()
            yield number
        raise InputError("no more")

    taken = video.ahead(items())
    assert next(taken) == 0 and made[1].wait(10) and not made[2].is_set()
    assert [next(taken), next(taken)] == [1, 2]
    with pytest.raises(InputError, match="no more"):
        next(taken)


@pytest.mark.parametrize("threads", [1, 4])
def test_results_come_in_order_and_no_more_than_the_threads_are_made(threads):
    taken = []

    def items():
        for number in range(12):
            taken.append(number)
            yield number

    def slow_then_fast(number):
        time.sleep(0.02 * (number % 3 == 0))
        return number**2

    results = video.ahead(items(), slow_then_fast, threads)
    assert next(results) == 0
    time.sleep(0.2)
    assert len(taken) == threads + 1
    assert list(results) == [number**2 for number in range(1, 12)]


def test_what_goes_wrong_in_a_thread_is_raised():
    def fail(number):
        raise InputError(f"item {number}")

    with pytest.raises(InputError, match="item 0"):
        list(video.ahead(range(3), fail, 2))


@pytest.mark.parametrize("suffix", ["mkv", "ts"])
def test_sound_that_is_longer_than_the_pictures_adds_none(tmp_path, suffix):
    """Files without a frame count in their header, whose length is that of the sound."""
    path = tmp_path / f"long.{suffix}"
    with av.open(str(path), "w") as file:
        picture = file.add_stream("libx264", 24, width=96, height=64, pix_fmt="yuv420p")
        sound = file.add_stream("aac", 44100)
        for value in range(48):
            pixels = np.full((64, 96, 3), 5 * value, np.uint8)
            file.mux(picture.encode(av.VideoFrame.from_ndarray(pixels, "rgb24")))
        file.mux(picture.encode())
        for number in range(100):  # 2.3 s beside 2 s
            frame = av.AudioFrame.from_ndarray(np.zeros((2, 1024), np.float32), "fltp", "stereo")
            frame.sample_rate = 44100
            frame.pts = 1024 * number
            file.mux(sound.encode(frame))
        file.mux(sound.encode())
    assert video.probe(path).frames == 48 == len(video.read_video(path))
