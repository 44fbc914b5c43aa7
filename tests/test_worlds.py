"""The small model's training data of every kind: worlds, errors of depth, moving layers."""

import subprocess
import sys
from random import Random

import pytest
import torch
import torch.nn.functional as F
from conftest import ROOT

from toolbox.small_model import depth_errors, layers, photographs, scene_pairs, skins, worlds
from toolbox.synthetic import clips, scenes
from utils import trajectory

CPU = torch.device("cpu")
SHAPE = (2, 32, 48)
SEEDS = range(40, 54)


@pytest.fixture(scope="module")
def made():
    return {seed: worlds.random_clip(seed, SHAPE, CPU) for seed in SEEDS}


def test_a_seed_means_one_clip(made):
    for seed in (40, 41, 42):
        again = worlds.random_clip(seed, SHAPE, CPU)
        assert again.scene == made[seed].scene
        for name in ("rgb", "depth", "c2w", "k"):
            assert torch.equal(getattr(again, name), getattr(made[seed], name))
        assert (again.estimate is None) == (made[seed].estimate is None)
        assert again.estimate is None or torch.equal(again.estimate, made[seed].estimate)
    pictures = torch.stack([clip.rgb.float() for clip in made.values()])
    assert pictures.mean((1, 2, 3)).std(0).min() > 20  # they differ


def test_rooms_are_a_third_and_half_of_all_depth_is_exact(made):
    rooms = 0
    exact = 0
    for seed in range(3000):
        rooms += Random(f"mixture {seed}").random() < worlds.ROOMS
        exact += worlds.is_exact(seed)
    assert rooms / 3000 == pytest.approx(1 / 3, abs=0.04)
    assert exact / 3000 == pytest.approx(0.5, abs=0.04)
    kinds = {type(clip.scene) for clip in made.values()}
    assert kinds == {scenes.Scene, worlds.World}


def test_true_depth_is_what_the_tracer_finds_and_all_is_finite(made):
    for seed, clip in made.items():
        times = scenes.frame_times(SHAPE[0])
        _, depth = scenes.trace(clip.scene, clip.c2w, clip.k, *SHAPE[1:], times, samples=1)
        assert torch.equal(depth, clip.depth)
        assert torch.isfinite(depth).all() and (depth > 0).all()
        assert (clip.estimate is None) == worlds.is_exact(seed)


def test_errors_of_depth_are_within_what_is_stated(made):
    reach = depth_errors.REACH
    most = depth_errors.WAVES + depth_errors.FLICKER + 1e-5
    moved = 0
    for clip in made.values():
        if clip.estimate is None:
            continue
        true = F.pad(clip.depth[:, None], (reach,) * 4, mode="replicate")
        far = F.max_pool2d(true, 2 * reach + 1, 1)[:, 0]
        near = -F.max_pool2d(-true, 2 * reach + 1, 1)[:, 0]
        assert (clip.estimate <= far * (1 + most)).all()
        assert (clip.estimate >= near * (1 - most)).all()
        moved += not torch.equal(clip.estimate, clip.depth)
    assert moved > 3


def test_renders_are_warped_by_the_depth_with_errors(made):
    clip = next(clip for clip in made.values() if clip.estimate is not None)
    cameras = clips.path_cameras(clip, trajectory.random_keyframes(1, 1)[0])
    render, mask = clips.reproject(clip, cameras, "eval")
    guessed, _ = clips.reproject(clip._replace(depth=clip.estimate), cameras, "eval")
    exact, _ = clips.reproject(clip._replace(estimate=None), cameras, "eval")
    assert torch.equal(render, guessed) and not torch.equal(render, exact)
    assert (render[~mask] == 0).all()


def test_every_view_of_a_scene_has_errors_of_its_own():
    seed = next(seed for seed in SEEDS if not worlds.is_exact(seed))
    first, second = scene_pairs.film_views(seed, SHAPE, CPU)
    for view in (first, second):
        assert view.estimate is not None and torch.isfinite(view.estimate).all()
    kept = scene_pairs.to_device(first, CPU)
    assert kept.scene is first.scene and torch.equal(kept.estimate, first.estimate)


def test_the_camera_is_never_inside_of_a_body():
    for seed in range(60):
        scene = worlds.make_world(seed)
        c2w = scenes.camera_path(scene, 5)
        times = scenes.frame_times(5)
        eye = c2w[:, :3, 3:].float()
        assert (scenes.distance(scenes.place(scene.room, times), eye) < 0).all()
        for body in scene.bodies[1:]:
            assert (scenes.distance(scenes.place(body, times), eye) > 0).all()


def test_every_pattern_is_finite_and_in_range():
    rng = Random(0)
    draw = torch.Generator().manual_seed(0)
    q = 20 * torch.rand(3, 4000, generator=draw) - 10
    w = torch.rand(4000, generator=draw) ** 4 + 1e-4
    for pattern in skins.PATTERNS.values():
        luck = (rng.random(), rng.random(), rng.random())
        value = pattern(q, w, luck)
        assert value.shape == w.shape and torch.isfinite(value).all()
        assert value.clamp(0, 1).sub(value).abs().mean() < 0.1
    n = torch.eye(3)[torch.randint(3, (4000,), generator=draw)].T
    for seed in range(60):
        skin = skins.random_skin(Random(seed), 1.0, seed % 2 * 0.5)
        colour = skin.paint(q, n, w)
        assert colour.shape == (3, 4000) and torch.isfinite(colour).all() and colour.min() > -1


def test_photographs_have_licences_and_there_may_be_none(monkeypatch):
    assert all(photographs.LICENCES.values())
    assert not any("motorcycle" in name for name in photographs.LICENCES)
    there = photographs.pyramids(CPU)
    assert {name for name in photographs.LICENCES if not name.startswith("sklearn")} <= set(there)
    q = torch.rand(2, 100)
    found = photographs.sample(3, q, torch.full((100,), 0.01))
    assert found.std() > 0.01
    assert found.shape == (3, 100) and 0 <= found.min() and found.max() <= 1
    torch.testing.assert_close(found, photographs.sample(3, -q, torch.full((100,), 0.01)))
    count = len(photographs.LICENCES)
    others = {name: x for name, x in there.items() if name != list(photographs.LICENCES)[3]}
    monkeypatch.setattr(photographs, "pyramids", lambda device: others)
    assert "skimage cell" in photographs.missing()
    assert photographs.sample(3, q, q[0]).unique().numel() == 1
    assert torch.equal(photographs.sample(4 + count, q, q[0]), photographs.sample(4, q, q[0]))
    assert photographs.sample(4, q, q[0]).std() > 0.01


def test_a_lamp_is_in_its_room_and_a_camera_rolls_as_far_in_every_world():
    rolls = []
    for seed in range(300):
        scene = worlds.make_world(seed)
        if not (scene.open_air or scene.backdrop):
            light = torch.tensor(scene.light)[None, :, None]
            room = scenes.place(scene.room, torch.zeros(1))
            assert scenes.distance(room, light).max() < 0
        rolls.append(abs(scene.sway[-1][0]))
    assert max(rolls) <= 1.2 * scenes.SWAY[-1]


def test_holes_of_moving_layers_are_black_and_nothing_else_is():
    rgb, holes = layers.random_layers("5", 2, (5, 32, 48), CPU)
    assert rgb.shape == (2, 5, 32, 48, 3) and rgb.dtype == torch.uint8 and rgb.min() >= 1
    assert holes.shape == rgb.shape[:-1] and 0.002 < holes.float().mean() < 0.6
    made = layers.random_stretches("a", 9, (5, 32, 48), CPU)
    assert torch.equal(made, layers.random_stretches("a", 9, (5, 32, 48), CPU))
    assert not torch.equal(made, layers.random_stretches("b", 9, (5, 32, 48), CPU))
    _, holes = layers.random_layers("a 0", 8, (5, 32, 48), CPU)
    for i in range(8):
        black = (made[i] == 0).all(-1)
        assert torch.equal(black, holes[i] if i % 3 else torch.zeros_like(black))


@pytest.mark.parametrize("name", ["depth_errors", "layers", "photographs", "skins", "worlds"])
def test_a_module_that_is_run_says_that_it_is_none(name):
    program = ROOT / "toolbox" / "small_model" / f"{name}.py"
    done = subprocess.run([sys.executable, program], text=True, capture_output=True)
    assert done.returncode and done.stderr.startswith("error: a module, not a program;")
