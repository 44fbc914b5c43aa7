"""Measure this program on this machine and print the tables of toolbox/benchmarks.md.

    python toolbox/benchmark.py data_gen
    python toolbox/benchmark.py inference --placements gpu gpu,compile gpu,compile,fast offload low
    python toolbox/benchmark.py finetune --modes single single_fused lora:single
    python toolbox/benchmark.py steps --steps 6

data_gen: the warp alone, beside a straightforward implementation, and whole commands, at
          49 x 480 x 854.
inference: the pipeline of demo.py on random weights of the real size, made on the GPU. After a clip
           that warms up, one at --steps and one at twice that: their difference is a step's time.
finetune: finetune_cognvs.sh on random weights of the real size (32 GB of disk); steady is the
          second half of the steps.
steps: steps of the trainer on random weights that are made on the GPU, without models on disk, all
       but the first two, which compile. full, auto: gradient_checkpointing; lora: of rank 128;
       anew: with a condition encoded in every step. Settings of finetune_cognvs.sh after --settings
       are for all rows.

A row that cannot be made says why in its place; the others are made, and the exit code is 2.
"""

import argparse
import contextlib
import csv
import functools
import gc
import io
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch
from diffusers import CogVideoXDPMScheduler

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import data_gen
from finetune import dataset, engines, train
from finetune import memory as finetune_memory
from toolbox.checks import fits
from toolbox.small_model import make_tiny_checkpoint as tiny
from utils import cli, cogvideox, devices, pipeline, sequence, trajectory, video
from utils.cli import InputError
from utils.pipeline import AutoencoderKLCogVideoX, CogVideoXTransformer3DModel

ROOT = Path(__file__).resolve().parents[1]
WHOLE = 50  # denoising steps of a whole clip
REPEATS = 5  # of a warp, of which the fastest counts
STEPS = {  # settings that a word in a row of steps stands for
    "full": "--gradient_checkpointing=full", "auto": "--gradient_checkpointing=auto",
    "lora": "--training_type=lora", "anew": "--condition_encodings=0",
}


def parse_args():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=cli.HelpFormatter)
    add = parser.add_argument
    add("what", choices=("data_gen", "inference", "finetune", "steps"))
    add("--device", help="cpu, cuda or cuda:N; the GPU if there is one by default")
    add("--folder", type=Path, default=Path(tempfile.gettempdir()) / "cognvs_benchmark",
        help="for random models on disk")
    add("--size", choices=tiny.SIZES, default="5b", help="of the model")
    placements = ["gpu", "gpu,compile", "gpu,compile,fast", "offload", "low"]
    add("--placements", nargs="+", default=placements, help="of inference: --memory of demo.py, "
        "with ,compile and ,fast")
    add("--modes", nargs="+", default=["single", "single_fused", "lora:single"],
        help="of finetune: --memory of finetune_cognvs.sh, for a LoRA after lora:")
    rows = ["single,full,anew", "single,anew", "single", "single,auto,anew", "single,auto",
            "single,lora,anew", "single,lora"]
    add("--rows", nargs="+", default=rows, help=f"of steps: single or single_fused, with "
        f"{', '.join(STEPS)}")
    add("--steps", type=int, default=12)
    add("--settings", nargs=argparse.REMAINDER, default=[], help="of finetune_cognvs.sh")
    args = parser.parse_args()
    if args.steps < 4:
        raise InputError(f"--steps {args.steps}: expected 4 or more")
    return args


def print_table(head, make_row, names):
    """Print make_row(name) of every name, a list of cells, or why there is none.

    InputError at the end if any could not be made.
    """
    print(f"| {' | '.join(head)} |")
    print("| --- " * len(head) + "|")
    failed = []
    for name in names:
        try:
            cells = [name, *make_row(name)]
        except (InputError, RuntimeError) as error:  # out of memory is a RuntimeError
            failed.append(name)
            cells = [name, " ".join(str(error).split())[:300]]
        print(f"| {' | '.join(cells)} |", flush=True)
    if failed:
        raise InputError(f"{len(failed)} of {len(names)} rows could not be made; they say why: "
                         f"{' '.join(failed)}")


# ---- data_gen ------------------------------------------------------------------------------------


def simple_splat(values, u, v, weight):
    """The splat as its description reads: values [H, W, C], u, v, weight [H, W], by index_put_."""
    height, width, channels = values.shape
    total = values.new_zeros(height, width, channels)
    weights = values.new_zeros(height, width)
    for x, wx in ((u.floor(), 1 - (u - u.floor())), (u.ceil(), 1 - (u.ceil() - u))):
        for y, wy in ((v.floor(), 1 - (v - v.floor())), (v.ceil(), 1 - (v.ceil() - v))):
            there = (x >= 0) & (x < width) & (y >= 0) & (y < height) & (weight > 0)
            at = (y[there].long(), x[there].long())
            w = (wx * wy * weight)[there]
            total.index_put_(at, values[there] * w[:, None], accumulate=True)
            weights.index_put_(at, w, accumulate=True)
    mask = weights > 0
    return torch.where(mask[..., None], total / weights[..., None], 0), mask


def simple_weight(z):
    """The soft z-buffer's weight [H, W]."""
    log_z = torch.log(1 + z.clamp(0, 1000))
    return 1 / torch.exp(50 * log_z / log_z.max())


def simple_warp(mode, pixels, depth, motion, k):
    """The published warp of one frame, step by step: uint8 [H, W, 3] to (the same, bool [H, W])."""
    height, width = depth.shape
    motion = motion.float()
    k = k.float()
    v = torch.arange(height, device=depth.device).float()
    u = torch.arange(width, device=depth.device).float()
    v, u = torch.meshgrid(v, u, indexing="ij")
    rays = torch.stack([u, v, torch.ones_like(u)], -1) @ torch.linalg.inv(k).T
    points = depth[..., None] * rays
    p = (points @ motion[:3, :3].T + motion[:3, 3]) @ k.T
    z = p[..., 2]
    to_u = p[..., 0] / z
    to_v = p[..., 1] / z
    weight = simple_weight(z) * (z > 0)
    frame = torch.from_numpy(pixels).to(depth.device).float() / 255 * 2 - 1
    out, mask = simple_splat(frame, to_u, to_v, weight)
    if mode == "train":
        flow, _ = simple_splat(torch.stack([to_u - u, to_v - v], -1), to_u, to_v, weight)
        back = simple_weight(depth) * mask
        out, mask = simple_splat(out, u - flow[..., 0], v - flow[..., 1], back)
    else:
        holes = (~mask)[None, None].float()
        mask = torch.nn.functional.max_pool2d(holes, 5, 1, 2)[0, 0] == 0
    out = torch.where(mask[..., None], out, -1)
    return ((out + 1) / 2 * 255).floor().byte().cpu().numpy(), mask.cpu().numpy()


def make_sequence(folder, frames):
    """The shipped sequence at 480 x 854 and `frames` frames, as a sequence folder."""
    room = sequence.open_sequence(ROOT / "demo_data" / "room")
    info = video.VideoInfo(frames, 480, 854, room.info.fps)
    clip = video.resize(video.read_video(room.rgb_path), 480, 854)
    video.write_video(folder / "gt_rgb.mp4", video.fit_length(clip, frames), info)
    sequence.save_array(folder / sequence.DEPTH, video.fit_length(room.depth_map, frames))
    return sequence.open_sequence(folder)


def warp_row(seq, device, mode):
    """Seconds of a whole path, simple and ours as data_gen.py runs it, and how alike they are."""
    keyframes = trajectory.random_keyframes(42, 1)[0]
    cameras = trajectory.keyframe_cameras(keyframes, seq.intrinsics, seq.pivot_depth)
    motion = torch.from_numpy(np.linalg.inv(cameras.c2w)).to(device)
    k = torch.from_numpy(seq.intrinsics.copy()).to(device)
    chunks = []
    for at, pixels, _ in data_gen.source_chunks(seq, cameras.frames, data_gen.batch_size(device)):
        depth = seq.depth(at.start, at.stop).to(device)
        chunks.append((pixels, depth, motion[at], k[at]))
    singles = []
    for chunk in chunks:
        singles += zip(*chunk, strict=True)
    some = singles if device.type == "cuda" else singles[:6]  # seconds each on a CPU

    def ours():
        return data_gen.in_threads(lambda x: data_gen.warp_chunk(mode, *x), iter(chunks), device)

    def simple():
        return (simple_warp(mode, *single) for single in some)

    pixels = np.concatenate([result[0] for result in ours()])[: len(some)]
    expected = np.stack([result[0] for result in simple()])
    close = (np.abs(pixels.astype(int) - expected) <= 2).all(-1).mean()
    frames = len(singles)
    slow = best_seconds(simple) * frames / len(some)
    fast = best_seconds(ours)
    return [f"{slow:.3f}", f"{fast:.3f}", f"{fast / frames:.4f}", f"{frames / fast:.1f}",
            f"{slow / fast:.1f}", f"{close:.4%}"]


def best_seconds(function):
    """The least time it takes to go through what a function yields, keeping nothing."""
    times = []
    for _ in range(REPEATS):
        begin = time.perf_counter()
        for _ in function():
            pass
        times.append(time.perf_counter() - begin)
    return min(times)


def command_row(device, name):
    """A whole train command, such as "49 frames, 8 renders": seconds, frames/s and peak GiB."""
    frames, renders = map(int, re.findall(r"\d+", name))
    with tempfile.TemporaryDirectory() as folder:
        make_sequence(Path(folder), frames)
        command = [sys.executable, ROOT / "data_gen.py", "--data_path", folder, "--mode", "train",
                   "--device", device, "--num_train_render", renders]
        begin = time.perf_counter()
        process = subprocess.Popen(list(map(str, command)), stdout=subprocess.DEVNULL,
                                   stderr=subprocess.DEVNULL)
        peak = 0
        while process.poll() is None:  # not ru_maxrss, which starts at what this process has
            status = Path(f"/proc/{process.pid}/status").read_text()
            match = re.search(r"VmHWM:\s+(\d+) kB", status)
            peak = int(match[1]) / 2**20 if match else peak
            time.sleep(0.02)
    seconds = time.perf_counter() - begin
    if process.returncode:
        raise InputError(f"{' '.join(map(str, command))} failed; run it to see why")
    return [f"{seconds:.1f}", f"{frames * renders / seconds:.1f}", f"{peak:.2f}"]


def bench_data_gen(device):
    head = ["warp of 49 x 480 x 854", "simple, s", "ours, s", "ours, s a frame", "frames/s",
            "ratio", "within 2/255"]
    with tempfile.TemporaryDirectory() as folder:
        seq = make_sequence(Path(folder), 49)
        print_table(head, functools.partial(warp_row, seq, device), ["eval", "train"])
    print()
    head = ["whole command, train", "s", "frames/s", "peak GiB"]
    commands = ["49 frames, 1 render", "49 frames, 8 renders", "196 frames, 1 render"]
    print_table(head, functools.partial(command_row, device), commands)


# ---- inference -----------------------------------------------------------------------------------


def random_pipeline(device, size):
    """The pipeline with random weights, in bf16 where that is fast, drawn on `device`."""
    transformer, vae, _ = tiny.configs(size)
    dtype = pipeline.pick_dtype("auto", device)
    vae = tiny.random_model(AutoencoderKLCogVideoX, vae, dtype, device)
    transformer = tiny.random_model(CogVideoXTransformer3DModel, transformer, dtype, device)
    for model in (vae, transformer):
        model.requires_grad_(False).eval().to("cpu")
    scheduler = CogVideoXDPMScheduler.from_config(tiny.SCHEDULER)
    pipe = pipeline.assemble(vae, transformer, scheduler)
    return pipe


def clip_seconds(pipe, device, steps, fast=False):
    """Time of one clip of `steps` denoising steps, with encoding and decoding."""
    frames, height, width = pipe.clip_shape
    config = pipe.transformer.config
    clip = torch.rand(frames, 3, height, width)
    embedding = torch.randn(1, config.max_text_seq_length, config.text_embed_dim)
    embedding = embedding.to(device, pipe.dtype)
    begin = time.perf_counter()
    with cogvideox.attention():
        pipe.inpaint(clip, embedding, steps, torch.Generator().manual_seed(0), fast).cpu()
    return time.perf_counter() - begin


def placement_row(args, device, name):
    """Seconds of a step, of encoding and decoding and of a whole clip; peak GiB."""
    mode, *extras = name.split(",")
    unknown = set(extras) - {"compile", "fast"}
    if unknown:
        raise InputError(f"got {' '.join(unknown)}; expected compile or fast after the memory mode")
    forget_peak(device)
    pipe = random_pipeline(device, args.size)
    forget_peak(device)
    devices.place(pipe, device, mode)
    if "compile" in extras:
        cogvideox.compile_blocks(pipe.transformer)
    if "fast" in extras:
        clip_seconds(pipe, device, 1)
        return ["", "", f"{clip_seconds(pipe, device, WHOLE, True):.1f}", peak_gib(device)]
    clip_seconds(pipe, device, 1)
    few = clip_seconds(pipe, device, args.steps)
    many = clip_seconds(pipe, device, 2 * args.steps)
    step = (many - few) / args.steps
    rest = few - step * args.steps
    return [f"{step:.3f}", f"{rest:.2f}", f"{rest + WHOLE * step:.1f}", peak_gib(device)]


def forget_peak(device):
    """Begin to measure peak_gib anew, without what is no longer in use."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)


def peak_gib(device):
    """The most GiB of GPU memory in use since then, as text."""
    if device.type != "cuda":
        return "-"
    return f"{torch.cuda.max_memory_allocated(device) / 2**30:.1f}"


def bench_inference(args, device):
    head = ["placement", "s a step", "encoding and decoding, s", f"{WHOLE} steps, s", "peak GiB"]
    print_table(head, functools.partial(placement_row, args, device), args.placements)


# ---- finetune ------------------------------------------------------------------------------------


def run(script, *options):
    """Run one of this project's programs; CalledProcessError if it fails."""
    subprocess.run(list(map(str, (sys.executable, ROOT / script, *options))), check=True)


def make_inputs(folder, size):
    """Random base and weights of a size, and the shipped sequence with training pairs."""
    if not (folder / "base" / "model_index.json").exists():
        run("toolbox/small_model/make_tiny_checkpoint.py", "--output_dir", folder, "--size", size,
            "--dtype", "bf16", "--device", cli.pick_device())
    if not (folder / "room").exists():
        shutil.copytree(ROOT / "demo_data" / "room", folder / "room")
        run("data_gen.py", "--data_path", folder / "room", "--mode", "train",
            "--num_train_render", 2)


def run_finetune(args, mode, output_dir):
    """finetune_cognvs.sh in a mode such as lora:single: (wall seconds, what it printed)."""
    kind, _, memory = mode.rpartition(":")
    settings = {
        "model_path": args.folder / "base",
        "transformer_id": args.folder / "cognvs_ckpt_inpaint",
        "base_dir_input": args.folder / "room",
        "output_dir": output_dir,
        "memory": memory,
        "training_type": kind or "sft",
        "train_epochs": args.steps,
        "checkpointing_steps": args.steps,
        "checkpointing_limit": 0,
    }
    command = ["sh", str(ROOT / "finetune" / "finetune_cognvs.sh")]
    for name, value in settings.items():
        command += [f"--{name}", str(value)]
    begin = time.perf_counter()
    done = subprocess.run(command + args.settings, capture_output=True, text=True)
    if done.returncode:
        raise InputError(f"{mode} failed: {reason(done.stderr)}")
    return time.perf_counter() - begin, done.stdout


def reason(stderr):
    """The last line that says what went wrong, in a program's or an exception's words."""
    said = re.findall(r"^(?:\[rank\d+\]: |\S+: )?([\w.]*[Ee]rror: .*\S.*)", stderr, re.M)
    return said[-1][:300] if said else " ".join(stderr.split())[-300:]


def mode_row(args, mode):
    """Seconds of a step, samples a second, peak GiB, and seconds from start to end."""
    with tempfile.TemporaryDirectory(dir=args.folder) as output_dir:
        seconds, printed = run_finetune(args, mode, output_dir)
        with open(Path(output_dir) / "train_log.csv", newline="") as file:
            rows = list(csv.DictReader(file))
        used = json.loads((Path(output_dir) / "settings.json").read_text())
    peak = re.search(r"peak GPU memory ([\d.]+)", printed)
    samples = used["num_processes"] * used["batch_size"] * used["gradient_accumulation_steps"]
    steady = np.mean([float(row["seconds"]) for row in rows[len(rows) // 2 :]])
    return [f"{steady:.2f}", f"{samples / steady:.3f}", peak[1] if peak else "-", f"{seconds:.0f}"]


def bench_finetune(args):
    make_inputs(args.folder, args.size)
    head = ["memory", "steady s a step", "samples a second", "peak GiB", "start to end, s"]
    print_table(head, functools.partial(mode_row, args), args.modes)


# ---- steps ---------------------------------------------------------------------------------------


def step_settings(args, name):
    """The trainer's settings of a row such as single,auto,anew."""
    mode, *words = name.split(",")
    unknown = set(words) - set(STEPS)
    if unknown or mode not in ("single", "single_fused"):
        raise InputError(f"got {name}; expected single or single_fused, with {', '.join(STEPS)}")
    few = "--condition_encodings=8"  # as quick as any other number, and sooner there
    return fits.script_settings(f"--memory={mode}", few, *args.settings, *map(STEPS.get, words))


def make_pairs(folder, clip_shape):
    """TrainingPairs of the shipped sequence, as target and as its own render."""
    for name in ("gt_rgb.mp4", "train_render1.mp4"):
        shutil.copy(ROOT / "demo_data" / "room" / "gt_rgb.mp4", Path(folder) / name)
    return dataset.open_pairs(folder, None, clip_shape)


def random_run(args, device, name, folder):
    """(a Run of the trainer on random weights, what it says of its memory)."""
    settings = step_settings(args, name)
    forget_peak(device)
    pipe = random_pipeline(device, args.size).to(device, finetune_memory.dtype(settings))
    forget_peak(device)
    finetune_memory.limit(settings, device)
    config = pipe.transformer.config
    embedding = torch.randn(1, config.max_text_seq_length, config.text_embed_dim)
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        run = train.make_run(settings, engines.make_engine(settings), pipe,
                             make_pairs(folder, pipe.clip_shape), embedding.to(pipe.dtype))
    said = re.search(r"about ([\d.]+) GiB, blocks keep: (.*)", printed.getvalue())
    return run, said.groups() if said else ("-", "-")


def step_row(args, device, name):
    """Seconds of a step, peak GiB, how often memory was short, and what the trainer expected."""
    torch.compiler.reset()
    with tempfile.TemporaryDirectory() as folder:
        run, said = random_run(args, device, name, folder)
        step_seconds(run, device, range(2))
        before = retries(device)
        seconds = step_seconds(run, device, range(2, args.steps))
    return [f"{seconds:.3f}", peak_gib(device), f"{retries(device) - before}", *said]


def retries(device):
    """How often PyTorch had to give memory back, and wait, to get a larger piece."""
    cuda = device.type == "cuda"
    return torch.cuda.memory_stats(device)["num_alloc_retries"] if cuda else 0


def step_seconds(run, device, steps):
    """The mean time of these steps of a Run."""
    begin = time.perf_counter()
    for step in steps:
        train.optimiser_step(run, step)
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return (time.perf_counter() - begin) / len(steps)


def bench_steps(args, device):
    head = ["steps", "s a step", "peak GiB", "retries", "expected GiB", "blocks keep"]
    print_table(head, functools.partial(step_row, args, device), args.rows)


def main():
    args = parse_args()
    device = cli.pick_device(args.device)
    cuda = device.type == "cuda"
    name = torch.cuda.get_device_name(device) if cuda else f"{os.cpu_count()} CPU cores"
    print(f"{name}, torch {torch.__version__}, diffusers {version('diffusers')}\n")
    if args.what == "data_gen":
        bench_data_gen(device)
    elif args.what == "inference":
        bench_inference(args, device)
    elif args.what == "steps":
        bench_steps(args, device)
    else:
        bench_finetune(args)


if __name__ == "__main__":
    cli.run(main)
