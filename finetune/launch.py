"""Starts the processes of a training that has several, and ends with them.

    python launch.py accelerate_config.yaml FLAGS_OF_TRAIN.PY

finetune_cognvs.sh runs this for memory=zero2 and zero2_offload, whose processes that file names,
and for memory=single with num_processes above 1. prepare.py comes first, in a process of its own,
for what it looks at would stay in a GPU's memory; then train.py in one process for each GPU. They
meet as those of torchrun do. Ctrl-C or SIGTERM asks all of them once to save and stop; when one
fails, all end.
"""

import argparse
import os
import signal
import sys

if __name__ == "__main__":  # Ctrl-C while libraries load ends without a traceback
    signal.signal(signal.SIGINT, signal.SIG_DFL)

import subprocess
import time
import traceback
from datetime import timedelta
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from finetune import hosts
from utils import cli
from utils.cli import InputError

ASK = signal.SIGUSR1  # to stop: ends a process that has not begun to train
GO_ON = "to go on, start it again, with --resume_from_checkpoint latest if it wrote a checkpoint"
STOPPED = 128 + signal.SIGTERM  # exit code of a process that has stopped as it was asked to
TELL = "COGNVS_TELL"  # the file descriptor where a process tells what ended it
GRACE = 1.0  # seconds in which others may fail too, after a first


def run(main):
    """cli.run(), or in a process that this program started: tell it what ended the process.

    Such a process leaves Ctrl-C and SIGTERM, which a terminal or a cluster sends to all of them, to
    this program.
    """
    if TELL not in os.environ:
        return cli.run(main, GO_ON)
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    try:
        return main()
    except (InputError, OSError) as error:
        code, text = 2, f"error: {cli.said(error)}\n"
    except Exception:
        code, text = 1, traceback.format_exc()[-4000:]
    os.write(int(os.environ[TELL]), f"{code} {text}\0".encode())
    sys.stdout.flush()
    os._exit(code)  # now: others may wait for this process without end


def own_place():
    """(rank, processes, number on this machine) of a process that this program started.

    (0, 1, 0) of any other one, whatever a cluster left in its environment.
    """
    if TELL not in os.environ:
        return 0, 1, 0
    return tuple(int(os.environ[name]) for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"))


class Processes:
    """Processes that run together: a signal reaches all of them, and when one fails all end."""

    def __init__(self):
        self.children = []
        self.asked = 0  # the signal's number
        self.since = 0  # seconds, of the clock: when it came
        self.told, self.tell = os.pipe()

    def start(self, program, *flags, **environment):
        environment = os.environ | environment | {TELL: str(self.tell)}
        command = [sys.executable, program, *map(str, flags)]
        self.children.append(subprocess.Popen(command, env=environment, pass_fds=[self.tell],
                                              preexec_fn=cli.end_with_parent))
        if self.asked:  # meanwhile
            self.send(ASK)

    def note(self, number, frame):
        """A signal came: the first asks all to stop, a second one ends them."""
        again = self.asked and time.monotonic() - self.since > cli.TWICE
        if again:
            self.send(signal.SIGKILL)
        elif not self.asked:
            self.asked = number
            self.since = time.monotonic()
            self.send(ASK)

    def send(self, number):
        for child in self.children:
            child.send_signal(number)

    def wait(self):
        """Wait until all have ended, by themselves or because one has failed; the exit code."""
        deadline = None
        codes = self.codes()
        while None in codes and (deadline is None or time.monotonic() < deadline):
            time.sleep(0.05)
            codes = self.codes()
            if deadline is None and not set(codes) <= {None, 0, STOPPED}:
                deadline = time.monotonic() + GRACE
        self.send(signal.SIGKILL)
        for child in self.children:
            child.wait()
        self.children = []
        return self.result([code or 0 for code in codes])

    def codes(self):
        """Of each process; None while it runs, negative if a signal ended it."""
        return [child.poll() for child in self.children]

    def result(self, codes):
        """The exit code of all; says what went wrong, once."""
        told = self.read()
        by_signal = [number for number, code in enumerate(codes) if code < 0]
        if by_signal and self.asked:
            print(f"\ninterrupted; {GO_ON}", file=sys.stderr)
            return 128 + self.asked
        if by_signal:
            number = by_signal[0]
            name = signal.Signals(-codes[number]).name
            why = ", as when host memory runs out" * (name == "SIGKILL")
            print(f"\nerror: process {number} was ended by {name}{why}; {GO_ON}", file=sys.stderr)
            return 128 - codes[number]
        if told:  # the first one is the cause of the others
            code, _, text = told.partition("\0")[0].partition(" ")
            print(text, end="", file=sys.stderr)
            return int(code)
        return 128 + self.asked if STOPPED in codes and self.asked else max(codes)

    def read(self):
        """What the processes told."""
        os.set_blocking(self.told, False)
        try:
            return os.read(self.told, 2**16).decode(errors="replace")
        except BlockingIOError:
            return ""


def parse_args(argv):
    """(configuration, flags, those of the flags that it is compared with)."""
    parser = argparse.ArgumentParser(usage="sh finetune_cognvs.sh [--FLAG VALUE ...]",
                                     add_help=False, allow_abbrev=False)
    parser.add_argument("--memory")
    parser.add_argument("--num_processes", type=int, default=1)
    parser.add_argument("--batch_size", type=int)
    parser.add_argument("--gradient_accumulation_steps", type=int)
    parser.add_argument("--max_grad_norm", type=float)
    config, *flags = argv
    return Path(config), flags, parser.parse_known_args(flags)[0]


def choose_devices(where):
    """Let all programs see the GPUs that train alone, and give each its share of the CPU."""
    if os.environ.get("CUDA_VISIBLE_DEVICES") == "":  # stands for the CPU
        where.gpu_ids = "all"
    elif where.gpu_ids != "all":
        os.environ["CUDA_VISIBLE_DEVICES"] = where.gpu_ids
        where.gpu_ids = where.gpu_ids or "all"
    threads = max(1, len(os.sched_getaffinity(0)) // where.here)
    os.environ.setdefault("OMP_NUM_THREADS", str(threads))


def open_store(where):
    """The server by which the processes meet, on machine 0; sets the port. Else None."""
    from torch.distributed import TCPStore

    if where.machine > 0:
        return None
    try:
        store = TCPStore(where.ip, where.port, is_master=True, wait_for_workers=False,
                         timeout=timedelta(seconds=60))
    except RuntimeError as error:
        raise InputError(f"main_process_port {where.port}: cannot be used at {where.ip}, as when "
                         "another program does; give another one in accelerate_config.yaml, or "
                         "with one machine none") from error
    where.port = store.port
    return store


def place(where, number):
    """The environment of a process, its number counted on this machine, as torchrun sets it."""
    values = {
        "RANK": where.machine * where.here + number,
        "LOCAL_RANK": number,
        "WORLD_SIZE": where.processes,
        "LOCAL_WORLD_SIZE": where.here,
        "MASTER_ADDR": where.ip,
        "MASTER_PORT": where.port,
        "TORCHELASTIC_USE_AGENT_STORE": True,  # the store is open_store's
    }
    if where.deepspeed:
        values |= {"ACCELERATE_USE_DEEPSPEED": "true",
                   "ACCELERATE_DEEPSPEED_CONFIG_FILE": where.deepspeed}
    return {name: str(value) for name, value in values.items()}


def main():
    config, flags, args = parse_args(sys.argv[1:])
    if args.memory == "single" and args.num_processes > 1:
        where = hosts.Hosts(args.num_processes)
    else:
        where = hosts.read(config, args)
    choose_devices(where)
    store = open_store(where)
    together = Processes()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, together.note)
    together.start("prepare.py", "--processes", where.processes, "--machines", where.machines,
                   "--gpu_ids", where.gpu_ids, *flags)
    code = together.wait()
    if code == 0:
        for number in range(where.here):
            together.start("train.py", *flags, **place(where, number))
        code = together.wait()
    del store
    sys.exit(code)


if __name__ == "__main__":
    cli.run(main, GO_ON)
