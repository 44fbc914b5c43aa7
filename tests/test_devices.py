"""What fits is chosen, and neither where models live nor how many compute changes the picture."""

import functools
import os
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.distributed as dist
from conftest import ROOT, call, free_port

from toolbox.small_model import make_tiny_checkpoint
from utils import cogvideox, devices, pipeline, video
from utils.cli import InputError

CPU = torch.device("cpu")
GPU = torch.device("cuda:0")
BASE = ROOT / "checkpoints" / "tiny" / "base"
WEIGHTS = ROOT / "checkpoints" / "tiny" / "cognvs_ckpt_inpaint"


# ---- placement -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def full_size():
    """Stands in for a pipeline of the real sizes, without its numbers."""
    transformer, vae, _ = make_tiny_checkpoint.configs("5b")
    with torch.device("meta"):
        transformer = pipeline.CogVideoXTransformer3DModel.from_config(transformer).bfloat16()
        vae = pipeline.AutoencoderKLCogVideoX.from_config(vae).bfloat16()
    shape = (49, 480, 720)
    return SimpleNamespace(transformer=transformer, vae=vae, clip_shape=shape, dtype=torch.bfloat16)


def choose(pipe, mode, tiling, gib):
    return devices.choose(pipe, devices.allowed_plans(mode, tiling, GPU), gib * devices.GIB)


@pytest.mark.parametrize(
    "gib, expected",
    [
        (79, ("gpu", False)),
        (30, ("gpu", False)),
        (22, ("gpu", True)),
        (15, ("offload", True)),
        (11, ("low", True)),
        (1, ("low", True)),
    ],
)
def test_auto_takes_what_fits(full_size, gib, expected):
    assert choose(full_size, "auto", "auto", gib) == expected


def test_what_was_asked_for_is_taken_or_refused(full_size):
    assert choose(full_size, "offload", "auto", 80) == ("offload", False)
    assert choose(full_size, "gpu", "off", 1) == ("gpu", False)
    assert choose(full_size, "auto", "on", 80) == ("gpu", True)
    with pytest.raises(InputError, match="--memory low has the VAE work in tiles"):
        devices.allowed_plans("low", "off", GPU)
    for mode in ("low", "offload"):
        with pytest.raises(InputError, match=f"--memory {mode} is for GPUs, got cpu"):
            devices.allowed_plans(mode, "auto", CPU)


def inpaint(pipe, model, device=CPU):
    frames, height, width = pipe.clip_shape
    clip = torch.rand(frames, 3, height, width, generator=torch.Generator().manual_seed(0))
    embedding = pipeline.empty_prompt(model / "base", 8, torch.float32)[0].to(device)
    return pipe.inpaint(clip, embedding, 2, torch.Generator().manual_seed(1))


def load(model):
    return pipeline.load_pipeline(model / "base", model / "cognvs_ckpt_inpaint", torch.float32)


def test_blocks_that_take_turns_make_the_same_picture(model):
    expected = inpaint(load(model), model)
    pipe = load(model)
    devices.offload_blocks(pipe, CPU)
    blocks = pipe.transformer.transformer_blocks
    assert all(hasattr(block, "_diffusers_hook") for block in blocks)
    assert torch.equal(inpaint(pipe, model), expected)


@pytest.mark.gpu
@pytest.mark.parametrize("mode, tiled", devices.PLANS)
def test_every_plan_makes_the_same_picture_on_a_gpu(model, mode, tiled):
    pictures = []
    for name in ("gpu", mode):
        pipe = load(model)
        chosen, said = devices.place(pipe, GPU, name, "on" if tiled else "off")
        assert chosen == name and f"memory={name}" in said
        weights = pipe.transformer.transformer_blocks.parameters()
        assert {p.device.type == "cuda" for p in weights} == {name == "gpu"}
        pictures.append(inpaint(pipe, model, GPU))
    torch.testing.assert_close(*pictures, atol=2e-3, rtol=0)


# ---- several processes ---------------------------------------------------------------------------


def one_pass(rank, ranks, folder, compiled=False):
    """Write to `folder` what one pass of the small model gives this process, for one input."""
    pipe = pipeline.load_pipeline(BASE, WEIGHTS, torch.float32)
    if compiled:
        torch.compile = functools.partial(torch.compile, backend="eager")  # traced as for a GPU
        cogvideox.compile_blocks(pipe.transformer)
    if ranks > 1:
        meeting = f"file://{folder}/meet{ranks}"
        dist.init_process_group("gloo", meeting, rank=rank, world_size=ranks)
        devices.share_tokens(pipe.transformer)
    rng = torch.Generator().manual_seed(0)
    latents = torch.randn(1, 13, 96, 16, 24, generator=rng)
    prompt = torch.randn(1, 8, 32, generator=rng)
    with torch.no_grad():
        out = pipe.transformer(
            latents, prompt, torch.tensor([500]), image_rotary_emb=pipe.rotary_embedding("cpu")
        )
    torch.save(out.sample, f"{folder}/{ranks}_{rank}.pt")
    if ranks > 1:
        devices.leave()


def two_then_four(rank, folder):
    """What each of four processes does: the first two alone, compiled, then all."""
    torch.set_num_threads(1)
    if rank < 2:
        one_pass(rank, 2, folder, compiled=True)
    one_pass(rank, 4, folder)


def test_two_and_four_processes_give_what_one_gives_compiled_or_not(tmp_path):
    one_pass(0, 1, tmp_path)
    expected = torch.load(tmp_path / "1_0.pt", weights_only=True)
    assert expected.std() > 0.1
    torch.multiprocessing.set_forkserver_preload(["utils.pipeline"])  # once, not by each
    torch.multiprocessing.start_processes(two_then_four, (tmp_path,), 4, start_method="forkserver")
    for ranks in (2, 4):
        for rank in range(ranks):
            got = torch.load(tmp_path / f"{ranks}_{rank}.pt", weights_only=True)
            torch.testing.assert_close(got, expected, rtol=0, atol=2e-5)


def test_two_processes_of_demo_write_the_video_of_one_with_fast_too(model, made_room, tmp_path):
    """A video of two windows, beside itself; the processes exchange float32: within 2 of 255."""
    args = ["--model_path", model / "base", "--cognvs_ckpt_path", model / "cognvs_ckpt_inpaint",
            "--data_path", tmp_path, "--mp4_name", "eval_render1.mp4", "--overlap", "5", "--fast",
            "--num_inference_steps", "10", "--crf", "0", "--compare", "--device", "cpu",
            "--dtype", "fp32", "--output_dir"]
    frames = video.read_video(made_room / "gt_rgb.mp4")
    frames = np.concatenate([frames, frames[:6]])
    frames[:, 20:40, 30:60] = 0
    video.write_video(tmp_path / "eval_render1.mp4", frames, video.VideoInfo(23, 64, 96, 20))
    meeting = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "WORLD_SIZE": "2",
               "TORCHELASTIC_RUN_ID": "none"}  # as torchrun sets them
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    two = [sys.executable, ROOT / "demo.py", *args, tmp_path / "two", "--share_clip"]
    processes = []
    for rank in ("0", "1"):
        env = os.environ | meeting | {"RANK": rank, "LOCAL_RANK": rank}
        processes.append(subprocess.Popen(two, env=env, **pipes))
    assert call("demo", *args, tmp_path / "one") == 0
    said = [process.communicate(timeout=300) for process in processes]
    assert [process.returncode for process in processes] == [0, 0], said
    assert "eval_render1_out.mp4: 23 frames" in said[0][0] and said[1][0] == ""
    for name in ("eval_render1_out.mp4", "eval_render1_compare.mp4"):
        one = video.read_video(tmp_path / "one" / name).astype(int)
        two = video.read_video(tmp_path / "two" / name).astype(int)
        assert one.shape == two.shape and np.abs(one - two).max() <= 4


def test_a_number_of_processes_that_does_not_divide_is_refused(model):
    config = pipeline.transformer_config(model / "base", model / "cognvs_ckpt_inpaint")
    devices.check_sharing(config, 2)
    with pytest.raises(InputError, match="3 processes: .* 2 heads and 128 tokens"):
        devices.check_sharing(config, 3)
    with pytest.raises(InputError, match="got one process"):
        devices.check_sharing(config, 1)
