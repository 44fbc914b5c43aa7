"""Training pairs of one sequence, and every random draw a training step makes."""

import hashlib
import re
from pathlib import Path

import torch

from utils import video
from utils.cli import InputError


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


def generator(seed, what, rank, step, device="cpu"):
    """A torch.Generator that is a pure function of its arguments: any step can be repeated, and no two are alike."""
    digest = hashlib.sha256(f"{seed}/{what}/{rank}/{step}".encode()).digest()
    return torch.Generator(device).manual_seed(int.from_bytes(digest[:7], "big"))


class Pairs:
    """The videos of one sequence at the model's size, decoded once, uint8 [N, H, W, 3]."""

    def __init__(self, folder, clip_shape):
        self.frames, height, width = clip_shape
        target, renders = find_pairs(folder)
        self.target, *self.renders = (video.resize(video.read_video(p), height, width) for p in (target, *renders))

    def draw(self, rng):
        """(first frame, render) of a clip, drawn at random; a video shorter than a clip starts at 0."""
        start = torch.randint(max(1, len(self.target) - self.frames + 1), (), generator=rng).item()
        return start, torch.randint(len(self.renders), (), generator=rng).item()

    def clip(self, frames, start, device, dtype):
        """Frames from `start` on, [1, F, 3, H, W] in [-1, 1]; a video that ends early repeats its last frame."""
        clip = torch.from_numpy(video.fit_length(frames[start:], self.frames)).to(device)
        return (clip.permute(0, 3, 1, 2).float() / 127.5 - 1).to(dtype)[None]


@torch.no_grad()
def training_sample(pipe, pairs, seed, rank, step, device, dtype):
    """What one rank trains on in one step: (x0, condition, noise, timestep), latents [1, f, 16, h, w].

    The condition is the render with pixel noise of sigma = exp(N(-3, 0.5)), as CogNVS was trained.
    """
    start, render = pairs.draw(generator(seed, "clip", rank, step))
    rng = generator(seed, "noise", rank, step, device)
    x0 = pipe.encode(pairs.clip(pairs.target, start, device, dtype), rng)
    clip = pairs.clip(pairs.renders[render], start, device, dtype)
    sigma = torch.exp(torch.randn((), generator=rng, device=device) * 0.5 - 3)
    condition = pipe.encode(clip + (sigma * torch.randn(clip.shape, generator=rng, device=device)).to(dtype), rng)
    timestep = torch.randint(pipe.scheduler.config.num_train_timesteps, (1,), generator=rng, device=device)
    noise = torch.randn(x0.shape, generator=rng, device=device).to(dtype)
    return x0, condition, noise, timestep
