"""Points are found again where textures, moved by known parts of a pixel, really are."""

import cv2
import numpy as np
import pytest

from toolbox.geometry import matches

SIZE = 120, 160


def texture(seed, blur=2):
    """Smooth noise, float32 in [0, 255]."""
    noise = np.random.default_rng(seed).normal(size=SIZE).astype(np.float32)
    noise = cv2.GaussianBlur(noise, (0, 0), blur)
    return (noise - noise.min()) / np.ptp(noise) * 255


def shifted(picture, x, y):
    """A picture moved to the right and down, uint8."""
    matrix = np.array([[1, 0, x], [0, 1, y]], np.float32)
    moved = cv2.warpAffine(picture, matrix, picture.shape[::-1], flags=cv2.INTER_CUBIC,
                           borderMode=cv2.BORDER_REFLECT)
    return moved.round().clip(0, 255).astype(np.uint8)


@pytest.mark.parametrize("shift", [(0, 0), (1.25, -0.625), (4.75, 2.375), (-9.375, 5.25)])
def test_points_are_found_to_a_part_of_a_pixel(shift):
    grey, other = shifted(texture(0), 0, 0), shifted(texture(0), *shift)
    forward, _, good, _ = matches.flow_both_ways(grey, other)
    assert good.mean() > 0.85
    here = matches.choose(np.random.default_rng(0), good, matches.texture(grey), 300)
    off = matches.refine(grey, other, here, forward) - here - shift
    assert np.median(np.linalg.norm(off, axis=1)) < 0.1


def test_refinement_mends_flow_that_is_half_a_pixel_off_and_no_more():
    grey, other = shifted(texture(0), 0, 0), shifted(texture(0), 2.25, 1.5)
    here = np.random.default_rng(0).integers([20, 20], [140, 100], (300, 2)).astype(np.float32)
    flow = np.zeros((*SIZE, 2), np.float32) + np.array([2.25, 1.5], np.float32)
    near = matches.refine(grey, other, here, flow + np.array([0.5, 0], np.float32))
    assert np.median(np.linalg.norm(near - here - [2.25, 1.5], axis=1)) < 0.1
    far = flow + np.array([3, 0], np.float32)
    kept = matches.refine(grey, other, here, far) - here == far[0, 0]
    assert kept.all(1).mean() > 0.95  # it is not led to another place
    elsewhere = matches.refine(grey, shifted(texture(9), 0, 0), here, flow)
    assert (elsewhere - here == flow[0, 0]).all(1).mean() > 0.8


def test_what_is_replaced_by_something_else_is_not_found():
    grey, other = shifted(texture(0), 0, 0), shifted(texture(0), 4.75, 2.375)
    other[20:100, 40:120] = shifted(texture(9, blur=4), 0, 0)[20:100, 40:120]
    _, _, good, good_back = matches.flow_both_ways(grey, other)
    for found in (good, good_back):
        assert found[30:90, 50:110].mean() < 0.35
        found = found[8:-8, 8:-8].copy()
        found[:100, 14:130] = True
        assert found.mean() > 0.95


def test_agreement_is_of_a_flow_and_its_way_back():
    forward = np.zeros((20, 30, 2), np.float32) + np.array([3, -1], np.float32)
    good = matches.agreement(forward, -forward)
    assert good[1:, :26].all() and not good[:, 27:].any() and not good[0].any()  # it leaves there
    assert matches.agreement(forward, -forward + 0.7)[5:15, 5:20].all()
    assert not matches.agreement(forward, -forward + 0.8)[5:15, 5:20].any()
    assert matches.agreement(30 * forward, -30 * forward).sum() == 0
    assert not matches.agreement(forward, forward).any()


def test_spans_reach_far_but_not_from_every_frame():
    assert matches.spans(1) == [] and matches.spans(2) == [(0, 1)]
    found = matches.spans(70)
    assert len(set(found)) == len(found)
    assert all(0 <= a < b < 70 for a, b in found)
    begins = {stride: [a for a, b in found if b - a == stride] for stride in matches.STRIDES}
    assert sum(map(len, begins.values())) == len(found)
    assert begins[1] == list(range(69)) and begins[4] == list(range(66))
    assert begins[8] == list(range(0, 62, 2)) and begins[32] == list(range(0, 38, 8))


def test_half_of_the_points_are_where_texture_is():
    good = np.ones((80, 100), bool)
    good[:, 90:] = False
    strength = np.zeros((80, 100), np.float32)
    strength[10:20, 10:30] = 1
    points = matches.choose(np.random.default_rng(0), good, strength, 400)
    assert points.shape == (400, 2) and points.dtype == np.float32
    x, y = points.T
    assert x.min() >= 4 and x.max() < 90 and y.min() >= 4 and y.max() < 76
    strong = (x >= 10) & (x < 30) & (y >= 10) & (y < 20)
    assert 200 <= strong.sum() < 230
    assert 180 < strong[:200].sum() * 2 < 250  # and the first ones are a fair sample of all
    again = matches.choose(np.random.default_rng(0), good, strength, 400)
    assert np.array_equal(points, again)


@pytest.mark.parametrize("few", [0, 3])
def test_there_are_enough_points_where_few_are_good(few):
    good = np.zeros((40, 50), bool)
    good[20, 10 : 10 + few] = True
    points = matches.choose(np.random.default_rng(0), good, np.zeros((40, 50), np.float32), 300)
    assert points.shape == (300, 2) and len(np.unique(points, axis=0)) > 100


def test_texture_is_of_corners_and_not_of_edges():
    grey = np.zeros((60, 80), np.uint8)
    grey[30:, 40:] = 200
    strength = matches.texture(grey)
    assert strength[30, 40] > 0 and strength[30, 40] > 100 * strength[50, 40]
    assert strength[10, 10] == 0


def test_find_looks_both_ways_at_all_strides():
    step = np.array([1.25, -0.5])
    greys = [shifted(texture(0), *(t * step)) for t in range(6)]
    found = matches.find(greys)
    both = [pair for a, b in matches.spans(6) for pair in ((a, b), (b, a))]
    assert [tuple(pair) for pair in found.pairs.tolist()] == both
    assert found.here.shape == (6, matches.POINTS, 2)
    way = (found.pairs[:, 1] - found.pairs[:, 0])[:, None, None] * step
    off = np.linalg.norm(found.there - found.here[found.pairs[:, 0]] - way, axis=-1)
    assert np.median(off[found.weight > 0]) < 0.1 and found.weight.mean() > 0.8
    assert set(np.unique(found.weight)) == {0, 1}
    assert found.shares.keys() == set(both) and min(found.shares.values()) > 0.8
    again = matches.find(greys)
    assert np.array_equal(again.here, found.here) and np.array_equal(again.there, found.there)


def test_the_pictures_size_has_limits():
    least, most = matches.LONG_SIDE
    assert matches.picture_size(1080, 1920) == (288, most)
    assert matches.picture_size(1920, 1080) == (most, 288)
    assert matches.picture_size(300, 400) == (300, 400)
    assert matches.picture_size(64, 96) == (256, least)
    frame = np.zeros((64, 96, 3), np.uint8)
    frame[:, 48:] = 90, 120, 30
    grey = matches.to_grey(frame, (256, 384))
    assert grey.shape == (256, 384) and grey.dtype == np.uint8
    assert grey[0, 0] == 0 and abs(int(grey[100, 300]) - (0.299 * 90 + 0.587 * 120 + 3.42)) <= 1
