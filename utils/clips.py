"""Ray-traced clips with exact truth, made in memory: what the small model learns from and is measured on.

A clip is what a sequence folder holds, as tensors on one device: rgb uint8 [F, H, W, 3], depth float32 [F, H, W] in
metres, c2w float64 [F, 4, 4], K float64 [3, 3] in pixels. Renders and truths are uint8 [F, H, W, 3] too.
"""

import itertools
from random import Random
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from utils import scenes, trajectory, video, warp

SOFTNESS = 1.5  # of random_clip: what is finer, 2.65 M parameters of VAE cannot hold
FRAMES_AT_ONCE = 49  # that a GPU traces together; its memory grows with them


class Clip(NamedTuple):
    scene: scenes.Scene
    rgb: Tensor
    depth: Tensor
    c2w: Tensor
    k: Tensor


def film(scene, c2w, k, height, width, samples=2):
    """The scene along c2w [F, 4, 4]: (rgb, depth); samples x samples rays a pixel."""
    times = scenes.frame_times(len(c2w))
    at_once = FRAMES_AT_ONCE if c2w.device.type == "cuda" else 1
    parts = [scenes.render(scene, pose, k, height, width, time, samples)
             for pose, time in zip(c2w.split(at_once), times.split(at_once), strict=True)]
    rgb, depth = (torch.cat(part) for part in zip(*parts, strict=True))
    return (rgb * 255).round().byte(), depth


def make_clip(scene, shape, focal, device, samples=2):
    """The scene filmed by its own camera; shape: (frames, height, width), focal: pixels."""
    frames, height, width = shape
    # The optical axis goes through the pixel that data_gen.py takes for it when no K is given.
    k = torch.tensor([[focal, 0, width // 2], [0, focal, height // 2], [0, 0, 1]], dtype=torch.float64, device=device)
    c2w = scenes.camera_path(scene, frames).to(device)
    return Clip(scene, *film(scene, c2w, k, height, width, samples), c2w, k)


def path_cameras(clip, keyframes, radius_scale=1.0):
    """trajectory.Cameras of keyframes about the depth at the centre of the first frame, as data_gen.py takes it."""
    frames, height, width = clip.depth.shape
    radius = clip.depth[0, height // 2, width // 2].item() * radius_scale
    return trajectory.keyframe_cameras(keyframes, clip.k.cpu().numpy()[None].repeat(frames, 0), radius)


def render(clip, cameras, mode):
    """What data_gen.py makes of the clip in a mode: (render, mask bool [F, H, W])."""
    motion = torch.from_numpy(np.linalg.inv(cameras.c2w)).to(clip.k)
    k, k_target = clip.k.expand(len(motion), 3, 3), torch.from_numpy(cameras.intrinsics).to(clip.k)
    x = video.to_signed(clip.rgb)
    if mode == "train":
        x, mask = warp.double_warp(x, clip.depth, motion, k, k_target)
    else:
        x, mask = warp.dilate_holes(*warp.forward_warp(x, clip.depth, motion, k, k_target))
    return video.to_bytes(x), mask


def truth(clip, cameras, samples=2):
    """The exact view along the cameras: what the evaluation render would show if nothing had been hidden."""
    c2w = clip.c2w @ torch.from_numpy(cameras.c2w).to(clip.c2w)
    return film(clip.scene, c2w, clip.k, *clip.depth.shape[1:], samples)[0]


def random_clip(seed, shape, device):
    """The clip of a random room of the small model's world, filmed with a random lens."""
    rng = Random(f"clip {seed}")
    focal, coarse = rng.uniform(0.8, 1.3) * shape[2], rng.uniform(1.5, 2.5)
    return make_clip(scenes.coarsen(scenes.make_scene(seed), coarse, SOFTNESS), shape, focal, device)


class Stream:
    """Items made without end by processes of their own: make(seed, device) for seed = first, first + 1, ..."""

    def __init__(self, make, first, devices):
        context = torch.multiprocessing.get_context("spawn")
        self.queue = context.Queue(2 * len(devices))
        for i, device in enumerate(devices):
            args = make, first + i, len(devices), device, self.queue
            context.Process(target=_produce, args=args, daemon=True).start()

    def take(self, wait):
        """The items that are ready; at least one if `wait`."""
        items = [self.queue.get()] if wait else []
        while not self.queue.empty():
            items.append(self.queue.get())
        return items


def _produce(make, first, step, device, queue):
    torch.set_num_threads(1)
    with torch.no_grad():
        for seed in itertools.count(first, step):
            queue.put(make(seed, torch.device(device)))
