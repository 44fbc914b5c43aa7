"""Train the small model's VAE on ray-traced clips, most of them with holes, a piece of the work at a time.

    python toolbox/train_tiny_vae.py --vae_config FOLDER/base/vae --output_dir FOLDER/vae --minutes 10

writes the VAE (the mean of its recent weights, bf16) and state.safetensors, from which --resume goes on. On two GPUs:
accelerate launch --multi_gpu --num_processes 2 toolbox/train_tiny_vae.py ...
"""

import argparse
import functools
import itertools
import math
import sys
import time
from collections import deque
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast
from safetensors.torch import load_file, save_file
from torch.func import functional_call
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from toolbox.synthetic import clips
from utils import cli, cogvideox, metrics, pipeline, trajectory
from utils.pipeline import AutoencoderKLCogVideoX

ROOT = Path(__file__).resolve().parents[2]
VALIDATION_SEEDS = range(100, 106)  # of the set on which settings are chosen; training starts at 1,000
EMA = 0.995
HOLE_WEIGHT = 0.1


def parse_args():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=cli.HelpFormatter)
    parser.add_argument("--vae_config", type=Path, required=True, help="folder with the VAE's config.json")
    parser.add_argument("--output_dir", type=Path, required=True)
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--resume", type=Path, help="state.safetensors of an earlier piece")
    parser.add_argument("--first_seed", type=int, default=1000, help="of the scenes, and 100,000 later; each piece "
                        "should have its own")
    parser.add_argument("--shape", type=int, nargs=3, default=(49, 128, 192), help="frames, height, width of a clip")
    parser.add_argument("--batch_size", type=int, default=8)
    parser.add_argument("--learning_rate", type=float, default=8e-4)
    parser.add_argument("--pool", type=int, nargs=2, default=(400, 2000), help="scenes before the first step, kept")
    parser.add_argument("--refresh", type=int, default=20, help="steps after which the scenes made since then come in")
    parser.add_argument("--last", action="store_true", help="piece: the learning rate falls")
    parser.add_argument("--freeze_encoder", action="store_true", help="leave the latents as they are")
    return parser.parse_args()


def make_item(shape, seed, device):
    """(the clip, the same with the holes of a camera move), each uint8 [F, H, W, 3] on the CPU."""
    clip = clips.random_clip(seed, shape, device)
    cameras = clips.path_cameras(clip, trajectory.random_keyframes(seed, 1)[0])
    render, _ = clips.render(clip, cameras, "train" if seed % 2 else "eval")
    return clip.rgb.cpu().numpy(), render.cpu().numpy()


def to_device(items, device):
    return [[torch.from_numpy(video).to(device) for video in item] for item in items]


def draw(pool, count, frames):
    """Stretches of `frames` frames, two thirds of them with holes: float32 [count, 3, frames, H, W] in [-1, 1]."""
    stretches = []
    for i in range(count):
        clip = pool[torch.randint(len(pool), ())][min(i % 3, 1)]
        start = torch.randint(len(clip) - frames + 1, ())
        stretches.append(clip[start : start + frames])
    return torch.stack(stretches).permute(0, 4, 1, 2, 3).float() / 127.5 - 1


def loss_of(vae, x):
    """L1, eight times the MSE and half the L1 of the differences between neighbours of the reconstruction's error, and
    2e-4 KL, float32 scalar. Errors in holes count less: it is enough that the latents tell where they are."""
    posterior = vae.encode(x.to(vae.dtype)).latent_dist
    known = (x > -1).any(1, keepdim=True)
    error = (vae.decode(posterior.sample()).sample.float() - x) * torch.where(known, 1, HOLE_WEIGHT)
    edges = sum(error.diff(dim=d).abs().mean() for d in (2, 3, 4)) / 3
    mean, logvar = posterior.mean.float(), posterior.logvar.float()
    kl = 0.5 * (mean.square() + logvar.exp() - 1 - logvar).mean()
    return error.abs().mean() + 8 * error.square().mean() + 0.5 * edges + 2e-4 * kl


@torch.no_grad()
def validation_clips(shape, device):
    """(clip, render with holes, its mask) of each of the scenes that settings are chosen on."""
    items = []
    for seed in VALIDATION_SEEDS:
        clip = clips.random_clip(seed, shape, device)
        path = trajectory.read_keyframes(ROOT / "trajs" / f"traj{1 + seed % 4}.txt")
        items.append((clip.rgb, *clips.render(clip, clips.path_cameras(clip, path), "eval")))
    return items


@torch.no_grad()
def validate(vae, items):
    """Mean PSNR of reconstructed clips, of the known pixels of renders with holes, and the deviation of latents."""
    scores = []
    for rgb, render, mask in items:
        latents, whole = pipeline.reconstruct(vae, rgb)
        _, holed = pipeline.reconstruct(vae, render)
        known = metrics.psnr(holed, render.cpu().numpy() / 255, mask.cpu().numpy())
        scores.append([metrics.psnr(whole, rgb.cpu().numpy() / 255), known, latents.float().std().item()])
    return torch.tensor(scores).mean(0).tolist()


def make_vae(args, state=None):
    vae = AutoencoderKLCogVideoX.from_config(AutoencoderKLCogVideoX.load_config(args.vae_config))
    if state:
        vae.load_state_dict(state)
    if args.freeze_encoder:
        vae.encoder.requires_grad_(False)
    return cogvideox.speed_up(vae)


def learning_rate(args, share):
    """After a share of the time: risen over the first 2%; in the last piece of the work falling as a cosine to 2%."""
    return args.learning_rate * min(1, share / 0.02) * (0.51 + 0.49 * math.cos(math.pi * share) if args.last else 1)


def mean_model(args, mean):
    """The mean of recent weights as a model, in bf16 where that is fast."""
    device = next(mean.parameters()).device
    return make_vae(args, mean.module.state_dict()).to(device, pipeline.pick_dtype("auto", device))


def save(args, vae, model, deviation):
    """The weights to go on from; the mean of recent ones as a model whose latents are scaled to deviation 1."""
    args.output_dir.mkdir(parents=True, exist_ok=True)
    save_file(vae.state_dict(), args.output_dir / "state.part")
    (args.output_dir / "state.part").replace(args.output_dir / "state.safetensors")
    model.register_to_config(scaling_factor=round(1 / deviation, 3))
    model.bfloat16().save_pretrained(args.output_dir)


class Objective(torch.nn.Module):
    """loss_of with all arithmetic in the VAE's usual dtype; weights and gradients stay float32."""

    def __init__(self, vae, dtype):
        super().__init__()
        self.vae, self.dtype = vae, dtype

    def forward(self, x):
        return loss_of(self.vae, x)

    def cast(self, x):
        return functional_call(self, {name: p.to(self.dtype) for name, p in self.named_parameters()}, (x,))


def flat_gradient(parameters):
    """One tensor, float32 [N], of which the gradients of all parameters are views."""
    gradient = torch.zeros(sum(p.numel() for p in parameters), device=parameters[0].device)
    for p, part in zip(parameters, gradient.split([p.numel() for p in parameters]), strict=True):
        p.grad = part.view_as(p)
    return gradient


def make_backward(objective, gradient, x):
    """A function that puts the gradient of the loss for the batch in `x` into `gradient` and returns the loss.

    On a GPU it is one CUDA graph: to start thousands of small kernels takes longer than to run them.
    """

    def backward():
        gradient.zero_()
        loss = objective.cast(x)
        loss.backward()
        return loss.detach()

    if x.device.type != "cuda":
        return backward
    torch.cuda.synchronize()
    side = torch.cuda.Stream()
    with torch.cuda.stream(side):
        for _ in range(3):
            backward()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, capture_error_mode="thread_local"):
        loss = backward()

    def replay():
        graph.replay()
        return loss

    return replay


def main():
    args = parse_args()
    accelerator = Accelerator(cpu=not torch.cuda.is_available())
    device, rank = accelerator.device, accelerator.process_index
    torch.backends.cudnn.benchmark = True
    torch.manual_seed(args.first_seed)
    vae = make_vae(args, load_file(args.resume) if args.resume else None).to(device)
    torch.manual_seed(args.first_seed + rank)
    mean = AveragedModel(vae, multi_avg_fn=get_ema_multi_avg_fn(EMA))
    parameters = [p for p in vae.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, betas=(0.9, 0.99), fused=True)
    first = args.first_seed + 10_000_000 * rank
    made, stream = clips.first_and_more(functools.partial(make_item, args.shape), first, args.pool[0], device)
    pool = deque(to_device(made, device), maxlen=args.pool[1])
    checks = validation_clips(args.shape, device)
    gradient, frames = flat_gradient(parameters), min(17, args.shape[0])
    x = draw(pool, args.batch_size, frames)
    dtype = pipeline.pick_dtype("auto", device)
    backward = make_backward(Objective(vae, dtype), gradient, x)
    start = shown = time.time()
    progress = tqdm(itertools.count(1), unit="step", desc="VAE", disable=rank > 0)
    for step in progress:
        if step % args.refresh == 0:
            pool.extend(to_device(stream.take(wait=False), device))
        if step % 10 == 1:  # the same share of the time for all processes
            share = torch.tensor((time.time() - start) / (60 * args.minutes), device=device)
            share = min(1, broadcast(share).item())
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(args, share)
        x.copy_(draw(pool, args.batch_size, frames))
        loss = backward()
        if accelerator.num_processes > 1:
            gradient.copy_(accelerator.reduce(gradient, "mean"))
        gradient.mul_((1 / gradient.norm().clamp(min=1e-6)).clamp(max=1))
        optimizer.step()
        mean.update_parameters(vae)
        done = share >= 1
        if rank == 0 and (done or time.time() - shown > 100):
            shown = time.time()
            model = mean_model(args, mean)
            whole, known, deviation = validate(model, checks)
            progress.write(f"{shown - start:.0f} s, step {step}, {len(pool)} scenes kept: loss {loss.item():.4f}, PSNR "
                           f"{whole:.2f} dB, known pixels beside holes {known:.2f} dB, latents {deviation:.3f}")
            save(args, vae, model, deviation)
        if done:
            break
    stream.close()
    if rank == 0:
        print(f"wrote {args.output_dir}")
    accelerator.end_training()


if __name__ == "__main__":
    cli.run(main)
