"""What the yards promise: exact, finite z-depth, solid solids, and room for the camera."""

import itertools
import math

import pytest
import torch

from toolbox.synthetic import scenes, textures
from toolbox.synthetic.yards import FAR, make_yard

HEIGHT, WIDTH = 20, 30
K = torch.tensor([[32.0, 0, 14.5], [0, 32, 9.5], [0, 0, 1]], dtype=torch.float64)
SHAPES = {
    "ellipsoid": (0.4, 0.2, 0.3), "cone": (0.4, 0.5, 0.1), "sphere": (0.3, 0.3, 0.3),
    "cylinder": (0.3, 0.5, 0.3),
}


def film(scene, c2w, time, k=K, height=HEIGHT, width=WIDTH, samples=1):
    time = torch.as_tensor(time, dtype=torch.float64)
    return scenes.trace(scene, c2w, k, height, width, time, samples)


def seen_points(c2w, depth):
    """Where the pixels' rays end, [3, P]."""
    rows = torch.arange(HEIGHT).double()
    v, u = torch.meshgrid(rows, torch.arange(WIDTH).double(), indexing="ij")
    rays = torch.linalg.inv(K) @ torch.stack([u, v, torch.ones_like(u)]).flatten(1)
    return c2w[:3, :3] @ (rays * depth.flatten().double()) + c2w[:3, 3:]


def placed(scene, *times):
    return [scenes.place(body, torch.tensor(times)) for body in (scene.room, *scene.bodies)]


def test_one_seed_is_one_yard_and_seeds_differ():
    a, b = make_yard(3), make_yard(3)
    c2w = scenes.camera_path(a, 3)
    first, second = film(a, c2w, [0, 0.5, 1]), film(b, c2w, [0, 0.5, 1])
    assert a == b and all(torch.equal(x, y) for x, y in zip(first, second, strict=True))
    made = [make_yard(seed) for seed in range(40)]
    assert len({scene.bodies for scene in made}) == 40
    kinds = {body.kind for scene in made for body in scene.bodies}
    assert kinds == {"box", "cylinder", "ellipsoid", "cone"}
    assert all(sum(body.drift != (0, 0) for body in scene.bodies) >= 1 for scene in made)


def test_textures_are_not_those_of_the_rooms():
    rooms = patterns(scenes.make_scene)
    yards = patterns(make_yard)
    assert rooms & yards == {"stripes"} and rooms | yards == set(textures.PATTERNS)


def patterns(make):
    """What 40 scenes are painted with."""
    used = set()
    for scene in map(make, range(40)):
        used |= {scene.room.texture.pattern, scene.floor.pattern, scene.rug.pattern}
        used |= {body.texture.pattern for body in scene.bodies}
    return used


@pytest.mark.parametrize("seed", range(3))
def test_pixels_are_sound_and_end_on_a_surface(seed):
    scene = make_yard(seed)
    path = scenes.camera_path(scene, 2)
    rgb, depth = film(scene, path, [0, 1], samples=2)
    assert rgb.dtype == depth.dtype == torch.float32
    assert rgb.min() >= 0 and rgb.max() <= 1 and rgb.std() > 0.05
    for c2w, z, time in zip(path, depth, (0.0, 1.0), strict=True):
        point = seen_points(c2w, z).float()[None]
        assert z.min() > 0.5
        away = [scenes.distance(solid, point).abs() for solid in placed(scene, time)]
        assert torch.stack(away).amin(0).max() < 1e-3


def test_the_sky_and_the_ground_are_where_they_are():
    scene = make_yard(0)
    up = torch.eye(4, dtype=torch.float64)
    up[1, 3] = -3.0
    point = seen_points(up, film(scene, up[None], [0])[1][0])
    sky = point[:, (point[1] < -3.2) & (point[::2].norm(dim=0) > 20)]
    far = torch.full_like(sky[0], FAR)
    torch.testing.assert_close(sky[::2].norm(dim=0), far, rtol=1e-5, atol=0)
    ground = point[1, (point[1] > -0.1) & (point[::2].norm(dim=0) < 30)]
    assert sky.shape[1] > 50 and len(ground) > 20
    torch.testing.assert_close(ground, 0 * ground, rtol=0, atol=1e-3)


def test_a_point_seen_in_one_view_is_there_in_another():
    """A camera of one pixel aimed at it sees it, or something before it, never past it."""
    scene = make_yard(1)
    a, b = scenes.camera_path(scene, 2)
    point = seen_points(a, film(scene, a[None], [0.5])[1])
    x, y, z = b[:3, :3].T @ (point - b[:3, 3:])
    aimed = torch.eye(3).double().repeat(len(z), 1, 1)
    aimed[:, 0, 2], aimed[:, 1, 2] = -x / z, -y / z
    times = torch.full((len(z),), 0.5)
    ratio = film(scene, b.expand(len(z), 4, 4), times, aimed, 1, 1)[1].flatten() / z
    assert ratio.max() < 1 + 1e-4
    assert (ratio > 1 - 1e-4).float().mean() > 0.75  # many edges in the way


@pytest.mark.parametrize(("kind", "half"), SHAPES.items())
def test_rays_are_inside_a_solid_between_where_they_enter_and_leave(kind, half):
    body = scenes.Body(kind, half, (0.2, -1.0, 0.3), None, yaw=(0.4, 0.0))
    solid, random = scenes.place(body, torch.zeros(1)), torch.Generator().manual_seed(0)
    eye = torch.randn(1, 3, 4000, generator=random) * 2
    ray = solid.centre + 0.3 * torch.randn(1, 3, 4000, generator=random) - eye
    near, far = scenes.interval(solid, eye, ray)
    hit = near < far
    assert 0.2 < hit.float().mean() < 0.9
    for part in torch.linspace(-1, 2, 40):
        t = torch.where(hit, torch.lerp(near, far, part), part)
        distance = scenes.distance(solid, eye + t[:, None] * ray)
        inside = hit & (0 < part) & (part < 1)
        assert distance[inside].numel() == 0 or distance[inside].max() < 1e-4
        assert distance[~inside].min() > -1e-4


@pytest.mark.parametrize(("kind", "half"), SHAPES.items())
def test_normals_are_the_distance_s_slope(kind, half):
    body = scenes.Body(kind, half, (0.0, 0.0, 0.0), None)
    solid = scenes.place(body, torch.zeros(1))
    ray = torch.randn(1, 3, 500, generator=torch.Generator().manual_seed(0))
    near, _ = scenes.interval(solid, -3 * ray, ray)
    point = (near[:, None] - 3) * ray * 1.001
    point.requires_grad_()
    slope = torch.autograd.grad(scenes.distance(solid, point).sum(), point)[0][0]
    normal = scenes.outward_normal(kind, half, point[0].detach())
    cosine = (torch.nn.functional.normalize(slope, dim=0) * normal).sum(0)
    assert (cosine > 0.99).float().mean() > 0.98  # but for the rims


@pytest.mark.parametrize("seed", range(6))
def test_things_stay_out_of_each_other_and_above_the_ground(seed):
    scene = make_yard(seed)
    assert all(body.at[1] + body.half[1] < 1e-6 for body in scene.bodies)
    random = 2 * torch.rand(1, 3, 300, generator=torch.Generator().manual_seed(0)) - 1
    for a, b in itertools.permutations(placed(scene, 0.0, 0.3, 0.6, 1.0)[1:], 2):
        within = a.axes @ (random * max(a.half)) + a.centre
        assert torch.maximum(scenes.distance(a, within), scenes.distance(b, within)).min() > -0.02


@pytest.mark.parametrize("seed", range(8))
def test_orbits_stay_out_of_the_things(seed):
    """40 degrees about what the first camera looks at, 30% nearer or further."""
    scene = make_yard(seed)
    c2w = scenes.camera_path(scene, 1)
    depth = film(scene, c2w, [0], torch.eye(3).double(), 1, 1)[1].item()
    assert 2 < depth < 4
    back = []
    for degrees, k in itertools.product(range(-40, 41, 10), (0.7, 1, 1.3)):
        a = math.radians(degrees)
        back.append((math.sin(a) * -depth * k, 0, math.cos(a) * -depth * k + depth))
    eye = (c2w[0, :3, :3] @ torch.tensor(back).double().T + c2w[0, :3, 3:]).float()[None]
    yard, *solids = placed(scene, 0.0, 0.5, 1.0)
    assert scenes.distance(yard, eye).max() < -0.3
    assert all(scenes.distance(solid, eye).min() > 0.3 for solid in solids)
