import cv2
import numpy as np
import pytest

from utils import geometry
from utils.cli import InputError


@pytest.mark.parametrize("size, video_size", [
    ((240, 160), (480, 320)),
    ((427, 240), (854, 480)),
    ((518, 294), (1920, 1080)),  # multiples of 14
    ((832, 512), (854, 480)),  # multiples of 64, each side rounded by itself
    ((584, 328), (854, 480)),
    ((294, 518), (1080, 1920)),
    ((7, 5), (96, 64)),  # a pixel is much there
    ((101, 100), (100, 100)),
])
def test_depth_of_the_whole_picture_is_taken(size, video_size):
    geometry.check_shape("d.npy", size, video_size)


@pytest.mark.parametrize("size, video_size, message", [
    ((144, 96), (96, 144), "expected the same way up"),
    ((294, 518), (1920, 1080), "expected the same way up"),
    ((564, 360), (640, 360), "12% apart; expected the whole picture"),
    ((640, 320), (640, 360), "12% apart; expected the whole picture"),
    ((896, 576), (1024, 576), "12% apart"),
    ((512, 512), (854, 480), "44% apart"),
    ((600, 360), (640, 360), "6% apart"),  # of no multiples
    ((1024, 768), (1920, 1080), "25% apart"),
])
def test_turned_and_cropped_depth_is_refused(size, video_size, message):
    with pytest.raises(InputError, match=message) as error:
        geometry.check_shape("d.npy", size, video_size)
    for width, height in (size, video_size):
        assert f"{width} x {height}" in str(error.value)


def k_of(width, height, focal=1.2, at=(0.5, 0.5)):
    """K of a picture of that size; focal: in widths; at: the principal point, of the sides."""
    return np.array([[focal * width, 0, at[0] * width], [0, focal * width, at[1] * height],
                     [0, 0, 1]])


@pytest.mark.parametrize("size", [(96, 64), (48, 32), (190, 126)])
@pytest.mark.parametrize("at", [(0.5, 0.5), (0.495, 0.505), (0.56, 0.42), (0.35, 0.6)])
def test_k_at_the_depth_maps_size_comes_to_the_videos(size, at):
    k, note = geometry.in_video_pixels("k.npy", k_of(*size, at=at), size, (192, 128))
    np.testing.assert_allclose(k, k_of(192, 128, at=at), rtol=0.02)
    assert note is None


@pytest.mark.parametrize("k, taken", [
    (k_of(192, 128), "at the video's size, 192 x 128, not at the depth maps' size, 96 x 64"),
    (k_of(192, 128)[None].repeat(3, 0), "at the video's size, 192 x 128"),
    (k_of(192, 128, at=(0.53, 0.46)), "at the video's size, 192 x 128"),
    (k_of(192, 128) / [[192], [128], [1]], "at size 1 (normalised), not at"),
])
def test_k_at_the_videos_size_or_normalised_is_known_by_its_centre(k, taken):
    in_video, note = geometry.in_video_pixels("k.npy", k, (96, 64), (192, 128))
    assert "k.npy: K has its principal point at " in note and taken in note
    np.testing.assert_allclose(in_video[..., 0, 0], 1.2 * 192)
    np.testing.assert_allclose(in_video[..., 1, 1], 1.2 * 192)
    assert (np.abs(in_video[..., :2, 2] - [96, 64]) < 10).all()


@pytest.mark.parametrize("k, got", [
    (k_of(1920, 1080), "960 540, as of a picture of about 1920 x 1080"),
    (k_of(40, 30), "20 15, as of a picture of about 40 x 30"),
    (k_of(128, 192), "64 96"),  # of the picture on its side
    (k_of(96, 64, at=(0.99, 0.5)), "95.04 32"),
    (k_of(96, 64, at=(-0.5, 0.5)), "-48 32"),
    (k_of(96, 64, at=(0, 0)), "0 0"),
])
def test_k_of_another_size_is_refused(k, got):
    with pytest.raises(InputError, match=f"principal point at {got}") as error:
        geometry.in_video_pixels("k.npy", k, (96, 64), (192, 128))
    assert "96 x 64" in str(error.value)


def wall(poses, moving=False):
    """A textured wall at depth 4 and a post at depth 2, seen by cameras that shift and turn.

    moving: a patch of the picture goes its own way. Returns (frames, depth, k).
    """
    rng = np.random.default_rng(0)
    texture = cv2.GaussianBlur(rng.integers(0, 255, (400, 400, 3)).astype(np.uint8), (0, 0), 4)
    texture = cv2.normalize(texture, None, 0, 255, cv2.NORM_MINMAX)
    k = k_of(96, 64)
    v, u = np.mgrid[:64, :96]
    rays = np.stack([u, v, np.ones_like(u)], -1) @ np.linalg.inv(k).T
    frames = []
    depths = []
    for t, pose in enumerate(poses):
        towards = rays @ pose[:3, :3].T  # in the world, from the camera's place
        z = (4 - pose[2, 3]) / towards[..., 2]
        points = pose[:3, 3] + z[..., None] * towards
        at = (points[..., :2] * 60 + 200).astype(np.float32)
        frame = cv2.remap(texture, at[..., 0], at[..., 1], cv2.INTER_LINEAR)
        if moving:
            frame[10:40, 3 * t : 3 * t + 30] = texture[:30, :30]
        frames.append(frame)
        depths.append(z)
    return np.stack(frames), np.stack(depths), np.tile(k, (len(poses), 1, 1))


def path(shift=(0, 0, 0), turn=0.0, frames=12):
    """Camera to world of a camera that shifts by so much, and turns by so many degrees, a frame."""
    poses = np.tile(np.eye(4), (frames, 1, 1))
    for t in range(frames):
        angle = np.radians(turn * t)
        poses[t, [0, 0, 2, 2], [0, 2, 0, 2]] = [np.cos(angle), np.sin(angle), -np.sin(angle),
                                                np.cos(angle)]
        poses[t, :3, 3] = np.array(shift) * t
    return poses


@pytest.mark.parametrize("moving", [False, True])
@pytest.mark.parametrize("poses", [
    path((0.05, 0, 0)), path((0, -0.04, 0.02)), path(turn=1.5), path((-0.04, 0, 0), turn=-1),
    path((0, 0, 0.08)),
])
def test_world_to_camera_given_as_camera_to_world_is_told_by_the_scene(poses, moving):
    frames, depth, k = wall(poses, moving)
    geometry.check_poses_move("c2w.npy", frames, depth, k, poses)
    with pytest.raises(InputError, match="c2w.npy: .* are world to camera; expected camera to w"):
        geometry.check_poses_move("c2w.npy", frames, depth, k, np.linalg.inv(poses))


def test_where_direction_cannot_be_told_poses_are_taken():
    still = path()
    frames, depth, k = wall(still)
    geometry.check_poses_move("c2w.npy", frames, depth, k, np.linalg.inv(path((0.05, 0, 0))))
    frames, depth, k = wall(path((0.05, 0, 0)))
    geometry.check_poses_move("c2w.npy", frames, depth * 0, k, still)
    geometry.check_poses_move("c2w.npy", frames[:1], depth[:1], k[:1], still[:1])
    geometry.check_poses_move("c2w.npy", frames * 0 + 9, depth, k, still)
