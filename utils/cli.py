"""What every script needs around its main(): one clear line for a user's mistake, and the compute device."""

import argparse
import sys

import torch


class InputError(ValueError):
    """The user's mistake: the message says what was got, what is expected and what to do, in one line."""


class HelpFormatter(argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter):
    """Shows defaults, and the script's docstring as it is."""


def run(main):
    """Call main(); an InputError or a file that cannot be used becomes one line on stderr and exit code 2."""
    try:
        main()
    except (InputError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)


def pick_device(name=None):
    """The torch.device called `name`; without a name, the first GPU, or the CPU where there is none."""
    try:
        device = torch.device(name or ("cuda:0" if torch.cuda.is_available() else "cpu"))
    except RuntimeError as error:
        raise InputError(f"--device {name}: not a device; use cpu, cuda or cuda:N") from error
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise InputError(f"--device {name}: this machine has {torch.cuda.device_count()} CUDA GPUs (counted from "
                         "cuda:0); use one that is there or --device cpu")
    if device.type not in ("cpu", "cuda"):
        raise InputError(f"--device {name}: use cpu, cuda or cuda:N")
    return device


def peak_memory(device):
    """", peak GPU memory X GiB" of this process, or "" on the CPU."""
    if device.type != "cuda":
        return ""
    return f", peak GPU memory {torch.cuda.max_memory_allocated(device) / 2**30:.1f} GiB"
