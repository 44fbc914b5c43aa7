"""How well the holes of this very video are filled, and whether finetuning helped.

    python toolbox/score.py --data_path demo_data/bear --model_path checkpoints/CogVideoX-5b-I2V \\
        --cognvs_ckpt_path checkpoints/cognvs_ckpt_inpaint checkpoints/cognvs_ckpt_finetuned_bear

The held-out pairs that data_gen.py --mode train writes (val_render{i}.mp4) have holes of the shape
that the evaluation paths leave, in the video itself, so that what belongs there is known. They are
inpainted with each of the weights and compared with the video, in holes, on known pixels and
overall, beside Telea's classical fill.

Finetuning has seen what is in these holes, if not the holes. So each pair is inpainted mirrored
too, where it can know less by heart, and what it gains on new views is estimated as twice the gain
on mirrored pairs less that on pairs as they are (toolbox/benchmarks.md: how well that predicts).

The outputs of demo.py, which have no truth, are measured too: how far known pixels are kept,
whether seams show, flicker, and the camera's path, recovered from the output, against the one asked
for. Everything is written to score.json.
"""

if __name__ == "__main__":
    import signal

    signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C during the imports shows no traceback

import argparse
import itertools
import json
import os
import re
import shutil
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import cv2
import numpy as np
import torch
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import data_gen
from finetune import dataset
from toolbox import run_all
from toolbox.evaluation import cameras, gains, measures, networks
from toolbox.side_by_side import check_output, find_outputs
from utils import camera_paths, cli, files, pipeline, sequence, video
from utils.cli import InputError

PASSED_ON = ("fit", "memory", "device")  # to demo.py
JOBS = 8  # pairs that are measured, and camera paths that are recovered, at a time; a core each


def parse_args():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=cli.HelpFormatter)
    add = parser.add_argument
    add("--data_path", type=Path, required=True, help="sequence folder")
    add("--model_path", type=Path, required=True, help="base model, CogVideoX-5b-I2V")
    add("--cognvs_ckpt_path", type=Path, nargs="+", required=True, help="weights, as of demo.py; "
        "each is compared with the first")
    add("--outputs", type=Path, help="folder of demo.py's outputs; <data_path>/outputs by default")
    add("--output_dir", type=Path, help="for score.json and what is inpainted; <outputs>/score by "
        "default")
    add("--paths", type=int, help="measure only the first evaluation paths, so many")
    add("--seeds", type=int, nargs="+", default=[42, 43], help="of the noise; two or more tell how "
        "far chance goes")
    add("--num_inference_steps", type=int, default=10)
    add("--no_cameras", action="store_true", help="do not recover the outputs' camera paths, which "
        "takes about half a minute of a core each")
    add("--lpips_weights", type=Path, help="file of AlexNet's weights (torchvision's), for LPIPS")
    add("--download", action="store_true", help="allow fetching them, 244 MB")
    add("--fit", choices=("stretch", "pad"), default="stretch", help="as of demo.py")
    add("--memory", default="auto", help="as of demo.py")
    add("--device", help="as of demo.py")
    args = parser.parse_args()
    if args.paths is not None and args.paths < 1:
        raise InputError(f"--paths {args.paths}: expected at least 1")
    if len(set(args.seeds)) < len(args.seeds) or not all(0 <= s < 2**32 for s in args.seeds):
        raise InputError(f"--seeds {args.seeds}: expected different numbers from 0 to 2^32 - 1")
    args.outputs = args.outputs or args.data_path / "outputs"
    args.output_dir = args.output_dir or args.outputs / "score"
    return args


# ---- the pairs -----------------------------------------------------------------------------------


def find_pairs(args):
    """The held-out renders, checked against gt_rgb.mp4, and their masks."""
    target = args.data_path / "gt_rgb.mp4"
    renders = dataset.find_renders(args.data_path, "val", video.probe(target))[: args.paths]
    if not renders:
        raise InputError(f"{args.data_path}: no val_render*.mp4; make held-out pairs with "
                         "data_gen.py --mode train")
    dataset.check_origin(target, renders)
    made_of = video.made_of(renders[0]) or {}
    found = []
    for render in renders:
        if not mask_of(render).is_file():
            raise InputError(f"{mask_of(render)}: no such file; run data_gen.py --mode train again")
        its = video.made_of(render) or {}
        if all(its.get(name) == made_of.get(name) for name in ("depth", "source_cameras")):
            found.append(render)
        else:
            print(f"note: {render} is left out: it was made of another depth or K than "
                  f"{renders[0].name}")
    return found


def mask_of(render):
    return render.with_name("mask".join(render.name.rsplit("render", 1)))


def stage_pairs(args, renders):
    """Put each pair and its mirror image where demo.py reads them, by their staged_name."""
    folder = args.output_dir / "pairs"
    folder.mkdir(parents=True, exist_ok=True)
    wanted = {}
    for render in renders:
        for path in (render, mask_of(render)):
            wanted[folder / path.name] = path, False
            wanted[folder / f"{staged_name(path.stem, True)}.mp4"] = path, True
    for left in set(folder.iterdir()) - wanted.keys():
        left.unlink()
    for staged, (path, mirrored) in tqdm(wanted.items(), unit="video", desc="held-out pairs"):
        if mirrored:
            write_mirrored(path, staged)
            continue
        with files.whole(staged) as part:
            shutil.copyfile(path, part)
    return folder


def staged_name(stem, mirrored):
    """What a pair's render or mask is called among the staged ones."""
    return stem.replace("val_", "val_mirrored_") if mirrored else stem


def write_mirrored(path, target):
    """Write a video left to right, unless that was done before."""
    tags = {"mirror of": cli.file_hash(path)}
    if video.made_of(target) == tags:
        return
    with video.VideoWriter(target, video.probe(path), 1, tags=tags) as writer:
        for frame in video.iter_frames(path):
            writer.write(frame[None, :, ::-1])


def names_of(paths):
    """A short name of each of the weights: its folder, or that of its run; and the step, or a
    number, where that was there before."""
    names = []
    for path in paths:
        weights = Path(os.path.abspath(pipeline.find_weights(path)))
        step = re.match(r"my_checkpoint-(\d+)_", weights.name)
        name = weights.parent.name if step else weights.name
        if name in names and step:
            name += f"_step{step[1]}"
        taken = {*names, "pairs", "Telea"}
        numbered = (f"{name}_{number}" for number in itertools.count(2))
        names.append(name if name not in taken else next(x for x in numbered if x not in taken))
    return names


def inpaint(args, weights, name, seed):
    """Inpaint all staged pairs with some weights; what was made of the same is kept."""
    folder = args.output_dir / "pairs"
    target = args.output_dir / name / f"seed{seed}"
    command = [sys.executable, "demo.py", "--model_path", args.model_path, "--cognvs_ckpt_path",
               weights, "--data_path", folder, "--mp4_name", "val_*render*.mp4", "--output_dir",
               target, "--seed", seed, "--num_inference_steps", args.num_inference_steps]
    for option in PASSED_ON:
        if getattr(args, option) is not None:
            command += [f"--{option}", getattr(args, option)]
    print(f"== {name}, seed {seed}", flush=True)
    run_all.run(*[x.resolve() if isinstance(x, Path) else x for x in command])
    return target


# ---- what is measured ----------------------------------------------------------------------------


def measure_pairs(args, renders, folders, lpips):
    """The gains.Results of all methods. folders: {name of the weights: {seed: its outputs}}."""
    pairs = list(itertools.product(renders, (False, True)))
    total = sum(video.probe(render).frames for render, _ in pairs)
    with (
        tqdm(total=total, unit="frame", desc="measuring pairs") as progress,
        ThreadPoolExecutor(min(JOBS, os.cpu_count())) as pool,
    ):
        def measure(pair):
            return measure_pair(args, *pair, folders, lpips, progress)

        return list(itertools.chain.from_iterable(pool.map(measure, pairs)))


def measure_pair(args, render, mirrored, folders, lpips, progress):
    """The gains.Results of all methods on a pair, or its mirror image."""
    name = staged_name(render.stem, mirrored)
    videos = {("Telea", None): None}
    for weights, by_seed in folders.items():
        for seed, folder in by_seed.items():
            videos[weights, seed] = folder / f"{name}_out.mp4"
    staged = args.output_dir / "pairs" / f"{name}.mp4"
    results = []
    for (method, seed), scores in compare(args, staged, mirrored, videos, lpips, progress).items():
        results.append(gains.Result(render.stem, mirrored, method, seed, scores))
    return results


def open_lpips(args):
    """What gives maps of LPIPS, or None without weights."""
    path = args.lpips_weights
    if path is None and args.download:
        path = networks.download(networks.ALEXNET, "--lpips_weights", pipeline.user_cache())
    return path and networks.load_lpips(path, cli.pick_device(args.device)).distance_map


def compare(args, render, mirrored, videos, lpips, progress):
    """{key: scores} of videos {key: file, or None for Telea's fill} against gt_rgb.mp4."""
    found = {key: measures.Comparison(lpips) for key in videos}
    readers = {key: video.iter_frames(path) for key, path in videos.items() if path}
    before = None
    sources = zip(video.iter_frames(args.data_path / "gt_rgb.mp4"), video.iter_frames(render),
                  video.iter_frames(mask_of(render)), strict=True)
    for source, left, mask in sources:
        truth = unit(source[:, ::-1] if mirrored else source)
        known = mask[..., 0] > 127
        flow = None if before is None else measures.flow_back(truth, before)
        for key, comparison in found.items():
            frame = next(readers[key]) if key in readers else (
                measures.telea(left[None], known[None])[0])
            comparison.add(unit(frame), truth, known, flow)
        before = truth
        progress.update()
    return {key: comparison.result() for key, comparison in found.items()}


def unit(frame):
    """A frame uint8 as float32 in [0, 1]."""
    return np.ascontiguousarray(frame).astype(np.float32) / 255


def held_out_rows(args, results, folders):
    """The rows of score.json's held_out, a method each."""
    rows = []
    for method in ("Telea", *folders):
        plain, mirrored, spread = gains.of_method(results, method)
        videos = {}
        if method in folders:
            first = next(iter(folders[method].values()))
            for pair in sorted({each.pair for each in results}):
                videos[pair] = os.path.relpath(first / f"{pair}_out.mp4", args.data_path)
        rows.append({"method": method, **plain, "mirrored": mirrored, "spread": spread,
                     "videos": videos})
    return rows


def usable_outputs(args):
    """demo.py's outputs, but for those that do not belong to their renders, which is said."""
    found = []
    for output in find_outputs(args.outputs)[: args.paths]:
        render = render_of(args, output)
        try:
            check_output(render, output)
            infos = [video.probe(path) for path in (render, output, mask_of(render))]
            if len({(info.frames, info.height, info.width) for info in infos}) > 1:
                raise InputError(f"{output}: differs from its render or mask in size or length, as "
                                 "with --fit crop")
            found.append(output)
        except InputError as error:
            print(f"note: left out: {error}")
    return found


def measure_outputs(args, outputs, seq):
    """The rows of score.json's outputs: what can be told of them without a truth.

    seq: as of open_as_rendered; without one, no camera paths are recovered.
    """
    rows = []
    total = sum(video.probe(output).frames for output in outputs)
    with tqdm(total=total, unit="frame", desc="measuring outputs", disable=not outputs) as progress:
        for output in outputs:
            render = render_of(args, output)
            found = measures.Plausibility()
            for out, left, mask in zip(*map(video.iter_frames, (output, render, mask_of(render))),
                                       strict=True):
                found.add(unit(out), unit(left), mask[..., 0] > 127)
                progress.update()
            rows.append({"name": render.stem, **found.result()})
    errors = camera_errors(args, outputs, seq) if seq else []
    for each, error in itertools.zip_longest(rows, errors):
        each.update((error or cameras.CameraErrors(None, None, []))._asdict())
    return rows


def render_of(args, output):
    return args.data_path / f"{output.stem.removesuffix('_out')}.mp4"


def open_as_rendered(args, outputs):
    """The sequence.Sequence with the K and depth that the outputs' renders were made with, and its
    poses, if any; None, and why, if it cannot be told."""
    if args.no_cameras or not outputs:
        return None
    made_of = video.made_of(render_of(args, outputs[0])) or {}
    try:
        poses = sequence.C2WS if (args.data_path / sequence.C2WS).is_file() else None
        for intrinsics in (sequence.INTRINSICS, None):
            if intrinsics and not (args.data_path / intrinsics).is_file():
                continue
            seq = sequence.open_sequence(args.data_path, intrinsics_file=intrinsics,
                                         extrinsics_file=poses)
            hashes = {data_gen.hash_of([seq.intrinsics])}
            if poses:
                hashes.add(data_gen.hash_of([seq.intrinsics, seq.c2w]))  # with --fuse_static
            if made_of.get("source_cameras", min(hashes)) in hashes:
                break
        else:
            raise InputError("the renders were made with another K than is there")
        if made_of.get("depth") not in (None, cli.file_hash(args.data_path / sequence.DEPTH)):
            raise InputError("the renders were made with another depth than is there")
    except InputError as error:
        print(f"note: no camera paths are recovered: {error}")
        return None
    return seq


def camera_errors(args, outputs, seq):
    """The cameras.CameraErrors of outputs, None where there is none."""
    if seq.c2w is None:
        print("no camera poses: those of the source are recovered first", flush=True)

    def errors(output):
        path = render_of(args, output).with_suffix(".npz")
        path = path.with_name(path.name.replace("render", "cameras"))
        if not path.is_file():
            return None
        asked = camera_paths.read_cameras(path, seq.intrinsics)
        return cameras.path_errors(output, seq, asked, sources)

    threads = torch.get_num_threads(), cv2.getNumThreads()
    torch.set_num_threads(1)  # an output a core is faster
    cv2.setNumThreads(1)
    try:
        sources = cameras.source_cameras(seq)
        with ThreadPoolExecutor(min(JOBS, os.cpu_count())) as pool:
            return list(tqdm(pool.map(errors, outputs), total=len(outputs), unit="path",
                             desc="recovering cameras"))
    finally:
        torch.set_num_threads(threads[0])
        cv2.setNumThreads(threads[1])


# ---- what is said --------------------------------------------------------------------------------


def table(held_out):
    """Markdown of held_out: a line a method and region."""
    lines = ["| method | where | PSNR dB | SSIM | LPIPS | energy | flicker |",
             "| --- " * 7 + "|"]
    for each in held_out:
        for region in (*measures.REGIONS, "mirrored"):
            scores = each[region]["holes"] if region == "mirrored" else each[region]
            where = "holes, mirrored" if region == "mirrored" else region
            cells = [each["method"], where, number(scores["psnr"], 2), number(scores["ssim"], 3),
                     number(scores["lpips"], 3, "missing"), number(scores["energy"], 2),
                     number(scores["flicker"], 2)]
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def number(value, digits, none="-"):
    return none if value is None else f"{value:.{digits}f}"


def table_of_outputs(rows):
    """Markdown of outputs: a line each."""
    lines = ["| output | known PSNR dB | seam | flicker in holes, known | rotation deg | "
             "translation % |", "| --- " * 6 + "|"]
    for each in rows:
        flicker = f"{number(each['flicker'], 2)}, {number(each['flicker_known'], 2)}"
        cells = [each["name"], number(each["known_psnr"], 2), number(each["seam"], 2), flicker,
                 number(each["rotation_deg"], 2), number(each["translation_percent"], 2)]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def verdicts(results, names):
    """A sentence on each of the weights but the first, and what it stands on."""
    said = []
    for name in names[1:]:
        plain, mirrored, estimated = gains.gains(results, name, names[0])
        said.append(gains.verdict(name, names[0], estimated))
        if estimated:
            said.append(f"In held-out holes of this video that is {np.mean(plain):+.2f} dB, and "
                        f"{np.mean(mirrored):+.2f} dB where they are mirrored.")
    return said


def main():
    args = parse_args()
    renders = find_pairs(args)
    names = names_of(args.cognvs_ckpt_path)
    pipeline.check_base(args.model_path)
    lpips = open_lpips(args)
    outputs = usable_outputs(args)
    seq = open_as_rendered(args, outputs)
    with cli.lock(args.output_dir / ".score.lock"):
        stage_pairs(args, renders)
        folders = {}
        for name, weights in zip(names, args.cognvs_ckpt_path, strict=True):
            folders[name] = {seed: inpaint(args, weights, name, seed) for seed in args.seeds}
        results = measure_pairs(args, renders, folders, lpips)
        record = {
            "pairs": [render.stem for render in renders],
            "seeds": args.seeds,
            "num_inference_steps": args.num_inference_steps,
            "verdict": verdicts(results, names),
            "held_out": held_out_rows(args, results, folders),
            "outputs": measure_outputs(args, outputs, seq),
            "geometry": sequence.doubts(args.data_path),
        }
        with files.whole(args.output_dir / "score.json") as part:
            part.write_text(json.dumps(record, indent=1) + "\n")
    print(f"\n{len(renders)} held-out pairs, {args.num_inference_steps} steps, mean over "
          f"{len(args.seeds)} seeds\n\n{table(record['held_out'])}\n")
    if record["outputs"]:
        print(f"{args.outputs}\n\n{table_of_outputs(record['outputs'])}\n")
    for sentence in record["verdict"] + [f"geometry: {doubt}" for doubt in record["geometry"]]:
        print(sentence)
    print(f"wrote {args.output_dir}/score.json")


if __name__ == "__main__":
    cli.run(main, "what is inpainted stays; the same command goes on")
