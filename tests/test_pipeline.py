import json
import shutil

import pytest
import torch
from diffusers import CogVideoXTransformer3DModel
from safetensors import SafetensorError
from transformers import T5EncoderModel

from utils import pipeline
from utils.cli import InputError

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def pipe(model):
    return pipeline.load_pipeline(model / "base", model / "cognvs_ckpt_inpaint", torch.float32, CPU)


@pytest.fixture(scope="module")
def clip(pipe):
    frames, height, width = pipe.clip_shape
    return torch.rand(frames, 3, height, width, generator=torch.Generator().manual_seed(1))


def embedding(model):
    return pipeline.empty_prompt(model / "base", 8, torch.float32)[0]


def test_sizes_come_from_the_models_config(pipe):
    assert pipe.clip_shape == (17, 64, 96)


def test_the_condition_the_text_and_the_seed_matter(model, pipe, clip):
    text = embedding(model)

    def run(clip=clip, prompt=text, seed=42):
        return pipe.inpaint(clip, prompt, 3, torch.Generator().manual_seed(seed))

    picture = run()
    assert torch.equal(picture, run())
    for other in (run(clip=1 - clip), run(prompt=text + 1), run(seed=43)):
        assert (picture - other).abs().mean() > 0.004


def test_the_condition_is_the_whole_clip_scaled_whatever_the_config_says(pipe, clip):
    assert pipe.vae.config.invert_scale_latents
    ours = pipe.encode(clip[None] * 2 - 1, torch.Generator().manual_seed(0))
    posterior = pipe.vae.encode(clip.transpose(0, 1)[None] * 2 - 1).latent_dist
    sample = posterior.sample(torch.Generator().manual_seed(0)).transpose(1, 2)
    assert ours.shape == (1, 5, 16, 8, 12)
    torch.testing.assert_close(ours, sample * 0.7)


def test_the_embedding_is_cached_and_the_text_encoder_not_needed_again(model, tmp_path, monkeypatch):
    base = shutil.copytree(model / "base", tmp_path / "base", ignore=shutil.ignore_patterns("empty_prompt*"))
    computed, place = pipeline.empty_prompt(base, 8, torch.float32)
    assert place.parent == base and computed.shape == (1, 8, 32)
    monkeypatch.setattr(pipeline, "encode_empty_prompt", None)
    assert torch.equal(pipeline.empty_prompt(base, 8, torch.float32)[0], computed)
    shutil.rmtree(base / "text_encoder")
    assert torch.equal(pipeline.empty_prompt(base, 8, torch.float32)[0], computed)
    place.unlink()
    with pytest.raises(InputError, match="expected the base's text encoder"):
        pipeline.empty_prompt(base, 8, torch.float32)


def test_the_embedding_is_made_anew_for_another_text_encoder(model, tmp_path):
    base = shutil.copytree(model / "base", tmp_path / "base")
    before, _ = pipeline.empty_prompt(base, 8, torch.float32)
    encoder = T5EncoderModel.from_pretrained(base / "text_encoder")
    torch.nn.init.normal_(encoder.shared.weight)
    encoder.save_pretrained(base / "text_encoder")
    assert not torch.equal(pipeline.empty_prompt(base, 8, torch.float32)[0], before)


def test_a_read_only_base_is_cached_with_the_user(model, tmp_path, monkeypatch):
    base = shutil.copytree(model / "base", tmp_path / "base", ignore=shutil.ignore_patterns("empty_prompt*"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    save = pipeline.save_file

    def refuse(tensors, path, metadata):
        if base in path.parents:
            raise SafetensorError("Read-only file system (os error 30)")
        save(tensors, path, metadata)

    monkeypatch.setattr(pipeline, "save_file", refuse)
    computed, place = pipeline.empty_prompt(base, 8, torch.float32)
    assert tmp_path / "cache" in place.parents
    monkeypatch.setattr(pipeline, "encode_empty_prompt", None)
    assert torch.equal(pipeline.empty_prompt(base, 8, torch.float32)[0], computed)


def test_weights_are_a_folder_or_the_highest_step_of_a_run(model, tmp_path):
    weights = model / "cognvs_ckpt_inpaint"
    assert pipeline.find_weights(weights) == weights
    for step in (5, 40, 200):
        shutil.copytree(weights, tmp_path / f"my_checkpoint-{step}_transformer")
    assert pipeline.find_weights(tmp_path).name == "my_checkpoint-200_transformer"
    (tmp_path / "run" / "checkpoint-3").mkdir(parents=True)
    with pytest.raises(InputError, match="process_ckpts.sh"):
        pipeline.find_weights(tmp_path / "run")


def test_missing_weights_are_an_error_not_noise(model, tmp_path):
    transformer = CogVideoXTransformer3DModel.from_pretrained(model / "cognvs_ckpt_inpaint")
    state = {name: tensor for name, tensor in transformer.state_dict().items() if name != "proj_out.weight"}
    transformer.save_pretrained(tmp_path, state_dict=state)
    pipeline.save_file(state, tmp_path / "diffusion_pytorch_model.safetensors", {"format": "pt"})
    with pytest.raises(InputError, match="1 of .* are missing or of another shape .* proj_out.weight"):
        pipeline.load_model(CogVideoXTransformer3DModel, tmp_path, torch.float32)
    pipeline.save_file({"proj_out.weight": transformer.proj_out.weight.detach()}, tmp_path / "other.safetensors")
    with pytest.raises(InputError, match="proj_out.weight"):  # diffusers would not read it
        pipeline.load_model(CogVideoXTransformer3DModel, tmp_path, torch.float32)
    with open(tmp_path / "diffusion_pytorch_model.safetensors", "r+b") as file:
        file.truncate(1000)
    with pytest.raises(InputError, match="could not be read .*; download it again"):
        pipeline.load_model(CogVideoXTransformer3DModel, tmp_path, torch.float32)
    (tmp_path / "diffusion_pytorch_model.safetensors").unlink()
    with pytest.raises(InputError, match="no such file; expected it, or .*index.json"):
        pipeline.load_model(CogVideoXTransformer3DModel, tmp_path, torch.float32)
    transformer.save_pretrained(tmp_path, max_shard_size="50KB")
    assert len(list(tmp_path.glob("diffusion_pytorch_model-*.safetensors"))) > 1
    assert pipeline.load_model(CogVideoXTransformer3DModel, tmp_path, torch.float32)


@pytest.mark.parametrize("name, expected", [("in_channels", 32), ("out_channels", 16), ("text_embed_dim", 32)])
def test_a_transformer_for_another_base_is_refused(model, tmp_path, name, expected):
    config = json.loads((model / "cognvs_ckpt_inpaint" / "config.json").read_text())
    assert config[name] == expected
    (tmp_path / "config.json").write_text(json.dumps(config | {name: 48}))
    with pytest.raises(InputError, match=f"got {name} 48; expected {expected}"):
        pipeline.transformer_config(model / "base", tmp_path)


@pytest.mark.gpu
def test_a_seed_is_the_same_picture_on_the_gpu(model, pipe, clip):
    gpu = torch.device("cuda:0")
    there = pipeline.load_pipeline(model / "base", model / "cognvs_ckpt_inpaint", torch.float32, gpu)
    cpu = pipe.inpaint(clip, embedding(model), 5, torch.Generator().manual_seed(42))
    ours = there.inpaint(clip, embedding(model).to(gpu), 5, torch.Generator().manual_seed(42)).cpu()
    assert (cpu - ours).abs().mean() < 2 / 255
