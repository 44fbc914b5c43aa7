"""Who trains: what accelerate_config.yaml and its DeepSpeed JSON mean here.

Files that `accelerate config` writes are read too. A key is used, or changes nothing here, or must
have the value that this trainer works with: anything else is refused by its name.
"""

import json
import re
from dataclasses import dataclass
from pathlib import Path

import yaml

from utils.cli import InputError, short

MOST_BYTES = 2**14  # of a file
MOST = 4096  # processes, machines
TAKEN_OUT = ("train_batch_size", "train_micro_batch_size_per_gpu", "gradient_accumulation_steps",
             "gradient_clipping", "optimizer", "scheduler", "fp16", "amp")  # the script says them
OURS = Path(__file__).parent / "configs" / "zero2.json"

BF16 = "memory=zero2 trains in bf16"
DEEPSPEED = "memory=zero2 is DeepSpeed's"
SCRIPT = "finetune_cognvs.sh says that"
EACH = "the script is started on each machine"
ANY = None  # a value that is used by read(), or that changes nothing here


def known_keys(args):
    """The keys of accelerate_config.yaml, and those of its deepspeed_config: two dicts.

    A key's value is ANY, or the values that it may have (the first one is asked for) and why. "no"
    stands for all that says nothing.
    """
    top = dict.fromkeys("""deepspeed_config gpu_ids machine_rank main_process_ip main_process_port
        num_machines num_processes use_cpu
        command_file commands debug downcast_bf16 enable_cpu_affinity ipex_config
        main_training_function mpirun_config rdzv_backend same_network tpu_cluster tpu_env tpu_name
        tpu_use_cluster tpu_use_sudo tpu_vm tpu_zone use_xpu""".split(), ANY)
    top |= {
        "compute_environment": (("LOCAL_MACHINE",), EACH),
        "distributed_type": (("DEEPSPEED",), DEEPSPEED + "; memory=single needs no such file"),
        "mixed_precision": (("bf16", "no"), BF16),
        "fp16": (("no",), BF16),
        "fp8_config": (("no",), BF16),
        "fsdp_config": (("no",), DEEPSPEED),
        "megatron_lm_config": (("no",), DEEPSPEED),
        "parallelism_config": (("no",), DEEPSPEED),
        "dynamo_backend": (("no",), SCRIPT),
        "dynamo_config": (("no",), SCRIPT),
    }
    section = dict.fromkeys("""deepspeed_config_file deepspeed_multinode_launcher
        deepspeed_moe_layer_cls_names offload_optimizer_nvme_path offload_param_nvme_path
        zero3_init_flag zero3_save_16bit_model""".split(), ANY)
    section |= {
        "zero_stage": ((2,), "memory=zero2 is stage 2"),
        "gradient_accumulation_steps": ((args.gradient_accumulation_steps, "no", "auto"), SCRIPT),
        "gradient_clipping": ((args.max_grad_norm, "no", "auto"), SCRIPT),
        "offload_optimizer_device": (offloaded(args), "memory=zero2_offload does that"),
        "offload_param_device": (("no",), "memory=zero2_offload keeps optimizer states there"),
        "deepspeed_hostfile": (("no",), EACH),
        "deepspeed_exclusion_filter": (("no",), EACH),
        "deepspeed_inclusion_filter": (("no",), EACH),
    }
    return top, section


def offloaded(args):
    """What a file may say of where optimizer states lie."""
    return ("no", "cpu") if args.memory == "zero2_offload" else ("no",)


@dataclass
class Hosts:
    """The processes of a run. All counts are of all machines together."""

    processes: int = 1
    machines: int = 1
    machine: int = 0  # this one, counted from 0
    gpu_ids: str = "all"  # of this machine: all, numbers such as "0,1", or "" for the CPU
    ip: str = "127.0.0.1"  # of machine 0
    port: int = 0  # there; 0: a free one
    deepspeed: str = ""  # DeepSpeed's configuration, as JSON

    @property
    def here(self):
        """The number of this machine's processes."""
        return self.processes // self.machines


class Strict(yaml.SafeLoader):
    """YAML in which no key is there twice, and 5e8 is a number as in JSON."""

    def construct_mapping(self, node, deep=False):
        names = [key.value for key, _ in node.value]
        for name in names:
            if names.count(name) > 1:
                raise yaml.MarkedYAMLError(problem=f"{name} is there twice",
                                           problem_mark=node.start_mark)
        return super().construct_mapping(node, deep)


Strict.add_implicit_resolver("tag:yaml.org,2002:float",
                             re.compile(r"^[-+]?\d+(\.\d*)?[eE][-+]?\d+$"), list("-+0123456789"))


def read_table(path, name):
    """The dict that a YAML or JSON file holds. name: what the file is, for InputError."""
    if not path.is_file():
        raise InputError(f"{name} {short(path)}: no such file")
    if path.stat().st_size > MOST_BYTES:
        raise InputError(f"{name} {path}: got {path.stat().st_size} bytes; expected a small text")
    try:
        text = path.read_text("utf-8-sig")
        table = parse(text)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        where = f"line {mark.line + 1}: " if mark else ""
        raise InputError(f"{name} {path}: {where}{short(error.problem)}; expected YAML such as "
                         "accelerate_config.yaml holds") from error
    except (yaml.YAMLError, ValueError, TypeError, RecursionError) as error:
        raise InputError(f"{name} {path}: is not YAML: {short(error)}") from error
    if not isinstance(table, dict):
        raise InputError(f"{name} {path}: got {short(table, 60)}; expected lines such as key: "
                         "value")
    return table


def parse(text):
    """What a text of JSON or YAML says; of JSON, which allows tabs, first."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return yaml.load(text, Loader=Strict)


def plain(value):
    """A value as a word: "no" for None, False, no, none, an empty one, and a dict of such."""
    if isinstance(value, dict):
        value = "no" if all(plain(each) == "no" for each in value.values()) else value
    word = str(value).strip().lower()
    return "no" if word in ("none", "false", "no", "", "[]") else word


def fits(value, values):
    """Whether a value of a file is one of `values`, words and numbers."""
    word = plain(value)
    for each in values:
        if word == str(each).lower() or (not isinstance(each, str) and number(word) == each):
            return True
    return False


def number(word):
    """The number that a word is, or None."""
    try:
        return float(word)
    except ValueError:
        return None


def read(path, args):
    """The Hosts of an accelerate_config.yaml. Raises InputError.

    args: memory, batch_size, gradient_accumulation_steps and max_grad_norm of the run.
    """
    name = f"accelerate_config {path}"
    table = read_table(path, "accelerate_config")
    section = table.get("deepspeed_config") or {}
    if not isinstance(section, dict):
        refuse(name, "deepspeed_config", section, "keys such as deepspeed_config_file below it")
    for part, known in zip((table, section), known_keys(args), strict=True):
        check_keys(name, part, known)
    hosts = Hosts(whole(name, table, "num_processes", 1, MOST),
                  whole(name, table, "num_machines", 1, MOST))
    if hosts.processes % hosts.machines:
        refuse(name, "num_processes", hosts.processes, "a multiple of num_machines "
               f"{hosts.machines}, for it counts those of all machines")
    hosts.gpu_ids = gpu_ids(name, table)
    hosts.port = whole(name, table, "main_process_port", 0, 65535)
    if hosts.machines > 1:
        add_machines(name, hosts, table, section)
    hosts.deepspeed = json.dumps(read_deepspeed(find_deepspeed(section), args, hosts))
    return hosts


def refuse(name, key, got, expected):
    raise InputError(f"{name}: {key}: got {short(got, 60)}; expected {expected}")


def check_keys(name, table, known):
    """InputError for a key that is not known, or whose value this trainer does not work with."""
    for key, value in table.items():
        if key not in known:
            raise InputError(f"{name}: {short(key, 60)}: is no key that is known there; expected "
                             "those that `accelerate config` writes; take the line out")
        if known[key] and not fits(value, known[key][0]):
            values, why = known[key]
            refuse(name, key, value, f"{values[0]}: {why}")


def whole(name, table, key, least, most):
    """A whole number of the table; `least` if it is not there."""
    value = table.get(key)
    if plain(value) == "no" and value is not False:
        return least
    word = str(value).strip()
    if not re.fullmatch(r"\d{1,9}", word, re.ASCII) or not least <= int(word) <= most:
        refuse(name, key, value, f"a whole number from {least} to {most}")
    return int(word)


def gpu_ids(name, table):
    """Of Hosts: of the table."""
    value = table.get("gpu_ids")
    if plain(table.get("use_cpu")) != "no":
        return ""
    if isinstance(value, list):
        value = ",".join(map(str, value))
    word = re.sub(r"\s", "", "all" if plain(value) == "no" else str(value))
    if not re.fullmatch(r"all|\d+(,\d+)*", word, re.ASCII):
        refuse(name, "gpu_ids", value, "all, or numbers such as 0,1")
    return word


def add_machines(name, hosts, table, section):
    """What only a run on several machines needs."""
    launcher = section.get("deepspeed_multinode_launcher")
    if launcher != "standard":
        refuse(name, "deepspeed_multinode_launcher", launcher, f"standard: {EACH}")
    hosts.machine = whole(name, table, "machine_rank", 0, hosts.machines - 1)
    hosts.ip = table.get("main_process_ip")
    if not isinstance(hosts.ip, str) or not hosts.ip.strip():
        refuse(name, "main_process_ip", hosts.ip, "the address of machine 0")
    hosts.ip = hosts.ip.strip()
    hosts.port = hosts.port or 29500  # accelerate's


def find_deepspeed(section):
    """The path of DeepSpeed's configuration, relative to finetune/.

    The published configs/zero2.yaml, which is not there, stands for configs/zero2.json.
    """
    named = section.get("deepspeed_config_file")
    path = OURS if plain(named) == "no" else OURS.parents[1] / str(named)
    published = path.parts[-2:] == ("configs", "zero2.yaml") and not path.exists()
    return OURS if published else path


def read_deepspeed(path, args, hosts):
    """DeepSpeed's configuration without what the script says: a dict. Raises InputError."""
    name = f"deepspeed_config_file {path}"
    table = read_table(path, "deepspeed_config_file")
    for key in ("zero_optimization", "bf16"):
        if not isinstance(table.get(key), dict):
            refuse(name, key, table.get(key), "a part such as configs/zero2.json has")
    zero = table["zero_optimization"]
    batch = args.batch_size * args.gradient_accumulation_steps * hosts.processes
    for part, key, values, why in (
        (zero, "stage", (2,), "memory=zero2 is stage 2"),
        (table["bf16"], "enabled", ("true", "auto"), BF16),
        (table, "train_batch_size", (batch, "auto", "no"), SCRIPT),
        (table, "train_micro_batch_size_per_gpu", (args.batch_size, "auto", "no"), SCRIPT),
        (table, "gradient_accumulation_steps",
         (args.gradient_accumulation_steps, "auto", "no"), SCRIPT),
        (table, "gradient_clipping", (args.max_grad_norm, "auto", "no"), SCRIPT),
        (table, "optimizer", ("no",), SCRIPT),
        (table, "scheduler", ("no",), SCRIPT),
        (switch(table, "fp16", "enabled"), "enabled", ("no", "auto"), BF16),
        (switch(table, "amp", "enabled"), "enabled", ("no", "auto"), BF16),
        (switch(zero, "offload_optimizer", "device"), "device", offloaded(args),
         "memory=zero2_offload does that"),
        (switch(zero, "offload_param", "device"), "device", ("no",), "memory=zero2 is stage 2"),
    ):
        if not fits(part.get(key), values):
            refuse(name, key, part.get(key), f"{values[0]}: {why}")
    for key in TAKEN_OUT:
        table.pop(key, None)
    table["bf16"]["enabled"] = True
    return table


def switch(table, name, key):
    """A part of a table; a value that is none counts as that of its `key`."""
    part = table.get(name)
    return part if isinstance(part, dict) else {key: part}
