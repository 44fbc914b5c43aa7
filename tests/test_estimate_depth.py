from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import call
from transformers import (
    DepthAnythingConfig,
    DepthAnythingForDepthEstimation,
    DepthProConfig,
    DepthProForDepthEstimation,
    Dinov2Config,
    DPTImageProcessorPil,
)

from toolbox.geometry import estimate_depth
from utils import sequence, video


@pytest.fixture
def only_video(room):
    """The synthetic sequence without cam_info/, and the depth that was there, [N, 64, 96]."""
    depth = np.load(room / sequence.DEPTH).astype(np.float32)
    for file in (room / "cam_info").iterdir():
        file.unlink()
    return room, depth


def save_depth_anything(folder, kind="metric"):
    backbone = Dinov2Config(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32,
        image_size=70, patch_size=14, reshape_hidden_states=False,
        out_features=["stage1", "stage2"])
    config = DepthAnythingConfig(
        backbone_config=backbone, reassemble_hidden_size=32, reassemble_factors=[4, 2],
        neck_hidden_sizes=[8, 16], fusion_hidden_size=8, head_hidden_size=8,
        depth_estimation_type=kind, max_depth=20)
    torch.manual_seed(0)
    model = DepthAnythingForDepthEstimation(config).eval()
    model.head.conv3.weight.data *= 1e7  # new weights give next to the same depth everywhere
    model.save_pretrained(folder)
    processor = DPTImageProcessorPil(
        size={"height": 70, "width": 70}, keep_aspect_ratio=True, ensure_multiple_of=14)
    processor.save_pretrained(folder)
    return model, processor


def save_depth_pro(folder, fov_deg):
    vit = {"model_type": "dinov2", "hidden_size": 16, "num_hidden_layers": 2,
           "num_attention_heads": 2, "intermediate_size": 16, "patch_size": 4, "image_size": 16}
    encoders = {f"{name}_model_config": dict(vit) for name in ("image", "patch", "fov")}
    config = DepthProConfig(
        patch_size=16, fusion_hidden_size=16, intermediate_hook_ids=[1, 0], num_fov_head_layers=0,
        intermediate_feature_dims=[16, 16], scaled_images_feature_dims=[16, 16, 16],
        use_fov_model=True, **encoders)
    torch.manual_seed(0)
    model = DepthProForDepthEstimation(config).eval()
    model.head.layers[-2].weight.data.abs_()  # so that the ReLU after it leaves something
    model.fov_model.head.layers[0].weight.data.zero_()
    model.fov_model.head.layers[0].bias.data.fill_(fov_deg)
    model.save_pretrained(folder)
    return model


def estimate(room, model, *args):
    return call("toolbox.geometry.estimate_depth", "--data_path", room, "--model_path", model,
                "--device", "cpu", *args)


def test_depth_anything_becomes_depth_in_metres(only_video, tmp_path, capsys):
    room, _ = only_video
    model, processor = save_depth_anything(tmp_path / "model")
    assert estimate(room, tmp_path / "model", "--no_steady", "--batch_size", 3) == 0
    out = capsys.readouterr().out
    assert "no focal length; data_gen.py takes 500" in out and "not steadied" in out
    seq = sequence.open_sequence(room)  # and no intrinsics
    assert seq.depth_map.shape == (17, 64, 96) and seq.depth_map.dtype == np.float16
    assert not (room / sequence.INTRINSICS).exists() and not list(room.rglob("*.part"))
    frame = video.read_video(room / "gt_rgb.mp4")[10]
    with torch.no_grad():
        depth = model(**processor(images=frame, return_tensors="pt")).predicted_depth
    depth = F.interpolate(1 / depth[None], (64, 96), mode="bilinear", antialias=True)[0, 0] ** -1
    assert depth.std() > 0.5
    np.testing.assert_allclose(seq.depth_map[10], depth, rtol=2e-3)


def test_depth_pro_gives_the_focal_length_too(only_video, tmp_path, capsys):
    room, _ = only_video
    model = save_depth_pro(tmp_path / "model", fov_deg=60)
    assert estimate(room, tmp_path / "model", "--no_steady") == 0
    seq = sequence.open_sequence(room, intrinsics_file=sequence.INTRINSICS)
    focal = 48 / np.tan(np.pi / 6)
    k = [[focal, 0, 48], [0, focal, 32], [0, 0, 1]]
    np.testing.assert_allclose(seq.intrinsics[3], k, rtol=1e-5)
    frame = torch.from_numpy(video.read_video(room / "gt_rgb.mp4")[10])[None].permute(0, 3, 1, 2)
    # as DepthProImageProcessor does: rescaled, normalised, then resized without antialiasing
    with torch.no_grad():
        pixels = F.interpolate((frame / 255 - 0.5) / 0.5, (64, 64), mode="bilinear")
        canonical = model(pixel_values=pixels).predicted_depth
    inverse = F.interpolate(canonical[None], (64, 96), mode="bilinear", antialias=True)[0, 0]
    inverse = inverse * 96 / focal
    np.testing.assert_allclose(seq.depth_map[10], 1 / inverse, rtol=2e-3)
    out = capsys.readouterr().out
    assert f"wrote {room / sequence.DEPTH} and {room / sequence.INTRINSICS}: (17, 64, 96)" in out


def test_what_cannot_give_metres_is_refused(only_video, tmp_path, capsys):
    room, _ = only_video

    def refused(*args, because):
        assert estimate(room, *args) == 2
        error = capsys.readouterr().err.split("frame/s]")[-1].strip()
        assert because in error and error.startswith("error: ") and "\n" not in error
        assert not list((room / "cam_info").iterdir())

    refused(estimate_depth.DEFAULT_MODEL, because="--download to fetch")
    refused(tmp_path, because="not a transformers depth model that loads")
    save_depth_anything(tmp_path / "relative", "relative")
    refused(tmp_path / "relative", because="expected a metric model")
    model, _ = save_depth_anything(tmp_path / "part")
    model.save_pretrained(tmp_path / "part", state_dict=dict(list(model.state_dict().items())[:-1]))
    refused(tmp_path / "part", because="weights are missing")
    model = save_depth_pro(tmp_path / "untrained", fov_deg=-1)
    refused(tmp_path / "untrained", "--no_steady", because="expected trained weights")
    model.config.use_fov_model = False
    model.config.save_pretrained(tmp_path / "untrained")
    refused(tmp_path / "untrained", because="with use_fov_model")
    refused(tmp_path / "part", "--batch_size", 0, because="expected 1 or more")


def test_nothing_is_overwritten_unasked(only_video, tmp_path, capsys):
    room, _ = only_video
    save_depth_anything(tmp_path / "model")
    np.save(room / sequence.DEPTH, np.ones((17, 2, 3)))
    before = (room / sequence.DEPTH).read_bytes()
    assert estimate(room, tmp_path / "model") == 2
    assert "give --overwrite" in capsys.readouterr().err
    assert (room / sequence.DEPTH).read_bytes() == before
    np.save(room / sequence.INTRINSICS, np.eye(3))
    assert estimate(room, tmp_path / "model", "--overwrite") == 0
    assert f"{room / sequence.INTRINSICS} was there before" in capsys.readouterr().out
    assert np.load(room / sequence.DEPTH).shape == (17, 64, 96)
    (room / sequence.DEPTH).unlink()
    save_depth_pro(tmp_path / "pro", fov_deg=60)
    assert estimate(room, tmp_path / "pro") == 2 and not (room / sequence.DEPTH).exists()
    assert np.array_equal(np.load(room / sequence.INTRINSICS), np.eye(3))


@pytest.mark.parametrize("shift", [0, 0.1])
def test_random_scale_and_shift_are_steadied_away(only_video, shift, monkeypatch, capsys):
    room, depth = only_video
    rng = np.random.default_rng(0)
    wrong = rng.uniform(0.8, 1.25, (17, 1, 1)) / depth
    wrong += rng.uniform(-shift, shift, (17, 1, 1)) / np.median(depth)
    frames = iter(wrong.astype(np.float32))
    config = SimpleNamespace(model_type="depth_anything")
    monkeypatch.setattr(estimate_depth, "load_config", lambda args: config)
    monkeypatch.setattr(estimate_depth, "load_model",
                        lambda args, config, device: (None, lambda frames: frames))
    monkeypatch.setattr(estimate_depth, "predict",
                        lambda model, pixels, size: (next(frames)[None], np.ones(1)))
    assert estimate(room, "exact") == 0
    words = capsys.readouterr().out.split("flicker ")[1].split()
    assert float(words[0]) > 0.15 and float(words[3]) < float(words[0]) / 40
    assert words[5] == "0"  # frames that could not be fitted
    ratio = np.load(room / sequence.DEPTH) / depth
    assert np.median(np.abs(ratio / np.median(ratio) - 1)) < 0.02
    assert np.quantile(np.abs(ratio / np.median(ratio) - 1), 0.95) < 0.05
    assert np.quantile(np.abs(1 / wrong / depth - 1), 0.95) > 0.2


def test_steadying_averages_over_the_frames_around():
    rng = np.random.default_rng(0)
    a, b = rng.uniform(0.7, 1.4, 60), rng.uniform(-0.1, 0.1, 60)
    # frame t shows a[t] x + b[t] of x
    fits = [(a[t - 1] / a[t], b[t - 1] - a[t - 1] / a[t] * b[t]) for t in range(1, 60)]
    scale, shift = estimate_depth.steady(fits)
    steady_a, steady_b = scale * a, scale * b + shift  # what is left of them
    near = np.clip(estimate_depth.WINDOW - np.abs(np.arange(60)[:, None] - np.arange(60)), 0, None)
    np.testing.assert_allclose(steady_a, near @ a / near.sum(1), rtol=1e-9)
    np.testing.assert_allclose(steady_b, near @ b / near.sum(1), atol=1e-9)


def test_nothing_drifts_over_hundreds_of_frames():
    # a camera that moves in, or a fit that is always off
    scale, shift = estimate_depth.steady([(1.01, 0.0)] * 400)
    assert np.abs(scale[24:-24] - 1).max() < 0.01 and np.abs(scale - 1).max() < 0.1
    assert np.abs(shift).max() < 1e-9
    rng = np.random.default_rng(0)
    a, b = rng.normal(1, 0.01, 400), rng.normal(0, 0.01, 400)
    scale, shift = estimate_depth.steady([*zip(a, b, strict=True)])
    assert np.abs(np.log(scale)).max() < 0.2 and np.abs(shift).max() < 0.2
    inverse = np.linspace(0.1, 1, 10)
    expected = np.clip(9 * inverse - 0.8, inverse / 2, 2 * inverse)
    assert np.allclose(estimate_depth.moved(inverse, 9, -0.8), expected)


def test_a_frame_that_cannot_be_fitted_starts_anew():
    first, second = [(1.2, 0.1)] * 3, [(0.9, 0.0)] * 2
    together = np.array(estimate_depth.steady([*first, None, *second]))
    apart = np.concatenate([estimate_depth.steady(first), estimate_depth.steady(second)], axis=1)
    np.testing.assert_allclose(together, apart, atol=1e-12)
    assert np.array_equal(estimate_depth.steady([None, None]), [[1, 1, 1], [0, 0, 0]])
    assert np.array_equal(estimate_depth.steady([]), [[1], [0]])


def test_the_fit_is_robust_and_knows_when_it_is_none():
    rng = np.random.default_rng(0)
    now = rng.uniform(0.1, 1, 2000)
    before = 1.2 * now - 0.03
    before[:600] = rng.uniform(0.1, 1, 600)  # moving things, wrong matches
    assert estimate_depth.fit(np.stack([now, before])) == pytest.approx((1.2, -0.03), abs=2e-3)
    both = np.stack([now, now]) + rng.normal(0, 0.05, (2, 2000))
    assert estimate_depth.fit(both) == pytest.approx((1, 0), abs=0.02)  # least squares: 0.96
    for other in (rng.uniform(0.1, 1, 2000), 2.5 * now, 0.3 * now):
        assert estimate_depth.fit(np.stack([now, other])) is None
    assert estimate_depth.fit(np.ones((2, 2000))) is None
    assert estimate_depth.fit(np.ones((2, 0))) is None


def test_matches_follow_the_picture():
    noise = torch.rand(3, 1, 30, 40, generator=torch.Generator().manual_seed(0))
    grey, inverse, other = F.interpolate(noise, (120, 160), mode="bilinear")[:, 0].numpy()
    grey, other = np.uint8(grey * 255), np.uint8(other * 255)

    def cropped(columns):
        return tuple(np.ascontiguousarray(image[:, columns]) for image in (grey, inverse))

    still, panned = cropped(slice(0, 150)), cropped(slice(3, 153))
    now, before = estimate_depth.match(panned, still)
    assert 2000 < now.size <= estimate_depth.SAMPLES and np.median(np.abs(now - before)) < 0.01
    assert np.median(np.abs(panned[1] - still[1])) > 0.05
    cut = estimate_depth.match((other, inverse[:, ::-1]), (grey, inverse))
    assert estimate_depth.fit(cut) is None


def test_intrinsics_come_back_at_the_videos_size(tmp_path):
    info = video.VideoInfo(3, 1081, 1920, 24)
    size = estimate_depth.fit_size(info.height, info.width, estimate_depth.MAP_SIDE)
    assert size == (518, 920) and estimate_depth.fit_size(64, 96, 518) == (64, 96)
    sequence.save_array(tmp_path / "k.npy", estimate_depth.depth_map_intrinsics(info, size, 1500))
    k = sequence.video_intrinsics(tmp_path / "k.npy", info, size)[0]
    np.testing.assert_allclose(k[0], [[1500, 0, 960], [0, 1500, 540], [0, 0, 1]], rtol=1e-6)


def test_half_only_where_it_is_exact():
    assert sequence.half_if_exact(np.float32([0.5, 20, 9e3])).dtype == np.float16
    assert sequence.half_if_exact(np.float32([0.5, 1e5])).dtype == np.float32
    assert sequence.half_if_exact(np.float32([1e-6, 1])).dtype == np.float32
