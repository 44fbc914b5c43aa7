import json

import cv2
import numpy as np
import pytest
import torch
from conftest import call
from skimage.metrics import structural_similarity

from toolbox.small_model import evaluate_method as evaluate
from utils import metrics, pipeline

CPU = torch.device("cpu")


def test_ssim_is_the_librarys():
    rng = np.random.default_rng(0)
    a = rng.random((2, 40, 50, 3))
    b = (a + 0.3 * rng.random(a.shape)).clip(0, 1)
    settings = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False, "data_range": 1}
    expected = np.mean([structural_similarity(x, y, channel_axis=-1, **settings) for x, y in zip(a, b, strict=True)])
    assert metrics.ssim(a, b) == pytest.approx(expected, abs=1e-3) and metrics.ssim(a, a) == 1


def test_nearest_in_time_takes_the_nearest_frame_that_knows_the_pixel():
    render = np.full((5, 4, 4, 3), 50, np.uint8) * np.arange(1, 6, dtype=np.uint8)[:, None, None, None]
    mask = np.ones((5, 4, 4), bool)
    mask[2, 1, 1] = mask[3, 1, 1] = mask[4, 1, 1] = False
    filled = evaluate.nearest_in_time(render, mask)
    assert filled[2:, 1, 1, 0].tolist() == [100, 100, 100]
    assert (filled[mask] == render[mask]).all()


def test_scores_of_the_truth_of_black_and_of_blur():
    rng = np.random.default_rng(0)
    truth = rng.integers(0, 255, (2, 32, 32, 3), dtype=np.uint8)
    mask = np.ones((2, 32, 32), bool)
    mask[:, 8:24, 8:24] = False
    render = np.where(mask[..., None], truth, 0).astype(np.uint8)
    perfect = evaluate.scores(truth, render, mask, truth)
    assert perfect["holes"] == np.inf and perfect["ssim"] == 1 and perfect["sharpness"] == pytest.approx(1)
    black = evaluate.scores(render, render, mask, truth)
    assert black["known"] == np.inf and black["holes"] < 10 and black["sharpness"] < 0.3
    assert black["composite"] == black["full"]
    flat = evaluate.scores(np.full(truth.shape, 0.5), render, mask, truth)
    assert flat["sharpness"] == 0 and flat["holes"] < flat["composite"] and flat["known"] < flat["composite"]


def test_finetuning_changes_a_copy_and_can_be_repeated(model):
    pipe = pipeline.load_pipeline(model / "base", model / "cognvs_ckpt_inpaint", torch.float32, CPU)
    embedding, _ = pipeline.empty_prompt(model / "base", 8, torch.float32)
    clip, cameras, *_ = evaluate.open_scene("yards", 100, pipe.clip_shape, CPU)
    before = {name: p.clone() for name, p in pipe.transformer.named_parameters()}
    kinds = ({}, {}, {"holes": "boxes"}, {"rank": 4}, {"ranks": 2}, {"rank": 4}, {"holes": "evaluation path"},
             {"holes": "other cameras"})  # fmt: skip
    settings = [evaluate.Finetuning(train_epochs=2, renders=2, **kind) for kind in kinds]
    runs = [evaluate.finetune(pipe, embedding, clip, cameras, each, 0) for each in settings]
    assert all(torch.equal(p, before[name]) for name, p in pipe.transformer.named_parameters())
    weights = [dict(run.named_parameters()) for run in runs]
    name = "transformer_blocks.0.ff.net.2.weight"
    assert torch.equal(weights[0][name], weights[1][name]) and not torch.equal(weights[0][name], before[name])
    assert not torch.equal(weights[0][name], weights[4][name])
    assert len({tuple(weights[i][name].flatten().tolist()) for i in (0, 2, 6, 7)}) == 4  # holes of each kind
    assert torch.equal(weights[3][name], before[name])  # LoRA leaves the weights themselves alone
    assert all(torch.equal(p, weights[5][name]) for name, p in weights[3].items())


@pytest.mark.parametrize("holes", ["random paths", "boxes", "evaluation path", "other cameras"])
def test_finetuning_learns_to_fill_holes_in_what_its_target_shows(holes):
    clip, cameras, *_ = evaluate.open_scene("yards", 101, (3, 48, 64), CPU)
    pairs = evaluate.training_pairs(clip, cameras, evaluate.Finetuning(renders=2, holes=holes), 0)
    assert len(pairs) == (1 if holes == "evaluation path" else 2)
    for target, render in pairs:
        known = render.amax(-1) > 0
        assert 0.3 < known.float().mean() < 1
        assert (render[known].float() - target[known].float()).abs().median() < 8
        assert torch.equal(target, clip.rgb) == (holes != "other cameras")


def test_results_are_kept_and_not_done_again(model, tmp_path, capsys, monkeypatch):
    args = ["toolbox.small_model.evaluate_method", "--model_path", model / "base", "--cognvs_ckpt_path",
            model / "cognvs_ckpt_inpaint", "--output_dir", tmp_path, "--scenes", 1, "--num_inference_steps", 1,
            "--device", "cpu"]  # fmt: skip
    args.append("--finetunings")
    assert call(*args) == 0
    rows = [json.loads(line) for line in (tmp_path / "results_rooms_choose.jsonl").read_text().splitlines()]
    assert [row["method"] for row in rows] == ["black", "telea", "nearest in time", "vae", "zero-shot, 1"]
    strips = cv2.imread(str(tmp_path / "strips_rooms_choose.png"))
    assert strips.shape == (64, 5 * 96, 3) and strips.std() > 10
    assert (tmp_path / "rooms_100" / "zero-shot_1.mp4").exists() and "| telea |" in capsys.readouterr().out
    args[args.index("--scenes") + 1] = 2
    assert call(*args[:-1], "--share", 1, 2, "--finetunings") == 0
    made = [json.loads(line) for line in (tmp_path / "results_rooms_choose.jsonl").read_text().splitlines()]
    assert made[: len(rows)] == rows and [row["scene"] for row in made[len(rows) :]] == [101] * len(rows)
    monkeypatch.setattr(evaluate, "open_scene", None)  # nothing is filmed any more
    capsys.readouterr()
    assert call(*args) == 0
    assert "rooms, 2 scenes" in capsys.readouterr().out
    assert len((tmp_path / "results_rooms_choose.jsonl").read_text().splitlines()) == len(made)
