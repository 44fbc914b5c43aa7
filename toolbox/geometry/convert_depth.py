"""Convert depth, and cameras where there are any, from other programs into a folder's cam_info/.

    python toolbox/geometry/convert_depth.py --input bear_sgd_cvd_hr.npz \\
        --output_path demo_data/bear

What --input may be:
    megasam               npz: depths [N,H,W], images [N,H,W,3] uint8, intrinsic [3,3],
                          cam_c2w [N,4,4]
    depthcrafter          npz: depth [N,H,W] in [0, 1], disparity normalised over the video
                          (near = high)
    video_depth_anything  npz: depths [N,H,W]; --kind depth for those of its metric models,
                          --kind disparity for the others
    depth_anything_3      npz: depth [N,H,W], extrinsics [N,3,4] world to camera,
                          intrinsics [N,3,3]
    vipe                  folder of depth/CLIP.zip, pose/CLIP.npz, intrinsics/CLIP.npz; of several
                          clips one depth/CLIP.zip
    raw                   folder of 16-bit grey PNGs, video of 16-bit grey, or npy [N,H,W]; with
                          --kind and --scale

Values that are not positive and finite are written as 0, holes. MegaSAM's images become
gt_rgb.mp4 if there is none.
"""

if __name__ == "__main__":
    import signal

    signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C during the imports shows no traceback

import argparse
import io
import re
import sys
import tempfile
import zipfile
from fractions import Fraction
from pathlib import Path

import numpy as np
from PIL import Image

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from utils import cli, files, geometry, sequence, video
from utils.cli import InputError

# Axes of each array of an npz: a letter stands for one size in the whole file, a digit for itself.
ARRAYS = {
    "megasam": {"depths": "NHW", "images": "NHW3", "intrinsic": "33", "cam_c2w": "N44"},
    "depth_anything_3": {"depth": "NHW", "extrinsics": "N34", "intrinsics": "N33"},
    "video_depth_anything": {"depths": "NHW"},
    "depthcrafter": {"depth": "NHW"},
}
DEFAULTS = {"kind": None, "scale": None, "near": 1.0, "far": 20.0, "fps": 24.0}
FLAGS_OF_FORMAT = {
    "megasam": ("fps",),
    "depthcrafter": ("near", "far"),
    "video_depth_anything": ("kind", "near", "far"),
    "raw": ("kind", "scale"),
}
VIDEOS = (".avi", ".mkv", ".mov", ".mp4")
LARGER = 8  # times; a depth map is at most so much wider than the video
MOST_FRAMES = 100_000  # where no video says how many there are
EXR_BYTES = 2**28  # of one depth map, 8192 x 8192
FAR = 1e30  # of a disparity; with numbers near the largest there are, depth is not finite
GAP = 8  # frames; a missing frame takes the values of a known one at most this far away


def parse_args():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=cli.HelpFormatter)
    add = parser.add_argument
    add("--input", type=Path, required=True, help="file or folder to convert")
    add("--output_path", type=Path, required=True, help="sequence folder to write")
    add("--format", choices=("auto", *READERS), default="auto",
        help="auto goes by the names of arrays and files")
    add("--kind", choices=("depth", "disparity"),
        help="what the numbers are, where the file cannot tell: far = high, or near = high")
    add("--scale", type=float,
        help="of raw numbers: depth = scale * number (0.001 for millimetres), or with --kind "
        "disparity 1 / (scale * number)")
    add("--near", type=float, help="depth where a relative disparity is highest, any unit")
    add("--far", type=float, help="depth where it is lowest, same unit")
    add("--fps", type=float, help="of gt_rgb.mp4, if it is made from MegaSAM's images")
    parser.set_defaults(**DEFAULTS)
    return parser.parse_args()


def check_flags(args, format_name):
    """Raise InputError for flags that the format does not use, and numbers that make no depth."""
    for flag, default in DEFAULTS.items():
        value = getattr(args, flag)
        if value != default and flag not in FLAGS_OF_FORMAT.get(format_name, ()):
            raise InputError(f"--{flag} {value}: the format {format_name} has no use for it; "
                             "expected it left out")
        if isinstance(value, float) and not 0 < value < np.inf:
            raise InputError(f"--{flag} {value}: expected a positive, finite number")
    if args.near >= args.far:
        raise InputError(f"--near {args.near:g} --far {args.far:g}: expected near below far")


# Which format it is


def detect(path):
    """The format of a file or folder, from the names in it. Raises InputError."""
    if not path.exists():
        raise InputError(f"{path}: no such file or folder")
    names = names_in(path)
    if path.is_dir() and {"depth", "pose", "intrinsics"} <= set(names):
        return "vipe"
    if path.match("depth/*.zip"):
        return "vipe"
    if path.suffix.lower() in (".npy", *VIDEOS):
        return "raw"
    if path.is_dir() and any(name.lower().endswith(".png") for name in names):
        return "raw"
    known = []
    for format_name, arrays in ARRAYS.items():
        # A single name beside others is too little to go by.
        if names == list(arrays) or (len(arrays) > 1 and arrays.keys() <= set(names)):
            return format_name
        known.append(f"npz of {', '.join(arrays)} ({format_name})")
    raise InputError(f"{path}: found {cli.short(', '.join(names), 60) or 'nothing'}; expected one "
                     f"of: {'; '.join(known)}; folder with depth, pose and intrinsics (vipe); "
                     "folder of PNGs, npy or video (raw)")


def names_in(path):
    """The names of a folder's files or of an npz's arrays, or else the file's own name."""
    if path.is_dir():
        return sorted(file.name for file in path.iterdir())
    names = files.names_in_npz(path)
    return [path.name] if names is None else names


# Reading npz files


def read_npz(path, whose, axes_of, info=None):
    """The arrays {name: array} of an npz that are named in axes_of, whose axes are as in ARRAYS.

    InputError, before they are read, for other shapes, for what are not numbers, and for depth maps
    that are not those of the video that `info` is of.
    """
    texts = [f"{name} [{','.join(axes)}]" for name, axes in axes_of.items()]
    expected = f"expected {whose}: {', '.join(texts)}"
    found = files.headers(path, axes_of, expected)
    missing = [name for name in axes_of if name not in found]
    if missing:
        raise InputError(f"{path}: has no {' and no '.join(missing)}; {expected}")
    sizes = {}
    for name, header in found.items():
        numbers = header.numeric and header.nbytes > 0
        if not numbers or not has_axes(header.shape, axes_of[name], sizes):
            raise InputError(f"{path}: {name} is {header}; {expected}")
    if info:
        check_maps(path, [sizes[axis] for axis in "NHW"], info)
    check_indices(path, [sizes["N"] - 1], MOST_FRAMES)
    return files.read(path, found, expected)


def has_axes(shape, axes, sizes):
    """Whether a shape is that of axes such as "NHW3". sizes: {letter: size} so far, added to."""
    if len(shape) != len(axes):
        return False
    for size, axis in zip(shape, axes, strict=True):
        expected = int(axis) if axis.isdigit() else sizes.setdefault(axis, size)
        if size != expected:
            return False
    return True


def check_maps(path, shape, info):
    """InputError unless depth maps of `shape`, [N, h, w], are of a video's length and picture."""
    if shape[0] != info.frames:
        raise InputError(f"{path}: got {shape[0]} depth maps; expected {info.frames}, one for "
                         "each frame of gt_rgb.mp4")
    check_map(path, shape[2], shape[1], info)


def check_map(path, width, height, info):
    """InputError unless a depth map is of a video's picture, and not many times its size."""
    geometry.check_shape(path, (width, height), (info.width, info.height))
    if width > LARGER * info.width:
        raise InputError(f"{path}: got depth maps of {width} x {height} for a video of "
                         f"{info.width} x {info.height}; expected at most {LARGER} times its width")


def check_indices(path, indices, frames):
    """InputError unless all frame indices are those of a video of so many frames."""
    low, high = min(indices, default=0), max(indices, default=0)
    if low < 0 or high >= frames:
        raise InputError(f"{path}: has {len(indices)} frames ({cli.short(low, 30)} to "
                         f"{cli.short(high, 30)}) for a video of {frames}; expected 0 to "
                         f"{frames - 1}")


# The readers. Each takes args and the VideoInfo of gt_rgb.mp4 (None if it is not there), and
# returns depth [N, h, w], `what` it is in words and, where there are any, k ([3, 3] or [N, 3, 3],
# pixels of the depth maps), c2w ([N, 4, 4], OpenCV) and images (uint8 [N, H, W, 3]).


def read_megasam(args, info):
    arrays = read_npz(args.input, "MegaSAM's npz", ARRAYS["megasam"], info)
    images = arrays["images"]
    if images.dtype != np.uint8:
        raise InputError(f"{args.input}: images are {images.dtype}; expected uint8")
    return {
        "depth": arrays["depths"],
        "what": "relative depth (MegaSAM's is not metric)",
        "k": arrays["intrinsic"],
        "c2w": arrays["cam_c2w"],
        "images": images,
    }


def disparity_range(path, disparity):
    """The lowest and the highest finite number."""
    finite = disparity[np.isfinite(disparity)]
    if not finite.size or finite.min() == finite.max():
        raise InputError(f"{path}: got no two different finite numbers; expected disparity")
    low, high = float(finite.min()), float(finite.max())
    if max(-low, high) > FAR:
        raise InputError(f"{path}: got numbers from {low:.4g} to {high:.4g}; expected disparity, "
                         f"at most {FAR:g}")
    return low, high


def from_relative(args, disparity, low, high):
    """Depth = 1 / (a d + b) of relative disparity d: --far at `low` and --near at `high`."""
    d = (disparity.astype(np.float32) - low) / (high - low)
    what = (f"relative disparity, from {args.far:g} (--far) at its lowest to {args.near:g} "
            "(--near) at its highest")
    return {"depth": 1 / ((1 / args.near - 1 / args.far) * d + 1 / args.far), "what": what}


def read_depthcrafter(args, info):
    values = read_npz(args.input, "DepthCrafter's npz", ARRAYS["depthcrafter"], info)["depth"]
    low, high = disparity_range(args.input, values)
    # Min-max normalisation gives 0 and 1, unless frames were taken out after it.
    whole = low < 1e-3 and high > 1 - 1e-3
    outside = low < -1e-3 or high > 1 + 1e-3
    if outside or (args.format == "auto" and not whole):
        raise InputError(f"{args.input}: depth is {low:.4g} to {high:.4g}; expected DepthCrafter's "
                         "0 to 1; give --format depthcrafter if it is a part of such a video, "
                         "else save it as npy (raw)")
    return from_relative(args, values.clip(0, 1), 0, 1)


def read_video_depth_anything(args, info):
    if args.kind is None:
        raise InputError(f"{args.input}: Video-Depth-Anything's npz does not say what it holds; "
                         "give --kind depth if it was made with --metric (metres, far = high), "
                         "else --kind disparity (near = high)")
    axes_of = ARRAYS["video_depth_anything"]
    values = read_npz(args.input, "Video-Depth-Anything's npz", axes_of, info)["depths"]
    if args.kind == "depth":
        return {"depth": values, "what": "depth in metres"}
    low, high = disparity_range(args.input, values)
    return from_relative(args, values, low, high)


def read_depth_anything_3(args, info):
    arrays = read_npz(args.input, "Depth-Anything-3's npz", ARRAYS["depth_anything_3"], info)
    w2c = arrays["extrinsics"].astype(np.float64)
    c2w = np.tile(np.eye(4), (len(w2c), 1, 1))
    c2w[:, :3, :3] = w2c[:, :, :3].transpose(0, 2, 1)
    c2w[:, :3, 3:] = -c2w[:, :3, :3] @ w2c[:, :, 3:]
    return {
        "depth": arrays["depth"],
        "what": "relative depth (metres if a metric model made it)",
        "k": arrays["intrinsics"],
        "c2w": c2w,
    }


def read_vipe(args, info):
    """A ViPE result; K, which is at the video's resolution, is brought to the depth map's."""
    depth_zip = find_vipe_zip(args.input)
    base, clip = depth_zip.parents[1], depth_zip.stem
    pose_path = base / f"pose/{clip}.npz"
    lens_path = base / f"intrinsics/{clip}.npz"
    rgb_path = base / f"rgb/{clip}.mp4"
    maps = read_exrs(depth_zip, info)
    poses = read_vipe_table(pose_path, "N44", info)
    lenses = read_vipe_table(lens_path, "N4", info)  # fx, fy, cx, cy
    frames = info.frames if info else max([*maps, *poses, *lenses]) + 1

    depth = one_for_each_frame(depth_zip, maps, frames)
    rgb_info = video.probe(rgb_path) if rgb_path.is_file() else info
    k = np.tile(np.eye(3), (frames, 1, 1))
    k[:, [0, 1, 0, 1], [0, 1, 2, 2]] = one_for_each_frame(lens_path, lenses, frames)
    if rgb_info and (rgb_info.height, rgb_info.width) != depth.shape[1:]:
        print(f"note: K is taken to be that of the {rgb_info.width} x {rgb_info.height} video and "
              "scaled to the depth maps")
        k *= geometry.scale((rgb_info.width, rgb_info.height), depth.shape[:0:-1])
    c2w = one_for_each_frame(pose_path, poses, frames)
    return {"depth": depth, "what": "depth in metres", "k": k, "c2w": c2w}


def find_vipe_zip(path):
    """The zip of depth maps: the file itself, or the only one in the folder's depth/."""
    zips = [path] if path.is_file() else sorted(path.glob("depth/*.zip"))
    if len(zips) != 1 or not zipfile.is_zipfile(zips[0]):
        found = ", ".join(file.name for file in zips) or "nothing"
        raise InputError(f"{path}: got {found} in depth/; expected one zip; of several give one "
                         "as --input")
    return zips[0]


def read_exrs(path, info):
    """Depth maps of a ViPE zip, {frame index: [h, w]}, without those that hold no depth."""
    try:
        from OpenEXR import File
    except ImportError as error:
        raise InputError(f"{path}: ViPE's depth is OpenEXR; to read it, "
                         'pip install "OpenEXR>=3.3"') from error
    maps = {}
    with (
        files.refused(path, "zip of depth maps"),
        zipfile.ZipFile(path) as archive,
        tempfile.TemporaryDirectory() as folder,
    ):
        members = find_exrs(path, archive, info)
        exr = Path(folder) / "z.exr"  # OpenEXR before 3.5 reads files only
        for index, member in members.items():
            try:
                exr.write_bytes(archive.read(member))
                check_exr(path, File(str(exr), header_only=True).header(), info, len(members))
                z = File(str(exr), separate_channels=True).channels()["Z"].pixels
            except InputError:
                raise
            except Exception:  # what broken files raise is anything
                continue  # one_for_each_frame counts it as missing, and says so
            if (np.isfinite(z) & (z > 0)).any():
                maps[index] = z
    if len({z.shape for z in maps.values()}) != 1:
        raise InputError(f"{path}: got {len(maps)} readable depth maps; expected INDEX.exr, "
                         "channel Z, all of one size")
    return maps


def find_exrs(path, archive, info):
    """The members {frame index: ZipInfo} of an open zip that may be depth maps."""
    members = {}
    for member in archive.infolist():
        match = re.fullmatch(r"(\d{1,9})\.exr", member.filename)
        if match and member.file_size <= EXR_BYTES:
            members[int(match[1])] = member
    check_indices(path, members, info.frames if info else MOST_FRAMES)
    return members


def check_exr(path, header, info, count):
    """InputError unless an EXR's header is that of one of `count` depth maps of a video."""
    low, high = header["dataWindow"]
    width, height = (high.astype(int) - low + 1).tolist()
    if info:
        check_map(path, width, height, info)
    files.check_memory(path, 4 * width * height * (count + len(header["channels"])))


def read_vipe_table(path, axes, info):
    """Rows of a ViPE npz, {frame index: float64 row}, without those that are not finite."""
    axes_of = {"data": axes, "inds": "N"}
    table = read_npz(path, "ViPE's npz of a pinhole camera", axes_of)
    with np.errstate(invalid="ignore"):
        indices = table["inds"].astype(np.int64)
    if not np.array_equal(indices, table["inds"]):
        raise InputError(f"{path}: inds are not whole numbers; expected indices of frames")
    check_indices(path, indices.tolist(), info.frames if info else MOST_FRAMES)
    rows = {}
    for index, row in zip(indices.tolist(), table["data"].astype(np.float64), strict=True):
        if np.isfinite(row).all():
            rows[index] = row
    return rows


def one_for_each_frame(path, known, frames):
    """{frame index: array} to [frames, ...]; a missing frame takes the nearest one's array."""
    indices = np.array(sorted(known), int)
    wanted = np.arange(frames)
    nearest = np.full(frames, -GAP - 1)
    if known:
        nearest = indices[np.searchsorted((indices[1:] + indices[:-1]) // 2, wanted)]
    if (np.abs(nearest - wanted) > GAP).any():
        span = f" ({min(known)} to {max(known)})" if known else ""
        raise InputError(f"{path}: has {len(known)} frames{span} for a video of {frames}; expected "
                         f"all, or one within {GAP} frames of each that is missing")
    if len(known) < frames:
        print(f"note: {path}: {frames - len(known)} of {frames} frames are missing; each takes "
              "the nearest one's")
    return np.stack([known[index] for index in nearest.tolist()])


def read_pngs(folder, info):
    """The 16-bit PNGs of a folder, in order of the numbers in their names, uint16 [N, h, w]."""
    paths = [path for path in folder.iterdir() if path.suffix.lower() == ".png"]
    if not paths:
        raise InputError(f"{folder}: got no PNG; expected 16-bit grey PNGs")
    images = []
    for path in sorted(paths, key=by_numbers):
        data = io.BytesIO(path.read_bytes())  # of a file, Pillow takes the memory a chunk promises
        with files.refused(path, "16-bit grey PNG"), Image.open(data, formats=["PNG"]) as png:
            if info:
                check_maps(path, (len(paths), png.height, png.width), info)
            files.check_memory(path, 2 * png.height * png.width * (len(paths) - len(images)))
            image = np.asarray(png)
        if image.dtype != np.uint16 or (images and image.shape != images[0].shape):
            raise InputError(f"{path}: got {image.dtype} of shape {image.shape}; expected 16-bit "
                             "grey PNGs, all of one size")
        images.append(image)
    return np.stack(images)


def by_numbers(path):
    """Sort key by which frame_9.png comes before frame_10.png."""
    return [int(s) if s.isdecimal() else s for s in re.split(r"(\d+)", path.name)]


def read_raw(args, info):
    if args.kind is None or args.scale is None:
        raise InputError(f"{args.input}: plain numbers do not say what they are; give --kind depth "
                         "or disparity, and --scale (0.001 turns millimetres into metres)")
    if args.input.suffix == ".npy":
        values = sequence.load_array(args.input, [(None, None, None)])
    elif args.input.is_dir():
        values = read_pngs(args.input, info)
    else:
        values = video.read_grey16(args.input)
    if info:
        check_maps(args.input, values.shape, info)
    files.check_memory(args.input, 4 * values.size)
    with np.errstate(all="ignore"):  # what is no number becomes a hole
        scaled = np.asarray(values, np.float32) * args.scale
        depth = scaled if args.kind == "depth" else 1 / scaled
    return {"depth": depth, "what": f"{args.kind}, {args.scale:g} (--scale) times the number"}


READERS = {
    "megasam": read_megasam,
    "depthcrafter": read_depthcrafter,
    "video_depth_anything": read_video_depth_anything,
    "depth_anything_3": read_depth_anything_3,
    "vipe": read_vipe,
    "raw": read_raw,
}


# Checking and writing


def clean(path, depth):
    """Depth with 0 where it is not positive and finite; float16 if that keeps it to 1e-3."""
    with np.errstate(over="ignore"):
        depth = np.asarray(depth, np.float32)
    depth = np.where(np.isfinite(depth) & (depth > 0), depth, np.float32(0))
    if not depth.any():
        raise InputError(f"{path}: got no positive finite depth at all; expected z-depth in front "
                         "of the camera")
    return sequence.half_if_exact(depth)


def check_found(args, depth, found, info):
    """InputError unless what a reader found belongs together, and to the video if it is there.

    K of another size than the depth maps' is brought to it, which is said.
    """
    path = args.input
    size = depth.shape[:0:-1]
    images = found.get("images")
    if info:
        check_maps(path, depth.shape, info)
    elif images is not None:
        info = video.VideoInfo(*images.shape[:3], args.fps)
    if "k" in found:
        video_size = (info.width, info.height) if info else size
        sequence.check_intrinsics(path, found["k"])
        k, note = geometry.in_video_pixels(path, found["k"], size, video_size)
        sequence.check_intrinsics(path, k, video_size)
        if note:
            print(f"note: {note}")
            found["k"] = k * geometry.scale(video_size, size)
    if "c2w" in found:
        sequence.check_poses(path, found["c2w"])
        if info:
            k = np.broadcast_to(k, (len(depth), 3, 3))
            seq = sequence.Sequence(args.output_path, info, depth, k, found["c2w"])
            sequence.check_direction(path, seq, images)


def convert(args):
    """Convert args.input; every check comes before the first write."""
    format_name = detect(args.input) if args.format == "auto" else args.format
    check_flags(args, format_name)
    rgb = args.output_path / "gt_rgb.mp4"
    info = video.probe(rgb) if rgb.exists() else None
    found = READERS[format_name](args, info)
    depth = clean(args.input, found["depth"])
    check_found(args, depth, found, info)
    arrays = {sequence.DEPTH: depth}
    for name, key in ((sequence.INTRINSICS, "k"), (sequence.C2WS, "c2w")):
        if key in found:
            arrays[name] = found[key].astype(np.float32)

    detected = "detected as " if args.format == "auto" else ""
    known = depth[depth > 0].astype(np.float32)
    print(f"{args.input}: {detected}{format_name}, taken for {found['what']}; depth "
          f"min {known.min():.4g}, median {np.median(known):.4g}, max {known.max():.4g}")
    if known.size < depth.size:
        print(f"note: {depth.size - known.size} of {depth.size} values are not positive and "
              "finite; holes, written 0")
    if info is None:
        write_video(args, found)
    write_arrays(args.output_path, arrays)


def write_video(args, found):
    """Write gt_rgb.mp4 from the images, if there are any."""
    rgb = args.output_path / "gt_rgb.mp4"
    if "images" not in found:
        print(f"note: {rgb} is not there yet, so the number of frames is unchecked; put the video "
              "there")
        return
    images = found["images"]
    fps = Fraction(args.fps).limit_denominator(1001)
    video.write_video(rgb, images, video.VideoInfo(*images.shape[:3], fps))
    print(f"wrote {rgb} from the images, {float(fps):g} frames a second")


def write_arrays(folder, arrays):
    """Write {name: array}, and name the cameras that are there from before."""
    for name in (sequence.DEPTH, sequence.INTRINSICS, sequence.C2WS):
        if name in arrays:
            array = arrays[name]
            sequence.save_array(folder / name, array)
            print(f"wrote {folder / name} {array.shape} {array.dtype}")
        elif (folder / name).exists():
            print(f"note: {folder / name} was there before and stays; it must belong to this depth")


def main():
    convert(parse_args())


if __name__ == "__main__":
    cli.run(main)
