"""Depth of each frame made better by what other frames saw, once the cameras are known.

First each pixel's disparity is triangulated from the optical flow to a few other frames, and mixed
with what it was by their deviations. Then it is averaged with what the frames nearby say of the
same point. Where frames do not agree, as at what moves or is hidden, it stays.
"""

if __name__ == "__main__":
    raise SystemExit("error: a module, not a program; toolbox/README.md lists the programs")

import cv2
import numpy as np

from toolbox.geometry import matches, solver

STRIDES = (3, 8)  # of the flow that is triangulated, both ways
NEAR = (1, 2, 4)  # frames away that are averaged with
ROUNDS = 3
FLOW_PX = 0.4  # deviation of the flow
REACH_PX = 1.0  # of the kernel of its residual
DEPTH = 0.05  # deviation of the logarithm of disparity before
AGREE = 0.06  # reach of the kernel of differences in log disparity
SMOOTH = 1.5  # pixels over which corrections are averaged, by their weights


def lifted(state, disparity, frame):
    """A frame's disparity [h, w] as the solver moved it: exp(grid) times it, plus the shift."""
    height, width = disparity.shape
    grid = state.grid[frame].reshape(solver.GRID).astype(np.float32)
    y, x = np.indices((height, width), dtype=np.float32)
    x *= (solver.GRID[1] - 1) / (width - 1)
    y *= (solver.GRID[0] - 1) / (height - 1)
    gain = np.exp(cv2.remap(grid, x, y, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE))
    least = solver.LEAST * np.median(disparity)
    return np.maximum(gain * disparity + np.float32(state.shift[frame]), least)


def ray_grid(size, focal):
    """Rays float32 [h, w, 3], z = 1, of a picture of a size (h, w)."""
    height, width = size
    y, x = np.indices(size, dtype=np.float32)
    return np.stack([(x - width // 2) / focal, (y - height // 2) / focal, np.ones_like(x)], -1)


def motion(w2c, a, b):
    """(R, t) from a's camera to b's, float32."""
    relative = w2c[b] @ np.linalg.inv(w2c[a])
    return relative[:3, :3].astype(np.float32), relative[:3, 3].astype(np.float32)


def triangulated(state, greys, disparity, frame, rays):
    """The disparity [h, w] of a frame after a look at the flow to other frames."""
    d = disparity[frame]
    height, width = d.shape
    information = np.zeros_like(d)
    product = np.zeros_like(d)
    y, x = np.indices(d.shape, dtype=np.float32)
    for other in around(frame, len(greys), STRIDES):
        forward, _, good, _ = matches.flow_both_ways(greys[frame], greys[other])
        R, t = motion(state.w2c, frame, other)
        turned = rays @ R.T
        depth = np.maximum(turned[..., 2] + d * t[2], 0.05)
        for axis, middle in enumerate((width // 2, height // 2)):
            place = (x, y)[axis] + forward[..., axis] - middle
            slope = (state.focal * t[axis] - place * t[2]) / depth
            wanted = (place * turned[..., 2] - state.focal * turned[..., axis]) / depth
            weight = good * solver.kernel((slope * d - wanted) ** 2, REACH_PX) / FLOW_PX**2
            information += weight * slope**2
            product += weight * slope * (wanted - slope * d)
    relative = information * d**2  # of the logarithm
    change = cv2.GaussianBlur(product * d, (0, 0), SMOOTH)
    change /= cv2.GaussianBlur(relative, (0, 0), SMOOTH) + 1 / DEPTH**2
    return d * np.exp(np.clip(change, -0.3, 0.3))


def around(frame, count, strides):
    """The frames so many away, both ways, that there are."""
    found = []
    for stride in strides:
        found += [t for t in (frame - stride, frame + stride) if 0 <= t < count]
    return found


def averaged(state, disparity, frame, rays):
    """The disparity of a frame averaged with that of the frames nearby, where they agree."""
    d = disparity[frame]
    total = np.ones_like(d)
    change = np.zeros_like(d)
    for other in around(frame, len(disparity), NEAR):
        R, t = motion(state.w2c, frame, other)
        ahead = rays @ R.T + d[..., None] * t
        depth = np.maximum(ahead[..., 2], 0.05)
        x = state.focal * ahead[..., 0] / depth + d.shape[1] // 2
        y = state.focal * ahead[..., 1] / depth + d.shape[0] // 2
        there = cv2.remap(disparity[other], x, y, cv2.INTER_LINEAR, borderValue=0)
        difference = np.log(np.maximum(there, 1e-9) / d * depth)
        weight = solver.kernel(difference**2, AGREE)
        total += weight
        change += weight * difference
    return d * np.exp(change / total)


def fuse(state, greys, disparity, progress=None):
    """Disparity float32 [N, h, w] made better, from what the solver's State makes of it."""
    rays = ray_grid(disparity.shape[1:], state.focal)
    now = np.stack([lifted(state, each, t) for t, each in enumerate(disparity)])
    still = np.linalg.norm(np.diff(np.linalg.inv(state.w2c)[:, :3, 3], axis=0), axis=1).max() == 0
    if not still:
        after = []
        for t in range(len(now)):
            after.append(triangulated(state, greys, now, t, rays))
            if progress:
                progress.update()
        now = np.stack(after)
    for _ in range(ROUNDS):
        now = np.stack([averaged(state, now, t, rays) for t in range(len(now))])
    return now
