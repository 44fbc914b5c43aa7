"""Test-time finetuning of the CogNVS transformer on one video's own training pairs.

    cd finetune && sh finetune_cognvs.sh

That script holds every setting and starts this program, through launch.py where there is a process
for every GPU.
"""

import signal
import sys

if __name__ == "__main__":  # Ctrl-C while libraries load ends without a traceback
    signal.signal(signal.SIGINT, signal.SIG_DFL)

import contextlib
import json
import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from finetune import checkpoint, dataset, disk, evaluation, launch, log, memory, settings
from finetune.engines import make_engine, peer_is_gone
from finetune.interruption import Interruption
from finetune.loss import denoising_loss
from finetune.prepare import prepare
from utils import cli, cogvideox, files, pipeline
from utils.cli import InputError


@dataclass
class Run:
    """What the steps of a run share."""

    args: Any  # the settings
    engine: Any  # of engines.py
    pipe: pipeline.CogNVSPipeline  # for its VAE and scheduler
    pairs: dataset.TrainingPairs
    source: Any  # what batches are drawn from: the pairs, or a dataset.Bank of them
    transformer: torch.nn.Module  # what is trained; engine.model may be wrapped around it
    mean: Any  # its running mean, or None
    embedding: torch.Tensor  # of "", [1, length, width]
    rotary: Any  # the rotary embedding of a clip
    start: int  # steps that are done

    def prompts(self):
        """The embedding of "" for each sample of a batch."""
        return self.embedding.expand(self.args.batch_size, -1, -1)


def open_run(args, engine, open_pairs):
    """Load models and pairs and make them ready; says what begins."""
    start, state = checkpoint.find_resume(args.output_dir, args.resume_from_checkpoint)
    weights = checkpoint.weights_to_start(args, state)
    pipe = pipeline.load_pipeline(args.model_path, weights, memory.dtype(args), engine.device)
    length = pipe.transformer.config.max_text_seq_length
    embedding = pipeline.empty_prompt(args.model_path, length, memory.dtype(args))[0]
    pairs = open_pairs(args.base_dir_input, args.model_path, pipe.clip_shape, engine.rank,
                       engine.device)
    return make_run(args, engine, pipe, pairs, embedding, start, state)


def make_run(args, engine, pipe, pairs, embedding, start=0, state=None):
    """Make models that are loaded ready to train; says what begins.

    embedding: of "", [1, length, width]. start, state: the steps that are done, and their state.
    """
    transformer = checkpoint.prepare_weights(args, pipe.transformer, state).train()
    mean = None
    if args.ema_decay and engine.rank == 0:
        folder = state and checkpoint.mean_of(state)
        mean = checkpoint.make_mean(transformer, args.ema_decay, start, folder)
    engine.prepare(transformer)
    levels = fit_memory(args, engine, pipe, transformer)
    if state:
        engine.load(state)
    if engine.rank == 0:
        print(f"{args.base_dir_input}: {pairs}, {engine.ranks} process"
              f"{'es' * (engine.ranks > 1)} on {engine.device.type}, memory={args.memory}, steps "
              f"{start} to {args.train_epochs}" + memory.said(args, transformer, levels, engine)
              + ", VAE in tiles" * pipe.vae.use_tiling)
    source = pairs
    samples = args.train_epochs * settings.samples_a_step(args, engine.ranks)
    if encodings := count_encodings(args, pairs, samples):
        source = dataset.Bank(pipe, pairs, encodings, args.seed, engine.rank, engine.ranks,
                              engine.device, embedding.dtype)
    rotary = pipe.rotary_embedding(engine.device)
    embedding = embedding.to(engine.device)
    return Run(args, engine, pipe, pairs, source, transformer, mean, embedding, rotary, start)


def count_encodings(args, pairs, samples):
    """How many conditions a run of so many samples encodes ahead: 0 if it draws each anew."""
    given = args.condition_encodings
    count = max(given, pairs.turns()) if given else 0
    most = max(given, dataset.MOST_ENCODINGS)
    return count if count <= min(most, samples // 2) else 0  # with more there is little to save


def fit_memory(args, engine, pipe, transformer):
    """Choose what is recomputed and tiled, and compile; the level of each block."""
    torch.cuda.empty_cache()  # what weights left where they were before counts as taken
    memory.choose_tiling(args, pipe, transformer, engine.ranks, engine.device)
    levels = memory.choose_levels(args, transformer, engine.ranks, engine.device)
    cogvideox.recompute(transformer, levels)
    if args.compile and cogvideox.has_compiler():
        pipeline.keep_compiled()
        cogvideox.compile_blocks(transformer)
    return levels


def save_settings(run):
    """settings.json beside the weights: arguments, DeepSpeed's configuration, hashes of inputs."""
    args = run.args
    values = {}
    for name, value in vars(args).items():
        values[name] = str(value) if isinstance(value, Path) else value
    values["num_processes"] = run.engine.ranks
    values["deepspeed"] = run.engine.settings
    hashes = {}
    for path in run.pairs.files():
        hashes[os.path.relpath(path, args.base_dir_input)] = cli.file_hash(path)
    values["made_of"] = {
        "base": pipeline.fingerprint(args.model_path / "vae"),
        "weights": pipeline.fingerprint(pipeline.find_weights(args.transformer_id)),
        "files": hashes,
    }
    text = json.dumps(values, indent=2, default=str)
    with files.whole(args.output_dir / "settings.json") as part:
        part.write_text(text + "\n")


def optimiser_step(run, step):
    """One optimiser step: (the loss of each process [ranks], the gradients' norm unclipped)."""
    args = run.args
    engine = run.engine
    engine.begin(step, settings.learning_rate(args, step))
    losses = []
    for micro in range(args.gradient_accumulation_steps):
        number = step * args.gradient_accumulation_steps + micro
        batch = dataset.training_batch(run.pipe, run.source, args.seed, engine.rank, number,
                                       engine.device, run.embedding.dtype, args.batch_size)
        with cogvideox.attention():
            loss = denoising_loss(engine.model, run.pipe.scheduler, *batch, run.prompts(),
                                  run.rotary)
            engine.backward(loss)
        losses.append(loss.detach())
    losses = engine.gather(torch.stack(losses).mean())
    norm = engine.step()
    if run.mean:
        run.mean.step(run.transformer.parameters())
    return losses, norm


def take_steps(run, interruption):
    """All steps, with what is looked at and written between them; the number that are done."""
    args = run.args
    main = run.engine.rank == 0
    done = run.start
    fixed = evaluation.FixedBatch(run)
    written = log.Log(args, run.start, main)
    with contextlib.ExitStack() as stack:
        saver = stack.enter_context(make_saver(run))
        progress = stack.enter_context(
            tqdm(initial=run.start, total=args.train_epochs, unit="step", desc="finetuning",
                 disable=not main))
        for step in range(run.start, args.train_epochs):
            done = step + 1
            look = step % args.evaluation_steps == 0 or done == args.train_epochs
            fixed_losses = fixed.loss(run) if look else None
            began = time.time()
            losses, norm = optimiser_step(run, step)
            rate = settings.learning_rate(args, step)
            written.add(done, losses, rate, norm, time.time() - began, fixed_losses)
            progress.update()
            last = interruption.seen(run.engine) or done == args.train_epochs
            validate = args.do_validation and done % args.validation_steps == 0
            save = done % args.checkpointing_steps == 0 or last
            if validate or save:
                written.flush()  # stops the run before anything is made of bad weights
            if validate:
                written.add_validation(done, evaluation.validate(run, done))
            saver.look()
            if save:
                saver.save(done, last)
            progress.set_postfix(written.shown)
            if last:
                break
        saver.finish()
    run.engine.wait()
    written.plot()
    return done


def take_finite_steps(run, interruption):
    """take_steps; where it stops at what is not finite, the first process says what is kept."""
    try:
        return take_steps(run, interruption)
    except log.NotFinite as error:
        if run.engine.rank:
            run.engine.wait()  # until that one has ended
        raise InputError(f"{error}; {checkpoint.kept(run.args.output_dir)}") from error


def make_saver(run):
    """What writes the checkpoints of a run."""
    sizes = disk.sizes(run.args, run.transformer)
    return checkpoint.Saver(run.args, run.engine, run.transformer, run.mean, sizes)


@contextlib.contextmanager
def hold(args, engine):
    """No other run may write to output_dir meanwhile; the first process holds it."""
    lock = contextlib.nullcontext() if engine.rank else cli.lock(args.output_dir / settings.LOCK)
    with lock:
        yield


def train(args, open_pairs=dataset.open_pairs):
    """Train as `args` say, on the TrainingPairs of open_pairs; prepare.prepare() comes before.

    After Ctrl-C or SIGTERM: SystemExit, once a step is done and written.
    """
    log.quiet()
    engine = make_engine(args)
    with hold(args, engine):
        memory.limit(args, engine.device)
        settings.set_steps(args, engine.ranks)
        run = open_run(args, engine, open_pairs)
        if engine.rank == 0:
            checkpoint.remove_leftovers(args.output_dir)
            checkpoint.prune(args, run.start)  # as an interrupted run would have done
            save_settings(run)
        engine.wait()  # a signal ends processes that have not begun, and asks those that have
        with Interruption() as interruption:
            done = take_finite_steps(run, interruption)
    if engine.rank == 0 and done < args.train_epochs:
        print(interruption.said(args, done))
    elif engine.rank == 0:
        print(f"finished{cli.peak_memory(engine.device)}; log and curve in {args.output_dir}/"
              "train_log.csv, train_curve.png")
    engine.end()
    if done < args.train_epochs:
        raise SystemExit(interruption.code())


def main():
    args = settings.parse_args()
    if args.memory.startswith("single") and launch.TELL not in os.environ:
        prepare(args)  # for what launch.py starts, prepare.py has done it
    try:
        train(args)
    except RuntimeError as error:
        if peer_is_gone(error):
            raise SystemExit(2) from error
        raise


if __name__ == "__main__":
    launch.run(main)
