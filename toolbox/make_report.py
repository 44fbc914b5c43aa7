"""A page that shows how good the finished videos are, and where: <data_path>/report/index.html.

    python toolbox/make_report.py --data_path demo_data/room

It opens from disk in any browser, without a server or a network: source, render, output, truth and
depth in step and wiped over one another, holes, scores and curves, cameras, settings and times. The
folder can be moved as a whole. What is not there, or cannot be read, is left out.
"""

if __name__ == "__main__":
    import signal

    signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C during the imports shows no traceback

import argparse
import os
import re
import sys
import time
from pathlib import Path
from urllib.parse import quote

from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from toolbox.evaluation import report_cameras, report_page, report_records, report_videos
from toolbox.evaluation.report_records import saying
from utils import cli, files, sequence, video, warp
from utils.cli import InputError

ROOT = Path(__file__).resolve().parents[1]
PARTS = ROOT / "toolbox" / "evaluation"  # where report.html and report.js are
FOR_SCRIPT = ("fps", "frames", "times", "aspect", "layers", "mask", "holes", "curves", "against",
              "cameras")


def parse_args():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=cli.HelpFormatter)
    add = parser.add_argument
    add("--data_path", type=Path, required=True, help="sequence folder")
    add("--outputs", type=Path, help="folder of eval_render{i}_out.mp4; by default <data_path>/"
        "outputs or, if none is there, the folder below it with the newest")
    add("--run", type=Path, help="folder of a finetuning run: its curves, settings, validations")
    return parser.parse_args()


def find_outputs(args):
    """The folder of outputs; it need not be there unless it was given."""
    usual = args.data_path / "outputs"
    pattern = "eval_render*_out.mp4"
    if args.outputs:
        if not any(args.outputs.glob(pattern)):
            raise InputError(f"--outputs {args.outputs}: no {pattern} there; expected a folder "
                             "that demo.py wrote")
        return args.outputs
    below = [] if any(usual.glob(pattern)) else list(usual.glob(f"*/{pattern}"))
    return max(below, key=lambda path: path.stat().st_mtime).parent if below else usual


def find_numbers(root, outputs):
    """The numbers of all renders and outputs, in order. Raises InputError if there are none."""
    numbers = set()
    for folder, pattern in ((root, r"eval_render(\d+)\.mp4"),
                            (outputs, r"eval_render(\d+)_out\.mp4")):
        for path in folder.glob("eval_render*.mp4"):
            if match := re.fullmatch(pattern, path.name):
                numbers.add(int(match[1]))
    if not numbers:
        raise InputError(f"{root}: neither eval_render*.mp4 nor outputs of them; make them with "
                         "data_gen.py --mode eval and demo.py")
    return sorted(numbers)


# ---- clips: what the viewer shows ----------------------------------------------------------------


def new_clip(videos, name, paths, mask, first):
    """A clip of those {layer: path} that can be read.

    It has the size and rate of the first of the layers `first` that is one. Raises InputError if
    none is.
    """
    notes = []
    layers = []
    for layer, path in paths.items():
        if path.is_file():
            with saying(notes):
                fps = float(videos.info(path).fps)
                layers.append({"name": layer, "src": videos.link(path), "fps": fps})
    shown = {layer["name"] for layer in layers}
    leading = next((layer for layer in first if layer in shown), None)
    if leading is None:
        raise InputError(f"{name}, as none of its videos can be read. {' '.join(notes)}")
    info = videos.info(paths[leading])
    clip = {"name": name, "about": "", "notes": notes, "numbers": [], "layers": layers,
            "fps": float(info.fps), "frames": info.frames,
            "times": list(map(float, info.times or ())),
            "aspect": float(info.width * info.pixel_aspect / info.height),
            "poster": report_videos.poster(paths[leading], info.frames // 2)}
    if mask and mask.is_file():
        with saying(notes):
            videos.info(mask)
            clip["mask"] = videos.link(mask)
    return clip


def shows(clip, layer):
    return any(each["name"] == layer for each in clip["layers"])


def path_clip(videos, number, outputs, depth):
    """A camera path: source, render, output, truth and depth."""
    root = videos.root
    render = root / f"eval_render{number}.mp4"
    output = outputs / f"eval_render{number}_out.mp4"
    mask = root / f"eval_mask{number}.mp4"
    paths = {"Source": root / "gt_rgb.mp4", "Render": render, "Output": output,
             "Truth": root / f"novel_gt{number}.mp4"}
    shown = paths | ({"Depth": root / "report" / "depth.mp4"} if depth else {})
    made_of = video.made_of(render) if render.is_file() else None
    name = Path(str((made_of or {}).get("path", f"path {number}"))).name.removesuffix(".txt")
    clip = new_clip(videos, cli.short(name, 40), shown, mask, ["Output", "Render"])
    if output.is_file() and render.is_file() and is_stale(render, output):
        clip["notes"].append(f"The output was made of another {render.name}: run demo.py again.")
    with saying(clip["notes"]):
        if shows(clip, "Truth"):
            measure(clip, videos, paths, "Truth", mask, ["Output", "Render"])
        elif shows(clip, "Render"):
            measure(clip, videos, paths, "Render", mask, ["Output"])
    return clip


def is_stale(render, output):
    """Whether an output says that it was made of another render."""
    made_of = video.made_of(output) or {}
    return "render" in made_of and made_of["render"] != cli.file_hash(render)


def measure(clip, videos, paths, target, mask, names):
    """Add to a clip its holes, and how near those layers of `names` that it shows are to a target.

    What is near to a render is so on known pixels alone. Nothing is told without a mask that is
    there but cannot be read.
    """
    if mask.is_file() and "mask" not in clip:
        return
    compared = {name: paths[name] for name in names if shows(clip, name)}
    mask = mask if mask.is_file() else None
    together = [paths[target], *compared.values()]
    if not videos.same_size([*together, mask] if mask else together):
        clip["notes"].append("The videos differ in size or length, so nothing is measured.")
        return
    found = report_videos.measure(paths[target], mask, compared)
    if target == "Render":
        regions = ["known"] if mask else []
    else:
        regions = list(report_videos.REGIONS) if mask else ["all"]
    if compared and regions:
        clip |= {"against": target, "curves": {}, "means": {}}
        for region in regions:
            clip["curves"][region] = found["curves"][region]
            clip["means"][region] = found["means"][region]
    if mask:
        clip["holes"] = found["holes"]
        most = max(found["holes"])
        if most > warp.MANY_HOLES:
            clip["notes"].append(
                f"Holes pass {warp.MANY_HOLES:.0%}, most at frame "
                f"{found['holes'].index(most) + 1}. "
                "Inpainting has little to hold on to there: move the camera less.")


def pair_clip(videos, name, methods):
    """A held-out pair: its render, what each method {name: path} made of it, and the truth."""
    truth = videos.root / "gt_rgb.mp4"
    paths = {"Render": videos.root / f"{name}.mp4"} | methods | {"Truth": truth}
    mask = videos.root / f"{name.replace('render', 'mask')}.mp4"
    clip = new_clip(videos, name.replace("val_render", "pair "), paths, mask, list(methods)[::-1])
    with saying(clip["notes"]):
        if shows(clip, "Truth"):
            measure(clip, videos, paths, "Truth", mask, [*methods, "Render"])
    return clip


def training_clip(videos, path):
    """A validation of the trainer: render, output and truth beside each other in one video."""
    step, _, render = path.stem.partition("_")
    layers = {"Render": path, "Output": path, "Truth": path}
    clip = new_clip(videos, cli.short(step.replace("-", " "), 40), layers, None, ["Output"])
    clip["about"] = cli.short(render, 40)
    clip["aspect"] /= len(layers)
    clip["poster"] = report_videos.poster(path, clip["frames"] // 2, part=1)
    for part, layer in enumerate(clip["layers"]):
        layer["part"] = part
    return clip


def by_number(path):
    """A key that sorts step-50 before step-100."""
    return re.sub(r"\d+", lambda number: number[0].zfill(12), str(path))


# ---- the page ------------------------------------------------------------------------------------


def gather_clips(videos, run, score, depth, notes):
    """{group: {key: clip}} of camera paths, by number, held-out pairs and validations.

    Words on those that cannot be shown go to `notes`. Raises InputError if none can be.
    """
    root, outputs = videos.root, videos.outputs
    groups = {"Camera paths": {}, "Held-out pairs": {}, "Training": {}}
    numbers = find_numbers(root, outputs)
    pairs = sorted(score["videos"], key=by_number)
    validations = sorted((run / "validation").glob("*.mp4"), key=by_number) if run else []
    with tqdm(total=len(numbers) + len(pairs) + len(validations), unit="clip") as bar:
        for number in numbers:
            with saying(notes):
                clip = path_clip(videos, number, outputs, depth)
                entry = score["outputs"].get(f"eval_render{number}", {})
                clip["numbers"] = report_records.output_numbers(entry)
                clip["notes"] += report_records.strings(entry.get("doubts"))
                groups["Camera paths"][number] = clip
            bar.update()
        for name in pairs:
            with saying(notes):
                groups["Held-out pairs"][name] = pair_clip(videos, name, score["videos"][name])
            bar.update()
        for path in validations:
            with saying(notes):
                groups["Training"][path] = training_clip(videos, path)
            bar.update()
    if not any(groups.values()):
        raise InputError(f"{root}: no video can be shown. {notes[-1]}")
    return groups


def make_page(root, outputs, run):
    """The page's HTML; videos that it needs besides are written to report/."""
    videos = report_videos.Videos(root, outputs)
    folders = [root, outputs, *([run] if run else [])]
    notes = []
    info = videos.info(root / "gt_rgb.mp4")
    videos.link(root / "gt_rgb.mp4")  # the one video that has to be readable
    score = report_records.read_score(root, outputs, notes)
    stages = report_records.read_stages(folders, notes)
    seq, poses = report_cameras.open_sequence(root, info.frames, find_numbers(root, outputs), notes)
    depth = None
    if seq:
        depth = report_videos.write_depth(root / "report" / "depth.mp4", seq.depth_map, info)
    groups = gather_clips(videos, run, score, depth, notes)
    paths = groups["Camera paths"]
    viewer = {"cameras": report_cameras.add_cameras(root, seq, poses, paths, info.frames),
              "training": report_records.read_training(run, notes), "groups": [], "clips": []}
    clips = []
    for name, group in groups.items():
        if group:
            viewer["groups"].append([name, len(group)])
        clips += group.values()
    for clip in clips:
        clip["notes"] = report_records.without_folders(clip["notes"], folders)
        viewer["clips"].append({key: clip[key] for key in FOR_SCRIPT if key in clip})
    first = next(iter(paths), 0)
    settings = report_records.read_settings(root / f"eval_render{first}.mp4",
                                            outputs / f"eval_render{first}_out.mp4", run, notes)
    warnings = []
    with saying(notes):
        warnings = sequence.doubts(root)
    warnings += report_records.without_folders(notes, folders)
    title = cli.short(root.name, 80)
    facts = [f"{info.frames} frames", f"{info.width} × {info.height}",
             f"{float(info.fps):.4g} fps", time.strftime("%d %B %Y, %H:%M")]
    places = {
        "TITLE": report_page.join([title]),
        "TOP": report_page.top(title, facts, score["verdict"], warnings, paths.values(), stages),
        "CARDS": report_page.join(map(report_page.card, clips)),
        "SIDES": report_page.join(report_page.side(clip, depth) for clip in clips),
        "SCORES": report_page.scores(score["held_out"], score["about"]),
        "RECORDS": report_page.records(stages, settings, pictures(root)),
        "VERSIONS": report_page.join([report_records.versions(ROOT)]),
    }
    template = (PARTS / "report.html").read_text(encoding="utf-8")
    script = (PARTS / "report.js").read_text(encoding="utf-8")
    return report_page.fill(template, script, viewer, places)


def pictures(root):
    """[words, link] of pictures that other programs left."""
    found = []
    for name, words in (("cam_info/geometry.png", "Picture: depth, cameras and their verdict"),
                        ("preview.png", "Picture: preview of the paths")):
        if (root / name).is_file():
            found.append([words, os.path.relpath(root / name, root / "report")])
    return found


def write_page(file, page):
    """Write the page, then delete those copies beside it that only the page before it names."""
    before = file.read_text(encoding="utf-8", errors="replace") if file.is_file() else ""
    with files.whole(file) as part:
        part.write_text(page, encoding="utf-8")
    for path in file.parent.glob("*.mp4"):
        link = f'"{quote(os.fsencode(path.name))}"'
        if link in before and link not in page:
            path.unlink()


def main():
    args = parse_args()
    if not (args.data_path / "gt_rgb.mp4").is_file():
        raise InputError(f"--data_path {args.data_path}: no gt_rgb.mp4 there; expected a sequence "
                         "folder")
    if args.run and not args.run.is_dir():
        raise InputError(f"--run {args.run}: no such folder; expected that of a finetuning run")
    root = Path(os.path.abspath(args.data_path))
    outputs = Path(os.path.abspath(find_outputs(args)))
    run = Path(os.path.abspath(args.run)) if args.run else None
    find_numbers(root, outputs)
    with cli.lock(root / "report" / ".make_report.lock"):
        write_page(root / "report" / "index.html", make_page(root, outputs, run))
    print(f"wrote {args.data_path / 'report' / 'index.html'}: open it in a browser")


if __name__ == "__main__":
    cli.run(main)
