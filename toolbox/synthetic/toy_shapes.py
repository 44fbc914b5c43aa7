"""What toys.py is built of: balls and convex hulls, how rays meet them, how they are painted.

Rays are float32 [N, 3]; depths along them are in multiples of the ray, inf where it misses.
"""

if __name__ == "__main__":
    raise SystemExit("error: a module, not a program; toolbox/README.md lists the programs")

import itertools
import math
from typing import NamedTuple

import torch

TOO_NEAR = 1e-4  # a depth nearer than that is the surface that the ray starts on
BLOCK_PATTERNS = ("plain", "plain", "plain", "stripes", "bands", "checks", "dots", "rings",
                  "zigzag")
BALL_PATTERNS = ("segments", "bands", "plain", "checks")
FIGURES = (0.16, 0.3)  # metres, sizes of what is painted on toys


class Paint(NamedTuple):
    pattern: str
    colours: tuple  # three of sRGB in [0, 1]
    scale: float  # metres, of its figures


class Part(NamedTuple):
    """A hull {p: n p <= d} of planes (n, d), n unit vectors, or a ball where there are none."""

    paint: Paint | None
    planes: tuple | None = None
    centre: tuple = (0.0, 0.0, 0.0)  # of the figures too
    radius: float = 0.0  # of the ball, or of one about the hull


# ---- rays ----------------------------------------------------------------------------------------


def dot(a, b):
    """Products [N] of vectors [N, 3]; several times as fast as a sum over so short an axis."""
    return a[:, 0] * b[:, 0] + a[:, 1] * b[:, 1] + a[:, 2] * b[:, 2]


def enter(part, eye, ray):
    """(depth where rays enter a part, inf where they miss it; the plane), each [N]."""
    if part.planes is None:
        return enter_ball(part, eye, ray)
    planes = eye.new_tensor(part.planes)
    slope = ray @ planes[:, :3].T  # [N, P]
    away = planes[:, 3] - eye @ planes[:, :3].T  # below 0 outside of a plane
    depth = away / slope
    last = depth.masked_fill(slope <= 0, math.inf).amin(1)
    first, plane = depth.masked_fill(slope >= 0, -math.inf).max(1)
    beside = ((slope == 0) & (away < 0)).any(1)
    hit = (first < last) & (first > TOO_NEAR) & ~beside
    return first.masked_fill(~hit, math.inf), plane


def enter_ball(part, eye, ray):
    off = eye - eye.new_tensor(part.centre)
    a = dot(ray, ray)
    b = dot(ray, off)
    root = b.square() - a * (dot(off, off) - part.radius**2)
    depth = (-b - root.clamp_min(0).sqrt()) / a
    hit = (root > 0) & (depth > TOO_NEAR)
    return depth.masked_fill(~hit, math.inf), torch.zeros_like(b, dtype=torch.int64)


def leave(part, eye, ray):
    """(depth where rays that start in a hull leave it, the plane), each [N]."""
    planes = eye.new_tensor(part.planes)
    slope = ray @ planes[:, :3].T
    depth = (planes[:, 3] - eye @ planes[:, :3].T) / slope
    return depth.masked_fill(slope <= 0, math.inf).min(1)


def facing(part, point, plane):
    """Outward normals [N, 3] at points [N, 3] of a part's surface, on its planes [N]."""
    if part.planes is None:
        return (point - point.new_tensor(part.centre)) / part.radius
    return point.new_tensor(part.planes)[plane, :3]


# ---- paint ---------------------------------------------------------------------------------------


def coloured(paint, point, normal, is_ball):
    """Linear colours [N, 3] of a painted surface at points [N, 3] with normals [N, 3]."""
    x, y, z = point.unbind(1)
    if is_ball:
        turn = torch.atan2(normal[:, 0], normal[:, 2])
        u = turn / (2 * math.pi) * 8 * paint.scale  # eight figures around
        v = y
    else:
        side = normal.abs()
        is_flat = side[:, 1] > side[:, ::2].amax(1)
        u = torch.where(~is_flat & (side[:, 0] > side[:, 2]), z, x)
        v = torch.where(is_flat, z, y)
    number = figure(paint.pattern, u / paint.scale, v / paint.scale)
    return point.new_tensor(paint.colours).pow(2.2)[number]


def figure(pattern, u, v):
    """Which of three colours a pattern has at (u, v) [N], in sizes of its figures: int64 [N]."""
    if pattern in ("stripes", "segments"):
        number = u.floor() % 2
    elif pattern == "bands":
        number = v.floor() % 2
    elif pattern == "bars":
        number = u.floor() % 3
    elif pattern == "checks":
        number = (u.floor() + v.floor()) % 2
    elif pattern == "dots":
        number = torch.hypot(u % 1 - 0.5, v % 1 - 0.5) < 0.32
    elif pattern == "rings":
        number = torch.hypot(u, v).floor() % 2
    elif pattern == "zigzag":
        number = (v + (u % 2 - 1).abs()).floor() % 2
    elif pattern == "hills":  # two ridges before a plain sky
        near = -v < 0.7 + 0.4 * torch.sin(1.3 * u)
        number = 2 * near + ~near * (-v < 1.7 + 0.5 * torch.sin(0.7 * u + 1))
    else:
        number = torch.zeros_like(u)
    return number.long()


# ---- shapes --------------------------------------------------------------------------------------


def hull(paint, centre, normals, offsets):
    """A hull about `centre`; normals need no length, offsets are distances from the centre."""
    planes = []
    for normal, offset in zip(normals, offsets, strict=True):
        length = math.hypot(*normal)
        unit = [x / length for x in normal]
        away = sum(a * b for a, b in zip(unit, centre, strict=True))
        planes.append((*unit, offset + away))
    return Part(paint, tuple(planes), tuple(centre), around(planes, centre))


def around(planes, centre):
    """How far the corners of a hull of (n, d) are from a point within it, at most."""
    planes = torch.tensor(planes, dtype=torch.float64)
    triples = torch.tensor(list(itertools.combinations(range(len(planes)), 3)))
    n = planes[triples, :3]
    meeting = torch.linalg.det(n).abs() > 1e-6
    corners = torch.linalg.solve(n[meeting], planes[triples, 3][meeting])
    inside = (corners @ planes[:, :3].T <= planes[:, 3] + 1e-9).all(1)
    return (corners[inside] - torch.tensor(centre)).norm(dim=1).max().item()


def size_of(parts):
    """Radius of a ball about the origin that holds all parts."""
    return max(math.hypot(*part.centre) + part.radius for part in parts)


def width_of(parts):
    """Radius of an upright cylinder about the origin that holds all parts."""
    return max(math.hypot(*part.centre[::2]) + part.radius for part in parts)


def block(paint, centre, half, yaw=0.0):
    c, s = math.cos(yaw), math.sin(yaw)
    normals = []
    for axis in ((c, 0, -s), (0, 1, 0), (s, 0, c)):
        normals += [axis, tuple(-x for x in axis)]
    return hull(paint, centre, normals, [half[i // 2] for i in range(6)])


def prism(paint, centre, sides, radius, half):
    """An upright prism of so many sides."""
    normals = [(0, 1, 0), (0, -1, 0)]
    for i in range(sides):
        angle = 2 * math.pi * i / sides
        normals.append((math.cos(angle), 0, math.sin(angle)))
    return hull(paint, centre, normals, [half, half] + [radius] * sides)


def wheel(paint, centre, radius, half):
    """A prism of ten sides whose axis is z."""
    normals = [(0, 0, 1), (0, 0, -1)]
    for i in range(10):
        angle = 2 * math.pi * i / 10
        normals.append((math.cos(angle), math.sin(angle), 0))
    return hull(paint, centre, normals, [half, half] + [radius] * 10)


def roof(paint, base, half_x, half_z, height):
    """A prism with its ridge along x, on a base at (x, y, z)."""
    centre = (base[0], base[1] - height / 3, base[2])
    slope = math.hypot(height, half_z)
    normals = [(0, 1, 0), (1, 0, 0), (-1, 0, 0), (0, -half_z, height), (0, -half_z, -height)]
    pitch = half_z * height * 2 / 3 / slope
    return hull(paint, centre, normals, [height / 3, half_x, half_x, pitch, pitch])


def pyramid(paint, base, half, height):
    centre = (base[0], base[1] - height / 4, base[2])
    pitch = half * height * 3 / 4 / math.hypot(half, height)
    sides = [(height, -half, 0), (-height, -half, 0), (0, -half, height), (0, -half, -height)]
    return hull(paint, centre, [(0, 1, 0), *sides], [height / 4] + [pitch] * 4)


# ---- toys: each takes (rng, colours, size in metres) and stands on y = 0 ----------------------


def tower(rng, colours, size):
    """Blocks on top of each other, each turned a little."""
    parts = []
    bottom = 0.0
    width = 0.36 * size
    for _ in range(rng.randint(3, 4)):
        half = rng.uniform(0.13, 0.22) * size
        paint = colours.paint(BLOCK_PATTERNS, FIGURES)
        parts.append(block(paint, (0, bottom - half, 0), (width, half, width), rng.uniform(0, 1.5)))
        bottom -= 2 * half
        width *= rng.uniform(0.72, 0.95)
    if rng.random() < 0.6:
        parts.append(pyramid(colours.paint(("plain",), FIGURES), (0, bottom, 0), width, 2 * width))
    return tuple(parts)


def arch(rng, colours, size):
    """Two pillars, a lintel and a roof."""
    high = rng.uniform(0.35, 0.45) * size
    wide = rng.uniform(0.36, 0.48) * size
    thick = 0.15 * size
    paint = colours.paint(BLOCK_PATTERNS, FIGURES)
    parts = [block(paint, (side * wide, -high, 0), (thick, high, thick)) for side in (-1, 1)]
    paint = colours.paint(BLOCK_PATTERNS, FIGURES)
    top = -2 * high - 2 * thick
    parts.append(block(paint, (0, top + thick, 0), (wide + 1.4 * thick, thick, 1.2 * thick)))
    paint = colours.paint(("plain", "stripes"), FIGURES)
    parts.append(roof(paint, (0, top, 0), wide, thick, 0.3 * size))
    return tuple(parts)


def house(rng, colours, size):
    half = (0.42 * size, rng.uniform(0.26, 0.4) * size, 0.32 * size)
    walls = block(colours.paint(BLOCK_PATTERNS, FIGURES), (0, -half[1], 0), half)
    paint = colours.paint(("plain", "stripes", "zigzag"), FIGURES)
    top = roof(paint, (0, -2 * half[1], 0), 1.12 * half[0], 1.15 * half[2], 0.42 * size)
    paint = colours.paint(("plain",), FIGURES)
    chimney = block(paint, (0.2 * size, -2 * half[1] - 0.27 * size, 0.14 * size),
                    (0.07 * size, 0.2 * size, 0.07 * size))
    return walls, top, chimney


def ziggurat(rng, colours, size):
    """Flat prisms, ever smaller, with a ball on top."""
    sides = rng.choice((4, 6, 8))
    parts = []
    for i in range(3):
        half = 0.14 * size
        paint = colours.paint(BLOCK_PATTERNS, FIGURES)
        radius = (0.5 - 0.13 * i) * size
        parts.append(prism(paint, (0, -(2 * i + 1) * half, 0), sides, radius, half))
    radius = 0.22 * size
    paint = colours.paint(BALL_PATTERNS, FIGURES)
    parts.append(Part(paint, None, (0, -6 * half - radius, 0), radius))
    return tuple(parts)


def dominoes(rng, colours, size):
    """Thin boards in a row."""
    parts = []
    for i in range(4):
        at = ((i - 1.5) * 0.3 * size, -0.36 * size, 0)
        paint = colours.paint(BLOCK_PATTERNS, FIGURES)
        half = (0.05 * size, 0.36 * size, 0.2 * size)
        parts.append(block(paint, at, half, rng.uniform(-0.2, 0.2)))
    return tuple(parts)


def stairs(rng, colours, size):
    parts = []
    for i in range(4):
        half = 0.11 * size * (i + 1)
        paint = colours.paint(("plain", "bands", "checks"), FIGURES)
        at = ((i - 1.5) * 0.26 * size, -half, 0)
        parts.append(block(paint, at, (0.13 * size, half, 0.3 * size)))
    return tuple(parts)


def pillar(rng, colours, size):
    high = rng.uniform(0.35, 0.6) * size
    paint = colours.paint(BLOCK_PATTERNS, FIGURES)
    column = prism(paint, (0, -high, 0), rng.choice((6, 8, 12)), 0.2 * size, high)
    radius = 0.24 * size
    paint = colours.paint(BALL_PATTERNS, FIGURES)
    return column, Part(paint, None, (0, -2 * high - 0.9 * radius, 0), radius)


def car(rng, colours, size):
    """It points along x."""
    size *= 0.8
    body = block(colours.paint(BLOCK_PATTERNS, FIGURES), (0, -0.3 * size, 0),
                 (0.5 * size, 0.16 * size, 0.24 * size))
    cab = block(colours.paint(BLOCK_PATTERNS, FIGURES), (-0.14 * size, -0.6 * size, 0),
                (0.26 * size, 0.15 * size, 0.2 * size))
    parts = [body, cab]
    paint = colours.paint(("plain",), FIGURES)
    for x in (-0.3, 0.3):
        for z in (-0.25, 0.25):
            at = (x * size, -0.14 * size, z * size)
            parts.append(wheel(paint, at, 0.14 * size, 0.06 * size))
    return tuple(parts)


def ball(rng, colours, size):
    radius = rng.uniform(0.24, 0.38) * size
    return (Part(colours.paint(BALL_PATTERNS, FIGURES), None, (0, -radius, 0), radius),)


def gem(rng, colours, size):
    """An octahedron that hovers."""
    centre = (0, -rng.uniform(0.7, 1.0) * size, 0)
    normals = list(itertools.product((-1, 1), (-0.7, 0.7), (-1, 1)))
    offsets = [rng.uniform(0.22, 0.3) * size] * 8
    return (hull(colours.paint(BLOCK_PATTERNS, FIGURES), centre, normals, offsets),)


STILL_SHAPES = {
    "tower": tower, "arch": arch, "house": house, "ziggurat": ziggurat, "dominoes": dominoes,
    "stairs": stairs, "pillar": pillar,
}
MOVING_SHAPES = {"car": car, "ball": ball, "gem": gem}
STILL = tuple(STILL_SHAPES)
MOVING = tuple(MOVING_SHAPES)
TALL = ("tower", "arch", "house", "ziggurat")  # fit for the middle
