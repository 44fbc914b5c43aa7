"""Film the cases on which estimate_geometry.py is measured, as sequence folders with the truth.

    python toolbox/synthetic/make_geometry_cases.py --output_dir cases --sets chosen_on

Each folder holds gt_rgb.mp4, network.npy (a depth such as networks give: the exact one with a scale
and a shift of inverse depth a frame, a smooth field of errors, soft edges and noise) and truth.npz:
depth, c2w, intrinsics and moving (a mask) of every frame. Thresholds were set on the set chosen_on;
the sets named held_out are other seeds, and another world.
"""

import argparse
import dataclasses
import multiprocessing
import sys
from concurrent.futures import ProcessPoolExecutor
from fractions import Fraction
from pathlib import Path
from random import Random

import cv2
import numpy as np
import torch
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from toolbox.synthetic import clips, scenes, yards
from utils import cli, sequence, video

GOOD = (240, 360, 49)  # height, width, frames
SMALL = (128, 192, 49)
TROUBLES = {  # name: (the least share of the picture that moves, size, what else is done)
    "moving30": (0.3, GOOD, None), "moving50": (0.45, GOOD, None), "moving67": (0.6, GOOD, None),
    "even": (0, SMALL, "even"), "rotation": (0, GOOD, "rotation"), "tripod": (0, GOOD, "tripod"),
    "low_parallax": (0, GOOD, "low_parallax"), "cut": (0, GOOD, "cut"),
    "mirrored": (0, GOOD, "mirrored"), "exposure": (0, GOOD, "exposure"),
    "flicker": (0, GOOD, "flicker"),
}
FIELD = 0.06  # deviation of the field of errors
EDGE = 1 / 150  # deviation of the blur of edges, a share of the height


def make_sets():
    """{set: [(name, world, seed, trouble or None)]}."""
    sets = {"chosen_on": [], "held_out": [], "held_out_yards": []}
    for name, first, world, count in (("chosen_on", 100, "room", 8), ("held_out", 200, "room", 6),
                                      ("held_out_yards", 300, "yard", 6)):
        for seed in range(first, first + count):
            sets[name].append((f"{world}{seed}", world, seed, None))
    for name, first in (("chosen_on", 120), ("held_out", 220)):
        for number, trouble in enumerate(TROUBLES):
            seed = first + number
            sets[name].append((f"{trouble}{seed}", "room", seed, trouble))
    for number, trouble in enumerate(("moving30", "moving50", "rotation", "cut", "mirrored")):
        seed = 320 + number
        sets["held_out_yards"].append((f"{trouble}{seed}", "yard", seed, trouble))
    return sets


def make_scene(world, seed, trouble):
    """The scene; of small pictures with larger, evener patterns."""
    scene = yards.make_yard(seed) if world == "yard" else scenes.make_scene(seed)
    if trouble == "even":
        return scenes.coarsen(scene, 6, softness=1.5)
    return scenes.coarsen(scene, 1.5, softness=1)


def grown(scene, seed, factor):
    """The scene with one more body, between camera and middle, that drifts and turns."""
    rng = Random(f"grown {seed}")
    side = rng.choice((-1, 1))
    half = (0.5 * factor, 0.6 * factor, 0.25 * factor)
    at = (scene.eye[0] * 0.35 - side * 0.3, -half[1], scene.eye[2] * 0.35)
    body = dataclasses.replace(scene.bodies[0], kind="box", half=half, at=at,
                               drift=(side * rng.uniform(0.5, 0.8), rng.uniform(-0.2, 0.2)),
                               yaw=(0.2, side * 0.5), hop=(0.12, 2.0, 0.0), roll=0.0)
    return dataclasses.replace(scene, bodies=(*scene.bodies, body))


def moving_mask(scene, c2w, k, height, width):
    """bool [F, height, width]: pixels of bodies that move."""
    moves = [body.drift != (0.0, 0.0) or body.hop[0] > 0 or body.yaw[1] != 0 or body.roll != 0
             for body in (scene.room, *scene.bodies)]
    moves = torch.tensor(moves)
    inverse = torch.linalg.inv(k).expand(1, 3, 3)
    masks = []
    for t, moment in enumerate(scenes.frame_times(len(c2w))):
        at = c2w[t : t + 1]
        solids = [scenes.place(body, moment[None]) for body in (scene.room, *scene.bodies)]
        rays = scenes.pixel_rays(at, inverse, height, width, 0, 0)
        _, owner = scenes.nearest_surface(solids, at[:, :3, 3:].float(), rays)
        masks.append(moves[owner[0]].reshape(height, width).numpy())
    return np.stack(masks)


def film(world, seed, trouble):
    """(rgb uint8 [F, H, W, 3], {depth, c2w, intrinsics, moving})."""
    least, (height, width, frames), what = TROUBLES[trouble] if trouble else (0, GOOD, None)
    scene = make_scene(world, seed, trouble)
    k = clips.lens(Random(f"lens {seed}").uniform(0.75, 1.5) * width, height, width)
    c2w = scenes.camera_path(scene, frames)
    if what in ("rotation", "low_parallax"):
        c2w[:, :3, 3] = c2w[0, :3, 3] + {"rotation": 0, "low_parallax": 0.04}[what] * (
            c2w[:, :3, 3] - c2w[0, :3, 3])
    if what == "tripod":
        c2w[:] = c2w[0]
    factor = 0.5
    moving = moving_mask(scene, c2w[::8], k, height, width)
    plain = scene
    while moving.mean() < least and factor < 3:
        factor *= 1.12
        scene = grown(plain, seed, factor)
        moving = moving_mask(scene, c2w[::8], k, height, width)
    rgb = []
    depth = []
    for t in range(frames):
        moment = scenes.frame_times(frames)[t : t + 1]
        colour, z = scenes.trace(scene, c2w[t : t + 1], k, height, width, moment)
        rgb.append(clips.blur(colour, clips.LENS_BLUR))
        depth.append(z)
    rgb = (torch.cat(rgb) * 255).round().byte().numpy()
    truth = {"depth": torch.cat(depth).numpy(), "c2w": c2w.numpy(), "intrinsics": k.numpy(),
             "moving": moving_mask(scene, c2w, k, height, width)}
    return rgb, truth


def change_light(rgb, what):
    """The pictures under a ramp of exposure, or flickering."""
    gain = np.linspace(0.6, 1.25, len(rgb))
    if what == "flicker":
        gain = 1 + 0.12 * np.random.default_rng(0).standard_normal(len(rgb))
    return np.clip(rgb * gain[:, None, None, None], 0, 255).round().astype(np.uint8)


def smooth_noise(rng, shape, cells):
    """Noise of deviation 1 that varies over `cells` cells of a picture of `shape`."""
    coarse = rng.standard_normal(cells).astype(np.float32)
    field = cv2.resize(coarse, shape[::-1], interpolation=cv2.INTER_CUBIC)
    return (field - field.mean()) / field.std()


def as_of_a_network(depth, seed):
    """What a network that sees one frame at a time makes of exact depth [F, H, W]."""
    rng = np.random.default_rng(seed)
    height, width = depth.shape[1:]
    still = smooth_noise(rng, (height, width), (4, 5))
    found = []
    for exact in depth:
        inverse = 1 / cv2.GaussianBlur(exact, (0, 0), EDGE * height)
        inverse = (inverse + 1 / exact) / 2
        field = 0.8 * still + 0.6 * smooth_noise(rng, (height, width), (4, 5))
        inverse = inverse * np.exp(FIELD * field + 0.1 * rng.standard_normal())
        shift = 0.06 * rng.standard_normal() * np.median(inverse)
        noise = 1 + 0.01 * rng.standard_normal(inverse.shape)
        inverse = np.maximum(inverse * noise + shift, 0.02 * np.median(inverse))
        found.append(1 / inverse)
    return np.stack(found).astype(np.float32)


def make_case(folder, world, seed, trouble):
    """Write a case, unless it is there."""
    if (folder / "truth.npz").is_file():
        return
    rgb, truth = film(world, seed, trouble)
    if trouble == "cut":
        other, more = film(world, seed + 1000, None)
        half = len(rgb) // 2
        rgb[half:] = other[half:]
        for name in ("depth", "c2w", "moving"):
            truth[name][half:] = more[name][half:]
    if trouble in ("exposure", "flicker"):
        rgb = change_light(rgb, trouble)
    folder.mkdir(parents=True, exist_ok=True)
    info = video.VideoInfo(*rgb.shape[:3], Fraction(20))
    video.write_video(folder / "gt_rgb.mp4", rgb, info, crf=12)
    depth = as_of_a_network(truth["depth"], seed)
    if trouble == "mirrored":
        depth = depth[:, :, ::-1]
    sequence.save_array(folder / "network.npy", depth.astype(np.float16))
    truth["depth"] = truth["depth"].astype(np.float16)
    np.savez_compressed(folder / "truth.npz", **truth)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=cli.HelpFormatter)
    parser.add_argument("--output_dir", type=Path, required=True, help="folder for the cases")
    parser.add_argument("--sets", nargs="+", choices=make_sets(), default=list(make_sets()))
    parser.add_argument("--jobs", type=int, default=1, help="cases at a time, a core each")
    args = parser.parse_args()
    torch.set_num_threads(1)
    with ProcessPoolExecutor(args.jobs, multiprocessing.get_context("spawn")) as pool:
        filmed = [pool.submit(make_case, args.output_dir / name / case, *what)
                  for name in args.sets for case, *what in make_sets()[name]]
        for each in tqdm(filmed, unit="case"):
            each.result()
    print(f"wrote {args.output_dir}")


if __name__ == "__main__":
    cli.run(main)
