"""Cameras, focal length and depth that agree over time, from matched points and estimated depth.

For every frame t: w2c[t] (OpenCV), and a disparity exp(g_t) e_t + s_t, where e_t is what a network
estimated (inverse depth), g_t a grid of GRID numbers that is bilinear over the picture, and s_t a
shift. One focal length for all, and for every point an offset of the logarithm of its disparity. A
point with the ray r and the disparity d of frame a is seen in b along R r + d t, where (R, t) takes
a's camera to b's. Levenberg-Marquardt makes the distances small from where the points were found in
b, in pixels, under Geman and McClure's kernel, so what moves counts for little; and the grids'
unevenness, shifts and offsets, as many of their deviations.
"""

if __name__ == "__main__":
    raise SystemExit("error: a module, not a program; toolbox/README.md lists the programs")

from dataclasses import dataclass, replace
from typing import NamedTuple

import cv2
import numpy as np

GRID = (4, 6)  # rows, columns
CELLS = GRID[0] * GRID[1]
FIELD = 0.15  # deviation of a frame's grid about its mean
SCALE = 0.5  # deviation of the logarithm of a frame's scale
OFFSET = 0.06  # deviation of a point's offset
FOCAL = 0.5  # deviation of the logarithm of the focal length about where it begins
LEAST = 0.02  # of a frame's median disparity: disparity is no smaller


@dataclass(frozen=True)
class State:
    """What is solved for: w2c [N, 4, 4], log_focal (of pixels), grid [N, CELLS], shift [N], and
    offset [N, M], the logarithm of each point's own disparity by that of its frame."""

    w2c: np.ndarray
    log_focal: float
    grid: np.ndarray
    shift: np.ndarray
    offset: np.ndarray

    @property
    def focal(self):
        return float(np.exp(self.log_focal))


@dataclass(frozen=True)
class Problem:
    """Matched points with their estimated disparity, float32 (see Matches).

    here [N, M, 2], there [P, M, 2]: from the picture's centre. disparity [N, M] and cells
    [N, M, CELLS] of the points. median: of each frame's disparity [N]. shift: deviation of a
    frame's shift, in its median disparity.
    """

    pairs: np.ndarray
    here: np.ndarray
    there: np.ndarray
    weight: np.ndarray
    disparity: np.ndarray
    cells: np.ndarray
    median: np.ndarray
    first_focal: float
    shift: float = 0.05

    def part(self, pairs):
        """The same of some pairs."""
        return replace(self, pairs=self.pairs[pairs], there=self.there[pairs],
                       weight=self.weight[pairs])

    def thinned(self, points):
        """The same of the first points of each frame."""
        names = ("here", "there", "weight", "disparity", "cells")
        return replace(self, **{name: getattr(self, name)[:, :points] for name in names})


def cell_weights(points, size):
    """Bilinear weights [..., CELLS] of the grid's corners at points (x, y) of a size (h, w)."""
    hats = []
    for axis, (count, side) in enumerate(zip(GRID[::-1], size[::-1], strict=True)):
        place = np.clip(points[..., axis] / (side - 1), 0, 1) * (count - 1)
        hats.append(np.clip(1 - np.abs(place[..., None] - np.arange(count)), 0, 1))
    weights = hats[1][..., :, None] * hats[0][..., None, :]
    return weights.reshape(*points.shape[:-1], CELLS).astype(np.float32)


def make_problem(matches, disparity, focal, shift=0.05):
    """The Problem of Matches and disparity float32 [N, h, w] at their pictures' size."""
    count, height, width = disparity.shape
    centre = np.array([width // 2, height // 2], np.float32)
    x, y = np.moveaxis(matches.here.astype(int), -1, 0)
    values = disparity[np.arange(count)[:, None], y, x]
    median = np.median(disparity.reshape(count, -1), 1).astype(np.float32)
    return Problem(matches.pairs, matches.here - centre, matches.there - centre, matches.weight,
                   values, cell_weights(matches.here, (height, width)), median, focal, shift)


def start(problem):
    """The State that knows nothing."""
    count, points = problem.disparity.shape
    still = np.tile(np.eye(4), (count, 1, 1))
    return State(still, float(np.log(problem.first_focal)), np.zeros((count, CELLS)),
                 np.zeros(count), np.zeros((count, points)))


# ---- residuals -----------------------------------------------------------------------------------


def kernel(square, reach):
    """Geman and McClure's weight of a residual whose square is given."""
    return (reach**2 / (reach**2 + square)) ** 2


def loss(square, reach):
    return reach**2 * square / (reach**2 + square)


def disparities(state, problem):
    """Disparity [N, M] without the points' offsets, and d disparity / d grid but for the cells."""
    gain = np.exp(np.einsum("nmc,nc->nm", problem.cells, state.grid.astype(np.float32)))
    lifted = gain * problem.disparity + state.shift[:, None].astype(np.float32)
    return np.maximum(lifted, LEAST * problem.median[:, None]), gain * problem.disparity


def motions(w2c, pairs):
    """(R [P, 3, 3], t [P, 3]) from the first frame's camera to the second's."""
    relative = w2c[pairs[:, 1]] @ np.linalg.inv(w2c[pairs[:, 0]])
    return relative[:, :3, :3].astype(np.float32), relative[:, :3, 3].astype(np.float32)


class Seen(NamedTuple):
    """Points as the other frame of each pair sees them.

    rays [P, M, 3]; R, t: of the pairs; ahead [P, M, 3]: R r + d t; depth [P, M], its last; miss
    [P, M, 2]: the flow's residual, pixels; d [P, M]: disparity at the first end; frame_d, inside:
    it without the points' offsets, and d frame_d / d grid.
    """

    rays: np.ndarray
    R: np.ndarray
    t: np.ndarray
    ahead: np.ndarray
    depth: np.ndarray
    miss: np.ndarray
    d: np.ndarray
    frame_d: np.ndarray
    inside: np.ndarray


def project(state, problem, translate=True):
    """What is Seen of all pairs; translate=False: by the cameras' rotation alone."""
    focal = np.float32(state.focal)
    first = problem.pairs[:, 0]
    R, t = motions(state.w2c, problem.pairs)
    rays = np.concatenate([problem.here / focal, np.ones_like(problem.here[..., :1])], -1)[first]
    frame_d, inside = disparities(state, problem)
    d = (frame_d * np.exp(state.offset.astype(np.float32)))[first]
    ahead = np.einsum("pij,pmj->pmi", R, rays)
    if translate:
        ahead += d[..., None] * t[:, None]
    depth = np.maximum(ahead[..., 2], 0.05)
    miss = focal * ahead[..., :2] / depth[..., None] - problem.there
    return Seen(rays, R, t, ahead, depth, miss, d, frame_d[first], inside[first])


def cost(state, problem, reach, deviation):
    """What is made small: the robust sum over points, and the priors.

    reach: of the kernel, pixels; deviation: of a match, pixels.
    """
    square = np.square(project(state, problem).miss).sum(-1)
    total = (problem.weight * loss(square, reach)).sum() / deviation**2
    return total + prior_cost(state, problem)


def prior_cost(state, problem):
    mean = state.grid.mean(1)
    total = np.square(state.grid - mean[:, None]).sum() / FIELD**2
    total += np.square(mean).sum() / SCALE**2
    total += np.square(state.shift / problem.median).sum() / problem.shift**2
    total += np.square(state.offset).sum() / OFFSET**2
    return total + ((state.log_focal - np.log(problem.first_focal)) / FOCAL) ** 2


# ---- Levenberg-Marquardt -------------------------------------------------------------------------

# Columns of a pair: translation and rotation of both frames; grid and shift of the first; the focal
# length; and last the point's own offset.
POSES = slice(0, 12)
GRID_A = slice(12, 12 + CELLS)
SHIFT_A, LAST, POINT = 12 + CELLS, 13 + CELLS, 14 + CELLS
OWN = 7 + CELLS  # unknowns of a frame: 6 of its pose, its grid, its shift


def columns(pairs, count):
    """Where the columns of each pair but the last are among all unknowns, int [P, POINT]."""
    index = np.empty((len(pairs), POINT), int)
    index[:, POSES] = (pairs[:, :, None] * OWN + np.arange(6)).reshape(-1, 12)
    index[:, GRID_A] = pairs[:, :1] * OWN + 6 + np.arange(CELLS)
    index[:, SHIFT_A] = pairs[:, 0] * OWN + OWN - 1
    index[:, LAST] = count * OWN
    return index


def cross(vectors):
    """Matrices [..., 3, 3] of the cross product with vectors [..., 3]."""
    x, y, z = np.moveaxis(vectors, -1, 0)
    zero = np.zeros_like(x)
    rows = [[zero, -z, y], [z, zero, -x], [-y, x, zero]]
    return np.stack([np.stack(row, -1) for row in rows], -2)


def jacobian(state, problem, reach, deviation):
    """(J [P, M, 2, POINT + 1], r [P, M, 2]), both scaled by the roots of weights.

    A pose changes by a motion from the left, whose translation comes first.
    """
    seen = project(state, problem)
    by = of_ahead(problem, seen)
    focal = np.float32(state.focal)
    place = seen.ahead[..., :2] / seen.depth[..., None]
    out = (focal / seen.depth)[..., None, None] * (by[:, :, :2] - place[..., None] * by[:, :, 2:])
    out[..., LAST] += focal * place
    trust = problem.weight * kernel(np.square(seen.miss).sum(-1), reach)
    root = np.sqrt(trust)[..., None] / deviation
    return out * root[..., None], seen.miss * root


def of_ahead(problem, seen):
    """d ahead / d unknowns, [P, M, 3, POINT + 1]."""
    pairs, points = seen.d.shape
    by = np.zeros((pairs, points, 3, POINT + 1), np.float32)
    scaled = seen.d[..., None, None]
    by[..., 0:3] = -scaled * seen.R[:, None]
    by[..., 3:6] = seen.R[:, None] @ cross(seen.rays)
    by[..., 6:9] = scaled * np.eye(3, dtype=np.float32)
    by[..., 9:12] = -cross(seen.ahead)
    flat = seen.rays * np.array([-1, -1, 0], np.float32)
    by[..., LAST] = np.einsum("pij,pmj->pmi", seen.R, flat)
    own = seen.t[:, None] * (seen.d / seen.frame_d)[..., None]  # [P, M, 3]
    cells = problem.cells[problem.pairs[:, 0]] * seen.inside[..., None]
    by[..., GRID_A] = own[..., None] * cells[:, :, None]
    by[..., SHIFT_A] = own
    by[..., POINT] = seen.t[:, None] * seen.d[..., None]
    return by


class Equations(NamedTuple):
    """Normal equations without the points' offsets, and what gives these back.

    matrix [n, n], vector [n], n = N OWN + 1; square [N, M], product [N, M], of the offsets alone;
    mixed: a list of ([M, c], columns [c]) of the frames, of both.
    """

    matrix: np.ndarray
    vector: np.ndarray
    square: np.ndarray
    product: np.ndarray
    mixed: list


def normal_equations(state, problem, reach, deviation):
    """The Equations; each point's offset is eliminated (Schur's complement)."""
    count = len(state.w2c)
    n = count * OWN + 1
    matrix = np.zeros((n, n))
    vector = np.zeros(n)
    square = np.full(state.offset.shape, 1 / OFFSET**2)
    product = state.offset / OFFSET**2
    mixed = []
    for frame in range(count):
        some = problem.part(np.flatnonzero(problem.pairs[:, 0] == frame))
        j, r = jacobian(state, some, reach, deviation)
        index = columns(some.pairs, count)
        rows = j.reshape(len(j), -1, POINT + 1)
        full = rows.transpose(0, 2, 1) @ rows
        products = np.einsum("prc,pr->pc", rows, r.reshape(len(r), -1))
        own = j[..., POINT]  # [K, M, 3]
        square[frame] += np.square(own).sum((0, 2))
        product[frame] += (own * r).sum((0, 2))
        used = np.unique(index)
        at = np.searchsorted(used, index)
        together = np.zeros((state.offset.shape[1], len(used)))
        block = np.zeros((len(used), len(used)))
        both = np.einsum("kma,kmac->kmc", own, j[..., : POINT])
        for k, where in enumerate(at):
            block[np.ix_(where, where)] += full[k, : POINT, : POINT]
            vector[index[k]] += products[k, : POINT]
            together[:, where] += both[k]
        shared = together / square[frame][:, None]
        matrix[np.ix_(used, used)] += block - together.T @ shared
        vector[used] -= shared.T @ product[frame]
        mixed.append((together, used))
    add_priors(matrix, vector, state, problem)
    return Equations(matrix, vector, square, product, mixed)


def add_priors(matrix, vector, state, problem):
    """Add the priors to the normal equations."""
    mean = state.grid.mean(1)
    average = np.full((CELLS, CELLS), 1 / CELLS)
    about_mean = (np.eye(CELLS) - average) / FIELD**2 + average / (CELLS * SCALE**2)
    for t, median in enumerate(problem.median):
        grid = slice(t * OWN + 6, t * OWN + 6 + CELLS)
        matrix[grid, grid] += about_mean
        vector[grid] += (state.grid[t] - mean[t]) / FIELD**2 + mean[t] / (CELLS * SCALE**2)
        shift = t * OWN + OWN - 1
        matrix[shift, shift] += 1 / (problem.shift * median) ** 2
        vector[shift] += state.shift[t] / (problem.shift * median) ** 2
    matrix[-1, -1] += 1 / FOCAL**2
    vector[-1] += (state.log_focal - np.log(problem.first_focal)) / FOCAL**2


def unknowns(count, active):
    """Indices of what changes: frame 0's pose never; active: some of "rtgf"."""
    frame = np.zeros(OWN, bool)
    frame[0:3] = "t" in active
    frame[3:6] = "r" in active
    frame[6:] = "g" in active
    use = np.concatenate([np.tile(frame, count), ["f" in active]])
    use[:6] = False
    return np.flatnonzero(use)


def exponentials(steps):
    """The motions [N, 4, 4] of steps [N, 6], a translation and a rotation vector each."""
    out = np.tile(np.eye(4), (len(steps), 1, 1))
    for number, step in enumerate(steps):
        out[number, :3, :3] = cv2.Rodrigues(step[3:])[0]
        out[number, :3, 3] = step[:3]
    return out


def moved(state, equations, step):
    """The State after a step [N OWN + 1]; offsets follow by what the Equations say of them."""
    per_frame = step[:-1].reshape(-1, OWN)
    offset = state.offset.copy()
    for frame, (together, used) in enumerate(equations.mixed):
        change = equations.product[frame] + together @ step[used]
        offset[frame] -= np.clip(change / equations.square[frame], -0.5, 0.5)
    return State(exponentials(per_frame[:, :6]) @ state.w2c, state.log_focal + step[-1],
                 state.grid + per_frame[:, 6:-1], state.shift + per_frame[:, -1], offset)


def solve(state, problem, active, reach, deviation, steps, tolerance=2e-4):
    """Levenberg-Marquardt over what is `active`; reach of the kernel and deviation in pixels."""
    use = unknowns(len(state.w2c), active)
    damping = 1e-3
    now = cost(state, problem, reach, deviation)
    for _ in range(steps):
        equations = normal_equations(state, problem, reach, deviation)
        matrix = equations.matrix[np.ix_(use, use)]
        diagonal = matrix.diagonal().copy()
        for _ in range(6):
            step = np.zeros(len(equations.vector))
            damped = matrix + np.diag(damping * diagonal + 1e-9)
            step[use] = -np.linalg.solve(damped, equations.vector[use])
            after = moved(state, equations, np.clip(step, -1, 1))
            then = cost(after, problem, reach, deviation)
            if then < now:
                break
            damping *= 10
        if not then < now:
            break
        gain = (now - then) / now
        state, now = after, then
        damping = max(damping / 10, 1e-7)
        if gain < tolerance:
            break
    return state
