"""Files as each program writes them, converted and opened again; values against closed forms."""

import sys
import zipfile
from fractions import Fraction

import av
import cv2
import numpy as np
import pytest
from conftest import call

from utils import sequence, video

N, H, W = 5, 24, 32  # of the depth maps
K = np.array([[30, 0, 15], [0, 31, 13], [0, 0, 1]], np.float32)
Z = np.linspace(0.5, 8, N * H * W).reshape(N, H, W)


def poses(count=N):
    """c2w that turn about y and move, float64 [count, 4, 4]."""
    c2w = np.tile(np.eye(4), (count, 1, 1))
    for i in range(count):
        a = 0.1 * i
        turn = np.array([[np.cos(a), 0, np.sin(a)], [0, 1, 0], [-np.sin(a), 0, np.cos(a)]])
        c2w[i, :3] = np.column_stack([turn, [i, 2 * i, 3]])
    return c2w


@pytest.fixture
def seq(tmp_path):
    """A sequence folder with a video of N frames, twice the depth maps' size, and nothing else."""
    info = video.VideoInfo(N, 2 * H, 2 * W, Fraction(24))
    frames = np.full((N, 2 * H, 2 * W, 3), 90, np.uint8)
    video.write_video(tmp_path / "seq" / "gt_rgb.mp4", frames, info)
    return tmp_path / "seq"


@pytest.fixture
def convert(seq):
    def convert(source, *args):
        program = "toolbox.geometry.convert_depth"
        return call(program, "--input", source, "--output_path", seq, *args)

    return convert


def opened(seq, cameras=False):
    if not cameras:
        return sequence.open_sequence(seq)
    return sequence.open_sequence(seq, intrinsics_file=sequence.INTRINSICS,
                                  extrinsics_file=sequence.C2WS)


def npz(path, **arrays):
    np.savez_compressed(path, **arrays)
    return path


def megasam(path, **change):
    arrays = {"images": np.full((N, H, W, 3), 90, np.uint8), "depths": Z.astype(np.float16),
              "intrinsic": K, "cam_c2w": poses().astype(np.float32)}
    return npz(path, **{**arrays, **change})


def depth_anything_3(path, **change):
    w2c = np.linalg.inv(poses())[:, :3].astype(np.float32)
    k = np.stack([K + np.diag([i, i, 0]) for i in range(N)]).astype(np.float32)
    arrays = {"depth": Z.astype(np.float32), "conf": np.ones((N, H, W), np.float32),
              "extrinsics": w2c, "intrinsics": k}
    return npz(path, **{**arrays, **change})


def damage(path):
    """Overwrite the middle of a file, so that an npz still lists its arrays."""
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2] + b"x" * 99 + data[len(data) // 2 + 99 :])


def refused(code, seq, capsys, *says):
    """Exit code 2, one line, and nothing written."""
    lines = capsys.readouterr().err.splitlines()
    assert code == 2 and len(lines) == 1 and lines[0].startswith("error: ")
    assert "expected" in lines[0] or "give" in lines[0] or "pip install" in lines[0]
    assert all(word in lines[0] for word in says), lines[0]
    assert not (seq / "cam_info").exists()


def test_megasam(tmp_path, seq, convert, capsys):
    assert convert(megasam(tmp_path / "x_sgd_cvd_hr.npz")) == 0
    out = opened(seq, cameras=True)
    assert out.depth_map.dtype == np.float16 and np.array_equal(out.depth_map, Z.astype(np.float16))
    np.testing.assert_allclose(out.intrinsics[3], K * [[2], [2], [1]], rtol=1e-6)
    np.testing.assert_allclose(out.c2w, poses(), atol=1e-6)
    line = capsys.readouterr().out.splitlines()[0]
    assert "detected as megasam, taken for relative depth" in line
    assert line.endswith("min 0.5, median 4.25, max 8")
    assert video.probe(seq / "gt_rgb.mp4").height == 2 * H  # the one that was there


def test_megasam_images_become_the_video_where_there_is_none(tmp_path):
    args = "--input", megasam(tmp_path / "x.npz"), "--output_path", tmp_path / "new", "--fps", 30
    assert call("toolbox.geometry.convert_depth", *args) == 0
    assert video.probe(tmp_path / "new" / "gt_rgb.mp4") == video.VideoInfo(N, H, W, Fraction(30))
    assert len(opened(tmp_path / "new", cameras=True).c2w) == N


def test_depthcrafter(tmp_path, seq, convert, capsys):
    near, far = 0.5, 10
    # so that depth is a ramp
    d = (1 / np.linspace(far, near, N * H * W) - 1 / far) / (1 / near - 1 / far)
    source = npz(tmp_path / "x.npz", depth=d.reshape(N, H, W).astype(np.float32))
    assert convert(source, "--near", near, "--far", far) == 0
    ramp = np.linspace(far, near, N * H * W).reshape(N, H, W)
    np.testing.assert_allclose(opened(seq).depth_map, ramp, rtol=1e-3)
    assert "detected as depthcrafter, taken for relative disparity" in capsys.readouterr().out
    assert convert(source) == 0
    assert opened(seq).depth_map.min() == 1 and opened(seq).depth_map.max() == 20


def test_a_part_of_a_depthcrafter_video(tmp_path, seq, convert, capsys):
    source = npz(tmp_path / "x.npz", depth=np.linspace(0.25, 0.75, N * H * W).reshape(N, H, W))
    refused(convert(source), seq, capsys, "0.25 to 0.75", "--format depthcrafter")
    # its numbers were normalised with the rest of the video, and are not normalised again
    assert convert(source, "--format", "depthcrafter", "--near", 1, "--far", 2) == 0
    assert opened(seq).depth_map[0, 0, 0] == pytest.approx(1 / 0.625, rel=1e-3)
    refused_too = npz(tmp_path / "y.npz", depth=Z)
    assert convert(refused_too, "--format", "depthcrafter") == 2


def test_video_depth_anything_is_what_the_user_says(tmp_path, seq, convert, capsys):
    source = npz(tmp_path / "x.npz", depths=Z.astype(np.float32))
    refused(convert(source), seq, capsys, "--kind depth", "--metric", "--kind disparity",
            "near = high")
    assert convert(source, "--kind", "depth") == 0
    np.testing.assert_allclose(opened(seq).depth_map, Z, rtol=1e-3)
    assert "taken for depth in metres" in capsys.readouterr().out
    assert convert(source, "--kind", "disparity", "--near", 2, "--far", 4) == 0
    depth = 1 / (0.25 * (Z - 0.5) / 7.5 + 0.25)
    np.testing.assert_allclose(opened(seq).depth_map, depth, rtol=1e-3)
    assert "taken for relative disparity" in capsys.readouterr().out


def test_depth_anything_3(tmp_path, seq, convert, capsys):
    assert convert(depth_anything_3(tmp_path / "x.npz")) == 0
    out = opened(seq, cameras=True)
    np.testing.assert_allclose(out.depth_map, Z, rtol=1e-3)
    np.testing.assert_allclose(out.c2w, poses(), atol=1e-6)
    k = (K + np.diag([3, 3, 0])) * [[2], [2], [1]]
    np.testing.assert_allclose(out.intrinsics[3], k, rtol=1e-6)
    assert "detected as depth_anything_3, taken for relative depth" in capsys.readouterr().out


def vipe(folder, clip="bear", depth=None, pose=None, lens=None, k_scale=1, **depth_maps):
    """A ViPE result with K of the 2H x 2W video.

    depth, pose, lens: the frames that are there, all by default. z0, z1, ...: other depth maps.
    """
    exr = pytest.importorskip("OpenEXR", minversion="3.3")
    for name in ("depth", "pose", "intrinsics"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(folder / f"depth/{clip}.zip", "w") as file:
        for i in range(N) if depth is None else depth:
            header = {"compression": exr.ZIP_COMPRESSION, "type": exr.scanlineimage}
            z = depth_maps.get(f"z{i}", Z[i]).astype(np.float16)
            exr.File(header, {"Z": z}).write(str(folder / "z.exr"))
            file.write(folder / "z.exr", f"{i:05d}.exr")
    at = np.array(range(N) if pose is None else pose)
    np.savez(folder / f"pose/{clip}.npz", data=poses(40)[at].astype(np.float32), inds=at)
    at = np.array(range(N) if lens is None else lens)
    k = np.array([[60 + i, 62 + i, 30, 26] for i in at], np.float32)
    np.savez(folder / f"intrinsics/{clip}.npz", data=k * k_scale, inds=at)
    return folder


def test_vipe(tmp_path, seq, convert, capsys):
    assert convert(vipe(tmp_path / "x")) == 0
    out = opened(seq, cameras=True)
    np.testing.assert_allclose(out.depth_map, Z.astype(np.float16))
    np.testing.assert_allclose(out.c2w, poses(), atol=1e-6)
    for i, k in enumerate(out.intrinsics):  # back at the video's resolution, as ViPE gave it
        np.testing.assert_allclose(k, [[60 + i, 0, 30], [0, 62 + i, 26], [0, 0, 1]], rtol=1e-6)
    text = capsys.readouterr().out
    assert "detected as vipe, taken for depth in metres" in text
    assert "of the 64 x 48 video and scaled" in text


@pytest.mark.parametrize("height, width", [(H, W), (2 * H, 2 * W + 4), (3 * H, 3 * W)])
def test_vipe_k_is_that_of_its_own_video(tmp_path, seq, convert, height, width):
    sx, sy = W / width, H / height
    folder = vipe(tmp_path / "x", k_scale=1 / (2 * sy))
    info = video.VideoInfo(N, height, width, Fraction(24))
    frames = np.zeros((N, height, width, 3), np.uint8)
    video.write_video(folder / "rgb" / "bear.mp4", frames, info)
    assert convert(folder) == 0
    focal, given = np.sqrt(sx * sy), np.array([60, 62, 30, 26]) / (2 * sy)
    k = np.load(seq / sequence.INTRINSICS)[0]
    expected = given * [focal, focal, sx, sy]
    np.testing.assert_allclose([k[0, 0], k[1, 1], k[0, 2], k[1, 2]], expected, rtol=1e-6)


def test_vipe_with_frames_missing_takes_the_nearest_and_says_so(tmp_path, seq, convert, capsys):
    gone = np.full((H, W), np.nan)
    holes = np.where(np.arange(W) < 8, np.nan, Z[0])
    folder = vipe(tmp_path / "x", depth=[0, 1, 2, 4], pose=[1, 2, 3], lens=[2], z2=gone, z0=holes)
    assert convert(folder) == 0
    out, text = opened(seq, cameras=True), capsys.readouterr().out
    np.testing.assert_allclose(out.depth_map[1:], Z[[1, 1, 4, 4]].astype(np.float16))
    assert (out.depth_map[0, :, :8] == 0).all()
    assert out.bad_depth_share == pytest.approx(8 * H / Z.size)
    np.testing.assert_allclose(out.c2w, poses()[[1, 1, 2, 3, 3]], atol=1e-6)
    np.testing.assert_allclose(out.intrinsics[:, 0, 0], 62)
    assert "x/depth/bear.zip: 2 of 5 frames are missing" in text
    assert "x/pose/bear.npz: 2 of 5 frames" in text
    assert f"{8 * H} of {Z.size} values are not positive and finite" in text


def test_vipe_folders_that_are_refused(tmp_path, seq, convert, capsys):
    long = vipe(tmp_path / "long", pose=range(6))
    refused(convert(long), seq, capsys, "has 6 frames (0 to 5) for a video of 5")
    both = vipe(vipe(tmp_path / "both"), clip="cat", depth=[1, 3])
    refused(convert(both), seq, capsys, "bear.zip, cat.zip", "one zip")
    (tmp_path / "both/pose/cat.npz").unlink()
    assert convert(both / "depth/cat.zip") == 2
    assert "pose/cat.npz" in capsys.readouterr().err
    assert convert(both / "depth/bear.zip") == 0
    np.savez(tmp_path / "both/intrinsics/bear.npz", data=np.ones((N, 5)), inds=np.arange(N))
    assert convert(both / "depth/bear.zip") == 2 and "pinhole" in capsys.readouterr().err


def test_vipe_names_in_a_zip_touch_no_file(tmp_path, seq, convert, capsys):
    folder = vipe(tmp_path / "x", depth=[0, 1, 3, 4])
    with zipfile.ZipFile(folder / "depth/bear.zip", "a") as file:
        file.writestr("../../00009.exr", "x")
        file.writestr("00002.exr", "not an EXR")
    before = sorted(tmp_path.rglob("*"))
    assert convert(folder) == 0 and "1 of 5 frames are missing" in capsys.readouterr().out
    new = {path.name for path in set(tmp_path.rglob("*")) - set(before)}
    names = (sequence.DEPTH, sequence.INTRINSICS, sequence.C2WS)
    assert new == {"cam_info", *(name.split("/")[1] for name in names)}


def test_vipe_without_the_library_names_it(tmp_path, seq, convert, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "OpenEXR", None)
    folder = tmp_path / "x"
    for name in ("depth", "pose", "intrinsics"):
        (folder / name).mkdir(parents=True)
    with zipfile.ZipFile(folder / "depth/bear.zip", "w") as file:
        file.writestr("00000.exr", "")
    refused(convert(folder), seq, capsys, "pip install", "OpenEXR")


@pytest.fixture
def pngs(tmp_path):
    """A folder of 16-bit PNGs in millimetres, numbered without leading zeros, one pixel 0."""
    folder = tmp_path / "pngs"
    folder.mkdir()
    images = np.round(Z * 1000).astype(np.uint16)
    images[0, 0, 0] = 0
    for i, image in enumerate(images, 8):
        cv2.imwrite(str(folder / f"frame_{i}.png"), image)
    return folder, images


def write_grey16(path, codec, images):
    with av.open(path, "w") as container:
        stream = container.add_stream(codec, rate=24)
        stream.width, stream.height = images.shape[2], images.shape[1]
        stream.pix_fmt = "gray16be" if codec == "png" else "gray16le"
        for image in images:
            frame = av.VideoFrame.from_ndarray(image, format="gray16le")
            container.mux(stream.encode(frame.reformat(format=stream.pix_fmt)))
        container.mux(stream.encode())
    return path


@pytest.mark.parametrize("codec", [None, "png", "ffv1"])
def test_pngs_and_grey_video(tmp_path, seq, convert, pngs, codec, capsys):
    source, images = pngs
    if codec:
        source = write_grey16(tmp_path / ("x.mov" if codec == "png" else "x.mkv"), codec, images)
    refused(convert(source), seq, capsys, "--kind", "--scale")
    refused(convert(source, "--kind", "depth"), seq, capsys, "--scale")
    assert convert(source, "--kind", "depth", "--scale", 0.001) == 0
    np.testing.assert_allclose(opened(seq).depth_map, images / 1000, rtol=1e-3)
    text = capsys.readouterr().out
    assert "detected as raw, taken for depth, 0.001 (--scale) times" in text
    assert "1 of 3840 values" in text
    assert convert(source, "--kind", "disparity", "--scale", 0.002) == 0
    np.testing.assert_allclose(opened(seq).depth_map[1:], 500 / images[1:], rtol=1e-3)
    assert opened(seq).depth_map[0, 0, 0] == 0


def test_pngs_and_videos_of_8_bits_are_refused(seq, convert, pngs, capsys):
    how = ("--kind", "depth", "--scale", 1)
    refused(convert(seq / "gt_rgb.mp4", *how), seq, capsys, "yuv420p", "16-bit grey")
    cv2.imwrite(str(pngs[0] / "frame_9.png"), np.ones((H, W), np.uint8))
    refused(convert(pngs[0], *how), seq, capsys, "frame_9.png: got uint8")
    cv2.imwrite(str(pngs[0] / "frame_9.png"), np.ones((H, W + 1), np.uint16))
    refused(convert(pngs[0], *how), seq, capsys, "all of one size")


@pytest.mark.parametrize("unit, dtype", [(1, np.float16), (1e4, np.float32), (1e-6, np.float32)])
def test_npy_is_float16_only_where_that_holds_the_values(tmp_path, seq, convert, unit, dtype):
    np.save(tmp_path / "x.npy", Z * unit)
    assert convert(tmp_path / "x.npy", "--kind", "depth", "--scale", 1) == 0
    assert opened(seq).depth_map.dtype == dtype
    np.testing.assert_allclose(opened(seq).depth_map, Z * unit, rtol=1e-3)


def test_what_is_no_depth_becomes_holes_and_is_counted(tmp_path, seq, convert, capsys):
    z = Z.copy()
    z[0, 0, :5] = np.nan, np.inf, -np.inf, 0, -1
    np.save(tmp_path / "x.npy", z)
    assert convert(tmp_path / "x.npy", "--kind", "depth", "--scale", 1) == 0
    depth = opened(seq).depth_map
    assert (depth[0, 0, :5] == 0).all() and (depth > 0).sum() == Z.size - 5
    assert f"5 of {Z.size} values" in capsys.readouterr().out
    d = (Z - 0.5) / 7.5
    d[1, 2, 3] = np.nan
    assert convert(npz(tmp_path / "x.npz", depth=d)) == 0
    assert opened(seq).depth_map[1, 2, 3] == 0 and opened(seq).depth_map.max() == 20


def test_cameras_that_were_there_are_kept_and_named(tmp_path, seq, convert, capsys):
    assert convert(megasam(tmp_path / "x.npz")) == 0
    before = (seq / sequence.C2WS).read_bytes()
    capsys.readouterr()
    assert convert(npz(tmp_path / "y.npz", depth=(Z - 0.5) / 7.5)) == 0
    assert "megasam_intrinsics.npy was there before" in capsys.readouterr().out
    assert (seq / sequence.C2WS).read_bytes() == before


DEPTH = ("--kind", "depth")
BAD = {  # how the file is made, the flags, what the message says
    "other keys": (lambda p: npz(p, disparity=Z), (),
                   ["found disparity", "depths, images, intrinsic, cam_c2w"]),
    "more than DepthCrafter's": (lambda p: npz(p, depth=Z, conf=Z), (), ["found depth, conf"]),
    "no npz": (lambda p: p.write_bytes(b"x"), (), ["found x.npz"]),
    "no npz, told": (lambda p: p.write_bytes(b"x"), ("--format", "megasam"),
                     ["expected MegaSAM's npz"]),
    "cut": (lambda p: p.write_bytes(megasam(p).read_bytes()[:900]), (), ["found x.npz"]),
    "damaged": (lambda p: megasam(p) and damage(p), (), ["expected MegaSAM's npz"]),
    "pickles": (lambda p: npz(p, depths=np.array([{}])), DEPTH, ["allow_pickle"]),
    "one map": (lambda p: npz(p, depths=Z[0]), DEPTH, ["(24, 32)", "depths [N,H,W]"]),
    "no frames": (lambda p: npz(p, depths=Z[:0]), DEPTH, ["(0, 24, 32)"]),
    "another length": (lambda p: npz(p, depths=Z[:4]), DEPTH, ["4 depth maps", "expected 5"]),
    "turned": (lambda p: npz(p, depths=Z.transpose(0, 2, 1)), DEPTH, ["24 x 32", "64 x 48"]),
    "flat": (lambda p: npz(p, depths=0 * Z), ("--kind", "disparity"), ["two different"]),
    "no depth": (lambda p: npz(p, depths=0 * Z), DEPTH, ["no positive finite depth"]),
    "other images": (lambda p: megasam(p, images=np.zeros((N, H, W, 3))), (), ["float64", "uint8"]),
    "fewer poses": (lambda p: megasam(p, cam_c2w=poses(4)), (), ["cam_c2w", "(4, 4, 4)"]),
    "scaled poses": (lambda p: megasam(p, cam_c2w=2 * poses()), (), ["rotations"]),
    "mirrored poses": (lambda p: megasam(p, cam_c2w=poses() * [1, 1, -1, 1]), (), ["rotations"]),
    "NaN poses": (lambda p: depth_anything_3(p, extrinsics=np.full((N, 3, 4), np.nan)), (),
                  ["rotations"]),
    "K of the video": (lambda p: megasam(p, intrinsic=4 * K * [[1], [1], [0.25]]), (),
                       ["principal point", "32 x 24"]),
    "K without its last row": (lambda p: megasam(p, intrinsic=K * [[1], [1], [0]]), (), ["0 0 1"]),
    "negative focal": (lambda p: megasam(p, intrinsic=K * [[-1], [1], [1]]), (),
                       ["positive focal"]),
    "a flag for others": (megasam, ("--kind", "disparity"),
                          ["--kind disparity", "megasam has no use"]),
    "near beyond far": (lambda p: npz(p, depth=Z), ("--near", 30), ["near below far"]),
    "near at 0": (lambda p: npz(p, depth=Z), ("--near", 0), ["--near 0.0", "positive"]),
}


@pytest.mark.parametrize("case", BAD)
def test_wrong_input_gets_one_line_and_writes_nothing(case, tmp_path, seq, convert, capsys):
    make, args, says = BAD[case]
    make(tmp_path / "x.npz")
    refused(convert(tmp_path / "x.npz", *args), seq, capsys, *says)


def test_nothing_there(tmp_path, seq, convert, capsys):
    assert convert(tmp_path / "none.npz") == 2 and "no such file" in capsys.readouterr().err
    (tmp_path / "empty").mkdir()
    refused(convert(tmp_path / "empty"), seq, capsys, "found nothing")
