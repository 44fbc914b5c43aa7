"""Inpaint evaluation renders with CogNVS: the same scene seen from the new camera, without holes.

    python demo.py --model_path checkpoints/CogVideoX-5b-I2V --cognvs_ckpt_path checkpoints/cognvs_ckpt_inpaint \\
        --data_path demo_data/room --mp4_name "eval_render*.mp4"
"""

import argparse
import dataclasses
import glob
import time
from fractions import Fraction
from pathlib import Path

import cv2
import torch

from utils import cli, pipeline, video
from utils.cli import InputError


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
    parser.add_argument("--crf", type=int, default=10, help="H.264 quality, 0 to 51; 0 is 4:4:4, within 2 of 255")
    parser.add_argument("--fps", type=float, help="of the output; the render's own by default")
    parser.add_argument("--output_dir", type=Path, help="<data_path>/outputs by default")
    parser.add_argument("--overwrite", action="store_true", help="replace outputs that exist")
    return parser.parse_args()


def find_renders(args):
    """(render, output) paths still to do, in order of name."""
    exact = args.data_path / args.mp4_name
    pattern = f"{glob.escape(args.data_path)}/{args.mp4_name}"
    renders = [exact] if exact.is_file() else sorted(map(Path, glob.glob(pattern)))
    if not renders:
        raise InputError(f"{exact}: no such render; make them with data_gen.py --mode eval")
    output_dir = args.output_dir or args.data_path / "outputs"
    todo = []
    for render in renders:
        video.probe(render)
        output = output_dir / f"{render.stem}_out.mp4"
        if output.exists() and not args.overwrite:
            print(f"{output} exists and is kept; --overwrite replaces it")
        else:
            todo.append((render, output))
    return todo


def read_clip(render, shape):
    """A render as the model takes it, float32 [F, 3, H, W] in [0, 1], and how many of its frames are real."""
    frames, height, width = shape
    total = video.probe(render).frames
    if total > frames:
        print(f"warning: {render} has {total} frames; the first {frames} are used, as many as the model takes")
    clip = video.resize(video.read_video(render, frames), height, width)
    return torch.from_numpy(video.fit_length(clip, frames)).permute(0, 3, 1, 2) / 255, min(total, frames)


def inpaint_video(args, pipe, embedding, render, output):
    """Inpaint one render and write it at the render's own size, length and rate."""
    start = time.time()
    info = video.probe(render)
    clip, real = read_clip(render, pipe.clip_shape)
    pipe.set_progress_bar_config(desc=render.stem, unit="step")
    out = pipe.inpaint(clip, embedding, args.num_inference_steps, torch.Generator().manual_seed(args.seed))
    pixels = (out[:real] * 255).round().byte().permute(0, 2, 3, 1).numpy()  # [F, H, W, 3]
    info = dataclasses.replace(info, fps=Fraction(args.fps).limit_denominator(1001) if args.fps else info.fps)
    method = cv2.INTER_AREA if pixels[0].size > 3 * info.height * info.width else cv2.INTER_CUBIC
    video.write_video(output, video.resize(pixels, info.height, info.width, method), info, args.crf)
    print(f"{output}: {real} frames in {time.time() - start:.1f} s{cli.peak_memory(pipe.device)}")


def check_numbers(args):
    if not 1 <= args.num_inference_steps <= 1000:
        raise InputError(f"--num_inference_steps {args.num_inference_steps}: expected 1 to 1000")
    if not 0 <= args.crf <= 51:
        raise InputError(f"--crf {args.crf}: expected 0 (best) to 51")
    if args.fps is not None and not 0.1 <= args.fps <= 1000:
        raise InputError(f"--fps {args.fps}: expected 0.1 to 1000 frames a second")
    if not 0 <= args.seed < 2**63:
        raise InputError(f"--seed {args.seed}: expected 0 to 2^63 - 1")


def main():
    args = parse_args()
    check_numbers(args)
    device = cli.pick_device(args.device)
    todo = find_renders(args)
    if not todo:
        return
    weights = pipeline.find_weights(args.cognvs_ckpt_path)
    pipeline.check_base(args.model_path)
    todo[0][1].parent.mkdir(parents=True, exist_ok=True)  # what cannot be written should not wait for the pictures
    dtype = pipeline.pick_dtype(args.dtype, device)
    start = time.time()
    pipe = pipeline.load_pipeline(args.model_path, weights, dtype, device)
    embedding, cache = pipeline.empty_prompt(args.model_path, pipe.transformer.config.max_text_seq_length, dtype)
    print(f"loaded {weights} in {time.time() - start:.1f} s, {dtype} on {device}; embedding of \"\" kept in {cache}")
    for render, output in todo:
        inpaint_video(args, pipe, embedding.to(device), render, output)


if __name__ == "__main__":
    cli.run(main)
