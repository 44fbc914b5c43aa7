import copy
import functools
import json
import runpy
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import ROOT
from functorch.compile import make_boxed_func, min_cut_rematerialization_partition
from torch._dynamo.backends.common import aot_autograd
from torch._dynamo.testing import CompileCounter
from torch.utils._python_dispatch import TorchDispatchMode
from training import assert_same, pipe  # noqa: F401

from finetune import checkpoint, engines, hosts, launch, memory
from finetune.loss import denoising_loss
from utils import cogvideox
from utils.cli import InputError


def settings(mode="single", **values):
    return SimpleNamespace(**{
        "memory": mode, "learning_rate": 0.1, "beta1": 0.9, "beta2": 0.95, "epsilon": 1e-8,
        "weight_decay": 0, "max_grad_norm": 1.0, "seed": 0, "gradient_accumulation_steps": 1,
        "batch_size": 3, **values})


def test_single_fused_clips_by_the_larger_norm_of_the_step_before_and_of_this_one_so_far():
    blocks = torch.nn.ModuleList(torch.nn.Linear(8, 8) for _ in range(2))
    model = torch.nn.ModuleDict({"transformer_blocks": blocks}).bfloat16()
    engine = engines.make_engine(settings("single_fused"))
    engine.prepare(model)
    first, first_bias = model.transformer_blocks[0].parameters()
    last, _ = model.transformer_blocks[1].parameters()
    seen = []
    moments = np.zeros(2)
    for step, (size, clipped) in enumerate([
        (1, (1 / 2**0.5, 1 / 2**0.5)),  # even shares
        (1, (3 / 5, 4 / 5)),  # by the norm of the step before, 5
        (10, (30 / 30, 40 / 50)),  # too small for this one: by its own, as far as it is known
    ]):
        engine.begin(step, 0.1)
        hook = last.register_post_accumulate_grad_hook(lambda p: seen.append(p.grad))
        norms = 3 * first.sum() + 0 * first_bias.sum() + 4 * last.sum()  # 3 and 4 times size
        engine.backward(size / 8 * norms)
        assert engine.step().item() == pytest.approx(5 * size, rel=1e-2)  # before clipping
        hook.remove()
        moments = 0.9 * moments + 0.1 * np.array(clipped) / 8
        for block, moment in zip(engine.blocks, moments, strict=True):
            average = block.optimizer.state[block.flat]["exp_avg"].float()[:64]
            expected = torch.full((64,), moment, dtype=torch.float32)
            torch.testing.assert_close(average, expected, rtol=2e-2, atol=0)
    assert seen[0] is not None  # its bias never came: it was stepped after the pass
    engine.backward((first.sum() + first_bias.sum()) / 8)
    assert first.grad is None and first_bias.grad is None  # stepped and freed inside the pass


def test_single_clips_the_mean_gradient_of_its_micro_batches():
    model = torch.nn.Linear(4, 1, bias=False).bfloat16()
    engine = engines.make_engine(settings(gradient_accumulation_steps=2))
    engine.prepare(model)
    engine.begin(0, 0.1)
    for scale in (6.0, 10.0):
        engine.backward(scale * model.weight.sum())
    assert engine.step().item() == pytest.approx(16, rel=1e-2)  # 8 in each of four weights
    block = engine.blocks[0]
    moment = block.optimizer.state[block.flat]["exp_avg"].float()
    clipped = torch.full((4,), 0.1 * 0.5)  # to norm 1
    torch.testing.assert_close(moment[:4], clipped, rtol=2e-2, atol=0)
    assert not moment[4:].any() and model.weight.data_ptr() == block.flat.data_ptr()


PROGRAM = """
import sys
from types import SimpleNamespace
import torch
sys.path.insert(0, {root!r})
from finetune import engines, launch

def train(ranks, rank, passes):
    torch.manual_seed(0)
    blocks = torch.nn.ModuleList(torch.nn.Linear(16, 16) for _ in range(3))
    model = torch.nn.ModuleDict({{"transformer_blocks": blocks, "out": torch.nn.Linear(16, 4)}})
    unused = torch.nn.Linear(16, 16)
    blocks[1].unused = unused
    args = SimpleNamespace(**{settings!r}, gradient_accumulation_steps=passes)
    engine = engines.make_engine(args)
    engine.prepare(model.bfloat16())
    samples = torch.randn(3, 4, 1, 16, generator=torch.Generator().manual_seed(1)).bfloat16()
    norms = []
    for step in range(3):
        engine.begin(step, 1e-2)
        for number in range(rank * passes, (rank + 1) * passes):
            x = samples[step, number]
            for block in blocks:
                x = x + block(x).tanh()
            engine.backward(model["out"](x).float().square().sum())
        norms.append(engine.step())
    seen = engine.gather(torch.tensor(float(rank)))
    state = [block.optimizer.state_dict()["state"][0]["exp_avg"] for block in engine.blocks]
    engine.wait()
    engine.end()
    return {{"weights": [block.flat.data for block in engine.blocks], "norms": norms, "seen": seen,
             "moments": [moment.dequantize() if hasattr(moment, "dequantize") else moment
                         for moment in state], "unused": unused.weight.data}}

if __name__ == "__main__":
    rank, ranks, _ = launch.own_place()
    torch.save(train(ranks, rank, 4 // ranks), f"{folder}/{{ranks}}_{{rank}}.pt")
"""


def test_processes_that_add_up_their_gradients_keep_equal_weights(tmp_path):
    """Bit for bit; and with the samples of one that accumulates, to rounding, its weights."""
    values = vars(settings(seed=3))
    values.pop("gradient_accumulation_steps")
    program = tmp_path / "program.py"
    program.write_text(PROGRAM.format(root=str(ROOT), settings=values, folder=tmp_path))
    where = hosts.Hosts(2)
    store = launch.open_store(where)
    together = launch.Processes()
    for number in range(2):
        together.start(str(program), **launch.place(where, number), OMP_NUM_THREADS="1",
                       CUDA_VISIBLE_DEVICES="")
    alone = runpy.run_path(str(program))["train"](1, 0, 4)
    assert together.wait() == 0
    del store
    first, second = (torch.load(tmp_path / f"2_{rank}.pt") for rank in (0, 1))
    assert first["seen"].tolist() == [0, 1]
    for name in ("weights", "moments", "norms"):
        for one, other, expected in zip(first[name], second[name], alone[name], strict=True):
            assert torch.equal(one, other)
            assert name == "norms" or (one - expected).abs().mean() < 5e-4  # of steps of 1e-2
    torch.testing.assert_close(first["norms"], alone["norms"], rtol=1e-2, atol=0)
    assert torch.equal(first["unused"], alone["unused"])


def test_a_state_of_another_model_is_refused(tmp_path):
    for width in (4, 300):
        engine = engines.make_engine(settings())
        engine.prepare(torch.nn.Linear(width, 1, bias=False).bfloat16())
        if width == 4:
            engine.begin(0, 0.1)
            engine.backward(engine.model.weight.sum())
            engine.step()
            (tmp_path / "state").mkdir()
            engine.save(tmp_path / "state", engine.state())
    with pytest.raises(InputError, match="not of this model and version .*; start anew"):
        engine.load(tmp_path / "state")


@pytest.mark.parametrize("mode", ["zero2", "zero2_offload"])
def test_adamw_is_of_one_kernel(mode):
    engine = object.__new__(engines.DeepSpeed)
    engine.args = settings(mode)
    engine.accelerator = SimpleNamespace(prepare=lambda *models: models)
    engine.prepare(torch.nn.Linear(2, 2))
    assert engine.optimizer.param_groups[0]["fused"]


def test_deepspeeds_settings_are_those_of_the_script():
    config = json.loads((ROOT / "finetune" / "configs" / "zero2.json").read_text())
    engines.configure(config, settings("zero2_offload", max_grad_norm=0.5))
    assert config["train_micro_batch_size_per_gpu"] == 3 and config["gradient_clipping"] == 0.5
    offload = config["zero_optimization"]["offload_optimizer"]
    assert offload == {"device": "cpu", "pin_memory": False}
    for wrong in ({"bf16": {"enabled": False}}, {"optimizer": {}}, {"scheduler": {}}):
        with pytest.raises(InputError, match="must enable bf16 and name no optimizer"):
            engines.configure(config | wrong, settings("zero2"))


def gradients(pipe, levels, lora=False, compile=lambda transformer: None):  # noqa: F811
    """(loss, {name: gradient}) of a copy of the transformer whose blocks keep that much."""
    rng = torch.Generator().manual_seed(0)
    fixed = [*torch.randn(3, 1, 5, 16, 8, 12, generator=rng), torch.tensor([300])]
    transformer = copy.deepcopy(pipe.transformer).train().requires_grad_(True)
    if lora:
        args = SimpleNamespace(training_type="lora", rank=8, lora_alpha=8, seed=0)
        checkpoint.prepare_weights(args, transformer, None)
    cogvideox.recompute(transformer, levels)
    compile(transformer)
    with cogvideox.attention():
        loss = denoising_loss(transformer, pipe.scheduler, *fixed, torch.zeros(1, 8, 32),
                              pipe.rotary_embedding("cpu"))
        loss.backward()
    found = {}
    for name, p in transformer.named_parameters():
        if p.grad is not None:
            found[name] = p.grad
    return loss, found


class Counter(TorchDispatchMode):
    """Counts the calls of attention and of matrix products while it is entered."""

    def __init__(self):
        super().__init__()
        self.counts = {"attention": 0, "products": 0}

    def __torch_dispatch__(self, op, types, args=(), kwargs=None):
        self.counts["attention"] += op in cogvideox.ATTENTION
        self.counts["products"] += op == torch.ops.aten.addmm.default
        return op(*args, **(kwargs or {}))


@pytest.mark.parametrize("lora", [False, True])
@pytest.mark.parametrize("levels, attention, products", [
    (("nothing", "nothing"), 2, 16),  # of 8 a block, 2 of them of the norms
    (("nothing", "attention"), 1, 16),
    (("attention", "feedforward"), 0, 15),
    (("feedforward", "products"), 0, 7 + 2),
    (("attention", "all"), 0, 8),
])
def test_gradients_are_the_same_whatever_is_recomputed(
        pipe, levels, attention, products, lora):  # noqa: F811
    expected = gradients(pipe, ("all", "all"), lora)
    with Counter() as whole:
        gradients(pipe, ("all", "all"), lora)
    with Counter() as counter:
        loss, found = gradients(pipe, levels, lora)
    assert torch.equal(loss, expected[0])
    assert_same(found, expected[1])
    assert max(gradient.abs().max() for gradient in found.values()) > 0
    assert counter.counts["attention"] == whole.counts["attention"] + attention
    again = counter.counts["products"] - whole.counts["products"]
    assert again == products if not lora else again <= products


def test_a_compiled_block_recomputes_what_its_level_says(pipe, monkeypatch):  # noqa: F811
    """Blocks of different levels do not take each other's program."""
    backward = []

    def look(graph, _):
        called = []
        for node in graph.graph.nodes:  # a repeated draw is an argument of what repeats it
            called += [node.target, *node.args]
        again = [sum(op in ops for op in called)
                 for ops in (cogvideox.ATTENTION, [torch.ops.aten.addmm.default])]
        backward.append(again)
        return make_boxed_func(graph.forward)

    backend = aot_autograd(fw_compiler=lambda graph, _: make_boxed_func(graph.forward),
                           bw_compiler=look, partition_fn=min_cut_rematerialization_partition)
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend=backend))
    expected = gradients(pipe, ("all", "all"))
    for levels, last, first in (
        (("nothing", "attention"), [0, 8], [1, 8]), (("attention", "feedforward"), [0, 7], [0, 8]),
        (("feedforward", "products"), [0, 2], [0, 7]),
    ):
        torch.compiler.reset()
        backward.clear()
        loss, found = gradients(pipe, levels, compile=cogvideox.compile_blocks)
        assert sorted(backward) == sorted([last, first])
        torch.testing.assert_close(loss, expected[0], rtol=1e-6, atol=0)
        for name, gradient in found.items():
            scale = expected[1][name].abs().max().item()
            torch.testing.assert_close(gradient, expected[1][name], rtol=0, atol=1e-5 * scale)
    torch.compiler.reset()


def test_all_blocks_are_compiled_as_one(pipe, monkeypatch):  # noqa: F811
    counter = CompileCounter()
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend=counter))
    expected = gradients(pipe, ("all", "all"))
    torch.compiler.reset()
    loss, found = gradients(pipe, ("attention", "attention"), compile=cogvideox.compile_blocks)
    assert counter.frame_count == 1
    assert torch.equal(loss, expected[0])
    assert_same(found, expected[1])
    torch.compiler.reset()


def test_bf16_where_the_mode_says_so(monkeypatch):
    monkeypatch.setattr("torch.cpu.get_capabilities", lambda: {"avx512_bf16": False})
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert memory.dtype(settings("single")) == torch.bfloat16
    assert memory.dtype(settings("zero2")) == torch.float32
