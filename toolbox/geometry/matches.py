"""Points of a video that are found again in other frames, by optical flow.

DIS optical flow looks from frame to frame at several strides, both ways. Points are kept where
forward and backward flow agree, and each is then refined by Lucas and Kanade's method.
"""

if __name__ == "__main__":
    raise SystemExit("error: a module, not a program; toolbox/README.md lists the programs")

from typing import NamedTuple

import cv2
import numpy as np

STRIDES = (1, 2, 4, 8, 16, 32)
POINTS = 400  # of a pair of frames
LONG_SIDE = (384, 512)  # pixels of the pictures that are looked at, at least and at most
AGREE_PX = 1.0  # forward and backward flow differ by no more than this
AGREE_SHARE = 0.02  # and this share of the flow
WINDOW = 13  # pixels of Lucas and Kanade's method
LEAST_SHARE = 0.3  # of a picture that is found again in the next frame, if there is no cut


class Matches(NamedTuple):
    """M points of each of N frames, and where they are in P other frames.

    here: float32 [N, M, 2], (x, y) in pixels of the pictures. pairs: int [P, 2], the frame of the
    points and the other one. there: float32 [P, M, 2]. weight: float32 [P, M], 1 where a point is
    found, else 0. shares: {(a, b): the share of frame a that is found again in b}.
    """

    here: np.ndarray
    pairs: np.ndarray
    there: np.ndarray
    weight: np.ndarray
    shares: dict


def picture_size(height, width):
    """(height, width) at which a video is looked at."""
    least, most = LONG_SIDE
    scale = np.clip(1, least / max(height, width), most / max(height, width))
    return round(height * scale), round(width * scale)


def to_grey(frame, size):
    """uint8 [H, W, 3] as uint8 [h, w] grey of a size (h, w)."""
    grey = cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY)
    method = cv2.INTER_AREA if size[0] < len(frame) else cv2.INTER_CUBIC
    return cv2.resize(grey, size[::-1], interpolation=method)


def flow_both_ways(grey, other):
    """DIS flow from grey to other and back, float32 [h, w, 2], and where they agree, bool."""
    dis = cv2.DISOpticalFlow_create(cv2.DISOPTICAL_FLOW_PRESET_MEDIUM)
    forward = dis.calc(grey, other, None)
    backward = dis.calc(other, grey, None)
    return forward, backward, agreement(forward, backward), agreement(backward, forward)


def agreement(forward, backward):
    """Where following the flow and then the one back ends near where it began, bool [h, w]."""
    height, width = forward.shape[:2]
    x, y = np.meshgrid(np.arange(width, dtype=np.float32), np.arange(height, dtype=np.float32))
    x += forward[..., 0]
    y += forward[..., 1]
    back = cv2.remap(backward, x, y, cv2.INTER_LINEAR, borderValue=(np.nan, np.nan))
    limit = AGREE_PX + AGREE_SHARE * np.linalg.norm(forward, axis=2)
    return np.linalg.norm(forward + back, axis=2) < limit


def texture(grey):
    """How well a point is told from its neighbours: the structure tensor's smaller eigenvalue."""
    return np.maximum(cv2.cornerMinEigenVal(grey, 5), 0)


def choose(rng, good, strength, count):
    """`count` pixels (x, y) of bool [h, w], float32 [count, 2]: half anywhere, half by texture.

    Where there are fewer, some come several times.
    """
    inside = np.zeros_like(good)
    inside[4:-4, 4:-4] = good[4:-4, 4:-4]
    if inside.sum() < count:
        inside[4:-4, 4:-4] = True
    index = np.flatnonzero(inside)
    likely = np.sqrt(strength.ravel()[index]) + 1e-9
    anywhere = rng.choice(index, count // 2)
    strong = rng.choice(index, count - count // 2, p=likely / likely.sum())
    y, x = np.divmod(rng.permutation(np.concatenate([anywhere, strong])), good.shape[1])
    return np.stack([x, y], -1).astype(np.float32)


def refine(grey, other, here, flow):
    """Where points are in the other picture, float32 [n, 2]: the flow's end, moved within a pixel
    by Lucas and Kanade's method where that finds the way back."""
    start = here + at_points(flow, here)
    options = {"winSize": (WINDOW, WINDOW), "maxLevel": 0,
               "criteria": (cv2.TERM_CRITERIA_EPS | cv2.TERM_CRITERIA_COUNT, 20, 0.01),
               "flags": cv2.OPTFLOW_USE_INITIAL_FLOW}
    there, found, _ = cv2.calcOpticalFlowPyrLK(grey, other, here, start.copy(), **options)
    back, found_back, _ = cv2.calcOpticalFlowPyrLK(other, grey, there, here.copy(), **options)
    near = np.linalg.norm(there - start, axis=1) < 1
    returns = np.linalg.norm(back - here, axis=1) < 0.3
    use = (found[:, 0] > 0) & (found_back[:, 0] > 0) & near & returns
    return np.where(use[:, None], there, start)


def at_points(picture, points):
    """The pixels of a picture [h, w, ...] at whole points (x, y) [n, 2]."""
    return picture[points[:, 1].astype(int), points[:, 0].astype(int)]


def spans(count):
    """All (a, b) that are looked at, a < b; long strides do not begin at every frame."""
    found = []
    for stride in STRIDES:
        found += [(a, a + stride) for a in range(0, count - stride, max(1, stride // 4))]
    return found


def find(greys, seed=0, progress=None):
    """The Matches of pictures uint8 [N, h, w] at all STRIDES, both ways."""
    rng = np.random.default_rng(seed)
    count = len(greys)
    good = [np.ones(grey.shape, bool) for grey in greys]
    for t in range(1, count):
        _, _, mask, mask_back = flow_both_ways(greys[t - 1], greys[t])
        good[t - 1] &= mask
        good[t] &= mask_back
    here = np.stack([choose(rng, mask, texture(grey), POINTS)
                     for mask, grey in zip(good, greys, strict=True)])
    pairs = []
    there = []
    weight = []
    shares = {}
    for a, b in spans(count):
        forward, backward, mask, mask_back = flow_both_ways(greys[a], greys[b])
        for one, other, flow, found in ((a, b, forward, mask), (b, a, backward, mask_back)):
            shares[one, other] = found.mean()
            pairs.append((one, other))
            there.append(refine(greys[one], greys[other], here[one], flow))
            weight.append(at_points(found, here[one]).astype(np.float32))
        if progress:
            progress.update()
    return Matches(here, np.array(pairs).reshape(-1, 2), np.stack(there), np.stack(weight), shares)
