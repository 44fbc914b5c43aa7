import hashlib
from fractions import Fraction

import pytest
from conftest import call

from utils import video


@pytest.fixture
def renders(room):
    """Renders of 20, 17 and 5 frames, one of them larger than the model and at another rate."""
    frames = video.read_video(room / "gt_rgb.mp4")
    long, large = frames[list(range(17)) + [16, 15, 14]], video.resize(frames[:5], 120, 214)
    for name, clip, fps in (("eval_render1", frames, 20), ("eval_render2", long, 20), ("other", large, "30000/1001")):
        info = video.VideoInfo(len(clip), *clip.shape[1:3], Fraction(fps), "bt601")
        video.write_video(room / f"{name}.mp4", clip, info)
    return room


def demo(model, room, name, *args):
    return call("demo", "--model_path", model / "base", "--cognvs_ckpt_path", model / "cognvs_ckpt_inpaint",
                "--data_path", room, "--mp4_name", name, "--num_inference_steps", 2, "--device", "cpu", "--dtype",
                "fp32", *args)  # fmt: skip


def digest(path):
    return hashlib.md5(path.read_bytes()).hexdigest()


def test_a_pattern_and_what_is_too_long(model, renders, capsys):
    assert demo(model, renders, "eval_render*.mp4") == 0
    assert "eval_render2.mp4 has 20 frames; the first 17 are used" in capsys.readouterr().out
    outputs = sorted((renders / "outputs").iterdir())
    assert [p.name for p in outputs] == ["eval_render1_out.mp4", "eval_render2_out.mp4"]
    assert [video.probe(p).frames for p in outputs] == [17, 17]
    assert video.read_video(outputs[0]).std() > 10


def test_size_length_and_rate_are_the_renders(model, renders):
    assert demo(model, renders, "other.mp4") == 0
    assert video.probe(renders / "outputs" / "other_out.mp4") == video.probe(renders / "other.mp4")
    assert demo(model, renders, "other.mp4", "--fps", 12, "--crf", 0, "--output_dir", renders / "here") == 0
    assert video.probe(renders / "here" / "other_out.mp4").fps == 12


def test_one_seed_is_one_picture_and_nothing_is_replaced_unasked(model, renders, capsys):
    out = renders / "outputs" / "eval_render1_out.mp4"
    assert demo(model, renders, "eval_render1.mp4") == 0
    first = digest(out)
    assert demo(model, renders, "eval_render1.mp4", "--seed", 43) == 0
    assert "is kept; --overwrite replaces it" in capsys.readouterr().out and digest(out) == first
    assert demo(model, renders, "eval_render1.mp4", "--overwrite", "--guidance_scale", 1) == 0
    assert digest(out) == first
    assert demo(model, renders, "eval_render1.mp4", "--overwrite", "--seed", 43) == 0
    assert digest(out) != first


@pytest.mark.parametrize("args, message", [
    (["--mp4_name", "no.mp4"], "no such render"),
    (["--model_path", "nowhere"], "nowhere: got no vae/config.json"),
    (["--cognvs_ckpt_path", "nowhere"], "nowhere: got no weights"),
    (["--num_inference_steps", "0"], "expected 1 to 1000"),
    (["--fps", "-1"], "--fps -1.0"),
    (["--device", "cuda:99"], "--device cpu"),
])  # fmt: skip
def test_bad_input_is_one_line_and_exit_2(model, renders, capsys, args, message):
    assert demo(model, renders, "eval_render1.mp4", *args) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1
    assert not (renders / "outputs").exists()
