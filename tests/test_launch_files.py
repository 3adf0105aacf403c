"""The shipped launch files through `accelerate launch`: two processes take the steps of one.

accelerate gives FSDP to accelerators only and would train by DDP on a CPU without a word. Run as a program, this file
is `tinywave` with that limit lifted, and everything behind it as on a GPU.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import yaml
from accelerate import PartialState
from accelerate.commands.config.config_args import load_config_from_file
from accelerate.commands.launch import _validate_launch_command, launch_command_parser
from accelerate.state import AcceleratorState
from accelerate.utils import DeepSpeedPlugin, DistributedType, FullyShardedDataParallelPlugin
from accelerate.utils.launch import prepare_deepspeed_cmd_env, prepare_multi_gpu_env
from torch.distributed.tensor import DTensor

from tinywave.cli.main import main
from tinywave.cli.shipped import TEACHER
from tinywave.distill_trainer import DistillationTrainer
from tinywave.eval.suites import read_suite
from tinywave.modeling_tinywave import TinyWaveForCausalLM

LAUNCH_FILES = Path(__file__).parents[1] / "recipes" / "accelerate"
RECIPE = {
    "layer_map": [[0, 0], [10, 1]],
    "streams": ["unit"],
    "mixture": "interleaved",
    "packing": True,
    "max_length": 64,
    "seed": 3,
    "training": dict(max_steps=5, learning_rate=1e-3, lr_scheduler_type="constant", use_cpu=True, logging_steps=1,
                     save_steps=2, report_to="none", disable_tqdm=True),
}  # fmt: skip


@pytest.fixture(scope="module")
def units(tmp_path_factory):
    """Shards of eight spoken sentences: six rows, so that the fourth step of two of them begins another epoch."""
    folder = tmp_path_factory.mktemp("units")
    rows = []
    for pair in read_suite(TEACHER.parent / "suites" / "syntactic.parquet")[:8]:
        words = pair.positive_text.split()
        step = len(pair.positive_units) / 25 / len(words)
        times = [{"word": word, "start": step * i, "end": step * (i + 1)} for i, word in enumerate(words)]
        row = {"split": "train", "domain": "story", "text": pair.positive_text, "words": times}
        rows.append(row | {"units": list(pair.positive_units)})
    pq.write_table(pa.Table.from_pylist(rows), folder / "shard-00000.parquet")
    return folder


def command(folder, units, **training):
    folder.mkdir(exist_ok=True)
    recipe = RECIPE | {"training": RECIPE["training"] | training}
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    return ["distill", str(folder / "recipe.yaml"), "--units", str(units), "--output-dir", str(folder / "student")]


def losses_of(folder):
    log = json.loads((folder / "student" / "trainer_state.json").read_text())["log_history"]
    terms = ("loss", "cross_entropy_loss", "logits_loss", "hidden_loss", "attention_loss", "grad_norm")
    return [[entry[term] for term in terms] for entry in log if "loss" in entry]


@pytest.fixture(scope="module")
def alone(units, tmp_path_factory):
    """The run of one process, with batches of two rows."""
    folder = tmp_path_factory.mktemp("alone")
    assert main(command(folder, units, per_device_train_batch_size=2)) == 0
    return folder


@pytest.mark.parametrize("name", ["ddp", "fsdp2"])
def test_two_processes_take_the_steps_of_one(name, alone, units, tmp_path):
    launch = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", str(LAUNCH_FILES / f"{name}.yaml")]
    launch += ["--num_processes", "2", "--main_process_port", "0", "--mixed_precision", "no", __file__]
    finished = subprocess.run(
        [*launch, *command(tmp_path, units, per_device_train_batch_size=1)],
        env=os.environ | {"ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"},
        capture_output=True, text=True, timeout=600,
    )  # fmt: skip
    assert finished.returncode == 0, finished.stderr
    kind = "sharded" if name == "fsdp2" else "whole"
    assert f"2 processes, {kind} and {kind}" in finished.stdout
    assert finished.stdout.count("left its group") == 2
    found, expected = losses_of(tmp_path), losses_of(alone)
    assert len(found) == len(expected) == 5
    torch.testing.assert_close(torch.tensor(found), torch.tensor(expected), rtol=1e-4, atol=1e-5)
    # The same repository, checkpoints aside, with the same weights up to what rounding makes of five steps of Adam.
    files, expected_files = ({path.name for path in (folder / "student").iterdir()} for folder in (tmp_path, alone))
    assert files == expected_files and "modeling_tinywave.py" in files
    student = TinyWaveForCausalLM.from_pretrained(tmp_path / "student").state_dict()
    for key, value in TinyWaveForCausalLM.from_pretrained(alone / "student").state_dict().items():
        torch.testing.assert_close(student[key], value, rtol=0, atol=2e-4, msg=key)


@pytest.mark.parametrize("name", ["ddp", "fsdp2", "deepspeed_zero3"])
def test_accelerate_knows_every_setting(name, monkeypatch):
    """What the launcher passes on is what the file says, and the dataclass of accelerate takes it."""
    path = str(LAUNCH_FILES / f"{name}.yaml")
    config = load_config_from_file(path)  # refuses unknown settings outside of the groups
    arguments = _validate_launch_command(launch_command_parser().parse_args(["--config_file", path, "program.py"]))[0]
    groups = {**config.fsdp_config, **config.deepspeed_config}
    assert set(groups) <= set(vars(launch_command_parser().parse_args(["program.py"])))
    assert {setting: getattr(arguments, setting) for setting in groups} == groups
    if name == "fsdp2":
        for variable, value in prepare_multi_gpu_env(arguments).items():
            monkeypatch.setenv(variable, value)
        plugin = FullyShardedDataParallelPlugin()
        assert plugin.fsdp_version == 2 and plugin.reshard_after_forward and not plugin.cpu_ram_efficient_loading
        assert plugin.state_dict_type.name == "FULL_STATE_DICT" and not plugin.activation_checkpointing
        assert plugin.transformer_cls_names_to_wrap == ["LlamaDecoderLayer"]


def test_the_deepspeed_file_makes_a_plugin_of_stage_3(monkeypatch):
    """What deepspeed would be given: the package itself is not asked."""
    path = str(LAUNCH_FILES / "deepspeed_zero3.yaml")
    arguments = _validate_launch_command(launch_command_parser().parse_args(["--config_file", path, "program.py"]))[0]
    arguments.deepspeed_fields_from_accelerate_config = ",".join(load_config_from_file(path).deepspeed_config)
    for variable, value in prepare_deepspeed_cmd_env(arguments)[1].items():
        monkeypatch.setenv(variable, value)
    plugin = DeepSpeedPlugin()
    assert plugin.zero_stage == 3 and plugin.zero3_save_16bit_model and not plugin.zero3_init_flag
    assert plugin.deepspeed_config["gradient_accumulation_steps"] == "auto"
    assert plugin.deepspeed_config["gradient_clipping"] == "auto"
    assert plugin.deepspeed_config["zero_optimization"]["offload_param"]["device"] == "none"


def run_as_on_gpus():
    """`tinywave`, with FSDP where the launch file wants it, whatever the device."""
    initialize = AcceleratorState.__init__

    def initialize_with_fsdp(self, *arguments, fsdp_plugin=None, **options):
        initialize(self, *arguments, fsdp_plugin=fsdp_plugin, **options)
        if fsdp_plugin is not None:
            self.fsdp_plugin = fsdp_plugin
            self.distributed_type = PartialState._shared_state["distributed_type"] = DistributedType.FSDP

    AcceleratorState.__init__ = initialize_with_fsdp
    train = DistillationTrainer.train

    def train_and_tell(self, *arguments, **options):
        result = train(self, *arguments, **options)
        parameters = [next(model.model.layers.parameters()) for model in (self.model, self.teacher.model)]
        kinds = ["sharded" if isinstance(parameter, DTensor) else "whole" for parameter in parameters]
        print(f"{self.accelerator.num_processes} processes, {' and '.join(kinds)}", flush=True)
        return result

    DistillationTrainer.train = train_and_tell
    exit_code = main(sys.argv[1:])
    # A process that exits with its group open may be aborted by one of the group's threads.
    print("left its group" if not torch.distributed.is_initialized() else "is in a group", flush=True)
    return exit_code


if __name__ == "__main__":
    sys.exit(run_as_on_gpus())
