"""The CogVideoX VAE's spatial norm at half the cost: same function, other order."""

from types import MethodType

import torch
from diffusers.models.autoencoders.autoencoder_kl_cogvideox import CogVideoXSpatialNorm3D


def speed_up(vae):
    """Make a diffusers AutoencoderKLCogVideoX apply its 1 x 1 x 1 convolutions before upsampling, not after."""
    for module in vae.modules():
        if isinstance(module, CogVideoXSpatialNorm3D):
            module.forward = MethodType(spatial_norm, module)
    return vae


def spatial_norm(self, f, zq, conv_cache=None):
    """GroupNorm(f) * conv_y(z) + conv_b(z), z the nearest neighbours of zq; stands in for the module's forward."""
    scale, shift = (grow(conv.conv(zq), f.shape[2:]) for conv in (self.conv_y, self.conv_b))
    return self.norm_layer(f) * scale + shift, {}


def grow(x, size):
    """Nearest neighbours of x [B, C, t, h, w] at multiples of its size; an odd length has its first frame once."""
    if size[0] > 1 and size[0] % 2:
        return torch.cat([repeat(x[:, :, :1], (1, *size[1:])), repeat(x[:, :, 1:], (size[0] - 1, *size[1:]))], 2)
    return repeat(x, size)


def repeat(x, size):
    """x [B, C, t, h, w] with each value repeated to [B, C, *size]: F.interpolate, but cheap backwards too."""
    for dim, length in enumerate(size, 2):
        x = x.unsqueeze(dim + 1).expand(*x.shape[: dim + 1], length // x.shape[dim], *x.shape[dim + 1 :])
        x = x.flatten(dim, dim + 1)
    return x
