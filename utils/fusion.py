"""Filling the holes of a render with what other frames of the video saw there.

Only surfaces that stand still are used. Tensors are those of utils/warp.py, for J reference frames
spread over the video: frames [J, 3, H, W] in [-1, 1], depth [J, H, W], 0 where unknown, c2w float64
[J, 4, 4], camera to world, K float64 [J, 3, 3].

    views = frames, fusion.static_depth(frames, depth, c2w, k), c2w, k
    render, mask = fusion.fill(render, mask, fusion.z_buffer(...), views, target_c2w, k_target)
"""

from itertools import permutations

import torch
import torch.nn.functional as F

from utils import warp

DEPTH_TOLERANCE = 0.03  # relative; two depths this close are the same surface
COLOUR_TOLERANCE = 0.12  # of [-1, 1]; how far a colour may lie outside its 3 x 3 neighbours' range
EDGE = 0.1  # relative range of depth in a 3 x 3 neighbourhood that makes it the edge of something
AGREEING = 2  # reference frames that must show the same surface
DISAGREEING = 0.1  # noise: the frames that may show that it moved, for each one that agrees
NEARBY = 0.05  # the same for a pixel's surroundings: outlines betray an even patch that moves ...
REACH = 1 / 40  # ... to either side, a share of the height: 4 pixels of 160
SPREAD = 0.15  # of [-1, 1]; deviation among averaged colours beyond which the light has changed
SUPPORT = 5  # of the 3 x 3 pixels about a filled one that must be seen at about its depth


def static_depth(frames, depth, c2w, k):
    """The depth, set to 0 where the other reference frames do not show that it stands still.

    Each pixel is looked up in the other frames. Where something nearer hides it, that says nothing.
    Elsewhere depth and colour must agree. To see farther through it, or its depth in another
    colour, is evidence that it moved.
    """
    low, high = ranges(frames, depth)
    agree = torch.zeros_like(depth)
    moved = torch.zeros_like(depth)
    for a, b in permutations(range(len(depth)), 2):
        motion = torch.linalg.inv(c2w[b]) @ c2w[a]
        view = depth[a : a + 1], motion[None], k[a : a + 1], k[b : b + 1]
        u, v, z = warp.reproject(*view)
        yes, no = evidence(torch.cat([frames[a], z]), u[0], v[0], low[b], high[b])
        agree[a] += yes
        moved[a] += no
    still = (agree >= AGREEING) & (moved <= DISAGREEING * agree)
    still &= surroundings(moved) <= NEARBY * surroundings(agree)
    even = high[:, 3] < low[:, 3] * (1 + EDGE)
    return depth.where(still & even, 0)


def surroundings(x):
    """Mean over the box that reaches REACH to every side, zeros beyond the borders."""
    n = max(1, round(REACH * x.shape[1]))
    across = F.avg_pool2d(x, (1, 2 * n + 1), 1, (0, n))
    return F.avg_pool2d(across, (2 * n + 1, 1), 1, (n, 0))


def ranges(frames, depth):
    """Least and largest colour and known depth in every 3 x 3 neighbourhood, each [J, 4, H, W].

    Where no depth is known, they are inf and 0.
    """
    low = torch.cat([frames, depth.where(depth > 0, torch.inf)[:, None]], 1)
    high = torch.cat([frames, depth[:, None]], 1)
    return -F.max_pool2d(-low, 3, 1, 1), F.max_pool2d(high, 3, 1, 1)


def evidence(pixels, u, v, low, high):
    """What another frame says of pixels that land on it: whether it sees them, whether they moved.

    pixels [4, H, W]: colour and z. u, v [H, W]: where they land. low, high [4, H, W]: the ranges of
    the other frame. Returns two bool [H, W].
    """
    height, width = u.shape
    z = pixels[3]
    inside = (z > 0) & (u > -0.5) & (u < width - 0.5) & (v > -0.5) & (v < height - 0.5)
    at = (v.round() * width + u.round()).where(inside, 0).long()
    low = low.flatten(1)[:, at]  # [4, H, W]
    high = high.flatten(1)[:, at]
    same = (z > low[3] * (1 - DEPTH_TOLERANCE)) & (z < high[3] * (1 + DEPTH_TOLERANCE))
    same &= inside & (high[3] < low[3] * (1 + EDGE))
    coloured = (pixels > low - COLOUR_TOLERANCE) & (pixels < high + COLOUR_TOLERANCE)
    coloured = coloured[:3].all(0)
    through = inside & (high[3] > 0) & (z < low[3] * (1 - DEPTH_TOLERANCE))
    return same & coloured, through | (same & ~coloured)


def z_buffer(depth, motion, k, k_target=None):
    """z [B, H, W] of what lands on each pixel of the target view, 0 where nothing does."""
    u, v, z = warp.reproject(depth, motion, k, k_target)
    seen, _ = warp.splat(z[:, None], u, v, warp.depth_weight(z) * (z > 0))
    return seen[:, 0]


def fill(render, mask, z, views, target_c2w, k_target):
    """Fill holes of renders [B, 3, H, W] from the views: (render, mask).

    Pixels known before stay bit for bit the same. views: the reference frames (frames,
    static_depth, c2w, K). z [B, H, W]: the z_buffer of each render's own frame; nothing is filled
    in that lies behind it. target_c2w [B, 4, 4], k_target [B, 3, 3]: the renders' cameras.
    """
    renders = []
    masks = []
    for i in range(len(render)):
        filled = fill_one(render[i], mask[i], z[i], views, target_c2w[i], k_target[i])
        renders.append(filled[0])
        masks.append(filled[1])
    return torch.stack(renders), torch.stack(masks)


def fill_one(render, mask, z, views, target_c2w, k_target):
    if mask.all():
        return render, mask
    colour, nearest, sure = merge(*splat_views(views, target_c2w, k_target))
    behind = (z > 0) & (nearest > z * (1 + DEPTH_TOLERANCE))
    new = ~mask & sure & ~behind & supported(nearest)
    return torch.where(new, colour, render), mask | new


def splat_views(views, target_c2w, k_target):
    """What each reference frame shows from the target camera.

    Returns colour [J, 3, H, W] and z [J, H, W], inf where nothing is seen.
    """
    colours = []
    depths = []
    for frame, depth, c2w, k in zip(*views, strict=True):
        motion = torch.linalg.inv(target_c2w) @ c2w[None]
        u, v, z = warp.reproject(depth[None], motion, k[None], k_target)
        payload = torch.cat([frame[None], z[:, None]], 1)
        seen, hit = warp.splat(payload, u, v, warp.depth_weight(z) * (z > 0))
        colours.append(seen[:, :3])
        depths.append(seen[:, 3].where(hit, torch.inf))
    return torch.cat(colours), torch.cat(depths)


def merge(colour, z):
    """The nearest surface of all views: mean colour, z, and whether its colour is sure.

    It is sure where the views that show it agree on it.
    """
    nearest = z.amin(0)
    share = (z <= nearest * (1 + DEPTH_TOLERANCE)) & (z < torch.inf)
    share = share / share.sum(0).clamp_min(1)  # [J, H, W]
    mean = (colour * share[:, None]).sum(0)
    square = (colour.square() * share[:, None]).sum(0)
    agreed = (square - mean.square()).amax(0) < SPREAD**2
    return mean, nearest, (nearest < torch.inf) & agreed


def supported(z):
    """Whether enough of the 3 x 3 pixels about each have its z: it is no speck seen in a crack."""
    height, width = z.shape
    padded = F.pad(z[None], (1, 1, 1, 1), mode="replicate")[0]
    near = [padded[y : y + height, x : x + width] for y in range(3) for x in range(3)]
    return ((torch.stack(near) / z - 1).abs() < EDGE).sum(0) >= SUPPORT
