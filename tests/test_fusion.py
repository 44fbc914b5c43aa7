"""Filling holes from other frames, on rooms whose every pixel's owner, depth and colour are known from everywhere."""

from dataclasses import dataclass
from functools import cache

import pytest
import torch
from conftest import ROOT

from toolbox.synthetic import scenes
from utils import fusion, metrics, trajectory, warp

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
    rays = scenes.pixel_rays(c2w, torch.linalg.inv(K).expand(len(c2w), 3, 3), HEIGHT, WIDTH, 0, 0)
    return scenes.nearest_surface(solids, c2w[:, :3, 3:].float(), rays)[1].unflatten(1, (HEIGHT, WIDTH))


def still(scene):
    return torch.tensor([True, *(not any((*b.drift, b.hop[0], b.yaw[1], b.roll)) for b in scene.bodies)])


def visible(film, depth, c2w):
    """Whether the surface at this exact depth [H, W] is seen in any frame."""
    u, v, z = warp.reproject(depth.expand(FRAMES, -1, -1), torch.linalg.inv(film.c2w) @ c2w, K.expand(FRAMES, 3, 3))
    x, y = u.round(), v.round()
    inside = (z > 0) & (x >= 0) & (x < WIDTH) & (y >= 0) & (y < HEIGHT)
    at = (y * WIDTH + x).where(inside, 0).long().flatten(1)
    return (inside & ((film.depth.flatten(1).gather(1, at).view_as(z) / z - 1).abs() < 0.02)).any(0)


def render(film, path, i):
    """The eval render of frame i, its mask and z-buffer, each as a batch of one, and its camera in the world."""
    keys = trajectory.read_keyframes(ROOT / "trajs" / f"{path}.txt")
    motion = trajectory.relative_motion(keys, FRAMES, film.depth[0, HEIGHT // 2, WIDTH // 2].item())
    source = film.depth[i : i + 1], torch.from_numpy(motion[i : i + 1]), K[None]
    warped, mask = warp.dilate_holes(*warp.forward_warp(film.frames[i : i + 1], *source))
    return warped, mask, fusion.z_buffer(*source), film.c2w[i] @ torch.linalg.inv(source[1])


# The tolerances were tuned on seeds 0 and 1, at 160 x 240; these were not looked at then.
@pytest.mark.parametrize(("seed", "drift"), [(2, 1.0), (3, 1.0), (4, 0.0), (5, 1.0)])
def test_holes_are_filled_with_what_other_frames_saw(seed, drift):
    room = film(seed, drift)
    views, shown = room.views, owners(room.scene, room.c2w, TIMES)
    moving = (~still(room.scene)[shown]).float()[:, None].expand(-1, 3, -1, -1)
    found = []
    for path in ("traj1", "traj3"):
        for i in range(5, FRAMES, 5):
            before, known, z, target = render(room, path, i)
            after, mask = fusion.fill(before, known, z, views, target, K[None])
            assert torch.equal(after.movedim(1, -1)[known], before.movedim(1, -1)[known]) and mask[known].all()
            truth, depth = look(room.scene, target, TIMES[i : i + 1])
            stands = still(room.scene)[owners(room.scene, target, TIMES[i : i + 1])]
            leak = fusion.merge(*fusion.splat_views((moving, *views[1:]), target, K[None]))[0][:1] > 0.5
            fillable = ~known & stands & visible(room, depth, target[0])
            found.append([x.movedim(1, -1) for x in (after / 2 + 0.5, truth / 2 + 0.5)]
                         + [fillable, mask & ~known, leak, stands])  # fmt: skip
    after, truth, fillable, new, leak, stands = (torch.cat(x) for x in zip(*found, strict=True))
    wrong, got = (after - truth).abs().amax(-1) > 0.25, new & fillable
    share, psnr = got.sum() / fillable.sum(), metrics.psnr(after, truth, got)
    leaked = (new & leak & wrong).sum() / new.sum()
    print(f"seed {seed}, drift {drift} m: {fillable.float().mean():.1%} of all pixels are fillable holes, {share:.1%} "
          f"of them filled at {psnr:.2f} dB; of all filled {(new & stands & wrong).sum() / new.sum():.2%} off by 0.25, "
          f"{leaked:.2%} for coming from what moves, {(new & ~stands).sum() / new.sum():.2%} where a moving thing is")
    assert fillable.float().mean() > 0.02 and share >= 0.6 and psnr >= 25 and leaked < 0.005


@pytest.mark.parametrize("drift", [0.0, 1.0])
def test_a_ball_that_rolls_or_hops_never_counts_as_static(drift):
    room = film(0, drift)
    balls = [i for i, body in enumerate(room.scene.bodies, 1) if body.kind == "sphere" and any(body.drift)]
    ball = torch.isin(owners(room.scene, room.c2w, TIMES), torch.tensor(balls))
    static = room.views[1] > 0
    assert ball.float().mean() > 0.02 and not (static & ball).any() and static.float().mean() > 0.6


def test_unseen_holes_stay():
    room = film(0, 1.0)
    frames, depth, c2w, k = room.views
    before, known, z, target = render(room, "traj1", FRAMES - 1)
    after, mask = fusion.fill(before, known, z, (frames, 0 * depth, c2w, k), target, K[None])
    assert torch.equal(after, before) and torch.equal(mask, known) and not known.all()
    assert not fusion.static_depth(frames[:2], room.depth[:2], c2w[:2], k[:2]).any()  # one witness is not enough


def test_nothing_is_filled_in_behind_what_the_frame_itself_shows():
    """The rim of the foreground, cut off when holes grow, does not turn into background."""
    near, far = torch.full((1, 20, 30), 2.0), torch.full((1, 20, 30), 4.0)
    eye, k = torch.eye(4, dtype=torch.float64)[None], torch.tensor([[[30.0, 0, 15], [0, 30, 10], [0, 0, 1]]])
    before, known = torch.zeros(1, 3, 20, 30), torch.zeros(1, 20, 30, dtype=torch.bool)
    views = torch.ones(1, 3, 20, 30), far, eye, k.double()
    assert not fusion.fill(before, known, near, views, eye, k.double())[1].any()
    assert fusion.fill(before, known, 0 * near, views, eye, k.double())[1].all()
