"""A second world for the ray tracer of utils/scenes.py: a yard by day. Only for evaluation: training never sees it.

Its layout, its light and its textures (but for the bands of a traffic cone) are not those of scenes.make_scene.
Axes, units and shapes are those of utils/scenes.py.
"""

import math
from itertools import islice
from random import Random

import torch
from torch import Tensor

from toolbox.synthetic import textures
from toolbox.synthetic.scenes import SWAY, Body, Scene, apart, stage
from toolbox.synthetic.textures import Texture, edge, fbm, smooth

FAR, HIGH, SUN_AWAY = 40.0, 30.0, 1000.0  # radius and height of the sky, distance of the light [m]
SUN, BELOW, ABOVE = (1.0, 0.9, 0.72), (0.2, 0.19, 0.15), (0.34, 0.42, 0.55)  # linear RGB
PAINTS = ("e63946 f1faee 1d3557", "ffbe0b fb5607 3a0ca3", "06d6a0 ffe8d6 073b4c", "f15bb5 fee440 22577a")  # sRGB
GREENS = ("3f6b2a 6f9440 e8d8e0", "2f5a34 55803f d9a441", "4d6b2f 8a9f4a c65b5b")
STONES = ("8d8577 a99f8c 4a453c", "7b7f83 9a9c9b 44464a", "a58a6c c2a684 5b4a3a")
GLAZES = ("e9e3d3 2b5f8a c98a3a", "e6dcc8 7d3b32 2f4b4a", "d9dcd6 3b6e57 b6542f")
HIDES, BARKS = ("f2ece0 241f1d 000000",), ("6b5a48 3f342a 000000",)
BANDS, CLAYS = ("e8591c f4f1ea e8591c",), ("a5673f c98f5a 6b3a22",)
ROLES = (  # kind; half extents; pattern, colours, scale; place to the side and behind; drift; hops; height above ground
    ("ellipsoid", (0.34, 0.19, 0.2), ("zebra", HIDES, 0.11), (0.6, 1.2), (-0.6, 0.6), (0.9, 0.3), (0.25, 3.0), 0.0),
    ("ellipsoid", (0.26, 0.36, 0.26), ("tiles", PAINTS, 0.2), (0.5, 1.2), (-0.2, 0.8), (0.8, 0.4), (0.12, 1.0), 1.0),
    ("box", (0.2, 0.2, 0.2), ("glyphs", PAINTS, 0.4), (0.6, 1.2), (-0.8, 0.7), (0.8, 0.5), (0.0, 0.0), 0.0),
    ("cone", (0.22, 0.33, 0.03), ("stripes", BANDS, 0.275), (0.6, 1.3), (-1.1, 0.3), (0.0, 0.0), (0.0, 0.0), 0.0),
    ("cone", (0.16, 0.17, 0.22), ("weave", PAINTS, 0.12), (0.7, 1.2), (-1.2, -0.2), (0.5, 0.2), (0.0, 0.0), 0.0),
)


class Yard(Scene):
    """`room` is the cylinder of the ground and the sky, `floor` the lawn, `rug` the paving on it, `trim` the sky's."""

    open_air, power, penumbra, tints = True, 2.3 * (0.45 + 0.06 * SUN_AWAY**2), 0.012 * SUN_AWAY, (SUN, BELOW, ABOVE)

    def paint(self, p: Tensor, n: Tensor, w: Tensor) -> Tensor:
        colour = _sky(self, p, w)
        at = (n[1] < -0.5).nonzero()[:, 0]
        colour[:, at] = _ground(self, p[:, at], n[:, at], w[at], colour[:, at])
        return colour


def make_yard(seed: int) -> Yard:
    """A yard with something in the middle, two to five things around it, one of them moving, and a hand-held camera."""
    rng = Random(f"yard {seed}")
    distance, yaw = rng.uniform(3.0, 3.3), rng.choice((-1, 1)) * math.radians(rng.uniform(10, 24))
    eye = stage(0, -distance, yaw)
    sun = stage(rng.choice((-1, 1)) * rng.uniform(0.5, 0.9), rng.uniform(-0.6, 0.1), yaw)
    pattern, colours, scale = rng.choice((("cobbles", STONES, (0.14, 0.22)), ("tiles", GLAZES, (0.3, 0.45))))
    lawn = _texture(rng, "leaves", GREENS, 0.07)
    return Yard(
        seed,
        room=Body("cylinder", (FAR, HIGH / 2, FAR), (0, -HIGH / 2, 0), lawn),
        floor=lawn,
        rug=_texture(rng, pattern, colours, rng.uniform(*scale)),
        rug_half=(rng.uniform(2.0, 2.8), rng.uniform(1.9, 2.4)),
        trim=rng.choice(("3f7fc4", "5a8fc0", "2f6fb8")),
        bodies=tuple(_bodies(rng, yaw)),
        light=tuple(SUN_AWAY * v / math.hypot(*sun, 0.75) for v in (sun[0], -0.75, sun[1])),
        eye=(eye[0], -rng.uniform(1.4, 1.5), eye[1]),
        target=(0.0, -0.8, 0.0),
        sway=tuple((a * rng.uniform(0.6, 1), rng.uniform(0.4, 0.8), rng.uniform(0, 2 * math.pi)) for a in SWAY),
    )


def _texture(rng: Random, pattern: str, colours: tuple[str, ...], scale: float) -> Texture:
    shift = tuple(rng.randrange(32) + 0.5 for _ in "xyz")  # so that one glyph fits on a block
    return Texture(pattern, rng.choice(colours), scale, shift, gloss=0.0 if pattern == "leaves" else 0.15)


def _bodies(rng: Random, yaw: float) -> list[Body]:
    """The middle and the ROLES around it; a gate of two posts and a lintel; a wall, hedge or steps; trees."""
    x, z, high = rng.choice((-1, 1)) * rng.uniform(0.9, 1.4), rng.uniform(1.2, 1.7), rng.uniform(0.5, 0.7)
    stone, first = _texture(rng, "cobbles", STONES, 0.24), rng.choice(ROLES[:3])
    bodies = _middle(rng) + [Body("box", (0.14, high, 0.14), (x + dx, -high, z), stone) for dx in (-0.55, 0.55)]
    bodies.append(Body("box", (0.8, 0.12, 0.17), (x, -2 * high - 0.12, z), stone))
    for role in (first, *rng.sample([r for r in ROLES if r != first], rng.randint(1, 4))):
        tries = (_extra(rng, role, yaw) for _ in range(300))
        bodies += islice((b for b in tries if all(apart(b, other) for other in bodies)), 1)
    skin = _texture(rng, *rng.choice((("leaves", GREENS, 0.09), ("cobbles", STONES, 0.2), ("glyphs", PAINTS, 0.3))))
    x, z, wide, high = rng.uniform(-1, 1), rng.uniform(3.2, 4.2), rng.uniform(2.5, 5.0), rng.uniform(0.4, 0.7)
    steps = [(high * (1 - k / 3), z - 0.4 * k) for k in range(rng.choice((1, 3)))]
    bodies += [Body("box", (wide, h, 0.2), (x, -h, z), skin) for h, z in steps]
    return bodies + [part for k in rng.sample(range(-2, 3), 4) for part in _tree(rng, k + rng.uniform(-0.1, 0.1), yaw)]


def _middle(rng: Random) -> list[Body]:
    """A plant in a pot, a tower of blocks, or an urn; it turns, or a part of it."""
    kind, turn = rng.choice(("plant", "blocks", "urn")), (rng.random(), rng.choice((-1.5, 1.5)))
    if kind == "plant":
        shape, half = rng.choice((("cone", (0.34, 0.5, 0.03)), ("ellipsoid", (0.36, 0.45, 0.36))))
        pot = Body("cone", (0.19, 0.2, 0.27), (0, -0.2, 0), _texture(rng, "weave", CLAYS, 0.12), yaw=turn)
        return [pot, Body(shape, half, (0, -0.4 - half[1], 0), _texture(rng, "leaves", GREENS, 0.06), yaw=turn)]
    if kind == "urn":
        skin = _texture(rng, *rng.choice((("zebra", HIDES), ("weave", PAINTS), ("tiles", GLAZES))), 0.16)
        foot = Body("cone", (0.3, 0.08, 0.2), (0, -0.08, 0), _texture(rng, "zebra", STONES, 0.1))
        return [foot, Body("ellipsoid", (0.34, 0.48, 0.34), (0, -0.64, 0), skin, yaw=turn)]
    tower = (0.24, 0.24, (0.3, 0)), (0.2, 0.68, turn), (0.16, 1.04, (0.5, 0))
    return [Body("box", (s, s, s), (0, -y, 0), _texture(rng, "glyphs", PAINTS, 2 * s), yaw=a) for s, y, a in tower]


def _tree(rng: Random, aside: float, yaw: float) -> list[Body]:
    z, r, low = rng.uniform(6.0, 10.0), rng.uniform(0.6, 0.85), rng.choice((0.05, 0.5))
    x = 0.3 * aside * (z + 3) + z * math.tan(yaw)
    kind, half = rng.choice((("ellipsoid", (r, 1.2 * r, r)), ("cone", (0.9 * r, 1.9 * r, 0.02))))
    trunk = Body("cylinder", (0.12, low / 2, 0.12), (x, -low / 2, z), _texture(rng, "zebra", BARKS, 0.1))
    return [trunk, Body(kind, half, (x, -low - half[1], z), _texture(rng, "leaves", GREENS, 0.13))]


def _extra(rng: Random, role: tuple, yaw: float) -> Body:
    kind, half, (pattern, colours, scale), side, back, (dx, dz), hop, above = role
    size, drift = rng.uniform(0.85, 1.15), stage(rng.uniform(-dx, dx), rng.uniform(-dz, dz), yaw)
    half, skin = tuple(size * h for h in half), _texture(rng, pattern, colours, size * scale)
    place = stage(rng.choice((-1, 1)) * rng.uniform(*side), rng.uniform(*back), yaw)
    x, z = (c - d / 2 for c, d in zip(place, drift, strict=True))
    turn = rng.uniform(0, 3), rng.uniform(-2, 2)
    return Body(kind, half, (x, -half[1] - above, z), skin, drift, (*hop, rng.random()), turn)


def _sky(yard: Yard, p: Tensor, w: Tensor) -> Tensor:
    """Clouds in perspective, over three rows of hills; the nearer ones are darker and have trees."""
    blue, haze, white, far, near = textures.linear(f"{yard.trim} dfe6e6 fbfaf6 8fa6b0 46603a", p)
    rise, seed = (-p[1] / FAR).clamp_min(0), 0 * p[0] + yard.seed % 32
    colour = torch.lerp(haze, blue, 1 - torch.exp(-7 * rise))
    cloud = fbm(torch.stack([p[0], p[2], 8 * seed]) / (32 * rise + 6), 0 * w, 4)
    colour = torch.lerp(colour, white, 0.9 * smooth(4.5 * cloud - 0.1) * smooth(5 * rise))
    for k, tree in enumerate((0.0, 0.5, 2.0)):
        around = torch.stack([p[0] / 11, seed + 0.8 * k, p[2] / 11])
        ridge = 3.6 - k + 5 * fbm(around, 0 * w, 2) + tree * fbm(around * 14, 14 * w / 11)
        hill = torch.lerp(far, near, k / 2) * (1 + 0.25 * tree * fbm(p * 1.5, 1.5 * w))
        colour = torch.lerp(colour, hill, edge(ridge + p[1], w))
    return colour


def _ground(yard: Yard, p: Tensor, n: Tensor, w: Tensor, far: Tensor) -> Tensor:
    """Paving inside a kerb, and grass that takes the colour `far` [3, n] of the hills' feet in the distance."""
    inside = torch.minimum(yard.rug_half[0] - p[0].abs(), yard.rug_half[1] - p[2].abs())
    grass = textures.colour(yard.floor, p, n, w) * (1 + 0.3 * fbm(p * 0.7, 0.7 * w))
    grass = torch.lerp(grass, far, smooth((p.norm(dim=0) - 8) / (FAR - 8)))
    paving = textures.colour(yard.rug, p, n, w) * (1 - 0.35 * edge(0.07 - inside, w))
    return torch.lerp(grass, paving, edge(inside, w))
