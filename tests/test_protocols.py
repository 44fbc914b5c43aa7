"""Protocols of toolbox/eval_metrics.py, on small folders of the published layouts."""

import json

import numpy as np
import pytest
from conftest import call
from PIL import Image
from skimage.metrics import structural_similarity

from toolbox import eval_metrics
from toolbox.evaluation import protocols
from utils import video

PUBLISHED = dict(protocols.PROTOCOLS)
HEIGHT, WIDTH = 36, 48
DYCHECK = ("apple", "block", "paper-windmill", "spin", "teddy")


def noise(seed, frames=3, size=(HEIGHT, WIDTH)):
    return np.random.default_rng(seed).integers(0, 256, (frames, *size, 3), np.uint8)


def write_video(path, frames):
    video.write_video(path, frames, video.VideoInfo(len(frames), *frames.shape[1:3], 10), crf=0)


def write_frames(folder, frames, name="{:05d}.png"):
    folder.mkdir(parents=True, exist_ok=True)
    for number, frame in enumerate(frames):
        Image.fromarray(frame).save(folder / name.format(number))


@pytest.fixture(autouse=True)
def small(monkeypatch):
    """The protocols at sizes that are quickly computed, with a plot that is none."""
    for name, protocol in protocols.PROTOCOLS.items():
        sizes = [(HEIGHT, WIDTH), (2 * HEIGHT, 2 * WIDTH)][:len(protocol.sizes)]
        monkeypatch.setitem(protocols.PROTOCOLS, name, protocol._replace(sizes=tuple(sizes)))
    monkeypatch.setattr(eval_metrics, "draw", lambda path, scored: None)


@pytest.fixture
def run(tmp_path, capsys):
    """run(protocol, *args): (what the json holds, what was printed); refused(...): the error."""

    def call_it(protocol, *args):
        paths = "--pred", tmp_path / "pred", "--target", tmp_path / "target"
        code = call("toolbox.eval_metrics", *paths, "--protocol", protocol,
                    "--output_dir", tmp_path / "out", *args)
        return code, capsys.readouterr()

    def good(*args):
        code, said = call_it(*args)
        assert code == 0, said.err
        return json.loads((tmp_path / "out/metrics.json").read_text()), said.out

    def refused(says, *args):
        code, said = call_it(*args)
        assert code == 2 and says in said.err and said.err.count("\n") == 1, said.err

    good.refused = refused
    return good


def test_published_sizes_and_scenes():
    assert PUBLISHED["kubric4d"] == PUBLISHED["pardom4d"] == (((384, 576),), (), False)
    assert PUBLISHED["dycheck"] == (((480, 360), (960, 720)), DYCHECK, True)


@pytest.mark.parametrize("protocol", ["kubric4d", "pardom4d"])
def test_scenes_are_those_of_both_folders(run, tmp_path, protocol):
    write_video(tmp_path / "target/scene1.mp4", noise(1))
    write_frames(tmp_path / "target/scene10", noise(10))
    write_video(tmp_path / "target/scene2.mp4", noise(2))
    write_frames(tmp_path / "pred/scene1", noise(1), "frame{}.png")
    write_video(tmp_path / "pred/scene10_out.mp4", noise(10))
    write_video(tmp_path / "pred/scene3.mp4", noise(3))
    found, out = run(protocol)
    assert list(found["videos"]) == ["scene1", "scene10"]
    assert "scenes in both folders (2): scene1, scene10" in out
    assert f"not in {tmp_path / 'pred'}: scene2" in out
    assert f"not in {tmp_path / 'target'}: {tmp_path / 'pred/scene3.mp4'}" in out
    assert all(each["ssim"] > 0.99 for each in found["videos"].values())
    assert found["settings"]["protocol"] == protocol


def test_ssim_is_scikit_images_by_default(run, tmp_path):
    a, b = noise(0), noise(1)
    write_frames(tmp_path / "pred/x", a)
    write_frames(tmp_path / "target/x", b)
    expected = [structural_similarity(*pair, channel_axis=-1) for pair in zip(a, b, strict=True)]
    assert run("kubric4d")[0]["all"]["ssim"] == pytest.approx(np.mean(expected), abs=1e-9)


def test_other_sizes_are_refused_or_scaled(run, tmp_path):
    larger = np.repeat(np.repeat(noise(0), 2, 1), 2, 2)
    write_frames(tmp_path / "pred/x", larger)
    write_frames(tmp_path / "target/x", larger)
    run.refused("is 72 x 96 (height x width); expected 36 x 48", "kubric4d")
    assert run("kubric4d", "--resize")[0]["all"]["ssim"] == 1
    for scene in DYCHECK:
        write_frames(tmp_path / f"pred/{scene}", noise(0))
        write_frames(tmp_path / f"target/{scene}", larger)
    run.refused("is 36 x 48 (height x width); expected 72 x 96", "dycheck")
    assert run("dycheck", "--resize")[0]["all"]["frames"] == 3 * len(DYCHECK)


# ---- DyCheck -------------------------------------------------------------------------------------


@pytest.fixture
def dycheck(tmp_path):
    """Predictions of apple that are the target's frames 4, 2 and 0."""
    frames = noise(0, 6)
    write_frames(tmp_path / "target/apple", frames, "1_{:05d}.png")
    write_frames(tmp_path / "pred/apple", frames[[4, 2, 0]])
    masks = np.full((6, HEIGHT, WIDTH), 255, np.uint8)
    masks[1::2] = 0
    write_frames(tmp_path / "mask/apple", masks, "1_{:05d}.png")
    return frames


NAMES = ["1_00004", "1_00002.png", "1_00000"]


@pytest.mark.parametrize("content", [
    {"source": [0, 7, 9], "target": [4, 2, 0]},
    {"source": ["0_00000", "0_00007", "0_00009"], "target": NAMES},
    {"apple": {"source": [0, 7, 9], "target": NAMES}, "spin": {}},
    [[0, 4], [7, 2], [9, 0]],
    [{"source": 0, "target": 4}, {"source": 7, "target": 2}, {"source": 9, "target": "1_00000"}],
], ids=["numbers", "names", "scenes", "pairs", "objects"])
def test_correspondences_pair_frames(dycheck, run, tmp_path, content):
    path = tmp_path / "target/apple/correspondence.json"
    path.write_text(json.dumps(content))
    found, out = run("dycheck", "--mask", tmp_path / "mask")
    assert found["all"]["frames"] == 3 and found["all"]["ssim"] == 1
    assert found["all"]["mssim"] == 1 and "no pixel" not in out  # masks are those of the targets
    assert f"apple: frames are paired by {path}" in out
    assert f"not in {tmp_path / 'target'}: block, paper-windmill, spin, teddy" in out
    given = tmp_path / "given"
    given.mkdir()
    path.rename(given / "apple.json")
    run.refused("expected as many frames", "dycheck")
    for place in (given, given / "apple.json"):
        assert run("dycheck", "--correspondences", place)[0]["all"]["ssim"] == 1


@pytest.mark.parametrize("content, says", [
    ({"source": [0], "target": [6]}, "target 6 is not in"),
    ({"source": [0], "target": ["2_00000"]}, "target 2_00000 is not in"),
    ({"source": [0, 1], "target": [0]}, "holds no correspondences of apple; expected"),
    ({"source": [0], "target": [-1]}, "holds no correspondences"),
    ({"source": [0], "target": [True]}, "holds no correspondences"),
    ({"source": [], "target": []}, "holds no correspondences"),
    ([[0, 1, 2]], "holds no correspondences"),
    ("apple", "holds no correspondences"),
    (None, "not a readable JSON file"),
])
def test_other_correspondences_are_refused(dycheck, run, tmp_path, content, says):
    path = tmp_path / "target/apple.json"
    path.write_text("no json" if content is None else json.dumps(content))
    run.refused(f"{path}: {says}", "dycheck")


def test_a_target_video_is_read_in_the_order_of_time(dycheck, run, tmp_path):
    write_frames(tmp_path / "pred/spin", dycheck[[0, 0, 5]])
    write_video(tmp_path / "target/spin.mp4", dycheck)
    pairs = tmp_path / "pairs"
    pairs.mkdir()
    (pairs / "apple.json").write_text(json.dumps([[0, 4], [1, 2], [2, 0]]))
    (pairs / "spin.json").write_text(json.dumps([[0, 0], [1, 0], [2, 5]]))
    found = run("dycheck", "--correspondences", pairs)[0]
    assert found["videos"]["spin"]["psnr"] > 30
    (pairs / "spin.json").write_text(json.dumps([[0, 4], [1, 2], [2, 0]]))
    run.refused("are not in the order of time", "dycheck", "--correspondences", pairs)
    (pairs / "spin.json").unlink()
    run.refused("has neither spin.json nor spin/correspondence.json", "dycheck",
                "--correspondences", pairs)


# ---- what is refused -----------------------------------------------------------------------------


def test_other_layouts_are_refused(run, tmp_path):
    run.refused("pred: is no folder; expected one that has SCENE.mp4", "dycheck")
    write_frames(tmp_path / "pred/apples", noise(0))
    write_frames(tmp_path / "target/apple", noise(0))
    run.refused("no scene is in both", "dycheck")  # apples are no apple
    write_video(tmp_path / "pred/apple_a.mp4", noise(0))
    write_video(tmp_path / "pred/apple-b.mp4", noise(0))
    run.refused("apple may be apple-b or apple_a; expected one of them", "dycheck")
    write_video(tmp_path / "pred/apple.mp4", noise(0))
    assert run("dycheck")[0]["all"]["frames"] == 3
    (tmp_path / "mask").mkdir()
    run.refused("mask: has no apple; expected masks of every scene", "dycheck",
                "--mask", tmp_path / "mask")
    write_frames(tmp_path / "pred/apple", noise(0))
    run.refused("has apple and apple.mp4; expected one of them", "dycheck")
    run.refused("--correspondences: belongs to --protocol dycheck", "kubric4d",
                "--correspondences", tmp_path)
