"""Matches of points whose depth and cameras are known exactly, for the tests of the solver."""

import cv2
import numpy as np

from toolbox.geometry import matches, solver

SIZE = 96, 128  # of the pictures that the points would be of
FOCAL = 110.0


def cameras(count, turn_deg=1.0, move=0.08):
    """w2c [count, 4, 4] of a camera that turns and moves by about so much a frame; the first is 1.
    """
    rng = np.random.default_rng(5)
    axis = rng.normal(size=3)
    axis /= np.linalg.norm(axis)
    w2c = np.tile(np.eye(4), (count, 1, 1))
    for t in range(1, count):
        vector = np.radians(turn_deg) * (t * axis + rng.normal(0, 0.3, 3))
        w2c[t, :3, :3] = cv2.Rodrigues(vector)[0]
        w2c[t, :3, 3] = move * (t * np.array([1, 0.3, -0.4]) + rng.normal(0, 0.3, 3))
    return w2c


def seen(w2c, pairs, here, disparity, focal=FOCAL):
    """Where points here [N, M, 2], from the centre, are in the other frames: [P, M, 2]."""
    found = []
    for a, b in pairs:
        motion = w2c[b] @ np.linalg.inv(w2c[a])
        rays = np.concatenate([here[a] / focal, np.ones((len(here[a]), 1))], 1)
        ahead = rays @ motion[:3, :3].T + disparity[a][:, None] * motion[:3, 3]
        found.append(focal * ahead[:, :2] / ahead[:, 2:])
    return np.stack(found)


def make(w2c, points=120, uneven=0.1, seed=0, depths=(2, 8)):
    """(Problem, State): what the solver is given, and what it should find, all of it exact.

    The Problem's disparity is off by a smooth field of a deviation `uneven` for each frame.
    """
    rng = np.random.default_rng(seed)
    count = len(w2c)
    height, width = SIZE
    pixels = rng.integers([width, height], size=(count, points, 2)).astype(np.float32)
    here = pixels - np.array([width // 2, height // 2], np.float32)
    disparity = 1 / rng.uniform(*depths, (count, points))
    pairs = np.array([pair for a, b in matches.spans(count) for pair in ((a, b), (b, a))])
    there = seen(w2c, pairs, here, disparity)
    inside = (np.abs(there) < np.array([width / 2, height / 2])).all(-1)
    cells = solver.cell_weights(pixels, SIZE)
    grid = rng.normal(0, uneven, (count, solver.CELLS)) if uneven else np.zeros((count, 24))
    given = disparity / np.exp(np.einsum("nmc,nc->nm", cells, grid))
    median = np.median(given, 1).astype(np.float32)
    problem = solver.Problem(pairs, here, there.astype(np.float32), inside.astype(np.float32),
                             given.astype(np.float32), cells, median, 0.95 * width)
    still = np.zeros((count, points))
    return problem, solver.State(w2c, float(np.log(FOCAL)), grid, np.zeros(count), still)


def degrees_between(a, b):
    """The angle in degrees of the turn from one rotation [..., 3, 3] to another."""
    trace = np.einsum("...ij,...ij->...", a[..., :3, :3], b[..., :3, :3])
    return np.degrees(np.arccos(np.clip((trace - 1) / 2, -1, 1)))
