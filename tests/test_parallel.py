"""Processes that share one clip's tokens make the picture that one process makes."""

import os
import subprocess
import sys

import numpy as np
import pytest
import torch
import torch.distributed as dist
from conftest import ROOT, free_port

from utils import pipeline, video
from utils.cli import InputError
from utils.devices import check_sharing as check
from utils.devices import share_tokens

BASE, WEIGHTS = ROOT / "checkpoints" / "tiny" / "base", ROOT / "checkpoints" / "tiny" / "cognvs_ckpt_inpaint"


def one_pass(rank, ranks, folder):
    """Write to `folder` what one pass of the small model gives this process, for an input that all make alike."""
    torch.set_num_threads(1)
    pipe = pipeline.load_pipeline(BASE, WEIGHTS, torch.float32)
    if ranks > 1:
        dist.init_process_group("gloo", f"file://{folder}/meet{ranks}", rank=rank, world_size=ranks)
        share_tokens(pipe.transformer)
    rng = torch.Generator().manual_seed(0)
    latents, prompt = (torch.randn(shape, generator=rng) for shape in ((1, 13, 64, 16, 24), (1, 8, 32)))
    with torch.no_grad():
        out = pipe.transformer(latents, prompt, torch.tensor([500]), image_rotary_emb=pipe.rotary_embedding("cpu"))
    torch.save(out.sample, f"{folder}/{ranks}_{rank}.pt")


def test_two_and_four_processes_give_what_one_gives(tmp_path):
    one_pass(0, 1, tmp_path)
    expected = torch.load(tmp_path / "1_0.pt", weights_only=True)
    for ranks in (2, 4):
        torch.multiprocessing.spawn(one_pass, (ranks, tmp_path), ranks)
        for rank in range(ranks):
            torch.testing.assert_close(torch.load(tmp_path / f"{ranks}_{rank}.pt", weights_only=True), expected,
                                       rtol=0, atol=2e-5)  # fmt: skip
    assert expected.std() > 0.1


def test_two_processes_of_demo_write_the_video_of_one(model, made_room, tmp_path):
    """A video of two windows, beside itself; what the processes exchange is float32, and the video within 2 of 255."""
    args = [sys.executable, ROOT / "demo.py", "--model_path", model / "base", "--cognvs_ckpt_path",
            model / "cognvs_ckpt_inpaint", "--data_path", tmp_path, "--mp4_name", "eval_render1.mp4", "--overlap", "5",
            "--num_inference_steps", "2", "--crf", "0", "--compare", "--device", "cpu", "--dtype", "fp32"]  # fmt: skip
    frames = video.read_video(made_room / "gt_rgb.mp4")
    frames = np.concatenate([frames, frames[:6]])
    frames[:, 20:40, 30:60] = 0
    video.write_video(tmp_path / "eval_render1.mp4", frames, video.VideoInfo(23, 64, 96, 20))
    together = os.environ | {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    processes = [subprocess.Popen([*args, "--share_clip", "--output_dir", tmp_path / "two"], text=True,
                                  env=together | {"RANK": str(rank), "LOCAL_RANK": str(rank)}, stderr=subprocess.PIPE,
                                  stdout=subprocess.PIPE) for rank in (0, 1)]  # fmt: skip
    said = [process.communicate(timeout=300) for process in processes]
    assert [process.returncode for process in processes] == [0, 0], said
    assert "eval_render1_out.mp4: 23 frames" in said[0][0] and said[1][0] == ""
    subprocess.run([*args, "--output_dir", tmp_path / "one"], check=True)
    for name in ("eval_render1_out.mp4", "eval_render1_compare.mp4"):
        one, two = (video.read_video(tmp_path / folder / name).astype(int) for folder in ("one", "two"))
        assert one.shape == two.shape and np.abs(one - two).max() <= 4


def test_a_number_of_processes_that_does_not_divide_is_refused(model):
    config = pipeline.transformer_config(model / "base", model / "cognvs_ckpt_inpaint")
    check(config, 2)
    with pytest.raises(InputError, match="3 processes: .* 2 heads and 128 tokens"):
        check(config, 3)
    with pytest.raises(InputError, match="got one process"):
        check(config, 1)
