"""From a sequence folder, a base and inpainting weights to finished videos, in five stages.

    bash toolbox/run_all.sh --data_path demo_data/bear --model_path checkpoints/CogVideoX-5b-I2V \\
        --transformer_id checkpoints/cognvs_ckpt_inpaint \\
        --output_dir checkpoints/cognvs_ckpt_finetuned_bear

The stages: training pairs, evaluation renders of the camera paths, finetuning, inference, and
videos side by side. The videos go to <data_path>/outputs/<name of output_dir>/.

A stage is skipped when its results are there and were made with the same settings from the same
inputs. Each stage writes these down beside its results, in run_all_<stage>.json, when it has ended.
Files that a stage made before and does not make any more are deleted.
"""

import argparse
import dataclasses
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from finetune import checkpoint
from utils import cli, pipeline, sequence
from utils.cli import InputError

ROOT = Path(__file__).resolve().parents[1]
SCRIPT = ROOT / "finetune" / "finetune_cognvs.sh"
# Settings of finetune_cognvs.sh that are given by this program, or leave the weights as they are.
NOT_COMPARED = (
    "model_path", "transformer_id", "output_dir", "base_dir_input", "total_samples",
    "checkpointing_steps", "checkpointing_limit", "resume_from_checkpoint", "evaluation_steps",
    "do_validation", "validation_steps", "validation_renders", "report_to", "gpu_memory", "compile",
    "gradient_checkpointing",
)
PASSED_ON = ("train_epochs", "training_type", "learning_rate", "lr_scheduler", "rank", "lora_alpha")


@dataclasses.dataclass
class Stage:
    """What a stage makes, and from what.

    settings: {name: value}. inputs: {name: hash}. results: the files or folders that it makes.
    record: the file that keeps the settings and inputs with a hash of each result.
    """

    name: str
    record: Path
    settings: dict
    inputs: dict
    results: list


def parse_args():
    parser = argparse.ArgumentParser(
        prog="run_all.sh", description=__doc__, formatter_class=cli.HelpFormatter)
    add = parser.add_argument
    add("--data_path", type=Path, required=True, help="sequence folder with gt_rgb.mp4, cam_info/")
    add("--model_path", type=Path, required=True, help="base model, CogVideoX-5b-I2V")
    add("--transformer_id", type=Path, required=True, help="CogNVS weights to start from")
    add("--output_dir", type=Path, required=True, help="where the finetuned weights go")
    add("--trajs", type=Path, default=ROOT / "trajs", help="folder of camera paths, .txt")
    add("--num_train_render", type=int, default=8, help="training pairs")
    add("--num_inference_steps", type=int, default=50)
    add("--no_composite", action="store_true",
        help="show the model's output alone, as published, without the known pixels of the render")
    add("--num_processes", type=int,
        help="GPUs that finetune; without it all GPUs, or 2 processes on a machine without a GPU")
    add("--memory", help="of finetuning; without it single where there is one GPU, else zero2")
    for name in PASSED_ON:
        add(f"--{name}", type=int if name == "train_epochs" else str,
            help="of finetuning; without it the value in finetune_cognvs.sh")
    return parser.parse_args()


def complete(args):
    """Check the arguments, make paths absolute, and choose memory and processes by the GPUs."""
    for name in ("data_path", "model_path", "transformer_id", "output_dir", "trajs"):
        setattr(args, name, getattr(args, name).resolve())
    if not (args.data_path / "gt_rgb.mp4").is_file():
        raise InputError(f"--data_path {args.data_path}: no gt_rgb.mp4 there; expected a sequence "
                         "folder")
    if not any(args.trajs.glob("*.txt")):
        raise InputError(f"--trajs {args.trajs}: expected a folder of camera paths, .txt")
    if args.num_train_render < 1:
        raise InputError(f"--num_train_render {args.num_train_render}: expected at least 1")
    pipeline.check_base(args.model_path)
    gpus = torch.cuda.device_count()
    args.memory = args.memory or ("single" if gpus == 1 else "zero2")
    if args.memory.startswith("single"):
        args.num_processes = 1
    args.num_processes = args.num_processes or gpus or 2
    args.outputs = args.data_path / "outputs" / args.output_dir.name


# Records: what a result was made of


def identity(path):
    """A hash of a file, or of a folder of weights."""
    return pipeline.fingerprint(path) if path.is_dir() else cli.file_hash(path)


def identities(folder, names):
    """{name: hash} of the files or folders that are there."""
    found = {}
    for name in names:
        path = folder / name
        if path.exists():
            found[str(name)] = identity(path)
    return found


def read_record(stage):
    """The record of a stage; an empty one if it was not made yet."""
    if not stage.record.is_file():
        return {"settings": {}, "inputs": {}, "results": {}}
    try:
        return json.loads(stage.record.read_text())
    except ValueError as error:
        raise InputError(f"{stage.record}: no JSON ({error}); delete it") from error


def write_record(stage, results):
    """Write the record beside its name and move it into place. results: {name: hash}."""
    stage.record.parent.mkdir(parents=True, exist_ok=True)
    part = stage.record.with_name(f"{stage.record.name}.part")
    record = {"settings": stage.settings, "inputs": stage.inputs, "results": results}
    part.write_text(json.dumps(record, indent=2) + "\n")
    part.replace(stage.record)


def result_hashes(stage):
    return identities(stage.record.parent, [path.name for path in stage.results])


def is_done(stage):
    """Whether all results are there as the stage left them, made from the same."""
    hashes = result_hashes(stage)
    made = {"settings": stage.settings, "inputs": stage.inputs, "results": hashes}
    return len(hashes) == len(stage.results) and read_record(stage) == made


def delete_surplus(stage):
    """Delete files that the stage made before, and that it will not make this time."""
    wanted = {path.name for path in stage.results}
    for name, known in read_record(stage)["results"].items():
        path = stage.record.with_name(name)
        if name not in wanted and path.is_file() and identity(path) == known:
            path.unlink()
            print(f"deleted {path}: an earlier run made it, this one does not")


def refuse_foreign_renders(stage, mode):
    """InputError if there are renders beside those of the stage: the next stages would use them."""
    known = {path.name for path in stage.results} | set(read_record(stage)["results"])
    for path in sorted(stage.record.parent.glob(f"{mode}_render*.mp4")):
        if path.stem.removeprefix(f"{mode}_render").isdigit() and path.name not in known:
            raise InputError(f"{path}: expected {mode}_render1.mp4 to {stage.results[-1].stem} "
                             "alone, and this one would be used too; delete it or move it away")


# Running


def gpu_memory():
    """Memory in use on the fullest GPU, MiB; 0 where there is none."""
    if not torch.cuda.device_count() or not shutil.which("nvidia-smi"):
        return 0
    query = ["nvidia-smi", "--query-gpu=memory.used", "--format=csv,noheader,nounits"]
    return max(map(int, subprocess.check_output(query, text=True).split()))


def run(command, env=None):
    """Run a command to its end; returns the most GPU memory seen, MiB.

    A command that fails, which has said why, ends this program with the same exit code.
    """
    process = subprocess.Popen(list(map(str, command)), cwd=ROOT, env=env)
    peak = 0
    try:
        while process.poll() is None:
            peak = max(peak, gpu_memory())
            time.sleep(0.3)
    except KeyboardInterrupt:  # Ctrl-C reached the command too, which may have something to save
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        process.wait()
        sys.exit(130)
    finally:
        if process.poll() is None:
            process.terminate()
            process.wait()
    if process.returncode < 0:
        sys.exit(f"error: {command[1]} was ended by {signal.Signals(-process.returncode).name}")
    if process.returncode:
        sys.exit(process.returncode)
    return peak


def perform(stage, make, table):
    """Call `make`, which returns GPU memory in MiB, unless the stage is done; fill in the table."""
    if is_done(stage):
        table.append(f"{stage.name:24} skipped: made before from the same inputs and settings")
        return
    print(f"== {stage.name}", flush=True)
    start = time.time()
    delete_surplus(stage)
    peak = make()
    write_record(stage, result_hashes(stage))
    memory = f"{peak} MiB on the fullest GPU" if peak else "no GPU"
    table.append(f"{stage.name:24} {time.time() - start:5.0f} s, {memory}")


# The stages


def numbered(folder, pattern, count):
    """folder/pattern with the numbers 1 to count."""
    return [folder / pattern.format(i) for i in range(1, count + 1)]


def render_stage(args, name, mode, count, settings, inputs):
    """Stage of data_gen.py: `count` renders with their masks and cameras."""
    results = []
    for pattern in ("cameras{}.npz", "mask{}.mp4", "render{}.mp4"):
        results += numbered(args.data_path, f"{mode}_{pattern}", count)
    record = args.data_path / f"run_all_{mode}_renders.json"
    source = identities(args.data_path, ["gt_rgb.mp4", sequence.DEPTH, sequence.INTRINSICS])
    stage = Stage(name, record, settings, source | inputs, results)
    refuse_foreign_renders(stage, mode)
    return stage


def make_renders(args, mode):
    command = [sys.executable, "data_gen.py", "--data_path", args.data_path, "--mode", mode]
    if mode == "train":
        command += ["--num_train_render", args.num_train_render]
    else:
        command += ["--trajs", args.trajs]
    if (args.data_path / sequence.INTRINSICS).is_file():
        command += ["--intrinsics_file", sequence.INTRINSICS]
    return run(command)


def base_hashes(args):
    names = ("vae", "scheduler")
    return {f"base's {name}": pipeline.fingerprint(args.model_path / name) for name in names}


def finetuning_settings(args):
    """Every setting of finetune_cognvs.sh that has to do with the weights, as text."""
    settings = {}
    for name, value in re.findall(r'^(\w+)="?([^"#\s$]+)"? *(?:#.*)?$', SCRIPT.read_text(), re.M):
        if name not in NOT_COMPARED:
            settings[name] = value
    for name in PASSED_ON:
        if getattr(args, name) is not None:
            settings[name] = str(getattr(args, name))
    settings["memory"] = args.memory
    settings["num_processes"] = args.num_processes
    return settings


def finetuning_stage(args, pairs):
    """Stage of finetune_cognvs.sh. The training pairs are known by what they are made of."""
    settings = pairs.settings | finetuning_settings(args)
    weights = pipeline.find_weights(args.transformer_id)
    inputs = pairs.inputs | base_hashes(args) | {"transformer_id": pipeline.fingerprint(weights)}
    if args.memory.startswith("zero2"):
        inputs |= identities(SCRIPT.parent, ["configs/zero2.json"])
    kind = "lora" if settings["training_type"] == "lora" else "transformer"
    result = args.output_dir / f"my_checkpoint-{settings['train_epochs']}_{kind}"
    record = args.output_dir / "run_all_finetuning.json"
    return Stage("finetuning", record, settings, inputs, [result])


def refuse_other_run(output_dir, stage):
    """InputError if output_dir holds a run of other settings or inputs; train_epochs may grow."""
    if not checkpoint.list_weights(output_dir) and not checkpoint.list_states(output_dir):
        return
    what_to_do = "give another --output_dir, or delete this one"
    if not stage.record.is_file():
        raise InputError(f"--output_dir {output_dir}: holds a run that run_all.sh did not begin; "
                         f"{what_to_do}")
    begun = read_record(stage)
    before = begun["settings"] | begun["inputs"]
    now = stage.settings | stage.inputs
    changed = []
    for name in before | now:
        if before.get(name) != now.get(name) and name != "train_epochs":
            changed.append(name)
    if changed:
        raise InputError(f"--output_dir {output_dir}: holds a run with another "
                         f"{' and '.join(changed)} (see {stage.record.name} there); {what_to_do}")
    if int(now["train_epochs"]) < int(before["train_epochs"]):
        raise InputError(f"--train_epochs {now['train_epochs']}: {output_dir} holds a run of "
                         f"{before['train_epochs']}; expected at least as many, or {what_to_do}")
    there = identities(output_dir, begun["results"])
    for name, known in begun["results"].items():
        if there.get(name, known) != known:
            raise InputError(f"{output_dir / name}: was changed after it was made; {what_to_do}")


def accelerate_config(num_processes):
    """The text of accelerate_config.yaml for the first num_processes GPUs, or for the CPU."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")
    gpus = torch.cuda.device_count()
    if num_processes >= gpus:
        gpu_ids = "all"
    elif len(visible) >= gpus:
        gpu_ids = ",".join(visible[:num_processes])
    else:
        gpu_ids = ",".join(map(str, range(num_processes)))
    text = (SCRIPT.parent / "accelerate_config.yaml").read_text()
    text = re.sub("^gpu_ids:.*", f'gpu_ids: "{gpu_ids}"', text, flags=re.M)
    return re.sub("^num_processes:.*", f"num_processes: {num_processes}", text, flags=re.M)


def finetune(args, stage, begun):
    """Begin the training or go on with it. begun: the record of the stage until now."""
    steps = int(stage.settings["train_epochs"])
    if begun["settings"] == stage.settings and steps in checkpoint.list_weights(args.output_dir):
        return 0  # the run before this one was stopped after its last checkpoint
    write_record(stage, results={})  # for the next start to know what this one began
    resume = "latest" if checkpoint.list_states(args.output_dir) else ""
    command = ["sh", SCRIPT, "--model_path", args.model_path, "--output_dir", args.output_dir,
               "--transformer_id", args.transformer_id, "--base_dir_input", args.data_path,
               "--memory", args.memory, "--total_samples", 0, "--resume_from_checkpoint", resume]
    for name in PASSED_ON:
        command += [f"--{name}", stage.settings[name]]
    with tempfile.NamedTemporaryFile("w", suffix=".yaml") as file:
        file.write(accelerate_config(args.num_processes))
        file.flush()
        path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        return run(command, os.environ | {"accelerate_config": file.name, "PATH": path})


def inference_stage(args, renders, weights):
    settings = renders.settings | {
        "num_inference_steps": args.num_inference_steps, "composite": not args.no_composite}
    inputs = renders.inputs | base_hashes(args) | {"weights": pipeline.fingerprint(weights)}
    count = renders.settings["paths"]
    results = numbered(args.outputs, "eval_render{}_out.mp4", count)
    return Stage("inference", args.outputs / "run_all_inference.json", settings, inputs, results)


def inpaint(args, weights):
    command = [sys.executable, "demo.py", "--model_path", args.model_path, "--cognvs_ckpt_path",
               weights, "--data_path", args.data_path, "--mp4_name", "eval_render[0-9]*.mp4",
               "--num_inference_steps", args.num_inference_steps, "--output_dir", args.outputs]
    if not args.no_composite:
        print("known pixels are kept from the render (--composite): the model works at one small "
              "size, and what it gives back for them is blurred; --no_composite shows that",
              flush=True)
        command.append("--composite")
    return run(command)


def side_by_side_stage(args, inference):
    count = len(inference.results)
    truths = [path.name for path in numbered(args.data_path, "novel_gt{}.mp4", count)]
    inputs = inference.inputs | identities(args.data_path, truths)
    results = numbered(args.outputs, "eval_render{}_side_by_side.mp4", count)
    record = args.outputs / "run_all_side_by_side.json"
    return Stage("side by side", record, inference.settings, inputs, results)


def compare(args):
    return run([sys.executable, "toolbox/side_by_side.py", "--data_path", args.data_path,
                "--output_dir", args.outputs])


def main():
    args = parse_args()
    complete(args)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that run() ends what it started
    paths = identities(args.trajs, sorted(path.name for path in args.trajs.glob("*.txt")))
    pairs = render_stage(args, "training pairs", "train", args.num_train_render,
                         {"num_train_render": args.num_train_render}, {})
    renders = render_stage(args, "evaluation renders", "eval", len(paths),
                           {"paths": len(paths)}, paths)
    training = finetuning_stage(args, pairs)
    refuse_other_run(args.output_dir, training)
    begun = read_record(training)

    table = []
    perform(pairs, lambda: make_renders(args, "train"), table)
    perform(renders, lambda: make_renders(args, "eval"), table)
    perform(training, lambda: finetune(args, training, begun), table)
    weights = training.results[0]
    inference = inference_stage(args, renders, weights)
    perform(inference, lambda: inpaint(args, weights), table)
    perform(side_by_side_stage(args, inference), lambda: compare(args), table)
    print("\n" + "\n".join(table) + f"\n\nLook at {args.outputs}/")


if __name__ == "__main__":
    cli.run(main)
