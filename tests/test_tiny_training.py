"""The programs behind checkpoints/tiny, at a size that a CPU trains in seconds."""

import re

import numpy as np
import pytest
import torch
from conftest import call
from diffusers import AutoencoderKLCogVideoX
from safetensors.torch import load_file

from finetune import dataset
from toolbox.synthetic import clips
from utils import pipeline

CPU, SHAPE = torch.device("cpu"), (17, 32, 48)


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """The shipped model's architecture before its training, for small clips."""
    folder = tmp_path_factory.mktemp("small")
    size = "--frames", SHAPE[0], "--height", SHAPE[1], "--width", SHAPE[2]
    assert call("toolbox.small_model.make_tiny_checkpoint", "--output_dir", folder, "--size", "small", *size) == 0
    return folder


def test_the_vae_trains_piece_by_piece(small, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("train_tiny_vae.VALIDATION_SEEDS", (100,))
    config = small / "base" / "vae"
    args = ("train_tiny_vae", "--vae_config", config, "--shape", *SHAPE, "--pool", 2, 4,
            "--batch_size", 2, "--minutes", 0.03)  # fmt: skip
    assert call(*args, "--output_dir", tmp_path / "a") == 0
    first = load_file(tmp_path / "a" / "state.safetensors")
    resume = "--resume", tmp_path / "a" / "state.safetensors", "--freeze_encoder", "--last"
    assert call(*args, "--output_dir", tmp_path / "b", *resume) == 0
    second = load_file(tmp_path / "b" / "state.safetensors")
    moved = {name.split(".")[0] for name in first if not torch.equal(first[name], second[name])}
    assert moved == {"decoder"}
    vae = AutoencoderKLCogVideoX.from_pretrained(tmp_path / "b")
    kept = load_file(tmp_path / "b" / "diffusion_pytorch_model.safetensors")
    deviation = float(re.findall(r"latents ([\d.]+)", capsys.readouterr().out)[-1])
    assert {p.dtype for p in kept.values()} == {torch.bfloat16}
    assert vae.config.scaling_factor == pytest.approx(1 / deviation, rel=0.01)


def test_pairs_of_ray_traced_scenes_are_latents_of_views_and_renders(small):
    from scene_pairs import MOVES, VIEWS, ScenePairs, make_latents

    made = make_latents(small / "base", SHAPE, CPU, 1000, CPU)
    assert made.shape == (2, VIEWS + 2 * len(MOVES), 64, 5, 4, 6) and (made[0] != made[1]).any()
    pipe = pipeline.load_pipeline(small / "base", small / "cognvs_ckpt_inpaint", torch.float32, CPU)
    pairs = ScenePairs(small / "base", SHAPE, 0, CPU, 1000, 1)
    assert pairs.made % (4 * len(MOVES)) == 0
    for (a, b), number in zip(MOVES, range(0, 2 * len(MOVES), 2), strict=True):
        there, back = pairs.pairs[number : number + 2]
        of = made[0][b], made[0][VIEWS + number], made[0][a], made[0][VIEWS + number + 1]
        for got, expected in zip((*there, *back), of, strict=True):
            np.testing.assert_allclose(got, expected, atol=0.02)
    x0, condition, noise, timestep = dataset.training_batch(pipe, pairs, 0, 0, 0, CPU, torch.float32, 3)
    assert x0.shape == condition.shape == noise.shape == (3, 5, 32, 4, 6) and len(timestep) == 3
    assert (x0 - condition).abs().mean() > 0.01


def test_what_traces_beside_a_gpu_that_trains():
    assert clips.tracers(0, 1, 16, 1) == ["cpu"] * 13
    assert clips.tracers(1, 3, 16, 1) == ["cuda:0", "cuda:2"] * 4 + ["cpu"] * 5
    assert clips.tracers(0, 2, 64, 2) == ["cpu"] * clips.CPU_TRACERS
    assert clips.tracers(0, 1, 2, 1) == ["cpu"]


def test_the_views_of_a_scene_see_the_same_world(small):
    from scene_pairs import film

    first, second = film(1001, (3, 48, 64), CPU)
    render, mask = clips.render(first, clips.cameras_to(first, second), "eval")
    assert 0.3 < mask.float().mean() < 0.99
    assert (render[mask].float() - second.rgb[mask].float()).abs().median() < 8
