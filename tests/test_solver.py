"""The solver on problems that are exact, so that the truth, and every derivative, is known."""

from dataclasses import replace

import cv2
import numpy as np
import pytest
from exact_matches import FOCAL, SIZE, cameras, degrees_between, make

from toolbox.geometry import fuse_depth, search, solver

FRAME_COLUMNS = {  # of a frame's own unknowns, as the solver orders them
    "translation": range(0, 3), "rotation": range(3, 6), "grid": range(6, 6 + solver.CELLS),
    "shift": range(solver.OWN - 1, solver.OWN)}


@pytest.fixture
def near():
    """(Problem, State) a little beside the truth, with all that a State has."""
    problem, truth = make(cameras(4), points=15)
    rng = np.random.default_rng(1)
    poses = solver.exponentials(rng.normal(0, 0.01, (4, 6))) @ truth.w2c
    return problem, solver.State(
        poses, truth.log_focal + 0.05, truth.grid + rng.normal(0, 0.05, truth.grid.shape),
        0.1 * problem.median, rng.normal(0, 0.1, truth.offset.shape))


def changed(state, index, amount):
    """The State with one unknown of frames and focal length moved, by its place among all."""
    count = len(state.w2c)
    step = np.zeros(count * solver.OWN + 1)
    step[index] = amount
    own = step[:-1].reshape(count, solver.OWN)
    return replace(state, w2c=solver.exponentials(own[:, :6]) @ state.w2c,
                   log_focal=state.log_focal + step[-1], grid=state.grid + own[:, 6:-1],
                   shift=state.shift + own[:, -1])


def slope(change, problem, step=2e-3):
    """d miss / d what change(amount) moves, [P, M, 2], by central differences."""
    after = solver.project(change(step), problem).miss.astype(np.float64)
    return (after - solver.project(change(-step), problem).miss) / (2 * step)


def plain_jacobian(problem, state):
    """The Jacobian without weights."""
    whole = replace(problem, weight=np.ones_like(problem.weight))
    return solver.jacobian(state, whole, 1e6, 1)[0]


def close(got, expected):
    """Equal to a hundredth of the largest; pictures of float32 give no more."""
    assert np.abs(expected).max() > 0.1
    assert np.abs(got - expected).max() < 0.01 * np.abs(expected).max()


@pytest.mark.parametrize("what", FRAME_COLUMNS)
def test_the_jacobian_of_frames_equals_differences(near, what):
    problem, state = near
    got = plain_jacobian(problem, state)
    where = solver.columns(problem.pairs, len(state.w2c))
    columns = []
    differences = []
    for frame in range(len(state.w2c)):
        for own in FRAME_COLUMNS[what]:
            index = frame * solver.OWN + own
            expected = slope(lambda by, i=index: changed(state, i, by), problem)
            column = np.zeros_like(expected)
            for pair, there in enumerate(where):
                for at in np.flatnonzero(there == index):
                    column[pair] += got[pair, ..., at]
            columns.append(column)
            differences.append(expected)
    close(np.stack(columns), np.stack(differences))


def test_the_jacobian_of_focal_length_and_offsets_equals_differences(near):
    problem, state = near
    got = plain_jacobian(problem, state)
    assert (solver.columns(problem.pairs, 4)[:, solver.LAST] == 4 * solver.OWN).all()
    close(got[..., solver.LAST], slope(lambda by: changed(state, -1, by), problem))
    close(got[..., solver.POINT],
          slope(lambda by: replace(state, offset=state.offset + by), problem))


def test_weights_make_the_robust_costs_gradient(near):
    problem, state = near
    assert (problem.weight == 0).any()
    reach, deviation = 3, 2
    j, r = solver.jacobian(state, problem, reach, deviation)
    gradient = 2 * (j[..., solver.LAST] * r).sum()

    def total(by):
        after = changed(state, -1, by)
        return (solver.cost(after, problem, reach, deviation)
                - solver.prior_cost(after, problem))

    assert gradient == pytest.approx((total(1e-3) - total(-1e-3)) / 2e-3, rel=0.01)


def dense(problem, state, reach, deviation):
    """(matrix, vector) of the normal equations of all unknowns and all offsets."""
    j, r = solver.jacobian(state, problem, reach, deviation)
    count, points = state.offset.shape
    frames = count * solver.OWN + 1
    where = solver.columns(problem.pairs, count)
    rows = np.zeros((*r.shape, frames + count * points))
    for pair, (a, _) in enumerate(problem.pairs):
        rows[pair][..., where[pair]] = j[pair][..., : solver.POINT]
        for point in range(points):
            rows[pair, point, :, frames + a * points + point] = j[pair, point, :, solver.POINT]
    rows = rows.reshape(-1, rows.shape[-1])
    matrix = rows.T @ rows
    vector = rows.T @ r.reshape(-1).astype(float)
    add_dense_priors(matrix, vector, problem, state)
    return matrix, vector


def add_dense_priors(matrix, vector, problem, state):
    """Add half the gradient and Hessian of prior_cost(), which is quadratic, by differences."""
    frames = len(state.w2c) * solver.OWN + 1

    def prior(*indices):
        after = state
        offset = state.offset.copy()
        for index in indices:
            if index < frames:
                after = changed(after, index, 1)
            else:
                offset.ravel()[index - frames] += 1
        return solver.prior_cost(replace(after, offset=offset), problem)

    one = np.array([prior(i) for i in range(len(vector))])
    begin = prior()
    for i in range(len(vector)):
        alone = (prior(i, i) - 2 * one[i] + begin) / 2
        matrix[i, i] += alone
        vector[i] += (one[i] - begin - alone) / 2
    for frame in range(len(state.w2c)):  # no other two unknowns share a prior
        cells = range(frame * solver.OWN + 6, frame * solver.OWN + 6 + solver.CELLS)
        for i in cells:
            for k in cells:
                if i != k:
                    matrix[i, k] += (prior(i, k) - one[i] - one[k] + begin) / 2


def test_elimination_of_offsets_gives_the_dense_step(near):
    problem, state = near
    state = replace(state, offset=state.offset / 10)
    use = solver.unknowns(4, "rtgf")
    matrix, vector = dense(problem, state, 3, 2)
    frames = 4 * solver.OWN + 1
    kept = np.concatenate([use, np.arange(frames, len(vector))])
    expected = np.zeros(len(vector))
    expected[kept] = -np.linalg.solve(matrix[np.ix_(kept, kept)], vector[kept])

    equations = solver.normal_equations(state, problem, 3, 2)
    step = np.zeros(frames)
    step[use] = -np.linalg.solve(equations.matrix[np.ix_(use, use)], equations.vector[use])
    np.testing.assert_allclose(step, expected[:frames], atol=1e-3 * np.abs(expected).max())
    change = solver.moved(state, equations, step).offset - state.offset
    wanted = expected[frames:].reshape(change.shape)
    assert 0.01 < np.abs(wanted).max() < 0.5
    np.testing.assert_allclose(change, wanted, atol=1e-3 * np.abs(wanted).max())


def test_the_truth_costs_nothing_but_its_priors():
    problem, truth = make(cameras(4))
    assert np.abs(search.misses(truth, problem)[problem.weight > 0]).max() < 1e-3
    matched = solver.cost(truth, problem, 1, 1) - solver.prior_cost(truth, problem)
    assert 0 <= matched < 1e-3
    assert solver.cost(solver.start(problem), problem, 1, 1) > 100
    assert search.explained(truth, problem) == 1 > search.explained(solver.start(problem), problem)


def test_what_is_not_active_stays_and_the_first_pose_always_does():
    assert solver.unknowns(3, "f").tolist() == [3 * solver.OWN]
    frames, own = np.divmod(solver.unknowns(3, "rt"), solver.OWN)
    assert set(zip(frames.tolist(), own.tolist(), strict=True)) == {
        (frame, own) for frame in (1, 2) for own in range(6)}
    frames, own = np.divmod(solver.unknowns(3, "tg"), solver.OWN)
    assert (own[frames == 0] >= 6).all() and (frames == 0).sum() == solver.CELLS + 1
    assert sorted(own[frames == 1]) == [0, 1, 2, *range(6, solver.OWN)]

    problem, _ = make(cameras(4), points=60)
    begin = solver.start(problem)
    after = solver.solve(begin, problem, "r", 8, 2, 4)
    assert np.array_equal(after.w2c[0], np.eye(4)) and (after.w2c[:, :3, 3] == 0).all()
    assert degrees_between(after.w2c[3], np.eye(4)) > 1
    assert np.array_equal(after.grid, begin.grid) and after.log_focal == begin.log_focal
    after = solver.solve(after, problem, "rtgf", 8, 2, 4)
    assert np.array_equal(after.w2c[0], np.eye(4)) and after.log_focal != begin.log_focal
    assert np.abs(after.w2c[1:, :3, 3]).max() > 0 and np.abs(after.grid).max() > 0


def test_solve_never_goes_uphill():
    problem, truth = make(cameras(4), points=60)
    state = solver.start(problem)
    costs = [solver.cost(state, problem, 4, 1)]
    for _ in range(6):
        state = solver.solve(state, problem, "rtgf", 4, 1, 1)
        costs.append(solver.cost(state, problem, 4, 1))
    assert costs == sorted(costs, reverse=True) and costs[-1] < costs[0] / 10


def with_outliers(problem, share, rng):
    """The Problem with a share of its matches anywhere."""
    wrong = rng.random(problem.weight.shape) < share
    anywhere = rng.uniform(-48, 48, problem.there.shape).astype(np.float32)
    return replace(problem, there=np.where(wrong[..., None], anywhere, problem.there))


def fits(state, truth, turn_deg, moved, focal):
    """Poses and the focal length within limits; returns the factor on the poses, which is free."""
    assert degrees_between(state.w2c, truth.w2c).max() < turn_deg
    got, expected = state.w2c[:, :3, 3], truth.w2c[:, :3, 3]
    scale = (got * expected).sum() / (got * got).sum()
    path = np.linalg.norm(np.diff(expected, axis=0), axis=1).sum()
    assert np.linalg.norm(scale * got - expected, axis=1).max() < moved * path
    assert abs(state.log_focal - truth.log_focal) < focal
    return scale


@pytest.mark.parametrize("outliers", [0, 0.3])
def test_search_finds_cameras_focal_length_and_disparity_from_nothing(outliers):
    problem, truth = make(cameras(7))
    problem = with_outliers(problem, outliers, np.random.default_rng(2))
    state = search.search(problem, SIZE)
    scale = fits(state, truth, 0.1, 0.01, 0.02)
    exact = np.log(solver.disparities(truth, problem)[0])
    got = np.log(solver.disparities(state, problem)[0] * np.exp(state.offset) / scale)
    given = np.abs(np.log(problem.disparity) - exact)
    assert np.median(given) > 0.04
    assert np.median(np.abs(got - exact)) < np.median(given) / 2


def test_a_focal_length_that_is_known_stays():
    problem, truth = make(cameras(5))
    problem = replace(problem, first_focal=FOCAL)
    state = search.search(problem, SIZE, fixed_focal=True)
    assert state.log_focal == float(np.log(FOCAL))
    fits(state, truth, 0.1, 0.01, 1e-9)


def test_search_begins_from_parts_too_where_little_is_explained():
    """Of the picture, 57 % slides by itself: what explains most of it is found from a part."""
    problem, truth = make(cameras(7), uneven=0)
    rng = np.random.default_rng(3)
    slid = np.cumsum(rng.normal(0, 2, (7, 2)), 0) + np.arange(7)[:, None] * [2.5, 0]
    way = slid[problem.pairs[:, 1]] - slid[problem.pairs[:, 0]]
    begin = problem.here[problem.pairs[:, 0]]
    there = np.where(begin[..., :1] > -10, begin + way[:, None], problem.there)
    problem = replace(problem, there=there.astype(np.float32))
    few = problem.thinned(search.FEW)
    whole = search.run(solver.start(few), few, (*search.BEGIN, *search.GO_ON), False)
    assert 0.35 < search.explained(whole, few) < 0.5
    assert search.explained(search.search(problem, SIZE), problem) > 0.54


def test_parts_of_the_picture():
    places = {"left": (-40, 0), "right": (40, 0), "top": (0, -30), "bottom": (0, 30)}
    points = np.array([[*places.values(), (0, 0), (60, 45)]], np.float32)
    inside = {name: search.within(name, points, SIZE)[0].tolist() for name in search.PARTS}
    assert inside == {
        "left": [True, False, False, False, False, False],
        "right": [False, True, False, False, False, True],
        "top": [False, False, True, False, False, False],
        "bottom": [False, False, False, True, False, True],
        "border": [True, True, True, True, False, True],
        "centre": [False, False, False, False, True, False]}


def test_a_points_grid_is_bilinear_and_the_pictures_is_the_same():
    rng = np.random.default_rng(0)
    pixels = rng.integers([SIZE[1], SIZE[0]], size=(50, 2)).astype(np.float32)
    weights = solver.cell_weights(pixels, SIZE)
    np.testing.assert_allclose(weights.sum(1), 1, atol=1e-6)
    rows, columns = np.indices(solver.GRID)
    x = weights @ columns.ravel() * (SIZE[1] - 1) / (solver.GRID[1] - 1)
    y = weights @ rows.ravel() * (SIZE[0] - 1) / (solver.GRID[0] - 1)
    np.testing.assert_allclose(np.stack([x, y], 1), pixels, atol=1e-3)

    problem, state = make(cameras(3), points=50, uneven=0.3)
    state = replace(state, shift=0.2 * problem.median)
    disparity = np.full((3, *SIZE), 0.25, np.float32)
    x, y = np.moveaxis((problem.here + [SIZE[1] // 2, SIZE[0] // 2]).astype(int), -1, 0)
    problem = replace(problem, disparity=np.full_like(problem.disparity, 0.25))
    expected = solver.disparities(state, problem)[0]
    assert expected.std() > 0.01
    for t in range(3):
        lifted = fuse_depth.lifted(state, disparity[t], t)
        np.testing.assert_allclose(lifted[y[t], x[t]], expected[t], rtol=0.02)


def test_a_soft_edge_of_depth_becomes_sharp_and_slopes_stay():
    ramp = np.geomspace(1, 4, 40, dtype=np.float32)[None].repeat(20, 0)
    assert np.array_equal(fuse_depth.sharpened(ramp), ramp)
    step = np.where(np.arange(40) < 20, 1, 2).astype(np.float32)[None].repeat(20, 0)
    soft = cv2.GaussianBlur(step, (0, 0), 0.8)
    found = fuse_depth.sharpened(soft)
    assert np.abs(found / step - 1).max() < 0.1 < np.abs(soft / step - 1).max()
    holes = step.copy()
    holes[:, 20:] = 0
    assert np.array_equal(fuse_depth.sharpened(holes), holes)
