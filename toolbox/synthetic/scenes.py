"""A procedural room to film: exact colour and exact depth, from any camera, at any time.

World axes are OpenCV's (x right, y down, z forward) in metres; the floor is y = 0, so a height is -y. Time runs over
[0, 1], a clip of two to three seconds. Pixel (u, v) looks along c2w[:3, :3] @ K^-1 @ (u, v, 1), so a ray's parameter is
its z-depth. Inside, vectors are [B, 3, P] (points of a batch of frames) or [3, n] (the points on one surface).
"""

import math
from dataclasses import dataclass, replace
from itertools import islice
from random import Random
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from toolbox.synthetic import textures
from toolbox.synthetic.textures import Texture, edge, fbm, noise, pulse, smooth

PALETTES = (  # sRGB
    "d8735a 3d405b 81b29a f2cc8f f4f1de",
    "264653 2a9d8f e9c46a f4a261 e76f51",
    "a63d40 e9b872 90a959 6494aa f3e9d2",
    "c8553d f28f3b 588b8b ffd5c2 2d3047",
    "7d4f50 d1be9c aa998f 4f6d7a c0d6df",
)
WOODS = ("8f6038 b98a58 4e301b", "6f4a2f 94683f 38220f", "a9814f cfa876 6b4726", "75563f a37d5c 3f2a1c")
WALLS = (  # pattern, colours, metres to a unit
    ("paint", "cdb892 d8c6a4 b59f7c", 1.0),
    ("paint", "8fa08a a2b096 6f8067", 1.0),
    ("paint", "b9785a c4866a 96583d", 1.0),
    ("paper", "d9c8a6 cfb98f a8744f", 0.22),
    ("paper", "8fa3a0 9cb0aa d9cfae", 0.26),
    ("bricks", "8c4a36 b06a4c c9b8a2", 0.075),
)
RUGS = ("7a2e2a", "2f3e52", "d8c7a3", "5b6650", "8a5a3c")
ROLES = (  # kind; half extent; place to the side and behind the plinth; drift to the side and back; height of its hops
    ("sphere", (0.16, 0.22), (0.6, 1.1), (-0.7, 0.3), (0.8, 0.2), (0.35, 0.6)),
    ("sphere", (0.14, 0.24), (0.5, 1.4), (-0.8, 1.0), (1.6, 0.8), (0.0, 0.0)),
    ("box", (0.15, 0.24), (0.6, 1.3), (-0.6, 1.2), (0.7, 0.5), (0.0, 0.0)),
    ("cylinder", (0.12, 0.19), (0.65, 0.95), (-1.2, -0.8), (0.0, 0.0), (0.0, 0.0)),
    ("cabinet", (0.35, 0.6), (0.2, 1.6), (0.0, 0.0), (0.0, 0.0), (0.0, 0.0)),
)
SWAY = (0.35, 0.06, 0.2, 0.08, 0.05, 0.08, 0.012)  # of the eye's x y z, the target's x y z [m], and the roll [rad]
LAMP, BELOW, ABOVE = (1.0, 0.9, 0.75), (0.3, 0.25, 0.2), (0.38, 0.37, 0.38)  # linear RGB of the light and the room's
PENUMBRA = 0.16  # radius of the light [m]
REACH = 0.35  # how far contact darkening reaches [m]
WAINSCOT, SKIRTING = 0.82, 0.13  # heights [m]


@dataclass(frozen=True)
class Body:
    """A convex thing that drifts, hops, turns about the vertical and rolls, all evenly in time."""

    kind: str  # sphere, box, ellipsoid, and upright: cylinder, cone
    half: tuple[float, float, float]  # half extents [m]; of a cone: radius below, half its height, radius above
    at: tuple[float, float, float]
    texture: Texture
    drift: tuple[float, float] = (0.0, 0.0)  # x, z [m a clip]
    hop: tuple[float, float, float] = (0.0, 0.0, 0.0)  # height, hops a clip, phase
    yaw: tuple[float, float] = (0.0, 0.0)  # first angle, angle turned
    roll: float = 0.0  # angle rolled about its own x axis


@dataclass(frozen=True)
class Scene:
    seed: int
    room: Body  # seen from inside; its texture is the wall's
    floor: Texture
    rug: Texture
    rug_half: tuple[float, float]  # x, z, around the origin
    trim: str
    bodies: tuple[Body, ...]
    light: tuple[float, float, float]
    eye: tuple[float, float, float]  # the first camera's position
    target: tuple[float, float, float]  # and what it looks at
    sway: tuple[tuple[float, float, float], ...]  # amplitude, cycles a clip, phase, for each of SWAY
    softness: float = 1.0  # pixels over which patterns are blurred

    open_air, power, penumbra = False, 3.4, PENUMBRA

    @property
    def tints(self) -> tuple:
        """Linear RGB of the light and of what comes from below and from above."""
        return LAMP, BELOW, ABOVE

    def paint(self, p: Tensor, n: Tensor, w: Tensor) -> Tensor:
        """Colour [3, n] of the room at p [3, n] in the world, facing n, seen w [n] metres wide."""
        return _room_colour(self, p, n, w)


class Solid(NamedTuple):
    """A body at the times of a batch; `local` takes points [B, 3, P] to its axes, `turned` directions."""

    kind: str
    half: tuple[float, float, float]
    centre: Tensor  # [B, 3, 1]
    axes: Tensor  # [B, 3, 3], columns in the world

    def local(self, point: Tensor) -> Tensor:
        return self.turned(point - self.centre)

    def turned(self, v: Tensor) -> Tensor:
        # axes.mT @ v, but never in TF32 or bfloat16, whatever the caller has set
        return sum(self.axes[:, j, :, None] * v[:, j, None] for j in range(3))


# ---- the scene -------------------------------------------------------------------------------------------------------


def make_scene(seed: int) -> Scene:
    """A room with four to seven objects around the origin, and a camera's place to look at them from."""
    rng = Random(f"scene {seed} 1")  # the 1 was picked for what it makes of seed 0
    colours = rng.choice(PALETTES).split()
    distance, yaw = rng.uniform(3.0, 3.3), rng.choice((-1, 1)) * math.radians(rng.uniform(14, 24))
    room = _room(rng, distance, yaw)
    eye, light = stage(0, -distance, yaw), stage(rng.uniform(-1.7, -1.0), rng.uniform(-1.5, -0.8), yaw)
    return Scene(
        seed,
        room,
        floor=Texture("planks", rng.choice(WOODS), rng.uniform(0.11, 0.16), _shift(rng), gloss=0.1),
        rug=Texture("rug", " ".join([rng.choice(RUGS), *rng.sample(colours, 2)]), rng.uniform(0.2, 0.3), _shift(rng)),
        rug_half=(rng.uniform(1.3, 1.6), rng.uniform(1.0, 1.3)),
        trim=rng.choice(("e4dccb", "cdbfa6", "6b4a32")),
        bodies=tuple(_bodies(rng, colours, yaw, room)),
        light=(light[0], -3.1, light[1]),
        eye=(eye[0], -rng.uniform(1.4, 1.5), eye[1]),
        target=(0.0, -0.68, 0.0),
        sway=tuple((a * rng.uniform(0.6, 1), rng.uniform(0.4, 0.8), rng.uniform(0, 2 * math.pi)) for a in SWAY),
    )


def coarsen(scene: Scene, factor: float, softness: float) -> Scene:
    """The scene with larger patterns, but for those that fit the shape of their body, blurred over more pixels."""
    fits = "beach", "crate", "books"

    def larger(texture: Texture) -> Texture:
        return texture if texture.pattern in fits else replace(texture, scale=factor * texture.scale)

    room, *bodies = (replace(body, texture=larger(body.texture)) for body in (scene.room, *scene.bodies))
    return replace(scene, room=room, bodies=tuple(bodies), floor=larger(scene.floor), rug=larger(scene.rug),
                   softness=softness)


def frame_times(frames: int) -> Tensor:
    """Times [N] float64 of a clip's frames, from 0 to 1."""
    return torch.linspace(0, 1, frames, dtype=torch.float64)


def camera_path(scene: Scene, frames: int) -> Tensor:
    """c2w [N, 4, 4] float64 of a hand-held move; frame i is at frame_times(frames)[i]."""
    t = frame_times(frames)
    sway = torch.stack([a * (torch.sin(2 * math.pi * n * t + p) - math.sin(p)) for a, n, p in scene.sway])
    eye = sway[:3] + sway.new_tensor(scene.eye)[:, None]
    ahead = F.normalize(sway[3:6] + sway.new_tensor(scene.target)[:, None] - eye, dim=0)
    down = torch.stack([sway[6].sin(), sway[6].cos(), 0 * t])
    right = F.normalize(torch.linalg.cross(down, ahead, dim=0), dim=0)
    c2w = torch.eye(4, dtype=t.dtype).repeat(frames, 1, 1)
    c2w[:, :3] = torch.stack([right, torch.linalg.cross(ahead, right, dim=0), ahead, eye], -1).transpose(0, 1)
    return c2w


def stage(x: float, z: float, yaw: float) -> tuple[float, float]:
    """(x, z) as the first camera sees the floor (z ahead, its target at 0) in the room's axes."""
    return x * math.cos(yaw) + z * math.sin(yaw), z * math.cos(yaw) - x * math.sin(yaw)


def _shift(rng: Random) -> tuple[float, float, float]:
    return rng.uniform(0, 32), rng.uniform(0, 32), rng.uniform(0, 32)


def _room(rng: Random, distance: float, yaw: float) -> Body:
    """A corner two to three metres behind the target, and space for 40 degree orbits from 30% further away."""
    back, end, side = 1.3 * distance + 0.5, rng.uniform(2.3, 3.0), rng.uniform(2.2, 2.7)
    wide = (back * math.sin(abs(yaw) + math.radians(40)) + 0.4 + side) / 2
    pattern, colours, scale = rng.choice(WALLS)
    middle = math.copysign(1, yaw) * (side - wide), -2.2, (end - back) / 2
    return Body("box", (wide, 2.2, (end + back) / 2), middle, Texture(pattern, colours, scale, _shift(rng)))


def _bodies(rng: Random, colours: list[str], yaw: float, room: Body) -> list[Body]:
    """Something that turns on a plinth in the middle, and two to five of the ROLES around it, one of them moving."""
    h, r, kind = rng.uniform(0.22, 0.28), rng.uniform(0.2, 0.25), rng.choice(("box", "sphere"))
    plinth, at = rng.choice(("box", "cylinder")), (0, -2 * h - r, 0)
    bodies = [
        Body(plinth, (0.3, h, 0.3), (0, -h, 0), _dress(rng, "cylinder", colours, 0.3)),
        Body(kind, (r, r, r), at, _dress(rng, kind, colours, r), yaw=(rng.random(), rng.choice((-1.5, 1.5)))),
    ]
    first = rng.choice(ROLES[:3])
    for role in (first, *rng.sample([r for r in ROLES if r != first], rng.randint(1, 4))):
        tries = (_extra(rng, role, colours, yaw, room) for _ in range(300))
        bodies += islice((b for b in tries if _inside(b, room) and all(apart(b, other) for other in bodies)), 1)
    return bodies


def _extra(rng: Random, role: tuple, colours: list[str], yaw: float, room: Body) -> Body:
    kind, *ranges, (dx, dz), hop = role
    size, side, back = (rng.uniform(*r) for r in ranges)
    drift = stage(rng.uniform(-dx, dx), rng.uniform(-dz, dz), yaw)
    x, z = (c - d / 2 for c, d in zip(stage(rng.choice((-1, 1)) * side, back, yaw), drift, strict=True))
    if kind == "cabinet":
        half = size, rng.uniform(0.5, 0.75), 0.2
        books = Texture("books", " ".join(rng.sample(colours, 3)), half[1] / 2, _shift(rng))
        return Body("box", half, (x, -half[1], room.at[2] + room.half[2] - 0.21), books)
    half, texture = (size, size * (1.6 if kind == "cylinder" else 1), size), _dress(rng, kind, colours, size)
    if kind == "sphere":
        hop, heading = (rng.uniform(*hop), rng.uniform(2.5, 3.5), rng.random()), (math.atan2(*drift), 0.0)
        return Body(kind, half, (x, -half[1], z), texture, drift, hop, heading, -math.hypot(*drift) / size)
    return Body(kind, half, (x, -half[1], z), texture, drift, yaw=(rng.uniform(0, 3), rng.uniform(-2.5, 2.5)))


def _dress(rng: Random, kind: str, colours: list[str], size: float) -> Texture:
    """A texture that suits the kind, in proportion to its half extent."""
    own = {"sphere": (("beach", size), ("checks", size / 2)), "box": (("crate", size), ("checks", size / 2))}
    pattern, scale = rng.choice((("marble", 0.3), ("stripes", size / 2), ("speckle", 0.06), *own.get(kind, ())))
    if pattern == "crate":
        return Texture(pattern, rng.choice(WOODS), scale, _shift(rng), 0.1)
    return Texture(pattern, " ".join(rng.sample(colours, 3)), scale, _shift(rng), 0.4)


def _inside(body: Body, room: Body) -> bool:
    """Whether the body stays within the walls, however it turns."""
    turn = math.sqrt(2) if body.yaw[1] else 1
    ends = [(i, body.at[i] + t * body.drift[i // 2] - room.at[i]) for i in (0, 2) for t in (0, 1)]
    return all(abs(x) + turn * body.half[i] < room.half[i] for i, x in ends)


def apart(a: Body, b: Body) -> bool:
    """Whether the two stay clear of each other."""
    x, z, dx, dz = a.at[0] - b.at[0], a.at[2] - b.at[2], a.drift[0] - b.drift[0], a.drift[1] - b.drift[1]
    t = min(max(-(x * dx + z * dz) / (dx * dx + dz * dz + 1e-9), 0), 1)
    wide = [math.hypot(s.half[0], s.half[2]) if s.kind == "box" else max(s.half[0], s.half[2]) for s in (a, b)]
    return math.hypot(x + t * dx, z + t * dz) > 0.05 + sum(wide)


# ---- rays ------------------------------------------------------------------------------------------------------------


def render(scene: Scene, c2w: Tensor, K: Tensor, height: int, width: int, time: Tensor, samples: int = 2):
    """The scene from c2w [B, 4, 4] through K ([3, 3] or [B, 3, 3], pixels) at time [B], on c2w's device.

    Returns rgb [B, H, W, 3] float32 in [0, 1], the mean of samples x samples rays a pixel, and depth [B, H, W] float32,
    the z in metres where the ray through the pixel's centre ends.
    """
    c2w = c2w.double()
    inverse = torch.linalg.inv(K.to(c2w)).expand(len(c2w), 3, 3)
    origin, spacing = c2w[:, :3, 3:].float(), inverse[:, :1, 0].float() * scene.softness / samples
    solids = [_place(body, time.to(c2w)) for body in (scene.room, *scene.bodies)]
    offsets = [(i + 0.5) / samples - 0.5 for i in range(samples)]
    rays = (_rays(c2w, inverse, height, width, du, dv) for dv in offsets for du in offsets)
    light = sum(_shade(scene, solids, origin, ray, spacing) for ray in rays) / samples**2
    depth, _ = _trace(solids, origin, _rays(c2w, inverse, height, width, 0, 0))
    return _tone(light).transpose(1, 2).unflatten(1, (height, width)), depth.unflatten(1, (height, width))


def _rays(c2w: Tensor, inverse: Tensor, height: int, width: int, du: float, dv: float) -> Tensor:
    v, u = torch.meshgrid(torch.arange(height).to(c2w) + dv, torch.arange(width).to(c2w) + du, indexing="ij")
    return (c2w[:, :3, :3] @ inverse @ torch.stack([u, v, torch.ones_like(u)]).flatten(1)).float()  # [B, 3, P]


def _place(body: Body, t: Tensor) -> Solid:
    height, count, phase = body.hop
    hop, roll, yaw = (count * t + phase) % 1, body.roll * t, body.yaw[0] + body.yaw[1] * t
    drop = -4 * height * hop * (1 - hop)
    centre = torch.stack([body.at[0] + body.drift[0] * t, body.at[1] + drop, body.at[2] + body.drift[1] * t], 1)
    s, c, sr, cr, no = yaw.sin(), yaw.cos(), roll.sin(), roll.cos(), 0 * t
    axes = torch.stack([c, s * sr, s * cr, no, cr, -sr, -s, c * sr, c * cr], 1).unflatten(1, (3, 3))
    return Solid(body.kind, body.half, centre[..., None].float(), axes.float())


def _trace(solids: list[Solid], origin: Tensor, ray: Tensor) -> tuple[Tensor, Tensor]:
    """z-depth [B, P] of the nearest surface, and the index of its solid; the first one is seen from inside."""
    depth = _interval(solids[0], origin, ray)[1]
    owner = torch.zeros_like(depth, dtype=torch.long)
    for i, solid in enumerate(solids[1:], 1):
        near, far = _interval(solid, origin, ray)
        hit = (near < far) & (near > 0) & (near < depth)
        depth, owner = torch.where(hit, near, depth), owner.masked_fill(hit, i)
    return depth, owner


def _interval(solid: Solid, origin: Tensor, ray: Tensor) -> tuple[Tensor, Tensor]:
    """Where rays enter and leave a solid [B, P]; enter > leave where they miss it."""
    o, d, half = solid.local(origin), solid.turned(ray), solid.half
    if solid.kind == "sphere":
        return _disc(half[0], o, d)
    if solid.kind == "ellipsoid":
        radii = o.new_tensor(half)[:, None]
        return _disc(1, o / radii, d / radii)
    spans = [_slab(half[1], o[:, 1], d[:, 1])]
    if solid.kind == "box":
        spans += [_slab(half[i], o[:, i], d[:, i]) for i in (0, 2)]
    else:
        spans += [_cone(half, o, d) if solid.kind == "cone" else _disc(half[0], o[:, ::2], d[:, ::2])]
    return torch.stack([s[0] for s in spans]).amax(0), torch.stack([s[1] for s in spans]).amin(0)


def _slab(half: float, o: Tensor, d: Tensor) -> tuple[Tensor, Tensor]:
    d = torch.where(d.abs() < 1e-9, 1e-9, d)
    middle, reach = -o / d, half / d.abs()
    return middle - reach, middle + reach


def _disc(radius: float, o: Tensor, d: Tensor) -> tuple[Tensor, Tensor]:
    """Circle or sphere, measured from the ray's nearest point to the centre, where float32 loses least."""
    square = (d * d).sum(1).clamp_min(1e-12)
    middle = -(o * d).sum(1) / square
    inside = radius**2 - ((o + middle[:, None] * d) ** 2).sum(1)
    reach = (inside.abs() / square).sqrt().copysign(inside)
    return middle - reach, middle + reach


def _cone(half: tuple, o: Tensor, d: Tensor) -> tuple[Tensor, Tensor]:
    """The endless cone's half that has the body, measured from the ray's nearest point to the body's centre."""
    middle = -(o * d).sum(1) / (d * d).sum(1)
    x, y, z = (o + middle[:, None] * d).unbind(1)
    radius, slope = _taper(half, y)
    widening = slope * d[:, 1]
    a = d[:, 0] ** 2 + d[:, 2] ** 2 - widening**2
    a = torch.where(a.abs() < 1e-6, 1e-6, a)
    b, inside = x * d[:, 0] + z * d[:, 2] - radius * widening, radius**2 - x * x - z * z
    inside = b * b + a * inside
    root = inside.abs().sqrt().copysign(inside)
    near, far = (-b - root) / a, (-b + root) / a
    steep = (a < 0) * widening  # such a ray crosses both halves of the cone
    return near.masked_fill(steep < 0, -1e6) + middle, far.masked_fill(steep > 0, 1e6) + middle


def _taper(half: tuple, y: Tensor) -> tuple[Tensor, float]:
    """A cone's radius at height -y above its middle, and how fast it grows downwards."""
    slope = (half[0] - half[2]) / (2 * half[1])
    return (half[0] + half[2]) / 2 + slope * y, slope


def _faces(kind: str, half: tuple, x: Tensor, y: Tensor, z: Tensor) -> list[Tensor]:
    """How far points are outside each face."""
    if kind == "box":
        return [x.abs() - half[0], y.abs() - half[1], z.abs() - half[2]]
    if kind == "sphere":
        return [(x * x + y * y + z * z).sqrt() - half[0]]
    if kind == "ellipsoid":  # to first order
        a, b = (sum((v / h**k) ** 2 for v, h in zip((x, y, z), half, strict=True)).sqrt() for k in (1, 2))
        return [a * (a - 1) / b.clamp_min(1e-6)]
    if kind == "cone":
        radius, slope = _taper(half, y)
        return [((x * x + z * z).sqrt() - radius) / math.hypot(1, slope), y.abs() - half[1]]
    return [(x * x + z * z).sqrt() - half[0], y.abs() - half[1]]


def _distance(solid: Solid, point: Tensor) -> Tensor:
    """Signed distance [B, P], negative inside."""
    faces = torch.stack(_faces(solid.kind, solid.half, *solid.local(point).unbind(1)))
    return _length(faces.clamp_min(0)) + faces.amax(0).clamp_max(0)


def _normal(kind: str, half: tuple, p: Tensor) -> Tensor:
    """Outward unit normal [3, n] at surface points p [3, n], in the body's axes."""
    faces = torch.stack(_faces(kind, half, *p))
    sign, face = p.sign(), faces.argmax(0)
    if kind == "box":
        return torch.stack([sign[i] * (face == i) for i in range(3)])
    side = p / half[0]
    if kind == "sphere":
        return side
    if kind == "ellipsoid":
        return F.normalize(p / p.new_tensor(half)[:, None] ** 2, dim=0)
    if kind == "cone":
        side = F.normalize(torch.stack([p[0], -_taper(half, p[1])[1] * p[::2].norm(dim=0), p[2]]), dim=0)
        return torch.where(face == 0, side, torch.stack([0 * p[0], sign[1], 0 * p[0]]))
    return torch.stack([side[0] * (face == 0), sign[1] * (face == 1), side[2] * (face == 0)])


# ---- light -----------------------------------------------------------------------------------------------------------


def _shade(scene: Scene, solids: list[Solid], origin: Tensor, ray: Tensor, spacing: Tensor) -> Tensor:
    """Linear light [B, 3, P] along the rays, which are `spacing` [B, 1] apart at depth 1."""
    depth, owner = _trace(solids, origin, ray)
    point, view = origin + depth[:, None] * ray, ray / _length(ray, 1)[:, None]
    normal, colour, gloss = _surfaces(scene, solids, point, owner, view, depth * spacing)
    lamp = torch.tensor(scene.light, device=point.device)[:, None] - point
    away = _length(lamp, 1)
    lamp = lamp / away[:, None]
    facing = (normal * lamp).sum(1).clamp_min(0)
    halfway = lamp - view
    glint = gloss * ((normal * halfway).sum(1) / _length(halfway, 1)).clamp_min(0) ** 48 * (facing > 0)
    power = scene.power * _lit(solids, point, lamp, away, owner, scene.penumbra) / (0.45 + 0.06 * away**2)
    room, up = _openness(solids, point + REACH * normal), 0.5 - 0.5 * normal[:, 1]
    lamp, below, above = torch.tensor(scene.tints, device=point.device)[..., None]
    direct, ambient = lamp * power[:, None], torch.lerp(below, above, up[:, None]) * room[:, None]
    light = colour * (direct * facing[:, None] + ambient) + direct * glint[:, None]
    sky = scene.open_air & (owner == 0) & (normal[:, 1] > -0.5)
    return torch.where(sky[:, None], colour, light)


def _lit(solids: list[Solid], point: Tensor, lamp: Tensor, away: Tensor, owner: Tensor, penumbra: float) -> Tensor:
    """How much of the light is seen [B, P], by each body's distance about where the way to the light passes nearest."""
    lit = torch.ones_like(away)
    for i, solid in enumerate(solids[1:], 1):
        near, far = _interval(solid, point, lamp)
        t = torch.minimum((near + far).clamp_min(0) / 2, away)
        clear = _distance(solid, point + t[:, None] * lamp) / (penumbra * t / away + 0.003)
        lit = lit * smooth(0.5 + 0.5 * clear).masked_fill(owner == i, 1)  # a convex body shades itself by its normal
    return lit


def _openness(solids: list[Solid], step: Tensor) -> Tensor:
    """Contact darkening [B, P]: how free the point is that lies one step above the surface."""
    free = (-_distance(solids[0], step) / REACH).clamp(0, 1)
    for solid in solids[1:]:
        free = free * (_distance(solid, step) / REACH).clamp(0, 1)
    return 0.25 + 0.75 * free


def _tone(light: Tensor) -> Tensor:
    """Linear light to display values in [0, 1]."""
    return (1 - torch.exp(-1.15 * light)) ** (1 / 2.2)


def _length(v: Tensor, dim: int = 0) -> Tensor:
    return (v * v).sum(dim).sqrt()


# ---- surfaces --------------------------------------------------------------------------------------------------------


def _surfaces(scene: Scene, solids: list[Solid], point: Tensor, owner: Tensor, view: Tensor, wide: Tensor):
    """Normal, colour [B, 3, P] and gloss [B, P] of what each ray met, where it is `wide` [B, P] metres wide."""
    found, owner = point.new_zeros(7, owner.numel()), owner.flatten()
    for i, (solid, body) in enumerate(zip(solids, (scene.room, *scene.bodies), strict=True)):
        at = (owner == i).nonzero()[:, 0]
        p = _rows(solid.local(point))[:, at]
        n = _normal(solid.kind, solid.half, p) * (1 if i else -1)
        normal = (solid.axes[at // wide.shape[1]].permute(1, 2, 0) * n).sum(1)
        w = wide.flatten()[at] / (normal * _rows(view)[:, at]).sum(0).abs().clamp_min(0.05).sqrt()
        colour = textures.colour(body.texture, p, n, w) if i else scene.paint(p + solid.centre[0], n, w)
        gloss = body.texture.gloss if i else scene.floor.gloss * (n[1] < -0.5)
        found[:3, at], found[3:6, at], found[6, at] = normal, colour, gloss
    found = found.unflatten(1, wide.shape).transpose(0, 1)  # [7, B P] -> [B, 7, P]
    return found[:, :3], found[:, 3:6], found[:, 6]


def _rows(v: Tensor) -> Tensor:
    return v.transpose(0, 1).flatten(1)  # [B, 3, P] -> [3, B P]


def _room_colour(scene: Scene, p: Tensor, n: Tensor, w: Tensor) -> Tensor:
    colour = textures.linear("e6dfd0", p)[0].repeat(1, p.shape[1])
    for where, paint in ((n[1] < -0.5, _floor_colour), (n[1].abs() < 0.5, _wall_colour)):
        at = where.nonzero()[:, 0]
        colour[:, at] = paint(scene, p[:, at], n[:, at], w[at])
    return colour


def _floor_colour(scene: Scene, p: Tensor, n: Tensor, w: Tensor) -> Tensor:
    inside = torch.minimum(scene.rug_half[0] - p[0].abs(), scene.rug_half[1] - p[2].abs())
    rug = textures.colour(scene.rug, torch.stack([p[0], inside, p[2]]), n, w)
    return torch.lerp(textures.colour(scene.floor, p, n, w), rug, edge(inside, w))


def _wall_colour(scene: Scene, p: Tensor, n: Tensor, w: Tensor) -> Tensor:
    """Boards below a rail, above a skirting; over them the wall's texture, hung with pictures."""
    u, height = textures.face(p, n)
    trim = textures.linear(scene.trim, p)[0]
    board = (height > SKIRTING) & (height < WAINSCOT - 0.06)
    lines = sum(edge(0.006 + w / 2 - (height - h).abs(), w) for h in (SKIRTING, WAINSCOT - 0.06, WAINSCOT))
    boards = trim * (1 - 0.3 * board * pulse(u / 0.16, 0.06, w / 0.16))
    wall = textures.colour(scene.room.texture, p, n, w)
    colour = torch.lerp(boards, wall, edge(height - WAINSCOT, w)) * (1 - 0.4 * lines)
    ends = [(scene.room.at[i] - scene.room.half[i], 2 * scene.room.half[i]) for i in (0, 2)]
    start, span = (torch.where(n[0].abs() > 0.5, z, x) for x, z in zip(*ends, strict=True))
    return _hang_pictures(colour, scene.seed, u - start, span / (span / 1.2).floor(), height, n, w)


def _hang_pictures(wall: Tensor, seed: int, u: Tensor, every: Tensor, height: Tensor, n: Tensor, w: Tensor) -> Tensor:
    """A framed landscape in most stretches of the wall, `every` metres long."""
    cell = torch.stack([(u / every).floor(), 2 * n[0] + 4 * n[2], 0 * u + seed % 32])
    a, b, c = (noise(cell + k) for k in (3, 7, 11))
    x, y = u - every * (cell[0] + 0.5) - 0.2 * (a - 0.5), height - 1.38 - 0.1 * b
    inside = torch.minimum(0.25 + 0.15 * b - x.abs(), 0.2 + 0.1 * c - y.abs())
    at = ((inside > -w) & (c > 0.35)).nonzero()[:, 0]
    x, y, inside, w, pick = x[at], y[at], inside[at], w[at], (5 * a[at]).long()
    tints = torch.cat(textures.linear(PALETTES[seed % 5], wall), 1)  # [3, 5]
    sky, hill = tints[:, pick], tints[:, (pick + 2) % 5]
    colour = torch.lerp(sky, torch.ones_like(sky), 0.7 - y)
    colour = torch.lerp(colour, tints[:, (pick + 1) % 5], edge(0.07 - torch.hypot(x - 0.1 * b[at], y - 0.06), w))
    for k in range(3):
        ridge = 0.15 * fbm(torch.stack([4 * x + 9 * k, 9 * b[at], 9 * c[at]]), 4 * w) - 0.06 * k
        colour = torch.lerp(colour, hill * 0.6**k, edge(ridge - y, w))
    for border, tint in ((0.075, 0.8), (0.025, 0.03)):
        colour = torch.lerp(colour, torch.full_like(sky, tint), edge(border - inside, w))
    wall[:, at] = torch.lerp(wall[:, at], colour, edge(inside, w))
    return wall
