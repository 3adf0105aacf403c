"""What distillation costs per step, and what the smaller model gains per token.

    python -m tinywave.benchmarks.speed [--output speed.json]

Speed does not depend on what a model has learned: both models have the nano presets' shapes and random weights.
"""

import argparse
import json
import tempfile
from dataclasses import asdict
from pathlib import Path

import torch
from transformers.trainer_utils import set_seed

from ..configuration_tinywave import TinyWaveConfig
from ..distill_trainer import DistillationTrainer
from ..modeling_tinywave import TinyWaveForCausalLM
from ..training.arguments import DistillationArguments
from ..training.layer_map import LayerMap
from ..training.student_init import student_from_teacher
from .pairs import PairedTiming, time_pairs

BATCH_SIZE = 8
NUM_TRAINING_TOKENS = 256
NUM_PROMPT_TOKENS = 64
NUM_NEW_TOKENS = 64
LABELS = {"decoding": "teacher / student, decoding", "training_step": "distillation / cross-entropy, step"}


def nano_models() -> tuple[TinyWaveForCausalLM, TinyWaveForCausalLM, LayerMap]:
    """A teacher of the nano preset with random weights, its depth-pruned student, and their layer map."""
    set_seed(0)
    teacher = TinyWaveForCausalLM(TinyWaveConfig.from_preset("nano-teacher"))
    depth = TinyWaveConfig.from_preset("nano-student").num_hidden_layers
    layer_map = LayerMap.every_third_ending_last(teacher.config.num_hidden_layers, depth)
    return teacher.eval(), student_from_teacher(teacher, layer_map), layer_map


def random_unit_ids(config: TinyWaveConfig, batch_size: int, length: int) -> torch.LongTensor:
    """Ids of random speech units of shape `(batch_size, length)`."""
    return torch.randint(config.unit_offset, config.unit_offset + config.num_units, (batch_size, length))


def time_decoding(num_pairs: int) -> PairedTiming:
    """Greedy decoding of one sequence with the cache, student against teacher."""
    teacher, student, _ = nano_models()
    prompt = random_unit_ids(teacher.config, 1, NUM_PROMPT_TOKENS)

    def decode(model):
        return model.eval().generate(
            prompt,
            attention_mask=torch.ones_like(prompt),
            output_modality="speech",
            do_sample=False,
            min_new_tokens=NUM_NEW_TOKENS,
            max_new_tokens=NUM_NEW_TOKENS,
        )

    return time_pairs(lambda: decode(student), lambda: decode(teacher), num_pairs)


def time_training_step(num_pairs: int) -> PairedTiming:
    """Forward and backward pass of the student, with all distillation losses against cross-entropy only.

    The optimizer's step is left out: it is the same for both.
    """
    with tempfile.TemporaryDirectory() as folder:
        plain = _training_step({"logits_weight": 0.0, "hidden_weight": 0.0, "attention_weight": 0.0}, folder)
        distillation = _training_step({}, folder)
        return time_pairs(plain, distillation, num_pairs)


def _training_step(weights: dict[str, float], folder: str):
    """A function that runs one forward and backward pass through the trainer."""
    teacher, student, layer_map = nano_models()
    arguments = DistillationArguments(output_dir=folder, use_cpu=True, report_to="none", **weights)
    trainer = DistillationTrainer(
        model=student,
        teacher_model=teacher if arguments.needs_teacher else None,
        layer_map=layer_map if arguments.needs_layer_map else None,
        args=arguments,
    )
    ids = random_unit_ids(student.config, BATCH_SIZE, NUM_TRAINING_TOKENS)
    batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": ids}

    def step():
        trainer.model.zero_grad()
        trainer.training_step(trainer.model, dict(batch))

    return step


def measure(num_pairs: int) -> dict:
    """Both timings, JSON-ready."""
    decoding, training = time_decoding(num_pairs), time_training_step(num_pairs)
    return {
        "student_decode_speedup": decoding.ratio,
        "student_decode_tokens_per_second": NUM_NEW_TOKENS / decoding.first_seconds,
        "teacher_decode_tokens_per_second": NUM_NEW_TOKENS / decoding.second_seconds,
        "distillation_step_ratio": training.ratio,
        "decoding": asdict(decoding),
        "training_step": asdict(training),
        "threads": torch.get_num_threads(),
    }


def main(argv: list[str] | None = None) -> None:
    """Print the ratios; write them as JSON where asked."""
    parser = argparse.ArgumentParser(description="Measure decoding and distillation speed as ratios.")
    parser.add_argument("--num-pairs", type=int, default=10, help="pairs timed of each comparison (default: 10)")
    parser.add_argument("--output", type=Path, help="also write the result as JSON to this file")
    arguments = parser.parse_args(argv)
    result = measure(arguments.num_pairs)
    for name, label in LABELS.items():
        timing = result[name]
        low, high = timing["ratio_quartiles"]
        spread = f"middle half {low:.2f} to {high:.2f}, {timing['num_pairs']} pairs"
        print(f"{label:36s} {timing['ratio']:5.2f}x  ({spread})")
    if arguments.output:
        arguments.output.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
