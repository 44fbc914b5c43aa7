"""Finetune in the memory modes of one GPU and with plain float32 AdamW, and compare the loss on samples held out.

    python toolbox/compare_memory.py --data_path demo_data/room --model_path checkpoints/tiny/base \\
        --cognvs_ckpt_path checkpoints/tiny/cognvs_ckpt_inpaint --output_dir /tmp/compare

The last training render is held out. Its samples keep their timesteps and noise, so that curves differ only by the
training. A mode should stay within what another seed does to float32 AdamW; "not rounded", which is single without its
stochastic rounding, should not where the steps are smaller than bf16 resolves.
"""

import argparse
import copy
import re
import sys
from pathlib import Path

import numpy as np
import torch
from torch.func import functional_call
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "finetune"))
import dataset
import memory
import train
from loss import denoising_loss

from utils import cli, pipeline, placement

SCRIPT = Path(__file__).resolve().parents[1] / "finetune" / "finetune_cognvs.sh"
MODES = ("float32", "single", "single_fused", "not rounded")


class Float32:
    """AdamW with everything in float32, arithmetic too: in bf16 a small step would be lost on its way to the loss."""

    def __init__(self, args):
        self.args, self.rank, self.device = args, 0, cli.pick_device()

    def prepare(self, transformer):
        self.transformer, self.model, a = transformer.float(), in_float32(transformer), self.args
        self.optimizer = torch.optim.AdamW(transformer.parameters(), a.learning_rate, (a.beta1, a.beta2), a.epsilon,
                                           a.weight_decay)  # fmt: skip

    def begin(self, step, rate):
        self.optimizer.param_groups[0]["lr"] = rate

    def backward(self, loss):
        loss.backward()

    def step(self):
        norm = torch.nn.utils.clip_grad_norm_(self.transformer.parameters(), self.args.max_grad_norm)
        self.optimizer.step()
        self.optimizer.zero_grad()
        return norm

    def gather(self, loss):
        return loss[None]


def in_float32(transformer):
    """A function that calls the transformer with float32 weights and arithmetic, whatever it and its inputs are in."""

    def call(**inputs):
        weights = {name: p.float() for name, p in transformer.named_parameters()}
        floats = {name: x.float() if torch.is_tensor(x) and x.is_floating_point() else x for name, x in inputs.items()}
        return functional_call(transformer, weights, (), floats)

    return call


def settings(options):
    """The arguments of a run: those that finetune_cognvs.sh holds, and `options`."""
    text = SCRIPT.read_text().split("\nmodel_path=", 1)[1].split("\naccelerate_config=", 1)[0]
    values = dict(re.findall(r'^(\w+)="?([^"\s]*)', f"model_path={text}", re.M)) | options
    before, sys.argv = sys.argv, ["train", *(f"--{name}={value}" for name, value in values.items())]
    try:
        return train.parse_args()
    finally:
        sys.argv = before


def make_engine(mode, args):
    if mode == "float32":
        return Float32(args)
    args.memory = "single" if mode == "not rounded" else mode
    return memory.Single(args)


@torch.no_grad()
def held_out_loss(pipe, model, samples, embedding):
    rotary = pipe.rotary_embedding(embedding.device)
    return np.mean([denoising_loss(model, pipe.scheduler, *sample, embedding, rotary).item() for sample in samples])


def curve(args, pipe, pairs, samples, embedding, mode, every=10):
    """Held-out losses before training and after every few steps."""
    engine, losses, transformer = make_engine(mode, args), [], copy.deepcopy(pipe.transformer).train()
    engine.prepare(transformer.requires_grad_(True))
    rotary = pipe.rotary_embedding(embedding.device)
    if mode == "not rounded":
        for part in engine.parts:
            part.optimizer.bf16_stochastic_round = False
    for step in tqdm(range(args.train_epochs + 1), unit="step", desc=f"{mode}, seed {args.seed}"):
        if step % every == 0:
            losses.append(held_out_loss(pipe, in_float32(transformer), samples, embedding))
        if step < args.train_epochs:
            train.optimiser_step(args, engine, pipe, pairs, embedding, rotary, step)
    return losses


def plot(curves, path, every=10):
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, len(curves), figsize=(6 * len(curves), 4), squeeze=False)
    for axis, (rate, modes) in zip(axes[0], curves.items(), strict=True):
        for mode, colour in zip(MODES, ("black", "tab:blue", "tab:orange", "tab:red"), strict=True):
            for i, losses in enumerate(modes[mode]):
                steps = every * np.arange(len(losses))
                axis.plot(steps, losses, color=colour, alpha=0.7, label=None if i else mode)
        axis.set(title=f"learning rate {rate:g}", xlabel="step", ylabel="held-out loss")
        axis.legend()
    figure.savefig(path, dpi=100)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=cli.HelpFormatter)
    parser.add_argument("--data_path", type=Path, required=True, help="sequence folder with training pairs")
    parser.add_argument("--model_path", type=Path, required=True)
    parser.add_argument("--cognvs_ckpt_path", type=Path, required=True)
    parser.add_argument("--output_dir", type=Path, required=True)
    parser.add_argument("--learning_rates", type=float, nargs="+", default=[2e-5, 1e-6])
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--samples", type=int, default=16, help="held out")
    options = parser.parse_args()
    if options.seeds < 2:
        raise cli.InputError(f"--seeds {options.seeds}: expected two or more, for a range")
    device = cli.pick_device()
    weights = pipeline.find_weights(options.cognvs_ckpt_path)
    pipe = pipeline.load_pipeline(options.model_path, weights, torch.bfloat16)
    placement.place(pipe, device, "gpu")
    length = pipe.transformer.config.max_text_seq_length
    embedding = pipeline.empty_prompt(options.model_path, length, torch.bfloat16)[0].to(device)
    pairs, held = (dataset.Pairs(options.data_path, pipe.clip_shape) for _ in range(2))
    target, renders = pairs.sequences[0]
    if len(renders) < 2:
        raise cli.InputError(f"{options.data_path}: got one training render; expected two or more, to hold one out")
    pairs.sequences, held.sequences = [(target, renders[:-1])], [(target, renders[-1:])]
    samples = [dataset.training_batch(pipe, held, -1, 0, i, device, torch.bfloat16) for i in range(options.samples)]
    curves = {}
    for rate in options.learning_rates:
        curves[rate] = {mode: [] for mode in MODES}
        for seed in range(options.seeds):
            for mode in MODES:
                args = settings({"learning_rate": rate, "train_epochs": options.steps, "seed": seed})
                curves[rate][mode].append(curve(args, pipe, pairs, samples, embedding, mode))
    options.output_dir.mkdir(parents=True, exist_ok=True)
    plot(curves, options.output_dir / "compare_memory.png")
    print("| learning rate | mode | held-out loss before | after, each seed | outside float32's range, of its width |")
    print("| --- | --- | --- | --- | --- |")
    for rate, modes in curves.items():
        reference = np.array(modes["float32"])[:, 1:]
        low, high = reference.min(0), reference.max(0)
        for mode, losses in modes.items():
            losses = np.array(losses)
            outside = np.maximum(losses[:, 1:].mean(0) - high, low - losses[:, 1:].mean(0)).max() / (high - low).max()
            print(f"| {rate:g} | {mode} | {losses[0, 0]:.5f} | {', '.join(f'{x:.5f}' for x in losses[:, -1])} | "
                  f"{max(0, outside):.2f} |")
    print(f"wrote {options.output_dir / 'compare_memory.png'}")


if __name__ == "__main__":
    cli.run(main)
