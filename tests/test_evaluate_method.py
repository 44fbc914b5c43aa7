import json

import cv2
import numpy as np
import pytest
import torch
from conftest import call

from toolbox.small_model import evaluate_method as evaluate
from toolbox.synthetic import clips
from utils import pipeline

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """A random model of 9 x 32 x 48, so that scenes are traced in a second or two."""
    folder = tmp_path_factory.mktemp("tiny")
    assert call("toolbox.small_model.make_tiny_checkpoint", "--output_dir", folder,
                "--frames", 9, "--height", 32, "--width", 48) == 0
    return folder


@pytest.fixture(scope="module")
def clip():
    return clips.random_clip(100, (9, 32, 48), CPU)


def test_nearest_in_time_takes_the_nearest_frame_that_knows_the_pixel():
    number = np.arange(1, 6, dtype=np.uint8)[:, None, None, None]
    render = np.full((5, 4, 4, 3), 50, np.uint8) * number
    mask = np.ones((5, 4, 4), bool)
    mask[2:, 1, 1] = False
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
    assert perfect["holes"] == np.inf and perfect["sharpness"] == pytest.approx(1)
    assert perfect["ssim"] == pytest.approx(1)
    black = evaluate.scores(render, render, mask, truth)
    assert black["known"] == np.inf and black["holes"] < 10 and black["sharpness"] < 0.3
    assert black["composite"] == black["full"]
    flat = evaluate.scores(np.full(truth.shape, 0.5), render, mask, truth)
    assert flat["sharpness"] == 0
    assert flat["holes"] < flat["composite"] and flat["known"] < flat["composite"]


def test_finetuning_changes_a_copy_and_can_be_repeated(tiny, clip):
    weights = tiny / "cognvs_ckpt_inpaint"
    pipe = pipeline.load_pipeline(tiny / "base", weights, torch.float32)
    embedding, _ = pipeline.empty_prompt(tiny / "base", 8, torch.float32)
    before = {name: p.clone() for name, p in pipe.transformer.named_parameters()}

    def finetune(**settings):
        settings = evaluate.Finetuning(train_epochs=2, **settings)
        return dict(evaluate.finetune(pipe, embedding, clip, settings).named_parameters())

    name = "transformer_blocks.0.ff.net.2.weight"
    whole = finetune()
    assert torch.equal(whole[name], finetune()[name])
    assert not torch.equal(whole[name], before[name])
    lora = finetune(rank=4)
    assert torch.equal(lora[name], before[name])  # LoRA leaves the weights themselves alone
    again = finetune(rank=4)
    assert all(torch.equal(p, again[name]) for name, p in lora.items())
    assert any("lora_B" in name and p.any() for name, p in lora.items())  # 0 before training
    assert all(torch.equal(p, before[name]) for name, p in pipe.transformer.named_parameters())


def test_finetuning_learns_to_fill_holes_in_what_its_target_shows(tiny, clip):
    pipe = pipeline.load_pipeline(tiny / "base", tiny / "cognvs_ckpt_inpaint", torch.float32)
    pairs = evaluate.ClipPairs(pipe, clip)
    assert len(pairs.renders) == evaluate.RENDERS
    for render in pairs.renders:
        known = (render > 0).any(-1)
        assert 0.3 < known.float().mean() < 1
        assert (render[known].float() - clip.rgb[known].float()).abs().median() < 8


def test_a_table_has_means_over_scenes_and_gains_on_the_same_scenes():
    rows = []
    for scene, holes in ((1, {"telea": 10, "zero-shot, 1": 13, "default, 1": 14}),
                         (2, {"telea": 20, "zero-shot, 1": 21, "default, 1": 24}),
                         (3, {"telea": 90})):
        for method, value in holes.items():
            row = dict.fromkeys(evaluate.COLUMNS, 1.0)
            rows.append(row | {"scene": scene, "method": method, "holes": value})
    lines = [line.split(" | ") for line in evaluate.table(rows).splitlines()]
    cells = {line[0].strip("| "): line[1:] for line in lines}
    assert cells["telea"][0] == "40.00 +- 35.59" and cells["telea"][-2:] == ["", " |"]
    assert cells["zero-shot, 1"][-2:] == ["+2.00 +- 1.00", " |"]
    assert cells["default, 1"][-2:] == ["+4.00 +- 0.00", "+2.00 +- 1.00 |"]


def test_results_are_kept_and_not_done_again(tiny, tmp_path, capsys, monkeypatch):
    args = ["toolbox.small_model.evaluate_method", "--model_path", tiny / "base",
            "--cognvs_ckpt_path", tiny / "cognvs_ckpt_inpaint", "--output_dir", tmp_path,
            "--num_inference_steps", 1, "--device", "cpu", "--finetunings"]
    file = tmp_path / "results_rooms_choose.jsonl"
    monkeypatch.setitem(evaluate.FINETUNINGS, "default", evaluate.Finetuning(train_epochs=1))
    assert call(*args, "default", "--scenes", 1) == 0
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    methods = ["black", "telea", "nearest in time", "vae", "zero-shot, 1", "default, 1"]
    assert [row["method"] for row in rows] == methods
    strips = cv2.imread(str(tmp_path / "strips_rooms_choose.png"))
    assert strips.shape == (32, 6 * 48, 3) and strips.std() > 10
    assert len(list(tmp_path.glob("rooms_100_*/zero-shot_1.mp4"))) == 1
    assert "| telea |" in capsys.readouterr().out

    assert call(*args, "--scenes", 2, "--share", 1, 2) == 0
    made = [json.loads(line) for line in file.read_text().splitlines()]
    assert made[:6] == rows and [row["scene"] for row in made[6:]] == [101] * 5
    monkeypatch.setattr(evaluate, "open_case", None)  # nothing is filmed any more
    capsys.readouterr()
    assert call(*args, "--scenes", 2) == 0
    assert "rooms, 2 scenes" in capsys.readouterr().out
    assert len(file.read_text().splitlines()) == len(made)


def test_a_case_of_a_yard_has_holes_and_what_is_behind_them():
    case = evaluate.open_case("yards", 100, (2, 32, 48), CPU)
    assert not case.mask.all() and (case.render[~case.mask] == 0).all()
    assert (case.truth[~case.mask] > 0).any(-1).mean() > 0.99
    off = case.render[case.mask].astype(int) - case.truth[case.mask]
    assert np.median(np.abs(off)) < 8
