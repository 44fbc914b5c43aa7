"""Depth of each frame made better by what other frames saw, once the cameras are known.

First each pixel's disparity is triangulated from the optical flow to a few other frames, and mixed
with what it was by their deviations. Then it is averaged with what the frames nearby say of the
same point. Where frames do not agree, as at what moves or is hidden, it stays.
"""

if __name__ == "__main__":
    raise SystemExit("error: a module, not a program; toolbox/README.md lists the programs")

from typing import NamedTuple

import cv2
import numpy as np

from toolbox.geometry import matches, solver

STRIDES = (4, 12, 24)  # of the flow that is triangulated, both ways
NEAR = (-4, -2, -1, 1, 2, 4)  # frames away that are averaged with
ROUNDS = 3
FLOW_PX = 0.4  # deviation of the flow
REACH_PX = 1.0  # of the kernel of its residual
DEPTH = 0.05  # deviation of the logarithm of disparity before
AGREE = 0.06  # reach of the kernel of differences in log disparity
SMOOTH = (16, 5, 1.5)  # pixels over which corrections are averaged, by their weights, one by one
EDGE = 0.1  # of the logarithm of disparity, across three pixels
EDGE_SHARE = 0.6


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


def triangulated(state, flows, disparity, rays):
    """The disparity [h, w] of a frame after a look at its Flows to other frames.

    First what whole regions are off by is taken out, and last what a few pixels are.
    """
    d = disparity.copy()
    for smooth in SMOOTH:
        information = np.zeros_like(d)
        product = np.zeros_like(d)
        for flow in flows:
            slopes, miss = linear(state, flow, d, rays)
            reach = solver.kernel(np.square(miss).sum(0), REACH_PX)
            weight = flow.good * reach / FLOW_PX**2
            information += weight * np.square(slopes).sum(0)
            product -= weight * (slopes * miss).sum(0)
        change = cv2.GaussianBlur(product * d, (0, 0), smooth)  # of the logarithm
        change /= cv2.GaussianBlur(information * d**2, (0, 0), smooth) + 1 / DEPTH**2
        d *= np.exp(np.clip(change, -0.3, 0.3))
    return d


def linear(state, flow, d, rays):
    """(slopes, miss), float32 [2, h, w]: what a small change of d adds to miss, in x and y: how far
    d and the cameras put each pixel from where the flow does, pixels."""
    height, width = d.shape
    y, x = np.indices(d.shape, dtype=np.float32)
    (R,), (t,) = solver.motions(state.w2c, np.array([[flow.frame, flow.other]]))
    turned = rays @ R.T
    depth = np.maximum(turned[..., 2] + d * t[2], 0.05)
    slopes = np.empty((2, height, width), np.float32)
    miss = np.empty_like(slopes)
    for axis, place in enumerate((x - width // 2, y - height // 2)):
        place = place + flow.there[..., axis]
        slopes[axis] = (state.focal * t[axis] - place * t[2]) / depth
        wanted = (place * turned[..., 2] - state.focal * turned[..., axis]) / depth
        miss[axis] = slopes[axis] * d - wanted
    return slopes, miss


class Flow(NamedTuple):
    """Optical flow from a frame to an other: there, float32 [h, w, 2], and where it is good."""

    frame: int
    other: int
    there: np.ndarray
    good: np.ndarray


def each_frames_flows(greys):
    """The Flows of every frame, frame by frame."""
    back = {}
    for frame in range(len(greys)):
        flows = [back.pop((frame, frame - stride)) for stride in STRIDES if frame >= stride]
        for other in (frame + stride for stride in STRIDES if frame + stride < len(greys)):
            there, and_back, good, good_back = matches.flow_both_ways(greys[frame], greys[other])
            flows.append(Flow(frame, other, there, good))
            back[other, frame] = Flow(other, frame, and_back, good_back)
        yield flows


def averaged(state, disparity, frame, rays):
    """The disparity of a frame averaged with that of the frames nearby, where they agree."""
    d = disparity[frame]
    total = np.ones_like(d)
    change = np.zeros_like(d)
    for other in (frame + away for away in NEAR if 0 <= frame + away < len(disparity)):
        (R,), (t,) = solver.motions(state.w2c, np.array([[frame, other]]))
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


def sharpened(disparity):
    """Disparity [h, w] whose pixels halfway up an edge go to the nearer of its two sides.

    An edge is where a few pixels hold most of what a larger part around them differs by (toggle
    mapping by the neighbours' greatest and least: Kramer and Bruckner, 1975). 0 is a hole.
    """
    log = np.log(np.maximum(disparity, 1e-9))
    high, low = span(log, 3)
    high_around, low_around = span(log, 9)
    edge = (high - low > EDGE) & (high - low > EDGE_SHARE * (high_around - low_around))
    edge &= low > np.log(1e-8)
    nearer = np.where(2 * log > high + low, high, low)
    return np.where(edge, np.exp(nearer), disparity)


def span(picture, side):
    """(the greatest, the least) of the square around each pixel."""
    square = np.ones((side, side), np.uint8)
    return cv2.dilate(picture, square), cv2.erode(picture, square)


def fuse(state, greys, disparity, progress=None):
    """Disparity float32 [N, h, w] made better, from what the solver's State makes of it."""
    rays = ray_grid(disparity.shape[1:], state.focal)
    now = np.stack([lifted(state, each, t) for t, each in enumerate(disparity)])
    still = np.linalg.norm(np.diff(np.linalg.inv(state.w2c)[:, :3, 3], axis=0), axis=1).max() == 0
    if not still:
        after = []
        for t, flows in enumerate(each_frames_flows(greys)):
            after.append(triangulated(state, flows, now[t], rays))
            if progress:
                progress.update()
        now = np.stack(after)
    for _ in range(ROUNDS):
        now = np.stack([averaged(state, now, t, rays) for t in range(len(now))])
    return now
