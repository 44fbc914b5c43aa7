"""How near pictures are to the right ones: PSNR, SSIM, LPIPS of frames and videos, FID, KID of all.

    python toolbox/eval_metrics.py --pred demo_data/room/novel_gt1.mp4 \\
        --target demo_data/room/gt_rgb.mp4 --output_dir /tmp/metrics

--pred, --target and --mask are a video, a picture or a folder of frames each; or each a folder of
videos or of folders of frames, which are paired by name (a name may end in _out). Folders of frames
are paired by name, too. It prints a table, and writes metrics.csv (a row a frame), metrics.png
(over time) and metrics.json.

Frames are compared in float64 in [0, 1]. A video's value is the mean over its frames, "all" is the
mean over videos.

PSNR  over all pixels and channels; inf for equal frames. JSON has no infinity: it is null there.
SSIM  scikit-image's, gaussian_weights=True, sigma=1.5, use_sample_covariance=False, data_range=1,
      windows of 11 pixels that fit in; with --protocol its defaults: channel_axis=-1, data_range=1,
      uniform windows of 7 pixels.
LPIPS version 0.1 of AlexNet, at the frames' size.
FID, KID  of the frames of all videos, as clean-fid; KID is not multiplied by 1000.
mPSNR, mSSIM, mLPIPS  with --mask, as DyCheck defines them (toolbox/evaluation/covisible.py): over
      pixels whose mask is above half. A frame without any is nan, and left out of their means.

The networks of LPIPS and of FID and KID need weights, from files or by --download; else their
values are "missing" (empty in the csv, null in the json).

With --protocol the three are folders, and of a scene one of these is read: SCENE.mp4; SCENE/ with
one video or with frames, which are then in the order of their numbers; SCENE_*.mp4 (also SCENE-*,
SCENE.*, or such a folder).

kubric4d, pardom4d  384 x 576 (height x width); the scenes that --pred and --target both have.
dycheck  480 x 360 or 960 x 720; apple, block, paper-windmill, spin, teddy. Correspondences are json
      files: {"source": [...], "target": [...]}, or a list of [source, target], or of {"source":
      ..., "target": ...}, of frames by number from 0 or by name. Frame i of a prediction is of the
      frame source[i], and is compared with frame target[i]; masks are of the target's frames.
      Without such a file frame i is compared with frame i.
davis  makes the pictures too, and takes other flags: --protocol davis --help.
"""

if __name__ == "__main__":
    import signal

    signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C during the imports shows no traceback

import argparse
import csv
import json
import sys
from pathlib import Path

import numpy as np
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from toolbox.evaluation import covisible, distances, protocols, sources
from utils import cli, files, metrics
from utils.cli import InputError

MEASURES = {  # how each is written, and with how many decimals
    "psnr": ("PSNR", 2), "ssim": ("SSIM", 4), "lpips": ("LPIPS", 4),
    "mpsnr": ("mPSNR", 2), "mssim": ("mSSIM", 4), "mlpips": ("mLPIPS", 4),
    "fid": ("FID", 2), "kid": ("KID", 5),
}
OF_SETS = ("fid", "kid")
GOOD_FID = 2048  # frames, as many as features: below, it is far too large
LINES = 10  # named ones in the plot


# ---- measuring -----------------------------------------------------------------------------------


def load_networks(args):
    """(Lpips, Inception) as the flags say; None for one without weights."""
    if not (args.lpips_weights or args.inception_weights or args.download):
        return None, None
    from toolbox.evaluation import networks  # here, for torch takes seconds

    device = cli.pick_device(args.device)
    wanted = (
        (args.lpips_weights, networks.ALEXNET, "--lpips_weights", networks.load_lpips),
        (args.inception_weights, networks.INCEPTION, "--inception_weights",
         networks.load_inception),
    )
    loaded = []
    for path, url, flag, load in wanted:
        if path is None and args.download:
            from utils import pipeline  # likewise

            path = networks.download(url, flag, pipeline.user_cache())
        loaded.append(load(path, device) if path else None)
    return loaded


def ssim(a, b, protocol):
    """SSIM of frames [H, W, 3] in [0, 1]; see above for its windows."""
    if not protocol:
        return metrics.ssim(a[None], b[None])
    from skimage.metrics import structural_similarity

    return float(structural_similarity(a, b, channel_axis=-1, data_range=1))


def score(frame, truth, mask, lpips, protocol):
    """{measure: number} of a frame; None without weights, nan for a mask without a pixel."""
    a, b = frame / 255, truth / 255
    found = {"psnr": metrics.psnr(a, b), "ssim": ssim(a, b, protocol),
             "lpips": lpips.distance(a, b) if lpips else None}
    if mask is not None:
        some = mask.any()
        found["mpsnr"] = metrics.psnr(a, b, mask)
        found["mssim"] = covisible.ssim(a, b, mask) if some else float("nan")
        found["mlpips"] = covisible.lpips(lpips, a, b, mask) if lpips else None
    return found


def score_pairs(pairs, lpips, inception, protocol):
    """({video: a dict {measure: number} of each frame}, features float32 [2048] of all frames: a
    list of the predictions' and one of the targets')."""
    scored = {}
    features = ([], [])
    with tqdm(total=sum(map(len, pairs)), unit="frame") as bar:
        for pair in pairs:
            scored[pair.name] = []
            for frame, truth, mask in pair.read():
                scored[pair.name].append(score(frame, truth, mask, lpips, protocol))
                if inception:
                    features[0].append(inception.features(frame))
                    features[1].append(inception.features(truth))
                bar.update()
    return scored, features


def mean(rows):
    """{measure: mean} of dicts of the same measures: of what is not nan; nan if there is nothing,
    None if a value is missing."""
    means = {}
    for name in rows[0]:
        values = [row[name] for row in rows]
        if None in values:
            means[name] = None
        elif np.isnan(values).all():
            means[name] = float("nan")
        else:
            means[name] = float(np.nanmean(values))
    return means


def summarise(scored, features):
    """{"videos": {name: {"frames", measure: number}}, "all": the same of all, and FID and KID}."""
    videos = {}
    for video, rows in scored.items():
        videos[video] = {"frames": len(rows)} | mean(rows)
    overall = mean(list(videos.values())) | {"frames": sum(map(len, scored.values()))}
    return {"videos": videos, "all": overall | set_distances(features)}


def set_distances(features):
    """{"fid", "kid"} of two lists of features: None without any, nan of a single frame."""
    if not features[0]:
        return dict.fromkeys(OF_SETS)
    if len(features[0]) == 1:
        return dict.fromkeys(OF_SETS, float("nan"))
    a, b = map(np.stack, features)
    return {"fid": distances.frechet(a, b), "kid": distances.kernel(a, b)}


# ---- telling -------------------------------------------------------------------------------------


def cell(name, value):
    """A number as the table has it."""
    if value is None:
        return "missing"
    return "-" if np.isnan(value) else f"{value:.{MEASURES[name][1]}f}"


def table(results):
    """Markdown: a row a video, and one of all."""
    names = list(results["all"])[1:]  # after the number of frames
    titles = [MEASURES[name][0] for name in names]
    lines = [f"| video | frames | {' | '.join(titles)} |"]
    lines.append("| --- " + "| ---: " * (1 + len(names)) + "|")
    for video, values in [*results["videos"].items(), ("all", results["all"])]:
        cells = [video, str(values["frames"])]
        for name in names:
            cells.append(cell(name, values[name]) if name in values else "")
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def explain(scored, results):
    """Notes in words on values that are missing, left out, or not to be trusted."""
    notes = []
    frames = results["all"]["frames"]
    flags = {"lpips": "--lpips_weights for LPIPS", "fid": "--inception_weights for FID and KID"}
    lacks = []
    for name, flag in flags.items():
        if results["all"][name] is None:
            lacks.append(flag)
    if lacks:
        notes.append(f"for what is missing give {' and '.join(lacks)}, or --download")
    for video, rows in scored.items():
        empty = sum(np.isnan(row.get("mpsnr", 0)) for row in rows)
        if empty:
            notes.append(f"{video}: the mask has no pixel above half in {empty} of {len(rows)} "
                         "frames, which mPSNR, mSSIM and mLPIPS leave out")
    if results["all"]["fid"] is not None and frames < GOOD_FID:
        notes.append(f"FID of {frames} frames is biased: compare it only with that of as many; "
                     "KID is not")
    return notes


def finite(value):
    """A number, or the numbers of a dict, as JSON can have them."""
    if isinstance(value, dict):
        return {name: finite(each) for name, each in value.items()}
    return value if value is not None and np.isfinite(value) else None


def write(folder, scored, results, settings):
    """Write metrics.csv, metrics.png and, last, metrics.json."""
    names = list(next(iter(scored.values()))[0])
    with files.whole(folder / "metrics.csv") as part, open(part, "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["video", "frame", *names])
        for video, rows in scored.items():
            for number, row in enumerate(rows):
                values = ["" if value is None else value for value in row.values()]
                writer.writerow([video, number, *values])
    draw(folder / "metrics.png", scored)
    with files.whole(folder / "metrics.json") as part:
        text = json.dumps({"settings": settings} | finite(results), indent=2, allow_nan=False)
        part.write_text(text + "\n")


def draw(path, scored):
    """Plot each measure that is there over time, a line a video."""
    from matplotlib.figure import Figure

    first = next(iter(scored.values()))[0]
    names = [name for name, value in first.items() if value is not None]
    figure = Figure(figsize=(9, 2.4 * len(names)), layout="constrained")
    grid = figure.subplots(len(names), sharex=True, squeeze=False)[:, 0]
    for axes, name in zip(grid, names, strict=True):
        for video, rows in scored.items():
            values = [row[name] for row in rows]
            axes.plot(values, ".-", linewidth=1, markersize=3, label=video)
        axes.set_ylabel(MEASURES[name][0] + " (dB)" * name.endswith("psnr"))
        axes.grid(alpha=0.3)
    grid[-1].set_xlabel("frame")
    if len(scored) <= LINES:
        grid[0].legend(fontsize=8)
    with files.whole(path) as part:
        figure.savefig(part, format="png", dpi=100)


# ---- the program ---------------------------------------------------------------------------------


def get_args():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=cli.HelpFormatter)
    parser.add_argument("--pred", type=Path, required=True, help="what is to be judged")
    parser.add_argument("--target", type=Path, required=True, help="the right pictures")
    parser.add_argument("--mask", type=Path, help="where pixels count: above half; videos or png")
    parser.add_argument("--protocol", choices=list(protocols.PROTOCOLS),
                        help="a published one's sizes, scenes and SSIM; see above")
    parser.add_argument("--correspondences", type=Path,
                        help="dycheck's file, or folder of SCENE.json or "
                             "SCENE/correspondence.json; by default of --target, if it has them")
    parser.add_argument("--resize", action="store_true",
                        help="scale predictions and masks to the target's size, or all to the "
                             "protocol's, instead of an error")
    parser.add_argument("--trim", action="store_true",
                        help="of other lengths compare the first frames, of folders of frames "
                             "those that all have, instead of an error")
    parser.add_argument("--lpips_weights", type=Path,
                        help="torchvision's alexnet-owt-7be5be79.pth, or as .safetensors")
    parser.add_argument("--inception_weights", type=Path,
                        help="pt_inception-2015-12-05-6726825d.pth of pytorch-fid, or torch-"
                             "fidelity's, or as .safetensors")
    parser.add_argument("--download", action="store_true",
                        help="fetch weights that are not given into ~/.cache/cognvs (340 MB), once")
    parser.add_argument("--output_dir", type=Path, help="PRED_metrics beside --pred by default")
    parser.add_argument("--device", help="cpu, cuda or cuda:N; the first GPU, or the CPU, if it "
                        "is left out")
    args = parser.parse_args()
    if args.correspondences and not (
            args.protocol and protocols.PROTOCOLS[args.protocol].correspondences):
        raise InputError("--correspondences: belongs to --protocol dycheck; give both or none")
    return args


def settings_of(args):
    """What results depend on, for the json."""
    names = ("pred", "target", "mask", "protocol", "correspondences", "resize", "trim",
             "lpips_weights", "inception_weights")
    settings = {}
    for name in names:
        value = getattr(args, name)
        settings[name] = str(value) if isinstance(value, Path) else value
    windows = "uniform, 7 pixels" if args.protocol else "Gaussian, sigma 1.5, 11 pixels"
    return settings | {"ssim_windows": windows}


def asks_for_davis(arguments):
    """Whether a command line asks for the protocol that has flags of its own."""
    pairs = zip(arguments, arguments[1:], strict=False)
    return "--protocol=davis" in arguments or ("--protocol", "davis") in pairs


def main():
    if asks_for_davis(sys.argv):
        from toolbox.evaluation import davis  # here, for it makes pictures too, and imports more

        davis.main()
        return
    args = get_args()
    if args.protocol:
        pairs, notes = protocols.find_pairs(args)
    else:
        pairs = sources.find_pairs(args.pred, args.target, args.mask, args.resize, args.trim)
        notes = []
    for note in notes:
        print(f"note: {note}")
    lpips, inception = load_networks(args)
    pred = args.pred.resolve()
    name = pred.name if pred.is_dir() else pred.stem
    folder = args.output_dir or pred.with_name(f"{name}_metrics")
    folder.mkdir(parents=True, exist_ok=True)
    scored, features = score_pairs(pairs, lpips, inception, args.protocol)
    results = summarise(scored, features)
    write(folder, scored, results, settings_of(args))
    for note in explain(scored, results):
        print(f"note: {note}")
    print(f"\n{table(results)}\n\nwrote {folder}: metrics.csv, metrics.png, metrics.json")


if __name__ == "__main__":
    cli.run(main)
