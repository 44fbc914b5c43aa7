"""The CogVideoX VAE in less time: same function, other order."""

from types import MethodType

import torch
import torch.nn.functional as F
from diffusers.models.autoencoders.autoencoder_kl_cogvideox import CogVideoXCausalConv3d, CogVideoXSpatialNorm3D


def speed_up(vae):
    """Make a diffusers AutoencoderKLCogVideoX apply its 1 x 1 x 1 convolutions before upsampling, not after; on a CPU
    its 3D convolutions as sums of 2D ones, for which there are good kernels; on a GPU without gradients its group norms
    with all of the chip."""
    for module in vae.modules():
        if isinstance(module, torch.nn.GroupNorm):
            module.forward = MethodType(group_norm, module)
        if isinstance(module, CogVideoXSpatialNorm3D):
            module.forward = MethodType(spatial_norm, module)
        elif isinstance(module, CogVideoXCausalConv3d) and module.time_kernel_size > 1:
            module.forward = MethodType(causal_conv, module)
    return vae


def fit_tiles(vae):
    """Let a VAE's tiles be and overlap by whole latents, the number nearest to diffusers' sixth of the height and fifth
    of the width: those make tiles of some sizes that do not add up to the picture."""
    scale = 2 ** (len(vae.config.block_out_channels) - 1)
    for side in ("height", "width"):
        latents, usual = (getattr(vae, f"tile_{name}_{side}") for name in ("latent_min", "overlap_factor"))
        whole = [k / latents for k in range(1, latents) if split(latents, k / latents) == (k, latents - k)
                 and split(latents * scale, k / latents) == (k * scale, (latents - k) * scale)]  # fmt: skip
        setattr(vae, f"tile_sample_min_{side}", latents * scale)
        setattr(vae, f"tile_overlap_factor_{side}", min(whole, key=lambda part: abs(part - usual), default=usual))
    return vae


def split(size, part):
    """How diffusers divides a tile into what overlaps and the rest."""
    return int(size * part), int(size * (1 - part))


def spatial_norm(self, f, zq, conv_cache=None):
    """GroupNorm(f) * conv_y(z) + conv_b(z), z the nearest neighbours of zq; stands in for the module's forward."""
    scale, shift = (grow(conv.conv(zq), f.shape[2:]) for conv in (self.conv_y, self.conv_b))
    return self.norm_layer(f) * scale + shift, {}


def group_norm(self, x):
    """Stands in for the module's forward, which has one of a GPU's many processors read all of a group."""
    if x.device.type == "cpu" or torch.is_grad_enabled():
        return torch.nn.GroupNorm.forward(self, x)
    return normalize(x, self.num_groups, self.weight, self.bias, self.eps)


def normalize(x, groups, weight, bias, eps):
    """GroupNorm of x [B, C, ...], moments in float32: E[x^2] - E[x]^2, the sums of which a GPU shares out."""
    rows = x.reshape(len(x) * groups, -1)
    mean = rows.mean(1, dtype=torch.float32)
    square = torch.linalg.vector_norm(rows, dim=1, dtype=torch.float32).square() / rows.shape[1]
    channels = x.shape[1] // groups
    moments = [moment.repeat_interleave(channels) for moment in (mean, (square - mean.square()).clamp(min=0))]  # [B C]
    affine = [part.float().repeat(len(x)) for part in (weight, bias)]
    return F.batch_norm(x.reshape(1, -1, *x.shape[2:]), *moments, *affine, eps=eps).view_as(x)  # by given moments


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


def causal_conv(self, inputs, conv_cache=None):
    """Stands in for the module's forward: the sum over time offsets of what each slice of the kernel gives."""
    if inputs.device.type != "cpu":
        return CogVideoXCausalConv3d.forward(self, inputs, conv_cache)
    frames, padding = inputs.shape[2], (self.height_pad, self.width_pad)
    x = self.fake_context_parallel_forward(inputs, conv_cache)
    cache = x[:, :, -self.time_kernel_size + 1 :].clone()
    x = x.permute(0, 2, 3, 4, 1).contiguous().movedim(4, 2)  # [B, T, C, H, W], channels last in memory
    weights = self.conv.weight.unbind(2)
    out = F.conv2d(x[:, :frames].flatten(0, 1), weights[0], self.conv.bias, padding=padding)
    for k, weight in enumerate(weights[1:], 1):
        out += F.conv2d(x[:, k : k + frames].flatten(0, 1), weight, padding=padding)
    return out.unflatten(0, (-1, frames)).transpose(1, 2), cache
