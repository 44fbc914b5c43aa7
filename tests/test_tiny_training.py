"""The programs behind checkpoints/tiny, at a size that a CPU trains in seconds."""

import re

import dataset
import pytest
import torch
from conftest import call
from diffusers import AutoencoderKLCogVideoX
from safetensors.torch import load_file

from utils import pipeline

CPU, SHAPE = torch.device("cpu"), (17, 32, 48)


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """The shipped model's architecture before its training, for small clips."""
    folder = tmp_path_factory.mktemp("small")
    size = "--frames", SHAPE[0], "--height", SHAPE[1], "--width", SHAPE[2]
    assert call("make_tiny_checkpoint", "--output_dir", folder, "--size", "small", *size) == 0
    return folder


def test_the_vae_trains_piece_by_piece(small, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("train_tiny_vae.VALIDATION_SEEDS", (100,))
    config = small / "base" / "vae"
    args = ("train_tiny_vae", "--vae_config", config, "--shape", *SHAPE, "--producers", 1, "--pool", 2, 4,
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


def test_pairs_of_ray_traced_scenes_are_latents_of_both_kinds(small):
    from scene_pairs import PATHS, ScenePairs, make_pairs

    made = make_pairs(small / "base", SHAPE, 1000, CPU)
    assert len(made) == 2 * PATHS and all(pair.shape == (2, 64, 5, 4, 6) for pair in made)
    assert (made[0][0] == made[2][0]).all() and (made[0][0] != made[1][0]).any()  # one source, a truth for each path
    pipe = pipeline.load_pipeline(small / "base", small / "cognvs_ckpt_inpaint", torch.float32, CPU)
    pairs = ScenePairs(1000, small / "base", SHAPE, 0, CPU, first=4, producers=1)
    x0, condition, noise, timestep = dataset.training_batch(pipe, pairs, 0, 0, 0, 3, CPU, torch.float32)
    assert x0.shape == condition.shape == noise.shape == (3, 5, 32, 4, 6) and len(timestep) == 3
    assert (x0 - condition).abs().mean() > 0.01
