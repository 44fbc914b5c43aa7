"""The attention processor is diffusers' own in value and gradient."""

import pytest
import torch
from diffusers.models.attention_processor import CogVideoXAttnProcessor2_0

from utils import pipeline
from utils.cogvideox import Attention


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
@pytest.mark.parametrize("dtype, tolerance", [(torch.float32, 2e-5), (torch.bfloat16, 1e-2)])
def test_it_is_diffusers_attention(model, device, dtype, tolerance):
    transformer = pipeline.load_transformer(model / "cognvs_ckpt_inpaint", dtype).to(device)
    attn = transformer.transformer_blocks[0].attn1
    heads, width = attn.heads, attn.to_q.in_features
    rng, results = torch.Generator().manual_seed(0), []
    image, text = (torch.randn(2, n, width, generator=rng).to(device, dtype) for n in (40, 7))
    angle = torch.randn(40, width // heads // 2, generator=rng).repeat_interleave(2, 1).to(device)
    for processor in (Attention(), CogVideoXAttnProcessor2_0()):
        attn.set_processor(processor)
        inputs = [x.clone().requires_grad_() for x in (image, text)]
        outputs = attn(inputs[0], encoder_hidden_states=inputs[1], image_rotary_emb=(angle.cos(), angle.sin()))
        torch.cat(outputs, 1).float().square().sum().backward()
        results.append([*outputs, *(x.grad for x in inputs)])
    for ours, theirs in zip(*results, strict=True):
        assert ours.dtype == dtype and ours.shape == theirs.shape
        assert (ours - theirs).float().norm() <= tolerance * theirs.float().norm()
