import json
import sys

import numpy as np
import pytest
import torch
from conftest import call

from toolbox.small_model import evaluate_method, evaluate_real
from utils import metrics

CPU = torch.device("cpu")
NAME = "toolbox.small_model.evaluate_real"


def test_the_motorcycle_is_seen_from_the_right():
    case = evaluate_real.motorcycle_case((2, 128, 192), CPU)
    assert 0.1 < 1 - case.mask.mean() < 0.3
    known = metrics.psnr(case.render / 255, case.truth / 255, case.mask)
    unmoved = metrics.psnr(case.clip.rgb.numpy() / 255, case.truth / 255, case.mask)
    assert known > 27 and known > unmoved + 10
    assert 1 < np.median(case.clip.depth) < 5  # metres


def test_without_scikit_image_one_line_says_so(monkeypatch):
    monkeypatch.setitem(sys.modules, "skimage.data", None)
    with pytest.raises(evaluate_real.cli.InputError, match="--motorcycle: needs scikit-image"):
        evaluate_real.read_motorcycle()


def test_pairs_are_measured_as_they_are_and_mirrored(model, room, tmp_path, capsys, monkeypatch):
    args = [NAME, "--model_path", model / "base", "--cognvs_ckpt_path",
            model / "cognvs_ckpt_inpaint", "--output_dir", tmp_path, "--sequence", room,
            "--num_inference_steps", 1, "--device", "cpu", "--finetunings", "default"]
    settings = evaluate_method.Finetuning(train_epochs=1)
    monkeypatch.setitem(evaluate_method.FINETUNINGS, "default", settings)
    paths = dict(list(evaluate_real.held_out_paths().items())[4:5])
    monkeypatch.setattr(evaluate_real, "held_out_paths", lambda: paths)
    assert call(*args) == 0
    file = tmp_path / f"results_{room.name}_real.jsonl"
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    assert len(rows) == 2 * 6  # one path, as it is and mirrored
    out = capsys.readouterr().out
    assert "| default, 1 |" in out and "default, 1:" in out
    assert (tmp_path / f"strips_{room.name}_real.png").exists()

    before = file.read_text()
    assert call(*args) == 0
    assert file.read_text() == before and capsys.readouterr().out == out  # it was all there
    depth = room / "cam_info" / "megasam_depth.npy"
    other = np.load(depth)
    np.save(depth, other * np.linspace(1, 2, other.shape[2], dtype=other.dtype))
    assert call(*args) == 0
    assert len(file.read_text().splitlines()) == 4 * 6 and capsys.readouterr().out != out
    other[0] = 0
    np.save(depth, other)
    assert call(*args) == 2 and "centre of the first frame" in capsys.readouterr().err


def test_mirrored_pairs_are_mirror_images(room):
    clip = evaluate_real.sequence_clip(room, None, (3, 32, 48), CPU)
    cases = evaluate_real.sequence_cases(clip)
    assert len(cases) == 2 * (4 + evaluate_real.RANDOM_PATHS)
    plain, mirrored = cases["traj1"], cases["traj1" + evaluate_real.MIRRORED]
    assert (mirrored.truth == plain.truth[:, :, ::-1]).all()
    assert (mirrored.render == plain.render[:, :, ::-1]).all()
    assert not plain.mask.all() and (plain.truth == clip.rgb.numpy()).all()
