"""Ray-traced clips with exact truth, made in memory: what the small model learns from and is measured on.

A clip is what a sequence folder holds, as tensors on one device: rgb uint8 [F, H, W, 3], depth float32 [F, H, W] in
metres, c2w float64 [F, 4, 4], K float64 [3, 3] in pixels. Renders and truths are uint8 [F, H, W, 3] too.
"""

import itertools
import math
import os
import queue
import time
from random import Random
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm import tqdm

from toolbox.synthetic import scenes
from utils import trajectory, video, warp

LENS_BLUR = 0.7  # pixels, sigma of the picture of a point
COARSE, SOFTNESS = (2, 3.5), 1.5  # patterns of random_clip: what is finer, 2.65 M parameters of VAE cannot hold
FRAMES_AT_ONCE = 49  # that a GPU traces together; its memory grows with them


class Clip(NamedTuple):
    scene: scenes.Scene
    rgb: Tensor
    depth: Tensor
    c2w: Tensor
    k: Tensor


def film(scene, c2w, k, height, width, frames=None):
    """The scene along c2w [F, 4, 4] through K ([3, 3] or [F, 3, 3]): (rgb, depth); frames [F]: the moments in time."""
    times = scenes.frame_times(len(c2w))
    times = times if frames is None else times[frames]
    at_once = FRAMES_AT_ONCE if c2w.device.type == "cuda" else 1
    moments = zip(*(x.split(at_once) for x in (c2w, k.expand(len(c2w), 3, 3), times)), strict=True)
    parts = [scenes.render(scene, pose, lens, height, width, time) for pose, lens, time in moments]
    rgb, depth = (torch.cat(part) for part in zip(*parts, strict=True))
    return (blur(rgb, LENS_BLUR) * 255).round().byte(), depth


def blur(rgb, sigma):
    """Float pictures [F, H, W, 3] seen through a lens that spreads a point as a Gaussian of `sigma` pixels."""
    reach = math.ceil(3 * sigma)
    weights = torch.exp(-torch.arange(-reach, reach + 1, device=rgb.device, dtype=rgb.dtype).square() / (2 * sigma**2))
    weights = weights / weights.sum()
    x = F.pad(rgb.permute(0, 3, 1, 2).flatten(0, 1)[:, None], (reach,) * 4, mode="replicate")
    x = F.conv2d(F.conv2d(x, weights[None, None, None]), weights[None, None, :, None])
    return x[:, 0].unflatten(0, (-1, 3)).permute(0, 2, 3, 1)


def lens(focal, height, width):
    """K, float64 [3, 3]; its optical axis goes through the pixel that data_gen.py takes for it when no K is given."""
    return torch.tensor([[focal, 0, width // 2], [0, focal, height // 2], [0, 0, 1]], dtype=torch.float64)


def make_clip(scene, shape, focal, device):
    """The scene filmed by its own camera; shape: (frames, height, width), focal: pixels."""
    frames, height, width = shape
    k = lens(focal, height, width).to(device)
    c2w = scenes.camera_path(scene, frames).to(device)
    return Clip(scene, *film(scene, c2w, k, height, width), c2w, k)


def path_cameras(clip, keyframes):
    """trajectory.Cameras of keyframes about the depth at the centre of the first frame, as data_gen.py takes it."""
    frames, height, width = clip.depth.shape
    radius = clip.depth[0, height // 2, width // 2].item()
    return trajectory.keyframe_cameras(keyframes, clip.k.cpu().numpy()[None].repeat(frames, 0), radius)


def render(clip, cameras, mode):
    """What data_gen.py makes of the clip in a mode: (render, mask bool [F, H, W])."""
    motion = torch.from_numpy(np.linalg.inv(cameras.c2w)).to(clip.k)
    k, k_target = clip.k.expand(len(motion), 3, 3), torch.from_numpy(cameras.intrinsics).to(clip.k)
    x = video.to_signed(clip.rgb[cameras.frames])
    x, mask = warp.render(mode, x, clip.depth[cameras.frames], motion, k, k_target)
    return video.to_bytes(x), mask


def truth(clip, cameras):
    """The exact view along the cameras: what the evaluation render would show if nothing had been hidden."""
    k = torch.from_numpy(cameras.intrinsics).to(clip.k)
    return film(clip.scene, moved(clip, cameras), k, *clip.depth.shape[1:], torch.from_numpy(cameras.frames))[0]


def moved(clip, cameras):
    """c2w of the cameras in the world."""
    return clip.c2w[cameras.frames] @ torch.from_numpy(cameras.c2w).to(clip.c2w)


def refilm(clip, cameras):
    """The clip that the cameras of a path take of the same scene at the same times."""
    c2w = moved(clip, cameras)
    return Clip(clip.scene, *film(clip.scene, c2w, clip.k, *clip.depth.shape[1:]), c2w, clip.k)


def cameras_to(clip, other):
    """trajectory.Cameras that see what another clip of the same scene saw."""
    c2w = torch.linalg.inv(clip.c2w) @ other.c2w
    frames = len(c2w)
    return trajectory.Cameras(c2w.cpu().numpy(), other.k.expand(frames, 3, 3).cpu().numpy(), np.arange(frames))


def random_clip(seed, shape, device):
    """The clip of a random room of the small model's world, filmed with a random lens."""
    rng = Random(f"clip {seed}")
    focal, coarse = rng.uniform(0.8, 1.3) * shape[2], rng.uniform(*COARSE)
    return make_clip(scenes.coarsen(scenes.make_scene(seed), coarse, SOFTNESS), shape, focal, device)


GPU_TRACERS = 4  # processes that a GPU serves before it is busy: 10 clips of 49 x 128 x 192 a second on an H100
CPU_TRACERS = 16  # at most; each takes some 6 s a clip, and in scene_pairs memory of the GPU that encodes


def first_and_more(make, first_seed, count, device):
    """`count` items or a few more of make(seed, device), from seed first_seed on, and a Stream of more of them.

    A CPU makes all of them. A GPU makes only first ones, so that it is free to train, beside `tracers`, which go on
    without end, from 100,000 seeds further on.
    """
    if device.type == "cpu":
        first = more = Stream(make, first_seed, ["cpu"])
    else:
        training = torch.cuda.current_device() if device.index is None else device.index
        ranks, cores = int(os.environ.get("LOCAL_WORLD_SIZE", "1")), len(os.sched_getaffinity(0))
        first = Stream(make, first_seed, [str(device)] * GPU_TRACERS)
        more = Stream(make, first_seed + 100_000, tracers(training, torch.cuda.device_count(), cores, ranks))
    items = []
    with tqdm(total=count, unit="scene", desc="tracing") as progress:
        while len(items) < count:
            items += first.take(wait=True) + more.take(wait=False)
            progress.update(len(items) - progress.n)
    if more is not first:
        first.close()
    return items, more


def tracers(training, gpus, cores, ranks):
    """What traces while GPU number `training` of `gpus` trains: the others (of those that CUDA_VISIBLE_DEVICES shows)
    if there is but one rank, and the CPU cores that are left."""
    spare = [f"cuda:{i}" for i in range(gpus) if i != training] if ranks == 1 else []
    devices = spare * GPU_TRACERS
    return devices + ["cpu"] * min(max(1, cores // ranks - len(devices) - 3), CPU_TRACERS)


class Stream:
    """Items made without end by processes of their own: make(seed, device) for seed = first, first + 1, ..."""

    def __init__(self, make, first, devices):
        context = torch.multiprocessing.get_context("spawn")
        self.queue, self.processes = context.Queue(2 * len(devices)), []
        for i, device in enumerate(devices):
            args = make, first + i, len(devices), device, self.queue
            self.processes.append(context.Process(target=_produce, args=args, daemon=True))
            self.processes[-1].start()

    def take(self, wait):
        """The items that are ready; at least one if `wait`. RuntimeError if a process has died."""
        items = []
        while True:
            if not all(process.is_alive() for process in self.processes):
                raise RuntimeError("a process that makes scenes has died; its own message is above")
            while not self.queue.empty():
                items.append(self.queue.get())
            if items or not wait:
                return items
            time.sleep(0.01)

    def close(self):
        for process in self.processes:
            process.terminate()
            process.join()


def _produce(make, first, step, device, items):
    torch.set_num_threads(1)
    items.cancel_join_thread()  # or its thread would wait for ever for a parent that was killed
    parent = torch.multiprocessing.parent_process()
    with torch.no_grad():
        for seed in itertools.count(first, step):
            item = make(seed, torch.device(device))
            while True:
                if not parent.is_alive():
                    return
                try:
                    items.put(item, timeout=1)
                    break
                except queue.Full:
                    pass
