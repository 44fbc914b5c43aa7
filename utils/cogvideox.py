"""All that knows the architecture of CogVideoX: token counts, attention, the VAE, the sampler, what makes it faster."""

import os
import shutil
import sysconfig
from collections import Counter
from pathlib import Path
from types import MethodType

import torch
import torch.nn.functional as F
from diffusers import CogVideoXDPMScheduler, TaylorSeerCacheConfig
from diffusers.models.autoencoders.autoencoder_kl_cogvideox import CogVideoXCausalConv3d, CogVideoXSpatialNorm3D
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.checkpoint import checkpoint

ATTENTION = [SDPBackend.CUDNN_ATTENTION, SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]
LORA_LAYERS = ["to_q", "to_k", "to_v", "to_out.0"]


def count_tokens(config):
    """(text, image) tokens of a clip, by a transformer's configuration."""
    frames = (config["sample_frames"] - 1) // config["temporal_compression_ratio"] + 1
    image = frames * config["sample_height"] * config["sample_width"] // config["patch_size"] ** 2
    return config["max_text_seq_length"], image


class Attention:
    """An attention processor for CogVideoXTransformer3DModel."""

    def __call__(self, attn, hidden_states, encoder_hidden_states, attention_mask=None, image_rotary_emb=None):
        """Image tokens [B, n, C] and text tokens [B, m, C] to the same; image_rotary_emb: cosines, sines [n, c]."""
        text = encoder_hidden_states.shape[1]
        x = torch.cat([encoder_hidden_states, hidden_states], 1)
        q, k, v = (project(x).unflatten(2, (attn.heads, -1)) for project in (attn.to_q, attn.to_k, attn.to_v))
        q, k = attn.norm_q(q), attn.norm_k(k)  # [B, m + n, heads, c]
        if image_rotary_emb is not None:
            q, k = rotate((q, k), text, *self.own_part(image_rotary_emb))
        x = attn.to_out[0](self.attend(q, k, v).flatten(2))
        text, image = x.tensor_split([text], 1)
        return image, text

    def own_part(self, rotary):
        """The rotary embedding of the tokens that are here: all."""
        return rotary

    def attend(self, q, k, v):
        """[B, tokens, heads, c] of all three to the same."""
        q, k, v = (y.transpose(1, 2) for y in (q, k, v))
        return F.scaled_dot_product_attention(q, k, v).transpose(1, 2)


def rotate(xs, text, cos, sin):
    """Rotate the pairs of channels of each of xs, [B, text + n, heads, c], but for those of the text's tokens.

    cos, sin: [n, c], float32, equal in both of a pair (Su et al. 2021, "RoFormer").
    """
    sin = torch.stack([-sin[:, ::2], sin[:, 1::2]], 2).flatten(1)
    cos, sin = F.pad(cos, (0, 0, text, 0), value=1)[:, None], F.pad(sin, (0, 0, text, 0))[:, None]
    swapped = (x.unflatten(3, (-1, 2)).flip(4).flatten(3) for x in xs)
    return [torch.addcmul(x * cos, y, sin).to(x.dtype) for x, y in zip(xs, swapped, strict=True)]


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


class Scheduler(CogVideoXDPMScheduler):
    """DPM-Solver++ (2M, SDE; Lu et al. 2022) for velocity prediction.

    diffusers' own step reads its timestep back from the GPU, which takes until the pass that was asked for is done, and
    only then draws noise on the CPU. This one knows its timesteps and draws while the GPU computes. It is to be called
    once for each timestep, in their order.
    """

    def set_timesteps(self, num_inference_steps, device=None):
        super().set_timesteps(num_inference_steps, device)
        self.ahead = [None, *self.timesteps.tolist()]  # the timestep before the next step's, its own, all later ones

    def step(self, model_output, old_pred_original_sample, timestep, timestep_back, sample, generator=None,
             return_dict=False):  # fmt: skip
        """(the next sample, x0 as predicted), both [B, f, 16, h, w]; generator: of the CPU."""
        back, now = self.ahead.pop(0), self.ahead[0]
        later = now - self.config.num_train_timesteps // self.num_inference_steps
        first_order = old_pred_original_sample is None or later < 0
        for _ in range(1 if first_order else 2):  # diffusers draws twice, for a step of first order and this one
            noise = torch.randn(sample.shape, generator=generator, dtype=sample.dtype, pin_memory=sample.is_cuda)
        noise = noise.to(sample.device, non_blocking=True)
        alpha, alpha_back = self.alphas_cumprod[now], None if back is None else self.alphas_cumprod[back]
        alpha_later = self.alphas_cumprod[later] if later >= 0 else self.final_alpha_cumprod
        h, r, *_ = self.get_variables(alpha, alpha_later, alpha_back)
        ours, theirs, *both = self.get_mult(h, r, alpha, alpha_later, alpha_back)
        x0 = alpha**0.5 * sample - (1 - alpha) ** 0.5 * model_output
        mean = x0 if first_order else both[0] * x0 - both[1] * old_pred_original_sample
        sigma = (1 - alpha_later) ** 0.5 * (1 - (-2 * h).exp()) ** 0.5
        return ours * sample - theirs * mean + sigma * noise, x0


def has_compiler():
    """Whether torch.compile can build GPU kernels: Triton needs a C compiler and Python's headers."""
    compiler = os.environ.get("CC") or shutil.which("gcc") or shutil.which("cc")
    headers = Path(sysconfig.get_path("include"), "Python.h").is_file()
    return torch.cuda.is_available() and bool(compiler) and headers


def attention():
    """A context in which attention takes the fastest kernel that there is for its input."""
    return sdpa_kernel(ATTENTION, set_priority=True)


def recompute(transformer, kept):
    """Gradient checkpointing of all blocks but the last `kept`, whose activations stay in memory."""
    blocks = set(transformer.transformer_blocks[len(transformer.transformer_blocks) - kept :])

    def run(block, *args):
        return block(*args) if block in blocks else checkpoint(block, *args, use_reentrant=False)

    transformer.enable_gradient_checkpointing(run)


def compile_blocks(transformer):
    """Compile each block in place: they are alike, so that one compilation serves them all.

    A deep copy of the transformer would go on computing with this one's weights.
    """
    for block in transformer.transformer_blocks:
        block.forward = torch.compile(block.forward)  # and not what hooks put around it


def predict_steps(transformer, steps):
    """Have only every third of `steps` denoising steps run the transformer, and the first 3 and the last 4.

    For the others its output is extrapolated from the last two computed (Liu et al. 2025, "TaylorSeer"). Returns a
    Counter whose "passes" grows with every pass that is really made. Not with blocks that take turns on the GPU:
    diffusers' hooks for that take this one off.
    """
    passes, first = Counter(), transformer.transformer_blocks[0]
    forward = first.forward

    def counted(*args, **kwargs):
        passes["passes"] += 1
        return forward(*args, **kwargs)

    first.forward = counted
    transformer.enable_cache(TaylorSeerCacheConfig(3, disable_cache_before_step=3, disable_cache_after_step=steps - 4,
                                                   taylor_factors_dtype=torch.float32, use_lite_mode=True))  # fmt: skip
    return passes
