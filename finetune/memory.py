"""What each memory mode takes, and what fits.

    zero2          several GPUs, as published: bf16 weights on each; what is beside them, float32
                   weights and AdamW's states, shared among them
    zero2_offload  the same, the shared part in host memory
    single         bf16 weights, rounded stochastically, and 8-bit AdamW states: all of that on each
                   of num_processes GPUs
    single_fused   the same on one GPU, each block updated inside the backward pass: gradients never
                   all exist
"""

from dataclasses import dataclass
from itertools import pairwise

import psutil
import torch
from diffusers import CogVideoXTransformer3DModel

from finetune import checkpoint
from finetune.settings import Launch
from utils import cli, cogvideox, devices, pipeline
from utils.cli import InputError

GIB = 2**30
ENCODING = 8 * GIB / (49 * 480 * 720)  # bytes a pixel that the untiled VAE takes to encode
PROCESS = 4 * GIB  # of host memory, by itself, of a process with a GPU
FILE = 5e9  # bytes of one file of weights, held by the host while it is written
# Activations that a block keeps for the backward pass beside its input, at each of
# cogvideox.LEVELS. Attention: its output, and the float32 logarithms of its sums, a 32nd of that
# with 64 channels a head. A feed forward's first product gives 4 activations, the other five
# products one each. All: 17.5 were seen of compiled blocks (67.2 GiB less 28.0, 22 blocks).
KEPT = {"nothing": 0, "attention": 33 / 32, "feedforward": 65 / 32, "products": 10 + 1 / 32,
        "all": 18}
TOP = {"full": "nothing", "True": "attention", "auto": "all", "False": "all"}  # allowed at most
SHARE = 0.95  # of what is free, to be used; less than that is lost between blocks of memory
WORK = 28  # activations of the block at work, as of the 28.5 GiB that single_fused took at 5.57 B


@dataclass(frozen=True)
class Sizes:
    """Of a model and its training. All but the last two in bytes, of bf16."""

    weights: int
    trained: int  # those of the weights that are trained
    layer: int  # one activation of all tokens
    kept: int  # what all blocks keep for the backward pass
    accumulate: bool  # whether gradients outlive a backward pass
    resume: bool  # whether a state is read


@dataclass(frozen=True)
class Terms:
    """Bytes beside the weights and the block that is worked on."""

    begin: float  # of each GPU, from the beginning
    states: float  # of each GPU, from the first step on
    passing: float  # of each GPU, in each pass
    host: float  # of a machine's host memory


def table(s, launch):
    """{mode: Terms} for Sizes `s`: the one place that says what a mode takes, by arithmetic."""
    gradients = s.trained if s.accumulate else 0
    turns = s.kept if gradients else max(s.trained, s.kept)  # activations give way to gradients
    shared = s.trained / launch.processes
    buckets = min(3 * GIB, 2 * s.trained)  # of DeepSpeed's communication
    copied = s.trained - WORK * s.layer - buckets  # DeepSpeed begins to offload with a copy
    eight_bit = 1.03 * s.trained  # two moments of a byte each, and their scales
    peers = GIB * (launch.processes > 1)  # what NCCL takes, roughly

    file = min(s.weights, FILE)
    all_weights = launch.processes * s.weights  # each process reads them
    load = max(file, all_weights / launch.machines)
    state = max(6 * s.trained, all_weights) / launch.machines if s.resume else 0  # it is read too
    # float32 weights and gradients; where these accumulate, bf16 ones on their way back
    offload = (5 * s.trained + gradients) / launch.machines
    offload += max(file + 4 * s.trained / launch.machines, state)  # the moments come after a state
    return {
        "zero2": Terms(4 * shared, 5 * shared + buckets, s.kept, max(load, state)),
        "zero2_offload": Terms(0, buckets, max(s.kept, copied), max(load, offload)),
        "single": Terms(peers, eight_bit + gradients, turns, load),
        "single_fused": Terms(0, eight_bit, s.kept, load),
    }


def sizes(args, transformer, levels=None):
    """The Sizes of a transformer whose trained parameters require gradients; meta will do.

    levels: of its blocks; by default those that take the least memory.
    """
    layer = activation(transformer.config, args.batch_size)
    least = "all" if args.gradient_checkpointing == "False" else "nothing"
    levels = levels or [least] * transformer.config.num_layers
    return Sizes(
        weights=2 * sum(p.numel() for p in transformer.parameters()),
        trained=2 * sum(p.numel() for p in trainable(transformer)),
        layer=layer,
        kept=int(layer * sum(1 + KEPT[level] for level in levels)),
        accumulate=args.gradient_accumulation_steps > 1,
        resume=bool(args.resume_from_checkpoint),
    )


def planned(args, config=None):
    """The transformer as a run will train it, on meta; config: by default transformer_id's."""
    if config is None:
        config = CogVideoXTransformer3DModel.load_config(pipeline.find_weights(args.transformer_id))
    with torch.device("meta"):
        transformer = CogVideoXTransformer3DModel.from_config(config)
        return checkpoint.prepare_weights(args, transformer, None)


def needs(args, launch, videos=0, config=None):
    """Bytes that training takes of (each GPU, a machine's host memory), the processes' own aside.

    videos: bytes of decoded videos that a process keeps. config: the transformer's, by default that
    of transformer_id.
    """
    s = sizes(args, planned(args, config))
    host = table(s, launch)[args.memory].host
    return gpu_need(args, s, launch), host + launch.processes * videos / launch.machines


def gpu_need(args, s, launch):
    """Bytes that training takes of each GPU, by Sizes."""
    terms = table(s, launch)[args.memory]
    gpu = s.weights + WORK * s.layer + terms.begin + terms.states + terms.passing
    if args.ema_decay:
        gpu += 2 * s.weights  # the mean, float32, on the first GPU, and written from there
    return gpu


def dtype(args):
    """Of weights and arithmetic: bf16; with zero2 float32 on a CPU without bf16 instructions."""
    if args.memory.startswith("zero2"):
        return pipeline.pick_dtype("auto", cli.pick_device())
    return torch.bfloat16


def activation(config, batch_size):
    """Bytes of one activation of all tokens, bf16."""
    tokens = sum(cogvideox.count_tokens(config))
    return 2 * batch_size * tokens * config.num_attention_heads * config.attention_head_dim


def trainable(transformer):
    """The parameters that are trained, in order."""
    return [p for p in transformer.parameters() if p.requires_grad]


def free(args, device=None):
    """Bytes of GPU memory that this process may still take."""
    there = torch.cuda.mem_get_info(device)[0]
    if args.gpu_memory:
        there = min(there, args.gpu_memory * GIB - torch.cuda.memory_reserved(device))
    return there


def limit(args, device):
    """Keep this process within `gpu_memory` GiB of its GPU."""
    if args.gpu_memory and device.type == "cuda":
        share = args.gpu_memory * GIB / torch.cuda.get_device_properties(device).total_memory
        torch.cuda.set_per_process_memory_fraction(min(1, share), device)


def free_in_steps(args, transformer, ranks, device):
    """Bytes of GPU memory that are free now and will be when all optimizer states are there."""
    states = table(sizes(args, transformer), Launch(ranks))[args.memory].states
    return free(args, device) - states


def choose_tiling(args, pipe, transformer, ranks, device):
    """Let the VAE work in tiles unless a whole clip fits beside weights and optimizer states."""
    if device.type != "cuda":
        return
    frames, height, width = pipe.clip_shape
    pixel = devices.UNTILED if args.do_validation else ENCODING  # validation decodes too
    need = pixel * frames * height * width + 2 * GIB  # 1.5 to spare were too few
    fits = free_in_steps(args, transformer, ranks, device) >= need
    devices.set_tiling(pipe.vae, not fits)


def choose_levels(args, transformer, ranks, device):
    """What each block keeps for the backward pass, one of cogvideox.LEVELS, as memory allows.

    Level after level is given to as many blocks as there is room for, the last ones first: with
    `single` most of theirs is given back before most gradients are there.
    """
    layers = transformer.config.num_layers
    top = TOP[args.gradient_checkpointing]
    if args.gradient_checkpointing in ("full", "False"):
        return [top] * layers
    if device.type != "cuda":
        return ["attention"] * layers
    layer = activation(transformer.config, args.batch_size)
    free_then = free_in_steps(args, transformer, ranks, device)
    left = SHARE * (free_then - (WORK + layers) * layer) - GIB
    levels = ["nothing"] * layers
    for before, level in pairwise(cogvideox.LEVELS[: cogvideox.LEVELS.index(top) + 1]):
        more = (KEPT[level] - KEPT[before]) * layer
        count = min(layers, max(0, int(left // more)))
        levels[layers - count :] = [level] * count
        left -= count * more
        if count < layers:
            break
    return levels


def said(args, transformer, levels, engine):
    """In words: what blocks keep on a GPU, and what it all takes of each by arithmetic."""
    if engine.device.type != "cuda":
        return ""
    counts = [f"{levels.count(level)} {level}" for level in cogvideox.LEVELS if level in levels]
    need = gpu_need(args, sizes(args, transformer, levels), Launch(engine.ranks))
    return f", about {need / GIB:.1f} GiB, blocks keep: {', '.join(counts)}"


def gpus_used(args, launch):
    """Numbers of this machine's GPUs that train, as the processes count them; [] without a GPU.

    Raises InputError unless there is one GPU for each process.
    """
    there = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if there == 0:
        return []
    if args.memory.startswith("single"):
        if launch.processes > there:
            raise InputError(f"--num_processes {launch.processes}: {there} GPUs are there; give "
                             f"{there} or less")
        return list(range(launch.processes))
    named = there if launch.gpu_ids == "all" else len(set(launch.gpu_ids.split(",")))
    if named > there:
        raise InputError(f"gpu_ids {launch.gpu_ids}: {there} of these GPUs are there; edit "
                         "accelerate_config.yaml")
    if launch.processes != named * launch.machines:
        machines = f" on each of {launch.machines} machines" * (launch.machines > 1)
        raise InputError(f"num_processes {launch.processes}: gpu_ids {launch.gpu_ids} means {named}"
                         f" GPUs{machines}; expected {named * launch.machines}, one for each GPU; "
                         "edit accelerate_config.yaml")
    return list(range(named))


def check_needs(args, launch, videos=0):
    """Say what memory training needs; InputError if it is not there. videos: as of needs()."""
    gpus = gpus_used(args, launch)
    gpu, host = needs(args, launch, videos)
    host += launch.processes / launch.machines * (PROCESS if gpus else gpu)
    there = psutil.virtual_memory().available
    processes = f"{launch.processes} process{'es' * (launch.processes > 1)}"
    said = f"memory={args.memory}, training_type={args.training_type}, {processes}: about"
    if gpus:
        left = min(free(args, number) for number in gpus)  # of the fullest
        said = f"{said} {gpu / GIB:.1f} GiB of each GPU ({left / GIB:.1f} free) and"
        if gpu > left:
            raise InputError(f"memory={args.memory} needs about {gpu / GIB:.1f} GiB of GPU memory "
                             f"and {left / GIB:.1f} are free; choose {less(args)}")
    print(f"{said} {host / GIB:.1f} GiB of host memory ({there / GIB:.1f} free)")
    if host > there:
        choice = "a machine with more memory" if gpus else less(args)
        if args.memory.startswith("zero2"):
            choice = f"{'fewer processes, ' * (launch.processes > 1)}single or single_fused"
        raise InputError(f"memory={args.memory} needs about {host / GIB:.1f} GiB of host memory "
                         f"for {processes} and {there / GIB:.1f} are free; choose {choice}")


def less(args):
    """What takes less memory for the model than the settings of `args`."""
    if args.training_type == "lora":
        single = args.memory.startswith("single")
        return "a machine with more memory" if single else "memory=single"
    if args.memory in ("single_fused", "zero2_offload"):
        return "training_type=lora"
    return "single_fused, or training_type=lora"
