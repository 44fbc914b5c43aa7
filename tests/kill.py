"""Kill the programs at random moments, start them again, and compare with no interruption.

    python tests/kill.py --kills 60 --seed 0

Only the process that a user sees is killed, by SIGKILL, up to five times before it may end. After
each kill nothing that it started may run on, and every file under a final name must be whole. When
the same command has ended, all files must be those of a run that nobody killed, and no other file
may be left. A line a fault, then a table; exit code 1 if there was a fault.
"""

import argparse
import csv
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

import cv2
import numpy as np
import psutil
import torch
from safetensors.torch import load_file
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from conftest import ROOT, call

from finetune import checkpoint
from utils import cli, pipeline, video

FRAMES, HEIGHT, WIDTH = 17, 32, 48
RENDERS = 16  # that data_gen makes
SIZE = ("--frames", FRAMES, "--height", HEIGHT, "--width", WIDTH)
UNFINISHED = (".part", ".lock", ".old")  # endings of names that are not final
FROM = 0.3  # share of a run's duration before which nobody kills: imports
ORPHANS = 5  # seconds in which all that a killed process started must end
LIMIT = 600  # seconds of a start that is not killed
COUNTS = ("kills", "survived", "lives", "faults")


# ---- the programs --------------------------------------------------------------------------------


def data_gen(folder):
    return [sys.executable, "data_gen.py", "--data_path", folder / "room", "--mode", "train",
            "--num_train_render", RENDERS, "--device", "cpu"]


def demo(folder):
    return [sys.executable, "demo.py", "--model_path", folder / "model/base", "--cognvs_ckpt_path",
            folder / "model/cognvs_ckpt_inpaint", "--data_path", folder / "room", "--mp4_name",
            "eval_render*.mp4", "--num_inference_steps", 1, "--compare", "--device", "cpu"]


def finetune(folder, memory):
    states = checkpoint.list_states(folder / "out")
    return ["sh", "finetune/finetune_cognvs.sh", "--memory", memory, "--model_path",
            folder / "model/base", "--transformer_id", folder / "model/cognvs_ckpt_inpaint",
            "--base_dir_input", folder / "room", "--output_dir", folder / "out",
            "--train_epochs", 4, "--checkpointing_steps", 1, "--learning_rate", "1e-3",
            "--resume_from_checkpoint", "latest" if states else ""]


def single(folder):
    return finetune(folder, "single")


def zero2(folder):
    return finetune(folder, "zero2")


def process_ckpts(folder):
    return ["sh", "toolbox/process_ckpts.sh", *sorted((folder / "runs").iterdir())]


def run_all(folder):
    return ["sh", "toolbox/run_all.sh", "--data_path", folder / "room", "--trajs", folder / "trajs",
            "--model_path", folder / "model/base", "--transformer_id",
            folder / "model/cognvs_ckpt_inpaint", "--output_dir", folder / "out",
            "--num_train_render", 2, "--memory", "zero2", "--num_inference_steps", 1,
            "--train_epochs", 2]


PROGRAMS = {"data_gen": data_gen, "demo": demo, "single": single, "zero2": zero2,
            "process_ckpts": process_ckpts, "run_all": run_all}


def start(command, folder, log):
    """Start a command as the first process of a session; what it prints is added to `log`."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = os.environ | {"PATH": path, "TMPDIR": str(folder / "tmp"), "HF_HUB_OFFLINE": "1",
                                "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "",
                                "SHARD_SIZE": "50KB"}
    with open(log, "a") as file:
        return subprocess.Popen(list(map(str, command)), cwd=ROOT, env=environment, stdout=file,
                                stderr=file, stdin=subprocess.DEVNULL, start_new_session=True,
                                preexec_fn=cli.end_with_parent)


def make_inputs(folder):
    """What all programs begin with: model, room with pairs and renders, trajs, runs, tmp."""
    folder.mkdir(parents=True)
    room = ("--data_path", folder / "room", "--device", "cpu")
    steps = (
        ("toolbox.small_model.make_tiny_checkpoint", "--output_dir", folder / "model", *SIZE),
        ("toolbox.synthetic.make_synthetic_sequence", "--output_dir", folder / "room", *SIZE),
        ("data_gen", *room, "--mode", "train", "--num_train_render", 2),
        ("data_gen", *room, "--mode", "eval", "--trajs", "orbit_left:5,dolly_in:0.1"),
    )
    for command in steps:
        assert call(*command) == 0
    (folder / "trajs").mkdir()
    (folder / "trajs/path.txt").write_text("0 3\n0 0\n0 0\n")
    (folder / "tmp").mkdir()
    make_states(folder)


def make_states(folder):
    """Runs as the published trainer leaves them, for process_ckpts.sh: runs/a and runs/b."""
    weights = folder / "model/cognvs_ckpt_inpaint"
    for name in "ab":
        state = folder / "runs" / name / "checkpoint-200"
        (state / "pytorch_model").mkdir(parents=True)
        (state / "latest").write_text("pytorch_model")
        shutil.copy(weights / "config.json", state)
        tensors = {}
        for file in weights.glob("*.safetensors"):
            tensors |= load_file(file)
        torch.save({"module": tensors}, state / "pytorch_model/mp_rank_00_model_states.pt")


def fresh(inputs, folder, program):
    """A new folder with the inputs, at the same place as the last one."""
    shutil.rmtree(folder, ignore_errors=True)
    made_here = {"data_gen": ["train_*", "eval_*"], "run_all": ["train_*", "eval_*"]}
    skip = shutil.ignore_patterns(*made_here.get(program, []))
    shutil.copytree(inputs, folder, symlinks=True, ignore=skip)


# ---- what is there -------------------------------------------------------------------------------


def final_files(folder):
    """The files under final names, in order."""
    found = []
    for path in sorted(folder.rglob("*")):
        names = path.relative_to(folder).parts
        if path.is_file() and not any(name.endswith(UNFINISHED) for name in names):
            found.append(path)
    return found


def content(path):
    """What a file says, as something to compare; an exception if it is not whole.

    Times are left out, and curves and states of training count by being there and readable.
    """
    if path.suffix == ".mp4":
        frames = video.read_video(path)
        if len(frames) != FRAMES:
            raise ValueError(f"{len(frames)} frames, expected {FRAMES}")
        return video.probe(path), frames.tobytes(), video.made_of(path)
    if path.suffix in (".npz", ".npy"):
        arrays = np.load(path)
        arrays = dict(arrays) if path.suffix == ".npz" else {"": arrays}
        return {name: array.tobytes() for name, array in arrays.items()}
    if path.suffix == ".safetensors":
        return {name: tensor.view(torch.uint8).numpy().tobytes() if tensor.ndim else tensor.item()
                for name, tensor in load_file(path).items()}
    if path.suffix in (".pt", ".pkl", ".bin"):
        torch.load(path, weights_only=False, map_location="cpu")  # made here
        return "state"
    if path.suffix == ".png":
        if cv2.imread(str(path)) is None:
            raise ValueError("no picture")
        return "picture"
    return text_content(path)


def text_content(path):
    """The same of JSON, CSV and all else."""
    if path.suffix == ".json":
        value = json.loads(path.read_text())
        if path.name == "settings.json":
            value.pop("resume_from_checkpoint", None)
        return value
    if path.suffix == ".csv":
        with open(path, newline="") as file:
            rows = list(csv.DictReader(file, strict=True))
        for row in rows:
            row.pop("seconds", None)
            if None in row or None in row.values():
                raise ValueError(f"a row is not whole: {row}")
        return rows
    return path.read_bytes()


def half_files(folder):
    """A line on each file or folder under a final name that is not whole."""
    found = []
    for path in final_files(folder):
        try:
            content(path)
        except Exception as error:  # whatever its reader raises
            found.append(f"{path.relative_to(folder)} is not whole: {cli.short(error)}")
    for path in sorted(folder.rglob("my_checkpoint-*_transformer")):
        try:
            pipeline.check_weights(pipeline.CogVideoXTransformer3DModel, path)
        except cli.InputError as error:
            found.append(cli.short(error))
    for path in checkpoint.list_states(folder / "out").values():
        if not (path / "latest").is_file() and not checkpoint.usable(path):
            found.append(f"{path.name} is there without its weights")
    return found


def snapshot(folder):
    """{path: content} of all files; of unfinished ones the name alone."""
    found = {}
    final = set(final_files(folder))
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            found[str(path.relative_to(folder))] = content(path) if path in final else None
    return found


def differences(ours, reference):
    """A line on each file that is missing, left over or of another content."""
    lines = []
    for name in sorted(ours.keys() | reference.keys()):
        if name not in ours:
            lines.append(f"{name} is missing")
        elif name not in reference:
            lines.append(f"{name} is left over")
        elif ours[name] != reference[name]:
            lines.append(f"{name} is not as without interruption")
    return lines


# ---- killing -------------------------------------------------------------------------------------


@dataclass
class Case:
    """A program to kill: where it works, and what it makes when nobody kills it, in how long."""

    name: str
    inputs: Path
    folder: Path
    seconds: float = 0
    reference: dict = field(default_factory=dict)
    counts: dict = field(default_factory=lambda: dict.fromkeys(COUNTS, 0))

    @property
    def log(self):
        return self.folder.with_suffix(".log")

    def start(self):
        return start(PROGRAMS[self.name](self.folder), self.folder, self.log)

    def measure(self):
        """One run that nobody kills."""
        fresh(self.inputs, self.folder, self.name)
        began = time.monotonic()
        code = self.start().wait(LIMIT)
        self.seconds = time.monotonic() - began
        assert code == 0, self.log.read_text()
        self.reference = snapshot(self.folder)


def moment(rng, seconds):
    """When to kill, in seconds: half of the draws are in the last third, where files are written"""
    low = 2 / 3 if rng.random() < 0.5 else FROM
    return rng.uniform(low, 1) * seconds


def kill(process):
    """SIGKILL to a process alone; a line on each one that it had started and that lives on."""
    try:
        children = psutil.Process(process.pid).children(recursive=True)
    except psutil.NoSuchProcess:
        children = []
    process.kill()
    process.wait()
    _, alive = psutil.wait_procs(children, ORPHANS)
    lines = []
    for child in alive:
        if child.is_running() and child.status() != psutil.STATUS_ZOMBIE:
            lines.append(f"process {child.pid} lives on: {cli.short(' '.join(child.cmdline()))}")
            child.kill()
    return lines


def live(case, rng, kills):
    """Start, kill at most so often, and let it end; (kills made, faults as lines)."""
    fresh(case.inputs, case.folder, case.name)
    faults = []
    for made in range(kills):
        process = case.start()
        after = moment(rng, case.seconds)
        try:
            code = process.wait(after)
        except subprocess.TimeoutExpired:
            found = [*kill(process), *half_files(case.folder)]
            faults += [f"killed after {after:.2f} s: {line}" for line in found]
            continue
        return made, [*faults, *ended(case, code)]
    return kills, [*faults, *ended(case, case.start().wait(LIMIT))]


def ended(case, code):
    """The faults of what a life left."""
    if code:
        said = cli.short(case.log.read_text()[-300:], 300)
        return [f"exit code {code} at the next start: {said}"]
    return differences(snapshot(case.folder), case.reference)


def kill_all(cases, kills, seed):
    """Kill the programs in turns; what happened is added to their counts."""
    rng = random.Random(seed)
    with tqdm(total=kills, unit="kill") as bar:
        life = 0
        while bar.n < kills:
            case = cases[life % len(cases)]
            before = rng.getrandbits(32)
            made, faults = live(case, random.Random(before), min(rng.randint(1, 5), kills - bar.n))
            for line in faults:
                tqdm.write(f"{case.name}, life {life} of --seed {seed}: {line}", file=sys.stderr)
            add(case.counts, made, faults)
            bar.update(made)
            life += 1


def add(counts, made, faults):
    """Count a life: its kills are survived if it shows no fault."""
    counts["lives"] += 1
    counts["kills"] += made
    counts["survived"] += 0 if faults else made
    counts["faults"] += len(faults)


# ---- the run -------------------------------------------------------------------------------------


def parse_args():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=cli.HelpFormatter)
    add_flag = parser.add_argument
    add_flag("--kills", type=int, default=60, help="of all programs together")
    add_flag("--seed", type=int, default=0, help="of the moments")
    add_flag("--only", nargs="+", choices=PROGRAMS, default=list(PROGRAMS), help="programs to kill")
    add_flag("--folder", type=Path, help="to work in, new or empty; a temporary one by default")
    return parser.parse_args()


def run(folder, names, kills, seed):
    """Kill programs in a folder; their Cases."""
    make_inputs(folder / "inputs")
    cases = []
    for name in names:
        case = Case(name, folder / "inputs", folder / name)
        case.measure()
        cases.append(case)
        print(f"{name}: {case.seconds:.1f} s when nobody kills it", flush=True)
    kill_all(cases, kills, seed)
    return cases


def main():
    args = parse_args()
    if args.folder and args.folder.exists() and any(args.folder.iterdir()):
        raise cli.InputError(f"--folder {args.folder}: is not empty; give a new one")
    with tempfile.TemporaryDirectory(prefix="kill_") as folder:
        cases = run((args.folder or Path(folder)).resolve(), args.only, args.kills, args.seed)
    print("".join(f"{word:>15}" for word in ("program", *COUNTS)))
    for case in cases:
        print(f"{case.name:>15}" + "".join(f"{case.counts[name]:15}" for name in COUNTS))
    if any(case.counts["faults"] for case in cases):
        sys.exit(1)


if __name__ == "__main__":
    cli.run(main)
