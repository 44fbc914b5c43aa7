"""The shipped small model, checkpoints/tiny, on the shipped sequence with its exact new views."""

import shutil

import numpy as np
import pytest
import torch
from conftest import ROOT, call

from toolbox.evaluation import measures
from toolbox.small_model import evaluate_method as evaluate
from utils import cogvideox, metrics, pipeline, video
from utils.cli import InputError

BASE = ROOT / "checkpoints" / "tiny" / "base"
WEIGHTS = ROOT / "checkpoints" / "tiny" / "cognvs_ckpt_inpaint"


@pytest.fixture(scope="module")
def room(tmp_path_factory):
    """The shipped sequence with its evaluation render along traj2.txt."""
    room = tmp_path_factory.mktemp("sequence") / "room"
    shutil.copytree(ROOT / "demo_data" / "room", room)
    assert call("data_gen", "--data_path", room, "--mode", "eval", "--device", "cpu", "--trajs",
                ROOT / "trajs" / "traj2.txt", "--intrinsics_file",
                "cam_info/megasam_intrinsics.npy") == 0
    return room


def test_it_fills_holes_better_than_telea_and_finds_the_picture_again(room, tmp_path):
    assert call("demo", "--model_path", BASE, "--cognvs_ckpt_path", WEIGHTS, "--data_path", room,
                "--mp4_name", "eval_render1.mp4", "--num_inference_steps", 4,
                "--output_dir", tmp_path, "--device", "cpu") == 0
    render = video.read_video(room / "eval_render1.mp4")
    truth = video.read_video(room / "novel_gt2.mp4")
    known = video.read_video(room / "eval_mask1.mp4")[..., 0] > 127
    output = video.read_video(tmp_path / "eval_render1_out.mp4")
    telea = measures.telea(render, known)
    ours = metrics.masked_psnr(output / 255, truth / 255, known)
    simple = metrics.masked_psnr(telea / 255, truth / 255, known)
    assert ours["holes"] > simple["holes"] + 1.2 and ours["known"] > 24
    composite = np.where(known[..., None], render, output)
    assert metrics.psnr(composite / 255, truth / 255) > simple["all"] + 1  # Telea keeps the known


def test_predicted_steps_make_nearly_the_same_picture(room, monkeypatch):
    pipe = pipeline.load_pipeline(BASE, WEIGHTS, torch.float32)
    pipe.transformer.register_to_config(sample_frames=17)  # a third of its clips takes a third
    embedding, _ = pipeline.empty_prompt(BASE, 8, torch.float32)
    frames = video.read_video(room / "eval_render1.mp4")[-17:]
    render = video.resize(frames, *pipe.clip_shape[1:])
    passes = []
    block = pipe.transformer.transformer_blocks[0].attn1
    block.register_forward_hook(lambda *_: passes.append(1))
    exact = evaluate.inpaint(pipe, embedding, render, 20)
    assert len(passes) == 20
    fast = evaluate.inpaint(pipe, embedding, render, 20, fast=True)
    assert len(passes) - 20 == len(cogvideox.fast_passes(20)) == 8
    found = metrics.psnr(fast, exact)
    assert 35 < found < 60
    monkeypatch.setattr(cogvideox.Sampler, "corrected", lambda sampler, now, velocity: velocity)
    plain = evaluate.inpaint(pipe, embedding, render, 20, fast=True)
    assert metrics.psnr(plain, exact) < found - 1  # what the corrector is for
    holes = (render == 0).all(-1)
    assert np.abs(exact - render / 255)[holes].mean() > 0.1  # there is a picture in them


def test_a_base_with_another_sampler_is_refused(tmp_path):
    base = shutil.copytree(BASE, tmp_path / "base")
    config = base / "scheduler" / "scheduler_config.json"
    config.write_text(config.read_text().replace("v_prediction", "epsilon"))
    with pytest.raises(InputError, match="got a scheduler for epsilon; expected CogVideoX's"):
        pipeline.load_pipeline(base, WEIGHTS, torch.float32)
