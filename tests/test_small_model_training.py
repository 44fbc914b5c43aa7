"""The programs behind checkpoints/tiny, at a size that a CPU trains in seconds."""

import csv
import json
import os
import pickle
import re
import subprocess
import sys

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


def make_here(make, first_seed, count, device):
    """In place of clips.first_and_more, without the seconds that its processes take to start."""
    make = pickle.loads(pickle.dumps(make))  # as they get it
    return [make(first_seed + i, device) for i in range(count)], NoStream()


def test_the_vae_trains_piece_by_piece(small, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(clips, "first_and_more", make_here)
    monkeypatch.setattr(train_vae, "VALIDATION_SEEDS", (100,))
    args = ("toolbox.small_model.train_vae", "--vae_config", small / "base" / "vae",
            "--shape", *SHAPE, "--pool", 2, 4, "--batch_size", 2, "--minutes", 0.03)
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


def test_pairs_are_latents_of_views_and_renders(small, monkeypatch):
    made = scene_pairs.make_latents(small / "base", SHAPE, CPU, 1000, CPU)
    moves, views = scene_pairs.MOVES, scene_pairs.VIEWS
    assert made.shape == (2, views + 2 * len(moves), 96, 3, 4, 6) and (made[0] != made[1]).any()
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
    assert x0.shape == condition.shape == noise.shape == (3, 3, 48, 4, 6) and len(timestep) == 3
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


def launch_flags(tmp_path, *args):
    """What finetune_cognvs.sh gives to the program in place of train.py."""
    program = tmp_path / "print_flags.py"
    program.write_text("import json, sys; print(json.dumps(sys.argv[1:]))")
    command = ["sh", ROOT / "finetune" / "finetune_cognvs.sh", "--base_dir_input", "scenes", *args]
    done = subprocess.run(list(map(str, command)), env=os.environ | {"trainer": str(program)},
                          stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout)


def test_the_trainer_learns_from_ray_traced_scenes(small, tmp_path, capsys):
    flags = launch_flags(tmp_path, "--memory", "single", "--first_seed", 1000, "--scenes", 1,
                         "--model_path", small / "base", "--output_dir", tmp_path / "out",
                         "--transformer_id", small / "cognvs_ckpt_inpaint", "--train_epochs", 2,
                         "--batch_size", 2, "--compile", "False")
    assert call("toolbox.small_model.train_transformer", *flags) == 0
    assert "training pairs of ray-traced scenes" in capsys.readouterr().out
    with open(tmp_path / "out" / "train_log.csv", newline="") as file:
        losses = [float(row["loss"]) for row in csv.DictReader(file)]
    assert len(losses) == 2 and np.isfinite(losses).all()
    assert (tmp_path / "out" / "my_checkpoint-2_transformer" / "config.json").is_file()


def test_scenes_ask_for_one_process(tmp_path, capsys):
    flags = launch_flags(tmp_path, "--memory", "single", "--first_seed", -1)
    assert call("toolbox.small_model.train_transformer", *flags) == 2
    assert "--first_seed -1: expected 0 or more" in capsys.readouterr().err
    flags += "--first_seed", "0", "--memory", "zero2"
    assert call("toolbox.small_model.train_transformer", *flags) == 2
    assert "--memory zero2: one process trains" in capsys.readouterr().err


@pytest.mark.parametrize("flags, said", [
    (["--refresh", 0], "--refresh 0: expected at least 1"),
    (["--batch_size", 0], "--batch_size 0: expected at least 1"),
    (["--pool", 0, 4], "--pool 0 4: expected at least 1"),
    (["--pool", 5, 4], "--pool 5 4: expected at least 1, and no less"),
    (["--minutes", 0], "--minutes 0.0: expected a number above 0"),
    (["--learning_rate", "nan"], "--learning_rate nan: expected a number above 0"),
    (["--shape", 5, 30, 48], "--shape 5 30 48: expected 4k + 1 frames, and multiples of 8"),
    (["--shape", 6, 32, 48], "--shape 6 32 48: expected 4k + 1 frames, and multiples of 8"),
    (["--vae_config", "no/where"], "no/where: got a model of class None; expected Autoencoder"),
    (["--resume", __file__], "could not be read"),
    (["--resume", ROOT / "checkpoints/tiny/base/vae/diffusion_pytorch_model.safetensors"],
     "holds another model than"),
])
def test_bad_flags_of_the_vaes_trainer_are_one_line(tmp_path, model, capsys, flags, said):
    program = "toolbox.small_model.train_vae"
    out = tmp_path / "out"
    assert call(program, "--vae_config", model / "base" / "vae", "--output_dir", out, *flags) == 2
    err = capsys.readouterr().err
    assert said in err and len(err.splitlines()) == 1 and not out.exists()


@pytest.mark.parametrize("name", ["synthetic/clips.py", "synthetic/scenes.py",
                                  "synthetic/textures.py", "synthetic/yards.py",
                                  "small_model/scene_pairs.py"])
def test_a_module_that_is_run_says_that_it_is_none(name):
    done = subprocess.run([sys.executable, ROOT / "toolbox" / name, "--help"], text=True,
                          capture_output=True)
    assert done.returncode and done.stderr.startswith("error: a module, not a program;")
    assert len(done.stderr.splitlines()) == 1
