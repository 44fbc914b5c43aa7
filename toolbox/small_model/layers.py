"""Moving layers, "dead leaves": stretches of video for the VAE that need no ray tracing.

Discs, polygons, bands and marks with fills of every kind lie over each other. Each moves, turns
and grows smoothly, nearer ones farther as the camera moves. Holes are like a warp's: strips at the
layers' edges and at the picture's, and cracks; in half of the clips they are grown, as
data_gen.py --mode eval grows them. Clips that are made together share the kinds of their layers and
differ in all numbers.

Places on the picture are in heights of it, from its centre, x and y down.
"""

if __name__ == "__main__":
    raise SystemExit("error: a module, not a program; toolbox/README.md lists the programs")

import math
from dataclasses import dataclass
from random import Random
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from toolbox.small_model import photographs, skins
from toolbox.synthetic import clips
from toolbox.synthetic.textures import edge, noise
from utils import warp

AT_ONCE = 8  # clips made together
MOST = 12  # layers of a clip
SHAPES = ("disc", "disc", "box", "box", "polygon", "polygon", "band", "blob", "ring")
MARKS = ("dots", "blots", "writing", "lattice", "stripes")  # patterns that are layers themselves
NUMBERS = 40  # random numbers of a layer or of a camera
REACH = 0.12  # of the camera's step to the side, which opens the holes [heights]


class Camera(NamedTuple):
    """How the camera moves, each [B, F] or [B, F, 2]."""

    pan: Tensor
    zoom: Tensor  # log of it
    roll: Tensor
    step: Tensor  # to the side of where it films from, for the holes


@dataclass
class Layer:
    """One layer of all clips: q = turn @ place + shift are its own units, a pixel `wide` there."""

    turn: Tensor  # [B, F, 2, 2]
    shift: Tensor  # [B, F, 2]
    wide: Tensor  # [B, F, 1, 1]
    near: Tensor  # [B, 1]: how far it moves with the camera
    u: Tensor  # [B, NUMBERS] in [0, 1]


def random_stretches(seed, count, shape, device):
    """uint8 [count, F, H, W, 3], two thirds with holes in black; shape: (F, H, W).

    The same on every call with one seed on one device.
    """
    made = []
    for start in range(0, count, AT_ONCE):
        rgb, holes = random_layers(f"{seed} {start}", min(AT_ONCE, count - start), shape, device)
        for i in range(len(rgb)):
            holed = rgb[i].masked_fill(holes[i, ..., None], 0)
            made.append(holed if (start + i) % 3 else rgb[i])
    return torch.stack(made)


def random_layers(seed, count, shape, device):
    """(rgb uint8 [count, F, H, W, 3], 1 at least; holes bool [count, F, H, W]) of moving layers."""
    rng = Random(f"layers {seed}")
    draw = torch.Generator().manual_seed(rng.randrange(2**31))
    u = torch.rand(count, MOST + 1, NUMBERS, generator=draw).to(device)
    place = places(*shape[1:], device)
    camera = make_camera(rng, u[:, MOST], shape[0])
    back = make_layer(rng, u[:, 0], camera, shape, size=1.0)
    picture = fill(rng, back, place)
    holes = torch.zeros_like(picture[:, 0], dtype=torch.bool)
    soft = rng.choice((0.5, 1.0, 1.0, 2.0))
    for k in range(1, rng.choice((3, 5, 8, MOST))):
        layer = make_layer(rng, u[:, k], camera, shape, size=math.exp(rng.uniform(-3.2, -0.7)))
        outline = rng.choice(MARKS if rng.random() < 0.15 else SHAPES)
        luck = (rng.random(), rng.random(), rng.random())
        cover = opacity(outline, layer, place, luck, soft)
        aside = (layer.near - back.near)[..., None] * camera.step
        hidden = opacity(outline, layer, place, luck, soft, aside)
        holes = (holes | (hidden > 0.5)) & (cover <= 0.5)
        picture = torch.lerp(picture, fill(rng, layer, place), cover[:, None])
    grown = rng.random() < 0.5
    holes = holes | border(place, camera) | cracks(rng, u[:, MOST], place, camera, grown)
    if grown:
        holes = F.max_pool2d(holes.float(), 2 * warp.REACH + 1, 1, warp.REACH) > 0
    rgb = picture.permute(0, 2, 3, 4, 1).flatten(0, 1)  # [B F, H, W, 3]
    rgb = clips.blur(rgb, rng.choice((0, 0, 0.4, 0.7)))
    rgb = (rgb * 255).round().clamp(1, 255).byte()
    return rgb.unflatten(0, (count, shape[0])), holes


def places(height, width, device):
    """(x [1, W], y [H, 1]) of all pixels."""
    x = (torch.arange(width, device=device) - (width - 1) / 2) / height
    y = (torch.arange(height, device=device) - (height - 1) / 2) / height
    return x[None], y[:, None]


# ---- motion --------------------------------------------------------------------------------------


def path(u, t, most):
    """A smooth way from 0 on, about as far as `most`: [B, F]; u [B, 3] in [0, 1], t [F]."""
    line = (2 * u[:, :1] - 1) * t
    phase = 2 * math.pi * u[:, 1:2]
    wave = torch.sin(2 * math.pi * t + phase) - torch.sin(phase)
    return most * (line + 0.4 * (2 * u[:, 2:] - 1) * wave)


def make_camera(rng, u, frames):
    """Camera whose moves are drawn from u [B, NUMBERS]."""
    t = torch.linspace(0, 1, frames, device=u.device)
    fast = rng.choice((0.0, 0.1, 0.2, 0.5))
    pan = torch.stack([path(u[:, 0:3], t, fast), path(u[:, 3:6], t, 0.6 * fast)], -1)
    zoom = path(u[:, 6:9], t, rng.choice((0.0, 0.1, 0.4)))
    roll = path(u[:, 9:12], t, rng.choice((0.0, 0.05, 0.3)))
    aside = (2 * u[:, None, 12:14] - 1) * u.new_tensor([1, 0.4])
    grows = rng.choice((1 + 0 * t, t, 1 - t))
    return Camera(pan, zoom, roll, REACH * aside * grows[:, None])


def make_layer(rng, u, camera, shape, size):
    """A Layer of about `size` heights at a random place."""
    t = torch.linspace(0, 1, shape[0], device=u.device)
    near = 0.2 + 1.3 * u[:, :1]
    own = rng.choice((0.0, 0.0, 0.1, 0.4))
    x = 1.8 * (u[:, 1:2] - 0.5) + near * camera.pan[..., 0] + path(u[:, 4:7], t, own)
    y = 1.2 * (u[:, 2:3] - 0.5) + near * camera.pan[..., 1] + path(u[:, 7:10], t, own)
    angle = camera.roll + 6.3 * u[:, 3:4] + path(u[:, 10:13], t, rng.choice((0, 0, 0.5, 2)))
    growth = near * camera.zoom + path(u[:, 13:16], t, rng.choice((0, 0, 0.3)))
    scale = torch.exp(-growth + u[:, 16:17] - 0.5) / size
    c = angle.cos() * scale
    s = angle.sin() * scale
    turn = torch.stack([c, s, -s, c], -1).unflatten(-1, (2, 2))
    shift = -torch.stack([c * x + s * y, c * y - s * x], -1)
    return Layer(turn, shift, scale[..., None, None] / shape[1], near, u)


def units(layer, place, aside=None):
    """Places in the layer's units, two of [B, F, H, W]. aside [B, F, 2]: looked at beside them."""
    shift = layer.shift
    if aside is not None:
        shift = shift + (layer.turn * aside[..., None, :]).sum(-1)
    x, y = place
    turn = layer.turn[..., None, None]  # [B, F, 2, 2, 1, 1]
    shift = shift[..., None, None]
    first = turn[:, :, 0, 0] * x + turn[:, :, 0, 1] * y + shift[:, :, 0]
    return first, turn[:, :, 1, 0] * x + turn[:, :, 1, 1] * y + shift[:, :, 1]


# ---- shapes --------------------------------------------------------------------------------------


def number(layer, i):
    """The layer's random number i, for all pixels: [B, 1, 1, 1]."""
    return layer.u[:, i, None, None, None]


def opacity(outline, layer, place, luck, soft, aside=None):
    """How much the layer covers, [B, F, H, W] in [0, 1]; its edges are `soft` pixels wide."""
    q = units(layer, place, aside)
    if outline in MARKS:
        points = torch.stack([*q, 0 * q[0] + 9 * number(layer, 17)]).flatten(1)
        wide = layer.wide.expand_as(q[0]).flatten() * soft
        sheet = edge(torch.minimum(4 - q[0].abs(), 3 - q[1].abs()), layer.wide * soft)
        return skins.PATTERNS[outline](points, wide, luck).clamp(0, 1).view_as(q[0]) * sheet
    return edge(depth_inside(outline, layer, *q), layer.wide * soft)


def depth_inside(outline, layer, x, y):
    """How far points are inside the outline, negative outside, [B, F, H, W]."""
    thin = 0.15 + 0.85 * number(layer, 17)
    if outline == "box":
        return torch.minimum(1 - x.abs(), thin - y.abs())
    if outline == "band":
        return thin - y.abs()
    if outline == "polygon":
        inside = 2 - x.abs()
        for k in range(5):
            a = 2 * math.pi / 5 * (k + 0.9 * number(layer, 18 + k))
            inside = torch.minimum(inside, 0.4 + thin - a.cos() * x - a.sin() * y)
        return inside
    away = torch.hypot(x, y / thin) * thin.sqrt()
    if outline == "ring":
        return 0.3 * thin - (away - 0.8).abs()
    if outline == "blob":
        wobble = noise(torch.stack([1.7 * x, 1.7 * y, 0 * x + 31 * number(layer, 18)]).flatten(1))
        return 0.6 + 0.9 * (wobble.view_as(x) - 0.5) - away
    return 1 - away


# ---- fills ---------------------------------------------------------------------------------------


def fill(rng, layer, place):
    """The layer's sRGB colours [B, 3, F, H, W] in [0, 1]."""
    x, y = units(layer, place)
    scale = math.exp(rng.uniform(0.0, 2.5))
    kind = rng.choice(("even", "even", "even", "gradient", "photo", "photo", "fractal", "any",
                       "any"))
    luck = (rng.random(), rng.random(), rng.random())
    if kind == "photo":
        q = torch.stack([x, y]) / 2 + layer.u[:, 30:32].T[..., None, None, None]
        wide = (layer.wide / 2).expand_as(x)
        rgb = photographs.sample(rng.randrange(1000), q.flatten(1), wide.flatten())
        rgb = skins.recolour(rgb, luck[0]).clamp_min(1e-6) ** (1 / 2.2)
        return rgb.unflatten(1, x.shape).transpose(0, 1)
    pattern = rng.choice(list(skins.PATTERNS)) if kind == "any" else kind
    if pattern == "gradient":
        scale = 3.0 * rng.uniform(0.3, 1.5)
    colours = random_colours(rng, layer.u[:, 20:29])
    if pattern == "even":
        return colours[0].expand(-1, -1, *x.shape[1:])
    q = torch.stack([scale * x, scale * y, 0 * x + 31 * number(layer, 29)]).flatten(1)
    wide = (scale * layer.wide).expand_as(x).flatten()
    blend = skins.PATTERNS[pattern](q, wide, luck).clamp(0, 1).view_as(x)[:, None]
    if pattern in skins.TWO:
        return torch.lerp(colours[0], colours[1], blend)
    half = torch.lerp(colours[0], colours[1], (2 * blend).clamp_max(1))
    return torch.lerp(half, colours[2], (2 * blend - 1).clamp_min(0))


def random_colours(rng, u):
    """Three sRGB colours, each [B, 3, 1, 1, 1], from u [B, 9] in [0, 1]."""
    found = []
    for k in range(3):
        c = u[:, 3 * k : 3 * k + 3]
        mood = rng.choice(("cube", "cube", "corner", "vivid", "pale", "dark", "grey", "like"))
        if mood == "corner":
            c = c.round()
        elif mood == "vivid":
            low = c.amin(1, keepdim=True)
            c = (c - low) / (c.amax(1, keepdim=True) - low) * (0.6 + 0.4 * low)
        elif mood == "pale":
            c = 0.75 + 0.25 * c
        elif mood == "dark":
            c = 0.25 * c
        elif mood == "grey":
            c = c[:, :1].expand(-1, 3)
        elif mood == "like" and found:
            c = (found[-1] + 0.2 * (c - 0.5)).clamp(0, 1)
        found.append(c)
    return [c[..., None, None, None] for c in found]


# ---- holes ---------------------------------------------------------------------------------------


def border(place, camera):
    """What the camera did not see beside the picture: bool [B, F, H, W]."""
    x, y = place
    step = 0.7 * camera.step[..., None, None]
    high = y.max() + 0.5 / y.numel()
    wide = x.max() + 0.5 / y.numel()
    return ((x + step[:, :, 0]).abs() > wide) | ((y + step[:, :, 1]).abs() > high)


def cracks(rng, u, place, camera, few):
    """Lines and specks of one pixel in some regions: bool [B, F, H, W]. few: fewer specks only."""
    x, y = place
    pan = camera.pan[..., None, None]
    x = x + 0 * y + pan[:, :, 0]
    y = y + 0 * x + pan[:, :, 1]
    depth = 31 * u[:, 30, None, None, None]
    field = noise(torch.stack([3 * x, 3 * y, 0 * x + depth]).flatten(1)).view_as(x)
    region = field > rng.choice((0.6, 0.8, 0.9, 2.0))
    along = rng.choice((-1, -2))
    across = x if along == -1 else y
    other = y if along == -1 else x
    lines = (across + rng.uniform(-0.5, 0.5) * other) * place[1].numel() * rng.uniform(0.08, 0.35)
    lines = (lines + 4 * field).floor()
    crossed = lines.diff(dim=along, prepend=lines.narrow(along, 0, 1)) != 0
    draw = torch.Generator(x.device).manual_seed(rng.randrange(2**31))
    rate = rng.choice((0, 0.003, 0.02)) * (0.2 if few else 1)
    specks = torch.rand(x.shape, generator=draw, device=x.device) < rate
    return region & (specks if few else crossed | specks)
