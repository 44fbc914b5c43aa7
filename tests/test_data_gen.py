import hashlib
from fractions import Fraction

import numpy as np
import pytest
from conftest import ROOT, call

from utils import sequence, trajectory, video


def files(folder):
    return {p.name: hashlib.md5(p.read_bytes()).hexdigest() for p in folder.iterdir() if p.is_file()}


def run(room, *args):
    return call("data_gen", "--data_path", room, "--device", "cpu", *args)


def test_eval_renders_every_path_of_trajs(room, capsys):
    before = set(files(room))
    assert run(room, "--mode", "eval") == 0
    kinds = ("render{}.mp4", "mask{}.mp4", "cameras{}.npz")
    assert set(files(room)) - before == {f"eval_{kind.format(i)}" for i in range(1, 5) for kind in kinds}
    out = capsys.readouterr().out
    assert "eval_render3.mp4 (and mask, cameras) from" in out and "traj3.txt" in out
    assert "megasam_intrinsics.npy is there but unused (focal length 500 is used)" in out
    source = video.probe(room / "gt_rgb.mp4")
    for i in range(1, 5):
        assert video.probe(room / f"eval_render{i}.mp4") == video.probe(room / f"eval_mask{i}.mp4") == source
        mask, render = video.read_mask(room / f"eval_mask{i}.mp4"), video.read_video(room / f"eval_render{i}.mp4")
        assert 0 < mask[1:].mean() < 1 and render[~mask].mean() < 8 < render[mask].mean()


def test_cameras_are_the_paths(room):
    assert run(room, "--mode", "eval", "--trajs", ROOT / "trajs" / "traj4.txt", "--radius_scale", 0.5,
               "--intrinsics_file", sequence.INTRINSICS) == 0  # fmt: skip
    seq = sequence.open_sequence(room, intrinsics_file=sequence.INTRINSICS)
    keys = trajectory.read_keyframes(ROOT / "trajs" / "traj4.txt")
    with np.load(room / "eval_cameras1.npz", allow_pickle=False) as cameras:
        motion = trajectory.relative_motion(keys, 17, seq.pivot_depth * 0.5)
        np.testing.assert_allclose(cameras["c2w"] @ motion, np.tile(np.eye(4), (17, 1, 1)), atol=1e-12)
        np.testing.assert_allclose(cameras["intrinsics"], seq.intrinsics)


def test_train_pairs_are_the_source_with_holes_and_one_seed_is_one_set_of_bytes(room):
    assert run(room, "--mode", "train", "--num_train_render", 2, "--intrinsics_file", sequence.INTRINSICS,
               "--extrinsics_file", sequence.C2WS) == 0  # fmt: skip
    first, source = files(room), video.read_video(room / "gt_rgb.mp4").astype(int)
    assert {"train_render1.mp4", "train_render2.mp4"} <= set(first) and "train_render3.mp4" not in first
    for i in (1, 2):
        mask = video.read_mask(room / f"train_mask{i}.mp4")
        error = np.abs(video.read_video(room / f"train_render{i}.mp4") - source)[mask]
        assert 0.5 < mask.mean() < 1 and np.median(error) <= 8
    again = ("--mode", "train", "--num_train_render", 2, "--intrinsics_file", sequence.INTRINSICS)
    assert run(room, *again) == 0 and files(room) == first  # follow paths need no c2ws: the same bytes
    assert run(room, *again, "--seed", 43) == 0
    assert files(room)["train_render1.mp4"] != first["train_render1.mp4"]


def test_trajs_replaces_the_random_paths(room):
    assert run(room, "--mode", "train", "--trajs", str(ROOT / "trajs" / "traj[12].txt")) == 0
    assert sorted(p.name for p in room.glob("train_render*")) == ["train_render1.mp4", "train_render2.mp4"]


def test_odd_sizes_and_rates_are_kept(room, capsys):
    frames = video.read_video(room / "gt_rgb.mp4")[:, :63, :95]
    info = video.VideoInfo(17, 63, 95, Fraction(30000, 1001), "bt601")
    video.write_video(room / "gt_rgb.mp4", frames, info)
    assert run(room, "--mode", "eval", "--trajs", ROOT / "trajs" / "traj1.txt") == 0
    assert "browsers may not play" in capsys.readouterr().out
    assert video.probe(room / "eval_render1.mp4") == video.probe(room / "eval_mask1.mp4") == info


@pytest.mark.parametrize("args, message", [
    (["--mode", "eval", "--device", "cuda:99"], "use one that is there or --device cpu"),
    (["--mode", "eval", "--trajs", "nowhere"], "--trajs nowhere: no camera path there"),
    (["--mode", "eval", "--crf", "99"], "--crf 99: expected 0"),
    (["--mode", "train", "--num_train_render", "0"], "expected at least 1"),
    (["--mode", "eval", "--depth_file", "cam_info/other.npy"], "other.npy: no such file"),
])  # fmt: skip
def test_bad_input_is_one_line_and_exit_2_and_writes_nothing(room, capsys, args, message):
    before = files(room)
    assert call("data_gen", "--data_path", room, *args) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1 and error.startswith("error: ")
    assert files(room) == before


@pytest.mark.gpu
def test_the_gpu_writes_the_same_pixels(room):
    args = ("--mode", "eval", "--trajs", ROOT / "trajs" / "traj1.txt", "--crf", 0)
    assert run(room, *args) == 0
    cpu = video.read_video(room / "eval_render1.mp4").astype(int)
    assert call("data_gen", "--data_path", room, "--device", "cuda:0", *args) == 0
    assert (np.abs(video.read_video(room / "eval_render1.mp4") - cpu) <= 2).mean() > 0.999
