"""The shipped small model, checkpoints/tiny, on the shipped sequence, whose exact new views are there."""

import shutil

import numpy as np
import pytest
import torch
from conftest import ROOT, call
from diffusers import CogVideoXDPMScheduler
from transformers import T5EncoderModel, T5Tokenizer

from toolbox.small_model import evaluate_method as evaluate
from utils import metrics, pipeline, video
from utils.cli import InputError

BASE, WEIGHTS = ROOT / "checkpoints" / "tiny" / "base", ROOT / "checkpoints" / "tiny" / "cognvs_ckpt_inpaint"


@pytest.fixture(scope="module")
def room(tmp_path_factory):
    """The shipped sequence with its evaluation render along traj2.txt."""
    room = shutil.copytree(ROOT / "demo_data" / "room", tmp_path_factory.mktemp("sequence") / "room")
    assert call("data_gen", "--data_path", room, "--mode", "eval", "--trajs", ROOT / "trajs" / "traj2.txt",
                "--intrinsics_file", "cam_info/megasam_intrinsics.npy", "--device", "cpu") == 0  # fmt: skip
    return room


def test_it_fills_holes_better_than_telea_and_finds_the_picture_again(room, tmp_path):
    assert call("demo", "--model_path", BASE, "--cognvs_ckpt_path", WEIGHTS, "--data_path", room, "--mp4_name",
                "eval_render1.mp4", "--num_inference_steps", 4, "--output_dir", tmp_path, "--device", "cpu") == 0
    names = "eval_render1", "eval_mask1", "novel_gt2"
    render, mask, truth = (video.read_video(room / f"{name}.mp4") for name in names)
    known = mask[..., 0] > 127
    ours = evaluate.scores(video.read_video(tmp_path / "eval_render1_out.mp4"), render, known, truth)
    telea = evaluate.scores(evaluate.telea(render, known), render, known, truth)
    assert ours["holes"] > telea["holes"] + 1.5 and ours["composite"] > telea["composite"] + 1
    assert ours["known"] > 24


def test_one_pass_equals_diffusers_guided_call(room):
    """Against diffusers' own __call__ with its text encoder, prompts "" and "" and guidance 6: within 1 of 255."""
    pipe = pipeline.load_pipeline(BASE, WEIGHTS, torch.float32, torch.device("cpu"))
    guided = pipeline.CogNVSPipeline(
        T5Tokenizer.from_pretrained(BASE / "tokenizer"), T5EncoderModel.from_pretrained(BASE / "text_encoder"),
        pipe.vae, pipeline.load_transformer(WEIGHTS, torch.float32),
        CogVideoXDPMScheduler.from_config(pipe.scheduler.config),
    )  # fmt: skip
    frames, height, width = pipe.clip_shape
    render = video.resize(video.read_video(room / "eval_render1.mp4"), height, width)
    clip = torch.from_numpy(render).permute(0, 3, 1, 2) / 255
    expected = guided(
        clip, prompt="", negative_prompt="", guidance_scale=6, num_frames=frames, height=height, width=width,
        num_inference_steps=5, max_sequence_length=8, generator=torch.Generator().manual_seed(42), output_type="pt",
    ).frames[0]  # fmt: skip
    embedding, _ = pipeline.empty_prompt(BASE, 8, torch.float32)
    ours = pipe.inpaint(clip, embedding, 5, torch.Generator().manual_seed(42))
    assert (ours - expected).abs().max() * 255 < 1
    filled = (ours - clip).abs().mean(1).numpy()[np.asarray(clip.amax(1) == 0)].mean()
    assert filled > 0.1 and metrics.psnr(ours.numpy(), expected.numpy()) > 50  # and there is a picture in the holes


def test_the_sampler_is_diffusers_own_but_reads_no_timestep_of_the_gpu():
    """To read one waits for the GPU; the meta device, whose numbers cannot be read, stands in for it."""
    config = CogVideoXDPMScheduler.from_pretrained(BASE, subfolder="scheduler", timestep_spacing="trailing").config
    ours, theirs = pipeline.Scheduler.from_config(config), CogVideoXDPMScheduler.from_config(config)
    for steps, dtype in ((4, torch.float32), (7, torch.bfloat16), (1, torch.float32)):
        outs = []
        for scheduler, device in ((ours, "meta"), (theirs, "cpu")):
            scheduler.set_timesteps(steps)
            rng = torch.Generator().manual_seed(steps)
            x, x0, back = torch.randn(1, 2, 3, 4, 5, generator=rng, dtype=dtype), None, None
            for t in scheduler.timesteps.to(device):
                x, x0 = scheduler.step(torch.sin(x.float()), x0, t, back, x, generator=rng, return_dict=False)
                x, back = x.to(dtype), t
            outs += [x, x0, torch.rand(1, generator=rng)]
        assert all(map(torch.equal, outs[:3], outs[3:]))


def test_a_base_with_another_sampler_is_refused_before_the_transformer_is_loaded(tmp_path):
    base = shutil.copytree(BASE, tmp_path / "base")
    config = base / "scheduler" / "scheduler_config.json"
    config.write_text(config.read_text().replace("v_prediction", "epsilon"))
    with pytest.raises(InputError, match="got a scheduler for epsilon; expected CogVideoX's, for v_prediction"):
        pipeline.load_pipeline(base, tmp_path / "no weights", torch.float32)


def test_fast_makes_fewer_passes_and_nearly_the_same_picture(room, tmp_path, capsys):
    pictures = []
    for extra in ((), ("--fast",)):
        assert call("demo", "--model_path", BASE, "--cognvs_ckpt_path", WEIGHTS, "--data_path", room, "--mp4_name",
                    "eval_render1.mp4", "--output_dir", tmp_path, "--crf", 0, "--overwrite", "--device", "cpu",
                    "--dtype", "fp32", *extra) == 0  # fmt: skip
        pictures.append(video.read_video(tmp_path / "eval_render1_out.mp4") / 255)
    assert "21 passes of the transformer" in capsys.readouterr().out
    assert 35 < metrics.psnr(*pictures) < 60
