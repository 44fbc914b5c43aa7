"""A sequence folder: one video, its depth and, where there are any, its cameras, checked once when opened."""

import zipfile
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

from utils import video
from utils.cli import InputError

DEPTH, INTRINSICS, C2WS = (f"cam_info/megasam_{name}.npy" for name in ("depth", "intrinsics", "c2ws"))


@dataclass(frozen=True)
class Sequence:
    """An opened folder.

    info: VideoInfo of gt_rgb.mp4. depth_map: [N, h, w] float16 or float32, memory-mapped. intrinsics: [N, 3, 3]
    float64, pixels of the video. c2w: [N, 4, 4] float64, OpenCV, camera to world, or None.
    """

    path: Path
    info: video.VideoInfo
    depth_map: np.ndarray
    intrinsics: np.ndarray
    c2w: np.ndarray | None

    @property
    def rgb_path(self):
        return self.path / "gt_rgb.mp4"

    def depth(self, start, stop):
        """z-depth of frames start..stop at the video's size, float32 [n, H, W]; 0 where it is unknown.

        Bilinear with half-pixel centres. A pixel is known if all the depths it is made from are finite and positive.
        """
        raw = torch.from_numpy(np.array(self.depth_map[start:stop], np.float32))[:, None]
        good = torch.isfinite(raw) & (raw > 0)
        size = (self.info.height, self.info.width)
        depth = F.interpolate(raw.where(good, 1), size, mode="bilinear", align_corners=False)
        if not good.all():
            valid = F.interpolate(good.float(), size, mode="bilinear", align_corners=False) > 0.9999
            depth = depth.where(valid, 0)
        return depth[:, 0]

    @cached_property
    def pivot_depth(self):
        """Depth at the centre pixel of the first frame: R of the orbits, before --radius_scale."""
        depth = self.depth(0, 1)[0, self.info.height // 2, self.info.width // 2].item()
        if depth == 0:
            raise InputError(f"{self.path}: the depth at the centre of the first frame, which the paths turn about, is "
                             "not a positive number; fill it in")
        return depth

    @cached_property
    def bad_depth_share(self):
        """Share of depth values that are not positive finite numbers; they become holes."""
        return float(np.mean([np.mean(~(np.isfinite(d) & (d > 0))) for d in self.depth_map]))


def load_array(path, shapes):
    """An .npy of numbers whose shape is one of `shapes` (None stands for any size); never unpickles."""
    if not path.is_file():
        raise InputError(f"{path}: no such file (file flags are relative to the sequence folder)")
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
        array = array if isinstance(array, np.ndarray) else np.array(array.files)  # an npz: told by its dtype below
    except (ValueError, EOFError, zipfile.BadZipFile) as error:
        raise InputError(f"{path}: not a readable .npy of numbers ({error})") from error
    fits = [len(s) == array.ndim and all(a in (None, b) for a, b in zip(s, array.shape, strict=True)) for s in shapes]
    if not any(fits) or array.dtype.kind not in "fiu" or array.size == 0:
        expected = " or ".join(str(s).replace("None", "any") for s in shapes)
        raise InputError(f"{path}: got {array.dtype} of shape {array.shape}; expected numbers of shape {expected}")
    return array


def half_if_exact(depth):
    """Depth as float16 if that keeps every value to 1e-3, else as it is."""
    with np.errstate(over="ignore"):
        half = depth.astype(np.float16)
    return half if (np.abs(half - depth) <= 1e-3 * depth).all() else depth


def save_array(path, array):
    """Write an .npy beside its name and move it into place."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f"{path.name}.part")
    with open(part, "wb") as file:
        np.save(file, array)
    part.replace(path)


def video_intrinsics(path, info, depth_shape):
    """K at the video's resolution, float64 [N, 3, 3], from a file at the depth map's; without a file, focal 500."""
    if not path:
        k = np.array([[500, 0, info.width // 2], [0, 500, info.height // 2], [0, 0, 1]], np.float64)
        return np.tile(k, (info.frames, 1, 1))
    k = np.array(load_array(path, [(3, 3), (info.frames, 3, 3)]), np.float64)
    pinhole = np.isfinite(k).all() and (k[..., [0, 1], [0, 1]] > 0).all() and (k[..., 2, :] == [0, 0, 1]).all()
    if not pinhole:
        raise InputError(f"{path}: expected K at the depth map's resolution: positive focal lengths, last row 0 0 1")
    sx, sy = depth_shape[1] / info.width, depth_shape[0] / info.height
    k[..., [0, 1], [0, 1]] /= np.sqrt(sx * sy)
    k[..., 0, 2] /= sx
    k[..., 1, 2] /= sy
    return np.broadcast_to(k, (info.frames, 3, 3))


def camera_poses(path, frames):
    """c2w, float64 [N, 4, 4], each a rotation and a translation."""
    c2w = np.array(load_array(path, [(frames, 4, 4)]), np.float64)
    rotates = np.allclose(c2w[:, :3, :3] @ c2w[:, :3, :3].transpose(0, 2, 1), np.eye(3), atol=1e-3)
    if not rotates or not np.allclose(c2w[:, 3], [0, 0, 0, 1]):
        raise InputError(f"{path}: expected camera-to-world matrices (a rotation, a translation, last row 0 0 0 1)")
    return c2w


def open_sequence(path, depth_file=DEPTH, intrinsics_file=None, extrinsics_file=None):
    """Open and check a sequence folder; the file arguments are relative to it. Raises InputError."""
    path = Path(path)
    if not path.is_dir():
        raise InputError(f"{path}: no such folder; expected a sequence folder with gt_rgb.mp4 and {DEPTH}")
    info = video.probe(path / "gt_rgb.mp4")
    depth_map = load_array(path / depth_file, [(None, None, None)])
    if len(depth_map) != info.frames:
        raise InputError(f"{path / depth_file}: got {len(depth_map)} depth maps for the {info.frames} frames of "
                         "gt_rgb.mp4; expected one a frame")
    k = video_intrinsics(intrinsics_file and path / intrinsics_file, info, depth_map.shape[1:])
    c2w = camera_poses(path / extrinsics_file, info.frames) if extrinsics_file else None
    return Sequence(path, info, depth_map, k, c2w)
