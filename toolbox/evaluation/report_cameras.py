"""Source and new cameras, and some points of the scene, for toolbox/make_report.py to draw.

A camera is [x, y, z, and the way it looks], in OpenCV's axes of the first source camera and, where
there is depth, in units of that at the centre of the first frame: the usual radius of the orbits.
"""

if __name__ == "__main__":
    raise SystemExit("error: a module, not a program; toolbox/README.md lists the programs")

import numpy as np

from utils import sequence, trajectory

GRID = (18, 27)  # rows and columns of points of the first frame


def open_sequence(root):
    """The folder as data_gen.py opens it; None without depth. Raises InputError."""
    if not (root / sequence.DEPTH).is_file():
        return None
    has_k = (root / sequence.INTRINSICS).is_file()
    return sequence.open_sequence(root, intrinsics_file=sequence.INTRINSICS if has_k else None)


def add_cameras(root, seq, clips, frames):
    """Put "cameras", and "about" them, into clips {number of a path: clip}; {"source", "points"}.

    seq: the opened Sequence, or None. The source stands still if its poses are not there.
    """
    source = np.tile(np.eye(4), (frames, 1, 1))
    if (root / sequence.C2WS).is_file():
        poses = sequence.camera_poses(root / sequence.C2WS, frames)
        source = np.linalg.inv(poses[0]) @ poses
    depth = seq.depth(0, 1)[0].numpy() if seq else np.ones((1, 1))
    unit = float(depth[depth.shape[0] // 2, depth.shape[1] // 2]) or 1.0
    for number, clip in clips.items():
        path = root / f"eval_cameras{number}.npz"
        if path.is_file():
            cameras = trajectory.read_cameras(path, np.tile(np.eye(3), (frames, 1, 1)))
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
