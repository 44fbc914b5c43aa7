"""What fits on this machine: memory modes of finetuning, placements of demo.py, disk."""

import os
import re
import shutil
from pathlib import Path
from types import SimpleNamespace

import psutil
import torch

from finetune import memory, settings
from toolbox.small_model import make_tiny_checkpoint
from utils import cogvideox, devices, pipeline

ROOT = Path(__file__).resolve().parents[2]
# Of the full-size model on one H100 80 GB, from benchmarks.md: a step of training, and a clip of 50
# denoising steps. Nothing is foretold for other machines and models.
STEP = {
    ("zero2", "sft"): "4.9 s a step, on two",
    ("zero2_offload", "sft"): "9.7 s a step",
    ("single", "sft"): "4.1 s a step",
    ("single_fused", "sft"): "4.0 s a step",
    ("single", "lora"): "3.7 s a step",
}
CLIP = {
    ("gpu", False): "45 s a clip; --compile 37, --compile --fast 14",
    ("offload", False): "53 s a clip",
    ("low", True): "77 s a clip",
}
SIZES = ("num_layers", "num_attention_heads", "sample_frames", "sample_height", "sample_width")


def look(report, data_path, configs, count):
    """Say what fits beside what is free. configs: of (transformer, VAE), None for the full size.

    count: of GPUs.
    """
    usual = make_tiny_checkpoint.configs("5b")[:2]
    configs = configs or usual
    full = all(configs[0][name] == usual[0][name] for name in SIZES)
    model = "the full-size model" if full else "these weights"
    free = psutil.virtual_memory().available
    report.title(f"finetuning {model}, by the settings in finetune_cognvs.sh; host memory free: "
                 f"{gib(free)}")
    report.check("finetuning", finetuning, report, configs, full, count, free)
    report.title(f"demo.py --memory, {model}")
    report.check("demo.py", inference, report, configs, full, count, free)
    report.title("disk")
    report.check("disk", disk, report, data_path, configs)


def gib(size):
    return f"{size / memory.GIB:.1f} GiB" if size > memory.GIB / 10 else f"{size / 2**20:.0f} MiB"


def row(report, name, fits, needs, took):
    took = f"on an H100 {took}" if took else ""
    report.line(name, f"{'fits' if fits else 'does not fit':13} {needs:44} {took}".rstrip())


def script_settings(*flags):
    """The settings that finetune_cognvs.sh holds, as train.py takes them, and other flags."""
    text = (ROOT / "finetune/finetune_cognvs.sh").read_text()
    held = dict(re.findall(r'^(\w+)="?([^"#\s]*)', text, re.M))
    argv = []
    for table in (settings.PATHS, settings.NUMBERS, settings.SWITCHES, settings.CHOICES):
        argv += [f"--{name}={held[name]}" for name, *_ in table]
    return settings.make_parser().parse_args([*argv, *flags])


def finetuning(report, configs, full, count, left):
    """A row on each memory mode. left: free bytes of host memory."""
    args = script_settings()
    free = [memory.free(args, number) for number in range(count)]
    for (args.memory, args.training_type), took in STEP.items():
        used = free if args.memory.startswith("zero2") else free[:1]
        processes = max(1, len(used))
        need, host = memory.needs(args, settings.Launch(processes), config=configs[0])
        host += processes * (memory.PROCESS if count else need)
        each = f"{gib(need)} of {'each' if processes > 1 else 'the'} GPU, " if count else ""
        fits = host <= left and need <= min(used, default=need)
        row(report, f"{args.memory} {args.training_type}", fits, f"{each}{gib(host)} of the host",
            took if full and count else "")


def inference(report, configs, full, count, left):
    """A row on each placement on the first GPU, or on the CPU. left: free bytes of host memory."""
    device = torch.device("cuda:0" if count else "cpu")
    dtype = pipeline.pick_dtype("auto", device)
    pipe = stand_in(configs, dtype)
    host = devices.size(pipe.transformer) + devices.size(pipe.vae)
    if not count:
        name = str(dtype).removeprefix("torch.")
        row(report, "cpu", host <= left, f"{gib(host)} of the host in {name}, and its work", "")
        if full:
            report.line("", "nothing was measured without a GPU; expect hours a clip")
        return
    free = devices.MARGIN * torch.cuda.mem_get_info(device)[0]
    auto = devices.choose(pipe, devices.PLANS, free)
    for plan in devices.PLANS:
        need = devices.need(pipe, *plan)
        name = f"{plan[0]}{', tiled' * plan[1]}{' *' * (plan == auto)}"
        row(report, name, need <= free and host <= left,
            f"{gib(need)} of the GPU, {gib(host)} of the host", CLIP.get(plan, "") if full else "")
    report.line("", "tiled: the VAE; * is what --memory auto takes")


def stand_in(configs, dtype):
    """What devices.need asks of a pipeline, without its numbers."""
    with torch.device("meta"):
        transformer = pipeline.CogVideoXTransformer3DModel.from_config(configs[0])
        vae = pipeline.AutoencoderKLCogVideoX.from_config(configs[1])
    for model in (transformer, vae):
        torch.nn.Module.to(model, dtype)  # diffusers' own speaks of modules to keep in float32
    shape = cogvideox.clip_shape(transformer.config, vae.config)
    return SimpleNamespace(transformer=transformer, vae=vae, clip_shape=shape, dtype=dtype)


def disk(report, data_path, configs):
    """Say what is free where outputs go, and what a checkpoint takes."""
    for name, folder in (("checkpoints", ROOT / "checkpoints"), ("sequence", data_path)):
        if folder and folder.is_dir():
            shut = "" if os.access(folder, os.W_OK) else "; this user may not write there"
            report.line(name, f"{gib(shutil.disk_usage(folder).free)} free{shut}")
    size = devices.size(stand_in(configs, torch.bfloat16).transformer)
    report.line("a checkpoint", f"weights {gib(size)}; state {gib(1.03 * size)}, with zero2 "
                f"{gib(7 * size)}; twice that while the next one is written")
    report.line("to download", "the full-size base 10 GB, its weights 11 to 22 GB")
