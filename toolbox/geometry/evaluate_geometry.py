"""How near estimate_geometry.py comes to the truth, on the cases of make_geometry_cases.py.

    python toolbox/synthetic/make_geometry_cases.py --output_dir cases
    python toolbox/geometry/evaluate_geometry.py --output_dir found \\
        --cases cases/held_out cases/held_out_yards

Cameras are compared after the best similarity; depth after the best scale. A line a case: ATE (the
RMS distance of camera centres, percent of the path), rotation (mean, degrees), focal length
(percent), static depth (median error, percent: of the network, then found), its consistency over
time (median change of the ratio to the truth, percent: likewise), PSNR of a new view on known
pixels (dB: by exact geometry, by the found one, by the network's depth with exact cameras; cases
without a trouble alone), seconds, and the verdict's flags.
"""

import argparse
import re
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import cv2
import numpy as np
import torch
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from toolbox.evaluation.cameras import aligned_errors
from toolbox.synthetic import clips, scenes
from toolbox.synthetic.make_geometry_cases import make_scene, make_sets
from utils import camera_paths, cli, files, geometry, metrics, sequence, trajectory, video, warp

PROGRAM = Path(__file__).with_name("estimate_geometry.py")
COLUMNS = ("ATE %", "rot deg", "focal %", "depth in", "depth", "cons. in", "cons.", "exact",
           "found", "network", "s")
VIEW = "orbit_left:8"  # the new view


def depth_errors(depth, truth):
    """(median error, median change of the ratio to the truth over 4 frames), percent, of what is
    static."""
    exact = truth["depth"].astype(np.float32)
    k, c2w, still = truth["intrinsics"], truth["c2w"], ~truth["moving"]
    size = exact.shape[:0:-1]
    ratio = np.log(np.stack([cv2.resize(each, size) for each in depth]) / exact)
    error = np.median(np.abs(ratio - np.median(ratio[still]))[still])
    changes = []
    for a in range(0, len(exact) - 4, 4):
        x, y, z, inside = geometry.follow(exact[a], k, k, np.linalg.inv(c2w[a + 4]) @ c2w[a])
        seen = np.abs(cv2.remap(exact[a + 4], x, y, cv2.INTER_LINEAR) / z - 1) < 0.02
        seen &= inside
        there = cv2.remap(ratio[a + 4], x, y, cv2.INTER_LINEAR)
        changes.append(np.median(np.abs(there - ratio[a])[seen & still[a]]))
    return 100 * error, 100 * np.mean(changes)


def view_psnrs(case, truth, found):
    """PSNR, dB, on known pixels of a new view by each (depth [N, h, w], K) of a list, against the
    scene traced from there. Old and new camera have the found K, as in data_gen.py; the path is in
    units of the exact depth."""
    name, world, seed, _ = next(each for cases in make_sets().values() for each in cases
                                if each[0] == case.name)
    rgb = video.read_video(case / "gt_rgb.mp4")
    frames = np.arange(8, len(rgb), 16)
    exact = truth["depth"].astype(np.float32)
    k = truth["intrinsics"][None].repeat(len(rgb), 0)
    height, width = rgb.shape[1:3]
    radius = exact[0, height // 2, width // 2]
    motion = trajectory.keyframe_cameras(camera_paths.preset_keyframes(VIEW), k, radius).c2w
    wanted = traced(make_scene(world, seed, None), truth, motion, frames, len(rgb))
    psnrs = []
    for depth, its_k in found:
        scale = np.median(exact) / np.median(depth)
        sized = np.stack([cv2.resize(depth[t].astype(np.float32), (width, height)) for t in frames])
        w2c = torch.from_numpy(np.linalg.inv(motion[frames]))
        x = video.to_signed(torch.from_numpy(rgb[frames]))
        its_k = torch.from_numpy(np.broadcast_to(its_k, (len(rgb), 3, 3))[frames].copy())
        x, known = warp.render("eval", x, torch.from_numpy(sized * scale), w2c, its_k, its_k)
        psnrs.append(metrics.psnr(video.to_bytes(x) / 255, wanted / 255, known.numpy()))
    return psnrs


def traced(scene, truth, motion, frames, count):
    """The scene from the cameras of a path, uint8 [n, H, W, 3]."""
    height, width = truth["depth"].shape[1:]
    k = torch.from_numpy(truth["intrinsics"])
    found = []
    for t in frames:
        pose = torch.from_numpy(truth["c2w"][t] @ motion[t])[None]
        moment = scenes.frame_times(count)[t : t + 1]
        rgb, _ = scenes.trace(scene, pose, k, height, width, moment)
        found.append(clips.blur(rgb, clips.LENS_BLUR))
    return (torch.cat(found) * 255).round().byte().numpy()


def evaluate(case, folder):
    """(numbers, flags) of a case."""
    command = [sys.executable, str(PROGRAM), "--video", case / "gt_rgb.mp4", "--output", folder,
               "--depth_file", (case / "network.npy").resolve(), "--overwrite"]
    began = time.monotonic()
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True)
    seconds = time.monotonic() - began
    if done.returncode:
        raise cli.InputError(f"{case}: {cli.short(done.stderr[-300:], 300)}")
    with np.load(case / "truth.npz", allow_pickle=False) as saved:
        truth = dict(saved)
    record = files.read_json(folder / sequence.VERDICT)
    c2w = np.load(folder / sequence.C2WS)
    depth = np.load(folder / sequence.DEPTH).astype(np.float32)
    network = np.load(case / "network.npy").astype(np.float32)
    turn, ate = aligned_errors(c2w, truth["c2w"])
    focal = 100 * (record["focal_px"] / truth["intrinsics"][0, 0] - 1)
    before = depth_errors(network, truth)
    after = depth_errors(depth, truth)
    return [ate, turn, focal, before[0], after[0], before[1], after[1],
            *views(case, folder, truth, depth, network), seconds], record["flags"]


def views(case, folder, truth, depth, network):
    """The three PSNRs of a case's new view, or nan of one with a trouble."""
    if not re.fullmatch(r"(room|yard)\d+", case.name):
        return [np.nan] * 3
    seq = sequence.open_sequence(folder, intrinsics_file=sequence.INTRINSICS)
    k = truth["intrinsics"]
    return view_psnrs(case, truth, [(truth["depth"], k), (depth, seq.intrinsics), (network, k)])


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=cli.HelpFormatter)
    parser.add_argument("--cases", type=Path, nargs="+", required=True, help="folders of cases")
    parser.add_argument("--output_dir", type=Path, required=True, help="for what is estimated")
    parser.add_argument("--jobs", type=int, default=1, help="cases at a time, a core each")
    args = parser.parse_args()
    torch.set_num_threads(1)
    cases = [case for folder in args.cases for case in sorted(folder.iterdir())]
    print(f"{'':>18}" + "".join(f"{name:>9}" for name in COLUMNS) + "  flags")
    with ThreadPoolExecutor(args.jobs) as pool:
        found = pool.map(lambda case: evaluate(case, args.output_dir / case.name), cases)
        for case, (numbers, flags) in zip(cases, tqdm(found, total=len(cases), unit="case"),
                                          strict=True):
            tqdm.write(f"{case.name:>18}" + "".join(f"{number:9.2f}" for number in numbers)
                       + f"  {' '.join(flags) or '-'}")


if __name__ == "__main__":
    cli.run(main)
