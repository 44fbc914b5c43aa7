"""Which camera path a video shows, by toolbox/geometry, and how far that is from the one asked for.

Poses are camera to world, float64 [N, 4, 4], OpenCV.
"""

if __name__ == "__main__":
    raise SystemExit("error: a module, not a program; toolbox/README.md lists the programs")

import itertools
from typing import NamedTuple

import numpy as np
import torch

from toolbox.geometry import matches, search, shots, verdict
from utils import fusion, video

STEP = 2  # frames from one to the next that is looked at
DOUBTFUL = ("no_parallax", "wrong_fit")  # the verdict's others are of frames without STEP


class CameraErrors(NamedTuple):
    """rotation_deg: mean over frames. translation_percent: RMS distance of the camera's places, of
    the length of the path; None where the path has none. doubts: sentences against both."""

    rotation_deg: float
    translation_percent: float | None
    doubts: list


def aligned_errors(c2w, truth):
    """(mean rotation in degrees, RMS distance of camera centres in percent of the path's length)
    after the best similarity; nan for the second where the camera stays in its place."""
    centres = c2w[:, :3, 3] - c2w[:, :3, 3].mean(0)
    wanted = truth[:, :3, 3] - truth[:, :3, 3].mean(0)
    turn = nearest_rotation(np.einsum("nij,nkj->ik", truth[:, :3, :3], c2w[:, :3, :3]))
    angles = [turn_deg(turn @ a, b) for a, b in zip(c2w[:, :3, :3], truth[:, :3, :3], strict=True)]
    path = np.linalg.norm(np.diff(truth[:, :3, 3], axis=0), axis=1).sum()
    if path < 1e-6:
        return np.mean(angles), np.nan
    rotated = centres @ nearest_rotation(wanted.T @ centres).T
    scale = (rotated * wanted).sum() / max((rotated**2).sum(), 1e-12)
    error = np.sqrt(np.square(scale * rotated - wanted).sum(1).mean())
    return np.mean(angles), 100 * error / path


def nearest_rotation(matrix):
    u, _, vt = np.linalg.svd(matrix)
    return u @ np.diag([1, 1, np.sign(np.linalg.det(u @ vt))]) @ vt


def turn_deg(a, b):
    """The angle between two rotations, degrees."""
    return np.degrees(np.arccos(np.clip((np.trace(a.T @ b) - 1) / 2, -1, 1)))


def path_errors(output, seq, cameras, sources):
    """CameraErrors of a video against trajectory.Cameras; None if the focal length changes.

    seq: the sequence.Sequence that was reprojected; its depth, seen from the cameras asked for, is
    the video's but for smooth errors. sources: {span: c2w [N, 4, 4]}, where its own cameras stand,
    of each of the windows that long videos are looked at in, whose errors are averaged.
    """
    k = cameras.intrinsics
    if not np.allclose(k, k[0]):
        return None
    errors = []
    doubts = []
    info = video.probe(output)
    for span, source_c2w in sources.items():
        frames = np.arange(*span)[::STEP]
        motion = np.linalg.inv(cameras.c2w)
        depths = [seen_depth(seq, cameras, motion, t) for t in frames]
        c2w, found = recovered(output, frames, np.concatenate(depths), k[0], info)
        asked = source_c2w[cameras.frames] @ cameras.c2w
        errors.append(aligned_errors(c2w, asked[frames]))
        doubts += found
    turn, place = np.mean(errors, axis=0)
    place = float(place) if np.isfinite(place) else None
    return CameraErrors(float(turn), place, list(dict.fromkeys(doubts)))


def seen_depth(seq, cameras, motion, frame):
    """z of what the target camera of an output frame sees of its source frame, [1, H, W]."""
    source = cameras.frames[frame]
    arrays = motion[frame], seq.intrinsics[source], cameras.intrinsics[frame]
    moved, k, k_target = (torch.from_numpy(array[None].copy()) for array in arrays)
    return fusion.z_buffer(seq.depth(source, source + 1), moved, k, k_target).numpy()


def source_cameras(seq):
    """{span: c2w [N, 4, 4]} of a sequence's own cameras, for each window of its frames.

    Its poses where it has some; else they are recovered from it, in the unit of its depth as far as
    the video tells. Each window is then a world of its own, and frames that are not looked at lie
    halfway between their neighbours.
    """
    spans = shots.windows(0, seq.info.frames)
    if seq.c2w is not None:
        return dict.fromkeys(spans, seq.c2w)
    found = {}
    for span in spans:
        frames = np.arange(*span)[::STEP]
        depth = np.concatenate([seq.depth(t, t + 1).numpy() for t in frames])
        c2w = np.tile(np.eye(4), (seq.info.frames, 1, 1))
        c2w[frames], _ = recovered(seq.rgb_path, frames, depth, seq.intrinsics[0], seq.info)
        for t in sorted(set(range(*span)).difference(frames.tolist())):
            c2w[t] = shots.between(c2w[t - 1], c2w[min(t + 1, frames[-1])], 0.5)
        found[span] = c2w
    return found


def recovered(path, frames, depth, k, info):
    """(c2w, doubts) of some frames of a video. depth: their z [n, H, W], 0 where unknown."""
    size = matches.picture_size(info.height, info.width)
    inverse = np.divide(1, depth, out=np.zeros_like(depth), where=depth > 0)
    unit = shots.unit_of(inverse)
    greys = []
    wanted = set(frames.tolist())
    for t, frame in enumerate(itertools.islice(video.iter_frames(path), max(wanted) + 1)):
        if t in wanted:
            greys.append(matches.to_grey(frame, size))
    disparity, mask = shots.small_disparity(inverse, size)
    window = shots.Window(greys, disparity / np.float32(unit), mask)
    problem = shots.make_problem(window, k[0, 0] * size[1] / info.width, True)
    state = search.search(problem, size, fixed_focal=True)
    measured, misfit = verdict.measure(state, problem, fixed_focal=True)
    flags, sentences = verdict.judge([measured], misfit, [])
    doubts = [said for flag, said in zip(flags, sentences, strict=False) if flag in DOUBTFUL]
    c2w = np.linalg.inv(shots.in_units(state).w2c)
    c2w[:, :3, 3] /= unit
    return c2w, doubts
