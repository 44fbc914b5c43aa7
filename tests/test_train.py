"""Whole runs: one process in this one, several by the launch script as users start it."""

import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from conftest import ROOT, call, free_port
from safetensors.torch import save_file
from training import (  # noqa: F401
    SCRIPT,
    assert_same,
    flags,
    log,
    paired_room,
    parsed,
    pipe,
    tensors,
    until_step_2,
)

from finetune import disk, memory, prepare, settings, train
from finetune.log import Log, NotFinite, add_row, plot
from utils import cli, pipeline, video
from utils.cli import InputError

SHAPE = (17, 32, 48)
TWICE = {"checkpointing_steps": 2, "checkpointing_limit": 2}
FIXED = "fixed_batch_loss"


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A random model for clips of SHAPE, in place of the usual larger one."""
    folder = tmp_path_factory.mktemp("model")
    size = "--frames", SHAPE[0], "--height", SHAPE[1], "--width", SHAPE[2]
    assert call("toolbox.small_model.make_tiny_checkpoint", "--output_dir", folder, *size) == 0
    return folder


# ---- one process ---------------------------------------------------------------------------------


@pytest.fixture(scope="module", params=["single sft", "single_fused sft", "single lora"])
def single(request, model, paired_room, tmp_path_factory):  # noqa: F811
    """(settings, folder) of three steps with checkpoints at 2 and 3."""
    mode, kind = request.param.split()
    values = {"memory": mode, "training_type": kind, "rank": 8, "lora_alpha": 4}
    folder = tmp_path_factory.mktemp("checkpoints") / "run"
    args = flags(model, paired_room, folder, **TWICE, **values)
    assert call("finetune.train", *args) == 0
    return values, folder


def test_a_resume_equals_no_interruption(single, model, paired_room, tmp_path):  # noqa: F811
    """Though it also looks at the fixed batch at every step, which must change nothing."""
    values, run = single
    resumed = until_step_2(run, tmp_path / "resumed")
    args = flags(model, paired_room, resumed, resume_from_checkpoint="latest", evaluation_steps=1,
                 checkpointing_limit=1, **values)
    assert call("finetune.train", *args) == 0
    assert log(resumed, FIXED) == log(run, FIXED) and len(log(run)) == 3
    assert [bool(row[FIXED]) for row in log(resumed)] == [True, False, True]
    kind = "lora" if values["training_type"] == "lora" else "transformer"
    ours = tensors(resumed / f"my_checkpoint-3_{kind}")
    assert_same(ours, tensors(run / f"my_checkpoint-3_{kind}"))
    for file in (run / f"my_checkpoint-3_{kind}").glob("*.json"):
        assert (resumed / file.relative_to(run)).read_text() == file.read_text()
    assert {tensor.dtype for tensor in ours.values()} == {torch.bfloat16}
    before = tensors(run / f"my_checkpoint-2_{kind}")
    same = {name for name in ours if torch.equal(ours[name], before[name])}
    assert same <= {"patch_embed.pos_embedding"}
    states = [torch.load(folder / "checkpoint-3" / "optimizer.pt", weights_only=True)
              for folder in (run, resumed)]
    assert len(states[0]["optimizers"]) == 2 + (kind != "lora")  # blocks, and what is in none
    for one, other in zip(*(state["optimizers"] for state in states), strict=True):
        for name in ("exp_avg", "exp_avg_sq"):
            first, second = (each["state"][0][name].dequantize() for each in (one, other))
            assert torch.equal(first, second)
    left = {path.name for path in resumed.glob("*checkpoint-*")}
    assert left == {"checkpoint-3", f"my_checkpoint-3_{kind}"}  # of which limit 1 keeps


def test_a_run_killed_after_its_end_is_completed(single, model, paired_room, tmp_path):  # noqa: F811
    """What was not deleted yet goes, the curve is drawn, and all else stays as it is."""
    values, run = single
    killed = shutil.copytree(run, tmp_path / "killed")
    (killed / "train_curve.png").unlink()
    (killed / "checkpoint-1.gone.part").mkdir()
    args = flags(model, paired_room, killed, resume_from_checkpoint="latest",
                 checkpointing_limit=1, **values)
    assert call("finetune.train", *args) == 0
    assert log(killed) == log(run) and (killed / "train_curve.png").is_file()
    kind = "lora" if values["training_type"] == "lora" else "transformer"
    left = {path.name for path in killed.glob("*checkpoint-*")}
    assert left == {"checkpoint-3", f"my_checkpoint-3_{kind}"}


def test_a_lora_goes_on_with_its_own_alpha(single, model, paired_room, capsys):  # noqa: F811
    values, run = single
    args = flags(model, paired_room, run, resume_from_checkpoint="latest", train_epochs=4,
                 **values | {"lora_alpha": 8})
    if values["training_type"] == "lora":
        assert call("finetune.train", *args) == 2
        assert "was made with lora_alpha 4.0, got 8.0" in capsys.readouterr().err


def test_an_adapter_is_loaded_and_merged_at_its_own_scale(single, pipe, tmp_path):  # noqa: F811
    values, run = single
    if values["training_type"] == "sft":
        pytest.skip("whole weights")
    adapter = pipeline.find_weights(run)
    loaded = pipeline.load_transformer(adapter, torch.float32).state_dict()
    learnt = tensors(adapter)
    name = "transformer_blocks.0.attn1.to_q"
    a = learnt[f"{name}.lora_A.weight"].float()
    b = learnt[f"{name}.lora_B.weight"].float()
    moved = loaded[f"{name}.weight"] - pipe.transformer.state_dict()[f"{name}.weight"]
    assert (b @ a).abs().max() > 1e-4
    torch.testing.assert_close(moved, 4 / 8 * (b @ a), atol=1e-6, rtol=1e-4)  # alpha / rank
    merged = tmp_path / "merged"
    merge = ("toolbox.merge_lora", "--lora_path", run, "--output_dir", merged)
    assert call(*merge) == 0
    assert call(*merge) == 2  # it is there
    assert_same(*(pipeline.load_transformer(folder, torch.bfloat16).state_dict()
                  for folder in (adapter, merged)))
    wrong = Path(shutil.copytree(adapter, tmp_path / "wrong"))
    (wrong / "adapter.json").write_text(json.dumps({"weights": str(merged), "fingerprint": "0"}))
    with pytest.raises(InputError, match="is not what it was trained on"):
        pipeline.load_transformer(wrong, torch.float32)
    (wrong / "adapter.json").write_text("[]")
    with pytest.raises(InputError, match="adapter.json: got .* expected JSON with weights and"):
        pipeline.load_transformer(wrong, torch.float32)


def test_an_interrupted_run_is_written_and_goes_on(
        single, model, paired_room, tmp_path, capsys):  # noqa: F811
    values, run = single
    if values["memory"] != "single_fused":
        pytest.skip("once is enough")
    folder = tmp_path / "run"
    before = signal.getsignal(signal.SIGINT)

    def interrupt():
        while not (folder / "train_log.csv").is_file():
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGINT)

    thread = threading.Thread(target=interrupt)
    thread.start()
    assert call("finetune.train", *flags(model, paired_room, folder, **values)) == 130
    thread.join()
    said = capsys.readouterr()
    done = len(log(folder))
    assert 1 <= done < 3 and f"interrupted after step {done} of 3; to go on" in said.out
    assert "--resume_from_checkpoint latest" in said.out and "Traceback" not in said.err
    assert signal.getsignal(signal.SIGINT) == before
    args = flags(model, paired_room, folder, resume_from_checkpoint="latest", **values)
    assert call("finetune.train", *args) == 0
    assert log(folder, FIXED) == log(run, FIXED)
    assert_same(*(tensors(each / "my_checkpoint-3_transformer") for each in (run, folder)))


def test_a_run_with_conditions_made_ahead_goes_on_with_the_same(
        model, paired_room, tmp_path, capsys):  # noqa: F811
    whole = tmp_path / "run"
    values = {"condition_encodings": 2, "gradient_accumulation_steps": 2}  # three pairs, 6 samples
    assert call("finetune.train", *flags(model, paired_room, whole, **values, **TWICE)) == 0
    assert "| 3/3 " in capsys.readouterr().err.split("encoding conditions: 100%")[1]  # no pair less
    resumed = until_step_2(whole, tmp_path / "resumed")
    args = flags(model, paired_room, resumed, **values, resume_from_checkpoint="latest")
    assert call("finetune.train", *args) == 0
    assert log(resumed, FIXED) == log(whole, FIXED) and len(log(whole)) == 3
    assert_same(*(tensors(folder / "my_checkpoint-3_transformer") for folder in (whole, resumed)))


@pytest.mark.parametrize("given, turns, samples, count", [
    (32, 8, 200, 32), (32, 40, 200, 40), (32, 8, 63, 0), (32, 101, 200, 0), (32, 257, 2000, 0),
    (300, 257, 2000, 300), (0, 8, 200, 0)])
def test_conditions_are_made_ahead_where_that_saves_much(given, turns, samples, count):
    args = SimpleNamespace(condition_encodings=given)
    pairs = SimpleNamespace(turns=lambda: turns)
    assert train.count_encodings(args, pairs, samples) == count


class MadePairs:
    """TrainingPairs that are made and not read from files."""

    def __init__(self, *opened):
        self.opened = opened

    def __str__(self):
        return "made pairs"

    def latents(self, pipe, draw, rng, device, dtype, size=1):  # noqa: F811
        x0 = torch.randn(size, 5, 16, 4, 6, generator=rng).to(dtype)
        return x0, x0 + 0.1

    def files(self):
        return []


def test_a_program_trains_on_pairs_of_its_own(model, tmp_path, capsys):
    args = parsed(model, "nowhere", tmp_path / "run", train_epochs=2, checkpointing_limit=0,
                  condition_encodings=0)
    opened = []

    def open_pairs(*given):
        opened.append(given)
        return MadePairs()

    train.train(args, open_pairs)
    assert opened[0][:4] == (args.base_dir_input, args.model_path, SHAPE, 0)
    assert "made pairs, 1 process on cpu, memory=single, steps 0 to 2" in capsys.readouterr().out
    names = {path.name for path in (tmp_path / "run").glob("*checkpoint*")}
    assert names == {"my_checkpoint-2_transformer"}  # limit 0: no state


def written(folder):
    return sum(path.stat().st_size for path in folder.rglob("*"))


def assert_fits(sizes, run, kind):
    """The arithmetic of disk.py is what lies there, and disk.SMALL covers the rest."""
    weights = run / f"my_checkpoint-3_{kind}"
    for expected, folder in ((sizes.weights, weights), (sizes.state, run / "checkpoint-3"),
                             (sizes.mean, run / "my_checkpoint-3_mean")):
        there = written(folder) if expected else 0
        assert expected <= there < expected + disk.SMALL / 4, folder


def test_what_a_checkpoint_takes_is_known_before(single, model, paired_room):  # noqa: F811
    values, run = single
    args = parsed(model, paired_room, run, **values)
    kind = "lora" if values["training_type"] == "lora" else "transformer"
    assert_fits(disk.sizes(args, memory.planned(args)), run, kind)


def test_a_run_that_the_disk_has_no_room_for_does_not_begin(
        model, paired_room, tmp_path, capsys, monkeypatch):  # noqa: F811
    args = flags(model, paired_room, tmp_path / "run")
    planned = memory.planned(settings.parse_args(args))
    sizes = disk.sizes(settings.parse_args(args), planned)
    monkeypatch.setattr(disk, "free", lambda folder: sizes.weights + disk.SMALL)
    assert call("finetune.train", *args) == 2
    said = capsys.readouterr().err
    assert said.startswith("error: --output_dir") and said.count("\n") == 1
    assert "MiB are free" in said and "checkpointing_limit=0 for weights alone" in said
    assert not (tmp_path / "run").exists()


def test_a_loss_that_is_not_finite_stops_the_run(
        model, paired_room, tmp_path, capsys):  # noqa: F811
    weights = Path(shutil.copytree(model / "cognvs_ckpt_inpaint", tmp_path / "nan"))
    held = tensors(weights)
    held["norm_out.norm.weight"][0] = float("nan")
    save_file(held, next(weights.glob("*.safetensors")), {"format": "pt"})
    folder = tmp_path / "run"
    args = flags(model, paired_room, folder, transformer_id=weights, train_epochs=2,
                 checkpointing_steps=1)
    assert call("finetune.train", *args) == 2
    said = capsys.readouterr().err.splitlines()[-1]
    assert said.startswith("error: stopped at step 1: loss") and "the weights to begin with" in said
    assert [row["loss"] for row in log(folder)] == ["nan"]
    names = {path.name for path in folder.iterdir()}
    assert names == {"settings.json", "train_log.csv"}


def test_a_second_run_says_who_holds_the_folder(model, paired_room, tmp_path, capsys):  # noqa: F811
    with cli.lock(tmp_path / "run" / ".lock"):
        assert call("finetune.train", *flags(model, paired_room, tmp_path / "run")) == 2
        said = capsys.readouterr().err
        assert f"process {os.getpid()}" in said and said.count("\n") == 1
        assert os.listdir(tmp_path / "run") == [".lock"]


def test_settings_say_what_the_run_is_made_of(single, model, paired_room):  # noqa: F811
    _, run = single
    kept = json.loads((run / "settings.json").read_text())
    assert kept["learning_rate"] == 1e-3 and kept["seed"] == 42 and kept["num_processes"] == 1
    made_of = kept["made_of"]
    assert made_of["base"] == pipeline.fingerprint(model / "base" / "vae")
    assert made_of["weights"] == pipeline.fingerprint(model / "cognvs_ckpt_inpaint")
    names = ["gt_rgb.mp4", *(f"train_render{i}.mp4" for i in (1, 2, 3))]
    assert made_of["files"] == {name: cli.file_hash(paired_room / name) for name in names}


# ---- the log -------------------------------------------------------------------------------------


def test_the_log_writes_a_row_when_the_next_step_is_there(tmp_path):
    args = SimpleNamespace(output_dir=tmp_path, report_to="none")
    (tmp_path / "train_log.csv").write_text("step,loss\n1,0.5\n2,0.25\n3,0.1\n")  # of before
    written = Log(args, 2)
    for step in (3, 4):
        written.add(step, torch.tensor([1.0, 2.0]), 1e-3, torch.tensor(7.0), 0.5,
                    torch.tensor([0.25, 0.75]) if step == 4 else None)
        assert len((tmp_path / "train_log.csv").read_text().splitlines()) == step
    assert written.shown == {"loss": "1.5000", "lr": "1.00e-03", "grad_norm": "7.000"}
    written.flush()
    rows = (tmp_path / "train_log.csv").read_text().splitlines()
    assert rows[0].startswith("step,loss,learning_rate,gradient_norm,seconds,loss_of_each_rank")
    assert rows[1:4] == ["1,0.5", "2,0.25", "3,1.5,0.001,7.0,0.500,1.0 2.0,"]
    assert rows[4] == "4,1.5,0.001,7.0,0.500,1.0 2.0,0.5"


@pytest.mark.parametrize("main", [True, False])
@pytest.mark.parametrize("loss, norm, fixed", [
    (float("nan"), 1.0, None), (1.0, float("inf"), None), (1.0, -1.0, None),
    (1.0, 1.0, float("nan")),
])
def test_what_is_not_finite_is_logged_and_stops_every_process(tmp_path, main, loss, norm, fixed):
    args = SimpleNamespace(output_dir=tmp_path, report_to="none")
    written = Log(args, 4, main)
    written.add(5, torch.ones(2), 1e-3, torch.tensor(1.0), 0.5)
    fixed = None if fixed is None else torch.tensor([fixed, 1.0])
    written.add(6, torch.tensor([1.0, loss]), 1e-3, norm, 0.5, fixed)
    with pytest.raises(NotFinite, match="stopped at step 6: .*give a learning rate below 0.001"):
        written.flush()
    if main:
        assert [row["step"] for row in log(tmp_path)] == ["5", "6"]


def test_a_row_is_written_whole_or_not_at_all(tmp_path):
    path = tmp_path / "log.csv"
    add = ("1", "a row that is long enough")
    path.write_text("step\n")
    add_row(path, add)
    before = path.read_bytes()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(before) + 7, limits[1]))
    try:
        with pytest.raises(OSError, match="log.csv"):
            add_row(path, add)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert path.read_bytes() == before


def test_the_curve_is_drawn_of_the_log(single, tmp_path):
    _, run = single
    assert (run / "train_curve.png").stat().st_size > 10_000
    shutil.copy(run / "train_log.csv", tmp_path)
    plot(tmp_path / "train_log.csv", tmp_path / "curve.png")
    assert (tmp_path / "curve.png").read_bytes() == (run / "train_curve.png").read_bytes()


def test_a_resumed_run_keeps_the_validations_before_it_alone(tmp_path):
    (tmp_path / "validation").mkdir()
    args = SimpleNamespace(output_dir=tmp_path, report_to="none")
    path = tmp_path / "validation" / "psnr.csv"
    first = Log(args, 0)
    for step in (2, 3, 5):
        first.add_validation(step, 20 + step)
    Log(args, 3).add_validation(6, 29)
    assert path.read_text().split() == ["step,psnr", "2,22.000", "3,23.000", "6,29.000"]
    Log(args, 0, main=False).add_validation(2, 21)
    assert len(path.read_text().split()) == 4


# ---- several processes ---------------------------------------------------------------------------


CONFIG = (ROOT / "finetune" / "accelerate_config.yaml").read_text()
ON_CPU = {"CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}


def offload(model, folder, output_dir, **values):
    """Begin a run of one process with what accelerate launch puts into its environment."""
    env = {"ACCELERATE_USE_DEEPSPEED": "true", "RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1",
           "ACCELERATE_DEEPSPEED_CONFIG_FILE": "configs/zero2.json", "MASTER_ADDR": "127.0.0.1",
           "MASTER_PORT": str(free_port())}
    args = flags(model, folder, output_dir, memory="zero2_offload", **values)
    return subprocess.Popen([sys.executable, "train.py", *args], cwd=SCRIPT.parent,
                            env=os.environ | ON_CPU | env)


def test_two_processes_of_single_go_on_as_they_were(
        model, paired_room, tmp_path):  # noqa: F811
    """Each draws samples of its own; the first one writes; a resume equals no interruption."""
    whole = tmp_path / "run"
    resumed = tmp_path / "resumed"
    for folder, given in ((whole, TWICE), (resumed, {"resume_from_checkpoint": "latest"})):
        if folder == resumed:
            until_step_2(whole, resumed)
        command = ["dash", SCRIPT, *flags(model, paired_room, folder, num_processes=2, **given)]
        done = subprocess.run(command, env=os.environ | ON_CPU, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr[-3000:]
        assert "3 training pairs of 1 sequence, 2 processes on cpu, memory=single" in done.stdout
        assert done.stdout.count("wrote") == 1 + (folder == whole)
    for row in log(whole):
        assert len(set(row["loss_of_each_rank"].split())) == 2
    assert log(resumed, FIXED) == log(whole, FIXED) and len(log(whole)) == 3
    assert_same(*(tensors(folder / "my_checkpoint-3_transformer") for folder in (whole, resumed)))
    assert {path.name for path in (whole / "checkpoint-3").iterdir()} == {
        "config.json", "optimizer.pt", "run.json"}
    assert json.loads((whole / "settings.json").read_text())["num_processes"] == 2
    again = flags(model, paired_room, whole, resume_from_checkpoint="latest", train_epochs=4)
    with pytest.raises(InputError, match="was made with processes 2, got 1"):
        prepare.prepare(settings.parse_args(again))


@pytest.fixture(scope="module")
def offloaded(model, paired_room, tmp_path_factory):  # noqa: F811
    """(process, folder) of three steps of zero2_offload that begin; checkpoints at 2 and 3."""
    folder = tmp_path_factory.mktemp("offloaded") / "run"
    return offload(model, paired_room, folder, **TWICE), folder


@pytest.fixture(scope="module")
def run(offloaded, model, paired_room, tmp_path_factory):  # noqa: F811
    """(folder, output) of three steps of two ZeRO-2 processes; checkpoints at 2 and 3.

    `offloaded` runs beside it, for the script alone does not keep two cores busy.
    """
    folder = tmp_path_factory.mktemp("checkpoints") / "run"
    command = ["dash", SCRIPT, *flags(model, paired_room, folder, **TWICE, memory="zero2",
                                      ema_decay=0.7, do_validation=True, validation_steps=3,
                                      validation_renders=3)]
    done = subprocess.run(command, env=os.environ | ON_CPU, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    return folder, done.stdout + done.stderr


def state_weights(folder):
    file = folder / "pytorch_model" / "mp_rank_00_model_states.pt"
    return torch.load(file, weights_only=False)["module"]


def test_two_processes_train_and_write_everything(run):
    run, said = run
    names = {path.name for path in run.iterdir()}
    for step in (2, 3):
        names -= {f"checkpoint-{step}", f"my_checkpoint-{step}_mean"}
        names -= {f"my_checkpoint-{step}_transformer"}
    assert names == {"settings.json", "train_curve.png", "train_log.csv", "validation"}
    state = {path.relative_to(run / "checkpoint-3").as_posix()
             for path in (run / "checkpoint-3").rglob("*")}
    prefix = "bf16_" * (pipeline.pick_dtype("auto", torch.device("cpu")) == torch.bfloat16)
    for rank in (0, 1):
        optimizer = f"{prefix}zero_pp_rank_{rank}_mp_rank_00_optim_states.pt"
        assert {f"random_states_{rank}.pkl", f"pytorch_model/{optimizer}"} <= state
    assert {"latest", "zero_to_fp32.py", "config.json"} <= state
    settings = json.loads((run / "settings.json").read_text())
    assert settings["num_processes"] == 2
    assert settings["deepspeed"]["zero_optimization"]["stage"] == 2
    rows = log(run)
    assert [row["step"] for row in rows] == ["1", "2", "3"]
    for row in rows:
        losses = [float(x) for x in row["loss_of_each_rank"].split()]
        assert len(set(losses)) == 2 and float(row["loss"]) == pytest.approx(sum(losses) / 2)
        assert float(row["learning_rate"]) == 1e-3 and float(row["gradient_norm"]) > 0
    assert float(rows[2][FIXED]) < float(rows[0][FIXED])
    before = state_weights(run / "checkpoint-2")
    after = state_weights(run / "checkpoint-3")
    same = {name for name in after if torch.equal(before[name], after[name])}
    assert same == {"patch_embed.pos_embedding"}
    assert "warning" not in said.lower() and "deepspeed" not in said.lower()
    assert "torchao" not in said.lower()


def test_what_a_checkpoint_of_two_processes_takes_is_known_before(
        run, model, paired_room):  # noqa: F811
    run, _ = run
    args = parsed(model, paired_room, run, memory="zero2", ema_decay=0.7)
    assert_fits(disk.sizes(args, memory.planned(args)), run, "transformer")


def test_validations_are_shared_and_logged(run):
    run, said = run
    for i in (1, 2, 3):
        made = run / "validation" / f"step-3_room_train_render{i}.mp4"
        assert video.probe(made).width == 3 * SHAPE[2]
    psnr = (run / "validation" / "psnr.csv").read_text().split()
    assert psnr[0] == "step,psnr" and psnr[1].startswith("3,")
    value = float(psnr[1].removeprefix("3,"))
    assert 0 < value < 60 and f"step 3: PSNR {value:.2f} dB" in said


def test_two_machines_go_on_as_two_processes_of_one_do(
        run, model, paired_room, tmp_path):  # noqa: F811
    """A resume equals no interruption: on two machines, which are this one, a process on each."""
    run, _ = run
    resumed = until_step_2(run, tmp_path / "resumed")
    port = free_port()
    machines = []
    for rank in (0, 1):
        config = CONFIG.replace("num_machines: 1", "num_machines: 2")
        config = config.replace('"0,1"', "all")
        config = config.replace("machine_rank: 0", f"machine_rank: {rank}\nmain_process_ip: "
                                f"127.0.0.1\nmain_process_port: {port}")
        config = config.replace("  deepspeed_config_file", "  deepspeed_multinode_launcher: "
                                "standard\n  deepspeed_config_file")
        (tmp_path / f"{rank}.yaml").write_text(config)
        command = ["dash", SCRIPT, *flags(model, paired_room, resumed, memory="zero2",
                                          ema_decay=0.7, resume_from_checkpoint="latest")]
        env = os.environ | ON_CPU | {"accelerate_config": str(tmp_path / f"{rank}.yaml")}
        machines.append(subprocess.Popen(command, env=env))
    assert [machine.wait(300) for machine in machines] == [0, 0]
    assert log(resumed, FIXED) == log(run, FIXED)
    ours = state_weights(resumed / "checkpoint-3")
    assert_same(ours, state_weights(run / "checkpoint-3"))
    means = tensors(resumed / "my_checkpoint-3_mean")
    assert_same(means, tensors(run / "my_checkpoint-3_mean"))
    assert means.keys() == ours.keys()
    assert any((means[name] - ours[name]).abs().max() > 1e-4 for name in ours)
    assert not (resumed / "checkpoint-2").exists()  # checkpointing_limit is 1


def test_an_offloaded_optimizer_goes_on_as_it_was(
        offloaded, model, paired_room, tmp_path):  # noqa: F811
    process, run = offloaded
    assert process.wait(300) == 0
    resumed = until_step_2(run, tmp_path / "resumed")
    assert offload(model, paired_room, resumed, resume_from_checkpoint="latest",
                   checkpointing_limit=0).wait(300) == 0
    assert log(resumed, FIXED) == log(run, FIXED)
    names = {path.name for path in resumed.glob("*checkpoint-*")}
    assert names == {"my_checkpoint-3_transformer"}
    assert_same(*(tensors(folder / "my_checkpoint-3_transformer") for folder in (resumed, run)))
    used = json.loads((run / "settings.json").read_text())["deepspeed"]["zero_optimization"]
    assert used["offload_optimizer"] == {"device": "cpu", "pin_memory": False}


# ---- the published way to weights ----------------------------------------------------------------


def process(folder, **env):
    return subprocess.run(["sh", "process_ckpts.sh"], cwd=folder, env=os.environ | env,
                          capture_output=True, text=True)


@pytest.mark.parametrize("shards, size", [("one", "5GB"), ("many", "200KB")])
def test_process_then_load(run, tmp_path, shards, size):
    run, _ = run
    for name in ("process_ckpts.sh", "config.json",
                 "diffusion_pytorch_model.safetensors.index.json"):
        shutil.copy(ROOT / "toolbox" / name, tmp_path)
    shutil.copytree(run / "checkpoint-3", tmp_path / "run" / "checkpoint-3")  # as published
    done = process(tmp_path, CHECKPOINT_DIR="checkpoint-3", SHARD_SIZE=size)
    assert done.returncode == 0, done.stderr
    made = tmp_path / "run" / "my_checkpoint-3_transformer"
    files = list(made.glob("diffusion_pytorch_model*.safetensors"))
    assert len(files) == 1 if shards == "one" else len(files) > 1
    ours = pipeline.load_transformer(made, torch.bfloat16).state_dict()
    trained = state_weights(run / "checkpoint-3")
    assert_same(ours, {name: tensor.bfloat16() for name, tensor in trained.items()})
    direct = run / "my_checkpoint-3_transformer"  # what this trainer has written already
    assert_same(pipeline.load_transformer(direct, torch.bfloat16).state_dict(), ours)
    again = process(tmp_path, CHECKPOINT_DIR="checkpoint-3", DELETE_TRAINING_STATE="yes")
    assert "is there already" in again.stdout
    assert not (tmp_path / "run" / "checkpoint-3").exists()
    wrong = process(tmp_path, CHECKPOINT_DIR="checkpoint-5")
    assert wrong.returncode == 2 and wrong.stderr.startswith("error: no */checkpoint-5")
