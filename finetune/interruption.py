"""Ctrl-C and SIGTERM while one process trains: the step is finished and a checkpoint written."""

import os
import signal

SAID = b"\ninterrupted: finishing the step and writing a checkpoint; once more to stop at once\n"


class Interruption:
    """While it is entered, the first Ctrl-C or SIGTERM only sets `asked`; the second one stops the process.

    wanted: False to leave signals as they are, as where accelerate has several processes to stop.
    """

    def __init__(self, wanted):
        self.handlers = {}  # of the signals that are taken, what they were handled by before
        self.wanted = wanted
        self.asked = 0  # the signal's number

    def __enter__(self):
        if self.wanted:
            for number in (signal.SIGINT, signal.SIGTERM):
                self.handlers[number] = signal.signal(number, self.note)
        return self

    def note(self, number, frame):
        self.asked = number
        self.give_back()
        os.write(2, SAID)  # print() could be at work already

    def give_back(self):
        for number, handler in self.handlers.items():
            signal.signal(number, handler)
        self.handlers = {}

    def __exit__(self, *error):
        self.give_back()

    def stop(self, args, step):
        """Say how to go on after `step` steps, and end as a process does that the signal ended."""
        print(f"interrupted after step {step} of {args.train_epochs}; ", end="")
        if args.checkpointing_limit:
            print("to go on, start again with --resume_from_checkpoint latest")
        else:
            print("checkpointing_limit is 0, so there is no state to go on from, but the weights can be used")
        raise SystemExit(128 + self.asked)
