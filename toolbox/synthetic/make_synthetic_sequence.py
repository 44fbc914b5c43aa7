"""Ray-trace a sequence folder: RGB, exact depth and cameras, and exact views along camera paths.

    python toolbox/synthetic/make_synthetic_sequence.py --output_dir demo_data/room

writes gt_rgb.mp4, cam_info/ and, for each path of --trajs in sorted order, novel_gt{i}.mp4: what
eval_render{i}.mp4 of data_gen.py would show if nothing had been hidden.
"""

import argparse
import sys
from fractions import Fraction
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from toolbox.synthetic import clips, scenes
from utils import camera_paths, cli, geometry, sequence, trajectory, video
from utils.cli import InputError


def parse_args():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=cli.HelpFormatter)
    add = parser.add_argument
    add("--output_dir", type=Path, required=True, help="sequence folder to write")
    add("--seed", type=int, default=0, help="of the scene")
    add("--pattern_scale", type=float, default=3, help="size of the patterns on surfaces; 3 suits "
        "the small model of checkpoints/tiny, which loses what is finer")
    add("--lens_blur", type=float, default=1 / 320, help="sigma of the picture of a point, a share "
        "of the width")
    add("--frames", type=int, default=49)
    add("--height", type=int, default=320)
    add("--width", type=int, default=480)
    add("--focal", type=float, default=500, help="focal length in pixels")
    add("--depth_scale", type=float, default=0.5, help="size of the depth map, as a share of the "
        "video's")
    add("--fps", type=float, default=20)
    add("--crf", type=int, default=14)
    add("--trajs", type=Path, default=Path(__file__).resolve().parents[2] / "trajs",
        help="folder of camera paths for the novel views")
    add("--device", help="cpu, cuda or cuda:N; the GPU if there is one by default")
    args = parser.parse_args()
    for name in ("frames", "height", "width", "focal", "pattern_scale", "fps", "depth_scale"):
        if not 0 < getattr(args, name) < np.inf:
            raise InputError(f"--{name} {getattr(args, name)}: expected above 0")
    if not 0.1 <= args.fps <= 1000:
        raise InputError(f"--fps {args.fps}: expected 0.1 to 1000 frames a second")
    if not 0 <= args.crf <= 51:
        raise InputError(f"--crf {args.crf}: expected 0 (best) to 51")
    if not args.trajs.is_dir():
        raise InputError(f"--trajs {args.trajs}: expected a folder of camera paths, .txt")
    if round(args.depth_scale * min(args.height, args.width)) < 1:
        raise InputError(f"--depth_scale {args.depth_scale}: a depth map would have no pixels")
    if not 0 <= args.lens_blur < np.inf:
        raise InputError(f"--lens_blur {args.lens_blur}: expected 0 or more")
    return args


def render_video(path, scene, c2w, k, info, args, device):
    """Ray-trace the scene frame by frame from c2w [N, 4, 4] and write it."""
    times = scenes.frame_times(info.frames)
    k = k.to(device)
    with video.VideoWriter(path, info, args.crf) as writer:
        for i in tqdm(range(info.frames), unit="frame", desc=path.stem):
            at = slice(i, i + 1)
            pose = c2w[at].to(device)
            rgb, _ = scenes.trace(scene, pose, k, info.height, info.width, times[at])
            if args.lens_blur:
                rgb = clips.blur(rgb, args.lens_blur * info.width)
            writer.write((rgb * 255).round().byte().cpu().numpy())


def exact_depth(scene, c2w, k, height, width, device):
    """z-depth, float16 [N, height, width], of the scene filmed with k, [3, 3] for that size."""
    times = scenes.frame_times(len(c2w))
    k = k.to(device)
    depths = []
    for i in range(len(c2w)):
        at = slice(i, i + 1)
        _, depth = scenes.trace(scene, c2w[at].to(device), k, height, width, times[at], samples=1)
        depths.append(depth.cpu().numpy().astype(np.float16))
    return np.concatenate(depths)


def write_cameras(args, scene, c2w, k, info, device):
    """cam_info/: depth at its own size, K as sequence.video_intrinsics reads it, and poses."""
    height = round(args.height * args.depth_scale)
    width = round(args.width * args.depth_scale)
    sx = width / info.width
    sy = height / info.height
    ray_k = k * torch.tensor([[sx], [sy], [1.0]], dtype=torch.float64)
    ray_k[:2, 2] += torch.tensor([sx / 2 - 0.5, sy / 2 - 0.5])  # depth is taken at pixel centres
    file_k = k.numpy() * geometry.scale((info.width, info.height), (width, height))
    depth = exact_depth(scene, c2w, ray_k, height, width, device)
    sequence.save_array(args.output_dir / sequence.DEPTH, depth)
    sequence.save_array(args.output_dir / sequence.INTRINSICS, file_k.astype(np.float32))
    sequence.save_array(args.output_dir / sequence.C2WS, c2w.numpy().astype(np.float32))


def main():
    args = parse_args()
    device = cli.pick_device(args.device)
    scene = scenes.coarsen(scenes.make_scene(args.seed), args.pattern_scale, softness=1)
    c2w = scenes.camera_path(scene, args.frames)
    fps = Fraction(args.fps).limit_denominator(1001)
    info = video.VideoInfo(args.frames, args.height, args.width, fps)
    k = clips.lens(args.focal, args.height, args.width)
    render_video(args.output_dir / "gt_rgb.mp4", scene, c2w, k, info, args, device)
    write_cameras(args, scene, c2w, k, info, device)

    seq = sequence.open_sequence(args.output_dir, intrinsics_file=sequence.INTRINSICS)
    for number, path in enumerate(sorted(args.trajs.glob("*.txt")), 1):
        keyframes = camera_paths.read_keyframes(path)
        motion = trajectory.relative_motion(keyframes, args.frames, seq.pivot_depth)
        novel = c2w @ torch.linalg.inv(torch.from_numpy(motion))
        render_video(args.output_dir / f"novel_gt{number}.mp4", scene, novel, k, info, args, device)
    print(f"wrote {args.output_dir}")


if __name__ == "__main__":
    cli.run(main)
