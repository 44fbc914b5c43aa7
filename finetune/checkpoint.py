"""Checkpoints of a run, written whole or not at all.

    my_checkpoint-N_transformer/  finished weights, which demo.py loads
    my_checkpoint-N_lora/         of a LoRA run: what was learnt beside the weights it started from
    my_checkpoint-N_mean/         the running mean of the weights, of runs with ema_decay
    checkpoint-N/                 the state to resume from: DeepSpeed's folder, or optimizer.pt

A folder's name ends in .part until it is whole. checkpoint-N.part is made first, then the weights
are written, then the state in it, and last it gets its name. So what a kill leaves of a checkpoint
is known by checkpoint-N.part, and deleted by the next start. If the disk fills, whole weights stay.
"""

import json
import re
import shutil
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
import torch
from safetensors.torch import load_file
from tqdm import tqdm

from utils import cogvideox, files, pipeline
from utils.cli import InputError

FACTS = "run.json"  # in a state: run_facts
TAG = "pytorch_model"  # the folder in a state of DeepSpeed that accelerate reads
SHARD = "5GB"  # of a file of weights
SAFE = (  # what the pickles of a state call, beside what torch.load always allows
    "torchao.optim.subclass_8bit.OptimState8bit",
    "deepspeed.runtime.fp16.loss_scaler.LossScaler",
    "deepspeed.runtime.zero.config.ZeroStageEnum",
    "deepspeed.utils.tensor_fragment.fragment_address",
    "_codecs.encode", "numpy.dtype", "numpy.dtypes.UInt32DType", "numpy.ndarray",
    "numpy._core.multiarray._reconstruct", "numpy.core.multiarray._reconstruct",
)
UNWRITABLE = (OSError, RuntimeError)  # what Python and torch raise


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
    lora = facts_of(state).get("training_type") == "lora"
    beside = state.with_name(f"my_{state.name}_{'lora' if lora else 'transformer'}")
    return beside.is_dir() or (not lora and (state / "latest").is_file())


def facts_of(state):
    """run_facts of the run that made a state; {} of the published trainer's, which has none."""
    path = state / FACTS
    if not path.is_file():
        return {}
    try:
        return files.read_json(path)
    except InputError as error:
        raise InputError(f"{error}; delete {state.name} if there is an earlier one, or choose "
                         "another output_dir") from error


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
    for old in Path(output_dir).glob("*checkpoint-*.old"):
        pipeline.bring_back(old.with_suffix(""))
    for state in Path(output_dir).glob("checkpoint-*.part"):
        for folder in state.parent.glob(f"my_{state.stem}_*"):
            shutil.rmtree(folder)
        shutil.rmtree(state)  # last, for the others are known by it
    for folder in Path(output_dir).glob("my_checkpoint-*.part"):
        shutil.rmtree(folder)
    for pattern in ("settings.json.part", "train_*.part", "validation/*.part"):
        for file in Path(output_dir).glob(pattern):
            file.unlink()


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
    before = facts_of(state)
    now = run_facts(args, ranks) if before else {}
    for name in before.keys() | now.keys():
        if before.get(name) != now.get(name):
            raise InputError(f"{state} was made with {name} {before.get(name)}, got "
                             f"{now.get(name)}; go on with what it began with")
    check_files(state)
    if (state / "latest").is_file():
        check_deepspeed(state, ranks)
    weights_to_start(args, state)
    if args.ema_decay and not mean_of(state).is_dir():
        raise InputError(f"--ema_decay {args.ema_decay}: no {mean_of(state)} to go on from; give 0")
    if args.ema_decay:
        pipeline.check_weights(pipeline.CogVideoXTransformer3DModel, mean_of(state))


def check_files(state):
    """InputError if a file of a state is broken, or a pickle that calls more than a state needs.

    What a pickle calls is looked up without unpickling it.
    """
    for path in sorted(state.rglob("*")):
        if path.suffix not in (".pt", ".pkl", ".bin"):
            continue
        try:
            called = set(torch.serialization.get_unsafe_globals_in_checkpoint(path))
        except (ValueError, RuntimeError, OSError, KeyError, IndexError) as error:
            reason = " ".join(str(error).split())[:100]
            raise InputError(f"{path}: not a whole file of a state ({reason}); go on from another "
                             "checkpoint, or start anew in another output_dir") from error
        if strange := sorted(called.difference(SAFE)):
            raise InputError(f"{path}: calls {strange[0]}, which no state of training needs, so it "
                             "may run whatever its author wants; it was not opened: go on from a "
                             "checkpoint that you trust")


def check_deepspeed(state, ranks):
    """InputError unless a state of DeepSpeed holds the files of all processes, in itself."""
    name = (state / "latest").read_text(errors="replace").strip()
    folder = state / TAG
    if name != TAG or folder.resolve().parent != state.resolve():
        raise InputError(f"{state / 'latest'}: names {name[:100]!r}; expected {TAG}, the folder "
                         "beside it")
    missing = ["mp_rank_00_model_states.pt"]
    missing += [f"*zero_pp_rank_{rank}_mp_rank_00_optim_states.pt" for rank in range(ranks)]
    for pattern in missing:
        if not any(folder.glob(pattern)):
            raise InputError(f"{folder}: no {pattern}; expected a file of each of {ranks} "
                             "processes; go on from another checkpoint")


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


def to_host(value):
    """A copy in host memory of a tensor, or of all tensors in dicts and lists."""
    if isinstance(value, dict):
        return {name: to_host(item) for name, item in value.items()}
    if isinstance(value, list):
        return [to_host(item) for item in value]
    if not torch.is_tensor(value):
        return value
    if not hasattr(value, "__tensor_flatten__"):
        return value.detach().to("cpu", copy=True)
    names, context = value.__tensor_flatten__()  # torchao's, of which .to() makes no copy
    inner = {name: to_host(getattr(value, name)) for name in names}
    return type(value).__tensor_unflatten__(inner, context, value.shape, value.stride())


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
    """Writes the checkpoints of a run, one at a time.

    Where one process holds all and there is host memory for copies of weights and state, a thread
    writes the copies while training goes on. A mean, which is not copied, a LoRA, which is small,
    and the last checkpoint are written at once.

    sizes: a disk.Sizes.
    """

    def __init__(self, args, engine, transformer, mean, sizes):
        self.args = args
        self.engine = engine
        self.transformer = transformer
        self.mean = mean
        self.sizes = sizes
        self.thread = ThreadPoolExecutor(1)
        self.writing = None  # the Future of the checkpoint that is being written

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self.thread.shutdown()  # once what is being written is whole

    def save(self, step, last):
        """Write the checkpoint of a step, or begin to, once the one before is written."""
        self.finish()
        if self.engine.whole and self.engine.rank:
            return
        part = self.args.output_dir / f"checkpoint-{step}.part"
        if self.engine.rank == 0:
            shutil.rmtree(part, ignore_errors=True)
            part.mkdir()
        self.wait()
        if last or not self.copies_fit():
            self.say(self.write(part, self.transformer, self.engine.state()))
            return
        copy = with_tensors(self.transformer, to_host(self.transformer.state_dict()))
        self.writing = self.thread.submit(self.write, part, copy, to_host(self.engine.state()))

    def copies_fit(self):
        """Whether weights and state can be copied: they take less than half of what is free."""
        if not self.engine.whole or self.mean or self.args.training_type == "lora":
            return False
        return self.sizes.all < psutil.virtual_memory().available / 2

    def look(self):
        """Say what has been written meanwhile; end if it could not be."""
        if self.writing and self.writing.done():
            self.finish()

    def finish(self):
        """Wait for the checkpoint that is being written, if there is one."""
        if self.writing:
            self.say(self.writing.result())
            self.writing = None

    def wait(self):
        """Until all processes that write are here."""
        if not self.engine.whole:
            self.engine.wait()

    def say(self, folder):
        if self.engine.rank == 0:
            tqdm.write(f"wrote {folder}")

    def write(self, part, transformer, state):
        """Write a checkpoint into `part` and beside it; the folder of its weights."""
        step = part.stem.removeprefix("checkpoint-")
        folder = weights_folder(self.args, self.args.output_dir, step)
        try:
            if self.engine.rank == 0:
                self.sizes.check_free(part, "weights", "mean")
                save_weights(self.args, transformer, folder)
                if self.mean:
                    save_mean(self.mean, transformer, mean_of(part.with_suffix("")))
                self.sizes.check_free(part, "state")
            self.wait()
            if self.args.checkpointing_limit:
                self.engine.save(part, state)
                self.wait()
            if self.engine.rank == 0:
                self.complete(part)
                prune(self.args, int(step))
        except UNWRITABLE as error:
            give_up(self.args, part, error)
        return folder

    def complete(self, part):
        """Give a state its name."""
        if not self.args.checkpointing_limit:
            part.rmdir()
            return
        self.transformer.save_config(part)
        facts = run_facts(self.args, self.engine.ranks)
        (part / FACTS).write_text(json.dumps(facts, indent=2) + "\n")
        pipeline.put_in_place(part, part.with_suffix(""))


def give_up(args, part, error):
    """Delete what was being written and end with exit code 2; whole weights stay.

    Of several processes, all of which end here, the one says why that takes the state away.
    """
    leaving = part.with_name(f"{part.stem}.gone.part")
    try:
        part.replace(leaving)
    except FileNotFoundError:
        while leaving.exists():  # for the launcher ends all when one ends
            time.sleep(0.1)
        raise SystemExit(2) from error
    left = shutil.disk_usage(args.output_dir).free / 2**20
    reason = f"{' '.join(str(error).split())[:200]}; {left:.1f} MiB are free"
    tqdm.write(f"error: {part.with_suffix('')} could not be written ({reason}); "
               f"{kept(args.output_dir)}; free some space, or write elsewhere", file=sys.stderr)
    for folder in (leaving, *args.output_dir.glob(f"my_{part.stem}_*.part")):
        shutil.rmtree(folder, ignore_errors=True)
    raise SystemExit(2) from error


def kept(output_dir):
    """Which checkpoints there are and how to go on from them, in words."""
    weights = list_weights(output_dir)
    states = [state for state in list_states(output_dir).values() if usable(state)]
    words = "no checkpoint is kept"
    if weights:
        words = f"the weights {weights[max(weights)][-1].name} are kept"
    if states:
        words += f"; {states[-1].name} is there to go on: --resume_from_checkpoint latest"
    return words


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
    leaving = folder.with_name(f"{folder.name}.gone.part")
    folder.replace(leaving)
    shutil.rmtree(leaving)
