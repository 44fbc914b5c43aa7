"""What a run can go on from, whatever a kill has left, and which checkpoints stay."""

import json
import re
import shutil
from types import SimpleNamespace

import pytest
import torch
from conftest import call
from training import assert_same, flags, tensors

from finetune import checkpoint
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
