"""Checkpoints of a run: DeepSpeed's own folder layout, written whole or not at all."""

import re
import shutil
from pathlib import Path

import torch
from diffusers.training_utils import EMAModel

from utils.cli import InputError

MEAN = "ema_transformer"  # folder in a checkpoint


def list_checkpoints(output_dir):
    """{step: folder} of the whole checkpoint-N folders of a run, in order."""
    folders = [folder.parent for folder in Path(output_dir).glob("checkpoint-*/latest")]
    return dict(sorted((int(m[1]), p) for p in folders if (m := re.fullmatch(r"checkpoint-(\d+)", p.name))))


def find_resume(output_dir, resume):
    """(step, folder) to go on from: the newest one for "latest", else the folder given; (0, None) for ""."""
    there = list_checkpoints(output_dir)
    if not resume:
        if there:
            raise InputError(f"{output_dir} already holds {there[max(there)].name}: go on from it with "
                             "--resume_from_checkpoint latest, or choose another output_dir")
        return 0, None
    if resume == "latest":
        if not there:
            raise InputError(f"--resume_from_checkpoint latest: no checkpoint-N folder in {Path(output_dir).resolve()}")
        return max(there), there[max(there)]
    match = re.fullmatch(r"checkpoint-(\d+)", Path(resume).name)
    if not match or not (Path(resume) / "latest").is_file():
        raise InputError(f"--resume_from_checkpoint {resume}: no DeepSpeed checkpoint-N at {Path(resume).resolve()}")
    if there and max(there) > int(match[1]):
        raise InputError(f"{output_dir} already holds {there[max(there)].name}, later than {Path(resume).name}: move "
                         "it away, or choose another output_dir")
    return int(match[1]), Path(resume)


def make_mean(transformer, decay, step=0, resume=None):
    """The running mean of a transformer's parameters in float32, gone on with from checkpoint `resume` of `step`."""
    model = transformer if resume is None else type(transformer).from_pretrained(resume / MEAN, local_files_only=True)
    mean = EMAModel([p.detach().to(transformer.device, torch.float32) for p in model.parameters()], decay=decay)
    mean.optimization_step = step
    return mean


def save_mean(mean, transformer, folder):
    """Write the mean as a weights folder, float32."""
    model = type(transformer).from_config(transformer.config)
    model.load_state_dict(transformer.state_dict())  # for what is no parameter
    mean.copy_to(model.parameters())
    model.save_pretrained(folder)


def save(accelerator, model, output_dir, step, limit, mean=None):
    """Write checkpoint-<step>: weights, optimizer state and the model's config.json; keep the newest `limit`."""
    final = Path(output_dir) / f"checkpoint-{step}"
    part = final.with_name(f"{final.name}.part")
    if accelerator.is_main_process:
        shutil.rmtree(part, ignore_errors=True)
    accelerator.wait_for_everyone()
    accelerator.save_state(str(part))
    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        accelerator.unwrap_model(model).save_config(part)
        if mean:
            save_mean(mean, accelerator.unwrap_model(model), part / MEAN)
        part.replace(final)
        for folder in list(list_checkpoints(output_dir).values())[:-limit]:
            shutil.rmtree(folder)
    accelerator.wait_for_everyone()
    return final
