"""Picture quality against the right picture."""

import numpy as np

SSIM_BORDER = 5  # pixels


def psnr(a, b, mask=None):
    """Peak signal-to-noise ratio in dB of pictures [..., C] or videos in [0, 1]; inf if equal.

    mask: bool, the shape of a without its last axis; only pixels where it is true count. nan if
    there are none.
    """
    error = (np.asarray(a, np.float64) - np.asarray(b, np.float64)) ** 2
    if mask is not None:
        error = error[mask]
    if error.size == 0:
        return float("nan")
    return float("inf") if error.mean() == 0 else float(-10 * np.log10(error.mean()))


def masked_psnr(a, b, mask):
    """PSNR in dB over all pixels, over known ones (mask true) and over holes.

    Returns {"all": dB, "known": dB, "holes": dB}.
    """
    return {"all": psnr(a, b), "known": psnr(a, b, mask), "holes": psnr(a, b, ~mask)}


def ssim_map(a, b):
    """Structural similarity of every pixel and channel of two pictures [H, W, C] in [0, 1].

    After Wang et al. 2004, as scikit-image computes it: Gaussian windows, sigma 1.5, 11 pixels.
    """
    from skimage.metrics import structural_similarity

    how = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False, "data_range": 1}
    return structural_similarity(a, b, channel_axis=-1, full=True, **how)[1]


def ssim(a, b):
    """Mean structural similarity of videos [F, H, W, C] in [0, 1], frame by frame: the mean of
    ssim_map but for the border that windows do not fit in."""
    values = []
    for x, y in zip(np.asarray(a, np.float64), np.asarray(b, np.float64), strict=True):
        values.append(ssim_map(x, y)[SSIM_BORDER:-SSIM_BORDER, SSIM_BORDER:-SSIM_BORDER].mean())
    return float(np.mean(values))


def gradient_energy(picture):
    """Squared differences between neighbours, summed over channels: [..., H, W] of [..., H, W, C].

    Differences are central, and one-sided at the border.
    """
    down, right = np.gradient(picture, axis=(-3, -2))
    return (down**2 + right**2).sum(-1)
