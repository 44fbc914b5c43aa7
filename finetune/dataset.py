"""Training pairs, and every random draw that training makes."""

import contextlib
import hashlib
import math
import re
from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution
from tqdm import tqdm

from utils import camera_paths, cli, video
from utils.cli import InputError

VIDEOS_KEPT = 4 * 2**30  # bytes of decoded videos that a process keeps in the host's memory
POSTERIORS_KEPT = 2**28  # bytes of encoded targets that it keeps on its device
MOST_ENCODINGS = 256  # of a bank: up to 1.7 GB of the host's memory with the real model
CHUNK = 16  # frames that are held at a video's own size


class TrainingPairs(Protocol):
    """What the trainer asks of the pairs that it learns from. Pairs, below, reads them from files.

    str(pairs) says in a few words how many there are and of what.
    """

    def latents(self, pipe, draw, rng, device, dtype, size=1):
        """(x0, condition): the latents of `size` targets and their renders, [size, f, 16, h, w].

        draw: a torch.Generator of the CPU, which chooses the pairs. rng: one of `device`, for the
        pixel noise of add_noise and the samples of the VAE's posteriors.
        """

    def files(self):
        """The files that the pairs are read from, [] if none; settings.json keeps their hashes."""


@dataclass(frozen=True)
class Videos:
    """The target of a sequence, gt_rgb.mp4, its training renders, and the frame count of each.

    held_out: the renders of pairs that are never trained on, [] if there are none.
    """

    target: Path
    renders: list
    frames: int
    held_out: list


def find_sequences(folder):
    """The sequence folders meant by `folder`: itself, or those in it."""
    folder = Path(folder)
    found = sorted(path.parent for path in folder.glob("*/gt_rgb.mp4"))
    return found if found and not (folder / "gt_rgb.mp4").exists() else [folder]


def find_videos(folder):
    """The Videos of a sequence folder; InputError unless all show the same moments at one size."""
    folder = Path(folder)
    target = folder / "gt_rgb.mp4"
    if not target.is_file():
        raise InputError(f"{folder}: no gt_rgb.mp4; expected a sequence folder, or a folder of "
                         "them")
    info = video.probe(target)
    renders = find_renders(folder, "train", info)
    if not renders:
        raise InputError(f"{folder}: no train_render*.mp4; make them with data_gen.py --mode train")
    held_out = []
    with contextlib.suppress(InputError):  # leftovers of another video stop no training
        found = find_renders(folder, "val", info)
        check_origin(target, found)
        held_out = found
    return Videos(target, renders, info.frames, held_out)


def find_renders(folder, kind, target):
    """The {kind}_render{i}.mp4 of a folder by number; InputError unless they fit a VideoInfo."""
    renders = {}
    for path in Path(folder).glob(f"{kind}_render*.mp4"):
        if match := re.fullmatch(rf"{kind}_render(\d+)", path.stem):
            renders[int(match[1])] = path
    for number, render in renders.items():
        check_render(render, target)
        check_cameras(render.with_name(f"{kind}_cameras{number}.npz"), render, target.frames)
    return [renders[number] for number in sorted(renders)]


def check_render(render, target):
    """InputError unless a training render has the length and size of its target, a VideoInfo."""
    info = video.probe(render)
    for got, expected in (
        (f"{info.frames} frames", f"{target.frames} frames"),
        (f"{info.width} x {info.height} pixels", f"{target.width} x {target.height} pixels"),
    ):
        if got != expected:
            raise InputError(f"{render}: got {got}; expected {expected}, as of gt_rgb.mp4; run "
                             "data_gen.py --mode train again")


def check_cameras(path, render, frames):
    """InputError if a render's cameras, where there are any, do not show all frames in order."""
    if not path.is_file():  # the published data_gen.py writes none
        return
    shown = camera_paths.read_cameras(path, np.tile(np.eye(3), (frames, 1, 1))).frames
    if frames > 1 and shown[0] == shown[-1]:
        raise InputError(f"{render}: its path freezes time (frames in {path.name}), so it does not "
                         "show the moments of gt_rgb.mp4; delete it, or run data_gen.py --mode "
                         "train with another path")


def check_origin(target, renders):
    """InputError if a render says that it was made of another gt_rgb.mp4; others say nothing."""
    now = None
    for render in renders:
        made = video.made_of(render) or {}
        if made.get("program") != "data_gen.py" or "source" not in made:
            continue
        now = now or cli.file_hash(target)  # 0.2 s for 200 MB
        if made["source"] != now:
            raise InputError(f"{render}: was made of another gt_rgb.mp4 than {target}; run "
                             "data_gen.py --mode train again, or put the video back")


def check_pairs(base_dir_input, clip_shape):
    """InputError if open_pairs would raise it; the bytes of videos that a process will keep."""
    total = 0
    for folder in find_sequences(base_dir_input):
        videos = find_videos(folder)
        check_origin(videos.target, videos.renders)
        total += (1 + len(videos.renders)) * videos.frames * clip_shape[1] * clip_shape[2] * 3
    return min(total, VIDEOS_KEPT)


def open_pairs(base_dir_input, model_path, clip_shape, rank=0, device="cpu"):
    """The TrainingPairs of a sequence folder, or of a folder of them.

    clip_shape: (frames, height, width) of the model. Programs that call train.train with pairs of
    their own give it a function like this one, which may use the base, the rank and the device.
    """
    return Pairs(base_dir_input, clip_shape)


def seed(run, what, rank, step):
    """A number that is a pure function of its arguments, so that any step can be repeated."""
    digest = hashlib.sha256(f"{run}/{what}/{rank}/{step}".encode()).digest()
    return int.from_bytes(digest[:7], "big")


def generator(run, what, rank, step, device="cpu"):
    """A torch.Generator seeded by seed()."""
    return torch.Generator(device).manual_seed(seed(run, what, rank, step))


class Cache:
    """Keeps arrays or tensors up to `limit` bytes; the one used longest ago goes first."""

    def __init__(self, limit):
        self.limit = limit
        self.items = OrderedDict()

    def get(self, key, make):
        """The item called `key`: the one kept, or make(). One above the limit is not kept."""
        if key not in self.items:
            item = make()
            if item.nbytes > self.limit:
                return item
            self.items[key] = item
        self.items.move_to_end(key)
        while sum(item.nbytes for item in self.items.values()) > self.limit:
            self.items.popitem(last=False)
        return self.items[key]


class Pairs:
    """TrainingPairs of sequence folders, each folder as likely as the other."""

    def __init__(self, folder, clip_shape):
        self.clip_shape = clip_shape
        self.sequences = [find_videos(path) for path in find_sequences(folder)]
        self.videos = Cache(VIDEOS_KEPT)
        self.posteriors = Cache(POSTERIORS_KEPT)

    def __str__(self):
        count = sum(len(videos.renders) for videos in self.sequences)
        sequences = f"{len(self.sequences)} sequence{'s' * (len(self.sequences) > 1)}"
        return f"{count} training pairs of {sequences}"

    def files(self):
        found = []
        for videos in self.sequences:
            found += [videos.target, *videos.renders]
        return found

    def read(self, path):
        """A video at the model's size, uint8 [N, H, W, 3]; decoded once while there is room."""
        return self.videos.get(path, lambda: read_resized(path, *self.clip_shape[1:]))

    def draw(self, rng):
        """(target, render, first frame) of a random clip; a video shorter than one starts at 0."""
        count = len(self.sequences)
        number = torch.randint(count, (), generator=rng).item() if count > 1 else 0
        videos = self.sequences[number]
        start = self.draw_start(videos, rng)
        render = torch.randint(len(videos.renders), (), generator=rng).item()
        return videos.target, videos.renders[render], start

    def draw_start(self, videos, rng):
        """The first frame of a random clip."""
        starts = max(1, videos.frames - self.clip_shape[0] + 1)
        return torch.randint(starts, (), generator=rng).item()

    def turns(self):
        """After how many turns every pair has had one for each clip's length of its video."""
        most = 0
        for videos in self.sequences:
            clips = math.ceil(videos.frames / self.clip_shape[0])
            most = max(most, clips * len(videos.renders))
        return most * len(self.sequences)

    def in_turn(self, number, rng):
        """What draw() gives, of the pair whose turn it is: they take turns, and so do sequences."""
        turn, sequence = divmod(number, len(self.sequences))
        videos = self.sequences[sequence]
        render = videos.renders[turn % len(videos.renders)]
        return videos.target, render, self.draw_start(videos, rng)

    def clip(self, path, start, device, dtype):
        """Frames from `start` on, [1, F, 3, H, W] in [-1, 1]; the last one repeated if need be."""
        frames = video.fit_length(self.read(path)[start:], self.clip_shape[0])
        clip = torch.from_numpy(frames)
        if torch.device(device).type == "cuda":
            clip = clip.pin_memory().to(device, non_blocking=True)
        clip = clip.permute(0, 3, 1, 2).contiguous()  # the VAE takes 0.87 s, not 0.68, otherwise
        return (clip.float() / 127.5 - 1).to(dtype)[None]

    def latents(self, pipe, draw, rng, device, dtype, size=1):
        x0 = []
        condition = []
        for _ in range(size):
            target, render, start = self.draw(draw)
            x0.append(pipe.sample(self.posterior(pipe, target, start, device, dtype), rng))
            condition.append(self.condition(pipe, render, start, rng, device, dtype))
        return torch.cat(x0), torch.cat(condition)

    def condition(self, pipe, render, start, rng, device, dtype):
        """The latents of a render from frame `start` on, with noise: [1, f, 16, h, w]."""
        return pipe.encode(add_noise(self.clip(render, start, device, dtype), rng), rng)

    def posterior(self, pipe, target, start, device, dtype):
        """The VAE's distribution of a target's latents from frame `start` on; encoded once."""

        def encode():
            return pipe.posterior(self.clip(target, start, device, dtype)).parameters

        return DiagonalGaussianDistribution(self.posteriors.get((target, start), encode))


class Bank:
    """TrainingPairs that draw from conditions which were encoded ahead, with their noise.

    Made are `count` of them in all processes together, or one in each, as many of each pair, by
    generators of (seed, what, 0, number), so that a run that goes on has the same ones. They are
    kept in the host's memory. The sample of the target's posterior is drawn anew in every step.
    """

    @torch.no_grad()
    def __init__(self, pipe, pairs, count, seed, rank, ranks, device, dtype):
        self.targets = {}  # parameters of posteriors by (target, first frame)
        self.entries = []  # (target, first frame), condition
        count = max(count, ranks)
        own = range(rank * count // ranks, (rank + 1) * count // ranks)
        for number in tqdm(own, desc="encoding conditions", unit="clip", disable=rank > 0):
            draw = generator(seed, "bank clip", 0, number)
            rng = generator(seed, "bank noise", 0, number, device)
            target, render, start = pairs.in_turn(number, draw)
            if (target, start) not in self.targets:
                posterior = pairs.posterior(pipe, target, start, device, dtype)
                self.targets[target, start] = posterior.parameters.cpu()
            condition = pairs.condition(pipe, render, start, rng, device, dtype)
            self.entries.append(((target, start), condition.cpu()))

    def latents(self, pipe, draw, rng, device, dtype, size=1):
        x0 = []
        conditions = []
        for number in torch.randint(len(self.entries), (size,), generator=draw).tolist():
            shown, condition = self.entries[number]
            parameters = self.targets[shown].to(device)
            x0.append(pipe.sample(DiagonalGaussianDistribution(parameters), rng))
            conditions.append(condition.to(device))
        return torch.cat(x0), torch.cat(conditions)


def read_resized(path, height, width):
    """A whole video at another size, uint8 [N, height, width, 3]."""
    frames = np.empty((video.probe(path).frames, height, width, 3), np.uint8)
    start = 0
    for chunk in video.iter_chunks(path, CHUNK):
        chunk = chunk[: len(frames) - start]  # if there are too many, iter_chunks says so
        frames[start : start + len(chunk)] = video.resize(chunk, height, width)
        start += len(chunk)
    return frames


def add_noise(clip, rng):
    """Pixel noise of sigma = exp(N(-3, 0.5)) on a clip in [-1, 1], as CogNVS was trained."""
    sigma = torch.exp(torch.randn((), generator=rng, device=clip.device) * 0.5 - 3)
    noise = torch.randn(clip.shape, generator=rng, device=clip.device)
    return clip + (sigma * noise).to(clip.dtype)


@torch.no_grad()
def training_batch(pipe, pairs, seed, rank, step, device, dtype, size=1):
    """What one process trains on in one step: (x0, condition, noise, timestep).

    x0, condition, noise: latents [size, f, 16, h, w]; timestep: int64 [size], drawn uniformly.
    """
    rng = generator(seed, "noise", rank, step, device)
    draw = generator(seed, "clip", rank, step)
    x0, condition = pairs.latents(pipe, draw, rng, device, dtype, size)
    steps = pipe.scheduler.config.num_train_timesteps
    timestep = torch.randint(steps, (size,), generator=rng, device=device)
    noise = torch.randn(x0.shape, generator=rng, device=device).to(dtype)
    return x0, condition, noise, timestep


@torch.no_grad()
def fixed_batches(pipe, pairs, seed, rank, ranks, count, device, dtype, size=1):
    """`count` batches such as training_batch's, drawn from streams of their own.

    The timesteps of all batches of all processes are spread evenly over the schedule.
    """
    batches = []
    for number in range(count):
        rng = generator(seed, "fixed noise", rank, number, device)
        draw = generator(seed, "fixed clip", rank, number)
        x0, condition = pairs.latents(pipe, draw, rng, device, dtype, size)
        noise = torch.randn(x0.shape, generator=rng, device=device).to(dtype)
        first = (number * ranks + rank) * size
        share = (torch.arange(first, first + size, device=device) + 0.5) / (count * ranks * size)
        timestep = (share * pipe.scheduler.config.num_train_timesteps).long()
        batches.append((x0, condition, noise, timestep))
    return batches
