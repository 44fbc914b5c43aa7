"""Test-time finetuning of the CogNVS transformer on one video's own training pairs, with DeepSpeed ZeRO-2.

    cd finetune && sh finetune_cognvs.sh

That script holds every setting and starts this program through accelerate, one process a GPU.
"""

import argparse
import csv
import json
import math
import os
import sys
import time
from pathlib import Path

import torch
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import checkpoint
import dataset
from loss import denoising_loss

from utils import cli, metrics, pipeline, video
from utils.cli import InputError

LOG_COLUMNS = ("step", "loss", "learning_rate", "gradient_norm", "seconds", "loss_of_each_rank")


def truth(text):
    if text.lower() not in ("true", "false"):
        raise argparse.ArgumentTypeError(f"got {text!r}; expected True or False")
    return text.lower() == "true"


def parse_args():
    """Every setting; all but the last are given by finetune_cognvs.sh, their one source."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("model_path", "transformer_id", "output_dir", "base_dir_input"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    for name in ("train_epochs", "checkpointing_steps", "checkpointing_limit", "validation_steps", "lr_warmup_steps",
                 "batch_size", "gradient_accumulation_steps", "seed"):
        parser.add_argument(f"--{name}", type=int, required=True)
    for name in ("learning_rate", "beta1", "beta2", "epsilon", "weight_decay", "max_grad_norm", "ema_decay"):
        parser.add_argument(f"--{name}", type=float, required=True)
    for name in ("do_validation", "gradient_checkpointing"):
        parser.add_argument(f"--{name}", type=truth, required=True)
    parser.add_argument("--lr_scheduler", choices=("constant", "linear", "cosine"), required=True)
    parser.add_argument("--resume_from_checkpoint", default="")
    parser.add_argument("--prepare_only", type=truth, default=False, help="check, embed the empty prompt, stop")
    return parser.parse_args()


def check(args):
    """Raise InputError for whatever can be known to be wrong before the models are loaded."""
    for name in ("train_epochs", "checkpointing_steps", "checkpointing_limit", "validation_steps", "batch_size",
                 "gradient_accumulation_steps"):
        if getattr(args, name) < 1:
            raise InputError(f"--{name} {getattr(args, name)}: expected at least 1")
    for name, good in (
        ("learning_rate", 0 < args.learning_rate < 1), ("beta1", 0 <= args.beta1 < 1), ("beta2", 0 <= args.beta2 < 1),
        ("epsilon", 0 < args.epsilon < 1), ("weight_decay", 0 <= args.weight_decay < 1),
        ("max_grad_norm", 0 < args.max_grad_norm < math.inf), ("lr_warmup_steps", args.lr_warmup_steps >= 0),
        ("ema_decay", 0 <= args.ema_decay < 1),
    ):  # fmt: skip
        if not good:
            raise InputError(f"--{name} {getattr(args, name)}: out of range; finetune_cognvs.sh holds the usual value")
    traced = dataset.first_scene(args.base_dir_input) is not None
    for name in ("model_path", "transformer_id") + (() if traced else ("base_dir_input",)):
        path = getattr(args, name)
        if not path.is_dir():
            raise InputError(f"--{name} {path}: no folder at {path.resolve()}; paths are relative to finetune/")
    pipeline.check_base(args.model_path)
    pipeline.find_weights(args.transformer_id)
    for sequence in () if traced else dataset.find_sequences(args.base_dir_input):
        dataset.find_pairs(sequence)
    if traced and args.do_validation:
        raise InputError("--do_validation True: ray-traced scenes have no renders to inpaint; give False")
    if args.output_dir.exists() and not args.output_dir.is_dir():
        raise InputError(f"--output_dir {args.output_dir}: is a file; expected a folder or a new name")
    step, resume = checkpoint.find_resume(args.output_dir, args.resume_from_checkpoint)
    if resume and args.ema_decay and not (resume / checkpoint.MEAN).is_dir():
        raise InputError(f"--ema_decay {args.ema_decay}: {resume} has no {checkpoint.MEAN} to go on from; give 0")
    if step >= args.train_epochs:
        raise InputError(f"--train_epochs {args.train_epochs}: the checkpoint to go on from has {step} steps already")


def prepare(args):
    """What is done once, before the processes start: the checks, and the embedding of the empty prompt."""
    check(args)
    config = json.loads((pipeline.find_weights(args.transformer_id) / "config.json").read_text())
    pipeline.empty_prompt(args.model_path, config["max_text_seq_length"], torch.bfloat16)


def make_accelerator(args):
    """accelerate's handle on the processes; the DeepSpeed JSON says precision and ZeRO stage, `args` all the rest."""
    from accelerate import Accelerator
    from accelerate.utils import InitProcessGroupKwargs

    kwargs = []
    if not torch.cuda.is_available():
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
        import deepspeed

        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False  # would be compiled on first use
        kwargs = [InitProcessGroupKwargs(backend="gloo")]
    accelerator = Accelerator(kwargs_handlers=kwargs, gradient_accumulation_steps=args.gradient_accumulation_steps)
    plugin = accelerator.state.deepspeed_plugin
    if plugin is None:
        raise InputError("accelerate was started without DeepSpeed; start with finetune_cognvs.sh and distributed_type "
                         "DEEPSPEED in accelerate_config.yaml")
    config = plugin.deepspeed_config
    if not config.get("bf16", {}).get("enabled") or "optimizer" in config or "scheduler" in config:
        raise InputError("the DeepSpeed JSON must enable bf16 and name no optimizer or scheduler: those are set in "
                         "finetune_cognvs.sh")
    config |= {"train_micro_batch_size_per_gpu": args.batch_size, "gradient_clipping": args.max_grad_norm,
               "gradient_accumulation_steps": args.gradient_accumulation_steps}
    return accelerator


def learning_rate(args, step):
    """Of optimiser step `step`, counted from 0: a pure function, so that a resumed run goes on exactly."""
    warmup = min(1.0, (step + 1) / (args.lr_warmup_steps + 1))
    left = 1 - max(0, step - args.lr_warmup_steps) / max(1, args.train_epochs - args.lr_warmup_steps)
    shape = {"constant": 1, "linear": left, "cosine": (1 - math.cos(math.pi * left)) / 2}[args.lr_scheduler]
    return args.learning_rate * warmup * shape


def open_log(path, step):
    """A CSV writer that goes on after the rows of the first `step` steps."""
    rows = []
    if step and path.is_file():
        with open(path, newline="") as file:
            rows = [row for row in csv.reader(file) if row and row[0].isdigit() and int(row[0]) <= step]
    file = open(path, "w", newline="", buffering=1)
    writer = csv.writer(file)
    writer.writerows([LOG_COLUMNS, *rows])
    return writer


def validate(args, pipe, pairs, embedding, step, device):
    """Inpaint the first training render, write render | output | target side by side, and return the PSNR."""
    target, renders = pairs.sequences[0]
    render, truth = (pairs.clip(path, 0, device, torch.float32)[0] / 2 + 0.5 for path in (renders[0], target))
    out = pipe.inpaint(render, embedding, 50, torch.Generator().manual_seed(args.seed)).to(device)
    row = (torch.cat([render, out, truth], 3) * 255).round().byte().permute(0, 2, 3, 1).cpu().numpy()
    video.write_video(args.output_dir / "validation" / f"step-{step}.mp4", row, video.probe(target))
    return metrics.psnr(out.cpu().numpy(), truth.cpu().numpy())


def save_settings(args, accelerator):
    """settings.json beside the weights: every argument, the DeepSpeed configuration and the number of processes."""
    args.output_dir.mkdir(parents=True, exist_ok=True)
    settings = {name: str(value) if isinstance(value, Path) else value for name, value in vars(args).items()}
    settings["num_processes"] = accelerator.num_processes
    settings["deepspeed"] = accelerator.state.deepspeed_plugin.deepspeed_config
    (args.output_dir / "settings.json").write_text(json.dumps(settings, indent=2, default=str) + "\n")


def optimiser_step(args, accelerator, model, optimizer, pipe, pairs, embedding, step):
    """One optimiser step; returns the losses of all ranks' samples and the gradient norm before clipping."""
    for group in optimizer.param_groups:
        group["lr"] = learning_rate(args, step)
    rotary, losses = pipe.rotary_embedding(accelerator.device), []
    for micro in range(args.gradient_accumulation_steps):
        number = step * args.gradient_accumulation_steps + micro
        with accelerator.accumulate(model):
            batch = dataset.training_batch(pipe, pairs, args.seed, accelerator.process_index, number, args.batch_size,
                                           accelerator.device, embedding.dtype)
            loss = denoising_loss(model, pipe.scheduler, *batch, embedding.expand(args.batch_size, -1, -1), rotary)
            accelerator.backward(loss)  # under DeepSpeed this steps the optimizer too
        losses.append(loss.detach())
    return accelerator.gather(torch.stack(losses).mean()[None]).tolist(), float(model.get_global_grad_norm())


def train(args):
    accelerator = make_accelerator(args)
    main_process, device = accelerator.is_main_process, accelerator.device
    start, resume = checkpoint.find_resume(args.output_dir, args.resume_from_checkpoint)
    pipe = pipeline.load_pipeline(args.model_path, pipeline.find_weights(args.transformer_id), torch.bfloat16, device)
    pipe.set_progress_bar_config(disable=True)
    if device.type == "cuda" and torch.cuda.get_device_properties(device).total_memory < 60 * 2**30:
        pipe.vae.enable_tiling()  # the training state is still to come
    embedding, _ = pipeline.empty_prompt(args.model_path, pipe.transformer.config.max_text_seq_length, torch.bfloat16)
    embedding = embedding.to(device)
    pairs = dataset.open_pairs(args.base_dir_input, args.model_path, pipe.clip_shape, accelerator.process_index, device)

    transformer = pipe.transformer.requires_grad_(True).train()
    if args.gradient_checkpointing:
        transformer.enable_gradient_checkpointing()
    mean = None
    if args.ema_decay and main_process:
        mean = checkpoint.make_mean(transformer, args.ema_decay, start, resume)
    optimizer = torch.optim.AdamW(transformer.parameters(), args.learning_rate, (args.beta1, args.beta2), args.epsilon,
                                  args.weight_decay)
    model, optimizer = accelerator.prepare(transformer, optimizer)
    if resume:
        accelerator.load_state(str(resume))
    if main_process:
        save_settings(args, accelerator)
        log = open_log(args.output_dir / "train_log.csv", start)
        print(f"{args.base_dir_input}: {pairs}, {accelerator.num_processes} processes on "
              f"{device.type}, steps {start} to {args.train_epochs}")

    progress = tqdm(range(start, args.train_epochs), initial=start, total=args.train_epochs, unit="step",
                    desc="finetuning", disable=not main_process)
    for step in progress:
        began = time.time()
        losses, norm = optimiser_step(args, accelerator, model, optimizer, pipe, pairs, embedding, step)
        if mean:
            mean.step(transformer.parameters())
        done, loss, lr = step + 1, sum(losses) / len(losses), learning_rate(args, step)
        progress.set_postfix(loss=f"{loss:.4f}", lr=f"{lr:.2e}", grad_norm=f"{norm:.3f}")
        if main_process:
            seconds = f"{time.time() - began:.3f}"
            log.writerow([done, repr(loss), repr(lr), repr(norm), seconds, " ".join(map(repr, losses))])
        if args.do_validation and done % args.validation_steps == 0:
            if main_process:
                progress.write(f"step {done}: PSNR {validate(args, pipe, pairs, embedding, done, device):.2f} dB")
            accelerator.wait_for_everyone()
        if done % args.checkpointing_steps == 0 or done == args.train_epochs:
            folder = checkpoint.save(accelerator, model, args.output_dir, done, args.checkpointing_limit, mean)
            if main_process:
                progress.write(f"wrote {folder}")
    if main_process:
        print(f"finished{cli.peak_memory(device)}; log in {args.output_dir / 'train_log.csv'}; next: process_ckpts.sh")
    accelerator.end_training()


def main():
    args = parse_args()
    if args.prepare_only:
        prepare(args)
    else:
        train(args)


if __name__ == "__main__":
    cli.run(main)
