"""From a sequence folder, a base and inpainting weights to finished videos, in seven stages.

    bash toolbox/run_all.sh --data_path demo_data/bear --model_path checkpoints/CogVideoX-5b-I2V \\
        --transformer_id checkpoints/cognvs_ckpt_inpaint \\
        --output_dir checkpoints/cognvs_ckpt_finetuned_bear

With --video my.mp4 the folder, by default demo_data/my, is made first: its depth, focal length and
cameras by toolbox/geometry/estimate_geometry.py, with --depth_model or --depth_file.

The stages: training pairs, evaluation renders of the camera paths, finetuning, inference, videos
side by side, a score (score.py), and a page to look at, <data_path>/report/index.html. The videos
go to <data_path>/outputs/<name of output_dir>/.

A stage is skipped when its results are there and were made with the same settings from the same
inputs. Each stage writes these down beside its results, in run_all_<stage>.json, when it has ended.
Files that a stage made before and does not make any more are deleted.
"""

if __name__ == "__main__":
    import signal

    signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C during the imports shows no traceback

import argparse
import dataclasses
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from finetune import checkpoint
from utils import camera_paths, cli, files, pipeline, sequence
from utils.cli import InputError

ROOT = Path(__file__).resolve().parents[1]
SCRIPT = ROOT / "finetune" / "finetune_cognvs.sh"
PASSED_ON = ("train_epochs", "training_type", "learning_rate", "lr_scheduler", "rank", "lora_alpha")
GO_ON = "the same run_all.sh goes on where it stopped, within a finetuning too"
SCORE_STEPS = 10  # denoising steps of a score at most: it is of many clips, and compares
# Values in finetune_cognvs.sh that this program gives, or that leave the weights as they are.
NOT_COMPARED = (
    "model_path", "transformer_id", "output_dir", "base_dir_input", "total_samples",
    "resume_from_checkpoint", "checkpointing_steps", "checkpointing_limit", "evaluation_steps",
    "do_validation", "validation_steps", "validation_renders", "report_to", "gpu_memory",
    "compile", "gradient_checkpointing",
)


@dataclasses.dataclass
class Stage:
    """What a stage makes, and of what.

    made_of: {name: value of a setting or hash of an input}. results: the names of the files or
    folders that it makes in `folder`.
    """

    name: str
    folder: Path
    made_of: dict
    results: list

    @property
    def record(self):
        """The file that keeps made_of, and a hash of each result."""
        return self.folder / f"run_all_{self.name.replace(' ', '_')}.json"


def parse_args():
    parser = argparse.ArgumentParser(
        prog="run_all.sh", description=__doc__, formatter_class=cli.HelpFormatter)
    add = parser.add_argument
    add("--data_path", type=Path, help="sequence folder with gt_rgb.mp4, cam_info/")
    add("--video", type=Path, help="a bare video, of which that folder is made")
    add("--depth_model", help="for --video: a depth model's folder, or hub name with --download")
    add("--download", action="store_true", help="allow fetching --depth_model")
    add("--depth_file", type=Path, help="for --video: z-depth (N, h, w), npy, in place of a model")
    add("--model_path", type=Path, required=True, help="base model, CogVideoX-5b-I2V")
    add("--transformer_id", type=Path, required=True, help="CogNVS weights to start from")
    add("--output_dir", type=Path, required=True, help="where the finetuned weights go")
    add("--trajs", type=Path, default=ROOT / "trajs", help="folder of camera paths, .txt")
    add("--cameras", help="in place of --trajs: a camera file, or a quoted pattern of such files")
    add("--pivot", metavar="X,Y or DEPTH",
        help="what paths turn about, as data_gen.py takes it")
    add("--num_train_render", type=int, default=8, help="training pairs")
    add("--num_inference_steps", type=int, default=50)
    add("--no_composite", action="store_true",
        help="show the model's output alone, as published, without the known pixels of the render")
    add("--score", choices=("full", "quick", "no"), default="full", help="measure all paths with "
        "two seeds, one path with one seed, or nothing")
    add("--no_finetune", action="store_true", help="inpaint with the weights of --transformer_id")
    add("--num_processes", type=int,
        help="GPUs that finetune; without it all GPUs, or 2 processes on a machine without a GPU")
    add("--memory", help="of finetuning; without it single where there is one GPU, else zero2")
    for name in PASSED_ON:
        add(f"--{name}", type=int if name == "train_epochs" else str,
            help="of finetuning; without it the value in finetune_cognvs.sh")
    return parser.parse_args()


def complete(args):
    """Check the paths and make them absolute; choose memory and processes by the GPUs."""
    if args.data_path is None and args.video is None:
        raise InputError("give --data_path FOLDER, or --video FILE")
    if args.video and (args.depth_model is None) == (args.depth_file is None):
        raise InputError("--video: give --depth_model, such as a folder of Depth Anything V2 (see "
                         "toolbox/geometry/estimate_geometry.py --help), or --depth_file")
    if args.video is None and (args.depth_model or args.depth_file):
        raise InputError("--depth_model and --depth_file: only with --video")
    args.data_path = args.data_path or ROOT / "demo_data" / args.video.stem
    for name in ("data_path", "model_path", "transformer_id", "output_dir", "trajs", "video",
                 "depth_file"):
        if getattr(args, name):
            setattr(args, name, getattr(args, name).resolve())
    args.cameras = args.cameras and os.path.abspath(args.cameras)
    if args.depth_model and Path(args.depth_model).is_dir():
        args.depth_model = str(Path(args.depth_model).resolve())
    for name in ("video", "depth_file"):
        if getattr(args, name) and not getattr(args, name).is_file():
            raise InputError(f"--{name} {getattr(args, name)}: no such file")
    if not args.video and not (args.data_path / "gt_rgb.mp4").is_file():
        raise InputError(f"--data_path {args.data_path}: no gt_rgb.mp4 there; expected a sequence "
                         "folder")
    if args.pivot is not None:
        camera_paths.pivot_numbers(args.pivot)
    if args.cameras:
        camera_files(args)
    if not args.cameras and not any(args.trajs.glob("*.txt")):
        raise InputError(f"--trajs {args.trajs}: expected a folder of camera paths, .txt; "
                         "presets in words are for data_gen.py")
    pipeline.check_base(args.model_path)
    gpus = torch.cuda.device_count()
    args.memory = args.memory or ("single" if gpus == 1 else "zero2")
    if args.memory.startswith("single"):
        args.num_processes = 1
    args.num_processes = args.num_processes or gpus or 2
    args.outputs = args.data_path / "outputs" / args.output_dir.name


# Records


def hashes(folder, names):
    """{name: hash} of the files, or folders of weights, that are there."""
    found = {}
    for name in names:
        path = folder / name
        if path.exists():
            found[name] = pipeline.fingerprint(path) if path.is_dir() else cli.file_hash(path)
    return found


def read_record(stage):
    """{"made_of": ..., "results": ..., ...} as a stage wrote it, empty if it wrote none yet.

    Raises InputError if it is none: results outside of the folder are none of the stage's.
    """
    if not stage.record.is_file():
        return {"made_of": {}, "results": {}}
    record = files.read_json(stage.record)
    made_of, results = record.get("made_of"), record.get("results")
    if not isinstance(made_of, dict) or not isinstance(results, dict):
        fault = "without made_of and results"
    elif bad := [name for name in results
                 if not re.fullmatch(r"((cam_info|score|report)/)?\w[\w.-]{0,99}", name)]:
        fault = f"with the result {cli.short(bad[0], 80)!r}"
    elif not re.fullmatch(r"\d{1,9}", str(made_of.get("train_epochs", 0)), re.A):
        fault = f"with train_epochs {cli.short(made_of['train_epochs'], 80)!r}"
    else:
        return record
    raise InputError(f"{stage.record}: got a record {fault}; expected what run_all.sh wrote; "
                     "delete it, and the stage is made anew")


def write_record(stage, results, **measured):
    """Write the record beside its name and move it into place. results: {name: hash}.

    measured: what is kept beside, seconds and peak_mib of GPU memory.
    """
    stage.folder.mkdir(parents=True, exist_ok=True)
    record = {"made_of": stage.made_of, "results": results, **measured}
    with files.whole(stage.record) as part:
        part.write_text(json.dumps(record, indent=2) + "\n")


def is_done(stage):
    """Whether all results are there as the stage left them, made of the same."""
    there = hashes(stage.folder, stage.results)
    record = read_record(stage)
    same = record["made_of"] == stage.made_of and record["results"] == there
    return len(there) == len(stage.results) and same


def delete_surplus(stage):
    """Delete files that the stage made before, and that it will not make this time."""
    made = read_record(stage)["results"]
    for name, known in hashes(stage.folder, made).items():
        path = stage.folder / name
        if name not in stage.results and known == made[name] and path.is_file():
            path.unlink()
            print(f"deleted {path}: an earlier run made it, this one does not")


def perform(stage, make, table):
    """Call `make`, which returns GPU memory in MiB, unless the stage is done; fill in the table."""
    if is_done(stage):
        table.append(f"{stage.name:24} skipped: made before from the same inputs and settings")
        return
    print(f"== {stage.name}", flush=True)
    start = time.time()
    delete_surplus(stage)
    peak = make()
    seconds = time.time() - start
    results = hashes(stage.folder, stage.results)
    write_record(stage, results, seconds=round(seconds, 1), peak_mib=peak)
    memory = f"{peak} MiB on the fullest GPU" if peak else "no GPU"
    table.append(f"{stage.name:24} {seconds:5.0f} s, {memory}")


# Running


def gpu_memory():
    """Memory in use on the fullest GPU, MiB; 0 where there is none."""
    if not torch.cuda.device_count() or not shutil.which("nvidia-smi"):
        return 0
    query = ["nvidia-smi", "--query-gpu=memory.used", "--format=csv,noheader,nounits"]
    try:
        return max(map(int, subprocess.check_output(query, text=True).split()))
    except (ValueError, OSError, subprocess.SubprocessError):  # one look less is no reason to stop
        return 0


def run(*command, **environment):
    """Run a command to its end; returns the most GPU memory seen, MiB.

    A command that fails, which has said why, ends this program with the same exit code.
    """
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = os.environ | {"PATH": path} | environment
    process = subprocess.Popen(list(map(str, command)), cwd=ROOT, env=environment,
                               preexec_fn=cli.end_with_parent)
    peak = 0
    try:
        while process.poll() is None:
            peak = max(peak, gpu_memory())
            time.sleep(0.3)
    except (KeyboardInterrupt, cli.Interrupted) as stop:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        if stop.args == (signal.SIGTERM,):
            process.terminate()
        process.wait()  # Ctrl-C reached it too, and it may have something to save
        if isinstance(stop, cli.Interrupted):
            raise
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


# The stages


def numbered(pattern, count):
    return [pattern.format(i) for i in range(1, count + 1)]


def geometry_stage(args):
    """Stage of estimate_geometry.py: the sequence folder of --video."""
    made_of = {"video": cli.file_hash(args.video), "depth_model": args.depth_model}
    if args.depth_file:
        made_of["depth_file"] = cli.file_hash(args.depth_file)
    return Stage("geometry", args.data_path, made_of,
                 ["gt_rgb.mp4", sequence.DEPTH, sequence.INTRINSICS, sequence.C2WS])


def find_geometry(args, stage):
    """Make the folder; files are replaced only if an earlier start of this program made them."""
    there = hashes(stage.folder, stage.results)
    ours = there and there.items() <= read_record(stage)["results"].items()
    options = ["--overwrite"] if ours else []
    if args.depth_file:
        options += ["--depth_file", args.depth_file]
    else:
        options += ["--model_path", args.depth_model] + ["--download"] * args.download
    return run(sys.executable, "toolbox/geometry/estimate_geometry.py", "--video", args.video,
               "--output", args.data_path, *options)


def render_stage(args, name, kinds, made_of):
    """Stage of data_gen.py: renders with their masks and cameras. kinds: {train, val, eval: count}.
    """
    results = []
    for kind, count in kinds.items():
        for file in ("cameras{}.npz", "mask{}.mp4", "render{}.mp4"):
            results += numbered(f"{kind}_{file}", count)
    turn = turns_about(args, "eval" if "eval" in kinds else "train")
    return Stage(name, args.data_path, source(args) | turn | made_of, results)


def source(args):
    """{name: hash or setting} of what renders are made of, beside their paths."""
    return hashes(args.data_path, ["gt_rgb.mp4", sequence.DEPTH, sequence.INTRINSICS])


def turns_about(args, mode):
    """{"pivot": --pivot} where paths of a mode turn about it; those of --cameras do not."""
    is_used = args.pivot is not None and (mode == "train" or not args.cameras)
    return {"pivot": args.pivot} if is_used else {}


def camera_files(args):
    """The files of --cameras, in order of name."""
    return camera_paths.find_files("--cameras", args.cameras, "an npy, npz or json")


def evaluation_paths(args):
    """{name: hash} of the camera paths."""
    if args.cameras:
        files_there = enumerate(camera_files(args), 1)
        return {f"{number} {path.name}": cli.file_hash(path) for number, path in files_there}
    return hashes(args.trajs, sorted(path.name for path in args.trajs.glob("*.txt")))


def make_renders(args, mode, *options):
    if (args.data_path / sequence.INTRINSICS).is_file():
        options += ("--intrinsics_file", sequence.INTRINSICS)
    paths = ["--cameras", args.cameras] if args.cameras else ["--trajs", args.trajs]
    paths += [f"--pivot={pivot}" for pivot in turns_about(args, mode).values()]
    return run(sys.executable, "data_gen.py", "--data_path", args.data_path, "--mode", mode,
               *paths, *options)


def finetuning_stage(args):
    """Stage of finetune_cognvs.sh. The training pairs are known by what they are made of, to which
    the evaluation paths do not belong."""
    weights = pipeline.fingerprint(pipeline.find_weights(args.transformer_id))
    settings = {"num_processes": args.num_processes}
    for name, value in re.findall(r'^(\w+)="?([^"#\s$]+)"? *(?:#.*)?$', SCRIPT.read_text(), re.M):
        given = getattr(args, name, None)
        if name not in NOT_COMPARED:
            settings[name] = value if given is None else str(given)
    made_of = source(args) | turns_about(args, "train") | settings
    made_of["num_train_render"] = args.num_train_render
    made_of["transformer_id"] = weights
    made_of |= hashes(args.model_path, ["vae", "scheduler"])
    if args.memory.startswith("zero2"):
        made_of |= hashes(SCRIPT.parent, ["configs/zero2.json"])
    kind = "lora" if settings["training_type"] == "lora" else "transformer"
    result = f"my_checkpoint-{settings['train_epochs']}_{kind}"
    return Stage("finetuning", args.output_dir, made_of, [result])


def refuse_other_run(stage):
    """InputError if the folder holds a run made of something else; train_epochs may grow."""
    if not checkpoint.list_weights(stage.folder) and not checkpoint.list_states(stage.folder):
        return
    record = read_record(stage)
    before = record["made_of"]
    now = stage.made_of
    if not before:
        problem = "a run that run_all.sh did not begin"
    elif changed := differing(before | {"train_epochs": now["train_epochs"]}, now):
        problem = f"a run with another {' and '.join(changed)} (see {stage.record.name} there)"
    elif int(now["train_epochs"]) < int(before.get("train_epochs", 0)):
        problem = f"a run of more than --train_epochs {now['train_epochs']}"
    elif changed := differing(record["results"] | hashes(stage.folder, record["results"]),
                              record["results"]):
        problem = f"{' and '.join(changed)}, which was changed after it was made"
    else:
        return
    raise InputError(f"--output_dir {stage.folder}: holds {problem}; give another --output_dir, or "
                     "delete this one")


def differing(before, now):
    """The names whose values are not the same in two dicts."""
    return [name for name in before | now if before.get(name) != now.get(name)]


def finetune(args, stage):
    """Begin the training or go on with it."""
    write_record(stage, results={})  # for the next start to know what this one began
    if int(stage.made_of["train_epochs"]) in checkpoint.list_weights(args.output_dir):
        return 0  # the run before this one was stopped after its last checkpoint
    resume = "latest" if checkpoint.list_states(args.output_dir) else ""
    options = []
    for name in PASSED_ON:
        options += [f"--{name}", stage.made_of[name]]
    every = ",".join(map(str, range(torch.cuda.device_count())))
    visible = os.environ.get("CUDA_VISIBLE_DEVICES", every).split(",")[: args.num_processes]
    config = (SCRIPT.parent / "accelerate_config.yaml").read_text()
    for name, value in (("gpu_ids", "all"), ("num_processes", args.num_processes)):
        config = re.sub(f"^{name}:.*", f"{name}: {value}", config, flags=re.M)
    file = args.output_dir / "run_all_accelerate.yaml"  # a temporary one would outlive a kill
    file.write_text(config)
    return run("sh", SCRIPT, "--model_path", args.model_path, "--output_dir", args.output_dir,
               "--transformer_id", args.transformer_id, "--base_dir_input", args.data_path,
               "--memory", args.memory, "--total_samples", 0, "--resume_from_checkpoint", resume,
               *options, accelerate_config=str(file), CUDA_VISIBLE_DEVICES=",".join(visible))


def inference_stage(args, renders, weights):
    settings = {"num_inference_steps": args.num_inference_steps, "composite": not args.no_composite}
    made_of = renders.made_of | settings | {"weights": pipeline.fingerprint(weights)}
    made_of |= hashes(args.model_path, ["vae", "scheduler"])
    results = numbered("eval_render{}_out.mp4", len(renders.results) // 3)
    return Stage("inference", args.outputs, made_of, results)


def inpaint(args, weights):
    options = []
    if not args.no_composite:
        print("known pixels are kept from the render (--composite): the model works at one small "
              "size, and what it gives back for them is blurred; --no_composite shows that",
              flush=True)
        options.append("--composite")
    return run(sys.executable, "demo.py", "--model_path", args.model_path, "--cognvs_ckpt_path",
               weights, "--data_path", args.data_path, "--mp4_name", "eval_render[0-9]*.mp4",
               "--num_inference_steps", args.num_inference_steps, "--output_dir", args.outputs,
               *options)


def side_by_side_stage(args, inference):
    count = len(inference.results)
    made_of = inference.made_of | hashes(args.data_path, numbered("novel_gt{}.mp4", count))
    results = numbered("eval_render{}_side_by_side.mp4", count)
    return Stage("side by side", args.outputs, made_of, results)


def compare(args):
    return run(sys.executable, "toolbox/side_by_side.py", "--data_path", args.data_path,
               "--output_dir", args.outputs)


def score_stage(args, pairs, inference):
    """Stage of score.py: the weights before and after, and the outputs."""
    before = pipeline.fingerprint(pipeline.find_weights(args.transformer_id))
    made_of = pairs.made_of | inference.made_of | {"before": before, "score": args.score}
    made_of |= hashes(args.outputs, inference.results) | hashes(args.data_path, [sequence.C2WS])
    return Stage("score", args.outputs, made_of, ["score/score.json"])


def score(args, weights):
    options = ["--paths", 1, "--seeds", 42] if args.score == "quick" else []
    compared = [args.transformer_id] if args.no_finetune else [args.transformer_id, weights]
    return run(sys.executable, "toolbox/score.py", "--data_path", args.data_path, "--model_path",
               args.model_path, "--cognvs_ckpt_path", *compared, "--outputs", args.outputs,
               "--num_inference_steps", min(SCORE_STEPS, args.num_inference_steps), *options)


def report_stage(args, inference):
    made_of = hashes(args.outputs, [*inference.results, "score/score.json"]) | source(args)
    made_of |= hashes(args.data_path, [sequence.C2WS, sequence.VERDICT])
    made_of |= hashes(args.data_path, numbered("novel_gt{}.mp4", len(inference.results)))
    if not args.no_finetune:
        made_of |= hashes(args.output_dir, ["train_log.csv"])
    return Stage("report", args.data_path, made_of, ["report/index.html"])


def report(args):
    options = [] if args.no_finetune else ["--run", args.output_dir]
    return run(sys.executable, "toolbox/make_report.py", "--data_path", args.data_path,
               "--outputs", args.outputs, *options)


def main():
    args = parse_args()
    complete(args)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that run() ends what it started
    paths = evaluation_paths(args)
    count = args.num_train_render
    table = []
    if args.video:
        geometry = geometry_stage(args)
        perform(geometry, lambda: find_geometry(args, geometry), table)
    pairs = render_stage(args, "training pairs", {"train": count, "val": len(paths)},
                         {"num_train_render": count, **paths})
    renders = render_stage(args, "evaluation renders", {"eval": len(paths)}, paths)
    weights = pipeline.find_weights(args.transformer_id)
    if not args.no_finetune:
        training = finetuning_stage(args)
        refuse_other_run(training)

    perform(pairs, lambda: make_renders(args, "train", "--num_train_render", count), table)
    perform(renders, lambda: make_renders(args, "eval"), table)
    if not args.no_finetune:
        perform(training, lambda: finetune(args, training), table)
        weights = args.output_dir / training.results[0]
    inference = inference_stage(args, renders, weights)
    perform(inference, lambda: inpaint(args, weights), table)
    perform(side_by_side_stage(args, inference), lambda: compare(args), table)
    if args.score != "no":
        perform(score_stage(args, pairs, inference), lambda: score(args, weights), table)
    perform(report_stage(args, inference), lambda: report(args), table)
    table += [f"geometry: {doubt}" for doubt in sequence.doubts(args.data_path)]
    print("\n" + "\n".join(table + said_by_score(args)))
    print(f"\nLook at {args.data_path}/report/index.html, made of {args.outputs}/")


def said_by_score(args):
    """The verdicts of score.json, if there is one."""
    path = args.outputs / "score" / "score.json"
    said = files.read_json(path).get("verdict") if path.is_file() and args.score != "no" else []
    return [cli.short(sentence, 300) for sentence in said] if isinstance(said, list) else []


if __name__ == "__main__":
    cli.run(main, GO_ON)
