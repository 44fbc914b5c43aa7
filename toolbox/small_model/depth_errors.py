"""The errors that depth estimators make, for depth that is known exactly.

Depth is float32 [F, H, W], in metres. All numbers are drawn on the CPU, so that one seed means the
same errors on every device.
"""

if __name__ == "__main__":
    raise SystemExit("error: a module, not a program; toolbox/README.md lists the programs")

import torch
import torch.nn.functional as F

from toolbox.synthetic import clips

WAVES = 0.04  # the largest error of the smooth field that a scene may have, as a share of depth
FLICKER = 0.015  # and of a frame as a whole
REACH = 6  # pixels from an edge within which depth may be mixed from both of its sides


def estimate(depth, rng):
    """Depth as an estimator might give it, [F, H, W]. rng: random.Random.

    Every value is within 1 +- (WAVES + FLICKER) of some value between the least and the largest
    true depth at most REACH pixels away.
    """
    draw = torch.Generator().manual_seed(rng.randrange(2**31))
    depth = soften(depth, rng)
    if rng.random() < 0.7:
        depth = fly(depth, rng.uniform(0.05, 0.5), draw)
    share = wave_field(depth.shape, rng.uniform(0.1, 1) * WAVES, draw)
    share = share + flicker(len(depth), rng.random() ** 2 * FLICKER, draw)
    return depth * (1 + share.to(depth))


def soften(depth, rng):
    """Edges blurred in inverse depth, or made at half the size, or a pixel too wide; or neither."""
    kind = rng.choice(("blur", "blur", "half", "wide", "sharp"))
    inverse = 1 / depth
    if kind == "blur":
        sigma = rng.uniform(0.4, 1.3)
        inverse = clips.blur(inverse[..., None].expand(-1, -1, -1, 3), sigma)[..., 0]
    elif kind == "half":
        small = F.avg_pool2d(inverse[:, None], 2, ceil_mode=True)
        inverse = F.interpolate(small, size=depth.shape[1:], mode="bilinear")[:, 0]
    elif kind == "wide":
        inverse = F.max_pool2d(inverse[:, None], 3, 1, 1)[:, 0]
    return 1 / inverse


def fly(depth, share, draw):
    """A share of the pixels beside edges float between the two sides."""
    near = -F.max_pool2d(-depth[:, None], 3, 1, 1)[:, 0]
    far = F.max_pool2d(depth[:, None], 3, 1, 1)[:, 0]
    pick = torch.rand(depth.shape, generator=draw).to(depth)
    between = torch.lerp(near, far, torch.rand(depth.shape, generator=draw).to(depth))
    return torch.where((far > 1.1 * near) & (pick < share), between, depth)


def wave_field(shape, most, draw):
    """A smooth field in [-most, most] that changes slowly in time, float32 [F, H, W]."""
    coarse = 2 * torch.rand(1, 1, 3, 4, 6, generator=draw) - 1
    return most * F.interpolate(coarse, size=shape, mode="trilinear", align_corners=True)[0, 0]


def flicker(frames, most, draw):
    """An error of every frame as a whole, in [-most, most], float32 [F, 1, 1]."""
    return most * (2 * torch.rand(frames, 1, 1, generator=draw) - 1)
