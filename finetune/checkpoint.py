"""Checkpoints of a run, written whole or not at all.

    my_checkpoint-N_transformer/  finished weights, which demo.py loads; or _lora/, what was learnt beside those
    my_checkpoint-N_mean/         the running mean of the weights, of runs with ema_decay
    checkpoint-N/                 the state to resume from: DeepSpeed's folder, or optimizer.pt of the single modes

A folder's name ends in .part until it is whole. A state is begun first and named last, so that a checkpoint is
whole when its state is; what a kill leaves of one is known by checkpoint-N.part, and deleted by the next start.
"""

import json
import re
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
import safetensors.torch
import torch
from tqdm import tqdm

from utils import cogvideox, pipeline
from utils.cli import InputError

FACTS = "run.json"  # in a state: run_facts
STATE_FILES = ("latest", "optimizer.pt")  # of DeepSpeed; of the single modes
SHARD = "5GB"  # of a file of weights


# ---- what there is, and what to go on from -------------------------------------------------------------------------


def list_states(output_dir):
    """{step: folder} of the whole checkpoint-N folders of a run, in order."""
    found = {}
    for name in STATE_FILES:
        for file in Path(output_dir).glob(f"checkpoint-*/{name}"):
            if match := re.fullmatch(r"checkpoint-(\d+)", file.parent.name):
                found[int(match[1])] = file.parent
    return dict(sorted(found.items()))


def list_weights(output_dir):
    """{step: [folders]} of the whole my_checkpoint-N folders of a run, in order; means are among them."""
    found = {}
    for folder in sorted(Path(output_dir).glob("my_checkpoint-*")):
        match = re.fullmatch(r"my_checkpoint-(\d+)_(transformer|lora|mean)", folder.name)
        if match and not Path(output_dir, f"checkpoint-{match[1]}.part").is_dir():
            found.setdefault(int(match[1]), []).append(folder)
    return dict(sorted(found.items()))


def usable(state):
    """Whether a state can be gone on from: DeepSpeed's holds weights of its own, others need those beside it."""
    if (state / "latest").is_file():
        return True
    step = state.name.removeprefix("checkpoint-")
    return any(weights_folder(state.parent, step, kind).is_dir() for kind in ("sft", "lora"))


def find_resume(output_dir, resume):
    """(step, state folder) to go on from: the newest for "latest", else the folder given; (0, None) for ""."""
    output_dir = Path(output_dir)
    states = {step: state for step, state in list_states(output_dir).items() if usable(state)}
    if not resume:
        check_is_new(output_dir, states)
        return 0, None
    if resume == "latest":
        if not states:
            raise InputError(f"--resume_from_checkpoint latest: no whole checkpoint-N in {output_dir.resolve()}; "
                             + without_state(output_dir))
        step = max(states)
        return step, states[step]
    state = Path(resume)
    match = re.fullmatch(r"checkpoint-(\d+)", state.name)
    if not match or state not in list_states(state.parent).values():
        raise InputError(f"--resume_from_checkpoint {resume}: no whole checkpoint-N at {state.resolve()}; give a "
                         "folder that is there, latest, or nothing to start anew")
    step = int(match[1])
    if states and max(states) > step:
        raise InputError(f"{output_dir} already holds {states[max(states)].name}, later than {state.name}: move "
                         "it away, or choose another output_dir")
    return step, state


def check_is_new(output_dir, states):
    """InputError if a new run would mix its checkpoints with those of another one in `output_dir`."""
    if states:
        raise InputError(f"{output_dir} already holds {states[max(states)].name}: go on from it with "
                         "--resume_from_checkpoint latest, or choose another output_dir")
    if list_weights(output_dir) or list_states(output_dir):
        raise InputError(f"{output_dir} is of an earlier run; {without_state(output_dir)}")


def without_state(output_dir):
    """What to do about a folder from whose checkpoints no run can go on, as part of a message."""
    if weights := list_weights(output_dir):
        newest = weights[max(weights)][-1]
        return (f"it holds {newest.name} without its checkpoint-{max(weights)}, so its run cannot go on: choose another "
                f"output_dir, and perhaps --transformer_id {newest}")
    if states := list_states(output_dir):
        name = states[max(states)].name
        return f"its {name} has no my_{name}_transformer beside it: delete it, or choose another output_dir"
    return "leave the flag out to start anew"


def remove_leftovers(output_dir):
    """Delete what a killed run was writing, or deleting."""
    for folder in Path(output_dir).glob("my_checkpoint-*.part"):
        shutil.rmtree(folder)
    for state in Path(output_dir).glob("checkpoint-*.part"):
        for folder in state.parent.glob(f"my_{state.stem}_*"):
            shutil.rmtree(folder)
        shutil.rmtree(state)  # last, for the others are known by it


def run_facts(args, ranks):
    """What must stay as it was when a run goes on."""
    facts = {"memory": args.memory, "training_type": args.training_type, "processes": ranks}
    if args.training_type == "lora":
        weights = pipeline.fingerprint(pipeline.find_weights(args.transformer_id))
        facts |= {"rank": args.rank, "lora_alpha": args.lora_alpha, "fingerprint of transformer_id": weights}
    return facts


def check_resume(args, state, ranks):
    """InputError if the run that wrote a state was another one, or what goes with the state is not there."""
    if (state / FACTS).is_file():  # the published trainer writes none
        before = json.loads((state / FACTS).read_text())
        now = run_facts(args, ranks)
        for name in before.keys() | now.keys():
            if before.get(name) != now.get(name):
                raise InputError(f"{state} was made with {name} {before.get(name)}, got {now.get(name)}; go on with "
                                 "what it began with")
    weights_to_start(args, state)
    mean = mean_of(state)
    if args.ema_decay and not mean.is_dir():
        raise InputError(f"--ema_decay {args.ema_decay}: no {mean} to go on from; give 0")


# ---- weights to begin with -----------------------------------------------------------------------------------------


def weights_folder(output_dir, step, training_type):
    return Path(output_dir) / f"my_checkpoint-{step}_{'lora' if training_type == 'lora' else 'transformer'}"


def mean_of(state):
    """The folder of the running mean that belongs to a state."""
    return state.with_name(f"my_{state.name}_mean")


def weights_beside(args, state):
    """The weights of the step whose state is a folder."""
    folder = weights_folder(state.parent, state.name.removeprefix("checkpoint-"), args.training_type)
    if not folder.is_dir():
        raise InputError(f"{state}: its weights are not beside it; expected {folder}")
    return folder


def weights_to_start(args, state):
    """The weights folder that a run loads first: those it began with, or went on to."""
    if state is None or (state / "latest").is_file():  # DeepSpeed's state holds them
        return pipeline.find_weights(args.transformer_id)
    beside = weights_beside(args, state)
    return pipeline.find_weights(args.transformer_id) if args.training_type == "lora" else beside


def prepare_weights(args, transformer, state):
    """Choose what is trained: all weights, or a LoRA on every attention layer's projections that is added."""
    dtype = transformer.dtype
    if args.training_type == "sft":
        return transformer.requires_grad_(True)
    if state:
        pipeline.load_adapter(transformer, weights_beside(args, state))
    else:
        from peft import LoraConfig

        torch.manual_seed(args.seed)  # the global generator draws a LoRA's first weights
        config = LoraConfig(r=args.rank, lora_alpha=args.lora_alpha, target_modules=cogvideox.LORA_LAYERS)
        transformer.add_adapter(config)
    for name, p in transformer.named_parameters():
        p.requires_grad_("lora_" in name)
        p.data = p.data.to(dtype)
    return transformer


def make_mean(transformer, decay, step=0, folder=None):
    """The running mean of a transformer's parameters, float32, on its device: diffusers' EMAModel.

    It goes on from the mean in `folder`, after `step` steps, if one is given.
    """
    from diffusers.training_utils import EMAModel

    saved = {}
    for file in sorted(folder.glob("*.safetensors")) if folder else ():
        saved |= safetensors.torch.load_file(file, device=str(transformer.device))
    mean = EMAModel([], decay=decay)  # given the parameters, it would hold them twice at first
    for name, p in transformer.named_parameters():
        mean.shadow_params.append(saved.get(name, p).detach().to(torch.float32, copy=True))
    mean.optimization_step = step
    return mean


# ---- writing -------------------------------------------------------------------------------------------------------


def with_tensors(transformer, tensors):
    """A transformer of the same configuration that holds `tensors`, a state dict, without copying them."""
    with torch.device("meta"):
        other = type(transformer).from_config(transformer.config)
    other.load_state_dict(tensors, assign=True)
    return other


def on_host(transformer):
    """A copy in host memory."""
    tensors = {}
    for name, tensor in transformer.state_dict().items():
        tensors[name] = tensor.detach().to("cpu", copy=True)
    return with_tensors(transformer, tensors)


def has_room(transformer):
    """Whether a copy would take less than half of the host's free memory."""
    size = sum(tensor.nbytes for tensor in transformer.state_dict().values())
    return size < psutil.virtual_memory().available / 2


def save_mean(mean, transformer, folder):
    """Write the mean as a weights folder, float32."""
    tensors = {name: tensor.float() for name, tensor in transformer.named_buffers()}
    for (name, _), tensor in zip(transformer.named_parameters(), mean.shadow_params, strict=True):
        tensors[name] = tensor
    model = with_tensors(transformer, tensors)
    pipeline.save_whole(lambda new: model.save_pretrained(new, max_shard_size=SHARD), folder)


def save_weights(args, transformer, folder):
    """Weights in the layout that process_ckpts.sh makes, or a LoRA folder."""
    if args.training_type == "lora":
        start = pipeline.find_weights(args.transformer_id)
        pipeline.save_whole(lambda new: pipeline.save_adapter(transformer, new, start), folder)
    else:
        pipeline.save_whole(lambda new: transformer.save_pretrained(new, max_shard_size=SHARD), folder)


class Saver:
    """Writes the checkpoints of a run, one at a time, in a thread while training goes on.

    All weights are written there, from a copy, where there is a step to come and host memory for the copy.
    """

    def __init__(self, args, engine, transformer, mean=None):
        self.args = args
        self.engine = engine
        self.transformer = transformer
        self.mean = mean
        self.thread = ThreadPoolExecutor(1)
        self.writing = None  # the Future of the checkpoint that is being written

    def save(self, step, last):
        """Begin to write the checkpoint of a step, once that of the step before is written."""
        self.finish()
        state = self.snapshot(step)
        if self.engine.rank == 0:
            copy = None
            if self.args.training_type == "sft" and not last and has_room(self.transformer):
                copy = on_host(self.transformer)
            else:
                save_weights(self.args, self.transformer, self.weights(step))
            self.writing = self.thread.submit(self.write, step, state, copy)

    def finish(self):
        """Wait for the checkpoint that is being written, if there is one, and say where it is."""
        if self.writing:
            tqdm.write(f"wrote {self.writing.result()}")
            self.writing = None

    def weights(self, step):
        return weights_folder(self.args.output_dir, step, self.args.training_type)

    def snapshot(self, step):
        """All that must be written before the next step: optimizer states, by all ranks, and the mean.

        Returns the folder of the states, whose name still ends in .part, or None if none are to be kept.
        """
        state = self.args.output_dir / f"checkpoint-{step}.part"
        if self.engine.rank == 0:
            shutil.rmtree(state, ignore_errors=True)
        self.engine.wait()
        if self.args.checkpointing_limit:
            self.engine.save(state)
            self.engine.wait()
        if self.mean:
            save_mean(self.mean, self.transformer, self.args.output_dir / f"my_checkpoint-{step}_mean")
        return state if self.args.checkpointing_limit else None

    def write(self, step, state, copy):
        """Complete a checkpoint, in the thread: weights from their copy, if there is one, then the state.

        Returns the folder of the weights.
        """
        if copy is not None:
            save_weights(self.args, copy, self.weights(step))
        if state:
            self.transformer.save_config(state)
            facts = run_facts(self.args, self.engine.ranks)
            (state / FACTS).write_text(json.dumps(facts, indent=2) + "\n")
            state.replace(state.with_suffix(""))
        prune(self.args, step)
        return self.weights(step)


def prune(args, step):
    """Delete checkpoints of a run at `step` but for the newest checkpointing_limit; without states, but for one.

    A state goes before its weights, so that there is never one without. The weights that the run started from
    always stay.
    """
    for state in list(list_states(args.output_dir).values())[: -args.checkpointing_limit or None]:
        remove(state)
    weights = list_weights(args.output_dir)
    start = args.transformer_id.resolve()
    older = [number for number in weights if number <= step][: -max(1, args.checkpointing_limit)]
    for number in older:
        for folder in weights[number]:
            if folder.resolve() != start:
                remove(folder)


def remove(folder):
    """Delete a folder, which is not whole from the first moment on."""
    leaving = folder.with_name(f"{folder.name}.part")
    folder.replace(leaving)
    shutil.rmtree(leaving)
