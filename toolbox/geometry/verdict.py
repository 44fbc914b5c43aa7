"""Whether cameras and depth can be trusted, told from how the matches fit them.

Thresholds were set on make_geometry_cases.py's set chosen_on, and are shown on the others by
evaluate_geometry.py.
"""

if __name__ == "__main__":
    raise SystemExit("error: a module, not a program; toolbox/README.md lists the programs")

from dataclasses import replace

import numpy as np

from toolbox.geometry import search, solver

STRIDE = 8  # frames between those that are compared
NOISE_PX = 0.3  # deviation of a match
PARALLAX_PX = 1.0  # median below which the cameras' translation is not known
RATIO = 0.35  # misfit with translation by misfit without it, above which the fit explains nothing
DETAIL = 0.8  # misfit of the estimated depth's detail by that of none
FOCAL = 0.1  # deviation of the logarithm of the focal length that is too much
LOST_PX = 2.0  # median misfit of a frame whose camera is a guess
MOVING = 0.45  # share of matches farther than MOVED_PX from where a still scene would put them
MOVED_PX = 1.5
SURE = 0.04  # deviation of a triangulated logarithm of disparity that tells of detail


def measure(state, problem, fixed_focal=False):
    """What verdicts are made of: {name: number}, and each frame's median misfit, pixels [N]."""
    gaps = np.abs(np.diff(problem.pairs, axis=1))[:, 0]
    apart = problem.part(np.flatnonzero(gaps == min(STRIDE, gaps.max())))
    near = problem.part(np.flatnonzero(gaps <= STRIDE)).thinned(search.FEW)
    turned = replace(state, w2c=state.w2c.copy(), offset=state.offset[:, : search.FEW])
    turned.w2c[:, :3, 3] = 0
    turned = replace(solver.solve(turned, near, "r", 2, 1, 8), offset=state.offset)
    still = search.misses(turned, apart, translate=False)
    far = search.misses(state, apart)
    frames = np.full(len(state.w2c), np.nan)
    for t in np.unique(apart.pairs[:, 0]):
        frames[t] = np.nanmedian(far[apart.pairs[:, 0] == t])
    return {
        "parallax_px": float(np.nanmedian(still)),
        "misfit_px": float(np.nanmedian(far)),
        "ratio": float(np.nanmedian(far) / max(np.nanmedian(still), 1e-6)),
        "moving": float(np.nanmean(np.where(np.isnan(far), np.nan, far > MOVED_PX))),
        "detail": detail(state, problem),
        "focal_deviation": 0.0 if fixed_focal else focal_deviation(state, problem),
    }, frames


def focal_deviation(state, problem):
    """Deviation of the logarithm of the focal length, by the normal equations."""
    equations = solver.normal_equations(state, problem, 0.5, 1)
    use = solver.unknowns(len(state.w2c), "rtgf")
    matrix = equations.matrix[np.ix_(use, use)]
    last = np.zeros(len(use))
    last[-1] = 1
    variance = np.linalg.solve(matrix + 1e-9 * np.diag(matrix.diagonal()), last)[-1]
    return float(np.sqrt(max(variance, 0)))


def detail(state, problem):
    """How much of what the grids cannot bend the estimated depth explains; 1 is nothing.

    Points that are triangulated well are compared with the estimated depth, and with none at all,
    after a fit of each frame's grid to either.
    """
    j, r = solver.jacobian(state, problem, 1, NOISE_PX)
    own = j[..., solver.POINT]
    information = np.zeros(state.offset.shape)
    product = np.zeros(state.offset.shape)
    np.add.at(information, problem.pairs[:, 0], np.square(own).sum(2))
    np.add.at(product, problem.pairs[:, 0], (own * r).sum(2))
    change = -product / np.maximum(information, 1e-9)
    frame_d, _ = solver.disparities(state, problem)
    with_it = []
    without = []
    for t, sure in enumerate((information > 1 / SURE**2) & (np.abs(change) < 0.5)):
        if sure.sum() < 2 * solver.CELLS:
            continue
        found = state.offset[t, sure] + change[t, sure]
        cells = problem.cells[t, sure]
        with_it.append(left_over(cells, found))
        without.append(left_over(cells, found + np.log(frame_d[t, sure])))
    if not with_it:
        return 0.0
    return float(np.median(with_it) / max(np.median(without), 1e-9))


def left_over(cells, values):
    """The median size of what a grid leaves of values."""
    fit = np.linalg.lstsq(cells, values, rcond=1e-3)[0]
    return np.median(np.abs(values - cells @ fit))
