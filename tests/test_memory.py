"""What memory training needs, and what is made of what there is. Sizes are the real model's."""

import json
import re
import shutil
from collections import Counter
from types import SimpleNamespace

import pytest
import torch
from conftest import ROOT

from finetune import memory
from finetune.settings import Launch
from utils import cogvideox, pipeline
from utils.cli import InputError

CUDA = torch.device("cuda")
ONE = Launch()
FOUR = Launch(processes=4)


@pytest.fixture
def args(tmp_path):
    """Settings of a run on weights of the real size, which are only read by their configuration."""
    shutil.copy(ROOT / "toolbox" / "config.json", tmp_path)
    (tmp_path / "diffusion_pytorch_model.safetensors").touch()
    return SimpleNamespace(
        transformer_id=tmp_path, batch_size=1, seed=0, rank=128, lora_alpha=64,
        gradient_checkpointing="True", gpu_memory=0, ema_decay=0, gradient_accumulation_steps=1,
        resume_from_checkpoint="", memory="single", training_type="sft", do_validation=False)


@pytest.fixture
def three_gpus(monkeypatch):
    """A machine of three GPUs, with 20, 70 and 60 GiB free."""
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 3)
    free = [20, 70, 60]
    monkeypatch.setattr("torch.cuda.mem_get_info", lambda at: (free[at] * 2**30, 80 * 2**30))


def gib(args, launch=ONE, videos=0):
    return [size / 2**30 for size in memory.needs(args, launch, videos)]


@pytest.mark.parametrize("mode, kind, launch, least, most", [
    ("single", "sft", ONE, 34, 38),
    ("single", "sft", FOUR, 35, 39),
    ("single_fused", "sft", ONE, 27, 30),  # 28.5 seen
    ("single", "lora", ONE, 10, 20),
    ("zero2", "sft", FOUR, 43, 48),  # 46 to 47 seen of the published trainer
    ("zero2", "sft", ONE, 80, 120),
    ("zero2_offload", "sft", ONE, 20.5, 22),  # 21.3 seen
])
def test_what_each_gpu_needs(args, mode, kind, launch, least, most):
    args.memory = mode
    args.training_type = kind
    assert least < gib(args, launch)[0] < most


def test_what_the_host_needs(args):
    weights = 10.4
    assert gib(args)[1] == pytest.approx(weights, abs=0.1)
    assert gib(args, videos=2**32)[1] == pytest.approx(weights + 4, abs=0.1)
    args.memory = "zero2"
    assert gib(args, FOUR)[1] == pytest.approx(4 * weights, abs=0.3)  # each process loads them
    assert gib(args, FOUR, videos=2**32)[1] == pytest.approx(4 * weights + 16, abs=0.3)
    assert gib(args, Launch(4, machines=2), 2**32)[1] == pytest.approx(2 * weights + 8, abs=0.3)
    args.memory = "zero2_offload"
    assert 97 < gib(args)[1] < 99 and gib(args, FOUR)[1] == gib(args)[1]  # 98 seen
    args.resume_from_checkpoint = "latest"
    assert 110 < gib(args)[1] < 120  # the state that is read beside what it is read into


def test_what_a_mean_and_accumulated_gradients_add(args):
    gpu, host = gib(args)
    args.gradient_accumulation_steps = 2
    assert 3 < gib(args)[0] - gpu < 5  # gradients beside activations
    args.gradient_accumulation_steps = 1
    args.ema_decay = 0.9
    assert gib(args)[0] - gpu == pytest.approx(20.8, abs=0.1)  # float32, on the GPU
    assert gib(args)[1] == host


def test_a_run_that_does_not_fit_is_refused(args, three_gpus):
    with pytest.raises(InputError, match=r"needs about 3\d.\d GiB .* and 20.0 are free; choose s"):
        memory.check_needs(args, ONE)  # it takes the first GPU
    args.memory = "single_fused"
    with pytest.raises(InputError, match="choose training_type=lora"):
        memory.check_needs(args, ONE)
    args.memory = "zero2"
    with pytest.raises(InputError, match=r"about 5\d.\d GiB of GPU memory and 20.0 are free"):
        memory.check_needs(args, Launch(3))  # the fullest counts


def test_too_little_host_memory_is_told(args, monkeypatch, capsys):
    monkeypatch.setattr("psutil.virtual_memory", lambda: SimpleNamespace(available=30 * 2**30))
    with pytest.raises(InputError, match="of host memory for 1 process and 30.0 are free; choose "
                                         "single_fused, or training_type=lora"):
        memory.check_needs(args, ONE)
    args.memory = "zero2"
    with pytest.raises(InputError, match="for 4 processes and .* fewer processes, single or"):
        memory.check_needs(args, FOUR)
    assert capsys.readouterr().out.count("GiB of host memory (30.0 free)") == 2


@pytest.mark.parametrize("processes, machines, gpu_ids, used", [
    (3, 1, "all", 3), (2, 1, "0,1", 2), (2, 1, "1,2", 2), (1, 1, "2", 1), (6, 2, "all", 3),
    (4, 2, "0,2", 2),
])
def test_each_process_has_a_gpu(args, three_gpus, processes, machines, gpu_ids, used):
    args.memory = "zero2"
    assert memory.gpus_used(args, Launch(processes, machines, gpu_ids)) == list(range(used))


@pytest.mark.parametrize("processes, machines, gpu_ids, message", [
    (4, 1, "0,1", "num_processes 4: gpu_ids 0,1 means 2 GPUs; expected 2, one for each GPU"),
    (2, 1, "all", "num_processes 2: gpu_ids all means 3 GPUs; expected 3"),
    (3, 3, "0,1", "means 2 GPUs on each of 3 machines; expected 6"),
    (2, 1, "0,0", "means 1 GPUs; expected 1"),
    (4, 1, "0,1,2,3", "gpu_ids 0,1,2,3: 3 of these GPUs are there; edit accelerate_config.yaml"),
])
def test_processes_and_gpus_that_do_not_agree(args, three_gpus, processes, machines, gpu_ids,
                                              message):
    args.memory = "zero2"
    with pytest.raises(InputError, match=message):
        memory.check_needs(args, Launch(processes, machines, gpu_ids))


def test_single_takes_the_first_gpus(args, three_gpus):
    assert memory.gpus_used(args, Launch(2)) == [0, 1]
    with pytest.raises(InputError, match="--num_processes 4: 3 GPUs are there; give 3 or less"):
        memory.gpus_used(args, Launch(4))


def test_on_a_cpu_any_number_of_processes_will_do(args, monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    args.memory = "zero2"
    assert memory.gpus_used(args, Launch(4, 1, "0,1")) == []


@pytest.fixture
def transformer():
    config = json.loads((ROOT / "toolbox" / "config.json").read_text())
    with torch.device("meta"):
        return pipeline.CogVideoXTransformer3DModel.from_config(config).requires_grad_(True)


def counts(levels):
    """{level: blocks} of a list, in which no block keeps less than one before it."""
    order = [cogvideox.LEVELS.index(level) for level in levels]
    assert order == sorted(order) and len(order) == 42
    return Counter(levels)


def test_blocks_keep_and_the_vae_is_tiled_as_memory_allows(args, transformer, monkeypatch):
    """Free once the weights are there: 20, 50 and 69 GiB of cards of 31, 61 and 80."""
    chosen = []
    vae = SimpleNamespace(enable_tiling=lambda: chosen.append("tiled"),
                          disable_tiling=lambda: chosen.append("whole"))
    pipe = SimpleNamespace(clip_shape=(49, 480, 720), vae=vae)
    args.gradient_checkpointing = "auto"

    def fit(gib, **values):
        vars(args).update(values)
        monkeypatch.setattr(memory, "free", lambda args, device: gib * 2**30)
        memory.choose_tiling(args, pipe, transformer, 1, CUDA)
        return counts(memory.choose_levels(args, transformer, 1, CUDA)), chosen[-1]

    assert fit(20) == ({"nothing": 32, "attention": 10}, "tiled")
    assert fit(50) == ({"feedforward": 17, "products": 25}, "whole")
    assert fit(69) == ({"products": 37, "all": 5}, "whole")
    assert fit(69, gradient_checkpointing="True")[0] == {"attention": 42}
    assert fit(20)[0] == {"nothing": 32, "attention": 10}
    assert fit(69, gradient_checkpointing="full")[0] == {"nothing": 42}
    assert fit(20, gradient_checkpointing="False")[0] == {"all": 42}
    args.gradient_checkpointing = "auto"
    assert fit(24)[1] == "whole"  # it encodes while there are no gradients
    assert fit(24, gradient_accumulation_steps=2)[1] == "tiled"  # now there are
    assert fit(50)[0] == {"feedforward": 29, "products": 13}
    assert fit(50, gradient_accumulation_steps=1, memory="zero2_offload")[0] == {
        "feedforward": 8, "products": 34}
    assert fit(24, memory="single", do_validation=True)[1] == "tiled"  # it decodes too
    assert memory.choose_levels(args, transformer, 1, torch.device("cpu")) == ["attention"] * 42


def test_what_blocks_keep_is_said_with_what_it_takes(args, transformer):
    engine = SimpleNamespace(ranks=1, device=CUDA)
    levels = ["nothing"] * 2 + ["attention"] * 40
    said = memory.said(args, transformer, levels, engine)
    assert re.fullmatch(r", about 3\d\.\d GiB, blocks keep: 2 nothing, 40 attention", said)
    args.gradient_checkpointing = "auto"
    need = [memory.gpu_need(args, memory.sizes(args, transformer, each), ONE) / 2**30
            for each in (levels, ["products"] * 42)]
    assert need[1] - need[0] == pytest.approx(42 * 11.03 * 0.1017 - 10.4, abs=0.2)
