"""Forward warping: unproject by depth, move the camera, splat with a soft z-buffer.

Tensors are float32 on any device: frames [B, 3, H, W] in [-1, 1], depth [B, H, W] (z in the depth map's unit, 0 where
unknown), motion [B, 4, 4] from source to target camera, K [B, 3, 3] in pixels. Masks are bool [B, H, W]. Pixel centres
lie at integer coordinates. The arithmetic is the published one, on which the published weights were trained.
"""

import functools

import torch
import torch.nn.functional as F

MAX_DEPTH = 1000.0  # of the z-buffer's depth weight
SHARPNESS = 50.0  # of the z-buffer: near surfaces weigh up to exp(50) times as much as far ones


def pixel_grid(height, width, device):
    """(u, v) of every pixel, each float32, broadcastable to [H, W]."""
    return torch.arange(width, device=device)[None].float(), torch.arange(height, device=device)[:, None].float()


def reproject(depth, motion, k):
    """Where each source pixel lands in the target view: (u', v', z'), each float32 [B, H, W].

    p = K (R depth K^-1 (u, v, 1) + t) is taken as depth (H (u, v, 1) + K t / depth) with H = I + K (R - I) K^-1 made in
    float64, so that a camera that does not move returns u and v exactly. z' is 0 where the depth is unknown.
    """
    motion, k = motion.double(), k.double()
    eye = torch.eye(3, dtype=torch.float64, device=k.device)
    h = (eye + k @ (motion[:, :3, :3] - eye) @ torch.linalg.inv(k)).float()[..., None, None]  # [B, 3, 3, 1, 1]
    kt = (k @ motion[:, :3, 3:]).float()[..., None]  # [B, 3, 1, 1]
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
    payload = torch.cat([values.transpose(0, 1), torch.ones_like(u)[None]]).flatten(1)  # [C + 1, B H W]
    canvas = payload.new_zeros(channels + 1, batch, height + 2, width + 2)  # with a border for what falls outside
    total, first = canvas.flatten(1), torch.arange(batch, device=u.device)[:, None, None] * canvas[0, 0].numel()
    columns = corners(u, width)
    for y, wy in corners(v, height):
        row, wy = y * (width + 2) + first, wy * weight
        for x, wx in columns:
            index = (row + x).view(1, -1).expand(channels + 1, -1)
            total.scatter_add_(1, index, payload * (wx * wy).flatten())
    total = canvas[:, :, 1:-1, 1:-1]
    mean = total[:channels] / total[channels].clamp_min(torch.finfo(total.dtype).tiny)
    return mean.transpose(0, 1), total[channels] > 0


def corners(at, size):
    """The two pixels beside a coordinate, (index on a canvas with a border of one, bilinear weight), each [B, H, W]."""
    at = at.nan_to_num(-1, size, -1).clamp_(-1, size) + 1
    return [(x.long(), (x - at).abs_().neg_().add_(1)) for x in (at.floor(), at.ceil())]


def forward_warp(frames, depth, motion, k):
    """The frames seen from the moved camera, and where they are known; holes are -1 (black)."""
    u, v, z = reproject(depth, motion, k)
    warped, mask = splat(frames, u, v, depth_weight(z) * (z > 0))  # points behind the camera are culled
    return warped.masked_fill(~mask[:, None], -1), mask


def double_warp(frames, depth, motion, k):
    """Warp to the moved camera and back: the source view showing only what the moved camera saw too; holes are -1."""
    u, v, z = reproject(depth, motion, k)
    grid_u, grid_v = pixel_grid(*depth.shape[1:], depth.device)
    payload = torch.cat([frames, torch.stack([u - grid_u, v - grid_v], 1)], 1)
    seen, seen_mask = splat(payload, u, v, depth_weight(z) * (z > 0))
    # As published, the way back weighs a pixel of the target view by the source's depth map at the same place.
    weight = depth_weight(depth) * seen_mask
    back, mask = splat(seen[:, :3], grid_u - seen[:, 3], grid_v - seen[:, 4], weight)
    return back.masked_fill(~mask[:, None], -1), mask


def dilate_holes(frames, mask):
    """Grow the holes by a 5 x 5 box: those pixels become holes too."""
    known = F.pad(mask, (2, 2, 2, 2), value=True)
    height, width = mask.shape[1:]
    rows = functools.reduce(torch.logical_and, (known[:, i : i + height] for i in range(5)))
    mask = functools.reduce(torch.logical_and, (rows[:, :, i : i + width] for i in range(5)))
    return frames.masked_fill(~mask[:, None], -1), mask
