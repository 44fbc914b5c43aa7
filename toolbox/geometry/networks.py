"""Depth of single frames by networks of the transformers library.

Whatever AutoModelForDepthEstimation loads is read by its config: Depth Anything (relative or
metric), DPT (relative), ZoeDepth and GLPN (metric), and DepthPro, which gives a focal length too.
"""

if __name__ == "__main__":
    raise SystemExit("error: a module, not a program; toolbox/README.md lists the programs")

import socket
from pathlib import Path

import torch
import torch.nn.functional as F

from utils.cli import InputError, short

MODELS = (  # hub name, size, licence, what for
    ("depth-anything/Depth-Anything-V2-Metric-Indoor-Large-hf", "1.3 GB", "CC BY-NC 4.0",
     "indoors"),
    ("depth-anything/Depth-Anything-V2-Metric-Outdoor-Large-hf", "1.3 GB", "CC BY-NC 4.0",
     "outdoors"),
    ("depth-anything/Depth-Anything-V2-Metric-Indoor-Small-hf", "0.1 GB", "Apache 2.0",
     "indoors, on a CPU"),
    ("apple/DepthPro-hf", "1.9 GB", "Apple's research licence", "sharp, with the focal length"),
)
HUB = "huggingface.co", 443
MAP_SIDE = 518  # short side of the depth maps at most, pixels; Depth Anything's own
NEAREST = 1e-4  # metres; this and the next are the limits in DepthPro's own post-processing
FARTHEST = 1e4
FAR = 0.01  # of a relative network's nearest disparity: the sky, which it puts at 0
DISPARITY = ("dpt", "depth_anything", "depth_pro")  # types whose output is inverse depth,
METRIC = ("zoedepth", "glpn")  # and depth in metres; a metric Depth Anything is told by its config


def check_network():
    """InputError at once where the hub cannot be reached."""
    try:
        socket.create_connection(HUB, timeout=5).close()
    except OSError as error:
        raise InputError("--download: there is no way to the hub from here; fetch the model on "
                         "another machine (hf download NAME --local-dir FOLDER) and give its "
                         "folder to --model_path") from error


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
        why = short(error)
        raise InputError(f"{args.model_path}: not a transformers depth model that loads: {why}; "
                         f"expected one such as {MODELS[0][0]}") from error


def load_config(args):
    """The model's config; InputError if it is of a kind that is not known."""
    from transformers import AutoConfig

    config = load(args, AutoConfig)
    known = {*DISPARITY, *METRIC}
    if config.model_type not in known:
        raise InputError(f"{args.model_path}: is {config.model_type}; expected one of "
                         f"{', '.join(sorted(known))}, such as {MODELS[0][0]}")
    if config.model_type == "depth_pro" and not getattr(config, "use_fov_model", False):
        raise InputError(f"{args.model_path}: is depth_pro without use_fov_model; expected one "
                         "with it")
    return config


def is_metric(config):
    """Whether the network's depth is in metres."""
    kind = getattr(config, "depth_estimation_type", None)
    return config.model_type in (*METRIC, "depth_pro") or kind == "metric"


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
    options = {"return_tensors": "pt"}
    if config.model_type == "zoedepth":
        options["do_pad"] = False  # a border, which its own post-processing takes off again
    return model, lambda frames: processor(images=[*frames], **options)["pixel_values"]


def depth_pro_pixels(frames, config):
    """DepthPro's input: [n, 3, side, side] in [-1, 1], resized without antialiasing.

    These are the pixels of its own image processor, which needs torchvision.
    """
    side = round(config.patch_size / min(config.scaled_images_ratios))
    pixels = torch.from_numpy(frames).permute(0, 3, 1, 2) / 127.5 - 1  # [n, 3, H, W]
    return F.interpolate(pixels, (side, side), mode="bilinear", align_corners=False)


def predict(model, pixels, size):
    """Inverse depth, float32 [n, *size], and the focal length by the width, [n], or None.

    In 1/metres, but for relative networks, whose scale and shift are of no unit.
    """
    with torch.inference_mode():
        out = model(pixel_values=pixels.to(model.device))
    found = out.predicted_depth.float()
    focal = None
    if (fov_deg := out.get("field_of_view")) is not None:
        focal = 0.5 / torch.tan(torch.deg2rad(fov_deg.float()) / 2)
        inverse = (found / focal[:, None, None]).clamp(1 / FARTHEST, 1 / NEAREST)
    elif is_metric(model.config):
        inverse = 1 / found.clamp(NEAREST, FARTHEST)
    else:
        inverse = torch.maximum(found, FAR * found.amax((1, 2), keepdim=True)).clamp(min=0)
    inverse = F.interpolate(inverse[:, None], size, mode="bilinear", antialias=True)[:, 0]
    return inverse.cpu().numpy(), None if focal is None else focal.cpu().numpy()


def fit_size(height, width, short_side=MAP_SIDE):
    """(height, width), shrunk to this short side if theirs is longer."""
    scale = min(1, short_side / min(height, width))
    return round(height * scale), round(width * scale)
