"""The small programs of toolbox/, and the files that lie there."""

import json
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import ROOT, call
from diffusers import CogVideoXTransformer3DModel

from utils import camera_paths, cli, metrics, sequence, video

TOOLBOX = ROOT / "toolbox"


def test_the_shipped_config_and_index_are_those_of_the_real_model():
    config = json.loads((TOOLBOX / "config.json").read_text())
    index = json.loads((TOOLBOX / "diffusion_pytorch_model.safetensors.index.json").read_text())
    with torch.device("meta"):
        model = CogVideoXTransformer3DModel.from_config(config)
    assert sum(p.numel() for p in model.parameters()) == 5_570_479_680
    assert index["weight_map"].keys() == model.state_dict().keys()
    assert len(index["weight_map"]) == 1025
    assert index["metadata"]["total_size"] == 22_500_350_208


@pytest.fixture
def megasam(tmp_path):
    rng = np.random.default_rng(0)
    arrays = {
        "images": np.full((5, 48, 64, 3), 90, np.uint8),
        "depths": rng.random((5, 48, 64)).astype(np.float16) + 1,
        "intrinsic": np.array([[50, 0, 32], [0, 50, 24], [0, 0, 1]], np.float32),
        "cam_c2w": np.tile(np.eye(4, dtype=np.float32), (5, 1, 1)),
    }
    np.savez(tmp_path / "x_sgd_cvd_hr.npz", **arrays)
    return tmp_path / "x_sgd_cvd_hr.npz", arrays


def open_with_cameras(folder):
    return sequence.open_sequence(folder, intrinsics_file=sequence.INTRINSICS,
                                  extrinsics_file=sequence.C2WS)


def test_megasam_becomes_a_sequence_folder(megasam, tmp_path):
    npz, arrays = megasam
    out = tmp_path / "x"
    args = "--megasam_npz_path", npz, "--output_path", out
    assert call("toolbox.convert_megasam_outputs", *args, "--fps", 30) == 0
    seq = open_with_cameras(out)
    assert np.array_equal(seq.depth_map, arrays["depths"]) and seq.info.fps == 30
    np.testing.assert_allclose(seq.intrinsics[2], arrays["intrinsic"])
    assert np.abs(video.read_video(seq.rgb_path).astype(int) - 90).max() <= 2
    assert call("data_gen", "--data_path", out, "--mode", "eval", "--device", "cpu") == 0
    before = (out / "gt_rgb.mp4").read_bytes()
    assert call("toolbox.convert_megasam_outputs", *args) == 0
    assert (out / "gt_rgb.mp4").read_bytes() == before  # one that is there is kept


def test_what_is_not_megasams_is_refused(megasam, tmp_path, capsys):
    np.savez(tmp_path / "y.npz", depths=np.ones((3, 4, 5)))
    args = ("--megasam_npz_path", tmp_path / "y.npz", "--output_path", tmp_path / "y")
    assert call("toolbox.convert_megasam_outputs", *args) == 2
    assert "expected MegaSAM's npz" in capsys.readouterr().err
    assert not (tmp_path / "y").exists()


def test_a_synthetic_sequence_is_whole(room):
    seq = open_with_cameras(room)
    k = [[100, 0, 48], [0, 100, 32], [0, 0, 1]]
    np.testing.assert_allclose(seq.intrinsics[0], k, rtol=1e-6)
    truths = [path.name for path in sorted(room.glob("novel_gt*"))]
    assert truths == [f"novel_gt{i}.mp4" for i in range(1, 5)]
    truth = video.read_video(room / "novel_gt1.mp4")[0] / 255
    assert metrics.psnr(truth, video.read_video(seq.rgb_path)[0] / 255) > 45


def test_the_shipped_sequence_is_whole():
    room = ROOT / "demo_data" / "room"
    seq = open_with_cameras(room)
    assert (seq.info.frames, seq.info.height, seq.info.width) == (49, 320, 480)
    assert all(video.probe(room / f"novel_gt{i}.mp4") == seq.info for i in range(1, 5))
    assert len(camera_paths.read_keyframes(ROOT / "trajs" / "traj1.txt")) == 3


@pytest.fixture(scope="module")
def rendered(made_room, tmp_path_factory):
    """The synthetic sequence with its evaluation renders."""
    room = Path(shutil.copytree(made_room, tmp_path_factory.mktemp("rendered") / "room"))
    assert call("data_gen", "--data_path", room, "--mode", "eval", "--device", "cpu") == 0
    return room


@pytest.fixture
def with_output(rendered, tmp_path):
    """A copy of it with an output of render 2 that is the truth to the last bit."""
    room = Path(shutil.copytree(rendered, tmp_path / "room"))
    frames, info = video.read_video(room / "novel_gt2.mp4"), video.probe(room / "novel_gt2.mp4")
    video.write_video(room / "novel_gt2.mp4", frames, info, crf=0)
    made_of = {"render": cli.file_hash(room / "eval_render2.mp4")}
    video.write_video(room / "outputs/eval_render2_out.mp4", frames, info, crf=0, tags=made_of)
    return room


def test_side_by_side(with_output, capsys):
    room = with_output
    assert call("toolbox.side_by_side", "--data_path", room) == 0
    assert "output: all inf dB, known inf dB, holes inf dB" in capsys.readouterr().out
    assert video.probe(room / "outputs/eval_render2_side_by_side.mp4").width == 4 * 96


def test_an_output_of_another_render_is_not_put_beside_it(with_output, capsys):
    render, output = "eval_render2.mp4", with_output / "outputs/eval_render2_out.mp4"

    def refused(says):
        assert call("toolbox.side_by_side", "--data_path", with_output) == 2
        error = capsys.readouterr().err
        assert f"{output}: {says}" in error and error.count("\n") == 1
        assert not list(with_output.glob("outputs/*side_by_side*"))

    shutil.copy(with_output / "eval_render1.mp4", with_output / render)  # another path, same name
    refused(f"was made of another {render}; run demo.py again")
    shutil.copy(with_output / "novel_gt2.mp4", output)
    refused("does not say which render it was made of")
    (with_output / render).unlink()
    refused(f"its render {with_output / render} is not there")
    output.unlink()
    assert call("toolbox.side_by_side", "--data_path", with_output) == 2
    assert "no eval_render*_out.mp4" in capsys.readouterr().err


def test_psnr_is_masked():
    a, b = np.zeros((2, 4, 4, 3)), np.zeros((2, 4, 4, 3))
    mask = np.zeros((2, 4, 4), bool)
    mask[0] = True
    b[1] = 0.1
    assert metrics.masked_psnr(a, b, mask)["known"] == np.inf
    assert metrics.masked_psnr(a, b, mask)["holes"] == pytest.approx(20)
    assert metrics.masked_psnr(a, b, mask)["all"] == pytest.approx(20 + 10 * np.log10(2))
    assert np.isnan(metrics.psnr(a, b, np.zeros_like(mask)))


def programs():
    """Module names of everything that one starts by its path."""
    found = []
    for path in [*ROOT.glob("*.py"), *ROOT.glob("finetune/*.py"), *TOOLBOX.rglob("*.py")]:
        if "cli.run(main" in path.read_text() and path.stem != "launch":  # the script has its use
            found.append(".".join(path.relative_to(ROOT).with_suffix("").parts))
    return sorted(found)


@pytest.mark.parametrize("program", ["demo", "data_gen", "toolbox/run_all", "toolbox/score"])
def test_a_signal_while_a_program_loads_shows_no_traceback(program):
    command = [sys.executable, "-v", ROOT / f"{program}.py", "--help"]  # -v tells of each import
    pipes = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE, "text": True}
    started = subprocess.Popen(command, **pipes)
    for line in started.stderr:
        if line.startswith("import 'numpy.random"):
            break
    started.send_signal(signal.SIGINT)
    assert "Traceback" not in started.communicate()[1]
    assert started.returncode == -signal.SIGINT


@pytest.mark.parametrize("program", programs())
def test_every_program_prints_its_use(program, capsys):
    assert call(program, "--help") == 0
    out, err = capsys.readouterr()
    assert "--" in out and len(out.splitlines()) > 5 and not err
