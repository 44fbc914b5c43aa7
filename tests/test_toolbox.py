import json

import numpy as np
import pytest
import torch
from conftest import ROOT, call
from diffusers import CogVideoXTransformer3DModel

from utils import metrics, sequence, trajectory, video

TOOLBOX = ROOT / "toolbox"


def test_the_shipped_config_and_index_are_those_of_the_real_model():
    with torch.device("meta"):
        model = CogVideoXTransformer3DModel.from_config(json.loads((TOOLBOX / "config.json").read_text()))
    index = json.loads((TOOLBOX / "diffusion_pytorch_model.safetensors.index.json").read_text())
    assert sum(p.numel() for p in model.parameters()) == 5_570_479_680
    assert index["weight_map"].keys() == model.state_dict().keys() and len(index["weight_map"]) == 1025
    assert index["metadata"]["total_size"] == 22_500_350_208


@pytest.fixture
def megasam(tmp_path):
    rng = np.random.default_rng(0)
    arrays = {
        "images": np.full((5, 48, 64, 3), 90, np.uint8), "depths": rng.random((5, 48, 64)).astype(np.float16) + 1,
        "intrinsic": np.array([[50, 0, 32], [0, 50, 24], [0, 0, 1]], np.float32),
        "cam_c2w": np.tile(np.eye(4, dtype=np.float32), (5, 1, 1)),
    }  # fmt: skip
    np.savez(tmp_path / "x_sgd_cvd_hr.npz", **arrays)
    return tmp_path / "x_sgd_cvd_hr.npz", arrays


def test_megasam_becomes_a_sequence_folder(megasam, tmp_path):
    npz, arrays = megasam
    out = tmp_path / "x"
    assert call("toolbox.convert_megasam_outputs", "--megasam_npz_path", npz, "--output_path", out, "--fps", 30) == 0
    seq = sequence.open_sequence(out, intrinsics_file=sequence.INTRINSICS, extrinsics_file=sequence.C2WS)
    assert np.array_equal(seq.depth_map, arrays["depths"]) and seq.info.fps == 30
    np.testing.assert_allclose(seq.intrinsics[2], arrays["intrinsic"])
    assert np.abs(video.read_video(seq.rgb_path).astype(int) - 90).max() <= 2
    assert call("data_gen", "--data_path", out, "--mode", "eval", "--device", "cpu") == 0
    before = (out / "gt_rgb.mp4").read_bytes()
    assert call("toolbox.convert_megasam_outputs", "--megasam_npz_path", npz, "--output_path", out) == 0
    assert (out / "gt_rgb.mp4").read_bytes() == before  # one that is there is kept


def test_what_is_not_megasams_is_refused(megasam, tmp_path, capsys):
    np.savez(tmp_path / "y.npz", depths=np.ones((3, 4, 5)))
    args = ("--megasam_npz_path", tmp_path / "y.npz", "--output_path", tmp_path / "y")
    assert call("toolbox.convert_megasam_outputs", *args) == 2
    assert "expected MegaSAM's npz" in capsys.readouterr().err
    assert not (tmp_path / "y").exists()


def test_a_synthetic_sequence_is_whole(room):
    seq = sequence.open_sequence(room, intrinsics_file=sequence.INTRINSICS, extrinsics_file=sequence.C2WS)
    np.testing.assert_allclose(seq.intrinsics[0], [[100, 0, 48], [0, 100, 32], [0, 0, 1]], rtol=1e-6)
    assert [p.name for p in sorted(room.glob("novel_gt*"))] == [f"novel_gt{i}.mp4" for i in range(1, 5)]
    assert metrics.psnr(video.read_video(room / "novel_gt1.mp4")[0] / 255, video.read_video(seq.rgb_path)[0] / 255) > 45


def test_the_shipped_sequence_is_whole():
    room = ROOT / "demo_data" / "room"
    seq = sequence.open_sequence(room, intrinsics_file=sequence.INTRINSICS, extrinsics_file=sequence.C2WS)
    assert (seq.info.frames, seq.info.height, seq.info.width) == (49, 320, 480)
    assert all(video.probe(room / f"novel_gt{i}.mp4") == seq.info for i in range(1, 5))
    assert len(trajectory.read_keyframes(ROOT / "trajs" / "traj1.txt")) == 3


def test_side_by_side(room, capsys):
    assert call("data_gen", "--data_path", room, "--mode", "eval", "--device", "cpu") == 0
    assert call("toolbox.side_by_side", "--data_path", room) == 2
    (room / "outputs").mkdir()
    (room / "outputs" / "eval_render2_out.mp4").write_bytes((room / "novel_gt2.mp4").read_bytes())
    assert call("toolbox.side_by_side", "--data_path", room) == 0
    assert "output: all inf dB, known inf dB, holes inf dB" in capsys.readouterr().out
    assert video.probe(room / "outputs" / "eval_render2_side_by_side.mp4").width == 4 * 96


def test_psnr_is_masked():
    a, b = np.zeros((2, 4, 4, 3)), np.zeros((2, 4, 4, 3))
    mask = np.zeros((2, 4, 4), bool)
    mask[0] = True
    b[1] = 0.1
    assert metrics.masked_psnr(a, b, mask)["known"] == np.inf
    assert metrics.masked_psnr(a, b, mask)["holes"] == pytest.approx(20)
    assert metrics.masked_psnr(a, b, mask)["all"] == pytest.approx(20 + 10 * np.log10(2))
    assert np.isnan(metrics.psnr(a, b, np.zeros_like(mask)))


def test_the_inference_benchmark_prints_a_row_a_placement(capsys):
    small = "--size", "tiny", "--steps", 4, "--whole", 9, "--device", "cpu"
    args = "toolbox.benchmark", "inference", *small, "--placements"
    assert call(*args, "gpu", "auto", "gpu,fast") == 0
    rows = [line.split(" | ") for line in capsys.readouterr().out.splitlines() if line.startswith(("| gpu", "| auto"))]
    assert [row[0] for row in rows] == ["| gpu", "| auto", "| gpu,fast"] and rows.pop()[1] == "8 passes"
    assert all(np.isfinite([float(cell) for cell in row[1:4]]).all() for row in rows)  # that small, a step may be noise
    assert call(*args, "low", "gpu") == 2
    out, err = capsys.readouterr()
    assert "| low | --memory low is for GPUs" in out and "\n| gpu | " in out and "1 of 2 rows" in err


@pytest.mark.parametrize("stderr, message", [
    ("10%|# |\nerror: got 1; expected 2\n", "error: got 1; expected 2"),
    ("usage: train.py\n  [--a]\ntrain.py: error: unrecognized arguments: --b\n", "error: unrecognized arguments: --b"),
    ("[rank0]: Traceback\n[rank0]: torch.OutOfMemoryError: CUDA out of memory. Tried 2 GiB.\n"
     "Traceback\ntorch.distributed.elastic.multiprocessing.errors.ChildFailedError: \n=====\n  error_file: <N/A>\n",
     "torch.OutOfMemoryError: CUDA out of memory. Tried 2 GiB."),
    ("w" * 400 + "\nSegmentation fault\n", "w" * 281 + " Segmentation fault"),
])  # fmt: skip
def test_a_row_that_failed_says_why(stderr, message):
    import benchmark

    assert benchmark.reason(stderr) == message


def test_the_benchmark_of_parts_says_what_a_machine_without_a_gpu_cannot_time(capsys, monkeypatch):
    monkeypatch.setattr("benchmark_parts.speed.has_compiler", lambda: False)
    args = "benchmark_parts", "--size", "tiny", "--device", "cpu", "--parts", "attention", "passes"
    assert call(*args) == 2
    out, err = capsys.readouterr()
    rows = {line.split(" | ")[0].strip("| "): line.split(" | ")[1:] for line in out.splitlines() if line[:2] == "| "}
    for name in ("flash", "as chosen by utils/speed.py", "eager"):
        assert float(rows[name][1]) >= 0
    assert float(rows["eager"][-1].rstrip("% |")) < 1 and rows["cuDNN"][0].startswith("No viable backend")
    for name in ("compiled", "compiled, fp8 linear layers"):
        assert rows[name] == ["needs a GPU and a C compiler |"]
    assert err.count("2 of 4 rows could not be made") == 2
