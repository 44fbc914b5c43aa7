import os
import signal
import subprocess
import sys

import pytest
import torch
from conftest import ROOT

from utils import cli


@pytest.mark.parametrize("error, message", [
    (cli.InputError("a.mp4: no such file"), "error: a.mp4: no such file\n"),
    (OSError("disk full"), "error: disk full\n"),
    (cli.InputError("two\nlines"), "error: two lines\n"),
    (PermissionError(13, "Permission denied", "a.mp4"), "error: a.mp4: Permission denied; expected "
     "a file or folder that this user may read, and write where it is an output: see its "
     "permissions\n"),
])
def test_a_users_mistake_is_one_line_and_exit_code_2(capsys, error, message):
    def main():
        raise error

    with pytest.raises(SystemExit) as stop:
        cli.run(main)
    assert stop.value.code == 2 and capsys.readouterr() == ("", message)


def test_our_own_mistake_is_no_users():
    with pytest.raises(ZeroDivisionError):
        cli.run(lambda: 1 / 0)


def test_a_file_is_known_by_its_bytes(tmp_path):
    (tmp_path / "a").write_bytes(b"abc")
    assert cli.file_hash(tmp_path / "a").startswith("ba7816bf8f01cfea")  # FIPS 180-2, appendix B.1
    (tmp_path / "a").write_bytes(b"abd")
    assert not cli.file_hash(tmp_path / "a").startswith("ba7816bf8f01cfea")


@pytest.mark.parametrize("name", ["cuda:99", "mps", "toaster", "cpu:x"])
def test_a_device_that_is_not_there_is_refused(name):
    with pytest.raises(cli.InputError, match=f"--device {name}: "):
        cli.pick_device(name)
    assert cli.pick_device("cpu") == torch.device("cpu")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interruption_leaves_contexts_and_is_one_line(capsys, tmp_path, number):
    def main():
        with cli.lock(tmp_path / "new" / ".lock"):
            assert (tmp_path / "new" / ".lock").exists()
            os.kill(os.getpid(), number)

    before = signal.getsignal(number)
    with pytest.raises(SystemExit) as stop:
        cli.run(main, "start it again")
    assert stop.value.code == 128 + number
    assert capsys.readouterr() == ("", "\ninterrupted; start it again\n")
    assert not (tmp_path / "new").exists() and signal.getsignal(number) == before


def test_the_second_interruption_ends_at_once():
    code = ("import os, signal, time\nfrom utils import cli\n"
            "def main():\n try: os.kill(os.getpid(), 15)\n"
            " finally: os.kill(os.getpid(), 15); time.sleep(60)\ncli.run(main)")
    ended = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, timeout=60)
    assert ended.returncode == -signal.SIGTERM and ended.stderr == b""


def test_of_two_that_write_to_one_folder_the_second_is_told_who_does(tmp_path):
    lock = tmp_path / ".lock"
    with cli.lock(lock):
        with pytest.raises(cli.InputError, match=f"written to by process {os.getpid()} on .*: "):
            with cli.lock(lock):
                pass
        assert lock.exists()
    with cli.lock(lock):  # again, once the first has ended
        pass
    lock.write_text("of a process that was killed, with a long command line " * 9)
    with cli.lock(lock):
        assert lock.read_text().startswith(f"process {os.getpid()} ")
    assert not lock.exists()
