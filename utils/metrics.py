"""Picture quality against a truth."""

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
