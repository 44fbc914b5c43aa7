"""What the toys promise: one surface and one colour from every camera, and holes to fill."""

import math

import pytest
import torch

from toolbox.small_model import evaluate_method
from toolbox.synthetic import clips, toy_shapes, toys

CPU = torch.device("cpu")
SIZE = (24, 36)


def cameras_of(table, time):
    """Two cameras, each c2w [4, 4], that see the middle from 20 degrees apart."""
    azimuth, elevation, distance = table.camera
    poses = []
    for turn in (0, math.radians(20)):
        aside = table._replace(camera=(azimuth + turn, elevation, distance), amount=0.0)
        poses.append(toys.camera_path(aside, 3)[1])
    return poses


@pytest.mark.parametrize("seed", range(4))
def test_a_point_seen_by_two_cameras_has_one_place_and_one_colour(seed):
    table = toys.make_table(seed)
    time = 0.3
    poses = [toys.pose(toy, time, CPU) for toy in table.toys]
    a, b = cameras_of(table, time)
    k = clips.lens(SIZE[1], *SIZE)
    eye, ray = toys.rays(a, k, *SIZE, 1)
    hits = toys.cast(table, poses, eye, ray)
    point = (eye + hits.depth[:, None] * ray).double()
    x, y, z = (torch.linalg.inv(b)[:3] @ torch.cat([point, point[:, :1] ** 0], 1).T)
    aimed = torch.stack([x / z, y / z, z**0], 1) @ b[:3, :3].T
    from_b = b[:3, 3].float().expand_as(eye)
    again = toys.cast(table, poses, from_b, aimed.float())
    ratio = again.depth.double() / z
    assert ratio.max() < 1 + 1e-3  # never past it
    same = (ratio - 1).abs() < 1e-3
    assert same.double().mean() > 0.7  # else something stands in the way
    first = toys.see(table, poses, eye, ray)[same]
    second = toys.see(table, poses, from_b, aimed.float())[same]
    off = (first - second).abs().amax(1)
    assert (off < 1e-3).double().mean() > 0.97  # but for the figures' and shadows' edges


def test_one_seed_is_one_clip_and_seeds_differ():
    a, b, c = (toys.make_clip(seed, (3, *SIZE), CPU) for seed in (5, 5, 6))
    assert a.scene == b.scene and torch.equal(a.rgb, b.rgb) and torch.equal(a.depth, b.depth)
    assert torch.equal(a.c2w, b.c2w) and not torch.equal(a.rgb, c.rgb)
    assert a.rgb.dtype == torch.uint8 and a.depth.dtype == torch.float32
    assert all(len(toys.make_table(seed).toys) >= 4 for seed in range(40))


def test_the_clip_s_own_cameras_see_the_clip():
    clip = toys.make_clip(7, (3, *SIZE), CPU)
    assert torch.equal(toys.exact_view(clip, clips.cameras_to(clip, clip)), clip.rgb)
    assert (clip.rgb[0] != clip.rgb[2]).any()
    assert clip.depth.min() > 1 and clip.depth.max() < 20


@pytest.mark.parametrize("seed", range(4))
def test_renders_along_the_shipped_paths_have_holes_and_known_pixels(seed):
    case = evaluate_method.open_case("toys", seed, (5, 64, 96), CPU)
    assert 0.08 < 1 - case.mask.mean() < 0.42  # 0.23 in the mean; most on path 1
    assert (case.truth[~case.mask] > 0).any(-1).mean() > 0.99
    off = case.render[case.mask].astype(int) - case.truth[case.mask]
    assert abs(off).mean() < 12


@pytest.mark.parametrize("seed", range(30))
def test_toys_stay_in_their_arena_and_off_each_other(seed):
    table = toys.make_table(seed)
    widths = [toy_shapes.width_of(toy.parts) for toy in table.toys]
    for time in (0.0, 0.3, 0.6, 1.0):
        places = [toys.pose(toy, time, CPU)[1] for toy in table.toys]
        for i, (place, wide) in enumerate(zip(places, widths, strict=True)):
            for *normal, away in table.arena.planes[1:]:
                assert torch.dot(place, torch.tensor(normal)) + wide < away
            for other, its in zip(places[:i], widths[:i], strict=True):
                assert (place - other)[::2].norm() > 0.7 * (wide + its)


def test_the_camera_stays_in_the_arena_along_a_wide_orbit():
    for seed in range(40):
        table = toys.make_table(seed)
        azimuth, elevation, distance = table.camera
        for degrees in range(-45, 46, 15):
            way = toys.polar(azimuth + math.radians(degrees), elevation)
            eye = torch.tensor(table.target) + 1.25 * distance * torch.tensor(way)
            for *normal, away in table.arena.planes:
                assert torch.dot(eye, torch.tensor(normal)) < away


@pytest.mark.parametrize("make", [*toy_shapes.STILL_SHAPES.values(),
                                  *toy_shapes.MOVING_SHAPES.values()])
def test_rays_are_inside_a_part_between_where_they_enter_and_leave(make):
    random = torch.Generator().manual_seed(0)
    for part in make(toys.Random(1), toys.Colours(toys.Random(2)), 1.0):
        aim = torch.tensor(part.centre) + 0.3 * torch.randn(500, 3, generator=random)
        eye = torch.tensor(part.centre) + torch.nn.functional.normalize(aim, dim=1) * 3
        depth, plane = toy_shapes.enter(part, eye, aim - eye)
        hit = torch.isfinite(depth)
        point = eye[hit] + depth[hit][:, None] * (aim - eye)[hit]
        assert hit.sum() > 20
        assert ((point - torch.tensor(part.centre)).norm(dim=1) < part.radius + 1e-4).all()
        normal = toy_shapes.facing(part, point, plane[hit])
        assert (toy_shapes.dot(normal, (aim - eye)[hit]) < 1e-4).all()
        if part.planes:
            planes = torch.tensor(part.planes)
            assert (point @ planes[:, :3].T - planes[:, 3]).max() < 1e-4
