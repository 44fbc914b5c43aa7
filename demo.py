"""Inpaint evaluation renders with CogNVS: the same scene seen from the new camera, without holes.

    python demo.py --model_path checkpoints/CogVideoX-5b-I2V --cognvs_ckpt_path checkpoints/cognvs_ckpt_inpaint \\
        --data_path demo_data/room --mp4_name "eval_render*.mp4"

Several GPUs share the videos when it is started with accelerate launch --num_processes N demo.py ... (CPUs: torchrun
--nproc_per_node N); with --share_clip they work together on each.
"""

import argparse
import contextlib
import dataclasses
import functools
import glob
import itertools
import os
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from fractions import Fraction
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from utils import cli, cogvideox, devices, pipeline, video, windows
from utils.cli import InputError

HOLE = 8  # where every channel is darker, a render without a mask file counts as a hole


def parse_args():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=cli.HelpFormatter)
    parser.add_argument("--model_path", type=Path, required=True, help="CogVideoX-5b-I2V folder")
    parser.add_argument("--cognvs_ckpt_path", type=Path, required=True, help="weights folder, or a run folder with "
                        "my_checkpoint-*_transformer in it (the highest step is taken)")
    parser.add_argument("--data_path", type=Path, required=True, help="sequence folder with the renders")
    parser.add_argument("--mp4_name", required=True, help='a render, or a quoted pattern such as "eval_render*.mp4"')
    parser.add_argument("--num_inference_steps", type=int, default=50)
    parser.add_argument("--guidance_scale", type=float, default=6, help="changes nothing: prompt and negative prompt "
                        "are both empty, so one pass gives the picture of every scale")
    parser.add_argument("--seed", type=int, default=42, help="of the noise, drawn on the CPU: the same on every device")
    parser.add_argument("--device", help="cpu, cuda or cuda:N; the GPU if there is one by default")
    parser.add_argument("--dtype", choices=("auto", "bf16", "fp32"), default="auto", help="auto: bf16 on GPUs and on "
                        "CPUs with bf16 instructions, else fp32")
    parser.add_argument("--memory", choices=("auto", "gpu", "offload", "low"), default="auto", help="everything "
                        "on the GPU; the transformer only while it denoises; its blocks in turns; auto: what fits")
    parser.add_argument("--vae_tiling", choices=("auto", "on", "off"), default="auto", help="tiles take less memory "
                        "and change pixels slightly; auto: where memory asks for it")
    parser.add_argument("--compile", action="store_true", help="compile the transformer's blocks: faster steps after a "
                        "start that takes longer, for many steps or clips (GPU with a C compiler)")
    parser.add_argument("--fast", action="store_true", help="run the transformer in every third step, the first three "
                        "and the last four, and extrapolate its output in the others: changes the picture slightly, "
                        "saves little below 15 steps, and not with memory=low")
    parser.add_argument("--share_clip", action="store_true", help="all processes of torchrun or accelerate launch work "
                        "on one clip at a time, each on a part of its tokens, in place of each on videos of its own")
    parser.add_argument("--crf", type=int, default=10, help="H.264 quality, 0 to 51; 0 is 4:4:4, within 2 of 255")
    parser.add_argument("--fps", type=float, help="of the output; the render's own by default")
    parser.add_argument("--fit", choices=windows.FITS, default="stretch", help="how a video of another shape meets "
                        "the model's; stretch and pad are undone on the output, crop leaves the middle")
    parser.add_argument("--overlap", type=int, default=13, help="frames that two windows of a video longer than "
                        "the model's clip have in common")
    parser.add_argument("--composite", action="store_true", help="keep known pixels from the render, with a soft edge")
    parser.add_argument("--compare", action="store_true", help="also write source | render | output side by side")
    parser.add_argument("--output_dir", type=Path, help="<data_path>/outputs by default")
    parser.add_argument("--overwrite", action="store_true", help="replace outputs that exist")
    return parser.parse_args()


@dataclasses.dataclass
class Job:
    """A render to inpaint, what is beside it, and what became of it."""

    render: Path
    output: Path
    info: video.VideoInfo
    mask: Path | None
    source: Path | None  # to show beside it
    passes: str = ""  # of the transformer, told with fast


def find_jobs(args):
    """The renders still to do, in order of name."""
    exact = args.data_path / args.mp4_name
    pattern = f"{glob.escape(args.data_path)}/{args.mp4_name}"
    renders = [exact] if exact.is_file() else sorted(map(Path, glob.glob(pattern)))
    if not renders:
        if not args.data_path.is_dir():
            raise InputError(f"--data_path {args.data_path}: no such folder; expected a sequence folder with renders")
        raise InputError(f"{exact}: no such render; make them with data_gen.py --mode eval")
    output_dir = args.output_dir or args.data_path / "outputs"
    rank, ranks = processes()
    jobs = []
    for render in renders if args.share_clip else renders[rank::ranks]:
        info = video.probe(render)
        mask = find_mask(render, info)
        output = output_dir / f"{render.stem}_out.mp4"
        there = [path for path in (output, compared(output)) if path.exists() and (path == output or args.compare)]
        if not there or args.overwrite:
            source = find_source(args.data_path, info) if args.compare and not args.helper else None
            jobs.append(Job(render, output, info, mask, source))
        elif not args.helper:
            print(f"{there[0]} exists and is kept; --overwrite replaces it")
    return jobs


def processes():
    """(rank, number) of the processes that accelerate launch has started, (0, 1) without it."""
    return tuple(int(os.environ.get(name, default)) for name, default in (("RANK", 0), ("WORLD_SIZE", 1)))


def find_mask(render, info):
    """The mask file of a render, or None; InputError if it does not fit the render."""
    path = render.with_name("mask".join(render.name.rsplit("render", 1)))
    if path == render or not path.is_file():
        return None
    mask = video.probe(path)
    if (mask.frames, mask.height, mask.width) != (info.frames, info.height, info.width):
        raise InputError(f"{path}: got {mask.frames} x {mask.height} x {mask.width}, {render.name} has {info.frames} x "
                         f"{info.height} x {info.width}; make both again with data_gen.py, or move the mask away")
    return path


def find_source(data_path, info):
    """The gt_rgb.mp4 to show beside a render, if it is as long."""
    path = data_path / "gt_rgb.mp4"
    frames = video.probe(path).frames if path.is_file() else "no"
    if frames == info.frames:
        return path
    print(f"note: {path} has {frames} frames, the render {info.frames}: compared without the source")
    return None


def read_items(job):
    """Iterate over (known bool [H, W], source if there is one, render uint8 [H, W, 3]) of each frame."""
    frames, same = itertools.tee(video.iter_frames(job.render))
    known = (m[..., 0] > 127 for m in video.iter_frames(job.mask)) if job.mask else ((f >= HOLE).any(2) for f in same)
    size = job.info.height, job.info.width
    sources = [(video.resize(f[None], *size)[0] for f in video.iter_frames(job.source))] if job.source else []
    return zip(known, *sources, frames, strict=True)


def read_windows(args, jobs, clip_shape):
    """Yield (job, number of its window, its count of windows, frames, known, shown) of every window of every job.

    frames uint8 [n, H, W, 3] and known bool [n, H, W] have the model's size; shown is (known, source if there is one,
    render) of the frames that the window finishes, at the size they are written in.
    """
    length, *shape = clip_shape
    for job in jobs:
        count = len(windows.starts(job.info.frames, length, args.overlap))
        slide = windows.slide(read_items(job), job.info.frames, length, args.overlap)
        for number, (window, done) in enumerate(slide):
            parts = [np.stack(part) for part in zip(*window, strict=True)]
            frames = windows.place(parts[-1], args.fit, shape)
            known = windows.place(parts[0] * np.uint8(255), args.fit, shape) == 255
            yield job, number, count, frames, known, [windows.cropped(part[:done], args.fit, shape) for part in parts]


def inpaint_window(args, pipe, embedding, frames, known, tail, number):
    """Inpaint a window, going on from `tail`: float32 [n, 3, H, W] in [0, 1]."""
    frames, known = (torch.from_numpy(x).to(tail.device) for x in (frames, known))
    clip = windows.carry_over(frames.permute(0, 3, 1, 2) / 255, known[:, None], tail)
    clip = clip[torch.arange(pipe.clip_shape[0]).clamp(max=len(clip) - 1)]  # a shorter one repeats its last frame
    generator = torch.Generator().manual_seed((args.seed + (number << 32)) % 2**63)  # the first window's is the seed
    out = pipe.inpaint(clip, embedding, args.num_inference_steps, generator)
    return windows.cross_fade(tail, out[: len(frames)])


def inpaint(args, pipe, embedding, jobs, passes):
    """Inpaint all jobs; the next window is read, and the last one written, while one is denoised.

    passes: of predict_steps, or None.
    """
    output, made = None, Counter(passes)
    try:
        with ThreadPoolExecutor(1) as thread:
            written = None
            for job, number, count, frames, known, shown in video.ahead(read_windows(args, jobs, pipe.clip_shape)):
                if number == 0:
                    tail = torch.zeros(0, 3, *pipe.clip_shape[1:], device=embedding.device)
                    if not args.helper:
                        output = write(args, pipe.clip_shape[1:], job)
                        next(output)  # opens the files
                pipe.set_progress_bar_config(desc=job.render.stem + f" {number + 1}/{count}" * (count > 1), unit="step",
                                             disable=args.helper)  # fmt: skip
                out = inpaint_window(args, pipe, embedding, frames, known, tail, number)
                out, tail = out[: len(shown[0])], out[len(shown[0]) :].clone()
                if args.helper:
                    continue
                if passes and number + 1 == count:
                    job.passes = f", {passes['passes'] - made['passes']} passes of the transformer"
                    made = Counter(passes)
                pixels = (out * 255).round().byte().permute(0, 2, 3, 1).cpu().numpy()
                if written:
                    written.result()  # at most one window waits; raises what went wrong
                written = thread.submit(output.send, (*shown, pixels))
            if written:
                written.result()
    finally:
        if output:
            output.close()  # a file that is not whole is taken away


def write(args, shape, job):
    """Write a job's result at the render's size (but for crop), length and rate; with --compare, twice.

    A generator that is sent (known, source if there is one, render, output) of some frames at a time until all are
    written, the output uint8 [n, H, W, 3] at the model's (height, width), `shape`, the others as they are shown.
    """
    info, start, left = job.info, time.time(), job.info.frames
    height, width = windows.output_size(args.fit, (info.height, info.width), shape)
    fps = Fraction(args.fps).limit_denominator(1001) if args.fps else info.fps
    written = dataclasses.replace(info, height=height, width=width, fps=fps)
    with contextlib.ExitStack() as files:
        writer = files.enter_context(video.VideoWriter(job.output, written, args.crf))
        if args.compare:
            wide = dataclasses.replace(written, width=width * (3 if job.source else 2))
            beside = files.enter_context(video.VideoWriter(compared(job.output), wide, args.crf))
        while left:
            known, *shown, out = yield
            left -= len(out)
            out = windows.take_back(out, args.fit, (info.height, info.width))
            if args.composite:
                out = windows.composite(shown[-1], out, known, feather=round(info.height / 120))
            writer.write(out)
            if args.compare:
                beside.write(np.concatenate([*shown, out], 2))
    tqdm.write(f"{job.output}: {info.frames} frames in {time.time() - start:.1f} s{job.passes}"
               f"{cli.peak_memory(args.device)}")  # fmt: skip
    if args.compare:
        tqdm.write(f"{compared(job.output)}: {'source | ' * bool(job.source)}render | output")
    yield


def compared(output):
    """Where --compare writes."""
    return output.with_name(f"{output.stem.removesuffix('_out')}_compare.mp4")


def check_numbers(args):
    if not 1 <= args.num_inference_steps <= 1000:
        raise InputError(f"--num_inference_steps {args.num_inference_steps}: expected 1 to 1000")
    if not 0 <= args.crf <= 51:
        raise InputError(f"--crf {args.crf}: expected 0 (best) to 51")
    if args.overlap < 1:
        raise InputError(f"--overlap {args.overlap}: expected at least 1 frame, and fewer than the model's clip has")
    if args.fps is not None and not 0.1 <= args.fps <= 1000:
        raise InputError(f"--fps {args.fps}: expected 0.1 to 1000 frames a second")
    if not 0 <= args.seed < 2**63:
        raise InputError(f"--seed {args.seed}: expected 0 to 2^63 - 1")


def main():
    args = parse_args()
    check_numbers(args)
    several = torch.cuda.is_available() and "LOCAL_RANK" in os.environ and args.device in (None, "cuda")
    device = cli.pick_device(f"cuda:{os.environ['LOCAL_RANK']}" if several else args.device)
    if args.fast and args.memory == "low":
        raise InputError("--fast with --memory low: got both, which do not work together; leave one out")
    if args.share_clip and args.device not in (None, "cpu", "cuda"):
        raise InputError(f"--share_clip --device {args.device}: every process takes a GPU of its own; give cuda or cpu")
    if args.compile and (device.type != "cuda" or not cogvideox.has_compiler() or args.memory == "low"):
        raise InputError(f"--compile on {device}, --memory {args.memory}: needs a CUDA GPU, a C compiler with Python's "
                         "headers, and a --memory that keeps the transformer whole; leave it out")
    rank, ranks = processes()
    args.device, args.helper = device, args.share_clip and rank > 0
    jobs = find_jobs(args)
    if not jobs:
        return
    weights = pipeline.find_weights(args.cognvs_ckpt_path)
    config = pipeline.transformer_config(args.model_path, weights)
    if args.share_clip:
        devices.check_sharing(config, ranks)
        devices.join(device)
    jobs[0].output.parent.mkdir(parents=True, exist_ok=True)  # what cannot be written should not wait for the pictures
    dtype = pipeline.pick_dtype(args.dtype, device)
    start = time.time()
    pipe = pipeline.load_pipeline(args.model_path, weights, dtype)
    if args.overlap >= pipe.clip_shape[0]:
        raise InputError(f"--overlap {args.overlap}: expected fewer frames than the model's clip, {pipe.clip_shape[0]}")
    least = functools.partial(devices.least, device=device) if args.share_clip else None
    where = devices.place(pipe, device, args.memory, args.vae_tiling, least)
    embedding, cache = pipeline.empty_prompt(args.model_path, pipe.transformer.config.max_text_seq_length, dtype)
    low = "memory=low" in where
    if low and (args.compile or args.fast) and not args.helper:
        print("note: memory=low, so --compile and --fast are left out")
    if args.compile and not low:
        cogvideox.compile_blocks(pipe.transformer)
    if args.share_clip:
        devices.share_tokens(pipe.transformer)
    passes = cogvideox.predict_steps(pipe.transformer, args.num_inference_steps) if args.fast and not low else None
    if not args.helper:
        print(f"loaded {weights} and {args.model_path / 'vae'} in {time.time() - start:.1f} s, {dtype} {where}; "
              f'embedding of "" kept in {cache}')
    with cogvideox.attention():
        inpaint(args, pipe, embedding.to(device), jobs, passes)
    if args.share_clip:
        devices.part()


if __name__ == "__main__":
    cli.run(main)
