"""A third world, to evaluate on, never to train on: painted toys on a table, in hard light.

It shares no scene, texture or ray tracer with the other two. A toy is a rigid group of balls and of
convex hulls, each the points p with n p <= d for its planes (n, d). All of it stands in an arena, a
hull that is seen from inside: the table and the screens around it. Axes are OpenCV's, the table is
y = 0, lengths are in metres of a world where a toy block measures about half of one. A clip lasts
from time 0 to 1.
"""

if __name__ == "__main__":
    raise SystemExit("error: a module, not a program; toolbox/README.md lists the programs")

import colorsys
import math
from random import Random
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from toolbox.synthetic import clips, toy_shapes
from toolbox.synthetic.toy_shapes import Paint, Part, dot

SAMPLES = 2  # rays a pixel, to each side
GAMMA = 2.2
SKY_LIGHT = 0.32  # share of the light that reaches into shadows
NEAR = 1e-3  # metres by which a shadow's ray starts off the surface
REACH = 2.6  # metres from the middle, within which toys stand and move
FRONT = 1.7  # of these on the camera's side, so that nothing comes too near to it
GROUND_PATTERNS = ("plain", "checks", "stripes", "rings", "dots", "zigzag")
SCREEN_PATTERNS = ("plain", "plain", "bars", "hills", "bands", "dots")
BEHIND = ((0, 52, -52), (30, -30), (5, 45, -50), (20, -45))  # degrees, where screens stand
FAR = 9.5  # metres to those behind the camera
MOVES = ("arc", "crane", "push", "truck", "sway")


class Toy(NamedTuple):
    """A group of parts and how it moves; angles in radians."""

    parts: tuple[Part, ...]
    size: float  # radius of a ball about its origin that holds all of it
    at: tuple[float, float, float]  # at time 0.5
    drift: tuple[float, float] = (0.0, 0.0)  # along x and z, in a clip
    hop: tuple[float, float] = (0.0, 0.0)  # height, hops a clip
    yaw: float = 0.0
    spin: float = 0.0  # a clip


class Table(NamedTuple):
    """A whole scene. Its camera turns about `target` at (azimuth, elevation, distance)."""

    toys: tuple[Toy, ...]
    arena: Part
    screens: tuple[Paint, ...]  # of the arena's planes, the table's first
    sun: tuple[float, float, float]  # unit vector towards it
    target: tuple[float, float, float]
    camera: tuple[float, float, float]
    move: str
    amount: float  # of the move, -1 to 1
    roll: float


class Hits(NamedTuple):
    """What rays meet: how far along the ray, which toy and part (-1: the arena), which plane."""

    depth: Tensor  # float32 [N]
    toy: Tensor  # int64 [N], as the next two
    part: Tensor
    plane: Tensor


# ---- making a scene ------------------------------------------------------------------------------


def make_table(seed):
    """The scene of a seed."""
    rng = Random(f"toys {seed}")
    azimuth = rng.uniform(-math.pi, math.pi)
    colours = Colours(rng)
    toys = [middle_toy(rng, colours)]
    taken = swept(toys[0])
    kinds = [rng.choice(toy_shapes.MOVING) for _ in range(rng.randint(2, 3))]
    kinds += [rng.choice(toy_shapes.STILL) for _ in range(rng.randint(5, 7))]
    for kind in kinds:
        toy = placed(rng, colours, kind, azimuth, taken)
        if toy:
            toys.append(toy)
    arena, screens = make_arena(rng, colours, azimuth)
    lamp = azimuth + rng.choice((-1, 1)) * rng.uniform(0.4, 1.4)
    return Table(
        tuple(toys), arena, screens, polar(lamp, rng.uniform(0.6, 1.0)),
        target=(rng.uniform(-0.2, 0.2), rng.uniform(-0.7, -0.45), rng.uniform(-0.2, 0.2)),
        camera=(azimuth, math.radians(rng.uniform(22, 35)), rng.uniform(5.2, 6.2)),
        move=rng.choice(MOVES), amount=rng.choice((-1, 1)) * rng.uniform(0.4, 1.0),
        roll=rng.uniform(-0.04, 0.04),
    )


class Colours:
    """Draws Paints in a few flat colours of a scene."""

    def __init__(self, rng):
        self.rng = rng
        first = rng.random()
        self.flat = [(0.88, 0.86, 0.82)]
        for i in range(6):
            hue = first + i / 6 + rng.uniform(-0.06, 0.06)
            value = rng.uniform(0.55, 0.95)
            self.flat.append(colorsys.hsv_to_rgb(hue % 1, rng.uniform(0.6, 0.95), value))

    def paint(self, patterns, scale):
        """A Paint of one of the patterns; scale: range of the size of its figures."""
        colours = tuple(self.rng.sample(self.flat, 3))
        return Paint(self.rng.choice(patterns), colours, self.rng.uniform(*scale))


def middle_toy(rng, colours):
    """What the camera looks at."""
    make = toy_shapes.STILL_SHAPES[rng.choice(toy_shapes.TALL)]
    parts = make(rng, colours, rng.uniform(1.1, 1.3))
    return Toy(parts, toy_shapes.size_of(parts), (0.0, 0.0, 0.0), yaw=rng.uniform(0, math.pi))


def placed(rng, colours, kind, azimuth, taken):
    """A Toy that meets no other at any time, or None where no place is found.

    taken: discs (x, z, radius) of the table, to which the toy's are added.
    """
    moving = kind in toy_shapes.MOVING
    shapes = toy_shapes.MOVING_SHAPES if moving else toy_shapes.STILL_SHAPES
    parts = shapes[kind](rng, colours, rng.uniform(0.55, 0.85))
    size = toy_shapes.size_of(parts)
    for _ in range(200):
        angle = rng.uniform(-math.pi, math.pi)
        away = REACH * math.sqrt(rng.uniform(0.08, 1))
        at = (away * math.cos(angle), 0.0, away * math.sin(angle))
        yaw = rng.uniform(-math.pi, math.pi)
        toy = Toy(parts, size, at, yaw=yaw)
        if moving:
            toy = toy_in_motion(rng, kind, toy)
        discs = swept(toy)
        if is_free(discs, taken, azimuth):
            taken += discs
            return toy
    return None


def toy_in_motion(rng, kind, toy):
    """A Toy moving as its kind does: a car goes where it points, a ball bounces, a gem spins."""
    way = rng.uniform(0.8, 1.8)
    drift = (way * math.cos(toy.yaw), -way * math.sin(toy.yaw))
    if kind == "car":
        return toy._replace(drift=drift)
    if kind == "ball":
        hop = (rng.uniform(0.3, 0.9), rng.uniform(1.5, 3.5))
        return toy._replace(drift=drift, hop=hop, spin=rng.uniform(-4, 4))
    return toy._replace(spin=rng.choice((-1, 1)) * rng.uniform(2, 5))


def swept(toy):
    """Discs of the table that a toy is above in the course of a clip."""
    discs = []
    wide = toy_shapes.width_of(toy.parts)
    for time in (-0.5, -0.25, 0, 0.25, 0.5):
        discs.append((toy.at[0] + toy.drift[0] * time, toy.at[2] + toy.drift[1] * time, wide))
    return discs


def is_free(discs, taken, azimuth):
    """Whether discs lie in reach, not before the camera, and off those that are taken."""
    for x, z, wide in discs:
        towards = -x * math.sin(azimuth) - z * math.cos(azimuth)
        if math.hypot(x, z) + wide > REACH or towards + wide > FRONT:
            return False
        for other_x, other_z, other_wide in taken:
            if math.hypot(x - other_x, z - other_z) < wide + other_wide:
                return False
    return True


def make_arena(rng, colours, azimuth):
    """(the arena's hull, the Paint of each plane): the table, screens behind the toys and others.

    Those behind are near to the toys. Two more are behind the camera, which may back away.
    """
    planes = [(0.0, 1.0, 0.0, 0.0)]
    paints = [colours.paint(GROUND_PATTERNS, (0.5, 1.0))]
    screens = [(turn, rng.uniform(2.8, 3.4)) for turn in rng.choice(BEHIND)]
    for turn, far in [*screens, (130, FAR), (-130, FAR)]:
        angle = azimuth + math.radians(turn + rng.uniform(-6, 6))
        planes.append((math.sin(angle), 0.0, math.cos(angle), far))
        paints.append(colours.paint(SCREEN_PATTERNS, (0.6, 1.2)))
    return Part(None, tuple(planes)), tuple(paints)


# ---- the camera ----------------------------------------------------------------------------------


def polar(azimuth, elevation):
    """The unit vector from the middle towards a camera or light; azimuth 0 is -z, up is -y."""
    flat = math.cos(elevation)
    return (-flat * math.sin(azimuth), -math.sin(elevation), -flat * math.cos(azimuth))


def camera_path(table, frames):
    """c2w, float64 [frames, 4, 4], of the table's own camera."""
    poses = []
    for time in frame_times(frames):
        azimuth, elevation, distance = table.camera
        target = np.array(table.target)
        at = table.amount * (time - 0.5)
        if table.move == "arc":
            azimuth += 0.35 * at
        elif table.move == "crane":
            elevation += 0.16 * at
        elif table.move == "push":
            distance *= 1 - 0.2 * at
        elif table.move == "truck":
            target += 0.6 * at * np.array([math.cos(azimuth), 0, -math.sin(azimuth)])
        else:
            azimuth += 0.04 * math.sin(7 * time)
            elevation += 0.02 * table.amount * math.sin(11 * time)
        eye = target + distance * np.array(polar(azimuth, elevation))
        poses.append(look_at(eye, target, table.roll))
    return torch.from_numpy(np.stack(poses))


def look_at(eye, target, roll):
    """c2w, float64 [4, 4], of a camera at `eye` that sees `target` in its middle."""
    forward = (target - eye) / np.linalg.norm(target - eye)
    right = np.cross([0, 1, 0], forward)
    right /= np.linalg.norm(right)
    down = np.cross(forward, right)
    c2w = np.eye(4)
    c2w[:3, 0] = math.cos(roll) * right + math.sin(roll) * down
    c2w[:3, 1] = math.cos(roll) * down - math.sin(roll) * right
    c2w[:3, 2] = forward
    c2w[:3, 3] = eye
    return c2w


def frame_times(frames):
    """The time of each frame of a clip, 0 to 1."""
    return [i / max(frames - 1, 1) for i in range(frames)]


# ---- rays ----------------------------------------------------------------------------------------


def pose(toy, time, device):
    """(rotation [3, 3], place [3]) of a toy in the world at a time."""
    angle = toy.yaw + toy.spin * (time - 0.5)
    c, s = math.cos(angle), math.sin(angle)
    height, hops = toy.hop
    x = toy.at[0] + toy.drift[0] * (time - 0.5)
    y = toy.at[1] - height * abs(math.sin(math.pi * hops * time))
    z = toy.at[2] + toy.drift[1] * (time - 0.5)
    turn = torch.tensor([[c, 0, s], [0, 1, 0], [-s, 0, c]], device=device)
    return turn, torch.tensor([x, y, z], device=device)


def passing(centre, size, eye, ray):
    """Indices of rays, eye and ray [N, 3], that pass a ball [n]."""
    off = centre - eye
    along = dot(off, ray)
    length = dot(ray, ray)
    near = along.square() >= length * (dot(off, off) - size**2)
    return torch.nonzero(near & (along > -size * length.sqrt())).flatten()


def cast(table, poses, eye, ray):
    """Hits of rays from eye [N, 3] along ray [N, 3], float32, in the toys' poses."""
    depth, plane = toy_shapes.leave(table.arena, eye, ray)
    none = torch.full_like(plane, -1)
    hits = Hits(depth, none, none.clone(), plane)
    for i, toy in enumerate(table.toys):
        turn, place = poses[i]
        at = passing(place, toy.size, eye, ray)
        if not len(at):
            continue
        local_eye = (eye[at] - place) @ turn
        local_ray = ray[at] @ turn
        for j, part in enumerate(toy.parts):
            depth, plane = toy_shapes.enter(part, local_eye, local_ray)
            nearer = depth < hits.depth[at]
            won = at[nearer]
            hits.depth[won] = depth[nearer]
            hits.plane[won] = plane[nearer]
            hits.toy[won] = i
            hits.part[won] = j
    return hits


def lit(table, poses, point, sun):
    """Whether the sun [3] shines on points [N, 3], bool [N]: whether no toy is in the way."""
    dark = torch.zeros(len(point), dtype=torch.bool, device=point.device)
    ray = sun.expand_as(point)
    for toy, (turn, place) in zip(table.toys, poses, strict=True):
        at = passing(place, toy.size, point, ray)
        eye = (point[at] - place) @ turn
        local_ray = ray[at] @ turn
        for part in toy.parts:
            depth, _ = toy_shapes.enter(part, eye, local_ray)
            dark[at] |= torch.isfinite(depth)
    return ~dark


def surface(table, poses, hits, point):
    """(linear colour [N, 3], outward normal [N, 3]) of points [N, 3] that rays met."""
    colour = torch.empty_like(point)
    normal = torch.empty_like(point)
    for number, paint in enumerate(table.screens):
        at = torch.nonzero((hits.toy < 0) & (hits.plane == number)).flatten()
        inward = -point.new_tensor(table.arena.planes[number][:3])
        normal[at] = inward
        colour[at] = toy_shapes.coloured(paint, point[at], inward.expand(len(at), 3), False)
    for i, toy in enumerate(table.toys):
        turn, place = poses[i]
        for j, part in enumerate(toy.parts):
            at = torch.nonzero((hits.toy == i) & (hits.part == j)).flatten()
            if not len(at):
                continue
            local = (point[at] - place) @ turn
            facing = toy_shapes.facing(part, local, hits.plane[at])
            normal[at] = facing @ turn.T
            local = local - local.new_tensor(part.centre)
            colour[at] = toy_shapes.coloured(part.paint, local, facing, part.planes is None)
    return colour, normal


def see(table, poses, eye, ray):
    """Linear colours [N, 3] that rays meet."""
    hits = cast(table, poses, eye, ray)
    point = eye + hits.depth[:, None] * ray
    colour, normal = surface(table, poses, hits, point)
    sun = point.new_tensor(table.sun)
    slope = (normal @ sun).clamp_min(0)
    facing = torch.nonzero(slope > 0).flatten()
    start = point[facing] + NEAR * normal[facing]
    slope[facing] = slope[facing] * lit(table, poses, start, sun)
    up = 0.75 - 0.25 * normal[:, 1:2]  # skylight comes from above
    return colour * (SKY_LIGHT * up + (1 - SKY_LIGHT) * slope[:, None])


# ---- pictures ------------------------------------------------------------------------------------


def rays(c2w, k, height, width, samples):
    """(eye, ray), each float32 [height * samples * width * samples, 3], of all pixels' samples.

    The ray's z in the camera is 1, so that depth along it is z-depth.
    """
    inner = (torch.arange(samples, device=c2w.device) + 0.5) / samples - 0.5
    v = (torch.arange(height, device=c2w.device)[:, None] + inner).flatten()
    u = (torch.arange(width, device=c2w.device)[:, None] + inner).flatten()
    v, u = torch.meshgrid(v.double(), u.double(), indexing="ij")
    pixels = torch.stack([u, v, torch.ones_like(u)], -1).flatten(0, 1)
    ray = (pixels @ torch.linalg.inv(k).T @ c2w[:3, :3].T).float()
    return c2w[:3, 3].float().expand_as(ray), ray


def film(table, c2w, k, height, width, times):
    """The table from c2w [F, 4, 4] through k [F, 3, 3] at times [F], 0 to 1.

    (rgb uint8 [F, H, W, 3], depth float32 [F, H, W]); depth is that at the pixels' centres.
    """
    rgb = []
    depth = []
    for pose_now, k_now, time in zip(c2w, k, times, strict=True):
        poses = [pose(toy, time, c2w.device) for toy in table.toys]
        centres = rays(pose_now, k_now, height, width, 1)
        depth.append(cast(table, poses, *centres).depth.view(height, width))
        light = see(table, poses, *rays(pose_now, k_now, height, width, SAMPLES))
        light = light.view(height, SAMPLES, width, SAMPLES, 3).mean((1, 3))
        rgb.append(light.clamp(0, 1) ** (1 / GAMMA))
    return (torch.stack(rgb) * 255).round().byte(), torch.stack(depth)


def make_clip(seed, shape, device):
    """The clips.Clip of a seed's table; shape: (frames, height, width)."""
    frames, height, width = shape
    table = make_table(seed)
    focal = Random(f"toy lens {seed}").uniform(0.95, 1.15) * width
    k = clips.lens(focal, height, width).to(device)
    c2w = camera_path(table, frames).to(device)
    every = k.expand(frames, 3, 3)
    return clips.Clip(table, *film(table, c2w, every, height, width, frame_times(frames)), c2w, k)


def exact_view(clip, cameras):
    """What trajectory.Cameras of a clip see, uint8 [F, H, W, 3], without holes."""
    k = torch.from_numpy(cameras.intrinsics).to(clip.k)
    every = frame_times(len(clip.c2w))
    times = [every[frame] for frame in cameras.frames]
    c2w = clips.world_poses(clip, cameras)
    return film(clip.scene, c2w, k, *clip.depth.shape[1:], times)[0]
