"""Every rewrite of a part of CogVideoX computes what diffusers' own part computes."""

import copy

import pytest
import torch
from diffusers import AutoencoderKLCogVideoX, CogVideoXDPMScheduler
from diffusers.models.attention_processor import CogVideoXAttnProcessor2_0

from toolbox.small_model.make_tiny_checkpoint import SCHEDULER
from utils import cogvideox, pipeline
from utils.cli import InputError

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]


def rng(seed=0):
    return torch.Generator().manual_seed(seed)


# ---- the transformer -----------------------------------------------------------------------------


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype, tolerance", [(torch.float32, 2e-5), (torch.bfloat16, 1e-2)])
def test_attention_is_diffusers_own_in_value_and_gradient(model, device, dtype, tolerance):
    transformer = pipeline.load_transformer(model / "cognvs_ckpt_inpaint", dtype).to(device)
    attn = transformer.transformer_blocks[0].attn1
    width = attn.to_q.in_features
    draw = rng()
    image = torch.randn(2, 40, width, generator=draw).to(device, dtype)
    text = torch.randn(2, 7, width, generator=draw).to(device, dtype)
    angle = torch.randn(40, width // attn.heads // 2, generator=draw)
    angle = angle.repeat_interleave(2, 1).to(device)
    results = []
    for processor in (cogvideox.Attention(), CogVideoXAttnProcessor2_0()):
        attn.set_processor(processor)
        inputs = [x.clone().requires_grad_() for x in (image, text)]
        rotary = (angle.cos(), angle.sin())
        outputs = attn(inputs[0], encoder_hidden_states=inputs[1], image_rotary_emb=rotary)
        torch.cat(outputs, 1).float().square().sum().backward()
        results.append([*outputs, *(x.grad for x in inputs)])
    for ours, theirs in zip(*results, strict=True):
        assert ours.dtype == dtype and ours.shape == theirs.shape
        assert (ours - theirs).float().norm() <= tolerance * theirs.float().norm()


@pytest.mark.parametrize("name", ["patch_size_t", "ofs_embed_dim"])
def test_a_transformer_of_cogvideox_1_5_is_refused(name):
    cogvideox.check_transformer({name: None}, "weights")
    with pytest.raises(InputError, match=f"weights: got a transformer with {name} 2, .*1.5"):
        cogvideox.check_transformer({name: 2}, "weights")


# ---- the sampler ---------------------------------------------------------------------------------


@pytest.mark.parametrize("steps", [1, 2, 7, 50])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_step_is_diffusers_own_bit_for_bit(steps, dtype):
    scheduler = CogVideoXDPMScheduler.from_config(SCHEDULER)
    scheduler.set_timesteps(steps)
    ours = theirs = torch.randn(1, 3, 4, 6, 8, generator=rng()).to(dtype)
    before, x0, old, drawn, drawn_too = None, None, None, rng(1), rng(1)
    for now in scheduler.timesteps:
        velocity = torch.randn(ours.shape, generator=rng(int(now)))
        noise = cogvideox.draw_noise(scheduler, ours, int(now), before, drawn)
        ours, x0 = cogvideox.denoise_step(scheduler, velocity, ours, int(now), before, x0, noise)
        theirs, old = scheduler.step(
            velocity, old, now, before, theirs, generator=drawn_too, return_dict=False
        )
        ours, theirs, before = ours.to(dtype), theirs.to(dtype), int(now)
        assert torch.equal(ours, theirs) and torch.equal(x0, old)


def sampled(passes, velocity, steps=20):
    """Where a Sampler comes; velocity(sample, timestep) is what a pass would give."""
    scheduler = CogVideoXDPMScheduler.from_config(SCHEDULER)
    scheduler.set_timesteps(steps)
    draw = rng(1)
    sampler = cogvideox.Sampler(scheduler, torch.randn(1, 3, 4, 6, 8, generator=draw), draw)
    for i, now in enumerate(scheduler.timesteps.tolist()):
        if i in passes:
            sampler.computed(now, velocity(sampler.sample, now))
        else:
            sampler.predicted(now)
    return sampler.sample


def test_velocities_on_a_line_are_predicted_exactly():
    """All but those of the first gap, which the corrector puts right."""
    slope = torch.randn(1, 3, 4, 6, 8, generator=rng())

    def velocity(sample, now):
        return slope * (now / 1000 - 0.3)

    exact = sampled(range(20), velocity)
    torch.testing.assert_close(sampled([0, 1, 19], velocity), exact, atol=1e-4, rtol=1e-4)
    close = sampled([0, 5, 19], velocity)
    assert (close - exact).norm() < 0.1 * exact.norm()


def test_the_corrector_halves_the_error_at_least():
    """A model of data N(0, 0.3^2), whose velocity follows its input."""
    scheduler = CogVideoXDPMScheduler.from_config(SCHEDULER)

    def velocity(sample, now):
        alpha = scheduler.alphas_cumprod[now]
        gain = alpha.sqrt() * 0.09 / (alpha * 0.09 + 1 - alpha)
        return (alpha.sqrt() - gain) / (1 - alpha).sqrt() * sample

    exact = sampled(range(20), velocity)
    passes = [0, 4, 8, 12, 16, 17, 18, 19]
    with pytest.MonkeyPatch.context() as patch:
        corrected = sampled(passes, velocity)
        patch.setattr(cogvideox.Sampler, "corrected", lambda sampler, now, velocity: velocity)
        plain = sampled(passes, velocity)
    assert (corrected - exact).norm() < 0.5 * (plain - exact).norm()


def test_passes_come_closer_together_towards_the_last_four():
    assert len(cogvideox.fast_passes(50)) == 14
    assert cogvideox.fast_passes(20) == [0, 6, 10, 13, 16, 17, 18, 19]
    for steps in (1, 2, 4):
        assert cogvideox.fast_passes(steps) == list(range(steps))


# ---- the VAE -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def vae(model):
    return AutoencoderKLCogVideoX.from_pretrained(model / "base" / "vae").eval()


def test_the_fast_vae_is_the_same_function_with_the_same_weights(vae):
    fast = cogvideox.speed_up(copy.deepcopy(vae))
    kinds = {type(module) for module in fast.modules()}
    assert {cogvideox.GroupNorm, cogvideox.SpatialNorm, cogvideox.CausalConv} <= kinds
    assert fast.state_dict().keys() == vae.state_dict().keys()
    z = torch.randn(1, 16, 5, 4, 6, generator=rng())
    x = 2 * torch.rand(1, 3, 9, 32, 48, generator=rng()) - 1
    with torch.no_grad():
        for frames in (1, 3, 5):  # in chunks of three, then two latent frames
            expected = vae.decode(z[:, :, :frames]).sample
            got = fast.decode(z[:, :, :frames]).sample
            assert expected.std() > 0.1
            torch.testing.assert_close(got, expected, atol=1e-4, rtol=1e-4)
        expected = vae.encode(x).latent_dist.mode()
        got = fast.encode(x).latent_dist.mode()
        torch.testing.assert_close(got, expected, atol=1e-4, rtol=1e-4)


@pytest.mark.gpu
def test_the_fast_vae_is_the_same_function_on_a_gpu(vae):
    vae = copy.deepcopy(vae).cuda()
    fast = cogvideox.speed_up(copy.deepcopy(vae))
    video = 2 * torch.rand(1, 3, 17, 64, 96, generator=rng()).cuda() - 1
    exact = torch.backends.cudnn.flags(enabled=True, allow_tf32=False)  # TF32 rounds to 10 bits
    with torch.no_grad(), exact:
        latents = vae.encode(video).latent_dist.mode()
        got = fast.encode(video).latent_dist.mode()
        torch.testing.assert_close(got, latents, atol=1e-3, rtol=1e-3)
        got, expected = fast.decode(latents).sample, vae.decode(latents).sample
        torch.testing.assert_close(got, expected, atol=1e-3, rtol=1e-3)


def small_vae(height, width):
    return AutoencoderKLCogVideoX(
        block_out_channels=[32] * 4, layers_per_block=1, sample_height=height, sample_width=width
    ).eval()


@pytest.mark.parametrize("height, width", [(64, 96), (128, 192), (240, 360), (480, 720)])
def test_tiles_add_up_to_the_picture(height, width):
    vae = small_vae(height, width)
    usual = (vae.tile_overlap_factor_height, vae.tile_overlap_factor_width)
    cogvideox.fit_tiles(vae)
    for side in ("height", "width"):
        latents = getattr(vae, f"tile_latent_min_{side}")
        pixels = getattr(vae, f"tile_sample_min_{side}")
        factor = getattr(vae, f"tile_overlap_factor_{side}")
        step = int(latents * (1 - factor))  # what is left of a blended tile is to be as wide
        assert 0 < step == latents - int(latents * factor) < latents and pixels == 8 * latents
        assert 8 * step == int(pixels * (1 - factor)) == pixels - int(pixels * factor)
    if height == 480:  # diffusers' own
        assert (vae.tile_overlap_factor_height, vae.tile_overlap_factor_width) == usual


@pytest.mark.parametrize("tiled, frames", [(False, 17), (True, 1)])
def test_the_calls_of_a_vae_are_counted_before_they_are_made(tiled, frames):
    vae = cogvideox.fit_tiles(small_vae(64, 96))
    calls = {"encoder": 0, "decoder": 0}

    def count(name):
        calls[name] += 1

    vae.encoder.register_forward_hook(lambda *_: count("encoder"))
    vae.decoder.register_forward_hook(lambda *_: count("decoder"))
    if tiled:
        vae.enable_tiling()
    with torch.no_grad():
        latents = vae.encode(torch.zeros(1, 3, frames, 64, 96)).latent_dist.mode()
        assert vae.decode(latents).sample.shape[-2:] == (64, 96)
    assert cogvideox.vae_calls(vae, (frames, 64, 96)) == (calls["encoder"], calls["decoder"])
    assert calls["decoder"] > 1


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_normalize_is_a_group_norm_far_from_zero_too(dtype, device):
    draw = rng()
    x = 2 * torch.randn(2, 32, 3, 20, 30, generator=draw)
    x = (x + 20 * torch.randn(2, 32, 1, 1, 1, generator=draw)).to(device, dtype)
    weight = torch.randn(32, generator=draw).to(device, dtype)
    bias = torch.randn(32, generator=draw).to(device, dtype)
    double = (x.double(), 8, weight.double(), bias.double(), 1e-6)
    expected = torch.nn.functional.group_norm(*double)
    got = cogvideox.normalize(x, 8, weight, bias, 1e-6)
    assert got.dtype == dtype and got.shape == x.shape
    error = (got - expected).norm() / expected.norm()
    assert error < {torch.float32: 1e-6, torch.bfloat16: 2.5e-3}[dtype]  # rounding: 2^-9 at most
    constant = torch.full_like(x, 40.1)
    assert cogvideox.normalize(constant, 8, weight, bias, 1e-6).isfinite().all()
