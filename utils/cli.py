"""What every script needs: one clear line for a user's mistake, and the compute device."""

import argparse
import hashlib
import sys

import torch


class InputError(ValueError):
    """A user's mistake; the message says in one line what was got, what is expected, what to do."""


class HelpFormatter(argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter):
    """Shows defaults, and the script's docstring as it is."""


def run(main):
    """Call main(); an InputError or OSError becomes one line on stderr and exit code 2."""
    try:
        main()
    except (InputError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)


def file_hash(path):
    """The SHA-256 of a file's bytes, in hexadecimal."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def pick_device(name=None):
    """The torch.device called `name`; without a name the first GPU, or the CPU if there is none."""
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
    return f", peak GPU memory {torch.cuda.max_memory_allocated(device) / 2**30:.1f} GiB"
