"""Inpaint evaluation renders with CogNVS: the same scene seen from the new camera, without holes.

    python demo.py --model_path checkpoints/CogVideoX-5b-I2V \\
        --cognvs_ckpt_path checkpoints/cognvs_ckpt_inpaint \\
        --data_path demo_data/room --mp4_name "eval_render*.mp4"

Several GPUs share the videos when it is started with accelerate launch --num_processes N demo.py
... (CPUs: torchrun --nproc_per_node N); with --share_clip they work together on each.
"""

if __name__ == "__main__":
    import signal

    signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C during the imports shows no traceback

import argparse
import contextlib
import glob
import os
import sys
import time
import zlib
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from utils import cli, cogvideox, devices, pipeline, video, windows
from utils.cli import InputError

HOLE = 8  # of a render without a mask file: pixels whose channels are all darker are holes
STRETCHED = 1.3  # a factor beyond which a note says so; 16:9 is stretched by 1.19


def parse_args():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=cli.HelpFormatter)
    add = parser.add_argument
    add("--model_path", type=Path, required=True, help="CogVideoX-5b-I2V folder")
    add("--cognvs_ckpt_path", type=Path, required=True, help="weights folder, or a run folder with "
        "my_checkpoint-*_transformer in it (the highest step is taken)")
    add("--data_path", type=Path, required=True, help="sequence folder with the renders")
    add("--mp4_name", required=True, help='a render, or a quoted pattern like "eval_render*.mp4"')
    add("--num_inference_steps", type=int, default=50)
    add("--guidance_scale", type=float, default=6, help="changes nothing: prompt and negative "
        "prompt are both empty, so one pass gives the picture of every scale")
    add("--seed", type=int, default=42, help="of the noise, the same on every device")
    add("--composite", action="store_true", help="keep the render's known pixels, with a soft edge")
    add("--compare", action="store_true", help="also write source | render | output side by side")
    add("--fit", choices=windows.FITS, default="stretch", help="how a video of another shape meets "
        "the model's; stretch and pad are undone on the output, crop leaves the middle")
    add("--overlap", type=int, default=13, help="frames that two windows of a video longer than "
        "the model's clip have in common")
    add("--crf", type=int, default=10, help="H.264 quality, 0 to 51; 0 is 4:4:4, within 2 of 255")
    add("--fps", type=float, help="of the output; the render's own by default")
    add("--output_dir", type=Path, help="<data_path>/outputs by default")
    add("--overwrite", action="store_true", help="replace outputs that exist")
    add_machine_arguments(add)
    return parser.parse_args()


def add_machine_arguments(add):
    """What says where and how fast it is computed."""
    add("--device", help="cpu, cuda or cuda:N; the GPU if there is one by default")
    add("--dtype", choices=("auto", "bf16", "fp32"), default="auto", help="auto: bf16 on GPUs and "
        "on CPUs with bf16 instructions, else fp32")
    add("--memory", choices=("auto", "gpu", "offload", "low"), default="auto", help="everything on "
        "the GPU; the transformer only while it denoises; its blocks in turns; auto: what fits")
    add("--vae_tiling", choices=("auto", "on", "off"), default="auto", help="tiles take less "
        "memory and change pixels slightly; auto: where memory asks for it")
    add("--compile", action="store_true", help="compile the transformer's blocks: faster steps "
        "after a longer start, for many steps or clips (GPU with a C compiler)")
    add("--fast", action="store_true", help="run the transformer in the last four steps and 22%% "
        "of the others, and predict its output in the rest: changes the picture, saves little "
        "below 8 steps")
    add("--share_clip", action="store_true", help="all processes of torchrun or accelerate launch "
        "work on one clip at a time, in place of each on videos of its own")


# ---- what is to do -------------------------------------------------------------------------------


@dataclass(frozen=True)
class Job:
    """A render to inpaint, and what is beside it."""

    render: Path
    output: Path
    info: video.VideoInfo
    mask: Path | None
    source: Path | None  # to show beside it
    audio: Path | None  # the video whose sound it gets
    tags: dict  # what the output is made of

    @property
    def compared(self):
        """Where --compare writes."""
        return self.output.with_name(f"{self.output.stem.removesuffix('_out')}_compare.mp4")

    @property
    def lock(self):
        """The lock file of a run that writes these."""
        return self.output.with_name(f".{self.output.stem}.lock")


def find_renders(args):
    """The renders that --mp4_name means, in order of name, each for an output of its own."""
    exact = args.data_path / args.mp4_name
    pattern = f"{glob.escape(args.data_path)}/{args.mp4_name}"
    renders = [exact] if exact.is_file() else sorted(map(Path, glob.glob(pattern)))
    if not args.data_path.is_dir():
        raise InputError(f"--data_path {args.data_path}: no such folder; expected a sequence "
                         "folder with renders")
    written = set()  # by an earlier run, if --output_dir is where the renders are
    for render in renders:
        written |= {args.output_dir / f"{render.stem}_{kind}.mp4" for kind in ("out", "compare")}
    renders = [render for render in renders if render not in written]
    if not renders:
        raise InputError(f"{exact}: no such render; make them with data_gen.py --mode eval")
    by_name = {}
    for render in renders:
        other = by_name.setdefault(render.stem, render)
        if other != render:
            raise InputError(f"--mp4_name {args.mp4_name}: {other} and {render} would both become "
                             f"{render.stem}_out.mp4; give a pattern that means one of them")
    return renders


def find_jobs(args, made_of):
    """The renders of this process that are still to do.

    made_of: what every output is made of beside its render, a dict.
    """
    rank, ranks, _ = (0, 1, 0) if args.share_clip else devices.processes()
    jobs = []
    for render in find_renders(args)[rank::ranks]:
        info = video.probe(render)
        mask = find_mask(render, info)
        tags = {"render": cli.file_hash(render), "mask": mask and cli.file_hash(mask)} | made_of
        output = args.output_dir / f"{render.stem}_out.mp4"
        job = Job(render, output, info, mask, None, None, tags)
        if is_done(args, job):
            with contextlib.suppress(InputError, OSError):  # what another run holds stays
                cli.check_free(job.lock)
            continue
        job = replace(job, audio=find_audio(args.data_path, render, info))
        if args.compare:
            job = replace(job, source=find_source(args.data_path, info))
        if args.fit == "stretch":
            say_if_stretched(job, args.clip_shape[1:])
        jobs.append(job)
    return jobs


def is_done(args, job):
    """Whether all that a job is to write is there, and made of the same render, weights, settings.

    InputError where a file does not say what it was made of, so that it may be the user's own.
    """
    if args.overwrite:
        return False
    done = True
    for path in (job.output, job.compared) if args.compare else (job.output,):
        if not path.exists():
            done = False
            continue
        made_of = video.made_of(path)
        if made_of is None:
            raise InputError(f"{path}: is there and does not say what it was made of; move it "
                             "away, or give --overwrite to replace it")
        changed = [name for name, value in job.tags.items() if made_of.get(name) != value]
        if changed:
            print(f"note: {path} was made of another {' and '.join(changed)}; it is made anew")
            done = False
    if done:
        print(f"{job.output} exists and is kept: its render, weights and settings are the same")
    return done


def find_mask(render, info):
    """The mask file of a render, or None; InputError if it does not fit the render."""
    path = render.with_name("mask".join(render.name.rsplit("render", 1)))
    if path == render or not path.is_file():
        return None
    mask = video.probe(path)
    if (mask.frames, mask.height, mask.width) != (info.frames, info.height, info.width):
        raise InputError(f"{path}: got {mask.frames} x {mask.height} x {mask.width}, {render.name} "
                         f"has {info.frames} x {info.height} x {info.width}; make both again with "
                         "data_gen.py, or move the mask away")
    return path


def find_source(data_path, info):
    """The gt_rgb.mp4 to show beside a render, if it is as long."""
    path = data_path / "gt_rgb.mp4"
    frames = video.probe(path).frames if path.is_file() else "no"
    if frames == info.frames:
        return path
    print(f"note: {path} has {frames} frames, the render {info.frames}; it is left out")
    return None


def find_audio(data_path, render, info):
    """The video whose sound belongs to a render, or None: the render itself.

    For one that does not say what it was made of, as the published ones, it is the source if that
    is of its length and rate.
    """
    if video.has_audio(render):
        return render
    source = data_path / "gt_rgb.mp4"
    if video.made_of(render) or not source.is_file():
        return None
    with contextlib.suppress(InputError):  # a source that is no video has no sound
        of_source = video.probe(source)
        same = (of_source.frames, of_source.fps) == (info.frames, info.fps)
        return source if same and video.has_audio(source) else None


def say_if_stretched(job, model_size):
    height, width = job.info.height, job.info.width
    factor = windows.stretch((height, width), model_size)
    if factor > STRETCHED:
        print(f"note: {job.render.name}, {width} x {height}, is stretched by {factor:.1f} to the "
              f"model's {model_size[1]} x {model_size[0]}; --fit pad keeps its shape")


# ---- from render to output -----------------------------------------------------------------------


@dataclass(frozen=True)
class Window:
    """Frames of a render that the model takes at once.

    frames: uint8 [n, H, W, 3] and known: bool [n, H, W], at the model's size. shown: those of them
    that no later window changes, at the size they are written in: {"known": bool [m, h, w],
    "source" (if it is to be shown) and "render": uint8 [m, h, w, 3]}.
    """

    job: Job
    number: int
    count: int  # of the job's windows
    frames: np.ndarray
    known: np.ndarray
    shown: dict


def read_frames(job):
    """Yield {"known", "source" (if there is one), "render"} of each frame, as in Window.shown."""
    size = (job.info.height, job.info.width)
    masks = video.iter_frames(job.mask) if job.mask else None
    sources = video.iter_frames(job.source) if job.source else None
    for render in video.iter_frames(job.render):
        frame = {"known": next(masks)[..., 0] > 127 if masks else (render >= HOLE).any(2)}
        if sources:
            frame["source"] = video.resize(next(sources)[None], *size)[0]
        yield frame | {"render": render}


def read_windows(args, jobs):
    """Yield every Window of every job."""
    length, *size = args.clip_shape
    for job in jobs:
        count = len(windows.starts(job.info.frames, length, args.overlap))
        slide = windows.slide(read_frames(job), job.info.frames, length, args.overlap)
        for number, (frames, done) in enumerate(slide):
            clip = {name: np.stack([frame[name] for frame in frames]) for name in frames[0]}
            known = windows.place(clip["known"] * np.uint8(255), args.fit, size) == 255
            render = windows.place(clip["render"], args.fit, size)
            shown = {k: windows.cropped(x[:done], args.fit, size) for k, x in clip.items()}
            yield Window(job, number, count, render, known, shown)


def inpaint_window(args, pipe, embedding, window, tail):
    """Inpaint a window, going on from `tail`, the finished frames that it overlaps.

    Both are float32 [n, 3, H, W] in [0, 1].
    """
    frames = torch.from_numpy(window.frames).to(tail.device).permute(0, 3, 1, 2) / 255
    known = torch.from_numpy(window.known).to(tail.device)[:, None]
    clip = windows.carry_over(frames, known, tail)
    clip = clip[torch.arange(pipe.clip_shape[0]).clamp(max=len(clip) - 1)]  # repeats its last frame
    generator = torch.Generator().manual_seed(window_seed(args.seed, window.number))
    out = pipe.inpaint(clip, embedding, args.num_inference_steps, generator, args.fast)
    return windows.cross_fade(tail, out[: len(window.frames)])


def window_seed(seed, number):
    """The seed of a window's noise: the first one's is `seed`, so that a clip is as published.

    Both are below 2^32: the CPU's generator takes no more of a seed.
    """
    return zlib.crc32(f"{seed}/{number}".encode()) if number else seed


def inpaint(args, pipe, embedding, jobs):
    """Inpaint all jobs; while one window is denoised the next is read and the last is written."""
    with contextlib.ExitStack() as writers, ThreadPoolExecutor(1) as thread:
        written = None  # the Future of the window that is being written; at most one waits
        for window in video.ahead(read_windows(args, jobs)):
            if window.number == 0:
                if written:
                    written.result()  # one progress bar ends before the next begins
                tail = torch.zeros(0, 3, *pipe.clip_shape[1:], device=embedding.device)
                passes = window.count * (pipe.work(args.num_inference_steps, args.fast) + 1)
                writer = writers.enter_context(OutputWriter(args, window.job, passes))
            with pipe.watch(writer.tell):
                out = inpaint_window(args, pipe, embedding, window, tail)
            done = len(window.shown["render"])
            tail = out[done:].clone()
            pixels = (out[:done] * 255).round().byte().permute(0, 2, 3, 1).cpu().numpy()
            if written:
                written.result()  # raises what went wrong
            written = thread.submit(writer.add, window, pixels)
        written.result()


class OutputWriter:
    """The output of a job: its files, open until all frames are added, and its progress bar.

    A context; leaving it before all is written leaves no file.
    """

    def __init__(self, args, job, passes):
        self.args, self.job, self.start = args, job, time.time()
        self.bar = tqdm(total=passes, unit="pass", desc=job.render.stem, disable=args.helper)
        self.files = contextlib.ExitStack()
        if args.helper:  # another process writes what this one helped to make
            return
        size = windows.output_size(args.fit, (job.info.height, job.info.width), args.clip_shape[1:])
        info = replace(job.info, height=size[0], width=size[1])
        if args.fps:
            info = info.at_rate(Fraction(args.fps).limit_denominator(1001))
        self.output = self.open(job.output, info)
        if args.compare:
            wide = replace(info, width=info.width * (3 if job.source else 2))
            self.compared = self.open(job.compared, wide)

    def open(self, path, info):
        audio = None if self.args.fps else self.job.audio
        writer = video.VideoWriter(path, info, self.args.crf, tags=self.job.tags, audio=audio)
        return self.files.enter_context(writer)

    def tell(self, stage):
        """A pass of a stage is done."""
        self.bar.set_postfix_str(stage, refresh=False)
        self.bar.update()

    def add(self, window, pixels):
        """Write the frames that a window finishes, uint8 [m, H, W, 3] at the model's size.

        Those of the last window complete the files, which are moved into place.
        """
        if not self.args.helper:
            self.write(pixels, **window.shown)
        self.tell("writing")
        if window.number + 1 == window.count:
            self.finish()

    def write(self, pixels, known, render, source=None):
        size = (self.job.info.height, self.job.info.width)
        out = windows.take_back(pixels, self.args.fit, size)
        if self.args.composite:
            out = windows.composite(render, out, known, feather=round(size[0] / 120))
        self.output.write(out)
        if self.args.compare:
            shown = [render, out] if source is None else [source, render, out]
            self.compared.write(np.concatenate(shown, 2))

    def finish(self):
        """Move the files into place and say where they are."""
        self.files.close()
        self.bar.close()
        job = self.job
        tqdm.write(f"{job.output}: {job.info.frames} frames in {time.time() - self.start:.1f} s"
                   f"{cli.peak_memory(self.args.device)}")
        if self.args.compare:
            tqdm.write(f"{job.compared}: {'source | ' * bool(job.source)}render | output")

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self.bar.close()
        return self.files.__exit__(*error)


# ---- the run -------------------------------------------------------------------------------------


def check_numbers(args):
    ranges = {  # name: whether it is good, what is expected
        "num_inference_steps": (1 <= args.num_inference_steps <= 1000, "1 to 1000"),
        "crf": (0 <= args.crf <= 51, "0 (best) to 51"),
        "fps": (args.fps is None or 0.1 <= args.fps <= 1000, "0.1 to 1000 frames a second"),
        "seed": (0 <= args.seed < 2**32, "0 to 2^32 - 1"),
    }
    for name, (good, expected) in ranges.items():
        if not good:
            raise InputError(f"--{name} {getattr(args, name)}: expected {expected}")


def check_machine(args):
    """InputError where the flags ask for what the device cannot do, before anything is loaded."""
    devices.allowed_plans(args.memory, args.vae_tiling, args.device)
    compiles = args.device.type == "cuda" and cogvideox.has_compiler() and args.memory != "low"
    if args.compile and not compiles:
        raise InputError(f"--compile on {args.device}, --memory {args.memory}: needs a CUDA GPU, a "
                         "C compiler with Python's headers, and a --memory that keeps the "
                         "transformer whole; leave it out")


def check_writable(folder):
    """InputError if a folder could not be made or written to, which is said before the work."""
    folder = folder.absolute()
    there = next(path for path in (folder, *folder.parents) if path.exists())
    if not there.is_dir() or not os.access(there, os.W_OK):
        raise InputError(f"--output_dir {folder}: {there} is no folder that can be written to; "
                         "choose another")


def pick_device(args):
    """The device of this process: with several processes on a GPU machine each has its own."""
    if args.share_clip and args.device not in (None, "cpu", "cuda"):
        raise InputError(f"--share_clip --device {args.device}: every process takes a GPU of its "
                         "own; give cuda or cpu")
    local_rank = devices.processes()[2]
    if local_rank is not None and torch.cuda.is_available() and args.device in (None, "cuda"):
        return cli.pick_device(f"cuda:{local_rank}")
    return cli.pick_device(args.device)


def describe(args, weights):
    """What every output is made of beside its render: weights, base and the settings that show."""
    names = ("num_inference_steps", "seed", "fit", "overlap", "composite", "crf", "fps",
             "vae_tiling")
    settings = {name: getattr(args, name) for name in names}
    settings["fast"] = args.fast and cogvideox.fast_passes(args.num_inference_steps)
    settings["dtype"] = str(args.dtype).removeprefix("torch.")
    base = pipeline.fingerprint(args.model_path / "vae")
    return {"weights": pipeline.fingerprint(weights), "base": base, "settings": settings}


def check(args):
    """Check all that can be checked before anything is loaded or written: (weights, jobs to do)."""
    check_numbers(args)
    rank, ranks, _ = devices.processes()
    args.device = pick_device(args)
    args.helper = args.share_clip and rank > 0
    if args.helper:  # the first process speaks for all
        sys.stdout = open(os.devnull, "w")
    if stray := devices.stray_ranks():
        print(f"note: {', '.join(stray)} in the environment are of no torchrun or accelerate "
              "launch; this process does all videos alone")
    args.dtype = pipeline.pick_dtype(args.dtype, args.device)
    args.output_dir = args.output_dir or args.data_path / "outputs"
    check_machine(args)
    weights = pipeline.find_weights(args.cognvs_ckpt_path)
    config = pipeline.transformer_config(args.model_path, weights)
    vae_config = pipeline.read_json(args.model_path / "vae" / "config.json")
    args.clip_shape = cogvideox.clip_shape(config, vae_config)
    args.text_length = config["max_text_seq_length"]
    if not 1 <= args.overlap < args.clip_shape[0]:
        raise InputError(f"--overlap {args.overlap}: expected at least 1 frame, and fewer than the "
                         f"model's clip, {args.clip_shape[0]}")
    if args.share_clip:
        devices.check_sharing(config, ranks)
    check_writable(args.output_dir)
    return weights, find_jobs(args, describe(args, weights))


def load(args, weights):
    """The pipeline in its place, as fast as asked for, and the embedding of ""."""
    start = time.time()
    embedding, cache = pipeline.empty_prompt(args.model_path, args.text_length, args.dtype)
    pipe = pipeline.load_pipeline(args.model_path, weights, args.dtype)
    mode, where = devices.place(pipe, args.device, args.memory, args.vae_tiling, args.share_clip)
    whole = mode != "low"
    if args.compile and whole:
        pipeline.keep_compiled()
        cogvideox.compile_blocks(pipe.transformer)
    if args.share_clip:
        devices.share_tokens(pipe.transformer)
    if args.compile and not whole:
        print("note: memory=low, so --compile is left out")
    print(f"loaded {weights} and {args.model_path / 'vae'} in {time.time() - start:.1f} s, "
          f'{args.dtype} {where}; embedding of "" kept {f"in {cache}" if cache else "nowhere"}')
    return pipe, embedding.to(args.device)


def lock_outputs(args, jobs):
    """A context in which no other run writes the outputs of these jobs."""
    locks = contextlib.ExitStack()
    for job in () if args.helper else jobs:
        locks.enter_context(cli.lock(job.lock))
        for path in (job.output, job.compared):  # of a run that was killed
            path.with_name(f"{path.name}.part").unlink(missing_ok=True)
    return locks


def main():
    args = parse_args()
    weights, jobs = check(args)
    if not jobs:
        return
    with lock_outputs(args, jobs):
        if args.share_clip:
            devices.join(args.device)
        pipe, embedding = load(args, weights)
        with cogvideox.attention():
            inpaint(args, pipe, embedding, jobs)
        if args.share_clip:
            devices.leave()


if __name__ == "__main__":
    cli.run(main, "outputs that are whole stay; the same command makes the others")
