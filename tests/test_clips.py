"""Clips in memory are what the scripts make of the same scene through files."""

import functools

import cv2
import numpy as np
import pytest
import torch

from toolbox.synthetic import clips, scenes, yards
from utils import trajectory

SHAPE = (3, 40, 56)
CPU = torch.device("cpu")


@pytest.fixture(scope="module", params=(scenes.make_scene, yards.make_yard))
def clip(request):
    return clips.make_clip(request.param(3), SHAPE, 52, CPU)


def test_a_clip_has_exact_depth_and_cameras(clip):
    times = scenes.frame_times(SHAPE[0])
    rgb, depth = scenes.trace(clip.scene, clip.c2w, clip.k, *SHAPE[1:], times)
    for frame, seen in zip(rgb.numpy(), clip.rgb.numpy(), strict=True):
        blurred = cv2.GaussianBlur(frame, (7, 7), clips.LENS_BLUR, borderType=cv2.BORDER_REPLICATE)
        assert np.abs(seen - 255 * blurred).max() <= 0.501
    assert torch.equal(clip.depth, depth) and (clip.depth > 0).all()


def test_a_camera_that_stays_sees_the_clip_itself(clip):
    still = clips.path_cameras(clip, {"phi": [0], "theta": [0], "r": [0]})
    assert torch.equal(clips.exact_view(clip, still), clip.rgb)
    for mode in ("train", "eval"):
        render, mask = clips.reproject(clip, still, mode)
        assert mask.all() and (render.int() - clip.rgb).abs().max() <= 1


def test_known_pixels_of_a_render_are_the_exact_view(clip):
    cameras = clips.path_cameras(clip, {"phi": [0, 12], "theta": [0, 3], "r": [0]})
    exact = clips.exact_view(clip, cameras)
    render, mask = clips.reproject(clip, cameras, "eval")
    assert 0.5 < mask.float().mean() < 0.98
    error = (render.float() - exact.float()).abs().mean(-1)
    still = (clip.rgb.float() - exact.float()).abs().mean(-1)
    assert error[mask].median() < 6 and error[mask].mean() < 0.7 * still[mask].mean()
    assert (render[~mask] == 0).all()


def test_zoom_and_a_frozen_moment_are_filmed_too(clip):
    for keyframes in ({"phi": [0], "zoom": [1.3]}, {"phi": [0, 8], "frozen": True}):
        cameras = clips.path_cameras(clip, keyframes)
        exact = clips.exact_view(clip, cameras)
        render, mask = clips.reproject(clip, cameras, "eval")
        assert (render[mask].float() - exact[mask].float()).abs().median() < 6
        assert (clip.rgb[mask].float() - exact[mask].float()).abs().median() > 4


def test_random_clips_differ_and_repeat():
    one = clips.random_clip(1000, (1, 24, 32), CPU)
    assert torch.equal(one.rgb, clips.random_clip(1000, (1, 24, 32), CPU).rgb)
    other = clips.random_clip(1001, (1, 24, 32), CPU)
    assert not torch.equal(one.rgb, other.rgb) and one.k[0, 0] != other.k[0, 0]
    assert one.scene.softness == clips.SOFTNESS


def test_every_training_path_can_be_filmed():
    clip = clips.random_clip(1003, (3, 24, 32), CPU)
    for keyframes in trajectory.random_keyframes(0, 2):
        render, mask = clips.reproject(clip, clips.path_cameras(clip, keyframes), "train")
        assert (render[mask].int() - clip.rgb[mask].int()).abs().median() < 6


def make_number(base, seed, device):
    """What the stream below makes; the ninth cannot be made."""
    if seed == 13:
        raise ValueError(f"no scene {seed}")
    return np.full(3, base + seed)


def test_a_stream_gives_every_seed_once_and_says_why_it_ends():
    stream = clips.Stream(functools.partial(make_number, 10), 5, CPU, workers=2)
    numbers = []
    with pytest.raises(ValueError, match="no scene 13"):
        while True:
            numbers += [int(item[0]) for item in stream.take(wait=True)]
    assert numbers == list(range(15, 15 + len(numbers))) and len(numbers) >= 6
    stream.close()


def test_the_first_items_come_before_more():
    items, more = clips.first_and_more(functools.partial(make_number, 0), 20, 3, CPU)
    found = [int(item[0]) for item in items]
    while len(found) < 6:
        found += [int(item[0]) for item in more.take()]
    more.close()
    assert found == list(range(20, 20 + len(found)))
