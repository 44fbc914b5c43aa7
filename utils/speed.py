"""What makes the transformer faster, and all but predict_steps without changing what it computes."""

import os
import shutil
import sysconfig
from collections import Counter
from pathlib import Path

import torch
from diffusers import TaylorSeerCacheConfig
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.checkpoint import checkpoint

ATTENTION = [SDPBackend.CUDNN_ATTENTION, SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]


def has_compiler():
    """Whether torch.compile can build GPU kernels: Triton needs a C compiler and Python's headers."""
    compiler = os.environ.get("CC") or shutil.which("gcc") or shutil.which("cc")
    headers = Path(sysconfig.get_path("include"), "Python.h").is_file()
    return torch.cuda.is_available() and bool(compiler) and headers


def attention():
    """A context in which attention takes the fastest kernel that there is for its input."""
    return sdpa_kernel(ATTENTION, set_priority=True)


def recompute(transformer, kept):
    """Gradient checkpointing of all blocks but the last `kept`, whose activations stay in memory."""
    blocks = set(transformer.transformer_blocks[len(transformer.transformer_blocks) - kept :])

    def run(block, *args):
        return block(*args) if block in blocks else checkpoint(block, *args, use_reentrant=False)

    transformer.enable_gradient_checkpointing(run)


def compile_blocks(transformer):
    """Compile each block in place: they are alike, so that one compilation serves them all.

    A deep copy of the transformer would go on computing with this one's weights.
    """
    for block in transformer.transformer_blocks:
        block.forward = torch.compile(block.forward)  # and not what hooks put around it


def predict_steps(transformer, steps):
    """Have only every third of `steps` denoising steps run the transformer, and the first 3 and the last 4.

    For the others its output is extrapolated from the last two computed (Liu et al. 2025, "TaylorSeer"). Returns a
    Counter whose "passes" grows with every pass that is really made. Not with blocks that take turns on the GPU:
    diffusers' hooks for that take this one off.
    """
    passes, first = Counter(), transformer.transformer_blocks[0]
    forward = first.forward

    def counted(*args, **kwargs):
        passes["passes"] += 1
        return forward(*args, **kwargs)

    first.forward = counted
    transformer.enable_cache(TaylorSeerCacheConfig(3, disable_cache_before_step=3, disable_cache_after_step=steps - 4,
                                                   taylor_factors_dtype=torch.float32, use_lite_mode=True))  # fmt: skip
    return passes
