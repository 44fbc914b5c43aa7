"""The verdict on a geometry, and how shots are cut into windows and windows are joined."""

import itertools
import json
from dataclasses import replace
from fractions import Fraction
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
from exact_matches import SIZE, cameras, degrees_between, make

from toolbox.geometry import search, shots, solver, verdict
from utils import video

GOOD = {"parallax_px": 5.0, "misfit_px": 0.3, "ratio": 0.06, "moving": 0.05,
        "focal_deviation": 0.02}


def flags(*windows, misfit=(0.3, 0.4, 0.3), cuts=()):
    measures = [{**GOOD, **window} for window in windows]
    found, sentences = verdict.judge(measures, np.array(misfit), list(cuts))
    assert len(sentences) == max(1, len(found)) and all(sentences)
    return found


def test_what_is_good_gets_no_flag():
    assert flags({}) == [] and flags({}, {}) == []
    assert flags({}, misfit=(np.nan, 0.3)) == []
    said = verdict.judge([GOOD], np.array([0.3]), [])[1]
    assert said == ["good: parallax 5.0 pixels, 95% of the points fit a still scene"]


@pytest.mark.parametrize("flag, measure, below, above", [
    ("no_parallax", "parallax_px", 0.9, 1.1),
    ("wrong_fit", "ratio", 0.3, 0.4),
    ("mostly_moving", "moving", 0.3, 0.4),
    ("focal_unknown", "focal_deviation", 0.09, 0.11),
])
def test_each_flag_is_of_its_own_measure(flag, measure, below, above):
    bad, good = (below, above) if flag == "no_parallax" else (above, below)
    assert flags({measure: bad}) == [flag]
    assert flags({measure: good}) == []
    assert flags({}, {measure: bad}, {}) == [flag]


def test_windows_without_parallax_are_told_and_their_ratio_says_nothing():
    measures = [GOOD, GOOD | {"parallax_px": 0.1, "ratio": 0.9}, GOOD | {"parallax_px": np.nan}]
    found, said = verdict.judge(measures, np.array([0.3]), [])
    assert found == ["no_parallax"] and "in 2 of 3 windows" in said[0]
    assert verdict.judge(measures[2:], np.array([np.nan]), [])[0] == ["no_parallax"]


def test_flags_of_cuts_and_of_frames():
    assert flags({}, cuts=[7, 30]) == ["cut"]
    assert "7, 30" in verdict.judge([GOOD], np.array([0.3]), [7, 30])[1][0]
    assert flags({}, misfit=(0.3, 2.1, 0.3, 5, 0.2)) == ["lost_frames"]
    assert "2 frames fit badly, 1 to 3" in verdict.judge(
        [GOOD], np.array([0.3, 2.1, 0.3, 5, 0.2]), [])[1][0]
    # where nothing moves, a ratio says nothing
    assert flags({"parallax_px": 0.1, "ratio": 1}) == ["no_parallax"]
    assert flags({"ratio": 0.8, "moving": 0.7}, cuts=[3]) == ["cut", "wrong_fit", "mostly_moving"]


def test_the_record_is_json_and_keeps_frames_that_nothing_is_known_of():
    found = SimpleNamespace(sentences=["a"], flags=["cut"], focal=99.5, cuts=[3],
                            measures=[GOOD], misfit=np.array([0.12345, np.nan]))
    record = json.loads(json.dumps(verdict.as_record(found)))
    assert record == {"verdict": ["a"], "flags": ["cut"], "focal_px": 99.5, "cuts": [3],
                      "windows": [GOOD], "frame_misfit_px": [0.123, None]}


# ---- measures ------------------------------------------------------------------------------------


def test_an_exact_scene_is_explained_by_translation_alone():
    problem, truth = make(cameras(10))
    measures, misfit = verdict.measure(truth, problem)
    assert measures["parallax_px"] > 3 and measures["misfit_px"] < 0.01
    assert measures["ratio"] < 0.01 and measures["moving"] == 0
    assert 0 < measures["focal_deviation"] < verdict.FOCAL
    assert misfit.shape == (10,) and misfit.max() < 0.01
    assert verdict.judge([measures], misfit, [])[0] == []
    assert verdict.measure(truth, problem, fixed_focal=True)[0]["focal_deviation"] == 0


def test_a_camera_that_only_turns_has_no_parallax():
    problem, truth = make(cameras(10, turn_deg=1.5, move=0))
    assert np.linalg.norm(problem.there - problem.here[problem.pairs[:, 0]], axis=-1).mean() > 5
    measures, misfit = verdict.measure(truth, problem)
    assert measures["parallax_px"] < 0.05
    assert verdict.judge([measures], misfit, [])[0][0] == "no_parallax"


def test_parallax_is_what_no_turning_explains():
    sideways = np.tile(np.eye(4), (10, 1, 1))
    sideways[:, 0, 3] = np.arange(10) * 0.04  # before a wall, nearly as if the camera turned
    problem, truth = make(sideways, depths=(4, 4.01))
    way = np.linalg.norm(problem.there - problem.here[problem.pairs[:, 0]], axis=-1)
    assert np.median(way[np.abs(np.diff(problem.pairs))[:, 0] == 8]) > 8
    assert verdict.measure(truth, problem)[0]["parallax_px"] < 1
    problem, truth = make(sideways)
    assert verdict.measure(truth, problem)[0]["parallax_px"] > 1.4


def test_a_wrong_camera_or_a_moving_scene_is_told():
    problem, truth = make(cameras(10))
    wrong = replace(truth, w2c=truth.w2c.copy())
    wrong.w2c[:, :3, 3] *= -1
    measures, _ = verdict.measure(wrong, problem)
    assert measures["ratio"] > 1 and measures["moving"] > 0.9
    rng = np.random.default_rng(0)
    moving = rng.random(problem.there.shape[1]) < 0.6
    slid = problem.there + np.float32([3, 0]) * moving[:, None]
    measures, misfit = verdict.measure(truth, replace(problem, there=slid))
    assert measures["moving"] == pytest.approx(0.6, abs=0.1) and misfit.min() > 2
    assert {"mostly_moving", "lost_frames"} <= set(verdict.judge([measures], misfit, [])[0])


def test_misfit_tells_the_frame_whose_camera_is_wrong():
    problem, truth = make(cameras(20))
    lost = replace(truth, w2c=truth.w2c.copy())
    lost.w2c[10] = solver.exponentials(np.array([[0, 0, 0, 0, 0.05, 0]])) @ lost.w2c[10]
    misfit = verdict.measure(lost, problem)[1]
    assert misfit[10] > 3 and (misfit[[0, 4, 8, 12, 16]] < 0.01).all()
    assert 1 < misfit[9] < misfit[10]  # one that nothing begins at is between its neighbours


def test_a_focal_length_that_nothing_tells_has_a_large_deviation():
    sideways = np.tile(np.eye(4), (10, 1, 1))
    sideways[:, 0, 3] = np.arange(10) * 0.08  # focal length and depth can change together
    unknown = verdict.measure(*make(sideways)[::-1])[0]["focal_deviation"]
    known = verdict.measure(*make(cameras(10, turn_deg=3))[::-1])[0]["focal_deviation"]
    assert known < 0.02 and unknown > 5 * known


# ---- shots and windows ---------------------------------------------------------------------------


@pytest.mark.parametrize("first", [0, 31])
def test_windows_cover_a_shot_and_overlap(first):
    for length in range(1, 400):
        found = shots.windows(first, first + length)
        assert found[0][0] == first and found[-1][1] == first + length
        if length <= shots.LONGEST:
            assert len(found) == 1
        for a, b in found:
            assert min(length, shots.WINDOW // 2) <= b - a <= shots.LONGEST
        for (_, end), (begin, _) in itertools.pairwise(found):
            assert shots.OVERLAP <= end - begin < shots.WINDOW // 2


def test_a_pose_between_two():
    a, b = np.eye(4), solver.exponentials(np.array([[3, 6, 0, 0, 0.8, 0]]))[0]
    np.testing.assert_allclose(shots.between(a, b, 0), a, atol=1e-9)
    np.testing.assert_allclose(shots.between(a, b, 1), b, atol=1e-9)
    third = shots.between(b, b @ b, 1 / 3)
    np.testing.assert_allclose(third[:3, 3], b[:3, 3] + (b @ b - b)[:3, 3] / 3, atol=1e-9)
    assert degrees_between(third, b) == pytest.approx(np.degrees(0.8 / 3))
    assert degrees_between(third, b @ b) == pytest.approx(np.degrees(1.6 / 3))


def test_a_window_in_another_world_and_unit_is_put_back():
    rng = np.random.default_rng(0)
    c2w = np.linalg.inv(cameras(20))
    disparity = rng.uniform(0.1, 0.5, (20, 8, 9))
    disparity[:, 0, :2] = 0  # unknown
    turned = solver.exponentials(np.array([[0.3, -2, 1, 0.4, -0.2, 0.9]]))[0]
    scaled = c2w[8:].copy()
    scaled[:, :3, 3] *= 2.5
    got, poses = shots.joined(disparity[8:14], c2w[8:14], disparity[8:] / 2.5, turned @ scaled)
    np.testing.assert_allclose(got, disparity[8:], rtol=1e-6)
    np.testing.assert_allclose(poses, c2w[8:], atol=1e-9)


def test_windows_that_differ_are_blended_over_their_overlap():
    c2w = np.tile(np.eye(4), (10, 1, 1))
    c2w[:, 0, 3] = np.arange(10)
    other = c2w.copy()
    other[:, 1, 3] = np.arange(10) - 5  # it agrees in the middle of the overlap
    disparity = np.ones((10, 4, 4))
    odd = disparity.copy()
    odd[:, 0, 0] = 3
    got, poses = shots.joined(disparity, c2w, odd, other)
    assert (np.diff(got[:, 0, 0]) > 0).all() and 1 < got[0, 0, 0] < 1.3 < 2.7 < got[9, 0, 0] < 3
    assert (got[:, 1:] == 1).all() and np.allclose(poses[:, 0, 3], np.arange(10))
    assert abs(poses[0, 1, 3]) < 0.5 and 3.5 < poses[9, 1, 3] < 4


def test_units_are_those_of_the_given_depth():
    problem, truth = make(cameras(4))
    odd = replace(truth, grid=truth.grid + 0.7, shift=0.1 * problem.median)
    found = shots.in_units(odd)
    assert abs(np.median(found.grid)) < 1e-9
    before, after = (search.misses(state, problem) for state in (odd, found))
    np.testing.assert_allclose(before, after, atol=1e-3)
    assert np.nanmax(before) > 0.1


def test_the_scale_that_suits_cameras():
    problem, truth = make(cameras(6), uneven=0)
    for scale in (-1.3, 0, 0.9):
        given = replace(problem, disparity=problem.disparity * np.float32(np.exp(-scale)))
        assert abs(shots.depth_scale(truth, given, 2, 0.125) - scale) < 0.13


def test_the_shared_focal_length_is_that_of_windows_that_know_it():
    results = [(SimpleNamespace(log_focal=np.log(focal)), {"focal_deviation": deviation}, None)
               for focal, deviation in ((200, 0.01), (210, 0.01), (400, 0.5))]
    free = shots.Known(None, False, None, True)
    assert 102 < shots.shared_focal(results, free, 2) < 103
    assert shots.shared_focal(results, shots.Known(77, True, None, True), 2) == 77


def test_a_state_that_was_saved_comes_back(tmp_path):
    _, truth = make(cameras(3), points=5)
    assert shots.load_state(tmp_path / "a.npz") is None
    shots.save_state(tmp_path / "a.npz", truth, GOOD, np.array([0.1, np.nan, 0.3]))
    state, measured, misfit = shots.load_state(tmp_path / "a.npz")
    for name in ("w2c", "log_focal", "grid", "shift", "offset"):
        assert np.array_equal(getattr(state, name), getattr(truth, name))
    assert measured == GOOD and np.array_equal(misfit, [0.1, np.nan, 0.3], equal_nan=True)


def test_holes_are_filled_for_the_solver():
    inverse = np.full((2, 12, 16), 0.5, np.float32)
    inverse[0, :6] = 0
    inverse[1] = 0
    found, known = shots.small_disparity(inverse, SIZE)
    assert found.shape == (2, *SIZE) and (found[0] == 0.5).all() and (found[1] == 1).all()
    assert not known[1].any() and known[0].mean() == 0.5 and known[0, -1].all()


# ---- cuts ----------------------------------------------------------------------------------------


def texture(seed):
    """Smooth colours, float32 [64, 200, 3]."""
    noise = np.random.default_rng(seed).normal(size=(64, 200, 3)).astype(np.float32)
    noise = cv2.GaussianBlur(noise, (0, 0), 6)
    return (noise - noise.min()) / np.ptp(noise) * 255


@pytest.fixture
def film(tmp_path):
    """A function that writes a video of parts, (texture's number, first column of each frame)."""

    def write(*parts):
        frames = [texture(seed)[:, at : at + 96] for seed, columns in parts for at in columns]
        frames = np.stack(frames).astype(np.uint8)
        info = video.VideoInfo(len(frames), 64, 96, Fraction(20))
        video.write_video(tmp_path / "x.mp4", frames, info)
        return tmp_path / "x.mp4", info

    return write


def test_cuts_are_found(film):
    still, pan = [20] * 4, range(0, 60, 5)
    assert shots.find_cuts(*film((0, still))) == []
    assert shots.find_cuts(*film((0, pan))) == []
    assert shots.find_cuts(*film((0, still), (1, pan), (2, still))) == [4, 16]


def test_no_shot_is_a_single_frame(film):
    still = [20] * 4
    assert shots.find_cuts(*film((0, still), (1, [20]), (0, still))) in ([], [4], [5])
    assert shots.find_cuts(*film((1, [20]), (0, still), (2, [20]))) == []
