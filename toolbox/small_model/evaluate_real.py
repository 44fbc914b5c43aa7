"""Measure inpainting and finetuning on real pictures: a video's held-out pairs, or a stereo pair.

    python toolbox/small_model/evaluate_real.py --model_path checkpoints/tiny/base \\
        --cognvs_ckpt_path checkpoints/tiny/cognvs_ckpt_inpaint --output_dir /tmp/evaluation \\
        --sequence demo_data/bear

--sequence: the video, at the model's size, is warped to a new camera and back, along the shipped
paths, as data_gen.py's val_ pairs are, and along random paths of another seed than the
finetuning's. What belongs into the holes is the video itself. Finetuning has seen that, so each
pair is inpainted mirrored too, and the gain on new views is estimated as by toolbox/score.py.

--motorcycle: the left picture of scikit-image's stereo pair is a clip that stands still. It is seen
from the right camera, through the depth that belongs to it, and compared with the right picture.

Every result is a line of OUTPUT_DIR/results_{name}_real.jsonl; what is there for the same weights
and pictures is not done again. A standard error is over pairs; those of one video are not
independent.
"""

import dataclasses
import hashlib
import sys
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import torch
from scipy.ndimage import distance_transform_edt
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from toolbox.evaluation.gains import estimated_gain
from toolbox.small_model import evaluate_method
from toolbox.small_model.evaluate_method import FINETUNINGS, ROOT, SIMPLE, Case
from toolbox.synthetic import clips
from utils import camera_paths, cli, geometry, sequence, trajectory, video, windows

OTHER_SEED = 4242  # of the random paths, which finetuning does not see
RANDOM_PATHS = 2
MIRRORED = "_mirrored"

# scikit-image's documentation of stereo_motorcycle, in pixels and metres
FOCAL = 994.978
CENTRE = (311.193, 254.877)  # the left picture's principal point
OFFSET = 31.086  # by which the right one's lies further right
BASELINE = 0.193001
GAP = 4  # pixels of the large picture, one of the model's: how far depth is known from its pixel


def parse_args():
    parser = evaluate_method.make_parser(__doc__)
    add = parser.add_argument
    add("--output_dir", type=Path, required=True)
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--sequence", type=Path, help="sequence folder with gt_rgb.mp4 and cam_info/")
    what.add_argument("--motorcycle", action="store_true", help="the stereo pair")
    add("--intrinsics_file", help="K at the depth map's resolution, as of data_gen.py")
    add("--num_inference_steps", type=int, nargs="+", default=[1, 25])
    add("--finetunings", nargs="*", choices=FINETUNINGS, default=["default", "rate 2e-05"])
    args = parser.parse_args()
    if min(args.num_inference_steps) < 1:
        raise cli.InputError(f"--num_inference_steps {args.num_inference_steps}: expected at least "
                             "1 of each")
    args.world = "motorcycle" if args.motorcycle else args.sequence.resolve().name
    args.set = "real"
    return args


# ---- a video's held-out pairs --------------------------------------------------------------------


def sequence_clip(folder, intrinsics_file, shape, device):
    """The clips.Clip, without a scene, of a sequence folder; shape: (frames, height, width).

    Its first frames are taken, the last one repeated where it is short, with the first one's K.
    """
    frames, height, width = shape
    seq = sequence.open_sequence(folder, intrinsics_file=intrinsics_file)
    for note in seq.notes:
        print(f"note: {note}")
    rgb = video.fit_length(video.read_video(seq.rgb_path, frames), frames)
    rgb = windows.place(rgb, "stretch", (height, width))
    small = replace(seq, info=replace(seq.info, height=height, width=width))
    depth = video.fit_length(small.depth(0, min(frames, seq.info.frames)), frames)
    assert small.pivot_depth == depth[0, height // 2, width // 2]  # or it raises InputError
    k = seq.intrinsics[0] * geometry.scale(seq.size, (width, height))
    return still_clip(rgb, depth, k, device)


def still_clip(rgb, depth, k, device):
    """A clips.Clip of arrays or tensors whose camera is taken to stand still."""
    rgb, depth, k = (torch.as_tensor(x).to(device) for x in (rgb, depth, k))
    c2w = torch.eye(4, dtype=torch.float64, device=device).repeat(len(rgb), 1, 1)
    return clips.Clip(None, rgb, depth, c2w, k)


def held_out_paths():
    """{name: keyframes} of the pairs."""
    paths = {}
    for path in sorted((ROOT / "trajs").glob("*.txt")):
        paths[path.stem] = camera_paths.read_keyframes(path)
    for i, keys in enumerate(trajectory.random_keyframes(OTHER_SEED, RANDOM_PATHS), 1):
        paths[f"random{i}"] = keys
    return paths


def sequence_cases(clip):
    """{name: Case}: each pair as it is, and mirrored."""
    cases = {}
    truth = clip.rgb.cpu().numpy()
    for name, keyframes in held_out_paths().items():
        cameras = clips.path_cameras(clip, keyframes)
        render, mask = clips.reproject(clip, cameras, "train")
        pair = [render.cpu().numpy(), mask.cpu().numpy(), truth]
        cases[name] = Case(clip, cameras, *pair)
        flipped = [np.ascontiguousarray(x[:, :, ::-1]) for x in pair]
        cases[name + MIRRORED] = Case(clip, cameras, *flipped)
    return cases


# ---- the stereo pair -----------------------------------------------------------------------------


def read_motorcycle():
    """scikit-image's (left uint8 [500, 741, 3], right, disparity in pixels, not finite where it is
    unknown)."""
    try:
        from skimage.data import stereo_motorcycle

        return stereo_motorcycle()
    except (ImportError, OSError) as error:
        raise cli.InputError("--motorcycle: needs scikit-image with its pictures (pip install "
                             f"scikit-image): {cli.short(error)}") from error


def motorcycle_depth(disparity):
    """z in metres, float32 [H, W], of a disparity [H, W]; 0 where it is unknown.

    The disparity map has many small gaps, which take the depth of the nearest pixel that has one.
    """
    away, nearest = distance_transform_edt(~np.isfinite(disparity), return_indices=True)
    depth = FOCAL * BASELINE / (disparity[tuple(nearest)] + OFFSET)
    return np.where(away <= GAP, depth, 0).astype(np.float32)


def motorcycle_case(shape, device):
    """The Case of the right camera, of a clip that shows the left picture all along."""
    frames, height, width = shape
    left, right, disparity = read_motorcycle()
    top, start, h, w = windows.box("crop", left.shape[:2], (height, width))
    depth = motorcycle_depth(disparity)[top : top + h, start : start + w]
    # nearest: no depths between that of a thing and of what is behind it
    depth = cv2.resize(depth, (width, height), interpolation=cv2.INTER_NEAREST)
    scale = geometry.scale((w, h), (width, height))

    def camera(x):
        return np.array([[FOCAL, 0, x - start], [0, FOCAL, CENTRE[1] - top], [0, 0, 1]]) * scale

    rgb, truth = (windows.place(x[None], "crop", (height, width)) for x in (left, right))
    clip = still_clip(rgb.repeat(frames, 0), depth[None].repeat(frames, 0), camera(CENTRE[0]),
                      device)
    c2w = np.tile(np.eye(4), (frames, 1, 1))
    c2w[:, 0, 3] = BASELINE
    k = np.tile(camera(CENTRE[0] + OFFSET), (frames, 1, 1))
    cameras = trajectory.Cameras(c2w, k, np.arange(frames))
    render, mask = clips.reproject(clip, cameras, "eval")
    return Case(clip, cameras, render.cpu().numpy(), mask.cpu().numpy(), truth.repeat(frames, 0))


# ---- the run -------------------------------------------------------------------------------------


def case_key(weights, case):
    """What tells a case and the weights from others of the same name, for what is kept of them."""
    digest = hashlib.sha256(weights.encode())
    for tensor in (case.clip.rgb, case.clip.depth, case.clip.k):  # which finetuning sees
        digest.update(tensor.cpu().numpy().tobytes())
    for array in (case.truth, *dataclasses.astuple(case.cameras)):  # a GPU's render varies
        digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()[:12]


def run_clip(args, pipe, embedding, cases, rows, add):
    """Make what is missing of the cases {name: Case} of one clip; add(row) keeps a result."""
    done = {(row["scene"], row["method"]) for row in rows}

    def keep(name, method, picture):
        case = cases[name]
        evaluate_method.write_picture(args, name, method, picture)
        found = evaluate_method.scores(picture, case.render, case.mask, case.truth)
        add({"scene": name, "case": args.made_of[name], "method": method} | found)

    for name, case in cases.items():
        evaluate_method.write_picture(args, name, "source", case.clip.rgb.cpu().numpy())
        evaluate_method.write_picture(args, name, "truth", case.truth)
        for method in SIMPLE:
            if (name, method) not in done:
                keep(name, method, evaluate_method.simple_picture(method, pipe, case))
    original = pipe.transformer
    for kind in ("zero-shot", *args.finetunings):
        missing = [(name, steps) for name in cases for steps in args.num_inference_steps
                   if (name, f"{kind}, {steps}") not in done]
        if missing and kind != "zero-shot":
            clip = next(iter(cases.values())).clip
            pipe.transformer = evaluate_method.finetune(pipe, embedding, clip, FINETUNINGS[kind])
        for name, steps in tqdm(missing, unit="clip", desc=kind):
            picture = evaluate_method.inpaint(pipe, embedding, cases[name].render, steps)
            keep(name, f"{kind}, {steps}", picture)
        pipe.transformer = original


def estimates(args, rows):
    """A line of each finetuning: what it gains in holes, as estimated for new views."""
    holes = {(row["scene"], row["method"]): row["holes"] for row in rows}
    lines = []
    for method in evaluate_method.model_methods(args):
        kind, _, steps = method.rpartition(", ")
        if kind == "zero-shot":
            continue
        gains = [[], []]
        for scene in sorted({scene for scene, _ in holes if MIRRORED not in scene}):
            for found, name in zip(gains, (scene, scene + MIRRORED), strict=True):
                found.append(holes[name, method] - holes[name, f"zero-shot, {steps}"])
        told = estimated_gain(*map(np.array, gains))
        lines.append(f"{method}: {evaluate_method.mean_and_error(told)} dB estimated in new views")
    return "\n".join(lines)


def main():
    args = parse_args()
    pipe, embedding, weights = evaluate_method.load(args)
    if args.motorcycle:
        cases = {"right": motorcycle_case(pipe.clip_shape, pipe.device)}
    else:
        clip = sequence_clip(args.sequence, args.intrinsics_file, pipe.clip_shape, pipe.device)
        cases = sequence_cases(clip)
    for name, case in cases.items():
        print(f"{name}: {1 - case.mask.mean():.1%} holes")
    args.made_of = {name: case_key(weights, case) for name, case in cases.items()}
    path = args.output_dir / f"results_{args.world}_{args.set}.jsonl"
    with evaluate_method.results_file(path, weights) as (rows, add):
        rows[:] = [row for row in rows if row.get("case") == args.made_of.get(row["scene"], "")]
        run_clip(args, pipe, embedding, cases, rows, add)

    for heading, mirrored in ((args.world, False), (f"{args.world}, mirrored", True)):
        chosen = [row for row in rows if (MIRRORED in row["scene"]) == mirrored]
        if chosen:
            print(f"\n{heading}; PSNR in dB\n\n{evaluate_method.table(chosen)}")
    if args.sequence:
        print(f"\n{estimates(args, rows)}")
    evaluate_method.write_strips(args, [name for name in cases if MIRRORED not in name])


if __name__ == "__main__":
    cli.run(main)
