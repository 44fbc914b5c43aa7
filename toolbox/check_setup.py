"""What this machine can do, whether models are whole and go together, whether a sequence is sound.

    python toolbox/check_setup.py --model_path checkpoints/tiny/base \\
        --cognvs_ckpt_path checkpoints/tiny/cognvs_ckpt_inpaint --data_path demo_data/room

Without flags it looks at the machine alone. Of models it reads headers, not weights. A line that
begins with WRONG says what to do, and all are listed; the exit code is then 2, else 0. Paste what
it prints into a bug report.
"""

import argparse
import importlib
import os
import platform
import re
import subprocess
import sys
import textwrap
import warnings
from importlib import metadata
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # what needs packages is imported where it is used: one may be broken

INSTALL = "pip install -r cognvs_requirements.txt"
GIB = 2**30


class Wrong(Exception):
    """The message says in one line what was got, what is expected, what to do."""


class Report:
    """Prints lines, and counts those that say what is wrong."""

    def __init__(self):
        self.wrong = 0
        self.colour = sys.stdout.isatty() and not os.environ.get("NO_COLOR")
        self.home = os.path.expanduser("~").rstrip("/")  # is not shown

    def title(self, text):
        print(f"\n{text}")

    def line(self, label, text, mark=""):
        if self.home not in ("", "~"):
            text = text.replace(f"{self.home}/", "~/")
        text = f"{mark:6}{label:18} {text}"
        print(f"\033[31m{text}\033[0m" if mark == "WRONG" and self.colour else text, flush=True)

    def note(self, label, text):
        self.line(label, text, "note")

    def fail(self, label, text):
        self.wrong += 1
        self.line(label, text, "WRONG")

    def check(self, label, function, *args):
        """function(*args); None, after a line that says why, if it raises anything."""
        try:
            return function(*args)
        except Exception as error:  # broken machines and files come up with anything
            self.fail(label, words(error))
            return None


def words(error):
    """What an exception says, in one line."""
    text = " ".join(str(error).split())
    kind = type(error).__name__
    if kind in ("Wrong", "InputError"):
        return text
    if isinstance(error, ImportError):
        return f"cannot be imported: {text}; {INSTALL}"
    if isinstance(error, OSError) and error.filename:
        return (f"{error.filename}: {error.strerror}; expected a file or folder that this user may "
                "read")
    return f"got {kind}: {text}; this is not expected: please report it, with these lines"


def gib(size):
    return f"{size / GIB:.1f} GiB"


def said_by(*command):
    """The first line that a program prints; "" if there is none, or it fails."""
    environment = os.environ | {"GIT_CEILING_DIRECTORIES": str(ROOT.parent)}  # no other checkout
    try:
        done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True,
                              errors="replace", timeout=10, check=True, stdin=subprocess.DEVNULL)
    except (OSError, subprocess.SubprocessError):
        return ""
    return done.stdout.partition("\n")[0].strip()


# ---- the machine ---------------------------------------------------------------------------------


def system(report):
    """OS, Python, the commit of this checkout, packages and FFmpeg."""
    report.line("system", f"{platform.platform()}, {os.cpu_count()} CPU cores")
    if sys.version_info < (3, 11):
        report.fail("Python", f"{platform.python_version()}: expected 3.11 or newer")
    else:
        report.line("Python", platform.python_version())
    commit = said_by("git", "describe", "--always", "--dirty", "--exclude", "*")
    report.line("commit", commit or "git does not tell")
    report.check("packages", packages, report)
    report.check("av", ffmpeg, report)


def packages(report):
    """Versions of the packages of cognvs_requirements.txt; missing and older ones are wrong."""
    found = []
    text = (ROOT / "cognvs_requirements.txt").read_text()
    for name, pinned in re.findall(r"^([\w.-]+)==([\w.]+)", text, re.M):
        try:
            version = str(metadata.version(name))
        except metadata.PackageNotFoundError:
            report.fail(name, f"is not installed; expected {pinned}: {INSTALL}")
            continue
        found.append(f"{name} {version}")
        if numbers(version) < numbers(pinned):
            report.fail(name, f"{version} is older than {pinned}: {INSTALL}")
        elif numbers(version) > numbers(pinned):
            report.note(name, f"{version} is newer than {pinned}, which all was tested with")
    for number, line in enumerate(textwrap.wrap(", ".join(found), 76)):
        report.line("" if number else "packages", line)


def numbers(version):
    """The numbers of a version, without a local one such as +cu130."""
    return [int(number) for number in re.findall(r"\d+", version.partition("+")[0])]


def ffmpeg(report):
    said = said_by("ffmpeg", "-version").split()
    program = said[2] if len(said) > 2 else "none, which only hints would use"
    import av

    report.line("FFmpeg", f"{av.ffmpeg_version_info} in PyAV; program: {program}")


def gpus(report):
    """Say what each GPU is; how many of them torch can use."""
    import torch

    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    driver = said_by("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader")
    cuda = f"CUDA {torch.version.cuda}" if torch.version.cuda else "the CPU alone"
    report.line("torch", f"built for {cuda}; NVIDIA driver {driver or 'not there'}")
    for number in range(count):
        report.check(f"GPU {number}", gpu, report, number)
    if count:
        report.check("C compiler", compiler, report)
    elif driver and "CUDA_VISIBLE_DEVICES" not in os.environ:
        why = words(warned[-1].message) if warned else "it does not say why"
        report.fail("GPU", f"there is a driver, but torch finds no GPU ({why.split(';')[0]}); "
                    "install a torch built for this driver, or a newer driver")
    else:
        report.line("GPU", "none that is visible; everything runs on the CPU")
    return count


def compiler(report):
    from utils import cogvideox

    there = cogvideox.has_compiler()
    report.line("C compiler", "there" if there else "none with Python's headers, so no --compile")


def gpu(report, number):
    """Say what a GPU is, and see it compute."""
    import torch

    what = torch.cuda.get_device_properties(number)
    capability = f"compute capability {what.major}.{what.minor}"
    try:
        (torch.ones(1, device=f"cuda:{number}") + 1).item()
        free, total = torch.cuda.mem_get_info(number)
    except RuntimeError as error:
        why = " ".join(str(error).split())[:200]
        raise Wrong(f"{what.name} computes nothing ({why}); end what occupies it, install a torch "
                    f"for {capability}, or leave it out of CUDA_VISIBLE_DEVICES") from error
    bf16 = "bf16" if what.major >= 8 else "no bf16 of its own, so slow"
    report.line(f"GPU {number}", f"{what.name}, {capability}, {gib(total)}, {gib(free)} free, "
                f"{bf16}")


def parse_args():
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--model_path", type=Path, help="base model, a CogVideoX-5b-I2V folder")
    add("--cognvs_ckpt_path", type=Path, help="weights folder, or a run folder")
    add("--data_path", type=Path, help="sequence folder with gt_rgb.mp4 and cam_info/")
    add("--depth_file", help="as of data_gen.py, in the sequence folder; so are the next three, "
        "but files of the usual names are looked at even if they are not given")
    add("--intrinsics_file")
    add("--extrinsics_file")
    add("--trajs")
    return parser.parse_args()


def look(report, args):
    """Look at everything, in order; a part that fails is a line."""
    report.title("system")
    report.check("system", system, report)
    report.title("GPUs")
    count = report.check("GPU", gpus, report) or 0
    configs = None
    if args.model_path or args.cognvs_ckpt_path:
        report.title("base and weights")
        configs = report.check("models", part, "models", report, args)
    report.check("memory", part, "fits", report, args.data_path, configs, count)
    if args.data_path:
        report.title(f"sequence folder {args.data_path}")
        report.check("sequence", part, "folder", report, args, configs)


def part(name, *args):
    """What look() of a module in checks/ returns; the packages that it needs may be broken."""
    importlib.import_module("utils")  # before libraries that it keeps quiet
    return importlib.import_module(f"toolbox.checks.{name}").look(*args)


def main():
    sys.stdout.reconfigure(errors="backslashreplace")  # names of files may be of any bytes
    args = parse_args()
    report = Report()
    look(report, args)
    report.title("nothing is wrong" if not report.wrong else
                 f"{report.wrong} of these lines begin with WRONG and say what to do")
    if report.wrong:
        sys.exit(2)


if __name__ == "__main__":
    try:
        main()
    except (KeyboardInterrupt, BrokenPipeError):  # Ctrl-C, or a pager that was left
        os._exit(130)
