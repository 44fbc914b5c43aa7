"""All that knows the architecture of CogVideoX: its sizes, attention, VAE and sampler.

Another base model means another file like this one, and other classes in utils/pipeline.py, which
loads them. Every rewrite here computes the same function
as diffusers' own module in less time; only steps that `fast_passes` leaves out change the picture.
"""

import functools
import os
import shutil
import sysconfig
from pathlib import Path

import torch
import torch.nn.functional as F
from diffusers.models.autoencoders import autoencoder_kl_cogvideox as diffusers_vae
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.checkpoint import (
    CheckpointPolicy,
    checkpoint,
    create_selective_checkpoint_contexts,
)

from utils.cli import InputError, short

LORA_LAYERS = ["to_q", "to_k", "to_v", "to_out.0"]
KERNELS = [SDPBackend.CUDNN_ATTENTION, SDPBackend.FLASH_ATTENTION,
           SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]  # the fastest first
ATTENTION = {
    torch.ops.aten._scaled_dot_product_cudnn_attention.default,
    torch.ops.aten._scaled_dot_product_flash_attention.default,
    torch.ops.aten._scaled_dot_product_efficient_attention.default,
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu.default,
}
PRODUCTS = {torch.ops.aten.mm.default, torch.ops.aten.addmm.default}
GROWTH = 2  # of height and width, at each of the VAE's levels but the last


# ---- sizes ---------------------------------------------------------------------------------------


def check_transformer(config, name):
    """InputError if a transformer's configuration is of an architecture that is not computed here.

    CogVideoX1.5 has patches in time (patch_size_t) and an embedding of the frame rate (ofs).
    """
    for key in ("patch_size_t", "ofs_embed_dim"):
        if config.get(key) is not None:
            raise InputError(f"{name}: got a transformer with {key} {short(config[key], 80)}, as "
                             "of CogVideoX1.5; expected weights made for CogVideoX-5b-I2V")


def clip_shape(config, vae_config):
    """(frames, height, width) in pixels of the clip that a transformer's configuration is for."""
    scale = GROWTH ** (len(vae_config["block_out_channels"]) - 1)
    return config["sample_frames"], config["sample_height"] * scale, config["sample_width"] * scale


def count_tokens(config):
    """(text, image) tokens of a clip, by a transformer's configuration."""
    frames = (config["sample_frames"] - 1) // config["temporal_compression_ratio"] + 1
    area = config["sample_height"] * config["sample_width"] // config["patch_size"] ** 2
    return config["max_text_seq_length"], frames * area


def vae_calls(vae, clip_shape):
    """(encoder, decoder) calls that diffusers makes for a clip (frames, height, width) in pixels.

    The VAE takes a few frames at a time and, with tiling, one tile after the other.
    """
    frames, height, width = clip_shape
    latent_frames = (frames - 1) // vae.config.temporal_compression_ratio + 1
    tiles = 1
    larger = height > vae.tile_sample_min_height or width > vae.tile_sample_min_width
    if vae.use_tiling and larger:
        rows = int(vae.tile_sample_min_height * (1 - vae.tile_overlap_factor_height))
        columns = int(vae.tile_sample_min_width * (1 - vae.tile_overlap_factor_width))
        tiles = len(range(0, height, rows)) * len(range(0, width, columns))
    encoder = max(1, frames // vae.num_sample_frames_batch_size)
    decoder = max(1, latent_frames // vae.num_latent_frames_batch_size)
    return encoder * tiles, decoder * tiles


# ---- the transformer -----------------------------------------------------------------------------


class Attention:
    """An attention processor for CogVideoXTransformer3DModel.

    It makes fewer passes over the tokens than diffusers' own.
    """

    def __call__(self, attn, hidden_states, encoder_hidden_states, attention_mask=None,
                 image_rotary_emb=None):
        """Image tokens [B, n, C] and text tokens [B, m, C] to the same.

        image_rotary_emb: cosines and sines, each [n, c].
        """
        text_length = encoder_hidden_states.shape[1]
        x = torch.cat([encoder_hidden_states, hidden_states], 1)
        q = attn.norm_q(attn.to_q(x).unflatten(2, (attn.heads, -1)))  # [B, m + n, heads, c]
        k = attn.norm_k(attn.to_k(x).unflatten(2, (attn.heads, -1)))
        v = attn.to_v(x).unflatten(2, (attn.heads, -1))
        if image_rotary_emb is not None:
            cos, sin = self.own_rotary(image_rotary_emb)
            q, k = rotate((q, k), text_length, cos, sin)
        x = attn.to_out[0](self.attend(q, k, v).flatten(2))
        text, image = x.tensor_split([text_length], 1)
        return image, text

    def own_rotary(self, rotary):
        """The rotary embedding of this process's image tokens: of all of them."""
        return rotary

    def attend(self, q, k, v):
        """Attention of [B, tokens, heads, c] to the same shape."""
        q, k, v = (y.transpose(1, 2) for y in (q, k, v))
        return F.scaled_dot_product_attention(q, k, v).transpose(1, 2)


def rotate(tensors, text_length, cos, sin):
    """Rotate the pairs of channels of image tokens (Su et al. 2021, "RoFormer").

    tensors: each [B, text_length + n, heads, c]; text tokens stay as they are. cos, sin: float32
    [n, c], equal in both channels of a pair.
    """
    sin = torch.stack([-sin[:, ::2], sin[:, 1::2]], 2).flatten(1)
    cos = F.pad(cos, (0, 0, text_length, 0), value=1)[:, None]
    sin = F.pad(sin, (0, 0, text_length, 0))[:, None]
    rotated = []
    for x in tensors:
        swapped = x.unflatten(3, (-1, 2)).flip(4).flatten(3)
        rotated.append(torch.addcmul(x * cos, swapped, sin).to(x.dtype))
    return rotated


def attention():
    """A context in which attention takes the fastest kernel that there is for its input."""
    return sdpa_kernel(KERNELS, set_priority=True)


def has_compiler():
    """Whether torch.compile can build GPU kernels: Triton needs a C compiler, Python's headers."""
    compiler = os.environ.get("CC") or shutil.which("gcc") or shutil.which("cc")
    headers = Path(sysconfig.get_path("include"), "Python.h").is_file()
    return torch.cuda.is_available() and bool(compiler) and headers


def compile_blocks(transformer):
    """Compile each block in place: they are alike, so that one compilation serves them all.

    Compiled is the method, not the module: hooks, which share tokens or skip steps, stay outside.
    A deep copy of the transformer would go on computing with this one's weights.
    """
    blocks = transformer.transformer_blocks
    for block in blocks:
        block.forward = torch.compile(block.forward)
    blocks[0].forward = given_copies(blocks[0].forward)


def given_copies(forward):
    """The first block's compiled forward method, given copies of its tokens.

    They are parts of one tensor; for their strides the block would be compiled once more.
    """

    def run(**kwargs):
        for name in ("hidden_states", "encoder_hidden_states"):
            kwargs[name] = kwargs[name].clone(memory_format=torch.contiguous_format)
        return forward(**kwargs)

    return run


def policy(level, context, op, *args, **kwargs):
    """Whether what an operator gave is kept for the backward pass, by one of LEVELS."""
    keep = op in ATTENTION and level != "nothing"
    if op in PRODUCTS and level in ("feedforward", "products"):
        inner, outer = args[-1].shape  # a byte of output takes time in proportion to `inner`
        keep = inner > outer or (level == "products" and 4 * inner >= outer)
    return CheckpointPolicy.MUST_SAVE if keep else CheckpointPolicy.PREFER_RECOMPUTE


# What a block can keep for the backward pass beside its input; all else is recomputed. First comes
# what takes the most time for its bytes. feedforward: attention, and the product that ends the feed
# forward, which sums over four times what it puts out. products: all of them but a LoRA's second,
# which is cheap.
LEVELS = ("nothing", "attention", "feedforward", "products", "all")
CONTEXTS = {
    level: functools.partial(create_selective_checkpoint_contexts, functools.partial(policy, level))
    for level in LEVELS[:-1]
}


def recompute(transformer, levels):
    """Have each block keep what its level, one of LEVELS, says and recompute the rest.

    To be called before compile_blocks, for a compiled block decides what it recomputes when it is
    compiled.
    """
    for block, level in zip(transformer.transformer_blocks, levels, strict=True):
        if level != "all":
            block.forward = recomputed(block.forward, level)


def recomputed(forward, level):
    """A block's forward method, recomputed in the backward pass."""

    def run(*args, **kwargs):  # the compiler tells blocks apart by the word in `level` alone
        return checkpoint(forward, *args, use_reentrant=False, context_fn=CONTEXTS[level],
                          **kwargs)

    return run


# ---- the sampler ---------------------------------------------------------------------------------


def fast_passes(steps, last=4):
    """The numbers of those of `steps` denoising steps in which --fast runs the transformer.

    22% of the steps, and the `last` ones, whose errors would not be forgotten. The later, the
    closer together: the pass after k of n is (k / n)^0.65 of the way to the last ones.
    """
    head = max(0, steps - last)
    count = max(1, round(0.22 * head))
    early = {round(head * (k / count) ** 0.65) for k in range(count)}
    return sorted(early | set(range(head, steps)))


class Sampler:
    """The way of a clip from noise to latents: `sample`, [1, f, 16, h, w], is where it is.

    A step need not have a pass of the transformer. Without one its velocity is extrapolated from
    the last two passes, linearly in the timestep. The next pass tells what it should have been:
    the steps since the last one are taken again, with the same noise, their velocities interpolated
    between the two passes. So the corrector of Zhao et al. 2023, "UniPC", costs no pass.
    """

    def __init__(self, scheduler, sample, generator):
        self.scheduler = scheduler
        self.generator = generator  # of noise, on the CPU
        self.sample = sample
        self.x0 = None  # what the last step predicted
        self.before = None  # the timestep of the last step
        self.passes = []  # (timestep, velocity) of the last two
        self.skipped = []  # (timestep, noise) of the steps since the last pass
        self.start = None  # (sample, x0) of the first of them

    def computed(self, now, velocity):
        """Take the step at `now`, at which a pass for `sample` gave this velocity."""
        velocity = velocity.float()
        if self.skipped:
            velocity = self.corrected(now, velocity)
        self.passes = [*self.passes[-1:], (now, velocity)]
        self.step(now, velocity, self.noise(now))
        self.skipped = []
        self.start = (self.sample, self.x0)

    def predicted(self, now):
        """Take the step at `now` without a pass."""
        noise = self.noise(now)
        self.skipped.append((now, noise))
        self.step(now, on_line(self.passes[0], self.passes[-1], now), noise)

    def corrected(self, now, velocity):
        """Take the skipped steps again; the velocity that predicts the same x0 from there."""
        before = self.sample
        last = self.passes[-1]
        self.sample, self.x0 = self.start
        self.before = last[0]
        for then, noise in self.skipped:
            self.step(then, on_line(last, (now, velocity), then), noise)
        alpha = self.scheduler.alphas_cumprod[now]
        return velocity + (alpha / (1 - alpha)) ** 0.5 * (self.sample - before)

    def noise(self, now):
        return draw_noise(self.scheduler, self.sample, now, self.before, self.generator)

    def step(self, now, velocity, noise):
        """Take the step at `now`."""
        sample, self.x0 = denoise_step(self.scheduler, velocity, self.sample, now, self.before,
                                       self.x0, noise)
        self.sample = sample.to(self.sample.dtype)
        self.before = now


def on_line(a, b, now):
    """The velocity at a timestep on the line through a and b, each (timestep, velocity)."""
    if a[0] == b[0]:
        return a[1]
    return torch.lerp(a[1], b[1], (now - a[0]) / (b[0] - a[0]))


def next_timestep(scheduler, now):
    """The timestep after `now`, below 0 after the last."""
    return now - scheduler.config.num_train_timesteps // scheduler.num_inference_steps


def draw_noise(scheduler, sample, now, before, generator):
    """The noise of a step, as diffusers draws it, from a generator on the CPU: of sample's shape.

    diffusers' own step reads its timestep back from the GPU, which takes until the pass that was
    asked for is done, and draws noise only then. This one draws while the GPU computes. Pictures
    of a seed are the same, bit for bit.
    """
    first_order = before is None or next_timestep(scheduler, now) < 0
    for _ in range(1 if first_order else 2):  # diffusers draws twice, and uses the second
        noise = torch.randn(sample.shape, generator=generator, dtype=sample.dtype,
                            pin_memory=sample.is_cuda)
    return noise.to(sample.device, non_blocking=True)


def denoise_step(scheduler, velocity, sample, now, before, x0_before, noise):
    """One step of the sampler, DPM-Solver++ (2M, SDE; Lu et al. 2022): (next sample, predicted x0).

    scheduler: CogVideoXDPMScheduler. velocity, float32, sample and noise: [B, f, 16, h, w]. now,
    before: the timesteps of this step and of the last one; x0_before: what the last one predicted;
    both None in the first step.
    """
    alphas = scheduler.alphas_cumprod
    after = next_timestep(scheduler, now)
    alpha = alphas[now]
    alpha_before = None if before is None else alphas[before]
    alpha_after = alphas[after] if after >= 0 else scheduler.final_alpha_cumprod
    first_order = before is None or after < 0

    h, r, *_ = scheduler.get_variables(alpha, alpha_after, alpha_before)
    keep, give, *second = scheduler.get_mult(h, r, alpha, alpha_after, alpha_before)
    x0 = alpha**0.5 * sample - (1 - alpha) ** 0.5 * velocity
    mean = x0 if first_order else second[0] * x0 - second[1] * x0_before
    sigma = (1 - alpha_after) ** 0.5 * (1 - (-2 * h).exp()) ** 0.5
    return keep * sample - give * mean + sigma * noise, x0


# ---- the VAE -------------------------------------------------------------------------------------


def speed_up(vae):
    """Replace modules of a diffusers AutoencoderKLCogVideoX by faster ones of the same function."""
    for parent in list(vae.modules()):
        for name, child in list(parent.named_children()):
            for kind in (GroupNorm, SpatialNorm, CausalConv):
                if type(child) is kind.__base__:
                    faster = kind.__new__(kind)
                    faster.__dict__.update(child.__dict__)  # its parameters and settings
                    setattr(parent, name, faster)
    return vae


class SpatialNorm(diffusers_vae.CogVideoXSpatialNorm3D):
    """Applies its 1 x 1 x 1 convolutions before upsampling, not after."""

    def forward(self, f, zq, conv_cache=None):
        """GroupNorm(f) * conv_y(z) + conv_b(z), z the nearest neighbours of zq."""
        scale = grow(self.conv_y.conv(zq), f.shape[2:])
        shift = grow(self.conv_b.conv(zq), f.shape[2:])
        return self.norm_layer(f) * scale + shift, {}


def grow(x, size):
    """Nearest neighbours of x [B, C, t, h, w] at multiples of its size.

    The first frame of an odd length stays single, as the VAE's first latent is of one frame.
    """
    if size[0] == 1 or size[0] % 2 == 0:
        return repeat(x, size)
    first = repeat(x[:, :, :1], (1, *size[1:]))
    others = repeat(x[:, :, 1:], (size[0] - 1, *size[1:]))
    return torch.cat([first, others], 2)


def repeat(x, size):
    """x [B, C, t, h, w] repeated to [B, C, *size]: F.interpolate, but cheap backwards too."""
    for dim, length in enumerate(size, 2):
        times = length // x.shape[dim]
        shape = [*x.shape[: dim + 1], times, *x.shape[dim + 1 :]]
        x = x.unsqueeze(dim + 1).expand(shape).flatten(dim, dim + 1)
    return x


class GroupNorm(torch.nn.GroupNorm):
    """Spreads each group over a GPU; PyTorch's has one of its many processors read all of it."""

    def forward(self, x):
        if x.device.type == "cpu" or torch.is_grad_enabled():
            return super().forward(x)
        return normalize(x, self.num_groups, self.weight, self.bias, self.eps)


def normalize(x, groups, weight, bias, eps):
    """GroupNorm of x [B, C, ...], by moments in float32: the variance is E[x^2] - E[x]^2."""
    members = x.reshape(len(x) * groups, -1)
    mean = members.mean(1, dtype=torch.float32)
    norm = torch.linalg.vector_norm(members, dim=1, dtype=torch.float32)
    variance = (norm.square() / members.shape[1] - mean.square()).clamp(min=0)
    channels = x.shape[1] // groups
    moments = [moment.repeat_interleave(channels) for moment in (mean, variance)]  # [B C]
    affine = [factor.float().repeat(len(x)) for factor in (weight, bias)]
    batch = x.reshape(1, -1, *x.shape[2:])  # [1, B C, ...]: each channel by the moments given
    return F.batch_norm(batch, *moments, *affine, eps=eps).view_as(x)


class CausalConv(diffusers_vae.CogVideoXCausalConv3d):
    """On a CPU a sum of 2D convolutions, one a time offset, for which there are good kernels."""

    def forward(self, inputs, conv_cache=None):
        if inputs.device.type != "cpu" or self.time_kernel_size == 1:
            return super().forward(inputs, conv_cache)
        frames = inputs.shape[2]
        x = self.fake_context_parallel_forward(inputs, conv_cache)
        cache = x[:, :, -self.time_kernel_size + 1 :].clone()
        x = x.permute(0, 2, 3, 4, 1).contiguous().movedim(4, 2)  # [B, T, C, H, W], channels last
        out = None
        for offset, weight in enumerate(self.conv.weight.unbind(2)):
            bias = self.conv.bias if offset == 0 else None
            at_offset = x[:, offset : offset + frames].flatten(0, 1)
            y = F.conv2d(at_offset, weight, bias, padding=(self.height_pad, self.width_pad))
            out = y if out is None else out.add_(y)
        return out.unflatten(0, (-1, frames)).transpose(1, 2), cache


def fit_tiles(vae):
    """Let a VAE's tiles be, and overlap by, whole latents.

    Chosen is the number nearest to diffusers' overlap, a sixth of the height and a fifth of the
    width: those make tiles of some sizes that do not add up to the picture.
    """
    scale = GROWTH ** (len(vae.config.block_out_channels) - 1)
    for side in ("height", "width"):
        latents = getattr(vae, f"tile_latent_min_{side}")
        usual = getattr(vae, f"tile_overlap_factor_{side}")
        whole = [k / latents for k in range(1, latents) if overlaps_by(k, latents, scale)]
        nearest = min(whole, key=lambda factor: abs(factor - usual), default=usual)
        setattr(vae, f"tile_sample_min_{side}", latents * scale)
        setattr(vae, f"tile_overlap_factor_{side}", nearest)
    return vae


def overlaps_by(k, latents, scale):
    """Whether diffusers, told to overlap by k / latents, gets k latents and k * scale pixels."""
    factor = k / latents
    exact = True
    for size, share in ((latents, k), (latents * scale, k * scale)):
        exact &= int(size * factor) == share and int(size * (1 - factor)) == size - share
    return exact
