"""Width pruning: select the channels, FFN units and heads that a narrower student keeps, and slice the weights.

The method is Minitron's (Muralidharan et al. 2024, arXiv 2407.14679), adapted to Llama so that removing a unit, head
or channel that is exactly zero, or merging key/value heads that are equal, does not change the logits:

- RMSNorm divides by the root mean square over *all* channels, which changes with the number of channels. The gain of
  every norm is therefore multiplied by the ratio of the two root mean squares, measured on the calibration set.
- Rotary pairs are kept together, and the pairs that are kept are those whose frequencies match the student's head
  size.
- Attention scores are divided by the square root of the head size, so the queries are rescaled accordingly.
- If the student shares a key/value head among more query heads than its teacher, that head is the mean of the
  teacher's heads (grouped-query attention, Ainslie et al. 2023, arXiv 2305.13245, section 2.1).
"""

from dataclasses import dataclass

import torch
from transformers import PreTrainedConfig, PreTrainedModel

from .activation_importance import ActivationImportance, BlockImportance


@dataclass(frozen=True)
class BlockCut:
    """The parts of a teacher block that a student block keeps, as indices into the teacher block.

    F FFN size, H query heads, K key/value heads, D head size, all of the student.

    Attributes:
        ffn_units (`torch.LongTensor` of shape `(F,)`).
        query_heads (`torch.LongTensor` of shape `(H,)`): ordered by the student's key/value head they look into.
        key_value_heads (`torch.LongTensor` of shape `(K, n)`): the heads whose mean each of the student's heads is.
        rotary_channels (`torch.LongTensor` of shape `(D,)`): channels of queries and keys, the same in every head.
        value_channels (`torch.LongTensor` of shape `(K, D)`): channels of the values, chosen per head.
    """

    ffn_units: torch.Tensor
    query_heads: torch.Tensor
    key_value_heads: torch.Tensor
    rotary_channels: torch.Tensor
    value_channels: torch.Tensor


class WidthCut:
    """Slice the tensors of a teacher to the widths of a student.

    Args:
        teacher ([`~transformers.PreTrainedModel`]): a causal LM with Llama's layout.
        config ([`~transformers.PreTrainedConfig`]): config of the student; no size may exceed that of the teacher.
        importance ([`ActivationImportance`]): importance scores of the teacher, for every block that is pruned.
    """

    def __init__(self, teacher: PreTrainedModel, config: PreTrainedConfig, importance: ActivationImportance):
        self.head_sizes = head_size(teacher.config), head_size(config)
        self.hidden_channels = most_important(importance.hidden_channels, config.hidden_size)
        rotary_channels = choose_rotary_channels(teacher, config)
        self.blocks = {
            block: choose_block_cut(scores, teacher.config, config, rotary_channels)
            for block, scores in importance.blocks.items()
        }
        self.norm_gains = {
            name: (energy[self.hidden_channels].mean() / energy.mean()).sqrt().item()
            for name, energy in importance.norm_energy.items()
        }

    def __call__(self, name: str, tensor: torch.Tensor) -> torch.Tensor:
        """Return the student's part of the teacher's parameter `name`, in storage of its own."""
        parts = name.split(".")
        owner, kind = parts[-2:]
        start = parts.index("layers") if "layers" in parts else -2
        if owner.endswith("norm"):
            gain = self.norm_gains[".".join(parts[start:-1])]
            return (tensor[self._on(tensor, self.hidden_channels)].float() * gain).to(tensor.dtype)
        if "layers" not in parts:
            return tensor[:, self._on(tensor, self.hidden_channels)]
        block = self.blocks[int(parts[start + 1])]
        tensor = self._cut_rows(owner, tensor, block)
        return self._cut_columns(owner, tensor, block) if kind == "weight" else tensor

    def _cut_rows(self, owner: str, tensor: torch.Tensor, cut: BlockCut) -> torch.Tensor:
        teacher_size, size = self.head_sizes
        if owner == "q_proj":
            rows = cut.query_heads[:, None] * teacher_size + cut.rotary_channels
            return tensor[self._on(tensor, rows.flatten())] * (size / teacher_size) ** 0.5
        if owner in ("k_proj", "v_proj"):
            channels = cut.rotary_channels.expand_as(cut.value_channels) if owner == "k_proj" else cut.value_channels
            rows = cut.key_value_heads[:, :, None] * teacher_size + channels[:, None]
            return tensor[self._on(tensor, rows)].mean(1).flatten(0, 1)
        rows = cut.ffn_units if owner in ("gate_proj", "up_proj") else self.hidden_channels
        return tensor[self._on(tensor, rows)]

    def _cut_columns(self, owner: str, tensor: torch.Tensor, cut: BlockCut) -> torch.Tensor:
        columns = self.hidden_channels
        if owner == "down_proj":
            columns = cut.ffn_units
        elif owner == "o_proj":
            group_size = len(cut.query_heads) // len(cut.value_channels)
            channels = cut.value_channels.repeat_interleave(group_size, dim=0)
            columns = (cut.query_heads[:, None] * self.head_sizes[0] + channels).flatten()
        return tensor[:, self._on(tensor, columns)]

    @staticmethod
    def _on(tensor: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
        return index.to(tensor.device)


def most_important(scores: torch.Tensor, number: int) -> torch.Tensor:
    """Return the indices of the `number` highest scores in ascending order; of equal scores the first is kept.

    ```python
    >>> most_important(torch.tensor([3.0, 1.0, 5.0, 3.0]), 2).tolist()
    [0, 2]

    ```
    """
    return scores.argsort(descending=True, stable=True)[:number].sort().values


def choose_block_cut(
    scores: BlockImportance, teacher: PreTrainedConfig, student: PreTrainedConfig, rotary_channels: torch.Tensor
) -> BlockCut:
    """Choose what a student block keeps, by the scores of its teacher block."""
    query_heads, key_value_heads = choose_heads(
        scores.heads, teacher.num_key_value_heads, student.num_attention_heads, student.num_key_value_heads
    )
    # A value channel serves all the queries that read the head, so their scores are added.
    group_size = len(query_heads) // len(key_value_heads)
    channel_scores = scores.head_channels[query_heads].unflatten(0, (-1, group_size)).sum(1)
    size = head_size(student)
    return BlockCut(
        ffn_units=most_important(scores.ffn_units, student.intermediate_size),
        query_heads=query_heads,
        key_value_heads=key_value_heads,
        rotary_channels=rotary_channels,
        value_channels=torch.stack([most_important(row, size) for row in channel_scores]),
    )


def choose_heads(
    scores: torch.Tensor, num_teacher_key_value_heads: int, num_heads: int, num_key_value_heads: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Choose query heads and, for each of the student's key/value heads, the teacher's heads it is the mean of.

    Whole groups go first: the groups whose best query heads score most are kept, and in each its best heads. A student
    with larger groups than its teacher's keeps the best query heads and joins their key/value heads in order.

    Args:
        scores (`torch.Tensor` of shape `(teacher heads,)`): importance of each query head.
        num_teacher_key_value_heads, num_heads, num_key_value_heads (`int`): key/value heads of the teacher, query
            heads of the student, key/value heads of the student.

    Returns:
        `tuple`: query heads `(num_heads,)` and key/value heads `(num_key_value_heads, n)`, indices of the teacher.

    ```python
    >>> choose_heads(torch.tensor([1.0, 2.0, 9.0, 0.0]), 2, 1, 1)
    (tensor([2]), tensor([[1]]))
    >>> choose_heads(torch.tensor([1.0, 2.0, 9.0, 0.0]), 4, 2, 1)
    (tensor([1, 2]), tensor([[1, 2]]))

    ```
    """
    teacher_group, group = len(scores) // num_teacher_key_value_heads, num_heads // num_key_value_heads
    if group > teacher_group:
        query_heads = most_important(scores, num_heads)
        return query_heads, (query_heads // teacher_group).unflatten(0, (num_key_value_heads, group))
    grouped = scores.unflatten(0, (num_teacher_key_value_heads, teacher_group))
    best = torch.stack([most_important(row, group) for row in grouped])
    kept = most_important(grouped.gather(1, best).sum(1), num_key_value_heads)
    return (kept[:, None] * teacher_group + best[kept]).flatten(), kept[:, None]


def choose_rotary_channels(teacher: PreTrainedModel, config: PreTrainedConfig) -> torch.Tensor:
    """Return the channels of the teacher's queries and keys whose rotary frequencies match the student's head size.

    RoPE rotates the channels `i` and `i + D / 2` together by `position * frequency_i`. The student's frequencies are
    determined by its head size. For each of them, the teacher's pair with the nearest frequency is kept; the
    frequencies are equal if the teacher's head size is a multiple of the student's.

    Raises:
        ValueError: if two of the student's frequencies are nearest to the same pair.
    """
    rotary = type(teacher.get_decoder().rotary_emb)
    frequencies, teacher_frequencies = rotary(config).inv_freq.log(), rotary(teacher.config).inv_freq.log()
    pairs = (frequencies[:, None] - teacher_frequencies).abs().argmin(1)
    if len(pairs.unique()) < len(pairs):
        raise ValueError(
            f"A head size of {head_size(config)} cannot be cut from {head_size(teacher.config)} with these "
            f"`rope_parameters`: {config.rope_parameters}. Keep the head size of the teacher."
        )
    return torch.cat([pairs, pairs + len(teacher_frequencies)])


def head_size(config: PreTrainedConfig) -> int:
    """Return the number of channels per attention head."""
    return getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
