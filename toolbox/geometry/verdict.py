"""Whether cameras and depth can be trusted, told from how the matches fit them.

Thresholds were set on make_geometry_cases.py's set chosen_on, and are shown on the others by
evaluate_geometry.py.
"""

if __name__ == "__main__":
    raise SystemExit("error: a module, not a program; toolbox/README.md lists the programs")

from dataclasses import replace

import numpy as np

from toolbox.geometry import search, solver

STRIDE = 8  # frames between those that are compared; of what moves, twice as many too
PARALLAX_PX = 1.0  # median below which the cameras' translation is not known
RATIO = 0.35  # misfit with translation by misfit without it, above which the fit explains nothing
FOCAL = 0.1  # deviation of the logarithm of the focal length that is too much
LOST_PX = 2.0  # median misfit of a frame whose camera is a guess
MOVING = 0.35  # share of matches farther than MOVED_PX from where a still scene would put them
MOVED_PX = 1.5
ENOUGH = 30  # matches, to tell a share


def measure(state, problem, fixed_focal=False):
    """What verdicts are made of: {name: number}, and each frame's median misfit, pixels [N]."""
    gaps = np.abs(np.diff(problem.pairs, axis=1))[:, 0]
    stride = min(STRIDE, gaps.max())
    apart = problem.part(np.flatnonzero(gaps == stride))
    near = problem.part(np.flatnonzero(gaps <= STRIDE)).thinned(search.FEW)
    turned = replace(state, w2c=state.w2c.copy(), offset=state.offset[:, : search.FEW])
    turned.w2c[:, :3, 3] = 0
    turned = replace(solver.solve(turned, near, "r", 2, 1, 8), offset=state.offset)
    still = search.misses(turned, apart, translate=False)
    all_far = search.misses(state, problem)
    far = all_far[gaps == stride]
    frames = np.full(len(state.w2c), np.nan)
    for t in np.unique(apart.pairs[:, 0]):
        frames[t] = np.nanmedian(far[apart.pairs[:, 0] == t])
    known = np.flatnonzero(np.isfinite(frames))  # long strides do not begin at every frame
    if len(known):
        frames = np.interp(np.arange(len(frames)), known, frames[known])
    return {
        "parallax_px": float(np.nanmedian(still)),
        "misfit_px": float(np.nanmedian(far)),
        "ratio": float(np.nanmedian(far) / max(np.nanmedian(still), 1e-6)),
        "moving": max(moving(far), moving(all_far[gaps == 2 * stride])),
        "focal_deviation": 0.0 if fixed_focal else focal_deviation(state, problem),
    }, frames


def moving(far):
    """The share of matches that are more than MOVED_PX from where a still scene would put them."""
    far = far[np.isfinite(far)]
    return float((far > MOVED_PX).mean()) if far.size > ENOUGH else 0.0


def focal_deviation(state, problem):
    """Deviation of the logarithm of the focal length, by the normal equations."""
    equations = solver.normal_equations(state, problem, 0.5, 1)
    use = solver.unknowns(len(state.w2c), "rtgf")
    matrix = equations.matrix[np.ix_(use, use)]
    last = np.zeros(len(use))
    last[-1] = 1
    variance = np.linalg.solve(matrix + 1e-9 * np.diag(matrix.diagonal()), last)[-1]
    return float(np.sqrt(max(variance, 0)))


def judge(measures, misfit, cuts):
    """(flags, sentences) of the measures of all windows, each frame's misfit, and the cuts.

    flags: some of no_parallax, mostly_moving, wrong_fit, focal_unknown, cut, lost_frames.
    """
    flags = []
    said = []

    def flag(name, sentence):
        flags.append(name)
        said.append(sentence)

    parallax = [float(np.nan_to_num(each["parallax_px"])) for each in measures]
    enough = [each for each in measures if each["parallax_px"] >= PARALLAX_PX]
    moves = max(each["moving"] for each in measures)
    if cuts:
        flag("cut", f"cuts at frames {', '.join(map(str, cuts))}: each shot has a world of its "
             "own; give one shot (--start, --frames)")
    if len(enough) < len(measures):
        part = "" if not enough else f" in {len(measures) - len(enough)} of {len(measures)} windows"
        flag("no_parallax", f"parallax of {min(parallax):.2f} pixels{part}, expected above "
             f"{PARALLAX_PX:g}: the camera hardly moves, at most it turns; its rotation is known, "
             "its position is not, and depth stays as it was given")
    if enough and max(each["ratio"] for each in enough) > RATIO:
        flag("wrong_fit", "a moving camera in a still scene explains little of what is seen: the "
             "depth is wrong, or most of the picture moves; cameras are guesses")
    if moves > MOVING:
        flag("mostly_moving", f"up to {moves:.0%} of the points are not where a still scene would "
             "be seen: much of it moves, and the cameras may follow that")
    if max(each["focal_deviation"] for each in measures) > FOCAL:
        flag("focal_unknown", "nothing tells the focal length; give --focal if you know it")
    lost = np.flatnonzero(misfit > LOST_PX)
    if len(lost):
        flag("lost_frames", f"{len(lost)} frames fit badly, {lost[0]} to {lost[-1]}: their cameras "
             "are guesses")
    if not said:
        said.append(f"good: parallax {max(parallax):.1f} pixels, {1 - moves:.0%} of the points "
                    "fit a still scene")
    return flags, said


def as_record(found):
    """What geometry.json holds."""
    record = {"verdict": found.sentences, "flags": found.flags, "focal_px": found.focal,
              "cuts": found.cuts, "windows": found.measures}
    record["frame_misfit_px"] = [None if np.isnan(value) else round(float(value), 3)
                                 for value in found.misfit]
    return record
