"""Where the model's parts live while it inpaints: --memory and --vae_tiling of demo.py.

    gpu      everything on the GPU
    offload  the transformer comes to the GPU for its denoising alone
    low      the transformer's blocks take turns, the next one copied while one works; the VAE works in tiles
"""

import torch

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
