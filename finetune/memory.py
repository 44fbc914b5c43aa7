"""Where weights, gradients and optimizer state live while training: `memory` of finetune_cognvs.sh.

    zero2          several GPUs, as published: bf16 weights on each, float32 weights and AdamW states shared among them
    zero2_offload  the same, the shared part in host memory
    single         one GPU: bf16 weights, rounded stochastically, 8-bit AdamW states
    single_fused   one GPU: the same, each block updated inside the backward pass, so that gradients never all exist
"""

import os
import re

import torch
from diffusers import CogVideoXTransformer3DModel

from finetune import checkpoint, dataset
from utils import cli, cogvideox, devices, pipeline
from utils.cli import InputError

MODES = ("zero2", "zero2_offload", "single", "single_fused")
GIB = 2**30
ENCODING = 8 * GIB / (49 * 480 * 720)  # bytes a pixel that the untiled VAE takes to encode
PROCESS = 4 * GIB  # of host memory that a process with a GPU takes by itself
KEPT, WORK = 20, 28  # activations: of a block that is not recomputed (14 seen), and of the one that is worked on


def engine(args):
    """What runs the optimizer in the mode asked for."""
    return DeepSpeed(args) if args.memory.startswith("zero2") else Single(args)


def dtype(args):
    """Of weights and arithmetic: bf16; with zero2 float32 on a CPU that has no instructions for bf16."""
    device = cli.pick_device()
    return pipeline.pick_dtype("auto", device) if args.memory.startswith("zero2") else torch.bfloat16


def needs(args, ranks):
    """Bytes that training will take of (each GPU, the host), from the sizes of the models.

    By arithmetic; the activations' constants are chosen so that single_fused at 5.57 B parameters and 49 x 480 x 720
    takes the 28.5 GiB that were seen of such a run. A process's own memory is not in it.
    """
    config = CogVideoXTransformer3DModel.load_config(pipeline.find_weights(args.transformer_id))
    with torch.device("meta"):
        transformer = CogVideoXTransformer3DModel.from_config(config)
        checkpoint.prepare_weights(args, transformer, None)
    weights = 2 * sum(p.numel() for p in transformer.parameters())
    trained = 2 * sum(p.numel() for p in transformer.parameters() if p.requires_grad)
    layer, layers = activation(transformer.config, args.batch_size), transformer.config.num_layers
    kept, work = layers * layer * (KEPT if args.gradient_checkpointing == "False" else 1), WORK * layer
    gpu, host = weights + work, min(weights, 5e9)  # a file of weights while it is written
    accumulate = args.gradient_accumulation_steps > 1
    read = max(6 * trained, ranks * weights) / args.machines if args.resume_from_checkpoint else 0  # states; weights
    if args.ema_decay:
        gpu += 4 * weights  # float32, and twice while it is made
    if args.memory == "single":  # gradients and activations take turns, if gradients do not outlive the backward pass
        gpu += trained * 1.03 + (trained + kept if accumulate else max(trained, kept))
    elif args.memory == "single_fused":
        gpu += trained * 1.03 + kept
    elif args.memory == "zero2":
        gpu += trained * 9 / ranks + kept + buckets(trained)
        host = max(host, read)
    else:
        gpu += max(kept + buckets(trained), trained - work)  # DeepSpeed begins with a copy of the weights
        own = trained * (5 + accumulate) / args.machines  # float32 weights and gradients, bf16 on their way back
        host = max(host + own + 4 * trained / args.machines, own + read)
    return gpu, host


def buckets(trained):
    """Bytes of DeepSpeed's communication buckets, from the bytes that are trained."""
    return min(3 * GIB, 2 * trained)


def activation(config, batch_size):
    """Bytes of one activation of all tokens, bf16."""
    tokens = sum(cogvideox.count_tokens(config))
    return 2 * batch_size * tokens * config.num_attention_heads * config.attention_head_dim


def free(args, device=None):
    """Bytes of GPU memory that this process may still take."""
    there, _ = torch.cuda.mem_get_info(device)
    return min(there, args.gpu_memory * GIB - torch.cuda.memory_reserved(device)) if args.gpu_memory else there


def limit(args, device):
    """Keep this process within `gpu_memory` GiB of its GPU."""
    if args.gpu_memory and device.type == "cuda":
        total = torch.cuda.get_device_properties(device).total_memory
        torch.cuda.set_per_process_memory_fraction(min(1, args.gpu_memory * GIB / total), device)


def states_to_come(args, transformer, ranks):
    """Bytes that optimizer states, and gradients that outlive a backward pass, will take of each GPU."""
    trained = 2 * sum(p.numel() for p in trainable(transformer))
    gradients = trained if args.gradient_accumulation_steps > 1 else 0
    return {"single": 1.03 * trained + gradients, "single_fused": 1.03 * trained,
            "zero2": 5 * trained / ranks + buckets(trained),
            "zero2_offload": buckets(trained)}[args.memory]  # fmt: skip


def choose_tiling(args, pipe, transformer, ranks, device):
    """Let the VAE work in tiles unless a whole clip fits beside weights and optimizer states."""
    if device.type == "cuda":
        states = states_to_come(args, transformer, ranks)
        frames, height, width = pipe.clip_shape
        pixel = devices.UNTILED if args.do_validation else ENCODING  # validation decodes too
        fits = free(args, device) - states >= pixel * frames * height * width + 2 * GIB  # 1.5 were too few
        pipe.vae.disable_tiling() if fits else pipe.vae.enable_tiling()


def blocks_to_keep(args, transformer, ranks, device):
    """How many blocks' activations fit in the GPU's free memory beside optimizer states that are still to come.

    They are the last blocks': with `single` most are given back before most gradients are there."""
    if args.gradient_checkpointing == "False":
        return transformer.config.num_layers
    if args.gradient_checkpointing == "True" or device.type != "cuda":
        return 0
    come = states_to_come(args, transformer, ranks)
    layer = activation(transformer.config, args.batch_size)
    left = free(args, device) - come - (WORK + transformer.config.num_layers) * layer - 4 * GIB
    return min(transformer.config.num_layers, max(0, int(left // (KEPT * layer))))


def check_needs(args, ranks):
    """Say what memory training will need; InputError if it is not there."""
    import psutil

    gpu, host = needs(args, ranks)
    there, gpus = psutil.virtual_memory().available, torch.cuda.device_count() if torch.cuda.is_available() else 0
    processes = f"{ranks} process{'es' * (ranks > 1)}"
    said = f"memory={args.memory}, training_type={args.training_type}, {processes}: about"
    if gpus:
        listed = [int(number) for number in re.findall(r"\d+", args.gpu_ids)] or range(gpus)
        chosen = listed if args.memory.startswith("zero2") else [0]
        if max(chosen) >= gpus:
            raise InputError(f"gpu_ids {args.gpu_ids}: there are {gpus} GPUs, from 0 on; edit accelerate_config.yaml")
        left = min(free(args, number) for number in chosen)  # the fullest of them
        host += ranks * PROCESS / args.machines
        print(f"{said} {gpu / GIB:.1f} GiB of each GPU ({left / GIB:.1f} free) and {host / GIB:.1f} GiB of host memory")
        if gpu > left:
            raise InputError(f"memory={args.memory} needs about {gpu / GIB:.1f} GiB of GPU memory and {left / GIB:.1f} "
                             f"are free; choose {less(args)}")
    else:
        host += ranks * gpu / args.machines
        print(f"{said} {host / GIB:.1f} GiB of host memory ({there / GIB:.1f} free)")
    if host > there:
        choice = "a machine with more memory" if gpus else less(args)
        if args.memory.startswith("zero2"):
            choice = f"{'fewer processes, ' * (ranks > 1)}single or single_fused"
        raise InputError(f"memory={args.memory} needs about {host / GIB:.1f} GiB of host memory for {processes} and "
                         f"{there / GIB:.1f} are free; choose {choice}")


def less(args):
    """What takes less memory for the model than the settings of `args`."""
    if args.training_type == "lora":
        return "a machine with more memory" if args.memory.startswith("single") else "memory=single"
    few = args.memory in ("single_fused", "zero2_offload")
    return "training_type=lora" if few else "single_fused, or training_type=lora"


def trainable(transformer):
    return [p for p in transformer.parameters() if p.requires_grad]


class DeepSpeed:
    """ZeRO-2 through accelerate; accelerate_config.yaml and its JSON say how many processes and which precision."""

    def __init__(self, args):
        self.args, self.accelerator = args, make_accelerator(args)
        self.device, self.rank = self.accelerator.device, self.accelerator.process_index
        self.ranks, self.wait = self.accelerator.num_processes, self.accelerator.wait_for_everyone
        self.settings = self.accelerator.state.deepspeed_plugin.deepspeed_config

    def prepare(self, transformer):
        a = self.args
        fused = a.memory == "zero2_offload" or None  # on a CPU it takes no memory for what lies between; None: as usual
        optimizer = torch.optim.AdamW(trainable(transformer), a.learning_rate, (a.beta1, a.beta2), a.epsilon,
                                      a.weight_decay, fused=fused)  # fmt: skip
        self.model, self.optimizer = self.accelerator.prepare(transformer, optimizer)

    def begin(self, step, rate):
        for group in self.optimizer.param_groups:
            group["lr"] = rate

    def backward(self, loss):
        with self.accelerator.accumulate(self.model):
            self.accelerator.backward(loss)  # the last one of a step also steps the optimizer

    def step(self):
        return self.model.get_global_grad_norm()

    def gather(self, loss):
        return self.accelerator.gather(loss[None])

    def save(self, folder):
        self.accelerator.save_state(str(folder))

    def load(self, folder):
        self.accelerator.load_state(str(folder))

    def end(self):
        self.accelerator.end_training()


def make_accelerator(args):
    """accelerate's handle on the processes; the DeepSpeed JSON says precision and ZeRO stage, `args` all the rest."""
    from accelerate import Accelerator
    from accelerate.utils import InitProcessGroupKwargs

    kwargs = []
    if not torch.cuda.is_available():
        os.environ.setdefault("DS_ACCELERATOR", "cpu")

        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False  # would be compiled on first use
        kwargs = [InitProcessGroupKwargs(backend="gloo")]
    accelerator = Accelerator(kwargs_handlers=kwargs, gradient_accumulation_steps=args.gradient_accumulation_steps)
    plugin = accelerator.state.deepspeed_plugin
    if plugin is None:
        raise InputError("accelerate was started without DeepSpeed; start with finetune_cognvs.sh and distributed_type "
                         "DEEPSPEED in accelerate_config.yaml")
    config = plugin.deepspeed_config
    if not config.get("bf16", {}).get("enabled") or "optimizer" in config or "scheduler" in config:
        raise InputError("the DeepSpeed JSON must enable bf16 and name no optimizer or scheduler: those are set in "
                         "finetune_cognvs.sh")
    config["bf16"]["enabled"] = dtype(args) == torch.bfloat16
    config |= {"train_micro_batch_size_per_gpu": args.batch_size, "gradient_clipping": args.max_grad_norm,
               "gradient_accumulation_steps": args.gradient_accumulation_steps}  # fmt: skip
    if args.memory == "zero2_offload":
        # memory that is pinned is taken in powers of two: at full size 80 GiB for 52
        config["zero_optimization"]["offload_optimizer"] = {"device": "cpu", "pin_memory": False}
        config["zero_force_ds_cpu_optimizer"] = False  # DeepSpeed's own would be compiled on first use
    return accelerator


class Single:
    """One process: torchao's 8-bit AdamW on bf16 weights, whose stochastic rounding keeps steps smaller than bf16's.

    single_fused steps each of `parts` as soon as its gradients are there and frees them. The norm of all gradients is
    known only after the last, so each part is clipped by the larger of that of the step before and that of the parts so
    far (and to its even share in the first step).
    """

    def __init__(self, args):
        self.args, self.rank, self.ranks, self.settings = args, 0, 1, None
        self.device = torch.device("cuda:0" if torch.cuda.is_available() else "cpu")
        self.fused = args.memory == "single_fused"

    def prepare(self, transformer):
        self.model, self.norm = transformer, None
        self.parts = [Part(self.args, parameters) for parameters in by_block(transformer)]
        for part in self.parts if self.fused else ():
            part.when_complete(self.update)

    def begin(self, step, rate):
        for part in self.parts:
            part.optimizer.param_groups[0]["lr"].fill_(rate)
        torch.manual_seed(dataset.seed(self.args.seed, "rounding", 0, step))  # stochastic rounding draws from it
        self.square = torch.zeros((), device=self.device)

    def backward(self, loss):
        (loss / self.args.gradient_accumulation_steps).backward()

    def update(self, part):
        """Clip and step a part inside the backward pass, or after it if not all of its weights were used."""
        norm = part.norm()
        self.square += norm.square()
        first = self.norm is None
        self.update_by(part, norm * len(self.parts) ** 0.5 if first else torch.maximum(self.norm, self.square.sqrt()))

    def update_by(self, part, norm):
        part.step((self.args.max_grad_norm / (norm + 1e-6)).clamp(max=1))

    def step(self):
        """Update the weights unless that is done; the norm of all gradients before clipping."""
        left = [part for part in self.parts if part.gradients()]
        if self.fused:
            for part in left:
                self.update(part)
            self.norm = self.square.sqrt()
            return self.norm
        norm = torch.stack([part.norm() for part in left] or [self.square]).norm()
        for part in left:
            self.update_by(part, norm)
        return norm

    def gather(self, loss):
        return loss[None]

    def wait(self):
        pass

    def save(self, folder):
        folder.mkdir(parents=True)
        state = {"optimizers": [part.optimizer.state_dict() for part in self.parts], "norm": self.norm}
        torch.save(state, folder / "optimizer.pt")

    def load(self, folder):
        state = torch.load(folder / "optimizer.pt", map_location="cpu", weights_only=True)  # moved by the optimizer
        sizes = [value["exp_avg"].numel() for values in state["optimizers"] for value in values["state"].values()]
        if sizes != [part.flat.numel() for part in self.parts]:
            raise InputError(f"{folder}: its optimizer state is not of this model and version; start anew")
        for part, values in zip(self.parts, state["optimizers"], strict=True):
            part.optimizer.load_state_dict(values)
        self.norm = None if state["norm"] is None else state["norm"].to(self.device)

    def end(self):
        pass


def by_block(transformer):
    """The trainable parameters of each block, and those that are in none, as lists."""
    groups = {}
    for name, p in transformer.named_parameters():
        if p.requires_grad:
            groups.setdefault(re.match(r"(transformer_blocks\.\d+)?", name)[0], []).append(p)
    return list(groups.values())


class Part:
    """Parameters that lie in one tensor in memory and are optimized as one: thousands of small ones would have the GPU
    wait for the CPU. Each starts at a multiple of torchao's 256 weights, which share the scale of their 8-bit state
    (torchao alone would keep small tensors' state in bf16). A gradient that is missing beside others counts as 0."""

    def __init__(self, args, parameters):
        from torchao.optim import AdamW8bit

        self.parameters, self.missing = parameters, len(parameters)
        self.flat = torch.nn.Parameter(parameters[0].new_zeros(sum(map(padded, parameters))))
        for p, place in zip(parameters, self.places(self.flat.data), strict=True):
            p.data = place.copy_(p.data)
        self.optimizer = AdamW8bit([self.flat], args.learning_rate, (args.beta1, args.beta2), args.epsilon,
                                   args.weight_decay, bf16_stochastic_round=True)  # fmt: skip

    def places(self, flat):
        """Where each parameter lies in a tensor like `flat`, as views of it in its shape."""
        pieces = flat.split([padded(p) for p in self.parameters])
        return [piece[: p.numel()].view_as(p) for piece, p in zip(pieces, self.parameters, strict=True)]

    def when_complete(self, act):
        """Call act(self) whenever the gradients of all parameters are there."""

        def arrived(_):
            self.missing -= 1
            if self.missing == 0:
                act(self)

        for p in self.parameters:
            p.register_post_accumulate_grad_hook(arrived)

    def gradients(self):
        return [p.grad for p in self.parameters if p.grad is not None]

    def norm(self):
        return torch.stack(torch._foreach_norm(self.gradients(), 2, torch.float32)).norm()

    @torch.no_grad()
    def step(self, scale):
        """One step by `scale` times the gradients, which are freed."""
        self.flat.grad = torch.zeros_like(self.flat)
        pairs = [(g, p.grad) for p, g in zip(self.parameters, self.places(self.flat.grad), strict=True)
                 if p.grad is not None]  # fmt: skip
        torch._foreach_copy_(*map(list, zip(*pairs, strict=True)))
        for p in self.parameters:
            p.grad = None
        self.flat.grad.mul_(scale)
        # torchao compiles its step: minutes for many shapes on a CPU, so that only GPUs with a C compiler do it
        with torch.compiler.set_stance("default" if cogvideox.has_compiler() else "force_eager"):
            self.optimizer.step()
        self.flat.grad, self.missing = None, len(self.parameters)


def padded(p):
    return -(-p.numel() // 256) * 256
