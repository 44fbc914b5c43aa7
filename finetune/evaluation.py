"""How a run is going: the loss of a fixed batch, and held-out renders that are inpainted."""

import torch

from finetune import dataset
from finetune.loss import denoising_loss
from utils import cogvideox, metrics, video

# Batches of each process. By arithmetic, at 5.57 B weights on an H100: every 25 of 200 steps they
# take 18 eager passes of 0.84 s in all, 1.8% of the 820 s of the steps.
FIXED_BATCHES = 2
DENOISING_STEPS = 50  # of a validation


class FixedBatch:
    """A batch that stays as it is for the whole run, whose loss tells whether training goes well.

    Its clips are training clips, but pairs, noise and timesteps are drawn apart from those that
    are trained on, and to look at it changes no other draw.
    """

    def __init__(self, run):
        self.batches = dataset.fixed_batches(
            run.pipe, run.pairs, run.args.seed, run.engine.rank, run.engine.ranks, FIXED_BATCHES,
            run.engine.device, run.embedding.dtype, run.args.batch_size)

    @torch.no_grad()
    def loss(self, run):
        """The mean loss of the batches of each process, float32 [ranks]."""
        losses = []
        # compiled blocks would be compiled once more, for want of gradients
        with cogvideox.attention(), torch.compiler.set_stance("force_eager"):
            for batch in self.batches:
                losses.append(denoising_loss(run.transformer, run.pipe.scheduler, *batch,
                                             run.prompts(), run.rotary))
        return run.engine.gather(torch.stack(losses).mean())


def validate(run, step):
    """Inpaint held-out renders, shared among the processes; their mean PSNR, dB.

    Where there are none, as the published data_gen.py leaves it, these are training renders. Each
    is written as render | output | target.
    """
    engine = run.engine
    chosen = []
    for videos in run.pairs.sequences:
        renders = videos.held_out or videos.renders
        chosen += [(videos.target, render) for render in renders]
    chosen = chosen[: run.args.validation_renders]
    psnr = torch.zeros(len(chosen), device=engine.device)
    for number in range(engine.rank, len(chosen), engine.ranks):
        psnr[number] = inpaint_pair(run, *chosen[number], step)
    engine.wait()
    return engine.gather(psnr).reshape(-1, len(chosen)).sum(0).mean().item()


def inpaint_pair(run, target, render, step):
    """Inpaint a render and write it beside its target; its PSNR, dB."""
    device = run.engine.device
    clip = run.pairs.clip(render, 0, device, torch.float32)[0] / 2 + 0.5  # [F, 3, H, W]
    expected = run.pairs.clip(target, 0, device, torch.float32)[0] / 2 + 0.5
    rng = torch.Generator().manual_seed(run.args.seed)
    out = run.pipe.inpaint(clip, run.embedding, DENOISING_STEPS, rng)
    beside = (torch.cat([clip, out, expected], 3) * 255).round().byte()
    frames = beside.permute(0, 2, 3, 1).cpu().numpy()  # [F, H, 3 W, 3]
    name = f"step-{step}_{target.parent.name}_{render.stem}.mp4"
    video.write_video(run.args.output_dir / "validation" / name, frames, video.probe(target))
    return metrics.psnr(out.cpu().numpy(), expected.cpu().numpy())
