"""A short kill test, and that the long one's checks see what is wrong."""

import subprocess
import sys
from pathlib import Path

import kill
import numpy as np
import pytest

from utils import video


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    """What the programs begin with."""
    folder = tmp_path_factory.mktemp("kill") / "inputs"
    kill.make_inputs(folder)
    return folder


def test_a_killed_data_gen_leaves_nothing_half_and_goes_on(inputs, tmp_path):
    case = kill.Case("data_gen", inputs, tmp_path / "data_gen")
    case.measure()
    assert sum("train_render" in name for name in case.reference) == kill.RENDERS
    kill.kill_all([case], 2, seed=13)
    assert case.counts["kills"] == case.counts["survived"] == 2 and case.counts["faults"] == 0


def test_what_is_half_missing_left_over_or_changed_is_told(inputs, tmp_path):
    folder = tmp_path / "copy"
    kill.fresh(inputs, folder, "demo")
    reference = kill.snapshot(folder)
    assert kill.half_files(folder) == []
    other = np.zeros((kill.FRAMES, kill.HEIGHT, kill.WIDTH, 3), np.uint8)
    mask, render = folder / "room/eval_mask1.mp4", folder / "room/eval_render1.mp4"
    video.write_video(render, other, video.probe(mask))
    mask.unlink()
    (folder / "room/.data_gen_eval.lock").touch()
    (folder / "room/eval_render9.mp4.part").touch()
    assert kill.half_files(folder) == []
    assert kill.differences(kill.snapshot(folder), reference) == [
        "room/.data_gen_eval.lock is left over", "room/eval_mask1.mp4 is missing",
        "room/eval_render1.mp4 is not as without interruption",
        "room/eval_render9.mp4.part is left over"]


@pytest.mark.parametrize("pattern", [
    "room/eval_render1.mp4", "room/eval_cameras1.npz", "room/cam_info/*.npy",
    "model/cognvs_ckpt_inpaint/*.safetensors", "model/cognvs_ckpt_inpaint/config.json",
    "runs/a/checkpoint-200/pytorch_model/*.pt"])
def test_a_file_cut_in_half_is_told(inputs, tmp_path, pattern):
    folder = tmp_path / "copy"
    kill.fresh(inputs, folder, "demo")
    path = sorted(folder.glob(pattern))[0]
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    assert f"{path.relative_to(folder)} is not whole" in kill.half_files(folder)[0]


@pytest.mark.parametrize("ends", [True, False])
def test_a_process_that_lives_on_is_told(ends, monkeypatch):
    monkeypatch.setattr(kill, "ORPHANS", 0.3)
    root = str(Path(kill.__file__).parents[1])
    lines = ["import subprocess, sys, time", f"sys.path.insert(0, {root!r})",
             "from utils import cli", "before = cli.end_with_parent" if ends else "before = None",
             "subprocess.Popen(['sleep', '30'], preexec_fn=before)", "print('ready', flush=True)",
             "time.sleep(30)"]
    process = subprocess.Popen([sys.executable, "-c", "\n".join(lines)], stdout=subprocess.PIPE)
    process.stdout.readline()
    said = kill.kill(process)
    assert len(said) == (not ends) and all("lives on: sleep 30" in line for line in said)


def test_kills_fall_where_files_are_written():
    rng = kill.random.Random(0)
    moments = [kill.moment(rng, 9) for _ in range(500)]
    assert min(moments) > 2.69 and max(moments) <= 9
    assert sum(at > 6 for at in moments) > 0.6 * len(moments)
