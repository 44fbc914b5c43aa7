"""toolbox/eval_metrics.py as its users run it: pairs, measures, files, and what it refuses."""

import csv
import json
import subprocess
import sys
from types import SimpleNamespace

import made_weights
import numpy as np
import pytest
import torch
from conftest import ROOT, call
from PIL import Image
from skimage.metrics import structural_similarity

from toolbox import eval_metrics
from toolbox.evaluation import distances, networks, sources
from utils import metrics, video

FRAMES, HEIGHT, WIDTH = 3, 36, 48
DRAW = eval_metrics.draw
SHAPE = FRAMES, HEIGHT, WIDTH, 3


def noise(seed, shape=SHAPE):
    return np.random.default_rng(seed).integers(0, 256, shape, np.uint8)


def write_frames(folder, frames, name="{:03d}.png"):
    folder.mkdir(parents=True, exist_ok=True)
    for number, frame in enumerate(frames):
        Image.fromarray(frame).save(folder / name.format(number))
    return folder


def write_video(path, frames):
    info = video.VideoInfo(len(frames), *frames.shape[1:3], 10)
    video.write_video(path, frames, info, crf=0)
    return path


@pytest.fixture(autouse=True)
def without_plot(monkeypatch):
    """Plots take a second each; two tests look at them."""
    monkeypatch.setattr(eval_metrics, "draw", lambda path, scored: None)


@pytest.fixture
def clips(tmp_path):
    """Folders of frames pred/, target/ and mask/ below tmp_path, and what is in them."""
    pred, target = noise(0), noise(1)
    mask = np.random.default_rng(2).random(SHAPE[:3]) < 0.6
    write_frames(tmp_path / "pred", pred)
    write_frames(tmp_path / "target", target)
    write_frames(tmp_path / "mask", mask.astype(np.uint8) * 255)
    return pred, target, mask


def evaluate(folder, *args):
    """Run the program on pred and target in a folder: what its json holds."""
    paths = "--pred", folder / "pred", "--target", folder / "target"
    assert call("toolbox.eval_metrics", *paths, "--output_dir", folder / "out", *args) == 0
    return json.loads((folder / "out" / "metrics.json").read_text())


def rows_of(folder):
    with open(folder / "out" / "metrics.csv", newline="") as file:
        return list(csv.DictReader(file))


# ---- values --------------------------------------------------------------------------------------


def test_values_are_those_of_the_frames(clips, tmp_path, capsys):
    pred, target, mask = clips
    found = evaluate(tmp_path, "--mask", tmp_path / "mask")
    out = capsys.readouterr().out
    rows = rows_of(tmp_path)
    how = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False}
    for row, a, b, m in zip(rows, pred / 255, target / 255, mask, strict=True):
        assert float(row["psnr"]) == metrics.psnr(a, b)
        assert float(row["mpsnr"]) == metrics.psnr(a, b, m)
        expected = structural_similarity(a, b, channel_axis=-1, data_range=1, **how)
        assert float(row["ssim"]) == pytest.approx(expected, abs=1e-9)
        assert row["lpips"] == "" and row["video"] == "pred"
    mean = np.mean([float(row["psnr"]) for row in rows])
    assert found["all"]["psnr"] == found["videos"]["pred"]["psnr"] == pytest.approx(mean)
    assert found["all"]["lpips"] is found["all"]["fid"] is found["all"]["kid"] is None
    assert f"| pred | 3 | {mean:.2f} |" in out and "| missing | missing |" in out
    notes = [line for line in out.splitlines() if line.startswith("note: ")]
    assert len(notes) == 1 and "--lpips_weights" in notes[0] and "--inception_weights" in notes[0]
    assert not list(tmp_path.rglob("*.part"))


def test_a_mask_of_ones_changes_nothing(clips, tmp_path):
    write_frames(tmp_path / "mask", np.full(SHAPE[:3], 255, np.uint8))
    plain = evaluate(tmp_path)["all"]
    masked = evaluate(tmp_path, "--mask", tmp_path / "mask")["all"]
    assert masked["mpsnr"] == masked["psnr"] == plain["psnr"]
    assert masked["ssim"] == plain["ssim"] == pytest.approx(masked["mssim"], abs=1e-12)


def test_a_mask_without_a_pixel_is_left_out(clips, tmp_path, capsys):
    mask = clips[2].astype(np.uint8) * 255
    mask[1] = 0
    write_frames(tmp_path / "mask", mask)
    found = evaluate(tmp_path, "--mask", tmp_path / "mask")["all"]
    rows = rows_of(tmp_path)
    assert rows[1]["mpsnr"] == rows[1]["mssim"] == "nan" != rows[1]["psnr"]
    expected = np.mean([float(rows[number]["mpsnr"]) for number in (0, 2)])
    assert found["mpsnr"] == pytest.approx(expected)
    assert "no pixel above half in 1 of 3 frames" in capsys.readouterr().out
    write_frames(tmp_path / "mask", mask * 0)
    found = evaluate(tmp_path, "--mask", tmp_path / "mask")["all"]
    assert found["mpsnr"] is None and found["psnr"]
    assert " - | - |" in capsys.readouterr().out


def test_equal_frames_are_infinitely_good(clips, tmp_path, capsys):
    write_frames(tmp_path / "pred", clips[1])
    found = evaluate(tmp_path)["all"]
    assert found["psnr"] is None and found["ssim"] == 1
    assert rows_of(tmp_path)[0]["psnr"] == "inf"
    assert "| all | 3 | inf | 1.0000 |" in capsys.readouterr().out


def test_a_plot_takes_any_values(tmp_path):
    frames = [{"psnr": value, "lpips": None} for value in (30.0, np.inf, np.nan)]
    DRAW(tmp_path / "metrics.png", {"a": frames, "b": frames[:1]})
    assert Image.open(tmp_path / "metrics.png").size == (900, 240)  # of one measure


def test_networks_give_the_rest(tmp_path, capsys, monkeypatch):
    def load_inception(path, device):
        assert path == tmp_path / "inception.pth" and device.type == "cpu"
        return SimpleNamespace(features=lambda frame: frame.mean((0, 1)))

    monkeypatch.setattr(networks, "load_inception", load_inception)
    torch.save(made_weights.alexnet(), tmp_path / "alexnet.pth")
    weights = ("--lpips_weights", tmp_path / "alexnet.pth",
               "--inception_weights", tmp_path / "inception.pth")
    write_frames(tmp_path / "pred", noise(0)[:2])
    write_frames(tmp_path / "target", noise(1)[:2])
    write_frames(tmp_path / "mask", np.full((2, HEIGHT, WIDTH), 255, np.uint8))
    mask = "--mask", tmp_path / "mask", "--device", "cpu"
    found = evaluate(tmp_path, *weights, *mask)["all"]
    assert found["lpips"] == pytest.approx(found["mlpips"], rel=0.1) and found["lpips"] > 0
    features = [noise(seed)[:2].mean((1, 2)) for seed in (0, 1)]
    assert found["fid"] == pytest.approx(distances.frechet(*features))
    assert found["kid"] == pytest.approx(distances.kernel(*features))
    out = capsys.readouterr().out
    assert "missing" not in out and "FID of 2 frames is biased" in out


# ---- pairs ---------------------------------------------------------------------------------------


def test_folders_of_videos_are_paired_by_name(tmp_path):
    for name, seed in (("b", 0), ("a", 1)):
        write_video(tmp_path / "pred" / f"{name}_out.mp4", noise(seed))
        write_video(tmp_path / "target" / f"{name}.mp4", noise(seed))
    found = evaluate(tmp_path)
    assert list(found["videos"]) == ["a", "b"] and found["all"]["frames"] == 2 * FRAMES
    assert found["all"]["psnr"] is None  # equal, so they are not exchanged
    for name in ("a", "b"):
        write_frames(tmp_path / "mask" / name, np.full(SHAPE[:3], 255, np.uint8))
    assert evaluate(tmp_path, "--mask", tmp_path / "mask")["all"]["mssim"] == pytest.approx(1)


def test_all_is_the_mean_over_videos(tmp_path):
    write_video(tmp_path / "pred/a.mp4", noise(0))
    write_video(tmp_path / "pred/b.mp4", noise(1)[:1])
    write_video(tmp_path / "target/a.mp4", noise(2))
    write_video(tmp_path / "target/b.mp4", noise(2)[:1] // 2)
    found = evaluate(tmp_path)
    values = [each["psnr"] for each in found["videos"].values()]
    assert found["all"]["psnr"] == pytest.approx(np.mean(values)) and values[0] != values[1]


def test_sizes_and_lengths_fit_when_asked(clips, tmp_path, capsys):
    larger = np.repeat(np.repeat(clips[1], 2, 1), 2, 2)
    write_frames(tmp_path / "pred", larger)
    paths = "--pred", tmp_path / "pred", "--target", tmp_path / "target"
    assert call("toolbox.eval_metrics", *paths) == 2
    assert "is 72 x 96 (height x width); expected 36 x 48" in capsys.readouterr().err
    assert not (tmp_path / "pred_metrics").exists()
    assert evaluate(tmp_path, "--resize")["all"]["ssim"] == 1  # averages are the pixels
    write_frames(tmp_path / "pred", clips[1])
    (tmp_path / "pred/001.png").unlink()
    assert call("toolbox.eval_metrics", *paths) == 2
    assert f"{tmp_path / 'target/001'}" in capsys.readouterr().err
    found = evaluate(tmp_path, "--trim")["all"]
    assert found["frames"] == 2 and found["ssim"] == 1  # those of the same names
    write_video(tmp_path / "long.mp4", noise(0))
    write_video(tmp_path / "short.mp4", noise(0)[:2])
    paths = "--pred", tmp_path / "long.mp4", "--target", tmp_path / "short.mp4"
    assert call("toolbox.eval_metrics", *paths) == 2
    assert "--trim compares the first 2" in capsys.readouterr().err
    assert call("toolbox.eval_metrics", *paths, "--trim") == 0
    assert (tmp_path / "long_metrics/metrics.json").is_file()


def test_videos_and_frames_are_read_alike(tmp_path):
    path = write_video(tmp_path / "x.mp4", noise(0))
    frames = np.stack(list(sources.open_source(path).read()))
    folder = sources.open_source(write_frames(tmp_path / "x", frames))
    np.testing.assert_array_equal(np.stack(list(folder.read())), frames)
    assert folder.size == (HEIGHT, WIDTH) and len(folder) == FRAMES
    picked = sources.open_source(path).pick([0, 0, 2])
    np.testing.assert_array_equal(np.stack(list(picked.read())), frames[[0, 0, 2]])


def test_pictures_are_as_a_viewer_shows_them(tmp_path):
    frame = noise(0)[0]
    alpha = np.full((HEIGHT, WIDTH, 1), 255, np.uint8)
    alpha[0] = 0
    Image.fromarray(np.concatenate([frame, alpha], -1)).save(tmp_path / "alpha.png")
    seen = sources.read_picture(tmp_path / "alpha.png")
    assert not seen[0].any() and np.array_equal(seen[1:], frame[1:])
    turned = Image.fromarray(frame)
    turned.getexif()[sources.ORIENTATION] = 6
    turned.save(tmp_path / "turned.jpg", exif=turned.getexif(), quality=95)
    assert sources.picture_size(tmp_path / "turned.jpg") == (WIDTH, HEIGHT)
    assert sources.read_picture(tmp_path / "turned.jpg").shape == (WIDTH, HEIGHT, 3)
    names = [tmp_path / f"f{number}.png" for number in (10, 9, 1)]
    assert sorted(names, key=sources.by_number) == names[::-1]


# ---- what is refused -----------------------------------------------------------------------------


@pytest.fixture
def refused(clips, tmp_path, capsys):
    def check(says, pred="pred", target="target", *args):
        paths = "--pred", tmp_path / pred, "--target", tmp_path / target
        assert call("toolbox.eval_metrics", *paths, "--output_dir", tmp_path / "out", *args) == 2
        error = capsys.readouterr().err
        assert says in error and error.count("\n") == 1 and len(error) < 600, error
        assert not (tmp_path / "out").exists()

    return check


def test_other_folders_and_names_are_refused(refused, tmp_path):
    refused("gone: no such file", "gone")
    (tmp_path / "empty").mkdir()
    refused("empty: is empty; expected videos", "empty")
    write_frames(tmp_path / "mixed", noise(0))
    write_video(tmp_path / "mixed/x.mp4", noise(0))
    refused("mixes videos (x.mp4) and frames (000.png)", "mixed")
    refused("no frame of one has the name", "pred", write_frames(
        tmp_path / "others", noise(0), "x{}.png"), "--trim")
    write_video(tmp_path / "videos/a.mp4", noise(0))
    write_video(tmp_path / "more/a.mp4", noise(0))
    write_video(tmp_path / "more/b.mp4", noise(0))
    refused("without a partner of the same name: " + str(tmp_path / "more/b"), "videos", "more")
    refused("expected files, or folders paired by name", "videos")
    write_video(tmp_path / "more/a_out.mp4", noise(0))
    refused("got a.mp4 and a_out.mp4; expected one of a name", "videos", "more")
    (tmp_path / "below/a").mkdir(parents=True)
    refused("got neither videos nor frames", "below", "videos")


def test_other_masks_are_refused(refused, tmp_path):
    small = write_frames(tmp_path / "small", np.zeros((FRAMES, 8, 8), np.uint8))
    refused("small: is 8 x 8", "pred", "target", "--mask", small)
    few = write_video(tmp_path / "few.mp4", noise(0)[:2])
    refused("few.mp4 2; --trim", "pred", "target", "--mask", few)


def test_broken_files_are_refused(refused, tmp_path):
    path = tmp_path / "pred/001.png"
    Image.fromarray(noise(0, (40, 40, 3))).save(path)
    refused("001.png: is 40 x 40 (height x width), 000.png 36 x 48")
    Image.fromarray(noise(0)[0]).save(path.with_suffix(".jpg"))
    refused("has several frames of the name 001")
    path.with_suffix(".jpg").unlink()
    path.write_bytes(b"no picture")
    refused("001.png: not a readable picture")
    Image.fromarray(noise(0)[0, ..., 0].astype(np.uint16)).save(tmp_path / "deep.png")
    refused("expected grey or RGB of 8 bits", "deep.png", "deep.png")
    write_frames(tmp_path / "tiny", noise(0, (2, 16, 40, 3)))
    refused("is 16 x 40 (height x width); expected 32 or more", "tiny", "tiny")
    torch.save({"x": torch.zeros(1)}, tmp_path / "x.pth")
    write_frames(tmp_path / "pred", noise(0))
    refused("has no features.0.weight", "pred", "target", "--lpips_weights", tmp_path / "x.pth")
    refused("belongs to --protocol dycheck", "pred", "target", "--correspondences", tmp_path)


def test_as_a_user_runs_it(clips, tmp_path):
    command = [sys.executable, ROOT / "toolbox/eval_metrics.py", "--pred", "pred",
               "--target", "target"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0 and "| all | 3 |" in done.stdout, done.stderr
    assert sorted(path.name for path in (tmp_path / "pred_metrics").iterdir()) == [
        "metrics.csv", "metrics.json", "metrics.png"]
