"""toolbox/score.py as a user starts it, on a random model of 17 x 64 x 96."""

import json
import shutil
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import ROOT, call

from toolbox import score
from toolbox.evaluation import cameras, davis
from toolbox.small_model import evaluate_score
from utils import camera_paths, cli, sequence, trajectory, video

K = ("--intrinsics_file", sequence.INTRINSICS)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    assert call("toolbox.small_model.make_tiny_checkpoint", "--output_dir", folder,
                "--frames", 17, "--height", 64, "--width", 96) == 0
    return folder


@pytest.fixture(scope="module")
def scene(made_room, tmp_path_factory):
    """The made sequence with one evaluation path: its held-out pair, and its render."""
    room = tmp_path_factory.mktemp("score") / "room"
    shutil.copytree(made_room, room)
    for mode in ("train", "eval"):
        assert call("data_gen", "--data_path", room, "--mode", mode, "--num_train_render", 1,
                    "--trajs", "orbit_left:8", *K) == 0
    return room


@pytest.fixture
def programs(monkeypatch):
    """demo.py is called in this process, which saves its start."""
    def run(python, program, *arguments):
        assert program == "demo.py"
        assert call("demo", *arguments) == 0

    monkeypatch.setattr(score.run_all, "run", run)


def arguments(room, model, *more):
    weights = model / "cognvs_ckpt_inpaint"
    return ("toolbox.score", "--data_path", room, "--model_path", model / "base",
            "--num_inference_steps", 1, "--cognvs_ckpt_path", weights, *more)


def test_pairs_are_inpainted_by_each_of_the_weights_and_measured(
        scene, model, programs, tmp_path, capsys):
    other = shutil.copytree(model / "cognvs_ckpt_inpaint", tmp_path / "other")
    outputs = scene / "outputs"
    assert call("demo", "--data_path", scene, "--mp4_name", "eval_render1.mp4", "--model_path",
                model / "base", "--cognvs_ckpt_path", other, "--num_inference_steps", 1,
                "--composite") == 0
    assert call(*arguments(scene, model, other, "--no_cameras")) == 0
    said = capsys.readouterr().out
    record = json.loads((outputs / "score" / "score.json").read_text())
    assert record["pairs"] == ["val_render1"] and record["seeds"] == [42, 43]
    methods = [row["method"] for row in record["held_out"]]
    assert methods == ["Telea", "cognvs_ckpt_inpaint", "other"]
    telea, before, after = record["held_out"]
    # the same weights: no gain, and seeds differ
    assert before["holes"] == after["holes"] and before["spread"] == after["spread"] > 0
    assert telea["known"]["psnr"] > before["known"]["psnr"] and telea["spread"] is None
    assert "other fills the holes of new views about as well as" in record["verdict"][0]
    assert record["verdict"][0] in said and "| Telea | holes |" in said
    shown = scene / before["videos"]["val_render1"]
    assert video.probe(shown).frames == 17
    # a mirrored pair is the pair's mirror image, and what is measured of it is turned back
    folder = outputs / "score" / "pairs"
    plain = video.read_mask(folder / "val_mask1.mp4")
    assert (video.read_mask(folder / "val_mirrored_mask1.mp4") == plain[:, :, ::-1]).all()
    assert abs(telea["mirrored"]["holes"]["psnr"] - telea["holes"]["psnr"]) < 1
    (row,) = record["outputs"]
    assert row["name"] == "eval_render1" and row["known_psnr"] > 25 and row["seam"] > 0
    assert row["rotation_deg"] is None
    # started again, nothing is inpainted anew
    capsys.readouterr()
    assert call(*arguments(scene, model, other, "--no_cameras")) == 0
    assert capsys.readouterr().out.count("exists and is kept") == 8


def test_the_path_that_an_output_shows_is_told_from_another(scene):
    torch.set_num_threads(1)
    seq = sequence.open_sequence(scene, intrinsics_file=sequence.INTRINSICS,
                                 extrinsics_file=sequence.C2WS)
    asked = camera_paths.read_cameras(scene / "eval_cameras1.npz", seq.intrinsics)
    known = cameras.source_cameras(seq)
    assert list(known) == [(0, 17)] and known[0, 17] is seq.c2w
    right = cameras.path_errors(scene / "eval_render1.mp4", seq, asked, known)
    wrong = cameras.path_errors(scene / "gt_rgb.mp4", seq, asked, known)
    assert right.rotation_deg < 0.5 < 1.5 < wrong.rotation_deg
    assert right.translation_percent < 3 < wrong.translation_percent
    zoomed = trajectory.Cameras(asked.c2w, asked.intrinsics * np.linspace(1, 2, 17)[:, None, None],
                                asked.frames)
    assert cameras.path_errors(scene / "eval_render1.mp4", seq, zoomed, known) is None
    bare = sequence.open_sequence(scene, intrinsics_file=sequence.INTRINSICS)
    (found,) = cameras.source_cameras(bare).values()
    turn, place = cameras.aligned_errors(found, seq.c2w)
    assert turn < 0.5 and place < 3


def test_each_window_of_a_long_video_keeps_cameras_of_its_own(monkeypatch):
    class Long:
        info = video.VideoInfo(100, 4, 6, 20)
        c2w = None
        rgb_path = None
        intrinsics = np.tile(np.eye(3), (100, 1, 1))

        def depth(self, start, stop):
            return torch.ones(stop - start, 4, 6)

    def recovered(path, frames, *_):
        poses = np.tile(np.eye(4), (len(frames), 1, 1))
        poses[:, 0, 3] = 1000 * frames[0] + frames
        return poses, []

    monkeypatch.setattr(cameras, "recovered", recovered)
    found = cameras.source_cameras(Long())
    assert list(found) == [(0, 60), (48, 100)]
    assert found[0, 60][50, 0, 3] == 50 and found[48, 100][50, 0, 3] == 48050
    assert found[48, 100][51, 0, 3] == pytest.approx(48051)


def test_outputs_that_do_not_belong_are_left_out_before_anything_is_inpainted(
        scene, model, tmp_path, capsys):
    room = shutil.copytree(scene, tmp_path / "room", ignore=shutil.ignore_patterns("outputs"))
    render = video.read_video(room / "eval_render1.mp4")
    tags = {"render": cli.file_hash(room / "eval_render1.mp4")}
    outputs = room / "outputs"
    info = video.probe(room / "eval_render1.mp4")
    args = SimpleNamespace(data_path=room, outputs=outputs, paths=None, no_cameras=False)
    video.write_video(outputs / "eval_render1_out.mp4", render, info, tags=tags)
    assert score.usable_outputs(args) == [outputs / "eval_render1_out.mp4"]
    assert score.open_as_rendered(args, score.usable_outputs(args)).c2w is not None
    np.save(room / sequence.INTRINSICS, np.load(room / sequence.INTRINSICS) * [[2], [2], [1]])
    assert score.open_as_rendered(args, score.usable_outputs(args)) is None
    assert "no camera paths are recovered" in capsys.readouterr().out
    video.write_video(outputs / "eval_render1_out.mp4", render[:, :48], info, tags=tags)
    assert score.usable_outputs(args) == []
    assert "differs from its render or mask in size" in capsys.readouterr().out
    video.write_video(outputs / "eval_render1_out.mp4", render, info, tags={"render": "0"})
    assert score.usable_outputs(args) == []


def test_the_table_of_davis_takes_videos_before_their_folders_and_known_times_alone(tmp_path):
    for name in ("a/gt_rgb.mp4", "b/gt_rgb.mp4", "b.mp4", "c/notes.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("")
    found = davis.find_sequences(tmp_path)
    assert found == {"a": tmp_path / "a", "b": tmp_path / "b.mp4"}
    (tmp_path / "run_all_inference.json").write_text('{"seconds": 600}')
    (tmp_path / "run_all_report.json").write_text('{"seconds": 9999}')
    assert davis.minutes([tmp_path]) == pytest.approx(1)
    (tmp_path / "run_all_finetuning.json").write_text("{}")
    assert davis.minutes([tmp_path]) is None
    row = dict.fromkeys(davis.MEASURES, 2.0) | {"sequence": "a", "path": "00_pan_left"}
    lines = davis.table([row, row | {"path": "01_pan_right", "seam": None}]).splitlines()
    assert [line.split(" | ")[0] for line in lines[2:]] == [
        "| 00_pan_left", "| 01_pan_right", "| a", "| all"]
    assert lines[3].split(" | ")[4] == "-"


def test_weights_are_named_by_their_folder_or_run(model, tmp_path):
    run = tmp_path / "cognvs_ckpt_finetuned_bear"
    shutil.copytree(model / "cognvs_ckpt_inpaint", run / "my_checkpoint-20_transformer")
    weights = model / "cognvs_ckpt_inpaint"
    assert score.names_of([weights, run, weights]) == [
        "cognvs_ckpt_inpaint", "cognvs_ckpt_finetuned_bear", "cognvs_ckpt_inpaint_2"]
    shutil.copytree(weights, run / "my_checkpoint-40_transformer")
    steps = [run / f"my_checkpoint-{step}_transformer" for step in (20, 40, 40)]
    assert score.names_of(steps) == ["cognvs_ckpt_finetuned_bear",
                                     "cognvs_ckpt_finetuned_bear_step40",
                                     "cognvs_ckpt_finetuned_bear_step40_2"]


@pytest.mark.parametrize("spoil, more, message", [
    (None, ["--paths", 0], "--paths 0: expected at least 1"),
    (None, ["--seeds", 42, 42], "expected different numbers"),
    (None, ["--lpips_weights", ROOT / "README.md"], "not a readable file of weights"),
    ("val_mask1.mp4", [], "val_mask1.mp4: no such file"),
    ("val_render1.mp4", [], "no val_render*.mp4; make held-out pairs with data_gen.py"),
    ("gt_rgb.mp4", [], "gt_rgb.mp4: no such file"),
    (None, ["--cognvs_ckpt_path", ROOT / "tests"], "got no weights"),
])
def test_bad_input_is_one_line_and_exit_2(scene, model, tmp_path, capsys, spoil, more, message):
    room = shutil.copytree(scene, tmp_path / "room", ignore=shutil.ignore_patterns("outputs"))
    if spoil:
        (room / spoil).unlink()
    assert call(*arguments(room, model, *more)) == 2
    error = capsys.readouterr().err.strip().splitlines()
    assert message in error[-1] and error[-1].startswith("error: ")
    assert not (room / "outputs").exists()


def test_pairs_of_another_video_are_refused(scene, model, tmp_path, capsys):
    room = shutil.copytree(scene, tmp_path / "room", ignore=shutil.ignore_patterns("outputs"))
    frames = video.read_video(room / "gt_rgb.mp4")
    video.write_video(room / "gt_rgb.mp4", 255 - frames, video.probe(room / "gt_rgb.mp4"))
    assert call(*arguments(room, model)) == 2
    assert "was made of another gt_rgb.mp4" in capsys.readouterr().err


def test_the_report_of_evaluate_score_is_of_ranks(monkeypatch):
    monkeypatch.setattr(evaluate_score, "RATES", (1e-5, 1e-3))
    names = ["before", *evaluate_score.finetunings()]
    assert len(names) == 5
    rows = []
    for scene, shift in ((1, 0.0), (2, 0.1)):
        for number, name in enumerate(names):
            gain = (0, 0.5 + shift, -1, 0.2 + shift, -0.3)[number]
            rows.append({"world": "rooms", "scene": scene, "finetuning": name, "steps": 1,
                         "exact": 20 + gain, "plain": 25 - gain, "mirrored": 22.0})
    lines = evaluate_score.report(rows, 1).splitlines()
    cells = {line.split(" | ")[0].strip("| "): line.split(" | ")[1:] for line in lines if line}
    assert cells["estimated"][0] == "+0.55"  # the last table's
    assert "| as they are | -1.00 | -1.00 | 0% |" in "\n".join(lines)
    assert "| estimated | 1.00 | 1.00 | 100% | +0.00 |" in "\n".join(lines)
