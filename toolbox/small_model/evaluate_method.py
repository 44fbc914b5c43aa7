"""Measure inpainting and test-time finetuning on ray-traced scenes with exact truth, beside simpler ways to fill holes.

    python toolbox/evaluate_method.py --model_path checkpoints/tiny/base \\
        --cognvs_ckpt_path checkpoints/tiny/cognvs_ckpt_inpaint --output_dir /tmp/evaluation

Every result is a line of OUTPUT_DIR/results_{world}_{set}.jsonl, written as it comes; what is there, for the same
weights, is not done again. The table at the end has the mean over scenes (and over seeds), with the standard deviation
over scenes after the +-, and how much better holes are than by other means, with the standard error of that.
"""

import argparse
import copy
import functools
import json
import sys
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import torch
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from finetune import dataset
from finetune.loss import denoising_loss
from finetune.train import learning_rate
from toolbox.synthetic import clips, yards
from utils import cli, cogvideox, devices, fusion, metrics, pipeline, trajectory, video

ROOT = Path(__file__).resolve().parents[2]
FIRST_SEED = {"choose": 100, "report": 500}  # scenes to choose settings on, and scenes for the numbers that are told
COLUMNS = ("holes", "known", "full", "composite", "ssim", "sharpness")


@dataclass(frozen=True)
class Finetuning:
    """How the transformer is finetuned on a clip, in the words of finetune_cognvs.sh where it has them."""

    train_epochs: int = 100
    learning_rate: float = 3e-4
    lr_scheduler: str = "linear"
    lr_warmup_steps: int = 0
    renders: int = 8
    ranks: int = 1  # samples a step
    identical: bool = False  # the same sample on all of them, as published
    noise: bool = True  # on the pixels of the condition
    holes: str = "random paths"  # or: boxes, evaluation path, other cameras
    rank: int = 0  # above 0: LoRA of that rank


FINETUNINGS = {
    "default": Finetuning(),
    **{f"{n} steps": Finetuning(train_epochs=n) for n in (25, 50, 200, 400)},
    **{f"rate {r:g}": Finetuning(learning_rate=r) for r in (2e-5, 1e-4, 1e-3)},
    "published": Finetuning(200, 2e-5, "constant"),
    "constant rate": Finetuning(lr_scheduler="constant"),
    "warm-up": Finetuning(lr_warmup_steps=20),
    "4 ranks": Finetuning(ranks=4),
    "4 ranks, identical": Finetuning(ranks=4, identical=True),
    "no noise": Finetuning(noise=False),
    "boxes": Finetuning(holes="boxes"),
    "evaluation path": Finetuning(holes="evaluation path"),
    "32 renders": Finetuning(renders=32),
    "LoRA 16": Finetuning(rank=16, learning_rate=1e-3),
    "LoRA 16 other cameras": Finetuning(rank=16, learning_rate=1e-3, holes="other cameras"),  # true views
}


def parse_args():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=cli.HelpFormatter)
    parser.add_argument("--model_path", type=Path, required=True, help="base folder")
    parser.add_argument("--cognvs_ckpt_path", type=Path, required=True, help="inpainting weights")
    parser.add_argument("--output_dir", type=Path, required=True)
    parser.add_argument("--world", choices=("rooms", "yards"), default="rooms", help="like the training scenes, or not")
    parser.add_argument("--set", choices=FIRST_SEED, default="choose", help="of scenes")
    parser.add_argument("--scenes", type=int, default=8)
    parser.add_argument("--share", type=int, nargs=2, default=(0, 1), metavar=("I", "N"), help="do the I-th of N parts "
                        "of the scenes, beside processes that do the others; run once more without it for the table")
    parser.add_argument("--seeds", type=int, default=1, help="of noise and finetuning")
    parser.add_argument("--num_inference_steps", type=int, nargs="+", default=[1, 25])
    parser.add_argument("--finetunings", nargs="*", choices=FINETUNINGS, default=["default"])
    parser.add_argument("--fuse_static", action="store_true", help="also fill from other frames first")
    parser.add_argument("--device", help="cpu, cuda or cuda:N; the GPU if there is one by default")
    return parser.parse_args()


# ---- what is compared ------------------------------------------------------------------------------------------------


def open_scene(world, seed, shape, device):
    """(clip, cameras, render [F, H, W, 3], mask [F, H, W], truth [F, H, W, 3]) of one scene and one shipped path."""
    if world == "rooms":
        clip = clips.random_clip(seed, shape, device)
    else:
        clip = clips.make_clip(yards.make_yard(seed), shape, shape[2], device)
    cameras = clips.path_cameras(clip, trajectory.read_keyframes(ROOT / "trajs" / f"traj{1 + seed % 4}.txt"))
    return clip, cameras, *clips.render(clip, cameras, "eval"), clips.truth(clip, cameras)


def telea(render, mask):
    """Every frame's holes filled by cv2's Telea."""
    return np.stack([cv2.inpaint(f, (~m).astype(np.uint8), 3, cv2.INPAINT_TELEA)
                     for f, m in zip(render, mask, strict=True)])


def nearest_in_time(render, mask):
    """Holes filled with the same pixel of the nearest frame that knows it, the rest by Telea."""
    frames = np.arange(len(mask))
    filled, known = render.copy(), mask.copy()
    for away in range(1, len(mask)):
        for other in (frames - away, frames + away):
            inside = (other >= 0) & (other < len(mask))
            source = other.clip(0, len(mask) - 1)
            take = ~known & mask[source] & inside[:, None, None]
            filled[take] = render[source][take]
            known |= take
    return telea(filled, known)


def scores(picture, render, mask, truth):
    """The COLUMNS of a result: pictures float or uint8 in their usual range, mask bool [F, H, W].

    composite: full frame with the known pixels of the render in place of the picture's. sharpness: energy of the
    gradients in holes, as a share of the truth's.
    """
    picture, render, truth = (x / 255 if x.dtype == np.uint8 else x for x in (picture, render, truth))
    composite = np.where(mask[..., None], render, picture)
    energy = [(np.stack(np.gradient(x, axis=(1, 2))) ** 2).sum((0, -1))[~mask].sum() for x in (picture, truth)]
    psnr = metrics.masked_psnr(picture, truth, mask)
    return {"holes": psnr["holes"], "known": psnr["known"], "full": psnr["all"],
            "composite": metrics.psnr(composite, truth), "ssim": metrics.ssim(picture, truth),
            "sharpness": float(energy[0] / max(energy[1], 1e-9))}  # fmt: skip


# ---- finetuning ------------------------------------------------------------------------------------------------------


def training_pairs(clip, cameras, settings, seed):
    """Pairs of (target, render with holes to learn to fill), each uint8 [F, H, W, 3].

    Renders are the clip's, warped away and back; for "other cameras" the clip warped to each, with what that one would
    have seen: nobody has that, so it is a bound for what others can gain.
    """
    if settings.holes == "boxes":
        return [(clip.rgb, boxes(clip, dataset.generator(seed, "boxes", 0, i))) for i in range(settings.renders)]
    if settings.holes == "evaluation path":
        return [(clip.rgb, clips.render(clip, cameras, "train")[0])]
    keyframes = trajectory.random_keyframes(42 + seed, settings.renders)
    paths = [clips.path_cameras(clip, keys) for keys in keyframes]
    if settings.holes == "other cameras":
        return [(clips.refilm(clip, path).rgb, clips.render(clip, path, "eval")[0]) for path in paths]
    return [(clip.rgb, clips.render(clip, path, "train")[0]) for path in paths]


def boxes(clip, rng):
    """The clip with four black boxes that drift, about a fifth of the picture."""
    frames, height, width = clip.depth.shape
    render = clip.rgb.clone()
    for _ in range(4):
        start, end = (torch.rand(2, generator=rng) for _ in range(2))
        for i in range(frames):
            y, x = (start + (end - start) * i / frames) * torch.tensor([0.8 * height, 0.8 * width])
            render[i, int(y) : int(y + 0.25 * height), int(x) : int(x + 0.25 * width)] = 0
    return render


class ClipPairs:
    """Stands in for dataset.Pairs: training pairs of one clip in memory, what training_pairs gives."""

    def __init__(self, pairs, noise):
        self.pairs, self.noise = pairs, noise
        self.posterior = functools.cache(self.posterior)  # of a target: encoded once, sampled anew

    def latents(self, pipe, draw, rng, device, dtype, size):
        assert size == 1
        target, render = self.pairs[torch.randint(len(self.pairs), (), generator=draw).item()]
        x0 = pipe.sample(self.posterior(pipe, target), rng)
        render = video.to_signed(render)[None].to(device, dtype)
        return x0, pipe.encode(dataset.add_noise(render, rng) if self.noise else render, rng)

    def posterior(self, pipe, target):
        return pipe.posterior(video.to_signed(target)[None].to(pipe.device, pipe.dtype))


def finetune(pipe, embedding, clip, cameras, settings, seed):
    """A copy of the pipeline's transformer, finetuned on one clip: fp32 weights, bf16 arithmetic."""
    device, dtype = pipe.device, pipe.dtype
    pairs = ClipPairs(training_pairs(clip, cameras, settings, seed), settings.noise)
    model = copy.deepcopy(pipe.transformer).float().train()
    model.requires_grad_(True)
    if settings.rank:
        from peft import LoraConfig

        model.requires_grad_(False)
        torch.manual_seed(seed)  # the adapter's first weights are drawn by the global generator
        model.add_adapter(LoraConfig(r=settings.rank, lora_alpha=settings.rank, target_modules=cogvideox.LORA_LAYERS))
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], settings.learning_rate,
                                  (0.9, 0.95), weight_decay=1e-4)  # fmt: skip
    rotary = pipe.rotary_embedding(device)
    for step in range(settings.train_epochs):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(settings, step)
        for rank in range(1 if settings.identical else settings.ranks):
            sample = dataset.training_batch(pipe, pairs, seed, rank, step, device, dtype)
            with torch.autocast(device.type, torch.bfloat16, enabled=dtype == torch.bfloat16):
                loss = denoising_loss(model, pipe.scheduler, *sample, embedding, rotary)
            (loss / (1 if settings.identical else settings.ranks)).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
    return model.to(dtype).eval().requires_grad_(False)


# ---- the run ---------------------------------------------------------------------------------------------------------


def inpaint(pipe, embedding, render, steps, seed):
    clip = torch.from_numpy(render).permute(0, 3, 1, 2) / 255
    out = pipe.inpaint(clip, embedding, steps, torch.Generator().manual_seed(seed))
    return out.permute(0, 2, 3, 1).cpu().numpy()


def fused(clip, cameras, render, mask, count=16):
    """The render with its holes filled by data_gen.py's --fuse_static."""
    at = torch.linspace(0, len(mask) - 1, count).round().long().unique()
    frames, k = video.to_signed(clip.rgb[at]), clip.k.expand(len(at), 3, 3)
    views = frames, fusion.static_depth(frames, clip.depth[at], clip.c2w[at], k), clip.c2w[at], k
    motion = torch.from_numpy(np.linalg.inv(cameras.c2w)).to(clip.k)
    k = clip.k.expand(len(motion), 3, 3)
    world = clip.c2w @ torch.from_numpy(cameras.c2w).to(clip.k)
    x, _ = fusion.fill(video.to_signed(render), mask, fusion.z_buffer(clip.depth, motion, k), views, world, k)
    return video.to_bytes(x).cpu().numpy()


def simple_results(pipe, clip, cameras, render, mask, truth):
    """(method, picture) of what needs no transformer; "vae" is the truth through encoder and decoder."""
    yield "black", render
    yield "telea", telea(render, mask)
    yield "nearest in time", nearest_in_time(render, mask)
    yield "vae", pipeline.reconstruct(pipe.vae, torch.from_numpy(truth).to(pipe.device))[1]


def model_results(args, pipe, embedding, scene, seed, done):
    """(method, picture) of the transformer, as it is and finetuned, at every number of steps; `done` are left out."""
    clip, cameras, render, mask, _ = scene
    original = pipe.transformer
    for name in ("zero-shot", *args.finetunings):
        todo = [steps for steps in args.num_inference_steps if (f"{name}, {steps}", seed) not in done]
        if not todo:
            continue
        pipe.transformer = original
        if name != "zero-shot":
            pipe.transformer = finetune(pipe, embedding, clip, cameras, FINETUNINGS[name], seed)
        for steps in todo:
            yield f"{name}, {steps}", inpaint(pipe, embedding, render, steps, 42 + seed)
    pipe.transformer = original
    todo = [steps for steps in args.num_inference_steps if (f"fused, {steps}", seed) not in done]
    if args.fuse_static and todo:
        filled = fused(clip, cameras, *(torch.from_numpy(x).to(clip.rgb.device) for x in (render, mask)))
        for steps in todo:
            yield f"fused, {steps}", inpaint(pipe, embedding, filled, steps, 42 + seed)


def expected(args):
    """(method, seed) of all results that a scene is to have, "vae" standing for those that need no transformer."""
    names = ["zero-shot", *args.finetunings, *(["fused"] if args.fuse_static else [])]
    ours = {(f"{name}, {steps}", seed) for name in names for steps in args.num_inference_steps
            for seed in range(args.seeds)}  # fmt: skip
    return ours | {("vae", 0)}


def results(args, pipe, embedding, scene, done):
    """(seed, method, picture) of all that is still to do for a scene."""
    if ("vae", 0) not in done:
        yield from ((0, *result) for result in simple_results(pipe, *scene))
    for seed in range(args.seeds):
        yield from ((seed, *result) for result in model_results(args, pipe, embedding, scene, seed, done))


def place_of(args, number, name):
    """Where the video of a picture of a scene is kept."""
    return args.output_dir / f"{args.world}_{number}" / f"{name.replace(', ', '_').replace(' ', '_')}.mp4"


def write_videos(args, number, pictures):
    """Every picture as a video of its own, in a folder of the scene."""
    for name, picture in pictures.items():
        picture = picture if picture.dtype == np.uint8 else (picture * 255).round().astype(np.uint8)
        info = video.VideoInfo(len(picture), *picture.shape[1:3], 20)
        video.write_video(place_of(args, number, name), picture, info)


def write_strips(args, numbers):
    """A frame late in every scene, a row each: source, render, Telea, the transformer's pictures, truth."""
    steps = args.num_inference_steps
    names = [f"{name}, {n}" for name in ("zero-shot", *args.finetunings, *["fused"] * args.fuse_static) for n in steps]
    names = ["source", "black", "telea", *names, "truth"]
    videos = ([video.read_video(place_of(args, number, name)) for name in names] for number in numbers)
    rows = [np.concatenate([frames[3 * len(frames) // 4] for frames in scene], 1) for scene in videos]
    path = args.output_dir / f"strips_{args.world}_{args.set}.png"
    cv2.imwrite(str(path), np.concatenate(rows)[..., ::-1])
    print(f"\n{path}: {' | '.join(names)}")


def table(rows):
    """Markdown, a line a method: the mean over scenes of each column and its deviation; in holes what it is better than
    Telea by, and a finetuning than zero-shot with as many steps, the mean over scenes and its standard error."""
    scenes = {}  # of a method: of a scene: its rows, one a seed
    for row in rows:
        scenes.setdefault(row["method"], {}).setdefault(row["scene"], []).append(row)
    lines = [f"| method | {' | '.join(COLUMNS)} | over telea | over zero-shot |", "| --- " * (3 + len(COLUMNS)) + "|"]
    for method, mine in scenes.items():
        means = {column: [np.mean([row[column] for row in seeds]) for seeds in mine.values()] for column in COLUMNS}
        cells = [f"{np.mean(values):.2f} +- {np.std(values):.2f}" for values in means.values()]
        name, _, steps = method.rpartition(", ")
        zero = f"zero-shot, {steps}" if name not in ("", "zero-shot") else ""
        cells += [gain(mine, scenes.get(reference, {})) for reference in ("telea" if name else "", zero)]
        lines.append(f"| {method} | {' | '.join(cells)} |")
    return "\n".join(lines)


def gain(mine, reference):
    """By how much holes are better, scene by scene and, where the reference has them, seed by seed; "" for no scene."""
    other = {n: {row["seed"]: row["holes"] for row in seeds} for n, seeds in reference.items()}
    better = [np.mean([row["holes"] - other[n].get(row["seed"], other[n][0]) for row in mine[n]]) for n in mine
              if n in other]  # fmt: skip
    error = f" +- {np.std(better, ddof=1) / len(better) ** 0.5:.2f}" if len(better) > 1 else ""
    return f"{np.mean(better):+.2f}{error}" if better else ""


def main():
    args = parse_args()
    device = cli.pick_device(args.device)
    dtype = pipeline.pick_dtype("auto", device)
    weights = pipeline.find_weights(args.cognvs_ckpt_path)
    pipe = pipeline.load_pipeline(args.model_path, weights, dtype)
    devices.place(pipe, device, "gpu")
    pipe.set_progress_bar_config(disable=True)
    embedding, _ = pipeline.empty_prompt(args.model_path, pipe.transformer.config.max_text_seq_length, dtype)
    embedding = embedding.to(device)
    path = args.output_dir / f"results_{args.world}_{args.set}.jsonl"
    path.parent.mkdir(parents=True, exist_ok=True)
    weights = pipeline.fingerprint(weights) + pipeline.fingerprint(args.model_path / "vae")
    rows = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    rows = [row for row in rows if row["weights"] == weights]
    numbers = range(FIRST_SEED[args.set], FIRST_SEED[args.set] + args.scenes)
    with open(path, "a", buffering=1) as file:
        for number in tqdm(numbers[args.share[0] :: args.share[1]], unit="scene", desc=args.world):
            done = {(row["method"], row["seed"]) for row in rows if row["scene"] == number}
            if expected(args) <= done:
                continue
            scene = open_scene(args.world, number, pipe.clip_shape, device)
            scene = scene[:2] + tuple(x.cpu().numpy() for x in scene[2:])
            pictures = {"source": scene[0].rgb.cpu().numpy(), "truth": scene[4]}
            for seed, method, picture in results(args, pipe, embedding, scene, done):
                row = {"scene": number, "seed": seed, "method": method, "weights": weights}
                rows.append(row | scores(picture, *scene[2:]))
                file.write(json.dumps(rows[-1]) + "\n")
                if seed == 0:
                    pictures[method] = picture
            write_videos(args, number, pictures)
    told = [row for row in rows if row["scene"] in numbers and row["seed"] < args.seeds]
    print(f"\n{args.world}, {args.scenes} scenes from seed {numbers[0]}, {args.seeds} seeds; PSNR in dB\n")
    print(table(told))
    if args.share[1] == 1:
        write_strips(args, numbers)


if __name__ == "__main__":
    cli.run(main)
