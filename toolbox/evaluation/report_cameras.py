"""Source and new cameras, and some points of the scene, for toolbox/make_report.py to draw.

A camera is [x, y, z, and the way it looks], in OpenCV's axes of the first source camera and, where
there is depth, in units of that at the centre of the first frame: the usual radius of the orbits.
"""

if __name__ == "__main__":
    raise SystemExit("error: a module, not a program; toolbox/README.md lists the programs")

from dataclasses import replace

import numpy as np

import data_gen
from toolbox.evaluation.report_records import saying
from utils import camera_paths, sequence, trajectory, video

GRID = (18, 27)  # rows and columns of points of the first frame


def open_sequence(root, frames, numbers, notes):
    """(Sequence or None, its c2w or None): the folder as it was opened for renders of `numbers`.

    Without depth there is no Sequence. Words on what cannot be read go to `notes`.
    """
    poses = None
    if (root / sequence.C2WS).is_file():
        with saying(notes):
            poses = sequence.camera_poses(root / sequence.C2WS, frames)
    found = []
    for k_file in (sequence.INTRINSICS, None):
        if (root / sequence.DEPTH).is_file() and (k_file is None or (root / k_file).is_file()):
            with saying(notes):
                seq = sequence.open_sequence(root, intrinsics_file=k_file)
                found.append(replace(seq, c2w=poses))
    if not found:
        return None, poses
    seq = max(found, key=lambda seq: sum(agrees(root, seq, number) for number in numbers))
    if poses is not None:
        with saying(notes):
            sequence.check_direction(root / sequence.C2WS, seq)
            return seq, poses
    return replace(seq, c2w=None), None


def agrees(root, seq, number):
    """Whether a render was made with a Sequence's K and, if it is fused, its poses.

    What does not say counts as made so: renders of other programs, or none at all.
    """
    render = root / f"eval_render{number}.mp4"
    made_of = (video.made_of(render) if render.is_file() else None) or {}
    if "source_cameras" not in made_of:
        return True
    arrays = [seq.intrinsics]
    if made_of.get("fuse_static"):
        if seq.c2w is None:
            return False
        arrays.append(seq.c2w)
    return made_of["source_cameras"] == data_gen.hash_of(arrays)


def add_cameras(root, seq, poses, clips, frames):
    """Put "cameras", and "about" them, into clips {number of a path: clip}; {"source", "points"}.

    seq, poses: of open_sequence. The source stands still if its poses are not there.
    """
    source = np.tile(np.eye(4), (frames, 1, 1))
    if poses is not None:
        source = np.linalg.inv(poses[0]) @ poses
    depth = seq.depth(0, 1)[0].numpy() if seq else np.ones((1, 1))
    unit = float(depth[depth.shape[0] // 2, depth.shape[1] // 2]) or 1.0
    for number, clip in clips.items():
        path = root / f"eval_cameras{number}.npz"
        if path.is_file() and seq and not agrees(root, seq, number):
            clip["notes"].append("Its cameras are left out: the render was made with other "
                                 "intrinsics or poses than those in cam_info/.")
        elif path.is_file():
            with saying(clip["notes"]):
                cameras = camera_paths.read_cameras(path, np.tile(np.eye(3), (frames, 1, 1)))
                clip["cameras"] = track(source[cameras.frames] @ cameras.c2w, unit)
                clip["about"] = in_words(cameras, unit)
    points = scene_points(seq, depth) / unit if seq else np.empty((0, 3))
    return {"source": track(source, unit), "points": points.round(4).tolist()}


def track(c2w, unit):
    return np.concatenate([c2w[:, :3, 3] / unit, c2w[:, :3, 2]], 1).round(5).tolist()


def scene_points(seq, depth):
    """Points of the first frame, [n, 3]; the farthest tenth, which may be the sky, is left out."""
    rows = np.linspace(0, depth.shape[0] - 1, GRID[0] + 2)[1:-1].astype(int)
    columns = np.linspace(0, depth.shape[1] - 1, GRID[1] + 2)[1:-1].astype(int)
    x, y = np.meshgrid(columns, rows)
    z = depth[y, x].astype(float)
    rays = np.stack([x, y, np.ones_like(x)], -1) @ np.linalg.inv(seq.intrinsics[0]).T
    known = z > 0
    if known.any():
        known &= z <= np.percentile(z[known], 90)
    return (rays * z[..., None])[known]


def in_words(cameras, unit):
    """Where a path goes at its farthest, such as "20° left, 8° down"."""
    if cameras.frozen:
        return "time stands still"
    phi, theta, _ = trajectory.angles(cameras.c2w, unit)
    words = []
    for angle, ways in ((phi, ("left", "right")), (theta, ("down", "up"))):
        most = angle[np.abs(angle).argmax()]
        if abs(most) >= 1:
            words.append(f"{abs(most):.0f}° {ways[int(most > 0)]}")
    forward = cameras.c2w[:, 2, 3] / unit
    most = forward[np.abs(forward).argmax()]
    if not words and abs(most) >= 0.02:
        words.append(f"{abs(most):.0%} {'closer' if most > 0 else 'back'}")
    return ", ".join(words)
