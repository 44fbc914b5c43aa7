"""Where the model's parts live while it inpaints: --memory and --vae_tiling of demo.py.

    gpu      everything on the GPU
    offload  the transformer comes to the GPU for its denoising alone
    low      the transformer's blocks take turns, the next one copied while one works; the VAE works in tiles
"""

import torch
import torch.distributed as dist

from utils import cogvideox
from utils.cli import InputError

GIB, MARGIN = 2**30, 0.95  # of the free memory, to be used
PLANS = (("gpu", False), ("gpu", True), ("offload", False), ("offload", True), ("low", True))  # mode, VAE in tiles
# Beside the weights, at 49 x 480 x 720 in bf16. The untiled VAE's was measured; the others are arithmetic from it.
PIXELS = 49 * 480 * 720
UNTILED, TILED, WORK = 16 * GIB / PIXELS, 4.5 * GIB / PIXELS, 2 * GIB / PIXELS  # of the VAE; of the transformer


def size(model):
    """Bytes of a model's weights."""
    return sum(p.numel() * p.element_size() for p in model.parameters())


def need(pipe, mode, tiled):
    """Bytes of GPU memory that inpainting a clip takes, about."""
    frames, height, width = pipe.clip_shape
    pixels = frames * height * width * pipe.dtype.itemsize / 2
    transformer, vae, work = size(pipe.transformer), size(pipe.vae), WORK * pixels
    coding = (TILED if tiled else UNTILED) * pixels
    if mode == "gpu":
        return transformer + vae + max(work, coding)
    if mode == "offload":  # the VAE goes when the next clip begins
        return vae + max(transformer + work, coding)
    blocks = 3 * transformer / pipe.transformer.config.num_layers  # one at work, the next, and what is in no block
    return blocks + vae + max(work, coding)


def choose(pipe, mode, tiling, free):
    """The first of PLANS that is allowed and fits in `free` bytes, or the last that is allowed.

    mode: auto, gpu, offload or low; tiling: auto, on or off. Raises InputError where they exclude each other.
    """
    plans = [plan for plan in PLANS if mode in ("auto", plan[0]) and tiling in ("auto", "on" if plan[1] else "off")]
    if not plans:
        raise InputError(f"--memory {mode} has the VAE work in tiles; got --vae_tiling {tiling}, give auto or on")
    return next((plan for plan in plans if need(pipe, *plan) <= free), plans[-1])


def place(pipe, device, mode="auto", tiling="auto", least=None):
    """Put a pipeline's parts where they are to live; returns a line that says where and why.

    least: a function from the free bytes here to those of the process that has fewest, if all must choose alike.

    Raises InputError for offload and low without a GPU.
    """
    if device.type != "cuda":
        if mode in ("offload", "low"):
            raise InputError(f"--memory {mode} is for GPUs, got {device}; give auto")
        pipe.vae.enable_tiling() if tiling == "on" else pipe.vae.disable_tiling()
        pipe.to(device)
        return f"on {device}"
    torch.cuda.set_device(device)  # where diffusers makes the stream that copies blocks
    free = torch.cuda.mem_get_info(device)[0]
    free = least(free) if least else free
    mode, tiled = choose(pipe, mode, tiling, MARGIN * free)
    pipe.vae.enable_tiling() if tiled else pipe.vae.disable_tiling()
    if mode == "gpu":
        pipe.to(device)
    elif mode == "offload":
        pipe.enable_model_cpu_offload(device=device)
    else:
        offload_blocks(pipe, device)
    needed = need(pipe, mode, tiled)
    return (f"on {device}, memory={mode}, VAE {'in tiles' if tiled else 'untiled'}, which takes about "
            f"{needed / GIB:.1f} GiB of {free / GIB:.1f} free" + ", perhaps too much" * (needed > MARGIN * free))


def offload_blocks(pipe, device):
    """Keep the transformer's blocks in host memory, each copied to the device when its turn comes."""
    pipe.vae.to(device)
    pipe.transformer.enable_group_offload(device, torch.device("cpu"), "block_level", num_blocks_per_group=1,
                                          use_stream=device.type == "cuda")  # fmt: skip


def check_sharing(config, ranks):
    """InputError unless a transformer's heads and tokens, by its configuration, divide by the number of processes."""
    heads, tokens = config["num_attention_heads"], sum(cogvideox.count_tokens(config))
    if ranks == 1:
        raise InputError("--share_clip: got one process; start with torchrun --nproc_per_node N demo.py ..., N GPUs")
    if heads % ranks or tokens % ranks:
        raise InputError(f"--share_clip with {ranks} processes: expected a number that divides this model's {heads} "
                         f"heads and {tokens} tokens")


def join(device):
    """Meet the other processes, which the environment names as torchrun and accelerate launch set it."""
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo")


def least(number, device):
    """The smallest of all processes' numbers."""
    number = torch.tensor(number, device=device)
    dist.all_reduce(number, dist.ReduceOp.MIN)
    return number.item()


def share_tokens(transformer):
    """Have all processes, which have joined, work together on every pass of the transformer: same input, same output.

    Every one of them must call it alike.
    """
    shared = SharedTokens(transformer.config)
    transformer.set_attn_processor(shared)
    transformer.transformer_blocks[0].register_forward_pre_hook(shared.begin, with_kwargs=True)
    transformer.transformer_blocks[-1].register_forward_hook(shared.end)


def part():
    """Leave the other processes, when all are done."""
    dist.destroy_process_group()


class SharedTokens(cogvideox.Attention):
    """What shares the tokens among the processes; the attention processor of a transformer where they are."""

    def __init__(self, config):
        self.rank, self.ranks = dist.get_rank(), dist.get_world_size()
        self.text, image = cogvideox.count_tokens(config)
        self.count = (self.text + image) // self.ranks
        start = self.rank * self.count
        self.own_text = min(max(0, self.text - start), self.count)  # of this process's tokens
        first = max(0, start - self.text)
        self.image = slice(first, first + self.count - self.own_text)  # of the image tokens

    def begin(self, block, args, kwargs):
        """Keep this process's tokens of those that go into the first block."""
        start = self.rank * self.count
        text = kwargs["encoder_hidden_states"][:, start : start + self.own_text]
        return args, kwargs | {"hidden_states": kwargs["hidden_states"][:, self.image], "encoder_hidden_states": text}

    def end(self, block, args, output):
        """All processes' tokens of those that leave the last block, (image, text)."""
        own = torch.cat(output[::-1], 1).contiguous()  # [B, count, C]
        parts = [torch.empty_like(own) for _ in range(self.ranks)]
        dist.all_gather(parts, own)
        text, image = torch.cat(parts, 1).tensor_split([self.text], 1)
        return image, text

    def own_part(self, rotary):
        return [y[self.image] for y in rotary]

    def attend(self, q, k, v):
        """Attention of own tokens' [B, count, heads, c] to those of all processes."""
        q, k, v = self.tokens_for_heads(torch.stack([q, k, v])).unbind(0)  # [B, tokens, heads / ranks, c]
        return self.heads_for_tokens(super().attend(q, k, v))

    def tokens_for_heads(self, x):
        """[..., count, heads, c] of every process to [..., tokens, heads / ranks, c]."""
        parts = x.unflatten(-2, (self.ranks, -1)).movedim(-3, 0)  # one for each process
        return self.exchange(parts).movedim(0, -4).flatten(-4, -3)

    def heads_for_tokens(self, x):
        """[..., tokens, heads / ranks, c] to [..., count, heads, c] of this process."""
        parts = x.unflatten(-3, (self.ranks, self.count)).movedim(-4, 0)
        return self.exchange(parts).movedim(0, -3).flatten(-3, -2)

    @torch.compiler.disable
    def exchange(self, parts):
        """parts[i] goes to process i; what comes back in place i is from there."""
        parts = parts.contiguous()
        received = torch.empty_like(parts)
        dist.all_to_all_single(received, parts)
        return received
