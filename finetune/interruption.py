"""Ctrl-C and SIGTERM while one process trains."""

import os
import signal

SAID = b"\ninterrupted: finishing the step and writing a checkpoint; once more stops at once\n"


class Interruption:
    """While it is entered, the first Ctrl-C or SIGTERM only sets `asked`; a second one stops.

    wanted: False leaves signals as they are, as where accelerate has several processes to stop.
    """

    def __init__(self, wanted):
        self.signals = (signal.SIGINT, signal.SIGTERM) if wanted else ()
        self.asked = 0  # the signal's number
        self.handlers = {}  # what the signals did before

    def __enter__(self):
        for number in self.signals:
            self.handlers[number] = signal.signal(number, self.note)
        return self

    def note(self, number, frame):
        self.asked = number
        self.__exit__()
        os.write(2, SAID)  # print() may be at work when the signal comes

    def __exit__(self, *error):
        for number, handler in self.handlers.items():
            signal.signal(number, handler)

    def stop(self, args, step):
        """Say how to go on after `step` steps, and exit as a process does that a signal ends."""
        hint = "checkpointing_limit=0 keeps no state to go on from"
        if args.checkpointing_limit:
            hint = "to go on, start it again with --resume_from_checkpoint latest"
        print(f"interrupted after step {step} of {args.train_epochs}; {hint}")
        raise SystemExit(128 + self.asked)
