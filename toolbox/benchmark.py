"""Measure this program on this machine and print the tables of toolbox/benchmarks.md.

    python toolbox/benchmark.py data_gen
    python toolbox/benchmark.py finetune --modes single single_fused lora:single
    python toolbox/benchmark.py inference --placements gpu gpu,compile gpu,compile,fast offload low
    python toolbox/benchmark.py pictures
    python toolbox/benchmark.py long

data_gen: the warp alone, beside a straightforward implementation, and whole commands, at 49 x 480 x 854.
inference: the pipeline of demo.py on random weights of the real size, made on the GPU. After a clip that warms up, one
           at --steps and one at twice that, so that a step's time is their difference.
pictures: how far the small model's pictures of the shipped sequence are from the exact ones with fewer steps, with
          --fast, and on a GPU that has it with fp8 linear layers.
long: PSNR by frame, to the exact view, of 121 frames that the small model makes in windows; a plot of it in --folder.
finetune: finetune_cognvs.sh on random weights of the real size (32 GB of disk); steady is the second half of the steps.

A row that cannot be made says why in its place; the others are made, and the exit code is 2.
"""

import argparse
import csv
import functools
import gc
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
from torch.utils.flop_counter import FlopCounterMode

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import data_gen
from toolbox.small_model import make_tiny_checkpoint
from utils import cli, cogvideox, devices, metrics, pipeline, sequence, trajectory, video, windows

ROOT = Path(__file__).resolve().parents[1]


def simple_splat(values, u, v, weight):
    """The splat as its description reads: values [H, W, C], u, v, weight [H, W], by index_put_."""
    height, width, channels = values.shape
    total, weights = values.new_zeros(height, width, channels), values.new_zeros(height, width)
    for x, wx in ((u.floor(), 1 - (u - u.floor())), (u.ceil(), 1 - (u.ceil() - u))):
        for y, wy in ((v.floor(), 1 - (v - v.floor())), (v.ceil(), 1 - (v.ceil() - v))):
            there = (x >= 0) & (x < width) & (y >= 0) & (y < height) & (weight > 0)
            at, w = (y[there].long(), x[there].long()), (wx * wy * weight)[there]
            total.index_put_(at, values[there] * w[:, None], accumulate=True)
            weights.index_put_(at, w, accumulate=True)
    mask = weights > 0
    return torch.where(mask[..., None], total / weights[..., None], 0), mask


def simple_warp(mode, pixels, depth, motion, k):
    """The published warp of one frame, step by step: uint8 [H, W, 3] to (uint8 [H, W, 3], bool [H, W])."""
    height, width = depth.shape
    motion, k = motion.float(), k.float()
    v, u = torch.meshgrid(*(torch.arange(n, device=depth.device).float() for n in (height, width)), indexing="ij")
    points = depth[..., None] * (torch.stack([u, v, torch.ones_like(u)], -1) @ torch.linalg.inv(k).T)
    p = (points @ motion[:3, :3].T + motion[:3, 3]) @ k.T
    to_u, to_v, z = p[..., 0] / p[..., 2], p[..., 1] / p[..., 2], p[..., 2]

    def soft_z(z):
        log_z = torch.log(1 + z.clamp(0, 1000))
        return 1 / torch.exp(50 * log_z / log_z.max())

    frame = torch.from_numpy(pixels).to(depth.device).float() / 255 * 2 - 1
    out, mask = simple_splat(frame, to_u, to_v, soft_z(z) * (z > 0))
    if mode == "train":
        flow, _ = simple_splat(torch.stack([to_u - u, to_v - v], -1), to_u, to_v, soft_z(z) * (z > 0))
        out, mask = simple_splat(out, u - flow[..., 0], v - flow[..., 1], soft_z(depth) * mask)
    else:
        mask = torch.nn.functional.max_pool2d((~mask)[None, None].float(), 5, 1, 2)[0, 0] == 0
    out = torch.where(mask[..., None], out, -1)
    return ((out + 1) / 2 * 255).floor().byte().cpu().numpy(), mask.cpu().numpy()


def make_clip(folder, frames):
    """The shipped sequence at 480 x 854 and `frames` frames, as a sequence folder."""
    room = sequence.open_sequence(ROOT / "demo_data" / "room")
    info = video.VideoInfo(frames, 480, 854, room.info.fps)
    clip = video.fit_length(video.resize(video.read_video(room.rgb_path), 480, 854), frames)
    video.write_video(folder / "gt_rgb.mp4", clip, info)
    sequence.save_array(folder / sequence.DEPTH, video.fit_length(room.depth_map, frames))
    return sequence.open_sequence(folder)


def time_warp(seq, mode, device, repeats=5):
    """Best seconds of all frames of a path, ours as data_gen.py runs it and simple, and the share within 2/255."""
    cameras = trajectory.keyframe_cameras(trajectory.random_keyframes(42, 1)[0], seq.intrinsics, seq.pivot_depth)
    motion, k = (torch.from_numpy(a).to(device) for a in (np.linalg.inv(cameras.c2w), seq.intrinsics.copy()))
    size = data_gen.batch_size(device)
    chunks = [(pixels, seq.depth(at.start, at.stop).to(device), motion[at], k[at])
              for at, pixels, _ in data_gen.source_chunks(seq, cameras.frames, size)]
    singles = [[part[i] for part in chunk] for chunk in chunks for i in range(len(chunk[0]))]

    few = len(singles) if device.type == "cuda" else 6

    def ours():
        return data_gen.in_threads(lambda chunk: data_gen.warp_chunk(mode, *chunk), iter(chunks), device)

    def simple():
        return (simple_warp(mode, *single) for single in singles[:few])

    def best(function):
        times = []
        for _ in range(repeats):
            begin = time.perf_counter()
            for _ in function():  # nothing is kept, as nothing is when frames go to a file
                pass
            times.append(time.perf_counter() - begin)
        return min(times)

    pixels = np.concatenate([result[0] for result in ours()])[:few]
    close = np.abs(pixels.astype(int) - np.stack([result[0] for result in simple()])) <= 2
    return best(ours), best(simple) / few * len(singles), close.all(-1).mean()


def run_command(folder, renders, device):
    """Wall seconds and peak memory in GiB (of the process, without ffmpeg) of a whole train command."""
    command = [sys.executable, str(ROOT / "data_gen.py"), "--data_path", str(folder), "--mode", "train", "--device",
               str(device), "--num_train_render", str(renders)]
    begin = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    memory = 0
    while process.poll() is None:  # not ru_maxrss, which starts at what this process has
        match = re.search(r"VmHWM:\s+(\d+) kB", Path(f"/proc/{process.pid}/status").read_text())
        memory = int(match[1]) / 2**20 if match else memory
        time.sleep(0.02)
    if process.returncode:
        raise cli.InputError(f"{' '.join(command)} failed; run it to see why")
    return time.perf_counter() - begin, memory


def bench_data_gen(device):
    with tempfile.TemporaryDirectory() as folder:
        seq = make_clip(Path(folder), 49)
        print("| warp of 49 x 480 x 854 | simple, s | ours, s | ours, s a frame | frames/s | ratio | within 2/255 |")
        print("| --- | --- | --- | --- | --- | --- | --- |")
        for mode in ("eval", "train"):
            ours, simple, close = time_warp(seq, mode, device)
            print(f"| {mode} | {simple:.3f} | {ours:.3f} | {ours / 49:.4f} | {49 / ours:.1f} | {simple / ours:.1f} | "
                  f"{close:.4%} |")
    print("\n| whole command, train | s | frames/s | peak GiB |\n| --- | --- | --- | --- |")
    for frames, renders in ((49, 1), (49, 8), (196, 1)):
        with tempfile.TemporaryDirectory() as folder:
            make_clip(Path(folder), frames)
            seconds, memory = run_command(folder, renders, device)
        rate = frames * renders / seconds
        print(f"| {frames} frames, {renders} renders | {seconds:.1f} | {rate:.1f} | {memory:.2f} |")


def run(script, *options, stdout=None):
    """Run one of this project's programs; CalledProcessError if it fails."""
    subprocess.run(list(map(str, (sys.executable, ROOT / script, *options))), check=True, stdout=stdout)


def full_size(folder):
    """A base and inpainting weights of the real sizes, random, and the shipped sequence with a training pair."""
    if not (folder / "base" / "model_index.json").exists():
        run("toolbox/small_model/make_tiny_checkpoint.py", "--size", "5b", "--dtype", "bf16", "--output_dir", folder, "--device",
            cli.pick_device().type)  # fmt: skip
    if not (folder / "room").exists():
        shutil.copytree(ROOT / "demo_data" / "room", folder / "room")
        run("data_gen.py", "--data_path", folder / "room", "--mode", "train", "--num_train_render", 2)


def run_finetune(args, mode, output_dir):
    """finetune_cognvs.sh in a mode such as lora:single: (wall seconds, log rows, peak GiB or "-", samples a step)."""
    kind, _, memory = mode.rpartition(":")
    settings = {
        "model_path": args.folder / "base", "transformer_id": args.folder / "cognvs_ckpt_inpaint",
        "base_dir_input": args.folder / "room", "output_dir": output_dir, "memory": memory,
        "training_type": kind or "sft", "train_epochs": args.steps, "checkpointing_steps": args.steps,
        "checkpointing_limit": 0,
    }  # fmt: skip
    command = ["sh", ROOT / "finetune" / "finetune_cognvs.sh"]
    command += [part for name, value in settings.items() for part in (f"--{name}", value)] + args.settings
    begin = time.perf_counter()
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True)
    seconds = time.perf_counter() - begin
    if done.returncode:
        raise cli.InputError(f"{mode} failed: {reason(done.stderr)}")
    with open(Path(output_dir) / "train_log.csv", newline="") as file:
        peak = re.search(r"peak GPU memory ([\d.]+)", done.stdout)
        rows = list(csv.DictReader(file))
    used = json.loads((Path(output_dir) / "settings.json").read_text())
    samples = used["num_processes"] * used["batch_size"] * used["gradient_accumulation_steps"]
    return seconds, rows, peak[1] if peak else "-", samples


def reason(stderr):
    """The last line that says what went wrong, in a program's own words or an exception's; else how `stderr` ends."""
    said = re.findall(r"^(?:\[rank\d+\]: |\S+: )?([\w.]*[Ee]rror: .*\S.*)", stderr, re.M)
    return said[-1][:300] if said else " ".join(stderr.split())[-300:]


def print_rows(make_row, names):
    """Print make_row(name) of every name, or why there is none; InputError at the end if any could not be made."""
    failed = []
    for name in names:
        try:
            row = make_row(name)
        except (cli.InputError, RuntimeError) as error:  # out of memory is a RuntimeError
            failed.append(name)
            row = f"| {name} | {' '.join(str(error).split())[:300]} |"
        print(row, flush=True)
    if failed:
        raise cli.InputError(f"{len(failed)} of {len(names)} rows could not be made; they say why: {' '.join(failed)}")


def bench_finetune(args):
    full_size(args.folder)
    operations = flops(args.folder / "cognvs_ckpt_inpaint")

    def row(mode):
        with tempfile.TemporaryDirectory(dir=args.folder) as output_dir:
            seconds, rows, peak, samples = run_finetune(args, mode, output_dir)
        steady = np.mean([float(row["seconds"]) for row in rows[len(rows) // 2 :]])
        ranks = len(rows[0]["loss_of_each_rank"].split())
        passes = 2 if mode.startswith("lora") else 3  # forward, gradients of activations, and of all weights
        rate = passes * operations * samples / ranks / steady / 1e12
        return (f"| {mode} | {steady:.2f} | {samples / steady:.3f} | {rate:.0f} | {rate / 790:.0%} | {peak} | "
                f"{seconds:.0f} |")  # fmt: skip

    print("| memory | steady s a step | samples a second | TFLOP/s a GPU | share of 790 | peak GiB | start to end, s |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    print_rows(row, args.modes)


def random_pipeline(device, size):
    """The pipeline with random weights, in bf16 where that is fast, drawn on `device` and left in host memory."""
    shape = argparse.Namespace(size=size, frames=49, height=None, width=None)
    transformer, vae, _ = make_tiny_checkpoint.configs(shape)
    scheduler = cogvideox.Scheduler.from_config(make_tiny_checkpoint.SCHEDULER, timestep_spacing="trailing")
    torch.set_default_dtype(pipeline.pick_dtype("auto", device))
    try:
        with device:
            vae = pipeline.AutoencoderKLCogVideoX.from_config(vae)
            transformer = pipeline.CogVideoXTransformer3DModel.from_config(transformer)
    finally:
        torch.set_default_dtype(torch.float32)
    transformer.set_attn_processor(cogvideox.Attention())
    vae = cogvideox.fit_tiles(cogvideox.speed_up(vae))
    pipe = pipeline.CogNVSPipeline(None, None, vae, transformer, scheduler).to("cpu")
    pipe.vae.requires_grad_(False).eval(), pipe.transformer.requires_grad_(False).eval()
    pipe.set_progress_bar_config(disable=True)
    return pipe


def time_inference(pipe, device, steps):
    """Seconds of a clip of `steps` denoising steps, with encoding and decoding."""
    frames, height, width = pipe.clip_shape
    text = pipe.transformer.config.max_text_seq_length, pipe.transformer.config.text_embed_dim
    clip, embedding = torch.rand(frames, 3, height, width), torch.randn(1, *text).to(device, pipe.dtype)
    begin = time.perf_counter()
    with cogvideox.attention():
        pipe.inpaint(clip, embedding, steps, torch.Generator().manual_seed(0)).cpu()
    return time.perf_counter() - begin


def bench_inference(args, device):
    def row(name):
        mode, *extras = name.split(",")
        gc.collect()  # the last one's memory is given back first
        forget_peak(device)
        pipe = random_pipeline(device, args.size)
        forget_peak(device)
        devices.place(pipe, device, mode)
        if "compile" in extras:
            cogvideox.compile_blocks(pipe.transformer)
        if "fp8" in extras:
            to_fp8(pipe.transformer, device)
        passes = cogvideox.predict_steps(pipe.transformer, args.whole) if "fast" in extras else None
        time_inference(pipe, device, 1)
        if passes:
            passes.clear()
            seconds = time_inference(pipe, device, args.whole)
            return f"| {name} | {passes['passes']} passes | | {seconds:.1f} | {peak_gib(device)} |"
        few, many = (time_inference(pipe, device, count) for count in (args.steps, 2 * args.steps))
        step = (many - few) / args.steps
        rest = few - step * args.steps
        return f"| {name} | {step:.3f} | {rest:.2f} | {rest + args.whole * step:.1f} | {peak_gib(device)} |"

    print(f"| placement | s a step | encoding and decoding, s | {args.whole} steps, s | peak GiB |")
    print("| --- | --- | --- | --- | --- |")
    print_rows(row, args.placements)


def forget_peak(device):
    """Begin to measure peak_gib anew, without memory that is kept in reserve."""
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)


def peak_gib(device):
    """The most GiB of GPU memory in use since the last reset, as text."""
    return f"{torch.cuda.max_memory_allocated(device) / 2**30:.1f}" if device.type == "cuda" else "-"


def to_fp8(transformer, device):
    """torchao's fp8 for the linear layers of the blocks' attention and feed-forward, a scale for each row.

    InputError if the device has no fp8.
    """
    if not has_fp8(device):
        raise cli.InputError("fp8 needs a GPU of compute capability 8.9 or more")
    from torchao.quantization import Float8DynamicActivationFloat8WeightConfig, PerRow, quantize_

    def large(module, name):
        return isinstance(module, torch.nn.Linear) and (".attn1." in name or ".ff." in name)

    quantize_(transformer, Float8DynamicActivationFloat8WeightConfig(granularity=PerRow()), large)


def has_fp8(device):
    return device.type == "cuda" and torch.cuda.get_device_capability(device) >= (8, 9)


def bench_pictures(device):
    base, weights = ROOT / "checkpoints" / "tiny" / "base", ROOT / "checkpoints" / "tiny" / "cognvs_ckpt_inpaint"
    with tempfile.TemporaryDirectory() as folder:
        room = shutil.copytree(ROOT / "demo_data" / "room", Path(folder) / "room")
        run("data_gen.py", "--data_path", room, "--mode", "eval", "--device", device, stdout=subprocess.DEVNULL)
        renders = [video.read_video(path) for path in sorted(room.glob("eval_render*.mp4"))]

    @functools.cache
    def inpaint(name, steps):
        """The pictures of all renders, and passes of the transformer for each."""
        dtype = torch.bfloat16 if "bf16" in name else torch.float32
        pipe = pipeline.load_pipeline(base, weights, dtype, device)
        pipe.set_progress_bar_config(disable=True)
        embedding = pipeline.empty_prompt(base, pipe.transformer.config.max_text_seq_length, dtype)[0].to(device)
        if "fp8" in name:
            to_fp8(pipe.transformer, device)
        passes = cogvideox.predict_steps(pipe.transformer, steps) if "fast" in name else {"passes": len(renders) * steps}
        clips = (torch.from_numpy(video.resize(render, *pipe.clip_shape[1:])).permute(0, 3, 1, 2) / 255
                 for render in renders)  # fmt: skip
        out = [pipe.inpaint(clip, embedding, steps, torch.Generator().manual_seed(42)).cpu().numpy() for clip in clips]
        return out, passes["passes"] // len(renders)

    def row(name):
        steps = re.search(r"(\d+) steps", name)
        pictures, passes = inpaint(name, int(steps[1]) if steps else 50)
        reference, _ = inpaint("bf16" if "bf16, " in name else "float32", 50)
        psnr = [metrics.psnr(ours, theirs) for ours, theirs in zip(pictures, reference, strict=True)]
        return f"| {name} | {passes} | {np.mean(psnr):.1f} | {min(psnr):.1f} |"

    print("| | passes | PSNR to 50 steps of the same dtype (bf16: in float32), dB: mean of all renders | lowest |")
    print("| --- | --- | --- | --- |")
    fp8 = ["bf16, fp8", "bf16, fp8, --fast"] if has_fp8(device) else []
    print_rows(row, ["45 steps", "35 steps", "25 steps", "--fast", "bf16", "bf16, --fast", *fp8])


def bench_long(folder, device, frames=121, overlap=13, steps=10):
    """The windows of a long video, whose exact views are known, through data_gen.py and demo.py."""
    seq, tiny = folder / "long", ROOT / "checkpoints" / "tiny"
    shutil.rmtree(seq, ignore_errors=True)
    quiet = {"stdout": subprocess.DEVNULL}
    run("toolbox/synthetic/make_synthetic_sequence.py", "--output_dir", seq, "--frames", frames, "--height", 128, "--width", 192,
        "--focal", 200, **quiet)  # fmt: skip
    run("data_gen.py", "--data_path", seq, "--mode", "eval", "--intrinsics_file", sequence.INTRINSICS, "--device",
        device, **quiet)  # fmt: skip
    run("demo.py", "--model_path", tiny / "base", "--cognvs_ckpt_path", tiny / "cognvs_ckpt_inpaint", "--data_path",
        seq, "--mp4_name", "eval_render2.mp4", "--num_inference_steps", steps, "--overlap", overlap, "--device",
        device, "--dtype", "fp32", **quiet)  # fmt: skip
    ours, exact = (video.read_video(path) / 255 for path in (seq / "outputs" / "eval_render2_out.mp4",
                                                             seq / "novel_gt2.mp4"))  # fmt: skip
    psnr = np.array([metrics.psnr(a, b) for a, b in zip(ours, exact, strict=True)])
    change, brightness = np.abs(np.diff(psnr)), 255 * (ours - exact).mean((1, 2, 3))
    firsts = windows.starts(frames, 49, overlap)
    seams = sorted({*firsts[1:], *(first + 49 for first in firsts[:-1])})
    print("| frames | PSNR, dB | change at a seam (frame), dB | of all: median | most | brightness off, of 255 |")
    print("| --- | --- | --- | --- | --- | --- |")
    at = ", ".join(f"{change[frame - 1]:.2f} ({frame})" for frame in seams)
    print(f"| {frames} | {psnr.mean():.1f} | {at} | {np.median(change):.2f} | {change.max():.2f} | "
          f"{brightness.min():.1f} to {brightness.max():.1f} |")  # fmt: skip
    print(f"wrote {plot_long(psnr, brightness, seams, folder / 'long.png')}")


def plot_long(psnr, brightness, seams, path):
    """PSNR and brightness of each frame, with the frames where overlaps of windows begin and end."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(2, 1, sharex=True, figsize=(8, 5))
    for axis, values, label in zip(axes, (psnr, brightness), ("PSNR, dB", "brightness off, of 255"), strict=True):
        axis.plot(values)
        axis.set_ylabel(label)
        for frame in seams:
            axis.axvline(frame, color="grey", linewidth=0.5)
    axes[1].set_xlabel("frame")
    figure.savefig(path, dpi=100)
    return path


def flops(weights):
    """Operations of one forward pass of one clip, counted without computing."""
    with torch.device("meta"):
        model = pipeline.CogVideoXTransformer3DModel
        model = model.from_config(model.load_config(weights)).bfloat16()
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            model(*random_inputs(model, "meta"))
    return counter.get_total_flops()


def random_inputs(transformer, device):
    """What a transformer takes for one clip: (latents [1, f, C, h, w], text [1, length, width], timestep int64 [1])."""
    c = transformer.config
    frames = (c.sample_frames - 1) // c.temporal_compression_ratio + 1
    sizes = (1, frames, c.in_channels, c.sample_height, c.sample_width), (1, c.max_text_seq_length, c.text_embed_dim)
    latents, text = (torch.randn(size, device=device, dtype=transformer.dtype) for size in sizes)
    return latents, text, torch.tensor([500], device=device)


def print_versions(device):
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else f"{os.cpu_count()} CPU cores"
    libraries = ", ".join(f"{library} {version(library)}" for library in ("diffusers", "torchao"))
    print(f"{name}, torch {torch.__version__}, {libraries}\n")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=cli.HelpFormatter)
    parser.add_argument("what", choices=("data_gen", "inference", "pictures", "long", "finetune"))
    parser.add_argument("--device", help="cpu, cuda or cuda:N; the GPU if there is one by default")
    parser.add_argument("--folder", type=Path, default=Path("/tmp/cognvs_benchmark"),
                        help="for random models, and the plot of long")
    parser.add_argument("--modes", nargs="+", default=["single", "single_fused", "lora:single"])
    parser.add_argument("--placements", nargs="+", default=["gpu", "gpu,compile", "gpu,compile,fast", "offload", "low"],
                        help="--memory of demo.py, with ,compile, ,fast and ,fp8")
    parser.add_argument("--size", choices=make_tiny_checkpoint.SIZES, default="5b", help="of the model, for inference")
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--whole", type=int, default=50, help="steps of a whole clip")
    parser.add_argument("--settings", nargs=argparse.REMAINDER, default=[], help="of finetune_cognvs.sh")
    args = parser.parse_args()
    if args.steps < 4:
        raise cli.InputError(f"--steps {args.steps}: expected 4 or more")
    device = cli.pick_device(args.device)
    print_versions(device)
    if args.what == "data_gen":
        bench_data_gen(device)
    elif args.what == "inference":
        bench_inference(args, device)
    elif args.what == "pictures":
        bench_pictures(device)
    elif args.what == "long":
        bench_long(args.folder, device)
    else:
        bench_finetune(args)


if __name__ == "__main__":
    cli.run(main)
