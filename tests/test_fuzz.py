"""Every parser against broken and hostile files: it refuses in one short line, or what it returns
is right; no other exception, no warning, no memory for what a header merely says, no long wait.

The tests here make the same 1300 files each time. To look for more, with new ones:

    FUZZ_EXAMPLES=20000 python -m pytest -c tests/pytest.ini -s tests/test_fuzz.py

makes so many of each kind, and says how many were read and how many refused.
"""

import argparse
import contextlib
import io
import json
import os
import resource
import shutil
import struct
import tempfile
import time
import warnings
import zipfile
import zlib
from collections import Counter
from fractions import Fraction
from pathlib import Path
from types import SimpleNamespace

import cv2
import numpy as np
import psutil
import pytest
import torch
from conftest import ROOT
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from finetune import hosts
from toolbox import run_all
from toolbox.geometry import convert_depth
from utils import camera_paths, pipeline, sequence, trajectory, video
from utils.cli import InputError

EXAMPLES = int(os.environ.get("FUZZ_EXAMPLES", 0))
SECONDS = 3  # of computing, that one file may take
MEMORY = 2**30  # bytes that reading one file may add
N, H, W = 5, 24, 32
K = np.tile(np.array([[30.0, 0, 16], [0, 30, 12], [0, 0, 1]]), (N, 1, 1))
TINY = ROOT / "checkpoints" / "tiny"
seen = Counter()


def fuzz(examples):
    """Settings of a test: so many examples, always the same, unless FUZZ_EXAMPLES asks for more."""
    return settings(max_examples=EXAMPLES or examples, derandomize=not EXAMPLES, database=None,
                    deadline=None, suppress_health_check=list(HealthCheck))


@pytest.fixture(scope="module", autouse=True)
def say_what_was_seen():
    yield
    print(f"\n{seen.total()} files: {dict(seen)}")


@pytest.fixture(scope="module")
def folder():
    """A folder of a short name, for its length counts in messages."""
    with tempfile.TemporaryDirectory(prefix="fuzz") as path:
        yield Path(path)


@contextlib.contextmanager
def bounded():
    """A context in which this process may take MEMORY more, and SECONDS of computing."""
    before = resource.getrlimit(resource.RLIMIT_AS)
    start = time.process_time()
    resource.setrlimit(resource.RLIMIT_AS, (psutil.Process().memory_info().vms + MEMORY, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)
    assert time.process_time() - start < SECONDS


def judge(read, path):
    """What read() returns; None if it refuses the file as it should."""
    try:
        with bounded(), warnings.catch_warnings():
            warnings.simplefilter("error")
            found = read()
    except InputError as error:
        check_refusal(error, path)
        seen["refused"] += 1
        return None
    seen["read"] += 1
    return found


def check_refusal(error, path):
    text = str(error)
    named = Path(path).name in text or text.startswith("deepspeed_config_file ")
    assert named and len(text) < 400 and text.isprintable(), text
    while error:
        assert not isinstance(error, MemoryError), "memory was asked for before it was refused"
        error = error.__cause__


# ---- broken files --------------------------------------------------------------------------------


@st.composite
def mutated(draw, whole):
    """One of some files' bytes, damaged in a few places, more often at its ends."""
    data = bytearray(draw(st.sampled_from(whole)))
    for _ in range(draw(st.integers(1, 4))):
        end = len(data)
        near = min(200, end)
        at = draw(st.integers(0, near) | st.integers(end - near, end) | st.integers(0, end))
        match draw(st.sampled_from(["set", "insert", "delete", "cut"])):
            case "set":
                new = draw(st.binary(min_size=1, max_size=8) | st.sampled_from(INTERESTING))
                data[at : at + len(new)] = new
            case "insert":
                data[at:at] = draw(st.binary(min_size=1, max_size=8))
            case "delete":
                del data[at : at + draw(st.integers(1, 40))]
            case "cut":
                del data[at:]
    return bytes(data)


INTERESTING = [b"\xff\xff\xff\xff", b"\xff\xff\xff\x7f", b"\0\0\0\x80", b"\0\0\0\0", b"\xff" * 8,
               b"\xff" * 7 + b"\x7f", b"9999999999", b"-1", b"1e999", b"nan", b"\n", b"\0", b"([{"]
NUMBERS = ["<f4", "<f8", ">f2", "<f2", "<i4", ">u8", "|u1", "<f16"]
OTHERS = ["|b1", "|O", "<U3", "|S4", "|V8", "<c8", "<M8[s]", "|V0", "<U0", "<f4,(", "f4,f4", "",
          ("<f4", (2,)), [("a", "<f4")], [("a", "|O")], [("x" * 3000, "<f4")], 5, None]
HEADERS = ["", "(", "{", "{'descr': (", "  {", "-" * 90 + "1", "(" * 150 + ")" * 150, "[" * 9000,
           "1", "{1: 2, 'a': 3}", "{}", "9" * 5000, "'\\d'", "{'a': 1L", "\0", "x" * 9999]
SIZES = st.sampled_from([0, 1, 2, 3, 4, 5, -1, -4, 2**31, 2**32, 2**62, 2**63, 2**64, 10**30, True])
SHAPES = st.sampled_from([(4, 4), (N, 4, 4), (3, 3), (N, 3, 3), (N,), (N, H, W), (N, H, W, 3),
                          (10**5, 10**5), (N, 2**16, 2**15)])


@st.composite
def npys(draw):
    """The bytes of an npy whose header says anything, with numbers that may go with it."""
    shape = draw(SHAPES | st.lists(SIZES, max_size=4).map(tuple) | st.just("shape"))
    descr = draw(st.sampled_from(NUMBERS) | st.sampled_from(OTHERS))
    order = draw(st.sampled_from([False, False, True, 0, None]))
    header = f"{{'descr': {descr!r}, 'fortran_order': {order}, 'shape': {shape}, }}"
    header = draw(st.just(header) | st.sampled_from(HEADERS) if draw(st.integers(0, 3)) == 0
                  else st.just(header)).encode("latin1", "replace")
    version = draw(st.sampled_from([(1, 0), (1, 0), (2, 0), (3, 0), (9, 9)]))
    length = struct.pack("<H" if version[0] == 1 else "<I", len(header))
    return b"\x93NUMPY" + bytes(version) + length + header + draw(contents(shape, descr))


@st.composite
def contents(draw, shape, descr):
    """Numbers that go with a header where that is possible: an identity, a ramp, or anything."""
    with contextlib.suppress(Exception):
        dtype = np.dtype(descr)
        if dtype.kind in "fiu" and 0 < np.prod(shape, dtype=float) < 20000:
            identity = np.resize(np.eye(shape[-1]), shape)
            ramp = np.linspace(draw(st.sampled_from([0, -1, 1e300])), 9, identity.size)
            kind = draw(st.sampled_from(["identity", "identity", "ramp", "K", "any"]))
            with np.errstate(all="ignore"):
                if kind != "any":
                    array = {"identity": identity, "ramp": ramp, "K": np.resize(K, shape)}[kind]
                    return array.astype(dtype).tobytes()
    return draw(st.binary(max_size=400))


NAMES = ["c2w.npy", "c2w.npy", "intrinsics.npy", "frames.npy", "depth.npy", "depths.npy", "c2w",
         "../c2w.npy", "/c2w.npy", "c2w.npy.npy", "x\n" * 200 + ".npy", "\x1b[31m.npy", "/"]
METHODS = [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA]


@st.composite
def zips(draw, members=None):
    """The bytes of a zip of npys, whose directory may lie. members: (name, bytes), drawn if None"""
    if members is None:
        members = draw(st.lists(st.tuples(st.sampled_from(NAMES), npys()), min_size=1, max_size=4))
    stream = io.BytesIO()
    with warnings.catch_warnings(), zipfile.ZipFile(stream, "w") as archive:
        warnings.simplefilter("ignore")  # of names that are there twice
        for name, data in members:
            archive.writestr(name, data, draw(st.sampled_from(METHODS)))
    data = bytearray(stream.getvalue())
    entry = data.find(b"PK\x01\x02")
    for at, size in draw(st.lists(st.sampled_from(LIES), max_size=2)):
        lie = draw(st.integers(0, 256**size - 1) | st.sampled_from([1, 256**size - 2]))
        data[entry + at : entry + at + size] = lie.to_bytes(size, "little")
    return bytes(data)


# Of an entry of the directory: version, flags, method, CRC, sizes, lengths of name and extra, place
LIES = [(6, 2), (8, 2), (10, 2), (16, 4), (20, 4), (24, 4), (28, 2), (30, 2), (42, 4)]


def npy(array):
    stream = io.BytesIO()
    np.save(stream, array)
    return stream.getvalue()


def npz(**arrays):
    stream = io.BytesIO()
    np.savez_compressed(stream, **arrays)
    return stream.getvalue()


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5)
    | st.sampled_from([0, -1, 2**40, 10**400, "../x", "/etc/passwd", "\0", "x" * 3000, 1.5, "7"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=6)


@st.composite
def jsons(draw, whole):
    """The text of a JSON object with some values changed or gone, or of any other JSON."""
    value = dict(whole)
    for name in draw(st.lists(st.sampled_from(sorted(whole)), max_size=2)):
        value[name] = draw(JSON)
        if draw(st.integers(0, 4)) == 0:
            del value[name]
    text = json.dumps(draw(st.just(value) | st.just(value) | JSON))
    return draw(st.sampled_from([text.encode(), b"\xef\xbb\xbf" + text.encode(),
                                 text.encode("utf-16"), text[:-1].encode(), b"[" * 50000]))


# ---- camera paths --------------------------------------------------------------------------------

WORDS = ["0", "1", "-3.5", "1e3", "٣", "−5", "1e999", "nan", "inf", "1e308", "1_0", "0x1", "0,5",
         "", "\0", "\ufeff", "\u2028", "-", "9" * 5000]
ENCODINGS = ["utf-8", "utf-8-sig", "utf-16", "utf-32", "latin1"]


def check_path(keys):
    assert list(keys) == list(trajectory.AXES)
    cameras = trajectory.keyframe_cameras(keys, K, 2.0)
    assert np.isfinite(cameras.c2w).all() and np.isfinite(cameras.intrinsics).all()


@given(st.lists(st.lists(st.sampled_from(WORDS), max_size=6), max_size=4),
       st.sampled_from(ENCODINGS), st.sampled_from(["\n", "\r\n", "\r", "\n\n"]),
       st.sampled_from([" ", "\t", "\xa0 "]))
@fuzz(100)
def test_texts_are_paths_or_refused(folder, lines, encoding, newline, space):
    path = folder / "p.txt"
    path.write_bytes(newline.join(map(space.join, lines)).encode(encoding, "replace"))
    if keys := judge(lambda: camera_paths.read_keyframes(path), path):
        check_path(keys)


@given(mutated([b"0 3 10 20\n0 -2 -8 -6 0 2\n0 0.5\n", b"# a\n0, 3 # b\n\n0\n0,-2,.5#",
                "0\t1\r\n2 -3\r\n0 0".encode("utf-16")]))
@fuzz(80)
def test_damaged_paths_are_paths_or_refused(folder, data):
    path = folder / "p.txt"
    path.write_bytes(data)
    if keys := judge(lambda: camera_paths.read_keyframes(path), path):
        check_path(keys)


NUMBER = st.floats(-1e6, 1e6)


@given(st.tuples(*[st.lists(NUMBER, min_size=1, max_size=9)] * 3), st.sampled_from(ENCODINGS),
       st.sampled_from(["\n", "\r\n", "\r", "\n \n", " # 1, 2\n", "\n#0 1\n"]),
       st.sampled_from([" ", "\t", "  ", ",", ", "]))
@fuzz(60)
def test_a_path_is_the_same_in_every_encoding(folder, keys, encoding, newline, space):
    path = folder / "p.txt"
    lines = [space.join(map(repr, line)) for line in keys]
    path.write_bytes(newline.join(lines).encode(encoding))
    assert tuple(camera_paths.read_keyframes(path).values()) == keys


@given(st.sampled_from([*trajectory.PRESETS, "none", ""]), st.sampled_from(["", ":", "::"]),
       st.sampled_from([*WORDS, "1e6", "-1e6"]) | st.floats().map(repr) | st.text(max_size=9))
@fuzz(100)
def test_presets_are_paths_or_refused(name, colon, amount):
    item = name + colon + amount
    keys = judge(lambda: camera_paths.preset_keyframes(item), name)
    if keys:
        cameras = trajectory.keyframe_cameras(keys, K, 2.0)
        assert np.isfinite(cameras.c2w).all() and (cameras.intrinsics[:, 0, 0] > 0).all()


ITEM_WORDS = [*trajectory.PRESETS, *WORDS, "+", "+", "+", "@ease", "@ease", "@", ":", ":5", ":-0.2",
              ":1e+1", ":+3", ":1e6", ",", " ", "*", "[", "/", "none", str(ROOT / "trajs"),
              str(ROOT / "trajs/traj?.txt")]
ITEM_WORDS.remove("\0")  # no command line holds it


@given(st.lists(st.sampled_from(ITEM_WORDS), max_size=8).map("".join))
@fuzz(200)
def test_items_are_paths_or_refused(trajs):
    for name, path in judge(lambda: camera_paths.find_paths(trajs, None, K, (W, H)), "") or ():
        cameras = camera_paths.cameras_of(path, K, 2.0)
        assert np.isfinite(cameras.c2w).all() and (cameras.intrinsics[:, 0, 0] > 0).all()
        assert path.get("ease", False) == name.endswith("@ease")


DEPTH = torch.linspace(0, 5, W).repeat(1, H, 1)
SEQUENCE = SimpleNamespace(size=(W, H), intrinsics=K, depth=lambda *_: DEPTH, pivot_depth=2.0)


@given(st.lists(st.sampled_from([*WORDS, "3", "9.5", ",", ",", " "]), max_size=6).map("".join)
       | st.tuples(st.floats(-2, W + 1), st.floats(-2, H + 1)).map(lambda xy: f"{xy[0]},{xy[1]}"))
@fuzz(120)
def test_pivots_are_points_before_the_camera_or_refused(text):
    pivot = judge(lambda: camera_paths.find_pivot(text, SEQUENCE), "")
    if pivot is not None:
        assert pivot.shape == (3,) and np.isfinite(pivot).all() and pivot[2] > 0
        cameras = trajectory.keyframe_cameras({"phi": [0, 20], "r": [0, 0.5]}, K, pivot)
        np.testing.assert_allclose(trajectory.angles(cameras.c2w, pivot)[2][-1], 0.5)


# ---- arrays --------------------------------------------------------------------------------------


@given(npys() | mutated([npy(np.ones((N, 4, 4), np.float32)), npz(c2w=np.ones((N, 4, 4)))]))
@fuzz(120)
def test_npys_are_arrays_or_refused(folder, data):
    path = folder / "a.npy"
    path.write_bytes(data)
    shapes = [(None, None, None), (3, 3)]
    array = judge(lambda: sequence.load_array(path, shapes), path)
    if array is not None:
        assert array.ndim in (2, 3) and array.size and array.nbytes <= len(data)
        assert np.array(array, np.float64).shape == array.shape


EYE = np.tile(np.eye(4), (N, 1, 1))
CAMERAS = {"c2w": EYE, "intrinsics": K, "frames": np.full(N, 2)}
CAMERA_JSON = {name: array.tolist() for name, array in CAMERAS.items()}
CAMERA_MEMBERS = [(f"{name}.npy", npy(array)) for name, array in CAMERAS.items()]


def check_cameras(cameras):
    assert cameras.c2w.shape == (N, 4, 4) and cameras.intrinsics.shape == (N, 3, 3)
    assert np.isfinite(cameras.c2w).all() and np.isfinite(cameras.intrinsics).all()
    r = cameras.c2w[:, :3, :3]
    np.testing.assert_allclose(r @ r.transpose(0, 2, 1), EYE[:, :3, :3], atol=2e-3)
    assert set(cameras.frames.tolist()) <= set(range(N)) and cameras.frames.shape == (N,)


@given(npys() | zips() | zips(CAMERA_MEMBERS) | mutated([npy(EYE), npz(**CAMERAS), npz(c2w=EYE)]))
@fuzz(150)
def test_camera_arrays_are_cameras_or_refused(folder, data):
    path = folder / "c.npz"
    path.write_bytes(data)
    if cameras := judge(lambda: camera_paths.read_cameras(path, K), path):
        check_cameras(cameras)


@given(jsons(CAMERA_JSON) | mutated([json.dumps(CAMERA_JSON).encode(), b"[[1, 2], [3, 4]]"]))
@fuzz(80)
def test_camera_json_is_cameras_or_refused(folder, data):
    path = folder / "c.json"
    path.write_bytes(data)
    if cameras := judge(lambda: camera_paths.read_cameras(path, K), path):
        check_cameras(cameras)


# ---- depth of other programs ---------------------------------------------------------------------

Z = np.linspace(0.5, 8, N * H * W).reshape(N, H, W).astype(np.float32)
FILES = [
    npz(images=np.full((N, H, W, 3), 90, np.uint8), depths=Z, intrinsic=K[0], cam_c2w=EYE),
    npz(depth=(Z - 0.5) / 7.5), npz(depths=Z),
    npz(depth=Z, conf=Z, extrinsics=EYE[:, :3], intrinsics=K),
]


@pytest.fixture(scope="module")
def converted(folder):
    """A function that converts a file, and checks what is written, or that nothing is."""
    out = folder / "seq"
    info = video.VideoInfo(N, 2 * H, 2 * W, Fraction(24))
    video.write_video(out / "gt_rgb.mp4", np.full((N, 2 * H, 2 * W, 3), 90, np.uint8), info)

    def convert(source, **flags):
        shutil.rmtree(out / "cam_info", ignore_errors=True)
        given = {"input": source, "output_path": out, "format": "auto"} | flags
        args = argparse.Namespace(**(convert_depth.DEFAULTS | given))
        judge(lambda: convert_depth.convert(args), source)
        if not (out / "cam_info").exists():
            return
        cameras = (out / sequence.C2WS).exists()
        k, c2w = (sequence.INTRINSICS, sequence.C2WS) if cameras else (None, None)
        depth = sequence.open_sequence(out, sequence.DEPTH, k, c2w).depth(0, N)
        assert depth.shape == (N, 2 * H, 2 * W) and depth.isfinite().all() and (depth >= 0).all()

    return convert


@st.composite
def arrays_of_formats(draw):
    """An npz of the arrays of a format, some of which are others."""
    axes_of = draw(st.sampled_from(list(convert_depth.ARRAYS.values())))
    members = [(f"{name}.npy", draw(npys())) for name in axes_of]
    return draw(zips(members))


@given(arrays_of_formats() | mutated(FILES),
       st.sampled_from(["auto", "auto", *convert_depth.ARRAYS]),
       st.sampled_from([None, "depth", "disparity"]))
@fuzz(70)
def test_npz_of_depth_is_depth_or_refused(folder, converted, data, name, kind):
    path = folder / "d.npz"
    path.write_bytes(data)
    if name != "auto" and "kind" not in convert_depth.FLAGS_OF_FORMAT.get(name, ()):
        kind = None
    assume(name != "auto" or kind is None or b"depths.npy" in data and b"images" not in data)
    converted(path, format=name, kind=kind)


def png(width=W, height=H, bits=16, colour=0, rows=None):
    """A PNG that says it is so large; its pixels are zeros, or bytes of rows."""

    def chunk(kind, data):
        whole = kind + data
        return struct.pack(">I", len(data)) + whole + struct.pack(">I", zlib.crc32(whole))

    rows = bytes(10**5) if rows is None else rows
    head = struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, 0)
    body = chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


GREY = [cv2.imencode(".png", np.round(z * 1000).astype(np.uint16))[1].tobytes() for z in Z]
SIDES = st.sampled_from([0, 1, H, W, 2**14, 2**16, 2**31 - 1, 2**31])


@given(mutated(GREY) | st.builds(png, SIDES, SIDES, st.sampled_from([1, 8, 16, 3]),
                                 st.sampled_from([0, 2, 3, 4, 6, 9])), st.integers(0, N - 1))
@fuzz(50)
def test_folders_of_pngs_are_depth_or_refused(folder, converted, data, at):
    pngs = folder / "pngs"
    pngs.mkdir(exist_ok=True)
    for i, whole in enumerate(GREY):
        (pngs / f"f_{i}.png").write_bytes(data if i == at else whole)
    converted(pngs, kind="depth", scale=0.001)


@given(npys() | mutated([npy(Z), npy(np.asfortranarray(Z.astype(">f2")))]),
       st.sampled_from(["depth", "disparity"]))
@fuzz(50)
def test_npys_of_depth_are_depth_or_refused(folder, converted, data, kind):
    path = folder / "d.npy"
    path.write_bytes(data)
    converted(path, kind=kind, scale=2.0)


@pytest.fixture(scope="module")
def exrs(folder):
    """The bytes of depth maps as ViPE writes them."""
    exr = pytest.importorskip("OpenEXR", minversion="3.3")
    made = []
    for z in Z:
        header = {"compression": exr.ZIP_COMPRESSION, "type": exr.scanlineimage}
        exr.File(header, {"Z": z.astype(np.float16)}).write(str(folder / "z.exr"))
        made.append((folder / "z.exr").read_bytes())
    return made


def write_vipe(folder, maps, table):
    for name in ("depth", "pose", "intrinsics"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    (folder / "depth/x.zip").write_bytes(maps)
    lens = np.tile([30.0, 30, 16, 12], (N, 1))
    (folder / "intrinsics/x.npz").write_bytes(npz(data=lens, inds=np.arange(N)))
    (folder / "pose/x.npz").write_bytes(table)
    return folder


TABLE = npz(data=EYE, inds=np.arange(N))
INDS = st.lists(st.sampled_from([0, 1, 2, 3, 4, 5, -1, 2**62, np.nan, np.inf, 1.5, 10**6]),
                min_size=N, max_size=N)


@given(st.data())
@fuzz(40)
def test_vipe_folders_are_depth_or_refused(folder, converted, exrs, data):
    maps = list(exrs)
    if data.draw(st.booleans()):
        maps[data.draw(st.integers(0, N - 1))] = data.draw(mutated(exrs))
    name = data.draw(st.sampled_from(["{:05}.exr"] * 3 + ["{}.exr", "../{}.exr", "9999999{}.exr"]))
    members = [(name.format(i), exr) for i, exr in enumerate(maps)]
    broken = zips([*members, ("x.exr", b""), ("../../9.exr", b"x"), ("4.exr", b"no EXR")])
    indices = INDS.map(lambda inds: npz(data=EYE, inds=np.array(inds)))
    table = data.draw(st.just(TABLE) | mutated([TABLE]) | indices | arrays_of_formats())
    converted(write_vipe(folder / "x", data.draw(broken), table))


# ---- models and records --------------------------------------------------------------------------


@pytest.fixture(scope="module")
def model(folder):
    """A base and weights that hold their configurations, and next to no tensors."""
    for name in ("vae/config.json", "scheduler/scheduler_config.json", "text_encoder/config.json"):
        (folder / "base" / name).parent.mkdir(parents=True)
        shutil.copy(TINY / "base" / name, folder / "base" / name)
    (folder / "w").mkdir()
    shutil.copy(TINY / "cognvs_ckpt_inpaint" / "config.json", folder / "w")
    save_file({"a": torch.ones(2)}, folder / "w" / pipeline.WEIGHTS, {"format": "pt"})
    return folder


CONFIG = json.loads((TINY / "cognvs_ckpt_inpaint" / "config.json").read_text())
VAE = json.loads((TINY / "base/vae/config.json").read_text())


@given(jsons(CONFIG) | mutated([json.dumps(CONFIG).encode()]))
@fuzz(80)
def test_configurations_of_weights_are_sound_or_refused(model, data):
    weights = model / "cut"
    weights.mkdir(exist_ok=True)
    (weights / "config.json").write_bytes(data)
    config = judge(lambda: pipeline.transformer_config(model / "base", weights), weights)
    if config:
        assert all(0 < config[name] <= most for name, most in pipeline.SIZES.items())
        assert config["in_channels"] == 2 * VAE["latent_channels"]


@given(jsons(VAE))
@fuzz(30)
def test_configurations_of_a_base_are_sound_or_refused(model, data):
    base = model / "base2"
    shutil.copytree(model / "base", base, dirs_exist_ok=True)
    (base / "vae" / "config.json").write_bytes(data)
    config = judge(lambda: pipeline.transformer_config(base, model / "w"), model)
    assert config is None or config == CONFIG


INDEX = {"metadata": {"total_size": 8}, "weight_map": {"a": pipeline.WEIGHTS}}
FILE_NAMES = st.sampled_from([pipeline.WEIGHTS, "../w/" + pipeline.WEIGHTS, "/dev/zero", "..", ".",
                              "", "a\0.safetensors", "x" * 300 + ".safetensors", "b.safetensors",
                              "a\n.safetensors", "w\\a.safetensors"])
INDICES = st.dictionaries(st.text(max_size=3), FILE_NAMES | JSON, max_size=2).map(
    lambda names: json.dumps({"weight_map": names}).encode())


@given(INDICES | jsons(INDEX) | mutated([json.dumps(INDEX).encode()]))
@fuzz(80)
def test_an_index_names_files_beside_it_or_is_refused(model, data):
    index = model / "w" / f"{pipeline.WEIGHTS}.index.json"
    index.write_bytes(data)
    try:
        names = judge(lambda: pipeline.files_of_index(index), index)
        for name in names or ():
            assert (index.parent / name).parent == index.parent and Path(name).name == name
        cls = pipeline.CogVideoXTransformer3DModel
        judge(lambda: pipeline.check_weights(cls, model / "w"), "")
    finally:
        index.unlink()


ADAPTER = {"weights": str(TINY / "cognvs_ckpt_inpaint"),
           "fingerprint": pipeline.fingerprint(TINY / "cognvs_ckpt_inpaint")}


@given(jsons(ADAPTER) | mutated([json.dumps(ADAPTER).encode()]))
@fuzz(50)
def test_adapters_name_their_weights_or_are_refused(folder, data):
    lora = folder / "lora"
    lora.mkdir(exist_ok=True)
    (lora / pipeline.ADAPTER).write_bytes(data)
    weights = judge(lambda: pipeline.adapter_weights(lora), lora)
    assert weights is None or pipeline.fingerprint(weights) == ADAPTER["fingerprint"]


def safetensors(tensors, metadata=None):
    with tempfile.TemporaryDirectory() as place:
        save_file(tensors, Path(place) / "t", metadata)
        return (Path(place) / "t").read_bytes()


KEY = {"text_encoder": "k"}
PROMPTS = [safetensors({"prompt_embeds": torch.ones(1, 8, 4)}, KEY)]
for other in (torch.ones(1, 8, 4, dtype=torch.bfloat16), torch.ones(8, 4), torch.ones(1, 9, 4),
              torch.full((1, 8, 4), torch.nan)):
    PROMPTS.append(safetensors({"prompt_embeds": other}, KEY))
PROMPTS.append(safetensors({"prompt_embeds": torch.ones(1, 8, 4)}))
PROMPTS.append(safetensors({"other": torch.ones(1, 8, 4)}, KEY))


@given(st.sampled_from(PROMPTS) | mutated(PROMPTS), st.sampled_from(["k", None]))
@fuzz(80)
def test_a_cached_prompt_is_right_or_not_taken(folder, data, key):
    path = folder / "empty_prompt_8_float32.safetensors"
    path.write_bytes(data)
    found = judge(lambda: pipeline.find_prompt([path], key), path)
    if found:
        assert found[0].shape[:2] == (1, 8) and found[0].dtype == torch.float32
        assert found[0].isfinite().all()


@given(mutated(PROMPTS))
@fuzz(50)
def test_weights_have_a_sound_header_or_are_refused(model, data):
    weights = model / "damaged"
    shutil.copytree(model / "w", weights, dirs_exist_ok=True)
    (weights / pipeline.WEIGHTS).write_bytes(data)
    judge(lambda: pipeline.check_weights(pipeline.CogVideoXTransformer3DModel, weights), weights)


RECORD = {"made_of": {"train_epochs": "3", "a": 1}, "results": {"eval_render1.mp4": "0" * 64}}


@given(jsons(RECORD) | mutated([json.dumps(RECORD).encode()])
       | st.dictionaries(FILE_NAMES, JSON, max_size=2).map(
           lambda results: json.dumps(RECORD | {"results": results}).encode()))
@fuzz(80)
def test_records_name_results_of_their_folder_or_are_refused(folder, data):
    stage = run_all.Stage("x", folder, {}, [])
    stage.record.write_bytes(data)
    record = judge(lambda: run_all.read_record(stage), stage.record)
    for name in record["results"] if record else ():
        assert (folder / name).parent == folder and Path(name).name == name not in ("..", ".")


ACCELERATE = (ROOT / "finetune" / "accelerate_config.yaml").read_bytes()
YAMLS = [ACCELERATE, b"a: &a [1, 2]\nb: *a\n? [x]\n: !!python/object:os.system {}\n",
        ACCELERATE.replace(b"num_processes: 2", b"num_processes: 1e9\nuse_cpu: true")]


@given(mutated(YAMLS) | jsons({"num_processes": 2, "deepspeed_config": {"zero_stage": 2}}))
@fuzz(30)
def test_an_accelerate_configuration_means_processes_or_is_refused(folder, data):
    path = folder / "accelerate.yaml"
    path.write_bytes(data)
    run = SimpleNamespace(memory="zero2", batch_size=1, gradient_accumulation_steps=1,
                          max_grad_norm=1.0)
    found = judge(lambda: hosts.read(path, run), path)
    if found:
        assert 1 <= found.machines <= found.processes <= hosts.MOST
        assert found.here * found.machines == found.processes
        assert json.loads(found.deepspeed)["zero_optimization"]["stage"] == 2
