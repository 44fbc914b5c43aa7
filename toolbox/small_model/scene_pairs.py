"""Training pairs of ray-traced scenes, in place of sequences on disk: base_dir_input=scenes:1000 starts at seed
1000, with SCENES made before the first step, scenes:1000:50 with 50.

Each scene is filmed by two cameras. What one saw, warped to where another was (data_gen.py --mode eval), goes with
what that one saw; warped there and back (--mode train), with what it saw itself. The same once more in a mirror, in
other colours. All are kept as the VAE's posteriors, made once.
"""

import functools
import itertools
import random

import numpy as np
import torch
from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution

from finetune import dataset
from toolbox.synthetic import clips
from utils import pipeline, trajectory, video

KEPT_BYTES = 24 * 2**30  # of latents, on the device that trains
SCENES = 700  # before the first step: three and a half minutes on an H100 and 16 CPU cores
WIDER = 2.5  # how much further than on random training paths the cameras may move
VIEWS = 2
MOVES = list(itertools.permutations(range(VIEWS), 2))


class ScenePairs:
    """Stands in for dataset.Pairs. What is drawn when depends on how fast scenes come: no two runs are the same."""

    def __init__(self, model_path, shape, rank, device, first_seed, scenes=None):
        make = functools.partial(make_latents, model_path, shape, device)
        made, self.stream = clips.first_and_more(make, first_seed + 1_000_000 * rank, scenes or SCENES, device)
        self.pairs, self.made, self.device = [], 0, device
        self.add(made)

    def __str__(self):
        return f"{self.made} training pairs of ray-traced scenes so far"

    def add(self, scenes):
        """Take in what make_latents made: pairs of (target, render), the oldest ones making room."""
        for latents in scenes:
            for own in torch.from_numpy(latents).to(self.device):
                for (a, b), there, back in zip(MOVES, own[VIEWS::2], own[VIEWS + 1 :: 2], strict=True):
                    self.pairs += [(own[b], there), (own[a], back)]
                    self.made += 2
                self.pairs = self.pairs[-(KEPT_BYTES * 2 * len(MOVES) // own.nbytes) :]

    def latents(self, pipe, draw, rng, device, dtype, size=1):
        """(x0, condition) of pairs drawn by `draw`, sampled from their posteriors by `rng`, [size, f, C, h, w]."""
        self.add(self.stream.take(wait=False))
        chosen = [self.pairs[i] for i in torch.randint(len(self.pairs), (size,), generator=draw)]
        x0, condition = (DiagonalGaussianDistribution(torch.stack(part).float()) for part in zip(*chosen, strict=True))
        return pipe.sample(x0, rng).to(dtype), pipe.sample(condition, rng).to(dtype)


@functools.cache
def load_vae(model_path, device):
    return pipeline.load_vae(model_path, torch.bfloat16 if device.type == "cuda" else torch.float32).to(device)


def make_latents(model_path, shape, device, seed, tracer):
    """Posteriors of one scene, float16 [2, 2 + 4, 2C, f, h, w]; what a CPU has traced is encoded on `device`.

    As it is and in a mirror: the two views, then for each of MOVES the renders there, and there and back.
    """
    device = tracer if tracer.type == "cuda" else device
    vae, rng = load_vae(model_path, device), dataset.generator(seed, "scene", 0, 0, device)
    views = [clip._replace(rgb=clip.rgb.to(device), depth=clip.depth.to(device), c2w=clip.c2w.to(device),
                           k=clip.k.to(device)) for clip in film(seed, shape, tracer)]  # fmt: skip
    renders = []
    for a, b in MOVES:
        cameras = clips.cameras_to(views[a], views[b])
        renders += [clips.render(views[a], cameras, mode)[0] for mode in ("eval", "train")]
    swap = random.Random(seed).sample(range(3), 3)
    videos = [view.rgb for view in views] + renders
    return np.stack([encode(vae, own, rng) for own in (videos, [rgb.flip(2)[..., swap] for rgb in videos])])


def film(seed, shape, tracer):
    """The clip of a random scene, and what cameras on random paths saw beside it."""
    clip, rng = clips.random_clip(seed, shape, tracer), random.Random(f"paths {seed}")
    yield clip
    for keyframes in trajectory.random_keyframes(seed, VIEWS - 1):
        wider = {axis: rng.uniform(1, WIDER) * np.array(keys) for axis, keys in keyframes.items()}
        yield clips.refilm(clip, clips.path_cameras(clip, wider))


def encode(vae, videos, rng):
    """The posteriors' means and log variances of clips uint8 [F, H, W, 3], float16 [N, 2C, f, h, w].

    The first VIEWS are targets; the others, conditions, get dataset.add_noise drawn by `rng`.
    """
    x = [video.to_signed(rgb).to(vae.dtype) for rgb in videos]
    x = torch.stack(x[:VIEWS] + [dataset.add_noise(clip, rng) for clip in x[VIEWS:]])
    return vae.encode(x.transpose(1, 2)).latent_dist.parameters.float().clamp(-30, 30).half().cpu().numpy()
