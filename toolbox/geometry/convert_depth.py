"""Convert depth, and cameras where there are any, from other programs into a sequence folder's cam_info/.

    python toolbox/convert_depth.py --input bear_sgd_cvd_hr.npz --output_path demo_data/bear

What --input may be:
    megasam               npz: depths [N,H,W], images [N,H,W,3] uint8, intrinsic [3,3], cam_c2w [N,4,4]
    depthcrafter          npz: depth [N,H,W] in [0, 1], disparity normalised over the video (near = high)
    video_depth_anything  npz: depths [N,H,W]; --kind depth from its metric models, --kind disparity from the others
    depth_anything_3      npz: depth [N,H,W], extrinsics [N,3,4] world to camera, intrinsics [N,3,3]
    vipe                  folder of depth/CLIP.zip, pose/CLIP.npz, intrinsics/CLIP.npz; or one of several depth/CLIP.zip
    raw                   folder of 16-bit grey PNGs, video of 16-bit grey, or npy [N,H,W]; with --kind and --scale

Values that are no positive finite depth are written as 0, holes. MegaSAM's images become gt_rgb.mp4 if there is none.
"""

import argparse
import re
import sys
import tempfile
import zipfile
import zlib
from fractions import Fraction
from pathlib import Path

import cv2
import imageio_ffmpeg
import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from utils import cli, sequence, video
from utils.cli import InputError

ARRAYS = {  # axes of each array: a letter is one size throughout the file, a digit is that size
    "megasam": {"depths": "NHW", "images": "NHW3", "intrinsic": "33", "cam_c2w": "N44"},
    "depth_anything_3": {"depth": "NHW", "extrinsics": "N34", "intrinsics": "N33"},
    "video_depth_anything": {"depths": "NHW"},
    "depthcrafter": {"depth": "NHW"},
}
DEFAULTS = {"kind": None, "scale": None, "near": 1.0, "far": 20.0, "fps": 24.0}
FLAGS = {"megasam": "fps", "depthcrafter": "near far", "video_depth_anything": "kind near far", "raw": "kind scale"}
VIDEOS = (".avi", ".mkv", ".mov", ".mp4")
GAP = 8  # frames; how far away a known frame may be that stands in for a missing one
UNREADABLE = (ValueError, KeyError, EOFError, TypeError, RuntimeError, zipfile.BadZipFile, zlib.error)


def parse_args():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=cli.HelpFormatter)
    parser.add_argument("--input", type=Path, required=True, help="file or folder to convert")
    parser.add_argument("--output_path", type=Path, required=True, help="sequence folder to write")
    parser.add_argument("--format", choices=("auto", *READERS), default="auto", help="auto goes by keys and file names")
    parser.add_argument("--kind", choices=("depth", "disparity"), help="what the numbers are, where the file cannot "
                        "tell: far = high, or near = high")
    parser.add_argument("--scale", type=float, help="of raw numbers: depth = scale * number (0.001 for millimetres); "
                        "with --kind disparity 1 / (scale * number)")
    parser.add_argument("--near", type=float, help="depth where a relative disparity is highest, any unit")
    parser.add_argument("--far", type=float, help="depth where it is lowest, same unit")
    parser.add_argument("--fps", type=float, help="of gt_rgb.mp4, if it is made from MegaSAM's images")
    parser.set_defaults(**DEFAULTS)
    return parser.parse_args()


def check_flags(args, name):
    """Refuse flags that the format has no use for, and numbers that make no depth."""
    for flag, default in DEFAULTS.items():
        value = getattr(args, flag)
        if value != default and flag not in FLAGS.get(name, "").split():
            raise InputError(f"--{flag} {value}: the format {name} has no use for it; expected it left out")
        if isinstance(value, float) and not 0 < value < np.inf:
            raise InputError(f"--{flag} {value}: expected a positive, finite number")
    if args.near >= args.far:
        raise InputError(f"--near {args.near:g} --far {args.far:g}: expected near below far")


def detect(path):
    """The format of a file or folder, from its keys or layout."""
    if not path.exists():
        raise InputError(f"{path}: no such file or folder")
    if path.is_dir():
        found = sorted(file.name for file in path.iterdir())
    elif zipfile.is_zipfile(path):
        found = [name.removesuffix(".npy") for name in zipfile.ZipFile(path).namelist()]
    else:
        found = [path.name]
    if {"depth", "pose", "intrinsics"} <= set(found) and path.is_dir() or path.match("depth/*.zip"):
        return "vipe"
    if path.suffix.lower() in (".npy", *VIDEOS) or path.is_dir() and any(n.lower().endswith(".png") for n in found):
        return "raw"
    for name, keys in ARRAYS.items():  # one key says little, so it must be the only one
        if [*keys] == found or len(keys) > 1 and keys.keys() <= set(found):
            return name
    expected = "; ".join(f"npz of {', '.join(keys)} ({name})" for name, keys in ARRAYS.items())
    raise InputError(f"{path}: found {', '.join(found[:8]) or 'nothing'}; expected one of: {expected}; folder with "
                     "depth, pose and intrinsics (vipe); folder of PNGs, npy or video (raw)")


def read_npz(path, whose, shapes):
    """The arrays of an npz named in `shapes`, whose axes are given as in ARRAYS; never unpickles."""
    expected = f"expected {whose}: " + ", ".join(f"{name} [{','.join(axes)}]" for name, axes in shapes.items())
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in shapes}
    except UNREADABLE as error:
        raise InputError(f"{path}: {error}; {expected}") from error
    sizes = {}
    for name, axes in shapes.items():
        array = arrays[name]
        want = [int(a) if a.isdigit() else sizes.setdefault(a, n) for a, n in zip(axes, array.shape, strict=False)]
        if list(array.shape) != want or len(axes) != len(want) or not array.size or array.dtype.kind not in "fiu":
            raise InputError(f"{path}: {name} is {array.dtype} of shape {array.shape}; {expected}")
    return arrays


def read_megasam(args, info):
    a = read_npz(args.input, "MegaSAM's npz", ARRAYS["megasam"])
    if a["images"].dtype != np.uint8:
        raise InputError(f"{args.input}: images are {a['images'].dtype}; expected uint8")
    what = "relative depth (MegaSAM's is not metric)"
    return {"depth": a["depths"], "what": what, "k": a["intrinsic"], "c2w": a["cam_c2w"], "images": a["images"]}


def disparity_range(path, disparity):
    finite = disparity[np.isfinite(disparity)]
    if not finite.size or finite.min() == finite.max():
        raise InputError(f"{path}: got no two different finite numbers; expected disparity")
    return float(finite.min()), float(finite.max())


def from_relative(args, disparity, low, high):
    """Relative disparity, any dtype, to depth = 1 / (a d + b), which is --far at `low` and --near at `high`."""
    d = (disparity.astype(np.float32) - low) / (high - low)
    what = f"relative disparity, from {args.far:g} (--far) at its lowest to {args.near:g} (--near) at its highest"
    return {"depth": 1 / ((1 / args.near - 1 / args.far) * d + 1 / args.far), "what": what}


def read_depthcrafter(args, info):
    d = read_npz(args.input, "DepthCrafter's npz", ARRAYS["depthcrafter"])["depth"]
    low, high = disparity_range(args.input, d)
    whole = low < 1e-3 and high > 1 - 1e-3  # always so after min-max normalisation, unless frames were taken out
    if low < -1e-3 or high > 1 + 1e-3 or (args.format == "auto" and not whole):
        raise InputError(f"{args.input}: depth is {low:.4g} to {high:.4g}; expected DepthCrafter's 0 to 1; give "
                         "--format depthcrafter if it is a part of such a video, else save it as npy (raw)")
    return from_relative(args, d.clip(0, 1), 0, 1)


def read_video_depth_anything(args, info):
    if args.kind is None:
        raise InputError(f"{args.input}: Video-Depth-Anything's npz does not say what it holds; give --kind depth if "
                         "it was made with --metric (metres, far = high), else --kind disparity (near = high)")
    values = read_npz(args.input, "Video-Depth-Anything's npz", ARRAYS["video_depth_anything"])["depths"]
    if args.kind == "depth":
        return {"depth": values, "what": "depth in metres"}
    return from_relative(args, values, *disparity_range(args.input, values))


def read_depth_anything_3(args, info):
    a = read_npz(args.input, "Depth-Anything-3's npz", ARRAYS["depth_anything_3"])
    w2c = a["extrinsics"].astype(np.float64)
    c2w = np.tile(np.eye(4), (len(w2c), 1, 1))
    c2w[:, :3, :3] = w2c[:, :, :3].transpose(0, 2, 1)
    c2w[:, :3, 3:] = -c2w[:, :3, :3] @ w2c[:, :, 3:]
    what = "relative depth (metres if a metric model made it)"
    return {"depth": a["depth"], "what": what, "k": a["intrinsics"], "c2w": c2w}


def read_exrs(path):
    """Depth maps of a ViPE zip, {frame index: [h, w]}; without those that cannot be read or hold no depth."""
    try:
        from OpenEXR import File
    except ImportError as error:
        raise InputError(f'{path}: ViPE\'s depth is OpenEXR; to read it, pip install "OpenEXR>=3.3"') from error
    maps = {}
    with zipfile.ZipFile(path) as file, tempfile.TemporaryDirectory() as folder:
        exr = Path(folder) / "z.exr"  # OpenEXR before 3.5 reads files only; no name inside the zip is used
        for name in filter(re.compile(r"\d+\.exr").fullmatch, file.namelist()):
            try:
                exr.write_bytes(file.read(name))
                z = File(str(exr), separate_channels=True).channels()["Z"].pixels
            except UNREADABLE:
                continue  # counts as missing, and is said so
            if (np.isfinite(z) & (z > 0)).any():
                maps[int(name[:-4])] = z
    if len({z.shape for z in maps.values()}) != 1:
        raise InputError(f"{path}: got {len(maps)} readable depth maps; expected INDEX.exr, channel Z, all of one size")
    return maps


def read_rows(path, axes):
    """Rows of a ViPE npz, {frame index: float64 row}, without those that are not finite."""
    table = read_npz(path, "ViPE's npz of a pinhole camera", {"data": axes, "inds": "N"})
    rows = zip(table["inds"].tolist(), table["data"].astype(np.float64), strict=True)
    return {int(index): row for index, row in rows if np.isfinite(row).all()}


def one_each(path, known, frames):
    """{frame index: array} to [frames, ...]; a missing frame takes the nearest one's."""
    nearest = [min(known, key=lambda index: abs(index - i), default=-np.inf) for i in range(frames)]
    if not set(known) <= set(range(frames)) or any(abs(near - i) > GAP for i, near in enumerate(nearest)):
        span = f" ({min(known)} to {max(known)})" if known else ""
        raise InputError(f"{path}: has {len(known)} frames{span} for a video of {frames}; expected all, or one "
                         f"within {GAP} frames of each that is missing")
    if len(known) < frames:
        print(f"note: {path}: {frames - len(known)} of {frames} frames are missing; each takes the nearest one's")
    return np.stack([known[index] for index in nearest])


def read_vipe(args, info):
    """A ViPE result; K, which is at the video's resolution, is brought to the depth map's."""
    zips = [args.input] if args.input.is_file() else sorted(args.input.glob("depth/*.zip"))
    if len(zips) != 1 or not zipfile.is_zipfile(zips[0]):
        raise InputError(f"{args.input}: got {', '.join(z.name for z in zips) or 'nothing'} in depth/; expected one "
                         "zip; of several give one as --input")
    base, clip = zips[0].parents[1], zips[0].stem
    pose, lens, rgb = base / f"pose/{clip}.npz", base / f"intrinsics/{clip}.npz", base / f"rgb/{clip}.mp4"
    maps, poses, lenses = read_exrs(zips[0]), read_rows(pose, "N44"), read_rows(lens, "N4")
    frames = info.frames if info else max([*maps, *poses, *lenses]) + 1
    depth = one_each(zips[0], maps, frames)
    scale = lens_scale(video.probe(rgb) if rgb.is_file() else info, depth.shape)
    k = np.tile(np.eye(3), (frames, 1, 1))
    k[:, [0, 1, 0, 1], [0, 1, 2, 2]] = one_each(lens, lenses, frames) * scale
    return {"depth": depth, "what": "depth in metres", "k": k, "c2w": one_each(pose, poses, frames)}


def lens_scale(info, shape):
    """Factors of fx, fy, cx, cy from the video's resolution to the depth map's: undoes sequence.video_intrinsics."""
    if info is None or (info.height, info.width) == shape[1:]:
        return np.ones(4)
    print(f"note: K is taken to be that of the {info.width} x {info.height} video and scaled to the depth maps")
    sx, sy = shape[2] / info.width, shape[1] / info.height
    return np.array([np.sqrt(sx * sy), np.sqrt(sx * sy), sx, sy])


def read_pngs(folder):
    """The PNGs of a folder, ordered by the numbers in their names, uint16 [N, h, w]."""
    paths = [path for path in folder.iterdir() if path.suffix.lower() == ".png"]
    paths.sort(key=lambda path: [int(s) if s.isdecimal() else s for s in re.split(r"(\d+)", path.name)])
    images = [cv2.imread(str(path), cv2.IMREAD_UNCHANGED) for path in paths]
    for path, image in zip(paths, images, strict=True):
        if image is None or image.dtype != np.uint16 or image.shape != images[0].shape[:2]:
            got = "nothing readable" if image is None else f"{image.dtype} of shape {image.shape}"
            raise InputError(f"{path}: got {got}; expected 16-bit grey PNGs, all of one size")
    return np.stack(images)


def read_grey_video(path):
    """A video whose pixels are 16-bit grey, uint16 [N, h, w]."""
    info = video.probe(path)
    passthrough = ["-fps_mode", "passthrough"]
    stream = imageio_ffmpeg.read_frames(path, "gray16le", bits_per_pixel=16, output_params=passthrough)
    pixels = next(stream)["pix_fmt"]
    if not pixels.startswith("gray16"):
        raise InputError(f"{path}: its pixels are {pixels}; expected 16-bit grey, such as PNG or FFV1 in mkv")
    return np.stack([np.frombuffer(frame, "<u2").reshape(info.height, info.width) for frame in stream])


def read_raw(args, info):
    if args.kind is None or args.scale is None:
        raise InputError(f"{args.input}: plain numbers do not say what they are; give --kind depth or disparity, and "
                         "--scale (0.001 turns millimetres into metres)")
    if args.input.suffix == ".npy":
        values = sequence.load_array(args.input, [(None, None, None)])
    else:
        values = read_pngs(args.input) if args.input.is_dir() else read_grey_video(args.input)
    with np.errstate(divide="ignore", over="ignore"):
        scaled = np.asarray(values, np.float32) * args.scale
        depth = scaled if args.kind == "depth" else 1 / scaled
    return {"depth": depth, "what": f"{args.kind}, {args.scale:g} (--scale) times the stored number"}


READERS = {  # each returns depth [N, h, w], what it is, and where there are any k, c2w (OpenCV), images
    "megasam": read_megasam,
    "depthcrafter": read_depthcrafter,
    "video_depth_anything": read_video_depth_anything,
    "depth_anything_3": read_depth_anything_3,
    "vipe": read_vipe,
    "raw": read_raw,
}


def clean(path, depth):
    """Depth with 0 where it is not positive and finite; float16 if that keeps every value to 1e-3, else float32."""
    with np.errstate(over="ignore"):
        depth = np.asarray(depth, np.float32)
    depth = np.where(np.isfinite(depth) & (depth > 0), depth, np.float32(0))
    if not depth.any():
        raise InputError(f"{path}: got no positive finite depth at all; expected z-depth in front of the camera")
    return sequence.half_if_exact(depth)


def check_video(path, shape, info):
    """One depth map a frame, and roughly the video's aspect."""
    if shape[0] != info.frames:
        raise InputError(f"{path}: got {shape[0]} depth maps; expected {info.frames}, one for each frame of gt_rgb.mp4")
    if not 0.8 < shape[2] / shape[1] * info.height / info.width < 1.25:
        raise InputError(f"{path}: got depth of {shape[2]} x {shape[1]} for a video of {info.width} x {info.height}; "
                         "expected the whole picture, not cropped or turned")


def check_cameras(path, shape, k=None, c2w=None):
    """K at the depth map's resolution, c2w a rotation and a translation."""
    if k is not None:
        focal, center = k[..., [0, 1], [0, 1]], k[..., :2, 2] / (shape[2], shape[1])
        if not (np.isfinite(k).all() and (focal > 0).all() and (center > 0).all() and (center < 1).all()):
            raise InputError(f"{path}: got K = {k.reshape(-1, 3, 3)[0].tolist()}; expected positive focal lengths and "
                             f"the principal point inside the depth map, {shape[2]} x {shape[1]}")
    if c2w is not None:
        turn = c2w[:, :3, :3].astype(np.float64)
        turns = np.allclose(turn @ turn.transpose(0, 2, 1), np.eye(3), atol=1e-3) and (np.linalg.det(turn) > 0).all()
        if not (turns and np.isfinite(c2w).all() and np.allclose(c2w[:, 3], [0, 0, 0, 1])):
            raise InputError(f"{path}: got no rigid camera poses; expected rotations and translations, OpenCV")


def convert(args):
    """Convert args.input; every check comes before the first write."""
    name = detect(args.input) if args.format == "auto" else args.format
    check_flags(args, name)
    rgb = args.output_path / "gt_rgb.mp4"
    info = video.probe(rgb) if rgb.exists() else None
    found = READERS[name](args, info)
    found["depth"] = depth = clean(args.input, found["depth"])
    if info:
        check_video(args.input, depth.shape, info)
    check_cameras(args.input, depth.shape, found.get("k"), found.get("c2w"))
    known = depth[depth > 0].astype(np.float32)
    print(f"{args.input}: {'detected as ' if args.format == 'auto' else ''}{name}, taken for {found['what']}; depth "
          f"min {known.min():.4g}, median {np.median(known):.4g}, max {known.max():.4g}")
    if known.size < depth.size:
        print(f"note: {depth.size - known.size} of {depth.size} values are not positive and finite; holes, written 0")
    write(args, found, info)


def write(args, found, info):
    """Write what was found, and gt_rgb.mp4 if there is none but images."""
    rgb = args.output_path / "gt_rgb.mp4"
    if info is None and "images" in found:
        fps = Fraction(args.fps).limit_denominator(1001)
        video.write_video(rgb, found["images"], video.VideoInfo(*found["images"].shape[:3], fps))
        print(f"wrote {rgb} from the images, {float(fps):g} frames a second")
    elif info is None:
        print(f"note: {rgb} is not there yet, so the number of frames is unchecked; put the video there")
    for key, name in (("depth", sequence.DEPTH), ("k", sequence.INTRINSICS), ("c2w", sequence.C2WS)):
        path = args.output_path / name
        if key in found:
            array = found[key] if key == "depth" else found[key].astype(np.float32)
            sequence.save_array(path, array)
            print(f"wrote {path} {array.shape} {array.dtype}")
        elif path.exists():
            print(f"note: {path} was there before and stays; it must belong to this depth")


def main():
    convert(parse_args())


if __name__ == "__main__":
    cli.run(main)
