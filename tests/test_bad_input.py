"""Bad input at the real command lines: one line that says what is wrong, exit code 2, no change.

Every case is a process of its own with the program as __main__. To be fast, all are forked from one
process that has imported the libraries, which runs serve().
"""

import gc
import hashlib
import importlib
import json
import os
import re
import runpy
import shlex
import shutil
import signal
import subprocess
import sys
import traceback
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT
from training import flags

PATHS = [str(ROOT), str(ROOT / "tests")]  # of that process, but not of the programs
SECONDS = 3  # of the CPU, for all that a program does after its imports
LIMIT = 60  # seconds after which a case has hung
LONG = 500  # characters of a line
FRAMES, HEIGHT, WIDTH = 17, 64, 96
MODULES = ("data_gen", "demo", "finetune.train", "finetune.prepare", "finetune.launch",
           "toolbox.check_setup", "toolbox.checks.fits", "toolbox.checks.folder",
           "toolbox.checks.models", "toolbox.convert_megasam_outputs", "toolbox.merge_lora",
           "toolbox.side_by_side", "toolbox.geometry.estimate_geometry", "toolbox.run_all",
           "toolbox.small_model.make_tiny_checkpoint", "toolbox.small_model.evaluate_method",
           "toolbox.benchmark",
           "toolbox.synthetic.make_synthetic_sequence",
           "transformers.models.depth_anything.modeling_depth_anything")
DEPTH = "room/cam_info/megasam_depth.npy"
K = "room/cam_info/megasam_intrinsics.npy"
C2WS = "room/cam_info/megasam_c2ws.npy"
RENDER = "room/eval_render1.mp4"
PAIR = "room/train_render1.mp4"
BASE, WEIGHTS = "model/base", "model/cognvs_ckpt_inpaint"
TENSORS = "diffusion_pytorch_model.safetensors"
WITH_K = "--intrinsics_file cam_info/megasam_intrinsics.npy"
WITH_C2WS = f"{WITH_K} --extrinsics_file cam_info/megasam_c2ws.npy"


# ---- the process that all are forked from --------------------------------------------------------


def serve():
    """For each command {"script", "words", "folder"} on stdin: [exit code, CPU seconds] on stdout.

    What a command says goes to `folder`.out and `folder`.err.
    """
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries say as they are imported is no answer
    import torch

    torch.set_num_threads(1)
    for name in MODULES:
        importlib.import_module(name)
    gc.collect()
    gc.freeze()  # or each child would copy the memory that its collector looks at
    for line in sys.stdin:
        child = os.fork()
        if child == 0:
            become(**json.loads(line))
        _, status, used = os.wait4(child, 0)
        result = os.waitstatus_to_exitcode(status), used.ru_utime + used.ru_stime
        print(json.dumps(result), file=answers, flush=True)


def become(script, words, folder):
    """Run a script as `python script words` does in a folder, and end."""
    signal.alarm(LIMIT)
    for number, path in enumerate((os.devnull, f"{folder}.out", f"{folder}.err")):
        mode = os.O_RDWR if number == 0 else os.O_WRONLY | os.O_CREAT | os.O_TRUNC
        os.dup2(os.open(path, mode, 0o666), number)
    os.chdir(folder)
    os.environ |= {"HOME": folder, "XDG_CACHE_HOME": f"{folder}/cache"}
    sys.argv = [script, *words]
    sys.path[:] = [os.path.dirname(script), *sys.path[len(PATHS):]]
    code = 0
    try:
        runpy.run_path(script, run_name="__main__")
    except SystemExit as stop:
        code = stop.code or 0
    except BaseException:
        traceback.print_exc()
        code = 1
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


@pytest.fixture(scope="module")
def start():
    """A function (program, words, folder) that runs a command: (exit code, CPU seconds)."""
    environment = os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    command = f"import sys; sys.path[:0] = {PATHS}; import test_bad_input as t; t.serve()"
    with subprocess.Popen([sys.executable, "-c", command], stdin=subprocess.PIPE, text=True,
                          stdout=subprocess.PIPE, env=environment) as server:

        def run(program, words, folder):
            script, usual = PROGRAMS[program]
            words = [*map(str, usual), *shlex.split(words)]
            job = {"script": str(ROOT / script), "words": words, "folder": str(folder)}
            print(json.dumps(job), file=server.stdin, flush=True)
            return json.loads(server.stdout.readline())

        yield run
        server.stdin.close()


# ---- what is there before it is harmed -----------------------------------------------------------


TRAINING = flags(Path("model"), Path("room"), Path("new"), train_epochs=2)
INPAINT = shlex.split(f"--model_path {BASE} --cognvs_ckpt_path {WEIGHTS} --data_path room "
                      "--mp4_name eval_render*.mp4 --num_inference_steps 1")
RUN_ALL = shlex.split(f"--data_path room --model_path {BASE} --transformer_id {WEIGHTS} "
                      "--output_dir new")
METHOD = shlex.split(f"--model_path {BASE} --cognvs_ckpt_path {WEIGHTS} --output_dir new")
CHECK = shlex.split(f"--model_path {BASE} --cognvs_ckpt_path {WEIGHTS} --data_path room")
PROGRAMS = {  # name: (script, flags of every case, which those of a case come after)
    "data_gen": ("data_gen.py", ["--data_path", "room", "--mode", "eval"]),
    "demo": ("demo.py", INPAINT),
    "train": ("finetune/train.py", TRAINING),
    "prepare": ("finetune/prepare.py", ["--processes", 2, *TRAINING, "--memory", "zero2"]),
    "launch": ("finetune/launch.py", ["accelerate.yaml", *TRAINING]),
    "check_setup": ("toolbox/check_setup.py", CHECK),
    "convert_depth": ("toolbox/geometry/convert_depth.py", ["--output_path", "room"]),
    "convert_megasam": ("toolbox/convert_megasam_outputs.py", ["--output_path", "room"]),
    "estimate_geometry": ("toolbox/geometry/estimate_geometry.py", ["--overwrite"]),
    "merge_lora": ("toolbox/merge_lora.py", ["--lora_path", "lora", "--output_dir", "new"]),
    "side_by_side": ("toolbox/side_by_side.py", ["--data_path", "room"]),
    "run_all": ("toolbox/run_all.py", RUN_ALL),
    "make_sequence": ("toolbox/synthetic/make_synthetic_sequence.py", ["--output_dir", "new"]),
    "make_tiny": ("toolbox/small_model/make_tiny_checkpoint.py", ["--output_dir", "new"]),
    "evaluate_method": ("toolbox/small_model/evaluate_method.py", METHOD),
    "benchmark": ("toolbox/benchmark.py", ["--folder", "new"]),
}


def make_room(folder):
    """A camera that moves to the right before a wall with waves, at a depth of 2."""
    from utils import video

    x = np.arange(WIDTH + 2 * FRAMES)
    y = np.arange(HEIGHT)[:, None]
    waves = [np.sin(x / a + y / b) + np.sin(x / 7 - y / a) for a, b in ((3, 9), (5, 4), (4, 6))]
    wall = (np.stack(waves, -1) * 50 + 128).astype(np.uint8)
    frames = np.stack([wall[:, 2 * t : 2 * t + WIDTH] for t in range(FRAMES)])
    video.write_video(folder / "gt_rgb.mp4", frames, video.VideoInfo(*frames.shape[:3], 10))
    c2w = np.tile(np.eye(4), (FRAMES, 1, 1))
    c2w[:, 0, 3] = np.arange(FRAMES) * 2 * 2 / 100
    (folder / "cam_info").mkdir()
    at = folder.parent
    np.save(at / DEPTH, np.full((FRAMES, HEIGHT, WIDTH), 2, np.float16))
    np.save(at / K, np.array([[100, 0, 48], [0, 100, 32], [0, 0, 1]], np.float32))
    np.save(at / C2WS, c2w.astype(np.float32))


@pytest.fixture(scope="module")
def sound(start, model, tmp_path_factory):
    """A folder with model/, room/ and run/, a training run: all by the programs themselves."""
    at = tmp_path_factory.mktemp("sound") / "all"
    shutil.copytree(model, at / "model", symlinks=True)
    (at / "room").mkdir()
    make_room(at / "room")
    for program, words in (
        ("data_gen", "--trajs orbit_left:5"),
        ("data_gen", "--mode train --num_train_render 1"),
        ("demo", ""),
        ("train", "--output_dir run --train_epochs 1"),
    ):
        code, _ = start(program, words, at)
        assert code == 0, Path(f"{at}.err").read_text()
    return at


@pytest.fixture
def at(sound, tmp_path):
    """A copy of the sound folder."""
    return Path(shutil.copytree(sound, tmp_path / "at", symlinks=True))


# ---- harm: functions of the folder ---------------------------------------------------------------


def without(*names):
    def harm(at):
        for name in names:
            found = list(at.glob(name))
            assert found
            for path in found:
                shutil.rmtree(path) if path.is_dir() else path.unlink()
    return harm


def with_text(name, text):
    def harm(at):
        (at / name).parent.mkdir(parents=True, exist_ok=True)
        (at / name).write_bytes(text.encode() if isinstance(text, str) else text)
    return harm


def cut(name, share=0.5):
    def harm(at):
        data = (at / name).read_bytes()
        (at / name).write_bytes(data[: int(len(data) * share)])
    return harm


def folder_for(name):
    """A folder in place of a file."""
    def harm(at):
        (at / name).unlink(missing_ok=True)
        (at / name).mkdir(parents=True)
    return harm


def array(name, change):
    """What change() makes of an npy."""
    def harm(at):
        np.save(at / name, change(np.load(at / name)))
    return harm


def npz(name, **arrays):
    def harm(at):
        np.savez(at / name, **arrays)
    return harm


def values(name, **changes):
    """Other values in a JSON file; None takes one out."""
    def harm(at):
        table = json.loads((at / name).read_text()) | changes
        table = {key: value for key, value in table.items() if value is not None}
        (at / name).write_text(json.dumps(table))
    return harm


def copied(source, name):
    def harm(at):
        copy = shutil.copytree if (at / source).is_dir() else shutil.copy
        (at / name).parent.mkdir(parents=True, exist_ok=True)
        copy(at / source, at / name)
    return harm


def moved(source, name):
    def harm(at):
        (at / source).rename(at / name)
    return harm


def all_of(*harms):
    def harm(at):
        for each in harms:
            each(at)
    return harm


def clip(name, frames=FRAMES, height=HEIGHT, width=WIDTH, fps=10, tags=None):
    """A grey video."""
    def harm(at):
        from utils import video

        pixels = np.full((frames, height, width, 3), 90, np.uint8)
        (at / name).unlink(missing_ok=True)
        video.write_video(at / name, pixels, video.VideoInfo(*pixels.shape[:3], fps), tags=tags)
    return harm


def encoded(name, turn=None, **settings):
    """A video by another encoder: turned by a tag, or with settings such as HDR's."""
    def harm(at):
        import av

        with av.open(str(at / name), "w") as container:
            stream = container.add_stream("libx264", 10)
            stream.height, stream.width, stream.pix_fmt = HEIGHT, WIDTH, "yuv420p"
            if turn is not None:
                stream.set_display_rotation(turn)
            for key, value in settings.items():
                setattr(stream.codec_context, key, value)
            for _ in range(FRAMES):
                grey = np.full((HEIGHT, WIDTH, 3), 90, np.uint8)
                container.mux(stream.encode(av.VideoFrame.from_ndarray(grey, "rgb24")))
            container.mux(stream.encode())
    return harm


def sound_alone(name):
    """A file with sound and no picture."""
    def harm(at):
        import av

        with av.open(str(at / name), "w") as container:
            stream = container.add_stream("aac", 48000)
            silence = av.AudioFrame.from_ndarray(np.zeros((2, 1024), np.float32), "fltp", "stereo")
            silence.sample_rate = 48000
            container.mux(stream.encode(silence))
            container.mux(stream.encode())
    return harm


def tensors(folder, change, file=TENSORS):
    """What change(dict) makes of the tensors of a weights folder."""
    def harm(at):
        from safetensors.torch import load_file, save_file

        found = load_file(at / folder / file)
        change(found)
        save_file(found, at / folder / file, {"format": "pt"})
    return harm


def lora(weights, fingerprint="0"):
    """A LoRA folder that names what it belongs to."""
    text = json.dumps({"weights": weights, "fingerprint": fingerprint})
    return all_of(with_text("lora/adapter.json", text),
                  with_text("lora/pytorch_lora_weights.safetensors", ""))


def locked(name):
    """A lock that this process holds."""
    def harm(at):
        import fcntl

        (at / name).parent.mkdir(parents=True, exist_ok=True)
        file = open(at / name, "w")
        file.write("process 7")
        file.flush()
        fcntl.flock(file, fcntl.LOCK_EX)
        HELD.append(file)
    return harm


HELD = []  # open files of locks


# ---- the cases: what is wrong: (harm or None, flags, words of the message) -----------------------

PQ = {"color_trc": 16, "color_primaries": 9, "colorspace": 9}
HLG = PQ | {"color_trc": 18}
LINES = "0 1\n0 1\n"  # of a path's three
DATA_GEN = {
    "the folder is not there": (None, "--data_path nowhere", "nowhere: no such folder"),
    "the folder is a file": (None, f"--data_path {K}", "no such folder"),
    "the video is not there": (without("room/gt_rgb.mp4"), "", "gt_rgb.mp4: no such file"),
    "the video is empty": (with_text("room/gt_rgb.mp4", ""), "", "could not be decoded"),
    "the video is cut off": (cut("room/gt_rgb.mp4"), "", "gt_rgb.mp4: could not be decoded"),
    "the video is text": (with_text("room/gt_rgb.mp4", "no video\n" * 99), "",
                          "could not be decoded"),
    "the video is a picture's folder": (folder_for("room/gt_rgb.mp4"), "", "is no regular file"),
    "the video has sound alone": (sound_alone("room/gt_rgb.mp4"), "", "got no moving picture"),
    "the video is PQ": (encoded("room/gt_rgb.mp4", **PQ), "", "got HDR (PQ)"),
    "the video is HLG": (encoded("room/gt_rgb.mp4", **HLG), "", "got HDR (HLG)"),
    "the video is turned by 30 degrees": (encoded("room/gt_rgb.mp4", turn=30), "",
                                          "no quarter turn"),
    "the video is turned, its depth is not": (encoded("room/gt_rgb.mp4", turn=90), "",
                                              "the same way up"),
    "the video is longer than its depth": (clip("room/gt_rgb.mp4", frames=20), "",
                                           "got 17 depth maps for the 20 frames"),
    "the video is cropped, its depth is not": (clip("room/gt_rgb.mp4", height=48), "",
                                               "neither cropped nor padded"),
    "depth is not there": (without(DEPTH), "", "megasam_depth.npy: no such file"),
    "depth is empty": (with_text(DEPTH, ""), "", "not a readable .npy"),
    "depth is cut off": (cut(DEPTH), "", "the file has"),
    "depth is a folder": (folder_for(DEPTH), "", "megasam_depth.npy"),
    "depth is pickled": (array(DEPTH, lambda x: np.array([{"a": 1}])), "", "pickle"),
    "depth is text": (array(DEPTH, lambda x: x.astype(str)), "", "expected numbers of shape"),
    "depth is complex": (array(DEPTH, lambda x: x.astype(complex)), "", "expected numbers"),
    "depth is of one frame": (array(DEPTH, lambda x: x[0]), "", "expected numbers of shape"),
    "depth is of no frames": (array(DEPTH, lambda x: x[:0]), "", "of shape"),
    "depth is one frame short": (array(DEPTH, lambda x: x[1:]), "", "got 16 depth maps"),
    "depth is all holes": (array(DEPTH, lambda x: x * 0), "", "no depth value is a positive"),
    "depth is all NaN": (array(DEPTH, lambda x: x * np.nan), "--pivot 2", "no depth value is a"),
    "cameras are a path's text": (with_text("a.txt", "phi 0"), "--cameras a.txt", "is text, as a"),
    "depth is turned": (array(DEPTH, lambda x: np.rot90(x, axes=(1, 2))), "", "the same way up"),
    "depth is cropped": (array(DEPTH, lambda x: x[:, 8:-8]), "", "neither cropped nor padded"),
    "depth is an npz": (npz("room/d.npz", depth=np.ones(3)), "--depth_file d.npz", "got an npz"),
    "K is not there": (None, "--intrinsics_file k.npy", "k.npy: no such file"),
    "K is 4 x 4": (array(K, lambda k: np.eye(4)), WITH_K, "(3, 3)"),
    "K is of another length": (array(K, lambda k: np.tile(k, (5, 1, 1))), WITH_K, "(5, 3, 3)"),
    "K is all zero": (array(K, lambda k: k * 0), WITH_K, "positive focal lengths"),
    "K holds NaN": (array(K, lambda k: k * np.nan), WITH_K, "pinhole"),
    "K is transposed": (array(K, lambda k: k.T), WITH_K, "pinhole"),
    "K is of a picture of another size": (array(K, lambda k: k * [[5], [5], [1]]), WITH_K,
                                          "K has its principal point at 240 160"),
    "poses are not there": (None, "--extrinsics_file no.npy", "no.npy: no such file"),
    "poses are 3 x 4": (array(C2WS, lambda x: x[:, :3]), WITH_C2WS, "(17, 4, 4)"),
    "poses are of another length": (array(C2WS, lambda x: x[:5]), WITH_C2WS, "(17, 4, 4)"),
    "poses hold infinity": (array(C2WS, lambda x: x * np.inf), WITH_C2WS, "not finite"),
    "poses are scaled": (array(C2WS, lambda x: x * [[3], [3], [3], [1]]), WITH_C2WS, "is scaled"),
    "poses are mirrored": (array(C2WS, lambda x: x * [[-1], [1], [1], [1]]), WITH_C2WS,
                           "is mirrored"),
    "poses are transposed": (array(C2WS, lambda x: x.transpose(0, 2, 1)), WITH_C2WS,
                             "has the last row"),
    "poses are world to camera": (array(C2WS, np.linalg.inv), WITH_C2WS, "are world to camera"),
    "a path is not there": (None, "--trajs nowhere.txt", "no such file or camera path"),
    "a path's folder has no path": (None, "--trajs room", "no such file or camera path"),
    "a path is nothing": (None, "--trajs ''", "no such file or camera path"),
    "a path has two lines": (with_text("p.txt", LINES), "--trajs p.txt", "got 2 lines"),
    "a path has words": (with_text("p.txt", LINES + "a b"), "--trajs p.txt", "could not convert"),
    "a path has NaN": (with_text("p.txt", LINES + "nan"), "--trajs p.txt", "not finite"),
    "a path is of bytes": (with_text("p.txt", b"\xff\xfe\x00\xd8"), "--trajs p.txt", "UTF"),
    "a path is endless": (with_text("p.txt", LINES + "1 " * 5000), "--trajs p.txt", "5000 numbers"),
    "a preset is misspelt": (None, "--trajs orbit_lift:20", "expected a folder of .txt"),
    "a preset's amount is no number": (None, "--trajs orbit_left:far", "got the amount 'far'"),
    "a preset's amount is infinite": (None, "--trajs orbit_left:inf", "got the amount 'inf'"),
    "a preset moves past the pivot": (None, "--trajs dolly_in:1", "to the pivot or past it"),
    "presets move past the pivot": (None, "--trajs dolly_in:0.5+dolly_in:0.5", "a move of 1 radii"),
    "presets zoom to nothing": (None, "--trajs zoom_out:0.5+zoom_out:1", "a focal length of 0"),
    "presets end in a plus": (None, "--trajs orbit_left:5+", "got '' for a preset"),
    "one of two presets is misspelt": (None, "--trajs arc_up+dolly:0.1", "got 'dolly:0.1' for a"),
    "a path and a preset are joined": (with_text("p.txt", LINES + "0"), "--trajs p.txt+arc_up",
                                       "got 'p.txt' for a preset"),
    "a path ends otherwise than gently": (None, "--trajs arc_up@slow", "expected @ease once"),
    "a path ends gently twice": (None, "--trajs arc_up@ease@ease", "expected @ease once"),
    "a path that ends gently is not there": (None, "--trajs p.txt@ease", "no such file or camera"),
    "a path is all comments": (with_text("p.txt", "# 0\n# 0\n# 0\n"), "--trajs p.txt",
                               "got 0 lines"),
    "the pivot is a word": (None, "--pivot centre", "expected x,y in pixels"),
    "the pivot is nothing": (None, "--pivot ''", "expected x,y in pixels"),
    "the pivot is three numbers": (None, "--pivot 1,2,3", "expected x,y in pixels"),
    "the pivot is half a pixel's place": (None, "--pivot 5,", "expected x,y in pixels"),
    "the pivot is NaN": (None, "--pivot nan,5", "expected x,y in pixels"),
    "the pivot is infinitely far": (None, "--pivot inf", "expected x,y in pixels"),
    "the pivot is behind the camera": (None, "--pivot -2", "or one number above 0"),
    "the pivot has no depth": (None, "--pivot 0", "or one number above 0"),
    "the pivot is outside the picture": (None, "--pivot 96,5", "expected x from 0 to 95"),
    "the pivot is left of the picture": (None, "--pivot '-5, 3'", "lies outside the picture"),
    "the pivot is left of the picture, without a blank": (None, "--pivot -5,3",
                                                          "expected one argument"),
    "the pivot is where depth is unknown": (
        array(DEPTH, lambda x: x * (np.arange(WIDTH) != 9)), "--pivot 9,5",
        "the depth there in the first frame is not a positive number"),
    "cameras and a pivot are both given": (npz("c.npz", c2w=np.eye(4)), "--cameras c.npz --pivot 2",
                                           "camera files turn about no point"),
    "a preset zooms to nothing": (None, "--trajs zoom_out:1", "a focal length of 0 times"),
    "cameras are not there": (None, "--cameras c.npz", "no such file or camera path"),
    "cameras have no poses": (npz("c.npz", frames=np.arange(17)), "--cameras c.npz", "has no c2w"),
    "cameras are of another length": (npz("c.npz", c2w=np.tile(np.eye(4), (9, 1, 1))),
                                      "--cameras c.npz", "c2w is float64 of shape (9, 4, 4)"),
    "cameras are no JSON": (with_text("c.json", "{"), "--cameras c.json", "not a readable JSON"),
    "cameras go back in time": (npz("c.npz", c2w=np.eye(4), frames=np.arange(17)[::-1]),
                                "--cameras c.npz", "frames must be 0 to 16"),
    "cameras and paths are both given": (None, "--cameras c.npz --trajs spiral", "give one"),
    "pairs are to be filled": (None, "--mode train --fuse_static", "training pairs keep"),
    "an anchor has no poses": (None, "--anchor first", "needs the source cameras"),
    "a mode is misspelt": (None, "--mode both", "invalid choice: 'both'"),
    "a number is a word": (None, "--crf low", "invalid int value"),
    "the quality is out of range": (None, "--crf 52", "expected 0 (best) to 51"),
    "there are no pairs to make": (None, "--num_train_render 0", "expected at least 1"),
    "the radius is negative": (None, "--radius_scale -1", "expected a number above 0"),
    "the threshold is zero": (None, "--edge_threshold 0", "expected above 0"),
    "the device is none": (None, "--device tpu9", "use cpu, cuda or cuda:N"),
    "the GPU is not there": (None, "--device cuda:0", "has 0 CUDA GPUs"),
    "another run writes there": (all_of(without(RENDER), locked("room/.data_gen_eval.lock")), "",
                                 "is being written to by process 7"),
    "a flag is unknown": (None, "--frames 3", "unrecognized arguments"),
}
INDEX = f"{WEIGHTS}/{TENSORS}.index.json"
NAN = tensors(WEIGHTS, lambda found: found["norm_out.norm.weight"].fill_(float("nan")))
DEMO = {
    "the base is not there": (None, "--model_path nowhere", "nowhere"),
    "the base has no VAE": (without(f"{BASE}/vae"), "", "got no vae"),
    "the base has no scheduler": (without(f"{BASE}/scheduler"), "", "got no scheduler"),
    "the base's VAE is empty": (with_text(f"{BASE}/vae/{TENSORS}", ""), "--overwrite",
                                "could not be read"),
    "the base's VAE has no sizes": (values(f"{BASE}/vae/config.json", latent_channels="many"), "",
                                    "latent_channels many"),
    "the base predicts noise": (values(f"{BASE}/scheduler/scheduler_config.json",
                                       prediction_type="epsilon"), "--overwrite", "v_prediction"),
    "the weights are not there": (None, "--cognvs_ckpt_path nowhere", "nowhere"),
    "the weights' folder is empty": (None, "--cognvs_ckpt_path room", "got no weights"),
    "the weights' folder is a file": (None, f"--cognvs_ckpt_path {K}", "megasam_intrinsics.npy"),
    "the weights are cut off": (cut(f"{WEIGHTS}/{TENSORS}"), "", "could not be read"),
    "the weights are text": (with_text(f"{WEIGHTS}/{TENSORS}", "version https://git-lfs"), "",
                             "could not be read"),
    "the weights lack a tensor": (tensors(WEIGHTS, lambda found: found.pop("proj_out.bias")), "",
                                  "proj_out.bias"),
    "the weights are of another model": (
        values(f"{WEIGHTS}/config.json", _class_name="FluxTransformer2DModel"), "",
        "got a model of class FluxTransformer2DModel"),
    "the weights are of CogVideoX1.5": (values(f"{WEIGHTS}/config.json", patch_size_t=2), "",
                                        "as of CogVideoX1.5"),
    "the weights make text to video": (values(f"{WEIGHTS}/config.json", in_channels=16), "",
                                       "image-to-video transformer"),
    "the weights are NaN": (NAN, "--overwrite", "not finite in its first step"),
    "the configuration holds NaN": (values(f"{WEIGHTS}/config.json", num_layers=float("nan")), "",
                                    "got num_layers nan"),
    "the configuration is not there": (without(f"{WEIGHTS}/config.json"), "", "config.json"),
    "the configuration is no JSON": (with_text(f"{WEIGHTS}/config.json", "{"), "",
                                     "not a readable JSON"),
    "the index is no JSON": (with_text(INDEX, "["), "", "not a readable JSON"),
    "the index leaves the folder": (with_text(INDEX, '{"weight_map": {"a": "../a.safetensors"}}'),
                                    "", "got '../a.safetensors' in its weight_map"),
    "the index names what is not there": (
        with_text(INDEX, '{"weight_map": {"a": "b.safetensors"}}'), "", "b.safetensors: no such"),
    "a LoRA has lost its weights": (lora("nowhere"), "--cognvs_ckpt_path lora",
                                    "which are not there"),
    "a LoRA is of other weights": (lora(WEIGHTS), "--cognvs_ckpt_path lora",
                                   "is not what it was trained on"),
    "a LoRA does not say its weights": (with_text("lora/adapter.json", "{}"),
                                        "--cognvs_ckpt_path lora", "expected JSON with weights"),
    "there is no render of that name": (None, "--mp4_name x.mp4", "x.mp4: no such render"),
    "the folder is not there": (None, "--data_path nowhere", "nowhere: no such folder"),
    "the render is cut off": (cut(RENDER), "", "eval_render1.mp4: "),
    "the mask is shorter": (clip("room/eval_mask1.mp4", frames=9), "", "got 9 x 64 x 96"),
    "the mask is smaller": (clip("room/eval_mask1.mp4", width=48), "", "got 17 x 64 x 48"),
    "the mask is text": (with_text("room/eval_mask1.mp4", "no"), "", "could not be decoded"),
    "the output is the user's own": (clip("room/outputs/eval_render1_out.mp4"), "",
                                     "does not say what it was made of"),
    "two renders have one name": (all_of(copied(RENDER, "room/eval_render1.mkv")),
                                  "--mp4_name 'eval_render1.m*'", "would both become"),
    "the output folder is a file": (None, f"--output_dir {K}", "no folder that can be written"),
    "the output folder is in a file": (None, f"--output_dir {K}/a", "no folder that can be"),
    "another run writes there": (locked("room/outputs/.eval_render1_out.lock"), "--overwrite",
                                 "is being written to by process 7"),
    "there are no steps": (None, "--num_inference_steps 0", "expected 1 to 1000"),
    "the overlap is the clip": (None, "--overlap 17", "fewer than the model's clip, 17"),
    "the rate is zero": (None, "--fps 0", "expected 0.1 to 1000"),
    "the rate is NaN": (None, "--fps nan", "expected 0.1 to 1000"),
    "the seed is negative": (None, "--seed -1", "expected 0 to 2^32 - 1"),
    "the quality is negative": (None, "--crf -1", "expected 0 (best) to 51"),
    "the fit is misspelt": (None, "--fit squeeze", "invalid choice: 'squeeze'"),
    "a CPU has no memory modes": (None, "--memory low", "is for GPUs"),
    "compiling needs a GPU": (None, "--compile", "needs a CUDA GPU"),
    "one process cannot share": (None, "--share_clip", "got one process"),
}
OTHER = {"program": "data_gen.py", "source": "0"}
FACTS = "run/checkpoint-1/run.json"
RESUME = "--output_dir run --resume_from_checkpoint latest"
TRAIN = {
    "the pairs are not there": (without(PAIR), "", "no train_render*.mp4"),
    "the folder is not there": (None, "--base_dir_input nowhere", "no folder at"),
    "a pair is shorter": (clip(PAIR, frames=9), "", "train_render1.mp4: got"),
    "a pair is smaller": (clip(PAIR, height=48), "", "train_render1.mp4: got"),
    "a pair is cut off": (cut(PAIR), "", "train_render1.mp4: "),
    "a pair is of another video": (clip(PAIR, tags=OTHER), "", "of another gt_rgb.mp4"),
    "a pair's cameras are cut off": (cut("room/train_cameras1.npz"), "", "train_cameras1.npz"),
    "a pair stands still": (
        npz("room/train_cameras1.npz", c2w=np.eye(4), frames=np.full(17, 3)), "", "freezes time"),
    "the video is not there": (without("room/gt_rgb.mp4"), "", "gt_rgb.mp4"),
    "the base is not there": (None, "--model_path nowhere", "no folder at"),
    "the base has no VAE": (without(f"{BASE}/vae"), "", "got no vae"),
    "the weights are not there": (None, "--transformer_id nowhere", "no folder at"),
    "the weights are a LoRA": (lora(WEIGHTS), "--transformer_id lora", "is a LoRA; merge it first"),
    "the weights are cut off": (cut(f"{WEIGHTS}/{TENSORS}"), "", "could not be read"),
    "the output folder is a file": (None, f"--output_dir {K}", "is a file"),
    "the output folder is in a file": (None, f"--output_dir {K}/a", "megasam_intrinsics.npy"),
    "the output folder is an earlier run's": (None, "--output_dir run", "already holds"),
    "the earlier run has no state": (without("run/checkpoint-1"), "--output_dir run",
                                     "without a state to go on from"),
    "another run writes there": (locked("new/.lock"), "", "is being written to by process 7"),
    "nothing is there to go on from": (None, "--resume_from_checkpoint latest", "no whole"),
    "the state to go on from is not there": (None, "--resume_from_checkpoint run/checkpoint-9",
                                             "no whole checkpoint-N"),
    "the run is past its end": (
        all_of(moved("run/checkpoint-1", "run/checkpoint-2"),
               moved("run/my_checkpoint-1_transformer", "run/my_checkpoint-2_transformer")),
        f"{RESUME} --train_epochs 1", "has 2 steps already"),
    "the state is of a LoRA": (values(FACTS, training_type="lora"), RESUME, "lora"),
    "the state is of another memory mode": (None, f"{RESUME} --memory single_fused",
                                            "was made with memory single, got single_fused"),
    "the state's facts are no JSON": (with_text(FACTS, "{"), RESUME, "not a readable JSON file"),
    "the learning rate is above 1": (None, "--learning_rate 2", "expected above 0 and below 1"),
    "the learning rate is NaN": (None, "--learning_rate nan", "expected above 0 and below 1"),
    "there are no steps": (None, "--train_epochs 0", "expected at least 1"),
    "a switch is neither true nor false": (None, "--compile maybe", "expected True or False"),
    "the memory mode is misspelt": (None, "--memory zero3", "invalid choice: 'zero3'"),
    "fused memory gathers no gradients": (
        None, "--memory single_fused --gradient_accumulation_steps 2", "in every backward pass"),
    "a LoRA has no running mean": (None, "--training_type lora --ema_decay 0.9",
                                   "is for training_type=sft"),
    "the tracker is not installed": (None, "--report_to wandb", "pip install wandb"),
    "a run is larger than the disk": (None, "--checkpointing_limit 99999999 --train_epochs "
                                      "99999999 --checkpointing_steps 1", "free on its disk"),
}
PROMPT = f"{BASE}/empty_prompt_*"
PREPARE = {
    "the pairs are not there": (without(PAIR), "", "no train_render*.mp4"),
    "the text encoder has lost its weights": (
        without(f"{BASE}/text_encoder/model.safetensors", PROMPT), "", "text_encoder"),
    "the text encoder lacks a tensor": (
        all_of(tensors(f"{BASE}/text_encoder", lambda found: found.pop("shared.weight"),
                       "model.safetensors"), without(PROMPT)), "", "tensors missing"),
    "the text encoder is not there": (without(f"{BASE}/text_encoder", PROMPT), "",
                                      "no such folder, and no empty_prompt"),
    "the tokenizer is not there": (without(f"{BASE}/tokenizer", PROMPT), "", "nor tokenizer.json"),
}


def yaml(*lines):
    text = "distributed_type: DEEPSPEED\nnum_processes: 2\n" + "\n".join(lines)
    return with_text("accelerate.yaml", text)


def deepspeed(**table):
    def harm(at):
        yaml(f"deepspeed_config: {{deepspeed_config_file: {at}/zero2.json}}")(at)
        (at / "zero2.json").write_text(json.dumps(table))
    return harm


LAUNCH = {
    "the configuration is not there": (None, "", "accelerate.yaml: no such file"),
    "the configuration is no YAML": (yaml("a: [1"), "", "accelerate.yaml: line"),
    "the configuration is a list": (with_text("accelerate.yaml", "- 1\n"), "",
                                    "expected lines such as key: value"),
    "a key is unknown": (yaml("gpus: 2"), "", "gpus: is no key that is known"),
    "a key is there twice": (yaml("num_processes: 3"), "", "num_processes is there twice"),
    "it is of several GPUs without DeepSpeed": (
        with_text("accelerate.yaml", "distributed_type: MULTI_GPU\n"), "",
        "distributed_type: got MULTI_GPU"),
    "it is of fp16": (yaml("mixed_precision: fp16"), "", "mixed_precision: got fp16"),
    "it is of stage 3": (yaml("deepspeed_config: {zero_stage: 3}"), "", "zero_stage: got 3"),
    "it is of a cloud": (yaml("compute_environment: AMAZON_SAGEMAKER"), "", "compute_environment"),
    "the processes are no number": (with_text("accelerate.yaml", "num_processes: two\n"), "",
                                    "num_processes: got two"),
    "the processes are not shared evenly": (yaml("num_machines: 3"), "", "a multiple of"),
    "the port is none": (yaml("main_process_port: 99999"), "", "main_process_port: got 99999"),
    "DeepSpeed's JSON is not there": (
        yaml("deepspeed_config: {deepspeed_config_file: no.json}"), "", "no.json"),
    "DeepSpeed's JSON is of stage 3": (
        deepspeed(bf16={"enabled": True}, zero_optimization={"stage": 3}), "", "stage"),
    "DeepSpeed's JSON names an optimizer": (
        deepspeed(bf16={"enabled": True}, zero_optimization={"stage": 2},
                  optimizer={"type": "Adam"}), "", "optimizer"),
}
CHECK_SETUP = {  # and tests/test_check_setup.py
    "the base has no tokenizer": (
        all_of(without(f"{BASE}/tokenizer"),
               values(f"{BASE}/text_encoder/config.json", d_ff=77)), "", "tokenizer"),
    "the weights lack a tensor": (tensors(WEIGHTS, lambda found: found.pop("proj_out.bias")), "",
                                  "proj_out.bias"),
    "the folder is not there": (None, "--data_path nowhere", "nowhere"),
    "the video is cut off": (cut("room/gt_rgb.mp4"), "", "could not be decoded"),
    "the video is PQ": (encoded("room/gt_rgb.mp4", **PQ), "", "got HDR (PQ)"),
    "depth is not there": (without(DEPTH), "", "megasam_depth.npy: no such file"),
    "depth is turned": (array(DEPTH, lambda x: np.rot90(x, axes=(1, 2))), "", "the same way up"),
    "K is a word": (array(K, lambda k: np.array("k")), "", "(3, 3)"),
    "poses are world to camera": (array(C2WS, np.linalg.inv), "", "are world to camera"),
    "a path is not there": (None, "--trajs nowhere.txt", "no such file or camera path"),
    "a render is of another length": (clip(RENDER, frames=9), "", "got 9 frames"),
    "a render is gone, its output is not": (without(RENDER), "", "eval_render1.mp4 is not there"),
}
MEGASAM = {"depths": np.ones((17, 64, 96)), "images": np.zeros((17, 64, 96, 3), np.uint8),
           "intrinsic": np.array([[100, 0, 48], [0, 100, 32], [0, 0, 1]]),
           "cam_c2w": np.tile(np.eye(4), (17, 1, 1))}
IN_NPZ = "--input in.npz"
IN_ROOM = "--data_path room"
CONVERT_DEPTH = {
    "the input is not there": (None, IN_NPZ, "in.npz: no such file or folder"),
    "the input is of no program": (npz("in.npz", x=np.ones(3)), IN_NPZ, "found x; expected one of"),
    "the input is an empty folder": (folder_for("in"), "--input in", "found nothing"),
    "the format is misspelt": (None, f"{IN_NPZ} --format zoe", "invalid choice: 'zoe'"),
    "the format is another program's": (npz("in.npz", x=np.ones(3)), f"{IN_NPZ} --format megasam",
                                        "has no depths"),
    "a flag is another format's": (npz("in.npz", **MEGASAM), f"{IN_NPZ} --scale 2",
                                   "has no use for it"),
    "near is beyond far": (npz("in.npz", depth=np.ones((17, 64, 96))),
                           f"{IN_NPZ} --near 9 --far 2", "expected near below far"),
    "the scale is zero": (array(DEPTH, lambda x: x),
                          f"--input {DEPTH} --kind depth --scale 0", "expected a positive"),
    "plain numbers have no kind": (None, f"--input {DEPTH}", "give --kind depth or disparity"),
    "depth is of another length": (npz("in.npz", **MEGASAM | {
        "depths": np.ones((9, 64, 96)), "images": np.zeros((9, 64, 96, 3), np.uint8),
        "cam_c2w": np.tile(np.eye(4), (9, 1, 1))}), IN_NPZ, "got 9 depth maps; expected 17"),
    "depth is all negative": (npz("in.npz", **MEGASAM | {"depths": -np.ones((17, 64, 96))}),
                              IN_NPZ, "no positive finite depth"),
    "disparity is all the same": (npz("in.npz", depth=np.ones((17, 64, 96))),
                                  f"{IN_NPZ} --format depthcrafter", "no two different"),
    "images are floats": (npz("in.npz", **MEGASAM | {"images": np.zeros((17, 64, 96, 3))}),
                          IN_NPZ, "expected uint8"),
    "the file is cut off": (all_of(npz("in.npz", **MEGASAM), cut("in.npz")),
                            f"{IN_NPZ} --format megasam", "in.npz: not a readable"),
    "the output folder is a file": (npz("in.npz", **MEGASAM), f"{IN_NPZ} --output_path {K}",
                                    "megasam_intrinsics.npy"),
}
OTHERS = {
    "convert_megasam": {
        "the input is no npz": (None, f"--megasam_npz_path {DEPTH}", "megasam_depth.npy"),
        "K is of another picture": (
            npz("in.npz", **MEGASAM | {"intrinsic": np.diag([100, 100, 1])}),
            "--megasam_npz_path in.npz", "principal point"),
    },
    "estimate_geometry": {  # and tests/test_estimate_geometry.py
        "the model is not there": (None, f"{IN_ROOM} --model_path nowhere",
                                   "nowhere: no such folder"),
        "the model is of another kind": (None, f"{IN_ROOM} --model_path {WEIGHTS}",
                                         "not a transformers depth model"),
        "there is no model, and no depth": (without(DEPTH), IN_ROOM, "give --model_path"),
        "depth is of another length": (array(DEPTH, lambda x: x[:9]), IN_ROOM, "(9, 64, 96)"),
        "depth is all negative": (array(DEPTH, lambda x: -x), IN_ROOM, "positive"),
        "depth is cut off": (cut(DEPTH), IN_ROOM, "not a readable"),
        "K is a word": (array(K, lambda k: np.array("k")), f"{IN_ROOM} --keep_cameras", "(3, 3)"),
        "there are no cameras to keep": (without(C2WS), f"{IN_ROOM} --keep_cameras",
                                         "megasam_c2ws.npy: no such file"),
        "the cameras and the focal length are given": (
            None, f"{IN_ROOM} --keep_cameras --focal 9", "give one of them"),
        "the video is not there": (without("room/gt_rgb.mp4"), IN_ROOM,
                                   "gt_rgb.mp4: no such file"),
        "the folder is not there": (None, "--data_path nowhere", "nowhere"),
        "the new folder's video is not there": (None, "--video no.mp4 --output new", "no.mp4"),
        "the new folder's video is text": (with_text("in.mp4", "no"),
                                           "--video in.mp4 --output new", "in.mp4"),
        "there is no new folder": (None, "--video room/gt_rgb.mp4", "--output FOLDER"),
        "a folder's video is cut": (None, f"{IN_ROOM} --start 1", "cut --video"),
        "the video has one frame": (clip("in.mp4", frames=1),
                                    f"--video in.mp4 --output new --depth_file {DEPTH}",
                                    "expected at least 2"),
        "the rate is NaN": (None, "--video room/gt_rgb.mp4 --output new --fps nan", "--fps nan"),
        "the focal length is infinite": (None, f"{IN_ROOM} --focal inf", "--focal inf"),
        "the batch is empty": (None, f"{IN_ROOM} --batch_size 0", "expected a number above 0"),
        "another process is at work": (locked("room/.estimate_geometry.lock"), IN_ROOM,
                                       "is being written to by process 7"),
    },
    "merge_lora": {
        "the LoRA is not there": (None, "", "lora"),
        "the LoRA is whole weights": (None, f"--lora_path {WEIGHTS}", "got whole weights"),
        "the output is there": (lora(WEIGHTS), "--output_dir room", "exists and is kept"),
        "the LoRA is of other weights": (lora(WEIGHTS), "", "is not what it was trained on"),
    },
    "side_by_side": {
        "there are no outputs": (without("room/outputs"), "", "no eval_render*_out.mp4"),
        "the render is not there": (without(RENDER), "", "eval_render1.mp4 is not there"),
        "the output is of another render": (clip(RENDER), "", "was made of another"),
        "the source is of another size": (clip("room/gt_rgb.mp4", height=48), "",
                                          "differ in size"),
        "the truth is text": (with_text("room/novel_gt1.mp4", "no"), "", "novel_gt1.mp4"),
    },
    "run_all": {
        "the video is not there": (without("room/gt_rgb.mp4"), "", "no gt_rgb.mp4"),
        "the paths are not there": (None, "--trajs room", "expected a folder of camera paths"),
        "the pivot is a word": (None, "--pivot centre", "expected x,y in pixels"),
        "the base is not there": (None, "--model_path nowhere", "nowhere"),
        "a number is a word": (None, "--train_epochs many", "invalid int value"),
        "the output folder is another run's": (copied("run", "new"), "",
                                               "that run_all.sh did not begin"),
    },
    "make_sequence": {
        "there are no frames": (None, "--frames 0", "expected above 0"),
        "the rate is NaN": (None, "--fps nan", "--fps nan"),
        "the quality is out of range": (None, "--crf 99", "--crf 99"),
        "the focal length is infinite": (None, "--focal inf", "expected above 0"),
        "depth has no pixels": (None, "--depth_scale 0.0001", "would have no pixels"),
        "the output folder is a file": (None, f"--output_dir {K}", "megasam_intrinsics.npy"),
        "the paths are not there": (None, "--trajs nowhere", "nowhere"),
    },
    "make_tiny": {
        "the frames are none of a clip": (None, "--frames 16", "expected 8k + 1"),
        "the width is no multiple of 16": (None, "--width 100", "expected a multiple of 16"),
        "the output folder is a file": (None, f"--output_dir {K}", "megasam_intrinsics.npy"),
    },
}
OTHERS |= {
    "evaluate_method": {
        "there are no scenes": (None, "--scenes 0", "expected at least 1"),
        "the share is none": (None, "--share 2 2", "expected I from 0 to N - 1"),
        "the base is not there": (None, "--model_path nowhere --device cpu", "nowhere"),
    },
    "benchmark": {
        "there are too few steps": (None, "finetune --steps 1", "expected 4 or more"),
        "what to measure is misspelt": (None, "training", "invalid choice: 'training'"),
    },
}
CONFIG = with_text("config.json", "{}")
PROCESS = f"sh {ROOT}/toolbox/process_ckpts.sh"
FINETUNE = f"sh {ROOT}/finetune/finetune_cognvs.sh"
SCRIPTS = {  # shell scripts, of which a command is a whole line
    "process_ckpts: there is no run": (None, PROCESS, "no */checkpoint-200 of a run"),
    "process_ckpts: there is no config.json": (
        with_text("old/checkpoint-200/latest", "a"), PROCESS, "no config.json here"),
    "process_ckpts: the state leaves its folder": (
        all_of(CONFIG, with_text("old/checkpoint-200/latest", "../../room")), PROCESS,
        "got '../../room'; expected the name of a folder"),
    "finetune_cognvs: the configuration is not there": (
        None, f"accelerate_config=no.yaml {FINETUNE}", "no.yaml: no such file"),
    "finetune_cognvs: another trainer is for one process": (
        None, f"trainer=mine.py {FINETUNE} --memory zero2", "expected single*"),
    "quickstart: an argument is too much": (None, f"sh {ROOT}/toolbox/quickstart.sh now",
                                            "takes no arguments"),
}
TABLE = {"data_gen": DATA_GEN, "demo": DEMO, "train": TRAIN, "prepare": PREPARE, "launch": LAUNCH,
         "check_setup": CHECK_SETUP, "convert_depth": CONVERT_DEPTH, **OTHERS}


# ---- the tests -----------------------------------------------------------------------------------


def state(folder):
    """{path: what it is} of all that is in a folder: bytes and time of files."""
    found = {}
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            data = hashlib.sha256(path.read_bytes()).hexdigest()
            found[str(path)] = data, path.stat().st_mtime_ns
        else:
            found[str(path)] = "folder"
    return found


def complaint(program, out, err):
    """The one line that says what is wrong; asserts that it is one."""
    assert "Traceback" not in err
    if program == "check_setup":
        lines = [line for line in out.splitlines() if line.startswith("WRONG")]
        assert err == "" and lines
        return "\n".join(lines)
    lines = [line for line in re.split(r"[\r\n]+", err) if line.strip()]
    lines = [line for line in lines if "%|" not in line]  # progress bars
    if lines[0].startswith("usage: "):
        assert re.match(r"\S.*: error: ", lines[-1])
        assert not any("error" in line for line in lines[:-1])
    else:
        assert len(lines) == 1 and lines[0].startswith("error: "), err
    return lines[-1]


def cases():
    for program, rows in TABLE.items():
        for what in rows:
            yield pytest.param(program, what, id=f"{program}: {what}")


@pytest.mark.parametrize("program, what", cases())
def test_bad_input_is_one_line_and_changes_nothing(start, at, program, what):
    harm, words, said = TABLE[program][what]
    if harm:
        harm(at)
    before = state(at)
    code, seconds = start(program, words, at)
    out, err = (Path(f"{at}.{end}").read_text() for end in ("out", "err"))
    while HELD:
        HELD.pop().close()
    assert code == 2, out + err
    line = complaint(program, out, err)
    assert said in line
    assert max(map(len, line.splitlines())) < LONG
    assert seconds < SECONDS
    assert state(at) == before


@pytest.mark.parametrize("what", SCRIPTS)
def test_bad_input_of_a_shell_script_is_one_line_and_changes_nothing(at, what):
    harm, command, said = SCRIPTS[what]
    if harm:
        harm(at)
    before = state(at)
    done = subprocess.run(["sh", "-c", command], cwd=at, capture_output=True, text=True,
                          stdin=subprocess.DEVNULL, timeout=LIMIT)
    assert done.returncode == 2, done.stdout + done.stderr
    line = complaint("sh", done.stdout, done.stderr)
    assert said in line and len(line) < LONG
    assert state(at) == before
