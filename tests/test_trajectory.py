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
