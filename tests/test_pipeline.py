import json
import os
import shutil
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from diffusers import (
    AutoencoderKLCogVideoX,
    CogVideoXDPMScheduler,
    CogVideoXImageToVideoPipeline,
    CogVideoXTransformer3DModel,
)
from diffusers.utils.torch_utils import randn_tensor
from safetensors.torch import save_file
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


def copy_base(model, folder):
    """The base without a cached embedding."""
    ignore = shutil.ignore_patterns("empty_prompt*")
    return shutil.copytree(model / "base", folder / "base", ignore=ignore)


def embedding(model):
    return pipeline.empty_prompt(model / "base", 8, torch.float32)[0]


class Published(CogVideoXImageToVideoPipeline):
    """What the published code adds to diffusers: the whole clip is encoded as the condition."""

    def prepare_latents(
        self, image, batch_size, channels, frames, height, width, dtype, device, generator, latents
    ):
        x = image[None].transpose(1, 2).to(dtype)  # [1, 3, F, H, W]
        condition = self.vae.encode(x).latent_dist.sample(generator).transpose(1, 2) * 0.7
        return randn_tensor(condition.shape, generator=generator, dtype=dtype), condition


@pytest.mark.parametrize("guidance", [1, 6])
def test_a_clip_is_inpainted_as_diffusers_pipeline_does_it(model, clip, guidance):
    """By its own loop, sampler, attention and VAE, guided too: bit for bit but for the rewrites."""
    weights = CogVideoXTransformer3DModel.from_pretrained(model / "cognvs_ckpt_inpaint")
    vae = AutoencoderKLCogVideoX.from_pretrained(model / "base" / "vae")
    scheduler = CogVideoXDPMScheduler.from_pretrained(
        model / "base" / "scheduler", timestep_spacing="trailing"
    )
    theirs = Published(None, None, vae, weights, scheduler)
    theirs.set_progress_bar_config(disable=True)
    text = embedding(model)
    expected = theirs(
        clip,
        prompt_embeds=text,
        negative_prompt_embeds=text,
        guidance_scale=guidance,
        num_frames=17,
        height=64,
        width=96,
        num_inference_steps=7,
        output_type="pt",
        generator=torch.Generator().manual_seed(42),
        use_dynamic_cfg=False,
    ).frames[0]
    ours = pipeline.CogNVSPipeline(None, None, vae, weights, scheduler)
    got = ours.inpaint(clip, text, 7, torch.Generator().manual_seed(42))
    assert got.std() > 0.05
    if guidance == 1:
        assert torch.equal(got, expected)
    faster = pipeline.load_pipeline(model / "base", model / "cognvs_ckpt_inpaint", torch.float32)
    got = faster.inpaint(clip, text, 7, torch.Generator().manual_seed(42))
    torch.testing.assert_close(got, expected, atol=2e-3, rtol=0)


def test_progress_is_told_as_often_as_was_said(pipe, clip, model):
    told = []
    with pipe.watch(told.append):
        pipe.inpaint(clip, embedding(model), 3, torch.Generator().manual_seed(0))
    assert len(told) == pipe.work(3) and told[0] == "encoding" and told[-1] == "decoding"
    assert told.count("denoising") == 3
    pipe.inpaint(clip, embedding(model), 1, torch.Generator().manual_seed(0))
    assert len(told) == pipe.work(3)  # not told outside the context


def test_fast_leaves_out_passes_and_tells_of_the_others(pipe, clip, model):
    told = []
    with pipe.watch(told.append):
        few = pipe.inpaint(clip, embedding(model), 12, torch.Generator().manual_seed(0), fast=True)
    assert len(told) == pipe.work(12, fast=True) and told.count("denoising") == 6
    all_passes = pipe.inpaint(clip, embedding(model), 12, torch.Generator().manual_seed(0))
    assert not torch.equal(few, all_passes)
    four = [pipe.inpaint(clip, embedding(model), 4, torch.Generator().manual_seed(0), fast)
            for fast in (False, True)]
    assert torch.equal(*four)  # where all passes are made


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


def test_the_embedding_is_cached_and_the_encoder_not_needed_again(model, tmp_path, monkeypatch):
    base = copy_base(model, tmp_path)
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
    base = copy_base(model, tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    write = Path.write_bytes

    def refuse(path, data):
        if base in path.parents:
            raise OSError(30, "Read-only file system")
        write(path, data)

    monkeypatch.setattr(Path, "write_bytes", refuse)
    computed, place = pipeline.empty_prompt(base, 8, torch.float32)
    assert tmp_path / "cache" in place.parents
    monkeypatch.setattr(pipeline, "encode_empty_prompt", None)
    assert torch.equal(pipeline.empty_prompt(base, 8, torch.float32)[0], computed)


def test_a_user_without_a_home_does_without_a_cache(model, tmp_path, monkeypatch):
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr("os.path.expanduser", str)  # as of a user id that has no name
    assert pipeline.user_cache() is None
    base = copy_base(model, tmp_path)
    assert pipeline.empty_prompt(base, 8, torch.float32)[1].parent == base


def test_compiled_programs_are_kept_for_the_user_unless_they_chose_a_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv(pipeline.COMPILED, "chosen")
    pipeline.keep_compiled()
    assert os.environ[pipeline.COMPILED] == "chosen" and not list(tmp_path.iterdir())
    for before in (None, pipeline.cache_dir_utils.default_cache_dir()):
        monkeypatch.delenv(pipeline.COMPILED)
        if before:
            monkeypatch.setenv(pipeline.COMPILED, before)
        pipeline.keep_compiled()
        assert os.environ[pipeline.COMPILED] == str(tmp_path / "cache" / "cognvs" / "compiled")
    monkeypatch.setenv(pipeline.COMPILED, before)
    monkeypatch.setattr("os.access", lambda *_: False)
    pipeline.keep_compiled()
    assert os.environ[pipeline.COMPILED] == before


def test_the_cached_embedding_is_for_whom_the_umask_says(model, tmp_path):
    base = copy_base(model, tmp_path)
    place = pipeline.empty_prompt(base, 8, torch.float32)[1]
    (tmp_path / "other").touch()
    assert place.stat().st_mode == (tmp_path / "other").stat().st_mode


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
    state = transformer.state_dict()
    last = state.pop("proj_out.weight")
    transformer.save_pretrained(tmp_path)
    file = tmp_path / "diffusion_pytorch_model.safetensors"

    def load():
        return pipeline.load_model(CogVideoXTransformer3DModel, tmp_path, torch.float32)

    save_file(state, file, {"format": "pt"})
    with pytest.raises(InputError, match="1 tensors of its config.json are missing .*proj_out"):
        load()
    save_file(state | {"proj_out.weight": last[:, :5].clone()}, file, {"format": "pt"})
    with pytest.raises(InputError, match="could not be loaded: .*proj_out.weight"):
        load()
    with open(file, "r+b") as stream:
        stream.truncate(1000)
    with pytest.raises(InputError, match="could not be read .*; download it again"):
        load()
    file.unlink()
    with pytest.raises(InputError, match="no such file; expected it, or .*index.json"):
        load()
    transformer.save_pretrained(tmp_path, max_shard_size="50KB")
    shards = sorted(tmp_path.glob("diffusion_pytorch_model-*.safetensors"))
    assert len(shards) > 1 and load()
    shards[0].unlink()
    with pytest.raises(InputError, match=f"{shards[0].name}: no such file"):
        load()


@pytest.mark.parametrize(
    "name, expected", [("in_channels", 32), ("out_channels", 16), ("text_embed_dim", 32)]
)
def test_a_transformer_for_another_base_is_refused(model, tmp_path, name, expected):
    config = json.loads((model / "cognvs_ckpt_inpaint" / "config.json").read_text())
    assert config[name] == expected
    (tmp_path / "config.json").write_text(json.dumps(config | {name: 48}))
    with pytest.raises(InputError, match=f"got {name} 48; expected {expected}"):
        pipeline.transformer_config(model / "base", tmp_path)


@pytest.mark.parametrize("name", ["patch_size_t", "ofs_embed_dim"])
def test_a_transformer_of_another_architecture_is_refused(model, tmp_path, name):
    config = json.loads((model / "cognvs_ckpt_inpaint" / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {name: 2}))
    with pytest.raises(InputError, match=f"{name} 2, as of CogVideoX1.5"):
        pipeline.transformer_config(model / "base", tmp_path)


def test_a_base_as_save_pretrained_writes_it_has_a_tokenizer_json_alone(model, tmp_path):
    base = copy_base(model, tmp_path)
    (base / "tokenizer" / "spiece.model").unlink()
    assert (base / "tokenizer" / "tokenizer.json").is_file()
    computed, _ = pipeline.empty_prompt(base, 8, torch.float32)
    assert torch.equal(computed, embedding(model))
    (base / "tokenizer" / "tokenizer.json").unlink()
    with pytest.raises(InputError, match="got neither spiece.model nor tokenizer.json"):
        pipeline.encode_empty_prompt(base, 8, torch.float32)


def test_of_several_processes_one_loads_the_text_encoder(model, tmp_path, monkeypatch):
    base = copy_base(model, tmp_path)
    encode = pipeline.encode_empty_prompt
    loaded = []

    def slow(*args):
        loaded.append(args)
        time.sleep(0.3)
        return encode(*args)

    monkeypatch.setattr(pipeline, "encode_empty_prompt", slow)
    with ThreadPoolExecutor(3) as threads:
        calls = [threads.submit(pipeline.empty_prompt, base, 8, torch.float32) for _ in range(3)]
        embeddings = [call.result()[0] for call in calls]
    assert len(loaded) == 1 and torch.equal(embeddings[0], embeddings[2])


@pytest.mark.gpu
def test_a_seed_is_the_same_picture_on_the_gpu(model, pipe, clip):
    gpu = torch.device("cuda:0")
    weights = model / "cognvs_ckpt_inpaint"
    there = pipeline.load_pipeline(model / "base", weights, torch.float32, gpu)
    text = embedding(model)
    cpu = pipe.inpaint(clip, text, 5, torch.Generator().manual_seed(42))
    ours = there.inpaint(clip, text.to(gpu), 5, torch.Generator().manual_seed(42)).cpu()
    assert (cpu - ours).abs().mean() < 2 / 255
