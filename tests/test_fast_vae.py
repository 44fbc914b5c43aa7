import copy

import pytest
import torch
from diffusers import AutoencoderKLCogVideoX

from utils import cogvideox as fast_vae


def test_the_fast_vae_is_the_same_function(model):
    vae = AutoencoderKLCogVideoX.from_pretrained(model / "base" / "vae")
    fast = fast_vae.speed_up(copy.deepcopy(vae))
    assert sum("forward" in vars(module) for module in fast.modules()) > 10
    z = torch.randn(1, 16, 5, 4, 6, generator=torch.Generator().manual_seed(0))
    for frames in (1, 3, 5):  # in chunks of three, then two latent frames
        with torch.no_grad():
            expected, got = (v.decode(z[:, :, :frames]).sample for v in (vae, fast))
        assert expected.std() > 0.1
        torch.testing.assert_close(got, expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("height, width", [(64, 96), (128, 192), (240, 360), (480, 720)])
def test_tiles_add_up_to_the_picture(height, width):
    channels = 4 * [32]
    vae = AutoencoderKLCogVideoX(block_out_channels=channels, layers_per_block=1, sample_height=height,
                                 sample_width=width).eval()  # fmt: skip
    usual = vae.tile_overlap_factor_height, vae.tile_overlap_factor_width
    fast_vae.fit_tiles(vae)
    for side in ("height", "width"):
        latents, pixels, factor = (getattr(vae, f"tile_{name}_{side}")
                                   for name in ("latent_min", "sample_min", "overlap_factor"))  # fmt: skip
        step = int(latents * (1 - factor))  # of tiles; what is left of each when they are blended is to be as wide
        assert 0 < step == latents - int(latents * factor) < latents and pixels == 8 * latents
        assert 8 * step == int(pixels * (1 - factor)) == pixels - int(pixels * factor)
    if height == 480:
        assert (vae.tile_overlap_factor_height, vae.tile_overlap_factor_width) == usual  # diffusers' own
    if height == 128:
        vae.enable_tiling()
        with torch.no_grad():
            latents = vae.encode(torch.zeros(1, 3, 1, height, width)).latent_dist.mode()
            assert latents.shape == (1, 16, 1, 16, 24) and vae.decode(latents).sample.shape == (1, 3, 1, 128, 192)


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_normalize_is_a_group_norm_far_from_zero_too(dtype, device):
    rng = torch.Generator().manual_seed(0)
    x, weight, bias = (torch.randn(shape, generator=rng) for shape in ((2, 32, 3, 20, 30), 32, 32))
    x = 2 * x + 20 * torch.randn(2, 32, 1, 1, 1, generator=rng)
    x, weight, bias = (t.to(device, dtype) for t in (x, weight, bias))
    expected = torch.nn.functional.group_norm(x.double(), 8, weight.double(), bias.double(), 1e-6)
    got = fast_vae.normalize(x, 8, weight, bias, 1e-6)
    assert got.dtype == dtype and got.shape == x.shape
    error = (got - expected).norm() / expected.norm()
    constant = torch.full_like(x, 40.1)
    assert fast_vae.normalize(constant, 8, weight, bias, 1e-6).isfinite().all()
    assert error < {torch.float32: 1e-6, torch.bfloat16: 2.5e-3}[dtype]  # the rounding of the result: 2^-9 at most


@pytest.mark.gpu
def test_the_fast_vae_is_the_same_function_on_a_gpu(model):
    vae = AutoencoderKLCogVideoX.from_pretrained(model / "base" / "vae").cuda()
    fast = fast_vae.speed_up(copy.deepcopy(vae))
    video = 2 * torch.rand(1, 3, 17, 64, 96, generator=torch.Generator().manual_seed(0)).cuda() - 1
    with torch.no_grad(), torch.backends.cudnn.flags(enabled=True, allow_tf32=False):  # which rounds to 10 bits
        expected, got = (v.encode(video).latent_dist.mode() for v in (vae, fast))
        torch.testing.assert_close(got, expected, atol=1e-3, rtol=1e-3)
        expected, got = (v.decode(expected).sample for v in (vae, fast))
        torch.testing.assert_close(got, expected, atol=1e-3, rtol=1e-3)
