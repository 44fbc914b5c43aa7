"""A procedural room to film: exact colour and exact depth, from any camera, at any time.

World axes are OpenCV's (x right, y down, z forward) in metres; the floor is y = 0, so a height is
-y. Time runs over [0, 1], a clip of two to three seconds. Pixel (u, v) looks along
c2w[:3, :3] @ K^-1 @ (u, v, 1), so a ray's parameter is its z-depth. Inside, vectors are float32,
[B, 3, P] for P points of each of B frames or [3, n] for the points on one surface, and colours are
linear RGB.
"""

if __name__ == "__main__":
    raise SystemExit("error: a module, not a program; toolbox/README.md lists the programs")

import itertools
import math
from dataclasses import dataclass, replace
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
WOODS = ("8f6038 b98a58 4e301b", "6f4a2f 94683f 38220f", "a9814f cfa876 6b4726",
         "75563f a37d5c 3f2a1c")
WALLS = (  # pattern, colours, metres to a unit
    ("paint", "cdb892 d8c6a4 b59f7c", 1.0),
    ("paint", "8fa08a a2b096 6f8067", 1.0),
    ("paint", "b9785a c4866a 96583d", 1.0),
    ("paper", "d9c8a6 cfb98f a8744f", 0.22),
    ("paper", "8fa3a0 9cb0aa d9cfae", 0.26),
    ("bricks", "8c4a36 b06a4c c9b8a2", 0.075),
)
RUGS = ("7a2e2a", "2f3e52", "d8c7a3", "5b6650", "8a5a3c")
REACH = 0.35  # how far contact darkening reaches [m]
WAINSCOT = 0.82  # height [m]
SKIRTING = 0.13  # height [m]
# amplitudes of a hand-held camera: the eye's x y z, the target's x y z [m], and the roll [rad]
SWAY = (0.35, 0.06, 0.2, 0.08, 0.05, 0.08, 0.012)
GONE = 1000.0  # how deep below the ground a body is that is not there [m]
TRIES = 300  # to place a body clear of the others


class Role(NamedTuple):
    """What may stand beside the plinth; pairs are ranges to draw from [m]."""

    kind: str
    size: tuple[float, float]  # half extent
    side: tuple[float, float]  # how far to the side of the plinth
    back: tuple[float, float]  # how far behind it
    drift: tuple[float, float]  # the most to the side and back, in a clip
    hop: tuple[float, float]  # height of its hops


ROLES = (
    Role("sphere", (0.16, 0.22), (0.6, 1.1), (-0.7, 0.3), (0.8, 0.2), (0.35, 0.6)),
    Role("sphere", (0.14, 0.24), (0.5, 1.4), (-0.8, 1.0), (1.6, 0.8), (0.0, 0.0)),
    Role("box", (0.15, 0.24), (0.6, 1.3), (-0.6, 1.2), (0.7, 0.5), (0.0, 0.0)),
    Role("cylinder", (0.12, 0.19), (0.65, 0.95), (-1.2, -0.8), (0.0, 0.0), (0.0, 0.0)),
    Role("cabinet", (0.35, 0.6), (0.2, 1.6), (0.0, 0.0), (0.0, 0.0), (0.0, 0.0)),
)


@dataclass(frozen=True)
class Body:
    """A convex thing that drifts, hops, turns about the vertical and rolls, all evenly in time."""

    kind: str  # sphere, box, ellipsoid, and upright: cylinder, cone
    half: tuple[float, float, float]  # [m]; of a cone: radius below, half height, radius above
    at: tuple[float, float, float]
    texture: Texture
    drift: tuple[float, float] = (0.0, 0.0)  # x, z [m a clip]
    hop: tuple[float, float, float] = (0.0, 0.0, 0.0)  # height, hops a clip, phase
    yaw: tuple[float, float] = (0.0, 0.0)  # first angle, angle turned
    roll: float = 0.0  # angle rolled about its own x axis
    tilt: float = 0.0  # and at first
    shown: tuple[float, float] = (0.0, 1.0)  # the times between which it is there


@dataclass(frozen=True)
class Scene:
    """A room and what stands in it. Another world overrides the constants below and `paint`."""

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
    sway: tuple[tuple[float, float, float], ...]  # amplitude, cycles a clip, phase of each of SWAY
    softness: float = 1.0  # pixels over which patterns are blurred

    open_air = False
    backdrop = False  # the room's walls, floor and all show their own colour, whatever the light
    unlit = False  # and so does everything
    shadows = True
    contact = True  # whether it is darker where things meet
    samples = 2  # x samples rays a pixel
    lens_blur = 0.7  # pixels, sigma of the picture of a point
    power = 3.4  # of the light
    penumbra = 0.16  # radius of the light [m]
    # linear RGB of the light and of what comes from below and from above
    tints = ((1.0, 0.9, 0.75), (0.3, 0.25, 0.2), (0.38, 0.37, 0.38))

    def paint(self, p, n, w):
        """Colour [3, n] of the room at p [3, n] in the world, facing n, seen w [n] metres wide."""
        return room_colour(self, p, n, w)

    def expose(self, light):
        """Display values in [0, 1] of linear light."""
        return tone(light)


class Solid(NamedTuple):
    """A body at the times of a batch."""

    kind: str
    half: tuple[float, float, float]
    centre: Tensor  # [B, 3, 1]
    axes: Tensor  # [B, 3, 3], columns in the world

    def local(self, point):
        """Points [B, 3, P] in the body's axes."""
        return self.turned(point - self.centre)

    def turned(self, v):
        """Directions [B, 3, P] in the body's axes."""
        # axes.mT @ v, but never in TF32 or bfloat16, whatever the caller has set
        return sum(self.axes[:, j, :, None] * v[:, j, None] for j in range(3))


# ---- the scene -----------------------------------------------------------------------------------


def make_scene(seed):
    """A room with four to seven objects around the origin, and a camera's place to look from."""
    rng = Random(f"scene {seed} 1")  # the 1 was picked for what it makes of seed 0
    colours = rng.choice(PALETTES).split()
    distance = rng.uniform(3.0, 3.3)
    yaw = rng.choice((-1, 1)) * math.radians(rng.uniform(14, 24))
    room = make_room(rng, distance, yaw)
    eye = stage(0, -distance, yaw)
    light = stage(rng.uniform(-1.7, -1.0), rng.uniform(-1.5, -0.8), yaw)
    planks = Texture("planks", rng.choice(WOODS), rng.uniform(0.11, 0.16), shift(rng), gloss=0.1)
    rug_colours = " ".join([rng.choice(RUGS), *rng.sample(colours, 2)])
    return Scene(
        seed,
        room,
        floor=planks,
        rug=Texture("rug", rug_colours, rng.uniform(0.2, 0.3), shift(rng)),
        rug_half=(rng.uniform(1.3, 1.6), rng.uniform(1.0, 1.3)),
        trim=rng.choice(("e4dccb", "cdbfa6", "6b4a32")),
        bodies=tuple(make_bodies(rng, colours, yaw, room)),
        light=(light[0], -3.1, light[1]),
        eye=(eye[0], -rng.uniform(1.4, 1.5), eye[1]),
        target=(0.0, -0.68, 0.0),
        sway=make_sway(rng),
    )


def make_sway(rng):
    """(amplitude, cycles a clip, phase) of each of SWAY."""
    waves = []
    for most in SWAY:
        wave = (most * rng.uniform(0.6, 1), rng.uniform(0.4, 0.8), rng.uniform(0, 2 * math.pi))
        waves.append(wave)
    return tuple(waves)


def coarsen(scene, factor, softness):
    """The scene in patterns `factor` times as large, blurred over `softness` pixels."""

    def larger(texture):
        if texture.pattern in ("beach", "crate", "books"):  # they fit their body
            return texture
        return replace(texture, scale=factor * texture.scale)

    def dressed(body):
        return replace(body, texture=larger(body.texture))

    return replace(
        scene,
        room=dressed(scene.room),
        bodies=tuple(map(dressed, scene.bodies)),
        floor=larger(scene.floor),
        rug=larger(scene.rug),
        softness=softness,
    )


def frame_times(frames):
    """Times [N] float64 of a clip's frames, from 0 to 1."""
    return torch.linspace(0, 1, frames, dtype=torch.float64)


def camera_path(scene, frames):
    """c2w [N, 4, 4] float64 of a hand-held move; frame i is at frame_times(frames)[i]."""
    t = frame_times(frames)
    waves = []
    for amplitude, cycles, phase in scene.sway:
        waves.append(amplitude * (torch.sin(2 * math.pi * cycles * t + phase) - math.sin(phase)))
    sway = torch.stack(waves)
    eye = sway[:3] + sway.new_tensor(scene.eye)[:, None]
    ahead = F.normalize(sway[3:6] + sway.new_tensor(scene.target)[:, None] - eye, dim=0)
    down = torch.stack([sway[6].sin(), sway[6].cos(), 0 * t])
    right = F.normalize(torch.linalg.cross(down, ahead, dim=0), dim=0)
    down = torch.linalg.cross(ahead, right, dim=0)
    c2w = torch.eye(4, dtype=t.dtype).repeat(frames, 1, 1)
    c2w[:, :3] = torch.stack([right, down, ahead, eye], -1).transpose(0, 1)
    return c2w


def stage(x, z, yaw):
    """(x, z) as the first camera sees the floor (z ahead, its target at 0) in the room's axes."""
    return x * math.cos(yaw) + z * math.sin(yaw), z * math.cos(yaw) - x * math.sin(yaw)


def shift(rng):
    """Where in the noise a texture begins."""
    return rng.uniform(0, 32), rng.uniform(0, 32), rng.uniform(0, 32)


def make_room(rng, distance, yaw):
    """A corner two to three metres behind the target, and space for 40 degree orbits around it.

    The orbits may begin 30% further away than the camera does.
    """
    back = 1.3 * distance + 0.5
    end = rng.uniform(2.3, 3.0)
    side = rng.uniform(2.2, 2.7)
    wide = (back * math.sin(abs(yaw) + math.radians(40)) + 0.4 + side) / 2
    pattern, colours, scale = rng.choice(WALLS)
    middle = (math.copysign(1, yaw) * (side - wide), -2.2, (end - back) / 2)
    wall = Texture(pattern, colours, scale, shift(rng))
    return Body("box", (wide, 2.2, (end + back) / 2), middle, wall)


def make_bodies(rng, colours, yaw, room):
    """Something that turns on a plinth, and two to five of the ROLES around it, one moving."""
    h = rng.uniform(0.22, 0.28)
    r = rng.uniform(0.2, 0.25)
    kind = rng.choice(("box", "sphere"))
    plinth = rng.choice(("box", "cylinder"))
    bodies = [Body(plinth, (0.3, h, 0.3), (0, -h, 0), dress(rng, "cylinder", colours, 0.3))]
    texture = dress(rng, kind, colours, r)
    turn = (rng.random(), rng.choice((-1.5, 1.5)))
    bodies.append(Body(kind, (r, r, r), (0, -2 * h - r, 0), texture, yaw=turn))
    for role in pick_roles(rng, ROLES, rng.choice(ROLES[:3])):
        for _ in range(TRIES):
            body = make_extra(rng, role, colours, yaw, room)
            if inside(body, room) and clear(body, bodies):
                bodies.append(body)
                break
    return bodies


def pick_roles(rng, roles, first):
    """The first role and one to four of the others."""
    others = [role for role in roles if role != first]
    return first, *rng.sample(others, rng.randint(1, 4))


def make_extra(rng, role, colours, yaw, room):
    """A body for a role, at a random place."""
    size = rng.uniform(*role.size)
    side = rng.uniform(*role.side)
    back = rng.uniform(*role.back)
    drift = make_drift(rng, role.drift, yaw)
    x, z = stage(rng.choice((-1, 1)) * side, back, yaw)  # where it is in the middle of the clip
    x -= drift[0] / 2
    z -= drift[1] / 2
    if role.kind == "cabinet":
        half = (size, rng.uniform(0.5, 0.75), 0.2)
        books = Texture("books", " ".join(rng.sample(colours, 3)), half[1] / 2, shift(rng))
        return Body("box", half, (x, -half[1], room.at[2] + room.half[2] - 0.21), books)
    half = (size, size * (1.6 if role.kind == "cylinder" else 1), size)
    texture = dress(rng, role.kind, colours, size)
    if role.kind == "sphere":
        hop = (rng.uniform(*role.hop), rng.uniform(2.5, 3.5), rng.random())
        heading = (math.atan2(*drift), 0.0)
        roll = -math.hypot(*drift) / size
        return Body("sphere", half, (x, -half[1], z), texture, drift, hop, heading, roll)
    turn = (rng.uniform(0, 3), rng.uniform(-2.5, 2.5))
    return Body(role.kind, half, (x, -half[1], z), texture, drift, yaw=turn)


def make_drift(rng, most, yaw):
    """(x, z) in the room's axes of a drift of at most `most` to the side and back."""
    return stage(rng.uniform(-most[0], most[0]), rng.uniform(-most[1], most[1]), yaw)


def dress(rng, kind, colours, size):
    """A texture that suits the kind, in proportion to its half extent."""
    choices = [("marble", 0.3), ("stripes", size / 2), ("speckle", 0.06)]
    if kind == "sphere":
        choices += [("beach", size), ("checks", size / 2)]
    if kind == "box":
        choices += [("crate", size), ("checks", size / 2)]
    pattern, scale = rng.choice(choices)
    if pattern == "crate":
        return Texture(pattern, rng.choice(WOODS), scale, shift(rng), 0.1)
    return Texture(pattern, " ".join(rng.sample(colours, 3)), scale, shift(rng), 0.4)


def inside(body, room):
    """Whether the body stays within the walls, however it turns."""
    turn = math.sqrt(2) if body.yaw[1] else 1
    for i, t in itertools.product((0, 2), (0, 1)):
        offset = body.at[i] + t * body.drift[i // 2] - room.at[i]
        if abs(offset) + turn * body.half[i] >= room.half[i]:
            return False
    return True


def clear(body, others):
    """Whether a body stays clear of all others."""
    return all(apart(body, other) for other in others)


def apart(a, b):
    """Whether the two stay clear of each other."""
    x = a.at[0] - b.at[0]
    z = a.at[2] - b.at[2]
    dx = a.drift[0] - b.drift[0]
    dz = a.drift[1] - b.drift[1]
    t = min(max(-(x * dx + z * dz) / (dx * dx + dz * dz + 1e-9), 0), 1)  # when they are nearest
    return math.hypot(x + t * dx, z + t * dz) > 0.05 + (footprint(a) + footprint(b))


def footprint(body):
    """The radius of the circle on the floor that the body turns in."""
    x, _, z = body.half
    return math.hypot(x, z) if body.kind == "box" else max(x, z)


# ---- rays ----------------------------------------------------------------------------------------


def trace(scene, c2w, K, height, width, time, samples=None):
    """The scene from c2w [B, 4, 4] through K ([3, 3] or [B, 3, 3], pixels) at time [B].

    Returns, on c2w's device, rgb [B, H, W, 3] float32 in [0, 1], the mean of samples x samples rays
    a pixel (by default the scene's), and depth [B, H, W] float32, the z in metres where the ray
    through the pixel's centre ends.
    """
    c2w = c2w.double()
    samples = samples or scene.samples
    inverse = torch.linalg.inv(K.to(c2w)).expand(len(c2w), 3, 3)
    origin = c2w[:, :3, 3:].float()
    spacing = inverse[:, :1, 0].float() * scene.softness / samples
    solids = [place(body, time.to(c2w)) for body in (scene.room, *scene.bodies)]
    light = 0
    for i, j in itertools.product(range(samples), repeat=2):
        dv = (i + 0.5) / samples - 0.5
        du = (j + 0.5) / samples - 0.5
        rays = pixel_rays(c2w, inverse, height, width, du, dv)
        light = light + shade(scene, solids, origin, rays, spacing)
    rgb = scene.expose(light / samples**2).transpose(1, 2).unflatten(1, (height, width))
    depth, _ = nearest_surface(solids, origin, pixel_rays(c2w, inverse, height, width, 0, 0))
    return rgb, depth.unflatten(1, (height, width))


def pixel_rays(c2w, inverse, height, width, du, dv):
    """Directions [B, 3, H W] through all pixels, (du, dv) off their centres, 1 long along z."""
    v = torch.arange(height).to(c2w) + dv
    u = torch.arange(width).to(c2w) + du
    v, u = torch.meshgrid(v, u, indexing="ij")
    pixels = torch.stack([u, v, torch.ones_like(u)]).flatten(1)
    return (c2w[:, :3, :3] @ inverse @ pixels).float()


def place(body, t):
    """The body as a Solid at times t [B]."""
    height, count, phase = body.hop
    hop = (count * t + phase) % 1
    drop = -4 * height * hop * (1 - hop)
    x = body.at[0] + body.drift[0] * t
    z = body.at[2] + body.drift[1] * t
    gone = (t < body.shown[0]) | (t > body.shown[1])
    centre = torch.stack([x, body.at[1] + drop + GONE * gone, z], 1)
    yaw = body.yaw[0] + body.yaw[1] * t
    roll = body.tilt + body.roll * t
    s, c = yaw.sin(), yaw.cos()
    sr, cr = roll.sin(), roll.cos()
    axes = torch.stack([c, s * sr, s * cr, 0 * t, cr, -sr, -s, c * sr, c * cr], 1)
    return Solid(body.kind, body.half, centre[..., None].float(), axes.unflatten(1, (3, 3)).float())


def nearest_surface(solids, origin, ray):
    """z-depth [B, P] of the nearest surface, and its solid's index; solid 0 is seen from inside."""
    depth = interval(solids[0], origin, ray)[1]
    owner = torch.zeros_like(depth, dtype=torch.long)
    for i, solid in enumerate(solids[1:], 1):
        near, far = interval(solid, origin, ray)
        hit = (near < far) & (near > 0) & (near < depth)
        depth = torch.where(hit, near, depth)
        owner = owner.masked_fill(hit, i)
    return depth, owner


def interval(solid, origin, ray):
    """Where rays enter and leave a solid [B, P]; enter > leave where they miss it."""
    o = solid.local(origin)
    d = solid.turned(ray)
    half = solid.half
    if solid.kind == "sphere":
        return disc(half[0], o, d)
    if solid.kind == "ellipsoid":
        radii = o.new_tensor(half)[:, None]
        return disc(1, o / radii, d / radii)
    spans = [slab(half[1], o[:, 1], d[:, 1])]
    if solid.kind == "box":
        spans.append(slab(half[0], o[:, 0], d[:, 0]))
        spans.append(slab(half[2], o[:, 2], d[:, 2]))
    elif solid.kind == "cone":
        spans.append(cone(half, o, d))
    else:
        spans.append(disc(half[0], o[:, ::2], d[:, ::2]))
    near, far = zip(*spans, strict=True)
    return torch.stack(near).amax(0), torch.stack(far).amin(0)


def slab(half, o, d):
    """The interval within `half` of a plane through 0."""
    d = torch.where(d.abs() < 1e-9, 1e-9, d)
    middle = -o / d
    reach = half / d.abs()
    return middle - reach, middle + reach


def disc(radius, o, d):
    """The interval inside a circle or sphere.

    It is measured from the ray's nearest point to the centre, where float32 loses least.
    """
    square = (d * d).sum(1).clamp_min(1e-12)
    middle = -(o * d).sum(1) / square
    depth = radius**2 - ((o + middle[:, None] * d) ** 2).sum(1)
    reach = (depth.abs() / square).sqrt().copysign(depth)
    return middle - reach, middle + reach


def cone(half, o, d):
    """The interval inside the endless cone's half that has the body.

    It is measured from the ray's nearest point to the body's centre.
    """
    middle = -(o * d).sum(1) / (d * d).sum(1)
    x, y, z = (o + middle[:, None] * d).unbind(1)
    radius, slope = taper(half, y)
    widening = slope * d[:, 1]
    a = d[:, 0] ** 2 + d[:, 2] ** 2 - widening**2
    a = torch.where(a.abs() < 1e-6, 1e-6, a)
    b = x * d[:, 0] + z * d[:, 2] - radius * widening
    depth = b * b + a * (radius**2 - x * x - z * z)
    root = depth.abs().sqrt().copysign(depth)
    near = (-b - root) / a
    far = (-b + root) / a
    steep = (a < 0) * widening  # such a ray crosses both halves of the cone
    return near.masked_fill(steep < 0, -1e6) + middle, far.masked_fill(steep > 0, 1e6) + middle


def taper(half, y):
    """A cone's radius at height -y above its middle, and how fast it grows downwards."""
    slope = (half[0] - half[2]) / (2 * half[1])
    return (half[0] + half[2]) / 2 + slope * y, slope


def face_distances(kind, half, x, y, z):
    """How far points are outside each face."""
    if kind == "box":
        return [x.abs() - half[0], y.abs() - half[1], z.abs() - half[2]]
    if kind == "sphere":
        return [(x * x + y * y + z * z).sqrt() - half[0]]
    if kind == "ellipsoid":  # to first order
        a = sum((v / h) ** 2 for v, h in zip((x, y, z), half, strict=True)).sqrt()
        b = sum((v / h**2) ** 2 for v, h in zip((x, y, z), half, strict=True)).sqrt()
        return [a * (a - 1) / b.clamp_min(1e-6)]
    if kind == "cone":
        radius, slope = taper(half, y)
        return [((x * x + z * z).sqrt() - radius) / math.hypot(1, slope), y.abs() - half[1]]
    return [(x * x + z * z).sqrt() - half[0], y.abs() - half[1]]


def distance(solid, point):
    """Signed distance [B, P] of points [B, 3, P], negative inside."""
    faces = torch.stack(face_distances(solid.kind, solid.half, *solid.local(point).unbind(1)))
    return length(faces.clamp_min(0)) + faces.amax(0).clamp_max(0)


def outward_normal(kind, half, p):
    """Outward unit normal [3, n] at surface points p [3, n], in the body's axes."""
    face = torch.stack(face_distances(kind, half, *p)).argmax(0)
    sign = p.sign()
    side = p / half[0]
    if kind == "box":
        return torch.stack([sign[i] * (face == i) for i in range(3)])
    if kind == "sphere":
        return side
    if kind == "ellipsoid":
        return F.normalize(p / p.new_tensor(half)[:, None] ** 2, dim=0)
    if kind == "cone":
        rise = -taper(half, p[1])[1] * p[::2].norm(dim=0)
        side = F.normalize(torch.stack([p[0], rise, p[2]]), dim=0)
        return torch.where(face == 0, side, torch.stack([0 * p[0], sign[1], 0 * p[0]]))
    return torch.stack([side[0] * (face == 0), sign[1] * (face == 1), side[2] * (face == 0)])


# ---- light ---------------------------------------------------------------------------------------


def shade(scene, solids, origin, ray, spacing):
    """Linear light [B, 3, P] along the rays, which are `spacing` [B, 1] apart at depth 1."""
    depth, owner = nearest_surface(solids, origin, ray)
    point = origin + depth[:, None] * ray
    view = ray / length(ray, 1)[:, None]
    normal, colour, gloss = surfaces(scene, solids, point, owner, view, depth * spacing)
    if scene.unlit:
        return colour
    lamp = torch.tensor(scene.light, device=point.device)[:, None] - point
    away = length(lamp, 1)
    lamp = lamp / away[:, None]
    facing = (normal * lamp).sum(1).clamp_min(0)
    halfway = lamp - view
    shine = ((normal * halfway).sum(1) / length(halfway, 1)).clamp_min(0)
    glint = gloss * shine**48 * (facing > 0)
    seen = 1
    if scene.shadows:
        seen = seen_light(solids, point, lamp, away, owner, scene.penumbra)
    power = scene.power * seen / (0.45 + 0.06 * away**2)
    room = openness(solids, point + REACH * normal) if scene.contact else torch.ones_like(away)
    up = 0.5 - 0.5 * normal[:, 1]
    lamp, below, above = torch.tensor(scene.tints, device=point.device)[..., None]
    direct = lamp * power[:, None]
    ambient = torch.lerp(below, above, up[:, None]) * room[:, None]
    light = colour * (direct * facing[:, None] + ambient) + direct * glint[:, None]
    bare = (owner == 0) & (scene.backdrop | scene.open_air & (normal[:, 1] > -0.5))
    return torch.where(bare[:, None], colour, light)


def seen_light(solids, point, lamp, away, owner, penumbra):
    """How much of the light is seen [B, P] from points along directions `lamp`.

    Each body takes away by its distance about where the way to the light passes it nearest.
    """
    seen = torch.ones_like(away)
    for i, solid in enumerate(solids[1:], 1):
        near, far = interval(solid, point, lamp)
        t = torch.minimum((near + far).clamp_min(0) / 2, away)
        room = distance(solid, point + t[:, None] * lamp) / (penumbra * t / away + 0.003)
        own = owner == i  # a convex body shades itself by its normal
        seen = seen * smooth(0.5 + 0.5 * room).masked_fill(own, 1)
    return seen


def openness(solids, step):
    """Contact darkening [B, P]: how free the point is that lies one step above the surface."""
    free = (-distance(solids[0], step) / REACH).clamp(0, 1)
    for solid in solids[1:]:
        free = free * (distance(solid, step) / REACH).clamp(0, 1)
    return 0.25 + 0.75 * free


def tone(light):
    """Linear light to display values in [0, 1]."""
    return (1 - torch.exp(-1.15 * light)) ** (1 / 2.2)


def length(v, dim=0):
    return (v * v).sum(dim).sqrt()


# ---- surfaces ------------------------------------------------------------------------------------


def surfaces(scene, solids, point, owner, view, wide):
    """Normal and colour [B, 3, P] and gloss [B, P] of what each ray met.

    view: the rays' unit directions; wide [B, P]: how many metres wide a pixel is there.
    """
    owner = owner.flatten()
    found = point.new_zeros(7, owner.numel())
    for i, (solid, body) in enumerate(zip(solids, (scene.room, *scene.bodies), strict=True)):
        at = (owner == i).nonzero()[:, 0]
        p = flat(solid.local(point))[:, at]
        n = outward_normal(solid.kind, solid.half, p) * (1 if i else -1)
        normal = (solid.axes[at // wide.shape[1]].permute(1, 2, 0) * n).sum(1)
        slant = (normal * flat(view)[:, at]).sum(0).abs().clamp_min(0.05).sqrt()
        w = wide.flatten()[at] / slant
        found[:3, at] = normal
        if i:
            found[3:6, at] = body.texture.paint(p, n, w)
            found[6, at] = body.texture.gloss
        else:
            found[3:6, at] = scene.paint(p + solid.centre[0], n, w)
            found[6, at] = scene.floor.gloss * (n[1] < -0.5)
    found = found.unflatten(1, wide.shape).transpose(0, 1)  # [7, B P] -> [B, 7, P]
    return found[:, :3], found[:, 3:6], found[:, 6]


def flat(v):
    return v.transpose(0, 1).flatten(1)  # [B, 3, P] -> [3, B P]


def room_colour(scene, p, n, w):
    """Ceiling, floor and walls."""
    colour = textures.linear("e6dfd0", p)[0].repeat(1, p.shape[1])
    for where, paint in ((n[1] < -0.5, floor_colour), (n[1].abs() < 0.5, wall_colour)):
        at = where.nonzero()[:, 0]
        colour[:, at] = paint(scene, p[:, at], n[:, at], w[at])
    return colour


def floor_colour(scene, p, n, w):
    depth = torch.minimum(scene.rug_half[0] - p[0].abs(), scene.rug_half[1] - p[2].abs())
    rug = textures.colour(scene.rug, torch.stack([p[0], depth, p[2]]), n, w)
    return torch.lerp(textures.colour(scene.floor, p, n, w), rug, edge(depth, w))


def wall_colour(scene, p, n, w):
    """Boards below a rail, above a skirting; over them the wall's texture, hung with pictures."""
    u, height = textures.face(p, n)
    trim = textures.linear(scene.trim, p)[0]
    board = (height > SKIRTING) & (height < WAINSCOT - 0.06)
    rails = (SKIRTING, WAINSCOT - 0.06, WAINSCOT)
    lines = sum(edge(0.006 + w / 2 - (height - h).abs(), w) for h in rails)
    boards = trim * (1 - 0.3 * board * pulse(u / 0.16, 0.06, w / 0.16))
    wall = textures.colour(scene.room.texture, p, n, w)
    colour = torch.lerp(boards, wall, edge(height - WAINSCOT, w)) * (1 - 0.4 * lines)
    along_z = n[0].abs() > 0.5
    x, _, z = scene.room.half
    start = torch.where(along_z, scene.room.at[2] - z, scene.room.at[0] - x)
    span = torch.where(along_z, 2 * z, 2 * x)
    return hang_pictures(colour, scene.seed, u - start, span / (span / 1.2).floor(), height, n, w)


def hang_pictures(wall, seed, u, every, height, n, w):
    """A framed landscape in most stretches of the wall, `every` metres long."""
    cell = torch.stack([(u / every).floor(), 2 * n[0] + 4 * n[2], 0 * u + seed % 32])
    a, b, c = noise(cell + 3), noise(cell + 7), noise(cell + 11)
    x = u - every * (cell[0] + 0.5) - 0.2 * (a - 0.5)
    y = height - 1.38 - 0.1 * b
    depth = torch.minimum(0.25 + 0.15 * b - x.abs(), 0.2 + 0.1 * c - y.abs())  # inside the frame
    at = ((depth > -w) & (c > 0.35)).nonzero()[:, 0]
    tints = torch.cat(textures.linear(PALETTES[seed % 5], wall), 1)  # [3, 5]
    picture = landscape(tints, x[at], y[at], depth[at], (a[at], b[at], c[at]), w[at])
    wall[:, at] = torch.lerp(wall[:, at], picture, edge(depth[at], w[at]))
    return wall


def landscape(tints, x, y, depth, luck, w):
    """Sky, sun, three ridges and a frame, [3, n], at (x, y), `depth` inside the frame."""
    a, b, c = luck
    pick = (5 * a).long()
    sky = tints[:, pick]
    hill = tints[:, (pick + 2) % 5]
    colour = torch.lerp(sky, torch.ones_like(sky), 0.7 - y)
    sun = edge(0.07 - torch.hypot(x - 0.1 * b, y - 0.06), w)
    colour = torch.lerp(colour, tints[:, (pick + 1) % 5], sun)
    for k in range(3):
        ridge = 0.15 * fbm(torch.stack([4 * x + 9 * k, 9 * b, 9 * c]), 4 * w) - 0.06 * k
        colour = torch.lerp(colour, hill * 0.6**k, edge(ridge - y, w))
    for border, tint in ((0.075, 0.8), (0.025, 0.03)):
        colour = torch.lerp(colour, torch.full_like(sky, tint), edge(border - depth, w))
    return colour
