import pytest
import torch
from training import CPU, pipe  # noqa: F401

from finetune import dataset
from finetune.loss import denoising_loss, velocity_loss
from utils import pipeline

SHAPE = (1, 5, 16, 8, 12)


def test_the_loss_is_the_published_one(pipe):  # noqa: F811
    """mean(w (x0_pred - x0)^2), w = 1 / (1 - alphabar), in float64, all along the schedule."""
    rng = torch.Generator().manual_seed(0)
    x0, noise, prediction = torch.randn(3, *SHAPE, generator=rng, dtype=torch.float64)
    for t in (0, 1, 10, 500, 998, 999):
        t = torch.tensor([t])
        alphabar = pipe.scheduler.alphas_cumprod[t].double()
        noisy = alphabar.sqrt() * x0 + (1 - alphabar).sqrt() * noise
        x0_pred = alphabar.sqrt() * noisy - (1 - alphabar).sqrt() * prediction
        published = ((x0_pred - x0) ** 2 / (1 - alphabar)).mean()
        ours = velocity_loss(pipe.scheduler, prediction, x0, noise, t)
        assert ours.item() == pytest.approx(published.item(), rel=1e-4)


def test_the_loss_is_zero_for_the_true_velocity_even_in_bf16(pipe):  # noqa: F811
    rng = torch.Generator().manual_seed(0)
    x0, noise = torch.randn(2, *SHAPE, generator=rng).bfloat16()
    t = torch.tensor([0])
    true = pipe.scheduler.get_velocity(x0.float(), noise.float(), t)
    assert velocity_loss(pipe.scheduler, true, x0, noise, t) == 0
    off = velocity_loss(pipe.scheduler, true + 0.1, x0, noise, t)
    assert off.item() == pytest.approx(0.01, rel=1e-3)


def test_the_loss_on_a_fixed_sample_goes_down(model):
    weights = model / "cognvs_ckpt_inpaint"
    fresh = pipeline.load_pipeline(model / "base", weights, torch.float32, CPU)
    transformer = fresh.transformer.requires_grad_(True)
    rng = torch.Generator().manual_seed(0)
    sample = [*torch.randn(3, 1, 5, 16, 8, 12, generator=rng), torch.tensor([300])]
    prompt = pipeline.empty_prompt(model / "base", 8, torch.float32)[0]
    optimizer = torch.optim.AdamW(transformer.parameters(), 3e-3)
    losses = []
    for _ in range(8):
        loss = denoising_loss(transformer, fresh.scheduler, *sample, prompt,
                              fresh.rotary_embedding(CPU))
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < 0.7 * losses[0]


def test_every_seed_is_a_function_of_its_arguments():
    seeds = {dataset.seed(*key) for key in ((42, "clip", 0, 0), (43, "clip", 0, 0),
                                            (42, "noise", 0, 0), (42, "clip", 1, 0),
                                            (42, "clip", 0, 1), (42, "clip", 0, 0))}
    assert len(seeds) == 5
