"""Renders of any length and shape for a model that takes one: windows in time, a fit in space."""

import itertools

import cv2
import numpy as np
import torch

from utils import video

FITS = ("stretch", "pad", "crop")


def starts(total, length, overlap):
    """The first frame of every window of `length` frames.

    The last window ends with the video and may overlap more.
    """
    if total <= length:
        return [0]
    return [*range(0, total - length, length - overlap), total - length]


def slide(items, total, length, overlap):
    """Yield the windows of an iterator over `total` items.

    Each is (its items, how many of them come before the next window).
    """
    window = []
    for first, following in itertools.pairwise([*starts(total, length, overlap), total]):
        window += itertools.islice(items, min(first + length, total) - first - len(window))
        yield window, following - first
        window = window[following - first :]


def carry_over(clip, known, tail):
    """A window's frames [F, 3, H, W] whose holes show the last window's finished frames, `tail`.

    known: bool [F, 1, H, W]. tail: [n, 3, H, W], of the first n frames.
    """
    count = len(tail)
    return torch.cat([torch.where(known[:count], clip[:count], tail), clip[count:]])


def cross_fade(tail, out):
    """A window's frames [F, 3, H, W], its first ones faded over from `tail`."""
    count = len(tail)
    weight = torch.arange(1, count + 1, device=out.device)[:, None, None, None] / (count + 1)
    return torch.cat([torch.lerp(tail, out[:count], weight), out[count:]])


def box(fit, size, target):
    """(top, left, height, width) of what the smaller frame covers of the larger, both centred.

    crop: the part of a source of `size` that has the shape of `target`; pad: the part of `target`
    that the source covers. Sizes are (height, width) in pixels.
    """
    (h, w), (th, tw) = (size, target) if fit == "crop" else (target, size)
    if h * tw <= w * th:
        height, width = h, max(1, round(h * tw / th))
    else:
        height, width = max(1, round(w * th / tw)), w
    if fit == "crop":  # even sizes, as browsers play no others
        height, width = max(1, height - height % 2), max(1, width - width % 2)
    return (h - height) // 2, (w - width) // 2, height, width


def stretch(size, target):
    """The factor by which `size` is stretched along one side where it becomes `target`, >= 1."""
    factor = (size[0] / size[1]) / (target[0] / target[1])
    return max(factor, 1 / factor)


def cut(frames, area):
    """The area (top, left, height, width) of frames [F, H, W, ...]."""
    top, left, height, width = area
    return frames[:, top : top + height, left : left + width]


def cropped(frames, fit, target):
    """What of the frames [F, H, W, ...] the model sees, at their own resolution."""
    return cut(frames, box(fit, frames.shape[1:3], target)) if fit == "crop" else frames


def place(frames, fit, target):
    """Frames [F, h, w, 3] or [F, h, w] at the model's size (height, width).

    What `pad` leaves over is 0, a hole.
    """
    if fit != "pad":
        return video.resize(cropped(frames, fit, target), *target)
    top, left, height, width = box(fit, frames.shape[1:3], target)
    canvas = np.zeros((len(frames), *target, *frames.shape[3:]), frames.dtype)
    canvas[:, top : top + height, left : left + width] = video.resize(frames, height, width)
    return canvas


def output_size(fit, size, target):
    """(height, width) of the output for a source of `size` and a model of size `target`."""
    return box(fit, size, target)[2:] if fit == "crop" else size


def take_back(frames, fit, size):
    """The model's frames [F, H, W, 3] at the output's size, for a source of `size` (height, width).

    Enlarged linearly, as published: in holes that is nearer to exact views than cubic or Lanczos
    interpolation. Reduced by area averaging.
    """
    target = frames.shape[1:3]
    frames = cut(frames, box(fit, size, target)) if fit == "pad" else frames
    size = output_size(fit, size, target)
    larger = frames[0, ..., 0].size > size[0] * size[1]
    return video.resize(frames, *size, cv2.INTER_AREA if larger else cv2.INTER_LINEAR)


def composite(render, out, known, feather):
    """Known pixels from the render, the others from `out`, uint8 [F, H, W, 3].

    known: bool [F, H, W]. Within `feather` pixels of a hole the render fades into `out`, so that no
    seam shows.
    """
    mixed = np.empty_like(out)
    for i, known_pixels in enumerate(known):
        away = cv2.distanceTransform(known_pixels.astype(np.uint8), cv2.DIST_L2, 5)  # from a hole
        weight = np.clip(away / (feather + 1), 0, 1)[..., None]
        mixed[i] = (weight * render[i] + (1 - weight) * out[i]).round()
    return mixed
