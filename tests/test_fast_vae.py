import copy

import torch

from utils import fast_vae


def test_the_fast_vae_is_the_same_function(model):
    from diffusers import AutoencoderKLCogVideoX

    vae = AutoencoderKLCogVideoX.from_pretrained(model / "base" / "vae")
    fast = fast_vae.speed_up(copy.deepcopy(vae))
    assert sum("forward" in vars(module) for module in fast.modules()) > 10
    z = torch.randn(1, 16, 5, 4, 6, generator=torch.Generator().manual_seed(0))
    for frames in (1, 3, 5):  # in chunks of three, then two latent frames
        with torch.no_grad():
            expected, got = (v.decode(z[:, :, :frames]).sample for v in (vae, fast))
        assert expected.std() > 0.1
        torch.testing.assert_close(got, expected, atol=1e-4, rtol=1e-4)
