"""From a video and its estimated depth to cameras and depth: shots, windows, and how they join."""

if __name__ == "__main__":
    raise SystemExit("error: a module, not a program; toolbox/README.md lists the programs")

import itertools
from dataclasses import dataclass, replace
from typing import NamedTuple

import cv2
import numpy as np
from tqdm import tqdm

from toolbox.geometry import fuse_depth, matches, search, solver, verdict
from utils import files, video

LONGEST = 72  # frames of a window at most
WINDOW = 60  # frames of each window where there are several
OVERLAP = 12
CUT_SIDE = 192  # long side of the pictures that tell of cuts


@dataclass(frozen=True)
class Known:
    """What is known before: focal (pixels of the video, or None) and whether it is exact; w2c
    [N, 4, 4] or None; whether the depth is metric."""

    focal: float | None
    fixed: bool
    w2c: np.ndarray | None
    metric: bool


@dataclass(frozen=True)
class Found:
    """disparity [N, h, w], memory-mapped; c2w [N, 4, 4]; focal, pixels of the video; misfit [N],
    pixels; cuts, measures, flags and sentences as of verdict.py; pictures: a few, {frame: uint8
    [H, W, 3]}."""

    disparity: np.ndarray
    c2w: np.ndarray
    focal: float
    misfit: np.ndarray
    cuts: list
    measures: list
    flags: list
    sentences: list
    pictures: dict


def find_cuts(path, info):
    """The frames that begin a new shot: too little of the frame before is found in them."""
    scale = CUT_SIDE / max(info.height, info.width)
    size = round(info.height * scale), round(info.width * scale)
    cuts = []
    before = None
    for t, frame in enumerate(tqdm(video.iter_frames(path), total=info.frames, unit="frame",
                                   desc="cuts")):
        grey = matches.to_grey(frame, size)
        if before is not None:
            found = matches.flow_both_ways(before, grey)[2]
            long = t - (cuts[-1] if cuts else 0) > 1 and info.frames - t > 1
            if long and found.mean() < matches.LEAST_SHARE:
                cuts.append(t)
        before = grey
    return cuts


def windows(first, last):
    """(first, last) of the windows of a shot of frames first to last - 1."""
    if last - first <= LONGEST:
        return [(first, last)]
    step = WINDOW - OVERLAP
    starts = list(range(first, last - OVERLAP, step))
    found = [(start, min(start + WINDOW, last)) for start in starts]
    if found[-1][1] - found[-1][0] < WINDOW // 2:
        found.pop()
        if last - found[-1][0] <= LONGEST:
            found[-1] = (found[-1][0], last)
        else:
            found.append((last - WINDOW // 2, last))
    return found


def read_greys(path, first, last, size):
    """Frames as grey, uint8 [n, h, w]."""
    frames = itertools.islice(video.iter_frames(path), first, last)
    return [matches.to_grey(frame, size) for frame in frames]


def small_disparity(inverse, size):
    """Inverse depth [n, h, w] at the size of the pictures, with holes filled by the median, and
    where it is known, bool [n, *size]."""
    maps = []
    masks = []
    for each in inverse:
        known = each > 0
        filled = np.where(known, each, np.median(each[known]) if known.any() else 1)
        # even when enlarged, each pixel keeps its number, so that its noise can be taken out again
        maps.append(cv2.resize(filled.astype(np.float32), size[::-1], interpolation=cv2.INTER_AREA))
        mask = cv2.resize(known.astype(np.uint8), size[::-1], interpolation=cv2.INTER_NEAREST)
        masks.append(mask > 0)
    return np.stack(maps), np.stack(masks)


class Window(NamedTuple):
    """Frames of a video as grey, uint8 [n, h, w], and their inverse depth as small_disparity."""

    greys: list
    disparity: np.ndarray
    mask: np.ndarray


def read_window(path, span, inverse, unit, size):
    """The Window of frames span[0] to span[1] - 1; its inverse depth in the given unit."""
    disparity, mask = small_disparity(inverse[slice(*span)], size)
    return Window(read_greys(path, *span, size), disparity / np.float32(unit), mask)


def unit_of(inverse):
    """The median inverse depth of a few frames: the solver works in numbers about 1."""
    some = inverse[:: max(1, len(inverse) // 8)]
    return float(np.median(some[some > 0])) if (some > 0).any() else 1.0


# ---- one window ----------------------------------------------------------------------------------


def make_problem(window, focal, metric):
    """The solver's Problem of a Window; points without depth count for nothing."""
    found = matches.find(window.greys)
    seen = np.stack([matches.at_points(mask, here)
                     for mask, here in zip(window.mask, found.here, strict=True)])
    found = found._replace(weight=found.weight * seen[found.pairs[:, 0]])
    return solver.make_problem(found, window.disparity, focal, 0.05 if metric else 0.3)


def solve_window(window, known, focal, w2c):
    """(State, Problem) of a Window; focal: in pixels of its pictures, or None."""
    height, width = window.disparity.shape[1:]
    first_focal = focal or search.FIRST_FOCAL * max(height, width)
    problem = make_problem(window, first_focal, known.metric)
    if w2c is None:
        return search.search(problem, (height, width), known.fixed), problem
    state = replace(solver.start(problem), w2c=w2c)
    state = replace(state, grid=state.grid + depth_scale(state, problem, 1, 0.1))
    return search.run(state, problem, (("g", 2, 1, 8), ("g", 0.5, 1, 8)), True), problem


def depth_scale(state, problem, reach, step):
    """The logarithm of the factor on disparity that suits given cameras best, of -reach to reach.

    Where none does better than another, as without translation, it is 0.
    """
    few = problem.thinned(search.FEW)
    state = replace(state, offset=state.offset[:, : search.FEW])
    tried = sorted(np.arange(-reach, reach + step / 2, step), key=abs)
    costs = []
    for value in np.exp(np.float32(tried)):
        scaled = replace(few, disparity=few.disparity * value, median=few.median * value)
        costs.append(solver.cost(state, scaled, 4, 2))
    return tried[int(np.argmin(costs))]


def factor_of_cameras(window, known, span, scale):
    """What a Window's disparity is to be multiplied with to be in units of the known cameras."""
    problem = make_problem(window, known.focal * scale, known.metric)
    state = replace(solver.start(problem), w2c=known.w2c[slice(*span)])
    return np.exp(depth_scale(state, problem, 12, 0.25))


def in_units(state):
    """The State whose disparity is, in the median, the network's: its scale is free."""
    scale = float(np.median(state.grid))
    w2c = state.w2c.copy()
    w2c[:, :3, 3] *= np.exp(scale)
    return replace(state, w2c=w2c, grid=state.grid - scale, shift=state.shift * np.exp(-scale))


def load_state(path):
    """The State that an earlier start saved, and its measures, or None."""
    if not path.is_file():
        return None
    with np.load(path, allow_pickle=False) as saved:
        names = ("w2c", "log_focal", "grid", "shift", "offset")
        values = {name: saved[name] for name in names}
        values["log_focal"] = float(values["log_focal"])
        measured = dict(zip(saved["names"].tolist(), saved["values"].tolist(), strict=True))
        return solver.State(**values), measured, saved["misfit"]


def save_state(path, state, measured, misfit):
    with files.whole(path) as part, open(part, "wb") as file:
        np.savez(file, w2c=state.w2c, log_focal=state.log_focal, grid=state.grid, shift=state.shift,
                 offset=state.offset, names=np.array(list(measured)),
                 values=np.array(list(measured.values())), misfit=misfit)


# ---- all windows ---------------------------------------------------------------------------------


def find_geometry(path, info, inverse, work, known):
    """What is Found of the video at `path`, of which inverse depth [N, h, w] is known.

    work: a folder, where each window's result is kept. known: a Known.
    """
    size = matches.picture_size(info.height, info.width)
    scale = size[1] / info.width
    unit = unit_of(inverse)
    cuts = find_cuts(path, info)
    spans = []
    for first, last in itertools.pairwise([0, *cuts, info.frames]):
        spans += windows(first, last)
    if known.w2c is not None:
        window = read_window(path, spans[0], inverse, unit, size)
        unit /= factor_of_cameras(window, known, spans[0], scale)
    results = []
    for span in tqdm(spans, unit="window", desc="cameras"):
        kept = work / f"window_{span[0]}_{span[1]}.npz"
        found = load_state(kept)
        if not found:
            window = read_window(path, span, inverse, unit, size)
            found = solve_span(window, span, known, scale)
            save_state(kept, *found)
        results.append(found)
    focal = shared_focal(results, known, scale)
    out = np.lib.format.open_memmap(work / "fused.npy", "w+", np.float32, inverse.shape)
    c2w = np.tile(np.eye(4), (info.frames, 1, 1))
    misfit = np.full(info.frames, np.nan)
    done = 0
    for (first, last), (state, _, window_misfit) in zip(spans, results, strict=True):
        window = read_window(path, (first, last), inverse, unit, size)
        if len(spans) > 1 and not known.fixed:
            state = again(window, state, focal * scale, known.metric)
        if known.w2c is None:
            state = in_units(state)
        disparity, poses = fused(window, state, inverse[first:last] / np.float32(unit))
        if done > first:
            there = np.array(out[first:done]), c2w[first:done]
            disparity, poses = joined(*there, disparity, poses, known.w2c is not None)
        out[first:last], c2w[first:last] = disparity, poses
        out.flush()
        misfit[first:last] = np.fmax(misfit[first:last], window_misfit)
        done = last
    if known.w2c is not None:
        c2w = np.linalg.inv(known.w2c)
    else:  # back to the units that depth was given in
        out *= unit
        c2w[:, :3, 3] /= unit
    measures = [each[1] for each in results]
    flags, sentences = verdict.judge(measures, misfit, cuts)
    shown = np.unique(np.linspace(0, info.frames - 1, 4).astype(int))
    pictures = dict(zip(shown.tolist(), video.read_frames(path, shown), strict=True))
    return Found(out, c2w, focal, misfit, cuts, measures, flags, sentences, pictures)


def solve_span(window, span, known, scale):
    """(State, measures, misfit of each frame) of the Window of a span."""
    w2c = None if known.w2c is None else known.w2c[slice(*span)]
    state, problem = solve_window(window, known, known.focal and known.focal * scale, w2c)
    return state, *verdict.measure(state, problem, known.fixed)


def shared_focal(results, known, scale):
    """The focal length in pixels of the video: the windows' mean by their deviations."""
    if known.fixed:
        return known.focal
    logs = [state.log_focal for state, _, _ in results]
    weights = [1 / (0.005 + each["focal_deviation"]) ** 2 for _, each, _ in results]
    return float(np.exp(np.average(logs, weights=weights))) / scale


def again(window, state, focal, metric):
    """The State of a Window solved on with the focal length that all share."""
    state = replace(state, log_focal=float(np.log(focal)))
    return search.run(state, make_problem(window, focal, metric), search.GO_ON, True)


def fused(window, state, own):
    """(disparity [n, h, w], c2w [n, 4, 4]) of a Window, made better by fusion.

    own: inverse depth at the size that is given back, in the Window's unit; it is changed.
    """
    with tqdm(total=len(own), unit="frame", desc="depth over time", leave=False) as bar:
        after = fuse_depth.fuse(state, window.greys, window.disparity, bar)
    for t, each in enumerate(own):
        change = np.log(after[t] / np.maximum(window.disparity[t], 1e-9))
        each *= np.exp(cv2.resize(change, each.shape[::-1], interpolation=cv2.INTER_LINEAR))
        each[:] = fuse_depth.sharpened(each)
    return own, np.linalg.inv(state.w2c)


def joined(there, before, disparity, poses, same_world=False):
    """A window's disparity and poses in the units and world of what is there, blended with it.

    there [k, h, w], before [k, 4, 4]: the first frames as the window before has them. same_world:
    units and world are the same already.
    """
    overlap = len(there)
    both = (there > 0) & (disparity[:overlap] > 0)
    scale = 1.0
    if both.any() and not same_world:
        scale = np.exp(np.median(np.log(disparity[:overlap][both] / there[both])))
    disparity = disparity / np.float32(scale)
    poses = poses.copy()
    poses[:, :3, 3] *= scale
    middle = overlap // 2
    if not same_world:
        poses = before[middle] @ np.linalg.inv(poses[middle]) @ poses
    for t in range(overlap):
        share = (t + 1) / (overlap + 1)
        disparity[t] = there[t] * (1 - share) + disparity[t] * share
        poses[t] = between(before[t], poses[t], share)
    return disparity, poses


def between(a, b, share):
    """The pose a share of the way from a to b."""
    turn = cv2.Rodrigues(a[:3, :3].T @ b[:3, :3])[0]
    out = np.eye(4)
    out[:3, :3] = a[:3, :3] @ cv2.Rodrigues(turn * share)[0]
    out[:3, 3] = a[:3, 3] * (1 - share) + b[:3, 3] * share
    return out
