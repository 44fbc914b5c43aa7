"""Room on the disk: what a checkpoint takes, by arithmetic, and whether it is there."""

import shutil
from dataclasses import dataclass
from pathlib import Path

from finetune import checkpoint, memory
from utils.cli import InputError

EIGHT_BIT = 2 + 8 / 256  # bytes a parameter: two moments, and a float32 scale of 256 of each
SMALL = 2**20  # bytes of all that is not weights or states: configurations, the log, its curve
MIB = 2**20
GIB = 2**30


@dataclass(frozen=True)
class Sizes:
    """Bytes of the parts of a checkpoint; 0 for one that is not written."""

    weights: int
    mean: int
    state: int

    @property
    def all(self):
        return self.weights + self.mean + self.state

    def check_free(self, folder, *names):
        """OSError unless there is room in `folder` for the parts of these names."""
        need = sum(getattr(self, name) for name in names)
        if free(folder) < need:
            raise OSError(f"it needs {said(need)}")


def sizes(args, transformer):
    """The Sizes of a run's checkpoints. transformer: as it is trained; on meta will do."""
    item = memory.dtype(args).itemsize
    every = sum(tensor.numel() for tensor in transformer.state_dict().values())
    trained = sum(p.numel() for p in memory.trainable(transformer))
    state = EIGHT_BIT * trained
    if args.memory.startswith("zero2"):
        state = 12 * trained + item * every  # float32 weights and moments; weights as trained
    return Sizes(
        weights=item * (trained if args.training_type == "lora" else every),
        mean=4 * every if args.ema_decay else 0,
        state=int(state) if args.checkpointing_limit else 0,
    )


def check(args):
    """InputError unless all checkpoints of a run fit on the disk of output_dir.

    Old ones are deleted once a new one is whole: for a while there is one more than
    checkpointing_limit.
    """
    one = sizes(args, memory.planned(args))
    count = at_once(args, checkpoint.find_resume(args.output_dir, args.resume_from_checkpoint)[0])
    need = count * one.all + SMALL
    left = free(args.output_dir)
    if need <= left:
        return
    hints = ["another output_dir"]
    if count > 1 and one.all + SMALL <= left:
        hints.append("a larger checkpointing_steps")
    if args.checkpointing_limit and one.weights + one.mean + SMALL <= left:
        hints.append(f"checkpointing_limit=0 for weights alone, {said(one.weights + one.mean)}")
    raise InputError(
        f"--output_dir {args.output_dir}: {said(left)} are free on its disk, and the checkpoints "
        f"of this run need {said(need)} ({count} at once, each of {parts(one)}); free some, or "
        f"give {' or '.join(hints)}")


def at_once(args, done):
    """How many checkpoints more than now the disk holds at most. done: steps of the run."""
    to_come = -(-args.train_epochs // args.checkpointing_steps) - done // args.checkpointing_steps
    if args.checkpointing_limit:
        now = len(checkpoint.list_states(args.output_dir))
    else:
        now = len(checkpoint.list_weights(args.output_dir))
    most = min(now + to_come, max(1, args.checkpointing_limit) + 1)
    return max(1, most - now)


def free(folder):
    """Bytes that this user may still write where `folder` is, or will be."""
    folder = Path(folder).resolve()
    while not folder.exists():
        folder = folder.parent
    return shutil.disk_usage(folder).free


def parts(one):
    """Sizes in words."""
    words = [f"weights {said(one.weights)}"]
    for name, size in (("mean", one.mean), ("state", one.state)):
        if size:
            words.append(f"{name} {said(size)}")
    return ", ".join(words)


def said(size):
    """Bytes in words."""
    return f"{size / GIB:.1f} GiB" if size >= GIB else f"{size / MIB:.1f} MiB"
