"""toolbox/benchmark.py, whose numbers of this machine nobody checks, makes its rows."""

import functools
import re

import numpy as np
import pytest
import torch
from conftest import call

from toolbox import benchmark
from toolbox.small_model import make_tiny_checkpoint as tiny
from utils import warp


def rows(printed):
    """{first cell: the others} of the tables in what was printed."""
    found = {}
    for line in printed.splitlines():
        if line.startswith("| ") and "---" not in line:
            name, *cells = line.strip("| ").split(" | ")
            found[name] = cells
    return found


def test_inference_has_a_row_a_placement(capsys):
    args = ("toolbox.benchmark", "inference", "--size", "tiny", "--steps", 4, "--device", "cpu",
            "--placements")
    assert call(*args, "gpu", "low", "gpu,fast", "gpu,quick") == 2
    assert torch.get_default_dtype() == torch.float32
    out, err = capsys.readouterr()
    found = rows(out)
    assert all(np.isfinite([float(cell) for cell in found["gpu"][:3]]))
    assert float(found["gpu,fast"][2]) > 0
    assert "--memory low is for GPUs" in found["low"][0] and "quick" in found["gpu,quick"][0]
    assert "2 of 4 rows could not be made" in err


def test_steps_has_a_row_a_way_to_train(capsys, monkeypatch):
    monkeypatch.setattr(tiny, "configs", functools.partial(tiny.configs, frames=9, height=32,
                                                           width=48))
    args = ("toolbox.benchmark", "steps", "--size", "tiny", "--steps", 4, "--device", "cpu")
    assert call(*args, "--rows", "single,full", "single,anew", "single,auto", "single,lora",
                "zero2", "single,quick", "--settings", "--seed", 7) == 2
    out, err = capsys.readouterr()
    found = rows(out)
    for name in ("single,full", "single,anew", "single,auto", "single,lora"):
        assert float(found[name][0]) > 0, found[name]
    assert "got zero2; expected single or" in found["zero2"][0]
    assert "2 of 6 rows could not be made" in err and "encoding conditions: 100%" in err


@pytest.mark.parametrize("mode", ["eval", "train"])
def test_the_simple_warp_is_the_fast_one(mode):
    rng = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (1, 24, 32, 3), generator=rng, dtype=torch.uint8)
    depth = 2 + torch.rand(1, 24, 32, generator=rng)
    k = torch.tensor([[[30.0, 0, 16], [0, 30, 12], [0, 0, 1]]])
    motion = torch.eye(4)[None].clone()
    motion[0, :3, 3] = torch.tensor([0.2, 0.05, -0.1])
    simple, known = benchmark.simple_warp(mode, pixels[0].numpy(), depth[0], motion[0], k[0])
    frames = pixels.permute(0, 3, 1, 2) / 127.5 - 1
    ours, mask = warp.render(mode, frames, depth, motion, k)
    ours = ((ours[0].permute(1, 2, 0) + 1) / 2 * 255).floor().numpy()
    assert 0.2 < known.mean() < 1 and (known == mask[0].numpy()).mean() > 0.99
    assert (np.abs(ours - simple)[known & mask[0].numpy()] <= 2).mean() > 0.99


def test_too_few_steps_are_refused(capsys):
    assert call("toolbox.benchmark", "inference", "--steps", 3) == 2
    assert re.match("error: --steps 3: expected 4 or more", capsys.readouterr().err)


@pytest.mark.parametrize("stderr, message", [
    ("10%|# |\nerror: got 1; expected 2\n", "error: got 1; expected 2"),
    ("usage: train.py\n  [--a]\ntrain.py: error: unrecognized arguments: --b\n",
     "error: unrecognized arguments: --b"),
    ("[rank0]: Traceback\n[rank0]: torch.OutOfMemoryError: CUDA out of memory. Tried 2 GiB.\n"
     "Traceback\ntorch.distributed.elastic.multiprocessing.errors.ChildFailedError: \n=====\n",
     "torch.OutOfMemoryError: CUDA out of memory. Tried 2 GiB."),
    ("w" * 400 + "\nSegmentation fault\n", "w" * 281 + " Segmentation fault"),
])
def test_a_row_that_failed_says_why(stderr, message):
    assert benchmark.reason(stderr) == message
