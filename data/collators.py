"""Batches for training."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch.nn.utils.rnn import pad_sequence


@dataclass(frozen=True)
class CausalLanguageModelCollator:
    """Pads `input_ids` on the right and makes `attention_mask` and `labels` (-100 on padding).

    Of packed documents, told apart by `position_ids` that begin again at 0, the first id of each is no target either:
    nothing predicts it. Their batch has no `attention_mask`, beside which transformers would not read from the
    position ids where a document ends. Padding has position 0 throughout, like documents of one id.

    Args:
        pad_token_id (`int`): id written on padding.
    """

    pad_token_id: int

    def __call__(self, features: Sequence[dict]) -> dict[str, torch.Tensor]:
        rows = [torch.as_tensor(feature["input_ids"]) for feature in features]
        input_ids = pad_sequence(rows, batch_first=True, padding_value=self.pad_token_id)
        if "position_ids" in features[0]:
            positions = [torch.as_tensor(feature["position_ids"]) for feature in features]
            position_ids = pad_sequence(positions, batch_first=True, padding_value=0)
            labels = input_ids.masked_fill(position_ids == 0, -100)
            return {"input_ids": input_ids, "position_ids": position_ids, "labels": labels}
        lengths = torch.tensor([len(row) for row in rows])
        mask = torch.arange(input_ids.shape[1]) < lengths[:, None]
        return {
            "input_ids": input_ids,
            "attention_mask": mask.long(),
            "labels": input_ids.masked_fill(~mask, -100),
        }
