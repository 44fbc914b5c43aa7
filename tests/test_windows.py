"""Windows cover a video, meet without a seam, and fits are undone."""

import numpy as np
import pytest
import torch

from utils import windows


@pytest.mark.parametrize("total", (1, 48, 49, 50, 85, 86, 121, 1000))
def test_windows_cover_every_frame_once_and_overlap(total):
    firsts = windows.starts(total, 49, 13)
    assert firsts[0] == 0 and firsts[-1] == max(0, total - 49)
    assert all(49 - (b - a) >= 13 for a, b in zip(firsts, firsts[1:], strict=False))
    done, longest = [], 0
    for window, count in windows.slide(iter(range(total)), total, 49, 13):
        assert window == list(range(window[0], window[0] + len(window))) and len(window) == min(
            total, 49
        )
        done, longest = done + window[:count], max(longest, len(window))
    assert done == list(range(total)) and longest <= 49


def test_a_window_sees_finished_frames_in_its_holes_alone():
    clip, tail = torch.zeros(5, 3, 2, 2), torch.ones(2, 3, 2, 2)
    known = torch.zeros(5, 1, 2, 2, dtype=torch.bool)
    known[:, :, 0] = True
    seen = windows.carry_over(clip, known, tail)
    assert (seen[:2, :, 1] == 1).all() and (seen[:2, :, 0] == 0).all() and (seen[2:] == 0).all()


def test_windows_fade_evenly_from_one_into_the_next():
    out = windows.cross_fade(torch.zeros(3, 3, 1, 1), torch.ones(5, 3, 1, 1))
    torch.testing.assert_close(out[:, 0, 0, 0], torch.tensor([0.25, 0.5, 0.75, 1, 1]))


@pytest.mark.parametrize("size", ((480, 720), (480, 854), (854, 480), (1080, 1920), (97, 31)))
def test_fits_keep_the_shape_of_things_and_are_undone(size):
    v, u = np.mgrid[: size[0], : size[1]].astype(np.float32)
    frames = np.stack([v, u, 0 * u + 255], -1)[None]
    for fit in windows.FITS:
        placed = windows.place(frames, fit, (480, 720))
        back = windows.take_back(placed, fit, size)
        seen = windows.cropped(frames, fit, (480, 720))
        assert placed.shape == (1, 480, 720, 3) and back.shape == seen.shape
        assert back.shape[1:3] == windows.output_size(fit, size, (480, 720))
        assert np.abs(back - seen).mean() < 0.5 + 0.5 * max(
            size[0] / 480, size[1] / 720
        )  # pixels of the source
        inside = placed[0, ..., 2] > 250
        assert inside.all() == (fit != "pad" or size == (480, 720))
        if (
            fit != "stretch"
        ):  # as many pixels of the source to one of the model's, down as to the right
            down, right = (
                np.ptp(placed[0, ..., i][inside]) / inside.any(1 - i).sum() for i in (0, 1)
            )
            assert down == pytest.approx(right, rel=0.1)


def test_a_composite_is_the_render_but_for_holes_and_a_soft_edge():
    known = np.ones((1, 40, 40), bool)
    known[0, 10:20, 10:20] = False
    render, out = np.full((1, 40, 40, 3), 200, np.uint8), np.full((1, 40, 40, 3), 100, np.uint8)
    mixed = windows.composite(render, out, known, feather=4)[0, :, :, 0]
    assert (mixed[10:20, 10:20] == 100).all() and (mixed[25:] == 200).all()
    assert (np.diff(mixed[19:25, 15].astype(int)) > 0).all()
    hard = windows.composite(render, out, known, feather=0)
    assert (hard[known] == 200).all() and (hard[~known] == 100).all()
