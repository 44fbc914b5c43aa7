"""Test-time finetuning of the CogNVS transformer on one video's own training pairs.

    cd finetune && sh finetune_cognvs.sh

That script holds every setting and starts this program, through accelerate where there is a process for every GPU.
"""

import argparse
import csv
import importlib.util
import json
import math
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from finetune import checkpoint, dataset, memory
from finetune.loss import denoising_loss
from utils import cli, cogvideox, metrics, pipeline, video
from utils.cli import InputError

LOG_COLUMNS = ("step", "loss", "learning_rate", "gradient_norm", "seconds", "loss_of_each_rank")


def truth(text):
    if text.lower() not in ("true", "false"):
        raise argparse.ArgumentTypeError(f"got {text!r}; expected True or False")
    return text.lower() == "true"


def parse_args():
    """Every setting; all but the last are given by finetune_cognvs.sh, their one source."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter,
                                     allow_abbrev=False)  # finetune_cognvs.sh looks at --memory itself
    for name in ("model_path", "transformer_id", "output_dir", "base_dir_input"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    for name in ("train_epochs", "total_samples", "checkpointing_steps", "checkpointing_limit", "validation_steps",
                 "validation_renders", "lr_warmup_steps", "batch_size", "gradient_accumulation_steps", "rank", "seed"):
        parser.add_argument(f"--{name}", type=int, required=True)
    for name in ("learning_rate", "beta1", "beta2", "epsilon", "weight_decay", "max_grad_norm", "ema_decay",
                 "lora_alpha", "gpu_memory"):
        parser.add_argument(f"--{name}", type=float, required=True)
    for name in ("do_validation", "compile"):
        parser.add_argument(f"--{name}", type=truth, required=True)
    parser.add_argument("--gradient_checkpointing", choices=("True", "False", "auto"), required=True)
    parser.add_argument("--lr_scheduler", choices=("constant", "linear", "cosine"), required=True)
    parser.add_argument("--training_type", choices=("sft", "lora"), required=True)
    parser.add_argument("--memory", choices=memory.MODES, required=True)
    parser.add_argument("--report_to", choices=("none", "tensorboard", "wandb"), required=True)
    parser.add_argument("--resume_from_checkpoint", default="")
    parser.add_argument("--machines", type=int, default=1, help="that share the processes")
    parser.add_argument("--gpu_ids", default="", help="of memory=zero2, as in accelerate_config.yaml; all by default")
    parser.add_argument("--prepare_for", type=int, help="this many processes: check and embed the empty prompt; they "
                        "are started next, unless it is one that can go on itself")
    return parser.parse_args()


def check(args):
    """Raise InputError for whatever can be known to be wrong before the models are loaded."""
    for name in ("train_epochs", "checkpointing_steps", "validation_steps", "validation_renders", "batch_size",
                 "gradient_accumulation_steps", "rank"):
        if getattr(args, name) < 1:
            raise InputError(f"--{name} {getattr(args, name)}: expected at least 1")
    for name, good in (
        ("learning_rate", 0 < args.learning_rate < 1), ("beta1", 0 <= args.beta1 < 1), ("beta2", 0 <= args.beta2 < 1),
        ("epsilon", 0 < args.epsilon < 1), ("weight_decay", 0 <= args.weight_decay < 1),
        ("max_grad_norm", 0 < args.max_grad_norm < math.inf), ("lr_warmup_steps", args.lr_warmup_steps >= 0),
        ("total_samples", args.total_samples >= 0), ("checkpointing_limit", args.checkpointing_limit >= 0),
        ("ema_decay", 0 <= args.ema_decay < 1), ("lora_alpha", args.lora_alpha > 0),
        ("gpu_memory", args.gpu_memory >= 0),
    ):  # fmt: skip
        if not good:
            raise InputError(f"--{name} {getattr(args, name)}: out of range; finetune_cognvs.sh holds the usual value")
    traced = bool(dataset.first_scenes(args.base_dir_input))
    for name in ("model_path", "transformer_id") + (() if traced else ("base_dir_input",)):
        path = getattr(args, name)
        if not path.is_dir():
            raise InputError(f"--{name} {path}: no folder at {path.resolve()}; paths are relative to finetune/")
    pipeline.check_base(args.model_path)
    weights = pipeline.find_weights(args.transformer_id)
    if (weights / pipeline.ADAPTER).is_file():
        raise InputError(f"--transformer_id {weights}: is a LoRA; merge it first with toolbox/merge_lora.py")
    for sequence in () if traced else dataset.find_sequences(args.base_dir_input):
        dataset.find_pairs(sequence)
    if traced and args.do_validation:
        raise InputError("--do_validation True: ray-traced scenes have no renders to inpaint; give False")
    if args.output_dir.exists() and not args.output_dir.is_dir():
        raise InputError(f"--output_dir {args.output_dir}: is a file; expected a folder or a new name")
    step, resume = checkpoint.find_resume(args.output_dir, args.resume_from_checkpoint)
    mean = resume and checkpoint.mean_folder(resume.parent, step)
    if mean and args.ema_decay and not mean.is_dir():
        raise InputError(f"--ema_decay {args.ema_decay}: no {mean} to go on from; give 0")
    if args.report_to != "none" and not importlib.util.find_spec(args.report_to):
        raise InputError(f"--report_to {args.report_to}: not installed; pip install {args.report_to}")
    if args.training_type == "lora" and args.ema_decay:
        raise InputError("--ema_decay is for training_type=sft; give 0")
    if args.memory == "single_fused" and args.gradient_accumulation_steps > 1:
        raise InputError("memory=single_fused updates the weights in every backward pass: give "
                         "gradient_accumulation_steps=1, or memory=single")
    if resume:
        checkpoint.check_resume(args, resume, args.prepare_for)
    set_steps(args, args.prepare_for)
    if step >= args.train_epochs:
        raise InputError(f"--train_epochs {args.train_epochs}: the checkpoint to go on from has {step} steps already")


def prepare(args):
    """What is done once, before the processes start: the checks, and the embedding of the empty prompt."""
    check(args)
    weights = pipeline.find_weights(args.transformer_id)
    pipeline.check_model(pipeline.CogVideoXTransformer3DModel, weights)
    config = pipeline.transformer_config(args.model_path, weights)
    memory.check_needs(args, args.prepare_for)
    pipeline.empty_prompt(args.model_path, config["max_text_seq_length"], memory.dtype(args))


def set_steps(args, ranks):
    """With total_samples: as many steps as it takes all ranks together to see that many."""
    if args.total_samples:
        args.train_epochs = math.ceil(args.total_samples / (ranks * args.batch_size * args.gradient_accumulation_steps))


def learning_rate(args, step):
    """Of optimiser step `step`, counted from 0: a pure function, so that a resumed run goes on exactly."""
    warmup = min(1.0, (step + 1) / (args.lr_warmup_steps + 1))
    left = 1 - max(0, step - args.lr_warmup_steps) / max(1, args.train_epochs - args.lr_warmup_steps)
    shape = {"constant": 1, "linear": left, "cosine": (1 - math.cos(math.pi * left)) / 2}[args.lr_scheduler]
    return args.learning_rate * warmup * shape


class Log:
    """train_log.csv, which goes on after the rows of the first `step` steps, and a tracker if one was asked for."""

    def __init__(self, args, step):
        path = args.output_dir / "train_log.csv"
        rows = rows_until(step, path)
        self.path, self.tracker = path, make_tracker(args)
        self.writer = csv.writer(open(path, "w", newline="", buffering=1))
        self.writer.writerows([LOG_COLUMNS, *rows])
        self.validated = [["step", "psnr"], *rows_until(step, args.output_dir / "validation" / "psnr.csv")]

    def add(self, step, losses, rate, norm, seconds):
        """The row of a step; losses [ranks], norm: from later(). Returns what the progress bar shows."""
        losses, norm = losses().tolist(), float(norm())
        loss = sum(losses) / len(losses)
        self.writer.writerow([step, repr(loss), repr(rate), repr(norm), f"{seconds:.3f}", " ".join(map(repr, losses))])
        if self.tracker:
            self.tracker.log({"loss": loss, "learning_rate": rate, "gradient_norm": norm}, step=step)
        return {"loss": f"{loss:.4f}", "lr": f"{rate:.2e}", "grad_norm": f"{norm:.3f}"}

    def add_validation(self, step, psnr):
        """A row of validation/psnr.csv: the mean over renders, dB."""
        self.validated.append([step, f"{psnr:.3f}"])
        with open(self.path.parent / "validation" / "psnr.csv", "w", newline="") as file:
            csv.writer(file).writerows(self.validated)
        if self.tracker:
            self.tracker.log({"validation_psnr": psnr}, step=step)

    def plot(self):
        """train_curve.png: the loss of every step, its mean over 20 steps, and the gradient norm."""
        import matplotlib

        matplotlib.use("Agg")
        import matplotlib.pyplot as plt

        with open(self.path, newline="") as file:
            rows = [[float(row[name]) for name in ("step", "loss", "gradient_norm")] for row in csv.DictReader(file)]
        if not rows:
            return
        step, loss, norm = np.array(rows).T
        figure, (upper, lower) = plt.subplots(2, 1, sharex=True, figsize=(8, 6))
        upper.plot(step, loss, ".", alpha=0.3)
        smooth = [loss[max(0, i - 19) : i + 1].mean() for i in range(len(loss))]
        upper.plot(step, smooth)
        upper.set_ylabel("loss, and its mean over 20 steps")
        lower.plot(step, norm)
        lower.set(xlabel="step", ylabel="gradient norm before clipping")
        figure.savefig(self.path.with_name("train_curve.png"), dpi=100)
        plt.close(figure)


def rows_until(step, path):
    """The rows of the first `step` steps in a csv file whose first column is the step; none if it is not there."""
    if not path.is_file():
        return []
    with open(path, newline="") as file:
        return [row for row in csv.reader(file) if row and row[0].isdigit() and int(row[0]) <= step]


def later(value):
    """A function that gives a number or tensor that the GPU is still to compute, waiting for that and no more."""
    if not torch.is_tensor(value) or value.device.type != "cuda":
        return lambda: value
    copy = torch.empty(value.shape, dtype=value.dtype, pin_memory=True).copy_(value, non_blocking=True)
    event = torch.cuda.Event()
    event.record()

    def get():
        event.synchronize()
        return copy

    return get


def make_tracker(args):
    """accelerate's tracker of tensorboard or wandb, or None."""
    if args.report_to == "none":
        return None
    from accelerate.tracking import TensorBoardTracker, WandBTracker

    if args.report_to == "tensorboard":
        tracker = TensorBoardTracker("tensorboard", str(args.output_dir))
    else:
        tracker = WandBTracker("cognvs", dir=str(args.output_dir), name=args.output_dir.name)
    tracker.start()
    return tracker


def validate(args, engine, pipe, pairs, embedding, step):
    """Inpaint training renders, shared among the ranks, as render | output | target; the mean PSNR over all."""
    chosen = [(target, render) for target, renders in pairs.sequences for render in renders][: args.validation_renders]
    psnr = torch.zeros(len(chosen), device=engine.device)
    for number in range(engine.rank, len(chosen), engine.ranks):
        target, render = chosen[number]
        clip, truth = (pairs.clip(path, 0, engine.device, torch.float32)[0] / 2 + 0.5 for path in (render, target))
        out = pipe.inpaint(clip, embedding, 50, torch.Generator().manual_seed(args.seed))
        row = (torch.cat([clip, out, truth], 3) * 255).round().byte().permute(0, 2, 3, 1).cpu().numpy()
        name = f"step-{step}_{target.parent.name}_{render.stem}.mp4"
        video.write_video(args.output_dir / "validation" / name, row, video.probe(target))
        psnr[number] = metrics.psnr(out.cpu().numpy(), truth.cpu().numpy())
    engine.wait()
    return engine.gather(psnr).reshape(-1, len(chosen)).sum(0).mean().item()


def save_settings(args, engine):
    """settings.json beside the weights: every argument, the DeepSpeed configuration and the number of processes."""
    settings = {name: str(value) if isinstance(value, Path) else value for name, value in vars(args).items()}
    settings["num_processes"] = engine.ranks
    settings["deepspeed"] = engine.settings
    (args.output_dir / "settings.json").write_text(json.dumps(settings, indent=2, default=str) + "\n")


def optimiser_step(args, engine, pipe, pairs, embedding, rotary, step):
    """One optimiser step; returns the losses of all ranks' samples and the gradient norm before clipping."""
    engine.begin(step, learning_rate(args, step))
    losses = []
    for micro in range(args.gradient_accumulation_steps):
        number = step * args.gradient_accumulation_steps + micro
        batch = dataset.training_batch(pipe, pairs, args.seed, engine.rank, number, engine.device, embedding.dtype,
                                       args.batch_size)  # fmt: skip
        prompt = embedding.expand(args.batch_size, -1, -1)
        with cogvideox.attention():
            loss = denoising_loss(engine.model, pipe.scheduler, *batch, prompt, rotary)
            engine.backward(loss)
        losses.append(loss.detach())
    return engine.gather(torch.stack(losses).mean()), engine.step()


def tell(progress, writing):
    """Wait for a checkpoint that is being written, if there is one, and say where it is."""
    if writing:
        progress.write(f"wrote {writing.result()}")


def open_models(args, engine, resume):
    """(the pipeline that holds the weights to start from, the embedding of "", the training pairs)."""
    dtype, device = memory.dtype(args), engine.device
    pipe = pipeline.load_pipeline(args.model_path, checkpoint.weights_to_start(args, resume), dtype, device)
    pipe.set_progress_bar_config(disable=True)
    embedding, _ = pipeline.empty_prompt(args.model_path, pipe.transformer.config.max_text_seq_length, dtype)
    pairs = dataset.open_pairs(args.base_dir_input, args.model_path, pipe.clip_shape, engine.rank, device)
    return pipe, embedding.to(device), pairs


def prepare_training(args, engine, pipe, start, resume):
    """(the transformer, ready to train from step `start` on; its running mean or None; blocks not recomputed)."""
    transformer = checkpoint.prepare_weights(args, pipe.transformer, resume).train()
    mean = None
    if args.ema_decay and engine.rank == 0:
        mean = checkpoint.make_mean(transformer, args.ema_decay, start,
                                    resume and checkpoint.mean_folder(resume.parent, start))
    engine.prepare(transformer)
    torch.cuda.empty_cache()  # of what the weights left where they were before, which counts as taken; on a GPU alone
    memory.choose_tiling(args, pipe, transformer, engine.ranks, engine.device)
    kept = memory.blocks_to_keep(args, transformer, engine.ranks, engine.device)
    if args.gradient_checkpointing != "False":
        cogvideox.recompute(transformer, kept)
    if args.compile and cogvideox.has_compiler():
        cogvideox.compile_blocks(transformer)
    if resume:
        engine.load(resume)
    return transformer, mean, kept


def train(args):
    engine = memory.engine(args)
    main_process, device = engine.rank == 0, engine.device
    memory.limit(args, device)
    set_steps(args, engine.ranks)
    start, resume = checkpoint.find_resume(args.output_dir, args.resume_from_checkpoint)
    pipe, embedding, pairs = open_models(args, engine, resume)
    transformer, mean, kept = prepare_training(args, engine, pipe, start, resume)
    rotary = pipe.rotary_embedding(device)
    if main_process:
        args.output_dir.mkdir(parents=True, exist_ok=True)
        save_settings(args, engine)
        log = Log(args, start)
        print(f"{args.base_dir_input}: {pairs}, "
              f"{engine.ranks} process{'es' * (engine.ranks > 1)} on {device.type}, memory={args.memory}, "
              f"steps {start} to {args.train_epochs}" + (f", {kept} blocks not recomputed" if kept else "")
              + ", VAE in tiles" * pipe.vae.use_tiling)

    progress = tqdm(range(start, args.train_epochs), initial=start, total=args.train_epochs, unit="step",
                    desc="finetuning", disable=not main_process)
    writer, writing = ThreadPoolExecutor(1), None  # of the last checkpoint, while training goes on
    unread = None  # the last step's losses and norm: to read them before the next is queued would stall the GPU
    for step in progress:
        began = time.time()
        losses, norm = optimiser_step(args, engine, pipe, pairs, embedding, rotary, step)
        losses, norm = later(losses), later(norm)
        if mean:
            mean.step(transformer.parameters())
        if unread and main_process:
            progress.set_postfix(log.add(*unread))
        done = step + 1
        unread = done, losses, learning_rate(args, step), norm, time.time() - began
        if args.do_validation and done % args.validation_steps == 0:
            psnr = validate(args, engine, pipe, pairs, embedding, done)
            if main_process:
                progress.write(f"step {done}: PSNR {psnr:.2f} dB")
                log.add_validation(done, psnr)
        if done % args.checkpointing_steps == 0 or done == args.train_epochs:
            if main_process:
                progress.set_postfix(log.add(*unread))
            unread = None
            tell(progress, writing)
            writing = checkpoint.save(args, engine, transformer, done, writer, mean)
    tell(progress, writing)
    engine.wait()
    if main_process:
        log.plot()
        print(f"finished{cli.peak_memory(device)}; log and curve in {args.output_dir}/train_log.csv, train_curve.png")
    engine.end()


def main():
    args = parse_args()
    if args.prepare_for:
        prepare(args)
    if not args.prepare_for or args.memory.startswith("single"):
        train(args)


if __name__ == "__main__":
    cli.run(main)
