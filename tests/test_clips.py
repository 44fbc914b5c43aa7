"""Clips in memory are what the scripts make of the same scene through files."""

import functools

import cv2
import numpy as np
import pytest
import torch

from toolbox.synthetic import clips, scenes, yards
from utils import trajectory

SHAPE, CPU = (5, 48, 64), torch.device("cpu")


@pytest.fixture(scope="module", params=(scenes.make_scene, yards.make_yard))
def clip(request):
    return clips.make_clip(request.param(3), SHAPE, 60, CPU)


def test_a_clip_has_exact_depth_and_cameras(clip):
    rgb, depth = scenes.render(clip.scene, clip.c2w, clip.k, *SHAPE[1:], scenes.frame_times(5))
    seen = [cv2.GaussianBlur(frame, (7, 7), clips.LENS_BLUR, borderType=cv2.BORDER_REPLICATE) for frame in rgb.numpy()]
    assert np.abs(clip.rgb.numpy() - 255 * np.stack(seen)).max() <= 0.501 and torch.equal(clip.depth, depth)
    assert clip.rgb.shape == (*SHAPE, 3) and (clip.depth > 0).all()


def test_a_camera_that_stays_sees_the_clip_itself(clip):
    still = clips.path_cameras(clip, {"phi": [0], "theta": [0], "r": [0]})
    assert torch.equal(clips.truth(clip, still), clip.rgb)
    for mode in ("train", "eval"):
        render, mask = clips.render(clip, still, mode)
        assert mask.all() and (render.int() - clip.rgb).abs().max() <= 1


def test_known_pixels_of_a_render_are_the_true_view(clip):
    cameras = clips.path_cameras(clip, {"phi": [0, 12], "theta": [0, 3], "r": [0]})
    truth, (render, mask) = clips.truth(clip, cameras), clips.render(clip, cameras, "eval")
    assert 0.5 < mask.float().mean() < 0.98
    error = (render.float() - truth.float()).abs().mean(-1)
    still = (clip.rgb.float() - truth.float()).abs().mean(-1)
    assert error[mask].median() < 6 and error[mask].mean() < 0.7 * still[mask].mean()
    assert (render[~mask] == 0).all()


def test_zoom_and_a_frozen_moment_are_filmed_too(clip):
    for keyframes in ({"phi": [0], "zoom": [1.3]}, {"phi": [0, 8], "frozen": True}):
        cameras = clips.path_cameras(clip, keyframes)
        truth, (render, mask) = clips.truth(clip, cameras), clips.render(clip, cameras, "eval")
        assert (render[mask].float() - truth[mask].float()).abs().median() < 6
        assert (clip.rgb[mask].float() - truth[mask].float()).abs().median() > 4


def test_random_clips_differ_and_repeat():
    one, same, other = (clips.random_clip(seed, (1, 24, 32), CPU) for seed in (1000, 1000, 1001))
    assert torch.equal(one.rgb, same.rgb) and not torch.equal(one.rgb, other.rgb)
    assert one.scene.softness == clips.SOFTNESS and one.k[0, 0] != other.k[0, 0]


def make_number(base, seed, device):
    return base + seed


def test_a_stream_gives_every_seed_once():
    stream = clips.Stream(functools.partial(make_number, 10), 5, ["cpu", "cpu"])
    numbers = []
    while len(numbers) < 8:
        numbers += stream.take(wait=True)
    odd, even = ([n for n in numbers if n % 2 == parity] for parity in (1, 0))  # a process each
    assert odd == list(range(15, 15 + 2 * len(odd), 2)) and even == list(range(16, 16 + 2 * len(even), 2))


def test_every_training_path_can_be_filmed():
    clip = clips.random_clip(1003, (3, 24, 32), CPU)
    for keyframes in trajectory.random_keyframes(0, 2):
        render, mask = clips.render(clip, clips.path_cameras(clip, keyframes), "train")
        assert (render[mask].int() - clip.rgb[mask].int()).abs().median() < 6


def make_nothing(seed, device):
    raise ValueError(f"no scene {seed}")


def test_a_stream_whose_processes_die_says_so():
    stream = clips.Stream(make_nothing, 0, ["cpu"])
    with pytest.raises(RuntimeError, match="has died"):
        stream.take(wait=True)
    with pytest.raises(RuntimeError, match="has died"):
        stream.take(wait=False)
