import json
import zipfile
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import ROOT

from utils import camera_paths, trajectory
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
    keys = camera_paths.read_keyframes(ROOT / "trajs" / f"{name}.txt")
    assert list(keys.values()) == [[float(x) for x in line.split()] for line in SHIPPED[name]]


@pytest.mark.parametrize("text", [
    "", "0 1\n0 1\n", "0 1\n0 x\n0 0\n", "0 nan\n0 0\n0 0\n", "0\n0\n0\n0\n", "0\n1e999\n0\n",
])
def test_what_is_no_path_is_refused_in_one_line(tmp_path, text):
    (tmp_path / "bad.txt").write_text(text)
    with pytest.raises(InputError, match=r"bad.txt.*expected three lines") as error:
        camera_paths.read_keyframes(tmp_path / "bad.txt")
    assert "\n" not in str(error.value)


WRITTEN = "0 -40\n0 5 7\n0 -0.2\n"


@pytest.mark.parametrize("text", [
    "0, -40\n0,5,7\n0 , -0.2\n", "# a path\n\n0 -40 # left\n#0 1\n0 5 7#8 9\n \n0 -0.2 #\n#",
    "0\t-40,\r\n,0,,5 7\r\n  ,\r\n0 -0.2\r\n# the end, with commas",
])
def test_comments_and_commas_change_no_number(tmp_path, text):
    for name, written in (("a.txt", WRITTEN), ("b.txt", text)):
        (tmp_path / name).write_bytes(written.encode())
    expected = camera_paths.read_keyframes(tmp_path / "a.txt")
    assert camera_paths.read_keyframes(tmp_path / "b.txt") == expected


@pytest.mark.parametrize("text, message", [
    ("0 1\n0 1\n# 0 1\n", "got 2 lines"), ("0;1\n0\n0\n", "could not convert"),
    ("0 1 // left\n0\n0\n", "could not convert"), ("0, nan\n0\n0\n", "not finite"),
    ("0" + ",1" * 1000 + "\n0\n0\n", "a line of 1001 numbers"),
])
def test_comments_and_commas_hide_no_fault(tmp_path, text, message):
    (tmp_path / "bad.txt").write_text(text)
    with pytest.raises(InputError, match=f"bad.txt: .*{message}.*expected three lines"):
        camera_paths.read_keyframes(tmp_path / "bad.txt")


# ---- --trajs -------------------------------------------------------------------------------------


@pytest.mark.parametrize("preset, axis, sign", [
    ("orbit_left", 0, -1), ("orbit_right", 0, 1), ("arc_up", 1, -1), ("arc_down", 1, 1),
    ("dolly_in", 2, 1), ("dolly_out", 2, -1), ("dolly_out:1.5", 2, -1), ("dolly_in:-1.5", 2, -1),
])
def test_presets_go_where_they_say(preset, axis, sign):
    """The camera's last position in the source camera: x right, y down, z forward."""
    cameras = trajectory.keyframe_cameras(camera_paths.preset_keyframes(preset), K, 2.0)
    position = cameras.c2w[-1, :3, 3]
    assert np.argmax(np.abs(position)) == axis and np.sign(position[axis]) == sign
    assert cameras.frames.tolist() == [0, 1, 2, 3, 4] and not cameras.frozen
    assert np.array_equal(cameras.c2w[0], np.eye(4))


@pytest.mark.parametrize("preset, factor", [
    ("zoom_out:0.5", 0.5), ("zoom_in:1.5", 2.5), ("zoom_in:-0.5", 0.5), ("zoom_out:-1.5", 2.5),
])
def test_a_zoom_changes_the_focal_length_alone(preset, factor):
    zoom = trajectory.keyframe_cameras(camera_paths.preset_keyframes(preset), K, 2.0)
    expected = [[100 * factor, 0, 50], [0, 90 * factor, 40], [0, 0, 1]]
    np.testing.assert_allclose(zoom.intrinsics[-1], expected)
    assert np.array_equal(zoom.c2w, np.tile(np.eye(4), (5, 1, 1)))


def test_bullet_time_freezes_the_middle_frame():
    cameras = trajectory.keyframe_cameras(camera_paths.preset_keyframes("bullet_time"), K, 2.0)
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
        camera_paths.preset_keyframes(preset)


# ---- joined and eased ---------------------------------------------------------------------------


def found(trajs):
    """{name: keyframes with lists} of a --trajs."""
    paths = {}
    for name, keys in camera_paths.find_paths(trajs, None, K, (100, 80)):
        paths[name] = {axis: np.asarray(values).tolist() for axis, values in keys.items()}
    return paths


@pytest.mark.parametrize("item, keys", [
    ("dolly_in:0.15+orbit_right:8", {"r": [0, 0.15], "phi": [0, 8]}),
    ("orbit_left:20@ease", {"phi": [0, -20], "ease": True}),
    ("dolly_in + arc_up:3 @ease", {"r": [0, 0.3], "theta": [0, 3], "ease": True}),
    ("bullet_time:9+bullet_time+zoom_in:1", {"phi": [0, -39], "zoom": [1, 2], "frozen": True}),
    ("dolly_in:1.2+dolly_out:0.5", {"r": [0, 0.7]}), (" arc_up:4", {"theta": [0, 4]}),
    ("orbit_left:1e+1", {"phi": [0, -10]}), ("orbit_left:+5", {"phi": [0, -5]}),
    ("orbit_left:-5e+0+arc_up:+1E+1@ease", {"phi": [0, 5], "theta": [0, 10], "ease": True}),
])
def test_presets_joined_and_eased(item, keys):
    paths = found(item)
    assert list(paths) == [item]
    assert paths[item].keys() == keys.keys()
    for axis, values in keys.items():
        np.testing.assert_allclose(paths[item][axis], values, atol=1e-12)


def test_files_folders_and_patterns_are_eased_too(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "user@host").mkdir()
    for name in ("a", "b"):
        (tmp_path / f"user@host/{name}.txt").write_text("0 4\n0\n0\n")
    plain = {"phi": [0, 4], "theta": [0], "r": [0]}
    two = dict.fromkeys(["user@host/a.txt@ease", "user@host/b.txt@ease"], plain | {"ease": True})
    assert found("user@host@ease") == found("user@host/?.txt@ease") == two
    assert found("user@host/a.txt@ease,user@host/b.txt@ease") == two
    assert found("user@host/b.txt") == {"user@host/b.txt": plain}


@pytest.mark.parametrize("name", [
    "dolly_in+orbit_right", "spiral@ease", "a+b", "a@ease", "a@other", "x+spiral", "spiral+", "a,b",
])
@pytest.mark.parametrize("folder", [False, True])
def test_what_is_there_is_meant_by_its_whole_name(tmp_path, monkeypatch, name, folder):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / name / "c.txt" if folder else tmp_path / name
    path.parent.mkdir(exist_ok=True)
    path.write_text("0 4\n0\n0\n")
    plain = {"phi": [0, 4], "theta": [0], "r": [0]}
    label = f"{name}/c.txt" if folder else f"{tmp_path.name}/{name}"
    for item in (name, f"{tmp_path}/{name}"):
        assert [*found(item).values()] == [plain]
        assert [*found(f"{item}@ease").values()] == [plain | {"ease": True}]
    assert list(found(f"{tmp_path}/{name}@ease")) == [f"{label}@ease"]


def test_a_folder_named_as_a_preset_does_not_hide_the_preset(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "arc_up").mkdir()
    assert found("arc_up,arc_up@ease") == {
        "arc_up": {"theta": [0, 10]}, "arc_up@ease": {"theta": [0, 10], "ease": True},
    }


@pytest.mark.parametrize("item, message", [
    ("orbit_left:5+", "got '' for a preset"), ("+orbit_left", "got '' for a preset"),
    ("orbit_left++arc_up", "got '' for a preset"), ("orbit_left + 5", "got '5' for a preset"),
    ("orbit_lift:2+arc_up", "got 'orbit_lift:2' for a preset; expected orbit_left, orbit_right"),
    ("trajs/traj1.txt+arc_up", "got 'trajs/traj1.txt' for a preset"),
    ("orbit_left:5+5", "got the amount '5[+]5'; expected a number of degrees"),
    ("orbit_left+arc_up:far", "got the amount 'far'; expected a number of degrees"),
    ("orbit_left+arc_up:2e6", "got the amount '2e6'"),
    ("dolly_in:0.6+dolly_in:0.5", "a move of 1.1 radii"), ("dolly_in:0.9+spiral", "a move of 1 ra"),
    ("zoom_out:0.5+zoom_out:1", "a focal length of 0 times"),
    ("zoom_in:-1.5+zoom_in", "a focal length of -0.6 times"),
    ("orbit_left:9e5+orbit_left:9e5", "got phi beyond 1e[+]06 in all"),
    ("+".join(["zoom_in:1e6"] * 60), "got zoom beyond 1e[+]06 in all"),
    ("orbit_left@other", "got '@other'; expected @ease once"), ("orbit_left@", "got '@'"),
    ("orbit_left@ease@ease", "got '@ease@ease'"), ("orbit_left@ease:5", "got '@ease:5'"),
    ("orbit_left@other@ease", "got '@other@ease'"), ("arc_up@ease+arc_up", "got '@ease[+]arc_up'"),
    (f"{ROOT}/trajs@other", "got '@other'"), (f"{ROOT}/trajs/*.txt@ease@ease", "got '@ease@ease'"),
    ("nowhere@ease", "'nowhere': no such file or camera path; .* @ease may follow"),
    ("@ease", "'': no such"), ("arc_up@ease,", "'': no such"), ("arc_upp+arc_dawn", "no such file"),
    ("a" * 300 + "+b", "no such file"),
])
def test_what_is_no_item_is_refused_in_one_line(item, message):
    with pytest.raises(InputError, match=f"^--trajs .*{message}") as error:
        found(item)
    text = str(error.value)
    assert "\n" not in text and len(text) < 400


def test_cameras_of_a_file_are_as_they_are_and_need_no_pivot(tmp_path):
    np.savez(tmp_path / "a.npz", c2w=np.eye(4))
    ((name, path),) = camera_paths.find_paths(None, str(tmp_path / "a.npz"), K, (100, 80))
    assert name == "a.npz" and camera_paths.cameras_of(path, K, None) is path
    np.savez(tmp_path / "a.npz", c2w=np.eye(4), intrinsics=K[0] * [[9], [9], [1]])
    with pytest.raises(InputError, match="a.npz: intrinsics: K 0 has its principal point at 450"):
        camera_paths.find_paths(None, str(tmp_path / "a.npz"), K, (100, 80))


def test_without_trajs_the_shipped_paths_are_found():
    paths = camera_paths.find_paths(None, None, K, (100, 80))
    assert [name for name, _ in paths] == [f"trajs/{name}.txt" for name in SHIPPED]
    for name, path in paths:
        expected = trajectory.keyframe_cameras(path, K, 3.0)
        np.testing.assert_array_equal(camera_paths.cameras_of(path, K, 3.0).c2w, expected.c2w, name)


# ---- the pivot -----------------------------------------------------------------------------------


@pytest.fixture
def seq():
    """A stand-in for a Sequence of 100 x 80 whose depth grows to the right; one pixel is unknown"""
    depth = torch.linspace(2, 3, 100).repeat(1, 80, 1)
    depth[0, 20, 30] = 0
    return SimpleNamespace(size=(100, 80), intrinsics=K, depth=lambda start, stop: depth,
                           pivot_depth=2.5)


def test_the_pivot_is_the_point_that_is_seen_at_a_pixel(seq):
    for text in ("90,10", "90, 10", " 90 10 ", "9e1,1e1"):
        pivot = camera_paths.find_pivot(text, seq)
        assert pivot.dtype == np.float64 and pivot.shape == (3,)
        np.testing.assert_allclose(pivot[2], 2 + 90 / 99)
        np.testing.assert_allclose(K[0] @ pivot / pivot[2], [90, 10, 1])
        said = camera_paths.pivot_in_words(2 * pivot, K[0])
        assert said == "orbit about (90, 10) at depth 5.818"
    between = camera_paths.find_pivot("99,0.25", seq)
    np.testing.assert_allclose(between, [49 * 3 / 100, -39.75 * 3 / 90, 3])


@pytest.mark.parametrize("text, depth", [(None, 2.5), ("7", 7), (" 0.5 ", 0.5), ("1e+2", 100)])
def test_a_depth_lies_on_the_optical_axis(seq, text, depth):
    pivot = camera_paths.find_pivot(text, seq)
    assert pivot.tolist() == [0, 0, depth]
    assert camera_paths.pivot_in_words(pivot, K[0]) == f"orbit radius {depth:g}"


@pytest.mark.parametrize("text, message", [
    ("100,10", "lies outside the picture; expected x from 0 to 99 and y from 0 to 79"),
    ("5,79.5", "lies outside"), ("-1, 5", "lies outside"), ("5 -1", "lies outside"),
    ("30,20", "the depth there in the first frame is not a positive number; give another pixel"),
    ("0", "expected x,y in pixels"), ("-2", "expected x,y in pixels"), ("nan", "expected x,y"),
    ("inf", "expected x,y"), ("1e7", "up to 1e[+]06"), ("", "expected x,y"), ("5,", "expected x,y"),
    ("a,b", "expected x,y"), ("1,2,3", "expected x,y"), ("nan,5", "expected x,y"),
    ("5;6", "expected x,y"), ("9" * 5000, "expected x,y"),
])
def test_what_is_no_pivot_is_refused_in_one_line(seq, text, message):
    with pytest.raises(InputError, match=f"^--pivot .*{message}") as error:
        camera_paths.find_pivot(text, seq)
    assert "\n" not in str(error.value) and len(str(error.value)) < 400


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
        cameras = camera_paths.read_cameras(tmp_path / name, K)
        np.testing.assert_array_equal(cameras.c2w, np.tile(c2w, (5, 1, 1)))
        np.testing.assert_array_equal(cameras.intrinsics, K)
        assert cameras.frames.tolist() == [0, 1, 2, 3, 4]


def test_cameras_that_are_written_come_back(tmp_path):
    keys = camera_paths.preset_keyframes("bullet_time")
    written = trajectory.keyframe_cameras(keys, K, 2.0)
    camera_paths.write_cameras(tmp_path / "a.npz", written)
    read = camera_paths.read_cameras(tmp_path / "a.npz", K)
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
        camera_paths.read_cameras(tmp_path / "bad.npz", K)


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
            camera_paths.read_cameras(path, K)
        assert "\n" not in str(error.value)


def read_json(tmp_path, data, frames=5):
    path = tmp_path / "c.json"
    path.write_text(json.dumps(data))
    return camera_paths.read_cameras(path, np.tile(np.diag([100.0, 100, 1]), (frames, 1, 1)))


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
        cameras = camera_paths.read_cameras(path, k)
        np.testing.assert_allclose(cameras.c2w[0], np.eye(4), atol=1e-9)
        x, y, z = cameras.c2w[-1, :3, 2]
        np.testing.assert_allclose(np.degrees([np.arctan2(x, z), np.arcsin(-y)]), [yaw, pitch],
                                   atol=1e-5)
        np.testing.assert_allclose(cameras.c2w[-1, :3, 3], place, atol=1e-9)
        np.testing.assert_allclose(cameras.c2w[24, :3, 3], np.array(place) / 2, atol=1e-9)
