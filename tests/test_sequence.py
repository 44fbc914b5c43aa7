import numpy as np
import pytest
from skimage.transform import resize

from utils import sequence
from utils.cli import InputError


def replace(room, name, array):
    np.save(room / "cam_info" / name, array)


def test_depth_comes_at_the_videos_size_with_half_pixel_centres(room):
    small = np.random.default_rng(0).random((17, 20, 30)).astype(np.float16) + 1
    replace(room, "megasam_depth.npy", small)
    depth = sequence.open_sequence(room).depth(3, 5).numpy()
    how = {"order": 1, "mode": "symmetric", "anti_aliasing": False}
    assert depth.dtype == np.float32 and len(depth) == 2
    for got, raw in zip(depth, small[3:5].astype(float), strict=True):
        np.testing.assert_allclose(got, resize(raw, (64, 96), **how), rtol=1e-5)


def test_intrinsics_go_from_the_depth_map_to_the_video(room):
    replace(room, "megasam_depth.npy", np.ones((17, 32, 47), np.float32))
    replace(room, "k.npy", np.array([[10, 0, 23], [0, 20, 15], [0, 0, 1]], np.float32))
    s = np.sqrt(47 / 96 / 2)
    for k_file in ("cam_info/k.npy", "cam_info/ks.npy"):
        replace(room, "ks.npy", np.load(room / "cam_info" / "k.npy")[None].repeat(17, 0))
        k = sequence.open_sequence(room, intrinsics_file=k_file).intrinsics
        assert k.shape == (17, 3, 3)
        np.testing.assert_allclose(k[9], [[10 / s, 0, 23 * 96 / 47], [0, 20 / s, 30], [0, 0, 1]])
    k = sequence.open_sequence(room).intrinsics
    np.testing.assert_array_equal(k[9], [[500, 0, 48], [0, 500, 32], [0, 0, 1]])


def test_the_pivot_lies_at_the_first_frames_centre(room):
    depth = np.ones((17, 64, 96), np.float16)
    depth[0, 32, 48] = 3.5
    replace(room, "megasam_depth.npy", depth)
    assert sequence.open_sequence(room).pivot_depth == 3.5


def test_depth_that_is_no_positive_number_is_unknown(room):
    depth = np.ones((17, 64, 96), np.float16)
    depth[2, :4, :8] = np.nan
    depth[2, 4:8, :8] = -1
    depth[2, 8:12, :8] = np.inf
    replace(room, "megasam_depth.npy", depth)
    seq = sequence.open_sequence(room)
    unknown = np.zeros((64, 96), bool)
    unknown[:12, :8] = True
    assert np.array_equal(seq.depth(2, 3)[0] == 0, unknown)
    assert seq.bad_depth_share == pytest.approx(96 / (17 * 64 * 96))


@pytest.mark.parametrize("array, message", [
    (np.ones((16, 64, 96), np.float16), "got 16 depth maps for the 17 frames"),
    (np.ones((64, 96), np.float16), r"got float16 of shape \(64, 96\); expected numbers of shape"),
    (np.array([{}] * 17), "not a readable .npy"),
])
def test_depth_of_another_shape_is_refused(room, array, message):
    np.save(room / "cam_info" / "megasam_depth.npy", array, allow_pickle=True)
    with pytest.raises(InputError, match=message):
        sequence.open_sequence(room)


def changed(matrix, row, column, value):
    matrix = np.array(matrix, np.float64)
    matrix[..., row, column] = value
    return matrix


SHEAR = changed(np.eye(4), 0, 1, 0.1)
BAD_POSES = {
    "zero": (np.zeros((4, 4)), "last row 0 0 0 0"),
    "ones": (np.ones((4, 4)), "last row 1 1 1 1"),
    "scaled": (np.diag([2, 2, 2, 1]), "off by 3"),
    "flat": (np.diag([1, 1, 0, 1]), "off by 1"),
    "sheared, of determinant 1": (SHEAR, "off by 0.1"),
    "mirrored": (np.diag([1, 1, -1, 1]), "mirrored"),
    "projective": (changed(np.eye(4), 3, 2, 0.1), "last row 0 0 0.1 1"),
    "scaled as a whole": (changed(np.eye(4), 3, 3, 2), "last row 0 0 0 2"),
    "not finite": (changed(np.eye(4), 0, 3, np.nan), "not finite"),
}
BAD_KS = {
    "zero": np.zeros((3, 3)),
    "no focal length": np.diag([0, 100, 1]),
    "mirrored": np.diag([100, -100, 1]),
    "transposed": changed(np.diag([100, 100, 1]), 2, 0, 48),
    "scaled as a whole": np.diag([100, 100, 2]),
    "skewed": changed(np.diag([100, 100, 1]), 0, 1, 5),
    "turned": changed(np.diag([100, 100, 1]), 1, 0, 5),
    "not finite": changed(np.diag([100, 100, 1]), 0, 2, np.inf),
}


@pytest.mark.parametrize("name", BAD_POSES)
def test_what_is_no_camera_pose_is_refused(room, name):
    pose, message = BAD_POSES[name]
    c2ws = np.load(room / sequence.C2WS)
    assert sequence.open_sequence(room, extrinsics_file=sequence.C2WS).c2w.shape == (17, 4, 4)
    c2ws[5] = pose
    replace(room, "c2ws.npy", c2ws)
    with pytest.raises(InputError, match=f"c2ws.npy: pose 5 .*{message}.*; expected rot") as error:
        sequence.open_sequence(room, extrinsics_file="cam_info/c2ws.npy")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", BAD_KS)
def test_what_is_no_k_is_refused(room, name):
    replace(room, "k.npy", BAD_KS[name])
    with pytest.raises(InputError, match="k.npy: K 0 is .*expected positive focal lengths"):
        sequence.open_sequence(room, intrinsics_file="cam_info/k.npy")


def test_validators_pass_what_files_hold():
    rotation, _ = np.linalg.qr(np.random.default_rng(0).normal(size=(20, 3, 3)))
    rotation *= np.linalg.det(rotation)[:, None, None]
    poses = np.tile(np.eye(4), (20, 1, 1))
    poses[:, :3, :3] = rotation
    sequence.check_poses("poses", poses.astype(np.float32))
    sequence.check_poses("one", np.eye(4, dtype=int))
    k = np.array([[100, 1e-9, 48], [0, 90, 32], [0, 0, 1]], np.float32)
    sequence.check_intrinsics("k", k, (96, 64))
    with pytest.raises(InputError, match="principal point at 48 32; .* 40 x 64"):
        sequence.check_intrinsics("k", k, (40, 64))


def test_a_file_that_is_cut_off_is_refused(room):
    whole = (room / sequence.DEPTH).read_bytes()
    for kept in (0, 5, 90, len(whole) - 1):
        (room / sequence.DEPTH).write_bytes(whole[:kept])
        with pytest.raises(InputError, match="depth.npy: not a readable .npy") as error:
            sequence.open_sequence(room)
        assert "\n" not in str(error.value)
    np.savez(room / "depth.npz", depth=np.ones((17, 64, 96)))
    whole = (room / "depth.npz").read_bytes()
    for kept, message in ((len(whole), "got an npz of depth"), (900, "not a readable .npy")):
        (room / "cut.npz").write_bytes(whole[:kept])
        with pytest.raises(InputError, match=message):
            sequence.open_sequence(room, "cut.npz")


def test_depth_k_and_poses_that_are_not_the_videos_are_refused(room):
    files = {"intrinsics_file": sequence.INTRINSICS, "extrinsics_file": sequence.C2WS}
    assert sequence.open_sequence(room, **files).notes == ()
    replace(room, "megasam_c2ws.npy", np.linalg.inv(np.load(room / sequence.C2WS)))
    with pytest.raises(InputError, match="c2ws.npy: .* world to camera; expected camera to world"):
        sequence.open_sequence(room, **files)
    replace(room, "megasam_intrinsics.npy", np.array([[500, 0, 480], [0, 500, 320], [0, 0, 1]]))
    with pytest.raises(InputError, match="intrinsics.npy: .* at 480 320, as of .* 960 x 640; exp"):
        sequence.open_sequence(room, **files)
    replace(room, "megasam_depth.npy", np.ones((17, 96, 64), np.float32))
    with pytest.raises(InputError, match="depth.npy: got depth maps of 64 x 96 .* 96 x 64"):
        sequence.open_sequence(room, **files)
