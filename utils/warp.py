"""Forward warping: unproject by depth, move the camera, splat with a soft z-buffer.

Tensors are float32 on any device: frames [B, 3, H, W] in [-1, 1], depth [B, H, W] (z in the depth map's unit, 0 where
unknown), motion [B, 4, 4] from source to target camera, K [B, 3, 3] in pixels. Masks are bool [B, H, W]. Pixel centres
lie at integer coordinates. The arithmetic is the published one, on which the published weights were trained.
"""

import functools
import itertools
import math

import numpy as np
import torch
import torch.nn.functional as F
from scipy.sparse import csc_array

MAX_DEPTH = 1000.0  # of the z-buffer's depth weight
SHARPNESS = 50.0  # of the z-buffer: near surfaces weigh up to exp(50) times as much as far ones


def pixel_grid(height, width, device):
    """(u, v) of every pixel, each float32, broadcastable to [H, W]."""
    return torch.arange(width, device=device)[None].float(), torch.arange(height, device=device)[:, None].float()


def reproject(depth, motion, k, k_target=None):
    """Where each source pixel lands in the target view: (u', v', z'), each float32 [B, H, W].

    With T = k_target (K by default), p = T (R depth K^-1 (u, v, 1) + t) is taken as depth (H (u, v, 1) + T t / depth),
    H = I + (T R - K) K^-1 made in float64, so that a camera that does not move returns u and v exactly. z' is 0 where
    the depth is unknown.
    """
    motion, k = motion.double(), k.double()
    target = k if k_target is None else k_target.double()
    eye = torch.eye(3, dtype=torch.float64, device=k.device)
    h = (eye + (target @ motion[:, :3, :3] - k) @ torch.linalg.inv(k)).float()[..., None, None]  # [B, 3, 3, 1, 1]
    kt = (target @ motion[:, :3, 3:]).float()[..., None]  # [B, 3, 1, 1]
    u, v = pixel_grid(*depth.shape[1:], depth.device)
    inverse = torch.where(depth > 0, 1 / depth, 0)
    x, y, z = (h[:, i, 0] * u + h[:, i, 1] * v + h[:, i, 2] + kt[:, i] * inverse for i in range(3))
    return x / z, y / z, z * depth


def depth_weight(z):
    """exp(-50 * log(1 + z) / its largest value in the frame), z clamped to [0, 1000]: the soft z-buffer, [B, H, W]."""
    log_z = torch.log1p(z.clamp(0, MAX_DEPTH))
    return torch.exp(-SHARPNESS * log_z / log_z.amax((1, 2), keepdim=True).clamp_min(1e-12))


def splat(values, u, v, weight):
    """Spread each pixel's values over the four neighbours of (u, v): the weighted mean and where any weight arrived.

    values [B, C, H, W]; u, v, weight [B, H, W], weight 0 for pixels that contribute nothing. Corners outside the frame
    are dropped. Returns the mean, [B, C, H, W], 0 in holes, and the mask.
    """
    batch, channels, height, width = values.shape
    payload = torch.cat([values, torch.ones_like(u)[:, None]], 1).permute(0, 2, 3, 1)  # [B, H, W, C + 1]
    payload = payload.reshape(-1, channels + 1)
    at, share = corners(u, v, weight)
    canvas = (batch, height + 2, width + 2, channels + 1)  # with a border for what falls outside
    if u.device.type == "cpu":  # a sparse matrix whose columns are the source pixels: one pass over the memory
        ends = np.arange(0, at.numel() + 1, 4, dtype=np.int32)
        matrix = csc_array((share.numpy(), at.numpy(), ends), shape=(math.prod(canvas[:3]), len(payload)))
        total = torch.from_numpy(matrix @ payload.numpy())
    else:
        total = payload.new_zeros(math.prod(canvas[:3]), channels + 1)
        for i in range(4):
            total.index_add_(0, at[i::4], payload * share[i::4, None])
    total = total.view(canvas)[:, 1:-1, 1:-1].permute(0, 3, 1, 2)
    mean = total[:, :channels] / total[:, channels:].clamp_min(torch.finfo(total.dtype).tiny)
    return mean, total[:, channels] > 0


def corners(u, v, weight):
    """The four pixels about each (u, v), int32 indices into a canvas with a border of one, and their weights.

    Each [B * H * W * 4], a pixel's four side by side.
    """
    batch, height, width = u.shape
    first = torch.arange(batch, dtype=torch.int32, device=u.device)[:, None, None] * (height + 2) * (width + 2)
    columns = beside(u, width)
    rows = [(y * (width + 2) + first, wy * weight) for y, wy in beside(v, height)]
    at = torch.stack([y + x for y, _ in rows for x, _ in columns], -1)
    share = torch.empty_like(at, dtype=u.dtype)  # filled in place: torch.stack takes three times as long for floats
    for i, ((_, wy), (_, wx)) in enumerate(itertools.product(rows, columns)):
        torch.mul(wy, wx, out=share[..., i])
    return at.flatten(), share.flatten()


def beside(at, size):
    """The two pixels beside a coordinate, (index on a canvas with a border of one, bilinear weight), each [B, H, W]."""
    at = at.nan_to_num(-1, size, -1).clamp_(-1, size) + 1
    return [(x.int(), (x - at).abs_().neg_().add_(1)) for x in (at.floor(), at.ceil())]


def forward_warp(frames, depth, motion, k, k_target=None):
    """The frames seen from the moved camera, and where they are known; holes are -1 (black)."""
    u, v, z = reproject(depth, motion, k, k_target)
    warped, mask = splat(frames, u, v, depth_weight(z) * (z > 0))  # points behind the camera are culled
    return warped.masked_fill_(~mask[:, None], -1), mask


def double_warp(frames, depth, motion, k, k_target=None):
    """Warp to the moved camera and back: the source view showing only what the moved camera saw too; holes are -1."""
    u, v, z = reproject(depth, motion, k, k_target)
    grid_u, grid_v = pixel_grid(*depth.shape[1:], depth.device)
    payload = torch.cat([frames, torch.stack([u - grid_u, v - grid_v], 1)], 1)
    seen, seen_mask = splat(payload, u, v, depth_weight(z) * (z > 0))
    # As published, the way back weighs a pixel of the target view by the source's depth map at the same place.
    weight = depth_weight(torch.where(depth > 0, depth, depth.amax((1, 2), keepdim=True))) * seen_mask
    back, mask = splat(seen[:, :3], grid_u - seen[:, 3], grid_v - seen[:, 4], weight)
    return back.masked_fill_(~mask[:, None], -1), mask


def dilate_holes(frames, mask):
    """Grow the holes by a 5 x 5 box: those pixels become holes too."""
    known = F.pad(mask, (2, 2, 2, 2), value=True)
    height, width = mask.shape[1:]
    rows = functools.reduce(torch.logical_and, (known[:, i : i + height] for i in range(5)))
    mask = functools.reduce(torch.logical_and, (rows[:, :, i : i + width] for i in range(5)))
    return frames.masked_fill(~mask[:, None], -1), mask


def render(mode, frames, depth, motion, k, k_target=None):
    """What training ("train": there and back) or inference ("eval": there, holes grown) sees: frames and mask."""
    if mode == "train":
        return double_warp(frames, depth, motion, k, k_target)
    return dilate_holes(*forward_warp(frames, depth, motion, k, k_target))


def cut_edges(depth, threshold):
    """Depth [B, H, W] made unknown (0) where the farthest depth around a pixel is over 1 + threshold times the nearest.

    Such pixels, between a silhouette and what lies behind it, belong to neither and would print as speckle.
    """
    padded = F.pad(depth[:, None], (1, 1, 1, 1), mode="replicate")
    farthest, nearest = F.max_pool2d(padded, 3, 1)[:, 0], -F.max_pool2d(-padded, 3, 1)[:, 0]
    return depth.masked_fill(farthest > (1 + threshold) * nearest, 0)
