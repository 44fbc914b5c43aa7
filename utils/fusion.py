"""Filling the holes of a render with what other frames of the video saw there of surfaces that stand still.

Tensors are those of utils/warp.py, for J reference frames spread over the video: frames [J, 3, H, W] in [-1, 1], depth
[J, H, W], 0 where unknown, c2w float64 [J, 4, 4], camera to world, K float64 [J, 3, 3].

    views = frames, fusion.static_depth(frames, depth, c2w, k), c2w, k
    render, mask = fusion.fill(render, mask, fusion.z_buffer(...), views, target_c2w, k_target)
"""

from itertools import permutations

import torch
import torch.nn.functional as F

from utils import warp

DEPTH_TOLERANCE = 0.03  # relative; two depths this close are the same surface
COLOUR_TOLERANCE = 0.12  # of [-1, 1]; what a colour may lie outside the range of a pixel's 3 x 3 neighbourhood
EDGE = 0.1  # relative range of depth in a 3 x 3 neighbourhood that makes it the edge of something
AGREEING = 2  # reference frames that must show the same surface
DISAGREEING = 0.1  # for each agreeing one, that may show that it moved: noise
NEARBY = 0.05  # the same for the pixel's surroundings, where outlines and texture betray an even patch that moves ...
REACH = 1 / 40  # ... to either side, a share of the height: 4 pixels of 160
SPREAD = 0.15  # of [-1, 1]; deviation among the colours that are averaged, beyond which the light there has changed
SUPPORT = 5  # of the 3 x 3 pixels about a filled one that must be seen at about its depth


def static_depth(frames, depth, c2w, k):
    """The depth, set to 0 wherever the other reference frames do not show that the surface stands still.

    Each pixel is looked up in the other frames. Where something nearer hides it, that says nothing. Elsewhere depth and
    colour must agree; to see farther through it, or its depth in another colour, is evidence that it moved.
    """
    low, high = ranges(frames, depth)
    agree, moved = torch.zeros_like(depth), torch.zeros_like(depth)
    for a, b in permutations(range(len(depth)), 2):
        motion = torch.linalg.inv(c2w[b]) @ c2w[a]
        u, v, z = warp.reproject(depth[a : a + 1], motion[None], k[a : a + 1], k[b : b + 1])
        yes, no = evidence(torch.cat([frames[a], z]), u[0], v[0], low[b], high[b])
        agree[a] += yes
        moved[a] += no
    near_agree, near_moved = surroundings(agree), surroundings(moved)
    still = (agree >= AGREEING) & (moved <= DISAGREEING * agree) & (near_moved <= NEARBY * near_agree)
    return depth.where(still & (high[:, 3] < low[:, 3] * (1 + EDGE)), 0)


def surroundings(x):
    """Mean over the box that reaches REACH to every side, zeros beyond the borders."""
    n = max(1, round(REACH * x.shape[1]))
    return F.avg_pool2d(F.avg_pool2d(x, (1, 2 * n + 1), 1, (0, n)), (2 * n + 1, 1), 1, (n, 0))


def ranges(frames, depth):
    """Least and largest colour and known depth in every 3 x 3 neighbourhood, each [J, 4, H, W]; inf, 0 if unknown."""
    low = torch.cat([frames, depth.where(depth > 0, torch.inf)[:, None]], 1)
    high = torch.cat([frames, depth[:, None]], 1)
    return -F.max_pool2d(-low, 3, 1, 1), F.max_pool2d(high, 3, 1, 1)


def evidence(pixels, u, v, low, high):
    """Whether colour and z [4, H, W] that land at (u, v) of another frame are seen there, and whether they are gone."""
    height, width = u.shape
    inside = (pixels[3] > 0) & (u > -0.5) & (u < width - 0.5) & (v > -0.5) & (v < height - 0.5)
    at = (v.round() * width + u.round()).where(inside, 0).long()
    low, high = low.flatten(1)[:, at], high.flatten(1)[:, at]  # [4, H, W]
    same = (pixels[3] > low[3] * (1 - DEPTH_TOLERANCE)) & (pixels[3] < high[3] * (1 + DEPTH_TOLERANCE))
    same &= inside & (high[3] < low[3] * (1 + EDGE))
    coloured = ((pixels > low - COLOUR_TOLERANCE) & (pixels < high + COLOUR_TOLERANCE))[:3].all(0)
    through = inside & (high[3] > 0) & (pixels[3] < low[3] * (1 - DEPTH_TOLERANCE))
    return same & coloured, through | (same & ~coloured)


def z_buffer(depth, motion, k, k_target=None):
    """z [B, H, W] of what lands on each pixel of the target view, 0 where nothing does."""
    u, v, z = warp.reproject(depth, motion, k, k_target)
    return warp.splat(z[:, None], u, v, warp.depth_weight(z) * (z > 0))[0][:, 0]


def fill(render, mask, z, views, target_c2w, k_target):
    """Fill holes of renders [B, 3, H, W] from the views: (render, mask), pixels known before bit for bit the same.

    views: the reference frames (frames, static_depth, c2w, K). z [B, H, W]: the z_buffer of each render's own frame;
    nothing is filled in that lies behind it. target_c2w, k_target: the renders' cameras, [B, 4, 4] and [B, 3, 3].
    """
    filled = [fill_one(*one, views) for one in zip(render, mask, z, target_c2w, k_target, strict=True)]
    return tuple(torch.stack(x) for x in zip(*filled, strict=True))


def fill_one(render, mask, z, target_c2w, k_target, views):
    if mask.all():
        return render, mask
    colour, nearest, sure = merge(*splat_views(views, target_c2w, k_target))
    behind = (z > 0) & (nearest > z * (1 + DEPTH_TOLERANCE))
    new = ~mask & sure & ~behind & supported(nearest)
    return torch.where(new, colour, render), mask | new


def splat_views(views, target_c2w, k_target):
    """What each reference frame shows from the target camera: colour [J, 3, H, W], z [J, H, W], inf where nothing."""
    seen = [splat_view(*(x[None] for x in view), target_c2w, k_target) for view in zip(*views, strict=True)]
    return tuple(torch.cat(x) for x in zip(*seen, strict=True))


def splat_view(frame, depth, c2w, k, target_c2w, k_target):
    u, v, z = warp.reproject(depth, torch.linalg.inv(target_c2w) @ c2w, k, k_target)
    seen, hit = warp.splat(torch.cat([frame, z[:, None]], 1), u, v, warp.depth_weight(z) * (z > 0))
    return seen[:, :3], seen[:, 3].where(hit, torch.inf)


def merge(colour, z):
    """The nearest surface of all views: mean colour, z, and whether the views that show it agree on its colour."""
    nearest = z.amin(0)
    share = (z <= nearest * (1 + DEPTH_TOLERANCE)) & (z < torch.inf)
    share = share / share.sum(0).clamp_min(1)  # [J, H, W]
    mean, square = ((c * share[:, None]).sum(0) for c in (colour, colour.square()))
    return mean, nearest, (nearest < torch.inf) & ((square - mean.square()).amax(0) < SPREAD**2)


def supported(z):
    """Whether enough of the 3 x 3 pixels about each have its z: it is no speck seen through a crack."""
    height, width = z.shape
    near = F.pad(z[None], (1, 1, 1, 1), mode="replicate")[0]
    near = torch.stack([near[y : y + height, x : x + width] for y in range(3) for x in range(3)])
    return ((near / z - 1).abs() < EDGE).sum(0) >= SUPPORT
