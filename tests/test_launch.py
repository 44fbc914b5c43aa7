"""How several processes start, are asked to stop, fail and end; small programs stand for them."""

import os
import signal
import socket
import subprocess
import sys
import time
from types import SimpleNamespace

import pytest
import torch
from conftest import ROOT

from finetune import hosts, launch
from finetune.interruption import Interruption
from utils import cli
from utils.cli import InputError

TELLS = "os.write(int(os.environ['COGNVS_TELL']), {!r}); os._exit({})"
SLEEPS = "print('ready', flush=True); time.sleep(60)"
STOPS = ("signal.signal(signal.SIGUSR1, lambda *_: os._exit(143)); "
         "signal.signal(signal.SIGINT, signal.SIG_IGN); " + SLEEPS)


@pytest.fixture
def together(tmp_path):
    """together(*codes): Processes that run these lines of Python; ended afterwards."""
    made = launch.Processes()

    def start(*codes):
        for number, code in enumerate(codes):
            program = tmp_path / f"{number}.py"
            program.write_text(f"import os, signal, sys, time\n{code}\n")
            made.start(str(program))
        return made

    yield start
    made.send(signal.SIGKILL)
    for child in made.children:
        child.wait()


def wait_for(text, capfd, count):
    """What came on stdout, once it has `text` so often."""
    out = ""
    deadline = time.monotonic() + 20
    while out.count(text) < count:
        assert time.monotonic() < deadline
        out += capfd.readouterr().out
        time.sleep(0.02)
    return out


def test_all_end_well(together, capfd):
    assert together("print('a')", "time.sleep(0.2)").wait() == 0
    assert capfd.readouterr().err == ""


def test_the_first_failure_is_said_once_and_the_others_end(together, capfd):
    began = time.monotonic()
    late = "time.sleep(0.3); " + TELLS.format(b"1 Traceback: connection closed\n\0", 1)
    first = TELLS.format(b"2 error: the disk is full\n\0", 2)
    assert together(late, first, SLEEPS).wait() == 2
    assert capfd.readouterr().err == "error: the disk is full\n"
    assert time.monotonic() - began < 20


def test_a_process_that_a_signal_ended_is_named_before_what_the_others_say(together, capfd):
    other = TELLS.format(b"1 Traceback: connection closed\n\0", 1)
    code = together(other, "time.sleep(0.2); os.kill(os.getpid(), 9)", SLEEPS).wait()
    said = capfd.readouterr().err.strip()
    assert code == 137 and said.startswith("error: process 1 was ended by SIGKILL")
    assert "\n" not in said


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_reaches_all_once_though_it_comes_twice_at_once(together, capfd, number):
    made = together(STOPS, STOPS)
    wait_for("ready", capfd, 2)
    made.note(number, None)
    made.note(number, None)
    assert made.wait() == 128 + number and capfd.readouterr().err == ""


def test_a_second_signal_ends_what_does_not_stop(together, capfd):
    made = together(STOPS.replace("os._exit(143)", "None"))
    wait_for("ready", capfd, 1)
    made.note(signal.SIGINT, None)
    assert made.codes() == [None]
    time.sleep(1.5 * cli.TWICE)
    made.note(signal.SIGINT, None)
    assert made.wait() == 130


def test_processes_that_have_not_begun_end_at_a_signal(together, capfd):
    made = together(SLEEPS, STOPS)
    wait_for("ready", capfd, 2)
    made.note(signal.SIGINT, None)
    assert made.wait() == 130
    assert capfd.readouterr().err.strip() == f"interrupted; {launch.GO_ON}"
    assert together(SLEEPS).wait() == 130  # one that starts afterwards ends as well


def test_what_finished_meanwhile_has_not_been_interrupted(together, capfd):
    made = together("signal.signal(signal.SIGUSR1, signal.SIG_IGN); "
                    + SLEEPS.replace("60", "0.5"))
    wait_for("ready", capfd, 1)
    made.note(signal.SIGINT, None)
    assert made.wait() == 0


def test_processes_end_with_the_one_that_started_them(tmp_path):
    (tmp_path / "child.py").write_text(f"import time\n{SLEEPS}\n")
    starter = tmp_path / "starter.py"
    starter.write_text(f"import sys\nsys.path.insert(0, {str(ROOT)!r})\n"
                       "from finetune import launch\nmade = launch.Processes()\n"
                       f"made.start({str(tmp_path / 'child.py')!r})\n"
                       "print(made.children[0].pid, flush=True)\nmade.wait()\n")
    process = subprocess.Popen([sys.executable, starter], stdout=subprocess.PIPE, text=True)
    words = {process.stdout.readline().strip(), process.stdout.readline().strip()}
    child = int((words - {"ready"}).pop())
    os.kill(child, 0)
    process.kill()
    process.wait()
    deadline = time.monotonic() + 5
    while alive(child):
        assert time.monotonic() < deadline
        time.sleep(0.05)


def alive(pid):
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


@pytest.mark.parametrize("error, code, said", [
    ("InputError('got 3;\\nexpected 2')", 2, "2 error: got 3; expected 2\n\0"),
    ("RuntimeError('ours')", 1, "RuntimeError: ours\n\0"),
])
def test_a_process_tells_what_ended_it_and_prints_nothing(tmp_path, error, code, said):
    program = tmp_path / "program.py"
    program.write_text(f"import sys\nsys.path.insert(0, {str(ROOT)!r})\n"
                       "from finetune import launch\nfrom utils.cli import InputError\n"
                       f"def main():\n    raise {error}\nlaunch.run(main)\n")
    read, write = os.pipe()
    done = subprocess.run([sys.executable, program], pass_fds=[write], capture_output=True,
                          env=os.environ | {launch.TELL: str(write)})
    assert (done.returncode, done.stdout, done.stderr) == (code, b"", b"")
    assert os.read(read, 9999).decode().endswith(said)


# ---- where the processes meet, and what they see -------------------------------------------------


def test_two_trainings_at_once_meet_at_ports_of_their_own():
    first, second = hosts.Hosts(2), hosts.Hosts(2)
    stores = [launch.open_store(first), launch.open_store(second)]
    assert first.port and second.port and first.port != second.port and len(stores) == 2


def test_a_port_that_is_in_use_is_told():
    with socket.socket() as used:
        used.bind(("", 0))
        used.listen()
        port = used.getsockname()[1]
        with pytest.raises(InputError, match=f"main_process_port {port}: cannot be used"):
            launch.open_store(hosts.Hosts(2, port=port))
        assert launch.open_store(hosts.Hosts(2, 2, machine=1, port=port)) is None


def test_every_process_of_every_machine_has_a_rank_of_its_own():
    places = []
    for machine in range(3):
        where = hosts.Hosts(6, 3, machine)
        places += [launch.place(where, number) for number in range(where.here)]
    assert [each["RANK"] for each in places] == list("012345")
    assert [each["LOCAL_RANK"] for each in places] == list("010101")
    assert {each["WORLD_SIZE"] for each in places} == {"6"}


@pytest.mark.parametrize("before, ids, after, told", [
    (None, "2,3", "2,3", "2,3"), ("1", "2", "2", "2"), ("", "0,1", "", "all"),
    ("1", "all", "1", "all"), ("1", "", "", "all")])
def test_the_gpus_that_the_programs_see(monkeypatch, before, ids, after, told):
    monkeypatch.setattr(os, "environ", {} if before is None else {"CUDA_VISIBLE_DEVICES": before})
    where = hosts.Hosts(2, gpu_ids=ids)
    launch.choose_devices(where)
    assert os.environ["CUDA_VISIBLE_DEVICES"] == after and where.gpu_ids == told
    assert int(os.environ["OMP_NUM_THREADS"]) >= 1


def test_a_process_knows_its_place_if_launch_started_it(monkeypatch):
    for name, value in launch.place(hosts.Hosts(4, 2, 1), 0).items():
        monkeypatch.setenv(name, value)
    assert launch.own_place() == (0, 1, 0)
    monkeypatch.setenv(launch.TELL, "9")
    assert launch.own_place() == (2, 4, 0)


# ---- in a process that trains --------------------------------------------------------------------


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_first_signal_is_noted_and_a_second_one_ends_the_process(capfd, number):
    before = signal.getsignal(number)
    with Interruption() as interruption:
        signal.raise_signal(number)
        assert interruption.asked == number and interruption.seen(SimpleNamespace(ranks=1))
        assert signal.getsignal(number) == signal.SIG_DFL
    assert signal.getsignal(number) == before
    assert capfd.readouterr().err.count("once more stops at once") == 1
    assert interruption.code() == 128 + number
    said = interruption.said(SimpleNamespace(train_epochs=9, checkpointing_limit=0), 3)
    assert said.startswith("interrupted after step 3 of 9; checkpointing_limit=0 keeps no state")


def test_a_process_of_launch_leaves_ctrl_c_to_it(monkeypatch):
    monkeypatch.setenv(launch.TELL, "9")
    before = signal.getsignal(signal.SIGINT)
    with Interruption() as interruption:
        assert signal.getsignal(signal.SIGINT) == before
        signal.raise_signal(launch.ASK)
        assert interruption.asked == launch.ASK
    assert interruption.code() == launch.STOPPED


def test_all_processes_stop_after_the_same_step():
    """Process 1 is asked in step 3: both see it in step 4."""
    both = [Interruption(), Interruption()]
    seen = []
    for step in range(5):
        both[1].asked = 15 if step >= 3 else 0
        asked = torch.tensor([0.0, float(step >= 3)])
        engine = SimpleNamespace(ranks=2, device="cpu", gather=lambda value, all=asked: all)
        seen.append([interruption.seen(engine) for interruption in both])
    assert seen == [[False, False]] * 4 + [[True, True]]
