"""The programs behind checkpoints/tiny, at a size that a CPU trains in seconds."""

import csv
import os
import re
import subprocess

import numpy as np
import pytest
import torch
from conftest import ROOT, call
from diffusers import AutoencoderKLCogVideoX
from safetensors.torch import load_file

from finetune import dataset
from toolbox.small_model import scene_pairs, train_vae
from toolbox.synthetic import clips
from utils import pipeline

CPU = torch.device("cpu")
SHAPE = (9, 32, 48)


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """The shipped model's architecture before its training, for small clips."""
    folder = tmp_path_factory.mktemp("small")
    assert call("toolbox.small_model.make_tiny_checkpoint", "--output_dir", folder,
                "--size", "small", "--frames", SHAPE[0], "--height", SHAPE[1],
                "--width", SHAPE[2]) == 0
    return folder


def test_a_random_model_leaves_the_default_dtype_as_it_was(tmp_path):
    assert call("toolbox.small_model.make_tiny_checkpoint", "--output_dir", tmp_path, "--frames", 9,
                "--height", 16, "--width", 16, "--dtype", "bf16") == 0
    assert torch.get_default_dtype() == torch.float32
    weights = load_file(tmp_path / "base" / "vae" / "diffusion_pytorch_model.safetensors")
    assert {p.dtype for p in weights.values()} == {torch.bfloat16}
    assert call("toolbox.small_model.make_tiny_checkpoint", "--output_dir", tmp_path / "no",
                "--frames", 10) == 2
    assert not (tmp_path / "no").exists()


class NoStream:
    """In place of clips.Stream where no more scenes are to come."""

    def take(self):
        return []

    def close(self):
        pass


def test_the_vae_trains_piece_by_piece(small, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(train_vae, "VALIDATION_SEEDS", (100,))
    args = ("toolbox.small_model.train_vae", "--vae_config", small / "base" / "vae",
            "--shape", *SHAPE, "--pool", 2, 4, "--batch_size", 2, "--minutes", 0.03)
    assert call(*args, "--output_dir", tmp_path / "a") == 0
    first = load_file(tmp_path / "a" / "state.safetensors")
    made = [train_vae.make_item(SHAPE, 1000, CPU)]
    monkeypatch.setattr(clips, "first_and_more", lambda *_: (made, NoStream()))
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


def test_pairs_are_latents_of_views_and_renders(small, monkeypatch):
    made = scene_pairs.make_latents(small / "base", SHAPE, CPU, 1000, CPU)
    moves, views = scene_pairs.MOVES, scene_pairs.VIEWS
    assert made.shape == (2, views + 2 * len(moves), 64, 3, 4, 6) and (made[0] != made[1]).any()
    monkeypatch.setattr(clips, "first_and_more", lambda *_: ([made], NoStream()))
    pairs = scene_pairs.ScenePairs(small / "base", SHAPE, 0, CPU, 1000, 1)
    assert pairs.made == len(pairs.pairs) == 4 * len(moves)
    for number, (a, b) in enumerate(moves):
        there, back = pairs.pairs[2 * number : 2 * number + 2]
        render = views + 2 * number
        expected = made[0][b], made[0][render], made[0][a], made[0][render + 1]
        for got, wanted in zip((*there, *back), expected, strict=True):
            np.testing.assert_array_equal(got, wanted)
    pipe = pipeline.load_pipeline(small / "base", small / "cognvs_ckpt_inpaint", torch.float32)
    batch = dataset.training_batch(pipe, pairs, 0, 0, 0, CPU, torch.float32, 3)
    x0, condition, noise, timestep = batch
    assert x0.shape == condition.shape == noise.shape == (3, 3, 32, 4, 6) and len(timestep) == 3
    assert (x0 - condition).abs().mean() > 0.01


def test_old_pairs_make_room_for_new_ones(small, monkeypatch):
    made = np.zeros((2, scene_pairs.VIEWS + 2 * len(scene_pairs.MOVES), 4, 1, 2, 2), np.float16)
    monkeypatch.setattr(clips, "first_and_more", lambda *_: ([made, made + 1], NoStream()))
    monkeypatch.setattr(scene_pairs, "KEPT_BYTES", 2 * made.nbytes // 2)
    pairs = scene_pairs.ScenePairs(small / "base", SHAPE, 0, CPU, 0, 2)
    assert pairs.made == 16 and len(pairs.pairs) == 8
    assert all((target == 1).all() for target, _ in pairs.pairs)


def test_the_views_of_a_scene_see_the_same_world():
    first, second = scene_pairs.film_views(1001, (3, 48, 64), CPU)
    render, mask = clips.reproject(first, clips.cameras_to(first, second), "eval")
    assert 0.3 < mask.float().mean() < 0.99
    assert (render[mask].float() - second.rgb[mask].float()).abs().median() < 8


def train_transformer(small, *args):
    """The launch script with train_transformer.py in place of train.py, as in the recipe."""
    command = ["sh", ROOT / "finetune" / "finetune_cognvs.sh", "--memory", "single",
               "--model_path", small / "base", "--transformer_id", small / "cognvs_ckpt_inpaint",
               "--base_dir_input", "scenes", "--compile", "False", *args]
    trainer = {"trainer": "../toolbox/small_model/train_transformer.py"}
    return subprocess.run(list(map(str, command)), env=os.environ | trainer, capture_output=True,
                          text=True)


def test_the_trainer_learns_from_ray_traced_scenes(small, tmp_path):
    done = train_transformer(small, "--first_seed", 1000, "--scenes", 1, "--train_epochs", 2,
                             "--batch_size", 2, "--output_dir", tmp_path / "out")
    assert done.returncode == 0, done.stderr
    assert "training pairs of ray-traced scenes" in done.stdout
    with open(tmp_path / "out" / "train_log.csv", newline="") as file:
        losses = [float(row["loss"]) for row in csv.DictReader(file)]
    assert len(losses) == 2 and np.isfinite(losses).all()
    assert (tmp_path / "out" / "my_checkpoint-2_transformer" / "config.json").is_file()


def test_scenes_ask_for_one_process(small, tmp_path, capsys):
    from finetune import settings

    flags = []
    for name, _ in settings.PATHS:
        flags += [f"--{name}", tmp_path]
    for name, kind, *_ in settings.NUMBERS:
        flags += [f"--{name}", kind(0.5) or 1]
    for name, _ in settings.SWITCHES:
        flags += [f"--{name}", "False"]
    for name, choices, _ in settings.CHOICES:
        flags += [f"--{name}", choices[0]]
    program = "toolbox.small_model.train_transformer"
    assert call(program, *flags, "--memory", "zero2", "--first_seed", 0) == 2
    assert "--memory zero2: one process trains" in capsys.readouterr().err
    assert call(program, *flags, "--memory", "single", "--first_seed", -1) == 2
    assert "--first_seed -1: expected 0 or more" in capsys.readouterr().err
