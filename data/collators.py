"""Batches for training."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class CausalLanguageModelCollator:
    """Pads `input_ids` on the right and makes `attention_mask` and `labels` (-100 on padding).

    Args:
        pad_token_id (`int`): id written on padding.
    """

    pad_token_id: int

    def __call__(self, features: Sequence[dict]) -> dict[str, torch.Tensor]:
        rows = [torch.as_tensor(feature["input_ids"]) for feature in features]
        input_ids = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=self.pad_token_id)
        lengths = torch.tensor([len(row) for row in rows])
        mask = torch.arange(input_ids.shape[1]) < lengths[:, None]
        return {
            "input_ids": input_ids,
            "attention_mask": mask.long(),
            "labels": input_ids.masked_fill(~mask, -100),
        }
