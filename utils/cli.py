"""What every script needs: one clear line for a user's mistake or an interruption, a lock on what
it writes, and the compute device."""

import argparse
import contextlib
import ctypes
import errno
import fcntl
import hashlib
import io
import os
import shlex
import signal
import sys
import threading
import time
from pathlib import Path

TWICE = 0.2  # seconds in which a signal is the same one again: timeout sends two


class InputError(ValueError):
    """A user's mistake; the message says in one line what was got, what is expected, what to do."""


class HelpFormatter(argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter):
    """Shows defaults, and the script's docstring as it is."""


class Interrupted(BaseException):
    """Ctrl-C or SIGTERM; the argument is the signal's number."""


def run(main, go_on="the same command goes on"):
    """Call main(); what a user did or met becomes one line on stderr and an exit code.

    An InputError or OSError: 2. Ctrl-C or SIGTERM: 128 + the signal's number, once all contexts are
    left; a second one ends the process at once. go_on: how to go on then, for the line.
    """
    number = None
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # names of files that are not UTF-8
    try:
        with interruptible():
            main()
    except Interrupted as stop:
        number = stop.args[0]
    except (InputError, OSError) as error:
        print(f"error: {said(error)}", file=sys.stderr)
        sys.exit(2)
    if number:
        print(f"\ninterrupted; {go_on}", file=sys.stderr)
        sys.exit(128 + number)


def said(error):
    """An exception's words, in one line."""
    if not isinstance(error, OSError) or not error.filename:
        return " ".join(str(error).split())
    hints = {
        errno.EACCES: "; expected a file or folder that this user may read, and write where it is "
                      "an output: see its permissions",
        errno.ENOSPC: "; free some space, or write elsewhere",
        errno.EROFS: "; write elsewhere",
    }
    return f"{error.filename}: {error.strerror}{hints.get(error.errno, '')}"


def short(words, limit=150):
    """Anything's words in one line of at most so many characters, all of which a terminal shows."""
    line = " ".join(str(words).split())
    line = "".join(c if c.isprintable() else "?" for c in line[: limit + 1])
    return line if len(line) <= limit else f"{line[:limit - 3]}..."


@contextlib.contextmanager
def interruptible():
    """While it is entered, the first Ctrl-C or SIGTERM raises Interrupted in the main thread."""

    def stop(number, frame):
        for name in before:
            signal.signal(name, signal.SIG_IGN)
        time.sleep(TWICE)
        for name in before:  # the second one
            signal.signal(name, signal.SIG_DFL)
        raise Interrupted(number)

    before = {}
    if threading.current_thread() is threading.main_thread():
        for number in (signal.SIGINT, signal.SIGTERM):
            before[number] = signal.signal(number, stop)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextlib.contextmanager
def lock(path):
    """Hold a lock file while something beside it is written; it is deleted afterwards.

    It ends with the process, however that ends. Raises InputError, which names the holder, if
    another process holds it.
    """
    path = Path(path)
    new = not path.parent.exists()
    path.parent.mkdir(parents=True, exist_ok=True)
    with _locked(path) as file:
        file.truncate(0)
        file.write(f"process {os.getpid()} on {os.uname().nodename}, since "
                   f"{time.strftime('%Y-%m-%d %H:%M:%S')}: {shlex.join(sys.argv)}")
        file.flush()
        try:
            yield
        finally:
            path.unlink(missing_ok=True)
            with contextlib.suppress(OSError):  # nothing was written
                if new:
                    path.parent.rmdir()


def check_free(path):
    """InputError if a lock is held; one that a killed process left is deleted."""
    if Path(path).exists():
        with lock(path):
            pass


def _locked(path):
    """The open file of a lock that is held."""
    while True:
        file = open(path, "a+", errors="backslashreplace")  # names need not be UTF-8
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            file.seek(0)
            holder = file.read() or "another process"
            file.close()
            raise InputError(f"{path.parent}: is being written to by {holder}; wait for it to end, "
                             "stop it, or write elsewhere") from error
        if path.exists() and os.path.samestat(os.stat(path), os.fstat(file.fileno())):
            return file
        file.close()  # its holder deleted it meanwhile


def end_with_parent():
    """For subprocess's preexec_fn, on Linux: a new process ends when the one that started it does.

    However that ends, so that a kill leaves nothing running.
    """
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG


def file_hash(path):
    """The SHA-256 of a file's bytes, in hexadecimal."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def pick_device(name=None):
    """The torch.device called `name`; without a name the first GPU, or the CPU if there is none."""
    import torch  # here, for a program that uses none of it to start at once

    name = name or ("cuda:0" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise InputError(f"--device {name}: not a device; use cpu, cuda or cuda:N") from error
    if device.type not in ("cpu", "cuda"):
        raise InputError(f"--device {name}: use cpu, cuda or cuda:N")
    count = torch.cuda.device_count()
    if device.type == "cuda" and (device.index or 0) >= count:
        raise InputError(f"--device {name}: this machine has {count} CUDA GPUs (counted from "
                         "cuda:0); use one that is there or --device cpu")
    return device


def peak_memory(device):
    """", peak GPU memory X GiB" of this process, or "" on the CPU."""
    if device.type != "cuda":
        return ""
    import torch

    return f", peak GPU memory {torch.cuda.max_memory_allocated(device) / 2**30:.1f} GiB"
