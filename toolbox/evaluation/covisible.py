"""Covisibility-masked measures as DyCheck defines them (Gao et al. 2022): mPSNR, mSSIM and mLPIPS.

A pixel counts where the mask is true, which is where training views saw what it shows. Frames are
float64 [H, W, 3] in [0, 1], masks bool [H, W]; without a mask all pixels count. mPSNR is
utils.metrics.psnr with a mask.
"""

if __name__ == "__main__":
    raise SystemExit("error: a module, not a program; toolbox/README.md lists the programs")

import numpy as np
from scipy.ndimage import correlate1d

RADIUS = 5  # pixels: windows of 11
SIGMA = 1.5
C1 = 0.01**2  # (k L)^2 for values up to L = 1
C2 = 0.03**2


def ssim(a, b, mask=None):
    """mSSIM: the mean of a map of structural similarity, with partial convolutions.

    Gaussian windows, sigma 1.5, 11 pixels; only where they fit in; no sample covariance. With a
    mask of ones it is the SSIM of Wang et al. 2004, so utils.metrics.ssim. A window without any
    masked pixel has the value 1 and counts in the mean, as in DyCheck.
    """
    mask = np.ones(a.shape[:2]) if mask is None else mask.astype(np.float64)
    mask = mask[..., None]
    mean_a, mean_b = blur(a, mask), blur(b, mask)
    # A mask's partial sums make no true average: what cannot be is clipped, as in DyCheck.
    var_a = np.maximum(blur(a * a, mask) - mean_a**2, 0)
    var_b = np.maximum(blur(b * b, mask) - mean_b**2, 0)
    both = blur(a * b, mask) - mean_a * mean_b
    both = np.sign(both) * np.minimum(np.abs(both), np.sqrt(var_a * var_b))
    alike = (2 * mean_a * mean_b + C1) * (2 * both + C2)
    return float((alike / ((mean_a**2 + mean_b**2 + C1) * (var_a + var_b + C2))).mean())


def blur(z, mask):
    """Pictures [H, W, C] averaged over their windows: [H - 10, W - 10, C].

    A partial convolution along x, then one along y. Each multiplies the sum of what is masked by
    the number of pixels of a window / the number of masked ones, and is 0 where there are none.
    mask: float [H, W, 1], 1 where a pixel counts.
    """
    steps = np.arange(-RADIUS, RADIUS + 1)
    weights = np.exp(-0.5 * (steps / SIGMA) ** 2)
    weights /= weights.sum()
    for axis in (1, 0):
        inside = [slice(None)] * 3
        inside[axis] = slice(RADIUS, -RADIUS)
        count = correlate1d(mask, np.ones(len(steps)), axis)[tuple(inside)]
        z = correlate1d(z * mask, weights, axis)[tuple(inside)]
        z = z * len(steps) / np.maximum(count, 1)
        mask = (count > 0).astype(np.float64)
        z = z * mask
    return z


def lpips(network, a, b, mask=None):
    """mLPIPS: the mean over masked pixels of the spatial LPIPS of the pictures times the mask.

    network: networks.Lpips. nan if no pixel is masked.
    """
    mask = np.ones(a.shape[:2], bool) if mask is None else mask
    if not mask.any():
        return float("nan")
    blacked = mask[..., None]
    return float(network.distance_map(a * blacked, b * blacked)[mask].mean())
