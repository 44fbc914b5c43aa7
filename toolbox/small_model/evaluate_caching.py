"""How near to the exact picture ways come that leave out passes of the transformer.

    python toolbox/small_model/evaluate_caching.py --model_path checkpoints/tiny/base \\
        --cognvs_ckpt_path checkpoints/tiny/cognvs_ckpt_inpaint

Each way inpaints ray-traced scenes with the noise of the exact result. The first and last steps
have a pass in every way, for all are worse without. Thresholds that decide about the others are
set on other scenes, so that there are as many passes as asked for; --fast's are its own. The table
has the PSNR to the exact result in dB: the mean over scenes, and the least.
"""

import itertools
import sys
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from toolbox.small_model import evaluate_method
from utils import cli, cogvideox, metrics

FIRST = 2  # steps that every way computes
LAST = 4
SEED = 42  # of noise, and that of a scene is added
HALVINGS = 7  # of the interval in which a threshold is looked for
LARGEST = 10  # threshold


def parse_args():
    parser = evaluate_method.make_parser(__doc__)
    add = parser.add_argument
    add("--worlds", nargs="+", choices=("rooms", "yards"), default=["rooms", "yards"])
    add("--scenes", type=int, default=2, help="of each world, to report")
    add("--choose", type=int, default=1, help="of each world, to set thresholds on")
    add("--frames", type=int, default=17, help="of a clip; the small model is made for 49")
    add("--num_inference_steps", type=int, default=50)
    add("--passes", type=int, nargs="+", default=[14, 16, 21])
    add("--ways", nargs="+", choices=WAYS, default=list(WAYS))
    args = parser.parse_args()
    least = FIRST + LAST + 1
    if min(args.passes) < least or max(args.passes) > args.num_inference_steps:
        raise cli.InputError(f"--passes {args.passes}: expected {least} to --num_inference_steps")
    if args.frames % 4 != 1 or min(args.frames, args.scenes, args.choose) < 1:
        raise cli.InputError(f"--frames {args.frames} --scenes {args.scenes} --choose "
                             f"{args.choose}: expected at least 1, and frames of 4 n + 1")
    return args


# ---- ways ----------------------------------------------------------------------------------------


class Blocks(torch.nn.Module):
    """A transformer's blocks in place of the first of them, whose residuals can be used again.

    again: None, or what says by the first block's residual whether those of the others are.
    """

    def __init__(self, blocks):
        super().__init__()
        self.blocks = blocks
        self.again = None
        self.residual = None  # of all blocks, or of all but the first if `again` is set
        self.runs = 0  # of all of them

    def forward(self, hidden_states, encoder_hidden_states, **others):
        image = hidden_states
        text = encoder_hidden_states
        rest = self.blocks
        if self.again:
            first = image
            image, text = self.blocks[0](image, text, **others)
            if self.again(image - first):
                return image + self.residual, text
            rest = self.blocks[1:]
        before = image
        for block in rest:
            image, text = block(image, text, **others)
        self.residual = image - before
        self.runs += 1
        return image, text


class Way:
    """How the steps of a clip are taken. A new one for each clip."""

    thresholds = False  # whether `threshold` says how often there is a pass

    def __init__(self, steps, passes, threshold, calibration):
        self.steps = steps
        self.passes = passes
        self.threshold = threshold
        self.ratios = calibration  # of MagCache
        self.last = 0  # the last step that had a pass

    def is_end(self, i):
        return i < FIRST or i >= self.steps - LAST

    def take(self, sampler, i, now, run, blocks):
        """Take step i, at timestep `now`; run() is the velocity of a pass."""
        if self.wants_pass(i, sampler):
            self.computed(sampler, i, now, run())
        else:
            sampler.predicted(now)

    def computed(self, sampler, i, now, velocity):
        self.last = i
        sampler.computed(now, velocity)


class Exact(Way):
    def wants_pass(self, i, sampler):
        return True


class Even(Way):
    """Passes spread evenly between both ends, in --fast's sampler."""

    def wants_pass(self, i, sampler):
        between = np.linspace(FIRST - 1, self.steps - LAST, self.passes - FIRST - LAST + 2)
        return self.is_end(i) or i in between.round()


class Fast(Way):
    """The passes of --fast, however many were asked for."""

    def wants_pass(self, i, sampler):
        return i in cogvideox.fast_passes(self.steps)


class Plain(cogvideox.Sampler):
    """Without the corrector: an extrapolation like TaylorSeer's."""

    order = 1

    def corrected(self, now, velocity):
        return velocity

    def computed(self, now, velocity):
        kept = self.passes[-self.order :] if self.order else []
        super().computed(now, velocity)
        self.passes = [*kept, (now, velocity.float())]

    def predicted(self, now):
        """Take the step at `now`, by Lagrange's polynomial through the last passes."""
        velocity = 0
        for then, of_pass in self.passes:
            weight = 1
            for other, _ in self.passes:
                if other != then:
                    weight *= (now - other) / (then - other)
            velocity = velocity + weight * of_pass
        self.step(now, velocity, self.noise(now))


class Order0(Plain):
    order = 0


class Order2(Plain):
    order = 2


class Wrong(Way):
    """The next pass comes the sooner the more wrong the last extrapolation was."""

    thresholds = True
    gap = 1

    def wants_pass(self, i, sampler):
        return self.is_end(i) or i - self.last >= self.gap

    def computed(self, sampler, i, now, velocity):
        gap = i - self.last
        if len(sampler.passes) == 2:
            told = cogvideox.on_line(*sampler.passes, now)
            wrong = (told - velocity).norm() / velocity.norm()
            self.gap = int((gap * self.threshold / wrong).clamp(1, 10))
        super().computed(sampler, i, now, velocity)


class EasyCache(Way):
    """What a pass adds to its input is used again while the estimated change is small.

    After Zhou et al. 2025: the change of the output is that of the input, by a factor that the last
    two passes tell.
    """

    thresholds = True
    change = 0
    factor = None
    added = None
    input = None  # of the step before
    output = None

    def take(self, sampler, i, now, run, blocks):
        x = sampler.sample
        if self.factor and not self.is_end(i):
            self.change += self.factor * (x - self.input).norm() / self.output.norm()
        if self.factor is None or self.is_end(i) or self.change >= self.threshold:
            velocity = run().float()
            if self.output is not None:
                self.factor = (velocity - self.output).norm() / (x - self.input).norm()
            self.added = velocity - x
            self.change = 0
        else:
            velocity = x + self.added
        self.input = x
        self.output = velocity
        sampler.step(now, velocity, sampler.noise(now))


class MagCache(Way):
    """The blocks' residual is used again while ratios of its size, calibrated, say it is alike.

    After Ma et al. 2025.
    """

    thresholds = True
    ratio = 1
    error = 0

    def take(self, sampler, i, now, run, blocks):
        self.ratio *= self.ratios[i]
        self.error += abs(1 - self.ratio)
        kept = blocks.blocks
        if not self.is_end(i) and self.error < self.threshold:
            blocks.blocks = [Again(blocks.residual)]
            runs = blocks.runs
            sampler.step(now, run().float(), sampler.noise(now))
            blocks.runs = runs
        else:
            self.ratio = 1
            self.error = 0
            sampler.step(now, run().float(), sampler.noise(now))
        blocks.blocks = kept


class Again(torch.nn.Module):
    """Adds a residual."""

    def __init__(self, residual):
        super().__init__()
        self.residual = residual

    def forward(self, image, text, **others):
        return image + self.residual, text


class FirstBlock(Way):
    """All blocks but the first are left out while its residual changes little ("FBCache")."""

    thresholds = True
    first = None

    def take(self, sampler, i, now, run, blocks):
        def again(residual):
            alike = self.first is not None and not self.is_end(i)
            alike = alike and (residual - self.first).norm() < self.threshold * self.first.norm()
            if not alike:
                self.first = residual
            return alike

        blocks.again = again
        sampler.step(now, run().float(), sampler.noise(now))
        blocks.again = None


WAYS = {
    "last velocity": (Even, Order0),
    "TaylorSeer, order 1": (Even, Plain),
    "TaylorSeer, order 2": (Even, Order2),
    "EasyCache": (EasyCache, Plain),
    "MagCache": (MagCache, Plain),
    "first-block cache": (FirstBlock, Plain),
    "order 1, by its last error": (Wrong, Plain),
    "corrector, by its last error": (Wrong, cogvideox.Sampler),
    "corrector": (Even, cogvideox.Sampler),
    "TaylorSeer, passes of fast": (Fast, Plain),
    "fast": (Fast, cogvideox.Sampler),
}


# ---- the run -------------------------------------------------------------------------------------


class Model:
    """The small model and what its blocks keep."""

    def __init__(self, args):
        self.args = args
        self.pipe, self.embedding, _ = evaluate_method.load(args)
        transformer = self.pipe.transformer
        transformer.register_to_config(sample_frames=args.frames)
        self.blocks = Blocks(list(transformer.transformer_blocks))
        for i, block in enumerate(self.blocks.blocks):  # parameters stay the transformer's
            self.blocks.add_module(f"block{i}", block)
        transformer.transformer_blocks = torch.nn.ModuleList([self.blocks])
        self.rotary = self.pipe.rotary_embedding(self.pipe.device)

    @torch.no_grad()
    def encode(self, world, seed):
        """(latents of a scene's render, seed of its noise)."""
        case = evaluate_method.open_case(world, seed, self.pipe.clip_shape, self.pipe.device)
        clip = torch.from_numpy(case.render).permute(0, 3, 1, 2) / 127.5 - 1
        draw = torch.Generator().manual_seed(SEED + seed)
        return self.pipe.encode(clip.to(self.pipe.device, self.pipe.dtype)[None], draw), SEED + seed

    @torch.no_grad()
    def sample(self, scene, way, kind, after_step=lambda: None):
        """(latents, passes) of one of WAYS: way is a Way, kind the class of the sampler."""
        condition, seed = scene
        draw = torch.Generator().manual_seed(seed)
        scheduler = self.pipe.scheduler
        scheduler.set_timesteps(self.args.num_inference_steps)
        noise = torch.randn(condition.shape, generator=draw).to(condition)
        sampler = kind(scheduler, noise, draw)
        self.blocks.runs = 0
        for i, now in enumerate(scheduler.timesteps.tolist()):

            def run(now=now):
                both = torch.cat([sampler.sample, condition], 2)
                time = torch.tensor([now], device=both.device)
                return self.pipe.transformer(both, self.embedding, time,
                                             image_rotary_emb=self.rotary).sample

            way.take(sampler, i, now, run, self.blocks)
            after_step()
        return sampler.sample, self.blocks.runs

    @torch.no_grad()
    def picture(self, latents):
        """float32 [3, F, H, W] in [0, 1]."""
        return self.pipe.decode_latents(latents)[0].float().clamp(-1, 1).cpu().numpy() / 2 + 0.5

    def make(self, way, passes=0, threshold=0.0, ratios=None):
        return way(self.args.num_inference_steps, passes, threshold, ratios)

    def calibrate(self, scenes):
        """Each step's ratio of the blocks' residual to that of the step before, for MagCache."""
        found = []
        for scene in scenes:
            sizes = []
            self.sample(scene, self.make(Exact), cogvideox.Sampler,
                        lambda sizes=sizes: sizes.append(self.blocks.residual.norm().item()))
            found.append([1, *(b / a for a, b in itertools.pairwise(sizes))])
        return np.mean(found, 0)

    def threshold(self, scenes, name, passes, ratios):
        """The threshold with which a way makes so many passes in these scenes, by bisection."""
        way, kind = WAYS[name]
        low, high = 1e-4, LARGEST
        for _ in range(HALVINGS if way.thresholds else 0):
            middle = (low * high) ** 0.5
            made = [self.sample(s, self.make(way, passes, middle, ratios), kind)[1] for s in scenes]
            low, high = (middle, high) if np.mean(made) > passes else (low, middle)
        return high


def row(model, name, passes, threshold, ratios, scenes, exact):
    """Markdown of a way in `scenes`; exact: their pictures."""
    way, kind = WAYS[name]
    found = []
    made = []
    for scene, expected in zip(scenes, exact, strict=True):
        latents, count = model.sample(scene, model.make(way, passes, threshold, ratios), kind)
        found.append(metrics.psnr(model.picture(latents), expected))
        made.append(count)
    return f"| {name} | {np.mean(made):.1f} | {np.mean(found):.1f} | {min(found):.1f} |"


def open_scenes(model, args, which, count):
    first = evaluate_method.FIRST_SEED[which]
    pairs = list(itertools.product(args.worlds, range(first, first + count)))
    return [model.encode(*pair) for pair in tqdm(pairs, desc=f"scenes to {which}")]


def main():
    args = parse_args()
    model = Model(args)
    chosen_on = open_scenes(model, args, "choose", args.choose)
    scenes = open_scenes(model, args, "report", args.scenes)
    ratios = model.calibrate(chosen_on)
    exact = []
    for scene in scenes:
        exact.append(model.picture(model.sample(scene, model.make(Exact), cogvideox.Sampler)[0]))
    print("| way | passes | mean dB | least dB |\n| --- | --- | --- | --- |", flush=True)
    for passes, name in itertools.product(args.passes, args.ways):
        if WAYS[name][0] is Fast and passes != args.passes[0]:
            continue  # its passes are its own
        threshold = model.threshold(chosen_on, name, passes, ratios)
        print(row(model, name, passes, threshold, ratios, scenes, exact), flush=True)


if __name__ == "__main__":
    cli.run(main)
