"""What toolbox/score.py measures: regions, flicker, seams, cameras, gains."""

import numpy as np
import pytest

from toolbox.evaluation import cameras, gains, measures
from utils import metrics


def pictures(seed=0, shape=(40, 60, 3)):
    return np.random.default_rng(seed).random(shape, np.float32)


@pytest.fixture
def mask():
    known = np.ones((40, 60), bool)
    known[10:25, 15:45] = False
    return known


def test_regions_recombine_to_the_whole_and_are_the_metrics_of_utils(mask):
    comparison = measures.Comparison()
    clips = pictures(0, (3, 40, 60, 3)), pictures(1, (3, 40, 60, 3))
    for a, b in zip(*clips, strict=True):
        comparison.add(a, b, mask, None)
    found = comparison.result()
    whole = metrics.masked_psnr(*clips, np.stack([mask] * 3))
    for region in measures.REGIONS:
        assert found[region]["psnr"] == pytest.approx(whole[region], abs=1e-4)
        assert found[region]["lpips"] is None and found[region]["flicker"] is None
    share = mask.mean()
    for name in ("psnr", "ssim"):
        part = {r: found[r][name] for r in measures.REGIONS}
        if name == "psnr":
            part = {r: 10 ** (-value / 10) for r, value in part.items()}
        together = share * part["known"] + (1 - share) * part["holes"]
        assert together == pytest.approx(part["all"], rel=1e-5)


def test_a_mask_of_ones_changes_nothing_and_leaves_no_holes():
    a, b = pictures(0), pictures(1)
    comparison = measures.Comparison()
    comparison.add(a, b, np.ones((40, 60), bool), None)
    found = comparison.result()
    assert found["known"] == found["all"]
    assert set(found["holes"].values()) == {None}


def test_energy_is_that_of_the_truth_and_less_where_it_is_blurred(mask):
    import cv2

    truth = pictures(0)
    energy = {}
    for name, picture in {"same": truth, "blurred": cv2.GaussianBlur(truth, (0, 0), 2)}.items():
        comparison = measures.Comparison()
        comparison.add(picture, truth, mask, None)
        energy[name] = comparison.result()["holes"]["energy"]
    assert energy["same"] == pytest.approx(1) and energy["blurred"] < 0.1
    assert comparison.result()["holes"]["psnr"] is not None


def test_what_moves_as_the_flow_says_does_not_flicker_and_what_changes_does(mask):
    import cv2

    wide = cv2.GaussianBlur(pictures(0, (40, 70, 3)), (0, 0), 2)
    wide = (wide - wide.min()) / (wide.max() - wide.min())
    before, now = wide[:, :60], wide[:, 3:63]
    flow, agree = measures.flow_back(now, before)
    assert agree.mean() > 0.7
    assert np.median(flow[agree][:, 0]) == pytest.approx(3, abs=0.2)
    still = measures.flicker(now, before, flow)[agree].mean()
    brighter = measures.flicker(now + 0.1, before, flow)[agree].mean()
    assert still < 3 and brighter == pytest.approx(25.5, abs=3)


def test_a_seam_is_seen_along_the_outline_of_holes(mask):
    render = np.full((40, 60, 3), 0.5, np.float32) + 0.02 * pictures(0)
    seams = {}
    for name, step in {"none": 0, "bright": 0.2}.items():
        found = measures.Plausibility()
        out = render + np.float32(step) * ~mask[..., None]
        found.add(out, render, mask)
        found.add(out, render, mask)
        seams[name] = found.result()
    assert seams["none"]["seam"] == pytest.approx(1, abs=0.2) and seams["bright"]["seam"] > 20
    assert seams["none"]["known_psnr"] is None  # equal
    assert seams["none"]["flicker_known"] < 0.5


def test_camera_errors_are_none_after_any_similarity_and_tell_turns_and_places():
    rng = np.random.default_rng(0)
    truth = np.tile(np.eye(4), (20, 1, 1))
    truth[:, :3, 3] = np.cumsum(rng.normal(0, 0.1, (20, 3)), 0)
    for pose in truth:
        pose[:3, :3] = cameras.nearest_rotation(np.eye(3) + rng.normal(0, 0.2, (3, 3)))
    similar = np.eye(4)
    similar[:3, :3] = cameras.nearest_rotation(rng.normal(0, 1, (3, 3)))
    moved = similar @ truth
    moved[:, :3, 3] = 5 * moved[:, :3, 3] + [1, 2, 3]
    turn, place = cameras.aligned_errors(moved, truth)
    assert turn < 1e-5 and place < 1e-6
    a = np.radians(6)
    moved[10:, :3, :3] = moved[10:, :3, :3] @ [[np.cos(a), 0, np.sin(a)], [0, 1, 0],
                                                [-np.sin(a), 0, np.cos(a)]]
    turn, place = cameras.aligned_errors(moved, truth)
    assert 2 < turn < 4.5 and place < 1e-6
    moved[10, :3, 3] += 5 * np.linalg.norm(np.diff(truth[:, :3, 3], axis=0), axis=1).sum() / 10
    assert cameras.aligned_errors(moved, truth)[1] > 1
    assert np.isnan(cameras.aligned_errors(truth, np.tile(np.eye(4), (20, 1, 1)))[1])


# ---- gains ---------------------------------------------------------------------------------------


def made_results(after):
    """Results of "before" at 20 dB and "after" at 20 + after[seed, mirrored], of two pairs."""
    results = []
    for pair in ("val_render1", "val_render2"):
        for (seed, mirrored), gain in after.items():
            for method, value in (("before", 20.0), ("after", 20 + gain)):
                scores = {}
                for region in measures.REGIONS:
                    scores[region] = dict.fromkeys(measures.MEASURES, None)
                scores["holes"]["psnr"] = value + (pair == "val_render2")
                results.append(gains.Result(pair, mirrored, method, seed, scores))
    return results


def test_the_estimate_goes_on_from_pairs_as_they_are_to_mirrored_ones():
    results = made_results({(42, False): 1.0, (42, True): 0.6, (43, False): 1.2, (43, True): 0.8})
    plain, mirrored, estimated = gains.gains(results, "after", "before")
    assert plain == pytest.approx([1, 1.2]) and mirrored == pytest.approx([0.6, 0.8])
    assert estimated == pytest.approx([0.2, 0.4])
    as_they_are, flipped, spread = gains.of_method(results, "after")
    assert as_they_are["holes"]["psnr"] == pytest.approx(21.6)
    assert flipped["holes"]["psnr"] == pytest.approx(21.2)
    assert spread == pytest.approx(0.2) and as_they_are["all"]["psnr"] is None
    for each in results:
        each.scores["holes"]["psnr"] = None
    assert gains.gains(results, "after", "before") == ([], [], [])


@pytest.mark.parametrize("estimated, said", [
    ([0.5, 0.7], "an estimated 0.60 dB better than before (seeds differ by 0.20 dB)"),
    ([-0.5, -0.7], "an estimated 0.60 dB worse than before (seeds differ by 0.20 dB)"),
    ([1.2, 0.1], "about as well as before: an estimated +0.65 dB"),
    ([0.3, 0.36], "about as well as before: an estimated +0.33 dB, where 0.5 dB or less tell"),
    ([], "the held-out pairs have no holes"),
    ([0.7], "an estimated 0.70 dB better than before (one seed)"),
])
def test_the_verdict_is_one_sentence(estimated, said):
    sentence = gains.verdict("after", "before", estimated)
    assert said in sentence and sentence.startswith("after ")
