"""`tinywave plan 7b_to_2b_base`: what a distillation costs, without loading or downloading anything."""

import dataclasses
import json

from ..configuration_tinywave import TinyWaveConfig
from ..stages.parsing import load_recipe
from ..stages.recipes import DistillationRecipe
from ..training.arguments import DistillationArguments
from ..training.layer_map import LayerMap
from ..training.planning import Hardware, RunPlan, plan_run
from ..training.student_init import student_config
from .recipe import RecipeArgument
from .train import is_packed

_NEEDED = {
    "teacher": "{preset: spirit-lm-7b, dtype: bfloat16}",
    "hardware": "{accelerate: accelerate/fsdp2, gpu_memory_gib: 80, model_flops_utilisation: 0.4}",
    "layer_map": "[[4, 0], [7, 1]]",
    "max_length": "2048",
    "training": "the settings of the trainer",
}

RECIPE = RecipeArgument("distillation recipe", DistillationRecipe, training=DistillationArguments)


def add_arguments(parser):
    RECIPE.declare(parser)
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")


def run(arguments) -> int:
    plan = plan_recipe(RECIPE.read(arguments))
    print(json.dumps(dataclasses.asdict(plan), indent=2) if arguments.json else as_table(plan))
    return 0


def plan_recipe(recipe: dict) -> RunPlan:
    """The plan of a distillation recipe that also names its `teacher` and its `hardware`.

    Raises `ValueError` for a recipe without them, and for settings the trainer does not have.
    """
    for key, example in _NEEDED.items():
        if key not in recipe:
            raise ValueError(f"The recipe has no `{key}`, which a plan needs; for example `{key}: {example}`.")
    teacher_fields = dict(recipe["teacher"])
    dtype, preset = teacher_fields.pop("dtype", "float32"), teacher_fields.pop("preset", None)
    teacher = TinyWaveConfig.from_preset(preset, **teacher_fields)
    layer_map = LayerMap.from_pairs(recipe["layer_map"])
    training = read_training(recipe["training"])
    return plan_run(
        teacher,
        student_config(teacher, layer_map, recipe.get("student")),
        layer_map,
        training,
        read_hardware(recipe["hardware"], training),
        max_length=recipe["max_length"],
        teacher_dtype=dtype,
        packing=is_packed(recipe),
    )


def read_training(settings: dict) -> DistillationArguments:
    """The checked settings of the trainer; on this machine, whatever the run needs."""
    known = {field.name for field in dataclasses.fields(DistillationArguments)}
    unknown = sorted(set(settings) - known)
    if unknown:
        raise ValueError(f"`training` has settings the trainer does not know: {', '.join(unknown)}.")
    return DistillationArguments(output_dir="outputs", **{**settings, "use_cpu": True})


def read_hardware(settings: dict, training: DistillationArguments) -> Hardware:
    """The machine of a recipe; its number of GPUs and its sharding are those of the accelerate config it names.

    The peak is the `peak_tflops` of `training`, by which the trainer logs the utilisation that a run really has.
    """
    fields = dict(settings)
    if training.peak_tflops is None:
        raise ValueError("`training` has no `peak_tflops`, the dense peak of one GPU in TFLOP/s; 989 for an H100 SXM.")
    if "accelerate" not in fields:
        raise ValueError("`hardware` has no `accelerate`: name an accelerate config, for example accelerate/fsdp2.")
    config = load_recipe(fields.pop("accelerate"))
    expected = {field.name for field in dataclasses.fields(Hardware)} - {"num_gpus", "sharding", "peak_tflops"}
    if set(fields) != expected:
        raise ValueError(f"`hardware` must have {', '.join(sorted(expected))}; found {', '.join(sorted(fields))}.")
    return Hardware(
        num_gpus=config.get("num_processes", 1),
        sharding=_sharding(config),
        peak_tflops=training.peak_tflops,
        **fields,
    )


def _sharding(config: dict) -> str:
    kind = config.get("distributed_type")
    if kind in ("NO", "MULTI_GPU"):
        return "replicated"
    if kind == "FSDP" or kind == "DEEPSPEED" and config.get("deepspeed_config", {}).get("zero_stage") == 3:
        return "sharded"
    raise ValueError(
        f"The accelerate config has `distributed_type: {kind}`, whose memory is not known; a plan is made for "
        "MULTI_GPU, FSDP and DEEPSPEED with zero_stage 3."
    )


def as_table(plan: RunPlan) -> str:
    """The plan for people: bytes in GiB, FLOPs in EFLOP, the assumptions in full."""
    hardware = plan.hardware
    fits = plan.total_memory_bytes <= plan.gpu_memory_bytes
    lines = [
        f"student parameters   {plan.student_parameters:>18,}",
        f"teacher parameters   {plan.teacher_parameters:>18,}",
        "",
        f"memory of each of {hardware.num_gpus} GPUs, {hardware.sharding}, in GiB",
        *(f"  {name.replace('_', ' '):<19}{size / 2**30:>18.2f}" for name, size in plan.memory_bytes.items()),
        f"  {'total':<19}{plan.total_memory_bytes / 2**30:>18.2f}  of {plan.gpu_memory_bytes / 2**30:.0f}: "
        + ("fits" if fits else "DOES NOT FIT; lower the batch, use activation checkpointing or more sharding"),
        "",
        f"tokens per step      {plan.tokens_per_step:>18,}  "
        + ("packed" if plan.packing else "at most: rows are padded"),
        f"steps                {plan.num_steps:>18,}",
        f"tokens               {plan.total_tokens:>18,}",
        "",
        "EFLOP (1e18)",
        *(f"  {name.replace('_', ' '):<19}{value / 1e18:>18,.1f}" for name, value in plan.flops.items()),
        f"  {'total':<19}{plan.total_flops / 1e18:>18,.1f}",
        "",
        f"GPU-hours            {plan.gpu_hours:>18,.0f}  ({plan.hours:,.1f} hours by the clock)",
        f"  at a peak of {hardware.peak_tflops:g} TFLOP/s and a model FLOPs utilisation of "
        f"{hardware.model_flops_utilisation:g}",
    ]
    return "\n".join(lines)
