import copy

import pytest
import torch
from diffusers import AutoencoderKLCogVideoX

from utils import fast_vae


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
