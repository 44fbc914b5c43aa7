"""The log of a run: train_log.csv, train_curve.png, the validations, and a tracker if one was asked for."""

import csv
import logging
import warnings

import torch

COLUMNS = ("step", "loss", "learning_rate", "gradient_norm", "seconds", "loss_of_each_rank", "fixed_batch_loss")


def quiet():
    """Keep notes of libraries that no user can act on out of the program's output; errors still show."""
    warnings.filterwarnings("ignore", category=FutureWarning)
    warnings.filterwarnings("ignore", category=UserWarning, module=r"(torch|deepspeed|accelerate|torchao)\b")
    for name in ("DeepSpeed", "accelerate", "torch.distributed", "torchao"):
        logging.getLogger(name).setLevel(logging.ERROR)


class Log:
    """What the first process writes of a run; the others' Log does nothing.

    A step's losses stay on the GPU until the next step is queued: to read them before would have the GPU wait.
    The fixed batch is one that stays as it is for the whole run, at timesteps spread over the schedule: its loss
    falls in a good run, while that of a step depends on the timestep drawn.
    """

    def __init__(self, args, step, main=True):
        self.main = main
        self.waiting = None  # the row of the last step, whose numbers are still to be read
        if main:
            self.folder = args.output_dir
            self.path = self.folder / "train_log.csv"
            self.tracker = make_tracker(args)
            rows = rows_until(step, self.path)
            self.writer = csv.writer(open(self.path, "w", newline="", buffering=1))
            self.writer.writerows([COLUMNS, *rows])
            self.validated = [["step", "psnr"], *rows_until(step, self.folder / "validation" / "psnr.csv")]

    def add(self, step, losses, rate, norm, seconds, fixed=None):
        """Take a step's numbers and write the row of the step before.

        losses: tensor [ranks]; norm: the gradients' before clipping; fixed: tensor [ranks] of the losses of the
        fixed batch before this step, or None where it was not looked at.
        Returns what the progress bar is to show.
        """
        fixed = None if fixed is None else later(fixed)
        shown = self.flush()
        self.waiting = (step, later(losses), rate, later(norm), seconds, fixed)
        return shown

    def flush(self):
        """Write the row that is waiting, if there is one; returns what the progress bar is to show."""
        if not self.main or not self.waiting:
            return {}
        step, losses, rate, norm, seconds, fixed = self.waiting
        self.waiting = None
        losses = losses().tolist()
        loss = sum(losses) / len(losses)
        values = {"loss": loss, "learning_rate": rate, "gradient_norm": float(norm())}
        if fixed:
            values["fixed_batch_loss"] = float(fixed().mean())
        each = " ".join(repr(value) for value in losses)
        self.writer.writerow([step, repr(loss), repr(rate), repr(values["gradient_norm"]), f"{seconds:.3f}", each,
                              repr(values["fixed_batch_loss"]) if fixed else ""])
        if self.tracker:
            self.tracker.log(values, step=step)
        return {"loss": f"{loss:.4f}", "lr": f"{rate:.2e}", "grad_norm": f"{values['gradient_norm']:.3f}"}

    def add_validation(self, step, psnr):
        """A row of validation/psnr.csv: the mean over renders, dB."""
        if not self.main:
            return
        self.validated.append([step, f"{psnr:.3f}"])
        with open(self.folder / "validation" / "psnr.csv", "w", newline="") as file:
            csv.writer(file).writerows(self.validated)
        if self.tracker:
            self.tracker.log({"validation_psnr": psnr}, step=step)

    def plot(self):
        """Write train_curve.png."""
        if self.main:
            self.flush()
            plot(self.path, self.path.with_name("train_curve.png"))


def plot(log, picture):
    """Draw a train_log.csv: the loss of every step, that of the fixed batch, and the gradient norm."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    with open(log, newline="") as file:
        rows = list(csv.DictReader(file))
    if not rows:
        return
    steps = [int(row["step"]) for row in rows]
    losses = [float(row["loss"]) for row in rows]
    looked = [row for row in rows if row["fixed_batch_loss"]]
    figure, (top, middle, bottom) = plt.subplots(3, 1, sharex=True, figsize=(8, 8), layout="constrained")
    top.plot([int(row["step"]) for row in looked], [float(row["fixed_batch_loss"]) for row in looked], "o-")
    top.set(ylabel="loss", title="Fixed batch: falls in a good run")
    middle.plot(steps, losses, ".", alpha=0.3)
    middle.plot(steps, [mean(losses[max(0, i - 19) : i + 1]) for i in range(len(losses))])
    middle.set(ylabel="loss", title="Each step, and the mean of 20: depends on the timesteps drawn")
    bottom.plot(steps, [float(row["gradient_norm"]) for row in rows])
    bottom.set(xlabel="step", ylabel="norm", title="Gradients before clipping")
    figure.savefig(picture, dpi=100)
    plt.close(figure)


def mean(values):
    return sum(values) / len(values)


def rows_until(step, path):
    """The rows of the first `step` steps in a csv file whose first column is the step; none if it is not there."""
    rows = []
    if path.is_file():
        with open(path, newline="") as file:
            for row in csv.reader(file):
                if row and row[0].isdigit() and int(row[0]) <= step:
                    rows.append(row)
    return rows


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
