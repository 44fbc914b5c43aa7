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
    expected = [resize(d.astype(float), (64, 96), order=1, mode="symmetric", anti_aliasing=False) for d in small[3:5]]
    assert depth.dtype == np.float32
    np.testing.assert_allclose(depth, expected, rtol=1e-5)


def test_intrinsics_go_from_the_depth_map_to_the_video(room):
    replace(room, "megasam_depth.npy", np.ones((17, 32, 24), np.float32))  # sx = 1/4, sy = 1/2
    replace(room, "k.npy", np.array([[10, 0, 6], [0, 20, 8], [0, 0, 1]], np.float32))
    s = np.sqrt(1 / 8)
    for k_file in ("cam_info/k.npy", "cam_info/ks.npy"):
        replace(room, "ks.npy", np.load(room / "cam_info" / "k.npy")[None].repeat(17, 0))
        k = sequence.open_sequence(room, intrinsics_file=k_file).intrinsics
        assert k.shape == (17, 3, 3)
        np.testing.assert_allclose(k[9], [[10 / s, 0, 24], [0, 20 / s, 16], [0, 0, 1]])
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
    assert np.array_equal(seq.depth(2, 3)[0] == 0, np.pad(np.ones((12, 8), bool), ((0, 52), (0, 88))))
    assert seq.bad_depth_share == pytest.approx(96 / (17 * 64 * 96))


@pytest.mark.parametrize("array, message", [
    (np.ones((16, 64, 96), np.float16), "got 16 depth maps for the 17 frames"),
    (np.ones((64, 96), np.float16), r"got float16 of shape \(64, 96\); expected numbers of shape \(any, any, any\)"),
    (np.array([{}] * 17), "not a readable .npy"),
])  # fmt: skip
def test_depth_of_another_shape_is_refused(room, array, message):
    np.save(room / "cam_info" / "megasam_depth.npy", array, allow_pickle=True)
    with pytest.raises(InputError, match=message):
        sequence.open_sequence(room)


def test_cameras_that_are_none_are_refused(room):
    replace(room, "k.npy", np.zeros((3, 3)))
    with pytest.raises(InputError, match="positive focal lengths"):
        sequence.open_sequence(room, intrinsics_file="cam_info/k.npy")
    replace(room, "c2ws.npy", np.ones((17, 4, 4)))
    with pytest.raises(InputError, match="camera-to-world"):
        sequence.open_sequence(room, extrinsics_file="cam_info/c2ws.npy")
    assert sequence.open_sequence(room, extrinsics_file=sequence.C2WS).c2w.shape == (17, 4, 4)
