"""A sequence folder: one video, its depth and, where there are any, its cameras.

Everything is checked once, when the folder is opened.
"""

import itertools
import lzma
import struct
import tokenize
import zipfile
import zlib
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

from utils import cli, files, geometry, video
from utils.cli import InputError

DEPTH = "cam_info/megasam_depth.npy"
INTRINSICS = "cam_info/megasam_intrinsics.npy"
C2WS = "cam_info/megasam_c2ws.npy"
VERDICT = "cam_info/geometry.json"  # of estimate_geometry.py

# What numpy and json raise for a file that is not what its name says, or is cut off.
UNREADABLE = (ValueError, KeyError, TypeError, EOFError, RuntimeError, MemoryError, SyntaxError,
              OverflowError, tokenize.TokenError, struct.error, zipfile.BadZipFile, zlib.error,
              lzma.LZMAError)
TOLERANCE = 1e-3  # by which a rotation may be none, and a focal length's share of skew


@dataclass(frozen=True)
class Sequence:
    """An opened folder.

    info: VideoInfo of gt_rgb.mp4. depth_map: [N, h, w] float16 or float32, memory-mapped.
    intrinsics: float64 [N, 3, 3], in pixels of the video. c2w: float64 [N, 4, 4], camera to world,
    OpenCV, or None. notes: what its user should know of it.
    """

    path: Path
    info: video.VideoInfo
    depth_map: np.ndarray
    intrinsics: np.ndarray
    c2w: np.ndarray | None
    notes: tuple = ()

    @property
    def rgb_path(self):
        return self.path / "gt_rgb.mp4"

    @property
    def size(self):
        """(width, height) of the video."""
        return self.info.width, self.info.height

    def depth(self, start, stop):
        """z-depth of frames start..stop at the video's size, float32 [n, H, W]; 0 where unknown.

        Bilinear with half-pixel centres. A pixel is known if all the depths that it is made from
        are finite and positive.
        """
        raw = torch.from_numpy(np.array(self.depth_map[start:stop], np.float32))[:, None]
        good = torch.isfinite(raw) & (raw > 0)
        size = (self.info.height, self.info.width)
        depth = F.interpolate(raw.where(good, 1), size, mode="bilinear", align_corners=False)
        if not good.all():
            weight = F.interpolate(good.float(), size, mode="bilinear", align_corners=False)
            depth = depth.where(weight > 0.9999, 0)
        return depth[:, 0]

    @cached_property
    def pivot_depth(self):
        """Depth at the centre pixel of the first frame: R of the orbits, before --radius_scale.

        Raises InputError if it is unknown.
        """
        centre = self.depth(0, 1)[0, self.info.height // 2, self.info.width // 2]
        if centre == 0:
            raise InputError(f"{self.path}: the depth at the centre of the first frame, which the "
                             "paths turn about, is not a positive number; fill it in, or give "
                             "--pivot")
        return centre.item()

    @cached_property
    def bad_depth_share(self):
        """Share of depth values that are not positive finite numbers; they become holes."""
        shares = [np.mean(~(np.isfinite(depth) & (depth > 0))) for depth in self.depth_map]
        return float(np.mean(shares))


def load_array(path, shapes):
    """An .npy of numbers whose shape is one of `shapes` (None stands for any size).

    It is memory-mapped and never unpickled. Raises InputError.
    """
    if not path.is_file():
        raise InputError(f"{path}: no such file (file flags are relative to the sequence folder)")
    names = files.names_in_npz(path)
    if names is not None:
        raise InputError(f"{path}: got an npz of {cli.short(', '.join(names))}; expected an .npy "
                         "of numbers")
    header = files.headers(path, ["npy"])["npy"]
    fits = any(_has_shape(header.shape, shape) for shape in shapes)
    if not fits or not header.numeric or header.nbytes == 0:
        expected = " or ".join(str(shape) for shape in shapes).replace("None", "any")
        raise InputError(f"{path}: got {header}; expected numbers of shape {expected}")
    return files.map_npy(path, header)


def _has_shape(got, shape):
    filled = [have if size is None else size for size, have in zip(shape, got, strict=False)]
    return len(got) == len(shape) and got == tuple(filled)


def half_if_exact(depth):
    """Depth as float16 if that keeps every value to 1e-3, else as it is."""
    with np.errstate(over="ignore"):
        half = depth.astype(np.float16)
    exact = (np.abs(a - b) <= 1e-3 * b for a, b in zip(half, depth, strict=True))
    return half if all(each.all() for each in exact) else depth


def save_array(path, array):
    """Write an .npy beside its name and move it into place."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with files.whole(path) as part, open(part, "wb") as file:
        np.save(file, array)


def check_poses(name, poses):
    """Raise InputError unless poses [..., 4, 4] are each a rotation and a translation.

    name: where they come from, for the message. The rotation may be off by 1e-3.
    """
    for index, pose in enumerate(np.asarray(poses, np.float64).reshape(-1, 4, 4)):
        with np.errstate(all="ignore"):  # near the largest numbers there are, products are none
            fault = _fault_of_pose(pose)
        if fault:
            raise InputError(f"{name}: pose {index} {fault}; expected rotations and translations: "
                             "finite numbers, R R^T = 1, determinant 1, last row 0 0 0 1")


def _fault_of_pose(pose):
    """What keeps a matrix [4, 4] from being a rotation and a translation, or None."""
    rotation = pose[:3, :3]
    if not np.isfinite(pose).all():
        return "holds numbers that are not finite"
    if not np.allclose(pose[3], [0, 0, 0, 1], atol=1e-6):
        return f"has the last row {_numbers(pose[3])}"
    off = np.abs(rotation @ rotation.T - np.eye(3)).max()
    if not off <= TOLERANCE:  # where products are none, off is none
        return f"is scaled, sheared or no rotation at all: R R^T is off by {off:.3g}"
    if np.linalg.det(rotation) < 0:
        return "is mirrored: its determinant is -1"
    return None


def check_intrinsics(name, k, size=None):
    """Raise InputError unless matrices k [..., 3, 3] are each the K of a pinhole camera.

    name: where they come from, for the message. K is fx 0 cx, 0 fy cy, 0 0 1, in pixels.
    size: (width, height) of the picture, if the principal point has to lie inside it.
    """
    for index, matrix in enumerate(np.asarray(k, np.float64).reshape(-1, 3, 3)):
        if not _is_pinhole(matrix):
            rows = ", ".join(_numbers(row) for row in matrix)
            raise InputError(f"{name}: K {index} is {rows}; expected positive focal lengths and a "
                             "pinhole camera's K: fx 0 cx, 0 fy cy, 0 0 1")
        centre = matrix[:2, 2]
        if size and not ((centre > 0) & (centre < size)).all():
            raise InputError(f"{name}: K {index} has its principal point at {_numbers(centre)}; "
                             f"expected it inside the picture, {size[0]} x {size[1]}")


def _is_pinhole(k):
    focal = k[[0, 1], [0, 1]]
    skew = np.abs(k[[0, 1], [1, 0]])
    finite = np.isfinite(k).all() and (k[2] == [0, 0, 1]).all()
    return finite and (focal > 0).all() and (skew <= TOLERANCE * focal).all()


def _numbers(row):
    return " ".join(f"{number:.6g}" for number in row)


def video_intrinsics(path, info, depth_shape):
    """(K at the video's resolution, float64 [N, 3, 3], notes) from a file at the depth map's.

    Without a file, the focal length is 500 pixels and the centre that of the picture.
    """
    notes = []
    k = np.array([[500, 0, info.width // 2], [0, 500, info.height // 2], [0, 0, 1]], np.float64)
    if path:
        k = load_array(path, [(3, 3), (info.frames, 3, 3)])
        check_intrinsics(path, k)
        size = info.width, info.height
        k, note = geometry.in_video_pixels(path, k, depth_shape[::-1], size)
        check_intrinsics(f"{path}, in pixels of the video", k, size)
        notes += [note] if note else []
    return np.broadcast_to(k, (info.frames, 3, 3)), notes


def camera_poses(path, frames):
    """Camera to world of every frame, float64 [N, 4, 4], from a file."""
    c2w = np.array(load_array(path, [(frames, 4, 4)]), np.float64)
    check_poses(path, c2w)
    return c2w


def open_sequence(path, depth_file=DEPTH, intrinsics_file=None, extrinsics_file=None):
    """Open and check a sequence folder; the files are relative to it. Raises InputError."""
    path = Path(path)
    if not path.is_dir():
        raise InputError(f"{path}: no such folder; expected a sequence folder with gt_rgb.mp4 and "
                         f"{DEPTH}")
    info = video.probe(path / "gt_rgb.mp4")
    if depth_file == DEPTH and not (path / DEPTH).is_file():
        raise InputError(f"{path / DEPTH}: no such file; toolbox/geometry/estimate_geometry.py "
                         f"--data_path {path} makes it of the video alone, convert_depth.py of "
                         "another program's depth")
    depth_map = load_array(path / depth_file, [(None, None, None)])
    if len(depth_map) != info.frames:
        raise InputError(f"{path / depth_file}: got {len(depth_map)} depth maps for the "
                         f"{info.frames} frames of gt_rgb.mp4; expected one a frame")
    geometry.check_shape(path / depth_file, depth_map.shape[:0:-1], (info.width, info.height))
    k_path = path / intrinsics_file if intrinsics_file else None
    k, notes = video_intrinsics(k_path, info, depth_map.shape[1:])
    c2w = camera_poses(path / extrinsics_file, info.frames) if extrinsics_file else None
    seq = Sequence(path, info, depth_map, k, c2w, tuple(notes))
    if c2w is not None:
        check_direction(path / extrinsics_file, seq)
    return seq


def doubts(path):
    """What estimate_geometry.py says against a folder's cameras, a list of sentences.

    Empty if nothing, or if the cameras are not its: it wrote down the hash of those that are.
    """
    file = Path(path) / VERDICT
    cameras = Path(path) / C2WS
    if not file.is_file() or not cameras.is_file():
        return []
    record = files.read_json(file)
    if record.get("c2ws_hash") != cli.file_hash(cameras) or not record.get("flags"):
        return []
    said = record.get("verdict")
    return [cli.short(sentence, 300) for sentence in said] if isinstance(said, list) else []


def check_direction(name, seq, frames=None):
    """InputError if a Sequence's poses are seen to be world to camera.

    frames: uint8 [H, W, 3] each, in place of gt_rgb.mp4's.
    """
    size = np.array([seq.info.height, seq.info.width])
    small = np.maximum(1, np.round(size * min(1, geometry.SIDE / size.max()))).astype(int)
    height, width = small.tolist()
    frames = video.iter_frames(seq.rgb_path) if frames is None else frames
    pictures = []
    depths = []
    for t, frame in enumerate(itertools.islice(frames, geometry.EARLY)):
        pictures.append(video.resize(frame[None], height, width)[0])
        depth = F.interpolate(seq.depth(t, t + 1)[None], (height, width), mode="nearest-exact")
        depths.append(depth[0, 0].numpy())
    count = len(pictures)
    k = seq.intrinsics[:count] * geometry.scale(size[::-1], (width, height))
    geometry.check_poses_move(name, np.stack(pictures), np.stack(depths), k, seq.c2w[:count])
