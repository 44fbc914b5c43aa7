"""Ray-trace a sequence folder with exact RGB, depth and cameras, and the exact novel views along camera paths.

    python toolbox/make_synthetic_sequence.py --output_dir demo_data/room

writes gt_rgb.mp4, cam_info/ and, for each path of --trajs in sorted order, novel_gt{i}.mp4: what eval_render{i}.mp4 of
data_gen.py would show if nothing had been hidden.
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
from utils import cli, sequence, trajectory, video
from utils.cli import InputError


def parse_args():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=cli.HelpFormatter)
    parser.add_argument("--output_dir", type=Path, required=True, help="sequence folder to write")
    parser.add_argument("--seed", type=int, default=0, help="of the scene")
    parser.add_argument("--pattern_scale", type=float, default=3, help="size of the patterns on surfaces; 3 suits the "
                        "small model of checkpoints/tiny, which loses what is finer")
    parser.add_argument("--lens_blur", type=float, default=1 / 320, help="sigma of the picture of a point, a share "
                        "of the width")
    parser.add_argument("--frames", type=int, default=49)
    parser.add_argument("--height", type=int, default=320)
    parser.add_argument("--width", type=int, default=480)
    parser.add_argument("--focal", type=float, default=500, help="focal length in pixels")
    parser.add_argument("--depth_scale", type=float, default=0.5, help="size of the depth map, a share of the video's")
    parser.add_argument("--fps", type=float, default=20)
    parser.add_argument("--crf", type=int, default=14)
    parser.add_argument("--trajs", type=Path, default=Path(__file__).resolve().parents[2] / "trajs",
                        help="folder of camera paths for the novel views")
    parser.add_argument("--device", help="cpu, cuda or cuda:N; the GPU if there is one by default")
    return parser.parse_args()


def render_video(path, scene, c2w, k, info, args, device):
    """Ray-trace the scene frame by frame from c2w [N, 4, 4] and write it."""
    times = scenes.frame_times(info.frames)
    with video.VideoWriter(path, info, args.crf) as writer:
        for pose, time in zip(tqdm(c2w, unit="frame", desc=path.stem), times, strict=True):
            rgb, _ = scenes.render(scene, pose[None].to(device), k.to(device), info.height, info.width, time[None])
            rgb = clips.blur(rgb, args.lens_blur * info.width) if args.lens_blur else rgb
            writer.write((rgb * 255).round().byte().cpu().numpy())


def render_depth(scene, c2w, k, height, width, device):
    """Exact z-depth, float16 [N, height, width], of the scene filmed with k, [3, 3] in pixels of that size."""
    times = scenes.frame_times(len(c2w))
    depths = []
    for pose, time in zip(c2w, times, strict=True):
        _, depth = scenes.render(scene, pose[None].to(device), k.to(device), height, width, time[None], samples=1)
        depths.append(depth.cpu().numpy().astype(np.float16))
    return np.concatenate(depths)


def main():
    args = parse_args()
    device = cli.pick_device(args.device)
    height, width = round(args.height * args.depth_scale), round(args.width * args.depth_scale)
    if min(args.frames, height, width) < 1 or min(args.focal, args.pattern_scale) <= 0 or args.lens_blur < 0:
        raise InputError(f"{args.frames} frames, depth {width} x {height}, focal {args.focal}, pattern_scale "
                         f"{args.pattern_scale}, lens_blur {args.lens_blur}: expected all above 0")
    scene = scenes.coarsen(scenes.make_scene(args.seed), args.pattern_scale, softness=1)
    c2w = scenes.camera_path(scene, args.frames)
    fps = Fraction(args.fps).limit_denominator(1001)
    info = video.VideoInfo(args.frames, args.height, args.width, fps)
    k = clips.lens(args.focal, args.height, args.width)
    render_video(args.output_dir / "gt_rgb.mp4", scene, c2w, k, info, args, device)

    sx, sy = width / args.width, height / args.height
    ray_k = k * torch.tensor([[sx], [sy], [1.0]], dtype=torch.float64)  # each depth is taken at its pixel's centre
    ray_k[:2, 2] += torch.tensor([sx / 2 - 0.5, sy / 2 - 0.5])
    file_k = k.numpy() * [[np.sqrt(sx * sy), 1, sx], [1, np.sqrt(sx * sy), sy], [1, 1, 1]]  # sequence.video_intrinsics
    sequence.save_array(args.output_dir / sequence.DEPTH, render_depth(scene, c2w, ray_k, height, width, device))
    sequence.save_array(args.output_dir / sequence.INTRINSICS, file_k.astype(np.float32))
    sequence.save_array(args.output_dir / sequence.C2WS, c2w.numpy().astype(np.float32))

    seq = sequence.open_sequence(args.output_dir, intrinsics_file=sequence.INTRINSICS)
    for number, path in enumerate(sorted(args.trajs.glob("*.txt")), 1):
        motion = trajectory.relative_motion(trajectory.read_keyframes(path), args.frames, seq.pivot_depth)
        novel = c2w @ torch.linalg.inv(torch.from_numpy(motion))
        render_video(args.output_dir / f"novel_gt{number}.mp4", scene, novel, k, info, args, device)
    print(f"wrote {args.output_dir}")


if __name__ == "__main__":
    cli.run(main)
