"""Distances of two sets of pictures by their features: FID and KID."""

if __name__ == "__main__":
    raise SystemExit("error: a module, not a program; toolbox/README.md lists the programs")

import numpy as np
from scipy.linalg import svdvals

SUBSETS = 100  # clean-fid's numbers
LARGEST = 1000
SEED = 0


def frechet(a, b):
    """The Frechet distance of features [n, d] and [m, d], at least two each (Heusel et al. 2017):

        |mean a - mean b|^2 + tr(A + B - 2 (A B)^(1/2)), where A and B are their covariances

    With A = X'X and B = Y'Y, the root's trace is the sum of the singular values of X Y'. So it
    needs no root of a matrix, which is inexact where there are fewer pictures than features.
    """
    a = np.asarray(a, np.float64)
    b = np.asarray(b, np.float64)
    x = _root(a)
    y = _root(b)
    distance = np.square(a.mean(0) - b.mean(0)).sum() + np.square(x).sum() + np.square(y).sum()
    distance -= 2 * svdvals(x @ y.T).sum()
    return float(max(distance, 0))  # rounding alone brings it below


def _root(features):
    """R [at most d, d] for which R'R is the covariance of features [n, d]."""
    centred = (features - features.mean(0)) / np.sqrt(len(features) - 1)
    return np.linalg.qr(centred, mode="r") if len(centred) > centred.shape[1] else centred


def kernel(a, b, seed=SEED):
    """The kernel distance KID of features [n, d] and [m, d], at least two each (Binkowski 2018).

    The unbiased squared maximum mean discrepancy under (x.y / d + 1)^3, which may be below 0; its
    mean over 100 random subsets of at most 1000 pictures, as in clean-fid, by a seeded generator.
    """
    a = np.asarray(a, np.float64)
    b = np.asarray(b, np.float64)
    rng = np.random.default_rng(seed)
    size = min(len(a), len(b), LARGEST)
    values = []
    for _ in range(SUBSETS):
        x = a[rng.choice(len(a), size, replace=False)]
        y = b[rng.choice(len(b), size, replace=False)]
        within = _cubes(x, x) + _cubes(y, y)
        pairs = (within.sum() - np.trace(within)) / (size * (size - 1))
        values.append(pairs - 2 * _cubes(x, y).mean())
    return float(np.mean(values))


def _cubes(x, y):
    return (x @ y.T / x.shape[1] + 1) ** 3
