"""New views of real videos along ten paths, judged without a truth: the protocol on DAVIS.

    python toolbox/eval_metrics.py --protocol davis --sequences my_davis \\
        --model_path checkpoints/CogVideoX-5b-I2V --transformer_id checkpoints/cognvs_ckpt_inpaint

my_davis has a sequence folder for each video (gt_rgb.mp4 and cam_info/), or bare videos NAME.mp4,
of which such are made with --depth_model. Depth has to be in metres. Each is finetuned on (unless
--no_finetune) and rendered along trajs/davis10/: pans of 20 degrees, tilts of 10, zooms of 2 m, up
and down by 1 m with a pitch of 14 degrees and 0.12 m outward, arcs of 30 degrees with 2 m and
0.01 m inward, growing over the clip. The table has, for each sequence and path, the camera errors
by toolbox/geometry (mean rotation in degrees; RMS place in percent of the path's length, after the
best similarity), how known pixels are kept, seams, flicker (toolbox/score.py), and minutes a clip:
renders, finetuning and inference, of a stage that was interrupted only its last start. The same
command goes on after an interruption.
"""

if __name__ == "__main__":
    raise SystemExit("error: a module, not a program; it is eval_metrics.py --protocol davis")

import argparse
import csv
import json
import sys
from pathlib import Path
from types import SimpleNamespace

from toolbox import run_all, score
from toolbox.evaluation.gains import mean
from utils import cli, files, sequence
from utils.cli import InputError

PATHS = run_all.ROOT / "trajs" / "davis10"
MEASURES = {  # of score.measure_outputs: how each is written, and with how many decimals
    "rotation_deg": ("RotErr deg", 2), "translation_percent": ("TransErr %", 2),
    "known_psnr": ("known PSNR dB", 2), "seam": ("seam", 2), "flicker": ("flicker in holes", 2),
    "minutes": ("minutes a clip", 2),
}
PASSED_ON = ("num_inference_steps", "train_epochs", "memory", "num_processes", "learning_rate")
STAGES = ("training_pairs", "evaluation_renders", "finetuning", "inference")  # of minutes a clip


def parse_args():
    parser = argparse.ArgumentParser(prog="eval_metrics.py --protocol davis", description=__doc__,
                                     formatter_class=cli.HelpFormatter)
    add = parser.add_argument
    add("--protocol", choices=("davis",), required=True)
    add("--sequences", type=Path, required=True, help="folder of sequence folders, or of videos")
    add("--model_path", type=Path, required=True, help="base model, CogVideoX-5b-I2V")
    add("--transformer_id", type=Path, required=True, help="CogNVS weights")
    add("--output_dir", type=Path, help="for finetuned weights and the table; SEQUENCES_davis "
        "beside --sequences by default")
    add("--no_finetune", action="store_true", help="inpaint with the weights as they are")
    add("--no_composite", action="store_true", help="judge the model's output alone")
    add("--depth_model", help="for bare videos, as of run_all.sh")
    add("--download", action="store_true", help="allow fetching --depth_model")
    for name in ("num_inference_steps", "train_epochs", "num_processes"):
        add(f"--{name}", type=int, help="as of run_all.sh")
    for name in ("memory", "learning_rate"):
        add(f"--{name}", help="as of run_all.sh")
    return parser.parse_args()


def find_sequences(folder):
    """{name: sequence folder or video} of a folder, by name."""
    if not folder.is_dir():
        raise InputError(f"--sequences {folder}: no such folder; expected one of sequence folders "
                         "or of videos")
    found = {}
    for path in sorted(folder.iterdir()):
        if path.suffix.lower() == ".mp4":  # its folder may be half made
            found[path.stem] = path
        elif (path / "gt_rgb.mp4").is_file():
            found.setdefault(path.name, path)
    if not found:
        raise InputError(f"--sequences {folder}: has neither NAME/gt_rgb.mp4 nor NAME.mp4; "
                         "expected sequence folders or videos")
    return found


def process(args, name, place):
    """Make all outputs of a sequence; (its folder, the folder of outputs, minutes a clip)."""
    data_path = place if place.is_dir() else args.sequences / name
    run = "davis_as_is" if args.no_finetune else f"davis_{name}"
    weights = args.output_dir / run
    command = [sys.executable, "toolbox/run_all.py", "--data_path", data_path, "--cameras",
               PATHS / "*.json", "--score", "no", "--model_path", args.model_path,
               "--transformer_id", args.transformer_id, "--output_dir", weights]
    if place.is_file():
        command += ["--video", place] + ["--download"] * args.download
        if args.depth_model:
            command += ["--depth_model", args.depth_model]
    for option in PASSED_ON:
        if getattr(args, option) is not None:
            command += [f"--{option}", getattr(args, option)]
    for switch in ("no_finetune", "no_composite"):
        command += [f"--{switch}"] * getattr(args, switch)
    run_all.run(*command)
    outputs = data_path / "outputs" / run
    return data_path, outputs, minutes((data_path, outputs, weights))


def minutes(folders):
    """What STAGES took for one of the ten clips, minutes; None if the time of one is not known."""
    seconds = []
    for folder in folders:
        for stage in STAGES:
            record = folder / f"run_all_{stage}.json"
            if record.is_file():
                seconds.append(files.read_json(record).get("seconds"))
    if not all(isinstance(each, int | float) for each in seconds):
        return None
    return sum(seconds) / 60 / len(list(PATHS.glob("*.json")))


def measured(data_path, outputs):
    """The rows of score.measure_outputs for a sequence; those of the same outputs are kept."""
    record = outputs / "davis.json"
    args = SimpleNamespace(data_path=data_path, outputs=outputs, paths=None, no_cameras=False)
    found = score.usable_outputs(args)
    made_of = {path.name: cli.file_hash(path) for path in found}
    made_of |= run_all.hashes(data_path, [sequence.C2WS, sequence.DEPTH, sequence.INTRINSICS])
    if record.is_file():
        there = files.read_json(record)
        if there.get("made_of") == made_of and there.get("measures") == list(MEASURES):
            return there["rows"]
    rows = score.measure_outputs(args, found, score.open_as_rendered(args, found))
    with files.whole(record) as part:
        kept = {"made_of": made_of, "measures": list(MEASURES), "rows": rows}
        part.write_text(json.dumps(kept, indent=1) + "\n")
    return rows


def table(rows):
    """Markdown: the mean of every sequence, of every path, and of all."""
    lines = [f"| mean of | {' | '.join(title for title, _ in MEASURES.values())} |",
             "| --- " + "| ---: " * len(MEASURES) + "|"]
    groups = {}
    for row in rows:
        for group in (row["sequence"], row["path"]):
            groups.setdefault(group, []).append(row)
    for group, members in [*sorted(groups.items()), ("all", rows)]:
        cells = [group]
        for name, (_, digits) in MEASURES.items():
            cells.append(score.number(mean([row[name] for row in members]), digits))
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def main():
    args = parse_args()
    sequences = find_sequences(args.sequences)
    for name in ("sequences", "model_path", "transformer_id"):
        setattr(args, name, getattr(args, name).resolve())
    if args.depth_model and Path(args.depth_model).is_dir():
        args.depth_model = str(Path(args.depth_model).resolve())
    own = args.sequences.with_name(f"{args.sequences.name}_davis")
    args.output_dir = (args.output_dir or own).resolve()
    args.output_dir.mkdir(parents=True, exist_ok=True)
    titles = [path.stem for path in sorted(PATHS.glob("*.json"))]
    rows = []
    for number, (name, place) in enumerate(sequences.items(), 1):
        print(f"==== {name}, {number} of {len(sequences)}", flush=True)
        data_path, outputs, took = process(args, name, place.resolve())
        for row in measured(data_path, outputs):
            path = titles[int(row["name"].removeprefix("eval_render")) - 1]
            rows.append({"sequence": name, "path": path, **row, "minutes": took})
    target = args.output_dir / "davis.csv"
    with files.whole(target) as part, open(part, "w", newline="") as file:
        writer = csv.DictWriter(file, ["sequence", "path", *MEASURES], extrasaction="ignore")
        writer.writeheader()
        writer.writerows(rows)
    how = "not finetuned" if args.no_finetune else "finetuned"
    print(f"\n{len(sequences)} sequences, {how}\n\n{table(rows)}\n\nwrote {target}")
