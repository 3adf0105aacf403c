"""One training step in every way that `distillation` compares, and what it costs in a process of its own.

    python -m tinywave.benchmarks.distillation_steps VARIANT SEQ_LEN --size full

prints one JSON object, see [`measure`]. Cost does not depend on what a model has learned: all weights are random.
"""

import argparse
import json
import resource
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedModel
from transformers.trainer_utils import set_seed

from ..distill_trainer import DistillationTrainer
from ..training.arguments import DistillationArguments
from ..training.attention_tap import ActivationTap
from ..training.decoder_pass import flat_indices, take
from ..training.layer_map import LayerMap
from ..training.logits_losses import HeadLogits, LogitsSettings, logits_losses
from ..training.losses import cosine_hidden_loss, supervised_positions
from ..training.student_init import student_from_teacher

LOGITS, HIDDEN, ATTENTION = "logits", "logits_hidden", "logits_hidden_attention"
EAGER_ATTENTION = "logits_hidden_eager_attention"
FULL_LOGIT_KD, CHUNKED_LOGIT_KD = "full_logit_kd", "chunked_logit_kd"
STEP_VARIANTS = (LOGITS, HIDDEN, ATTENTION, EAGER_ATTENTION)
LOGIT_KD_VARIANTS = (FULL_LOGIT_KD, CHUNKED_LOGIT_KD)
_WEIGHTS = {LOGITS: {"hidden_weight": 0.0, "attention_weight": 0.0}, HIDDEN: {"attention_weight": 0.0}, ATTENTION: {}}
_TEMPERATURE = 2.0
_NUM_GPU_STEPS = 5


@dataclass(frozen=True)
class BenchmarkSize:
    """Shapes of a benchmark.

    Attributes:
        num_layers (`tuple[int, int]`): blocks of teacher and student, which have the same width.
        sizes (`dict`): the remaining fields of their `LlamaConfig`.
        seq_lens (`tuple[int, ...]`): T of each row, in tokens, ascending.
        num_tokens (`int`): tokens of one step; the batch has `num_tokens / T` rows, so that only attention changes
            from one T to the next.
        dtype (`str`): of both models.
        device (`str`): "cpu" or "cuda".
    """

    num_layers: tuple[int, int]
    sizes: dict
    seq_lens: tuple[int, ...]
    num_tokens: int
    dtype: str = "float32"
    device: str = "cpu"

    def configs(self) -> list[LlamaConfig]:
        """The configurations of teacher and student."""
        return [LlamaConfig(num_hidden_layers=num_layers, **self.sizes) for num_layers in self.num_layers]


SIZES = {
    # Teacher 277.6 M, student 84.9 M parameters.
    "full": BenchmarkSize(
        (19, 4),
        {
            "hidden_size": 1024,
            "intermediate_size": 2816,
            "num_attention_heads": 16,
            "vocab_size": 32768,
            "tie_word_embeddings": True,
        },
        seq_lens=(256, 1024, 2048),
        num_tokens=2048,
    ),
    # The published pair: teacher 6.74 G, student 2.29 G parameters.
    "published": BenchmarkSize(
        (32, 10),
        {"hidden_size": 4096, "intermediate_size": 11008, "num_attention_heads": 32, "vocab_size": 32512},
        seq_lens=(2048,),
        num_tokens=2048,
        dtype="bfloat16",
        device="cuda",
    ),
    "tiny": BenchmarkSize(
        (7, 2),
        {"hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 2, "vocab_size": 96},
        seq_lens=(8, 16, 32),
        num_tokens=64,
    ),
}


def random_models(size: BenchmarkSize) -> tuple[PreTrainedModel, PreTrainedModel, LayerMap]:
    """A teacher with random weights, its depth-pruned student, and their layer map: one block in three."""
    set_seed(0)
    with torch.device(size.device):
        teacher = AutoModelForCausalLM.from_config(size.configs()[0], dtype=getattr(torch, size.dtype))
    layer_map = LayerMap.every_third_ending_last(*size.num_layers)
    return teacher.eval().requires_grad_(False), student_from_teacher(teacher, layer_map), layer_map


def make_step(variant: str, seq_len: int, size: BenchmarkSize) -> Callable[[], torch.Tensor]:
    """A function that runs the forward and the backward pass of a variant and returns the loss in nats per token.

    The optimizer's step is left out: it is the same for all. So is the cross-entropy, whose weight is 0.

    Args:
        variant (`str`): one of `STEP_VARIANTS`, two models on one batch, or of `LOGIT_KD_VARIANTS`, two LM heads alone
            on as many tokens.
        seq_len (`int`): T; it divides `size.num_tokens`.

    Raises:
        ValueError: for another variant or length.
    """
    if variant not in (*STEP_VARIANTS, *LOGIT_KD_VARIANTS):
        raise ValueError(f"Unknown variant {variant!r}; expected one of {(*STEP_VARIANTS, *LOGIT_KD_VARIANTS)}.")
    if size.num_tokens % seq_len:
        raise ValueError(f"A step of {size.num_tokens} tokens has no whole rows of {seq_len}; choose a divisor.")
    if variant in LOGIT_KD_VARIANTS:
        return _logit_kd_step(variant, size)
    teacher, student, layer_map = random_models(size)
    shape = (size.num_tokens // seq_len, seq_len)
    ids = torch.randint(size.sizes["vocab_size"], shape, device=size.device)
    if variant == EAGER_ATTENTION:
        return _eager_attention_step(teacher, student, layer_map, ids)
    return _trainer_step(teacher, student, layer_map, ids, _WEIGHTS[variant])


def _trainer_step(teacher, student, layer_map, ids, weights: dict[str, float]) -> Callable[[], torch.Tensor]:
    with tempfile.TemporaryDirectory() as folder:
        arguments = DistillationArguments(
            output_dir=folder,
            use_cpu=ids.device.type == "cpu",
            report_to="none",
            cross_entropy_weight=0.0,
            temperature=_TEMPERATURE,
            **weights,
        )
        trainer = DistillationTrainer(
            student, teacher_model=teacher, layer_map=layer_map if arguments.needs_layer_map else None, args=arguments
        )
    batch = {"input_ids": ids, "labels": ids}

    def step():
        student.zero_grad()
        return trainer.training_step(student, dict(batch))

    return step


def _eager_attention_step(teacher, student, layer_map: LayerMap, ids) -> Callable[[], torch.Tensor]:
    """All terms, with the attention maps that transformers returns: both models run eager attention, all maps live."""
    for model in (teacher, student):
        model.set_attn_implementation("eager")
    taps = [
        ActivationTap(model, hidden_blocks=blocks)
        for model, blocks in ((teacher, layer_map.teacher_blocks), (student, layer_map.student_blocks))
    ]
    positions = supervised_positions(ids)
    rows, next_tokens = flat_indices(positions), F.pad(ids[:, 1:], (0, 1))

    def run(model, tap):
        with tap.record() as record:
            return record.block_outputs, model.get_decoder()(ids, use_cache=False, output_attentions=True)

    def step():
        student.zero_grad()
        with torch.no_grad():
            taught_blocks, taught = run(teacher, taps[0])
        own_blocks, own = run(student, taps[1])
        loss = logits_losses(
            take(own.last_hidden_state, rows),
            student.get_output_embeddings().weight,
            take(next_tokens, rows),
            LogitsSettings(cross_entropy_weight=0.0, logits_weight=1.0),
            teacher_logits=HeadLogits(take(taught.last_hidden_state, rows), teacher.get_output_embeddings().weight),
            temperature=_TEMPERATURE,
        ).total
        for teacher_block, student_block in layer_map.pairs:
            hidden = cosine_hidden_loss(own_blocks[student_block], taught_blocks[teacher_block], positions)
            attention = map_kl(own.attentions[student_block], taught.attentions[teacher_block], positions)
            loss = loss + (hidden + attention) / len(layer_map.pairs)
        loss = loss / len(rows)
        loss.backward()
        return loss.detach()

    return step


def map_kl(student_map: torch.Tensor, teacher_map: torch.Tensor, position_weights: torch.Tensor) -> torch.Tensor:
    """`sum_t w_t * mean_h KL(teacher row || student row)` of whole attention maps of shape `(B, H, T, T)`, in nats."""
    # Clamped, as the student's zeros above the diagonal have no logarithm.
    log_student = student_map.float().clamp_min(torch.finfo(torch.float32).tiny).log()
    rows = F.kl_div(log_student, teacher_map.float(), reduction="none").sum(-1).mean(1)
    return (rows * position_weights).sum()


def _logit_kd_step(variant: str, size: BenchmarkSize) -> Callable[[], torch.Tensor]:
    """The divergence on logits alone: hidden states of one step through the LM heads of both models."""
    set_seed(0)
    options = {"dtype": getattr(torch, size.dtype), "device": size.device}
    width, vocab_size = size.sizes["hidden_size"], size.sizes["vocab_size"]
    hidden, teacher_hidden = (torch.randn(size.num_tokens, width, **options) for _ in range(2))
    head, teacher_head = (torch.randn(vocab_size, width, **options).mul_(width**-0.5) for _ in range(2))
    hidden.requires_grad_(), head.requires_grad_()
    targets = torch.zeros(size.num_tokens, dtype=torch.long, device=size.device)

    def full_loss():
        with torch.no_grad():
            log_teacher = (F.linear(teacher_hidden, teacher_head).float() / _TEMPERATURE).log_softmax(-1)
        log_student = (F.linear(hidden, head).float() / _TEMPERATURE).log_softmax(-1)
        return _TEMPERATURE**2 * F.kl_div(log_student, log_teacher, reduction="sum", log_target=True)

    def chunked_loss():
        settings = LogitsSettings(cross_entropy_weight=0.0, logits_weight=1.0)
        teacher_logits = HeadLogits(teacher_hidden, teacher_head)
        return logits_losses(
            hidden, head, targets, settings, teacher_logits=teacher_logits, temperature=_TEMPERATURE
        ).total

    compute_loss = full_loss if variant == FULL_LOGIT_KD else chunked_loss

    def step():
        hidden.grad = head.grad = None
        loss = compute_loss() / size.num_tokens
        loss.backward()
        return loss.detach()

    return step


def measure(variant: str, seq_len: int, size: BenchmarkSize) -> dict:
    """What one step costs beyond what is loaded.

    Returns:
        `dict`: "seconds" (of process CPU time on one thread, or on a GPU the median of the clock over five steps),
        "peak_mb" (most memory in use during the step above that before it, in 10^6 bytes) and "loss"; or
        "not_measured", the reason, where the memory of the machine does not suffice.

    Raises:
        OSError: without a GPU on a system that has no /proc, where memory is read from.
    """
    try:
        return _measure_on_gpu(variant, seq_len, size) if size.device == "cuda" else _measure(variant, seq_len, size)
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        return {"not_measured": "out of memory"}


def _measure(variant: str, seq_len: int, size: BenchmarkSize) -> dict:
    torch.set_num_threads(1)
    # Loads code and kernels, and leaves nothing of a size that counts.
    make_step(variant, SIZES["tiny"].seq_lens[0], SIZES["tiny"])()
    step = make_step(variant, seq_len, size)
    _limit_memory_to_what_is_free()
    # Sets the peak back to what is in use now (proc_pid_clear_refs(5)).
    Path("/proc/self/clear_refs").write_text("5")
    loaded = _read_bytes("/proc/self/status", "VmHWM")
    start = time.process_time()
    loss = step()
    seconds = time.process_time() - start
    peak = _read_bytes("/proc/self/status", "VmHWM")
    return {"seconds": seconds, "peak_mb": (peak - loaded) / 1e6, "loss": loss.item()}


def _measure_on_gpu(variant: str, seq_len: int, size: BenchmarkSize) -> dict:
    step = make_step(variant, seq_len, size)
    loaded = torch.cuda.memory_allocated()
    step()
    torch.cuda.reset_peak_memory_stats()
    seconds = []
    for _ in range(_NUM_GPU_STEPS):
        torch.cuda.synchronize()
        start = time.perf_counter()
        loss = step()
        torch.cuda.synchronize()
        seconds.append(time.perf_counter() - start)
    peak = torch.cuda.max_memory_allocated()
    return {"seconds": statistics.median(seconds), "peak_mb": (peak - loaded) / 1e6, "loss": loss.item()}


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error of Python or torch says that there is no memory left."""
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or "can't allocate memory" in str(error)


def _limit_memory_to_what_is_free() -> None:
    """Let an allocation fail that the machine has no room for, before the system ends a process of its choice."""
    limit = _read_bytes("/proc/self/status", "VmSize") + _read_bytes("/proc/meminfo", "MemAvailable")
    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (limit if hard == resource.RLIM_INFINITY else min(limit, hard), hard))


def _read_bytes(path: str, field: str) -> int:
    """A field of a /proc file that counts in kB, which are 1024 bytes there."""
    lines = Path(path).read_text(encoding="ascii", errors="replace").splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(f"{field}:"))


def main(argv: list[str] | None = None) -> None:
    """Measure one variant and print the record as JSON."""
    parser = argparse.ArgumentParser(description="Measure one step of distillation in this process.")
    parser.add_argument("variant", choices=(*STEP_VARIANTS, *LOGIT_KD_VARIANTS))
    parser.add_argument("seq_len", type=int, help="tokens of one row of the batch")
    parser.add_argument("--size", choices=tuple(SIZES), default="full", help="shapes of the models (default: full)")
    arguments = parser.parse_args(argv)
    print(json.dumps(measure(arguments.variant, arguments.seq_len, SIZES[arguments.size])))


if __name__ == "__main__":
    main()
