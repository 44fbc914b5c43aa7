"""Time the parts of a denoising or training step one way and another, on random weights of the real size.

    python toolbox/benchmark_parts.py

attention: each kernel that PyTorch has for the joint attention, forward, and forward and backward.
passes:    one pass of the transformer, and how far its output is from that with diffusers' own attention processor.
vae:       a clip through the VAE: at once, on a second stream while the transformer works, in tiles, with weights whose
           channels are last in memory, compiled.
"""

import argparse
import time

import benchmark
import make_tiny_checkpoint
import torch
import torch.nn.functional as F
from diffusers.models.attention_processor import CogVideoXAttnProcessor2_0
from torch.nn.attention import SDPBackend, sdpa_kernel

from utils import cli, pipeline, speed

KERNELS = {"cuDNN": SDPBackend.CUDNN_ATTENTION, "flash": SDPBackend.FLASH_ATTENTION,
           "memory-efficient": SDPBackend.EFFICIENT_ATTENTION}  # fmt: skip


def seconds(function, device, repeats=7):
    """(of the first call, median of the others), each waited for."""
    times = []
    for _ in range(1 + repeats):
        synchronize(device)
        begin = time.perf_counter()
        function()
        synchronize(device)
        times.append(time.perf_counter() - begin)
    return times[0], sorted(times[1:])[repeats // 2]


def synchronize(device):
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def check_compiler():
    if not speed.has_compiler():
        raise cli.InputError("needs a GPU and a C compiler")


def time_attention(pipe, device):
    config = pipe.transformer.config
    heads, channels, tokens = config.num_attention_heads, config.attention_head_dim, sum(pipeline.count_tokens(config))
    q, k, v = (torch.randn(1, tokens, heads, channels, device=device, dtype=pipe.dtype, requires_grad=True)
               for _ in range(3))  # fmt: skip
    gradient = torch.randn_like(q)
    work = 4 * tokens**2 * heads * channels / 1e12

    def attend():
        return F.scaled_dot_product_attention(*(x.transpose(1, 2) for x in (q, k, v))).transpose(1, 2)

    def row(name):
        with sdpa_kernel(KERNELS[name]) if name in KERNELS else speed.attention():
            with torch.no_grad():
                _, forward = seconds(attend, device)
            _, both = seconds(lambda: attend().backward(gradient), device)
        return (f"| {name} | {1000 * forward:.2f} | {work / forward:.0f} | {1000 * both:.2f} | "
                f"{3.5 * work / both:.0f} |")  # fmt: skip

    print(f"| attention, {tokens} tokens | forward, ms | TFLOP/s | forward and backward, ms | TFLOP/s |")
    print("| --- | --- | --- | --- | --- |")
    benchmark.print_rows(row, [*KERNELS, "as chosen by utils/speed.py"])


def make_pass(pipe, device):
    """A function that runs the transformer once on random inputs, the same at every call."""
    inputs, rotary = benchmark.random_inputs(pipe.transformer, device), pipe.rotary_embedding(device)

    def run():
        with torch.no_grad(), speed.attention():
            return pipe.transformer(*inputs, image_rotary_emb=rotary)[0]

    return run


def time_passes(pipe, device):
    run, transformer = make_pass(pipe, device), pipe.transformer
    transformer.set_attn_processor(CogVideoXAttnProcessor2_0())
    exact = run()

    def row(name):
        if name == "eager":
            transformer.set_attn_processor(pipeline.Attention())
        elif name == "compiled":
            check_compiler()
            speed.compile_blocks(transformer)
        elif name == "compiled, fp8 linear layers":
            check_compiler()
            benchmark.to_fp8(transformer, device)
        first, after = seconds(run, device)
        off = (run() - exact).float().norm() / exact.float().norm()
        benchmark.forget_peak(device)
        run()  # of this way alone, and not of how it began
        return f"| {name} | {first:.1f} | {after:.3f} | {benchmark.peak_gib(device)} | {off:.2%} |"

    print("\n| one pass | first, s | s | peak GiB in all | from diffusers' attention processor |")
    print("| --- | --- | --- | --- | --- |")
    benchmark.print_rows(row, ["diffusers' attention processor", "eager", "compiled", "compiled, fp8 linear layers"])


def time_vae(pipe, device):
    run, vae = make_pass(pipe, device), pipe.vae
    frames, height, width = pipe.clip_shape
    clip = torch.rand(1, 3, frames, height, width, device=device, dtype=pipe.dtype)
    latents = torch.no_grad()(vae.encode)(clip).latent_dist.mean
    stream = torch.cuda.Stream(device) if device.type == "cuda" else None

    @torch.no_grad()
    def encode():
        return vae.encode(clip).latent_dist.parameters

    @torch.no_grad()
    def decode():
        return vae.decode(latents).sample

    def beside(work):
        run()
        with torch.cuda.stream(stream):
            work()

    ways = {
        "one pass alone": run, "encoding": encode, "decoding": decode,
        "a pass, then encoding": lambda: (run(), encode()),
        "a pass, and encoding on a second stream": lambda: beside(encode),
        "a pass, then decoding": lambda: (run(), decode()),
        "a pass, and decoding on a second stream": lambda: beside(decode),
        "encoding in tiles": encode, "decoding in tiles": decode,
        "encoding, channels last": encode, "decoding, channels last": decode, "encoding, compiled": encode,
    }  # fmt: skip

    def row(name):
        vae.enable_tiling() if "tiles" in name else vae.disable_tiling()
        layout = torch.channels_last_3d if "channels last" in name else torch.contiguous_format
        for module in vae.modules():
            if isinstance(module, torch.nn.Conv3d):
                module.to(memory_format=layout)
        if "compiled" in name:
            check_compiler()
            vae.encoder.compile()
        benchmark.forget_peak(device)
        first, after = seconds(ways[name], device, 5)
        return f"| {name} | {first:.1f} | {after:.3f} | {benchmark.peak_gib(device)} |"

    print("\n| one clip | first, s | s | peak GiB in all |\n| --- | --- | --- | --- |")
    benchmark.print_rows(row, ways)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=cli.HelpFormatter)
    parser.add_argument("--device", help="cpu, cuda or cuda:N; the GPU if there is one by default")
    parser.add_argument("--size", choices=make_tiny_checkpoint.SIZES, default="5b", help="of the model")
    parser.add_argument("--parts", nargs="+", choices=("attention", "passes", "vae"),
                        default=["attention", "vae", "passes"])
    args = parser.parse_args()
    device = cli.pick_device(args.device)
    benchmark.print_versions(device)
    failed = []
    for part in args.parts:
        pipe = benchmark.random_pipeline(device, args.size).to(device)
        try:
            {"attention": time_attention, "passes": time_passes, "vae": time_vae}[part](pipe, device)
        except cli.InputError as error:  # the next tables can be made nevertheless
            failed.append(str(error))
    if failed:
        raise cli.InputError("; ".join(failed))


if __name__ == "__main__":
    cli.run(main)
