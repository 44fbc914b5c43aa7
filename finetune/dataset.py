"""Training pairs, and every random draw a training step makes."""

import functools
import hashlib
import re
from pathlib import Path

import torch

from utils import video
from utils.cli import InputError

VIDEOS_KEPT = 64  # decoded, when there are many sequences; and posteriors of their windows


def find_sequences(folder):
    """The sequence folders meant by `folder`: itself, or those in it."""
    folder = Path(folder)
    found = sorted(path.parent for path in folder.glob("*/gt_rgb.mp4"))
    return found if found and not (folder / "gt_rgb.mp4").exists() else [folder]


def find_pairs(folder):
    """(gt_rgb.mp4, [train_render1.mp4, ...]) of a sequence folder, checked to be of one length."""
    folder = Path(folder)
    target = folder / "gt_rgb.mp4"
    frames = video.probe(target).frames
    numbered = {int(m[1]): p for p in folder.glob("train_render*.mp4") if (m := re.fullmatch(r"\D+(\d+)", p.stem))}
    if not numbered:
        raise InputError(f"{folder}: no train_render*.mp4; make them with data_gen.py --mode train")
    renders = [numbered[number] for number in sorted(numbered)]
    for render in renders:
        if video.probe(render).frames != frames:
            raise InputError(f"{render}: got {video.probe(render).frames} frames, gt_rgb.mp4 has {frames}; run "
                             "data_gen.py --mode train again")
    return target, renders


def seed(run, what, rank, step):
    """A number that is a pure function of its arguments: any step can be repeated, and no two are alike."""
    return int.from_bytes(hashlib.sha256(f"{run}/{what}/{rank}/{step}".encode()).digest()[:7], "big")


def generator(run, what, rank, step, device="cpu"):
    """A torch.Generator seeded by seed()."""
    return torch.Generator(device).manual_seed(seed(run, what, rank, step))


def first_scenes(base_dir_input):
    """(N, COUNT or None) of "scenes:N" or "scenes:N:COUNT", or None for a folder."""
    match = re.fullmatch(r"scenes:(\d+)(?::(\d+))?", str(base_dir_input))
    return match and (int(match[1]), int(match[2]) if match[2] else None)


def open_pairs(base_dir_input, model_path, clip_shape, rank=0, device="cpu"):
    """What a run learns from: a sequence folder, a folder of them, or "scenes:N", ray-traced from seed N on."""
    if first := first_scenes(base_dir_input):
        from toolbox.small_model.scene_pairs import ScenePairs

        return ScenePairs(model_path, clip_shape, rank, device, *first)
    return Pairs(base_dir_input, clip_shape)


class Pairs:
    """Training pairs of a sequence folder, or of every sequence in a folder of them, each as likely as the other."""

    def __init__(self, folder, clip_shape):
        self.clip_shape = clip_shape
        self.sequences = [find_pairs(path) for path in find_sequences(folder)]
        keep = None if len(self.sequences) == 1 else VIDEOS_KEPT
        self.read = functools.lru_cache(keep)(self.read)  # a sequence of its own is decoded once
        self.posterior = functools.lru_cache(VIDEOS_KEPT)(self.posterior)

    def __str__(self):
        count = sum(len(renders) for _, renders in self.sequences)
        return f"{count} training pairs of {len(self.sequences)} sequence{'s' * (len(self.sequences) > 1)}"

    def read(self, path):
        """A video at the model's size, uint8 [N, H, W, 3]."""
        return video.resize(video.read_video(path), *self.clip_shape[1:])

    def draw(self, rng):
        """(target, render, first frame) of a clip, drawn at random; a video shorter than a clip starts at 0."""
        count = len(self.sequences)
        target, renders = self.sequences[torch.randint(count, (), generator=rng).item() if count > 1 else 0]
        start = torch.randint(max(1, len(self.read(target)) - self.clip_shape[0] + 1), (), generator=rng).item()
        return target, renders[torch.randint(len(renders), (), generator=rng).item()], start

    def clip(self, path, start, device, dtype):
        """Frames from `start` on, [1, F, 3, H, W] in [-1, 1]; a video that ends early repeats its last frame."""
        clip = torch.from_numpy(video.fit_length(self.read(path)[start:], self.clip_shape[0]))
        clip = clip.pin_memory().to(device, non_blocking=True) if torch.device(device).type == "cuda" else clip
        return (clip.permute(0, 3, 1, 2).float() / 127.5 - 1).to(dtype)[None]

    def latents(self, pipe, draw, rng, device, dtype, size=1):
        """(x0, condition) of pairs drawn by `draw`, encoded with the randomness of `rng`, [size, f, 16, h, w]."""
        x0, condition = [], []
        for target, render, start in (self.draw(draw) for _ in range(size)):
            x0.append(pipe.sample(self.posterior(pipe, target, start, device, dtype), rng))
            condition.append(pipe.encode(add_noise(self.clip(render, start, device, dtype), rng), rng))
        return torch.cat(x0), torch.cat(condition)

    def posterior(self, pipe, target, start, device, dtype):
        """Of a window of a target, the same at every step: encoded once, sampled anew."""
        return pipe.posterior(self.clip(target, start, device, dtype))


def add_noise(clip, rng):
    """Pixel noise of sigma = exp(N(-3, 0.5)) on a clip in [-1, 1], as CogNVS was trained."""
    sigma = torch.exp(torch.randn((), generator=rng, device=clip.device) * 0.5 - 3)
    return clip + (sigma * torch.randn(clip.shape, generator=rng, device=clip.device)).to(clip.dtype)


@torch.no_grad()
def training_batch(pipe, pairs, seed, rank, step, device, dtype, size=1):
    """What one rank trains on in one step: (x0, condition, noise, timestep), latents [size, f, 16, h, w]."""
    rng = generator(seed, "noise", rank, step, device)
    x0, condition = pairs.latents(pipe, generator(seed, "clip", rank, step), rng, device, dtype, size)
    timestep = torch.randint(pipe.scheduler.config.num_train_timesteps, (size,), generator=rng, device=device)
    noise = torch.randn(x0.shape, generator=rng, device=device).to(dtype)
    return x0, condition, noise, timestep
