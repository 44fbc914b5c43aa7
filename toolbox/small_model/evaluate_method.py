"""Measure inpainting and test-time finetuning on made scenes whose exact views are known.

    python toolbox/small_model/evaluate_method.py --model_path checkpoints/tiny/base \\
        --cognvs_ckpt_path checkpoints/tiny/cognvs_ckpt_inpaint --output_dir /tmp/evaluation

Every result is a line of OUTPUT_DIR/results_{world}_{set}.jsonl, written as it comes; what is there
for the same weights is not done again. The table at the end has the mean over scenes, with the
standard deviation after the +-, and how much better holes are than by other means, with the
standard error of that.
"""

import argparse
import contextlib
import copy
import hashlib
import json
import sys
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import NamedTuple

import cv2
import numpy as np
import torch
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from finetune import checkpoint, dataset
from finetune.loss import denoising_loss
from finetune.settings import learning_rate
from toolbox.evaluation import measures
from toolbox.synthetic import clips, toys, yards
from utils import camera_paths, cli, devices, metrics, pipeline, trajectory, video

ROOT = Path(__file__).resolve().parents[2]
FIRST_SEED = {"choose": 100, "report": 500}  # scenes to choose settings on, and scenes to report
WORLDS = ("rooms", "yards", "toys")
SIMPLE = ("black", "telea", "nearest in time", "vae")  # methods that need no transformer
SEED = 42  # of noise, and of the training renders' paths
COLUMNS = ("holes", "known", "full", "composite", "ssim", "sharpness")


@dataclass(frozen=True)
class Finetuning:
    """How the transformer is finetuned on a clip, in finetune_cognvs.sh's names."""

    train_epochs: int = 100
    learning_rate: float = 3e-4
    lr_scheduler: str = "linear"
    lr_warmup_steps: int = 0
    rank: int = 0  # above 0: LoRA of that rank


RENDERS = 8  # training renders of a clip
FINETUNINGS = {
    "default": Finetuning(),
    "rate 2e-05": Finetuning(learning_rate=2e-5),
    "published": Finetuning(train_epochs=200, learning_rate=2e-5, lr_scheduler="constant"),
    "LoRA 16": Finetuning(rank=16, learning_rate=1e-3),
}


def make_parser(description):
    """A parser of the flags that all programs have which evaluate the small model."""
    parser = argparse.ArgumentParser(description=description, formatter_class=cli.HelpFormatter)
    add = parser.add_argument
    add("--model_path", type=Path, required=True, help="base folder")
    add("--cognvs_ckpt_path", type=Path, required=True, help="inpainting weights")
    add("--device", help="cpu, cuda or cuda:N; the GPU if there is one by default")
    return parser


def parse_args():
    parser = make_parser(__doc__)
    add = parser.add_argument
    add("--output_dir", type=Path, required=True)
    add("--world", choices=WORLDS, default="rooms", help="like the training scenes; yards and "
        "toys are not")
    add("--set", choices=FIRST_SEED, default="choose", help="of scenes")
    add("--scenes", type=int, default=8)
    add("--share", type=int, nargs=2, default=(0, 1), metavar=("I", "N"), help="do the I-th of N "
        "parts of the scenes, beside processes that do the others; run once more without it for "
        "the table")
    add("--num_inference_steps", type=int, nargs="+", default=[1, 25])
    add("--finetunings", nargs="*", choices=FINETUNINGS, default=["default"])
    args = parser.parse_args()
    if min(args.scenes, *args.num_inference_steps) < 1:
        raise cli.InputError(f"--scenes {args.scenes} --num_inference_steps "
                             f"{args.num_inference_steps}: expected at least 1 of each")
    if not 0 <= args.share[0] < args.share[1]:
        raise cli.InputError(f"--share {args.share[0]} {args.share[1]}: expected I from 0 to N - 1")
    return args


# ---- what is compared ----------------------------------------------------------------------------


class Case(NamedTuple):
    """A scene and a camera path, with arrays on the host."""

    clip: clips.Clip  # on the device that computes
    cameras: trajectory.Cameras
    render: np.ndarray  # uint8 [F, H, W, 3], black in holes
    mask: np.ndarray  # bool [F, H, W], where the render is known
    truth: np.ndarray  # uint8 [F, H, W, 3], the exact view


def film(world, seed, shape, device):
    """The clip of a scene's seed: of rooms, like those trained on, or of another world."""
    if world == "rooms":
        return clips.random_clip(seed, shape, device)
    if world == "toys":
        return toys.make_clip(seed, shape, device)
    return clips.make_clip(yards.make_yard(seed), shape, shape[2], device)


def exact_view(world, clip, cameras):
    """What cameras see of a clip's scene, uint8 [F, H, W, 3], by the renderer of its world."""
    return (toys if world == "toys" else clips).exact_view(clip, cameras)


def open_case(world, seed, shape, device):
    """The Case of a scene's seed and one of the shipped paths."""
    clip = film(world, seed, shape, device)
    keyframes = camera_paths.read_keyframes(ROOT / "trajs" / f"traj{1 + seed % 4}.txt")
    cameras = clips.path_cameras(clip, keyframes)
    render, mask = clips.reproject(clip, cameras, "eval")
    truth = exact_view(world, clip, cameras)
    return Case(clip, cameras, render.cpu().numpy(), mask.cpu().numpy(), truth.cpu().numpy())


def nearest_in_time(render, mask):
    """Holes filled with the same pixel of the nearest frame that knows it, the rest by Telea."""
    frames = np.arange(len(mask))
    filled = render.copy()
    known = mask.copy()
    for away in range(1, len(mask)):
        for other in (frames - away, frames + away):
            there = (other >= 0) & (other < len(mask))
            source = other.clip(0, len(mask) - 1)
            take = ~known & mask[source] & there[:, None, None]
            filled[take] = render[source][take]
            known |= take
    return measures.telea(filled, known)


def simple_picture(method, pipe, case):
    """What one of SIMPLE makes of a case; "vae" is the truth through encoder and decoder."""
    if method == "black":
        return case.render
    if method == "telea":
        return measures.telea(case.render, case.mask)
    if method == "nearest in time":
        return nearest_in_time(case.render, case.mask)
    return pipeline.reconstruct(pipe.vae, torch.from_numpy(case.truth).to(pipe.device))[1]


def scores(picture, render, mask, truth):
    """The COLUMNS of a result: pictures [F, H, W, 3] uint8 or float in [0, 1], mask bool [F, H, W].

    holes, known, full, composite: PSNR in dB; composite has the render's known pixels in place of
    the picture's. sharpness: energy of the gradients in holes, as a share of the truth's.
    """
    picture, render, truth = map(to_float, (picture, render, truth))
    composite = np.where(mask[..., None], render, picture)
    psnr = metrics.masked_psnr(picture, truth, mask)
    energy, expected = (metrics.gradient_energy(x)[~mask].sum() for x in (picture, truth))
    return {
        "holes": psnr["holes"],
        "known": psnr["known"],
        "full": psnr["all"],
        "composite": metrics.psnr(composite, truth),
        "ssim": metrics.ssim(picture, truth),
        "sharpness": float(energy / max(expected, 1e-9)),
    }


def to_float(picture):
    return picture / 255 if picture.dtype == np.uint8 else picture


# ---- finetuning ----------------------------------------------------------------------------------


class ClipPairs:
    """What dataset.training_batch draws from: a clip in memory, and its renders there and back."""

    def __init__(self, pipe, clip):
        self.posterior = pipe.posterior(video.to_signed(clip.rgb)[None].to(pipe.device, pipe.dtype))
        self.renders = []
        for keyframes in trajectory.random_keyframes(SEED, RENDERS):
            render, _ = clips.reproject(clip, clips.path_cameras(clip, keyframes), "train")
            self.renders.append(render)

    def latents(self, pipe, draw, rng, device, dtype, size):
        """As of dataset.TrainingPairs, of one pair."""
        assert size == 1
        number = torch.randint(len(self.renders), (), generator=draw).item()
        x0 = pipe.sample(self.posterior, rng)
        render = video.to_signed(self.renders[number])[None].to(device, dtype)
        return x0, pipe.encode(dataset.add_noise(render, rng), rng)


def finetune(pipe, embedding, clip, settings):
    """A copy of the pipeline's transformer, finetuned on a clip: fp32 weights, bf16 arithmetic."""
    device = pipe.device
    dtype = pipe.dtype
    pairs = ClipPairs(pipe, clip)
    model = copy.deepcopy(pipe.transformer).float().train()
    kind = "lora" if settings.rank else "sft"
    what = SimpleNamespace(training_type=kind, seed=0, rank=settings.rank, lora_alpha=settings.rank)
    model = checkpoint.prepare_weights(what, model, None)
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, betas=(0.9, 0.95), weight_decay=1e-4)
    rotary = pipe.rotary_embedding(device)
    for step in range(settings.train_epochs):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(settings, step)
        batch = dataset.training_batch(pipe, pairs, 0, 0, step, device, dtype)
        with torch.autocast(device.type, torch.bfloat16, enabled=dtype == torch.bfloat16):
            loss = denoising_loss(model, pipe.scheduler, *batch, embedding, rotary)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad()
    return model.to(dtype).eval().requires_grad_(False)


def inpaint(pipe, embedding, render, steps, seed=SEED, fast=False):
    """What the pipeline makes of a render uint8 [F, H, W, 3]: float32 [F, H, W, 3] in [0, 1]."""
    clip = torch.from_numpy(render).permute(0, 3, 1, 2) / 255
    out = pipe.inpaint(clip, embedding, steps, torch.Generator().manual_seed(seed), fast)
    return out.permute(0, 2, 3, 1).cpu().numpy()


# ---- the run -------------------------------------------------------------------------------------


def model_methods(args):
    """Names of what is done with the transformer, each with every number of steps."""
    names = []
    for kind in ("zero-shot", *args.finetunings):
        for steps in args.num_inference_steps:
            names.append(f"{kind}, {steps}")
    return names


def results(args, pipe, embedding, case, done):
    """(method, picture) of all methods that are not in `done`."""
    for method in SIMPLE:
        if method not in done:
            yield method, simple_picture(method, pipe, case)
    original = pipe.transformer
    now = "zero-shot"
    for method in model_methods(args):
        if method in done:
            continue
        kind, _, steps = method.rpartition(", ")
        if kind != now:
            pipe.transformer = original
            pipe.transformer = finetune(pipe, embedding, case.clip, FINETUNINGS[kind])
            now = kind
        yield method, inpaint(pipe, embedding, case.render, int(steps))
    pipe.transformer = original


def run_case(args, pipe, embedding, number, rows, add):
    """Make what is missing of a scene: add(row) keeps a result, and videos show the pictures."""
    done = {row["method"] for row in rows if row["scene"] == number
            and video_path(args, number, row["method"]).exists()}
    if done.issuperset((*SIMPLE, *model_methods(args))):
        return
    case = open_case(args.world, number, pipe.clip_shape, pipe.device)
    write_picture(args, number, "source", case.clip.rgb.cpu().numpy())
    write_picture(args, number, "truth", case.truth)
    for method, picture in results(args, pipe, embedding, case, done):
        write_picture(args, number, method, picture)
        found = scores(picture, case.render, case.mask, case.truth)
        add({"scene": number, "method": method} | found)


def video_path(args, number, name):
    """Where the video of a picture of a scene is kept: not where one of other weights is."""
    name = name.replace(", ", "_").replace(" ", "_")
    return args.output_dir / f"{args.world}_{number}_{args.made_of[number]}" / f"{name}.mp4"


def write_picture(args, number, name, picture):
    """Keep a picture, [F, H, W, 3] uint8 or float in [0, 1], as a video."""
    if picture.dtype != np.uint8:
        picture = (picture * 255).round().astype(np.uint8)
    info = video.VideoInfo(len(picture), *picture.shape[1:3], 20)
    video.write_video(video_path(args, number, name), picture, info)


def write_strips(args, numbers):
    """A picture of a late frame of every scene, a row each, from source to truth."""
    names = ["source", "black", "telea", *model_methods(args), "truth"]
    strips = []
    for number in numbers:
        frames = []
        for name in names:
            clip = video.read_video(video_path(args, number, name))
            frames.append(clip[3 * len(clip) // 4])
        strips.append(np.concatenate(frames, 1))
    path = args.output_dir / f"strips_{args.world}_{args.set}.png"
    cv2.imwrite(str(path), np.concatenate(strips)[..., ::-1])
    print(f"\n{path}: {' | '.join(names)}")


def table(rows):
    """Markdown of results, a line a method: the COLUMNS, what holes gain on Telea and zero-shot.

    A column has the mean over scenes and its deviation, a gain its mean and standard error.
    """
    by_method = {}  # method: scene: row
    for row in rows:
        by_method.setdefault(row["method"], {})[row["scene"]] = row
    lines = [f"| method | {' | '.join(COLUMNS)} | over telea | over zero-shot |"]
    lines.append("| --- " * (3 + len(COLUMNS)) + "|")
    for method, scenes in by_method.items():
        cells = [method]
        for column in COLUMNS:
            values = [row[column] for row in scenes.values()]
            cells.append(f"{np.mean(values):.2f} +- {np.std(values):.2f}")
        kind, _, steps = method.rpartition(", ")
        cells.append(gain(scenes, by_method.get("telea", {})) if kind else "")
        finetuned = kind not in ("", "zero-shot")
        cells.append(gain(scenes, by_method.get(f"zero-shot, {steps}", {})) if finetuned else "")
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def gain(scenes, reference):
    """By how many dB holes are better, scene by scene; "" if no scene has both."""
    better = [row["holes"] - reference[n]["holes"] for n, row in scenes.items() if n in reference]
    return mean_and_error(better) if better else ""


def mean_and_error(gains):
    """The mean of gains in dB and, of two or more, its standard error, in words."""
    text = f"{np.mean(gains):+.2f}"
    if len(gains) > 1:
        text += f" +- {np.std(gains, ddof=1) / len(gains) ** 0.5:.2f}"
    return text


def read_rows(path, weights):
    """The results in a file that are of these weights."""
    rows = []
    if path.exists():
        for line in path.read_text().splitlines():
            row = json.loads(line)
            if row["weights"] == weights:
                rows.append(row)
    return rows


def load(args):
    """(pipeline, embedding of "", what tells these weights from others) of the arguments."""
    device = cli.pick_device(args.device)
    dtype = pipeline.pick_dtype("auto", device)
    weights = pipeline.find_weights(args.cognvs_ckpt_path)
    pipe = pipeline.load_pipeline(args.model_path, weights, dtype)
    devices.place(pipe, device, "gpu")
    length = pipe.transformer.config.max_text_seq_length
    embedding = pipeline.empty_prompt(args.model_path, length, dtype)[0].to(device)
    base = pipeline.fingerprint(args.model_path / "vae")
    return pipe, embedding, pipeline.fingerprint(weights) + base


@contextlib.contextmanager
def results_file(path, weights):
    """(the results that a file has of some weights, what adds one to both); open while entered."""
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = read_rows(path, weights)
    with open(path, "a", buffering=1) as file:

        def add(row):
            rows.append(row | {"weights": weights})
            file.write(json.dumps(rows[-1]) + "\n")

        yield rows, add


def main():
    args = parse_args()
    pipe, embedding, weights = load(args)
    path = args.output_dir / f"results_{args.world}_{args.set}.jsonl"
    numbers = range(FIRST_SEED[args.set], FIRST_SEED[args.set] + args.scenes)
    args.made_of = dict.fromkeys(numbers, hashlib.sha256(weights.encode()).hexdigest()[:12])
    with results_file(path, weights) as (rows, add):
        for number in tqdm(numbers[args.share[0] :: args.share[1]], unit="scene", desc=args.world):
            run_case(args, pipe, embedding, number, rows, add)

    print(f"\n{args.world}, {args.scenes} scenes from seed {numbers[0]}; PSNR in dB\n")
    print(table([row for row in rows if row["scene"] in numbers]))
    if args.share[1] == 1:
        write_strips(args, numbers)


if __name__ == "__main__":
    cli.run(main)
