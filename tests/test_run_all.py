"""run_all.sh: what is done is skipped, what changed is made anew, another run is refused."""

import dataclasses
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT, call

from toolbox import run_all
from utils import cli, sequence, video

PATHS = 10  # more than nine: as text, 10 comes before 2
SIZE = ("--frames", 17, "--height", 32, "--width", 48)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A random model of 17 x 32 x 48: five programs and ten videos in seconds."""
    folder = tmp_path_factory.mktemp("model")
    assert call("toolbox.small_model.make_tiny_checkpoint", "--output_dir", folder, *SIZE) == 0
    return folder


def arguments(model, folder):
    """To go from folder/room and folder/trajs to folder/out."""
    return ["--data_path", folder / "room", "--trajs", folder / "trajs",
            "--model_path", model / "base", "--transformer_id", model / "cognvs_ckpt_inpaint",
            "--output_dir", folder / "out", "--num_train_render", "2", "--memory", "single",
            "--num_inference_steps", "1", "--train_epochs", "1", "--score", "no"]


def start(model, folder, *more):
    return call("toolbox.run_all", *arguments(model, folder), *more)


def files(folder):
    """{path: time of its last change} of all files."""
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}


def outputs(folder, name):
    """{number: path} of the videos that inference or side by side made."""
    found = (folder / "room/outputs/out").glob(f"eval_render*_{name}.mp4")
    return {int(path.name.split("_")[1].removeprefix("render")): path for path in found}


@pytest.fixture(scope="module")
def made(model, tmp_path_factory):
    """A folder with room/ and trajs/, and what run_all.sh made of them."""
    folder = tmp_path_factory.mktemp("run_all")
    assert call("toolbox.synthetic.make_synthetic_sequence", "--output_dir", folder / "room",
                *SIZE) == 0
    (folder / "trajs").mkdir()
    for number in range(1, PATHS + 1):
        path = folder / "trajs" / f"path{number:02}.txt"
        path.write_text(f"0 {10 + number}\n0 0\n0 0\n")
    script = ROOT / "toolbox/run_all.sh"
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    subprocess.run(["sh", script, *arguments(model, folder)], check=True,
                   env=os.environ | {"PATH": path})
    return folder


@pytest.fixture
def folder(made, tmp_path):
    """A copy of `made` elsewhere: where a result lies has no part in what it is made of."""
    return Path(shutil.copytree(made, tmp_path / "copy"))


def test_all_paths_come_out_and_are_skipped_the_next_time(model, folder, capfd):
    assert sorted(outputs(folder, "out")) == sorted(outputs(folder, "side_by_side"))
    assert sorted(outputs(folder, "out")) == list(range(1, PATHS + 1))
    for number, path in outputs(folder, "out").items():
        tags = video.made_of(path)
        assert tags["render"] == cli.file_hash(folder / f"room/eval_render{number}.mp4")
        assert tags["settings"]["composite"]
    before = files(folder)
    assert start(model, folder) == 0
    said = capfd.readouterr().out
    assert said.count("skipped: ") == 6 and "Look at" in said and "==" not in said
    record = json.loads((folder / "out/run_all_finetuning.json").read_text())
    assert record["seconds"] > 0 and record["peak_mib"] == 0
    assert files(folder) == before


@pytest.fixture
def in_process(monkeypatch):
    """Python programs are called in this process, which saves their starts; scripts are started."""
    start_process = run_all.run

    def run(*command, **environment):
        if command[0] != sys.executable:
            return start_process(*command, **environment)
        program = command[1].removesuffix(".py").replace("/", ".")
        assert call(program, *command[2:]) == 0
        return 0

    monkeypatch.setattr(run_all, "run", run)


def test_what_changed_is_made_anew_and_what_is_gone_leaves_nothing(
        model, folder, in_process, capfd):
    render = (folder / "room/eval_render2.mp4").read_bytes()
    output = cli.file_hash(outputs(folder, "out")[1])
    (folder / "trajs/path02.txt").write_text("0 -9\n0 0\n0 0\n")
    for number in range(3, PATHS + 1):
        (folder / f"trajs/path{number:02}.txt").unlink()
    assert start(model, folder, "--train_epochs", 2) == 0
    said = capfd.readouterr()
    assert "skipped: " not in said.out
    assert said.out.count("train_render1.mp4 exists and is kept") == 1
    assert "1/2" in said.err  # finetuning went on with the first step's state
    assert (folder / "room/eval_render2.mp4").read_bytes() != render
    assert cli.file_hash(outputs(folder, "out")[1]) != output  # made by other weights
    assert (folder / "out/my_checkpoint-2_transformer").is_dir()
    assert sorted(outputs(folder, "out")) == sorted(outputs(folder, "side_by_side")) == [1, 2]
    assert len([path for path in files(folder / "room") if "eval_" in path.name]) == 2 * 5


def test_without_finetuning_and_with_camera_files(model, folder, in_process, capfd):
    pan = ROOT / "trajs/davis10/00_pan_left.json"
    more = ("--no_finetune", "--cameras", pan, "--pivot", "20, 9", "--output_dir", folder / "as_is")
    pair = folder / "room/train_cameras1.npz"
    before = cli.file_hash(pair)
    assert start(model, folder, *more) == 0
    assert cli.file_hash(pair) != before  # random paths turn about the pivot, camera files do not
    said = capfd.readouterr().out
    assert "val_render10.mp4: an earlier run made it" in said and "== finetuning" not in said
    assert not (folder / "as_is").exists()
    found = sorted(path.name for path in (folder / "room/outputs/as_is").glob("*_out.mp4"))
    assert found == ["eval_render1_out.mp4"]
    made = video.made_of(folder / "room/eval_render1.mp4")
    assert made["path"] == "00_pan_left.json"
    assert start(model, folder, *more[:-2], "--cameras", folder / "none*.json") == 2
    assert "no such file or camera path; expected an npy" in capfd.readouterr().err


def refused(model, folder, capfd, says, *more):
    before = files(folder)
    capfd.readouterr()
    assert start(model, folder, *more) == 2
    error = capfd.readouterr().err
    assert says in error and error.startswith("error: ") and error.count("\n") == 1
    assert files(folder) == before


def test_another_run_is_not_gone_on_with(model, folder, capfd, tmp_path):
    refused(model, folder, capfd, "another learning_rate", "--learning_rate", "1e-4")
    refused(model, folder, capfd, "another pivot", "--pivot", "20, 9")
    refused(model, folder, capfd, "another num_train_render", "--num_train_render", 3)
    refused(model, folder, capfd, "--train_epochs 0", "--train_epochs", 0)
    other = shutil.copytree(model / "cognvs_ckpt_inpaint", tmp_path / "other")
    (other / "config.json").write_text((other / "config.json").read_text() + " ")
    refused(model, folder, capfd, "another transformer_id (see run_all_finetuning.json",
            "--transformer_id", other)
    weights = folder / "out/my_checkpoint-1_transformer"
    (weights / "config.json").write_text((weights / "config.json").read_text() + " ")
    refused(model, folder, capfd, "my_checkpoint-1_transformer, which was changed after")
    (folder / "out/run_all_finetuning.json").unlink()
    refused(model, folder, capfd, "holds a run that run_all.sh did not begin")
    (folder / "room/gt_rgb.mp4").unlink()
    refused(model, folder, capfd, "no gt_rgb.mp4")


@pytest.fixture
def stage(tmp_path):
    """A stage that was performed: it makes a.txt and b.txt."""
    stage = run_all.Stage("test", tmp_path, {"n": 2, "in": "0f"}, ["a.txt", "b.txt"])
    assert not run_all.is_done(stage)
    run_all.perform(stage, lambda: make(stage), [])
    assert run_all.is_done(stage)
    return stage


def make(stage):
    for name in stage.results:
        (stage.folder / name).write_text(f"made of {stage.made_of}")
    return 0


def test_a_stage_is_done_by_what_it_is_made_of_and_its_results(stage):
    for name in ("n", "in", "new"):
        assert not run_all.is_done(dataclasses.replace(stage, made_of=stage.made_of | {name: 3}))
    assert run_all.is_done(stage)
    (stage.folder / "b.txt").write_text("by hand")
    assert not run_all.is_done(stage)
    (stage.folder / "b.txt").unlink()
    assert not run_all.is_done(stage)


def test_a_stage_that_was_interrupted_is_not_done(stage):
    other = dataclasses.replace(stage, made_of={"n": 3})

    def interrupted():
        (stage.folder / "a.txt").write_text("half of")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_all.perform(other, interrupted, [])
    assert not run_all.is_done(other)
    assert not run_all.is_done(stage)


def test_only_what_the_stage_made_itself_is_deleted(stage):
    kept = stage.folder / stage.results.pop()
    run_all.perform(stage, lambda: make(stage), [])
    assert not kept.exists()
    stage.results.append(kept.name)
    run_all.perform(stage, lambda: make(stage), [])
    stage.results.pop()
    kept.write_text("by hand")
    run_all.perform(stage, lambda: make(stage), [])
    assert kept.read_text() == "by hand" and run_all.is_done(stage)


@pytest.mark.parametrize("script", ["quickstart.sh", "process_ckpts.sh"])
def test_the_scripts_print_their_use(script):
    command = ["sh", ROOT / "toolbox" / script, "--help"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0 and script in done.stdout and not done.stderr


@pytest.fixture
def bare(folder):
    """Flags that go from a bare video and its depth, and two paths, to folder/new."""
    shutil.copy(folder / "room/gt_rgb.mp4", folder / "my.mp4")
    shutil.copy(folder / "room" / sequence.DEPTH, folder / "depth.npy")
    for number in range(3, PATHS + 1):
        (folder / f"trajs/path{number:02}.txt").unlink()
    return ("--video", folder / "my.mp4", "--data_path", folder / "seq", "--depth_file",
            folder / "depth.npy", "--output_dir", folder / "new", "--score", "quick")


def test_a_bare_video_comes_out_too(model, folder, bare, in_process, capfd):
    assert start(model, folder, *bare) == 0
    said = capfd.readouterr().out
    seq = sequence.open_sequence(folder / "seq", intrinsics_file=sequence.INTRINSICS,
                                 extrinsics_file=sequence.C2WS)
    assert (folder / "seq/gt_rgb.mp4").read_bytes() == (folder / "my.mp4").read_bytes()
    assert f"focal length {seq.intrinsics[0, 0, 0]:.1f} pixels" in said
    record = json.loads((folder / "seq" / sequence.VERDICT).read_text())
    for sentence in record["verdict"] if record["flags"] else []:
        assert f"geometry: {sentence}" in said
    assert sorted(path.name for path in (folder / "seq/outputs/new").glob("*_out.mp4")) == [
        "eval_render1_out.mp4", "eval_render2_out.mp4"]
    before = files(folder)
    assert start(model, folder, *bare) == 0
    assert capfd.readouterr().out.count("skipped: ") == 8 and files(folder) == before
    verdict = json.loads((folder / "seq/outputs/new/score/score.json").read_text())["verdict"]
    assert verdict[0].startswith("new fills the holes of new views a")
    assert verdict[0] in said and (folder / "seq/report/index.html").is_file()



def test_of_a_bare_video_nothing_is_replaced_that_this_program_did_not_make(
        model, folder, bare, in_process, monkeypatch):
    calls = []
    monkeypatch.setattr(run_all, "run", lambda *command, **_: calls.append(command) or 0)
    args = run_all.argparse.Namespace(video=folder / "my.mp4", data_path=folder / "seq",
                                      depth_file=folder / "depth.npy", depth_model=None)
    stage = run_all.geometry_stage(args)
    (folder / "seq").mkdir()
    (folder / "seq/gt_rgb.mp4").write_bytes(b"mine")
    run_all.find_geometry(args, stage)
    run_all.write_record(stage, run_all.hashes(stage.folder, stage.results))
    run_all.find_geometry(args, stage)
    (folder / "seq/gt_rgb.mp4").write_bytes(b"mine, changed")
    run_all.find_geometry(args, stage)
    assert ["--overwrite" in call for call in calls] == [False, True, False]


@pytest.mark.parametrize("flags, says", [
    (("--video", "v.mp4"), "give --depth_model"),
    (("--depth_file", "d.npy"), "only with --video"),
    (("--video", "none.mp4", "--depth_file", "d.npy"), "none.mp4: no such file"),
])
def test_flags_that_do_not_go_together(model, folder, flags, says, capfd):
    assert start(model, folder, *flags) == 2
    assert says in capfd.readouterr().err
