"""Picture quality against a truth."""

import functools

import cv2
import numpy as np


def psnr(a, b, mask=None):
    """Peak signal-to-noise ratio in dB of pictures [..., C] or videos in [0, 1]; inf where they are equal.

    mask: bool, the shape of a without its last axis; only pixels where it is true count. nan if there are none.
    """
    error = (np.asarray(a, np.float64) - np.asarray(b, np.float64)) ** 2
    if mask is not None:
        error = error[mask]
    if error.size == 0:
        return float("nan")
    return float("inf") if error.mean() == 0 else float(-10 * np.log10(error.mean()))


def masked_psnr(a, b, mask):
    """PSNR over all pixels, over known ones (mask true) and over holes: {"all": dB, "known": dB, "holes": dB}."""
    return {"all": psnr(a, b), "known": psnr(a, b, mask), "holes": psnr(a, b, ~mask)}


def ssim(a, b):
    """Mean structural similarity of videos [F, H, W, C] in [0, 1] (Wang et al. 2004), frame by frame, on all channels.

    Windows are Gaussian, sigma 1.5, 11 pixels wide; K1 = 0.01, K2 = 0.03.
    """
    return float(np.mean([_ssim(x.astype(np.float64), y.astype(np.float64)) for x, y in zip(a, b, strict=True)]))


def _ssim(x, y):
    mean = functools.partial(cv2.GaussianBlur, ksize=(11, 11), sigmaX=1.5)
    mx, my = mean(x), mean(y)
    vx, vy, both = mean(x * x) - mx**2, mean(y * y) - my**2, mean(x * y) - mx * my
    c1, c2 = 0.01**2, 0.03**2
    return ((2 * mx * my + c1) * (2 * both + c2) / ((mx**2 + my**2 + c1) * (vx + vy + c2)))[5:-5, 5:-5].mean()
