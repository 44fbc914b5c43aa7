import random

import numpy as np
import pytest
from conftest import ROOT
from scipy.interpolate import UnivariateSpline

from utils import camera_paths, trajectory

PIVOT = np.array([0.7, -0.4, 2.5])
K = np.tile(np.array([[100.0, 0, 50], [0, 90, 40], [0, 0, 1]]), (5, 1, 1))


def test_up_to_three_keys_are_joined_by_lines():
    np.testing.assert_allclose(trajectory.interpolate([7], 5), 7)
    np.testing.assert_allclose(trajectory.interpolate([0, -40], 5), [0, -10, -20, -30, -40])
    np.testing.assert_allclose(trajectory.interpolate([0, 4, 0], 5), [0, 2, 4, 2, 0])


def test_four_or_more_keys_are_scipys_smoothing_spline_with_fixed_ends():
    keys = [0, 3, 10, 20, 30, 25, 17, 10, 0]
    spline = UnivariateSpline(np.linspace(0, 1, 9), keys, k=3)(np.linspace(0, 1, 49))
    values = trajectory.interpolate(keys, 49)
    np.testing.assert_array_equal(values[1:-1], spline[1:-1])
    assert (values[0], values[-1]) == (0, 0)


@pytest.mark.parametrize("keys", [[0, 4], [0, 4, -3], [0, 3, 10, 20, 30, 25, 17, 10, 0], [7]])
def test_an_eased_path_is_the_same_path_that_starts_and_ends_without_speed(keys):
    plain = trajectory.interpolate(keys, 1001)
    eased = trajectory.interpolate(keys, 1001, ease=True)
    assert (eased[0], eased[-1]) == (plain[0], plain[-1])
    assert eased[500] == plain[500]
    t = np.linspace(0, 1, 1001)
    between = slice(20, -20)  # the ends of a spline are set: it jumps to them
    expected = np.interp(t**2 * (3 - 2 * t), t, plain)
    np.testing.assert_allclose(eased[between], expected[between], atol=1e-3)
    if 1 < len(keys) < 4:
        speed = np.abs(np.diff(eased)) / np.abs(np.diff(plain))
        assert speed[0] < 0.01 and speed[-1] < 0.01 and 1.4 < speed.max() < 1.51


def test_motion_orbits_the_pivot():
    keys = {"phi": [30], "theta": [-10], "r": [0.25]}
    c, s = np.cos(np.pi / 6), np.sin(np.pi / 6)
    ry = np.array([[c, 0, s], [0, 1, 0], [-s, 0, c]])
    c, s = np.cos(np.radians(-10)), np.sin(np.radians(-10))
    rx = np.array([[1, 0, 0], [0, c, -s], [0, s, c]])
    for pivot, p in ((4.0, np.array([0, 0, 4])), (PIVOT, PIVOT)):
        motion = trajectory.relative_motion(keys, 1, pivot)[0]
        for point in np.random.default_rng(0).normal(size=(5, 3)):
            expected = ry @ rx @ (point - 1.25 * p) + p
            np.testing.assert_allclose(motion @ [*point, 1], [*expected, 1])
        np.testing.assert_allclose(motion @ [*(1.25 * p), 1], [*p, 1])


@pytest.mark.parametrize("r", [0, 0.4, -3])
def test_the_pivot_stays_at_its_pixel_and_r_moves_towards_it(r):
    rng = np.random.default_rng(1)
    keys = {"phi": rng.uniform(-180, 180, 3), "theta": rng.uniform(-90, 90, 3), "r": [r]}
    c2w = np.linalg.inv(trajectory.relative_motion(keys, 9, PIVOT))
    if r == 0:
        seen = np.linalg.inv(c2w) @ [*PIVOT, 1]
        np.testing.assert_allclose(seen[:, :3], np.tile(PIVOT, (9, 1)), atol=1e-12)
    straight = np.linalg.inv(trajectory.relative_motion({"r": [r]}, 9, PIVOT))
    np.testing.assert_allclose(straight[:, :3, 3], np.tile(r * PIVOT, (9, 1)), atol=1e-12)
    assert np.array_equal(straight[:, :3, :3], np.tile(np.eye(3), (9, 1, 1)))


@pytest.mark.parametrize("radius", [2.946, 0.1, 1000 / 3])
def test_a_pivot_on_the_axis_gives_the_published_motion_to_the_bit(radius):
    """X_tgt = Ry Rx (X_src - (R + r R) e_z) + R e_z, as it was computed before there were others"""
    paths = trajectory.random_keyframes(42, 8)
    for file in sorted((ROOT / "trajs").glob("*.txt")):
        paths.append(camera_paths.read_keyframes(file))
    for keys in paths:
        motion = trajectory.relative_motion(keys, 49, radius)
        again = trajectory.relative_motion(keys, 49, np.array([0, 0, radius]))
        distance = radius * (1 + trajectory.interpolate(keys["r"], 49))
        published = -motion[:, :3, 2] * distance[:, None] + [0, 0, radius]
        assert motion[:, :3, 3].tobytes() == published.tobytes()
        assert motion.tobytes() == again.tobytes()


def test_no_motion_is_the_identity():
    motion = trajectory.relative_motion({"phi": [0], "theta": [0], "r": [0]}, 3, 2.5)
    assert np.array_equal(motion, np.tile(np.eye(4), (3, 1, 1)))


def test_random_paths_are_drawn_in_the_published_order():
    rng, paths = random.Random(42), trajectory.random_keyframes(42, 2)
    for path in paths:
        ends = [(rng.uniform(-a, a), rng.uniform(-a, a)) for a in (15, 10, 0.1)]
        for axis, (a, b) in zip(("phi", "theta", "r"), ends, strict=True):
            inner = [rng.uniform(a, b), rng.uniform(a, b)]
            assert path[axis] == sorted([a, b, *inner])
    assert paths == trajectory.random_keyframes(42, 2) != trajectory.random_keyframes(43, 2)


@pytest.mark.parametrize("pivot", [3.0, PIVOT, -PIVOT])
def test_angles_undo_the_motion(pivot):
    keys = {"phi": [0, 30, -10, 20], "theta": [-15, 10], "r": [0.2, -1.5]}
    c2w = np.linalg.inv(trajectory.relative_motion(keys, 9, pivot))
    for got, axis in zip(trajectory.angles(c2w, pivot), trajectory.AXES, strict=True):
        np.testing.assert_allclose(got, trajectory.interpolate(keys[axis], 9), atol=1e-9)


# ---- joined --------------------------------------------------------------------------------------


def preset(name, amount):
    return trajectory.PRESETS[name][2](amount)


@pytest.mark.parametrize("pivot", [2.0, PIVOT])
def test_joined_paths_of_different_axes_are_one_motion_after_the_other(pivot):
    parts = [{"phi": [0, 25]}, {"theta": [3, -12, 4]}, {"r": [0, 0.3, 0.1, -0.2, 0.1]}]
    phi, theta, r = (trajectory.relative_motion(keys, 17, pivot) for keys in parts)
    for order in (parts, parts[::-1]):
        motion = trajectory.relative_motion(trajectory.joined(order), 17, pivot)
        np.testing.assert_allclose(motion, phi @ theta @ r, atol=1e-12)


def test_joined_paths_of_one_axis_are_added():
    keys = trajectory.joined([preset("orbit_right", 8), preset("spiral", 10), {"phi": [1, 5]}])
    line = {"phi": np.linspace(1, 13, 17), "theta": 0, "r": 0}
    for axis in trajectory.AXES:  # a smoothing spline of the sum is the spline and the line
        spiral = trajectory.interpolate(preset("spiral", 10)[axis], 17)
        np.testing.assert_allclose(trajectory.interpolate(keys[axis], 17), spiral + line[axis],
                                   atol=1e-9)
    twice = trajectory.joined([preset("dolly_in", 0.1), preset("dolly_out", 0.3)])
    np.testing.assert_allclose(twice["r"], [0, -0.2])
    same = trajectory.joined([preset("spiral", 4), preset("spiral", 6)])["phi"]
    np.testing.assert_allclose(same, preset("spiral", 10)["phi"], atol=1e-12)


def test_joined_zooms_are_multiplied_and_one_frozen_path_freezes_all():
    keys = trajectory.joined([preset("zoom_in", 0.5), preset("bullet_time", 9), {"zoom": [2]}])
    np.testing.assert_allclose(keys["zoom"], [2, 3])
    assert keys["phi"] == [0, -9] and keys["frozen"]
    cameras = trajectory.keyframe_cameras(keys, K, 2.0)
    assert cameras.frozen and cameras.intrinsics[-1, 0, 0] == 300


def test_one_path_joined_is_itself():
    keys = {"phi": [0, 3, 5], "frozen": True}
    assert trajectory.joined([keys]) == keys


def test_all_of_an_eased_path_is_eased():
    keys = {"phi": [0, 8], "r": [0, 0.2], "zoom": [1, 2]}
    plain = trajectory.keyframe_cameras(keys, K, 2.0)
    eased = trajectory.keyframe_cameras(keys | {"ease": True}, K, 2.0)
    for moment in (0, 2, 4):
        np.testing.assert_array_equal(eased.c2w[moment], plain.c2w[moment])
        np.testing.assert_array_equal(eased.intrinsics[moment], plain.intrinsics[moment])
    np.testing.assert_allclose(eased.intrinsics[1, 0, 0], 100 * (1 + 3 / 16 - 2 / 64))
    phi, _, r = trajectory.angles(eased.c2w, 2.0)
    np.testing.assert_allclose([phi[1], r[1]], np.array([8, 0.2]) * (3 / 16 - 2 / 64))
