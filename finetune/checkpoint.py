"""Checkpoints of a run, written whole or not at all.

    my_checkpoint-N_transformer/  finished weights, which demo.py loads; or _lora/, what was learnt beside those
    my_checkpoint-N_mean/         the running mean of the weights, of runs with ema_decay
    checkpoint-N/                 the state to resume from: DeepSpeed's folder, or optimizer.pt of the single modes
"""

import json
import re
import shutil
from pathlib import Path

import torch

from utils import cogvideox, pipeline
from utils.cli import InputError

FACTS = "run.json"  # in a state: run_facts


def list_checkpoints(output_dir):
    """{step: folder} of the whole checkpoint-N folders of a run, in order."""
    folders = [p.parent for name in ("latest", "optimizer.pt") for p in Path(output_dir).glob(f"checkpoint-*/{name}")]
    return dict(sorted((int(m[1]), p) for p in folders if (m := re.fullmatch(r"checkpoint-(\d+)", p.name))))


def find_resume(output_dir, resume):
    """(step, folder) to go on from: the newest one for "latest", else the folder given; (0, None) for ""."""
    there = list_checkpoints(output_dir)
    if not resume:
        finished = sorted(Path(output_dir).glob("my_checkpoint-*"))
        if there or finished:
            name = there[max(there)].name if there else finished[0].name
            raise InputError(f"{output_dir} already holds {name}: go on from its state with "
                             "--resume_from_checkpoint latest, or choose another output_dir")
        return 0, None
    if resume == "latest":
        if not there:
            raise InputError(f"--resume_from_checkpoint latest: no checkpoint-N folder in {Path(output_dir).resolve()}")
        return max(there), there[max(there)]
    match = re.fullmatch(r"checkpoint-(\d+)", Path(resume).name)
    if not match or Path(resume) not in list_checkpoints(Path(resume).parent).values():
        raise InputError(f"--resume_from_checkpoint {resume}: no whole checkpoint-N at {Path(resume).resolve()}")
    if there and max(there) > int(match[1]):
        raise InputError(f"{output_dir} already holds {there[max(there)].name}, later than {Path(resume).name}: move "
                         "it away, or choose another output_dir")
    return int(match[1]), Path(resume)


def run_facts(args, ranks):
    """What must stay as it was when a run goes on."""
    facts = {"memory": args.memory, "training_type": args.training_type, "processes": ranks}
    if args.training_type == "lora":
        weights = pipeline.fingerprint(pipeline.find_weights(args.transformer_id))
        facts |= {"rank": args.rank, "lora_alpha": args.lora_alpha, "fingerprint of transformer_id": weights}
    return facts


def check_resume(args, resume, ranks):
    """InputError if the run that wrote the state `resume` was another one."""
    if not (resume / FACTS).is_file():  # of the published trainer
        return
    before, now = json.loads((resume / FACTS).read_text()), run_facts(args, ranks)
    for name in before.keys() | now.keys():
        if before.get(name) != now.get(name):
            raise InputError(f"{resume} was made with {name} {before.get(name)}, got {now.get(name)}; go on with what "
                             "it began with")


def mean_folder(output_dir, step):
    return Path(output_dir) / f"my_checkpoint-{step}_mean"


def make_mean(transformer, decay, step=0, folder=None):
    """The running mean of a transformer's parameters in float32, gone on with from its `folder` after `step` steps."""
    from diffusers.training_utils import EMAModel

    model = transformer if folder is None else type(transformer).from_pretrained(folder, local_files_only=True)
    mean = EMAModel([p.detach().to(transformer.device, torch.float32) for p in model.parameters()], decay=decay)
    mean.optimization_step = step
    return mean


def save_mean(mean, transformer, folder):
    """Write the mean as a weights folder, float32."""
    model = type(transformer).from_config(transformer.config)
    model.load_state_dict(transformer.state_dict())  # for what is no parameter
    mean.copy_to(model.parameters())
    pipeline.save_whole(model.save_pretrained, folder)


def weights_folder(output_dir, step, training_type):
    return Path(output_dir) / f"my_checkpoint-{step}_{'lora' if training_type == 'lora' else 'transformer'}"


def weights_beside(args, resume):
    """The weights of the step whose state is the folder `resume`."""
    folder = weights_folder(resume.parent, resume.name.removeprefix("checkpoint-"), args.training_type)
    if not folder.is_dir():
        raise InputError(f"{resume}: its weights are not beside it; expected {folder}")
    return folder


def weights_to_start(args, resume):
    """The weights folder that a run loads first: those it began with, or went on to."""
    if resume is None or args.training_type == "lora" or (resume / "latest").is_file():  # DeepSpeed's state holds them
        return pipeline.find_weights(args.transformer_id)
    return weights_beside(args, resume)


def prepare_weights(args, transformer, resume):
    """Choose what is trained: all weights, or a LoRA on every attention layer's projections that is added."""
    dtype = transformer.dtype
    if args.training_type == "sft":
        return transformer.requires_grad_(True)
    if resume:
        pipeline.load_adapter(transformer, weights_beside(args, resume))
    else:
        from peft import LoraConfig

        torch.manual_seed(args.seed)  # the global generator draws a LoRA's first weights
        transformer.add_adapter(LoraConfig(r=args.rank, lora_alpha=args.lora_alpha, target_modules=cogvideox.LORA_LAYERS))
    for name, p in transformer.named_parameters():
        p.requires_grad_("lora_" in name)
        p.data = p.data.to(dtype)
    return transformer


def save_weights(args, transformer, folder):
    """Weights in the layout that process_ckpts.sh makes, or a LoRA folder."""
    if args.training_type == "lora":
        start = pipeline.find_weights(args.transformer_id)
        pipeline.save_whole(lambda part: pipeline.save_adapter(transformer, part, start), folder)
    else:
        pipeline.save_whole(lambda part: transformer.save_pretrained(part, max_shard_size="5GB"), folder)


def on_host(transformer):
    """A copy in host memory."""
    with torch.device("meta"):
        copy = type(transformer).from_config(transformer.config)
    state = {name: tensor.detach().to("cpu", copy=True) for name, tensor in transformer.state_dict().items()}
    copy.load_state_dict(state, assign=True)
    return copy


def has_room(transformer):
    """Whether a copy would take less than half of the host's free memory."""
    import psutil

    size = sum(tensor.nbytes for tensor in transformer.state_dict().values())
    return size < psutil.virtual_memory().available / 2


def save(args, engine, transformer, step, writer, mean=None):
    """Write the weights of a step, and the state to resume from if any are to be kept. Rank 0 gets the Future of what
    `writer`, an Executor, does of it while training goes on; its result is the weights' folder. Other ranks get None.

    All weights are written there, from a copy, where there is a step to come and host memory for the copy.
    """
    weights, final = weights_folder(args.output_dir, step, args.training_type), args.output_dir / f"checkpoint-{step}"
    part = final.with_name(f"{final.name}.part")
    if engine.rank == 0:
        shutil.rmtree(part, ignore_errors=True)
    engine.wait()
    if args.checkpointing_limit:
        engine.save(part)
        engine.wait()
    if engine.rank:
        return None
    if mean:
        save_mean(mean, transformer, mean_folder(args.output_dir, step))
    later = args.training_type == "sft" and step < args.train_epochs and has_room(transformer)
    copy = on_host(transformer) if later else None
    if copy is None:
        save_weights(args, transformer, weights)

    def finish():
        if copy is not None:
            save_weights(args, copy, weights)
        if args.checkpointing_limit:
            transformer.save_config(part)
            (part / FACTS).write_text(json.dumps(run_facts(args, engine.ranks), indent=2) + "\n")
            part.replace(final)
            for folder in list(list_checkpoints(args.output_dir).values())[: -args.checkpointing_limit]:
                shutil.rmtree(folder)
        return weights

    return writer.submit(finish)  # nobody else holds the copy, which is freed when it is written
