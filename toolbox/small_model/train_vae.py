"""Train the small model's VAE on ray-traced clips and moving layers, a piece at a time.

    python toolbox/small_model/train_vae.py --vae_config FOLDER/base/vae --output_dir FOLDER/vae

writes the VAE (the mean of its recent weights, bf16) and state.safetensors, which --resume goes on
from.
"""

import argparse
import functools
import itertools
import math
import sys
import time
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch.func import functional_call
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from toolbox.small_model import layers, photographs, worlds
from toolbox.synthetic import clips
from utils import camera_paths, cli, cogvideox, metrics, pipeline, trajectory
from utils.cli import InputError
from utils.pipeline import AutoencoderKLCogVideoX

ROOT = Path(__file__).resolve().parents[2]
VALIDATION_SEEDS = range(100, 106)  # settings are chosen on these scenes; training starts at 1,000
VALIDATION_WORLDS = {"rooms": clips.random_clip, "mixture": worlds.random_clip}
FRAMES = 17  # of a stretch that a step sees
EMA = 0.995
HOLE_WEIGHT = 0.1
GO_ON = "to go on, add --resume with state.safetensors of the output_dir if it wrote one"
CHECKED = 180  # seconds between looks at how good it is


def parse_args():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=cli.HelpFormatter)
    add = parser.add_argument
    add("--vae_config", type=Path, required=True, help="folder with the VAE's config.json")
    add("--output_dir", type=Path, required=True)
    add("--minutes", type=float, default=10)
    add("--resume", type=Path, help="state.safetensors of an earlier piece")
    add("--first_seed", type=int, default=1000, help="of the scenes, and 100,000 later; each piece "
        "should have its own")
    add("--shape", type=int, nargs=3, default=(49, 128, 192), metavar=("FRAMES", "HEIGHT", "WIDTH"))
    add("--batch_size", type=int, default=4)
    add("--learning_rate", type=float, default=8e-4)
    add("--pool", type=int, nargs=2, default=(400, 2000), metavar=("FIRST", "KEPT"),
        help="scenes before the first step, and scenes kept")
    add("--refresh", type=int, default=40, help="steps after which new layers come in")
    add("--last", action="store_true", help="piece: the learning rate falls")
    add("--freeze_encoder", action="store_true", help="leave the latents as they are")
    args = parser.parse_args()
    check(args)
    return args


def check(args):
    """InputError if a flag is out of its range."""
    for name, least in (("batch_size", 1), ("refresh", 1), ("first_seed", 0)):
        if getattr(args, name) < least:
            raise InputError(f"--{name} {getattr(args, name)}: expected at least {least}")
    for name in ("minutes", "learning_rate"):
        if not 0 < getattr(args, name) < math.inf:
            raise InputError(f"--{name} {getattr(args, name)}: expected a number above 0")
    frames, height, width = args.shape
    if frames < 1 or frames % 4 != 1 or min(height, width) < 16 or height % 8 or width % 8:
        raise InputError(f"--shape {frames} {height} {width}: expected 4k + 1 frames, and "
                         "multiples of 8 from 16 on")
    if not 1 <= args.pool[0] <= args.pool[1]:
        raise InputError(f"--pool {args.pool[0]} {args.pool[1]}: expected at least 1, and no less "
                         "kept than first")
    pipeline.check_class(AutoencoderKLCogVideoX, args.vae_config)


# ---- what is learned from ------------------------------------------------------------------------


def make_item(shape, seed, device):
    """(the clip, the same with the holes of a camera move), each uint8 [F, H, W, 3] on the CPU."""
    clip = worlds.random_clip(seed, shape, device)
    cameras = clips.path_cameras(clip, trajectory.random_keyframes(seed, 1)[0])
    render, _ = clips.reproject(clip, cameras, "train" if seed % 2 else "eval")
    return clip.rgb.cpu().numpy(), render.cpu().numpy()


def to_device(items, device):
    moved = []
    for clip, render in items:
        moved.append((torch.from_numpy(clip).to(device), torch.from_numpy(render).to(device)))
    return moved


def stretch(args):
    """Frames that a step sees of a clip."""
    return min(FRAMES, args.shape[0])


class Leaves:
    """Stretches of moving layers, made while the last ones are used."""

    def __init__(self, args, device):
        self.args = args
        self.device = device
        self.thread = ThreadPoolExecutor(1)
        self.stream = torch.cuda.Stream() if device.type == "cuda" else None
        self.made = 0
        self.ready = None
        self.coming = self.thread.submit(self.make)

    def take(self):
        """uint8 [N, F, H, W, 3]: new ones, or the last ones if none are ready.

        If making them keeps up, each will be seen about twice.
        """
        if self.coming.done() or self.ready is None:
            self.ready = self.coming.result()
            if self.stream:
                self.ready.record_stream(torch.cuda.current_stream())
            self.coming = self.thread.submit(self.make)
        return self.ready

    @torch.no_grad()
    def make(self):
        """The next stretches, by the thread."""
        args = self.args
        shape = (stretch(args), *args.shape[1:])
        count = max(1, args.refresh * args.batch_size // 4)
        self.made += 1
        with torch.cuda.stream(self.stream):
            made = layers.random_stretches(f"{args.first_seed} {self.made}", count, shape,
                                           self.device)
        if self.stream:
            self.stream.synchronize()
        return made

    def close(self):
        self.thread.shutdown()


def draw(pool, leaves, count):
    """Stretches, about two thirds with holes: float32 [count, 3, F, H, W] in [-1, 1].

    Half are of the pool's clips, as many frames long as those of moving layers.
    """
    frames = leaves.shape[1]
    stretches = []
    for _ in range(count // 2):
        clip = pool[torch.randint(len(pool), ())][int(torch.rand(()) < 2 / 3)]
        start = torch.randint(len(clip) - frames + 1, ())
        stretches.append(clip[start : start + frames])
    while len(stretches) < count:
        stretches.append(leaves[torch.randint(len(leaves), ())])
    return torch.stack(stretches).permute(0, 4, 1, 2, 3).float() / 127.5 - 1


def loss_of(vae, x):
    """How badly a VAE reconstructs x [B, 3, F, H, W] in [-1, 1]: float32 scalar.

    L1, 8 MSE, half the L1 of the error's differences between neighbours, and 2e-4 KL. Errors in
    holes count less: it is enough that the latents tell where they are.
    """
    posterior = vae.encode(x.to(vae.dtype)).latent_dist
    known = (x > -1).any(1, keepdim=True)
    error = vae.decode(posterior.sample()).sample.float() - x
    error = error * torch.where(known, 1, HOLE_WEIGHT)
    edges = sum(error.diff(dim=d).abs().mean() for d in (2, 3, 4)) / 3
    mean = posterior.mean.float()
    logvar = posterior.logvar.float()
    kl = 0.5 * (mean.square() + logvar.exp() - 1 - logvar).mean()
    return error.abs().mean() + 8 * error.square().mean() + 0.5 * edges + 2e-4 * kl


# ---- how good it is ------------------------------------------------------------------------------


@torch.no_grad()
def validation_clips(shape, device):
    """{world: [(clip, render with holes, its mask), ...]} that settings are chosen on."""
    items = {}
    for world, random_clip in VALIDATION_WORLDS.items():
        items[world] = []
        for seed in VALIDATION_SEEDS:
            clip = random_clip(seed, shape, device)
            path = camera_paths.read_keyframes(ROOT / "trajs" / f"traj{1 + seed % 4}.txt")
            render, mask = clips.reproject(clip, clips.path_cameras(clip, path), "eval")
            items[world].append((clip.rgb, render, mask))
    return items


@torch.no_grad()
def validate(vae, items):
    """Means of: PSNR of clips, PSNR of the known pixels of renders, deviation of the latents."""
    scores = []
    for rgb, render, mask in items:
        latents, whole = pipeline.reconstruct(vae, rgb)
        _, holed = pipeline.reconstruct(vae, render)
        clip_psnr = metrics.psnr(whole, rgb.cpu().numpy() / 255)
        known_psnr = metrics.psnr(holed, render.cpu().numpy() / 255, mask.cpu().numpy())
        scores.append([clip_psnr, known_psnr, latents.float().std().item()])
    return torch.tensor(scores).mean(0).tolist()


# ---- training ------------------------------------------------------------------------------------


def make_vae(args, state=None):
    """The VAE of --vae_config with the weights of `state`, or with first weights."""
    vae = AutoencoderKLCogVideoX.from_config(AutoencoderKLCogVideoX.load_config(args.vae_config))
    if state:
        vae.load_state_dict(state)
    if args.freeze_encoder:
        vae.encoder.requires_grad_(False)
    return cogvideox.speed_up(vae)


def resume(args, vae):
    """Give a VAE the weights of --resume."""
    try:
        vae.load_state_dict(load_file(args.resume))
    except SafetensorError as error:
        raise InputError(f"--resume {args.resume}: could not be read ({cli.short(error)}); "
                         "expected state.safetensors of an earlier piece") from error
    except RuntimeError as error:
        raise InputError(f"--resume {args.resume}: holds another model than {args.vae_config}/"
                         "config.json; expected state.safetensors of its kind") from error


def learning_rate(args, share):
    """After a share of the time: risen over the first 2%; in the last piece falling to 2%."""
    rate = args.learning_rate * min(1, share / 0.02)
    if args.last:
        rate *= 0.51 + 0.49 * math.cos(math.pi * share)
    return rate


class Objective(torch.nn.Module):
    """loss_of with all arithmetic in the VAE's usual dtype; weights and gradients stay float32."""

    def __init__(self, vae, dtype):
        super().__init__()
        self.vae = vae
        self.dtype = dtype

    def forward(self, x):
        return loss_of(self.vae, x)

    def cast(self, x):
        """forward(x) with the parameters cast to self.dtype."""
        parameters = {name: p.to(self.dtype) for name, p in self.named_parameters()}
        return functional_call(self, parameters, (x,))


def make_backward(vae, dtype, x):
    """A function that adds the gradients of the loss for what is in x, and returns the loss.

    On a GPU it is one CUDA graph, as to start thousands of small kernels takes longer than to run
    them. Gradients are to be zeroed in place.
    """
    objective = Objective(vae, dtype)

    def backward():
        loss = objective.cast(x)
        loss.backward()
        return loss.detach()

    if x.device.type != "cuda":
        return backward
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):  # kernels are chosen, and gradients get their places
            backward()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, capture_error_mode="thread_local"):
        loss = backward()

    def replay():
        graph.replay()
        return loss

    return replay


class Checks:
    """Says now and then how good the mean of recent weights is, and writes it."""

    def __init__(self, args, vae, mean):
        self.args = args
        self.vae = vae
        self.mean = mean
        self.device = next(vae.parameters()).device
        self.items = validation_clips(args.shape, self.device)
        self.start = time.time()
        self.shown = self.start

    def share(self):
        """The share of the time that is over."""
        return min(1, (time.time() - self.start) / (60 * self.args.minutes))

    def due(self):
        return time.time() - self.shown > CHECKED

    def check(self, step, loss, scenes):
        """Validate and write; the line to show."""
        self.shown = time.time()
        model = make_vae(self.args, self.mean.module.state_dict())
        model.to(self.device, pipeline.pick_dtype("auto", self.device))
        said = (f"{self.shown - self.start:.0f} s, step {step}, {scenes} scenes kept: "
                f"loss {loss:.4f}")
        for world, items in self.items.items():
            whole, known, deviation = validate(model, items)
            said += (f"; {world}: PSNR {whole:.2f} dB, known pixels of renders {known:.2f} dB, "
                     f"latents {deviation:.3f}")
        self.save(model, deviation)  # of the mixture, which comes last
        return said

    def save(self, model, deviation):
        """The weights to go on from; the mean ones as a model whose latents have deviation 1."""
        folder = self.args.output_dir
        folder.mkdir(parents=True, exist_ok=True)
        save_file(self.vae.state_dict(), folder / "state.part")
        (folder / "state.part").replace(folder / "state.safetensors")
        model.register_to_config(scaling_factor=round(1 / deviation, 3))
        model.bfloat16().save_pretrained(folder)


def train(args, device):
    torch.backends.cudnn.benchmark = True
    torch.manual_seed(args.first_seed)
    vae = make_vae(args)
    if args.resume:
        resume(args, vae)
    vae.to(device)
    torch.manual_seed(args.first_seed)
    mean = AveragedModel(vae, multi_avg_fn=get_ema_multi_avg_fn(EMA))
    parameters = [p for p in vae.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, betas=(0.9, 0.99), fused=True)
    make = functools.partial(make_item, args.shape)
    made, stream = clips.first_and_more(make, args.first_seed, args.pool[0], device)
    pool = deque(to_device(made, device), maxlen=args.pool[1])
    checks = Checks(args, vae, mean)
    x = torch.zeros(args.batch_size, 3, stretch(args), *args.shape[1:], device=device)
    backward = make_backward(vae, pipeline.pick_dtype("auto", device), x)
    layered = Leaves(args, device)
    leaves = layered.take()
    progress = tqdm(itertools.count(1), unit="step", desc="VAE")
    for step in progress:
        pool.extend(to_device(stream.take(), device))
        if step % args.refresh == 0:
            leaves = layered.take()
        share = checks.share()
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(args, share)
        optimizer.zero_grad(set_to_none=False)
        x.copy_(draw(pool, leaves, args.batch_size))
        loss = backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1)
        optimizer.step()
        mean.update_parameters(vae)
        if share == 1 or checks.due():
            progress.write(checks.check(step, loss.item(), len(pool)))
        if share == 1:
            break
    layered.close()
    stream.close()


def main():
    args = parse_args()
    print(photographs.missing(), end="")
    train(args, cli.pick_device())
    print(f"wrote {args.output_dir}")


if __name__ == "__main__":
    cli.run(main, GO_ON)
