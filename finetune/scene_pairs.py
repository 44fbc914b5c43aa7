"""Training pairs of scenes that are ray-traced while training goes on: base_dir_input=scenes:1000 starts at seed 1000.

Each scene gives pairs of both kinds: its clip beside what a camera move to and fro leaves of it (data_gen.py --mode
train), and an exact new view beside the render of it (--mode eval). They are kept as the VAE's posteriors, made once.
"""

import functools
from collections import deque

import dataset
import numpy as np
import torch
from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution

from utils import clips, pipeline, trajectory, video

KEPT = 20_000  # pairs
FIRST = 256  # pairs made before the first step
PATHS = 2  # camera paths a scene, each giving a pair of both kinds
PRODUCERS = 8


class ScenePairs:
    """Stands in for dataset.Pairs. What is drawn when depends on how fast scenes come: no two runs are the same."""

    def __init__(self, first_seed, model_path, shape, rank=0, first=FIRST, producers=PRODUCERS):
        device = f"cuda:{torch.cuda.device_count() - 1}" if torch.cuda.is_available() else "cpu"
        make = functools.partial(make_pairs, model_path, shape)
        self.stream = clips.Stream(make, first_seed + 1_000_000 * rank, [device] * producers)
        self.pairs, self.made = deque(maxlen=KEPT), 0
        while len(self.pairs) < first:
            self.refill(wait=True)

    def __str__(self):
        return f"{self.made} training pairs of ray-traced scenes so far"

    def refill(self, wait=False):
        for pairs in self.stream.take(wait):
            self.pairs.extend(pairs)
            self.made += len(pairs)

    def latents(self, pipe, draw, rng, device, dtype):
        """(x0, condition) of a pair drawn by `draw`, sampled from their posteriors by `rng`, [1, f, 16, h, w]."""
        self.refill()
        pair = self.pairs[torch.randint(len(self.pairs), (), generator=draw).item()]
        posteriors = (DiagonalGaussianDistribution(torch.from_numpy(part).to(device).float()) for part in pair)
        return [(p.sample(rng).transpose(1, 2) * pipe.vae_scaling_factor_image).to(dtype) for p in posteriors]


@functools.cache
def load_vae(model_path, device):
    return pipeline.load_vae(model_path, torch.bfloat16).to(device)


def make_pairs(model_path, shape, seed, device):
    """Posteriors [1, 32, f, h, w] (mean, log variance) of the (target, render) pairs of one scene, float16 arrays."""
    vae, rng = load_vae(model_path, device), dataset.generator(seed, "scene", 0, 0, device)
    clip = clips.random_clip(seed, shape, device)

    def encode(rgb, noise):
        x = video.to_signed(rgb)[None].to(vae.dtype)
        x = dataset.add_noise(x, rng) if noise else x
        parameters = vae.encode(x.transpose(1, 2)).latent_dist.parameters
        return parameters.float().clamp(-30, 30).cpu().numpy().astype(np.float16)

    source, pairs = encode(clip.rgb, False), []
    for keyframes in trajectory.random_keyframes(seed, PATHS):
        cameras = clips.path_cameras(clip, keyframes)
        there_and_back, there = (clips.render(clip, cameras, mode)[0] for mode in ("train", "eval"))
        truth = encode(clips.truth(clip, cameras), False)
        pairs += [(source, encode(there_and_back, True)), (truth, encode(there, True))]
    return pairs
