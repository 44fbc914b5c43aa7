"""What each memory mode takes, and where weights, gradients and optimizer state live in it.

    zero2          several GPUs, as published: bf16 weights on each; float32 weights and AdamW states shared
    zero2_offload  the same, the shared part in host memory
    single         one GPU: bf16 weights, rounded stochastically, and 8-bit AdamW states
    single_fused   one GPU: the same, each block updated inside the backward pass, so that gradients never all exist
"""

from dataclasses import dataclass

import psutil
import torch
from diffusers import CogVideoXTransformer3DModel

from finetune import checkpoint
from finetune.settings import Launch
from utils import cli, cogvideox, devices, pipeline
from utils.cli import InputError

GIB = 2**30
ENCODING = 8 * GIB / (49 * 480 * 720)  # bytes a pixel that the untiled VAE takes to encode
PROCESS = 4 * GIB  # of host memory that a process with a GPU takes by itself
KEPT = 20  # activations that a block keeps which is not recomputed (14 were seen)
WORK = 28  # activations of the block that is worked on; so that single_fused at 5.57 B parameters and
# 49 x 480 x 720 takes the 28.5 GiB that were seen
WEIGHTS_FILE = 5e9  # bytes of one file of weights, which the host holds while it is written


@dataclass(frozen=True)
class Sizes:
    """Of a model and its training, in bytes."""

    weights: int  # bf16
    trained: int  # those of the weights that are trained, bf16
    layer: int  # one activation of all tokens, bf16
    kept: int  # what all blocks keep for the backward pass
    accumulate: bool  # whether gradients outlive a backward pass
    resume: bool  # whether a state is read


@dataclass(frozen=True)
class Terms:
    """Bytes beside the weights: of each GPU from the beginning, from the first step on (states and
    gradients that stay), and in each pass; and of a machine's host memory."""

    begin: float
    states: float
    passing: float
    host: float


def table(s, launch):
    """{mode: Terms} for Sizes `s`: the one place that says what a mode takes. By arithmetic."""
    states_8bit = 1.03 * s.trained  # two moments of a byte each, and their scales
    gradients = s.trained if s.accumulate else 0
    # in a pass of `single` activations give way to gradients, unless those are there already
    turns = s.kept if s.accumulate else max(s.trained, s.kept)
    shared = s.trained / launch.processes
    buckets = min(3 * GIB, 2 * s.trained)  # DeepSpeed's, for communication
    # DeepSpeed begins zero2_offload with a copy of the weights on the GPU
    copied = max(s.kept, s.trained - WORK * s.layer - buckets)
    file = min(s.weights, WEIGHTS_FILE)
    load = max(file, launch.processes * s.weights / launch.machines)  # each process reads all weights
    state = max(6 * s.trained, launch.processes * s.weights) / launch.machines if s.resume else 0
    # float32 weights and gradients, and, if they accumulate, bf16 ones on their way back; then AdamW's moments
    offloaded = (5 * s.trained + gradients) / launch.machines
    moments = 4 * s.trained / launch.machines
    offloaded_host = max(load, offloaded + max(file + moments, state))
    return {
        "zero2": Terms(4 * shared, 5 * shared + buckets, s.kept, max(load, state)),
        "zero2_offload": Terms(0, buckets, copied, offloaded_host),
        "single": Terms(0, states_8bit + gradients, turns, load),
        "single_fused": Terms(0, states_8bit, s.kept, load),
    }


def sizes(args, transformer):
    """The Sizes of a transformer whose trained parameters require gradients; it may be on the meta device."""
    weights = 2 * sum(p.numel() for p in transformer.parameters())
    trained = 2 * sum(p.numel() for p in trainable(transformer))
    layer = activation(transformer.config, args.batch_size)
    kept = transformer.config.num_layers * layer
    if args.gradient_checkpointing == "False":
        kept *= KEPT
    return Sizes(weights, trained, layer, kept, args.gradient_accumulation_steps > 1,
                 bool(args.resume_from_checkpoint))


def needs(args, launch, videos=0):
    """Bytes that training will take of (each GPU, a machine's host memory), beside the processes' own.

    videos: bytes of decoded videos that a process keeps.
    """
    config = CogVideoXTransformer3DModel.load_config(pipeline.find_weights(args.transformer_id))
    with torch.device("meta"):
        transformer = CogVideoXTransformer3DModel.from_config(config)
        checkpoint.prepare_weights(args, transformer, None)
    s = sizes(args, transformer)
    terms = table(s, launch)[args.memory]
    gpu = s.weights + WORK * s.layer + terms.begin + terms.states + terms.passing
    if args.ema_decay:
        gpu += 2 * s.weights  # float32, of the first process; written from there
    return gpu, terms.host + launch.processes * videos / launch.machines


def dtype(args):
    """Of weights and arithmetic: bf16; with zero2 float32 on a CPU that has no instructions for bf16."""
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
    there, _ = torch.cuda.mem_get_info(device)
    if args.gpu_memory:
        there = min(there, args.gpu_memory * GIB - torch.cuda.memory_reserved(device))
    return there


def limit(args, device):
    """Keep this process within `gpu_memory` GiB of its GPU."""
    if args.gpu_memory and device.type == "cuda":
        total = torch.cuda.get_device_properties(device).total_memory
        torch.cuda.set_per_process_memory_fraction(min(1, args.gpu_memory * GIB / total), device)


def states_to_come(args, transformer, ranks):
    """Bytes of each GPU that states and lasting gradients will take in the first step."""
    return table(sizes(args, transformer), Launch(ranks))[args.memory].states


def choose_tiling(args, pipe, transformer, ranks, device):
    """Let the VAE work in tiles unless a whole clip fits beside weights and optimizer states."""
    if device.type == "cuda":
        left = free(args, device) - states_to_come(args, transformer, ranks)
        frames, height, width = pipe.clip_shape
        pixel = devices.UNTILED if args.do_validation else ENCODING  # validation decodes too
        fits = left >= pixel * frames * height * width + 2 * GIB  # 1.5 were too few
        pipe.vae.disable_tiling() if fits else pipe.vae.enable_tiling()


def blocks_to_keep(args, transformer, ranks, device):
    """How many blocks' activations fit in the GPU's free memory beside optimizer states that are still to come.

    They are the last blocks': with `single` most are given back before most gradients are there.
    """
    layers = transformer.config.num_layers
    if args.gradient_checkpointing == "False":
        return layers
    if args.gradient_checkpointing == "True" or device.type != "cuda":
        return 0
    layer = activation(transformer.config, args.batch_size)
    left = free(args, device) - states_to_come(args, transformer, ranks) - (WORK + layers) * layer - 4 * GIB
    return min(layers, max(0, int(left // (KEPT * layer))))


def gpus_used(args, launch):
    """The GPUs of this machine that train, as CUDA counts them for the processes; [] where there is none.

    Raises InputError unless there is one GPU for each process.
    """
    there = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if there == 0 or args.memory.startswith("single"):
        return list(range(min(1, there)))
    named = range(there) if launch.gpu_ids == "all" else set(launch.gpu_ids.split(","))
    if len(named) > there:
        raise InputError(f"gpu_ids {launch.gpu_ids}: not all of these GPUs are there; edit accelerate_config.yaml")
    expected = len(named) * launch.machines
    if launch.processes != expected:
        machines = f" on each of {launch.machines} machines" if launch.machines > 1 else ""
        raise InputError(f"num_processes {launch.processes}: gpu_ids {launch.gpu_ids} names {len(named)} GPUs"
                         f"{machines}; expected {expected}, one for each; edit accelerate_config.yaml")
    return list(range(len(named)))


def check_needs(args, launch, videos=0):
    """Say what memory training will need; InputError if it is not there. `videos` as of needs()."""
    gpus = gpus_used(args, launch)
    gpu, host = needs(args, launch, videos)
    here = launch.processes / launch.machines
    host += here * (PROCESS if gpus else gpu)
    there = psutil.virtual_memory().available
    processes = f"{launch.processes} process{'es' * (launch.processes > 1)}"
    said = f"memory={args.memory}, training_type={args.training_type}, {processes}: about"
    if gpus:
        left = min(free(args, number) for number in gpus)  # of the fullest
        print(f"{said} {gpu / GIB:.1f} GiB of each GPU ({left / GIB:.1f} free) and {host / GIB:.1f} GiB of host "
              f"memory ({there / GIB:.1f} free)")
        if gpu > left:
            raise InputError(f"memory={args.memory} needs about {gpu / GIB:.1f} GiB of GPU memory and "
                             f"{left / GIB:.1f} are free; choose {less(args)}")
    else:
        print(f"{said} {host / GIB:.1f} GiB of host memory ({there / GIB:.1f} free)")
    if host > there:
        choice = "a machine with more memory" if gpus else less(args)
        if args.memory.startswith("zero2"):
            choice = f"{'fewer processes, ' * (launch.processes > 1)}single or single_fused"
        raise InputError(f"memory={args.memory} needs about {host / GIB:.1f} GiB of host memory for "
                         f"{processes} and {there / GIB:.1f} are free; choose {choice}")


def less(args):
    """What takes less memory for the model than the settings of `args`."""
    if args.training_type == "lora":
        return "a machine with more memory" if args.memory.startswith("single") else "memory=single"
    if args.memory in ("single_fused", "zero2_offload"):
        return "training_type=lora"
    return "single_fused, or training_type=lora"
