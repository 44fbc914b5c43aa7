"""Worlds of every kind to train the small model on, by the ray tracer of scenes.py.

A third are its rooms. In the others all is drawn at random: places, bodies, surfaces, light, lens
and the camera's way. Half of the scenes have exact depth, the others the errors of estimators.
Axes, units and shapes are those of scenes.py.
"""

if __name__ == "__main__":
    raise SystemExit("error: a module, not a program; toolbox/README.md lists the programs")

import math
from dataclasses import dataclass, replace
from random import Random

from toolbox.small_model import depth_errors, skins
from toolbox.small_model.skins import Skin, random_skin
from toolbox.synthetic import clips, scenes
from toolbox.synthetic.scenes import Body, Scene, stage
from toolbox.synthetic.textures import Texture

ROOMS = 1 / 3  # share of the scenes that are rooms of scenes.py
EXACT = 0.5  # share of the scenes whose depth is exact
SUN_AWAY = 1000.0  # distance of the light in open air [m]
WITHIN = 0.9  # of a room's half extent: how far from its middle a lamp is at most
BODIES = 18  # at most, if they are many
CHECKS = 13  # moments at which bodies are kept clear of the camera
KINDS = ("sphere", "sphere", "ellipsoid", "box", "box", "box", "cylinder", "cone")
GROUPS = {  # kind, half extents, place aside, height of its foot, which of three skins
    "figure": (
        ("cylinder", (0.13, 0.45, 0.13), -0.17, 0, 0),
        ("cylinder", (0.13, 0.45, 0.13), 0.17, 0, 0),
        ("ellipsoid", (0.38, 0.5, 0.26), 0, 0.7, 1),
        ("sphere", (0.22, 0.22, 0.22), 0, 1.6, 2),
    ),
    "tree": (
        ("cylinder", (0.12, 0.4, 0.12), 0, 0, 0),
        ("ellipsoid", (0.6, 0.8, 0.6), 0, 0.6, 1),
    ),
    "fir": (
        ("cylinder", (0.12, 0.4, 0.12), 0, 0, 0),
        ("cone", (0.6, 0.9, 0.02), 0, 0.6, 1),
    ),
    "table": (
        ("box", (0.1, 0.5, 0.5), -0.8, 0, 0),
        ("box", (0.1, 0.5, 0.5), 0.8, 0, 0),
        ("box", (1.0, 0.06, 0.6), 0, 1.0, 0),
        ("sphere", (0.2, 0.2, 0.2), 0, 1.12, 1),
    ),
    "stack": (
        ("box", (0.45, 0.45, 0.45), 0, 0, 0),
        ("cylinder", (0.3, 0.3, 0.3), 0, 0.9, 1),
        ("box", (0.2, 0.2, 0.2), 0, 1.5, 2),
    ),
    "arch": (
        ("box", (0.15, 0.7, 0.2), -0.7, 0, 0),
        ("box", (0.15, 0.7, 0.2), 0.7, 0, 0),
        ("box", (1.0, 0.18, 0.25), 0, 1.4, 1),
    ),
}


@dataclass(frozen=True)
class World(Scene):
    """A Scene whose looks are fields. `room` is the walls or the sky, `trim` is not used."""

    ceiling: Texture | None = None
    open_air: bool = Scene.open_air
    backdrop: bool = Scene.backdrop
    unlit: bool = Scene.unlit
    shadows: bool = Scene.shadows
    contact: bool = Scene.contact
    samples: int = Scene.samples
    lens_blur: float = Scene.lens_blur
    power: float = Scene.power
    penumbra: float = Scene.penumbra
    tints: tuple = Scene.tints
    clipped: bool = False  # bright light is cut off, not compressed

    def paint(self, p, n, w):
        """As of Scene."""
        colour = self.room.texture.paint(p, n, w)
        if self.backdrop:
            return colour
        at = (n[1] < -0.5).nonzero()[:, 0]
        colour[:, at] = self.paint_floor(p[:, at], n[:, at], w[at])
        if self.ceiling:
            at = (n[1] > 0.5).nonzero()[:, 0]
            colour[:, at] = self.ceiling.paint(p[:, at], n[:, at], w[at])
        return colour

    def paint_floor(self, p, n, w):
        """The floor [3, n] with the rug on it."""
        colour = self.floor.paint(p, n, w)
        half = p.new_tensor(self.rug_half)[:, None]
        at = (p[::2].abs() < half).all(0).nonzero()[:, 0]
        colour[:, at] = self.rug.paint(p[:, at], n[:, at], w[at])
        return colour

    def expose(self, light):
        """As of Scene."""
        if self.clipped or self.unlit:
            return light.clamp(1e-6, 1) ** (1 / 2.2)
        return scenes.tone(light.clamp_min(0))  # a pattern may reach beyond its colours


def random_clip(seed, shape, device):
    """The clip of a random scene, filmed with a random lens; shape: (frames, height, width)."""
    rng = Random(f"mixture {seed}")
    if rng.random() < ROOMS:
        clip = clips.random_clip(seed, shape, device)
    else:
        focal = rng.uniform(0.7, 1.5) * shape[2]
        clip = clips.make_clip(make_world(seed), shape, focal, device)
    return estimated(clip, seed)


def is_exact(seed):
    """Whether the depth of the scene's clips is exact."""
    return Random(f"depth {seed}").random() < EXACT


def estimated(clip, seed, view=0):
    """The clip of a view with the errors in its depth that the scene's clips have."""
    if is_exact(seed):
        return clip
    rng = Random(f"depth {seed} {view}")
    return clip._replace(estimate=depth_errors.estimate(clip.depth, rng))


def make_world(seed):
    """A scene of a random place, light, camera and bodies around the origin."""
    rng = Random(f"world {seed}")
    mood = rng.choice((None, None, None, None, "earth", *skins.MOODS))
    distance = math.exp(rng.uniform(math.log(1.6), math.log(6)))
    place = rng.choice(("room", "room", "room", "open", "open", "open", "void"))
    scene = make_place(rng, seed, place, distance, mood)
    room = scene.room if place == "room" else None
    scene = replace(scene, **make_light(rng, room, distance), **make_lens(rng))
    bodies = make_bodies(rng, scene, distance, mood)
    return replace(scene, bodies=tuple(bodies))


# ---- the place -----------------------------------------------------------------------------------


def make_place(rng, seed, place, distance, mood):
    """A World without bodies, with a camera `distance` away from the origin that looks there."""
    tall = distance * rng.uniform(0.05, 0.17)  # half height of the body in the middle
    rise = math.radians(rng.choice((rng.uniform(2, 25), rng.uniform(10, 60))))
    yaw = rng.uniform(-0.7, 0.7)
    x, z = stage(0, -distance * math.cos(rise), yaw)
    target = (0.0, -tall, 0.0)
    eye = (x, -max(tall, 0.1 * distance) - distance * math.sin(rise), z)
    sway = make_sway(rng, eye, distance, place)
    room, ceiling = make_room(rng, place, eye, distance, mood)
    floor = random_skin(rng, distance * 0.6, mood=mood, plain=0.25)
    rug = random_skin(rng, distance * 0.4, mood=mood)
    rug_half = (0.0, 0.0)
    if rng.random() < 0.25:
        rug_half = (distance * rng.uniform(0.3, 0.8), distance * rng.uniform(0.3, 0.8))
    return World(seed, room, floor, rug, rug_half, "", (), (0.0, -3.0, 0.0), eye, target, sway,
                 ceiling=ceiling, open_air=place == "open", backdrop=place == "void")


def make_room(rng, place, eye, distance, mood):
    """(what surrounds everything, its ceiling or None)."""
    if place != "room":
        far = distance * rng.uniform(2.5, 9)
        high = far * rng.uniform(0.5, 1)
        sky = make_sky(rng, far, mood, place == "void")
        y = 0.0 if place == "void" else -high
        return Body("cylinder", (far, high, far), (0.0, y, 0.0), sky), None
    ahead = distance * rng.choice((rng.uniform(0.25, 0.8), rng.uniform(0.6, 2.5)))
    back = 1.25 * distance + 0.3
    left = max(0.5 * distance, 0.3 * distance - eye[0]) + distance * rng.uniform(0.1, 1.2)
    right = max(0.5 * distance, 0.3 * distance + eye[0]) + distance * rng.uniform(0.1, 1.2)
    high = max(-eye[1] + 0.4 * distance, distance * rng.uniform(0.5, 2))
    half = ((left + right) / 2, high / 2, (ahead + back) / 2)
    middle = ((right - left) / 2, -high / 2, (ahead - back) / 2)
    wall = random_skin(rng, distance * 0.7, mood=mood, plain=0.4)
    ceiling = rng.choice((None, random_skin(rng, distance, mood=mood, plain=0.8)))
    return Body("box", half, middle, wall), ceiling


def make_sky(rng, far, mood, void):
    """One colour, a gradient, clouds, a photograph, or anything."""
    kind = rng.choice(("even", "even", "gradient", "gradient", "clouds", "photo", "any"))
    dark = rng.random() < 0.25
    colours = skins.random_colours(rng, 3, "dark" if dark else rng.choice(("pale", "vivid", mood)))
    if rng.random() < 0.2:
        colours = rng.choice(("000000 202020 000000", "ffffff e0e0e0 ffffff"))
    if not void and rng.random() < 0.3:
        blue = f"{rng.randrange(40, 110):02x}{rng.randrange(110, 170):02x}"
        colours = f"{blue}{rng.randrange(190, 240):02x} cfdcea f4f4f2"
    luck = (rng.random(), rng.random(), rng.random())
    shift = skins.random_shift(rng)
    if kind == "even":
        return Skin("even", colours, 1.0)
    if kind == "gradient":
        return Skin("gradient", colours, far * rng.uniform(0.1, 0.4), angle=math.pi / 2)
    if kind == "clouds":
        return Skin("fractal", colours, far * rng.uniform(0.1, 0.6), shift, luck=luck,
                    stretch=(0.6, 1.4, 0.6))
    if kind == "photo":
        return Skin("photo", "", far * rng.uniform(0.6, 1.6), shift, luck=luck, radius=far)
    return random_skin(rng, far, radius=far, mood=mood)


def make_light(rng, room, distance):
    """Fields of a World: the light, its strength, colour and size, and how it shades.

    room: the Body whose walls the light is to be within, or None: it is far away.
    """
    around = rng.uniform(0, 2 * math.pi)
    up = math.radians(rng.uniform(20, 85))
    far = distance * rng.uniform(0.8, 1.6) if room else SUN_AWAY
    flat = far * math.cos(up)
    light = (flat * math.sin(around), -far * math.sin(up), flat * math.cos(around))
    if room:
        inside = []
        for x, half, middle in zip(light, room.half, room.at, strict=True):
            inside.append(min(max(x, middle - WITHIN * half), middle + WITHIN * half))
        light = tuple(inside)
        far = math.hypot(*light)
    clipped = rng.random() < 0.5
    strength = rng.uniform(0.8, 1.4) if clipped else rng.uniform(1.6, 3.6)
    ambient = rng.choice((0.02, 0.1, 0.25, 0.4)) * (0.8 if clipped else 1.3)
    warm = rng.uniform(-0.25, 0.25)
    lamp = (1.0 + warm, 1.0, 1.0 - warm)
    if rng.random() < 0.1:
        lamp = (rng.uniform(0.3, 1.3), rng.uniform(0.3, 1.3), rng.uniform(0.3, 1.3))
    below = tuple(ambient * rng.uniform(0.5, 1) for _ in range(3))
    above = tuple(ambient * rng.uniform(0.8, 1.2) for _ in range(3))
    soft = rng.choice((0.0, 0.0, 0.01, rng.uniform(0.02, 0.12)))
    unlit = rng.random() < 0.08
    return dict(light=light, power=strength * (0.45 + 0.06 * far**2), penumbra=soft * far,
                tints=(lamp, below, above), clipped=clipped, unlit=unlit,
                shadows=rng.random() < 0.85, contact=rng.random() < 0.5)


def make_lens(rng):
    """Fields of a World: crisp with or without steps along edges, or soft."""
    kind = rng.choice(("stepped", "crisp", "crisp", "soft", "soft"))
    if kind == "stepped":
        return dict(samples=1, softness=rng.uniform(0.3, 1), lens_blur=0.0)
    if kind == "crisp":
        return dict(softness=rng.uniform(0.7, 1.2), lens_blur=rng.choice((0.0, 0.3)))
    return dict(softness=rng.uniform(1, 2), lens_blur=rng.uniform(0.5, 1))


def make_sway(rng, eye, distance, place):
    """As of Scene: a camera that stands, is held by hand, travels, turns, orbits, or is fast."""
    still = [(0.0, 0.0, 0.0)] * len(scenes.SWAY)
    kind = rng.choice(("still", "hand", "hand", "travel", "turn", "orbit", "fast"))
    if kind == "still":
        return tuple(still)
    if kind == "orbit":
        angle = math.atan2(eye[0], eye[2])
        radius = math.hypot(eye[0], eye[2])
        turns = rng.choice((-1, 1)) * rng.uniform(0.03, 0.08 if place == "room" else 0.3)
        still[0] = (radius, turns, angle)
        still[2] = (radius, turns, angle + math.pi / 2)
        return tuple(still)
    factor = {"hand": 0.7, "travel": 0.2, "turn": 0.2, "fast": 1.2}[kind]
    sizes = [distance / 3 * factor] * (len(scenes.SWAY) - 1) + [factor]  # the last is an angle
    waves = []
    for size, (amplitude, cycles, phase) in zip(sizes, scenes.make_sway(rng), strict=True):
        waves.append((size * amplitude, cycles * (2.5 if kind == "fast" else 1), phase))
    if kind == "travel":
        axis = rng.choice((0, 0, 1, 2))
        most = (0.35, 0.1, 0.25)[axis] * distance
        waves[axis] = (rng.uniform(-most, most), rng.uniform(0.2, 0.5), 0.0)
    if kind == "turn":
        waves[3] = (rng.uniform(-0.4, 0.4) * distance, rng.uniform(0.2, 0.6), 0.0)
    return tuple(waves)


# ---- the bodies ----------------------------------------------------------------------------------


def make_bodies(rng, scene, distance, mood):
    """One in the middle, where the camera looks, and others that keep clear of the camera."""
    eyes = scenes.camera_path(scene, CHECKS)[:, :3, 3].tolist()
    tall = -scene.target[1]
    bodies = make_one(rng, scene, (0.0, 0.0), tall, mood)
    bodies[0] = replace(bodies[0], drift=(0.0, 0.0))
    crowded = rng.random() < 0.4
    most = rng.choice((0, 2, 4, 7, BODIES, BODIES))
    plain = scene.unlit or scene.samples == 1  # which is traced in a fraction of the time
    for _ in range(most + 5 * plain):
        for _ in range(20):
            thing = make_thing(rng, scene, distance, mood)
            if len(bodies) + len(thing) > BODIES + 5 * plain:
                break
            free = crowded or all(scenes.clear(body, bodies) for body in thing)
            if free and all(keeps_away(body, eyes, 0.12 * distance) for body in thing):
                bodies += thing
                break
    return bodies


def make_thing(rng, scene, distance, mood):
    """One body or several that belong together, somewhere in front of the camera, as a list."""
    yaw = math.atan2(scene.eye[0], scene.eye[2]) + math.pi
    back = distance * rng.uniform(-0.45, 1.4)
    side = rng.uniform(-0.5, 0.5) * (distance + back)
    at = stage(side, back, yaw)
    tall = distance * math.exp(rng.uniform(math.log(0.03), math.log(0.25)))
    if rng.random() < 0.25 and not scene.backdrop:
        return make_group(rng, rng.choice(list(GROUPS)), at, tall, mood)
    return make_one(rng, scene, at, tall, mood)


def make_one(rng, scene, at, tall, mood):
    """[a body of half height `tall` over the place (x, z)]."""
    kind = rng.choice(KINDS)
    wide = tall * math.exp(rng.uniform(-0.7, 0.7))
    half = {"sphere": (tall,) * 3, "cylinder": (wide, tall, wide),
            "cone": (wide, tall, wide * rng.choice((0.02, 0.5)))}.get(kind)
    half = half or (wide, tall, tall * math.exp(rng.uniform(-0.7, 0.7)))
    above = 0.0
    middle = at == (0.0, 0.0)
    if not middle and (scene.backdrop or rng.random() < 0.15):  # it floats
        away = math.dist((0, 0, 0), scene.eye)
        above = away * rng.uniform(-0.17 if scene.backdrop else 0, 0.35)
    radius = 0.0 if kind == "box" else max(half)
    skin = random_skin(rng, 1.3 * tall, radius, mood)
    body = Body(kind, half, (at[0], -tall - above, at[1]), skin, yaw=(rng.uniform(0, 6.3), 0.0))
    return [move(rng, body, tall, scene.backdrop or above)]


def move(rng, body, tall, floats):
    """The body with some motion, or none."""
    kind = rng.choice(("rest", "rest", "turn", "drift", "drift", "hop", "comes", "roll"))
    drift = (tall * rng.uniform(-4, 4), tall * rng.uniform(-3, 3))
    yaw = (body.yaw[0], rng.uniform(-3, 3))
    tilt = rng.uniform(-1.5, 1.5) if floats else 0.0
    if kind == "turn":
        return replace(body, yaw=yaw, tilt=tilt)
    if kind == "drift":
        return replace(body, drift=drift, yaw=rng.choice((body.yaw, yaw)), tilt=tilt)
    if kind == "hop":
        hop = (tall * rng.uniform(0.5, 3), rng.uniform(0.8, 3), rng.random())
        return replace(body, drift=drift, hop=hop)
    if kind == "comes":
        moment = rng.uniform(0.15, 0.85)
        return replace(body, shown=rng.choice(((0.0, moment), (moment, 1.0))), tilt=tilt)
    if kind == "roll" and (floats or body.kind == "sphere"):
        return replace(body, drift=drift, roll=rng.uniform(-4, 4), tilt=tilt)
    return body


def make_group(rng, kind, at, tall, mood):
    """Simple bodies that make a thing; `tall` is about its half height [m]."""
    one = random_skin(rng, tall, mood=mood)
    two = random_skin(rng, tall, tall / 2, mood)
    three = random_skin(rng, tall / 2, tall / 4)
    drift = (0.0, 0.0)
    if kind in ("figure", "stack") and rng.random() < 0.5:
        drift = (tall * rng.uniform(-2, 2), tall * rng.uniform(-1, 1))
    bodies = []
    for shape, half, x, bottom, which in GROUPS[kind]:
        half = tuple(tall * h for h in half)
        centre = (at[0] + tall * x, -tall * bottom - half[1], at[1])
        bodies.append(Body(shape, half, centre, (one, two, three)[which], drift))
    return bodies


def keeps_away(body, eyes, margin):
    """Whether the body is always farther than the margin from the camera at [x, y, z]."""
    reach = max(body.half) * 1.5 + margin
    for i, eye in enumerate(eyes):
        t = i / (len(eyes) - 1)
        x = body.at[0] + t * body.drift[0]
        z = body.at[2] + t * body.drift[1]
        if math.dist((x, body.at[1], z), eye) < reach:
            return False
    return True
