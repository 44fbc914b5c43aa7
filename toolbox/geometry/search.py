"""How the solver is led to cameras: from nothing, in stages, and from several parts of the picture.

What moves may fill more of the picture than any other thing, and draw the cameras to itself. So
where a first solution explains too little, others are begun from the points of one side of the
picture each, and the one of the least cost is taken.
"""

if __name__ == "__main__":
    raise SystemExit("error: a module, not a program; toolbox/README.md lists the programs")

from dataclasses import replace

import numpy as np

from toolbox.geometry import solver

FEW = 100  # points of a frame, until the last stage
SHORT = 4  # the longest stride of the first stages
FIRST_FOCAL = 0.95  # of the long side, where it is not known
ENOUGH = 0.75  # share of matches within half a pixel: no other beginning is tried
BEGIN = (("r", 8, 2, 6), ("rt", 8, 2, 8), ("rtg", 4, 2, 8), ("rtgf", 2, 2, 12))
BEGIN_APART = (("r", 8, 2, 5), ("rt", 8, 2, 8), ("rtg", 4, 2, 5), ("rtg", 1, 2, 5))
GO_ON = (("rtgf", 1, 1, 8), ("rtgf", 0.5, 1, 10))  # what is active, reach, deviation, steps
LAST = (("rtgf", 0.5, 1, 8), ("rtgf", 0.25, 1, 6))
PARTS = ("left", "right", "top", "bottom", "border", "centre")


def run(state, problem, stages, fixed_focal):
    """The State after stages; the first ones, which do not know the grid, see short strides."""
    short = problem.part(np.flatnonzero(np.abs(np.diff(problem.pairs, axis=1))[:, 0] <= SHORT))
    for active, reach, deviation, steps in stages:
        if fixed_focal:
            active = active.replace("f", "")
        seen = problem if "g" in active else short
        state = solver.solve(state, seen, active, reach, deviation, steps)
    return state


def within(name, here, size):
    """Which points [N, M, 2] from the centre lie in a part of a picture of a size (h, w)."""
    x, y = np.moveaxis(here / np.array(size[::-1]), -1, 0)
    return {
        "left": x < -0.1, "right": x > 0.1, "top": y < -0.1, "bottom": y > 0.1,
        "border": (np.abs(x) > 0.3) | (np.abs(y) > 0.3),
        "centre": (np.abs(x) < 0.25) & (np.abs(y) < 0.25),
    }[name]


def misses(state, problem, translate=True):
    """How far each match is from where the State puts it, pixels [P, M]; nan without a match."""
    far = np.linalg.norm(solver.project(state, problem, translate).miss, axis=-1)
    return np.where(problem.weight > 0, far, np.nan)


def explained(state, problem):
    """The share of matches within half a pixel."""
    far = misses(state, problem)
    return float((far < 0.5).sum() / max(1, np.isfinite(far).sum()))


def search(problem, size, fixed_focal=False):
    """The State of a Problem whose pictures have a size (h, w)."""
    few = problem.thinned(FEW)
    best = run(solver.start(few), few, (*BEGIN, *GO_ON), fixed_focal)
    if explained(best, few) < ENOUGH:
        begun = []
        for name in PARTS:
            weight = few.weight * within(name, few.here, size)[few.pairs[:, 0]]
            part = replace(few, weight=weight)
            begun.append(run(solver.start(few), part, BEGIN_APART, fixed_focal))
        other = min(begun, key=lambda state: solver.cost(state, few, 1, 1))
        found = best, run(other, few, GO_ON, fixed_focal)
        best = min(found, key=lambda state: solver.cost(state, few, 0.5, 1))
    more = problem.disparity.shape[1] - FEW
    offset = np.pad(best.offset, ((0, 0), (0, more)))
    return run(replace(best, offset=offset), problem, LAST, fixed_focal)
