"""Filling holes from other frames, in rooms of which every pixel's owner and depth are known."""

from dataclasses import dataclass
from functools import cache

import pytest
import torch
from conftest import ROOT

from toolbox.synthetic import scenes
from utils import camera_paths, fusion, metrics, trajectory, warp

HEIGHT, WIDTH, FRAMES = 80, 120, 16
K = torch.tensor([[125.0, 0, 60], [0, 125, 40], [0, 0, 1]], dtype=torch.float64)
TIMES = scenes.frame_times(FRAMES)


@dataclass
class Film:
    scene: scenes.Scene
    c2w: torch.Tensor
    frames: torch.Tensor
    depth: torch.Tensor

    @property
    def views(self):
        k = K.expand(FRAMES, 3, 3)
        return self.frames, fusion.static_depth(self.frames, self.depth, self.c2w, k), self.c2w, k


@cache
def film(seed, drift):
    """A room filmed by a hand-held camera that drifts sideways, in metres."""
    scene = scenes.make_scene(seed)
    c2w = scenes.camera_path(scene, FRAMES)
    c2w[:, :3, 3] += torch.linspace(-drift / 2, drift / 2, FRAMES)[:, None] * c2w[:, :3, 0]
    return Film(scene, c2w, *look(scene, c2w, TIMES))


def look(scene, c2w, times):
    rgb, depth = scenes.trace(scene, c2w, K, HEIGHT, WIDTH, times)
    return rgb.permute(0, 3, 1, 2) * 2 - 1, depth  # [B, 3, H, W]


def owners(scene, c2w, times):
    """Index of what each pixel shows, [B, H, W]: 0 the room, 1 the first body."""
    solids = [scenes.place(body, times) for body in (scene.room, *scene.bodies)]
    inverse = torch.linalg.inv(K).expand(len(c2w), 3, 3)
    rays = scenes.pixel_rays(c2w, inverse, HEIGHT, WIDTH, 0, 0)
    _, owner = scenes.nearest_surface(solids, c2w[:, :3, 3:].float(), rays)
    return owner.unflatten(1, (HEIGHT, WIDTH))


def still(scene):
    moves = [any((*body.drift, body.hop[0], body.yaw[1], body.roll)) for body in scene.bodies]
    return ~torch.tensor([False, *moves])


def visible(film, depth, c2w):
    """Whether the surface at this exact depth [H, W] is seen in any frame."""
    depth = depth.expand(FRAMES, -1, -1)
    motion = torch.linalg.inv(film.c2w) @ c2w
    u, v, z = warp.reproject(depth, motion, K.expand(FRAMES, 3, 3))
    x, y = u.round(), v.round()
    inside = (z > 0) & (x >= 0) & (x < WIDTH) & (y >= 0) & (y < HEIGHT)
    at = (y * WIDTH + x).where(inside, 0).long().flatten(1)
    seen = film.depth.flatten(1).gather(1, at).view_as(z)
    return (inside & ((seen / z - 1).abs() < 0.02)).any(0)


def render(film, path, i):
    """The eval render of frame i, its mask, z-buffer and camera in the world, as batches of 1."""
    keys = camera_paths.read_keyframes(ROOT / "trajs" / f"{path}.txt")
    radius = film.depth[0, HEIGHT // 2, WIDTH // 2].item()
    motion = trajectory.relative_motion(keys, FRAMES, radius)
    source = film.depth[i : i + 1], torch.from_numpy(motion[i : i + 1]), K[None]
    warped, mask = warp.dilate_holes(*warp.forward_warp(film.frames[i : i + 1], *source))
    return warped, mask, fusion.z_buffer(*source), film.c2w[i] @ torch.linalg.inv(source[1])


# The tolerances were tuned on seeds 0 and 1, at 160 x 240; these were not looked at then.
@pytest.mark.parametrize(("seed", "drift"), [(2, 1.0), (4, 0.0), (5, 1.0)])
def test_holes_are_filled_with_what_other_frames_saw(seed, drift):
    room = film(seed, drift)
    views = room.views
    moving = ~still(room.scene)[owners(room.scene, room.c2w, TIMES)]
    moving = moving.float()[:, None].expand(-1, 3, -1, -1)
    found = []
    for path in ("traj1", "traj3"):
        for i in range(5, FRAMES, 5):
            before, known, z, target = render(room, path, i)
            after, mask = fusion.fill(before, known, z, views, target, K[None])
            after, before = after.movedim(1, -1), before.movedim(1, -1)
            assert torch.equal(after[known], before[known]) and mask[known].all()
            exact, depth = look(room.scene, target, TIMES[i : i + 1])
            stands = still(room.scene)[owners(room.scene, target, TIMES[i : i + 1])]
            carried = fusion.splat_views((moving, *views[1:]), target, K[None])
            found.append({
                "after": after / 2 + 0.5,
                "exact": exact.movedim(1, -1) / 2 + 0.5,
                "fillable": ~known & stands & visible(room, depth, target[0]),
                "new": mask & ~known,
                "leak": fusion.merge(*carried)[0][:1] > 0.5,  # comes from what moves
                "stands": stands,
            })
    x = {name: torch.cat([frame[name] for frame in found]) for name in found[0]}
    wrong = (x["after"] - x["exact"]).abs().amax(-1) > 0.25
    got = x["new"] & x["fillable"]
    share = got.sum() / x["fillable"].sum()
    psnr = metrics.psnr(x["after"], x["exact"], got)
    leaked = (x["new"] & x["leak"] & wrong).sum() / x["new"].sum()
    print(f"seed {seed}, drift {drift} m: {x['fillable'].float().mean():.1%} of all pixels are "
          f"fillable holes, {share:.1%} of them filled at {psnr:.2f} dB; {leaked:.2%} of all that "
          "is filled is wrong for coming from what moves")
    assert x["fillable"].float().mean() > 0.02 and share >= 0.6 and psnr >= 25 and leaked < 0.005


@pytest.mark.parametrize("drift", [0.0, 1.0])
def test_a_ball_that_rolls_or_hops_never_counts_as_static(drift):
    room = film(0, drift)
    bodies = enumerate(room.scene.bodies, 1)
    balls = [i for i, body in bodies if body.kind == "sphere" and any(body.drift)]
    ball = torch.isin(owners(room.scene, room.c2w, TIMES), torch.tensor(balls))
    static = room.views[1] > 0
    assert ball.float().mean() > 0.02 and not (static & ball).any()
    assert static.float().mean() > 0.6


def test_unseen_holes_stay():
    room = film(0, 1.0)
    frames, depth, c2w, k = room.views
    before, known, z, target = render(room, "traj1", FRAMES - 1)
    after, mask = fusion.fill(before, known, z, (frames, 0 * depth, c2w, k), target, K[None])
    assert torch.equal(after, before) and torch.equal(mask, known) and not known.all()
    alone = fusion.static_depth(frames[:2], room.depth[:2], c2w[:2], k[:2])
    assert not alone.any()  # one witness is not enough


def test_nothing_is_filled_in_behind_what_the_frame_itself_shows():
    """The rim of the foreground, cut off when holes grow, does not turn into background."""
    near = torch.full((1, 20, 30), 2.0)
    far = torch.full((1, 20, 30), 4.0)
    eye = torch.eye(4, dtype=torch.float64)[None]
    k = torch.tensor([[[30.0, 0, 15], [0, 30, 10], [0, 0, 1]]])
    before = torch.zeros(1, 3, 20, 30)
    known = torch.zeros(1, 20, 30, dtype=torch.bool)
    views = torch.ones(1, 3, 20, 30), far, eye, k.double()
    assert not fusion.fill(before, known, near, views, eye, k.double())[1].any()
    assert fusion.fill(before, known, 0 * near, views, eye, k.double())[1].all()
