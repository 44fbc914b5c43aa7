import hashlib
import json
from fractions import Fraction

import cv2
import numpy as np
import pytest
import reference_warp
import torch
from conftest import ROOT, call
from skimage.data import stereo_motorcycle

from toolbox.synthetic import clips, scenes
from utils import metrics, sequence, trajectory, video, warp
from utils.cli import InputError


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


def test_trajs_replaces_the_random_paths_and_what_is_stale_is_named(room, capsys):
    assert run(room, "--mode", "train", "--trajs", str(ROOT / "trajs" / "traj[12].txt")) == 0
    assert sorted(p.name for p in room.glob("train_render*")) == ["train_render1.mp4", "train_render2.mp4"]
    assert run(room, "--mode", "train", "--num_train_render", 1) == 0
    assert "train_render2.mp4 stay from an earlier run" in capsys.readouterr().out


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


# ---- steering: presets, camera files, anchors ------------------------------------------------------------------------


def test_each_preset_is_its_own_render_and_a_runs_cameras_give_the_same_pixels(room):
    presets = "orbit_left:20,arc_up,dolly_in:0.3,zoom_out:0.2,spiral,bullet_time"
    assert run(room, "--mode", "eval", "--trajs", presets, "--intrinsics_file", sequence.INTRINSICS) == 0
    assert len(list(room.glob("eval_render*.mp4"))) == 6
    first = files(room)
    (room / "kept").mkdir()
    for i in range(1, 7):
        (room / f"eval_cameras{i}.npz").rename(room / "kept" / f"{i}.npz")
    assert run(room, "--mode", "eval", "--cameras", room / "kept" / "*.npz", "--intrinsics_file",
               sequence.INTRINSICS) == 0  # fmt: skip
    again = files(room)
    assert all(again[name] == first[name] for name in first if not name.endswith("npz"))
    frozen = video.read_video(room / "eval_render6.mp4").astype(int)
    nearest = [np.abs(frozen[0] - frame).mean() for frame in video.read_video(room / "gt_rgb.mp4")]
    assert np.argmin(nearest) == 8 and np.abs(frozen[-1] - frozen[0]).mean() > 2 * nearest[8]  # the middle frame


def test_camera_files_of_every_kind(room):
    k = sequence.open_sequence(room).intrinsics
    c2w = np.eye(4)
    c2w[0, 3] = 0.1
    np.save(room / "one.npy", c2w)
    np.savez(room / "many.npz", c2w=np.tile(c2w, (17, 1, 1)), intrinsics=k[0])
    (room / "list.json").write_text(json.dumps({"c2w": c2w.tolist(), "intrinsics": k.tolist()}))
    for name in ("one.npy", "many.npz", "list.json"):
        cameras = trajectory.read_cameras(room / name, k)
        np.testing.assert_array_equal(cameras.c2w, np.tile(c2w, (17, 1, 1)))
        np.testing.assert_array_equal(cameras.intrinsics, k)


@pytest.mark.parametrize("data, message", [
    ({"c2w": np.eye(3)}, r"c2w has shape \(3, 3\)"), ({"c2w": np.zeros((5, 4, 4))}, "the video has 17 frames"),
    ({"c2w": np.zeros((4, 4))}, "a rotation and a translation"), ({"k": np.eye(4)}, "expected an npy, npz or json"),
    ({"c2w": np.eye(4), "frames": np.arange(17)[::-1]}, "frames must be 0 to 16"),
])  # fmt: skip
def test_what_is_no_camera_file_is_refused(room, data, message):
    np.savez(room / "bad.npz", **data)
    with pytest.raises(InputError, match=message):
        trajectory.read_cameras(room / "bad.npz", sequence.open_sequence(room).intrinsics)


def test_anchored_at_the_first_frame_the_target_camera_stands_still_in_the_world(room):
    cameras = ("--intrinsics_file", sequence.INTRINSICS, "--extrinsics_file", sequence.C2WS)
    assert run(room, "--mode", "eval", "--anchor", "first", "--trajs", "dolly_in:0", *cameras) == 0
    c2w = sequence.open_sequence(room, extrinsics_file=sequence.C2WS).c2w
    with np.load(room / "eval_cameras1.npz") as written:
        np.testing.assert_allclose(c2w @ written["c2w"], np.tile(c2w[0], (17, 1, 1)), atol=1e-9)


def test_a_preview_writes_one_picture_and_nothing_else(room):
    before = files(room)
    assert run(room, "--mode", "eval", "--preview") == 0
    assert set(files(room)) - set(before) == {"preview.png"}
    assert cv2.imread(str(room / "preview.png")).shape[1] > 1000


def test_many_holes_are_warned_of(room, capsys):
    assert run(room, "--mode", "eval", "--trajs", "orbit_left:60") == 0
    assert "the holes of render 1 pass 60%" in capsys.readouterr().out


def test_cut_edges_makes_jumps_unknown_and_nothing_else(room):
    depth = torch.full((1, 8, 8), 2.0)
    depth[:, :, 4:] = 3
    cut = warp.cut_edges(depth, 0.1)
    assert (cut[:, :, 3:5] == 0).all() and torch.equal(cut[:, :, :3], depth[:, :, :3])
    assert torch.equal(warp.cut_edges(depth, 0.6), depth)


@pytest.mark.parametrize("args, message", [
    (["--trajs", "orbit_left:x"], "expected a number degrees"), (["--trajs", "orbit_up"], "or a preset with its"),
    (["--trajs", "zoom_out:1.5"], "below 1"), (["--cameras", "no.npz"], "no such file"),
    (["--anchor", "first"], "needs the source cameras"), (["--edge_threshold", "0"], "above 0"),
])  # fmt: skip
def test_wrong_steering_is_one_line_and_exit_2(room, capsys, args, message):
    before = files(room)
    assert run(room, "--mode", "eval", *args) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1 and files(room) == before


def test_fuse_static_fills_holes_and_changes_no_known_pixel(room):
    cameras = ("--intrinsics_file", sequence.INTRINSICS, "--extrinsics_file", sequence.C2WS, "--crf", 0)
    args = ("--mode", "eval", "--trajs", "orbit_left:15", *cameras)
    assert run(room, *args) == 0
    before, known = video.read_video(room / "eval_render1.mp4"), video.read_mask(room / "eval_mask1.mp4")
    assert run(room, *args, "--fuse_static") == 0
    after, mask = video.read_video(room / "eval_render1.mp4"), video.read_mask(room / "eval_mask1.mp4")
    assert mask[known].all() and mask.sum() > known.sum()
    assert np.abs(after.astype(int) - before)[known].max() <= 2


# ---- real and exact geometry -----------------------------------------------------------------------------------------


def write_sequence(folder, frames, depth, k=None):
    video.write_video(folder / "gt_rgb.mp4", frames, video.VideoInfo(*frames.shape[:3], Fraction(20)), crf=0)
    sequence.save_array(folder / sequence.DEPTH, depth)
    if k is not None:
        sequence.save_array(folder / sequence.INTRINSICS, k)


def test_the_motorcycle_goes_from_left_to_right_through_a_camera_file(tmp_path):
    """A real stereo pair: depth 1 / disparity, focal length 1 and baseline 1 give each pixel its disparity."""
    left, right, disparity = stereo_motorcycle()
    known = np.isfinite(disparity) & (disparity > 0)
    depth = np.where(known, 1 / np.where(known, disparity, 1), 0).astype(np.float32)
    k = np.array([[1, 0, 300], [0, 1, 200], [0, 0, 1]], np.float32)
    write_sequence(tmp_path, left[None], depth[None], k)
    right_eye = np.eye(4)
    right_eye[0, 3] = 1
    (tmp_path / "right.json").write_text(json.dumps({"c2w": right_eye.tolist()}))
    assert run(tmp_path, "--mode", "eval", "--cameras", tmp_path / "right.json", "--crf", 0, "--intrinsics_file",
               sequence.INTRINSICS) == 0  # fmt: skip
    ours, mask = video.read_video(tmp_path / "eval_render1.mp4")[0], video.read_mask(tmp_path / "eval_mask1.mp4")[0]
    left = video.read_video(tmp_path / "gt_rgb.mp4")[0]  # as coded
    u, v, z = reference_warp.project(depth.astype(np.float64), k, np.linalg.inv(right_eye))
    theirs, their_mask = reference_warp.forward_render(left, u, v, z)
    video.write_video(tmp_path / "reference.mp4", theirs[None], video.probe(tmp_path / "gt_rgb.mp4"), crf=0)
    theirs = video.read_video(tmp_path / "reference.mp4")[0]
    psnr = metrics.psnr(ours / 255, right / 255, mask)
    reference = metrics.psnr(theirs / 255, right / 255, their_mask)
    print(f"motorcycle: {psnr:.2f} dB on {mask.mean():.1%} known pixels, float64 reference {reference:.2f} dB")
    assert psnr > 28 and psnr > reference - 0.01


def test_anchored_at_the_first_frame_renders_are_the_exact_views(tmp_path, capsys):
    """A camera on an orbit about the first frame, still in the world, against the tracer: 30 dB on known pixels."""
    room = tmp_path / "room"
    assert call("toolbox.synthetic.make_synthetic_sequence", "--output_dir", room, "--frames", 9, "--height", 160, "--width", 240,
                "--focal", 250, "--depth_scale", 1, "--crf", 0, "--trajs", tmp_path) == 0  # fmt: skip
    assert run(room, "--mode", "eval", "--anchor", "first", "--trajs", "orbit_left:10", "--crf", 0, "--intrinsics_file",
               sequence.INTRINSICS, "--extrinsics_file", sequence.C2WS) == 0  # fmt: skip
    scene = scenes.coarsen(scenes.make_scene(0), 3, 1)
    source = scenes.camera_path(scene, 9)
    with np.load(room / "eval_cameras1.npz") as cameras:
        c2w, k = source @ torch.from_numpy(cameras["c2w"]), torch.from_numpy(cameras["intrinsics"])
    truth = clips.blur(scenes.trace(scene, c2w, k, 160, 240, scenes.frame_times(9))[0], 240 / 320)
    ours, mask = video.read_video(room / "eval_render1.mp4"), video.read_mask(room / "eval_mask1.mp4")
    psnr = metrics.psnr(ours / 255, truth.numpy(), mask)
    print(f"anchor first: {psnr:.2f} dB on {mask.mean():.1%} known pixels")
    assert psnr > 30 and mask.mean() > 0.6
