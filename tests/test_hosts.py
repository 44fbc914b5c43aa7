"""accelerate_config.yaml and DeepSpeed's configuration: every file is read right or refused."""

import json
import random
import re
from types import SimpleNamespace

import pytest
from conftest import ROOT

from finetune import hosts
from utils.cli import InputError

SHIPPED = (ROOT / "finetune" / "accelerate_config.yaml").read_text()
ZERO2 = json.loads((ROOT / "finetune" / "configs" / "zero2.json").read_text())
# As `accelerate config` 1.15 writes the answers for two GPUs and DeepSpeed without a JSON.
ANSWERED = """compute_environment: LOCAL_MACHINE
debug: false
deepspeed_config:
  gradient_accumulation_steps: 1
  gradient_clipping: 1.0
  offload_optimizer_device: none
  offload_param_device: none
  zero3_init_flag: false
  zero_stage: 2
distributed_type: DEEPSPEED
downcast_bf16: 'no'
enable_cpu_affinity: false
machine_rank: 0
main_training_function: main
mixed_precision: bf16
num_machines: 1
num_processes: 2
rdzv_backend: static
same_network: true
tpu_env: []
tpu_use_cluster: false
tpu_use_sudo: false
use_cpu: false
"""
# As the published repository has it.
PUBLISHED = """compute_environment: LOCAL_MACHINE

gpu_ids: "0,1"
num_processes: 2  # should be the same as the number of GPUs
debug: false
deepspeed_config:
  deepspeed_config_file: configs/zero2.yaml  # need use absolute path
  zero3_init_flag: false
distributed_type: DEEPSPEED
downcast_bf16: 'no'
machine_rank: 0
num_machines: 1
tpu_env: []
use_cpu: false
"""
# Of earlier versions of accelerate.
OLD = """command_file: null
commands: null
deepspeed_config: {deepspeed_config_file: configs/zero2.json, zero3_init_flag: false}
distributed_type: DEEPSPEED
dynamo_backend: 'NO'
dynamo_config: {}
fsdp_config: {}
gpu_ids: null
ipex_config: {ipex: false, use_xpu: false}
main_process_ip: null
main_process_port: null
megatron_lm_config: {}
mixed_precision: 'no'
num_processes: 2
tpu_name: null
tpu_zone: null
"""
TWO_MACHINES = SHIPPED.replace("num_machines: 1", "num_machines: 2").replace(
    "deepspeed_config:\n", "deepspeed_config:\n  deepspeed_multinode_launcher: standard\n")


@pytest.fixture
def read(tmp_path):
    """read(text, deepspeed=None, **args) of an accelerate_config.yaml; text may be bytes."""

    def read(text, deepspeed=None, **args):
        values = {"memory": "zero2", "batch_size": 1, "gradient_accumulation_steps": 1,
                  "max_grad_norm": 1.0, **args}
        if deepspeed is not None:
            path = tmp_path / "zero [1].json"
            path.write_text(deepspeed if isinstance(deepspeed, str) else json.dumps(deepspeed))
            text = text.replace("configs/zero2.json", str(path))
        path = tmp_path / "config 'a' [1].yaml"
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return hosts.read(path, SimpleNamespace(**values))

    return read


@pytest.mark.parametrize("text, gpu_ids", [
    (SHIPPED, "0,1"), (PUBLISHED, "0,1"), (ANSWERED, "all"), (OLD, "all")])
@pytest.mark.parametrize("change", [
    lambda text: text,
    lambda text: "\ufeff" + text.replace("\n", "\r\n"),  # as Notepad and git on Windows write
    lambda text: text.replace("num_processes: 2", 'num_processes: "2"'),
])
def test_configurations_as_shipped_as_published_and_as_accelerate_writes_them(
        read, text, gpu_ids, change):
    where = read(change(text))
    assert (where.processes, where.machines, where.gpu_ids, where.port) == (2, 1, gpu_ids, 0)
    assert json.loads(where.deepspeed) == ZERO2


def test_several_machines(read):
    where = read(TWO_MACHINES.replace("machine_rank: 0", "machine_rank: 1")
                 + "main_process_ip: 10.0.0.7\nmain_process_port: 1234\n")
    assert (where.machine, where.ip, where.port, where.here) == (1, "10.0.0.7", 1234, 1)


@pytest.mark.parametrize("line, expected", [
    ("2, 3  # of four", "2,3"), ("[0, 3]", "0,3"), ("5", "5"), ("all", "all"), ("", "all")])
def test_gpu_ids(read, line, expected):
    assert read(SHIPPED.replace('"0,1"', line)).gpu_ids == expected


def test_a_file_may_ask_for_the_cpu(read):
    assert read(SHIPPED + "use_cpu: true\n").gpu_ids == ""


@pytest.mark.parametrize("old, new, key, expected", [
    ("num_processes: 2", "num_processes: 1000000000", "num_processes", "from 1 to 4096"),
    ("num_processes: 2", "num_processes: 1e9", "num_processes", "a whole number"),
    ("num_processes: 2", "num_processes: -1", "num_processes", "a whole number"),
    ("num_processes: 2", "num_processes: true", "num_processes", "a whole number"),
    ("num_processes: 2", "num_processes: [2]", "num_processes", "a whole number"),
    ("num_processes: 2", "num_processes: " + "9" * 5000, "config", "is not YAML"),
    ("num_processes: 2", "num_proceses: 2", "num_proceses", "take the line out"),
    ("num_machines: 1", "num_machines: 0", "num_machines", "from 1"),
    ("num_machines: 1", "num_machines: 3", "num_processes", "a multiple of num_machines 3"),
    ("num_machines: 1", "num_machines: 2", "deepspeed_multinode_launcher", "standard"),
    ('"0,1"', '"0-1"', "gpu_ids", "all, or numbers such as 0,1"),
    ('"0,1"', "{a: 1}", "gpu_ids", "all, or numbers such as 0,1"),
    ("DEEPSPEED", "MULTI_GPU", "distributed_type", "DEEPSPEED"),
    ("DEEPSPEED", "'NO'", "distributed_type", "DEEPSPEED"),
    ("LOCAL_MACHINE", "AMAZON_SAGEMAKER", "compute_environment", "LOCAL_MACHINE"),
    ("machine_rank: 0", "mixed_precision: fp16", "mixed_precision", "bf16"),
    ("machine_rank: 0", "main_process_port: 65536", "main_process_port", "to 65535"),
    ("machine_rank: 0", "fsdp_config: {fsdp_version: 2}", "fsdp_config", "no"),
    ("machine_rank: 0", "dynamo_config: {dynamo_backend: INDUCTOR}", "dynamo_config", "no"),
    ("machine_rank: 0", "zero_stage: 2", "zero_stage", "is no key"),
    ("zero3_init_flag: false", "zero_stage: 3", "zero_stage", "2"),
    ("zero3_init_flag: false", "gradient_clipping: 0.5", "gradient_clipping", "1.0"),
    ("zero3_init_flag: false", "gradient_accumulation_steps: 4", "gradient_accumulation_steps", ""),
    ("zero3_init_flag: false", "offload_optimizer_device: cpu", "offload_optimizer_device", "no"),
    ("zero3_init_flag: false", "offload_param_device: nvme", "offload_param_device", "no"),
    ("configs/zero2.json", "configs/zero3.json", "configs/zero3.json", "no such file"),
    ("deepspeed_config:", "deepspeed_config: 3\nx:", "deepspeed_config", "keys such as"),
    ("machine_rank: 0", "num_processes: 3", "num_processes is there twice", "line"),
    ("machine_rank: 0", "\tmachine_rank: 0", "line", "expected YAML"),
    ("machine_rank: 0", "a: *b", "line", "expected YAML"),
    ("machine_rank: 0", "!!python/object/apply:os.system [true]", "line", "expected YAML"),
    (SHIPPED, "", "got None", "key: value"),
    (SHIPPED, "[" * 3000, "config", "YAML"),
    (SHIPPED, "x" * 2**21, "bytes", "expected a small text"),
    (SHIPPED, "\0\1", "config", "is not YAML"),
])
def test_a_bad_configuration_is_refused_in_one_line_that_names_the_key(
        read, old, new, key, expected):
    text = SHIPPED.replace(old, new, 1)
    assert text != SHIPPED
    with pytest.raises(InputError) as refused:
        read(text)
    said = str(refused.value)
    assert said.startswith(("accelerate_config ", "deepspeed_config_file "))
    assert key in said and expected in said and "\n" not in said and len(said) < 600


@pytest.mark.parametrize("add, key", [("", "main_process_ip"),
                                      ("main_process_ip: 10.0.0.1\n", "machine_rank")])
def test_what_several_machines_need(read, add, key):
    with pytest.raises(InputError, match=f"{key}: got"):
        read(TWO_MACHINES.replace("machine_rank: 0", "machine_rank: 2" if add else "") + add)


def test_bytes_that_are_no_text(read):
    with pytest.raises(InputError, match="is not YAML"):
        read(SHIPPED.encode("utf-16"))


def test_offloading_is_a_memory_mode(read):
    text = SHIPPED.replace("zero3_init_flag: false", "offload_optimizer_device: cpu")
    assert json.loads(read(text, memory="zero2_offload").deepspeed) == ZERO2


@pytest.mark.parametrize("change", [
    {"bf16": {"enabled": "auto"}}, {"fp16": {"enabled": "auto"}}, {"train_batch_size": "auto"},
    {"train_batch_size": 4, "train_micro_batch_size_per_gpu": 1, "gradient_clipping": 1},
    {"zero_optimization": ZERO2["zero_optimization"] | {"offload_optimizer": {"device": "none"}}},
])
def test_what_the_script_says_is_left_out_of_deepspeeds_configuration(read, change):
    where = read(SHIPPED, ZERO2 | change, gradient_accumulation_steps=2)
    expected = ZERO2 | {name: value for name, value in change.items() if name[0] == "z"}
    assert json.loads(where.deepspeed) == expected


def test_deepspeeds_configuration_may_be_yaml(read):
    text = "bf16: {enabled: true}\nzero_optimization:\n  stage: 2\n  reduce_bucket_size: 5e8\n"
    given = json.loads(read(SHIPPED, text).deepspeed)
    assert given["zero_optimization"] == {"stage": 2, "reduce_bucket_size": 5e8}


@pytest.mark.parametrize("change, key", [
    ({"zero_optimization": {"stage": 3}}, "stage: got 3; expected 2"),
    ({"zero_optimization": {"stage": "two"}}, "stage: got two"),
    ({"zero_optimization": 2}, "zero_optimization: got 2"),
    ({"zero_optimization": {"stage": 2, "offload_param": {"device": "cpu"}}}, "device: got cpu"),
    ({"zero_optimization": {"stage": 2, "offload_optimizer": 3}}, "device: got 3"),
    ({"bf16": {"enabled": False}}, "enabled: got False; expected true"),
    ({"bf16": True}, "bf16: got True"),
    ({"fp16": {"enabled": True}}, "enabled: got True; expected no"),
    ({"optimizer": {"type": "AdamW"}}, "optimizer: got"),
    ({"scheduler": {"type": "WarmupDecayLR"}}, "scheduler: got"),
    ({"train_batch_size": 3}, "train_batch_size: got 3; expected 2"),
    ({"gradient_clipping": 0.3}, "gradient_clipping: got 0.3; expected 1.0"),
])
def test_a_bad_deepspeed_configuration(read, change, key):
    with pytest.raises(InputError, match=f"deepspeed_config_file .*: {re.escape(key)}") as refused:
        read(SHIPPED, ZERO2 | change)
    assert "\n" not in str(refused.value)


def test_a_file_with_anything_in_it_is_read_or_refused_in_one_line(read):
    """Words, values and lines of real files, put together at random."""
    rng = random.Random(0)
    lines = (ANSWERED + PUBLISHED + OLD + SHIPPED).split("\n")
    pieces = re.findall(r"\w+|[^\w\s]", "".join(lines)) + ["\t", "&a", "*a", "<<:", "0x7", "~", "é"]
    came = set()
    for _ in range(300):
        text = rng.sample(lines, rng.randint(1, 20)) if rng.random() < 0.8 else SHIPPED.split("\n")
        for _ in range(rng.randint(0, 4)):
            place = rng.randrange(len(text))
            at = rng.randint(0, len(text[place]))
            text[place] = text[place][:at] + rng.choice(pieces) + text[place][at:]
        try:
            read("\n".join(text))
            came.add("read")
        except InputError as error:
            assert "\n" not in str(error)
            came.add("refused")
    assert came == {"read", "refused"}
