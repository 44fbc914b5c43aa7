"""What the tests of finetune/ share: pairs to train on, the flags of a run, and its results."""

import csv
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import ROOT
from safetensors.torch import load_file

from finetune import settings
from utils import pipeline, video

CPU = torch.device("cpu")
SCRIPT = ROOT / "finetune" / "finetune_cognvs.sh"


@pytest.fixture(scope="session")
def paired_room(tmp_path_factory):
    """A sequence of 17 x 64 x 96 with three training pairs, of moving waves with a hole."""
    folder = tmp_path_factory.mktemp("pairs") / "room"
    x = np.linspace(0, 9, 96)
    y = np.linspace(0, 6, 64)[:, None]
    for i in range(4):
        frames = []
        for t in range(17):
            waves = [np.sin(x + y * c + t / 4) + i / 9 for c in (0, 1, 2)]
            frames.append((np.stack(waves, -1) * 80 + 128).clip(0, 255).astype(np.uint8))
        frames = np.stack(frames)
        if i:
            frames[:, 20:40, 20 * i : 20 * i + 30] = 0
            np.savez(folder / f"train_cameras{i}.npz", c2w=np.eye(4), frames=np.arange(17))
        name = f"train_render{i}.mp4" if i else "gt_rgb.mp4"
        video.write_video(folder / name, frames, video.VideoInfo(17, 64, 96, 10))
    return folder


@pytest.fixture(scope="module")
def pipe(model):
    return pipeline.load_pipeline(model / "base", model / "cognvs_ckpt_inpaint", torch.float32, CPU)


def flags(model, folder, output_dir, **values):
    """The flags of train.py: finetune_cognvs.sh's values, but for a short run's and `values`."""
    given = dict(re.findall(r'^(\w+)="?([^"#\s$]*)"? *(?:#.*)?$', SCRIPT.read_text(), re.M))
    given.pop("before")
    given |= {"model_path": model / "base", "transformer_id": model / "cognvs_ckpt_inpaint",
              "output_dir": output_dir, "base_dir_input": folder, "train_epochs": 3,
              "learning_rate": 1e-3, "memory": "single", **values}
    listed = []
    for name, value in given.items():
        listed += [f"--{name}", str(value)]
    return listed


def parsed(*args, **values):
    """The parsed settings of flags(...)."""
    return settings.parse_args(flags(*args, **values))


def log(folder, *left_out):
    """The rows of train_log.csv without the columns that differ from run to run."""
    with open(folder / "train_log.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    for row in rows:
        for name in ("seconds", *left_out):
            row.pop(name)
    return rows


def tensors(folder):
    """All tensors of a weights folder."""
    found = {}
    for file in sorted(Path(folder).glob("*.safetensors")):
        found |= load_file(file)
    return found


def assert_same(ours, theirs):
    """Two dicts hold the same tensors, bit for bit."""
    assert ours.keys() == theirs.keys() and len(ours) > 0
    for name, tensor in ours.items():
        assert torch.equal(tensor, theirs[name]), name


def until_step_2(run, folder):
    """A copy of what a run with checkpoints at 2 and 3 had written when it was at step 2."""
    ignore = shutil.ignore_patterns("*checkpoint-3*", "train_curve.png")
    return Path(shutil.copytree(run, folder, ignore=ignore))
