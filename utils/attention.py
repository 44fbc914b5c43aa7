"""The attention of CogVideoX in fewer passes over its tokens than diffusers' processor makes: same function."""

import torch
import torch.nn.functional as F


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
