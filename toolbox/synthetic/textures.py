"""Procedural solid textures: the colour of a point on a surface, from noise and a few patterns.

Points are [3, n], in the axes of the body they belong to, so that a texture moves and turns with
it. w [n] is how wide a pixel is there: what is finer than that fades out instead of aliasing.
"""

if __name__ == "__main__":
    raise SystemExit("error: a module, not a program; toolbox/README.md lists the programs")

import math
from dataclasses import dataclass
from functools import lru_cache

import torch
import torch.nn.functional as F


@dataclass(frozen=True)
class Texture:
    pattern: str
    colours: str  # three sRGB colours: two to blend and an accent
    scale: float  # metres to one unit of the pattern
    shift: tuple[float, float, float] = (0.0, 0.0, 0.0)  # where in the noise
    gloss: float = 0.0

    def paint(self, p, n, w):
        """Linear RGB [3, n] at p [3, n], as `colour`. Another kind of texture overrides it."""
        return colour(self, p, n, w)


def colour(texture, p, n, w):
    """Linear RGB [3, n] of a texture at p [3, n], facing n [3, n], both in its body's axes.

    w [n]: how many metres wide a pixel is there.
    """
    a, b, accent = linear(texture.colours, p)
    p = p / texture.scale
    shifted = p + p.new_tensor(texture.shift)[:, None]
    blend, mark, shade = PATTERNS[texture.pattern](p, shifted, n, w / texture.scale)
    return torch.lerp(torch.lerp(a, b, blend), accent, mark) * shade


def linear(colours, like):
    """Linear RGB [3, 1] of each sRGB colour."""
    rgb = [[(int(c[i : i + 2], 16) / 255) ** 2.2 for i in (0, 2, 4)] for c in colours.split()]
    return list(like.new_tensor(rgb)[..., None])


def face(p, n):
    """Coordinates on a box's face: x, z on top; along and up on a side."""
    u = torch.where(n[0].abs() > 0.5, p[2], p[0])
    return u, torch.where(n[1].abs() > 0.5, p[2], -p[1])


def smooth(x):
    x = x.clamp(0, 1)
    return x * x * (3 - 2 * x)


def edge(x, w):
    """0 where x < 0, 1 where x > 0, blurred over w."""
    return (x / w + 0.5).clamp(0, 1)


def pulse(x, duty, w):
    """Mean over w of the wave that is 1 on the first `duty` of every unit."""
    return (pulse_area(x + w / 2, duty) - pulse_area(x - w / 2, duty)) / w


def pulse_area(x, duty):
    """Area under that wave from 0 to x."""
    return x.floor() * duty + (x - x.floor()).clamp_max(duty)


@lru_cache
def noise_values(device):
    """Random values at 32^3 points, the first ones again at the end."""
    values = torch.rand(1, 1, 32, 32, 32, generator=torch.Generator().manual_seed(0))
    return F.pad(values, (0, 1) * 3, mode="circular").to(device)


def noise(p):
    """Smooth noise [n] in [0, 1] at p [3, n], white at whole numbers; it repeats after 32 units."""
    cell = p.floor()
    at = ((cell - 32 * (cell / 32).floor()) + smooth(p - cell)) / 16 - 1
    at = at.T[None, None, None]  # [1, 1, 1, n, 3]
    return F.grid_sample(noise_values(p.device), at, align_corners=True).flatten()


def fbm(p, w, octaves=3):
    """Sum of octaves of noise [n], about [-0.5, 0.5]; those finer than w fade out."""
    total = 0
    for k in range(octaves):
        fade = (1.5 - 2 * w * 2**k).clamp(0, 1) * 0.5**k
        total = total + fade * (noise(p * 2**k + 5.3 * k) - 0.5)
    return total


def fine(w):
    """1 where a unit is wide to see, 0 where it is less than two pixels."""
    return (1.5 - 2 * w).clamp(0, 1)


# A pattern takes p, p shifted and w in the texture's units, and the normal n. It returns how far to
# go to the second colour, how far to the accent, and a factor of the brightness, each [n].


def planks(p, q, n, w):
    u, v = face(q, n)
    row = v.floor()
    u = u / 9 + row * 0.38
    board = torch.stack([u.floor(), row, 0 * row])
    tone = noise(board)
    grain = fbm(torch.stack([u * 4, v * 5, tone * 31]), 5 * w)
    gap = torch.maximum(pulse(v + 0.015, 0.03, w), pulse(u, 0.003, w / 9))
    mark = (0.3 * grain).clamp_min(0) + 0.85 * gap
    return tone * 0.8 + grain * 0.9, mark, 0.8 + 0.4 * noise(board + 9)


def bricks(p, q, n, w):
    u, v = face(q, n)
    row = v.floor()
    u = u / 3.2 + row * 0.5
    mortar = torch.maximum(pulse(v, 0.14, w), pulse(u, 0.045, w / 3.2))
    return noise(torch.stack([u.floor(), row, 0 * row])), mortar, 1 + 0.5 * fbm(q * 2, 2 * w)


def paper(p, q, n, w):
    u, v = face(q, n)
    x, y = u % 1 - 0.5, v % 1 - 0.5
    flower = 0.2 + 0.1 * torch.cos(4 * torch.atan2(y, x)) - torch.hypot(x, y)
    return pulse(u, 0.5, w), 0.6 * edge(flower, w + 0.03), 1 + 0.08 * fbm(q * 6, 6 * w)


def paint(p, q, n, w):
    return 0.5 + fbm(q, w), 0.4 * fbm(q * 3, 3 * w).clamp_min(0), 1 + 0.1 * fbm(q * 14, 14 * w, 2)


def rug(p, q, n, w):
    """Lozenges inside a border; p[1] is the distance from the rug's edge."""
    a, b = p[0] + p[2], p[0] - p[2]
    field = edge(p[1] - 1, w)
    lattice = torch.maximum(pulse(a + 0.06, 0.12, w), pulse(b + 0.06, 0.12, w))
    hearts = pulse(a + 0.7, 0.4, w) * pulse(b + 0.7, 0.4, w)
    bands = edge(0.1 - ((p[1] - 0.6).abs() - 0.4).abs(), w)
    weave = 1 + 0.3 * fbm(q * 32, 32 * w, 2) + 0.3 * fbm(q * 2, 2 * w)
    blend = torch.lerp(torch.ones_like(w), 0.8 * lattice, field)
    return blend, torch.maximum(bands, 0.8 * field * hearts), weave


def marble(p, q, n, w):
    cloud = fbm(q * 1.5, 1.5 * w, 4)
    vein = torch.sin(4 * (q[0] + 0.8 * q[1] + 0.5 * q[2]) + 9 * cloud)
    thin = torch.sin(7 * (q[2] - 0.6 * q[0] + 0.3 * q[1]) + 12 * cloud)
    blend = (0.2 + 0.8 * cloud + 0.5 * (1 - thin.abs()) ** 3).clamp(0, 1)
    return blend, (1 - vein.abs()) ** 5, 1 + 0.4 * cloud


def stripes(p, q, n, w):
    return pulse(p[1] + 0.25, 0.5, w), pulse(p[1] + 0.02, 0.06, w), 1 + 0.1 * fbm(q * 12, 12 * w, 2)


def beach(p, q, n, w):
    around = torch.atan2(p[0], p[2]) * 4 / (2 * math.pi)
    wide = 4 * w / (2 * math.pi * torch.hypot(p[0], p[2]).clamp_min(0.01))
    poles = edge(p[1].abs() - 0.93, w)
    return pulse(around, 0.5, wide), poles, 1 + 0.06 * fbm(q * 12, 12 * w, 2)


def checks(p, q, n, w):
    odd = 1
    for v in 0.98 * p:  # off the faces of the box, where floor() would be undecided
        odd = odd * (1 - 2 * pulse(v, 0.5, w))
    return 0.5 - 0.5 * odd, 0 * w, 1 + 0.15 * fbm(q * 6, 6 * w, 2)


def speckle(p, q, n, w):
    cell = q.floor()
    size = noise(cell + 9)
    away = (q - cell - 0.5 - 0.2 * (noise(cell) - 0.5)).norm(dim=0)
    dot = edge(0.15 + 0.3 * size - away, w + 0.02)
    return dot, dot * (size > 0.6), 1 + 0.1 * fbm(q * 3, 3 * w, 2)


def crate(p, q, n, w):
    u, v = face(p, n)
    border = torch.maximum(u.abs(), v.abs()) - 0.78
    grain = fbm(torch.stack([1.5 * u, 16 * v, q[0].floor() + n[0]]), 16 * w)
    gap = pulse(2.5 * v + 0.03, 0.06, 2.5 * w) * (border < 0)
    gap = torch.maximum(gap, edge(0.03 - border.abs(), w))
    return 0.4 + 0.4 * edge(border, w) + grain, 0.8 * gap, 1 + 0.2 * grain


def books(p, q, n, w):
    """Shelves one unit apart."""
    u, v = face(p, n)
    row = v.floor()
    u = 6 * u + 0.6 * noise(torch.stack([6 * u, row, 0 * u]))
    book = torch.stack([u.floor(), row, 0 * u])
    gap = torch.maximum(pulse(u, 0.1, 6 * w), edge(v - row - 0.6 - 0.3 * noise(book + 3), w))
    board = edge(0.05 - (v - v.round()).abs(), w)
    shade = (1 - 0.85 * gap) * (0.6 + 0.5 * noise(book + 5))
    shade = torch.lerp(shade, 0 * w + 0.5, board)
    return smooth(3 * noise(book) - 1), 0.8 * (noise(book + 7) > 0.6), shade


def cobbles(p, q, n, w):
    """Cells around jittered points: a stone each, darker towards its rim."""
    u, v = face(q, n)
    first = 0 * u + 9  # distance to the nearest point
    second = 0 * u + 9  # and to the next
    tone = 0 * u
    for k in range(9):
        cell = torch.stack([u.floor() + k % 3 - 1, v.floor() + k // 3 - 1, 0 * u])
        x = u - cell[0] - 0.2 - 0.6 * noise(cell)
        y = v - cell[1] - 0.2 - 0.6 * noise(cell + 9)
        far = torch.hypot(x, y)
        tone = torch.where(far < first, noise(cell + 5), tone)
        second = torch.minimum(second, torch.maximum(first, far))
        first = torch.minimum(first, far)
    gap = edge(0.12 + 0.08 * fbm(q * 5, 5 * w, 2) - (second - first), w + 0.04)
    shade = (1 + 0.35 * fbm(q * 6, 6 * w)) * (1.12 - 0.45 * first**2 * fine(w))
    return torch.lerp(0 * w + 0.5, tone, fine(w)), 0.85 * gap, shade


def tiles(p, q, n, w):
    """Glazed squares: a ring about every corner, a star in every second middle."""
    u, v = face(q, n)
    cell = torch.stack([u.floor(), v.floor(), 0 * u])
    x = (u - cell[0] - 0.5).abs()
    y = (v - cell[1] - 0.5).abs()
    corner = torch.hypot(0.5 - x, 0.5 - y)
    ring = edge(0.06 - (corner - 0.33).abs(), w)
    star = edge(0.26 - torch.minimum(torch.maximum(x, y) * 1.35, x + y), w)
    star = star * ((cell[0] + cell[1]) % 2)
    grout = torch.maximum(pulse(u + 0.015, 0.03, w), pulse(v + 0.015, 0.03, w))
    shade = (0.8 + 0.3 * noise(cell) * fine(w)) * (1 + 0.25 * fbm(q * 3, 3 * w)) * (1 - 0.6 * grout)
    return torch.maximum(ring, edge(0.1 - corner, w)), star, shade


def zebra(p, q, n, w):
    wave = q[0] + 0.4 * q[1] + 0.5 * q[2] + 1.7 * fbm(q * 0.6, 0.6 * w, 2)
    return pulse(wave, 0.52, 1.6 * w), 0 * w, 1 + 0.12 * fbm(q * 9, 9 * w, 2)


def weave(p, q, n, w):
    """Basketwork around the vertical, 24 stakes to a turn."""
    row = (4 * p[1]).floor()
    over = 0.6 + 0.4 * torch.cos(12 * torch.atan2(p[0], p[2]) + math.pi * row)
    shade = over * (1.2 - 0.9 * (8 * p[1] - 2 * row - 1) ** 2)
    shade = torch.lerp(0 * w + 0.6, shade, fine(4 * w))
    return noise(row.expand(3, -1)), 0.7 * (row % 5 == 0), shade * (1 + 0.5 * fbm(q * 9, 9 * w))


def leaves(p, q, n, w):
    """Four layers of leaves in cells, the upper ones lighter; a few are blossoms."""
    layers = torch.stack([0.3 + 0 * w, 0 * w, 0.35 + 0 * w])  # what the pattern returns
    for k in range(4):
        q = q.sum(0) * (2 / 3) - q.roll(-1, 0)  # turned, as a lattice along the faces would show
        x = q * (1 + 0.2 * k) + 7.7 * k
        cell = x.floor()
        a, b, c = noise(cell), noise(cell + 9), noise(cell + 17)
        x = x - cell - 0.5 - 0.3 * (torch.stack([b, c, a]) - 0.5)
        along = (x * F.normalize(torch.stack([a, b, c]) - 0.5, dim=0)).sum(0)
        across = (x * x).sum(0) - along**2
        leaf = edge(1 - (along / 0.45) ** 2 - across / 0.05, 6 * w + 0.1)
        light = 0.55 + 0.12 * k + 0.5 * along - 0.25 * edge(0.003 - across, 0.1 * w + 0.003)
        layers = torch.lerp(layers, torch.stack([a, (c > 0.94).to(w), light]), leaf)
    mean = torch.stack([0.45 + 0 * w, 0 * w, 0.7 + 0 * w])
    blend, mark, shade = torch.lerp(mean, layers, fine(w))
    return blend, mark, shade * (1 + 0.5 * fbm(q * 0.35, 0.35 * w, 2))


STROKES = (  # left, low, right, high
    (0.2, 0.15, 0.32, 0.85), (0.2, 0.73, 0.75, 0.85), (0.2, 0.15, 0.75, 0.27),
    (0.2, 0.45, 0.7, 0.56), (0.66, 0.15, 0.78, 0.56), (0.66, 0.45, 0.78, 0.85),
)


def glyphs(p, q, n, w):
    """A framed letter of straight strokes in every unit, to be read from left to right."""
    u, v = face(q, n)
    u = u * (n[0] - n[1] - n[2]).sign()
    side = (n * n.new_tensor([[3.0], [5], [7]])).sum(0).round()
    cell = torch.stack([u.floor(), v.floor(), side])
    x = u - cell[0]
    y = v - cell[1]
    ink = 0 * u
    for k, (left, low, right, high) in enumerate(STROKES):
        inside = torch.minimum(torch.minimum(x - left, right - x), torch.minimum(y - low, high - y))
        ink = torch.maximum(ink, edge(inside, w) * (noise(cell + 4 * k) > 0.15 + 0.08 * k))
    rim = edge(torch.maximum((x - 0.5).abs(), (y - 0.5).abs()) - 0.43, w)
    return rim, ink, 1 + 0.1 * fbm(q * 8, 8 * w)


PATTERNS = {
    "planks": planks, "bricks": bricks, "paper": paper, "paint": paint, "rug": rug,
    "marble": marble, "stripes": stripes, "beach": beach, "checks": checks, "speckle": speckle,
    "crate": crate, "books": books, "cobbles": cobbles, "tiles": tiles, "zebra": zebra,
    "weave": weave, "leaves": leaves, "glyphs": glyphs,
}
