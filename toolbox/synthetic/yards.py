"""A second world for the ray tracer of scenes.py: a yard by day, to evaluate on, never to train on.

Its layout, its light and its textures (but for the bands of a traffic cone) are not those of
scenes.make_scene. Axes, units and shapes are those of scenes.py.
"""

if __name__ == "__main__":
    raise SystemExit("error: a module, not a program; toolbox/README.md lists the programs")

import math
from random import Random
from typing import NamedTuple

import torch

from toolbox.synthetic import scenes, textures
from toolbox.synthetic.scenes import Body, Scene, stage
from toolbox.synthetic.textures import Texture, edge, fbm, smooth

FAR = 40.0  # radius of the sky [m]
HIGH = 30.0  # its height [m]
SUN_AWAY = 1000.0  # distance of the light [m]
PAINTS = ("e63946 f1faee 1d3557", "ffbe0b fb5607 3a0ca3", "06d6a0 ffe8d6 073b4c",
          "f15bb5 fee440 22577a")  # sRGB, as all below
GREENS = ("3f6b2a 6f9440 e8d8e0", "2f5a34 55803f d9a441", "4d6b2f 8a9f4a c65b5b")
STONES = ("8d8577 a99f8c 4a453c", "7b7f83 9a9c9b 44464a", "a58a6c c2a684 5b4a3a")
GLAZES = ("e9e3d3 2b5f8a c98a3a", "e6dcc8 7d3b32 2f4b4a", "d9dcd6 3b6e57 b6542f")
HIDES = ("f2ece0 241f1d 000000",)
BARKS = ("6b5a48 3f342a 000000",)
BANDS = ("e8591c f4f1ea e8591c",)
CLAYS = ("a5673f c98f5a 6b3a22",)


class Role(NamedTuple):
    """What may stand around the middle; `side` and `back` are ranges to draw from [m]."""

    kind: str
    half: tuple[float, float, float]
    pattern: str
    colours: tuple[str, ...]
    scale: float
    side: tuple[float, float]  # how far to the side of the middle
    back: tuple[float, float]  # how far behind it
    drift: tuple[float, float]  # the most to the side and back, in a clip
    hop: tuple[float, float] = (0.0, 0.0)  # height, hops a clip
    above: float = 0.0  # height above the ground


ROLES = (
    Role("ellipsoid", (0.34, 0.19, 0.2), "zebra", HIDES, 0.11, (0.6, 1.2), (-0.6, 0.6), (0.9, 0.3),
         hop=(0.25, 3.0)),
    Role("ellipsoid", (0.26, 0.36, 0.26), "tiles", PAINTS, 0.2, (0.5, 1.2), (-0.2, 0.8), (0.8, 0.4),
         hop=(0.12, 1.0), above=1.0),
    Role("box", (0.2, 0.2, 0.2), "glyphs", PAINTS, 0.4, (0.6, 1.2), (-0.8, 0.7), (0.8, 0.5)),
    Role("cone", (0.22, 0.33, 0.03), "stripes", BANDS, 0.275, (0.6, 1.3), (-1.1, 0.3), (0.0, 0.0)),
    Role("cone", (0.16, 0.17, 0.22), "weave", PAINTS, 0.12, (0.7, 1.2), (-1.2, -0.2), (0.5, 0.2)),
)


class Yard(Scene):
    """A Scene whose fields mean other things.

    `room` is the cylinder of ground and sky, `floor` the lawn, `rug` the paving, `trim` the sky.
    """

    open_air = True
    power = 2.3 * (0.45 + 0.06 * SUN_AWAY**2)
    penumbra = 0.012 * SUN_AWAY
    tints = ((1.0, 0.9, 0.72), (0.2, 0.19, 0.15), (0.34, 0.42, 0.55))

    def paint(self, p, n, w):
        colour = sky_colour(self, p, w)
        at = (n[1] < -0.5).nonzero()[:, 0]
        colour[:, at] = ground_colour(self, p[:, at], n[:, at], w[at], colour[:, at])
        return colour


def make_yard(seed):
    """A yard: two to five things around one in the middle, one moving, and a hand-held camera."""
    rng = Random(f"yard {seed}")
    distance = rng.uniform(3.0, 3.3)
    yaw = rng.choice((-1, 1)) * math.radians(rng.uniform(10, 24))
    eye = stage(0, -distance, yaw)
    sun = stage(rng.choice((-1, 1)) * rng.uniform(0.5, 0.9), rng.uniform(-0.6, 0.1), yaw)
    far = math.hypot(*sun, 0.75)
    pavings = ("cobbles", STONES, (0.14, 0.22)), ("tiles", GLAZES, (0.3, 0.45))
    pattern, colours, scale = rng.choice(pavings)
    lawn = make_texture(rng, "leaves", GREENS, 0.07)
    return Yard(
        seed,
        room=Body("cylinder", (FAR, HIGH / 2, FAR), (0, -HIGH / 2, 0), lawn),
        floor=lawn,
        rug=make_texture(rng, pattern, colours, rng.uniform(*scale)),
        rug_half=(rng.uniform(2.0, 2.8), rng.uniform(1.9, 2.4)),
        trim=rng.choice(("3f7fc4", "5a8fc0", "2f6fb8")),
        bodies=tuple(make_bodies(rng, yaw)),
        light=tuple(SUN_AWAY * v / far for v in (sun[0], -0.75, sun[1])),
        eye=(eye[0], -rng.uniform(1.4, 1.5), eye[1]),
        target=(0.0, -0.8, 0.0),
        sway=scenes.make_sway(rng),
    )


def make_texture(rng, pattern, colours, scale):
    # whole units and a half, so that one glyph fits on a block
    shift = (rng.randrange(32) + 0.5, rng.randrange(32) + 0.5, rng.randrange(32) + 0.5)
    gloss = 0.0 if pattern == "leaves" else 0.15
    return Texture(pattern, rng.choice(colours), scale, shift, gloss)


def make_bodies(rng, yaw):
    """The middle and the ROLES around it, a gate, trees, and a wall, a hedge or steps."""
    x = rng.choice((-1, 1)) * rng.uniform(0.9, 1.4)
    z = rng.uniform(1.2, 1.7)
    high = rng.uniform(0.5, 0.7)
    stone = make_texture(rng, "cobbles", STONES, 0.24)
    first = rng.choice(ROLES[:3])
    bodies = make_middle(rng)
    bodies += make_gate(x, z, high, stone)
    for role in scenes.pick_roles(rng, ROLES, first):
        for _ in range(scenes.TRIES):
            body = make_extra(rng, role, yaw)
            if scenes.clear(body, bodies):
                bodies.append(body)
                break
    bodies += make_steps(rng)
    for place in rng.sample(range(-2, 3), 4):
        bodies += make_tree(rng, place + rng.uniform(-0.1, 0.1), yaw)
    return bodies


def make_gate(x, z, high, stone):
    """Two posts and a lintel."""
    return [
        Body("box", (0.14, high, 0.14), (x - 0.55, -high, z), stone),
        Body("box", (0.14, high, 0.14), (x + 0.55, -high, z), stone),
        Body("box", (0.8, 0.12, 0.17), (x, -2 * high - 0.12, z), stone),
    ]


def make_steps(rng):
    """One wide box or three, as a wall, a hedge or steps."""
    skins = ("leaves", GREENS, 0.09), ("cobbles", STONES, 0.2), ("glyphs", PAINTS, 0.3)
    skin = make_texture(rng, *rng.choice(skins))
    x = rng.uniform(-1, 1)
    z = rng.uniform(3.2, 4.2)
    wide = rng.uniform(2.5, 5.0)
    high = rng.uniform(0.4, 0.7)
    steps = []
    for k in range(rng.choice((1, 3))):
        h = high * (1 - k / 3)
        steps.append(Body("box", (wide, h, 0.2), (x, -h, z - 0.4 * k), skin))
    return steps


def make_middle(rng):
    """A plant in a pot, a tower of blocks, or an urn; it turns, or a part of it."""
    kind = rng.choice(("plant", "blocks", "urn"))
    turn = (rng.random(), rng.choice((-1.5, 1.5)))
    if kind == "plant":
        crowns = ("cone", (0.34, 0.5, 0.03)), ("ellipsoid", (0.36, 0.45, 0.36))
        shape, half = rng.choice(crowns)
        clay = make_texture(rng, "weave", CLAYS, 0.12)
        leaves = make_texture(rng, "leaves", GREENS, 0.06)
        pot = Body("cone", (0.19, 0.2, 0.27), (0, -0.2, 0), clay, yaw=turn)
        return [pot, Body(shape, half, (0, -0.4 - half[1], 0), leaves, yaw=turn)]
    if kind == "urn":
        pattern, colours = rng.choice((("zebra", HIDES), ("weave", PAINTS), ("tiles", GLAZES)))
        skin = make_texture(rng, pattern, colours, 0.16)
        stone = make_texture(rng, "zebra", STONES, 0.1)
        foot = Body("cone", (0.3, 0.08, 0.2), (0, -0.08, 0), stone)
        return [foot, Body("ellipsoid", (0.34, 0.48, 0.34), (0, -0.64, 0), skin, yaw=turn)]
    tower = []
    for s, y, angles in ((0.24, 0.24, (0.3, 0)), (0.2, 0.68, turn), (0.16, 1.04, (0.5, 0))):
        glyphs = make_texture(rng, "glyphs", PAINTS, 2 * s)
        tower.append(Body("box", (s, s, s), (0, -y, 0), glyphs, yaw=angles))
    return tower


def make_tree(rng, aside, yaw):
    """A trunk and a crown in the distance."""
    z = rng.uniform(6.0, 10.0)
    r = rng.uniform(0.6, 0.85)
    low = rng.choice((0.05, 0.5))  # half the trunk's height
    x = 0.3 * aside * (z + 3) + z * math.tan(yaw)
    kind, half = rng.choice((("ellipsoid", (r, 1.2 * r, r)), ("cone", (0.9 * r, 1.9 * r, 0.02))))
    bark = make_texture(rng, "zebra", BARKS, 0.1)
    leaves = make_texture(rng, "leaves", GREENS, 0.13)
    trunk = Body("cylinder", (0.12, low / 2, 0.12), (x, -low / 2, z), bark)
    return [trunk, Body(kind, half, (x, -low - half[1], z), leaves)]


def make_extra(rng, role, yaw):
    """A body for a role, at a random place."""
    size = rng.uniform(0.85, 1.15)
    drift = scenes.make_drift(rng, role.drift, yaw)
    half = tuple(size * h for h in role.half)
    skin = make_texture(rng, role.pattern, role.colours, size * role.scale)
    side = rng.choice((-1, 1)) * rng.uniform(*role.side)
    x, z = stage(side, rng.uniform(*role.back), yaw)  # where it is in the middle of the clip
    x -= drift[0] / 2
    z -= drift[1] / 2
    turn = (rng.uniform(0, 3), rng.uniform(-2, 2))
    hop = (*role.hop, rng.random())
    return Body(role.kind, half, (x, -half[1] - role.above, z), skin, drift, hop, turn)


def sky_colour(yard, p, w):
    """Clouds in perspective over three rows of hills; nearer ones are darker and have trees."""
    blue, haze, white, far, near = textures.linear(f"{yard.trim} dfe6e6 fbfaf6 8fa6b0 46603a", p)
    rise = (-p[1] / FAR).clamp_min(0)
    seed = 0 * p[0] + yard.seed % 32
    colour = torch.lerp(haze, blue, 1 - torch.exp(-7 * rise))
    cloud = fbm(torch.stack([p[0], p[2], 8 * seed]) / (32 * rise + 6), 0 * w, 4)
    colour = torch.lerp(colour, white, 0.9 * smooth(4.5 * cloud - 0.1) * smooth(5 * rise))
    for k, tree in enumerate((0.0, 0.5, 2.0)):
        around = torch.stack([p[0] / 11, seed + 0.8 * k, p[2] / 11])
        ridge = 3.6 - k + 5 * fbm(around, 0 * w, 2) + tree * fbm(around * 14, 14 * w / 11)
        hill = torch.lerp(far, near, k / 2) * (1 + 0.25 * tree * fbm(p * 1.5, 1.5 * w))
        colour = torch.lerp(colour, hill, edge(ridge + p[1], w))
    return colour


def ground_colour(yard, p, n, w, far):
    """Paving inside a kerb, and grass that fades to `far` [3, n], the colour of the hills' feet."""
    depth = torch.minimum(yard.rug_half[0] - p[0].abs(), yard.rug_half[1] - p[2].abs())
    grass = textures.colour(yard.floor, p, n, w) * (1 + 0.3 * fbm(p * 0.7, 0.7 * w))
    grass = torch.lerp(grass, far, smooth((p.norm(dim=0) - 8) / (FAR - 8)))
    paving = textures.colour(yard.rug, p, n, w) * (1 - 0.35 * edge(0.07 - depth, w))
    return torch.lerp(grass, paving, edge(depth, w))
