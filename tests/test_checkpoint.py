"""What a run can go on from, whatever a kill has left, and which checkpoints stay."""

import json
import os
import re
import shutil
import subprocess
import threading
from types import SimpleNamespace

import pytest
import torch
from conftest import ROOT, call
from safetensors import SafetensorError
from training import assert_same, flags, tensors

from finetune import checkpoint, disk
from utils import pipeline
from utils.cli import InputError


def make(folder, *names):
    """Folders as of checkpoints, whole or not by their names."""
    for name in names:
        (folder / name).mkdir(parents=True)
        if name.startswith("checkpoint"):
            (folder / name / "optimizer.pt").touch()
    return folder


def test_what_to_resume_from(tmp_path):
    assert checkpoint.find_resume(tmp_path, "") == (0, None)
    make(tmp_path, "checkpoint-5", "my_checkpoint-5_transformer", "my_checkpoint-40_transformer")
    make(tmp_path, "checkpoint-40")
    assert checkpoint.find_resume(tmp_path, "latest") == (40, tmp_path / "checkpoint-40")
    other = tmp_path / "other"
    assert checkpoint.find_resume(other, str(tmp_path / "checkpoint-5"))[0] == 5
    (tmp_path / "checkpoint-50").mkdir()  # there is no state in it
    assert checkpoint.find_resume(tmp_path, "latest")[0] == 40
    for wrong in ("", "checkpoint-41", str(tmp_path), str(tmp_path / "checkpoint-5")):
        with pytest.raises(InputError):  # the last would undo step 40
            checkpoint.find_resume(tmp_path, wrong)


@pytest.mark.parametrize("left", [
    ["my_checkpoint-200_transformer.part"],
    ["checkpoint-200.part"],
    ["checkpoint-200.part", "my_checkpoint-200_transformer.part"],
    ["checkpoint-200.part", "my_checkpoint-200_transformer"],
    ["checkpoint-200.part", "my_checkpoint-200_mean", "my_checkpoint-200_lora.part"],
    ["checkpoint-150.gone.part"],  # it was being deleted
])
@pytest.mark.parametrize("earlier", [False, True])
def test_what_a_kill_leaves_blocks_nothing(tmp_path, left, earlier):
    whole = ["checkpoint-150", "my_checkpoint-150_transformer"] if earlier else []
    make(tmp_path, *left, *whole)
    if earlier:
        assert checkpoint.find_resume(tmp_path, "latest")[0] == 150
        with pytest.raises(InputError, match="holds checkpoint-150: go on .* latest"):
            checkpoint.find_resume(tmp_path, "")
    else:
        assert checkpoint.find_resume(tmp_path, "") == (0, None)
        with pytest.raises(InputError, match="leave the flag out to start anew"):
            checkpoint.find_resume(tmp_path, "latest")
    checkpoint.remove_leftovers(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(whole)


def test_weights_without_a_state_are_not_overwritten(tmp_path):
    """As of a run with checkpointing_limit=0: its result stays, and the message leads on."""
    make(tmp_path, "my_checkpoint-200_transformer")
    for resume in ("", "latest"):
        with pytest.raises(InputError) as error:
            checkpoint.find_resume(tmp_path, resume)
        hint = re.search(r"--transformer_id (\S+)$", str(error.value))
        assert hint[1] == str(tmp_path / "my_checkpoint-200_transformer")
    checkpoint.remove_leftovers(tmp_path)
    assert (tmp_path / "my_checkpoint-200_transformer").is_dir()


def test_a_state_without_its_weights_is_passed_over(tmp_path):
    make(tmp_path, "checkpoint-100", "my_checkpoint-100_transformer", "checkpoint-200")
    assert checkpoint.find_resume(tmp_path, "latest")[0] == 100
    shutil.rmtree(tmp_path / "my_checkpoint-100_transformer")
    for resume in ("", "latest"):
        with pytest.raises(InputError, match="its checkpoint-200 lacks the weights my_checkpoint"):
            checkpoint.find_resume(tmp_path, resume)
    (tmp_path / "checkpoint-200" / "latest").touch()  # DeepSpeed's holds them
    assert checkpoint.find_resume(tmp_path, "latest")[0] == 200
    (tmp_path / "checkpoint-200" / "run.json").write_text('{"training_type": "lora"}')
    with pytest.raises(InputError, match="lacks the weights"):  # but not a LoRA's
        checkpoint.find_resume(tmp_path, "latest")


@pytest.mark.parametrize("limit, states, weights", [
    (0, [], [3]), (1, [3], [3]), (2, [2, 3], [2, 3]), (9, [1, 2, 3], [1, 2, 3]),
])
def test_older_checkpoints_go(tmp_path, limit, states, weights):
    for step in (1, 2, 3):
        make(tmp_path, f"checkpoint-{step}", f"my_checkpoint-{step}_transformer",
             f"my_checkpoint-{step}_mean")
    args = SimpleNamespace(output_dir=tmp_path, checkpointing_limit=limit,
                           transformer_id=tmp_path / "elsewhere")
    checkpoint.prune(args, 3)
    assert list(checkpoint.list_states(tmp_path)) == states
    assert list(checkpoint.list_weights(tmp_path)) == weights
    assert all(len(both) == 2 for both in checkpoint.list_weights(tmp_path).values())
    assert not list(tmp_path.glob("*.part"))


def test_a_later_state_that_lost_its_weights_costs_no_newer_one(tmp_path):
    make(tmp_path, "checkpoint-50", "my_checkpoint-50_transformer", "checkpoint-100",
         "checkpoint-75", "my_checkpoint-75_transformer")
    args = SimpleNamespace(output_dir=tmp_path, checkpointing_limit=1,
                           transformer_id=tmp_path / "elsewhere")
    checkpoint.prune(args, 75)
    assert list(checkpoint.list_states(tmp_path)) == [75, 100]
    assert checkpoint.find_resume(tmp_path, "latest")[0] == 75


def test_a_mean_without_its_weights_is_no_checkpoint(tmp_path):
    make(tmp_path, "my_checkpoint-200_mean")
    assert checkpoint.list_weights(tmp_path) == {}
    assert checkpoint.find_resume(tmp_path, "") == (0, None)


def test_the_weights_that_a_run_started_from_stay(tmp_path):
    make(tmp_path, "my_checkpoint-1_transformer", "my_checkpoint-2_transformer")
    args = SimpleNamespace(output_dir=tmp_path, checkpointing_limit=1,
                           transformer_id=tmp_path / "my_checkpoint-1_transformer")
    checkpoint.prune(args, 2)
    assert list(checkpoint.list_weights(tmp_path)) == [1, 2]


def test_another_run_cannot_go_on(tmp_path):
    state = make(tmp_path, "checkpoint-5", "my_checkpoint-5_transformer") / "checkpoint-5"
    torch.save({}, state / "optimizer.pt")
    args = SimpleNamespace(memory="single", training_type="sft", ema_decay=0)
    (state / "run.json").write_text(json.dumps(checkpoint.run_facts(args, 1)))
    checkpoint.check_resume(args, state, 1)
    with pytest.raises(InputError, match="was made with processes 1, got 2"):
        checkpoint.check_resume(args, state, 2)
    args.ema_decay = 0.5
    with pytest.raises(InputError, match="no .*my_checkpoint-5_mean to go on from; give 0"):
        checkpoint.check_resume(args, state, 1)


def test_the_mean_is_written_and_gone_on_with(model, tmp_path):
    transformer = pipeline.load_transformer(model / "cognvs_ckpt_inpaint", torch.bfloat16)
    first = checkpoint.make_mean(transformer, 0.5)
    for p in transformer.parameters():
        p.data += 0.5
    first.step(transformer.parameters())
    checkpoint.save_mean(first, transformer, tmp_path / "mean")
    again = checkpoint.make_mean(transformer, 0.5, 1, tmp_path / "mean")
    assert all(map(torch.equal, first.shadow_params, again.shadow_params))
    saved = tensors(tmp_path / "mean")
    assert {tensor.dtype for tensor in saved.values()} == {torch.float32}
    loaded = pipeline.load_model(type(transformer), tmp_path / "mean", torch.float32)
    assert_same(loaded.state_dict(), saved)
    assert again.optimization_step == 1


def test_a_lora_must_be_merged_before_it_is_trained_on(model, tmp_path, capsys):
    (tmp_path / "adapter.json").write_text("{}")
    args = flags(model, tmp_path, tmp_path / "run", transformer_id=tmp_path)
    assert call("finetune.train", *args) == 2
    assert "is a LoRA; merge it first" in capsys.readouterr().err


# ---- states that are not to be trusted -----------------------------------------------------------


class Evil:
    """Runs a command when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.system, (f"touch {self.path}",)


DEEPSPEED = ("pytorch_model/mp_rank_00_model_states.pt",
             "pytorch_model/zero_pp_rank_0_mp_rank_00_optim_states.pt",
             "pytorch_model/bf16_zero_pp_rank_1_mp_rank_00_optim_states.pt",
             "random_states_0.pkl")


def make_state(folder, *files):
    for name in files:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        torch.save({"step": torch.ones(2)}, folder / name)
    if "optimizer.pt" not in files:
        (folder / "latest").write_text(checkpoint.TAG)
    return folder


@pytest.mark.parametrize("name", [*DEEPSPEED, "scheduler.bin", "optimizer.pt"])
@pytest.mark.parametrize("broken", ["evil", "cut off", "a bare pickle"])
def test_no_pickle_of_a_state_is_run(tmp_path, name, broken):
    files = [name] if name == "optimizer.pt" else [*DEEPSPEED, name]
    state = make_state(tmp_path / "checkpoint-5", *files)
    checkpoint.check_files(state)
    evil = {"optimizers": [Evil(tmp_path / "ran")]}
    torch.save(evil, state / name, _use_new_zipfile_serialization=broken != "a bare pickle")
    if broken == "cut off":
        (state / name).write_bytes((state / name).read_bytes()[:300])
    with pytest.raises(InputError, match="system, which no state" if broken == "evil" else
                       "not a whole file of a state") as error:
        checkpoint.check_files(state)
    assert str(state / name) in str(error.value) and "\n" not in str(error.value)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("latest", ["..", "../other", "/tmp", "", "other"])
def test_latest_names_the_folder_that_is_read(tmp_path, latest):
    state = make_state(tmp_path / "checkpoint-5", *DEEPSPEED)
    (tmp_path / "other").mkdir()
    checkpoint.check_deepspeed(state, 2)
    (state / "latest").write_text(latest)
    with pytest.raises(InputError, match="expected pytorch_model, the folder beside it"):
        checkpoint.check_deepspeed(state, 2)


def test_a_state_that_lacks_a_process_is_refused(tmp_path):
    state = make_state(tmp_path / "checkpoint-5", *DEEPSPEED)
    with pytest.raises(InputError, match="no .*zero_pp_rank_2.* of each of 3 processes"):
        checkpoint.check_deepspeed(state, 3)


@pytest.mark.parametrize("text", ["{", "[1]", "7", ""])
def test_a_broken_run_json_is_one_line(tmp_path, text):
    state = make(tmp_path, "checkpoint-5", "my_checkpoint-5_transformer") / "checkpoint-5"
    (state / "run.json").write_text(text)
    with pytest.raises(InputError, match="run.json: .*; delete checkpoint-5"):
        checkpoint.find_resume(tmp_path, "latest")


@pytest.mark.parametrize("broken, says", [
    ("..", "latest: got '..'"), ("../other", "latest: got '../other'"), ("", "latest: got ''"),
    ("evil", "unsupported GLOBAL"), ("cut off", "could not be made into weights"),
])
def test_process_ckpts_reads_nothing_else_and_runs_nothing(tmp_path, broken, says):
    state = make_state(tmp_path / "run" / "checkpoint-5", *DEEPSPEED)
    (state / "config.json").write_text("{}")
    file = state / DEEPSPEED[0]
    if broken == "evil":
        torch.save({"module": Evil(tmp_path / "ran")}, file)
    elif broken == "cut off":
        file.write_bytes(b"PK")
    else:
        (state / "latest").write_text(broken)
    done = subprocess.run(["sh", ROOT / "toolbox" / "process_ckpts.sh"], cwd=tmp_path, text=True,
                          env=os.environ | {"CHECKPOINT_DIR": state.name}, capture_output=True)
    assert done.returncode == 2 and done.stderr.count("\n") == 1 and says in done.stderr
    assert os.listdir(tmp_path) == ["run"] and os.listdir(tmp_path / "run") == [state.name]


def test_a_file_that_cannot_be_written_leaves_nothing(tmp_path):
    def save(folder):
        folder.mkdir()
        (folder / "half").touch()
        raise SafetensorError("No space left on device")

    with pytest.raises(OSError, match="made: could not be written: No space left"):
        pipeline.save_whole(save, tmp_path / "made")
    assert not list(tmp_path.iterdir())


# ---- full disks and kills while something is written ---------------------------------------------


class Engine:
    """One of one process, whose state is written as `write` says."""

    rank = 0
    ranks = 1
    whole = True

    def __init__(self, write):
        self.write = write

    def state(self):
        return {}

    def save(self, folder, state):
        (folder / "optimizer.pt").write_bytes(b"half")
        self.write()

    def wait(self):
        pass


def full():
    raise RuntimeError("PytorchStreamWriter failed writing file")


def saver(model, folder, write, **sizes):
    args = SimpleNamespace(output_dir=folder, training_type="sft", memory="single",
                           checkpointing_limit=1, transformer_id=model / "cognvs_ckpt_inpaint")
    transformer = pipeline.load_transformer(args.transformer_id, torch.bfloat16)
    sizes = disk.Sizes(**{"weights": 0, "mean": 0, "state": 0, **sizes})
    return checkpoint.Saver(args, Engine(write), transformer, None, sizes)


@pytest.mark.parametrize("last", [True, False])  # at once; in the thread
@pytest.mark.parametrize("write, sizes", [
    (full, {}), (lambda: None, {"state": 2**60}),
])
def test_a_full_disk_leaves_whole_weights_and_the_checkpoint_before(
        model, tmp_path, capsys, monkeypatch, last, write, sizes):
    monkeypatch.setattr(checkpoint.Saver, "copies_fit", lambda self: True)
    make(tmp_path, "checkpoint-2", "my_checkpoint-2_transformer")
    with saver(model, tmp_path, write, **sizes) as writer, pytest.raises(SystemExit) as stop:
        writer.save(3, last)
        writer.finish()
    assert stop.value.code == 2
    names = {path.name for path in tmp_path.iterdir()}
    assert names == {"checkpoint-2", "my_checkpoint-2_transformer", "my_checkpoint-3_transformer"}
    pipeline.load_transformer(tmp_path / "my_checkpoint-3_transformer", torch.bfloat16)
    said = capsys.readouterr().err
    assert "error: " in said and "the weights my_checkpoint-3_transformer are kept; checkpoint-2" \
        in said
    assert checkpoint.find_resume(tmp_path, "latest")[0] == 2


def test_weights_that_do_not_fit_leave_nothing(model, tmp_path, capsys):
    with saver(model, tmp_path, full, weights=2**60) as writer, pytest.raises(SystemExit):
        writer.save(3, True)
    assert not list(tmp_path.iterdir())
    assert "no checkpoint is kept; free some space" in capsys.readouterr().err


def test_the_thread_writes_what_was_there_when_it_was_asked(model, tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoint.Saver, "copies_fit", lambda self: True)
    with saver(model, tmp_path, lambda: None) as writer:
        before = {name: p.clone() for name, p in writer.transformer.state_dict().items()}
        changed = threading.Event()
        writer.thread.submit(changed.wait)  # comes before the checkpoint
        writer.save(3, False)
        for p in writer.transformer.parameters():
            p.data += 1
        changed.set()
        writer.finish()
    assert_same(tensors(tmp_path / "my_checkpoint-3_transformer"), before)


def test_the_state_of_an_eight_bit_optimizer_is_copied():
    from torchao.optim import AdamW8bit

    p = torch.nn.Parameter(torch.ones(8192, dtype=torch.bfloat16))
    optimizer = AdamW8bit([p])

    def step():
        p.grad = torch.ones_like(p)
        with torch.compiler.set_stance("force_eager"):
            optimizer.step()

    def moment(state):
        return state["state"][0]["exp_avg"].dequantize()

    step()
    copy = checkpoint.to_host(optimizer.state_dict())
    before = moment(optimizer.state_dict()).clone()
    step()
    assert torch.equal(moment(copy), before)
    assert not torch.equal(moment(optimizer.state_dict()), before)


def write_file(text):
    def save(folder):
        folder.mkdir()
        file = folder / "weights"
        file.write_text(text)
        file.chmod(0o600)  # as safetensors does
    return save


@pytest.mark.parametrize("umask, mode", [(0o022, 0o644), (0o002, 0o664), (0o077, 0o600)])
def test_weights_can_be_read_as_the_umask_says(tmp_path, umask, mode):
    before = os.umask(umask)
    try:
        pipeline.save_whole(write_file("new"), tmp_path / "made")
    finally:
        os.umask(before)
    assert (tmp_path / "made" / "weights").stat().st_mode & 0o777 == mode


@pytest.mark.parametrize("killed_at", [0, 1, 2])
def test_a_kill_while_a_folder_is_replaced_loses_none(tmp_path, monkeypatch, killed_at):
    folder = tmp_path / "my_checkpoint-3_transformer"
    pipeline.save_whole(write_file("old"), folder)
    rename = type(folder).replace
    left = [killed_at]

    def killed(path, target):
        if left[0] == 0:
            raise KeyboardInterrupt
        left[0] -= 1
        return rename(path, target)

    with monkeypatch.context() as patch:
        patch.setattr(type(folder), "replace", killed)
        if killed_at < 2:
            with pytest.raises(KeyboardInterrupt):
                pipeline.save_whole(write_file("new"), folder)
        else:
            pipeline.save_whole(write_file("new"), folder)
    checkpoint.remove_leftovers(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [folder.name]
    assert (folder / "weights").read_text() == ("new" if killed_at == 2 else "old")


@pytest.mark.parametrize("there, limit, steps, expected", [
    (0, 1, 200, 2), (0, 1, 40, 1), (1, 1, 200, 1), (0, 3, 200, 4), (0, 0, 200, 2), (0, 0, 40, 1),
    (0, 9, 120, 3), (0, 1, 51, 2),
])
def test_how_many_checkpoints_the_disk_holds_at_once(tmp_path, there, limit, steps, expected):
    for number in range(there):
        make(tmp_path, f"checkpoint-{50 * number + 50}")
    args = SimpleNamespace(output_dir=tmp_path, checkpointing_limit=limit, train_epochs=steps,
                           checkpointing_steps=50)
    assert disk.at_once(args, 50 * there) == expected
