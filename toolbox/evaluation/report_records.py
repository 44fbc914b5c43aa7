"""What toolbox/make_report.py shows of what other programs wrote down: scores, the curves of a run,
times and peak memory, settings, versions.

Such files may come from anywhere: what is of another kind than it should be is left out, and no
folder of this machine is named. A list `notes` gets the words on files that cannot be read.
"""

if __name__ == "__main__":
    raise SystemExit("error: a module, not a program; toolbox/README.md lists the programs")

import contextlib
import csv
import importlib.metadata
import math
import os
import platform
import re
import subprocess
from pathlib import Path

from utils import cli, files, video
from utils.cli import InputError

REGIONS = ("holes", "known", "all")
MEASURES = ("psnr", "ssim", "lpips", "energy", "flicker")  # of held-out pairs
OWN = ("render", "truth")  # "methods" whose videos the page has anyway
SCORES = (  # of an output: name, words, format
    ("known_psnr", "Known pixels, against the render", "{:.1f} dB"),
    ("seam", "Seams along holes (1: none shows)", "{:.2f}"),
    ("flicker", "Flicker in holes, levels of 255", "{:.1f}"),
    ("rotation_deg", "Camera turned off its path", "{:.2f}°"),
    ("translation_percent", "Camera moved off its path", "{:.1f}%"),
)
CURVES = (  # of a run: name, file, column
    ("fixed", "train_log.csv", "fixed_batch_loss"),
    ("loss", "train_log.csv", "loss"),
    ("psnr", "validation/psnr.csv", "psnr"),
)


@contextlib.contextmanager
def saying(notes):
    """Leave the rest of a block out where an InputError ends it; its words go to `notes`."""
    try:
        yield
    except InputError as error:
        notes.append(f"Left out: {cli.said(error)}")


def without_folders(notes, folders):
    """Each note once, without the names of those folders."""
    found = {}
    for note in notes:
        for folder in folders:
            note = note.replace(f"{folder}{os.sep}", "")
        found[cli.short(note, 400)] = True
    return list(found)


def number(value):
    """A finite number as float, or None."""
    if not isinstance(value, (int, float)) or isinstance(value, bool):
        return None
    return float(value) if abs(value) < 1e300 else None


def strings(value):
    """The strings of a list, each in one line."""
    value = value if isinstance(value, list) else []
    return [cli.short(item, 400) for item in value if isinstance(item, str)]


def dicts(value):
    """The dicts of a list."""
    value = value if isinstance(value, list) else []
    return [item for item in value if isinstance(item, dict)]


def member(record, name):
    """A dict in a dict, empty if it is none."""
    value = record.get(name)
    return value if isinstance(value, dict) else {}


def read_score(root, outputs, notes):
    """The scores of toolbox/score.py in <outputs>/score/, all of them empty if there are none.

    {"verdict": sentences, "held_out": methods, "about": how that was measured, "outputs": {name of
    a render: scores}, "videos": {name of a held-out pair: {method: path}}}.
    """
    path = outputs / "score" / "score.json"
    record = {}
    if path.is_file():
        with saying(notes):
            record = files.read_json(path)
    score = {"verdict": strings(record.get("verdict")), "held_out": [], "outputs": {}, "videos": {}}
    for entry in dicts(record.get("outputs")):
        score["outputs"][str(entry.get("name"))] = entry
    for entry in dicts(record.get("held_out")):
        method = {"method": cli.short(entry.get("method", "?"), 40),
                  "spread": number(entry.get("spread"))}
        regions = {region: member(entry, region) for region in REGIONS}
        regions["mirrored"] = member(member(entry, "mirrored"), "holes")
        for region, values in regions.items():
            method[region] = {measure: number(values.get(measure)) for measure in MEASURES}
        score["held_out"].append(method)
        if method["method"].lower() not in OWN:
            add_pairs(score["videos"], method["method"], member(entry, "videos"), root, outputs)
    missing = 0
    for methods in score["videos"].values():
        for name in [name for name, path in methods.items() if path is None]:
            del methods[name]
            missing += 1
    score["videos"] = {pair: methods for pair, methods in score["videos"].items() if methods}
    if missing:
        notes.append("Left out: videos of held-out pairs that score.json names, or their renders, "
                     f"{missing} in all. They are gone, or lie outside of this folder and of its "
                     "outputs.")
    score["about"] = about_score(record)
    return score


def add_pairs(videos, method, named, root, outputs):
    """Add a method's videos {pair: path from root} to {pair: {method: path}}.

    The path is None where the video or its render is not there, or lies elsewhere: a score.json
    that somebody made shall not bring any file of this machine into the page.
    """
    for pair, name in named.items():
        if re.fullmatch(r"val_render\d{1,6}", pair):
            path = Path(os.path.abspath(root / str(name)))
            inside = path.is_relative_to(root) or path.is_relative_to(outputs)
            there = inside and path.is_file() and (root / f"{pair}.mp4").is_file()
            videos.setdefault(pair, {})[method] = path if there else None


def about_score(record):
    """Words such as "4 pairs, 2 seeds, 50 steps"."""
    seeds = record.get("seeds")
    counts = (
        (len(strings(record.get("pairs"))), "pair"),
        (len(seeds) if isinstance(seeds, list) else 0, "seed"),
        (number(record.get("num_inference_steps")) or 0, "step"),
    )
    return ", ".join(f"{count:.0f} {word}{'s' * (count != 1)}" for count, word in counts if count)


def output_numbers(entry):
    """[words, number] of what the scores say of one output."""
    rows = []
    for name, words, form in SCORES:
        value = number(entry.get(name))
        if value is not None:
            rows.append([words, form.format(value)])
    return rows


def read_training(run, notes):
    """The curves of a finetuning run: {name: [[step, value], ...]} of CURVES."""
    found = {}
    for name, file, column in CURVES:
        found[name] = []
        if run and (run / file).is_file():
            with saying(notes):
                found[name] = curve(files.read_text(run / file), column)
    return found


def curve(text, column):
    """[[step, value], ...] of a column of a CSV."""
    points = []
    for row in csv.DictReader(text.splitlines()):
        try:
            point = [float(row["step"]), float(row[column])]
        except (KeyError, TypeError, ValueError):  # most steps lack the fixed batch
            continue
        if all(map(math.isfinite, point)):
            points.append(point)
    return points


def read_stages(folders, notes):
    """Times and peak memory that run_all.sh wrote down: a dict a stage, in order of time."""
    records = set()
    for folder in folders:
        records |= set(folder.glob("run_all_*.json"))
    stages = []
    for path in sorted(records, key=lambda path: (path.stat().st_mtime, path.name)):
        record = {}
        with saying(notes):
            record = files.read_json(path)
        seconds = number(record.get("seconds"))
        if seconds is not None:
            name = cli.short(path.stem.removeprefix("run_all_").replace("_", " "), 40)
            stages.append({"name": name, "seconds": seconds, "mib": number(record.get("peak_mib"))})
    return stages


def plain(values):
    """[name, words] of settings for people: of paths the last name, of hashes those of weights."""
    rows = []
    for name, value in values.items():
        if isinstance(value, str):
            value = re.split(r"[/\\]", value.rstrip("/\\"))[-1]
            if re.fullmatch(r"[0-9a-f]{64}", value):
                value = value[:12] if name in ("weights", "base") else ""
        if isinstance(value, (str, int, float)) and value != "":
            rows.append([cli.short(name, 60).replace("_", " "), cli.short(value, 80)])
    return rows


def read_settings(render, output, run, notes):
    """[title, rows] of a render, an output (None if there is none) and finetuning."""
    groups = []
    for title, path in (("Renders", render), ("Outputs", output)):
        made_of = video.made_of(path) if path else None
        if made_of:
            groups.append([title, plain(made_of | member(made_of, "settings"))])
    if run and (run / "settings.json").is_file():
        with saying(notes):
            groups.append(["Finetuning", plain(files.read_json(run / "settings.json"))])
    return groups


def versions(root):
    """The versions of what makes the page, in one line; root: of this program."""
    words = [f"python {platform.python_version()}"]
    for name in ("torch", "diffusers", "numpy", "av"):
        try:
            words.append(f"{name} {importlib.metadata.version(name)}")
        except importlib.metadata.PackageNotFoundError:
            continue
    command = ["git", "describe", "--always", "--dirty", "--tags"]
    try:
        said = subprocess.run(command, cwd=root, capture_output=True, text=True, timeout=20)
        if said.returncode == 0:
            words.append(f"CogNVS {cli.short(said.stdout, 60)}")
    except (OSError, subprocess.SubprocessError):  # no git
        pass
    return " · ".join(words)
