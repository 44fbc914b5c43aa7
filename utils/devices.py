"""Where the models live and who computes what: --memory, --vae_tiling and --share_clip of demo.py.

    gpu      everything on the GPU
    offload  the transformer comes to the GPU for its denoising alone
    low      the transformer's blocks take turns, the next one copied while one works; the VAE works
             in tiles

Several processes can share one clip: each holds a stretch of its tokens and, in attention, some of
the heads for all of them (Jacobs et al. 2023, "DeepSpeed Ulysses"). Text and image tokens are one
row, so that the first process has the text and fewer image tokens. (Of libraries, xfuser 0.7 has
this transformer only in a text-to-video pipeline of its own.)
"""

import os

import torch
import torch.distributed as dist

from utils import cogvideox
from utils.cli import InputError

GIB = 2**30
MARGIN = 0.95  # share of the free memory to be used
# mode, VAE in tiles; the fastest first
PLANS = (("gpu", False), ("gpu", True), ("offload", False), ("offload", True), ("low", True))
# Bytes a pixel beside the weights, in bf16 at 49 x 480 x 720: of the VAE at once, which was
# measured, of the VAE in tiles and of the transformer, which follow by arithmetic.
PIXELS = 49 * 480 * 720
UNTILED = 16 * GIB / PIXELS
TILED = 4.5 * GIB / PIXELS
WORK = 2 * GIB / PIXELS


# ---- placement -----------------------------------------------------------------------------------


def size(model):
    """Bytes of a model's weights."""
    return sum(p.numel() * p.element_size() for p in model.parameters())


def need(pipe, mode, tiled):
    """Bytes of GPU memory that inpainting a clip takes, about."""
    frames, height, width = pipe.clip_shape
    pixels = frames * height * width * pipe.dtype.itemsize / 2
    transformer = size(pipe.transformer)
    vae = size(pipe.vae)
    work = WORK * pixels
    coding = (TILED if tiled else UNTILED) * pixels
    if mode == "gpu":
        return transformer + vae + max(work, coding)
    if mode == "offload":  # the VAE goes when the next clip begins
        return vae + max(transformer + work, coding)
    block = transformer / pipe.transformer.config.num_layers
    return 3 * block + vae + max(work, coding)  # one at work, the next, and what is in no block


def allowed_plans(mode, tiling, device):
    """Those of PLANS that the user allows, the fastest first.

    mode: auto, gpu, offload or low; tiling: auto, on or off. InputError where they exclude each
    other, and for offload and low without a GPU.
    """
    if device.type != "cuda" and mode in ("offload", "low"):
        raise InputError(f"--memory {mode} is for GPUs, got {device}; give auto")
    plans = []
    for plan_mode, tiled in PLANS:
        if mode in ("auto", plan_mode) and tiling in ("auto", "on" if tiled else "off"):
            plans.append((plan_mode, tiled))
    if not plans:
        raise InputError(f"--memory {mode} has the VAE work in tiles; got --vae_tiling {tiling}, "
                         "give auto or on")
    return plans


def choose(pipe, plans, free):
    """The first of the plans that fits in `free` bytes, or the last one."""
    for mode, tiled in plans:
        if need(pipe, mode, tiled) <= free:
            return mode, tiled
    return plans[-1]


def place(pipe, device, mode="auto", tiling="auto", together=False):
    """Put a pipeline's parts where they are to live: (the mode, a line that says where and why).

    mode, tiling: as in allowed_plans. together: all processes must choose alike, for the one with
    the least free memory.
    """
    plans = allowed_plans(mode, tiling, device)
    if device.type != "cuda":
        set_tiling(pipe.vae, tiling == "on")
        pipe.to(device)
        return "cpu", f"on {device}"
    torch.cuda.set_device(device)  # where diffusers makes the stream that copies blocks
    free = torch.cuda.mem_get_info(device)[0]
    if together:
        free = smallest(free, device)
    mode, tiled = choose(pipe, plans, MARGIN * free)
    set_tiling(pipe.vae, tiled)
    if mode == "gpu":
        pipe.to(device)
    elif mode == "offload":
        pipe.enable_model_cpu_offload(device=device)
    else:
        offload_blocks(pipe, device)
    needed = need(pipe, mode, tiled)
    doubt = ", perhaps too much" if needed > MARGIN * free else ""
    tiles = "in tiles" if tiled else "untiled"
    return mode, (f"on {device}, memory={mode}, VAE {tiles}, which takes about "
                  f"{needed / GIB:.1f} GiB of {free / GIB:.1f} free{doubt}")


def set_tiling(vae, tiled):
    """Let a VAE work in tiles, or at once."""
    if tiled:
        vae.enable_tiling()
    else:
        vae.disable_tiling()


def offload_blocks(pipe, device):
    """Keep the transformer's blocks in host memory; each is copied over when its turn comes."""
    pipe.vae.to(device)
    pipe.transformer.enable_group_offload(device, torch.device("cpu"), "block_level",
                                          num_blocks_per_group=1,
                                          use_stream=device.type == "cuda")


# ---- several processes ---------------------------------------------------------------------------


RANKS = ("RANK", "WORLD_SIZE", "LOCAL_RANK")


def processes():
    """(rank, number, rank on this machine) of the processes that torchrun or accelerate launch
    started; else (0, 1, None). What a cluster left in the environment does not count."""
    if not launched():
        return 0, 1, None
    return tuple(int(os.environ[name]) for name in RANKS)


def launched():
    """Whether torchrun, by itself or under accelerate launch, started this process."""
    return all(name in os.environ for name in ("TORCHELASTIC_RUN_ID", *RANKS))


def stray_ranks():
    """The variables of processes() that are set and do not count."""
    return [] if launched() else [name for name in RANKS if name in os.environ]


def check_sharing(config, count):
    """InputError unless a transformer's heads and tokens divide by the number of processes.

    config: the transformer's configuration.
    """
    heads = config["num_attention_heads"]
    tokens = sum(cogvideox.count_tokens(config))
    if count == 1:
        raise InputError("--share_clip: got one process; start with torchrun --nproc_per_node N "
                         "demo.py ..., N GPUs")
    if heads % count or tokens % count:
        raise InputError(f"--share_clip with {count} processes: expected a number that divides "
                         f"this model's {heads} heads and {tokens} tokens")


def join(device):
    """Meet the other processes, which the environment names as torchrun sets it."""
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo")


def leave():
    """Leave the other processes, when all are done."""
    dist.destroy_process_group()


def smallest(number, device):
    """The smallest of all processes' numbers."""
    number = torch.tensor(number, device=device)
    dist.all_reduce(number, dist.ReduceOp.MIN)
    return number.item()


def share_tokens(transformer):
    """Have all processes, which have joined, work together on every pass of the transformer.

    Input and output stay the same. Every process must call it alike.
    """
    shared = SharedTokens(transformer.config)
    transformer.set_attn_processor(shared)
    transformer.transformer_blocks[0].register_forward_pre_hook(shared.begin, with_kwargs=True)
    transformer.transformer_blocks[-1].register_forward_hook(shared.end)


class SharedTokens(cogvideox.Attention):
    """The attention processor of a transformer whose tokens are shared among the processes."""

    def __init__(self, config):
        self.ranks = dist.get_world_size()
        self.text, image = cogvideox.count_tokens(config)
        self.count = (self.text + image) // self.ranks  # tokens of each process
        self.start = dist.get_rank() * self.count
        self.own_text = min(max(0, self.text - self.start), self.count)
        first = max(0, self.start - self.text)
        self.image = slice(first, first + self.count - self.own_text)  # of the image tokens

    def begin(self, block, args, kwargs):
        """Keep this process's tokens of those that go into the first block."""
        text = kwargs["encoder_hidden_states"][:, self.start : self.start + self.own_text]
        image = kwargs["hidden_states"][:, self.image]
        return args, kwargs | {"hidden_states": image, "encoder_hidden_states": text}

    def end(self, block, args, output):
        """All processes' tokens of those that leave the last block: (image, text)."""
        image, text = output
        own = torch.cat([text, image], 1).contiguous()  # [B, count, C]
        gathered = [torch.empty_like(own) for _ in range(self.ranks)]
        dist.all_gather(gathered, own)
        text, image = torch.cat(gathered, 1).tensor_split([self.text], 1)
        return image, text

    def own_rotary(self, rotary):
        return [y[self.image] for y in rotary]

    def attend(self, q, k, v):
        """Attention of own tokens, [B, count, heads, c], to those of all processes."""
        q, k, v = self.tokens_for_heads(torch.stack([q, k, v]))  # [B, tokens, heads / ranks, c]
        return self.heads_for_tokens(super().attend(q, k, v))

    def tokens_for_heads(self, x):
        """[..., count, heads, c] of every process to [..., tokens, heads / ranks, c]."""
        sent = x.unflatten(-2, (self.ranks, -1)).movedim(-3, 0)  # one for each process
        return self.exchange(sent).movedim(0, -4).flatten(-4, -3)

    def heads_for_tokens(self, x):
        """[..., tokens, heads / ranks, c] to [..., count, heads, c] of this process."""
        sent = x.unflatten(-3, (self.ranks, self.count)).movedim(-4, 0)
        return self.exchange(sent).movedim(0, -3).flatten(-3, -2)

    @torch.compiler.disable
    def exchange(self, sent):
        """sent[i] goes to process i; what comes back in place i is from there."""
        sent = sent.contiguous()
        received = torch.empty_like(sent)
        dist.all_to_all_single(received, sent)
        return received
