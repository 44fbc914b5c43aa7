"""One command says what a machine can do and what is wrong with it, with models, with a folder."""

import json
import shutil
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import ROOT, call
from safetensors.torch import load_file, save_file

from toolbox import check_setup
from toolbox.checks import fits, folder, models
from utils import cli, sequence, video

TINY = ROOT / "checkpoints" / "tiny"
FILE = "diffusion_pytorch_model.safetensors"


@pytest.fixture
def report(monkeypatch):
    """A report to a terminal that shows no colour."""
    monkeypatch.setenv("NO_COLOR", "1")
    return check_setup.Report()


def wrong(text):
    """The lines that say what is wrong."""
    return [line for line in text.splitlines() if line.startswith("WRONG")]


# ---- the whole program ---------------------------------------------------------------------------


def test_a_sound_machine_with_sound_models_and_sequence(capsys, monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    args = ("--model_path", TINY / "base", "--cognvs_ckpt_path", TINY / "cognvs_ckpt_inpaint")
    assert call("toolbox.check_setup", *args, "--data_path", ROOT / "demo_data/room") == 0
    said = capsys.readouterr().out
    assert not wrong(said) and said.endswith("\nnothing is wrong\n")
    for expected in (f"torch {metadata.version('torch')}", "everything runs on the CPU",
                     "136 tensors", "clips of 49 frames of 192 x 128", "single_fused sft",
                     "field of view 51.3 x",
                     "traj2.txt    holes at first, middle and last frame: 0%, 37%, 0%"):
        assert expected in said


def test_all_that_is_wrong_is_listed_and_the_exit_code_is_2(capsys, tmp_path):
    args = ("--model_path", tmp_path, "--cognvs_ckpt_path", tmp_path / "none")
    assert call("toolbox.check_setup", *args, "--data_path", tmp_path / "missing") == 2
    said = capsys.readouterr().out
    assert len(wrong(said)) == 4  # weights, base, its text encoder, the video
    assert "4 of these lines begin with WRONG" in said and "single_fused sft" in said


def test_without_packages_it_says_what_to_install():
    """As of a Python that has none: -S leaves out site-packages."""
    done = subprocess.run([sys.executable, "-S", ROOT / "toolbox/check_setup.py"], timeout=60,
                          capture_output=True, text=True)
    assert done.returncode == 2 and done.stderr == ""
    lines = wrong(done.stdout)
    assert any("torch" in line and "is not installed" in line for line in lines)
    assert all("pip install -r cognvs_requirements.txt" in line for line in lines)


# ---- the report ----------------------------------------------------------------------------------


def test_wrong_lines_are_red_on_a_terminal_alone(capsys, monkeypatch):
    monkeypatch.delenv("NO_COLOR", raising=False)
    for terminal, colour, red in ((True, "", True), (True, "1", False), (False, "", False)):
        monkeypatch.setattr("sys.stdout.isatty", lambda terminal=terminal: terminal, raising=False)
        monkeypatch.setenv("NO_COLOR", colour)
        check_setup.Report().fail("disk", "is full")
        assert capsys.readouterr().out.startswith("\033[31mWRONG disk" if red else "WRONG disk")


def test_the_users_home_is_not_shown(capsys, monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    check_setup.Report().line("a", "/home/me/b and /home/you/b")
    assert capsys.readouterr().out.endswith("~/b and /home/you/b\n")


@pytest.mark.parametrize("error, said", [
    (cli.InputError("a: got b"), "a: got b"),
    (ImportError("no\nmodule"), "cannot be imported: no module; pip install -r "),
    (PermissionError(13, "Permission denied", "a.npy"), "a.npy: Permission denied; expected"),
    (ZeroDivisionError("by zero"), "got ZeroDivisionError: by zero; this is not expected: please"),
])
def test_whatever_goes_wrong_is_one_line_and_the_rest_goes_on(capsys, report, error, said):
    def function():
        raise error

    assert report.check("part", function) is None and report.wrong == 1
    out = capsys.readouterr().out
    assert out.count("\n") == 1 and said in out


# ---- the machine ---------------------------------------------------------------------------------


@pytest.mark.parametrize("version, mark, said", [
    ("2.12.9", "WRONG", "is older than 2.13.0"), ("2.13.0+cu130", "", None),
    ("2.14", "note", "is newer than 2.13.0"), (None, "WRONG", "is not installed"),
])
def test_packages_are_those_that_are_required(capsys, report, monkeypatch, version, mark, said):
    def installed(name):
        if name == "torch" and version is None:
            raise metadata.PackageNotFoundError
        return version if name == "torch" else "99"

    monkeypatch.setattr("importlib.metadata.version", installed)
    check_setup.packages(report)
    lines = [line for line in capsys.readouterr().out.splitlines() if " torch " in line]
    assert lines[0].startswith(mark or " ") and (said is None or said in lines[0])
    assert report.wrong == (mark == "WRONG")


@pytest.fixture
def two_gpus(monkeypatch):
    """Of 80 GB, with 79 and 30 GiB free; the host has 300 GiB."""
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    free = [79, 30]
    monkeypatch.setattr("torch.cuda.mem_get_info",
                        lambda at: (free[getattr(at, "index", at)] * 2**30, 80 * 2**30))
    monkeypatch.setattr("psutil.virtual_memory", lambda: SimpleNamespace(available=300 * 2**30))


def rows(text):
    """{name of a row: whether it says that it fits}."""
    found = {}
    for line in text.splitlines():
        for word in ("does not fit", "fits"):
            if f"  {word}" in line:
                found[line.partition(f" {word}")[0].strip()] = word == "fits"
                break
    return found


def test_what_fits_on_gpus_is_said_with_what_an_h100_took(capsys, report, two_gpus):
    fits.look(report, None, None, 2)
    said = capsys.readouterr().out
    fit = rows(said)
    assert not fit["zero2 sft"] and fit["single sft"] and fit["single_fused sft"]  # fullest, first
    assert fit["zero2_offload sft"] and fit["gpu *"] and fit["low, tiled"]
    assert "on an H100 4.1 s a step" in said and "on an H100 45 s a clip" in said
    assert not report.wrong


def test_other_weights_are_foretold_no_time(capsys, report, two_gpus):
    configs = []
    for path in (TINY / "cognvs_ckpt_inpaint", TINY / "base/vae"):
        configs.append(json.loads((path / "config.json").read_text()))
    fits.look(report, None, configs, 1)
    said = capsys.readouterr().out
    assert "H100" not in said and all(rows(said).values())


def test_a_gpu_that_torch_cannot_use_is_wrong(capsys, report, monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    for driver, count in (("", 0), ("535.1", 1)):
        monkeypatch.setattr(check_setup, "said_by", lambda *command, driver=driver: driver)
        assert check_setup.gpus(report) == 0
        assert len(wrong(capsys.readouterr().out)) == count


# ---- base and weights ----------------------------------------------------------------------------


def truncate(base, weights):
    data = (weights / FILE).read_bytes()
    (weights / FILE).write_bytes(data[:-4])


def lose_a_shard(base, weights):
    tensors = load_file(weights / FILE)
    (weights / FILE).unlink()
    names = {name: "a.safetensors" if "proj" in name else "b.safetensors" for name in tensors}
    save_file({k: v for k, v in tensors.items() if "proj" in k}, weights / "a.safetensors")
    (weights / f"{FILE}.index.json").write_text(json.dumps({"weight_map": names}))
    (weights / "diffusion_pytorch_model-0.safetensors").touch()  # it is a weights folder still


def edit(change, folder, file=FILE):
    tensors = load_file(folder / file)
    change(tensors)
    save_file(tensors, folder / file)


def lose_a_tensor(base, weights):
    edit(lambda tensors: tensors.pop("proj_out.bias"), weights)


def reshape_a_tensor(base, weights):
    edit(lambda tensors: tensors.update({"proj_out.bias": torch.zeros(7)}), weights)


def break_the_text_encoder(base, weights):
    edit(lambda tensors: tensors.pop("shared.weight"), base / "text_encoder", "model.safetensors")


def break_the_vae(base, weights):
    (base / "vae" / FILE).unlink()


def lose_the_tokenizer(base, weights):
    shutil.rmtree(base / "tokenizer")


def lose_the_text_encoder(base, weights):
    shutil.rmtree(base / "text_encoder")


def set_value(path, **values):
    config = json.loads(path.read_text())
    path.write_text(json.dumps(config | values))


def take_anothers_scheduler(base, weights):
    set_value(base / "scheduler/scheduler_config.json", prediction_type="epsilon")


def take_an_impossible_config(base, weights):
    set_value(weights / "config.json", num_layers="many")


def take_anothers_text_encoder(base, weights):
    set_value(base / "text_encoder/config.json", d_model=64)


BROKEN = {
    truncate: ["could not be read"],
    lose_a_shard: ["b.safetensors: no such file"],
    lose_a_tensor: ["1 of 136 tensors of its config.json are missing (such as proj_out.bias)"],
    reshape_a_tensor: ["proj_out.bias has the shape (7,); expected (192,)"],
    break_the_text_encoder: ["of 21 tensors of its config.json are missing (such as shared.weight"],
    break_the_vae: ["no such file"],
    lose_the_tokenizer: ["got neither spiece.model nor tokenizer.json"],
    lose_the_text_encoder: ['no embedding of "" is cached'],
    take_anothers_scheduler: ["got one for epsilon; expected CogVideoX's"],
    take_an_impossible_config: ["no model can be made of its config.json", "expected a whole num"],
    take_anothers_text_encoder: ["text_embed_dim 32; expected 64", "shared.weight has the shape"],
}


@pytest.fixture
def base_and_weights(tmp_path, monkeypatch):
    """Copies of the small model's."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    ignore = shutil.ignore_patterns("empty_prompt*")
    base = shutil.copytree(TINY / "base", tmp_path / "base", ignore=ignore)
    return Path(base), Path(shutil.copytree(TINY / "cognvs_ckpt_inpaint", tmp_path / "weights"))


@pytest.mark.parametrize("harm", BROKEN, ids=lambda harm: harm.__name__)
def test_what_is_broken_of_base_and_weights_is_said(capsys, report, base_and_weights, harm):
    base, weights = base_and_weights
    harm(base, weights)
    models.look(report, SimpleNamespace(model_path=base, cognvs_ckpt_path=weights))
    lines = wrong(capsys.readouterr().out)
    assert len(lines) == len(BROKEN[harm]) == report.wrong
    for line, expected in zip(lines, BROKEN[harm], strict=True):
        assert expected in line


# ---- a sequence folder ---------------------------------------------------------------------------


def look(report, room, configs=None, **values):
    names = ("depth_file", "intrinsics_file", "extrinsics_file", "trajs")
    args = dict.fromkeys(names) | {"data_path": room, "trajs": "orbit_left:5"} | values
    folder.look(report, SimpleNamespace(**args), configs)


def change(room, name, function):
    array = np.load(room / name)
    np.save(room / name, function(array))


def shorten_the_video(room):
    data = (room / "gt_rgb.mp4").read_bytes()
    (room / "gt_rgb.mp4").write_bytes(data[: len(data) // 2])


def enlarge_k(room):
    change(room, sequence.INTRINSICS, lambda k: k * [[9], [9], [1]])


def leave_another_render(room):
    info = video.probe(room / "gt_rgb.mp4")
    frames = video.read_video(room / "gt_rgb.mp4")
    video.write_video(room / "train_render1.mp4", frames, info, tags={"source": "another"})


def leave_a_shorter_render(room):
    info = video.probe(room / "gt_rgb.mp4")
    frames = video.read_video(room / "gt_rgb.mp4", 9)
    video.write_video(room / "eval_render1.mp4", frames, info)


def leave_a_shorter_mask(room):
    leave_a_shorter_render(room)
    (room / "eval_render1.mp4").rename(room / "eval_mask1.mp4")
    shutil.copy(room / "gt_rgb.mp4", room / "eval_render1.mp4")


def leave_a_frozen_pair(room):
    shutil.copy(room / "gt_rgb.mp4", room / "train_render1.mp4")
    np.savez(room / "train_cameras1.npz", c2w=np.eye(4), frames=np.full(17, 3))


def leave_broken_cameras(room):
    leave_a_frozen_pair(room)
    np.savez(room / "train_cameras1.npz", c2w=np.ones((4, 4)))


def leave_an_output_without_its_render(room):
    info = video.probe(room / "gt_rgb.mp4")
    frames = video.read_video(room / "gt_rgb.mp4")
    video.write_video(room / "outputs/eval_render1_out.mp4", frames, info, tags={"render": "x"})


UNSOUND = {
    "no video": (lambda room: (room / "gt_rgb.mp4").unlink(), "gt_rgb.mp4: no such file"),
    "a video cut off": (shorten_the_video, "cut off"),
    "depth too short": (lambda room: change(room, sequence.DEPTH, lambda x: x[:-1]),
                        "got 16 depth maps for the 17 frames"),
    "depth of nothing": (lambda room: change(room, sequence.DEPTH, lambda x: 0 * x),
                         "got no positive finite number"),
    "K mirrored": (lambda room: change(room, sequence.INTRINSICS, lambda k: -k), "K 0 is -100"),
    "K of a larger picture": (enlarge_k, "scale K to that"),
    "w2c": (lambda room: change(room, sequence.C2WS, np.linalg.inv),
            "are world to camera; expected camera to world"),
    "poses scaled": (lambda room: change(room, sequence.C2WS, lambda x: 2 * x), "pose 0 has"),
    "an unreadable array": (lambda room: (room / sequence.C2WS).write_bytes(b"no array"),
                            "not a readable .npy"),
    "a render of another video": (leave_another_render, "was made of another gt_rgb.mp4"),
    "a shorter render": (leave_a_shorter_render, "got 9 frames of 96 x 64; gt_rgb.mp4 has 17"),
    "a shorter mask": (leave_a_shorter_mask, "eval_mask1.mp4: got 9 x 64 x 96"),
    "broken cameras": (leave_broken_cameras, "train_cameras1.npz: c2w: pose 0 has"),
    "a pair of two moments": (leave_a_frozen_pair, "its path freezes time"),
    "an output alone": (leave_an_output_without_its_render, "eval_render1.mp4 is not there"),
}


@pytest.mark.parametrize("name", UNSOUND)
def test_what_is_unsound_of_a_sequence_is_one_line(capsys, report, room, name):
    harm, expected = UNSOUND[name]
    harm(room)
    look(report, room)
    lines = wrong(capsys.readouterr().out)
    assert len(lines) == 1 and expected in lines[0]


def test_what_was_made_of_a_sequence_belongs_to_it(capsys, report, room):
    for mode in ("train", "eval"):
        assert call("data_gen", "--data_path", room, "--mode", mode, "--device", "cpu",
                    "--trajs", "orbit_left:5,orbit_left:90", "--num_train_render", 2) == 0
    made_of = {"render": cli.file_hash(room / "eval_render1.mp4")}
    frames = video.read_video(room / "gt_rgb.mp4")
    info = video.probe(room / "gt_rgb.mp4")
    video.write_video(room / "outputs/eval_render1_out.mp4", frames, info, tags=made_of)
    look(report, room, trajs="orbit_left:90,bullet_time")
    said = capsys.readouterr().out
    assert not report.wrong
    (room / "outputs/score").mkdir()
    shutil.copy(room / "outputs/eval_render1_out.mp4",
                room / "outputs/score/val_mirrored_render1_out.mp4")
    for expected in ("train renders      2, of this video", "eval renders       2, of this video",
                     "val renders        2, of this video",
                     "outputs            1, of these renders", "note  orbit_left:90"):
        assert expected in said
    assert "do not say of which" not in said
    change(room, sequence.DEPTH, lambda x: x.astype(np.float64))
    look(report, room)
    assert len(wrong(capsys.readouterr().out)) == 6  # all renders are of the other depth
    (room / sequence.DEPTH).unlink()
    look(report, room)
    said = capsys.readouterr().out
    assert len(wrong(said)) == 1 and "train renders      2, of this video" in said


def test_wrong_paths_leave_the_rest(capsys, report, room):
    look(report, room, trajs="orbit_lift")
    said = capsys.readouterr().out
    assert report.wrong == 1 and "--trajs 'orbit_lift': no such file" in said
    assert "eval renders" in said and "turns by up to" in said
