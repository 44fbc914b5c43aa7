import random

import numpy as np
import pytest
from conftest import ROOT
from scipy.interpolate import UnivariateSpline

from utils import trajectory
from utils.cli import InputError

SHIPPED = {
    "traj1": ("0 -40", "0 0", "0 -0.2"),
    "traj2": ("0 -3 -15 -20 -17 -5 0", "0 -2 -5 -10 -8 -5 0 2 5 3 0", "0 0"),
    "traj3": ("0 3 10 20 17 10 0", "0 -2 -8 -6 0 2 5 3 0", "0 -0.02 -0.09 -0.16 -0.09 0"),
    "traj4": ("0 3 10 20 30 25 17 10 0", "0 2 10 15 12 6 0 -2 -5 -12 -8 -3 0",
              "0 0.02 0.09 0.16 0.25 0.28 0.19 0.09 0"),
}  # fmt: skip


@pytest.mark.parametrize("name", SHIPPED)
def test_shipped_paths(name):
    keys = trajectory.read_keyframes(ROOT / "trajs" / f"{name}.txt")
    assert list(keys.values()) == [[float(x) for x in line.split()] for line in SHIPPED[name]]


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


def test_motion_orbits_the_point_at_the_radius():
    keys = {"phi": [30], "theta": [-10], "r": [0.25]}
    motion = trajectory.relative_motion(keys, 1, 4.0)[0]
    c, s = np.cos(np.pi / 6), np.sin(np.pi / 6)
    ry = np.array([[c, 0, s], [0, 1, 0], [-s, 0, c]])
    c, s = np.cos(np.radians(-10)), np.sin(np.radians(-10))
    rx = np.array([[1, 0, 0], [0, c, -s], [0, s, c]])
    for point in np.random.default_rng(0).normal(size=(5, 3)):
        expected = ry @ rx @ (point - [0, 0, 5]) + [0, 0, 4]
        np.testing.assert_allclose(motion @ [*point, 1], [*expected, 1])
    np.testing.assert_allclose(motion @ [0, 0, 5, 1], [0, 0, 4, 1])


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


@pytest.mark.parametrize("text", ["", "0 1\n0 1\n", "0 1\n0 x\n0 0\n", "0 nan\n0 0\n0 0\n", "0\n0\n0\n0\n"])
def test_what_is_no_path_is_refused_in_one_line(tmp_path, text):
    (tmp_path / "bad.txt").write_text(text)
    with pytest.raises(InputError, match=r"bad.txt.*expected three lines") as error:
        trajectory.read_keyframes(tmp_path / "bad.txt")
    assert "\n" not in str(error.value)


def test_angles_undo_the_motion():
    keys = {"phi": [0, 30, -10, 20], "theta": [-15, 10], "r": [0.2, -0.3]}
    c2w = np.linalg.inv(trajectory.relative_motion(keys, 9, 3.0))
    for got, axis in zip(trajectory.angles(c2w, 3.0), trajectory.AXES, strict=True):
        np.testing.assert_allclose(got, trajectory.interpolate(keys[axis], 9), atol=1e-9)


@pytest.mark.parametrize("preset, axis, sign", [
    ("orbit_left", 0, -1), ("orbit_right", 0, 1), ("arc_up", 1, -1), ("arc_down", 1, 1), ("dolly_in", 2, 1),
    ("dolly_out", 2, -1),
])  # fmt: skip
def test_presets_go_where_they_say(preset, axis, sign):
    """The camera's last position in the source camera: x right, y down, z forward."""
    cameras = trajectory.keyframe_cameras(trajectory.preset_keyframes(preset), np.tile(np.eye(3), (5, 1, 1)), 2.0)
    position = cameras.c2w[-1, :3, 3]
    assert np.argmax(np.abs(position)) == axis and np.sign(position[axis]) == sign
    assert cameras.frames.tolist() == [0, 1, 2, 3, 4] and np.array_equal(cameras.c2w[0], np.eye(4))


def test_a_zoom_changes_the_focal_length_alone_and_bullet_time_freezes_the_middle_frame():
    k = np.tile(np.array([[100.0, 0, 50], [0, 90, 40], [0, 0, 1]]), (5, 1, 1))
    zoom = trajectory.keyframe_cameras(trajectory.preset_keyframes("zoom_out:0.5"), k, 2.0)
    np.testing.assert_allclose(zoom.intrinsics[-1], [[50, 0, 50], [0, 45, 40], [0, 0, 1]])
    assert np.array_equal(zoom.c2w, np.tile(np.eye(4), (5, 1, 1)))
    assert trajectory.keyframe_cameras(trajectory.preset_keyframes("bullet_time"), k, 2.0).frames.tolist() == [2] * 5
