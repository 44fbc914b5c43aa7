"""The command line of estimate_geometry.py on a few small frames, by networks of random weights."""

import json
import shutil
import signal
from fractions import Fraction

import cv2
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import call
from exact_matches import degrees_between
from transformers import (
    BeitConfig,
    DepthAnythingConfig,
    DepthAnythingForDepthEstimation,
    DepthProConfig,
    DepthProForDepthEstimation,
    Dinov2Config,
    DPTConfig,
    DPTForDepthEstimation,
    DPTImageProcessorPil,
    GLPNConfig,
    GLPNForDepthEstimation,
    GLPNImageProcessorPil,
    ZoeDepthConfig,
    ZoeDepthForDepthEstimation,
    ZoeDepthImageProcessorPil,
)

from toolbox.geometry import estimate_geometry, matches, networks, picture, shots, solver
from utils import cli, sequence, video

OUTPUTS = (sequence.DEPTH, sequence.INTRINSICS, sequence.C2WS, sequence.VERDICT)
GIVEN = ("--depth_file", "given.npy")


def make_quick(monkeypatch):
    """Smaller pictures and fewer points: a quarter of the time."""
    monkeypatch.setattr(matches, "LONG_SIDE", (192, 512))
    monkeypatch.setattr(matches, "POINTS", 120)


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    """And no picture drawn, which takes a second."""
    make_quick(monkeypatch)
    monkeypatch.setattr(picture, "write", lambda path, found: path.write_bytes(b"drawn"))


def degraded(depth):
    """Depth [N, 64, 96] with a smooth error and a scale of each frame's own."""
    rng = np.random.default_rng(0)
    count = len(depth)
    coarse = rng.normal(0, 0.08, (count, 3, 4)).astype(np.float32)
    error = [cv2.resize(each, (96, 64), interpolation=cv2.INTER_CUBIC) for each in coarse]
    return depth * np.exp(error) * rng.uniform(0.8, 1.25, (count, 1, 1)).astype(np.float32)


def make_clip(folder, room, frames):
    """Some frames of the synthetic sequence, exact cameras and depth, and degraded given.npy."""
    (folder / "cam_info").mkdir(parents=True)
    pixels = video.read_video(room / "gt_rgb.mp4")[frames]
    info = video.VideoInfo(*pixels.shape[:3], Fraction(20))
    video.write_video(folder / "gt_rgb.mp4", pixels, info, crf=0)
    depth = np.load(room / sequence.DEPTH)[frames].astype(np.float32)
    np.save(folder / sequence.DEPTH, depth)
    np.save(folder / "given.npy", degraded(depth))
    np.save(folder / sequence.C2WS, np.load(room / sequence.C2WS)[frames])
    shutil.copy(room / sequence.INTRINSICS, folder / sequence.INTRINSICS)
    return folder


@pytest.fixture(scope="session")
def made_clip(made_room, tmp_path_factory):
    """Nine frames, two apart, with exact cameras and depth in cam_info/."""
    folder = tmp_path_factory.mktemp("clip") / "clip"
    return make_clip(folder, made_room, np.arange(0, 17, 2))


@pytest.fixture
def bare(made_room, tmp_path):
    """Four frames without cameras or depth, but for given.npy."""
    folder = make_clip(tmp_path / "bare", made_room, np.arange(0, 16, 4))
    shutil.rmtree(folder / "cam_info")
    return folder


def estimate(folder, *args):
    return call("toolbox.geometry.estimate_geometry", "--data_path", folder, "--device", "cpu",
                *args)


def contents(folder):
    """{path: bytes, or None for a folder} of all that is in a folder."""
    return {str(path): path.read_bytes() if path.is_file() else None
            for path in folder.rglob("*")}


def depth_error(depth, exact):
    """How far depth [N, h, w] is from what is exact but for one scale: median of the logarithm."""
    off = np.log(depth / exact)
    return np.median(np.abs(off - np.median(off)))


def flicker(depth, exact):
    """The deviation of the scales of frames."""
    return np.std(np.median(np.log(depth / exact), axis=(1, 2)))


# ---- depth, focal length and cameras -------------------------------------------------------------


@pytest.fixture(scope="module")
def solved(made_clip, tmp_path_factory):
    """(folder, where the truth is) of the nine frames, with what the program found."""
    folder = tmp_path_factory.mktemp("solved") / "clip"
    folder.mkdir()
    for name in ("gt_rgb.mp4", "given.npy"):
        shutil.copy(made_clip / name, folder / name)
    with pytest.MonkeyPatch.context() as monkeypatch:
        make_quick(monkeypatch)
        assert estimate(folder, *GIVEN) == 0
    return folder, made_clip


def test_cameras_and_focal_length_are_found(solved):
    folder, truth = solved
    seq = sequence.open_sequence(folder, intrinsics_file=sequence.INTRINSICS,
                                 extrinsics_file=sequence.C2WS)
    exact = np.load(truth / sequence.C2WS)
    exact = np.linalg.inv(exact[0]) @ exact
    assert degrees_between(exact, np.eye(4)).max() > 2
    assert degrees_between(seq.c2w, exact).max() < 0.4
    scale = (seq.c2w[:, :3, 3] * exact[:, :3, 3]).sum() / np.square(seq.c2w[:, :3, 3]).sum()
    path = np.linalg.norm(np.diff(exact[:, :3, 3], axis=0), axis=1).sum()
    off = np.linalg.norm(scale * seq.c2w[:, :3, 3] - exact[:, :3, 3], axis=1)
    assert off.max() < 0.05 * path and np.array_equal(seq.c2w[0], np.eye(4))
    assert 0.8 < scale < 1.25  # it is the depth's own unit
    np.testing.assert_allclose(seq.intrinsics[0], [[100, 0, 48], [0, 100, 32], [0, 0, 1]],
                               atol=12)


def test_depth_becomes_better_than_what_was_given(solved):
    folder, truth = solved
    exact, given, got = (np.load(path).astype(np.float32) for path in (
        truth / sequence.DEPTH, folder / "given.npy", folder / sequence.DEPTH))
    assert got.shape == given.shape == (9, 64, 96)
    assert depth_error(got, exact) < 0.4 * depth_error(given, exact)
    assert flicker(got, exact) < 0.25 * flicker(given, exact)


def test_what_is_told_of_it(solved):
    folder, _ = solved
    record = json.loads((folder / sequence.VERDICT).read_text())
    assert record["verdict"][0].startswith("good: parallax") and record["flags"] == []
    k = np.load(folder / sequence.INTRINSICS)
    assert record["focal_px"] == pytest.approx(k[0, 0], rel=1e-5)
    assert len(record["frame_misfit_px"]) == 9 and 0 < max(record["frame_misfit_px"]) < 1
    assert record["cuts"] == [] and len(record["windows"]) == 1
    image = cv2.imread(str(folder / estimate_geometry.PICTURE))
    assert image.shape[0] > 300 and image.std() > 10
    assert (folder / estimate_geometry.PICTURE).read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    left = {path.name for path in folder.rglob("*")}
    assert left == {"gt_rgb.mp4", "given.npy", "cam_info", "megasam_depth.npy",
                    "megasam_intrinsics.npy", "megasam_c2ws.npy", "geometry.json", "geometry.png"}


def test_cameras_are_kept_and_depth_made_consistent_with_them(made_clip, tmp_path):
    folder = shutil.copytree(made_clip, tmp_path / "clip")
    before = contents(folder)
    exact, given = (np.load(folder / name) for name in (sequence.DEPTH, "given.npy"))
    assert estimate(folder, *GIVEN, "--keep_cameras", "--overwrite") == 0
    after = contents(folder)
    for name in (sequence.INTRINSICS, sequence.C2WS, "gt_rgb.mp4", "given.npy"):
        assert after[str(folder / name)] == before[str(folder / name)]
    got = np.load(folder / sequence.DEPTH).astype(np.float32)
    assert depth_error(got, exact) < 0.4 * depth_error(given, exact)
    assert flicker(got, exact) < 0.1 * flicker(given, exact)
    record = json.loads((folder / sequence.VERDICT).read_text())
    assert record["focal_px"] == pytest.approx(100) and record["flags"] == []


def test_depth_is_given_back_in_the_units_of_cameras_that_are_kept(made_clip, tmp_path):
    folder = shutil.copytree(made_clip, tmp_path / "clip")
    exact = np.load(folder / sequence.DEPTH)
    np.save(folder / "given.npy", 5000 * np.load(folder / "given.npy"))
    assert estimate(folder, *GIVEN, "--keep_cameras", "--overwrite") == 0
    got = np.load(folder / sequence.DEPTH).astype(np.float32)
    assert np.median(got / exact) == pytest.approx(1, abs=0.02)


@pytest.mark.parametrize("change", [
    lambda k: k + np.array([[0, 0, 20], [0, 0, 0], [0, 0, 0]]),
    lambda k: k * np.array([[1, 1, 1], [1, 1.2, 1], [1, 1, 1]]),
    lambda k: k * np.stack([np.diag([f, f, 1]) + 1 - np.eye(3) for f in np.linspace(1, 1.1, 9)]),
])
def test_cameras_that_are_none_of_a_centred_pinhole_are_not_kept(made_clip, tmp_path, change,
                                                                 capsys):
    folder = shutil.copytree(made_clip, tmp_path / "clip")
    k = change(np.load(folder / sequence.INTRINSICS))
    np.save(folder / sequence.INTRINSICS, k[: len(np.load(folder / "given.npy"))])
    before = contents(folder)
    assert estimate(folder, *GIVEN, "--keep_cameras", "--overwrite") == 2
    assert "--keep_cameras needs one focal length" in capsys.readouterr().err
    assert contents(folder) == before


def test_depth_of_any_unit_gives_the_same_cameras(bare, tmp_path):
    other = shutil.copytree(bare, tmp_path / "other")
    np.save(other / "given.npy", 1000 * np.load(bare / "given.npy"))
    for folder in (bare, other):
        assert estimate(folder, *GIVEN, "--focal", 100) == 0
    poses, others = (np.load(folder / sequence.C2WS) for folder in (bare, other))
    np.testing.assert_allclose(others[:, :3, :3], poses[:, :3, :3], atol=1e-4)
    np.testing.assert_allclose(others[:, :3, 3] / 1000, poses[:, :3, 3], atol=1e-4)


def test_points_in_holes_of_depth_count_for_nothing(made_clip, tmp_path, begun_problems):
    folder = shutil.copytree(made_clip, tmp_path / "clip")
    given = np.load(folder / "given.npy")
    given[:, :30] = np.inf  # the sky
    np.save(folder / "given.npy", given)
    assert estimate(folder, *GIVEN, "--keep_cameras", "--overwrite") == 0
    problem = begun_problems[0]
    weight = problem.weight
    above = problem.here[problem.pairs[:, 0], :, 1] < -12 * 2  # from the middle, in its pixels
    assert above.any() and not weight[above].any() and weight[~above].mean() > 0.5


@pytest.fixture
def begun_problems(monkeypatch):
    """The Problems that the solver gets."""
    made = []
    make = solver.make_problem
    monkeypatch.setattr(solver, "make_problem",
                        lambda *args: made.append(make(*args)) or made[-1])
    return made


def test_a_focal_length_that_is_given_is_kept(bare):
    assert estimate(bare, *GIVEN, "--focal", 112.5) == 0
    assert np.load(bare / sequence.INTRINSICS)[0, 0] == 112.5
    record = json.loads((bare / sequence.VERDICT).read_text())
    assert record["focal_px"] == 112.5 and "focal_unknown" not in record["flags"]


def test_depth_of_another_size_keeps_it_and_its_holes(bare):
    given = np.load(bare / "given.npy")[:, ::2, ::2]
    given[1, :8, :8] = 0
    given[2, 5, 5:9] = np.nan, np.inf, -1, 0
    np.save(bare / "given.npy", given)
    assert estimate(bare, *GIVEN, "--focal", 100) == 0
    got = np.load(bare / sequence.DEPTH)
    assert got.shape == (4, 32, 48)
    assert np.array_equal(got == 0, ~(np.isfinite(given) & (given > 0)))
    k = np.load(bare / sequence.INTRINSICS)
    np.testing.assert_allclose(k, [[50, 0, 24], [0, 50, 16], [0, 0, 1]])
    seq = sequence.open_sequence(bare, intrinsics_file=sequence.INTRINSICS)
    np.testing.assert_allclose(seq.intrinsics[0, 0, 0], 100)


# ---- networks ------------------------------------------------------------------------------------


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


TINY = {"hidden_size": 16, "num_hidden_layers": 4, "num_attention_heads": 2,
        "intermediate_size": 16, "image_size": 32, "patch_size": 8, "initializer_range": 0.3}


def save_dpt(folder):
    config = DPTConfig(backbone_out_indices=[0, 1, 2, 3], neck_hidden_sizes=[8] * 4,
                       fusion_hidden_size=8, **TINY)
    processor = DPTImageProcessorPil(size={"height": 32, "width": 32})
    return saved(folder, DPTForDepthEstimation, config, processor)


def save_glpn(folder):
    config = GLPNConfig(depths=[1] * 4, hidden_sizes=[8] * 4, num_attention_heads=[1] * 4,
                        decoder_hidden_size=8, initializer_range=0.3)
    return saved(folder, GLPNForDepthEstimation, config, GLPNImageProcessorPil())


def save_zoedepth(folder):
    stages = ["stage1", "stage2", "stage3", "stage4"]
    backbone = BeitConfig(out_features=stages, reshape_hidden_states=False,
                          use_relative_position_bias=True, **TINY)
    config = ZoeDepthConfig(
        backbone_config=backbone, neck_hidden_sizes=[8] * 4, fusion_hidden_size=8,
        bottleneck_features=8, num_relative_features=4, bin_embedding_dim=8,
        num_attractors=[4, 2, 2, 1], backbone_hidden_size=16, initializer_range=0.3,
        bin_configurations=[{"n_bins": 8, "min_depth": 0.1, "max_depth": 10, "name": "nyu"}])
    processor = ZoeDepthImageProcessorPil(size={"height": 32, "width": 48}, ensure_multiple_of=16)
    return saved(folder, ZoeDepthForDepthEstimation, config, processor)


def saved(folder, model_class, config, processor):
    """(model, processor), both saved in a folder."""
    torch.manual_seed(1)
    model = model_class(config).eval()
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return model, processor


@pytest.fixture
def begun(bare, monkeypatch):
    """A function (flags) that runs the program until depth is there.

    It returns inverse depth [4, h, w] and a shots.Known.
    """
    def stop(path, info, inverse, work, known):
        seen.append((np.array(inverse), known))
        raise cli.Interrupted(signal.SIGINT)

    def run(*args):
        assert estimate(bare, *args) == 128 + signal.SIGINT
        return seen.pop()

    seen = []
    monkeypatch.setattr(shots, "find_geometry", stop)
    return run


def by_hand(model, pixels):
    with torch.no_grad():
        return model(pixel_values=pixels).predicted_depth


def at_the_videos_size(inverse):
    return F.interpolate(inverse[:, None], (64, 96), mode="bilinear", antialias=True)[:, 0].numpy()


@pytest.mark.parametrize("name", ["metric", "relative", "dpt", "glpn", "zoedepth"])
def test_networks_give_inverse_depth(bare, begun, tmp_path, name):
    makers = {"dpt": save_dpt, "glpn": save_glpn, "zoedepth": save_zoedepth}
    make = makers.get(name, lambda folder: save_depth_anything(folder, name))
    model, processor = make(tmp_path / "model")
    inverse, known = begun("--model_path", tmp_path / "model", "--batch_size", 3)
    frames = video.read_video(bare / "gt_rgb.mp4")
    options = {"do_pad": False} if name == "zoedepth" else {}  # for a border would move all of it
    pixels = processor(images=[*frames], return_tensors="pt", **options)["pixel_values"]
    expected = by_hand(model, pixels)
    metric = name not in ("relative", "dpt")
    if metric:
        expected = 1 / expected.clamp(1e-4, 1e4)
    else:  # the sky, which is at 0 or below, is far away
        expected = torch.maximum(expected, 0.01 * expected.amax((1, 2), keepdim=True)).clamp(min=0)
    expected = at_the_videos_size(expected)
    assert expected.std() > 1e-3 * expected.mean() and (expected >= 0).all()
    np.testing.assert_allclose(inverse, expected, rtol=2e-3, atol=1e-4 * expected.max())
    assert known == shots.Known(None, False, None, metric)


def test_depth_pro_gives_the_focal_length_to_begin_with(bare, begun, tmp_path):
    model = save_depth_pro(tmp_path / "model", fov_deg=60)
    inverse, known = begun("--model_path", tmp_path / "model")
    focal = 48 / np.tan(np.pi / 6)
    assert known.focal == pytest.approx(focal, rel=1e-4) and not known.fixed and known.metric
    frames = torch.from_numpy(video.read_video(bare / "gt_rgb.mp4")).permute(0, 3, 1, 2)
    # as DepthProImageProcessor does: rescaled, normalised, then resized without antialiasing
    pixels = F.interpolate((frames / 255 - 0.5) / 0.5, (64, 64), mode="bilinear")
    expected = at_the_videos_size(by_hand(model, pixels)) * 96 / focal
    np.testing.assert_allclose(inverse, expected, rtol=2e-3)
    _, known = begun("--model_path", tmp_path / "model", "--focal", 77)
    assert known == shots.Known(77, True, None, True)


def test_a_video_and_a_network_make_a_sequence_folder(bare, tmp_path, capsys):
    save_depth_anything(tmp_path / "model")
    args = ("--video", bare / "gt_rgb.mp4", "--output", tmp_path / "new", "--device", "cpu",
            "--model_path", tmp_path / "model")
    assert call("toolbox.geometry.estimate_geometry", *args) == 0
    out = capsys.readouterr().out
    assert f"wrote {tmp_path / 'new'}/{sequence.DEPTH}" in out and "verdict: " in out
    assert (tmp_path / "new/gt_rgb.mp4").read_bytes() == (bare / "gt_rgb.mp4").read_bytes()
    seq = sequence.open_sequence(tmp_path / "new", intrinsics_file=sequence.INTRINSICS,
                                 extrinsics_file=sequence.C2WS)
    assert seq.depth_map.shape == (4, 64, 96) and seq.bad_depth_share == 0
    left = sorted(path.name for path in (tmp_path / "new/cam_info").iterdir())
    assert left == ["geometry.json", "geometry.png", "megasam_c2ws.npy", "megasam_depth.npy",
                    "megasam_intrinsics.npy"]


# ---- what is refused -----------------------------------------------------------------------------


def lose_a_weight(at):
    model, _ = save_depth_anything(at / "model")
    state = dict([*model.state_dict().items()][:-1])
    model.save_pretrained(at / "model", state_dict=state)


def model_type(name):
    def make(at):
        (at / "model").mkdir()
        (at / "model/config.json").write_text(json.dumps({"model_type": name}))
    return make


def without_fov(at):
    model = save_depth_pro(at / "model", fov_deg=60)
    model.config.use_fov_model = False
    model.config.save_pretrained(at / "model")


def give(change):
    def make(at):
        np.save(at / "bare/given.npy", change(np.load(at / "bare/given.npy")))
    return make


def single_frame(at, name="one.mp4"):
    video.write_video(at / name, np.zeros((1, 64, 96, 3), np.uint8),
                      video.VideoInfo(1, 64, 96, Fraction(20)))


MODEL = ("--model_path", "model")
IN_BARE = ("--data_path", "bare")
NEW = ("--video", "bare/gt_rgb.mp4", "--output", "new")
BARE_DEPTH = ("--depth_file", "bare/given.npy")
REFUSED = {  # how it is made, the flags, what the message says
    "a model that is not there": (None, (*IN_BARE, *MODEL), "model: no such folder"),
    "a model that is not there, for a new folder": (None, (*NEW, *MODEL), "model: no such folder"),
    "a model of another kind": (model_type("bert"), (*IN_BARE, *MODEL),
                                "is bert; expected one of depth_anything, depth_pro, dpt"),
    "a depth model that wants more": (model_type("prompt_depth_anything"), (*IN_BARE, *MODEL),
                                      "is prompt_depth_anything; expected one of"),
    "a model without a weight": (lose_a_weight, (*IN_BARE, *MODEL), "1 weights are missing"),
    "a model that was not trained": (lambda at: save_depth_pro(at / "model", fov_deg=-1),
                                     (*IN_BARE, *MODEL), "expected trained weights"),
    "DepthPro without its focal length": (without_fov, (*IN_BARE, *MODEL), "with it"),
    "no model and no depth": (None, IN_BARE, "give --model_path, a depth model (see --help)"),
    "no cameras to keep": (None, (*IN_BARE, *GIVEN, "--keep_cameras"),
                           "megasam_intrinsics.npy: no such file"),
    "depth that is not there": (None, (*IN_BARE, "--depth_file", "no.npy"), "no.npy: no such"),
    "depth of another length": (give(lambda z: z[:3]), (*IN_BARE, *GIVEN), "(3, 64, 96)"),
    "depth that is turned": (give(lambda z: z.transpose(0, 2, 1)), (*IN_BARE, *GIVEN),
                             "64 x 96"),
    "depth that is all holes": (give(lambda z: 0 * z), (*IN_BARE, *GIVEN), "positive"),
    "a video without an output": (None, NEW[:2], "give --video FILE and --output FOLDER"),
    "two videos": (None, (*NEW, *IN_BARE), "or --data_path FOLDER"),
    "nothing to work on": (None, GIVEN, "give --video FILE"),
    "a video that is not there": (None, ("--video", "no.mp4", *NEW[2:], *MODEL), "no.mp4"),
    "a folder that is not there": (None, ("--data_path", "nowhere", *GIVEN), "nowhere"),
    "a video of one frame": (single_frame, ("--video", "one.mp4", *NEW[2:], *BARE_DEPTH),
                             "1 frames are left of 1"),
    "a folder with one frame": (
        lambda at: give(lambda z: z[:1])(at) or single_frame(at, "bare/gt_rgb.mp4"),
        (*IN_BARE, *GIVEN), "expected at least 2"),
    "a start beyond the end": (None, (*NEW, *BARE_DEPTH, "--start", 9), "0 frames are left of 4"),
    "a start of a folder": (None, (*IN_BARE, *GIVEN, "--start", 1), "cut --video"),
    "frames of a folder": (None, (*IN_BARE, *GIVEN, "--frames", 3), "cut --video"),
    "a rate of a folder": (None, (*IN_BARE, *GIVEN, "--fps", 5), "cut --video"),
    "a focal length and cameras": (None, (*IN_BARE, *GIVEN, "--focal", 9, "--keep_cameras"),
                                   "give one of them"),
    "a focal length of 0": (None, (*IN_BARE, *GIVEN, "--focal", 0), "--focal 0.0"),
    "a rate that is none": (None, (*NEW, *GIVEN, "--fps", "nan"), "--fps nan"),
    "no frames": (None, (*NEW, *GIVEN, "--frames", 0), "--frames 0"),
    "a negative start": (None, (*NEW, *GIVEN, "--start", -1), "--start -1.0"),
    "an empty batch": (None, (*IN_BARE, *MODEL, "--batch_size", 0), "--batch_size 0"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_done_is_refused_and_changes_nothing(case, bare, tmp_path, monkeypatch,
                                                            capsys):
    make, args, says = REFUSED[case]
    monkeypatch.chdir(tmp_path)
    if make:
        make(tmp_path)
    before = contents(tmp_path)
    capsys.readouterr()
    assert call("toolbox.geometry.estimate_geometry", *args, "--device", "cpu") == 2
    lines = capsys.readouterr().err.replace("\r", "\n").splitlines()
    lines = [line for line in lines if line and "%|" not in line]  # progress bars
    assert len(lines) == 1 and lines[0].startswith("error: ") and says in lines[0], lines
    assert contents(tmp_path) == before


@pytest.mark.parametrize("name", OUTPUTS[:3])
def test_nothing_is_overwritten_unasked(bare, name, capsys):
    sequence.save_array(bare / name, np.eye(4))
    before = contents(bare)
    assert estimate(bare, *GIVEN) == 2
    assert f"{name}: is there already; give --overwrite" in capsys.readouterr().err
    assert contents(bare) == before


def test_overwrite_replaces_what_is_there(bare):
    for name in OUTPUTS:
        sequence.save_array(bare / name, np.ones((4, 2, 3)))
    assert estimate(bare, *GIVEN, "--overwrite") == 0
    seq = sequence.open_sequence(bare, intrinsics_file=sequence.INTRINSICS,
                                 extrinsics_file=sequence.C2WS)
    assert seq.depth_map.shape == (4, 64, 96)
    assert json.loads((bare / sequence.VERDICT).read_text())["verdict"]


# ---- a part of a video ---------------------------------------------------------------------------


@pytest.fixture(scope="session")
def counted(tmp_path_factory):
    """Seventeen frames that are told from each other, at 20 a second."""
    rng = np.random.default_rng(0)
    coarse = rng.integers(0, 256, (17, 4, 6, 3)).astype(np.uint8)
    frames = np.stack([cv2.resize(each, (96, 64)) for each in coarse])
    path = tmp_path_factory.mktemp("counted") / "x.mp4"
    video.write_video(path, frames, video.VideoInfo(17, 64, 96, Fraction(20)))
    return path


@pytest.fixture
def cut(tmp_path, monkeypatch):
    """A function (video, flags) that cuts gt_rgb.mp4 of it by the program, and does no more."""
    def run(source, *args):
        args = ("--video", source, "--output", tmp_path / "new", "--depth_file", source, *args)
        assert call("toolbox.geometry.estimate_geometry", *args) == 0
        return tmp_path / "new/gt_rgb.mp4"

    monkeypatch.setattr(estimate_geometry, "run", lambda *args: None)
    return run


def which(path, source):
    """The frames of a video that those of another are."""
    frames = video.read_video(source).astype(int)
    found = video.read_video(path).astype(int)
    far = np.abs(found[:, None] - frames).mean((2, 3, 4))  # [n, N]
    assert far.min(1).max() < 3 and np.sort(far, 1)[:, 1].min() > 4
    return far.argmin(1).tolist()


@pytest.mark.parametrize("args, frames, fps", [
    (("--start", 0.2), range(4, 17), 20),
    (("--frames", 5), range(5), 20),
    (("--start", 0.2, "--frames", 5), range(4, 9), 20),
    (("--fps", 10), range(0, 17, 2), 10),
    (("--fps", 8), (0, 3, 5, 8, 10, 13, 15), 8),
    (("--fps", 16), (0, 2, 3, 4, 5, 7, 8, 9, 10, 12, 13, 14, 15), 16),
    (("--fps", 5, "--start", 0.15, "--frames", 3), (3, 7, 11), 5),
])
def test_a_part_of_a_video(counted, cut, args, frames, fps):
    path = cut(counted, *args)
    assert which(path, counted) == list(frames)
    assert video.probe(path) == video.VideoInfo(len(frames), 64, 96, Fraction(fps))


@pytest.mark.parametrize("args", [(), ("--fps", 30), ("--frames", 99)])
def test_a_whole_mp4_is_copied(counted, cut, args):
    assert cut(counted, *args).read_bytes() == counted.read_bytes()


def test_uneven_times_are_kept(counted, cut, tmp_path):
    gaps = [Fraction(1 + t % 3, 24) for t in range(17)]
    times = tuple(sum(gaps[:t], Fraction(0)) for t in range(18))
    info = video.VideoInfo(17, 64, 96, 17 / times[-1], times=times)
    video.write_video(tmp_path / "uneven.mp4", video.read_video(counted), info)
    path = cut(tmp_path / "uneven.mp4", "--start", float(times[4]) - 0.001, "--frames", 6)
    assert which(path, counted) == list(range(4, 10))
    expected = tuple(moment - times[4] for moment in times[4:11])
    assert video.probe(path).times == pytest.approx(expected, abs=1e-3)


# ---- interruptions -------------------------------------------------------------------------------


def interrupt_once(monkeypatch, module, name, after=0):
    """Let module.name stop the program as Ctrl-C does, once, after so many calls; its calls."""
    whole = getattr(module, name)
    calls = []

    def stop(*args, **kwargs):
        calls.append(args)
        if len(calls) == after + 1:
            raise cli.Interrupted(signal.SIGINT)
        return whole(*args, **kwargs)

    monkeypatch.setattr(module, name, stop)
    return calls


def test_an_interrupted_run_goes_on_without_solving_again(bare, tmp_path, monkeypatch):
    other = shutil.copytree(bare, tmp_path / "other")
    assert estimate(other, *GIVEN) == 0
    solves = interrupt_once(monkeypatch, shots, "solve_window", after=99)
    interrupt_once(monkeypatch, shots, "fused")
    assert estimate(bare, *GIVEN) == 128 + signal.SIGINT
    work = bare / estimate_geometry.WORK
    assert len(solves) == 1 and list(work.glob("window_*.npz"))
    assert not [name for name in OUTPUTS if (bare / name).exists()]
    assert estimate(bare, *GIVEN) == 0
    assert len(solves) == 1 and not work.exists()
    for name in OUTPUTS:
        assert (bare / name).read_bytes() == (other / name).read_bytes()


@pytest.mark.parametrize("change", ["flag", "video", "depth"])
def test_what_was_made_of_something_else_is_made_again(bare, monkeypatch, change):
    solves = interrupt_once(monkeypatch, shots, "solve_window", after=99)
    interrupt_once(monkeypatch, shots, "fused")
    assert estimate(bare, *GIVEN) == 128 + signal.SIGINT
    if change == "video":
        frames = video.read_video(bare / "gt_rgb.mp4")[:, :, ::-1]
        video.write_video(bare / "gt_rgb.mp4", frames, video.VideoInfo(4, 64, 96, Fraction(20)))
    if change == "depth":
        np.save(bare / "given.npy", 2 * np.load(bare / "given.npy"))
    assert estimate(bare, *GIVEN, *(("--focal", 99) if change == "flag" else ())) == 0
    assert len(solves) == 2


def test_a_network_goes_on_where_it_was_interrupted(bare, begun, tmp_path, monkeypatch):
    save_depth_anything(tmp_path / "model")
    whole, _ = begun("--model_path", tmp_path / "model")
    shutil.rmtree(bare / estimate_geometry.WORK)
    calls = interrupt_once(monkeypatch, networks, "predict", after=2)
    assert estimate(bare, "--model_path", tmp_path / "model") == 128 + signal.SIGINT
    assert len(calls) == 3
    again, _ = begun("--model_path", tmp_path / "model")
    assert len(calls) == 5 and np.array_equal(again, whole)


def test_a_network_goes_on_with_another_batch_size(bare, begun, tmp_path, monkeypatch):
    save_depth_anything(tmp_path / "model")
    whole, _ = begun("--model_path", tmp_path / "model")
    shutil.rmtree(bare / estimate_geometry.WORK)
    for size in (1, 2):  # the second start does frame 0 once more
        with monkeypatch.context() as patch:
            interrupt_once(patch, networks, "predict", after=1)
            model = ("--model_path", tmp_path / "model", "--batch_size", size)
            assert estimate(bare, *model) == 128 + signal.SIGINT
    again, _ = begun("--model_path", tmp_path / "model")
    np.testing.assert_allclose(again, whole, rtol=1e-4)


def test_another_part_of_a_video_is_not_taken_for_the_one_that_was_begun(counted, tmp_path,
                                                                          monkeypatch):
    args = ("--video", counted, "--output", tmp_path / "new", "--model_path", tmp_path / "model",
            "--device", "cpu")
    save_depth_anything(tmp_path / "model")
    interrupt_once(monkeypatch, networks, "predict")
    interrupt_once(monkeypatch, shots, "find_geometry")
    program = "toolbox.geometry.estimate_geometry"
    assert call(program, *args, "--frames", 5) == 128 + signal.SIGINT
    assert which(tmp_path / "new/gt_rgb.mp4", counted) == list(range(5))
    again = ("--frames", 4, "--start", 0.2, "--overwrite")
    assert call(program, *args, *again) == 128 + signal.SIGINT
    assert which(tmp_path / "new/gt_rgb.mp4", counted) == list(range(4, 8))


def test_an_unfinished_run_is_no_leave_to_overwrite(bare, monkeypatch, capsys):
    interrupt_once(monkeypatch, shots, "fused")
    assert estimate(bare, *GIVEN) == 128 + signal.SIGINT
    np.save(bare / sequence.DEPTH, np.ones((4, 64, 96)))
    before = (bare / sequence.DEPTH).read_bytes()
    assert estimate(bare, *GIVEN, "--focal", 99) == 2
    assert "give --overwrite" in capsys.readouterr().err
    assert (bare / sequence.DEPTH).read_bytes() == before
