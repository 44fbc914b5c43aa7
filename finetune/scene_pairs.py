"""Training pairs of scenes that are ray-traced while training goes on: base_dir_input=scenes:1000 starts at seed 1000.

Each scene gives pairs of both kinds: its clip beside what a camera move to and fro leaves of it (data_gen.py --mode
train), and an exact new view beside the render of it (--mode eval). They are kept as the VAE's posteriors, made once.
"""

import functools
import os

import dataset
import numpy as np
import torch
from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution

from utils import clips, pipeline, trajectory, video

KEPT_BYTES = 10 * 2**30  # of latents, on the device that trains
FIRST = 256
PATHS = 2  # camera paths a scene, each giving a pair of both kinds
PRODUCERS = 8


class ScenePairs:
    """Stands in for dataset.Pairs. What is drawn when depends on how fast scenes come: no two runs are the same."""

    def __init__(self, first_seed, model_path, shape, rank, device, first=FIRST, producers=PRODUCERS):
        spare = torch.cuda.device_count() > int(os.environ.get("LOCAL_WORLD_SIZE", "1"))  # a GPU on which nobody trains
        tracer = f"cuda:{torch.cuda.device_count() - 1}" if spare and device.type == "cuda" else str(device)
        make = functools.partial(make_pairs, model_path, shape)
        self.stream = clips.Stream(make, first_seed + 1_000_000 * rank, [tracer] * producers)
        self.pairs, self.made, self.device = [], 0, device
        while self.made < first:
            self.refill(wait=True)

    def __str__(self):
        return f"{self.made} training pairs of ray-traced scenes so far"

    def refill(self, wait=False):
        for pairs in self.stream.take(wait):
            self.pairs += [torch.from_numpy(pair).to(self.device) for pair in pairs]
            self.made += len(pairs)
        self.pairs = self.pairs[-(KEPT_BYTES // self.pairs[0].nbytes) :]

    def latents(self, pipe, draw, rng, device, dtype):
        """(x0, condition) of a pair drawn by `draw`, sampled from their posteriors by `rng`, [1, f, C, h, w]."""
        self.refill()
        pair = self.pairs[torch.randint(len(self.pairs), (), generator=draw).item()].float()
        x0, condition = pipe.sample(DiagonalGaussianDistribution(pair), rng)
        return x0[None].to(dtype), condition[None].to(dtype)


@functools.cache
def load_vae(model_path, device):
    return pipeline.load_vae(model_path, torch.bfloat16).to(device)


def make_pairs(model_path, shape, seed, device):
    """Posteriors of the pairs of one scene, float16 arrays [2, 2C, f, h, w]: target, render; mean, log variance."""
    vae, rng = load_vae(model_path, device), dataset.generator(seed, "scene", 0, 0, device)
    clip = clips.random_clip(seed, shape, device)

    def encode(rgb, noise):
        x = video.to_signed(rgb)[None].to(vae.dtype)
        x = dataset.add_noise(x, rng) if noise else x
        return vae.encode(x.transpose(1, 2)).latent_dist.parameters[0].float().clamp(-30, 30).cpu()

    source, pairs = encode(clip.rgb, False), []
    for keyframes in trajectory.random_keyframes(seed, PATHS):
        cameras = clips.path_cameras(clip, keyframes)
        there_and_back, there = (clips.render(clip, cameras, mode)[0] for mode in ("train", "eval"))
        truth = encode(clips.truth(clip, cameras), False)
        pairs += [(source, encode(there_and_back, True)), (truth, encode(there, True))]
    return [torch.stack(pair).numpy().astype(np.float16) for pair in pairs]
