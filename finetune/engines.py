"""How an optimiser step is taken: by DeepSpeed, or by processes that each hold everything.

An engine has device, rank, ranks (processes), model and whole (whether each process holds the whole
state, so that the first writes it alone), and is used so:

    engine.prepare(transformer)
    for step in ...:
        engine.begin(step, rate)
        for each micro-batch: engine.backward(loss)
        norm = engine.step()  # of all gradients, before clipping; a tensor on the device
"""

import copyreg
import os
import pickle
import pkgutil
import re

import torch
import torch.distributed as dist

from finetune import checkpoint, dataset, launch, memory
from utils import cli, cogvideox, devices, sequence
from utils.cli import InputError

# what torch and DeepSpeed raise for a state that is not what its name says
UNREADABLE = (*sequence.UNREADABLE, AttributeError, pickle.UnpicklingError)


def make_engine(args):
    """The engine of the memory mode asked for."""
    return DeepSpeed(args) if args.memory.startswith("zero2") else Single(args)


class DeepSpeed:
    """ZeRO-2 through accelerate, by accelerate_config.yaml and its JSON."""

    whole = False

    def __init__(self, args):
        self.args = args
        self.accelerator = make_accelerator(args)
        self.device = self.accelerator.device
        self.rank = self.accelerator.process_index
        self.ranks = self.accelerator.num_processes
        self.settings = self.accelerator.state.deepspeed_plugin.deepspeed_config

    def prepare(self, transformer):
        """Take the transformer's trainable parameters."""
        args = self.args
        optimizer = torch.optim.AdamW(  # fused it takes no memory for what lies between
            memory.trainable(transformer), args.learning_rate, (args.beta1, args.beta2),
            args.epsilon, args.weight_decay, fused=True)
        self.model, self.optimizer = self.accelerator.prepare(transformer, optimizer)

    def begin(self, step, rate):
        for group in self.optimizer.param_groups:
            group["lr"] = rate

    def backward(self, loss):
        with self.accelerator.accumulate(self.model):
            self.accelerator.backward(loss)  # the last one of a step also steps the optimizer

    def step(self):
        return self.model.get_global_grad_norm()

    def gather(self, value):
        """[ranks] of all processes' scalars, or all their vectors one after another."""
        return self.accelerator.gather(value[None])

    def wait(self):
        """Until all processes are here."""
        self.accelerator.wait_for_everyone()

    def state(self):
        """What save() takes: nothing, for it asks all processes."""

    def save(self, folder, state):
        from deepspeed.runtime.zero.config import ZeroStageEnum

        # as its number: by itself an early Python 3.11 writes a getattr, which no load allows
        copyreg.pickle(ZeroStageEnum, lambda stage: (ZeroStageEnum, (stage.value,)))
        self.accelerator.save_state(str(folder))

    def load(self, folder):
        """Go on from a state; none of its pickles is run, which DeepSpeed would do."""
        os.environ.pop("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", None)
        os.environ["TORCH_FORCE_WEIGHTS_ONLY_LOAD"] = "1"
        own = []
        for name in checkpoint.SAFE:
            if name.startswith("deepspeed."):
                own.append(pkgutil.resolve_name(":".join(name.rsplit(".", 1))))
        try:
            with torch.serialization.safe_globals(own):
                self.accelerator.load_state(str(folder))
        except UNREADABLE as error:
            raise unreadable(folder, error) from error

    def end(self):
        self.accelerator.end_training()


def unreadable(folder, error):
    """The InputError of a state that could not be read."""
    reason = " ".join(str(error).split()).split("trusted source. ")[-1][:120]  # torch's advice
    return InputError(f"{folder}: its optimizer state is not of this model and version ({reason}); "
                      "start anew in another output_dir")


def peer_is_gone(error):
    """Whether an error says that another process has ended, which has said why."""
    lost = isinstance(error, dist.DistBackendError) or "gloo" in str(error)
    return lost and dist.is_initialized()


def make_accelerator(args):
    """accelerate's handle on the processes."""
    handlers = []
    if not torch.cuda.is_available():
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
        import deepspeed
        from accelerate.utils import InitProcessGroupKwargs

        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False  # it would be compiled
        handlers = [InitProcessGroupKwargs(backend="gloo")]
    from accelerate import Accelerator

    accelerator = Accelerator(
        kwargs_handlers=handlers, gradient_accumulation_steps=args.gradient_accumulation_steps)
    plugin = accelerator.state.deepspeed_plugin
    if plugin is None:
        raise InputError("accelerate was started without DeepSpeed; start with finetune_cognvs.sh "
                         "and distributed_type DEEPSPEED in accelerate_config.yaml")
    configure(plugin.deepspeed_config, args)
    return accelerator


def configure(config, args):
    """Complete the DeepSpeed JSON, a dict, which says the ZeRO stage; `args` say all the rest."""
    if not config.get("bf16", {}).get("enabled") or "optimizer" in config or "scheduler" in config:
        raise InputError("the DeepSpeed JSON must enable bf16 and name no optimizer or scheduler: "
                         "those are set in finetune_cognvs.sh")
    config["bf16"]["enabled"] = memory.dtype(args) == torch.bfloat16
    config["train_micro_batch_size_per_gpu"] = args.batch_size
    config["gradient_clipping"] = args.max_grad_norm
    config["gradient_accumulation_steps"] = args.gradient_accumulation_steps
    if args.memory == "zero2_offload":
        # memory that is pinned is taken in powers of two: at full size 80 GiB for 52
        config["zero_optimization"]["offload_optimizer"] = {"device": "cpu", "pin_memory": False}
        config["zero_force_ds_cpu_optimizer"] = False  # would be compiled on first use


class Single:
    """torchao's 8-bit AdamW on bf16 weights, all of them in each process.

    Several processes add up their gradients in bf16, each block's as soon as they are there, while
    the backward pass goes on. Then each takes the same step with the same rounding, so that their
    weights stay equal bit for bit.

    Stochastic rounding keeps steps that are smaller than bf16's. single_fused steps each block as
    soon as its gradients are there, and frees them. The norm of all gradients is known only after
    the last, so a block is clipped by the larger of two: the norm of the step before, and that of
    the blocks so far (in the first step: as if all blocks had its own).
    """

    whole = True

    def __init__(self, args):
        self.args = args
        self.settings = None
        self.fused = args.memory == "single_fused"
        self.rank, self.ranks, number = launch.own_place()
        self.device = cli.pick_device()
        if self.ranks > 1:
            if self.device.type == "cuda":
                self.device = cli.pick_device(f"cuda:{number}")
                torch.cuda.set_device(self.device)
            devices.join(self.device)

    def prepare(self, transformer):
        """Take the transformer's trainable parameters, each block's in one tensor."""
        self.model = transformer
        self.norm = None  # of the step before
        self.blocks = [FlatBlock(self.args, parameters) for parameters in by_block(transformer)]
        for block in self.blocks:
            if self.fused:
                block.when_complete(self.update)
            elif self.ranks > 1:
                block.when_complete(self.share)

    def begin(self, step, rate):
        for block in self.blocks:
            block.optimizer.param_groups[0]["lr"].fill_(rate)
        torch.manual_seed(dataset.seed(self.args.seed, "rounding", 0, step))  # it draws from that
        self.square = torch.zeros((), device=self.device)  # of the norm so far
        self.passes = 0  # backward passes of this step

    def backward(self, loss):
        self.passes += 1
        (loss / (self.args.gradient_accumulation_steps * self.ranks)).backward()
        for block in self.blocks:
            block.missing = len(block.parameters)

    def share(self, block):
        """In the last backward pass of a step: begin to add up a block's gradients of all."""
        if self.passes == self.args.gradient_accumulation_steps:
            block.share()

    def update(self, block):
        """Clip and step a block inside the backward pass, or after it if gradients are missing."""
        norm = block.norm()
        self.square += norm.square()
        if self.norm is None:
            self.clip_and_step(block, norm * len(self.blocks) ** 0.5)
        else:
            self.clip_and_step(block, torch.maximum(self.norm, self.square.sqrt()))

    def clip_and_step(self, block, norm):
        """Step a block whose gradients are part of gradients of that norm."""
        block.step((self.args.max_grad_norm / (norm + 1e-6)).clamp(max=1))

    def step(self):
        """Update the weights unless that is done; the norm of all gradients before clipping."""
        left = [block for block in self.blocks if block.gradients()]
        if self.fused:
            for block in left:
                self.update(block)
            self.norm = self.square.sqrt()
            return self.norm
        if self.ranks > 1:
            for block in left:  # whose gradients are not all there
                block.share()
            left = [block for block in self.blocks if block.shared()]
        norm = torch.stack([block.norm() for block in left] or [self.square]).norm()
        for block in left:
            self.clip_and_step(block, norm)
        return norm

    def gather(self, value):
        """All processes' scalars or vectors: [ranks] or [ranks, length]."""
        if self.ranks == 1:
            return value[None]
        gathered = [torch.empty_like(value) for _ in range(self.ranks)]
        dist.all_gather(gathered, value)
        return torch.stack(gathered)

    def wait(self):
        """Until all processes are here."""
        self.gather(torch.zeros((), device=self.device)).sum().item()

    def state(self):
        """What save() takes and the next step changes."""
        states = [block.optimizer.state_dict() for block in self.blocks]
        return {"optimizers": states, "norm": self.norm}

    def save(self, folder, state):
        """To be called by the first process alone."""
        torch.save(state, folder / "optimizer.pt")

    def load(self, folder):
        try:
            saved = torch.load(folder / "optimizer.pt", map_location="cpu", weights_only=True)
            lengths = []
            for values in saved["optimizers"]:
                lengths += [value["exp_avg"].numel() for value in values["state"].values()]
            if lengths != [block.flat.numel() for block in self.blocks]:
                raise ValueError("of another model or version")
        except UNREADABLE as error:
            raise unreadable(folder, error) from error
        for block, values in zip(self.blocks, saved["optimizers"], strict=True):
            block.optimizer.load_state_dict(values)
        self.norm = None if saved["norm"] is None else saved["norm"].to(self.device)

    def end(self):
        if self.ranks > 1:
            devices.leave()


def by_block(transformer):
    """The trainable parameters of each block, and those that are in none, as lists."""
    groups = {}
    for name, p in transformer.named_parameters():
        if p.requires_grad:
            block = re.match(r"(transformer_blocks\.\d+)?", name)[0]
            groups.setdefault(block, []).append(p)
    return list(groups.values())


class FlatBlock:
    """Parameters that lie in one tensor, `flat`, and are optimized as one.

    Thousands of small ones would have the GPU wait for the CPU. Each starts at a multiple of the
    256 weights that share the scale of an 8-bit state (of small tensors torchao would keep the
    state in bf16). A gradient that is missing beside others counts as 0.
    """

    def __init__(self, args, parameters):
        from torchao.optim import AdamW8bit

        self.parameters = parameters
        self.missing = len(parameters)  # gradients that are still to come in this pass
        self.sharing = None  # the sum over all processes that is under way
        length = sum(padded(p) for p in parameters)
        self.flat = torch.nn.Parameter(parameters[0].new_zeros(length))
        for p, place in zip(parameters, self.places(self.flat.data), strict=True):
            p.data = place.copy_(p.data)
        self.optimizer = AdamW8bit(
            [self.flat], args.learning_rate, (args.beta1, args.beta2), args.epsilon,
            args.weight_decay, bf16_stochastic_round=True)

    def places(self, flat):
        """Where each parameter lies in a tensor like `flat`, as views of it in its shape."""
        views = []
        start = 0
        for p in self.parameters:
            views.append(flat[start : start + p.numel()].view_as(p))
            start += padded(p)
        return views

    def when_complete(self, act):
        """Call act(self) whenever the gradients of all parameters are there."""

        def arrived(_):
            self.missing -= 1
            if self.missing == 0:
                act(self)

        for p in self.parameters:
            p.register_post_accumulate_grad_hook(arrived)

    def gradients(self):
        """Those that are there."""
        return [p.grad for p in self.parameters if p.grad is not None]

    def norm(self):
        gradients = [self.flat.grad] if self.flat.grad is not None else self.gradients()
        return torch.stack(torch._foreach_norm(gradients, 2, torch.float32)).norm()

    def share(self):
        """Begin to add up the gradients of all processes."""
        self.collect()
        self.sharing = dist.all_reduce(self.flat.grad, async_op=True)

    def shared(self):
        """Whether there are gradients; those of all processes are added up then."""
        if self.sharing:
            self.sharing.wait()
            self.sharing = None
        return self.flat.grad is not None

    @torch.no_grad()
    def collect(self):
        """Have the gradients in one tensor, that of `flat`."""
        self.flat.grad = torch.zeros_like(self.flat)
        places = []
        for p, place in zip(self.parameters, self.places(self.flat.grad), strict=True):
            if p.grad is not None:
                places.append(place)
        torch._foreach_copy_(places, self.gradients())
        for p in self.parameters:
            p.grad = None

    @torch.no_grad()
    def step(self, scale):
        """One step by `scale` times the gradients, which are freed."""
        if self.flat.grad is None:
            self.collect()
        self.flat.grad.mul_(scale)
        # torchao compiles its step, which on a CPU takes minutes for many shapes
        with torch.compiler.set_stance("default" if cogvideox.has_compiler() else "force_eager"):
            self.optimizer.step()
        self.flat.grad = None


def padded(p):
    """The length that a parameter takes in a FlatBlock: the next multiple of 256."""
    return -(-p.numel() // 256) * 256
