import json
import random
import zipfile

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
}
K = np.tile(np.array([[100.0, 0, 50], [0, 90, 40], [0, 0, 1]]), (5, 1, 1))


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


@pytest.mark.parametrize("text", [
    "", "0 1\n0 1\n", "0 1\n0 x\n0 0\n", "0 nan\n0 0\n0 0\n", "0\n0\n0\n0\n", "0\n1e999\n0\n",
])
def test_what_is_no_path_is_refused_in_one_line(tmp_path, text):
    (tmp_path / "bad.txt").write_text(text)
    with pytest.raises(InputError, match=r"bad.txt.*expected three lines") as error:
        trajectory.read_keyframes(tmp_path / "bad.txt")
    assert "\n" not in str(error.value)


def test_angles_undo_the_motion():
    keys = {"phi": [0, 30, -10, 20], "theta": [-15, 10], "r": [0.2, -1.5]}
    c2w = np.linalg.inv(trajectory.relative_motion(keys, 9, 3.0))
    for got, axis in zip(trajectory.angles(c2w, 3.0), trajectory.AXES, strict=True):
        np.testing.assert_allclose(got, trajectory.interpolate(keys[axis], 9), atol=1e-9)


@pytest.mark.parametrize("preset, axis, sign", [
    ("orbit_left", 0, -1), ("orbit_right", 0, 1), ("arc_up", 1, -1), ("arc_down", 1, 1),
    ("dolly_in", 2, 1), ("dolly_out", 2, -1), ("dolly_out:1.5", 2, -1), ("dolly_in:-1.5", 2, -1),
])
def test_presets_go_where_they_say(preset, axis, sign):
    """The camera's last position in the source camera: x right, y down, z forward."""
    cameras = trajectory.keyframe_cameras(trajectory.preset_keyframes(preset), K, 2.0)
    position = cameras.c2w[-1, :3, 3]
    assert np.argmax(np.abs(position)) == axis and np.sign(position[axis]) == sign
    assert cameras.frames.tolist() == [0, 1, 2, 3, 4] and not cameras.frozen
    assert np.array_equal(cameras.c2w[0], np.eye(4))


@pytest.mark.parametrize("preset, factor", [
    ("zoom_out:0.5", 0.5), ("zoom_in:1.5", 2.5), ("zoom_in:-0.5", 0.5), ("zoom_out:-1.5", 2.5),
])
def test_a_zoom_changes_the_focal_length_alone(preset, factor):
    zoom = trajectory.keyframe_cameras(trajectory.preset_keyframes(preset), K, 2.0)
    expected = [[100 * factor, 0, 50], [0, 90 * factor, 40], [0, 0, 1]]
    np.testing.assert_allclose(zoom.intrinsics[-1], expected)
    assert np.array_equal(zoom.c2w, np.tile(np.eye(4), (5, 1, 1)))


def test_bullet_time_freezes_the_middle_frame():
    cameras = trajectory.keyframe_cameras(trajectory.preset_keyframes("bullet_time"), K, 2.0)
    assert cameras.frames.tolist() == [2] * 5 and cameras.frozen


@pytest.mark.parametrize("preset, message", [
    ("zoom_in:-1.5", "focal length of -0.5 times"), ("zoom_in:-1", "focal length of 0 times"),
    ("zoom_out:1.5", "focal length of -0.5 times"), ("dolly_in:1", "a move of 1 radii"),
    ("dolly_out:-2", "a move of 2 radii"), ("orbit_left:nan", "a number of degrees"),
    ("zoom_in:inf", "a number of fractions of the focal length"), ("spiral:", "got the amount ''"),
    ("spiral:ten", "got the amount 'ten'; expected a number of degrees"),
])
def test_amounts_that_turn_the_picture_over_or_pass_the_pivot_are_refused(preset, message):
    with pytest.raises(InputError, match=message):
        trajectory.preset_keyframes(preset)


# ---- camera files --------------------------------------------------------------------------------


def test_camera_files_of_every_kind(tmp_path):
    c2w = np.eye(4)
    c2w[0, 3] = 0.1
    np.save(tmp_path / "one.npy", c2w)
    np.savez(tmp_path / "many.npz", c2w=np.tile(c2w, (5, 1, 1)), intrinsics=K[0])
    held = {"c2w": c2w.tolist(), "intrinsics": K.tolist()}
    (tmp_path / "held.json").write_text(json.dumps(held))
    (tmp_path / "list.json").write_text(json.dumps(c2w.tolist()))
    for name in ("one.npy", "many.npz", "held.json", "list.json"):
        cameras = trajectory.read_cameras(tmp_path / name, K)
        np.testing.assert_array_equal(cameras.c2w, np.tile(c2w, (5, 1, 1)))
        np.testing.assert_array_equal(cameras.intrinsics, K)
        assert cameras.frames.tolist() == [0, 1, 2, 3, 4]


def test_cameras_that_are_written_come_back(tmp_path):
    keys = trajectory.preset_keyframes("bullet_time")
    written = trajectory.keyframe_cameras(keys, K, 2.0)
    trajectory.write_cameras(tmp_path / "a.npz", written)
    read = trajectory.read_cameras(tmp_path / "a.npz", K)
    for name in ("c2w", "intrinsics", "frames"):
        np.testing.assert_array_equal(getattr(read, name), getattr(written, name))
    assert [path.name for path in tmp_path.iterdir()] == ["a.npz"]


EYE = np.eye(4)
MIRRORED = np.diag([1, 1, -1, 1])
HOMOGENEOUS = np.array([[1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0.5, 1]])


@pytest.mark.parametrize("data, message", [
    ({"c2w": np.eye(3)}, r"c2w is float64 of shape \(3, 3\)"),
    ({"c2w": np.zeros((6, 4, 4))}, r"shape \(4, 4\), or \(5, 4, 4\) for the 5 frames"),
    ({"c2w": np.full((4, 4), "x")}, "c2w is <U1"),
    ({"c2w": np.zeros((4, 4))}, "expected rotations and translations"),
    ({"c2w": EYE * np.nan}, "not finite"),
    ({"c2w": MIRRORED}, "mirrored"),
    ({"c2w": HOMOGENEOUS}, "last row 0 0 0.5 1"),
    ({"c2w": EYE, "intrinsics": np.zeros((3, 3))}, "expected positive focal lengths"),
    ({"c2w": EYE, "intrinsics": np.eye(3)[:2]}, "intrinsics is float64 of shape"),
    ({"k": EYE}, "has no c2w"),
    ({"c2w": EYE, "frames": np.arange(5)[::-1]}, "frames must be 0 to 4"),
    ({"c2w": EYE, "frames": np.full(5, 5)}, "frames must be 0 to 4"),
    ({"c2w": EYE, "frames": np.full(5, 1.5)}, "frames must be 0 to 4"),
    ({"c2w": EYE, "frames": np.full(5, "1")}, "frames must be 0 to 4"),
    ({"c2w": EYE, "frames": np.arange(4)}, "frames must be 0 to 4"),
])
def test_what_is_no_camera_is_refused(tmp_path, data, message):
    np.savez(tmp_path / "bad.npz", **data)
    with pytest.raises(InputError, match=f"bad.npz: .*{message}"):
        trajectory.read_cameras(tmp_path / "bad.npz", K)


def test_what_is_no_camera_file_is_refused_in_one_line(tmp_path):
    np.savez(tmp_path / "whole.npz", c2w=np.tile(np.eye(4), (5, 1, 1)))
    whole = (tmp_path / "whole.npz").read_bytes()
    changed = bytearray(whole)
    changed[300] ^= 1
    object_array = np.array([{}])
    np.save(tmp_path / "objects.npy", object_array, allow_pickle=True)
    with zipfile.ZipFile(tmp_path / "text.npz", "w") as file:
        file.writestr("c2w.npy", "no array")
    for name, data in (
        ("cut.npz", whole[:500]), ("cut2.npz", whole[:-3]), ("changed.npz", bytes(changed)),
        ("empty.npy", b""), ("text.npy", b"text"), ("cut.json", b'{"c2w": ['), ("num.json", b"5"),
        ("latin.json", "{\"é\": 1}".encode("latin1")), ("null.json", b'{"c2w": null}'),
        ("ragged.json", b'{"c2w": [[1, 2], [3]]}'),
    ):
        (tmp_path / name).write_bytes(data)
    (tmp_path / "whole.npz").unlink()
    for path in tmp_path.iterdir():
        with pytest.raises(InputError, match=path.name) as error:
            trajectory.read_cameras(path, K)
        assert "\n" not in str(error.value)


def read_json(tmp_path, data, frames=5):
    path = tmp_path / "c.json"
    path.write_text(json.dumps(data))
    return trajectory.read_cameras(path, np.tile(np.diag([100.0, 100, 1]), (frames, 1, 1)))


def test_keys_are_spread_over_the_video_and_turn_at_an_even_pace(tmp_path):
    turned = np.eye(4)
    a = np.radians(40)
    turned[:3, :3] = [[np.cos(a), 0, np.sin(a)], [0, 1, 0], [-np.sin(a), 0, np.cos(a)]]
    turned[:3, 3] = [2, 0, -1]
    cameras = read_json(tmp_path, {"keys": [np.eye(4).tolist(), turned.tolist()]})
    forward = cameras.c2w[:, :3, 2]
    degrees = np.degrees(np.arctan2(forward[:, 0], forward[:, 2]))
    np.testing.assert_allclose(degrees, [0, 10, 20, 30, 40], atol=1e-6)
    np.testing.assert_allclose(cameras.c2w[:, 0, 3], [0, 0.5, 1, 1.5, 2], atol=1e-9)
    np.testing.assert_allclose(cameras.c2w[-1], turned, atol=1e-9)
    one = read_json(tmp_path, {"keys": [turned.tolist()]})
    np.testing.assert_allclose(one.c2w, np.tile(turned, (5, 1, 1)), atol=1e-9)


@pytest.mark.parametrize("keys, message", [
    ([[1, 2]], "keys are int64 of shape"),
    ([[["a"] * 4] * 4], "keys are <U1 of shape"),
    (np.zeros((2, 4, 4)).tolist(), "keys: pose 0 has the last row 0 0 0 0"),
    ([[[1, 2], [3]]], "not a readable JSON"),
])
def test_keys_that_are_no_poses_are_refused(tmp_path, keys, message):
    with pytest.raises(InputError, match=message):
        read_json(tmp_path, {"keys": keys})


def test_the_ten_paths_of_davis_are_as_published(tmp_path):
    """Pans of 20 degrees, tilts of 10, zooms of 2 m, up and down with 14, arcs with 30."""
    expected = {  # yaw to the right, pitch up (degrees), right, down, forward (m), at the end
        "pan_left": (-20, 0, 0, 0, 0), "pan_right": (20, 0, 0, 0, 0),
        "tilt_up": (0, 10, 0, 0, 0), "tilt_down": (0, -10, 0, 0, 0),
        "zoom_in": (0, 0, 0, 0, 2), "zoom_out": (0, 0, 0, 0, -2),
        "up": (0, -14, 0, -1, -0.12), "down": (0, 14, 0, 1, -0.12),
        "arc_left": (30, 0, -2, 0, 0.01), "arc_right": (-30, 0, 2, 0, 0.01),
    }
    paths = sorted((ROOT / "trajs" / "davis10").glob("*.json"))
    assert [path.stem[3:] for path in paths] == list(expected)
    k = np.tile(np.diag([100.0, 100, 1]), (49, 1, 1))
    for path, (yaw, pitch, *place) in zip(paths, expected.values(), strict=True):
        cameras = trajectory.read_cameras(path, k)
        np.testing.assert_allclose(cameras.c2w[0], np.eye(4), atol=1e-9)
        x, y, z = cameras.c2w[-1, :3, 2]
        np.testing.assert_allclose(np.degrees([np.arctan2(x, z), np.arcsin(-y)]), [yaw, pitch],
                                   atol=1e-5)
        np.testing.assert_allclose(cameras.c2w[-1, :3, 3], place, atol=1e-9)
        np.testing.assert_allclose(cameras.c2w[24, :3, 3], np.array(place) / 2, atol=1e-9)
