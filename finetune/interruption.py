"""Ctrl-C and SIGTERM in training: the step is finished and a checkpoint written."""

import os
import signal
import time

import torch

from finetune import launch, log
from utils import cli

SAID = b"\ninterrupted: finishing the step and writing a checkpoint; once more stops at once\n"


class Interruption:
    """While it is entered, the first signal only sets `asked`; a second one ends the process.

    The signals are Ctrl-C and SIGTERM, or in a process of launch.py the one that it sends.
    """

    def __init__(self):
        self.launched = launch.TELL in os.environ
        self.signals = (launch.ASK,) if self.launched else (signal.SIGINT, signal.SIGTERM)
        self.asked = 0  # the signal's number
        self.waiting = None  # what the processes said in the last step, to be read
        self.handlers = {}  # what the signals did before

    def __enter__(self):
        for number in self.signals:
            self.handlers[number] = signal.signal(number, self.note)
        return self

    def note(self, number, frame):
        self.asked = number
        for each in self.signals:
            signal.signal(each, signal.SIG_IGN)
        if not self.launched or os.environ.get("RANK") == "0":
            os.write(2, SAID)  # print() may be at work when the signal comes
        time.sleep(cli.TWICE)  # a program that sends it twice at once means it once
        for each in self.signals:
            signal.signal(each, signal.SIG_DFL)

    def __exit__(self, *error):
        for number, handler in self.handlers.items():
            signal.signal(number, handler)

    def seen(self, engine):
        """Whether a process was asked to stop; to be called by all of them, after each step.

        Several get the same answer, one step late: it is read when the next step is queued.
        """
        if engine.ranks == 1:
            return bool(self.asked)
        before = self.waiting
        asked = torch.full((), float(self.asked > 0), device=engine.device)
        self.waiting = log.later(engine.gather(asked))
        return bool(before and before().any())

    def said(self, args, step):
        """How to go on after `step` steps."""
        hint = "checkpointing_limit=0 keeps no state to go on from"
        if args.checkpointing_limit:
            hint = "to go on, start it again with --resume_from_checkpoint latest"
        return f"interrupted after step {step} of {args.train_epochs}; {hint}"

    def code(self):
        """The exit code of a process that a signal ends; launch.py gives its own."""
        return launch.STOPPED if self.launched else 128 + self.asked
