"""Importance of each channel, FFN unit and attention head of a model, measured on a calibration set.

These are the activation-based scores of Minitron (Muralidharan et al. 2024, arXiv 2407.14679), by which width pruning
ranks the parts of a model. They need only forward passes, no gradients.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from transformers import PreTrainedModel

_SMALLEST_ENERGY = 1e-30


@dataclass(frozen=True)
class BlockImportance:
    """Scores of one block. F FFN size, H attention heads, D head size.

    Attributes:
        ffn_units (`torch.Tensor` of shape `(F,)`): size of each unit's activation, `act(gate x) * up x`.
        heads (`torch.Tensor` of shape `(H,)`): length of each head's output, before the output projection.
        head_channels (`torch.Tensor` of shape `(H, D)`): size of each channel of each head's output.
    """

    ffn_units: torch.Tensor
    heads: torch.Tensor
    head_channels: torch.Tensor


@dataclass(frozen=True)
class ActivationImportance:
    """Scores of a model of hidden size d, in float64 on the CPU.

    Attributes:
        hidden_channels (`torch.Tensor` of shape `(d,)`): size of each channel after the norms, summed over the norms.
        blocks (`dict[int, BlockImportance]`): scores inside each measured block.
        norm_energy (`dict[str, torch.Tensor]`): by the name of a norm inside the decoder (`layers.3.input_layernorm`,
            `norm`), the mean square of each channel of its *input*, of shape `(d,)`.
    """

    hidden_channels: torch.Tensor
    blocks: dict[int, BlockImportance]
    norm_energy: dict[str, torch.Tensor]


def measure_importance(
    model: PreTrainedModel, calibration: Iterable[Mapping[str, torch.Tensor]], blocks: Sequence[int]
) -> ActivationImportance:
    """Run `model` over the calibration batches and score the channels, units and heads of some blocks.

    The score of a neuron is `sqrt(sum_examples (mean_tokens |activation|)^2)`, that of a head the same with the length
    of its output in place of |activation|: the activation-based importance of arXiv 2407.14679 (section 2.2) in its
    best aggregation, the mean over tokens and the L2 norm over examples. Padding does not count.

    Args:
        model ([`~transformers.PreTrainedModel`]): a causal LM of Llama's layout; unchanged.
        calibration (`Iterable[Mapping]`): batches with `input_ids` of shape `(B, T)` and, where rows are padded,
            `attention_mask`. The paper uses 1,024 examples.
        blocks (`Sequence[int]`): the blocks to score; the hidden channels are scored at their norms and the last one.

    Raises:
        ValueError: when there is no batch, or an activation is not finite.
    """
    decoder = model.get_decoder()
    sums = _RunningSums()
    handles = _watch(decoder, blocks, model.config.num_attention_heads, sums)
    was_training = model.training
    model.eval()
    try:
        with torch.no_grad():
            for batch in calibration:
                ids = batch["input_ids"].to(model.device)
                sums.begin(ids, batch.get("attention_mask"))
                decoder(input_ids=ids, attention_mask=sums.mask.long(), use_cache=False)
    finally:
        model.train(was_training)
        for handle in handles:
            handle.remove()
    return sums.importance(blocks, model.config.num_attention_heads)


class _RunningSums:
    """Sums over the calibration set, by the name of what is watched."""

    def __init__(self):
        self.mask = None
        self._squares: dict[str, torch.Tensor] = {}
        self._energy: dict[str, torch.Tensor] = {}
        self._num_tokens = 0

    def begin(self, input_ids: torch.Tensor, attention_mask: torch.Tensor | None) -> None:
        """Take the mask of the next batch: True on tokens that count, shape `(B, T)`."""
        if attention_mask is None:
            attention_mask = torch.ones_like(input_ids)
        self.mask = attention_mask.to(input_ids.device).bool()
        self._num_tokens += int(self.mask.sum())

    def add_sizes(self, name: str, sizes: torch.Tensor) -> None:
        """Add non-negative sizes of shape `(B, T, C)`: mean over tokens, then the sum of squares over examples."""
        lengths = self.mask.sum(1, keepdim=True).clamp(min=1)
        means = torch.einsum("btc,bt->bc", sizes.double(), self.mask.double()) / lengths
        self._add(self._squares, name, means.square().sum(0))

    def add_energy(self, name: str, hidden: torch.Tensor) -> None:
        """Add the squares of hidden states of shape `(B, T, d)`."""
        self._add(self._energy, name, hidden[self.mask].double().square().sum(0))

    @staticmethod
    def _add(sums: dict[str, torch.Tensor], name: str, value: torch.Tensor) -> None:
        sums[name] = value.cpu() + sums.get(name, 0.0)

    def importance(self, blocks: Sequence[int], num_heads: int) -> ActivationImportance:
        if not self._num_tokens:
            raise ValueError("Width pruning needs a calibration set; found no token in it. Pass at least one batch.")
        broken = [name for name, value in self._squares.items() if not value.isfinite().all()]
        if broken:
            raise ValueError(
                f"The activations of {broken[0]} are not finite on the calibration set, so nothing can be ranked. "
                "Run the model in bfloat16 or float32 and check its weights."
            )
        scores = {name: value.sqrt() for name, value in self._squares.items()}
        energy = {name: (value / self._num_tokens).clamp(min=_SMALLEST_ENERGY) for name, value in self._energy.items()}
        return ActivationImportance(
            hidden_channels=torch.stack([scores[name] for name in energy]).sum(0),
            blocks={
                block: BlockImportance(
                    ffn_units=scores[f"layers.{block}.mlp"],
                    heads=scores[f"layers.{block}.self_attn"],
                    head_channels=scores[f"layers.{block}.self_attn.channels"].unflatten(0, (num_heads, -1)),
                )
                for block in blocks
            },
            norm_energy=energy,
        )


def _watch(decoder: torch.nn.Module, blocks: Sequence[int], num_heads: int, sums: _RunningSums) -> list:
    """Hook the norms, the FFN units and the head outputs; return the handles that remove the hooks."""

    def watch_norm(name):
        def hook(module, inputs, output):
            sums.add_sizes(name, output.abs())
            sums.add_energy(name, inputs[0])

        return decoder.get_submodule(name).register_forward_hook(hook)

    def watch_units(name):
        def hook(module, inputs):
            sums.add_sizes(name, inputs[0].abs())

        return decoder.get_submodule(f"{name}.down_proj").register_forward_pre_hook(hook)

    def watch_heads(name):
        def hook(module, inputs):
            heads = inputs[0].double().unflatten(-1, (num_heads, -1))
            sums.add_sizes(name, heads.norm(dim=-1))
            sums.add_sizes(f"{name}.channels", inputs[0].abs())

        return decoder.get_submodule(f"{name}.o_proj").register_forward_pre_hook(hook)

    handles = [watch_norm("norm")]
    for block in blocks:
        handles += [
            watch_norm(f"layers.{block}.input_layernorm"),
            watch_norm(f"layers.{block}.post_attention_layernorm"),
            watch_units(f"layers.{block}.mlp"),
            watch_heads(f"layers.{block}.self_attn"),
        ]
    return handles
