"""Processes that share one clip's tokens make the picture that one process makes."""

import pytest
import torch
import torch.distributed as dist
from conftest import ROOT

from utils import pipeline
from utils.cli import InputError
from utils.parallel import share_tokens

BASE, WEIGHTS = ROOT / "checkpoints" / "tiny" / "base", ROOT / "checkpoints" / "tiny" / "cognvs_ckpt_inpaint"


def one_pass(rank, ranks, folder):
    """Write to `folder` what one pass of the small model gives this process, for an input that all make alike."""
    torch.set_num_threads(1)
    pipe = pipeline.load_pipeline(BASE, WEIGHTS, torch.float32)
    if ranks > 1:
        dist.init_process_group("gloo", f"file://{folder}/meet{ranks}", rank=rank, world_size=ranks)
        share_tokens(pipe.transformer)
    rng = torch.Generator().manual_seed(0)
    latents, prompt = (torch.randn(shape, generator=rng) for shape in ((1, 13, 64, 16, 24), (1, 8, 32)))
    with torch.no_grad():
        out = pipe.transformer(latents, prompt, torch.tensor([500]), image_rotary_emb=pipe.rotary_embedding("cpu"))
    torch.save(out.sample, f"{folder}/{ranks}_{rank}.pt")


def test_two_and_four_processes_give_what_one_gives(tmp_path):
    one_pass(0, 1, tmp_path)
    expected = torch.load(tmp_path / "1_0.pt", weights_only=True)
    for ranks in (2, 4):
        torch.multiprocessing.spawn(one_pass, (ranks, tmp_path), ranks)
        for rank in range(ranks):
            torch.testing.assert_close(torch.load(tmp_path / f"{ranks}_{rank}.pt", weights_only=True), expected,
                                       rtol=0, atol=2e-5)  # fmt: skip
    assert expected.std() > 0.1


def test_a_number_that_does_not_divide_is_refused(model, monkeypatch):
    pipe = pipeline.load_pipeline(model / "base", model / "cognvs_ckpt_inpaint", torch.float32)
    monkeypatch.setattr(dist, "get_rank", lambda: 0)
    monkeypatch.setattr(dist, "get_world_size", lambda: 3)
    with pytest.raises(InputError, match="2 heads and 128 tokens"):
        share_tokens(pipe.transformer)
