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
from av.stream import Disposition
from conftest import ROOT

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
    """Write a file as another program would, with settings of PyAV's encoder; returns it.

    ticks: when each frame begins, in 1/time_base. sound: seconds of it, in `sound_codec`.
    """
    with av.open(str(path), "w") as container:
        container.metadata.update(settings.pop("metadata", {}))
        rate, codec = settings.pop("rate", 25), settings.pop("codec", "libx264")
        options = {"mbtree": "0"} if codec == "libx264" else {}  # see VideoWriter._add_stream
        stream = container.add_stream(codec, rate, options | settings.pop("options", {}))
        stream.height, stream.width = frames.shape[1:3]
        ticks = settings.pop("ticks", range(len(frames)))
        tick = settings.pop("tick", 1 / Fraction(rate))
        turn, seconds = settings.pop("turn", None), settings.pop("sound", 0)
        beeps = container.add_stream(settings.pop("sound_codec", "aac"), 48000) if seconds else None
        if turn is not None:
            stream.set_display_rotation(turn)
        for name, value in {"time_base": tick, **settings}.items():
            setattr(stream.codec_context, name, value)
        layout = {3: "rgb24", 4: "rgba"}[frames.shape[3]]
        wanted = {"format": stream.codec_context.pix_fmt, "interpolation": 4 | 1 << 13 | 1 << 18}
        if stream.codec_context.colorspace == 1:
            wanted["dst_colorspace"] = "ITU709"
        wanted["dst_color_range"] = settings.get("color_range")
        for pixels, at in zip(frames, ticks, strict=True):
            frame = av.VideoFrame.from_ndarray(pixels, layout).reformat(**wanted)
            frame.pts, frame.time_base = at, tick
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
        if beeps:
            for frame in beep(seconds):
                container.mux(beeps.encode(frame))
            container.mux(beeps.encode())
    return path


def beep(seconds):
    """Yield AudioFrames that sound in the first 20 ms of every second."""
    time = np.arange(int(48000 * seconds)) / 48000
    sound = np.where(time % 1 < 0.02, np.sin(6283 * time), 0).astype(np.float32)
    for start in range(0, len(sound), 1024):
        piece = sound[start : start + 1024]
        frame = av.AudioFrame.from_ndarray(np.stack([piece, piece]), "fltp", "stereo")
        frame.sample_rate = 48000
        frame.pts = start
        yield frame


def remux(source, path, shift=0, drop=0):
    """Copy the packets of a file's streams as ffmpeg -c copy does, without the first `drop`.

    Everything begins `shift` seconds earlier.
    """
    with av.open(str(source)) as read, av.open(str(path), "w") as write:
        copies = [write.add_stream_from_template(stream) for stream in read.streams]
        for number, packet in enumerate(read.demux()):
            if packet.size and number >= drop:
                packet.pts -= int(shift / packet.time_base)
                packet.dts -= int(shift / packet.time_base)
                packet.stream = copies[packet.stream_index]
                write.mux(packet)
    return path


def beeps_heard(path):
    """When a beep begins in a file, in seconds from its first picture."""
    with av.open(str(path)) as container:
        start = next(container.decode(video=0)).time
    heard = []
    to_floats = av.AudioResampler("fltp")
    with av.open(str(path)) as container:
        for frame in container.decode(audio=0):
            sound = to_floats.resample(frame)[0].to_ndarray()[0]
            for sample in np.flatnonzero(np.abs(sound) > 0.3):
                at = frame.time + sample / frame.sample_rate - start
                heard += [at] if not heard or at > heard[-1] + 0.5 else []
    return heard


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


@pytest.mark.parametrize("suffix", ["mp4", "mov", "mkv", "ts", "flv"])
def test_frames_are_counted_where_a_header_does_not(tmp_path, suffix):
    rate = Fraction(30000, 1001)
    source = encode(tmp_path / "source.mp4", clip(30), rate=rate, options={"bf": "3", "g": "12"})
    path = remux(source, tmp_path / f"a.{suffix}")
    found = video.probe(path)
    assert found.frames == 30 == len(video.read_video(path))
    assert found.fps == rate and found.times is None


def test_a_header_that_counts_more_frames_is_not_believed(tmp_path):
    path = encode(tmp_path / "a.avi", clip(30), codec="mpeg4")
    data = bytearray(path.read_bytes())
    struct.pack_into("<I", data, data.index(b"strh") + 40, 60)  # dwLength
    path.write_bytes(data)
    assert video.probe(path).frames == 30 == len(video.read_video(path))


@pytest.mark.parametrize("suffix", ["mp4", "mov"])
def test_what_an_edit_list_hides_is_not_there(tmp_path, suffix):
    """As ffmpeg -ss 0.6 -c copy writes it: the frames before are kept, to decode the others."""
    source = encode(tmp_path / "a.mp4", clip(40), options={"bf": "3", "g": "40"})
    path = remux(source, tmp_path / f"b.{suffix}", shift=0.6)
    assert video.probe(path) == video.replace(video.probe(source), frames=25)
    assert np.array_equal(video.read_video(path), video.read_video(source)[15:])


@pytest.mark.parametrize("suffix", ["ts", "mkv"])
def test_frames_that_lack_those_they_need_do_not_count(tmp_path, suffix):
    """A file that begins at an open group of pictures, as one cut from a broadcast does."""
    options = {"x264-params": "open-gop=1:keyint=10:min-keyint=10:bframes=3:scenecut=0:b-adapt=0"}
    noise = np.random.default_rng(0).integers(0, 256, (40, 48, 64, 3), np.uint8)
    source = encode(tmp_path / f"a.{suffix}", noise, options=options)
    path = remux(source, tmp_path / f"b.{suffix}", drop=10)
    with av.open(str(path)) as container:
        packets = sum(packet.size > 0 for packet in container.demux(video=0))
    frames = video.read_video(path)
    assert video.probe(path).frames == len(frames) < packets
    assert np.array_equal(frames, video.read_video(source)[-len(frames):])


def test_packets_that_show_nothing_are_an_error(tmp_path):
    """The picture in the middle of an mp4 is no picture, so 9 of 10 can be decoded."""
    path = encode(tmp_path / "a.mp4", clip(10), codec="png", pix_fmt="rgb24")
    data = path.read_bytes()
    at = data.index(b"IDAT", len(data) // 2)
    path.write_bytes(data[:at] + b"XXXX" + data[at + 4 :])
    with pytest.raises(InputError, match="a.mp4: .*encode it again: ffmpeg -i .*a.mp4"):
        video.read_video(path)


@pytest.mark.parametrize("suffix, tick", [
    ("mp4", Fraction(1, 600)), ("mkv", Fraction(1, 1000)), ("mov", Fraction(1, 90000)),
])
def test_times_of_a_varying_rate_are_kept(tmp_path, suffix, tick):
    gaps = [20, 20, 40, 20, 100, 60, 20, 60]
    ticks = [int(at) for at in np.cumsum([0, *gaps])]
    path = encode(tmp_path / f"a.{suffix}", clip(9), tick=tick, ticks=ticks)
    found = video.probe(path)
    assert found.times[:9] == tuple(at * tick for at in ticks)
    assert found.times[9] > found.times[8]
    video.write_video(tmp_path / "b.mp4", video.read_video(path), found)
    assert video.probe(tmp_path / "b.mp4") == found
    with av.open(str(tmp_path / "b.mp4")) as container:
        shown = [Fraction(f.pts) * f.time_base for f in container.decode(video=0)]
    assert shown == list(found.times[:9])
    video.write_video(tmp_path / "c.mp4", clip(9), found.at_rate(12))
    constant = video.probe(tmp_path / "c.mp4")
    assert constant.times is None and constant.fps == 12


@pytest.mark.parametrize("rate", [Fraction(30000, 1001), Fraction(24000, 1001), Fraction(30)])
@pytest.mark.parametrize("suffix, per_second", [
    ("mp4", 600), ("mkv", 1000), ("ts", 1000), ("ts", 90000),
])
def test_rounded_times_are_a_constant_rate(tmp_path, rate, suffix, per_second):
    ticks = [round(number * per_second / rate) for number in range(60)]
    tick = Fraction(1, per_second)
    path = encode(tmp_path / f"a.{suffix}", clip(60, 16, 16), rate=rate, tick=tick, ticks=ticks)
    found = video.probe(path)
    assert found.times is None and found.fps == rate


def test_a_dropped_frame_is_no_constant_rate(tmp_path):
    ticks = [number for number in range(30) if number != 20]
    found = video.probe(encode(tmp_path / "a.mp4", clip(29), ticks=ticks))
    assert found.times[20] == Fraction(21, 25)


@pytest.mark.parametrize("suffix", ["mp4", "mkv"])
@pytest.mark.parametrize("turn", [90, 180, 270])
def test_a_turn_is_read_from_every_container(tmp_path, suffix, turn):
    frames = clip()
    upright = video.read_video(encode(tmp_path / f"a.{suffix}", frames))
    path = encode(tmp_path / f"b.{suffix}", frames, turn=turn)
    assert np.array_equal(video.read_video(path), np.rot90(upright, turn // 90, (1, 2)))


def test_a_turn_by_another_angle_is_refused(tmp_path):
    path = encode(tmp_path / "a.mp4", clip(), turn=30)
    for read in (video.probe, video.read_video):
        with pytest.raises(InputError, match="no quarter turn; write it turned: ffmpeg -i"):
            read(path)


@pytest.mark.parametrize("suffix", ["mp4", "mkv", "ts"])
def test_the_shape_of_pixels_is_kept(tmp_path, suffix):
    aspect = Fraction(16, 11)
    path = encode(tmp_path / f"a.{suffix}", clip(), sample_aspect_ratio=aspect)
    found = video.probe(path)
    assert found.pixel_aspect == aspect
    with video.VideoWriter(tmp_path / "b.mp4", found) as writer:
        writer.write(clip())
    assert video.probe(tmp_path / "b.mp4").pixel_aspect == aspect
    if suffix != "ts":
        turned = encode(tmp_path / f"c.{suffix}", clip(), sample_aspect_ratio=aspect, turn=90)
        assert video.probe(turned).pixel_aspect == 1 / aspect


@pytest.mark.parametrize("colours, said", [
    ({"color_trc": 16, "color_primaries": 9, "colorspace": 9}, r"HDR \(PQ\).*tonemap=mobius"),
    ({"color_trc": 18, "color_primaries": 9, "colorspace": 9}, r"HDR \(HLG\).*tonemap=mobius"),
    ({"color_trc": 14, "color_primaries": 9, "colorspace": 9}, "BT.2020 .*zscale=p=bt709"),
    ({"color_trc": 1, "color_primaries": 12, "colorspace": 1}, "Display P3 .*zscale=p=bt709"),
])
def test_colours_that_would_come_out_wrong_are_refused_with_what_converts_them(
    tmp_path, colours, said
):
    path = encode(tmp_path / "a.mp4", clip(), pix_fmt="yuv420p10le", **colours)
    for read in (video.probe, video.read_video):
        with pytest.raises(InputError, match=f"a.mp4: got {said}.*a.mp4_mended.mp4") as error:
            read(path)
        assert "\n" not in str(error.value)


@pytest.mark.parametrize("name, settings, error", [
    ("a.mp4", {"pix_fmt": "yuv420p10le", "colorspace": 1, "color_range": 1}, 1),
    ("a.mp4", {"pix_fmt": "yuv422p10le", "colorspace": 1, "color_range": 2}, 1),
    ("a.mp4", {"pix_fmt": "yuv420p", "colorspace": 1, "color_range": 2}, 2),
    ("a.mov", {"codec": "prores_ks", "pix_fmt": "yuv422p10le", "colorspace": 1}, 1),
    ("a.mkv", {"codec": "ffv1", "pix_fmt": "yuv420p12le", "colorspace": 1}, 1),
    ("a.mkv", {"codec": "ffv1", "pix_fmt": "gbrp10le"}, 0),
    ("a.mov", {"codec": "qtrle", "pix_fmt": "rgb24"}, 0),
    ("a.gif", {"codec": "gif", "pix_fmt": "bgr8"}, 36),  # its palette has 8 levels of red
    ("a.mp4", {"codec": "libx264rgb", "pix_fmt": "rgb24"}, 1),
])
def test_colours_of_every_kind_of_file_are_right(tmp_path, name, settings, error):
    patches = np.array([[220, 30, 30], [30, 200, 30], [200, 150, 120], [255, 255, 255]], np.uint8)
    frames = np.broadcast_to(patches.repeat(32, 0), (2, 32, 128, 3))
    options = {"crf": "1"} if "264" in settings.get("codec", "libx264") else {}
    path = encode(tmp_path / name, np.ascontiguousarray(frames), options=options, **settings)
    found = video.read_video(path)[:, 16, 16::32].astype(int)
    assert np.abs(found - patches).max() <= error


@pytest.mark.parametrize("suffix, settings", [
    ("mov", {"codec": "qtrle", "pix_fmt": "argb"}),
    ("mov", {"codec": "png", "pix_fmt": "rgba"}),
    ("mov", {"codec": "prores_ks", "pix_fmt": "yuva444p10le", "colorspace": 1}),
    ("webm", {"codec": "libvpx-vp9", "pix_fmt": "yuva420p", "colorspace": 1}),
])
def test_transparent_pixels_are_shown_over_black(tmp_path, suffix, settings):
    frames = np.full((2, 32, 48, 4), (200, 100, 50, 102), np.uint8)
    path = encode(tmp_path / f"a.{suffix}", frames, **settings)
    assert np.abs(video.read_video(path).astype(int) - (80, 40, 20)).max() <= 3


def test_covers_and_second_pictures_are_not_the_video(tmp_path):
    small, large = clip(1), clip(1, 480, 640)
    encode(tmp_path / "a.mp4", small)
    encode(tmp_path / "cover.mp4", large, codec="png", pix_fmt="rgb24")
    for name, order in (("b.mp4", ("cover", "a")), ("c.mp4", ("cover",))):
        with av.open(str(tmp_path / name), "w") as write:
            for source in order:
                with av.open(str(tmp_path / f"{source}.mp4")) as read:
                    copy = write.add_stream_from_template(read.streams.video[0])
                    copy.disposition = 1 if source == "a" else Disposition.attached_pic
            for source, copy in zip(order, write.streams, strict=True):
                with av.open(str(tmp_path / f"{source}.mp4")) as read:
                    for packet in read.demux(video=0):
                        packet.stream = copy
                        write.mux([packet] if packet.size else [])
    assert video.probe(tmp_path / "b.mp4") == video.probe(tmp_path / "a.mp4")
    with pytest.raises(InputError, match="no moving picture"):
        video.probe(tmp_path / "c.mp4")


def test_names_of_any_bytes_are_read_and_written(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    frames = clip()
    names = [os.fsdecode(b"caf\xe9.mp4"), "%03d.mp4", "a'b\"c.mp4", "a\nb.mp4", "fd:", "-"]
    for name in names:
        video.write_video(name, frames, info(frames))
        assert video.probe(name) == info(frames)
        data = (tmp_path / name).read_bytes()
        assert data.index(b"moov") < data.index(b"mdat")  # faststart
    assert sorted(os.listdir()) == sorted(names)


def test_a_playlist_reaches_no_other_file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    encode(tmp_path / "real.ts", clip())
    head = "#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:9,\n"
    files = {
        "a.ffconcat": "ffconcat version 1.0\nfile real.ts\n",
        "b.m3u8": f"{head}real.ts\n#EXT-X-ENDLIST\n",
        "c.m3u8": f"{head}file://{tmp_path}/real.ts\n#EXT-X-ENDLIST\n",
        "d.m3u8": f"{head}/etc/passwd\n#EXT-X-ENDLIST\n",
        "e.sdp": "v=0\nc=IN IP4 127.0.0.1\nm=video 5004 RTP/AVP 96\na=rtpmap:96 H264/90000\n",
    }
    for name, words in files.items():
        (tmp_path / name).write_text(words)
        with pytest.raises(InputError, match=f"{name}: could not be decoded"):
            video.probe(name)


def test_browsers_play_h264_of_420_in_mp4(tmp_path):
    frames = clip()
    for name, crf in (("a.mp4", 10), ("exact.mp4", 0)):
        video.write_video(tmp_path / name, frames, info(frames), crf)
        assert video.is_playable(tmp_path / name) == (crf > 0)
    for name, codec in (("a.avi", "libx264"), ("b.mp4", "mpeg4")):
        assert not video.is_playable(encode(tmp_path / name, frames, codec=codec))
    (tmp_path / "none.mp4").write_text("x")
    with pytest.raises(InputError, match="could not be decoded"):
        video.is_playable(tmp_path / "none.mp4")


def test_what_is_no_file_is_refused_at_once(tmp_path):
    os.mkfifo(tmp_path / "a.mp4")
    for path in (tmp_path / "a.mp4", tmp_path, "/dev/zero"):
        with pytest.raises(InputError, match="no regular file"):
            video.probe(path)


def test_tags_in_another_encoding_are_no_obstacle(tmp_path):
    path = encode(tmp_path / "a.mp4", clip(), metadata={"title": "caf1 caf1"})
    path.write_bytes(path.read_bytes().replace(b"caf1", b"caf\xe9"))
    assert video.probe(path).frames == 5
    assert video.made_of(path) is None


@pytest.mark.parametrize("height, width, frames", [(1, 1, 1), (3, 2, 2), (1, 7, 1)])
def test_the_smallest_videos_come_back(tmp_path, height, width, frames):
    pixels = np.full((frames, height, width, 3), (200, 30, 40), np.uint8)
    video.write_video(tmp_path / "a.mp4", pixels, info(pixels))
    assert video.probe(tmp_path / "a.mp4") == info(pixels)
    assert np.abs(video.read_video(tmp_path / "a.mp4").astype(int) - pixels).max() <= 3


@pytest.mark.parametrize("suffix, codec, copied", [
    ("mp4", "aac", True), ("ts", "ac3", True), ("mkv", "libopus", True), ("mkv", "flac", True),
    ("mov", "pcm_s16le", False), ("mkv", "pcm_s16le", False),
])
def test_sound_is_carried_over_in_step_and_as_long_as_the_pictures(
    tmp_path, suffix, codec, copied
):
    frames = clip(50, 32, 32)
    path = encode(tmp_path / f"a.{suffix}", frames, sound=3, sound_codec=codec)
    assert video.has_audio(path)
    with video.VideoWriter(tmp_path / "b.mp4", video.probe(path), audio=path) as writer:
        writer.write(frames[:20])
        writer.write(frames[20:])
    heard = beeps_heard(tmp_path / "b.mp4")
    assert np.allclose(heard[:2], beeps_heard(path)[:2], atol=0.015)
    with av.open(str(tmp_path / "b.mp4")) as written, av.open(str(path)) as read:
        sound, source = written.streams.audio[0], read.streams.audio[0]
        assert abs(sound.duration * sound.time_base - 2) < 0.08
        assert (sound.codec_context.name == source.codec_context.name) == copied
    video.write_video(tmp_path / "c.mp4", frames, video.probe(path))
    assert not video.has_audio(tmp_path / "c.mp4")
    assert np.array_equal(*(video.read_video(tmp_path / name) for name in ("b.mp4", "c.mp4")))


def test_the_same_pictures_make_the_same_file(tmp_path):
    """Else a repeated or resumed run could not be told from another one."""
    frames = video.resize(video.read_video(ROOT / "demo_data/room/gt_rgb.mp4")[:33], 128, 192)
    files = set()
    for _ in range(6):
        video.write_video(tmp_path / "a.mp4", frames, info(frames))
        files.add((tmp_path / "a.mp4").read_bytes())
    assert len(files) == 1


def test_sound_stays_in_step_where_an_edit_list_hides_pictures(tmp_path):
    source = encode(tmp_path / "a.mp4", clip(75, 32, 32), sound=3, options={"g": "75"})
    path = remux(source, tmp_path / "b.mp4", shift=0.6)
    found = video.probe(path)
    with video.VideoWriter(tmp_path / "c.mp4", found, audio=path) as writer:
        writer.write(video.read_video(path))
    assert found.frames == 60
    assert np.allclose(beeps_heard(tmp_path / "c.mp4"), [0.4, 1.4], atol=0.015)
