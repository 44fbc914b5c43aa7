"""What the rendered rooms promise: exact z-depth, exact poses, everything from one seed."""

import math
from dataclasses import replace

import pytest
import torch

from toolbox.synthetic import scenes

HEIGHT, WIDTH = 20, 30
K = torch.tensor([[32.0, 0, 14.5], [0, 32, 9.5], [0, 0, 1]], dtype=torch.float64)


def film(scene, c2w, time, k=K, height=HEIGHT, width=WIDTH, samples=1):
    time = torch.as_tensor(time, dtype=torch.float64)
    return scenes.trace(scene, c2w, k, height, width, time, samples)


def pixel_rays():
    rows = torch.arange(HEIGHT).double()
    v, u = torch.meshgrid(rows, torch.arange(WIDTH).double(), indexing="ij")
    return torch.linalg.inv(K) @ torch.stack([u, v, torch.ones_like(u)]).flatten(1)  # [3, P]


def moved(c2w, rotation, translation):
    motion = torch.eye(4, dtype=c2w.dtype)
    motion[:3, :3], motion[:3, 3:] = rotation, translation
    return motion @ c2w


def about_y(angle):
    s, c = math.sin(angle), math.cos(angle)
    return torch.tensor([[c, 0, s], [0, 1, 0], [-s, 0, c]], dtype=torch.float64)


def test_one_seed_is_one_scene():
    torch.manual_seed(1)
    before = torch.random.get_rng_state()
    a, b = scenes.make_scene(3), scenes.make_scene(3)
    c2w = scenes.camera_path(a, 3)
    first, second = film(a, c2w, [0, 0.5, 1]), film(b, c2w, [0, 0.5, 1])
    assert a == b and all(torch.equal(x, y) for x, y in zip(first, second, strict=True))
    assert torch.equal(torch.random.get_rng_state(), before)


def test_seeds_differ():
    made = [scenes.make_scene(seed) for seed in range(40)]
    assert {len(scene.bodies) for scene in made} == {4, 5, 6, 7}
    assert len({scene.bodies for scene in made}) == 40
    assert {body.kind for scene in made for body in scene.bodies} == {"sphere", "box", "cylinder"}


@pytest.mark.parametrize("seed", range(3))
def test_pixels_are_sound(seed):
    scene = scenes.make_scene(seed)
    rgb, depth = film(scene, scenes.camera_path(scene, 2), [0, 1], samples=2)
    assert rgb.shape == (2, HEIGHT, WIDTH, 3) and depth.shape == (2, HEIGHT, WIDTH)
    assert rgb.dtype == depth.dtype == torch.float32
    assert rgb.min() >= 0 and rgb.max() <= 1 and rgb.std() > 0.05
    assert depth.isfinite().all() and depth.min() > 0.5


def test_poses_are_rotations_and_the_move_is_gentle():
    path = scenes.camera_path(scenes.make_scene(0), 49)
    turn, eye = path[:, :3, :3], path[:, :3, 3]
    torch.testing.assert_close(turn @ turn.mT, torch.eye(3).double().expand(49, 3, 3))
    torch.testing.assert_close(torch.linalg.det(turn), torch.ones(49).double())
    assert 0.1 < (eye - eye[0]).norm(dim=1).max() < 1 and eye.diff(dim=0).norm(dim=1).max() < 0.05
    torch.testing.assert_close(scenes.camera_path(scenes.make_scene(0), 1), path[:1])


def test_depth_is_the_z_of_the_far_wall():
    scene = replace(scenes.make_scene(0), bodies=())
    c2w = torch.eye(4, dtype=torch.float64)[None].clone()
    c2w[0, :3, 3] = torch.tensor([0, -2, 1.5])
    wall = scene.room.at[2] + scene.room.half[2] - 1.5
    depth = film(scene, c2w, [0])[1]
    torch.testing.assert_close(depth, torch.full_like(depth, wall), rtol=1e-5, atol=0)


def test_depth_is_the_z_of_the_floor():
    scene = replace(scenes.make_scene(0), bodies=())
    c2w = scenes.camera_path(scene, 1)
    down = (c2w[0, :3, :3] @ pixel_rays())[1].view(HEIGHT, WIDTH)
    floor, depth = -c2w[0, 1, 3] / down, film(scene, c2w, [0])[1][0].double()
    seen = (down > 0) & (floor < 4)
    assert seen.float().mean() > 0.2
    torch.testing.assert_close(depth[seen], floor[seen], rtol=1e-5, atol=0)


def test_depth_is_of_the_pixel_centre_whatever_the_samples():
    scene = scenes.make_scene(1)
    c2w = scenes.camera_path(scene, 1)
    assert torch.equal(film(scene, c2w, [0], samples=1)[1], film(scene, c2w, [0], samples=3)[1])


def test_a_point_seen_in_one_view_is_there_in_another():
    """A camera of one pixel aimed at it sees it, or something before it, never past it."""
    scene = scenes.make_scene(0)
    a, b = scenes.camera_path(scene, 2)
    depth = film(scene, a[None], [0.5])[1].flatten().double()
    point = a[:3, :3] @ (pixel_rays() * depth) + a[:3, 3:]
    x, y, z = b[:3, :3].T @ (point - b[:3, 3:])
    aimed = torch.eye(3).double().repeat(len(z), 1, 1)
    aimed[:, 0, 2], aimed[:, 1, 2] = -x / z, -y / z
    seen = film(scene, b.expand(len(z), 4, 4), torch.full((len(z),), 0.5), aimed, 1, 1)[1].flatten()
    ratio = seen / z
    assert ratio.max() < 1 + 1e-4
    assert (ratio > 1 - 1e-4).float().mean() > 0.9


def test_a_batch_is_its_frames():
    scene, times = scenes.make_scene(2), scenes.frame_times(3)
    path = scenes.camera_path(scene, 3)
    batch = film(scene, path, times)
    single = [film(scene, path[i : i + 1], times[i : i + 1]) for i in range(3)]
    for together, apart in zip(batch, zip(*single, strict=True), strict=True):
        torch.testing.assert_close(together, torch.cat(apart), rtol=1e-4, atol=1e-4)


def test_textures_move_with_their_body(monkeypatch):
    """A camera that rides on a box sees it unchanged, if light is the same from everywhere."""
    below, above = scenes.Scene.tints[1:]
    monkeypatch.setattr(scenes.Scene, "tints", ((0.0, 0.0, 0.0), below, above))
    paint = scenes.Texture("marble", "d8735a 3d405b 81b29a", 0.3, (1.5, 2.5, 3.5))
    box = scenes.Body("box", (0.3, 0.3, 0.3), (0, -1.5, 0), paint, (0.5, -0.3), yaw=(0.2, 1.1))
    scene = replace(scenes.make_scene(0), bodies=(box,))
    start = torch.eye(4, dtype=torch.float64)
    start[:3, 3] = torch.tensor([0.1, -1.6, -1.2])
    ride = moved(start, about_y(1.1), torch.tensor([[0.5], [0.0], [-0.3]]))
    rgb, depth = film(scene, torch.stack([start, ride]), [0, 1])
    on_box = depth[0] < 1.6
    assert 0.2 < on_box.float().mean() < 0.9 and rgb[0][on_box].std() > 0.05
    torch.testing.assert_close(depth[1][on_box], depth[0][on_box], rtol=1e-4, atol=0)
    torch.testing.assert_close(rgb[1][on_box], rgb[0][on_box], rtol=0, atol=0.01)
    assert (rgb[1] - rgb[0])[~on_box].abs().mean() > 0.02


def test_balls_roll_without_slipping():
    bodies = [body for seed in range(20) for body in scenes.make_scene(seed).bodies]
    balls = [b for b in bodies if b.kind == "sphere" and b.drift != (0, 0) and b.hop[0] == 0]
    assert len(balls) > 3
    for ball in balls:
        now = scenes.place(ball, torch.tensor([0.5], dtype=torch.float64))
        soon = scenes.place(ball, torch.tensor([0.501], dtype=torch.float64))
        touching = now.centre + torch.tensor([[0.0], [ball.half[1]], [0.0]])
        later = soon.axes @ now.local(touching) + soon.centre
        assert (later - touching).norm() < 0.02 * 0.001 * math.hypot(*ball.drift) + 1e-5


@pytest.mark.parametrize("seed", range(5))
def test_orbits_stay_in_the_room_and_out_of_the_objects(seed):
    """40 degrees about what the first camera looks at, 30% nearer or further."""
    scene = scenes.make_scene(seed)
    c2w = scenes.camera_path(scene, 1)
    one = torch.eye(3, dtype=torch.float64)
    depth = film(scene, c2w, [0], one, 1, 1)[1].item()
    turn, pivot = c2w[0, :3, :3], c2w[0, :3, 3:] + depth * c2w[0, :3, 2:3]
    angles = [math.radians(a) for a in range(-40, 41, 10)]
    back = torch.stack([about_y(a)[:, 2] * -depth * k for a in angles for k in (0.7, 1, 1.3)], 1)
    eye = (pivot + turn @ back).float()[None]
    for t in (0.0, 0.5, 1.0):
        time = torch.tensor([t])
        solids = [scenes.place(body, time) for body in scene.bodies]
        room = scenes.place(scene.room, time)
        assert scenes.distance(room, eye).max() < -0.1
        assert all(scenes.distance(solid, eye).min() > 0.2 for solid in solids)


def test_coarser_scenes_have_the_same_shapes_in_larger_softer_patterns():
    scene, (height, width) = scenes.make_scene(0), (48, 64)
    k = torch.tensor([[60.0, 0, 32], [0, 60, 24], [0, 0, 1]])
    args = scenes.camera_path(scene, 1), k, height, width, torch.zeros(1)
    fine = scenes.trace(scene, *args)
    coarse = scenes.trace(scenes.coarsen(scene, 2, 1), *args)
    soft = scenes.trace(scenes.coarsen(scene, 2, 4), *args)
    assert torch.equal(fine[1], coarse[1]) and torch.equal(fine[1], soft[1])
    detail = [rgb.diff(dim=2).abs().mean() for rgb, _ in (fine, coarse, soft)]
    assert detail[0] > 1.1 * detail[1] > 1.1 * detail[2]
    same = scenes.trace(scenes.coarsen(scene, 1, 1), *args)[0]
    assert torch.equal(same, fine[0])
