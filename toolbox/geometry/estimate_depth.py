"""Estimate depth in metres for a sequence folder that has only gt_rgb.mp4; write it to cam_info/.

    python toolbox/geometry/estimate_depth.py --data_path demo_data/bear \\
        --model_path checkpoints/Depth-Anything-V2-Metric-Indoor

--model_path is a transformers model: Depth Anything (a metric one) or DepthPro, whose focal length
becomes the intrinsics file. Neither gives camera poses.

These networks see one frame at a time, so the scale and shift of their depth flicker. Steadying
fits each frame's inverse depth to that of the frame before, at pixels that optical flow matches.
Then it moves each frame to what the frames around it say on average, so nothing drifts.
Flicker is printed before and after. It is the median over matched pixels of
|depth / depth of the frame before - 1|, averaged over the frames. Real motion along the view is
part of it.
"""

import argparse
import sys
from pathlib import Path

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from utils import cli, geometry, sequence, video
from utils.cli import InputError

DEFAULT_MODEL = "depth-anything/Depth-Anything-V2-Metric-Indoor-Large-hf"
MAP_SIDE = 518  # short side of the depth maps at most, pixels; Depth Anything's own
FLOW_SIDE = 256  # short side of the pictures for optical flow at most, pixels
WINDOW = 24  # frames; the weights of the average fall to 0 this far away
SAMPLES = 4096  # matched pixels kept of a pair of frames
NEAREST = 1e-4  # metres; this and the next are the limits in DepthPro's own post-processing
FARTHEST = 1e4


def parse_args():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=cli.HelpFormatter)
    add = parser.add_argument
    add("--data_path", type=Path, required=True, help="sequence folder with gt_rgb.mp4")
    add("--model_path", default=DEFAULT_MODEL,
        help="folder of the model, or its hub name with --download")
    add("--download", action="store_true", help="allow fetching the model from the hub")
    add("--batch_size", type=int, default=1, help="frames at a time")
    add("--no_steady", action="store_true", help="leave each frame's depth as the model gives it")
    add("--overwrite", action="store_true", help="replace depth (and intrinsics) that are there")
    add("--device", help="cpu, cuda or cuda:N; the GPU if there is one by default")
    return parser.parse_args()


# The network


def load(args, auto_class, **options):
    """auto_class.from_pretrained of args.model_path; from this machine only without --download."""
    try:
        return auto_class.from_pretrained(args.model_path, local_files_only=not args.download,
                                          trust_remote_code=False, **options)
    except Exception as error:  # a missing or broken folder raises nearly anything
        if not args.download and not Path(args.model_path).is_dir():
            raise InputError(f"{args.model_path}: no such folder; give the local folder of a "
                             "transformers depth model, or --download to fetch a hub name"
                             ) from error
        why = " ".join(str(error).split())
        raise InputError(f"{args.model_path}: not a transformers depth model that loads: {why}; "
                         f"expected one such as {DEFAULT_MODEL}") from error


def load_config(args):
    """The model's config; InputError if the model does not give metres."""
    from transformers import AutoConfig

    config = load(args, AutoConfig)
    if config.model_type == "depth_anything" and config.depth_estimation_type != "metric":
        raise InputError(f"{args.model_path}: gives relative disparity, of another scale in each "
                         f"frame; expected a metric model, such as {DEFAULT_MODEL}")
    if config.model_type != "depth_anything" and not getattr(config, "use_fov_model", False):
        raise InputError(f"{args.model_path}: is {config.model_type}; expected depth_anything "
                         "(metric) or depth_pro (with use_fov_model)")
    return config


def load_model(args, config, device):
    """The network, and the function that turns uint8 [n, H, W, 3] into its input."""
    from transformers import AutoImageProcessor, AutoModelForDepthEstimation, utils

    utils.logging.disable_progress_bar()
    utils.logging.set_verbosity_error()  # missing weights are told below, in one line
    model, report = load(args, AutoModelForDepthEstimation, config=config, dtype=torch.float32,
                         output_loading_info=True)
    missing = sorted(report["missing_keys"])
    if missing:
        raise InputError(f"{args.model_path}: {len(missing)} weights are missing, such as "
                         f"{missing[0]}; expected a whole {config.model_type}")
    model = model.to(device).eval()
    if config.model_type == "depth_pro":
        return model, lambda frames: depth_pro_pixels(frames, config)
    # PIL's resizing gives the same pixels with and without torchvision.
    processor = load(args, AutoImageProcessor, backend="pil")
    return model, lambda frames: processor(images=[*frames], return_tensors="pt")["pixel_values"]


def depth_pro_pixels(frames, config):
    """DepthPro's input: [n, 3, side, side] in [-1, 1], resized without antialiasing.

    These are the pixels of its own image processor, which needs torchvision.
    """
    side = round(config.patch_size / min(config.scaled_images_ratios))
    pixels = torch.from_numpy(frames).permute(0, 3, 1, 2) / 127.5 - 1  # [n, 3, H, W]
    return F.interpolate(pixels, (side, side), mode="bilinear", align_corners=False)


def predict(model, pixels, size):
    """Inverse depth, float32 [n, *size], and the factor that is still on it, [n].

    The factor is width / focal length for DepthPro, and 1 for Depth Anything.
    """
    with torch.inference_mode():
        out = model(pixel_values=pixels.to(model.device))
    fov_deg = out.get("field_of_view")
    if fov_deg is None:
        inverse = 1 / out.predicted_depth
        factor = torch.ones(len(inverse))
    else:
        inverse = out.predicted_depth
        factor = 2 * torch.tan(torch.deg2rad(fov_deg) / 2)
    inverse = inverse.clamp(1 / FARTHEST, 1 / NEAREST)
    inverse = F.interpolate(inverse[:, None], size, mode="bilinear", antialias=True)[:, 0]
    return inverse.float().cpu().numpy(), factor.cpu().numpy()


def estimate(args, info, look):
    """Each frame's inverse depth [N, h, w], its factor [N], and matches, as match gives them.

    look: takes uint8 [n, H, W, 3] to inverse depth [n, h, w] and factor [n], as predict does.
    The matches are a list: of frame 1 with frame 0, of frame 2 with frame 1, and so on.
    """
    maps = []
    factors = []
    matches = []
    before = None
    with tqdm(total=info.frames, unit="frame", desc="depth") as bar:
        for frames in video.iter_chunks(args.data_path / "gt_rgb.mp4", args.batch_size):
            inverse, factor = look(frames)
            maps.extend(inverse)
            factors.extend(factor)
            for now in map(shrink, frames, inverse):
                if before:
                    matches.append(match(now, before))
                before = now
            bar.update(len(frames))
    maps = np.stack(maps)
    factors = np.array(factors)
    if not np.isfinite(maps).all() or not (factors > 0).all():
        raise InputError(f"{args.model_path}: gave depth or a field of view that is not positive "
                         "and finite; expected trained weights")
    return maps, factors, matches


# Matching a frame with the one before


def fit_size(height, width, short_side):
    """(height, width), shrunk to this short side if theirs is longer."""
    scale = min(1, short_side / min(height, width))
    return round(height * scale), round(width * scale)


def shrink(frame, inverse):
    """A frame as grey, and its inverse depth, both at the size for optical flow."""
    height, width = fit_size(*inverse.shape, FLOW_SIDE)
    grey = cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY)
    grey = cv2.resize(grey, (width, height), interpolation=cv2.INTER_AREA)
    return grey, cv2.resize(inverse, (width, height), interpolation=cv2.INTER_AREA)


def match(now, before):
    """Inverse depth of this frame, and of the frame before, at the same points: [2, m].

    now, before: what shrink returns. Kept are pixels whose flow to the frame before and back ends
    within a pixel. m is 0 if these are under a fifth of all, as after a cut.
    """
    grey, inverse = now
    grey_before, inverse_before = before
    dis = cv2.DISOpticalFlow_create(cv2.DISOPTICAL_FLOW_PRESET_MEDIUM)
    there = dis.calc(grey, grey_before, None)
    back = dis.calc(grey_before, grey, None)
    y, x = np.indices(grey.shape, dtype=np.float32)
    x += there[..., 0]
    y += there[..., 1]
    found = cv2.remap(inverse_before, x, y, cv2.INTER_LINEAR, borderValue=np.nan)
    back = cv2.remap(back, x, y, cv2.INTER_LINEAR, borderValue=(np.nan, np.nan))
    close = np.linalg.norm(there + back, axis=2) < 1
    good = np.flatnonzero(close & np.isfinite(found))
    if len(good) <= 0.2 * grey.size:
        return np.empty((2, 0))
    good = good[:: len(good) // SAMPLES + 1]
    return np.stack([inverse.flat[good], found.flat[good]]).astype(np.float64)


def fit(matched):
    """a, b of before = a * now + b in inverse depth; None if the matches [2, m] do not settle them.

    The fit is affine in inverse depth, because the training of these networks leaves scale and
    shift of it open, and because it weighs near things most, which show parallax. The slope is
    the ratio of the standard deviations (reduced major axis). Least squares would take noise in
    `now` for a slope below 1, which would flatten the depth frame by frame. The weights are
    Tukey's biweight, computed anew 20 times.
    """
    if not matched.size:
        return None
    now, before = matched
    a = np.median(before) / np.median(now)
    b = 0
    for _ in range(20):
        residual = np.abs(before - a * now - b)
        reach = 4.685 * 1.4826 * np.median(residual) + 1e-6 * np.median(before)
        weight = np.clip(1 - (residual / reach) ** 2, 0, None) ** 2
        mean = np.average(matched, axis=1, weights=weight)
        spread = np.cov(matched, aweights=weight)
        deviation = np.sqrt(spread.diagonal())
        if deviation[0] < 0.03 * mean[0] or spread[0, 1] <= 0.5 * deviation.prod():
            return None  # nearly constant, or unrelated
        a = deviation[1] / deviation[0]
        b = mean[1] - a * mean[0]
    return (a, b) if 0.5 < a < 2 else None


# Steadying


def steady(fits):
    """Scale and shift, [N] each, that move each frame's inverse depth to the average around it.

    fits: (a, b) or None of frames 1, 2, ... to the one before, as fit returns them. What frame s
    says of frame t is frame t brought over by the fits between the two. The average is symmetric
    in time, so a steady approach, which fits take for a change of scale, cancels; and errors add
    up over WINDOW frames at most. A frame that could not be fitted starts anew, as after a cut.
    """
    frames = len(fits) + 1
    scale = np.ones(frames)  # these two bring a frame to the units of frame 0
    shift = np.zeros(frames)
    shot = np.zeros(frames, int)
    for t, found in enumerate(fits, 1):
        a, b = found or (1, 0)
        scale[t] = scale[t - 1] * a
        shift[t] = shift[t - 1] + scale[t - 1] * b
        shot[t] = shot[t - 1] + (found is None)
    time = np.arange(frames)
    weight = np.clip(WINDOW - np.abs(time[:, None] - time), 0, None)  # [N, N]
    weight = weight * (shot[:, None] == shot)
    weight = weight / weight.sum(1, keepdims=True)
    return weight @ (1 / scale) * scale, weight @ (1 / scale) * shift - weight @ (shift / scale)


def moved(inverse, a, b):
    """Inverse depth after scale and shift, at most a factor 2 from what the model said."""
    return np.clip(a * inverse + b, inverse / 2, inverse * 2)


def flicker(matches, scale, shift):
    """The flicker of the module's docstring; nan if no frame could be matched."""
    medians = []
    for t, (now, before) in enumerate(matches, 1):
        if now.size:
            ratio = moved(before, scale[t - 1], shift[t - 1]) / moved(now, scale[t], shift[t])
            medians.append(np.median(np.abs(ratio - 1)))
    return np.mean(medians) if medians else np.nan


def correction(frames, matches, no_steady):
    """Scale and shift of each frame's inverse depth, [N] each; prints the flicker."""
    before = flicker(matches, np.ones(frames), np.zeros(frames))
    if no_steady:
        print(f"flicker {before:.4f}, not steadied")
        return np.ones(frames), np.zeros(frames)
    fits = [fit(matched) for matched in matches]
    scale, shift = steady(fits)
    print(f"flicker {before:.4f} before steadying, {flicker(matches, scale, shift):.4f} after; "
          f"{fits.count(None)} of {len(fits)} frames could not be fitted to the one before")
    return scale, shift


# Writing


def depth_map_intrinsics(info, size, focal_px):
    """K in pixels of a depth map of `size`, float32 [3, 3]; focal_px is in pixels of the video."""
    k = np.array([[focal_px, 0, info.width // 2], [0, focal_px, info.height // 2], [0, 0, 1]])
    return (k * geometry.scale((info.width, info.height), size[::-1])).astype(np.float32)


def write(folder, arrays):
    """Save {name: array}, and name the cameras that are there from before."""
    for name, array in arrays.items():
        sequence.save_array(folder / name, array)
    for name in (sequence.INTRINSICS, sequence.C2WS):
        if name not in arrays and (folder / name).exists():
            print(f"note: {folder / name} was there before and stays; it may not fit this depth's "
                  "size and unit")
    if sequence.INTRINSICS not in arrays:
        print("note: this model gives no focal length; data_gen.py takes 500 pixels, or "
              "--intrinsics_file")
    paths = " and ".join(str(folder / name) for name in arrays)
    kept = arrays[sequence.DEPTH]
    depth = kept.astype(np.float32)
    print(f"wrote {paths}: {depth.shape} {kept.dtype}, metres: min {depth.min():.4g}, "
          f"median {np.median(depth):.4g}, max {depth.max():.4g}")


def main():
    args = parse_args()
    device = cli.pick_device(args.device)
    info = video.probe(args.data_path / "gt_rgb.mp4")
    if args.batch_size < 1:
        raise InputError(f"--batch_size {args.batch_size}: expected 1 or more")
    config = load_config(args)
    gives_focal = config.model_type == "depth_pro"
    for name in (sequence.DEPTH, sequence.INTRINSICS)[: 1 + gives_focal]:
        path = args.data_path / name
        if path.exists() and not args.overwrite:
            raise InputError(f"{path}: is there already; give --overwrite to replace it")
    model, prepare = load_model(args, config, device)
    size = fit_size(info.height, info.width, MAP_SIDE)
    maps, factors, matches = estimate(
        args, info, lambda frames: predict(model, prepare(frames), size))

    scale, shift = correction(info.frames, matches, args.no_steady)
    factor = np.median(factors)  # one focal length, so that its flicker stays out of the depth
    for t, inverse in enumerate(maps):
        maps[t] = 1 / (factor * moved(inverse, scale[t], shift[t]))
    arrays = {sequence.DEPTH: sequence.half_if_exact(maps)}
    if gives_focal:
        arrays[sequence.INTRINSICS] = depth_map_intrinsics(info, size, info.width / factor)
    write(args.data_path, arrays)


if __name__ == "__main__":
    cli.run(main)
