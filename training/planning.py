"""Estimate the cost of a distillation run without loading weights: parameters, memory per GPU, FLOPs and GPU-hours.

Parameters are counted on the meta device. Activation memory is measured by running a block on tensors without storage
and summing the tensors that autograd keeps for the backward pass. All other numbers are computed from these two, as
described at each function. The CUDA context, fragmentation and communication buffers are not included.
"""

import copy
from dataclasses import dataclass, field

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from ..configuration_tinywave import TinyWaveConfig
from ..modeling_tinywave import TinyWaveForCausalLM
from .arguments import DistillationArguments
from .layer_map import LayerMap
from .terms import aligned_pairs
from .throughput import forward_flops_per_token
from .width_pruning import head_size

SHARDINGS = ("replicated", "sharded")
TEACHER_DTYPES = {"float32": 4, "bfloat16": 2, "float16": 2}
# AdamW keeps two moments of every weight in fp32.
_OPTIMIZER_BYTES = {"adamw_torch": 8, "adamw_torch_fused": 8}
_FP32 = 4
# Tensors of (tokens, vocabulary) alive at once in a chunk of the logits losses, at most: logits and log-probabilities
# of both models, the teacher's probabilities, and the gradients of both terms. A chunk has 2,048 tokens unless told.
_LOGITS_TENSORS, _CHUNK_TOKENS = 7, 2048


@dataclass(frozen=True)
class Hardware:
    """The machine that a run is planned for, and its assumed utilization.

    Raises:
        ValueError: if a number is not positive, the sharding is unknown, or the utilization is above 1.
    """

    num_gpus: int = field(metadata={"help": "GPUs, one process each."})
    sharding: str = field(
        metadata={"help": "'replicated' (every GPU holds all weights) or 'sharded' (FSDP2, ZeRO stage 3)."}
    )
    gpu_memory_gib: float = field(metadata={"help": "Memory of one GPU, in GiB."})
    peak_tflops: float = field(metadata={"help": "Dense peak of one GPU in the dtype of training, in TFLOP/s."})
    model_flops_utilisation: float = field(
        metadata={"help": "Share of the peak that the model's own FLOPs reach, recomputation not counted; 0 to 1."}
    )

    def __post_init__(self):
        for name in ("num_gpus", "gpu_memory_gib", "peak_tflops", "model_flops_utilisation"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, (int, float)) or not value > 0:
                raise ValueError(f"`{name}` must be a positive number; found {value!r}.")
        if self.model_flops_utilisation > 1:
            raise ValueError(
                f"`model_flops_utilisation` is a share of the peak, at most 1; found {self.model_flops_utilisation}."
            )
        if self.sharding not in SHARDINGS:
            raise ValueError(f"`sharding` must be one of {SHARDINGS}; found {self.sharding!r}.")


@dataclass(frozen=True)
class RunPlan:
    """The estimated cost of a run. Bytes are per GPU, all other numbers are for the whole run.

    Attributes:
        student_parameters, teacher_parameters (`int`): parameters of the models; 0 for a run without a teacher.
        memory_bytes (`dict[str, int]`): peak memory of one GPU, by purpose.
        total_memory_bytes, gpu_memory_bytes (`int`): sum of `memory_bytes`, and memory of the GPU.
        packing (`bool`): whether documents are packed into rows. The token counts are then the numbers of trained
            tokens, up to the unused ends of rows. Without packing they are upper limits that include padding.
        tokens_per_step (`int`): ids per optimizer step if every row has `max_length` ids.
        num_steps, total_tokens (`int`): optimizer steps and ids of the run.
        flops (`dict[str, int]`): floating-point operations of the run, by purpose.
        total_flops (`int`): sum of `flops`.
        gpu_hours, hours (`float`): GPU-hours of all GPUs together and wall-clock hours, at the given peak and
            utilization.
        hardware ([`Hardware`]): the assumed hardware.
    """

    student_parameters: int
    teacher_parameters: int
    memory_bytes: dict[str, int]
    total_memory_bytes: int
    gpu_memory_bytes: int
    packing: bool
    tokens_per_step: int
    num_steps: int
    total_tokens: int
    flops: dict[str, int]
    total_flops: int
    gpu_hours: float
    hours: float
    hardware: Hardware


def plan_run(
    teacher: TinyWaveConfig,
    student: TinyWaveConfig,
    layer_map: LayerMap,
    arguments: DistillationArguments,
    hardware: Hardware,
    *,
    max_length: int,
    teacher_dtype: str = "float32",
    packing: bool = False,
) -> RunPlan:
    """Estimate the cost of a distillation run with sequences of `max_length` ids.

    Args:
        teacher, student ([`TinyWaveConfig`]): configs of the two models.
        layer_map ([`LayerMap`]): pairs of aligned blocks.
        arguments ([`DistillationArguments`]): settings of the run; `max_steps` must be set.
        hardware ([`Hardware`]): the machine and its assumed utilization.
        max_length (`int`): ids per row.
        teacher_dtype (`str`, defaults to "float32"): dtype of the teacher's weights.
        packing (`bool`, defaults to False): whether rows hold several documents, separated by the attention mask.

    Returns:
        [`RunPlan`].

    Raises:
        ValueError: if `max_steps` is not set, or the memory of the optimizer or the dtype is not known.
    """
    if arguments.max_steps < 1:
        raise ValueError("A plan needs `max_steps` in the recipe's `training`: the data set is not read.")
    layer_map.check_depths(teacher.num_hidden_layers, student.num_hidden_layers)
    memory = memory_per_gpu(teacher, student, layer_map, arguments, hardware, max_length, teacher_dtype)
    if packing:
        memory["document_masks"] = _mask_bytes(arguments, max_length)
    sequences = arguments.per_device_train_batch_size * arguments.gradient_accumulation_steps * hardware.num_gpus
    tokens = sequences * max_length * arguments.max_steps
    flops = {name: value * tokens for name, value in flops_per_token(
        teacher, student, layer_map, arguments, max_length).items()}  # fmt: skip
    total_flops = sum(flops.values())
    gpu_hours = total_flops / (hardware.peak_tflops * 1e12 * hardware.model_flops_utilisation) / 3600
    return RunPlan(
        student_parameters=count_parameters(student),
        teacher_parameters=count_parameters(teacher) if arguments.needs_teacher else 0,
        memory_bytes=memory,
        total_memory_bytes=sum(memory.values()),
        gpu_memory_bytes=round(hardware.gpu_memory_gib * 2**30),
        packing=packing,
        tokens_per_step=sequences * max_length,
        num_steps=arguments.max_steps,
        total_tokens=tokens,
        flops=flops,
        total_flops=total_flops,
        gpu_hours=gpu_hours,
        hours=gpu_hours / hardware.num_gpus,
        hardware=hardware,
    )


def count_parameters(config: TinyWaveConfig) -> int:
    """Return the number of parameters of a config's model, counted on the meta device; tied ones count once."""
    return sum(parameter.numel() for parameter in _meta_model(config).parameters())


def flops_per_token(
    teacher: TinyWaveConfig,
    student: TinyWaveConfig,
    layer_map: LayerMap,
    arguments: DistillationArguments,
    seq_len: int,
) -> dict[str, int]:
    """Return the model FLOPs of training per id, by purpose, without recomputation by activation checkpointing.

    The backward pass costs twice the forward pass. The attention term needs four products per aligned block: the
    scores of both models, and the gradients of the student's queries and keys.
    """
    flops = {"student": 3 * forward_flops_per_token(student, seq_len)}
    if arguments.needs_teacher:
        flops["teacher"] = forward_flops_per_token(teacher, seq_len)
    if pairs := aligned_pairs(arguments, layer_map, "attention_inputs"):
        product = 3 * _attention_product(student, seq_len) + _attention_product(teacher, seq_len)
        flops["attention_alignment"] = len(pairs) * product
    return flops


def memory_per_gpu(
    teacher: TinyWaveConfig,
    student: TinyWaveConfig,
    layer_map: LayerMap,
    arguments: DistillationArguments,
    hardware: Hardware,
    seq_len: int,
    teacher_dtype: str,
) -> dict[str, int]:
    """Return the bytes on one GPU at the end of a forward pass, by purpose.

    Weights, gradients and both moments of AdamW are fp32, as in mixed-precision training. Sharding divides them and
    the teacher by the number of GPUs; two blocks and the embeddings and heads are then gathered in 16 bits at a time.
    """
    if teacher_dtype not in TEACHER_DTYPES:
        raise ValueError(f"The teacher's dtype must be one of {tuple(TEACHER_DTYPES)}; found {teacher_dtype!r}.")
    optimizer = str(getattr(arguments.optim, "value", arguments.optim))
    if optimizer not in _OPTIMIZER_BYTES:
        raise ValueError(
            f"The memory of the optimizer {optimizer!r} is not known; a plan is made for {tuple(_OPTIMIZER_BYTES)}."
        )
    num_shards = hardware.num_gpus if hardware.sharding == "sharded" else 1
    parameters = count_parameters(student)
    batch_size = arguments.per_device_train_batch_size
    memory = {
        "student_weights": parameters * _FP32 // num_shards,
        "gradients": parameters * _FP32 // num_shards,
        "optimizer_states": parameters * _OPTIMIZER_BYTES[optimizer] // num_shards,
        "activations": activation_bytes(student, batch_size, seq_len, arguments, with_weights=num_shards == 1),
        "logits_chunk": _logits_bytes(teacher, student, arguments, batch_size * seq_len),
    }
    if arguments.needs_teacher:
        memory["teacher_weights"] = count_parameters(teacher) * TEACHER_DTYPES[teacher_dtype] // num_shards
        memory["alignment"] = _alignment_bytes(teacher, student, layer_map, arguments, batch_size * seq_len)
    if num_shards > 1:
        memory["gathered_weights"] = _gathered_bytes(student) + (
            _gathered_bytes(teacher) if arguments.needs_teacher else 0
        )
    return memory


def activation_bytes(
    config: TinyWaveConfig, batch_size: int, seq_len: int, arguments: DistillationArguments, *, with_weights: bool
) -> int:
    """Return the bytes that autograd keeps of the student's forward pass, up to the final norm.

    With activation checkpointing, these are the input of every block, and all activations of one block at a time.

    Args:
        with_weights (`bool`): count the 16-bit copies of the weights that autocast keeps. Under sharding they are
            gathered and dropped block by block instead.
    """
    low_precision = arguments.bf16 or arguments.fp16
    (block, copies), (norm, _) = (_kept_bytes(config, part, seq_len, low_precision) for part in ("block", "norm"))
    kept = config.num_hidden_layers * block
    if arguments.activation_checkpointing:
        kept = block + config.num_hidden_layers * seq_len * config.hidden_size * _FP32
    return batch_size * (kept + norm) + (config.num_hidden_layers * copies if with_weights else 0)


def _kept_bytes(config: TinyWaveConfig, part: str, seq_len: int, low_precision: bool) -> tuple[int, int]:
    """Bytes kept for the backward pass of a "block" or the final "norm": (per sequence, whatever the batch)."""
    one, two = (_run_without_storage(config, part, batch, seq_len, low_precision) for batch in (1, 2))
    return two - one, 2 * one - two


def _run_without_storage(config: TinyWaveConfig, part: str, batch_size: int, seq_len: int, low_precision: bool) -> int:
    shallow = copy.deepcopy(config)
    shallow.num_hidden_layers = 1
    with FakeTensorMode():
        decoder = TinyWaveForCausalLM(shallow).train().get_decoder()
        hidden = torch.zeros(batch_size, seq_len, config.hidden_size, requires_grad=True)
        positions = torch.arange(seq_len)[None]
        kept = _StorageCounter(decoder.parameters())
        with (
            torch.autocast("cpu", torch.bfloat16, enabled=low_precision),
            torch.autograd.graph.saved_tensors_hooks(kept.add, lambda tensor: tensor),
        ):
            if part == "norm":
                kept.add(decoder.norm(hidden))
            else:
                decoder.layers[0](hidden, position_embeddings=decoder.rotary_emb(hidden, positions))
    return kept.num_bytes


class _StorageCounter:
    """Adds up the storages it is shown, each once; those of the parameters are not counted."""

    def __init__(self, parameters):
        self._known = {parameter.untyped_storage()._cdata: parameter.untyped_storage() for parameter in parameters}
        self.num_bytes = 0

    def add(self, tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in self._known:
            # Held, so that its address is not given to another one.
            self._known[storage._cdata] = storage
            self.num_bytes += storage.nbytes()
        return tensor


def _logits_bytes(
    teacher: TinyWaveConfig, student: TinyWaveConfig, arguments: DistillationArguments, num_tokens: int
) -> int:
    """A chunk of logits, the fp32 gradients of the LM head and of the final states, and the teacher's final states."""
    chunk = min(arguments.logits_chunk_size or _CHUNK_TOKENS, num_tokens) * student.vocab_size
    gradients = (student.vocab_size + num_tokens) * student.hidden_size
    teacher_states = num_tokens * teacher.hidden_size if arguments.needs_teacher else 0
    return _FP32 * (_LOGITS_TENSORS * chunk + gradients + teacher_states)


def _alignment_bytes(
    teacher: TinyWaveConfig,
    student: TinyWaveConfig,
    layer_map: LayerMap,
    arguments: DistillationArguments,
    num_tokens: int,
) -> int:
    """What the aligned blocks leave: the teacher's states, its queries and keys, and gradients of the student's."""
    teacher_heads = teacher.num_attention_heads + teacher.num_key_value_heads
    states = _FP32 * teacher.hidden_size
    attention = 2 * teacher_heads * head_size(teacher) + _FP32 * 2 * student.num_attention_heads * head_size(student)
    pairs = [aligned_pairs(arguments, layer_map, reads) for reads in ("block_outputs", "attention_inputs")]
    return num_tokens * (len(pairs[0]) * states + len(pairs[1]) * attention)


def _mask_bytes(arguments: DistillationArguments, seq_len: int) -> int:
    """Return the bytes of the masks of packed rows: one byte per pair of ids, and one mask per model."""
    return (1 + arguments.needs_teacher) * arguments.per_device_train_batch_size * seq_len**2


def _gathered_bytes(config: TinyWaveConfig) -> int:
    """Return the bytes, in 16 bits, of two gathered blocks (current and next) and of the weights outside blocks."""
    model = _meta_model(config)
    blocks = model.get_decoder().layers
    in_blocks = sum(parameter.numel() for parameter in blocks.parameters())
    outside = sum(parameter.numel() for parameter in model.parameters()) - in_blocks
    return 2 * (outside + min(2, len(blocks)) * in_blocks // len(blocks))


def _attention_product(config: TinyWaveConfig, seq_len: int) -> int:
    """FLOPs per id and block of one product of attention, in the convention of [`forward_flops_per_token`]."""
    return 2 * seq_len * config.num_attention_heads * head_size(config)


def _meta_model(config: TinyWaveConfig) -> nn.Module:
    with torch.device("meta"):
        return TinyWaveForCausalLM(config)
