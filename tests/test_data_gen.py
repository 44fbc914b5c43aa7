import json
import os
import shutil
import signal
from fractions import Fraction
from pathlib import Path

import cv2
import numpy as np
import pytest
import reference_warp
import torch
from conftest import ROOT, call
from skimage.data import stereo_motorcycle
from test_video import encode

import data_gen
from toolbox.synthetic import clips, scenes
from utils import camera_paths, cli, metrics, sequence, trajectory, video, warp

K = ("--intrinsics_file", sequence.INTRINSICS)
C2W = ("--extrinsics_file", sequence.C2WS)


def files(folder):
    """The files of a folder: name to hash."""
    return {path.name: cli.file_hash(path) for path in folder.iterdir() if path.is_file()}


def run(room, *args):
    return call("data_gen", "--data_path", room, "--device", "cpu", *args)


def pixels(room, names="eval_*.mp4"):
    """What is in the videos of a folder, by name."""
    return {path.name: video.read_video(path) for path in room.glob(names)}


def refused(room, capsys, message, *args):
    """A run that says what is wrong in one line, ends with code 2 and changes nothing."""
    before = files(room)
    assert run(room, *args) == 2
    error = capsys.readouterr().err
    assert message in error and error.startswith("error: ") and error.count("\n") == 1
    assert files(room) == before


def test_eval_renders_every_path_of_trajs(room, capsys):
    before = set(files(room))
    assert run(room, "--mode", "eval") == 0
    for i in range(1, 5):
        before |= {f"eval_render{i}.mp4", f"eval_mask{i}.mp4", f"eval_cameras{i}.npz"}
    assert set(files(room)) == before
    out = capsys.readouterr().out
    assert "eval_render3.mp4 (and mask, cameras) from" in out and "traj3.txt" in out
    assert "megasam_intrinsics.npy is there but unused (focal length 500 is used)" in out
    source = video.probe(room / "gt_rgb.mp4")
    for i in range(1, 5):
        render = room / f"eval_render{i}.mp4"
        mask = room / f"eval_mask{i}.mp4"
        assert video.probe(render) == video.probe(mask) == source
        known = video.read_mask(mask)
        picture = video.read_video(render)
        assert 0 < known[1:].mean() < 1 and picture[~known].mean() < 8 < picture[known].mean()


def test_a_render_says_what_it_was_made_from(room):
    assert run(room, "--mode", "eval", "--trajs", "orbit_left:5") == 0
    made = video.made_of(room / "eval_render1.mp4")
    assert made["path"] == "orbit_left:5" and made["mode"] == "eval"
    assert made["source"] == cli.file_hash(room / "gt_rgb.mp4")


def test_cameras_are_the_paths(room):
    traj4 = ROOT / "trajs" / "traj4.txt"
    assert run(room, "--mode", "eval", "--trajs", traj4, "--radius_scale", 0.5, *K) == 0
    seq = sequence.open_sequence(room, intrinsics_file=sequence.INTRINSICS)
    keys = camera_paths.read_keyframes(traj4)
    with np.load(room / "eval_cameras1.npz", allow_pickle=False) as cameras:
        motion = trajectory.relative_motion(keys, 17, seq.pivot_depth * 0.5)
        still = np.tile(np.eye(4), (17, 1, 1))
        np.testing.assert_allclose(cameras["c2w"] @ motion, still, atol=1e-12)
        np.testing.assert_allclose(cameras["intrinsics"], seq.intrinsics)


def test_train_pairs_are_the_source_with_holes_and_a_seed_gives_its_bytes(room):
    two = ("--mode", "train", "--num_train_render", 2, *K)
    assert run(room, *two, *C2W) == 0
    first = files(room)
    source = video.read_video(room / "gt_rgb.mp4").astype(int)
    assert {"train_render1.mp4", "train_render2.mp4"} <= set(first)
    assert "train_render3.mp4" not in first
    for i in (1, 2):
        mask = video.read_mask(room / f"train_mask{i}.mp4")
        error = np.abs(video.read_video(room / f"train_render{i}.mp4") - source)[mask]
        assert 0.5 < mask.mean() < 1 and np.median(error) <= 8
    # Paths that follow the source camera need no c2ws: the same bytes.
    assert run(room, *two) == 0 and files(room) == first
    assert run(room, *two, "--seed", 43) == 0
    assert files(room)["train_render1.mp4"] != first["train_render1.mp4"]


def test_held_out_pairs_are_the_double_warp_along_the_evaluation_paths(room, capsys):
    two = str(ROOT / "trajs" / "traj[12].txt")
    assert run(room, "--mode", "train", "--num_train_render", 2, "--trajs", two, *K) == 0
    made = files(room)
    assert {"train_render2.mp4", "val_render2.mp4", "val_mask2.mp4"} <= set(made)
    assert not {"train_render3.mp4", "val_render3.mp4"} & set(made)
    seq = sequence.open_sequence(room, intrinsics_file=sequence.INTRINSICS)
    source = video.to_signed(torch.from_numpy(video.read_video(seq.rgb_path)))
    cameras = camera_paths.read_cameras(room / "val_cameras2.npz", seq.intrinsics)
    keys = camera_paths.read_keyframes(ROOT / "trajs" / "traj2.txt")
    expected = trajectory.keyframe_cameras(keys, seq.intrinsics, seq.pivot_depth)
    np.testing.assert_allclose(cameras.c2w, expected.c2w)
    motion = torch.from_numpy(np.linalg.inv(cameras.c2w))
    k = torch.from_numpy(seq.intrinsics)
    _, known = warp.double_warp(source, seq.depth(0, 17), motion, k, k)
    assert (video.read_mask(room / "val_mask2.mp4") == known.numpy()).mean() > 0.999
    # other evaluation paths change no training pair
    assert run(room, "--mode", "train", "--num_train_render", 2, "--trajs", "orbit_left:5", *K) == 0
    again = files(room)
    assert again["train_render1.mp4"] == made["train_render1.mp4"]
    assert again["val_render1.mp4"] != made["val_render1.mp4"]
    assert "val_render2.mp4 stay from an earlier run" in capsys.readouterr().out


@pytest.mark.parametrize("path", ["--trajs=bullet_time:5", "--cameras=still.npz"])
def test_time_passes_in_held_out_pairs_of_a_path_that_holds_it_still(room, path, monkeypatch):
    monkeypatch.chdir(room)
    np.savez("still.npz", c2w=np.eye(4), frames=np.full(17, 3))
    assert run(room, "--mode", "train", "--num_train_render", 1, path) == 0
    with np.load(room / "val_cameras1.npz", allow_pickle=False) as cameras:
        assert (cameras["frames"] == np.arange(17)).all()


def test_odd_sizes_and_rates_are_kept(room, capsys):
    frames = video.read_video(room / "gt_rgb.mp4")[:, :63, :95]
    info = video.VideoInfo(17, 63, 95, Fraction(30000, 1001), "bt601")
    video.write_video(room / "gt_rgb.mp4", frames, info)
    assert run(room, "--mode", "eval", "--trajs", ROOT / "trajs" / "traj1.txt") == 0
    assert "browsers may not play" in capsys.readouterr().out
    assert video.probe(room / "eval_render1.mp4") == video.probe(room / "eval_mask1.mp4") == info


@pytest.mark.parametrize("args, message", [
    ("--mode eval --device cuda:99", "use one that is there or --device cpu"),
    ("--mode eval --trajs nowhere", "--trajs 'nowhere': no such file or camera path"),
    ("--mode eval --crf 99", "--crf 99: expected 0"),
    ("--mode train --num_train_render 0", "expected at least 1"),
    ("--mode eval --depth_file cam_info/other.npy", "other.npy: no such file"),
    ("--mode eval --trajs orbit_left:x", "expected a number of degrees"),
    ("--mode eval --trajs orbit_left:5,", "--trajs '': no such file"),
    ("--mode eval --trajs ,orbit_left:5", "--trajs '': no such file"),
    ("--mode eval --trajs=", "--trajs '': no such file"),
    ("--mode eval --cameras=", "--cameras '': no such file"),
    ("--mode eval --trajs orbit_up", "or a preset with its"),
    ("--mode eval --trajs zoom_out:1.5", "expected a factor above 0"),
    ("--mode eval --cameras no.npz", "no such file"),
    ("--mode eval --cameras no.npz --trajs spiral", "give one of them"),
    ("--mode eval --cameras no.npz --pivot 3", "camera files turn about no point"),
    ("--mode eval --trajs orbit_left:5+", "got '' for a preset"),
    ("--mode eval --trajs orbit_left@slow", "expected @ease once"),
    ("--mode eval --pivot 96,5", "outside the picture; expected x from 0 to 95"),
    ("--mode eval --pivot=-1", "or one number above 0"),
    ("--mode eval --anchor first", "needs the source cameras"),
    ("--mode eval --fuse_static", "needs the source cameras"),
    ("--mode train --fuse_static", "only with --mode eval"),
    ("--mode eval --edge_threshold 0", "above 0"),
])
def test_bad_input_is_one_line_and_exit_2_and_writes_nothing(room, capsys, args, message):
    refused(room, capsys, message, *args.split())


def test_only_paths_that_turn_about_it_need_a_depth_in_the_centre(room, capsys):
    depth = np.load(room / sequence.DEPTH)
    depth[0, 28:36, 44:52] = 0
    np.save(room / sequence.DEPTH, depth)
    np.save(room / "c2w.npy", np.eye(4))
    refused(room, capsys, "the depth at the centre of the first frame", "--mode", "eval")
    refused(room, capsys, "the depth there in the first frame", "--mode", "eval", "--pivot=48,32")
    assert run(room, "--mode", "eval", "--trajs", "arc_up:1", "--pivot", "9,9") == 0
    for more in ((), ("--preview",)):
        assert run(room, "--mode", "eval", "--cameras", room / "c2w.npy", *more) == 0
        assert "17 frames of 96 x 64, computing on cpu" in capsys.readouterr().out


@pytest.mark.parametrize("moves", [0, 1, 2])
def test_an_interrupted_run_leaves_no_render_beside_anothers_mask(room, monkeypatch, moves):
    """The run stops between any two of the moves that put a set into its place."""
    other = Path(shutil.copytree(room, room.parent / "other"))
    assert run(room, "--mode", "eval", "--trajs", "orbit_left:5") == 0
    assert run(other, "--mode", "eval", "--trajs", "arc_up:5") == 0
    kinds = ("eval_render1.mp4", "eval_mask1.mp4", "eval_cameras1.npz")
    old, new = files(room), files(other)
    replace, left = Path.replace, [moves]

    def stop(path, target):
        if not left[0]:
            raise KeyboardInterrupt
        left[0] -= 1
        return replace(path, target)

    monkeypatch.setattr(Path, "replace", stop)
    with pytest.raises(KeyboardInterrupt):
        run(room, "--mode", "eval", "--trajs", "arc_up:5")
    monkeypatch.undo()
    found = {name: digest for name, digest in files(room).items() if name in kinds}
    whole = [{name: digests[name] for name in kinds} for digests in (old, new)]
    assert "eval_render1.mp4" not in found or found in whole
    assert run(room, "--mode", "eval", "--trajs", "arc_up:5") == 0
    assert all(files(room)[name] == new[name] for name in kinds)


@pytest.mark.gpu
def test_the_gpu_writes_the_same_pixels(room):
    args = ("--mode", "eval", "--trajs", ROOT / "trajs" / "traj1.txt", "--crf", 0)
    assert run(room, *args) == 0
    cpu = video.read_video(room / "eval_render1.mp4").astype(int)
    assert call("data_gen", "--data_path", room, "--device", "cuda:0", *args) == 0
    assert (np.abs(video.read_video(room / "eval_render1.mp4") - cpu) <= 2).mean() > 0.999


# ---- steering: presets, camera files, anchors ----------------------------------------------------


def test_each_preset_is_its_own_render_and_a_runs_cameras_give_the_same_pixels(room):
    presets = "orbit_left:20,arc_up,dolly_in:0.3,zoom_out:0.2,spiral,bullet_time"
    assert run(room, "--mode", "eval", "--trajs", presets, *K) == 0
    first = pixels(room)
    assert len(first) == 12
    (room / "kept").mkdir()
    for i in range(1, 7):
        (room / f"eval_cameras{i}.npz").rename(room / "kept" / f"{i}.npz")
    assert run(room, "--mode", "eval", "--cameras", room / "kept" / "*.npz", *K) == 0
    for name, again in pixels(room).items():
        assert np.array_equal(again, first[name])
    frozen = first["eval_render6.mp4"].astype(int)
    distance = np.abs(frozen[0] - video.read_video(room / "gt_rgb.mp4")).mean((1, 2, 3))
    assert np.argmin(distance) == 8  # the middle frame
    assert np.abs(frozen[-1] - frozen[0]).mean() > 2 * distance[8]


def test_paths_turn_about_the_point_that_is_seen_at_a_pixel(room, capsys):
    """The colour at that pixel of frame 0 stays there, whatever the angle."""
    path = ("--trajs", "orbit_right:8+arc_up:4@ease", "--pivot", "70,40", "--crf", 0, *K)
    assert run(room, "--mode", "eval", *path) == 0
    said = capsys.readouterr().out
    seq = sequence.open_sequence(room, intrinsics_file=sequence.INTRINSICS)
    depth = seq.depth(0, 1)[0, 40, 70].item()
    assert f"17 frames of 96 x 64, orbit about (70, 40) at depth {depth:.4g}, computing" in said
    assert "from orbit_right:8+arc_up:4@ease; holes" in said
    cameras = camera_paths.read_cameras(room / "eval_cameras1.npz", seq.intrinsics)
    point = depth * np.linalg.inv(seq.intrinsics[0]) @ [70, 40, 1]
    seen = (np.linalg.inv(cameras.c2w) @ [*point, 1])[:, :3] @ seq.intrinsics[0].T
    np.testing.assert_allclose(seen[:, :2] / seen[:, 2:], np.tile([70, 40], (17, 1)), atol=1e-6)
    phi, theta, r = trajectory.angles(cameras.c2w, point)
    t = np.linspace(0, 1, 17)
    for got, end in ((phi, 8), (theta, 4), (r, 0)):
        np.testing.assert_allclose(got, end * t**2 * (3 - 2 * t), atol=1e-9)
    assert run(room, "--mode", "eval", *path, "--radius_scale", 0.5) == 0
    assert f"orbit about (70, 40) at depth {depth / 2:.4g}" in capsys.readouterr().out
    assert run(room, "--mode", "eval", *path[:-4], "--pivot", 7, "--preview", *K) == 0
    assert "orbit radius 7, computing" in capsys.readouterr().out


def test_random_training_paths_turn_about_the_pivot_beside_camera_files(room):
    np.savez(room / "still.npz", c2w=np.eye(4))
    args = ("--mode", "train", "--num_train_render", 1, "--cameras", room / "still.npz", *K)
    assert run(room, *args) == 0
    before = files(room)
    assert run(room, *args, "--pivot", "90,5") == 0
    assert files(room)["val_render1.mp4"] == before["val_render1.mp4"]
    assert files(room)["train_render1.mp4"] != before["train_render1.mp4"]
    seq = sequence.open_sequence(room, intrinsics_file=sequence.INTRINSICS)
    cameras = camera_paths.read_cameras(room / "train_cameras1.npz", seq.intrinsics)
    keys = trajectory.random_keyframes(42, 1)[0]
    pivot = camera_paths.find_pivot("90,5", seq)
    for got, axis in zip(trajectory.angles(cameras.c2w, pivot), trajectory.AXES, strict=True):
        np.testing.assert_allclose(got, trajectory.interpolate(keys[axis], 17), atol=1e-9)


def test_anchored_at_the_first_frame_the_target_camera_stands_still_in_the_world(room):
    anchored = ("--anchor", "first", "--trajs", "dolly_in:0")
    assert run(room, "--mode", "eval", *anchored, *K, *C2W) == 0
    c2w = sequence.open_sequence(room, extrinsics_file=sequence.C2WS).c2w
    still = np.tile(c2w[0], (17, 1, 1))
    with np.load(room / "eval_cameras1.npz") as written:
        np.testing.assert_allclose(c2w @ written["c2w"], still, atol=1e-9)


def test_a_preview_writes_its_picture_and_page_and_nothing_else_and_warns_of_holes(room, capsys):
    before = set(files(room))
    assert run(room, "--mode", "eval", "--trajs", "arc_up:1,orbit_left:60", "--preview") == 0
    assert set(files(room)) - before == {"preview.png", "design.html"}
    assert cv2.imread(str(room / "preview.png")).shape[1] > 1000
    out = capsys.readouterr().out
    assert "at frame 8 the holes of render 2 pass 60%" in out and "render 1" not in out


def test_many_holes_are_warned_of(room, capsys):
    assert run(room, "--mode", "eval", "--trajs", "orbit_left:60") == 0
    assert "the holes of render 1 pass 60%" in capsys.readouterr().out


def test_cut_edges_makes_jumps_unknown_and_nothing_else():
    depth = torch.full((1, 8, 8), 2.0)
    depth[:, :, 4:] = 3
    cut = warp.cut_edges(depth, 0.1)
    assert (cut[:, :, 3:5] == 0).all() and torch.equal(cut[:, :, :3], depth[:, :, :3])
    assert torch.equal(warp.cut_edges(depth, 0.6), depth)


def test_fuse_static_fills_holes_and_changes_no_known_pixel(room):
    args = ("--mode", "eval", "--trajs", "orbit_left:15", "--crf", 0, *K, *C2W)
    assert run(room, *args) == 0
    before = video.read_video(room / "eval_render1.mp4").astype(int)
    known = video.read_mask(room / "eval_mask1.mp4")
    assert run(room, *args, "--fuse_static") == 0
    after = video.read_video(room / "eval_render1.mp4")
    mask = video.read_mask(room / "eval_mask1.mp4")
    assert mask[known].all() and mask.sum() > known.sum()
    assert np.abs(after - before)[known].max() <= 2


# ---- real and exact geometry ---------------------------------------------------------------------


def write_sequence(folder, frames, depth, k=None):
    info = video.VideoInfo(*frames.shape[:3], Fraction(20))
    video.write_video(folder / "gt_rgb.mp4", frames, info, crf=0)
    sequence.save_array(folder / sequence.DEPTH, depth)
    if k is not None:
        sequence.save_array(folder / sequence.INTRINSICS, k)


def test_the_motorcycle_goes_from_left_to_right_through_a_camera_file(tmp_path):
    """A real stereo pair: at depth 1 / disparity, focal length 1 and baseline 1 move each pixel
    by its disparity."""
    left, right, disparity = stereo_motorcycle()
    known = np.isfinite(disparity) & (disparity > 0)
    depth = np.where(known, 1 / np.where(known, disparity, 1), 0).astype(np.float32)
    k = np.array([[1, 0, 300], [0, 1, 200], [0, 0, 1]], np.float32)
    write_sequence(tmp_path, left[None], depth[None], k)
    right_eye = np.eye(4)
    right_eye[0, 3] = 1
    (tmp_path / "right.json").write_text(json.dumps({"c2w": right_eye.tolist()}))
    cameras = ("--cameras", tmp_path / "right.json", *K)
    assert run(tmp_path, "--mode", "eval", "--crf", 0, *cameras) == 0
    ours = video.read_video(tmp_path / "eval_render1.mp4")[0]
    mask = video.read_mask(tmp_path / "eval_mask1.mp4")[0]
    left = video.read_video(tmp_path / "gt_rgb.mp4")[0]  # as coded
    u, v, z = reference_warp.project(depth.astype(np.float64), k, np.linalg.inv(right_eye))
    theirs, their_mask = reference_warp.forward_render(left, u, v, z)
    info = video.probe(tmp_path / "gt_rgb.mp4")
    video.write_video(tmp_path / "reference.mp4", theirs[None], info, crf=0)
    theirs = video.read_video(tmp_path / "reference.mp4")[0]
    psnr = metrics.psnr(ours / 255, right / 255, mask)
    reference = metrics.psnr(theirs / 255, right / 255, their_mask)
    print(f"motorcycle: {psnr:.2f} dB on {mask.mean():.1%} known pixels, "
          f"float64 reference {reference:.2f} dB")
    assert psnr > 28 and psnr > reference - 0.01


def test_anchored_at_the_first_frame_renders_are_the_exact_views(tmp_path):
    """A camera that orbits about the first frame's pivot, against the tracer, on known pixels."""
    room = tmp_path / "room"
    size = ("--frames", 5, "--height", 120, "--width", 180, "--focal", 190, "--depth_scale", 1)
    assert call("toolbox.synthetic.make_synthetic_sequence", "--output_dir", room, *size,
                "--crf", 0, "--trajs", tmp_path) == 0
    path = ("--anchor", "first", "--trajs", "orbit_left:10", "--crf", 0)
    assert run(room, "--mode", "eval", *path, *K, *C2W) == 0
    scene = scenes.coarsen(scenes.make_scene(0), 3, 1)
    with np.load(room / "eval_cameras1.npz") as cameras:
        c2w = scenes.camera_path(scene, 5) @ torch.from_numpy(cameras["c2w"])
        k = torch.from_numpy(cameras["intrinsics"])
    exact, _ = scenes.trace(scene, c2w, k, 120, 180, scenes.frame_times(5))
    exact = clips.blur(exact, 180 / 320).numpy()
    ours = video.read_video(room / "eval_render1.mp4")
    mask = video.read_mask(room / "eval_mask1.mp4")
    psnr = metrics.psnr(ours / 255, exact, mask)
    print(f"anchor first: {psnr:.2f} dB on {mask.mean():.1%} known pixels")
    assert psnr > 30 and mask.mean() > 0.6


def test_a_second_run_keeps_what_is_made_of_the_same_and_only_that(room, capsys):
    two = ("--mode", "eval", "--trajs", "orbit_left:5,dolly_in:0.1")
    assert run(room, *two) == 0
    before = files(room)
    stamps = {name: (room / name).stat().st_mtime_ns for name in before}
    capsys.readouterr()
    assert run(room, *two) == 0
    said = capsys.readouterr().out
    assert said.count("exists and is kept") == 2
    assert stamps == {name: (room / name).stat().st_mtime_ns for name in files(room)}

    np.savez(room / "eval_cameras2.npz")  # of no matter: it is there
    (room / "eval_mask1.mp4").unlink()
    assert run(room, *two) == 0
    said = capsys.readouterr().out
    assert "eval_render2.mp4 exists and is kept" in said and "render1.mp4 (and mask, cam" in said
    assert files(room)["eval_render1.mp4"] == before["eval_render1.mp4"]
    assert run(room, *two, "--overwrite") == 0
    assert "kept" not in capsys.readouterr().out and files(room).keys() == before.keys()


@pytest.mark.parametrize("change", ["K", "depth", "video", "path", "crf", "edges"])
def test_what_is_made_of_something_else_is_made_anew(room, capsys, change):
    args = ["--mode", "eval", "--trajs", "orbit_left:5", *K]
    assert run(room, *args) == 0
    args += {"crf": ("--crf", 20), "edges": ("--edge_threshold", 0.1)}.get(change, ())
    if change == "path":
        args[3] = "orbit_left:6"
    if change == "K":
        k = np.load(room / sequence.INTRINSICS)
        k[0, 0] *= 1.1
        np.save(room / sequence.INTRINSICS, k)
    if change == "depth":
        np.save(room / sequence.DEPTH, np.load(room / sequence.DEPTH) + 1)
    if change == "video":
        frames = video.read_video(room / "gt_rgb.mp4")
        video.write_video(room / "gt_rgb.mp4", 255 - frames, video.probe(room / "gt_rgb.mp4"))
    capsys.readouterr()
    assert run(room, *args) == 0
    assert "kept" not in capsys.readouterr().out


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_run_leaves_whole_renders_and_goes_on(room, capsys, monkeypatch, number):
    args = ("--mode", "train", "--num_train_render", 3, "--trajs", "orbit_left:5")
    write = data_gen.write_set

    def write_first(args, warper, target, *others):
        if target.number == 2:
            monkeypatch.setattr(video.VideoWriter, "finish", lambda _: os.kill(os.getpid(), number))
        return write(args, warper, target, *others)

    before = files(room).keys()
    with monkeypatch.context() as patched:
        patched.setattr(data_gen, "write_set", write_first)
        assert run(room, *args) == 128 + number
        monkeypatch.undo()
    error = capsys.readouterr().err
    assert error.splitlines()[-1].startswith("interrupted; ") and "Traceback" not in error
    made = {"train_render1.mp4", "train_mask1.mp4", "train_cameras1.npz"}
    assert files(room).keys() - before == made
    (room / "train_render9.mp4.part").write_bytes(b"of a run that was killed")
    assert run(room, *args) == 0
    assert "train_render1.mp4 exists and is kept" in capsys.readouterr().out
    assert len(files(room)) == len(before) + 12


def test_two_runs_on_one_folder_are_told_apart(room, capsys):
    with cli.lock(room / ".data_gen_eval.lock"):
        refused(room, capsys, "is being written to by process", "--mode", "eval")
    assert run(room, "--mode", "eval", "--trajs", "arc_up:1") == 0


def test_a_new_view_has_the_sound_of_the_video_unless_time_stands_still(room):
    frames = video.read_video(room / "gt_rgb.mp4")
    encode(room / "gt_rgb.mp4", frames, sound=2)
    assert run(room, "--mode", "eval", "--trajs", "orbit_left:5,bullet_time:5") == 0
    assert run(room, "--mode", "train", "--num_train_render", 1) == 0
    names = "eval_render1", "eval_mask1", "eval_render2", "train_render1"
    heard = [video.has_audio(room / f"{name}.mp4") for name in names]
    assert heard == [True, False, False, False]


def test_what_is_doubtful_in_estimated_cameras_is_said(room, capsys):
    record = {"flags": ["no_parallax"], "verdict": ["parallax of 0.2 pixels"],
              "c2ws_hash": cli.file_hash(room / sequence.C2WS)}
    (room / sequence.VERDICT).write_text(json.dumps(record))
    args = ("--mode", "eval", "--anchor", "first", "--trajs", "dolly_in:0", *K)
    assert run(room, *args, *C2W) == 0
    assert f"warning: {sequence.C2WS}: parallax of 0.2 pixels" in capsys.readouterr().out
    poses = np.load(room / sequence.C2WS)
    poses[:, 0, 3] += 1  # the cameras of another program
    np.save(room / sequence.C2WS, poses)
    assert run(room, *args, *C2W) == 0
    assert "parallax" not in capsys.readouterr().out


def test_without_depth_it_is_said_how_to_get_it(room, capsys):
    (room / sequence.DEPTH).unlink()
    assert run(room, "--mode", "eval") == 2
    assert "toolbox/geometry/estimate_geometry.py --data_path" in capsys.readouterr().err
