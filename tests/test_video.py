import subprocess
import threading
from fractions import Fraction

import cv2
import imageio_ffmpeg
import numpy as np
import pytest

from utils import video
from utils.cli import InputError


def clip(frames=5, height=48, width=64):
    """Smooth moving colours, uint8."""
    t, y, x = np.mgrid[:frames, :height, :width] / np.array([frames, height, width]).reshape(3, 1, 1, 1)
    return (np.stack([x, y, (x + y + t) / 3], -1) * 255).astype(np.uint8)


def info(frames, fps=24, matrix="bt709"):
    return video.VideoInfo(len(frames), *frames.shape[1:3], Fraction(fps), matrix)


def pixel_format(path):
    header = subprocess.run([imageio_ffmpeg.get_ffmpeg_exe(), "-i", str(path)], capture_output=True, text=True).stderr
    return header.split("Video: ")[1]


@pytest.mark.parametrize("matrix", ["bt601", "bt709"])
def test_crf_0_is_444_and_within_2_of_255(tmp_path, matrix):
    frames = np.random.default_rng(0).integers(0, 256, (3, 48, 64, 3), np.uint8)
    video.write_video(tmp_path / "a.mp4", frames, info(frames, matrix=matrix), crf=0)
    assert np.abs(video.read_video(tmp_path / "a.mp4").astype(int) - frames).max() <= 2
    assert "yuv444p" in pixel_format(tmp_path / "a.mp4")


@pytest.mark.parametrize("matrix, tag", [("bt601", "smpte170m"), ("bt709", "bt709")])
def test_colours_are_tagged_and_come_back(tmp_path, matrix, tag):
    red = np.full((3, 720, 1280, 3), (198, 30, 40), np.uint8)
    video.write_video(tmp_path / "a.mp4", red, info(red, matrix=matrix))
    header = pixel_format(tmp_path / "a.mp4")
    assert "High" in header and "yuv420p" in header and tag in header
    assert video.probe(tmp_path / "a.mp4").matrix == matrix
    assert np.abs(video.read_video(tmp_path / "a.mp4").astype(int) - red).max() <= 3


def test_pixels_are_those_that_opencv_reads(tmp_path):
    frames = clip()
    video.write_video(tmp_path / "a.mp4", frames, info(frames, matrix="bt601"))
    capture = cv2.VideoCapture(str(tmp_path / "a.mp4"))
    assert np.array_equal(video.read_video(tmp_path / "a.mp4")[0], capture.read()[1][..., ::-1])


@pytest.mark.parametrize("fps", [Fraction(30000, 1001), Fraction(24000, 1001), Fraction(20), Fraction(25, 2)])
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
    assert ("yuv420p" in pixel_format(tmp_path / "m.mp4")) == (width % 2 == 0)


def test_a_writer_that_fails_leaves_nothing(tmp_path):
    frames = clip()
    with pytest.raises(RuntimeError), video.VideoWriter(tmp_path / "a.mp4", info(frames)) as writer:
        writer.write(frames)
        raise RuntimeError
    assert list(tmp_path.iterdir()) == []


def test_what_is_no_video_is_refused(tmp_path):
    (tmp_path / "a.mp4").write_bytes(b"no video")
    for name in ("a.mp4", "b.mp4"):
        with pytest.raises(InputError, match=name):
            video.probe(tmp_path / name)


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
