"""Checkpoints of a run, written whole or not at all.

    my_checkpoint-N_transformer/  finished weights, which demo.py loads
    my_checkpoint-N_lora/         of a LoRA run: what was learnt beside the weights it started from
    my_checkpoint-N_mean/         the running mean of the weights, of runs with ema_decay
    checkpoint-N/                 the state to resume from: DeepSpeed's folder, or optimizer.pt

A folder's name ends in .part until it is whole. A state is begun first and named last, so that a
checkpoint is whole when its state is. What a kill leaves of one is known by checkpoint-N.part, and
deleted by the next start.
"""

import json
import re
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
import torch
from safetensors.torch import load_file
from tqdm import tqdm

from utils import cogvideox, pipeline
from utils.cli import InputError

FACTS = "run.json"  # in a state: run_facts
SHARD = "5GB"  # of a file of weights


# ---- what there is to go on from -----------------------------------------------------------------


def list_states(output_dir):
    """{step: folder} of the whole checkpoint-N folders of a run, in order."""
    found = {}
    for name in ("latest", "optimizer.pt"):  # of DeepSpeed; of the single modes
        for file in Path(output_dir).glob(f"checkpoint-*/{name}"):
            if match := re.fullmatch(r"checkpoint-(\d+)", file.parent.name):
                found[int(match[1])] = file.parent
    return dict(sorted(found.items()))


def list_weights(output_dir):
    """{step: folders} of the whole my_checkpoint-N folders of a run, means among them, in order."""
    found = {}
    for folder in sorted(Path(output_dir).glob("my_checkpoint-*")):
        match = re.fullmatch(r"my_checkpoint-(\d+)_(transformer|lora|mean)", folder.name)
        if match and not folder.with_name(f"checkpoint-{match[1]}.part").is_dir():
            found.setdefault(int(match[1]), []).append(folder)
    for step, folders in list(found.items()):
        if all(folder.name.endswith("_mean") for folder in folders):  # the weights never came
            del found[step]
    return dict(sorted(found.items()))


def usable(state):
    """Whether a run can go on from a state: the weights are beside it, or in it, as DeepSpeed's."""
    facts = state / FACTS
    lora = facts.is_file() and json.loads(facts.read_text())["training_type"] == "lora"
    beside = state.with_name(f"my_{state.name}_{'lora' if lora else 'transformer'}")
    return beside.is_dir() or (not lora and (state / "latest").is_file())


def find_resume(output_dir, resume):
    """(step, state) to go on from: the newest for "latest", else that folder; (0, None) for ""."""
    states = {step: state for step, state in list_states(output_dir).items() if usable(state)}
    if resume == "latest":
        if not states:
            raise InputError("--resume_from_checkpoint latest: no whole checkpoint-N in "
                             f"{output_dir.resolve()}; {way_out(output_dir)}")
        return max(states), states[max(states)]
    if resume:
        return given_state(resume, states)
    if states:
        raise InputError(f"{output_dir} already holds {states[max(states)].name}: go on from it "
                         "with --resume_from_checkpoint latest, or choose another output_dir")
    if list_weights(output_dir) or list_states(output_dir):
        raise InputError(f"{output_dir} is of an earlier run; {way_out(output_dir)}")
    return 0, None


def given_state(resume, states):
    """(step, state) for the folder `resume`. states: the usable ones of the output_dir."""
    state = Path(resume)
    match = re.fullmatch(r"checkpoint-(\d+)", state.name)
    if not match or state not in list_states(state.parent).values():
        raise InputError(f"--resume_from_checkpoint {resume}: no whole checkpoint-N at "
                         f"{state.resolve()}; give one that is there, or latest")
    step = int(match[1])
    if states and max(states) > step:
        raise InputError(f"{states[max(states)]} is there already, later than {state.name}: move "
                         "it away, or choose another output_dir")
    return step, state


def way_out(output_dir):
    """What to do about an output_dir without a usable state, to end a message."""
    weights = list_weights(output_dir)
    states = list_states(output_dir)
    if states:
        name = states[max(states)].name
        return (f"its {name} lacks the weights my_{name}_transformer or _lora: delete it, or "
                "choose another output_dir")
    if weights:
        newest = weights[max(weights)][-1]
        return (f"it holds {newest.name} without a state to go on from: choose another "
                f"output_dir, and to start from these weights --transformer_id {newest}")
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
        facts |= {"rank": args.rank, "lora_alpha": args.lora_alpha}
        facts["fingerprint of transformer_id"] = weights
    return facts


def check_resume(args, state, ranks):
    """InputError if a state is of another run, or what goes with it is not there."""
    if (state / FACTS).is_file():  # the published trainer writes none
        before = json.loads((state / FACTS).read_text())
        now = run_facts(args, ranks)
        for name in before.keys() | now.keys():
            if before.get(name) != now.get(name):
                raise InputError(f"{state} was made with {name} {before.get(name)}, got "
                                 f"{now.get(name)}; go on with what it began with")
    weights_to_start(args, state)
    if args.ema_decay and not mean_of(state).is_dir():
        raise InputError(f"--ema_decay {args.ema_decay}: no {mean_of(state)} to go on from; give 0")


# ---- the weights to begin with -------------------------------------------------------------------


def weights_folder(args, output_dir, step):
    """Where the weights of a step are, or will be."""
    kind = "lora" if args.training_type == "lora" else "transformer"
    return Path(output_dir) / f"my_checkpoint-{step}_{kind}"


def mean_of(state):
    """Where the running mean is that belongs to a state."""
    return state.with_name(f"my_{state.name}_mean")


def weights_beside(args, state):
    """The weights that belong to a state."""
    folder = weights_folder(args, state.parent, state.name.removeprefix("checkpoint-"))
    if not folder.is_dir():
        raise InputError(f"{state}: its weights are not beside it; expected {folder}")
    return folder


def weights_to_start(args, state):
    """The weights folder that a run loads first. state: to go on from, or None."""
    if state and not (state / "latest").is_file():  # DeepSpeed's holds weights of its own
        beside = weights_beside(args, state)
        if args.training_type == "sft":
            return beside
    return pipeline.find_weights(args.transformer_id)


def prepare_weights(args, transformer, state):
    """Choose what is trained: all weights, or a LoRA on every attention layer, which is added."""
    dtype = transformer.dtype
    if args.training_type == "sft":
        return transformer.requires_grad_(True)
    if state:
        pipeline.load_adapter(transformer, weights_beside(args, state))
    else:
        from peft import LoraConfig

        torch.manual_seed(args.seed)  # the global generator draws a LoRA's first weights
        layers = cogvideox.LORA_LAYERS
        transformer.add_adapter(
            LoraConfig(r=args.rank, lora_alpha=args.lora_alpha, target_modules=layers))
    for name, p in transformer.named_parameters():
        p.requires_grad_("lora_" in name)
        p.data = p.data.to(dtype)
    return transformer


def make_mean(transformer, decay, step=0, folder=None):
    """The running mean of a transformer's weights in float32, on its device: diffusers' EMAModel.

    folder: the mean after `step` steps to go on from, if there is one.
    """
    from diffusers.training_utils import EMAModel

    saved = {}
    for file in sorted(folder.glob("*.safetensors")) if folder else ():
        saved |= load_file(file, device=str(transformer.device))
    mean = EMAModel([], decay=decay)  # if it is given the weights, it holds them twice at first
    for name, p in transformer.named_parameters():
        mean.shadow_params.append(saved.get(name, p).detach().to(torch.float32, copy=True))
    mean.optimization_step = step
    return mean


# ---- writing -------------------------------------------------------------------------------------


def with_tensors(transformer, tensors):
    """A transformer of the same kind that holds `tensors`, a state dict, without copying them."""
    with torch.device("meta"):
        other = type(transformer).from_config(transformer.config)
    other.load_state_dict(tensors, assign=True)
    return other


def copy_to_host(transformer):
    """A copy in host memory; None unless it takes less than half of what is free."""
    tensors = transformer.state_dict()
    size = sum(tensor.nbytes for tensor in tensors.values())
    if size >= psutil.virtual_memory().available / 2:
        return None
    for name, tensor in tensors.items():
        tensors[name] = tensor.detach().to("cpu", copy=True)
    return with_tensors(transformer, tensors)


def save_mean(mean, transformer, folder):
    """Write the mean as a weights folder, float32."""
    tensors = {name: tensor.float() for name, tensor in transformer.named_buffers()}
    for (name, _), tensor in zip(transformer.named_parameters(), mean.shadow_params, strict=True):
        tensors[name] = tensor
    model = with_tensors(transformer, tensors)
    pipeline.save_whole(lambda new: model.save_pretrained(new, max_shard_size=SHARD), folder)


def save_weights(args, transformer, folder):
    """Write weights in the layout that process_ckpts.sh makes, or a LoRA."""

    def save(new):
        if args.training_type == "lora":
            start = pipeline.find_weights(args.transformer_id)
            pipeline.save_adapter(transformer, new, start)
        else:
            transformer.save_pretrained(new, max_shard_size=SHARD)

    pipeline.save_whole(save, folder)


class Saver:
    """Writes the checkpoints of a run, one at a time, in a thread while training goes on.

    All weights are written there, from a copy, if there is a step to come and memory for the copy.
    """

    def __init__(self, args, engine, transformer, mean=None):
        self.args = args
        self.engine = engine
        self.transformer = transformer
        self.mean = mean
        self.thread = ThreadPoolExecutor(1)
        self.writing = None  # the Future of the checkpoint that is being written

    def save(self, step, last):
        """Begin to write the checkpoint of a step, once the one before is written."""
        self.finish()
        state = self.snapshot(step)
        if self.engine.rank == 0:
            copy = None
            if self.args.training_type == "sft" and not last:
                copy = copy_to_host(self.transformer)
            weights = weights_folder(self.args, self.args.output_dir, step)
            if copy is None:
                save_weights(self.args, self.transformer, weights)
            self.writing = self.thread.submit(self.write, step, state, copy, weights)

    def finish(self):
        """Wait for the checkpoint that is being written, if there is one, and say where it is."""
        if self.writing:
            tqdm.write(f"wrote {self.writing.result()}")
            self.writing = None

    def snapshot(self, step):
        """Write what the next step changes: all processes' states, and the mean.

        Returns the folder of the states, named .part, or None if none are to be kept.
        """
        state = self.args.output_dir / f"checkpoint-{step}.part"
        if self.engine.rank == 0:
            shutil.rmtree(state, ignore_errors=True)
        self.engine.wait()
        if self.args.checkpointing_limit:
            self.engine.save(state)
            self.engine.wait()
        if self.mean:
            save_mean(self.mean, self.transformer, mean_of(state.with_suffix("")))
        return state if self.args.checkpointing_limit else None

    def write(self, step, state, copy, weights):
        """Complete a checkpoint: weights, if they are still to be written, then its state."""
        if copy is not None:
            save_weights(self.args, copy, weights)
        if state:
            self.transformer.save_config(state)
            facts = run_facts(self.args, self.engine.ranks)
            (state / FACTS).write_text(json.dumps(facts, indent=2) + "\n")
            shutil.rmtree(state.with_suffix(""), ignore_errors=True)  # if its weights were lost
            state.replace(state.with_suffix(""))
        prune(self.args, step)
        return weights


def prune(args, step):
    """Delete all but the newest checkpointing_limit checkpoints; 0 keeps one, without its state.

    A state goes before its weights. Weights that the run started from stay.
    """
    limit = args.checkpointing_limit
    states = [state for number, state in list_states(args.output_dir).items() if number <= step]
    for state in states[: max(0, len(states) - limit)]:
        remove(state)
    weights = list_weights(args.output_dir)
    steps = [number for number in weights if number <= step]
    for number in steps[: -max(1, limit)]:
        for folder in weights[number]:
            if folder.resolve() != args.transformer_id.resolve():
                remove(folder)


def remove(folder):
    """Delete a folder, which is not whole from the first moment on."""
    leaving = folder.with_name(f"{folder.name}.part")
    folder.replace(leaving)
    shutil.rmtree(leaving)
