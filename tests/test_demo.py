import hashlib
import os
import shutil
import signal
import threading
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from conftest import call
from test_video import encode

import demo as program
from utils import cli, video
from utils.cli import InputError


@pytest.fixture
def renders(room):
    """Renders of 20, 17 and 5 frames, one of them larger than the model and at another rate."""
    frames = video.read_video(room / "gt_rgb.mp4")
    long, large = frames[list(range(17)) + [16, 15, 14]], video.resize(frames[:5], 120, 214)
    for name, clip, fps in (
        ("eval_render1", frames, 20),
        ("eval_render2", long, 20),
        ("other", large, "30000/1001"),
    ):
        info = video.VideoInfo(len(clip), *clip.shape[1:3], Fraction(fps), "bt601")
        video.write_video(room / f"{name}.mp4", clip, info)
    return room


def demo(model, room, name, *args):
    return call(
        "demo",
        "--model_path",
        model / "base",
        "--cognvs_ckpt_path",
        model / "cognvs_ckpt_inpaint",
        "--data_path",
        room,
        "--mp4_name",
        name,
        "--num_inference_steps",
        2,
        "--device",
        "cpu",
        "--dtype",
        "fp32",
        *args,
    )


def digest(path):
    return hashlib.md5(path.read_bytes()).hexdigest()


def test_a_pattern_and_what_is_longer_than_the_model_takes(model, renders):
    assert demo(model, renders, "eval_render*.mp4", "--crf", 0) == 0
    outputs = sorted((renders / "outputs").iterdir())
    assert [p.name for p in outputs] == ["eval_render1_out.mp4", "eval_render2_out.mp4"]
    assert [video.probe(p).frames for p in outputs] == [17, 20]
    whole, windows = map(video.read_video, outputs)
    assert whole.std() > 10
    assert (
        np.abs(whole[:3].astype(int) - windows[:3]).mean() < 2
    )  # before the second window begins: what one gives


def test_composite_keeps_known_pixels_and_compare_shows_them_beside_source_and_output(
    model, renders
):
    frames = video.read_video(renders / "gt_rgb.mp4")
    known = np.ones(frames.shape[:3], bool)
    known[:, 20:40, 30:60] = False
    info = video.probe(renders / "gt_rgb.mp4")
    video.write_video(renders / "eval_render1.mp4", frames, info, crf=0)
    with video.VideoWriter(renders / "eval_mask1.mp4", info, mask=True) as writer:
        writer.write(known)
    assert demo(model, renders, "eval_render1.mp4", "--composite", "--compare", "--crf", 0) == 0
    out = video.read_video(renders / "outputs" / "eval_render1_out.mp4").astype(int)
    assert (
        np.abs(out - frames)[:, :10].max() <= 4
        and np.abs(out - frames)[:, 25:35, 35:55].mean() > 20
    )
    beside = video.read_video(renders / "outputs" / "eval_render1_compare.mp4").astype(int)
    source, render, shown = np.split(beside, 3, 2)
    assert (
        max(np.abs(source - frames).max(), np.abs(render - frames).max(), np.abs(shown - out).max())
        <= 5
    )


def test_without_a_mask_file_dark_pixels_are_holes(model, renders):
    frames = np.full((5, 64, 96, 3), 90, np.uint8)
    frames[:, :, 40:] = 7
    video.write_video(
        renders / "other.mp4", frames, video.VideoInfo(5, 64, 96, Fraction(20)), crf=0
    )
    assert demo(model, renders, "other.mp4", "--composite", "--crf", 0) == 0
    out = video.read_video(renders / "outputs" / "other_out.mp4").astype(int)
    assert np.abs(out[:, :, :38] - 90).max() <= 3 and np.abs(out[:, :, 45:] - 7).mean() > 10


@pytest.mark.parametrize(
    "fit, size", [("stretch", (120, 214)), ("pad", (120, 214)), ("crop", (120, 180))]
)
def test_every_fit_gives_the_size_it_promises(model, renders, capsys, fit, size):
    assert demo(model, renders, "other.mp4", "--fit", fit, "--compare") == 0
    info = video.probe(renders / "outputs" / "other_out.mp4")
    assert (info.height, info.width, info.frames) == (*size, 5)
    assert "gt_rgb.mp4 has 17 frames" in capsys.readouterr().out  # so it is not shown beside it
    info = video.probe(renders / "outputs" / "other_compare.mp4")
    assert (info.height, info.width, info.frames) == (size[0], 2 * size[1], 5)


def test_processes_share_the_videos(model, renders, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "3")
    monkeypatch.setenv("LOCAL_RANK", "0")
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")  # as torchrun sets it
    for rank, made in enumerate((["eval_render1_out.mp4"], ["eval_render2_out.mp4"], [])):
        monkeypatch.setenv("RANK", str(rank))
        assert demo(model, renders, "eval_render*.mp4", "--output_dir", renders / str(rank)) == 0
        assert [p.name for p in (renders / str(rank)).glob("*")] == made


@pytest.mark.parametrize("left", [
    {"RANK": "1", "WORLD_SIZE": "2"}, {"WORLD_SIZE": "2"}, {"RANK": "1"},
    {"RANK": "3", "WORLD_SIZE": "4", "LOCAL_RANK": "3", "MASTER_ADDR": "node7"},
    {"RANK": "", "WORLD_SIZE": "many"},
])
def test_ranks_that_a_cluster_left_do_not_count(model, renders, monkeypatch, capsys, left):
    for name, value in left.items():
        monkeypatch.setenv(name, value)
    assert demo(model, renders, "eval_render*.mp4") == 0
    assert len(list((renders / "outputs").glob("*"))) == 2
    assert "in the environment are of no torchrun or accelerate" in capsys.readouterr().out


def test_one_process_has_nobody_to_share_a_clip_with(model, renders, capsys):
    assert demo(model, renders, "eval_render1.mp4", "--share_clip") == 2
    assert "got one process" in capsys.readouterr().err


def test_fast_makes_each_video_as_if_it_were_alone(model, renders, capsys):
    fast = "--fast", "--num_inference_steps", 12, "--crf", 0
    assert demo(model, renders, "eval_render*.mp4", *fast) == 0
    said = capsys.readouterr().out
    assert said.count("frames in") == 2
    outputs = renders / "outputs"
    together = video.read_video(outputs / "eval_render2_out.mp4")
    assert demo(model, renders, "eval_render2.mp4", *fast, "--overwrite") == 0
    assert np.array_equal(together, video.read_video(outputs / "eval_render2_out.mp4"))


def test_a_model_that_changes_nothing_gives_a_long_video_back(model, renders, monkeypatch):
    drawn = []

    def echo(pipe, clip, embedding, steps, generator, fast):
        drawn.append(torch.randn(4, generator=generator))
        return clip

    monkeypatch.setattr("utils.pipeline.CogNVSPipeline.inpaint", echo)
    assert demo(model, renders, "eval_render2.mp4", "--crf", 0, "--fit", "pad", "--composite") == 0
    out = video.read_video(renders / "outputs" / "eval_render2_out.mp4").astype(int)
    assert np.abs(out - video.read_video(renders / "eval_render2.mp4")).max() <= 4
    first = torch.randn(4, generator=torch.Generator().manual_seed(42))
    assert torch.equal(drawn[0], first) and not torch.equal(drawn[1], first)


def test_the_second_window_goes_on_from_the_first(model, renders, monkeypatch):
    """A model that paints holes, another grey in each window: the second sees the first's."""
    frames = np.full((20, 64, 96, 3), 200, np.uint8)
    frames[:, :, 40:] = 0
    video.write_video(
        renders / "other.mp4", frames, video.VideoInfo(20, 64, 96, Fraction(20)), crf=0
    )
    clips = []

    def paint(pipe, clip, embedding, steps, generator, fast):
        clips.append(clip)
        return torch.where(clip < 0.1, 0.3 * len(clips), clip)

    monkeypatch.setattr("utils.pipeline.CogNVSPipeline.inpaint", paint)
    assert demo(model, renders, "other.mp4", "--crf", 0, "--overlap", 10) == 0
    assert (clips[1][:14, :, :, 50:] == 0.3).all() and (
        clips[1][14:, :, :, 50:] < 0.1
    ).all()  # 14 are in both
    grey = video.read_video(renders / "outputs" / "other_out.mp4")[:, 30, 70, 0] / 255
    assert np.abs(grey[:17] - 0.3).max() < 0.02 and np.abs(grey[17:] - 0.6).max() < 0.02


def test_a_failure_leaves_the_videos_that_are_whole_and_no_others(
    model, renders, monkeypatch, capsys
):
    windows = []

    def fail(pipe, clip, embedding, steps, generator, fast):  # in the second video's second window
        windows.append(clip)
        if len(windows) == 3:
            raise InputError("no luck")
        return clip

    monkeypatch.setattr("utils.pipeline.CogNVSPipeline.inpaint", fail)
    assert demo(model, renders, "eval_render*.mp4") == 2 and "no luck" in capsys.readouterr().err
    assert [path.name for path in (renders / "outputs").iterdir()] == ["eval_render1_out.mp4"]


def test_a_video_that_cannot_be_written_is_told_before_the_rest_is_made(
    model, renders, monkeypatch, capsys
):
    made = []

    def full(writer, frames):
        raise OSError("the disk is full")

    monkeypatch.setattr(
        "utils.pipeline.CogNVSPipeline.inpaint", lambda pipe, clip, *args: made.append(1) or clip
    )
    monkeypatch.setattr("utils.video.VideoWriter.write", full)
    assert (
        demo(model, renders, "eval_render*.mp4") == 2
        and "the disk is full" in capsys.readouterr().err
    )
    assert len(made) == 1 and not (renders / "outputs").exists()  # of three windows


def test_one_window_is_written_while_the_next_is_denoised(model, renders, monkeypatch):
    denoising, write = [], video.VideoWriter.write
    second = threading.Event()

    def echo(pipe, clip, *args):
        denoising.append(clip)
        if len(denoising) == 2:
            second.set()
        return clip

    def wait(writer, frames):
        assert second.wait(60)  # the first window is not written before the second is begun
        write(writer, frames)

    monkeypatch.setattr("utils.pipeline.CogNVSPipeline.inpaint", echo)
    monkeypatch.setattr("utils.video.VideoWriter.write", wait)
    assert demo(model, renders, "eval_render2.mp4") == 0
    assert [video.probe(p).frames for p in (renders / "outputs").iterdir()] == [20]


def test_a_frame_alone_is_a_video(model, renders):
    frame = np.full((1, 64, 96, 3), 90, np.uint8)
    video.write_video(renders / "other.mp4", frame, video.VideoInfo(1, 64, 96, Fraction(20)))
    assert demo(model, renders, "other.mp4") == 0
    assert video.probe(renders / "outputs" / "other_out.mp4").frames == 1


def test_a_mask_of_another_video_is_refused(model, renders, capsys):
    with video.VideoWriter(
        renders / "eval_mask1.mp4", video.VideoInfo(17, 32, 48, Fraction(20)), mask=True
    ) as writer:
        writer.write(np.ones((17, 32, 48), bool))
    assert demo(model, renders, "eval_render1.mp4", "--composite") == 2
    assert (
        "eval_mask1.mp4: got 17 x 32 x 48, eval_render1.mp4 has 17 x 64 x 96"
        in capsys.readouterr().err
    )


def test_size_length_and_rate_are_the_renders(model, renders):
    assert demo(model, renders, "other.mp4") == 0
    assert video.probe(renders / "outputs" / "other_out.mp4") == video.probe(renders / "other.mp4")
    assert (
        demo(model, renders, "other.mp4", "--fps", 12, "--crf", 0, "--output_dir", renders / "here")
        == 0
    )
    assert video.probe(renders / "here" / "other_out.mp4").fps == 12


def test_one_seed_is_one_picture_and_an_output_stays_while_nothing_changed(model, renders, capsys):
    out = renders / "outputs" / "eval_render1_out.mp4"
    assert demo(model, renders, "eval_render1.mp4") == 0
    first = digest(out)
    assert demo(model, renders, "eval_render1.mp4", "--guidance_scale", 1) == 0
    assert "exists and is kept" in capsys.readouterr().out
    assert demo(model, renders, "eval_render1.mp4", "--overwrite") == 0
    assert digest(out) == first
    assert demo(model, renders, "eval_render1.mp4", "--seed", 43) == 0
    assert "another settings; it is made anew" in capsys.readouterr().out and digest(out) != first
    assert demo(model, renders, "eval_render1.mp4") == 0
    assert digest(out) == first


@pytest.mark.parametrize("changed", ["render", "mask", "weights", "base"])
def test_an_output_of_other_inputs_is_made_anew(model, renders, tmp_path, capsys, changed):
    mask = renders / "eval_mask1.mp4"
    video.write_video(
        mask, np.full((17, 64, 96, 3), 255, np.uint8), video.probe(renders / "gt_rgb.mp4")
    )
    model = shutil.copytree(model, tmp_path / "model", symlinks=True)
    assert demo(model, renders, "eval_render1.mp4") == 0
    before = video.made_of(renders / "outputs" / "eval_render1_out.mp4")
    if changed in ("render", "mask"):
        path = renders / f"eval_{changed}1.mp4"
        video.write_video(path, 255 - video.read_video(path), video.probe(path))
    else:
        folder = {"weights": "cognvs_ckpt_inpaint", "base": "base/vae"}[changed]
        path = model / folder / "diffusion_pytorch_model.safetensors"
        state = safetensors.torch.load_file(path)
        safetensors.torch.save_file({k: v * 1.01 for k, v in state.items()}, path)
    capsys.readouterr()
    assert demo(model, renders, "eval_render1.mp4") == 0
    assert f"was made of another {changed}; it is made anew" in capsys.readouterr().out
    after = video.made_of(renders / "outputs" / "eval_render1_out.mp4")
    assert {name for name in before if before[name] != after[name]} == {changed}


def test_a_file_that_does_not_say_what_it_was_made_of_is_not_replaced(model, renders, capsys):
    out = renders / "outputs" / "eval_render1_out.mp4"
    video.write_video(
        out, video.read_video(renders / "gt_rgb.mp4"), video.probe(renders / "gt_rgb.mp4")
    )
    before = digest(out)
    assert demo(model, renders, "eval_render*.mp4") == 2
    assert "does not say what it was made of" in capsys.readouterr().err
    assert digest(out) == before and len(list(out.parent.iterdir())) == 1


def test_outputs_beside_their_renders_are_no_renders(model, renders, capsys):
    for _ in range(2):
        flags = ("--compare", "--output_dir", renders)
        assert demo(model, renders, "eval_render*.mp4", *flags) == 0
    assert capsys.readouterr().out.count("exists and is kept") == 2
    assert not list(renders.glob("*_out_out.mp4")) and not list(renders.glob("*compare_out.mp4"))


def test_a_comparison_of_the_users_own_is_not_replaced_for_want_of_an_output(model, renders):
    own = renders / "outputs" / "eval_render1_compare.mp4"
    rgb = renders / "gt_rgb.mp4"
    video.write_video(own, video.read_video(rgb), video.probe(rgb))
    before = digest(own)
    assert demo(model, renders, "eval_render1.mp4", "--compare") == 2 and digest(own) == before


def test_two_renders_of_one_name_are_refused(model, renders, capsys):
    for name in ("a", "b"):
        (renders / name).mkdir()
        shutil.copy(renders / "other.mp4", renders / name)
    assert demo(model, renders, "*/other.mp4", "--overwrite") == 2
    assert "would both become other_out.mp4" in capsys.readouterr().err
    assert demo(model, renders, "a/other.mp4") == 0


def test_a_portrait_that_is_stretched_is_told_of_fit_pad(model, renders, capsys):
    video.write_video(
        renders / "tall.mp4",
        np.full((2, 96, 64, 3), 90, np.uint8),
        video.VideoInfo(2, 96, 64, Fraction(20)),
    )
    assert demo(model, renders, "tall.mp4") == 0
    assert "stretched by 2.2 to the model's 96 x 64; --fit pad" in capsys.readouterr().out
    assert demo(model, renders, "tall.mp4", "--fit", "pad", "--output_dir", renders / "pad") == 0
    assert demo(model, renders, "other.mp4") == 0  # 16:9
    assert "stretched" not in capsys.readouterr().out


@pytest.mark.parametrize(
    "args, message",
    [
        (["--mp4_name", "no.mp4"], "no such render"),
        (["--data_path", "nowhere"], "--data_path nowhere: no such folder"),
        (["--model_path", "nowhere"], "nowhere: got no vae/config.json"),
        (["--cognvs_ckpt_path", "nowhere"], "nowhere: got no weights"),
        (["--num_inference_steps", "0"], "expected 1 to 1000"),
        (["--fps", "-1"], "--fps -1.0"),
        (["--compile"], "--compile on cpu"),
        (["--memory", "low"], "--memory low is for GPUs"),
        (["--overlap", "17"], "--overlap 17: expected at least 1 frame, and fewer"),
        (["--seed", 2**32], "--seed 4294967296: expected 0 to 2^32 - 1"),
    (["--output_dir", __file__], "is no folder that can be written to"),
        (["--device", "cuda:99"], "--device cpu"),
    ],
)
def test_bad_input_is_one_line_and_exit_2(model, renders, capsys, monkeypatch, args, message):
    monkeypatch.setattr("utils.pipeline.load_model", None)  # all is told before anything is loaded
    assert demo(model, renders, "eval_render1.mp4", *args) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1
    assert not (renders / "outputs").exists()


def test_what_is_not_finite_is_no_output(model, renders, tmp_path, capsys):
    broken = Path(shutil.copytree(model / "cognvs_ckpt_inpaint", tmp_path / "broken"))
    file = broken / "diffusion_pytorch_model.safetensors"
    tensors = safetensors.torch.load_file(file)
    tensors["norm_out.norm.weight"][0] = np.nan
    safetensors.torch.save_file(tensors, file, {"format": "pt"})
    assert demo(model, renders, "eval_render1.mp4", "--cognvs_ckpt_path", broken) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("error: ") and "not finite in its first step" in error
    assert not (renders / "outputs").exists()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_run_leaves_whole_outputs_and_goes_on(
        model, renders, monkeypatch, capsys, number):
    run = program.inpaint_window

    def interrupted(args, pipe, embedding, window, tail):
        if window.job.render.stem == "eval_render2":
            os.kill(os.getpid(), number)
        return run(args, pipe, embedding, window, tail)

    with monkeypatch.context() as patched:
        patched.setattr(program, "inpaint_window", interrupted)
        assert demo(model, renders, "eval_render*.mp4") == 128 + number
    error = capsys.readouterr().err
    assert error.splitlines()[-1].startswith("interrupted; ") and "Traceback" not in error
    assert [path.name for path in (renders / "outputs").iterdir()] == ["eval_render1_out.mp4"]
    left = renders / "outputs" / "eval_render2_out.mp4.part"
    left.write_bytes(b"of a run that was killed")
    (renders / "outputs" / ".eval_render1_out.lock").touch()
    assert demo(model, renders, "eval_render*.mp4") == 0
    assert "eval_render1_out.mp4 exists and is kept" in capsys.readouterr().out
    names = sorted(path.name for path in (renders / "outputs").iterdir())
    assert names == ["eval_render1_out.mp4", "eval_render2_out.mp4"]


def test_two_runs_do_not_write_one_output(model, renders, capsys):
    with cli.lock(renders / "outputs" / ".eval_render1_out.lock"):
        assert demo(model, renders, "eval_render*.mp4") == 2
        assert "is being written to by process" in capsys.readouterr().err
        assert demo(model, renders, "eval_render2.mp4") == 0
    assert demo(model, renders, "eval_render1.mp4") == 0


def test_an_output_has_the_sound_of_its_render_or_of_the_source_it_shows(model, renders):
    source = video.read_video(renders / "gt_rgb.mp4")
    fps = video.probe(renders / "eval_render1.mp4").fps
    encode(renders / "gt_rgb.mp4", source, rate=int(fps), sound=2)
    encode(renders / "eval_render3.mp4", source[:9], rate=7, sound=2)
    assert demo(model, renders, "eval_render*.mp4") == 0
    outputs = [renders / "outputs" / f"eval_render{i}_out.mp4" for i in (1, 2, 3)]
    assert list(map(video.has_audio, outputs)) == [True, False, True]  # 2 is longer
    assert demo(model, renders, "eval_render3.mp4", "--fps", 5) == 0
    assert not video.has_audio(outputs[2]) and video.probe(outputs[2]).fps == 5


def test_an_output_keeps_the_times_of_its_render(model, renders):
    frames = video.read_video(renders / "gt_rgb.mp4")
    times = tuple(Fraction(t * t, 300) for t in range(18))
    given = replace(video.probe(renders / "gt_rgb.mp4"), times=times)
    video.write_video(renders / "eval_render5.mp4", frames, given)
    assert demo(model, renders, "eval_render5.mp4", "--compare") == 0
    for name in ("out", "compare"):
        assert video.probe(renders / "outputs" / f"eval_render5_{name}.mp4").times == times
    assert demo(model, renders, "eval_render5.mp4", "--fps", 8) == 0
    made = video.probe(renders / "outputs" / "eval_render5_out.mp4")
    assert (made.times, made.fps, made.frames) == (None, 8, 17)
