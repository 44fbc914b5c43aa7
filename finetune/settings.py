"""The settings of a run: the flags of train.py, and checks that need no model."""

import argparse
import importlib.util
import math
from dataclasses import dataclass
from pathlib import Path

from finetune import checkpoint
from utils import cli, pipeline
from utils.cli import InputError

RANGES = {
    "at least 1": lambda x: x >= 1,
    "at least 0": lambda x: 0 <= x < math.inf,
    "above 0": lambda x: 0 < x < math.inf,
    "above 0 and below 1": lambda x: 0 < x < 1,
    "at least 0 and below 1": lambda x: 0 <= x < 1,
}
LOCK = ".lock"  # in output_dir, while a run writes there
PATHS = (
    ("model_path", "base model, a CogVideoX-5b-I2V folder"),
    ("transformer_id", "CogNVS weights to start from"),
    ("output_dir", "where checkpoints and logs go"),
    ("base_dir_input", "sequence folder with training pairs, or a folder of such"),
)
NUMBERS = (  # flag, type, range, meaning
    ("train_epochs", int, "at least 1", "optimiser steps"),
    ("total_samples", int, "at least 0", "above 0: samples that all GPUs see together, in place of "
     "train_epochs, so that more GPUs end sooner"),
    ("checkpointing_steps", int, "at least 1", "steps between checkpoints; the last makes one"),
    ("checkpointing_limit", int, "at least 0", "checkpoints to keep: weights, and the state to "
     "resume from; 0: the newest weights alone, no state"),
    ("evaluation_steps", int, "at least 1", "steps between looks at the loss of a fixed batch"),
    ("validation_steps", int, "at least 1", "steps between validations"),
    ("validation_renders", int, "at least 1", "held-out renders that a validation inpaints"),
    ("learning_rate", float, "above 0 and below 1", "of AdamW, after the warm-up"),
    ("lr_warmup_steps", int, "at least 0", "steps in which the learning rate rises to its value"),
    ("beta1", float, "at least 0 and below 1", "of AdamW"),
    ("beta2", float, "at least 0 and below 1", "of AdamW"),
    ("epsilon", float, "above 0 and below 1", "of AdamW"),
    ("weight_decay", float, "at least 0 and below 1", "of AdamW"),
    ("max_grad_norm", float, "above 0", "norm that gradients are clipped to"),
    ("batch_size", int, "at least 1", "samples that a GPU takes at once"),
    ("gradient_accumulation_steps", int, "at least 1", "times it does so in an optimiser step"),
    ("num_processes", int, "at least 1", "GPUs of this machine that memory=single trains on; for "
     "zero2 accelerate_config.yaml says that"),
    ("ema_decay", float, "at least 0 and below 1", "above 0: also keep the running mean of the "
     "weights, my_checkpoint-N_mean"),
    ("rank", int, "at least 1", "of the LoRA, with training_type lora"),
    ("lora_alpha", float, "above 0", "of the LoRA: its scale times its rank"),
    ("gpu_memory", float, "at least 0", "above 0: GiB of each GPU to use at most"),
    ("condition_encodings", int, "at least 0", "above 0: noisy conditions to encode before the "
     "first step, more if there are more pairs or longer videos; each step draws one. 0, or if "
     "half of the run's samples are less: a new one in every step, as published"),
    ("seed", int, "at least 0", "of every random draw"),
)
SWITCHES = (
    ("do_validation", "inpaint held-out renders every validation_steps"),
    ("compile", "compile the transformer's blocks in the first step (GPU with a C compiler)"),
)
CHOICES = (
    ("training_type", ("sft", "lora"), "all weights, or a small adapter beside them"),
    ("memory", ("zero2", "zero2_offload", "single", "single_fused"), "where the training state "
     "lives; finetune/README.md says which to choose"),
    ("gradient_checkpointing", ("True", "full", "False", "auto"), "recompute activations in the "
     "backward pass: all but what attention gave, as far as a GPU's memory allows; all; nothing; "
     "as little as its memory allows"),
    ("lr_scheduler", ("constant", "linear", "cosine"), "the last two fall to 0 at the last step"),
    ("report_to", ("none", "tensorboard", "wandb"), "a tracker beside train_log.csv"),
)


@dataclass(frozen=True)
class Launch:
    """Who trains: so many processes in all, on so many machines, on these GPUs of each.

    gpu_ids: "all", or numbers such as "0,1".
    """

    processes: int = 1
    machines: int = 1
    gpu_ids: str = "all"


def true_or_false(text):
    """The bool that a flag's text says."""
    if text.lower() not in ("true", "false"):
        raise argparse.ArgumentTypeError(f"got {text!r}; expected True or False")
    return text.lower() == "true"


def make_parser(description=None):
    """A parser of every flag, without defaults: finetune_cognvs.sh is the source of all values."""
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter,
        usage="sh finetune_cognvs.sh [--FLAG VALUE ...]", allow_abbrev=False)
    for name, words in PATHS:
        parser.add_argument(f"--{name}", type=Path, required=True, metavar="FOLDER", help=words)
    for name, kind, expected, words in NUMBERS:
        parser.add_argument(f"--{name}", type=kind, required=True, metavar="N",
                            help=f"{words} ({expected})")
    for name, words in SWITCHES:
        parser.add_argument(f"--{name}", type=true_or_false, required=True, metavar="True|False",
                            help=words)
    for name, choices, words in CHOICES:
        parser.add_argument(f"--{name}", choices=choices, required=True, help=words)
    parser.add_argument("--resume_from_checkpoint", default="", metavar="FOLDER",
                        help="a checkpoint-N folder to go on from, or latest")
    return parser


def parse_args(argv=None):
    """The settings of a run, from the command line by default."""
    return make_parser("Test-time finetuning of the CogNVS transformer on one video. Values that "
                       "are not\ngiven are those in finetune_cognvs.sh.").parse_args(argv)


def check(args, processes=1):
    """InputError for whatever is wrong with the settings; total_samples sets train_epochs.

    What the run learns from is checked by its own function, such as dataset.check_pairs.
    """
    for name, _, expected, _ in NUMBERS:
        value = getattr(args, name)
        if not RANGES[expected](value):
            raise InputError(f"--{name} {value}: expected {expected}; finetune_cognvs.sh holds the "
                             "usual value")
    check_folder(args, "model_path")
    check_folder(args, "transformer_id")
    check_together(args)
    pipeline.check_base(args.model_path)
    weights = pipeline.find_weights(args.transformer_id)
    if (weights / pipeline.ADAPTER).is_file():
        raise InputError(f"--transformer_id {weights}: is a LoRA; merge it first with "
                         "toolbox/merge_lora.py")
    check_output(args, processes)


def check_folder(args, name):
    """InputError unless the folder that a flag names is there."""
    path = getattr(args, name)
    if not path.is_dir():
        raise InputError(f"--{name} {path}: no folder at {path.resolve()}; paths are relative to "
                         "finetune/")


def check_together(args):
    """InputError for settings that exclude each other."""
    if args.report_to != "none" and not importlib.util.find_spec(args.report_to):
        raise InputError(f"--report_to {args.report_to}: not installed; pip install "
                         f"{args.report_to}")
    if args.training_type == "lora" and args.ema_decay:
        raise InputError(f"--ema_decay {args.ema_decay}: is for training_type=sft; give 0")
    if args.memory != "single" and args.num_processes > 1:
        raise InputError(f"--num_processes {args.num_processes}: is for memory=single; give 1, and "
                         "for zero2 edit accelerate_config.yaml")
    if args.memory == "single_fused" and args.gradient_accumulation_steps > 1:
        raise InputError("memory=single_fused updates the weights in every backward pass: give "
                         "gradient_accumulation_steps=1, or memory=single")


def check_output(args, processes):
    """InputError if output_dir, or the checkpoint to go on from, does not allow this run."""
    if args.output_dir.exists() and not args.output_dir.is_dir():
        raise InputError(f"--output_dir {args.output_dir}: is a file; expected a folder or a new "
                         "name")
    cli.check_free(args.output_dir / LOCK)
    start, state = checkpoint.find_resume(args.output_dir, args.resume_from_checkpoint)
    if state:
        checkpoint.check_resume(args, state, processes)
    set_steps(args, processes)
    if start > args.train_epochs:  # as many: what was interrupted after them is completed
        raise InputError(f"--train_epochs {args.train_epochs}: the checkpoint to go on from has "
                         f"{start} steps already")


def set_steps(args, processes):
    """With total_samples: as many steps as it takes all processes together to see that many."""
    if args.total_samples:
        args.train_epochs = math.ceil(args.total_samples / samples_a_step(args, processes))


def samples_a_step(args, processes):
    """How many samples all processes together see in an optimiser step."""
    return processes * args.batch_size * args.gradient_accumulation_steps


def learning_rate(args, step):
    """Of optimiser step `step`, counted from 0; a pure function, for a resume to go on exactly."""
    warmup = min(1.0, (step + 1) / (args.lr_warmup_steps + 1))
    falling = max(1, args.train_epochs - args.lr_warmup_steps)
    left = 1 - max(0, step - args.lr_warmup_steps) / falling
    shapes = {"constant": 1, "linear": left, "cosine": (1 - math.cos(math.pi * left)) / 2}
    return args.learning_rate * warmup * shapes[args.lr_scheduler]
