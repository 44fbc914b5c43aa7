"""The log of a run: train_log.csv, train_curve.png, validations, and a tracker if one is wanted."""

import csv
import logging
import math
import os
import warnings

import torch
from tqdm import tqdm

from utils import files
from utils.cli import InputError

COLUMNS = ("step", "loss", "learning_rate", "gradient_norm", "seconds", "loss_of_each_rank",
           "fixed_batch_loss")


def quiet():
    """Keep notes of libraries out of the output that no user can act on; errors still show."""
    warnings.filterwarnings("ignore", category=FutureWarning)
    warnings.filterwarnings("ignore", category=UserWarning, module="torch|deepspeed|accelerate")
    for name in ("DeepSpeed", "accelerate", "diffusers", "matplotlib", "torch.distributed",
                 "torch._higher_order_ops.wrap"):  # which warns of operators that no block has
        logging.getLogger(name).setLevel(logging.ERROR)


class NotFinite(InputError):
    """A loss or gradient norm that is none; all processes raise it after the same step."""


class Log:
    """What the first process writes of a run; the Log of another one (main=False) writes nothing.

    A step's numbers are read when the next step is queued: before, the GPU would have to wait.
    Raises NotFinite after the row of a step whose loss or norm is not finite, and OSError for what
    cannot be written.
    """

    def __init__(self, args, step, main=True):
        self.main = main
        self.first = step + 1
        self.waiting = None  # the last step's numbers, to be read
        self.shown = {}  # what the progress bar shows
        if main:
            self.folder = args.output_dir
            self.path = self.folder / "train_log.csv"
            self.tracker = make_tracker(args)
            write_rows(self.path, [COLUMNS, *rows_until(step, self.path)])
            earlier = rows_until(step, self.folder / "validation" / "psnr.csv")
            self.validated = [["step", "psnr"], *earlier]

    def add(self, step, losses, rate, norm, seconds, fixed=None):
        """Take a step's numbers, and write the row of the step before.

        losses: tensor [ranks]; norm: of the gradients before clipping; fixed: tensor [ranks], the
        losses of the fixed batch before this step, where it was looked at.
        """
        now = (step, later(losses), rate, later(norm), seconds, later(fixed))
        self.flush()
        self.waiting = now

    def flush(self):
        """Read the numbers that wait, if any do, and write their row."""
        if not self.waiting:
            return
        step, losses, rate, norm, seconds, fixed = self.waiting
        self.waiting = None
        losses = losses().tolist()
        norm = float(norm())
        values = {"loss": mean(losses), "learning_rate": rate, "gradient_norm": norm}
        row = [step, *values.values(), f"{seconds:.3f}", " ".join(map(repr, losses))]
        if fixed() is not None:
            values["fixed_batch_loss"] = mean(fixed().tolist())
        if self.main:
            self.write([*row, values.get("fixed_batch_loss", "")], values)
        check_finite(step, values, self.first)

    def write(self, row, values):
        """Write a row, and show and track its values."""
        add_row(self.path, row)
        self.shown = {"loss": f"{values['loss']:.4f}", "lr": f"{values['learning_rate']:.2e}",
                      "grad_norm": f"{values['gradient_norm']:.3f}"}
        if self.tracker:
            self.tracker.log(values, step=row[0])

    def add_validation(self, step, psnr):
        """Say the mean PSNR over the renders of a validation, dB, and write validation/psnr.csv."""
        if not self.main:
            return
        tqdm.write(f"step {step}: PSNR {psnr:.2f} dB")
        self.validated.append([step, f"{psnr:.3f}"])
        write_rows(self.folder / "validation" / "psnr.csv", self.validated)
        if self.tracker:
            self.tracker.log({"validation_psnr": psnr}, step=step)

    def plot(self):
        """Draw train_curve.png."""
        self.flush()
        if self.main:
            plot(self.path, self.folder / "train_curve.png")


def check_finite(step, values, first):
    """NotFinite unless the values of a step are finite, norms not negative. first: of the run."""
    names = [name for name in values if not math.isfinite(values[name]) or values[name] < 0]
    if not names:
        return
    said = ", ".join(f"{name} {values[name]:.4g}" for name in values if name != "learning_rate")
    hint = (f"give a learning rate below {values['learning_rate']:g}, and look at the training "
            "pairs")
    if step == first:
        hint = ("no step was taken before it: the weights to begin with hold numbers that are not "
                "finite, or the training pairs are broken")
    raise NotFinite(f"stopped at step {step}: {' and '.join(names)} not finite ({said}); nothing "
                    f"of this step is written as weights; {hint}")


def write_rows(path, rows):
    """Write a csv file."""
    with files.whole(path) as part, open(part, "w", newline="") as file:
        csv.writer(file).writerows(rows)


def add_row(path, row):
    """Add a row to a csv file, all of it or nothing."""
    before = path.stat().st_size
    try:
        with open(path, "a", newline="") as file:
            csv.writer(file).writerow(row)
    except OSError as error:
        os.truncate(path, before)
        raise OSError(error.errno, error.strerror, str(path)) from error


def plot(log, picture):
    """Draw a train_log.csv: the loss of the fixed batch, that of each step, the gradients' norm.

    The fixed batch has the same timesteps and noise at each look, so that its loss falls in a good
    run, where that of a step depends most on the timestep it drew.
    """
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    with open(log, newline="") as file:
        rows = list(csv.DictReader(file))
    steps = column(rows, "step")
    losses = column(rows, "loss")
    looks = [row for row in rows if row["fixed_batch_loss"]]
    smooth = [mean(losses[max(0, i - 19) : i + 1]) for i in range(len(losses))]

    figure, axes = plt.subplots(3, 1, sharex=True, figsize=(8, 8), layout="constrained")
    axes[0].plot(column(looks, "step"), column(looks, "fixed_batch_loss"), "o-")
    axes[0].set(ylabel="loss", title="Fixed batch: falls in a good run")
    axes[1].plot(steps, losses, ".", alpha=0.3)
    axes[1].plot(steps, smooth)
    axes[1].set(ylabel="loss", yscale="log",
                title="Each step, and the mean of 20: depends on the timestep drawn")
    axes[2].plot(steps, column(rows, "gradient_norm"))
    axes[2].set(ylabel="norm", title="Gradients, before clipping", xlabel="step")
    axes[2].xaxis.get_major_locator().set_params(integer=True)
    with files.whole(picture) as part:
        figure.savefig(part, dpi=100, format="png")
    plt.close(figure)


def column(rows, name):
    """A column of csv rows, as numbers."""
    return [float(row[name]) for row in rows]


def mean(values):
    return sum(values) / len(values)


def rows_until(step, path):
    """The rows of the first `step` steps in a csv file; [] if it is not there."""
    if not path.is_file():
        return []
    with open(path, newline="") as file:
        rows = [row for row in csv.reader(file) if row and row[0].isdigit()]
    return [row for row in rows if int(row[0]) <= step]


def later(value):
    """A function that gives a number or tensor that the GPU is still to compute, when it has."""
    if not torch.is_tensor(value) or value.device.type != "cuda":
        return lambda: value
    copy = torch.empty(value.shape, dtype=value.dtype, pin_memory=True)
    copy.copy_(value, non_blocking=True)
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
