"""Training pairs of ray-traced scenes, for finetune/train.py's trainer: a dataset.TrainingPairs.

Two cameras film each scene. What one saw, warped to where the other was (data_gen.py --mode eval),
goes with what that one saw; warped there and back (--mode train), with what it saw itself. The same
once more in a mirror, in other colours. All are kept as the VAE's posteriors, made once.
"""

if __name__ == "__main__":
    raise SystemExit("error: a module, not a program; toolbox/README.md lists the programs")

import functools
import itertools
import random

import numpy as np
import torch
from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution

from finetune import dataset
from toolbox.small_model import worlds
from toolbox.synthetic import clips
from utils import pipeline, trajectory, video

KEPT_BYTES = 24 * 2**30  # of latents, on the device that trains
WIDER = 2.5  # how much further than on random training paths the cameras may move
VIEWS = 2
MOVES = list(itertools.permutations(range(VIEWS), 2))


class ScenePairs:
    """TrainingPairs of scenes that are traced while training goes on, beginning at first_seed.

    Which pairs are drawn depends on how fast scenes come, so that no two runs are the same.
    """

    def __init__(self, model_path, shape, rank, device, first_seed, scenes):
        make = functools.partial(make_latents, model_path, shape, device)
        first_seed += 1_000_000 * rank
        made, self.stream = clips.first_and_more(make, first_seed, scenes, device)
        self.device = device
        self.pairs = []  # (target, render), each posterior float16 [2C, f, h, w]
        self.made = 0
        self.add(made)

    def __str__(self):
        return f"{self.made} training pairs of ray-traced scenes so far"

    def files(self):
        return []

    def add(self, scenes):
        """Take in what make_latents made; the oldest pairs make room."""
        for latents in scenes:
            for version in torch.from_numpy(latents).to(self.device):
                renders = iter(version[VIEWS:])
                for a, b in MOVES:
                    self.pairs.append((version[b], next(renders)))
                    self.pairs.append((version[a], next(renders)))
                    self.made += 2
                most = KEPT_BYTES * 2 * len(MOVES) // version.nbytes
                self.pairs = self.pairs[-most:]

    def latents(self, pipe, draw, rng, device, dtype, size=1):
        """As of dataset.TrainingPairs."""
        self.add(self.stream.take())
        targets = []
        renders = []
        for i in torch.randint(len(self.pairs), (size,), generator=draw):
            target, render = self.pairs[i]
            targets.append(target)
            renders.append(render)
        x0 = DiagonalGaussianDistribution(torch.stack(targets).float())
        condition = DiagonalGaussianDistribution(torch.stack(renders).float())
        return pipe.sample(x0, rng).to(dtype), pipe.sample(condition, rng).to(dtype)


def make_latents(model_path, shape, device, seed, tracer):
    """Posteriors of one scene, float16 [2, 2 + 4, 2C, f, h, w]: as it is, and in a mirror.

    Each holds the two views, then for each of MOVES the render there, and the one there and back.
    What a CPU has traced is encoded on `device`.
    """
    device = tracer if tracer.type == "cuda" else device
    vae = load_vae(model_path, device)
    rng = dataset.generator(seed, "scene", 0, 0, device)
    views = [to_device(clip, device) for clip in film_views(seed, shape, tracer)]
    videos = [view.rgb for view in views]
    for a, b in MOVES:
        cameras = clips.cameras_to(views[a], views[b])
        for mode in ("eval", "train"):
            render, _ = clips.reproject(views[a], cameras, mode)
            videos.append(render)
    channels = random.Random(seed).sample(range(3), 3)
    mirrored = [rgb.flip(2)[..., channels] for rgb in videos]
    return np.stack([encode(vae, videos, rng), encode(vae, mirrored, rng)])


@functools.cache
def load_vae(model_path, device):
    """The base's VAE, once a process."""
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    return pipeline.load_vae(model_path, dtype).to(device)


def to_device(clip, device):
    """A clip whose tensors are on another device."""
    moved = {}
    for name, tensor in clip._asdict().items():
        if isinstance(tensor, torch.Tensor):
            moved[name] = tensor.to(device)
    return clip._replace(**moved)


def film_views(seed, shape, tracer):
    """The clip of a random scene, and what cameras on random paths saw beside it."""
    clip = worlds.random_clip(seed, shape, tracer)
    rng = random.Random(f"paths {seed}")
    views = [clip]
    for keyframes in trajectory.random_keyframes(seed, VIEWS - 1):
        wider = {}
        for axis, keys in keyframes.items():
            wider[axis] = rng.uniform(1, WIDER) * np.array(keys)
        view = clips.refilm(clip, clips.path_cameras(clip, wider))
        views.append(worlds.estimated(view, seed, len(views)))
    return views


def encode(vae, videos, rng):
    """Posteriors of clips uint8 [F, H, W, 3], means and log variances: float16 [N, 2C, f, h, w].

    The first VIEWS are targets. The others are renders, to which dataset.add_noise adds by `rng`.
    """
    x = []
    for i, rgb in enumerate(videos):
        clip = video.to_signed(rgb).to(vae.dtype)
        x.append(clip if i < VIEWS else dataset.add_noise(clip, rng))
    x = torch.stack(x).transpose(1, 2)  # [N, 3, F, H, W]
    posterior = vae.encode(x).latent_dist
    return posterior.parameters.float().clamp(-30, 30).half().cpu().numpy()
