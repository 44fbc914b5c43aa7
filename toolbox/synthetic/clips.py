"""Ray-traced clips with exact views: what the small model learns from and is measured on.

A clip is what a sequence folder holds, as tensors on one device: rgb uint8 [F, H, W, 3], depth
float32 [F, H, W] in metres, c2w float64 [F, 4, 4], K float64 [3, 3] in pixels.
"""

if __name__ == "__main__":
    raise SystemExit("error: a module, not a program; toolbox/README.md lists the programs")

import itertools
import math
import os
from concurrent.futures import ThreadPoolExecutor
from random import Random
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset, get_worker_info
from tqdm import tqdm

from toolbox.synthetic import scenes
from utils import trajectory, video, warp

LENS_BLUR = scenes.Scene.lens_blur
COARSE = (2, 3.5)  # range of pattern sizes; a small VAE loses finer ones
SOFTNESS = 1.5  # pixels over which they are blurred
FRAMES_AT_ONCE = 49  # that a GPU traces together; its memory grows with them
GPU_WORKERS = 4  # keep a GPU busy: 10 clips of 49 x 128 x 192 a second on an H100
CPU_WORKERS = 16  # at most; each takes some 6 s a clip


class Clip(NamedTuple):
    scene: scenes.Scene
    rgb: Tensor
    depth: Tensor
    c2w: Tensor
    k: Tensor
    estimate: Tensor | None = None  # depth with errors, to warp by in place of the true one


def film(scene, c2w, k, height, width, frames=None):
    """The scene from c2w [F, 4, 4] through K ([3, 3] or [F, 3, 3]): (rgb, depth) as in a clip.

    frames [F]: the moments in time, counted in frames of a clip of F; one after another by default.
    """
    times = scenes.frame_times(len(c2w))
    if frames is not None:
        times = times[frames]
    k = k.expand(len(c2w), 3, 3)
    at_once = FRAMES_AT_ONCE if c2w.device.type == "cuda" else 1
    rgb = []
    depth = []
    for start in range(0, len(c2w), at_once):
        at = slice(start, start + at_once)
        colour, z = scenes.trace(scene, c2w[at], k[at], height, width, times[at])
        rgb.append(colour)
        depth.append(z)
    rgb = blur(torch.cat(rgb), scene.lens_blur)
    return (rgb * 255).round().byte(), torch.cat(depth)


def blur(rgb, sigma):
    """Float pictures [F, H, W, 3] through a lens whose point is a Gaussian of `sigma` pixels."""
    if sigma == 0:
        return rgb
    reach = math.ceil(3 * sigma)
    offsets = torch.arange(-reach, reach + 1, device=rgb.device, dtype=rgb.dtype)
    weights = torch.exp(-offsets.square() / (2 * sigma**2))
    weights = weights / weights.sum()
    x = rgb.permute(0, 3, 1, 2).flatten(0, 1)[:, None]  # [F 3, 1, H, W]
    x = F.pad(x, (reach,) * 4, mode="replicate")
    x = F.conv2d(F.conv2d(x, weights[None, None, None]), weights[None, None, :, None])
    return x[:, 0].unflatten(0, (-1, 3)).permute(0, 2, 3, 1)


def lens(focal, height, width):
    """K, float64 [3, 3], whose optical axis is where data_gen.py takes it to be without a K."""
    rows = [[focal, 0, width // 2], [0, focal, height // 2], [0, 0, 1]]
    return torch.tensor(rows, dtype=torch.float64)


def make_clip(scene, shape, focal, device):
    """The scene filmed by its own camera; shape: (frames, height, width), focal: pixels."""
    frames, height, width = shape
    k = lens(focal, height, width).to(device)
    c2w = scenes.camera_path(scene, frames).to(device)
    return Clip(scene, *film(scene, c2w, k, height, width), c2w, k)


def random_clip(seed, shape, device):
    """The clip of a random room of the small model's world, filmed with a random lens."""
    rng = Random(f"clip {seed}")
    focal = rng.uniform(0.8, 1.3) * shape[2]
    scene = scenes.coarsen(scenes.make_scene(seed), rng.uniform(*COARSE), SOFTNESS)
    return make_clip(scene, shape, focal, device)


# ---- the same scene from other cameras -----------------------------------------------------------


def path_cameras(clip, keyframes):
    """trajectory.Cameras of keyframes; the pivot is at the depth in the centre of frame 0."""
    frames, height, width = clip.depth.shape
    radius = clip.depth[0, height // 2, width // 2].item()
    k = clip.k.cpu().numpy()[None].repeat(frames, 0)
    return trajectory.keyframe_cameras(keyframes, k, radius)


def cameras_to(clip, other):
    """trajectory.Cameras that see what another clip of the same scene saw."""
    c2w = torch.linalg.inv(clip.c2w) @ other.c2w
    frames = len(c2w)
    k = other.k.expand(frames, 3, 3)
    return trajectory.Cameras(c2w.cpu().numpy(), k.cpu().numpy(), np.arange(frames))


def reproject(clip, cameras, mode):
    """What data_gen.py makes of the clip: (render uint8 [F, H, W, 3], mask bool [F, H, W])."""
    motion = torch.from_numpy(np.linalg.inv(cameras.c2w)).to(clip.k)
    k = clip.k.expand(len(motion), 3, 3)
    k_target = torch.from_numpy(cameras.intrinsics).to(clip.k)
    x = video.to_signed(clip.rgb[cameras.frames])
    depth = clip.depth if clip.estimate is None else clip.estimate
    x, mask = warp.render(mode, x, depth[cameras.frames], motion, k, k_target)
    return video.to_bytes(x), mask


def exact_view(clip, cameras):
    """The eval render without holes, uint8 [F, H, W, 3]: the scene traced along the cameras."""
    k = torch.from_numpy(cameras.intrinsics).to(clip.k)
    frames = torch.from_numpy(cameras.frames)
    rgb, _ = film(clip.scene, world_poses(clip, cameras), k, *clip.depth.shape[1:], frames)
    return rgb


def refilm(clip, cameras):
    """The clip that the cameras of a path take of the same scene at the same times."""
    c2w = world_poses(clip, cameras)
    return Clip(clip.scene, *film(clip.scene, c2w, clip.k, *clip.depth.shape[1:]), c2w, clip.k)


def world_poses(clip, cameras):
    """c2w [F, 4, 4] of the cameras in the world."""
    return clip.c2w[cameras.frames] @ torch.from_numpy(cameras.c2w).to(clip.c2w)


# ---- many clips, by processes of their own -------------------------------------------------------


class Items(IterableDataset):
    """make(seed, device) for seed = first, first + 1, ... without end, shared among the workers."""

    def __init__(self, make, first, device):
        self.make = make
        self.first = first
        self.device = device

    def __iter__(self):
        worker = get_worker_info()
        for seed in itertools.count(self.first + worker.id, worker.num_workers):
            with torch.no_grad():
                item = self.make(seed, self.device)
            yield item


class Stream:
    """Items that a DataLoader's workers make while the caller does something else."""

    def __init__(self, make, first, device, workers):
        loader = DataLoader(Items(make, first, device), batch_size=None, num_workers=workers,
                            collate_fn=unchanged, multiprocessing_context="spawn")
        self.items = iter(loader)
        self.thread = ThreadPoolExecutor(1)
        self.coming = self.thread.submit(next, self.items)

    def take(self, wait=False):
        """The items that are ready, at least one if `wait`; a worker's error is raised here."""
        ready = []
        while self.coming.done() or (wait and not ready):
            ready.append(self.coming.result())
            self.coming = self.thread.submit(next, self.items)
        return ready

    def close(self):
        """Stop the workers."""
        self.thread.shutdown()
        self.items = None


def unchanged(item):
    """In place of DataLoader's own collation, whose tensors would go through shared memory."""
    return item


def first_and_more(make, first_seed, count, device):
    """`count` items or a few more of make(seed, device) from first_seed on, and a Stream of more.

    A GPU makes the first ones, helped by the CPU. Then it is free to train, and the CPU goes on,
    with seeds from 100,000 further on.
    """
    if device.type == "cuda":
        ranks = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
        workers = min(max(1, len(os.sched_getaffinity(0)) // ranks - 3), CPU_WORKERS)
        first = Stream(make, first_seed, device, GPU_WORKERS)
        more = Stream(make, first_seed + 100_000, torch.device("cpu"), workers)
    else:
        first = more = Stream(make, first_seed, device, 1)
    items = []
    with tqdm(total=count, unit="scene", desc="tracing") as progress:
        while len(items) < count:
            items += first.take(wait=True)
            if more is not first:
                items += more.take()
            progress.update(len(items) - progress.n)
    if more is not first:
        first.close()
    return items, more
