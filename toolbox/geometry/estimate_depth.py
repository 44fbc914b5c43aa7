"""Estimate depth in metres for a sequence folder that has only gt_rgb.mp4, and write it to cam_info/.

    python toolbox/estimate_depth.py --data_path demo_data/bear --model_path checkpoints/Depth-Anything-V2-Metric-Indoor

--model_path is a transformers model: Depth Anything (a metric one), or DepthPro, whose focal length becomes the
intrinsics file. Neither gives camera poses.

These networks see one frame at a time, so the scale and shift of their depth flicker. Steadying fits each frame's
inverse depth to the frame before at pixels that optical flow matches, and moves each frame to what the frames around it
say on average, so nothing drifts. Flicker, printed before and after, is the median over matched pixels of
|depth / depth of the frame before - 1|, averaged over the frames; real motion along the view is part of it.
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
from utils import cli, sequence, video
from utils.cli import InputError

DEFAULT_MODEL = "depth-anything/Depth-Anything-V2-Metric-Indoor-Large-hf"
MAP_SIDE, FLOW_SIDE = 518, 256  # short sides at most, pixels: of the depth maps (Depth Anything's own), of optical flow
WINDOW = 24  # frames; weights of the average fall to 0 this far away, a second or less
SAMPLES = 4096  # matched pixels kept of a pair of frames
NEAREST, FARTHEST = 1e-4, 1e4  # metres, the limits in DepthPro's own post-processing


def parse_args():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=cli.HelpFormatter)
    parser.add_argument("--data_path", type=Path, required=True, help="sequence folder with gt_rgb.mp4")
    parser.add_argument("--model_path", default=DEFAULT_MODEL, help="folder of the model; its hub name with --download")
    parser.add_argument("--download", action="store_true", help="allow fetching the model from the hub")
    parser.add_argument("--batch_size", type=int, default=1, help="frames at a time")
    parser.add_argument("--no_steady", action="store_true", help="leave each frame's depth as the model gives it")
    parser.add_argument("--overwrite", action="store_true", help="replace depth (and intrinsics) that are there")
    parser.add_argument("--device", help="cpu, cuda or cuda:N; the GPU if there is one by default")
    return parser.parse_args()


def refuse_to_replace(args, names):
    for name in names:
        if (args.data_path / name).exists() and not args.overwrite:
            raise InputError(f"{args.data_path / name}: is there already; give --overwrite to replace it")


def load(args, part, **options):
    """`part`.from_pretrained of args.model_path, from this machine only unless --download."""
    options |= {"local_files_only": not args.download, "trust_remote_code": False}
    try:
        return part.from_pretrained(args.model_path, **options)
    except Exception as error:  # a missing or broken folder raises nearly anything
        if not args.download and not Path(args.model_path).is_dir():
            raise InputError(f"{args.model_path}: no such folder; give the local folder of a transformers depth model, "
                             "or --download to fetch a hub name") from error
        why = " ".join(str(error).split())
        raise InputError(f"{args.model_path}: not a transformers depth model that loads: {why}") from error


def load_config(args):
    """The model's config, if it is one that gives metres."""
    from transformers import AutoConfig

    config = load(args, AutoConfig)
    if config.model_type == "depth_anything" and config.depth_estimation_type != "metric":
        raise InputError(f"{args.model_path}: gives relative disparity, of another scale in each frame; expected a "
                         f"metric model, such as {DEFAULT_MODEL}")
    if config.model_type != "depth_anything" and not getattr(config, "use_fov_model", False):
        raise InputError(f"{args.model_path}: is {config.model_type}; expected depth_anything (metric) or depth_pro "
                         "(with use_fov_model)")
    return config


def load_model(args, config, device):
    """The network and the function that turns uint8 [n, H, W, 3] into its input."""
    from transformers import AutoImageProcessor, AutoModelForDepthEstimation, utils

    utils.logging.disable_progress_bar()
    utils.logging.set_verbosity_error()  # what is missing is said below, in one line
    options = {"config": config, "dtype": torch.float32, "output_loading_info": True}
    model, report = load(args, AutoModelForDepthEstimation, **options)
    if report["missing_keys"]:
        raise InputError(f"{args.model_path}: {len(report['missing_keys'])} weights are missing, such as "
                         f"{sorted(report['missing_keys'])[0]}; expected a whole {config.model_type}")
    if config.model_type == "depth_pro":
        return model.to(device).eval(), lambda frames: depth_pro_pixels(frames, config)
    processor = load(args, AutoImageProcessor, backend="pil")  # the same pixels with and without torchvision
    return model.to(device).eval(), lambda frames: processor(images=[*frames], return_tensors="pt")["pixel_values"]


def depth_pro_pixels(frames, config):
    """DepthPro's input, [-1, 1], square, not antialiased, as its image processor makes it, which needs torchvision."""
    side = round(config.patch_size / min(config.scaled_images_ratios))
    pixels = torch.from_numpy(frames).permute(0, 3, 1, 2) / 127.5 - 1  # [n, 3, H, W]
    return F.interpolate(pixels, (side, side), mode="bilinear", align_corners=False)


def predict(model, pixels, size):
    """Inverse depth, float32 [n, *size], and the factor still on it, [n]: width / focal length; 1 of Depth Anything."""
    with torch.inference_mode():
        out = model(pixel_values=pixels.to(model.device))
    fov_deg = out.get("field_of_view")
    inverse = (1 / out.predicted_depth if fov_deg is None else out.predicted_depth).clamp(1 / FARTHEST, 1 / NEAREST)
    factor = torch.ones(len(inverse)) if fov_deg is None else 2 * torch.tan(torch.deg2rad(fov_deg) / 2)
    inverse = F.interpolate(inverse[:, None], size, mode="bilinear", antialias=True)[:, 0]
    return inverse.float().cpu().numpy(), factor.cpu().numpy()


def fit_size(height, width, short):
    """height, width shrunk, if need be, to a short side of `short`."""
    scale = min(1, short / min(height, width))
    return round(height * scale), round(width * scale)


def small(frame, inverse):
    """A frame as grey, and its inverse depth, both at the size for optical flow."""
    size = fit_size(*inverse.shape, FLOW_SIDE)[::-1]
    grey = cv2.resize(cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY), size, interpolation=cv2.INTER_AREA)
    return grey, cv2.resize(inverse, size, interpolation=cv2.INTER_AREA)


def match(now, before):
    """Inverse depth at pixels of this frame, and of the frame before where flow finds them, [2, m].

    Kept are pixels whose flow there and back ends within a pixel; m is 0 if these are under a fifth, as after a cut.
    """
    (grey, inverse), (grey_before, inverse_before) = now, before
    dis = cv2.DISOpticalFlow_create(cv2.DISOPTICAL_FLOW_PRESET_MEDIUM)
    there, back = dis.calc(grey, grey_before, None), dis.calc(grey_before, grey, None)
    y, x = np.indices(grey.shape, dtype=np.float32)
    at = {"map1": x + there[..., 0], "map2": y + there[..., 1], "interpolation": cv2.INTER_LINEAR}
    found = cv2.remap(inverse_before, **at, borderValue=np.nan)
    there_and_back = there + cv2.remap(back, **at, borderValue=(np.nan, np.nan))
    good = np.flatnonzero((np.linalg.norm(there_and_back, axis=2) < 1) & np.isfinite(found))
    good = good[:: len(good) // SAMPLES + 1] if len(good) > 0.2 * grey.size else good[:0]
    return np.stack([inverse.flat[good], found.flat[good]]).astype(np.float64)


def fit(pair):
    """a, b of before = a * now + b in inverse depth, robustly; None if the matches do not settle them.

    Affine in inverse depth, because that is what the training of these networks leaves open, and because it weighs near
    things most, which show parallax. The slope is the ratio of the deviations (reduced major axis): least squares take
    noise in `now` for a slope below 1, which would flatten the depth frame by frame. Weights are Tukey's, reiterated.
    """
    if not pair.size:
        return None
    a, b = np.median(pair[1]) / np.median(pair[0]), 0
    for _ in range(20):
        residual = np.abs(pair[1] - a * pair[0] - b)
        reach = 4.685 * 1.4826 * np.median(residual) + 1e-6 * np.median(pair[1])
        weight = np.clip(1 - (residual / reach) ** 2, 0, None) ** 2
        mean, spread = np.average(pair, axis=1, weights=weight), np.cov(pair, aweights=weight)
        deviation = np.sqrt(spread.diagonal())
        if deviation[0] < 0.03 * mean[0] or spread[0, 1] <= 0.5 * deviation.prod():
            return None  # nearly constant, or unrelated
        a = deviation[1] / deviation[0]
        b = mean[1] - a * mean[0]
    return (a, b) if 0.5 < a < 2 else None


def steady(fits):
    """Scale and shift, [N] each, that move each frame's inverse depth to what the frames around it say on average.

    fits: of frame 1, 2, ... to the one before. What frame s says of frame t is frame t brought over by the fits between
    them. The average is symmetric in time, so a steady approach, which fits take for a change of scale, cancels, and
    errors add up over WINDOW frames at most. A frame that could not be fitted starts anew.
    """
    scale, shift, shot = [1.0], [0.0], [0]  # to the units of frame 0
    for found in fits:
        a, b = found or (1, 0)
        shift.append(shift[-1] + scale[-1] * b)
        scale.append(scale[-1] * a)
        shot.append(shot[-1] + (found is None))
    scale, shift, shot, i = np.array(scale), np.array(shift), np.array(shot), np.arange(len(scale))
    weight = np.clip(WINDOW - np.abs(i[:, None] - i), 0, None) * (shot[:, None] == shot)
    weight = weight / weight.sum(1, keepdims=True)
    return weight @ (1 / scale) * scale, weight @ (1 / scale) * shift - weight @ (shift / scale)


def moved(inverse, a, b):
    """Inverse depth after scale and shift, nowhere more than a factor 2 from what the model said."""
    return np.clip(a * inverse + b, inverse / 2, inverse * 2)


def flicker(pairs, a, b):
    """The flicker of the module's docstring; nan if no frame could be matched."""
    each = [np.median(np.abs(moved(p[1], a[t], b[t]) / moved(p[0], a[t + 1], b[t + 1]) - 1))
            for t, p in enumerate(pairs) if p.size]  # fmt: skip
    return np.mean(each) if each else np.nan


def correction(frames, pairs, no_steady):
    """Scale and shift of each frame's inverse depth, [N] each; prints the flicker."""
    still = np.ones(frames), np.zeros(frames)
    if no_steady:
        print(f"flicker {flicker(pairs, *still):.4f}, not steadied")
        return still
    fits = [fit(pair) for pair in pairs]
    a, b = steady(fits)
    print(f"flicker {flicker(pairs, *still):.4f} before steadying, {flicker(pairs, a, b):.4f} after; "
          f"{fits.count(None)} of {len(fits)} frames could not be fitted to the one before")
    return a, b


def estimate(args, info, look):
    """Each frame's inverse depth [N, h, w], its factor [N], and the matches of frame 1, 2, ... with the one before.

    look: what takes uint8 [n, H, W, 3] to inverse depth [n, h, w] and factor [n], as predict does.
    """
    maps, factors, pairs, before = [], [], [], None
    with tqdm(total=info.frames, unit="frame", desc="depth") as bar:
        for frames in video.iter_chunks(args.data_path / "gt_rgb.mp4", args.batch_size):
            inverse, factor = look(frames)
            maps.extend(inverse)
            factors.extend(factor)
            for now in map(small, frames, inverse):
                pairs.extend([match(now, before)] if before else [])
                before = now
            bar.update(len(frames))
    maps, factors = np.stack(maps), np.array(factors)
    if len(maps) != info.frames:
        raise InputError(f"{args.data_path}: gt_rgb.mp4 has {len(maps)} frames, its header {info.frames}; remux it")
    if not np.isfinite(maps).all() or not (factors > 0).all():
        raise InputError(f"{args.model_path}: gave depth or a field of view that is not positive and finite; expected "
                         "trained weights")
    return maps, factors, pairs


def depth_map_intrinsics(info, size, focal):
    """K, float32 [3, 3], in pixels of a depth map: undoes sequence.video_intrinsics. focal in pixels of the video."""
    sx, sy = size[1] / info.width, size[0] / info.height
    f = focal * np.sqrt(sx * sy)
    return np.array([[f, 0, info.width // 2 * sx], [0, f, info.height // 2 * sy], [0, 0, 1]], np.float32)


def write(folder, arrays):
    """Save {name: array}, and name the cameras that are there from before."""
    for name, array in arrays.items():
        sequence.save_array(folder / name, array)
    for name in (sequence.INTRINSICS, sequence.C2WS):
        if name not in arrays and (folder / name).exists():
            print(f"note: {folder / name} was there before and stays; it may not fit this depth's size and unit")
    if sequence.INTRINSICS not in arrays:
        print("note: this model gives no focal length; data_gen.py takes 500 pixels, or --intrinsics_file")
    depth = arrays[sequence.DEPTH].astype(np.float32)
    print(f"wrote {' and '.join(str(folder / name) for name in arrays)}: {depth.shape} {arrays[sequence.DEPTH].dtype}, "
          f"metres: min {depth.min():.4g}, median {np.median(depth):.4g}, max {depth.max():.4g}")


def main():
    args = parse_args()
    device = cli.pick_device(args.device)
    info = video.probe(args.data_path / "gt_rgb.mp4")
    if args.batch_size < 1:
        raise InputError(f"--batch_size {args.batch_size}: expected 1 or more")
    config = load_config(args)
    gives_focal = config.model_type == "depth_pro"
    refuse_to_replace(args, (sequence.DEPTH, sequence.INTRINSICS) if gives_focal else (sequence.DEPTH,))
    model, prepare = load_model(args, config, device)
    size = fit_size(info.height, info.width, MAP_SIDE)
    maps, factors, pairs = estimate(args, info, lambda frames: predict(model, prepare(frames), size))

    a, b = correction(info.frames, pairs, args.no_steady)
    factor = np.median(factors)  # one focal length, so that its flicker stays out of the depth
    for t, inverse in enumerate(maps):
        maps[t] = 1 / (factor * moved(inverse, a[t], b[t]))
    arrays = {sequence.DEPTH: sequence.half_if_exact(maps)}
    if gives_focal:
        arrays[sequence.INTRINSICS] = depth_map_intrinsics(info, size, info.width / factor)
    write(args.data_path, arrays)


if __name__ == "__main__":
    cli.run(main)
