"""The cost plan against real models, hand arithmetic and the published sizes."""

import json

import pytest
import torch
import yaml
from accelerate.commands.config.config_args import load_config_from_file
from torch.utils.flop_counter import FlopCounterMode

from tinywave.cli import main as command_line
from tinywave.cli.plan import as_table, plan_recipe
from tinywave.configuration_tinywave import TinyWaveConfig
from tinywave.modeling_tinywave import TinyWaveForCausalLM
from tinywave.stages.parsing import load_recipe
from tinywave.training.arguments import CorrectionArguments, DistillationArguments
from tinywave.training.layer_map import LayerMap
from tinywave.training.planning import (
    Hardware,
    activation_bytes,
    count_parameters,
    flops_per_token,
    memory_per_gpu,
)
from tinywave.training.throughput import forward_flops_per_token

FULL_SCALE = ("7b_to_2b_base", "7b_to_2b_expressive", "7b_to_2b_interleaved")
HARDWARE = dict(num_gpus=4, sharding="sharded", gpu_memory_gib=80, peak_tflops=500, model_flops_utilisation=0.5)


@pytest.fixture
def config():
    return TinyWaveConfig.from_preset(
        "nano-teacher", num_hidden_layers=5, hidden_size=48, intermediate_size=80, num_key_value_heads=2
    )


def settings(**changes):
    return DistillationArguments(output_dir="outputs", use_cpu=True, max_steps=10, **changes)


def recipe(**changes):
    return {
        "teacher": {"preset": "nano-teacher"},
        "layer_map": [[4, 0], [7, 1], [10, 2]],
        "max_length": 64,
        "training": {"max_steps": 5, "per_device_train_batch_size": 2, "peak_tflops": 100},
        "hardware": {
            "accelerate": "accelerate/ddp", "gpu_memory_gib": 24, "model_flops_utilisation": 0.3
        },
    } | changes  # fmt: skip


@pytest.mark.parametrize("low_precision", [True, False])
def test_activations_are_those_a_real_model_keeps(config, low_precision):
    model = TinyWaveForCausalLM(config)
    weights = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    kept = {}

    def keep(tensor):
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage()
        return tensor

    with (
        torch.autocast("cpu", torch.bfloat16, enabled=low_precision),
        torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor),
    ):
        keep(model.get_decoder()(torch.ones(3, 32, dtype=torch.long), use_cache=False).last_hidden_state)
    expected = sum(storage.nbytes() for address, storage in kept.items() if address not in weights)
    found = activation_bytes(config, 3, 32, settings(bf16=low_precision), with_weights=True)
    assert found == pytest.approx(expected, rel=0.01)


def test_checkpointing_keeps_one_input_a_block_and_one_block(config):
    full = activation_bytes(config, 2, 32, settings(), with_weights=False)
    checkpointed = activation_bytes(config, 2, 32, settings(activation_checkpointing=True), with_weights=False)
    one_block = resized(config, num_hidden_layers=1)
    alone = activation_bytes(one_block, 2, 32, settings(), with_weights=False)
    assert checkpointed - alone == 5 * 2 * 32 * 48 * 4
    assert checkpointed < 0.6 * full


def resized(config, **changes):
    return TinyWaveConfig.from_dict({**config.to_dict(), **changes})


def test_forward_flops_are_the_counted_ones(config):
    """An eager forward pass multiplies whole attention maps, as the convention counts them."""
    model = TinyWaveForCausalLM(config)
    model.set_attn_implementation("eager")
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(torch.ones(2, 32, dtype=torch.long), use_cache=False)
    rotary = 2 * 2 * 32 * 4  # positions times frequencies, of 8 channels a head
    assert forward_flops_per_token(config, 32) * 2 * 32 == pytest.approx(counter.get_total_flops(), abs=rotary)


def test_training_flops_by_hand(config):
    student = resized(config, num_hidden_layers=2)
    found = flops_per_token(config, student, LayerMap.last(5, 2), settings(), 32)
    assert found["student"] == 3 * forward_flops_per_token(student, 32)
    assert found["teacher"] == forward_flops_per_token(config, 32)
    assert found["attention_alignment"] == 2 * 4 * 2 * 32 * 48
    without = dict(logits_weight=0.0, hidden_weight=0.0, attention_weight=0.0)
    assert set(flops_per_token(config, student, LayerMap.last(5, 2), settings(**without), 32)) == {"student"}


def test_sharding_divides_the_weights_and_gathers_some(config):
    student = resized(config, num_hidden_layers=2)
    layer_map, number = LayerMap.last(5, 2), count_parameters(student)
    memory = {
        sharding: memory_per_gpu(config, student, layer_map, settings(), Hardware(**HARDWARE | {"sharding": sharding}),
                                 32, "bfloat16")
        for sharding in ("replicated", "sharded")
    }  # fmt: skip
    assert memory["replicated"]["student_weights"] == 4 * number
    assert memory["sharded"]["student_weights"] == number
    assert memory["replicated"]["optimizer_states"] == 8 * number
    assert memory["replicated"]["teacher_weights"] == 2 * count_parameters(config)
    assert memory["sharded"]["teacher_weights"] == count_parameters(config) // 2
    assert "gathered_weights" in memory["sharded"] and "gathered_weights" not in memory["replicated"]
    assert memory["sharded"]["activations"] <= memory["replicated"]["activations"]


def test_gpu_hours_by_hand():
    plan = plan_recipe(recipe())
    assert plan.tokens_per_step == 2 * 8 * 64
    assert plan.total_tokens == 5 * plan.tokens_per_step
    assert plan.total_flops == pytest.approx(sum(plan.flops.values()))
    assert plan.gpu_hours == pytest.approx(plan.total_flops / 100e12 / 0.3 / 3600)
    assert plan.hours == pytest.approx(plan.gpu_hours / 8)
    assert plan.teacher_parameters == count_parameters(TinyWaveConfig.from_preset("nano-teacher"))
    assert plan.student_parameters == count_parameters(TinyWaveConfig.from_preset("nano-student"))


def test_packed_rows_are_full_and_need_masks():
    padded, packed = plan_recipe(recipe()), plan_recipe(recipe(packing=True))
    assert packed.tokens_per_step == padded.tokens_per_step and packed.flops == padded.flops
    masks = {"document_masks": 2 * 2 * 64 * 64}  # two models, two rows, a byte for each pair of 64 ids
    assert packed.memory_bytes == padded.memory_bytes | masks
    assert "at most: rows are padded" in as_table(padded) and "at most" not in as_table(packed)


def test_a_narrower_student_is_planned_as_it_is_made():
    sizes = {"hidden_size": 96, "num_attention_heads": 3, "num_key_value_heads": 3}
    student = TinyWaveConfig.from_preset("nano-student", head_dim=32, **sizes)
    assert plan_recipe(recipe(student=sizes)).student_parameters == count_parameters(student)


def test_a_run_that_does_not_fit_says_so():
    assert ": fits" in as_table(plan_recipe(recipe()))
    small = recipe()["hardware"] | {"gpu_memory_gib": 0.01}
    assert "DOES NOT FIT" in as_table(plan_recipe(recipe(hardware=small)))


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("recipes/7b_to_2b_base.yaml", 2_290_176_000),
        ("7b_to_2b_base", 2_290_176_000),
        ("7b_to_2b_expressive", 2_292_273_152),
        ("7b_to_2b_interleaved", 2_292_273_152),
    ],
)
def test_the_published_sizes(name, parameters, capsys, monkeypatch, request):
    monkeypatch.chdir(request.config.rootpath)
    assert command_line.main(["plan", name, "--json"]) == 0
    plan = json.loads(capsys.readouterr().out)
    assert plan["student_parameters"] == parameters
    assert plan["teacher_parameters"] > 6.7e9
    assert plan["total_memory_bytes"] <= plan["gpu_memory_bytes"]
    assert plan["packing"] and plan["tokens_per_step"] == 2**20
    assert plan["total_memory_bytes"] == sum(plan["memory_bytes"].values())


@pytest.mark.parametrize("name", FULL_SCALE)
def test_full_scale_recipes_say_what_the_paper_says(name):
    found = load_recipe(name)
    assert LayerMap.from_pairs(found["layer_map"]) == LayerMap.every_third_ending_last(32, 10)
    arguments = DistillationArguments(output_dir="outputs", **{**found["training"], "use_cpu": True})
    assert arguments.hidden_loss == "cosine"
    assert min(arguments.logits_weight, arguments.hidden_weight, arguments.attention_weight) > 0
    assert set(load_recipe("nano/distillation")) <= set(found)


@pytest.mark.parametrize("name", ["7b_correction_base", "7b_correction_interleaved"])
def test_correction_recipes_are_read(name):
    found = load_recipe(name)
    assert set(found) == {"packing", *load_recipe("nano/correction")}
    assert CorrectionArguments(output_dir="outputs", **{**found["training"], "use_cpu": True}).max_steps > 0


@pytest.mark.parametrize(("name", "kind"), [("ddp", "MULTI_GPU"), ("fsdp2", "FSDP"), ("deepspeed_zero3", "DEEPSPEED")])
def test_accelerate_reads_the_launch_files(name, kind, request):
    config = load_config_from_file(str(request.config.rootpath / f"recipes/accelerate/{name}.yaml"))
    assert (config.distributed_type.value, config.mixed_precision, config.num_processes) == (kind, "bf16", 8)
    if name == "fsdp2":
        block = config.fsdp_config["fsdp_transformer_layer_cls_to_wrap"]
        model = TinyWaveForCausalLM(TinyWaveConfig.from_preset("nano-student"))
        assert {type(layer).__name__ for layer in model.model.layers} == {block}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (dict(training={"max_step": 5}), "settings the trainer does not know: max_step"),
        (dict(training={"peak_tflops": 100}), "needs `max_steps`"),
        (
            dict(training={"max_steps": 5, "peak_tflops": 100, "optim": "adafactor"}),
            "memory of the optimizer 'adafactor' is not known",
        ),
        (dict(teacher={"preset": "nano-teacher", "dtype": "int8"}), "dtype must be one of .* found 'int8'"),
        (dict(teacher={"preset": "nano"}), "unknown preset 'nano'"),
        (dict(layer_map=[[11, 0]]), "names teacher block 11, but the teacher has 11 blocks"),
        (dict(hardware={"accelerate": "accelerate/ddp"}), "must have gpu_memory_gib"),
        (dict(training={"max_steps": 5}), "`training` has no `peak_tflops`"),
        (dict(hardware=recipe()["hardware"] | {"gpu_memory_gib": 0}), "`gpu_memory_gib` must be a positive number"),
        (dict(student={"width": 4}), "cannot be given width"),
        (dict(packing="bfd"), "`packing` must be true or false; found 'bfd'"),
        (dict(hardware=recipe()["hardware"] | {"model_flops_utilisation": 40}), "a share of the peak"),
        (dict(hardware={"gpu_memory_gib": 24}), "name an accelerate config"),
    ],
)
def test_recipes_that_cannot_be_planned_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        plan_recipe(recipe(**changes))


def test_a_launch_file_of_unknown_memory_is_refused(tmp_path):
    launch = tmp_path / "stage2.yaml"
    launch.write_text(yaml.safe_dump({"distributed_type": "DEEPSPEED", "deepspeed_config": {"zero_stage": 2}}))
    with pytest.raises(ValueError, match="memory is not known"):
        plan_recipe(recipe(hardware=recipe()["hardware"] | {"accelerate": str(launch)}))


def test_a_recipe_without_hardware_is_one_line(capsys):
    assert command_line.main(["plan", "nano/distillation"]) == 2
    errors = capsys.readouterr().err
    assert "has no `teacher`" in errors and errors.count("\n") == 1
