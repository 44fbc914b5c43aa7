"""What the yards promise: exact and finite z-depth, solids that are solid, and room for the camera."""

import itertools
import math

import pytest
import torch

from toolbox.synthetic import scenes, textures
from toolbox.synthetic.yards import FAR
from toolbox.synthetic.yards import make_yard as make_shifted_scene

HEIGHT, WIDTH = 20, 30
K = torch.tensor([[32.0, 0, 14.5], [0, 32, 9.5], [0, 0, 1]], dtype=torch.float64)
SHAPES = {"ellipsoid": (0.4, 0.2, 0.3), "cone": (0.4, 0.5, 0.1), "sphere": (0.3, 0.3, 0.3), "cylinder": (0.3, 0.5, 0.3)}


def film(scene, c2w, time, k=K, height=HEIGHT, width=WIDTH, samples=1):
    return scenes.render(scene, c2w, k, height, width, torch.as_tensor(time, dtype=torch.float64), samples)


def seen_points(c2w, depth):
    """Where the pixels' rays end, [3, P]."""
    v, u = torch.meshgrid(torch.arange(HEIGHT).double(), torch.arange(WIDTH).double(), indexing="ij")
    rays = torch.linalg.inv(K) @ torch.stack([u, v, torch.ones_like(u)]).flatten(1)
    return c2w[:3, :3] @ (rays * depth.flatten().double()) + c2w[:3, 3:]


def placed(scene, *times):
    return [scenes._place(body, torch.tensor(times)) for body in (scene.room, *scene.bodies)]


def test_one_seed_is_one_yard_and_seeds_differ():
    a, b = make_shifted_scene(3), make_shifted_scene(3)
    c2w = scenes.camera_path(a, 3)
    first, second = film(a, c2w, [0, 0.5, 1]), film(b, c2w, [0, 0.5, 1])
    assert a == b and all(torch.equal(x, y) for x, y in zip(first, second, strict=True))
    made = [make_shifted_scene(seed) for seed in range(40)]
    assert len({scene.bodies for scene in made}) == 40
    assert {body.kind for scene in made for body in scene.bodies} == {"box", "cylinder", "ellipsoid", "cone"}
    assert all(sum(body.drift != (0, 0) for body in scene.bodies) >= 1 for scene in made)


def test_textures_are_not_those_of_the_rooms():
    rooms, yards = [scenes.make_scene(seed) for seed in range(40)], [make_shifted_scene(seed) for seed in range(40)]
    used = [{t.pattern for s in made for t in (s.room.texture, s.floor, s.rug, *(b.texture for b in s.bodies))}
            for made in (rooms, yards)]  # fmt: skip
    assert used[0] & used[1] == {"stripes"} and used[0] | used[1] == set(textures.PATTERNS)


@pytest.mark.parametrize("seed", range(3))
def test_pixels_are_sound_and_end_on_a_surface(seed):
    scene = make_shifted_scene(seed)
    path = scenes.camera_path(scene, 2)
    rgb, depth = film(scene, path, [0, 1], samples=2)
    assert rgb.dtype == depth.dtype == torch.float32
    assert rgb.min() >= 0 and rgb.max() <= 1 and rgb.std() > 0.05
    for c2w, z, time in zip(path, depth, (0.0, 1.0), strict=True):
        point = seen_points(c2w, z).float()[None]
        assert z.min() > 0.5
        assert torch.stack([scenes._distance(solid, point) for solid in placed(scene, time)]).abs().amin(0).max() < 1e-3


def test_the_sky_and_the_ground_are_where_they_are():
    scene = make_shifted_scene(0)
    up = torch.eye(4, dtype=torch.float64)
    up[1, 3] = -3.0
    point = seen_points(up, film(scene, up[None], [0])[1][0])
    sky = point[:, (point[1] < -3.2) & (point[::2].norm(dim=0) > 20)]
    torch.testing.assert_close(sky[::2].norm(dim=0), torch.full_like(sky[0], FAR), rtol=1e-5, atol=0)
    ground = point[1, (point[1] > -0.1) & (point[::2].norm(dim=0) < 30)]
    assert sky.shape[1] > 50 and len(ground) > 20
    torch.testing.assert_close(ground, 0 * ground, rtol=0, atol=1e-3)


def test_a_point_seen_in_one_view_is_there_in_another():
    """A camera of one pixel aimed at it from elsewhere sees it, or something before it, never past it."""
    scene = make_shifted_scene(1)
    a, b = scenes.camera_path(scene, 2)
    point = seen_points(a, film(scene, a[None], [0.5])[1])
    x, y, z = b[:3, :3].T @ (point - b[:3, 3:])
    aimed = torch.eye(3).double().repeat(len(z), 1, 1)
    aimed[:, 0, 2], aimed[:, 1, 2] = -x / z, -y / z
    ratio = film(scene, b.expand(len(z), 4, 4), torch.full((len(z),), 0.5), aimed, 1, 1)[1].flatten() / z
    assert ratio.max() < 1 + 1e-4
    assert (ratio > 1 - 1e-4).float().mean() > 0.75  # many edges in the way


@pytest.mark.parametrize(("kind", "half"), SHAPES.items())
def test_rays_are_inside_a_solid_between_where_they_enter_and_leave(kind, half):
    body = scenes.Body(kind, half, (0.2, -1.0, 0.3), None, yaw=(0.4, 0.0))
    solid, random = scenes._place(body, torch.zeros(1)), torch.Generator().manual_seed(0)
    eye = torch.randn(1, 3, 4000, generator=random) * 2
    ray = solid.centre + 0.3 * torch.randn(1, 3, 4000, generator=random) - eye
    near, far = scenes._interval(solid, eye, ray)
    hit = near < far
    assert 0.2 < hit.float().mean() < 0.9
    for part in torch.linspace(-1, 2, 40):
        t = torch.where(hit, torch.lerp(near, far, part), part)
        distance = scenes._distance(solid, eye + t[:, None] * ray)
        inside = hit & (0 < part) & (part < 1)
        assert distance[inside].numel() == 0 or distance[inside].max() < 1e-4
        assert distance[~inside].min() > -1e-4


@pytest.mark.parametrize(("kind", "half"), SHAPES.items())
def test_normals_are_the_distance_s_slope(kind, half):
    body = scenes.Body(kind, half, (0.0, 0.0, 0.0), None)
    solid, ray = scenes._place(body, torch.zeros(1)), torch.randn(1, 3, 500, generator=torch.Generator().manual_seed(0))
    near, _ = scenes._interval(solid, -3 * ray, ray)
    point = (near[:, None] - 3) * ray * 1.001
    point.requires_grad_()
    slope = torch.autograd.grad(scenes._distance(solid, point).sum(), point)[0][0]
    cosine = (torch.nn.functional.normalize(slope, dim=0) * scenes._normal(kind, half, point[0].detach())).sum(0)
    assert (cosine > 0.99).float().mean() > 0.98  # but for the rims


@pytest.mark.parametrize("seed", range(6))
def test_things_stay_out_of_each_other_and_above_the_ground(seed):
    scene = make_shifted_scene(seed)
    assert all(body.at[1] + body.half[1] < 1e-6 for body in scene.bodies)
    random = 2 * torch.rand(1, 3, 300, generator=torch.Generator().manual_seed(0)) - 1
    for a, b in itertools.permutations(placed(scene, 0.0, 0.3, 0.6, 1.0)[1:], 2):
        within = a.axes @ (random * max(a.half)) + a.centre
        assert torch.maximum(scenes._distance(a, within), scenes._distance(b, within)).min() > -0.02


@pytest.mark.parametrize("seed", range(8))
def test_orbits_stay_out_of_the_things(seed):
    """40 degrees about what the first camera looks at, 30% nearer or further."""
    scene = make_shifted_scene(seed)
    c2w = scenes.camera_path(scene, 1)
    depth = film(scene, c2w, [0], torch.eye(3).double(), 1, 1)[1].item()
    assert 2 < depth < 4
    angles = [math.radians(a) for a in range(-40, 41, 10)]
    back = [(math.sin(a) * -depth * k, 0, math.cos(a) * -depth * k + depth) for a in angles for k in (0.7, 1, 1.3)]
    eye = (c2w[0, :3, :3] @ torch.tensor(back).double().T + c2w[0, :3, 3:]).float()[None]
    yard, *solids = placed(scene, 0.0, 0.5, 1.0)
    assert scenes._distance(yard, eye).max() < -0.3
    assert all(scenes._distance(solid, eye).min() > 0.3 for solid in solids)
