"""Files that fuzzing found; each once gave a traceback, took memory or time, or led elsewhere."""

import io
import json
import shutil
import struct
import time
import tracemalloc
import zipfile
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import ROOT
from safetensors.torch import save_file

from finetune import dataset
from toolbox import run_all
from toolbox.geometry import convert_depth
from utils import camera_paths, files, pipeline, sequence
from utils.cli import InputError

N = 5
K = np.tile(np.array([[30.0, 0, 16], [0, 30, 12], [0, 0, 1]]), (N, 1, 1))
EYE = np.tile(np.eye(4), (N, 1, 1))
INFO = SimpleNamespace(frames=N, width=64, height=48)


def refused(read, path, message=""):
    """read() is refused in one line that names the file, before it takes memory or time."""
    tracemalloc.start()
    start = time.process_time()
    with pytest.raises(InputError, match=message) as error:
        read()
    assert time.process_time() - start < 2
    assert tracemalloc.get_traced_memory()[1] < 2**25
    tracemalloc.stop()
    text = str(error.value)
    assert path.name in text and len(text) < 400 and text.isprintable()


def npy(header, data=b"", version=1):
    length = struct.pack("<H" if version == 1 else "<I", len(header))
    return b"\x93NUMPY" + bytes([version, 0]) + length + header.encode() + data


def describe(shape, descr="<f4"):
    return f"{{'descr': {descr!r}, 'fortran_order': False, 'shape': {shape}, }}"


def write_zip(path, members, method=zipfile.ZIP_DEFLATED):
    with zipfile.ZipFile(path, "w", method) as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return path


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32", "utf-16-le"])
def test_byte_order_marks_are_left_out_wherever_they_are(tmp_path, encoding):
    path = tmp_path / "t.txt"
    path.write_bytes("\ufeff0 -5\n\ufeff0 0\r\n0\t0\n".encode(encoding))
    assert files.read_text(path) == "0 -5\n0 0\r\n0\t0\n"
    assert camera_paths.read_keyframes(path) == {"phi": [0, -5], "theta": [0, 0], "r": [0, 0]}


@pytest.mark.parametrize("text, message", [
    ("0 " * 1001 + "\n0\n0\n", "a line of 1001 numbers"), ("0\n0\n-1e308\n", "beyond 1e[+]06"),
    ("0\0\n0\n0\n", "could not convert"), ("9" * 70000, "more than 65,536 bytes"),
    ("0\n" * 4000, "got 4000 lines"), ("x" * 5000 + "\n0\n0\n", "could not convert"),
])
def test_paths_without_end_are_refused(tmp_path, text, message):
    path = tmp_path / "p.txt"
    path.write_text(text)
    refused(lambda: camera_paths.read_keyframes(path), path, message)


@pytest.mark.parametrize("item", ["dolly_out:1e308", "zoom_in:1e308", "spiral:" + "9" * 5000])
def test_amounts_that_are_not_finite_in_a_camera_are_refused(item):
    with pytest.raises(InputError, match="up to 1e[+]06") as error:
        camera_paths.preset_keyframes(item)
    assert len(str(error.value)) < 400


HEADERS = {
    "no end": "(", "no dict": "-" * 9000 + "1", "odd keys": "{1: 2, 'a': 3}",
    "10 GB": describe((N, 2**16, 2**13)), "beyond 64 bits": describe((10**30, 4, 4)),
    "negative": describe((-1, 4, 4)), "overflow to 0": describe((2**32, 2**32, 4)),
    "pickle": describe((N, 4, 4), "|O"), "long name": describe((4, 4), [("x" * 3000, "<f4")]),
    "bad type": describe((4, 4), "<f4,("),
}


@pytest.mark.parametrize("name", HEADERS)
@pytest.mark.parametrize("version", [1, 2])
def test_headers_that_cannot_be_are_refused(tmp_path, name, version):
    data = npy(HEADERS[name], bytes(64), version)
    (tmp_path / "a.npy").write_bytes(data)
    refused(lambda: sequence.load_array(tmp_path / "a.npy", [(None, None, None)]),
            tmp_path / "a.npy")
    refused(lambda: camera_paths.read_cameras(tmp_path / "a.npy", K), tmp_path / "a.npy")
    path = write_zip(tmp_path / "a.npz", {"c2w.npy": data, "depths.npy": data})
    refused(lambda: camera_paths.read_cameras(path, K), path)
    refused(lambda: convert_depth.read_npz(path, "an npz", {"depths": "NHW"}), path)
    path = write_zip(tmp_path / "b.npz", {"frames.npy": data})
    with pytest.raises(InputError, match="b.npz"):
        dataset.check_cameras(path, "render", N)


def test_a_header_as_long_as_memory_is_refused(tmp_path):
    head = b"\x93NUMPY\x02\0" + struct.pack("<I", 2**31)
    path = tmp_path / "a.npy"
    path.write_bytes(head)
    with open(path, "r+b") as file:
        file.truncate(2**31)  # sparse: it takes no disk
    refused(lambda: sequence.load_array(path, [(3, 3)]), path)


@pytest.mark.parametrize("method", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA, zipfile.ZIP_DEFLATED])
def test_damage_is_noticed_in_every_kind_of_zip(tmp_path, method):
    array = np.random.default_rng(0).random((N, 8, 8))
    stream = io.BytesIO()
    np.save(stream, array)
    path = write_zip(tmp_path / "a.npz", {"depths.npy": stream.getvalue()}, method)
    found = files.headers(path, ["depths"])
    assert np.array_equal(files.read(path, found)["depths"], array)
    data = bytearray(path.read_bytes())
    data[500:520] = bytes(20)
    path.write_bytes(data)
    refused(lambda: files.read(path, files.headers(path, ["depths"])), path, "not a readable")


def test_zip_bombs_are_refused_unread(tmp_path):
    """60 MB of zeros, whose size is not the video's, in 60 kB; and 10 GB that are not there."""
    zeros = npy(describe((N, 3072, 4096), "|i1"), bytes(N * 3072 * 4096))
    path = write_zip(tmp_path / "b.npz", {"depths.npy": zeros, "c2w.npy": zeros})
    del zeros
    axes = {"depths": "NHW"}
    refused(lambda: convert_depth.read_npz(path, "an npz", axes, INFO), path, "at most 8 times")
    path = path.rename(tmp_path / "c.npz")
    refused(lambda: camera_paths.read_cameras(path, K), path)
    array = npy(describe((10**4, 2**10, 2**10), "|i1"))
    path = write_zip(tmp_path / "d.npz", {"depths.npy": array}, zipfile.ZIP_STORED)
    data = bytearray(path.read_bytes())
    at = data.find(b"PK\x01\x02") + 24
    data[at : at + 4] = b"\xfe\xff\xff\xff"  # it says that it holds 4 GB
    path.write_bytes(data)
    refused(lambda: convert_depth.read_npz(path, "an npz", axes, INFO), path)


def test_more_than_memory_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("psutil.virtual_memory", lambda: SimpleNamespace(available=2**10))
    np.savez(tmp_path / "a.npz", depths=np.ones((N, 24, 32)))
    refused(lambda: convert_depth.read_npz(tmp_path / "a.npz", "an npz", {"depths": "NHW"}, INFO),
            tmp_path / "a.npz", "memory")


def test_rotations_whose_squares_are_no_numbers_are_refused():
    pose = np.eye(4)
    pose[:2, :2] = [[1e200, 1e200], [1e200, -1e200]]
    with np.errstate(all="ignore"), pytest.raises(InputError, match="R R.T is off by"):
        sequence.check_poses("poses", pose)


@pytest.mark.parametrize("text", ["[" * 100_000, '{"c2w": 1' + "0" * 5000 + "}", '{"c2w": [{}]}',
                                  '"c2w"', "{}", '{"c2w": [[1e999]]}'])
def test_json_of_any_depth_is_refused(tmp_path, text):
    for name, read in (("c.json", lambda path: camera_paths.read_cameras(path, K)),
                       ("adapter.json", lambda path: pipeline.adapter_weights(path.parent)),
                       ("config.json", lambda path: pipeline.read_sizes(path, {"d_model": 9}))):
        (tmp_path / name).write_text(text)
        refused(lambda read=read, name=name: read(tmp_path / name), tmp_path / name)


@pytest.mark.parametrize("name", ["../w.safetensors", "/etc/w.safetensors", "..", "", 5, None, [],
                                  "a/b.safetensors", "a\n.safetensors", "x" * 300 + ".safetensors"])
def test_an_index_leads_nowhere_else(tmp_path, name):
    cls = pipeline.CogVideoXTransformer3DModel
    folder = tmp_path / "w"
    folder.mkdir()
    save_file({"a": torch.ones(1)}, tmp_path / "w.safetensors")
    (folder / "config.json").write_text(json.dumps({"_class_name": cls.__name__}))
    index = folder / "diffusion_pytorch_model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"a": name}}))
    refused(lambda: pipeline.check_weights(cls, folder), index, "weight_map")


@pytest.mark.parametrize("file, change", [
    ("cognvs_ckpt_inpaint/config.json", {"sample_height": 9999, "sample_width": 9999}),
    ("cognvs_ckpt_inpaint/config.json", {"num_layers": 99999}),
    ("cognvs_ckpt_inpaint/config.json", {"activation_fn": 1.5}),
    ("base/vae/config.json", {"sample_height": 1e9}), ("base/vae/config.json", {"act_fn": None}),
    ("base/vae/config.json", {"latents_mean": "x", "down_block_types": 0}),
    ("base/scheduler/scheduler_config.json", {"num_train_timesteps": "x"}),
    ("base/scheduler/scheduler_config.json", {"beta_end": []}),
])
def test_a_model_of_a_broken_configuration_is_refused(tmp_path, file, change):
    shutil.copytree(ROOT / "checkpoints" / "tiny", tmp_path, dirs_exist_ok=True)
    config = json.loads((tmp_path / file).read_text())
    (tmp_path / file).write_text(json.dumps(config | change))
    weights = tmp_path / "cognvs_ckpt_inpaint"
    with pytest.raises(InputError) as error:
        pipeline.load_pipeline(tmp_path / "base", weights, torch.float32)
    assert str((tmp_path / file).parent) in str(error.value) and len(str(error.value)) < 400


def test_sizes_in_a_configuration_are_sizes(tmp_path):
    for size in (0, -1, 1.5, "7", True, None, 10**9, [1]):
        (tmp_path / "config.json").write_text(json.dumps({"d_model": size}))
        refused(lambda: pipeline.read_sizes(tmp_path / "config.json", {"d_model": 99}),
                tmp_path / "config.json", "got d_model")
    (tmp_path / "config.json").write_text('{"d_model": 32}')
    assert pipeline.read_sizes(tmp_path / "config.json", {"d_model": 99}) == {"d_model": 32}


@pytest.mark.parametrize("tensors, metadata", [
    ({"prompt_embeds": torch.ones(1, 8, 4)}, None),
    ({"other": torch.ones(1)}, {"text_encoder": "k"}),
    ({"prompt_embeds": torch.ones(1, 9, 4)}, {"text_encoder": "k"}),
    ({"prompt_embeds": torch.ones(8, 4)}, {"text_encoder": "k"}),
    ({"prompt_embeds": torch.ones(1, 8, 4).half()}, {"text_encoder": "k"}),
    ({"prompt_embeds": torch.full((1, 8, 4), torch.nan)}, {"text_encoder": "k"}),
])
def test_a_cached_prompt_that_is_none_is_made_anew(tmp_path, tensors, metadata):
    path = tmp_path / "empty_prompt_8_float32.safetensors"
    save_file(tensors, path, metadata)
    assert pipeline.find_prompt([path], "k") is None
    save_file({"prompt_embeds": torch.ones(1, 8, 4)}, path, {"text_encoder": "k"})
    assert pipeline.find_prompt([path], "k")[1] == path


def test_a_record_deletes_nothing_outside_of_its_folder(tmp_path):
    (tmp_path / "mine").write_text("kept")
    folder = tmp_path / "seq"
    folder.mkdir()
    stage = run_all.Stage("x", folder, {}, [])
    known = run_all.hashes(tmp_path, ["mine"])["mine"]
    for name in ("../mine", str(tmp_path / "mine"), "..", "."):
        stage.record.write_text(json.dumps({"made_of": {}, "results": {name: known}}))
        refused(lambda: run_all.delete_surplus(stage), stage.record, "with the result")
    assert (tmp_path / "mine").read_text() == "kept"


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"made_of": 1, "results": {}}', "[" * 100_000,
                                  '{"made_of": {"train_epochs": "x"}, "results": {}}'])
def test_a_record_that_is_none_is_refused(tmp_path, text):
    stage = run_all.Stage("x", tmp_path, {}, [])
    stage.record.write_text(text)
    refused(lambda: run_all.read_record(stage), stage.record)


@pytest.mark.parametrize("inds", [[0, 1, 2, 3, 10**15], [0, 1, 2, 3, np.nan], [0, 1, 2, 3, -1],
                                  [0, 1, 2, 3, 0.5], [0, 1, 2, 3, 2**63]])
def test_indices_of_vipe_are_those_of_frames(tmp_path, inds):
    path = tmp_path / "x.npz"
    np.savez(path, data=EYE, inds=np.array(inds))
    refused(lambda: convert_depth.read_vipe_table(path, "N44", None), path)
    refused(lambda: convert_depth.read_vipe_table(path, "N44", INFO), path)


def test_a_missing_frame_takes_the_nearest_of_many_in_little_memory(tmp_path, capsys):
    known = {index: np.array(index) for index in range(0, 20000, 3)}
    tracemalloc.start()
    taken = convert_depth.one_for_each_frame(tmp_path, known, 20000)
    assert tracemalloc.get_traced_memory()[1] < 2**25
    tracemalloc.stop()
    assert taken[:6].tolist() == [0, 0, 3, 3, 3, 6]


def test_a_png_larger_than_the_video_is_refused_unread(tmp_path):
    head = struct.pack(">IIBBBBB", 2**15, 24576, 16, 0, 0, 0, 0)
    data = b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + b"IHDR" + head
    for number in range(N):
        (tmp_path / f"{number}.png").write_bytes(data + struct.pack(">I", 0))
    refused(lambda: convert_depth.read_pngs(tmp_path, INFO), tmp_path)
    refused(lambda: convert_depth.read_pngs(tmp_path, None), tmp_path)
