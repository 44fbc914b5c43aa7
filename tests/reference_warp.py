"""The warp's arithmetic once more, in plain float64 numpy, independent of utils/."""

import numpy as np
from scipy.ndimage import binary_dilation
from skimage.transform import resize


def scaled_intrinsics(k, depth_shape, height, width):
    """K of the depth map brought to the video's size; focal 500 without one."""
    if k is None:
        return np.array([[500.0, 0, width // 2], [0, 500.0, height // 2], [0, 0, 1]])
    sx, sy = depth_shape[1] / width, depth_shape[0] / height
    s = np.sqrt(sx * sy)
    fx, cx = k[0, 0] / s, k[0, 2] / sx
    fy, cy = k[1, 1] / s, k[1, 2] / sy
    return np.array([[fx, 0, cx], [0, fy, cy], [0, 0, 1]], np.float64)


def resized_depth(depth, height, width):
    how = {"order": 1, "mode": "symmetric", "anti_aliasing": False}
    return resize(depth.astype(np.float64), (height, width), **how)


def move(depth, k, phi_deg, theta_deg, r, radius):
    """u', v', z' of every pixel."""
    height, width = depth.shape
    v, u = np.mgrid[:height, :width].astype(np.float64)
    x = depth * np.stack([(u - k[0, 2]) / k[0, 0], (v - k[1, 2]) / k[1, 1], np.ones_like(u)])
    c, s = np.cos(np.deg2rad(phi_deg)), np.sin(np.deg2rad(phi_deg))
    ry = np.array([[c, 0, s], [0, 1, 0], [-s, 0, c]])
    c, s = np.cos(np.deg2rad(theta_deg)), np.sin(np.deg2rad(theta_deg))
    rx = np.array([[1, 0, 0], [0, c, -s], [0, s, c]])
    ez = np.array([0, 0, 1.0])[:, None, None]
    target = np.einsum("ij,jhw->ihw", ry @ rx, x - (radius + r * radius) * ez) + radius * ez
    p = np.einsum("ij,jhw->ihw", k, target)
    return p[0] / p[2], p[1] / p[2], p[2]


def project(depth, k, motion):
    """u', v', z' of every pixel for any rigid motion [4, 4] from source to target camera."""
    v, u = np.mgrid[: depth.shape[0], : depth.shape[1]].astype(np.float64)
    x = depth * np.stack([(u - k[0, 2]) / k[0, 0], (v - k[1, 2]) / k[1, 1], np.ones_like(u)])
    p = np.einsum("ij,jhw->ihw", k @ motion[:3, :3], x) + (k @ motion[:3, 3])[:, None, None]
    with np.errstate(invalid="ignore", divide="ignore"):
        return p[0] / p[2], p[1] / p[2], p[2]


def splat(values, u, v, z_weight):
    """values [H, W, C] spread by weight: weighted mean and mask."""
    height, width, channels = values.shape
    total = np.zeros((height, width, channels))
    weights = np.zeros((height, width))
    u, v = np.nan_to_num(u, nan=-9), np.nan_to_num(v, nan=-9)  # of unknown depth, weight 0
    x0, x1, y0, y1 = np.floor(u), np.ceil(u), np.floor(v), np.ceil(v)
    for x, wx in ((x0, 1 - (u - x0)), (x1, 1 - (x1 - u))):
        for y, wy in ((y0, 1 - (v - y0)), (y1, 1 - (y1 - v))):
            there = (x >= 0) & (x < width) & (y >= 0) & (y < height) & (z_weight > 0)
            at = (y[there].astype(int), x[there].astype(int))
            w = (wx * wy * z_weight)[there]
            np.add.at(weights, at, w)
            np.add.at(total, at, values[there] * w[:, None])
    mask = weights > 0
    return np.where(mask[..., None], total / np.where(mask, weights, 1)[..., None], 0), mask


def soft_z(z):
    log_z = np.log(1 + np.clip(z, 0, 1000))
    return 1 / np.exp(50 * log_z / log_z.max())


def to_bytes(x):
    return np.floor((x + 1) / 2 * 255).astype(np.uint8)


def eval_render(frame, depth, k, path, radius):
    """uint8 frame [H, W, 3] -> (render uint8, mask) with cleaned holes; path is (phi, theta, r)."""
    return forward_render(frame, *move(depth, k, *path, radius))


def forward_render(frame, u, v, z):
    out, mask = splat(frame / 255 * 2 - 1, u, v, soft_z(z) * (z > 0))
    mask = ~binary_dilation(~mask, np.ones((5, 5)))
    return to_bytes(np.where(mask[..., None], out, -1)), mask


def train_render(frame, depth, k, path, radius):
    """uint8 frame [H, W, 3] -> (render uint8, mask) of the way there and back."""
    u, v, z = move(depth, k, *path, radius)
    grid_v, grid_u = np.mgrid[: depth.shape[0], : depth.shape[1]].astype(np.float64)
    weight = soft_z(z) * (z > 0)
    frame2, mask2 = splat(frame / 255 * 2 - 1, u, v, weight)
    flow2, _ = splat(np.stack([u - grid_u, v - grid_v], -1), u, v, weight)
    out, mask = splat(frame2, grid_u - flow2[..., 0], grid_v - flow2[..., 1], soft_z(depth) * mask2)
    return to_bytes(np.where(mask[..., None], out, -1)), mask
