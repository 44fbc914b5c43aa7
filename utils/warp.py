"""Forward warping: unproject by depth, move the camera, splat with a soft z-buffer.

Tensors are float32 on any device: frames [B, 3, H, W] in [-1, 1], depth [B, H, W] (z in the depth
map's unit, 0 where unknown), motion [B, 4, 4] from source to target camera, K [B, 3, 3] in pixels.
Masks are bool [B, H, W]. Pixel centres lie at integer coordinates. The arithmetic is the published
one, on which the published weights were trained.
"""

import math

import numpy as np
import torch
import torch.nn.functional as F
from scipy.sparse import csc_array

MAX_DEPTH = 1000.0  # of the z-buffer's depth weight
SHARPNESS = 50.0  # of the z-buffer: near surfaces weigh up to exp(50) times as much as far ones
REACH = 2  # pixels by which holes grow to every side
MANY_HOLES = 0.6  # share of a frame beyond which inpainting has little to hold on to


def pixel_grid(height, width, device):
    """(u, v) of every pixel, each float32, broadcastable to [H, W]."""
    u = torch.arange(width, device=device)[None].float()
    v = torch.arange(height, device=device)[:, None].float()
    return u, v


def reproject(depth, motion, k, k_target=None):
    """Where each source pixel lands in the target view: (u', v', z'), each float32 [B, H, W].

    With T = k_target (K by default), p = T (R depth K^-1 (u, v, 1) + t) is computed as
    depth (H (u, v, 1) + T t / depth) with H = I + (T R - K) K^-1. H is made in float64, so that a
    camera that does not move returns u and v exactly. z' is 0 where the depth is unknown.
    """
    motion = motion.double()
    k = k.double()
    target = k if k_target is None else k_target.double()
    eye = torch.eye(3, dtype=torch.float64, device=k.device)
    h = eye + (target @ motion[:, :3, :3] - k) @ torch.linalg.inv(k)
    h = h.float()[..., None, None]  # [B, 3, 3, 1, 1]
    kt = (target @ motion[:, :3, 3:]).float()[..., None]  # [B, 3, 1, 1]
    u, v = pixel_grid(*depth.shape[1:], depth.device)
    inverse = torch.where(depth > 0, 1 / depth, 0)

    def row(i):
        return h[:, i, 0] * u + h[:, i, 1] * v + h[:, i, 2] + kt[:, i] * inverse

    z = row(2)
    return row(0) / z, row(1) / z, z * depth


def depth_weight(z):
    """The soft z-buffer, [B, H, W]: exp(-50 * log(1 + z) / its largest value in the frame).

    z is clamped to [0, 1000].
    """
    log_z = torch.log1p(z.clamp(0, MAX_DEPTH))
    return torch.exp(-SHARPNESS * log_z / log_z.amax((1, 2), keepdim=True).clamp_min(1e-12))


def splat(values, u, v, weight):
    """Spread each pixel's values over the four neighbours of (u, v).

    values [B, C, H, W]; u, v, weight [B, H, W], weight 0 for pixels that contribute nothing.
    Corners outside the frame are dropped. Returns the weighted mean, [B, C, H, W], 0 in holes, and
    the mask of where any weight arrived.
    """
    batch, channels, height, width = values.shape
    payload = torch.cat([values, torch.ones_like(u)[:, None]], 1)  # the last sums the weights
    payload = payload.permute(0, 2, 3, 1).reshape(-1, channels + 1)  # [B * H * W, C + 1]
    at, share = corners(u, v, weight)
    canvas = (batch, height + 2, width + 2)  # with a border for what falls outside
    add_up = add_up_on_cpu if u.device.type == "cpu" else add_up_on_gpu
    total = add_up(payload, at, share, math.prod(canvas)).view(*canvas, channels + 1)
    total = total[:, 1:-1, 1:-1].permute(0, 3, 1, 2)  # [B, C + 1, H, W]
    weights = total[:, channels:]
    mean = total[:, :channels] / weights.clamp_min(torch.finfo(total.dtype).tiny)
    return mean, weights[:, 0] > 0


def add_up_on_cpu(payload, at, share, size):
    """The sums of share * payload at the indices `at`, [size, C + 1].

    As a sparse matrix whose columns are the source pixels this is one pass over the memory.
    """
    ends = np.arange(0, at.numel() + 1, 4, dtype=np.int32)
    matrix = csc_array((share.numpy(), at.numpy(), ends), shape=(size, len(payload)))
    return torch.from_numpy(matrix @ payload.numpy())


def add_up_on_gpu(payload, at, share, size):
    """The same in atomic additions, a corner at a time."""
    total = payload.new_zeros(size, payload.shape[1])
    for i in range(4):
        total.index_add_(0, at[i::4], payload * share[i::4, None])
    return total


def corners(u, v, weight):
    """The four pixels about each (u, v): int32 indices into a canvas with a border, their weights.

    The border is one pixel wide. Each is [B * H * W * 4], a pixel's four side by side.
    """
    batch, height, width = u.shape
    first = torch.arange(batch, dtype=torch.int32, device=u.device) * (height + 2) * (width + 2)
    first = first[:, None, None]
    columns = beside(u, width)
    lines = [(y * (width + 2) + first, share * weight) for y, share in beside(v, height)]
    at = torch.stack([start + x for start, _ in lines for x, _ in columns], -1)
    share = torch.empty_like(at, dtype=u.dtype)  # torch.stack takes three times as long for floats
    for i in range(4):
        torch.mul(lines[i // 2][1], columns[i % 2][1], out=share[..., i])
    return at.flatten(), share.flatten()


def beside(at, size):
    """The two pixels beside a coordinate: (index on a canvas with a border of one, its weight).

    Indices are int32 and bilinear weights float32, each [B, H, W].
    """
    at = at.nan_to_num(-1, size, -1).clamp_(-1, size) + 1
    low, high = at.floor(), at.ceil()
    return [(x.int(), (x - at).abs_().neg_().add_(1)) for x in (low, high)]


def forward_warp(frames, depth, motion, k, k_target=None):
    """The frames seen from the moved camera, and where they are known; holes are -1 (black)."""
    u, v, z = reproject(depth, motion, k, k_target)
    in_front = z > 0  # the published code also draws points that are behind the camera
    warped, mask = splat(frames, u, v, depth_weight(z) * in_front)
    return warped.masked_fill_(~mask[:, None], -1), mask


def double_warp(frames, depth, motion, k, k_target=None):
    """Warp to the moved camera and back; holes are -1.

    This is the source view, showing only what the moved camera saw too.
    """
    u, v, z = reproject(depth, motion, k, k_target)
    grid_u, grid_v = pixel_grid(*depth.shape[1:], depth.device)
    flow = torch.stack([u - grid_u, v - grid_v], 1)
    payload = torch.cat([frames, flow], 1)
    seen, seen_mask = splat(payload, u, v, depth_weight(z) * (z > 0))
    # As published, a pixel of the target view is weighed on its way back by the source's depth map
    # at the same place. Where that is unknown, it counts as the farthest.
    farthest = depth.amax((1, 2), keepdim=True)
    weight = depth_weight(torch.where(depth > 0, depth, farthest)) * seen_mask
    back, mask = splat(seen[:, :3], grid_u - seen[:, 3], grid_v - seen[:, 4], weight)
    return back.masked_fill_(~mask[:, None], -1), mask


def dilate_holes(frames, mask):
    """Grow the holes by a 5 x 5 box: those pixels become holes too."""
    height, width = mask.shape[1:]
    known = F.pad(mask, (REACH, REACH, REACH, REACH), value=True)
    across = known[:, :, :width].clone()
    for i in range(1, 2 * REACH + 1):
        across &= known[:, :, i : i + width]
    mask = across[:, :height].clone()
    for i in range(1, 2 * REACH + 1):
        mask &= across[:, i : i + height]
    return frames.masked_fill(~mask[:, None], -1), mask


def render(mode, frames, depth, motion, k, k_target=None):
    """What training ("train") or inference ("eval") sees: frames and mask.

    train: there and back. eval: there, with the holes grown.
    """
    if mode == "train":
        return double_warp(frames, depth, motion, k, k_target)
    return dilate_holes(*forward_warp(frames, depth, motion, k, k_target))


def cut_edges(depth, threshold):
    """Depth [B, H, W] made unknown (0) at the edges of things.

    An edge is where the farthest depth around a pixel is over 1 + threshold times the nearest. Such
    pixels lie between a silhouette and what is behind it, belong to neither, and would print as
    speckle.
    """
    padded = F.pad(depth[:, None], (1, 1, 1, 1), mode="replicate")
    farthest = F.max_pool2d(padded, 3, 1)[:, 0]
    nearest = -F.max_pool2d(-padded, 3, 1)[:, 0]
    return depth.masked_fill(farthest > (1 + threshold) * nearest, 0)
