"""One clip on several GPUs: each holds a stretch of its tokens, and in attention some of the heads for all of them.

The exchange of tokens for heads is Ulysses (Jacobs et al. 2023, "DeepSpeed Ulysses"). Text and image tokens are one
row, so that the first process has the text and fewer image tokens, and all have equally many. (Of libraries, xfuser
0.7 has this transformer only in a text-to-video pipeline of its own.)
"""

import torch
import torch.distributed as dist

from utils import pipeline
from utils.attention import Attention
from utils.cli import InputError


def check(config, ranks):
    """InputError unless a transformer's heads and tokens, by its configuration, divide by the number of processes."""
    heads, tokens = config["num_attention_heads"], sum(pipeline.count_tokens(config))
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


class SharedTokens(Attention):
    """What shares the tokens among the processes; the attention processor of a transformer where they are."""

    def __init__(self, config):
        self.rank, self.ranks = dist.get_rank(), dist.get_world_size()
        self.text, image = pipeline.count_tokens(config)
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
