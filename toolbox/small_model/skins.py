"""Surfaces of every kind, as far as a random number reaches: colours, patterns, photographs.

A pattern is a function of points q [3, n] in its own units, of w [n], how wide a pixel is there,
and of luck, three numbers in [0, 1] that shape it. It returns [n], about [0, 1].
"""

if __name__ == "__main__":
    raise SystemExit("error: a module, not a program; toolbox/README.md lists the programs")

import colorsys
import math
from dataclasses import dataclass

import torch

from toolbox.small_model import photographs
from toolbox.synthetic import textures
from toolbox.synthetic.textures import Texture, edge, fine, noise, noise_values, pulse

MOODS = ("cube", "cube", "vivid", "vivid", "corner", "pale", "dark", "grey", "earth")


@dataclass(frozen=True)
class Skin(Texture):
    """A Texture of two to five `colours`, or of two other skins, that a pattern blends."""

    luck: tuple[float, float, float] = (0.5, 0.5, 0.5)
    angle: float = 0.0  # by which the pattern is turned
    stretch: tuple[float, float, float] = (1.0, 1.0, 1.0)
    radius: float = 0.0  # of what it is wrapped around [m]; 0: folded over the faces of a box
    grain: float = 0.0  # amplitude of a fine unevenness
    sides: tuple[Texture, ...] = ()

    def paint(self, p, n, w):
        """As of Texture."""
        q, wide = self.plan(p, n, w)
        if self.pattern == "photo":
            colour = photographs.sample(int(1000 * self.luck[0]), q[:2], wide)
            colour = recolour(colour, self.luck[1])
        else:
            blend = PATTERNS[self.pattern](q, wide, self.luck).clamp(0, 1)
            if self.sides:
                first, second = self.sides
                colour = torch.lerp(first.paint(p, n, w), second.paint(p, n, w), blend)
            else:
                colour = ramp(textures.linear(self.colours, p), blend)
        if self.grain:
            colour = colour * (1 + self.grain * textures.fbm(8 * q, 8 * wide, 2))
        return colour

    def plan(self, p, n, w):
        """Points and pixels' widths in the pattern's units."""
        if self.pattern in FLAT:
            p = unwrap(p, self.radius) if self.radius else unfold(p, n)
        s = math.sin(self.angle)
        c = math.cos(self.angle)
        q = torch.stack([c * p[0] + s * p[1], c * p[1] - s * p[0], p[2]]) / self.scale
        q = q * q.new_tensor(self.stretch)[:, None] + q.new_tensor(self.shift)[:, None]
        return q, w * (max(self.stretch[:2]) / self.scale)


def unfold(p, n):
    """x and y down on the faces of a box, and which face it is."""
    u, up = textures.face(p, n)
    side = (n * n.new_tensor([[3.0], [5], [7]])).sum(0).round()
    return torch.stack([u, -up, side])


def unwrap(p, radius):
    """x around the vertical, `radius` to a radian, y down, and 0."""
    return torch.stack([torch.atan2(p[0], -p[2]) * radius, p[1], 0 * p[0]])


def ramp(colours, blend):
    """Colours [3, 1] in a row, the first at 0 and the last at 1: [3, n]."""
    table = torch.cat(colours, 1)
    at = blend * (len(colours) - 1)
    low = at.long().clamp_max(len(colours) - 2)
    return torch.lerp(table[:, low], table[:, low + 1], at - low)


def recolour(colour, luck):
    """A photograph as it is, or with its channels exchanged, or as its own negative."""
    if luck < 0.6:
        return colour
    if luck < 0.85:
        return colour.roll(1 + (luck < 0.72), 0)
    return (1 - colour).clamp_min(0) ** 2.2


# ---- patterns ------------------------------------------------------------------------------------


def white(cell):
    """A random number [n] in [0, 1] for whole numbers [3, n]; it repeats after 32."""
    i, j, k = (cell.long() % 32).unbind(0)
    return noise_values(cell.device)[0, 0, i, j, k]


def snap(x, w):
    """Whole numbers with borders of width w between them."""
    near = x.round()
    return near - 1 + edge(x - near, w)


def hashed(q, w):
    """A random value for each unit cell, [n], with clean borders; grey where cells are too fine."""
    return torch.lerp(0 * w + 0.5, noise(snap(q, w[None].clamp_max(1))), fine(w))


def even(q, w, luck):
    return 0 * w


def gradient(q, w, luck):
    return (q[0] / 3 - 2 * (q[0] / 6).floor() - 1).abs()


def stripes(q, w, luck):
    return pulse(q[0], 0.15 + 0.7 * luck[0], w)


def bands(q, w, luck):
    return hashed(torch.stack([q[0], 0 * w + 7.0, 0 * w + round(31 * luck[0])]), w)


def checks(q, w, luck):
    odd = 1 - 2 * pulse(q[0], 0.5, w)
    return 0.5 - 0.5 * odd * (1 - 2 * pulse(q[1], 0.5, w))


def cubes(q, w, luck):
    return 0.5 + (0.5 - checks(q, w, luck)) * (1 - 2 * pulse(q[2] + 0.013, 0.5, w))


def lattice(q, w, luck):
    thick = 0.04 + 0.25 * luck[0]
    return torch.maximum(pulse(q[0], thick, w), pulse(q[1], thick, w))


def dots(q, w, luck):
    x = q[:2] - q[:2].round()
    return edge(0.1 + 0.4 * luck[0] - x.norm(dim=0), w)


def rings(q, w, luck):
    away = q[:2].norm(dim=0) if luck[1] < 0.5 else q.norm(dim=0)
    return pulse(away, 0.2 + 0.6 * luck[0], w)


def wedges(q, w, luck):
    count = 2 + int(8 * luck[0])
    away = q[:2].norm(dim=0).clamp_min(0.01)
    around = torch.atan2(q[0], q[1]) * count / (2 * math.pi)
    return pulse(around, 0.5, count * w / (2 * math.pi * away))


def waves(q, w, luck):
    bent = q[0] + 1.5 * luck[0] * noise(q * (0.3 + luck[1]))
    return 0.5 + 0.5 * torch.sin(2 * math.pi * bent) * fine(2 * w)


def quilt(q, w, luck):
    return hashed(q, w)


def fractal(q, w, luck):
    """Noise of a spectrum between smooth and white, with its mean at 0.5."""
    gain = 0.25 + 0.75 * luck[0]
    total = 0
    weights = 0
    for k in range(2 + int(3 * luck[1] + 0.5)):
        scale = 2**k
        value = noise(scale * q + 5.3 * k) - 0.5
        total = total + gain**k * value * (1.5 - 2 * scale * w).clamp(0, 1)
        weights += gain ** (2 * k)
    return 0.5 + total * (0.9 + luck[2]) / math.sqrt(weights)


def blots(q, w, luck):
    """Patches with hard borders."""
    return edge(fractal(q, w, (0.7 * luck[0], luck[1], 0)) - 0.3 - 0.4 * luck[2], w + 0.01)


def veins(q, w, luck):
    return 1 - (2 * fractal(q, w, luck) - 1).abs().clamp(0, 1) ** (0.3 + luck[2])


def cells(q, w, luck):
    """Around jittered points: the nearest one's value, a gap between them, or the distance."""
    first = 0 * w + 9  # distance to the nearest point
    second = 0 * w + 9  # and to the next
    value = 0 * w
    for k in range(9):
        x = q[0].floor() + k % 3 - 1
        y = q[1].floor() + k // 3 - 1
        cell = torch.stack([x, y, 0 * w])
        far = torch.hypot(q[0] - x - white(cell), q[1] - y - white(cell + 9))
        value = torch.where(far < first, white(cell + 5), value)
        second = torch.minimum(second, torch.maximum(first, far))
        first = torch.minimum(first, far)
    if luck[0] < 0.3:
        return first
    if luck[0] < 0.6:
        return edge(second - first - 0.05 - 0.1 * luck[1], w + 0.02)
    return torch.lerp(0 * w + 0.5, value, fine(w))


def bricks(q, w, luck):
    row = q[1].floor()
    u = q[0] / (1 + 3 * luck[0]) + row * (0.5 if luck[1] < 0.6 else 0.37)
    gap = torch.maximum(pulse(q[1], 0.05 + 0.1 * luck[2], w), pulse(u, 0.04, w / 2))
    tone = 0.4 + 0.6 * white(torch.stack([u.floor(), row, 0 * row]))
    return tone * (1 - gap)


def writing(q, w, luck):
    """Lines of words; a letter is some of seven strokes."""
    row = q[1].floor()
    u = q[0] * (1.2 + luck[0])
    cell = torch.stack([u.floor(), row, 0 * w + round(31 * luck[1])])
    x = u - cell[0]
    y = (q[1] - row) / 0.75
    ink = 0 * w
    thick = 0.06 + 0.08 * luck[2]
    for k in range(3):
        level = thick - (y - 0.2 - 0.3 * k).abs()
        across = torch.minimum(level, 0.38 - (x - 0.45).abs())
        ink = torch.maximum(ink, edge(across, w) * (white(cell + 3 + k) < 0.55))
        post = thick - (x - 0.15 - 0.3 * k).abs()
        upright = torch.minimum(post, 0.32 - (y - 0.5).abs())
        ink = torch.maximum(ink, edge(upright, w) * (white(cell + 9 + k) < 0.5))
    slant = torch.minimum(thick - (x - y).abs(), 0.32 - (y - 0.5).abs())
    ink = torch.maximum(ink, edge(slant, w) * (white(cell + 15) < 0.25))
    letter = (white(cell) > 0.18) & (y < 1)
    return torch.lerp(0 * w + 0.2, ink * letter, fine(w))


PATTERNS = {
    "even": even, "gradient": gradient, "stripes": stripes, "bands": bands, "checks": checks,
    "cubes": cubes, "lattice": lattice, "dots": dots, "rings": rings, "wedges": wedges,
    "waves": waves, "quilt": quilt, "fractal": fractal, "blots": blots, "veins": veins,
    "cells": cells, "bricks": bricks, "writing": writing,
}
FLAT = {"checks", "lattice", "dots", "wedges", "quilt", "cells", "bricks", "writing", "photo"}
TWO = {"stripes", "checks", "cubes", "lattice", "dots", "rings", "wedges", "blots", "writing"}
PLAIN = ("even", "even", "gradient", "fractal")
ROOM = ("planks", "paper", "paint", "marble", "speckle")  # of textures.PATTERNS


# ---- drawn at random -----------------------------------------------------------------------------


def random_colour(rng, mood):
    """sRGB as six hexadecimal digits."""
    hue = rng.random()
    if mood == "cube":
        rgb = rng.random(), rng.random(), rng.random()
    elif mood == "corner":
        rgb = rng.choice((0.0, 1.0)), rng.choice((0.0, 0.5, 1.0)), rng.choice((0.0, 1.0))
    elif mood == "vivid":
        rgb = colorsys.hsv_to_rgb(hue, rng.uniform(0.7, 1), rng.uniform(0.6, 1))
    elif mood == "pale":
        rgb = colorsys.hsv_to_rgb(hue, rng.uniform(0, 0.3), rng.uniform(0.75, 1))
    elif mood == "dark":
        rgb = colorsys.hsv_to_rgb(hue, rng.random(), rng.uniform(0, 0.3))
    elif mood == "grey":
        rgb = (rng.random(),) * 3
    else:
        rgb = colorsys.hsv_to_rgb(rng.gauss(0.1, 0.06) % 1, rng.uniform(0.1, 0.6),
                                  rng.uniform(0.2, 0.9))
    return "".join(f"{round(255 * v):02x}" for v in rgb)


def random_colours(rng, count, mood=None):
    """`count` colours of one mood, or each of its own."""
    found = []
    for _ in range(count):
        found.append(random_colour(rng, mood or rng.choice(MOODS)))
    return " ".join(found)


def random_shift(rng):
    return rng.uniform(0, 32), rng.uniform(0, 32), rng.uniform(0, 32)


def random_skin(rng, size, radius=0.0, mood=None, depth=1, plain=0.35):
    """A skin for something `size` metres large. plain: the share of even or nearly even ones."""
    scale = size * math.exp(rng.uniform(math.log(0.08), math.log(1.5)))
    gloss = rng.choice((0.0, 0.0, 0.1, 0.4, 0.8))
    grain = rng.choice((0.0, 0.0, 0.0, 0.1, 0.4))
    luck = (rng.random(), rng.random(), rng.random())
    style = rng.random()
    centred = (0.0, 0.0, 0.0) if rng.random() < 0.5 else random_shift(rng)
    shape = dict(shift=centred, gloss=gloss, luck=luck, grain=grain, radius=radius)
    if style < plain:
        pattern = rng.choice(PLAIN)
        return Skin(pattern, random_colours(rng, rng.choice((2, 3)), mood), 2 * scale,
                    angle=rng.uniform(0, 6.3), **shape)
    if style < plain + 0.16:
        scale = size * rng.uniform(0.7, 3)
        return Skin("photo", "", scale, angle=rng.choice((0, 0, rng.uniform(0, 6.3))), **shape)
    if style < plain + 0.22:
        colours = random_colours(rng, 3, mood)
        return Texture(rng.choice(ROOM), colours, scale, random_shift(rng), gloss)
    pattern = rng.choice(list(PATTERNS)[1:])
    shape["angle"] = rng.choice((0, math.pi / 2, rng.uniform(0, 6.3)))
    shape["stretch"] = rng.choice(((1.0, 1.0, 1.0), (1.0, rng.uniform(0.2, 1), 1.0)))
    if depth and pattern in TWO and rng.random() < 0.3:
        sides = tuple(random_skin(rng, size, radius, mood, 0, 0.7) for _ in range(2))
        return Skin(pattern, "", scale, sides=sides, **shape)
    count = 2 if pattern in TWO else rng.choice((2, 2, 3, 5))
    return Skin(pattern, random_colours(rng, count, mood), scale, **shape)
