"""Where the model's parts live: what fits is chosen, and no choice changes the picture."""

from types import SimpleNamespace

import pytest
import torch

from toolbox.small_model import make_tiny_checkpoint
from utils import devices as placement
from utils import pipeline
from utils.cli import InputError

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def full_size():
    """Stands in for a pipeline of the real sizes, without its numbers."""
    args = SimpleNamespace(size="5b", frames=49, height=None, width=None)
    transformer, vae, _ = make_tiny_checkpoint.configs(args)
    with torch.device("meta"):
        parts = {"transformer": pipeline.CogVideoXTransformer3DModel.from_config(transformer).bfloat16(),
                 "vae": pipeline.AutoencoderKLCogVideoX.from_config(vae).bfloat16()}  # fmt: skip
    return SimpleNamespace(**parts, clip_shape=(49, 480, 720), dtype=torch.bfloat16)


@pytest.mark.parametrize("gib, expected", [
    (79, ("gpu", False)), (30, ("gpu", False)), (22, ("gpu", True)), (15, ("offload", True)), (11, ("low", True)),
    (1, ("low", True)),
])  # fmt: skip
def test_auto_takes_what_fits(full_size, gib, expected):
    assert placement.choose(full_size, "auto", "auto", gib * placement.GIB) == expected


def test_what_was_asked_for_is_taken(full_size):
    assert placement.choose(full_size, "offload", "auto", 80 * placement.GIB) == ("offload", False)
    assert placement.choose(full_size, "gpu", "off", placement.GIB) == ("gpu", False)
    assert placement.choose(full_size, "auto", "on", 80 * placement.GIB) == ("gpu", True)
    with pytest.raises(InputError, match="--memory low has the VAE work in tiles"):
        placement.choose(full_size, "low", "off", placement.GIB)


def test_blocks_that_take_turns_make_the_same_picture(model):
    load = lambda: pipeline.load_pipeline(model / "base", model / "cognvs_ckpt_inpaint", torch.float32)  # noqa: E731
    frames, height, width = load().clip_shape
    clip = torch.rand(frames, 3, height, width, generator=torch.Generator().manual_seed(0))
    embedding = pipeline.empty_prompt(model / "base", 8, torch.float32)[0]
    pictures = []
    for pipe in (load(), load()):
        if pictures:
            placement.offload_blocks(pipe, CPU)
            assert all(hasattr(block, "_diffusers_hook") for block in pipe.transformer.transformer_blocks)
        pictures.append(pipe.inpaint(clip, embedding, 2, torch.Generator().manual_seed(1)))
    assert torch.equal(*pictures)


@pytest.mark.gpu
@pytest.mark.parametrize("mode", placement.PLANS)
def test_every_plan_makes_the_same_picture_on_a_gpu(model, mode):
    device, pictures = torch.device("cuda:0"), []
    for name, tiled in (("gpu", mode[1]), mode):
        pipe = pipeline.load_pipeline(model / "base", model / "cognvs_ckpt_inpaint", torch.float32)
        said = placement.place(pipe, device, name, "on" if tiled else "off")
        assert f"memory={name}" in said
        on_gpu = {p.device.type == "cuda" for p in pipe.transformer.transformer_blocks.parameters()}
        assert on_gpu == {name == "gpu"}
        frames, height, width = pipe.clip_shape
        clip = torch.rand(frames, 3, height, width, generator=torch.Generator().manual_seed(0))
        embedding = pipeline.empty_prompt(model / "base", 8, torch.float32)[0].to(device)
        pictures.append(pipe.inpaint(clip, embedding, 2, torch.Generator().manual_seed(1)))
    torch.testing.assert_close(*pictures, atol=2e-3, rtol=0)
