"""The flags, their checks, prepare.py, and what the launch script itself does."""

import os
import re
import subprocess
from types import SimpleNamespace

import numpy as np
import pytest
from conftest import ROOT, call
from training import SCRIPT, flags, paired_room, parsed  # noqa: F401

from finetune import prepare, settings
from utils.cli import InputError

TINY = ROOT / "checkpoints" / "tiny" / "cognvs_ckpt_inpaint"


def run_script(*args, **env):
    return subprocess.run(["dash", str(SCRIPT), *map(str, args)], env=os.environ | env,
                          capture_output=True, text=True)


@pytest.fixture
def stub(tmp_path):
    """A trainer that prints its flags, one a line."""
    program = tmp_path / "stub.py"
    program.write_text("import sys\nprint(*sys.argv[1:], sep='\\n')\n")
    return str(program)


def test_the_script_gives_every_flag_of_the_trainer(stub):
    done = run_script("--memory", "single", "--seed", "7", trainer=stub)
    assert done.returncode == 0 and done.stderr == ""
    args = settings.parse_args(done.stdout.split("\n")[:-1])
    assert args.memory == "single" and args.seed == 7
    assert args.checkpointing_steps == 50 and args.learning_rate == 2e-5
    assert args.do_validation is False and args.resume_from_checkpoint == ""
    given = re.findall(r"^--(\w+)$", done.stdout, re.M)
    actions = {action.dest for action in settings.make_parser()._actions} - {"help"}
    assert set(given) == actions


@pytest.mark.parametrize("args", [["--memory=single"], ["--memory", "zero2", "--memory", "single"]])
def test_the_last_memory_counts(stub, args):
    assert run_script(*args, trainer=stub).returncode == 0


def test_another_trainer_is_for_one_process(stub):
    done = run_script("--memory", "zero2", trainer=stub)
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr.count("\n") == 1 and "expected single*" in done.stderr
    for given in (("--num_processes", 2), ("--num_processes=12",)):
        done = run_script("--memory", "single", *given, trainer=stub)
        assert done.returncode == 2 and "and 1" in done.stderr and done.stdout == ""


def test_a_config_that_is_not_there_is_told(stub):
    done = run_script("--memory", "zero2", accelerate_config="nowhere.yaml")
    assert done.returncode == 2
    assert done.stderr == "error: accelerate_config nowhere.yaml: no such file\n"


def test_help_is_the_use_of_the_script_and_that_of_the_trainer(stub):
    done = run_script("--seed", 1, "--help", trainer=stub)
    assert done.returncode == 0 and done.stderr == ""
    assert done.stdout.startswith("Test-time finetuning of CogNVS on one video: edit the values")
    assert done.stdout.endswith("in place of train.py.\n--help\n")


def test_help_explains_every_flag(capsys):
    assert call("finetune.train", "--help") == 0
    said = capsys.readouterr()
    assert said.err == "" and said.out.startswith("usage: sh finetune_cognvs.sh [--FLAG VALUE")
    for action in settings.make_parser()._actions:
        assert action.help and action.option_strings[-1] in said.out


STRAY = {"RANK": "3", "WORLD_SIZE": "4", "LOCAL_RANK": "3", "MASTER_ADDR": "10.0.0.1",
         "MASTER_PORT": "29500", "SLURM_PROCID": "1", "OMPI_COMM_WORLD_RANK": "1", "PMI_RANK": "1",
         "ACCELERATE_MIXED_PRECISION": "fp16", "TORCHELASTIC_USE_AGENT_STORE": "True"}


@pytest.mark.parametrize("memory, count, called", [
    ("single", 1, ["train.py"]), ("single", 2, ["launch.py", "a b.yaml"]),
    ("single_fused", 2, ["train.py"]),  # which refuses it
    ("zero2", 1, ["launch.py", "a b.yaml"])])
def test_what_a_cluster_left_in_the_environment_does_not_arrive(tmp_path, memory, count, called):
    """What the script calls and with which environment, shown by a stand-in for python."""
    (tmp_path / "python").write_text("#!/bin/sh\nprintf '%s\\n' \"$@\"\nenv\n")
    (tmp_path / "python").chmod(0o755)
    done = run_script("--memory", memory, "--num_processes", count, **STRAY, CDPATH="/",
                      accelerate_config="a b.yaml", PATH=f"{tmp_path}:{os.environ['PATH']}")
    assert done.returncode == 0 and done.stderr == ""
    lines = done.stdout.split("\n")
    assert lines[: len(called)] == called and "accelerate_config=a b.yaml" in lines
    assert not {f"{name}={value}" for name, value in STRAY.items()} & set(lines)


# ---- checks --------------------------------------------------------------------------------------


@pytest.mark.parametrize("values, message", [
    ({"train_epochs": 0}, "--train_epochs 0: expected at least 1;"),
    ({"learning_rate": 1}, "--learning_rate 1.0: expected above 0 and below 1"),
    ({"ema_decay": 1}, "--ema_decay 1.0: expected at least 0 and below 1"),
    ({"max_grad_norm": "inf"}, "--max_grad_norm inf: expected above 0"),
    ({"learning_rate": "nan"}, "--learning_rate nan: expected above 0"),
    ({"base_dir_input": "nowhere"}, "--base_dir_input nowhere: no folder at /"),
    ({"transformer_id": TINY}, "got in_channels 96; expected 32"),
    ({"memory": "single_fused", "gradient_accumulation_steps": 2}, "updates the weights in every"),
    ({"memory": "single_fused", "num_processes": 2}, "--num_processes 2: is for memory=single;"),
    ({"condition_encodings": -1}, "--condition_encodings -1: expected at least 0"),
    ({"training_type": "lora", "ema_decay": 0.5}, "--ema_decay 0.5: is for training_type=sft"),
    ({"report_to": "wandb"}, "--report_to wandb: not installed; pip install wandb"),
    ({"resume_from_checkpoint": "no/checkpoint-7"}, "no whole checkpoint-N at /"),
    ({"resume_from_checkpoint": "latest"}, "latest: no whole checkpoint-N in"),
])
def test_bad_settings_are_refused_before_anything_is_made(
        model, paired_room, tmp_path, values, message):  # noqa: F811
    args = parsed(model, paired_room, tmp_path / "run", **values)
    with pytest.raises(InputError, match=re.escape(message)):
        prepare.prepare(args)
    assert not (tmp_path / "run").exists()


def test_an_error_is_one_line_and_exit_code_2(model, paired_room, tmp_path, capsys):  # noqa: F811
    args = flags(model, paired_room, tmp_path / "run", train_epochs=0)
    assert call("finetune.train", *args) == 2
    said = capsys.readouterr()
    assert said.err.startswith("error: --train_epochs 0") and said.err.count("\n") == 1


@pytest.mark.parametrize("flag, value", [("memory", "double"), ("compile", "perhaps")])
def test_values_that_are_no_choice(tmp_path, capsys, flag, value):
    with pytest.raises(SystemExit) as stop:
        parsed(tmp_path, "f", "o", **{flag: value})
    assert stop.value.code == 2 and value in capsys.readouterr().err


def test_frozen_pairs_are_refused_by_prepare(model, paired_room, tmp_path):  # noqa: F811
    cameras = paired_room / "train_cameras1.npz"
    kept = cameras.read_bytes()
    np.savez(cameras, c2w=np.eye(4), frames=np.zeros(17, int))
    try:
        with pytest.raises(InputError, match="train_render1.mp4: its path freezes"):
            prepare.prepare(parsed(model, paired_room, tmp_path / "run"))
    finally:
        cameras.write_bytes(kept)


def test_pairs_that_are_no_files_are_checked_by_their_caller(model, tmp_path, capsys):
    args = parsed(model, "nowhere", tmp_path / "run")
    args.condition_encodings = 0
    prepare.prepare(args, check_pairs=None)
    assert "1 process: about" in capsys.readouterr().out
    args.do_validation = True
    with pytest.raises(InputError, match="no renders to inpaint"):
        prepare.prepare(args, check_pairs=None)
    args.do_validation = False
    args.condition_encodings = 2
    with pytest.raises(InputError, match="--condition_encodings 2: these pairs cannot be encoded"):
        prepare.prepare(args, check_pairs=None)


def test_the_processes_of_prepare_are_flags(
        model, paired_room, tmp_path, capsys, monkeypatch):  # noqa: F811
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    args = flags(model, paired_room, tmp_path / "run", memory="zero2")
    assert call("finetune.prepare", "--processes", 4, "--gpu_ids", "0,1", *args) == 0  # on a CPU
    assert "memory=zero2, training_type=sft, 4 processes: about" in capsys.readouterr().out


def test_all_processes_share_total_samples(model, paired_room, tmp_path):  # noqa: F811
    args = parsed(model, paired_room, tmp_path / "run", total_samples=9, batch_size=2)
    settings.check(args, processes=2)
    assert args.train_epochs == 3


@pytest.mark.parametrize("schedule, expected", [
    ("constant", [0.5, 1, 1, 1, 1]),
    ("linear", [0.5, 1, 0.75, 0.5, 0.25]),
    ("cosine", [0.5, 1, 0.8536, 0.5, 0.1464]),
])
def test_learning_rates_after_one_step_of_warm_up(schedule, expected):
    args = SimpleNamespace(lr_scheduler=schedule, lr_warmup_steps=1, train_epochs=5,
                           learning_rate=2.0)
    rates = [settings.learning_rate(args, step) / 2 for step in range(5)]
    np.testing.assert_allclose(rates, expected, atol=1e-4)


def test_prepare_explains_itself(capsys):
    assert call("finetune.prepare", "--help") == 0
    said = capsys.readouterr().out
    assert "--processes" in said and "--train_epochs" in said
